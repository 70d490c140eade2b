package storetest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ruapost"
)

// rowsOf returns what longSession(domain, n) lists.
func rowsOf(n int) map[string]int64 {
	want := map[string]int64{}
	for i := range n {
		want[form(failure(i))] = 1
	}
	return want
}

// Rows are read in pieces; none is lost or doubled where the pieces meet.
func testRowsInChunks(t *testing.T, d *data) {
	s := d.store(t)
	sizes := []int{0, 1, 999, 1000, 1001, 2000, 2500}
	var all []ruapost.Session
	for _, n := range sizes {
		all = append(all, longSession(fmt.Sprintf("d%d.example", n), n))
	}
	recordSessions(t, s, all...)
	for _, n := range sizes {
		gs := groupsOf(t, s, fmt.Sprintf("d%d.example", n))
		if len(gs) != 1 || gs[0].Rows != int64(n) {
			t.Fatalf("groups %+v, want one with %d rows", gs, n)
		}
		// A preview lists what is still being recorded; then as sealed.
		wantRows[ruapost.TLSFailure](t, s, gs[0].ID, rowsOf(n))
		seal(t, s, report(fmt.Sprintf("r%d", n), gs...))
		wantRows[ruapost.TLSFailure](t, s, gs[0].ID, rowsOf(n))
	}
}

// Nothing is locked while the reader is busy with a row: everything goes on, in this
// process and in others, and the sealed rows stay as they are.
func testRowsWhileOthersRecord(t *testing.T, d *data) {
	const n = 2500
	s, other := d.store(t), d.store(t)
	se := longSession("example.com", n)
	recordSessions(t, s, se)
	r := report("r1", oneGroup(t, s))
	seal(t, s, r)
	i := 0
	got := map[string]int64{}
	for row, err := range s.Rows(t.Context(), r.Groups[0].ID) {
		if err != nil {
			t.Fatal(err)
		}
		got[string(row.Data)] += row.Count
		if i++; i%500 == 1 {
			recordSessions(t, s, se, longSession("example.co", i))
			recordSessions(t, other, se)
			record(t, other, evaluation("example.com", i))
			wantGroups(t, groupsOf(t, other, "example.co"), sessions(session("example.co", failure(1)), int64(i/500+1), int64(i), int64(listed(i)), int64(i/500+1)))
		}
	}
	if len(got) != n || i != n {
		t.Errorf("%d rows, %d of them distinct, want %d", i, len(got), n)
	}
	wantRows[ruapost.TLSFailure](t, s, r.Groups[0].ID, rowsOf(n))
	late := groupsOf(t, s, "example.com")[1]
	if late.Total != 10 || late.Listed != 10*n || late.Rows != n {
		t.Errorf("late group %+v", late)
	}
}

// listed is 1 + 501 + 1001 + ... + i.
func listed(i int) int {
	sum := 0
	for n := 1; n <= i; n += 500 {
		sum += n
	}
	return sum
}

func testRowsStoppedEarly(t *testing.T, d *data) {
	s := d.store(t)
	recordSessions(t, s, longSession("example.com", 1500))
	g := oneGroup(t, s)
	seq := s.Rows(t.Context(), g.ID)
	for _, after := range []int{1, 999, 1000, 1001, 1499, 1500} {
		i := 0
		for _, err := range seq {
			if err != nil {
				t.Fatal(err)
			}
			if i++; i == after {
				break
			}
		}
		if i != after {
			t.Errorf("%d rows, want %d", i, after)
		}
		recordSessions(t, s, session("example.com")) // nothing is left locked
	}
	// One in the other, and again from the beginning.
	for range seq {
		for range seq {
			break
		}
		break
	}
	wantRows[ruapost.TLSFailure](t, s, g.ID, rowsOf(1500))
}

// A report has the totals of the moment it is sealed. What is recorded later goes to
// a new group.
func testSealTotals(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	e := evaluation("example.com", 1)
	optional := evaluation("example.com", 2)
	optional.Optional = true
	record(t, s, e, optional)
	r := report("r1", oneGroup(t, s))
	recipients := slices.Clone(r.Recipients)
	record(t, other, e, optional, evaluation("example.com", 3)) // between reading and sealing
	seal(t, s, r)
	wantGroups(t, r.Groups, evaluations(e, 5, 3, 5, 3))
	want := *r
	want.Recipients = recipients
	wantReports(t, other, want)
	wantGroups(t, groups(t, other))

	record(t, s, e)
	record(t, other, optional)
	sealed := map[string]int64{form(result(1)): 2, form(result(2)): 2, form(result(3)): 1}
	wantRows[ruapost.DMARCResult](t, s, r.Groups[0].ID, sealed)
	late := oneGroup(t, s)
	wantGroups(t, []ruapost.Group{late}, evaluations(e, 2, 2, 2, 1))
	if late.ID == r.Groups[0].ID {
		t.Error("the late group has the ID of the sealed one")
	}
	wantRows[ruapost.DMARCResult](t, s, late.ID, map[string]int64{form(result(1)): 1, form(result(2)): 1})

	second := report("r2", late)
	seal(t, s, second)
	wantReports(t, s, want, *second)
	if err := s.DropRows(t.Context(), r.Groups); err != nil {
		t.Fatal(err)
	}
	wantRows[ruapost.DMARCResult](t, s, r.Groups[0].ID, nil)
	wantRows[ruapost.DMARCResult](t, s, late.ID, map[string]int64{form(result(1)): 1, form(result(2)): 1})
}

