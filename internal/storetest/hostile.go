package storetest

import (
	"reflect"
	"strings"
	"testing"

	"ruapost"
)

func testHostileEvaluations(t *testing.T, d *data) {
	s := d.store(t)
	var want []ruapost.Group
	rows := map[string]string{}
	for name, text := range hostile {
		e := evaluation("example.com", 1)
		e.Policy, e.Result = filled[ruapost.DMARCPolicy](text), filled[ruapost.DMARCResult](text)
		e.Policy.Domain = "example.com"
		record(t, s, e, e)
		want = append(want, evaluations(e, 2, 1, 2, 2))
		rows[form(e.Policy)] = form(e.Result)
		t.Logf("%s: row of %d octets", name, len(form(e.Result)))
	}
	got := groups(t, s)
	wantGroups(t, got, want...)
	for _, g := range got {
		wantRows[ruapost.DMARCResult](t, s, g.ID, map[string]int64{rows[form(g.DMARC)]: 2})
	}

	// What is not UTF-8 cannot be kept, but must not get in the way.
	bad := evaluation("example.org", 1)
	bad.Policy.Error, bad.Result.DKIM[0].Selector = "\xff\xfe", "a\xc3"
	record(t, s, bad, evaluation("example.net", 1), bad)
	if gs := groupsOf(t, s, "example.org"); len(gs) != 1 || gs[0].Total != 2 || gs[0].Listed != 2 {
		t.Errorf("groups with invalid UTF-8: %+v", gs)
	}
	wantGroups(t, groupsOf(t, s, "example.net"), evaluations(evaluation("example.net", 1), 1, 1, 1, 1))
}

func testHostileSessions(t *testing.T, d *data) {
	s := d.store(t)
	var want []ruapost.Group
	rows := map[string]string{}
	for _, text := range hostile {
		se := session("example.com", filled[ruapost.TLSFailure](text))
		se.Policy = filled[ruapost.TLSPolicy](text)
		recordSessions(t, s, se, se)
		want = append(want, sessions(se, 2, 1, 2, 2))
		rows[form(se.Policy)] = form(se.Failures[0])
	}
	got := groups(t, s)
	wantGroups(t, got, want...)
	for _, g := range got {
		wantRows[ruapost.TLSFailure](t, s, g.ID, map[string]int64{rows[form(g.TLS)]: 2})
	}
}

func testHostileReports(t *testing.T, d *data) {
	s := d.store(t)
	for name, text := range hostile {
		r := filled[ruapost.Report](text)
		r.ID = "r1"
		if err := s.PutReports(t.Context(), &r); err != nil {
			t.Fatalf("PutReports with %s: %v", name, err)
		}
		wantReports(t, s, r)
	}
	long := *report("r1")
	long.Recipients[0].Error = strings.Repeat("\u00e4", 100_000)
	if err := s.PutReports(t.Context(), &long); err != nil {
		t.Fatal(err)
	}
	wantReports(t, s, long)
}

// A policy of 4 KiB is kept. One that is too large costs nobody else their rows.
func testHostilePolicySize(t *testing.T, d *data) {
	s := d.store(t)
	large, huge := session("example.com"), session("example.org")
	large.Policy.Strings = []string{strings.Repeat("x", 3<<10)}
	huge.Policy.Strings = []string{strings.Repeat("x", 1<<20)}
	recordSessions(t, s, large)
	_ = s.RecordSessions(t.Context(), []ruapost.Session{huge, session("example.net")}) // it may be refused
	recordSessions(t, s, large, session("example.net"))
	wantGroups(t, groupsOf(t, s, "example.com"), sessions(large, 2, 0, 0, 0))
	gs := groupsOf(t, s, "example.net")
	if len(gs) != 1 || gs[0].Total < 1 || gs[0].Total > 2 || !reflect.DeepEqual(*gs[0].TLS, session("example.net").Policy) {
		t.Errorf("groups of the neighbour: %+v", gs)
	}
}
