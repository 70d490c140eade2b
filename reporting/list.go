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
	StateRecording  = "recording"
	StateDue        = "due"
	StateUnreported = "no report" // there is to be none
)

// States of a report.
const (
	StateSealed     = "sealed"
	StateWaiting    = "waiting"
	StateSent       = "sent"
	StateFailed     = "failed"
	StateBounced    = "bounced"
	StateSuppressed = "suppressed"
	StateRefused    = "not agreed"
)

// Entry is what is told of a report that was made or could be.
type Entry struct {
	Kind   ruapost.Kind   `json:"kind"`
	Domain string         `json:"domain"`
	Window ruapost.Window `json:"window"`
	Count  int64          `json:"count"`
	*Results
	State string `json:"state"`
	// Detail says more about State, for people.
	Detail     string              `json:"detail,omitempty"`
	ReportID   string              `json:"report_id,omitempty"`
	Recipients []ruapost.Recipient `json:"recipients,omitempty"`
	// Group is the first group of what is no report yet, Policies what the domain had
	// published then, in a few words.
	Group    ruapost.GroupID `json:"-"`
	Policies []string        `json:"-"`

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
		slices.SortStableFunc(entries, func(a, b Entry) int {
			return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(b.Count, a.Count))
		})
		leftOut = len(entries) - v.Limit
		entries = entries[:v.Limit]
	}
	slices.SortStableFunc(entries, func(a, b Entry) int {
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
			Reports  []Entry           `json:"reports"`
			LeftOut  int               `json:"left_out"`
			Counters map[string]uint64 `json:"counters"`
		}{append([]Entry{}, entries...), leftOut, counts})
	}
	return writeList(w, entries, leftOut, counts)
}

func writeList(w io.Writer, entries []Entry, leftOut int, counts map[string]uint64) error {
	if len(entries) == 0 {
		if _, err := fmt.Fprintln(w, "Nothing is recorded or waits to be sent. What was reported before: history"); err != nil {
			return err
		}
		return writeCounters(w, counts)
	}
	var t table
	t.add("KIND", "DOMAIN", "DAY (UTC)", "COUNT", "STATE", "RESULTS", "REPORT-ID")
	for _, e := range entries {
		t.add(string(e.Kind), e.Domain, FormatWindow(e.Window), strconv.FormatInt(e.Count, 10), e.stateText(), e.Results.text(e.Kind), cmp.Or(e.shortID(), "-"))
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
func (r *Reporter) entries(ctx context.Context, v View) (entries []Entry, err error) {
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
func (r *Reporter) entryOf(ctx context.Context, id string) ([]Entry, error) {
	rep, err := r.FindReport(ctx, id)
	if err != nil {
		return nil, err
	}
	return []Entry{r.reportEntry(rep)}, nil
}

func (r *Reporter) dueEntry(d *dueReport) Entry {
	e := Entry{Kind: d.kind, Domain: d.domain, Window: d.window, Count: total(d.groups), State: StateRecording, Group: d.groups[0].ID, Policies: policyTexts(d.groups), groups: d.groups}
	switch err := r.reportable(d); {
	case err != nil:
		e.State, e.Detail = StateUnreported, err.Error()
	case !d.window.End.Add(Grace).After(r.now()):
		e.State = StateDue
	}
	return e
}

// EntryOf is what is told of a report.
func (r *Reporter) EntryOf(rep *ruapost.Report) Entry {
	e := r.reportEntry(rep)
	e.Results = reportResults(rep, frozenSummary(rep))
	return e
}

func (r *Reporter) reportEntry(rep *ruapost.Report) Entry {
	e := Entry{
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
		return StateSealed, "the next run composes it"
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
		return StateWaiting, "until " + at(next)
	case n[ruapost.RecipientWaiting] > 0:
		return StateWaiting, "for its turn"
	case n[ruapost.RecipientFailed] > 0:
		return StateFailed, of(ruapost.RecipientFailed)
	case n[ruapost.RecipientBounced] > 0:
		return StateBounced, of(ruapost.RecipientBounced)
	case n[ruapost.RecipientSent] > 0:
		return StateSent, at(last)
	case n[ruapost.RecipientSuppressed] > 0:
		return StateSuppressed, ""
	case n[ruapost.RecipientRefused] > 0:
		return StateRefused, ""
	}
	return StateFailed, "nobody is left to get it"
}

// shortIDDigits is how much of a report identifier a table has: its first eight digits are
// the time, which all reports of a run may share.
const shortIDDigits = 12

func (e *Entry) shortID() string { return e.ReportID[:min(len(e.ReportID), shortIDDigits)] }

func (e *Entry) stateText() string {
	if e.Detail == "" {
		return e.State
	}
	return e.State + ": " + e.Detail
}

// rank orders entries by how much they need somebody's eye.
func (e *Entry) rank() int {
	return slices.Index([]string{
		StateFailed, StateBounced, StateWaiting, StateSealed, StateDue, StateSent, StateSuppressed, StateRefused, StateRecording, StateUnreported,
	}, e.State)
}

func total(groups []ruapost.Group) (n int64) {
	for _, g := range groups {
		n += g.Total
	}
	return n
}

// FormatWindow writes a window for people: the day, or the hours of it, in UTC.
func FormatWindow(w ruapost.Window) string {
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
		return StateRefused
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

// policyTexts returns the policies of groups, each once.
func policyTexts(groups []ruapost.Group) (texts []string) {
	for i := range groups {
		var text string
		if g := &groups[i]; g.DMARC != nil {
			text = policyText(g.DMARC)
		} else {
			text = policyKind(g.TLS)
		}
		if !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	return texts
}