func testSealTwice(t *testing.T, d *data) {
	s := d.store(t)
	record(t, s, evaluation("example.com", 1))
	g := oneGroup(t, s)
	first := report("r1", g, g) // the same twice in one report
	seal(t, s, first)
	wantGroups(t, first.Groups, evaluations(evaluation("example.com", 1), 1, 1, 1, 1))
	second := report("r2", g)
	seal(t, s, second)
	if len(second.Groups) != 0 {
		t.Errorf("a sealed group was sealed again: %+v", second.Groups)
	}
	record(t, s, evaluation("example.com", 1))
	third := report("r3", g) // the old group, not the new one of the same policy
	seal(t, s, third)
	if len(third.Groups) != 0 {
		t.Errorf("a group was sealed that is another one's successor: %+v", third.Groups)
	}
	wantReports(t, s, *first)
	wantRows[ruapost.DMARCResult](t, s, g.ID, map[string]int64{form(result(1)): 1})
}

// Of a TLS report's groups some may have been taken meanwhile.
func testSealPart(t *testing.T, d *data) {
	s := d.store(t)
	sts, none := session("example.com", failure(1)), session("example.com")
	none.Policy = ruapost.TLSPolicy{Type: ruapost.PolicyNone, Domain: "example.com"}
	tlsa := session("example.com", failure(2))
	tlsa.Policy = ruapost.TLSPolicy{Type: ruapost.PolicyTLSA, Domain: "mx.example.com", Strings: []string{"3 1 1 00"}}
	recordSessions(t, s, sts, none, tlsa, none)
	all := groups(t, s)
	wantGroups(t, all, sessions(sts, 1, 1, 1, 1), sessions(none, 2, 0, 0, 0), sessions(tlsa, 1, 1, 1, 1))

	first := report("r1", all[1])
	seal(t, s, first)
	rest := report("r2", all...)
	seal(t, s, rest)
	wantIDs(t, rest.Groups, all[0].ID, all[2].ID)
	wantReports(t, s, *first, *rest)
	wantGroups(t, groups(t, s))
}

func wantIDs(t *testing.T, groups []ruapost.Group, want ...ruapost.GroupID) {
	t.Helper()
	var got []ruapost.GroupID
	for _, g := range groups {
		got = append(got, g.ID)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("group IDs %v, want %v", got, want)
	}
}

// A run that ended after sealing is continued by the next one.
func testSealRestart(t *testing.T, d *data) {
	s := d.store(t)
	recordSessions(t, s, longSession("example.com", 1500))
	r := report("r1", oneGroup(t, s))
	seal(t, s, r)
	recordSessions(t, s, session("example.com"))
	mustClose(t, s)

	s = d.store(t)
	wantReports(t, s, *r)
	wantRows[ruapost.TLSFailure](t, s, r.Groups[0].ID, rowsOf(1500))
	recordSessions(t, s, session("example.com"))
	wantGroups(t, groups(t, s), sessions(session("example.com"), 2, 0, 0, 0))
}

// Two reporters that want the same groups at the same time: each group goes to one.
func testTwoReporters(t *testing.T, d *data) {
	const n = 30
	one, two := d.store(t), d.store(t)
	for i := range n {
		recordSessions(t, one, session(fmt.Sprintf("d%d.example", i), failure(1)))
	}
	all := groups(t, one)
	var mu sync.Mutex
	taken := map[ruapost.GroupID]int{}
	var stored []string
	var wg sync.WaitGroup
	for who, s := range []Store{one, two} {
		for i := range n {
			wg.Go(func() {
				// Each group is in two reports of each reporter.
				r := report(fmt.Sprintf("r%dx%d", who, i), all[i], all[(i+1)%n])
				if err := s.Seal(t.Context(), r); err != nil {
					t.Errorf("Seal: %v", err)
				}
				mu.Lock()
				defer mu.Unlock()
				for _, g := range r.Groups {
					taken[g.ID]++
				}
				if len(r.Groups) > 0 {
					stored = append(stored, r.ID)
				}
			})
		}
	}
	wg.Wait()
	for _, g := range all {
		if taken[g.ID] != 1 {
			t.Errorf("group of %s was taken %d times", g.Domain, taken[g.ID])
		}
	}
	var got []string
	for _, r := range reports(t, one) {
		got = append(got, r.ID)
	}
	slices.Sort(stored)
	slices.Sort(got)
	if d := cmp.Diff(stored, got); d != "" {
		t.Errorf("reports stored (-want +got):\n%s", d)
	}
	wantGroups(t, groups(t, two))
}

