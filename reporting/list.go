package reporting

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"ruapost"
)

// View is what of a list is shown, and how.
type View struct {
	// Domain, unless it is empty, is the only one that is shown.
	Domain string
	// ReportID, unless it is empty, is the identifier of the only report that is shown, or
	// its beginning as FindReport takes it.
	ReportID string
	// Limit is the greatest number of entries; 0 is no bound.
	Limit int
	JSON  bool
}

// States of an entry that is no report yet.
const (
	stateRecording  = "recording"
	stateDue        = "due"
	stateUnreported = "no report" // there is to be none
)

// States of a report.
const (
	stateSealed     = "sealed"
	stateWaiting    = "waiting"
	stateSent       = "sent"
	stateFailed     = "failed"
	stateBounced    = "bounced"
	stateSuppressed = "suppressed"
	stateRefused    = "not agreed"
)

// listed is what is told of a report that was made or could be.
type listed struct {
	Kind   ruapost.Kind   `json:"kind"`
	Domain string         `json:"domain"`
	Window ruapost.Window `json:"window"`
	Count  int64          `json:"count"`
	*results
	State string `json:"state"`
	// Detail says more about State, for people.
	Detail     string              `json:"detail,omitempty"`
	ReportID   string              `json:"report_id,omitempty"`
	Recipients []ruapost.Recipient `json:"recipients,omitempty"`

	groups []ruapost.Group // what results are found by
	report *ruapost.Report // nil if it is none yet
}

// recentlyDone is how long List shows a report that is done.
const recentlyDone = 24 * time.Hour

// List writes what is being recorded, what waits to be sent, and the reports that were
// done in the last day. If that is more than v.Limit, what needs an eye comes before what
// is well, and then what counts more messages or sessions. The error wraps
// ruapost.ErrNoReport or ErrNothing if there is nothing that v asks for.
func (r *Reporter) List(ctx context.Context, w io.Writer, v View) error {
	entries, err := r.entries(ctx, v)
	if err != nil {
		return err
	}
	leftOut := 0
	if v.Limit > 0 && len(entries) > v.Limit {
		slices.SortStableFunc(entries, func(a, b listed) int {
			return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(b.Count, a.Count))
		})
		leftOut = len(entries) - v.Limit
		entries = entries[:v.Limit]
	}
	slices.SortStableFunc(entries, func(a, b listed) int {
		return cmp.Or(cmp.Compare(a.Domain, b.Domain), a.Window.Start.Compare(b.Window.Start), cmp.Compare(a.Kind, b.Kind))
	})
	if err := r.addResults(ctx, entries); err != nil {
		return err
	}
	counts, err := r.Store.Counts(ctx)
	if err != nil {
		return err
	}
	if v.JSON {
		return writeJSON(w, struct {
			Reports  []listed          `json:"reports"`
			LeftOut  int               `json:"left_out"`
			Counters map[string]uint64 `json:"counters"`
		}{append([]listed{}, entries...), leftOut, counts})
	}
	return writeList(w, entries, leftOut, counts)
}

func writeList(w io.Writer, entries []listed, leftOut int, counts map[string]uint64) error {
	if len(entries) == 0 {
		if _, err := fmt.Fprintln(w, "Nothing is recorded or waits to be sent. What was reported before: history"); err != nil {
			return err
		}
		return writeCounters(w, counts)
	}
	var t table
	t.add("KIND", "DOMAIN", "DAY (UTC)", "COUNT", "STATE", "RESULTS", "REPORT-ID")
	for _, e := range entries {
		t.add(string(e.Kind), e.Domain, day(e.Window), strconv.FormatInt(e.Count, 10), e.stateText(), e.results.text(e.Kind), cmp.Or(e.shortID(), "-"))
		for _, rc := range e.Recipients {
			if rc.Error != "" {
				t.note(rc.Address + ": " + recipientState(&rc))
			}
		}
	}
	if err := t.write(w); err != nil {
		return err
	}
	if leftOut > 0 {
		if _, err := fmt.Fprintf(w, "and %d more; all of them: list -n 0\n", leftOut); err != nil {
			return err
		}
	}
	return writeCounters(w, counts)
}

// entries returns what List is about.
func (r *Reporter) entries(ctx context.Context, v View) (entries []listed, err error) {
	if v.ReportID != "" {
		return r.entryOf(ctx, v.ReportID)
	}
	due, err := r.due(ctx, r.before(Selection{Open: true}), v.Domain)
	if err != nil {
		return nil, err
	}
	for i := range due {
		entries = append(entries, r.dueEntry(&due[i]))
	}
	known := v.Domain == "" || len(due) > 0
	for rep, err := range r.Store.Reports(ctx) {
		if err != nil {
			return nil, err
		}
		if v.Domain != "" && rep.Domain != v.Domain {
			continue
		}
		known = true
		done := rep.State == ruapost.ReportDone && r.now().Sub(rep.Finished) >= recentlyDone
		if !done {
			entries = append(entries, r.reportEntry(&rep))
		}
	}
	if !known {
		return nil, fmt.Errorf("%s: %w", v.Domain, ErrNothing)
	}
	return entries, nil
}

