package reporting

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"

	"ruapost"
)

// History writes what became of the reports that were made, recipient by recipient, the
// newest last; in JSON each report is a line. If that is more than v.Limit reports, it is
// the newest ones.
func (r *Reporter) History(ctx context.Context, w io.Writer, v View) error {
	var entries []listed
	leftOut := 0
	trim := func(limit int) {
		if n := len(entries) - v.Limit; v.Limit > 0 && len(entries) > limit {
			entries = slices.Clone(entries[n:])
			leftOut += n
		}
	}
	for rep, err := range r.Store.Reports(ctx) {
		if err != nil {
			return err
		}
		if wasOffered(&rep) && (v.Domain == "" || rep.Domain == v.Domain) {
			entries = append(entries, r.reportEntry(&rep))
			trim(2 * v.Limit)
		}
	}
	trim(v.Limit)
	if v.JSON {
		for _, e := range entries {
			if err := writeJSON(w, e); err != nil {
				return err
			}
		}
		return nil
	}
	return writeHistory(w, entries, leftOut)
}

// wasOffered tells whether anything has become of a report.
func wasOffered(rep *ruapost.Report) bool {
	return rep.State == ruapost.ReportDone ||
		slices.ContainsFunc(rep.Recipients, func(rc ruapost.Recipient) bool { return rc.Attempts > 0 })
}

func writeHistory(w io.Writer, entries []listed, leftOut int) error {
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
	for _, e := range entries {
		line := func(last, outcome, recipient string) {
			t.add(last, string(e.Kind), e.Domain, day(e.Window), strconv.FormatInt(e.Count, 10), outcome, recipient, e.ReportID)
		}
		for _, rc := range e.Recipients {
			last := "-"
			if !rc.Last.IsZero() {
				last = at(rc.Last)
			}
			line(last, string(rc.State), rc.Address)
			if rc.Error != "" {
				t.note(rc.Error)
			}
		}
		if len(e.Recipients) == 0 {
			line("-", e.State, "-")
			t.note(e.Detail)
		}
	}
	return t.write(w)
}