// A reporter may come back to a group long after it was sealed. Its ID must not
// name others' rows by then, even if nothing else was left in the store.
func testGroupIDsAreNew(t *testing.T, d *data) {
	seen := map[ruapost.GroupID]bool{}
	for i := range 6 {
		s := d.store(t)
		record(t, s, evaluation("example.com", 1))
		g := oneGroup(t, s)
		if seen[g.ID] {
			t.Errorf("the ID %d is used again", g.ID)
		}
		seen[g.ID] = true
		if i%2 == 0 {
			r := report("r1", g)
			seal(t, s, r)
			if err := s.DropRows(t.Context(), r.Groups); err != nil {
				t.Fatal(err)
			}
			if err := s.ForgetReport(t.Context(), r.ID); err != nil {
				t.Fatal(err)
			}
		} else if err := s.Drop(t.Context(), []ruapost.Group{g}); err != nil {
			t.Fatal(err)
		}
		mustClose(t, s)
	}
}

func testDropRows(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	recordSessions(t, s, longSession("example.com", 2500), longSession("example.net", 3), longSession("example.org", 1))
	gs := groups(t, s)
	r := report("r1", gs[:2]...)
	seal(t, s, r)
	for _, by := range []Store{s, s, other} {
		if err := by.DropRows(t.Context(), r.Groups); err != nil {
			t.Fatal(err)
		}
		wantRows[ruapost.TLSFailure](t, by, gs[0].ID, nil)
		wantRows[ruapost.TLSFailure](t, by, gs[1].ID, nil)
		wantRows[ruapost.TLSFailure](t, by, gs[2].ID, rowsOf(1))
	}
	wantReports(t, s, *r) // with its totals
}

// DropRows that is interrupted at any point is finished by the next one.
func testDropRowsInterrupted(t *testing.T, d *data) {
	s := d.store(t)
	recordSessions(t, s, longSession("example.net", 3))
	neighbour := oneGroup(t, s)
	for looks := 1; ; looks++ {
		recordSessions(t, s, longSession("example.com", 2500))
		r := report(fmt.Sprintf("r%d", looks), groupsOf(t, s, "example.com")...)
		seal(t, s, r)
		ctx := newFuse(t, looks)
		err := s.DropRows(ctx, r.Groups)
		if err == nil {
			wantRows[ruapost.TLSFailure](t, s, r.Groups[0].ID, nil)
		}
		if err := s.DropRows(t.Context(), r.Groups); err != nil {
			t.Fatal(err)
		}
		wantRows[ruapost.TLSFailure](t, s, r.Groups[0].ID, nil)
		wantRows[ruapost.TLSFailure](t, s, neighbour.ID, rowsOf(3))
		if !ctx.blown() {
			return
		}
	}
}