// entryOf returns the only entry for a report identifier.
func (r *Reporter) entryOf(ctx context.Context, id string) ([]listed, error) {
	rep, err := r.FindReport(ctx, id)
	if err != nil {
		return nil, err
	}
	return []listed{r.reportEntry(rep)}, nil
}

func (r *Reporter) dueEntry(d *dueReport) listed {
	e := listed{Kind: d.kind, Domain: d.domain, Window: d.window, Count: total(d.groups), State: stateRecording, groups: d.groups}
	switch err := r.reportable(d); {
	case err != nil:
		e.State, e.Detail = stateUnreported, err.Error()
	case !d.window.End.Add(Grace).After(r.now()):
		e.State = stateDue
	}
	return e
}

func (r *Reporter) reportEntry(rep *ruapost.Report) listed {
	e := listed{
		Kind: rep.Kind, Domain: rep.Domain, Window: rep.Window, Count: total(rep.Groups),
		ReportID: rep.ID, Recipients: rep.Recipients, groups: rep.Groups, report: rep,
	}
	e.State, e.Detail = r.reportState(rep)
	if rep.Parts > 0 {
		e.Detail = strings.TrimPrefix(fmt.Sprintf("%s, part %d of %d", e.Detail, rep.Part, rep.Parts), ", ")
	}
	return e
}

// reportState says how a report is: of its recipients the one that is worst off counts.
func (r *Reporter) reportState(rep *ruapost.Report) (state, detail string) {
	if rep.State == ruapost.ReportSealed {
		return stateSealed, "the next run composes it"
	}
	n := map[ruapost.RecipientState]int{}
	var next, last time.Time
	for _, rc := range rep.Recipients {
		n[rc.State]++
		if rc.State == ruapost.RecipientWaiting && (next.IsZero() || rc.NotBefore.Before(next)) {
			next = rc.NotBefore
		}
		if rc.Last.After(last) {
			last = rc.Last
		}
	}
	of := func(s ruapost.RecipientState) string {
		if n[s] == len(rep.Recipients) {
			return ""
		}
		return fmt.Sprintf("%d of %d recipients", n[s], len(rep.Recipients))
	}
	switch {
	case n[ruapost.RecipientWaiting] > 0 && next.After(r.now()):
		return stateWaiting, "until " + at(next)
	case n[ruapost.RecipientWaiting] > 0:
		return stateWaiting, "for its turn"
	case n[ruapost.RecipientFailed] > 0:
		return stateFailed, of(ruapost.RecipientFailed)
	case n[ruapost.RecipientBounced] > 0:
		return stateBounced, of(ruapost.RecipientBounced)
	case n[ruapost.RecipientSent] > 0:
		return stateSent, at(last)
	case n[ruapost.RecipientSuppressed] > 0:
		return stateSuppressed, ""
	case n[ruapost.RecipientRefused] > 0:
		return stateRefused, ""
	}
	return stateFailed, "nobody is left to get it"
}

// shortIDDigits is how much of a report identifier a table has: its first eight digits are
// the time, which all reports of a run may share.
const shortIDDigits = 12

func (e *listed) shortID() string { return e.ReportID[:min(len(e.ReportID), shortIDDigits)] }

func (e *listed) stateText() string {
	if e.Detail == "" {
		return e.State
	}
	return e.State + ": " + e.Detail
}

// rank orders entries by how much they need somebody's eye.
func (e *listed) rank() int {
	return slices.Index([]string{
		stateFailed, stateBounced, stateWaiting, stateSealed, stateDue, stateSent, stateSuppressed, stateRefused, stateRecording, stateUnreported,
	}, e.State)
}

func total(groups []ruapost.Group) (n int64) {
	for _, g := range groups {
		n += g.Total
	}
	return n
}

// day is a window for a terminal: the day, or the hours of it.
func day(w ruapost.Window) string {
	start, end := w.Start.UTC(), w.End.UTC()
	if w == ruapost.Day(start) {
		return start.Format(time.DateOnly)
	}
	to := end.Format("15:04")
	if to == "00:00" {
		to = "24:00"
	}
	return start.Format("2006-01-02 15:04") + "-" + to
}

func recipientState(rc *ruapost.Recipient) string {
	if rc.State == ruapost.RecipientRefused { // the error says the same at more length
		return stateRefused
	}
	text := string(rc.State)
	switch {
	case rc.State == ruapost.RecipientSent:
		text += " " + at(rc.Last)
	case rc.State == ruapost.RecipientWaiting && !rc.NotBefore.IsZero():
		text += " until " + at(rc.NotBefore)
	}
	if rc.Error != "" && rc.Error != text { // "suppressed" says it, too
		text += ": " + rc.Error
	}
	return text
}
