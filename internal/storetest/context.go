package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ruapost"
)

// A record call whose context has ended comes back. What it said is true at the
// latest when the store is closed: no error, recorded; an error, once or not at all.
func testContextEndedRecording(t *testing.T, d *data) {
	s := d.store(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	const calls = 50
	var evaluated, sessionsIn int64
	for range calls {
		if s.RecordEvaluation(ended, evaluation("example.com", 1)) == nil {
			evaluated++
		}
		if s.RecordSessions(ended, []ruapost.Session{session("example.com"), session("example.com", failure(1))}) == nil {
			sessionsIn += 2
		}
	}
	mustClose(t, s)
	least := map[ruapost.Kind]int64{ruapost.KindDMARC: evaluated, ruapost.KindTLS: sessionsIn}
	most := map[ruapost.Kind]int64{ruapost.KindDMARC: calls, ruapost.KindTLS: 2 * calls}
	for _, g := range groups(t, d.store(t)) {
		if g.Total < least[g.Kind] || g.Total > most[g.Kind] {
			t.Errorf("%s: %d recorded, want %d to %d", g.Kind, g.Total, least[g.Kind], most[g.Kind])
		}
		if g.Kind == ruapost.KindDMARC && g.Listed != g.Total {
			t.Errorf("%d listed of %d", g.Listed, g.Total)
		}
		delete(least, g.Kind)
	}
	for kind, n := range least {
		if n > 0 {
			t.Errorf("%s: none recorded, want at least %d", kind, n)
		}
	}
}

// wantDone checks the error of a call whose context may have ended, and whether the
// call was done if there is none.
func wantDone(t *testing.T, what string, err error, done bool) {
	t.Helper()
	if err == nil && !done {
		t.Errorf("%s: no error, but not done", what)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("%s: %v, want the context's error", what, err)
	}
}

func testContextEndedBefore(t *testing.T, d *data) {
	s := d.store(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	se := longSession("example.com", 2500)
	for i := range 3 {
		recordSessions(t, s, se)
		g := oneGroup(t, s)
		gs, err := s.Groups(ended, over)
		wantDone(t, "Groups", err, len(gs) == 1)
		rows, err := list[ruapost.TLSFailure](ended, s, g.ID)
		wantDone(t, "Rows", err, maps.Equal(rows, rowsOf(2500)))

		r := report(fmt.Sprintf("r%d", i), g)
		err = s.Seal(ended, r)
		wantDone(t, "Seal", err, sealed(t, s, r.ID, g))
		seal(t, s, report(fmt.Sprintf("r%dx", i), g)) // unless it was done

		err = s.DropRows(ended, []ruapost.Group{g})
		rows, rerr := list[ruapost.TLSFailure](t.Context(), s, g.ID)
		if rerr != nil {
			t.Fatal(rerr)
		}
		wantDone(t, "DropRows", err, len(rows) == 0)

		recordSessions(t, s, se)
		err = s.Drop(ended, groups(t, s))
		left := groups(t, s)
		wantDone(t, "Drop", err, len(left) == 0)
		if err := s.Drop(t.Context(), left); err != nil {
			t.Fatal(err)
		}

		put := report(fmt.Sprintf("put%d", i))
		err = s.PutReports(ended, put)
		wantDone(t, "PutReports", err, stored(t, s, put.ID) != nil)
		if err := s.PutReports(t.Context(), put); err != nil {
			t.Fatal(err)
		}
		err = s.ForgetReport(ended, put.ID)
		wantDone(t, "ForgetReport", err, stored(t, s, put.ID) == nil)
		all := reports(t, s)
		rs, err := listReports(ended, s)
		wantDone(t, "Reports", err, cmp.Equal(rs, all))
	}
}

// stored returns the report with that ID, or nil.
func stored(t *testing.T, s Store, id string) *ruapost.Report {
	t.Helper()
	for _, r := range reports(t, s) {
		if r.ID == id {
			return &r
		}
	}
	return nil
}

// sealed says whether the group was taken by the report. It must be there or be
// recording, not both, and not be gone.
func sealed(t *testing.T, s Store, id string, g ruapost.Group) bool {
	t.Helper()
	is := func(other ruapost.Group) bool { return other.ID == g.ID }
	recording := slices.ContainsFunc(groups(t, s), is)
	r := stored(t, s, id)
	taken := r != nil && slices.ContainsFunc(r.Groups, is)
	if taken == recording {
		t.Errorf("report %s has group %d: %t; it is still recorded into: %t", id, g.ID, taken, recording)
	}
	if r != nil && len(r.Groups) == 0 {
		t.Errorf("report %s was stored without groups", id)
	}
	return taken
}

// A reader whose context ends gets its error, or everything, but not a part.
func testContextEndsReading(t *testing.T, d *data) {
	s := d.store(t)
	var many []ruapost.Session
	for i := range 1500 {
		many = append(many, session(fmt.Sprintf("d%d.example", i)))
	}
	recordSessions(t, s, many...)
	recordSessions(t, s, longSession("d0.example", 2500))
	id := groupsOf(t, s, "d0.example")[0].ID
	for looks, blown := 1, true; blown; looks++ {
		ctx := newFuse(t, looks)
		gs, err := s.Groups(ctx, over)
		wantDone(t, "Groups", err, len(gs) == len(many))
		blown = ctx.blown()

		ctx = newFuse(t, looks)
		rows, err := list[ruapost.TLSFailure](ctx, s, id)
		wantDone(t, "Rows", err, len(rows) == 2500)
		blown = blown || ctx.blown()
	}

	// It ends in the reader's hands.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err := range s.Rows(ctx, id) {
		cancel()
		wantDone(t, "Rows", err, true)
		if err != nil {
			return
		}
		n++
	}
	if n != 2500 {
		t.Errorf("%d rows and no error", n)
	}
}

func testContextEndsSealing(t *testing.T, d *data) {
	s, recorder := d.store(t), d.store(t)
	// At each look of the store.
	for looks, blown := 1, true; blown; looks++ {
		record(t, recorder, evaluation("example.com", 1))
		g := oneGroup(t, s)
		ctx := newFuse(t, looks)
		r := report(fmt.Sprintf("look%d", looks), g)
		err := s.Seal(ctx, r)
		wantDone(t, "Seal", err, sealed(t, s, r.ID, g))
		blown = ctx.blown()
		seal(t, s, report(fmt.Sprintf("rest%d", looks), groups(t, s)...))
	}

	// At no particular moment.
	const n = 40
	for i := range n {
		recordSessions(t, recorder, longSession(fmt.Sprintf("d%d.example", i), 3))
	}
	gs := groups(t, s)
	made := make([]*ruapost.Report, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		ctx, cancel := context.WithCancel(t.Context())
		made[i] = report(fmt.Sprintf("r%d", i), gs[i])
		wg.Go(func() { errs[i] = s.Seal(ctx, made[i]) })
		wg.Go(func() {
			// Takes about as long.
			if err := recorder.RecordSessions(t.Context(), []ruapost.Session{session("example.net")}); err != nil {
				t.Errorf("RecordSessions: %v", err)
			}
			cancel()
		})
	}
	wg.Wait()
	for i := range n {
		wantDone(t, "Seal", errs[i], sealed(t, s, fmt.Sprintf("r%d", i), gs[i]))
		wantRows[ruapost.TLSFailure](t, s, gs[i].ID, rowsOf(3))
	}
	wantGroups(t, groupsOf(t, s, "example.net"), sessions(session("example.net"), n, 0, 0, 0))
}

// What waits when a store is closed is recorded, and it is of no use from then on.
func testClose(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var accepted int64
	for i := range 100 {
		// This call may come back before it has recorded, the next may not.
		s.RecordEvaluation(ended, evaluation("example.com", i))
		if s.RecordEvaluation(t.Context(), evaluation("example.org", i)) == nil {
			accepted++
		}
	}
	mustClose(t, s)
	mustClose(t, s)
	gs := groups(t, other)
	wantGroups(t, groupsOf(t, other, "example.org"), evaluations(evaluation("example.org", 1), accepted, accepted, accepted, accepted))
	some := report("r1", gs...)
	calls := map[string]error{
		"RecordEvaluation": s.RecordEvaluation(t.Context(), evaluation("example.com", 1)),
		"RecordSessions":   s.RecordSessions(t.Context(), []ruapost.Session{session("example.com")}),
		"Seal":             s.Seal(t.Context(), some),
		"Drop":             s.Drop(t.Context(), gs),
		"DropRows":         s.DropRows(t.Context(), gs),
		"PutReports":       s.PutReports(t.Context(), some),
		"ForgetReport":     s.ForgetReport(t.Context(), "r1"),
		"PutSTSPolicy":     s.PutSTSPolicy(t.Context(), policy("example.com", 1)),
	}
	calls["UpdateReport"] = s.UpdateReport(t.Context(), "r1", func(*ruapost.Report) error { return nil })
	calls["UpdateSuppression"] = s.UpdateSuppression(t.Context(), "example.com", func(*ruapost.Suppression) bool { return true })
	calls["Count"] = s.Count(t.Context(), map[string]uint64{"n": 1})
	_, calls["Report"] = s.Report(t.Context(), "r1")
	_, calls["Suppressions"] = s.Suppressions(t.Context())
	_, calls["Secret"] = s.Secret(t.Context())
	_, calls["Counts"] = s.Counts(t.Context())
	_, calls["STSPolicy"] = s.STSPolicy(t.Context(), "example.com")
	_, calls["STSPolicies"] = s.STSPolicies(t.Context(), "", 1)
	_, calls["STSVersion"] = s.STSVersion(t.Context())
	_, calls["DeleteSTSPolicies"] = s.DeleteSTSPolicies(t.Context(), []string{"example.com"})
	_, calls["Groups"] = s.Groups(t.Context(), over)
	_, calls["Reports"] = listReports(t.Context(), s)
	_, calls["Rows"] = list[ruapost.DMARCResult](t.Context(), s, gs[0].ID)
	for _, what := range slices.Sorted(maps.Keys(calls)) {
		if calls[what] == nil {
			t.Errorf("%s on a closed store: no error", what)
		}
	}
	// Its end is nobody else's, and the calls have done nothing.
	wantGroups(t, groups(t, other), gs...)
	record(t, other, evaluation("example.net", 1))
	wantReports(t, other)
}