func testDrop(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	e := evaluation("example.com", 1)
	record(t, s, e, evaluation("example.org", 1))
	recordSessions(t, s, longSession("example.com", 2500), session("example.com"), longSession("example.net", 2))
	gs := groupsOf(t, s, "example.com")
	for _, by := range []Store{s, other} {
		if err := by.Drop(t.Context(), gs); err != nil {
			t.Fatal(err)
		}
		for _, g := range gs {
			wantRows[ruapost.TLSFailure](t, by, g.ID, nil)
		}
		wantGroups(t, groups(t, by), evaluations(evaluation("example.org", 1), 1, 1, 1, 1), sessions(session("example.net", failure(0)), 1, 2, 2, 1))
	}
	wantRows[ruapost.DMARCResult](t, s, groupsOf(t, s, "example.org")[0].ID, map[string]int64{form(result(1)): 1})
	wantRows[ruapost.TLSFailure](t, s, groupsOf(t, s, "example.net")[0].ID, rowsOf(2))
	wantReports(t, s)

	// The same again starts from nothing, and the old group's end is not its own.
	record(t, s, e)
	if err := s.Drop(t.Context(), gs); err != nil {
		t.Fatal(err)
	}
	again := groupsOf(t, s, "example.com")
	wantGroups(t, again, evaluations(e, 1, 1, 1, 1))
	wantRows[ruapost.DMARCResult](t, s, again[0].ID, map[string]int64{form(result(1)): 1})

	// A sealed group is its report's.
	r := report("r1", again...)
	seal(t, s, r)
	if err := s.Drop(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	wantRows[ruapost.DMARCResult](t, s, again[0].ID, map[string]int64{form(result(1)): 1})
}

// Drop that is interrupted at any point leaves the group to the next run, or nothing
// of it: rows that no group names would stay for ever.
func testDropInterrupted(t *testing.T, d *data) {
	s := d.store(t)
	recordSessions(t, s, longSession("example.net", 3))
	neighbour := oneGroup(t, s)
	for looks := 1; ; looks++ {
		recordSessions(t, s, longSession("example.com", 2500))
		gs := groupsOf(t, s, "example.com")
		ctx := newFuse(t, looks)
		if err := s.Drop(ctx, gs); err == nil {
			wantRows[ruapost.TLSFailure](t, s, gs[0].ID, nil)
		}
		if err := s.Drop(t.Context(), groupsOf(t, s, "example.com")); err != nil {
			t.Fatal(err)
		}
		wantGroups(t, groupsOf(t, s, "example.com"))
		left, err := list[ruapost.TLSFailure](t.Context(), s, gs[0].ID)
		if err != nil || len(left) != 0 {
			t.Errorf("interrupted at the %d. look at the context: %d rows left, %v", looks, len(left), err)
		}
		wantRows[ruapost.TLSFailure](t, s, neighbour.ID, rowsOf(3))
		if !ctx.blown() {
			return
		}
	}
}

func testReportsEveryField(t *testing.T, d *data) {
	s := d.store(t)
	full := filled[ruapost.Report]("text")
	full.ID = "full"
	bare := ruapost.Report{ID: "bare"}
	for _, r := range []ruapost.Report{full, bare} {
		if err := s.PutReports(t.Context(), &r); err != nil {
			t.Fatal(err)
		}
	}
	wantReports(t, s, bare, full)
	mustClose(t, s)
	s = d.store(t)
	wantReports(t, s, bare, full)
}

// A report goes its way, and others are not touched.
func testReportStates(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	record(t, s, evaluation("example.com", 1), evaluation("example.org", 1))
	gs := groups(t, s)
	bystander := report("r0", gs[1])
	r := report("r1", gs[0])
	seal(t, s, bystander)
	seal(t, other, r)

	second := ruapost.Recipient{URI: "mailto:other@example.com", Address: "other@example.com", State: ruapost.RecipientWaiting}
	for _, step := range []func(){
		func() { r.State = ruapost.ReportComposed },
		func() { r.Recipients[0].Accepted = true },
		func() { r.Recipients = append(r.Recipients, second) },
		func() {
			r.Recipients[0].Attempts, r.Recipients[0].Last = 1, over.Add(time.Minute)
			r.Recipients[0].NotBefore, r.Recipients[0].Error = over.Add(time.Hour), "exit status 75: try later"
		},
		func() {
			r.Recipients[0].State, r.Recipients[0].Error = ruapost.RecipientSent, ""
			r.Recipients[0].NotBefore = time.Time{}
		},
		func() { r.Recipients[1].State, r.Recipients[1].Error = ruapost.RecipientFailed, "refused" },
		func() { r.State, r.Finished = ruapost.ReportDone, over.Add(2*time.Hour) },
		func() { r.Recipients = nil },
	} {
		step()
		if err := s.PutReports(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		wantReports(t, other, *bystander, *r)
	}
	for range 2 {
		if err := other.ForgetReport(t.Context(), r.ID); err != nil {
			t.Fatal(err)
		}
		wantReports(t, s, *bystander)
	}
	wantRows[ruapost.DMARCResult](t, s, gs[1].ID, map[string]int64{form(result(1)): 1})
	if err := s.PutReports(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	wantReports(t, s, *bystander, *r)
}

// The order is that of the IDs' octets, whatever else the reports say.
func testReportsOrder(t *testing.T, d *data) {
	s := d.store(t)
	var want []ruapost.Report
	for i := range 50 {
		r := report(fmt.Sprintf("r%02d", i))
		r.Sealed = over.Add(time.Duration(i*31%50) * time.Second).In(time.FixedZone("", i*600))
		want = append(want, *r)
	}
	for i := range want {
		if err := s.PutReports(t.Context(), &want[i*7%50]); err != nil {
			t.Fatal(err)
		}
	}
	wantReports(t, s, want...)
}
