package storetest

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ruapost"
)

func testEmpty(t *testing.T, d *data) {
	s := d.store(t)
	recordSessions(t, s)
	if err := s.RecordSessions(t.Context(), nil); err != nil {
		t.Errorf("RecordSessions of none: %v", err)
	}
	wantGroups(t, groups(t, s))
	wantReports(t, s)
	wantRows[ruapost.DMARCResult](t, s, 1, nil)
	unknown := evaluations(evaluation("example.com", 1), 1, 1, 1, 1)
	unknown.ID = 1
	for what, err := range map[string]error{
		"Drop":         s.Drop(t.Context(), []ruapost.Group{unknown}),
		"Drop none":    s.Drop(t.Context(), nil),
		"DropRows":     s.DropRows(t.Context(), []ruapost.Group{unknown}),
		"ForgetReport": s.ForgetReport(t.Context(), "nosuch"),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	r := report("r1", unknown)
	seal(t, s, r)
	if len(r.Groups) != 0 {
		t.Errorf("sealed a group that never was: %+v", r.Groups)
	}
	wantReports(t, s)
}

func testMergeWithinACall(t *testing.T, d *data) {
	s := d.store(t)
	se := session("example.net", failure(1))
	recordSessions(t, s, se, session("example.net"), se, session("example.net", failure(2), failure(1)))
	g := oneGroup(t, s)
	wantGroups(t, []ruapost.Group{g}, sessions(se, 4, 2, 4, 3))
	wantRows[ruapost.TLSFailure](t, s, g.ID, map[string]int64{form(failure(1)): 3, form(failure(2)): 1})
}

func testMergeBetweenCalls(t *testing.T, d *data) {
	s := d.store(t)
	e := evaluation("example.com", 1)
	record(t, s, e, evaluation("example.com", 2), e)
	id := oneGroup(t, s).ID
	record(t, s, e)
	g := oneGroup(t, s)
	if g.ID != id {
		t.Errorf("the group's ID was %d and is %d", id, g.ID)
	}
	wantGroups(t, []ruapost.Group{g}, evaluations(e, 4, 2, 4, 4))
	wantRows[ruapost.DMARCResult](t, s, g.ID, map[string]int64{form(result(1)): 3, form(result(2)): 1})

	// Empty and missing lists say the same.
	e = evaluation("example.com", 3)
	e.Result.DKIM, e.Result.Overrides = nil, nil
	same := evaluation("example.com", 3)
	same.Result.DKIM, same.Result.Overrides = []ruapost.DKIMResult{}, []ruapost.Override{}
	record(t, s, e, same)
	wantGroups(t, groups(t, s), evaluations(e, 6, 3, 6, 6))
}

func testMergeOverRestart(t *testing.T, d *data) {
	e, se := evaluation("example.com", 1), session("example.com", failure(1))
	for range 3 {
		s := d.store(t)
		record(t, s, e)
		recordSessions(t, s, se)
		mustClose(t, s)
	}
	s := d.store(t)
	gs := groups(t, s)
	wantGroups(t, gs, evaluations(e, 3, 1, 3, 3), sessions(se, 3, 1, 3, 3))
	wantRows[ruapost.DMARCResult](t, s, gs[0].ID, map[string]int64{form(result(1)): 3})
	wantRows[ruapost.TLSFailure](t, s, gs[1].ID, map[string]int64{form(failure(1)): 3})
}

func testMergeTwoProcesses(t *testing.T, d *data) {
	a, b := d.store(t), d.store(t)
	e := evaluation("example.com", 1)
	record(t, a, e)
	// A call that returned is seen by the other, which was open before.
	wantGroups(t, groups(t, b), evaluations(e, 1, 1, 1, 1))

	const each = 40
	var wg sync.WaitGroup
	for _, s := range []Store{a, b} {
		for i := range each {
			wg.Go(func() {
				if err := s.RecordEvaluation(t.Context(), evaluation("example.com", i%4)); err != nil {
					t.Errorf("RecordEvaluation: %v", err)
				}
			})
		}
	}
	wg.Wait()
	want := map[string]int64{}
	for i := range 4 {
		want[form(result(i))] = 2 * each / 4
	}
	want[form(result(1))]++
	g := oneGroup(t, a)
	wantGroups(t, []ruapost.Group{g}, evaluations(e, 2*each+1, 4, 2*each+1, 2*each+1))
	wantRows[ruapost.DMARCResult](t, b, g.ID, want)
}

func testOptional(t *testing.T, d *data) {
	s := d.store(t)
	required, optional := evaluation("example.com", 1), evaluation("example.com", 1)
	optional.Optional = true
	only := evaluation("example.org", 1)
	only.Optional = true
	record(t, s, optional, required, optional, only)
	// Whether an evaluation is optional is no part of what a report says: one row.
	wantGroups(t, groups(t, s), evaluations(required, 3, 1, 3, 1), evaluations(only, 1, 1, 1, 0))
}

// A session may fail without a known reason, have several, the same one twice, or
// succeed after a failure. Total and Failed count sessions, Listed failures.
func testSessionTotals(t *testing.T, d *data) {
	s := d.store(t)
	unknown := session("example.net")
	unknown.Failed = true
	inTheEnd := session("example.net", failure(1))
	inTheEnd.Failed = false
	recordSessions(t, s, session("example.net"), unknown, inTheEnd,
		session("example.net", failure(1), failure(2), failure(2)))
	g := oneGroup(t, s)
	wantGroups(t, []ruapost.Group{g}, sessions(unknown, 4, 2, 4, 2))
	wantRows[ruapost.TLSFailure](t, s, g.ID, map[string]int64{form(failure(1)): 2, form(failure(2)): 2})
}

// A day is a UTC day, its first instant included and the next day's not.
func testWindows(t *testing.T, d *data) {
	s := d.store(t)
	midnight := noon.Add(12 * time.Hour)
	east, west := time.FixedZone("east", 14*3600), time.FixedZone("west", -12*3600)
	days := map[ruapost.Window]int64{}
	for _, when := range []time.Time{
		noon, midnight.Add(-1), midnight, midnight.Add(1), midnight.Add(24*time.Hour - 1),
		noon.In(east), noon.In(west), midnight.Add(-1).In(east), midnight.In(west),
		time.Date(2024, 2, 29, 23, 59, 59, 999, time.UTC), time.Date(2024, 12, 31, 23, 59, 59, 0, west),
	} {
		e, se := evaluation("example.com", 1), session("example.com")
		e.Time, se.Time = when, when
		record(t, s, e)
		recordSessions(t, s, se)
		u := when.UTC()
		start := time.Date(u.Year(), u.Month(), u.Day(), 0, 0, 0, 0, time.UTC)
		days[ruapost.Window{Start: start, End: start.AddDate(0, 0, 1)}]++
	}
	var want []ruapost.Group
	for w, n := range days {
		e, se := evaluation("example.com", 1), session("example.com")
		e.Time, se.Time = w.Start, w.Start
		want = append(want, evaluations(e, n, 1, n, n), sessions(se, n, 0, 0, 0))
	}
	wantGroups(t, groups(t, s), want...)
}

func testGroupsBefore(t *testing.T, d *data) {
	s := d.store(t)
	e, next, se := evaluation("example.com", 1), evaluation("example.com", 1), session("example.com")
	next.Time = noon.Add(24 * time.Hour)
	record(t, s, e, next)
	recordSessions(t, s, se)
	end := ruapost.Day(noon).End
	first := []ruapost.Group{evaluations(e, 1, 1, 1, 1), sessions(se, 1, 0, 0, 0)}
	both := append(slices.Clone(first), evaluations(next, 1, 1, 1, 1))
	for before, want := range map[time.Time][]ruapost.Group{
		{}:                               nil,
		noon:                             nil,
		end.Add(-1):                      nil,
		end:                              first,
		end.In(time.FixedZone("", 3600)): first,
		end.Add(24*time.Hour - 1):        first,
		end.Add(24 * time.Hour):          both,
	} {
		got, err := s.Groups(t.Context(), before)
		if err != nil {
			t.Fatalf("Groups before %s: %v", before, err)
		}
		t.Log(before)
		wantGroups(t, got, want...)
	}
}

// More groups than are read at a time come in the order of kind, window and domain,
// which is how the reporter finds those that make up one report.
func testGroupsOrder(t *testing.T, d *data) {
	s := d.store(t)
	var many []ruapost.Session
	for i := range 1500 {
		// Written in an order that is none of these.
		se := session(fmt.Sprintf("d%d.example", i*7919%1500))
		se.Time = noon.Add(time.Duration(i%2) * 24 * time.Hour)
		many = append(many, se)
		if i%100 == 0 {
			se.Policy = ruapost.TLSPolicy{Type: ruapost.PolicyNone, Domain: se.Domain}
			many = append(many, se)
			record(t, s, evaluation(se.Domain, i))
		}
	}
	recordSessions(t, s, many...)
	got := groups(t, s)
	if len(got) != len(many)+15 {
		t.Errorf("%d groups, want %d", len(got), len(many)+15)
	}
	if !slices.IsSortedFunc(got, func(a, b ruapost.Group) int {
		return cmp.Or(
			cmp.Compare(a.Kind, b.Kind),
			a.Window.Start.Compare(b.Window.Start),
			cmp.Compare(a.Domain, b.Domain),
		)
	}) {
		t.Error("not in the order of kind, window and domain")
	}
	for _, g := range got {
		if g.Total != 1 {
			t.Errorf("group of %s on %s has the total %d, want 1", g.Domain, g.Window.Start, g.Total)
		}
	}
}

// Each field of a policy makes another group.
func testPoliciesApart(t *testing.T, d *data) {
	const perDay = 4
	s := d.store(t)
	var want []ruapost.Group
	// A few on a day: a store may bound the policies of a domain and window.
	for i, p := range variants(evaluation("example.com", 1).Policy) {
		e := evaluation("example.com", 1)
		e.Time, e.Policy = e.Time.AddDate(0, 0, -i/perDay), p
		record(t, s, e, e)
		want = append(want, evaluations(e, 2, 1, 2, 2))
	}
	for i, p := range variants(session("example.com").Policy) {
		se := session("example.com", failure(1))
		se.Time, se.Policy = se.Time.AddDate(0, 0, -i/perDay), p
		recordSessions(t, s, se, se)
		want = append(want, sessions(se, 2, 1, 2, 2))
	}
	got := groups(t, s)
	wantGroups(t, got, want...)
	for _, g := range got {
		if g.Kind == ruapost.KindDMARC {
			wantRows[ruapost.DMARCResult](t, s, g.ID, map[string]int64{form(result(1)): 2})
		} else {
			wantRows[ruapost.TLSFailure](t, s, g.ID, map[string]int64{form(failure(1)): 2})
		}
	}
}

func testKindsApart(t *testing.T, d *data) {
	s := d.store(t)
	e, se := evaluation("example.com", 1), session("example.com", failure(1))
	record(t, s, e)
	recordSessions(t, s, se, se)
	gs := groups(t, s)
	wantGroups(t, gs, evaluations(e, 1, 1, 1, 1), sessions(se, 2, 1, 2, 2))
	r := report("r1", gs[0])
	seal(t, s, r)
	wantGroups(t, groups(t, s), sessions(se, 2, 1, 2, 2))
	if err := s.DropRows(t.Context(), r.Groups); err != nil {
		t.Fatal(err)
	}
	wantRows[ruapost.TLSFailure](t, s, gs[1].ID, map[string]int64{form(failure(1)): 2})
}

// longDomain has the 253 octets that a name may have.
var longDomain = strings.Repeat(strings.Repeat("a", 62)+".", 3) + strings.Repeat("b", 63) + "."

func testDomainsThatBeginAlike(t *testing.T, d *data) {
	s := d.store(t)
	domains := []string{
		"example.co", "example.com", "example.com.au", "example.com-x", "example.comx", "c.example.com", "com", "m",
		longDomain[:253], longDomain[:252],
	}
	var want []ruapost.Group
	for i, domain := range domains {
		n := int64(i + 1)
		for range n {
			record(t, s, evaluation(domain, i))
		}
		want = append(want, evaluations(evaluation(domain, i), n, 1, n, n))
	}
	wantGroups(t, groups(t, s), want...)

	// Taking one leaves the others.
	r := report("r1", groupsOf(t, s, "example.com")...)
	seal(t, s, r)
	wantGroups(t, r.Groups, want[1])
	if err := s.DropRows(t.Context(), r.Groups); err != nil {
		t.Fatal(err)
	}
	if err := s.Drop(t.Context(), groupsOf(t, s, "com")); err != nil {
		t.Fatal(err)
	}
	left := slices.Delete(slices.Clone(want), 6, 7)
	left = slices.Delete(left, 1, 2)
	got := groups(t, s)
	wantGroups(t, got, left...)
	for _, g := range got {
		wantRows[ruapost.DMARCResult](t, s, g.ID, map[string]int64{form(result(slices.Index(domains, g.Domain))): g.Total})
	}
}

// Each field of a result makes another row.
func testResultsApart(t *testing.T, d *data) {
	s := d.store(t)
	want := map[string]int64{}
	for i, v := range variants(result(1)) {
		e := evaluation("example.com", 1)
		e.Result = v
		for range i + 1 {
			record(t, s, e)
			want[form(v)]++
		}
	}
	if n := reflect.TypeFor[ruapost.DMARCResult]().NumField() + 1; len(want) != n {
		t.Fatalf("%d different results, want %d", len(want), n)
	}
	wantRows[ruapost.DMARCResult](t, s, oneGroup(t, s).ID, want)

	se := session("example.com")
	want = map[string]int64{}
	for i, v := range variants(failure(1)) {
		for range i + 1 {
			se.Failures = append(se.Failures, v)
			want[form(v)]++
		}
	}
	recordSessions(t, s, se)
	wantRows[ruapost.TLSFailure](t, s, groups(t, s)[1].ID, want)
}

func testRowsEveryField(t *testing.T, d *data) {
	s := d.store(t)
	e := evaluation("example.com", 1)
	e.Policy, e.Result = filled[ruapost.DMARCPolicy]("text"), filled[ruapost.DMARCResult]("text")
	se := session("example.com", filled[ruapost.TLSFailure]("text"))
	se.Policy = filled[ruapost.TLSPolicy]("text")
	record(t, s, e)
	recordSessions(t, s, se)
	mustClose(t, s)
	s = d.store(t)
	gs := groups(t, s)
	wantGroups(t, gs, evaluations(e, 1, 1, 1, 1), sessions(se, 1, 1, 1, 1))
	wantRows[ruapost.DMARCResult](t, s, gs[0].ID, map[string]int64{form(e.Result): 1})
	wantRows[ruapost.TLSFailure](t, s, gs[1].ID, map[string]int64{form(se.Failures[0]): 1})
}

// A row of 4 KiB is listed, one of 1 MiB only counted.
func testOverlongRow(t *testing.T, d *data) {
	s := d.store(t)
	small, large, huge := evaluation("example.com", 1), evaluation("example.com", 1), evaluation("example.com", 1)
	large.Result.DKIM[0].Reason = strings.Repeat("x", 4<<10-len(form(large.Result))-len(`,"reason":""`))
	huge.Result.DKIM[0].Reason = strings.Repeat("x", 1<<20)
	if n := len(form(large.Result)); n != 4<<10 {
		t.Fatalf("the large row has %d octets", n)
	}
	record(t, s, small, large, huge, small, huge)
	overlong := failure(1)
	overlong.Additional = strings.Repeat("x", 1<<20)
	se := session("example.com", overlong, failure(1))
	recordSessions(t, s, se)
	gs := groups(t, s)
	wantGroups(t, gs, evaluations(small, 5, 2, 3, 5), sessions(se, 1, 1, 1, 1))
	wantRows[ruapost.DMARCResult](t, s, gs[0].ID, map[string]int64{form(small.Result): 2, form(large.Result): 1})
	wantRows[ruapost.TLSFailure](t, s, gs[1].ID, map[string]int64{form(failure(1)): 1})
}

// What a record call was given and what a read call returned are the caller's to
// change.
func testCallerKeepsItsValues(t *testing.T, d *data) {
	s := d.store(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 {
		// The call may come back before it has recorded.
		e, se := evaluation("example.com", 1), session("example.com", failure(1))
		s.RecordEvaluation(ended, e)
		e.Policy.FO, e.Result.DKIM[0].Domain = "changed", "changed"
		list := []ruapost.Session{se}
		s.RecordSessions(ended, list)
		list[0].Policy.Strings[0], list[0].Failures[0].ReceivingMX = "changed", "changed"
	}
	record(t, s, evaluation("example.com", 1))
	recordSessions(t, s, session("example.com", failure(1)))
	for _, g := range groups(t, s) {
		for row, err := range s.Rows(t.Context(), g.ID) {
			if err != nil {
				t.Fatal(err)
			}
			clear(row.Data)
		}
		if g.Kind == ruapost.KindDMARC {
			g.DMARC.FO = "changed"
		}
	}
	gs := groups(t, s)
	if len(gs) != 2 || gs[0].DMARC.FO != "0" || gs[1].TLS.Strings[0] != "version: STSv1" {
		t.Fatalf("groups %+v", gs)
	}
	wantRows[ruapost.DMARCResult](t, s, gs[0].ID, map[string]int64{form(result(1)): gs[0].Listed})
	wantRows[ruapost.TLSFailure](t, s, gs[1].ID, map[string]int64{form(failure(1)): gs[1].Listed})
}
