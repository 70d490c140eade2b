package reporting

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"ruapost"
)

// History writes what became of the reports that were made, recipient by recipient, by the
// time of the last try; in JSON each report is a line. If that is more than v.Limit reports,
// it is those that were tried last. The error wraps ruapost.ErrNoReport if there is nothing
// that v asks for.
func (r *Reporter) History(ctx context.Context, w io.Writer, v View) error {
	var entries []Entry
	leftOut := 0
	trim := func() {
		slices.SortStableFunc(entries, func(a, b Entry) int {
			return cmp.Or(lastTry(a.report).Compare(lastTry(b.report)), cmp.Compare(a.Domain, b.Domain))
		})
		if n := len(entries) - v.Limit; v.Limit > 0 && n > 0 {
			entries = slices.Clone(entries[n:])
			leftOut += n
		}
	}
	if v.ReportID != "" {
		var err error
		if entries, err = r.entryOf(ctx, v.ReportID); err != nil {
			return err
		}
		return writeHistory(w, entries, v, 0)
	}
	for rep, err := range r.Store.Reports(ctx) {
		if err != nil {
			return err
		}
		if wasOffered(&rep) && (v.Domain == "" || rep.Domain == v.Domain) {
			entries = append(entries, r.reportEntry(&rep))
			if v.Limit > 0 && len(entries) > 2*v.Limit {
				trim()
			}
		}
	}
	trim()
	if len(entries) == 0 && v.Domain != "" {
		return fmt.Errorf("%w about %s was sent; what is recorded: list %s", ruapost.ErrNoReport, v.Domain, v.Domain)
	}
	return writeHistory(w, entries, v, leftOut)
}

// wasOffered tells whether anything has become of a report.
func wasOffered(rep *ruapost.Report) bool {
	return rep.State == ruapost.ReportDone ||
		slices.ContainsFunc(rep.Recipients, func(rc ruapost.Recipient) bool { return rc.Attempts > 0 })
}

// lastTry is when a report was last offered, or else given up.
func lastTry(rep *ruapost.Report) time.Time {
	last := time.Time{}
	for _, rc := range rep.Recipients {
		if rc.Last.After(last) {
			last = rc.Last
		}
	}
	if last.IsZero() {
		return rep.Finished
	}
	return last
}

func writeHistory(w io.Writer, entries []Entry, v View, leftOut int) error {
	if v.JSON {
		for _, e := range entries {
			if err := writeJSON(w, e); err != nil {
				return err
			}
		}
		return nil
	}
	if len(entries) == 0 {
		_, err := fmt.Fprintln(w, "No report was sent yet, or all that were are forgotten.")
		return err
	}
	if leftOut > 0 {
		if _, err := fmt.Fprintf(w, "%d older ones are left out; all of them: history -n 0\n", leftOut); err != nil {
			return err
		}
	}
	var t table
	t.add("LAST TRY (UTC)", "KIND", "DOMAIN", "DAY (UTC)", "COUNT", "OUTCOME", "RECIPIENT", "REPORT-ID")
	for _, l := range historyLines(entries) {
		t.add(l.cells...)
		if l.note != "" {
			t.note(l.note)
		}
	}
	return t.write(w)
}

// historyLine is what became of a report at one recipient.
type historyLine struct {
	tried time.Time // what lines are sorted by
	cells []string
	note  string
}

func historyLines(entries []Entry) (lines []historyLine) {
	for _, e := range entries {
		add := func(tried time.Time, last, outcome, recipient, note string) {
			cells := []string{last, string(e.Kind), e.Domain, FormatWindow(e.Window), strconv.FormatInt(e.Count, 10), outcome, recipient, e.shortID()}
			lines = append(lines, historyLine{tried, cells, note})
		}
		for _, rc := range e.Recipients {
			outcome, note := string(rc.State), rc.Error
			if rc.State == ruapost.RecipientRefused {
				outcome, note = recipientState(&rc), ""
			}
			if rc.Last.IsZero() {
				add(lastTry(e.report), "-", outcome, rc.Address, note)
			} else {
				add(rc.Last, at(rc.Last), outcome, rc.Address, note)
			}
		}
		if len(e.Recipients) == 0 {
			add(lastTry(e.report), "-", e.State, "-", e.Detail)
		}
	}
	slices.SortStableFunc(lines, func(a, b historyLine) int { return a.tried.Compare(b.tried) })
	return lines
}
