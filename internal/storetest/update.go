package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ruapost"
)

func putReports(t *testing.T, s Store, reports ...*ruapost.Report) {
	t.Helper()
	if err := s.PutReports(t.Context(), reports...); err != nil {
		t.Fatalf("PutReports: %v", err)
	}
}

// oneMore counts in a field of the report.
func oneMore(r *ruapost.Report) error {
	r.Size++
	return nil
}

// mustUpdate may be called from goroutines of the test.
func mustUpdate(t *testing.T, s Store, id string, fn func(*ruapost.Report) error) {
	t.Helper()
	if err := s.UpdateReport(t.Context(), id, fn); err != nil {
		t.Errorf("UpdateReport: %v", err)
	}
}

// Reports are read in pieces; none is lost or doubled where the pieces meet, and nothing is
// locked while the reader is busy with one.
func testReportsMany(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	var all []*ruapost.Report
	for i := range 2500 {
		all = append(all, report(fmt.Sprintf("r%04d", i)))
	}
	putReports(t, s, all...)
	n := 0
	for r, err := range s.Reports(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if r.ID != all[n].ID {
			t.Fatalf("report %s, want %s", r.ID, all[n].ID)
		}
		if n++; n%500 == 0 {
			mustUpdate(t, other, r.ID, oneMore)
			mustUpdate(t, s, r.ID, oneMore)
			if err := other.ForgetReport(t.Context(), all[n-2].ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n != len(all) {
		t.Errorf("%d reports, want %d", n, len(all))
	}
	got := reports(t, other)
	if len(got) != 2495 {
		t.Errorf("%d reports are left", len(got))
	}
	for _, r := range got {
		if want := r.ID[2:] == "499" || r.ID[2:] == "999"; r.Size == 2 != want {
			t.Errorf("report %s was changed: %d", r.ID, r.Size)
		}
	}
}

func testReportsStoppedEarly(t *testing.T, d *data) {
	s := d.store(t)
	var all []*ruapost.Report
	for i := range 1100 {
		all = append(all, report(fmt.Sprintf("r%04d", i)))
	}
	putReports(t, s, all...)
	seq := s.Reports(t.Context())
	for range seq {
		break
	}
	n := 0
	for range seq { // again from the beginning
		if n++; n == 1050 {
			break
		}
	}
	if n != 1050 {
		t.Errorf("%d reports", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n = 0
	for _, err := range s.Reports(ctx) {
		if n++; err == nil || n > 1 {
			return // it was done before the end was seen
		}
		wantDone(t, "Reports", err, false)
	}
}

func testReportOne(t *testing.T, d *data) {
	s := d.store(t)
	want := filled[ruapost.Report]("text")
	want.ID = "r1"
	putReports(t, s, &want, report("r10"), report("r"))
	got, err := s.Report(t.Context(), "r1")
	if d := cmp.Diff(&want, got, cmpopts.EquateEmpty()); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	for _, id := range []string{"r2", "", "R1", "r1\x00", longDomain + longDomain} {
		if got, err := s.Report(t.Context(), id); got != nil || !errors.Is(err, ruapost.ErrNoReport) {
			t.Errorf("report %.20q: %+v, %v", id, got, err)
		}
	}
}

// All of them or none: parts of a report know how many they are.
func testPutReports(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	if err := s.PutReports(t.Context()); err != nil {
		t.Errorf("none: %v", err)
	}
	a, b, c := report("r1"), report("r2"), report("r3")
	putReports(t, s, c, a, b)
	wantReports(t, other, *a, *b, *c)
	a.State, c.State = ruapost.ReportComposed, ruapost.ReportDone
	putReports(t, other, a, c)
	wantReports(t, s, *a, *b, *c)
	for looks, blown := 1, true; blown; looks++ {
		a.Part, b.Part = looks, looks
		ctx := newFuse(t, looks)
		err := s.PutReports(ctx, a, b)
		got := reports(t, other)
		if got[0].Part != got[1].Part {
			t.Errorf("interrupted at the %d. look at the context: a part was stored", looks)
		}
		wantDone(t, "PutReports", err, got[0].Part == looks)
		blown = ctx.blown()
	}
}

func testUpdateReport(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	full := filled[ruapost.Report]("text")
	full.ID = "r1"
	bystander := report("r2")
	putReports(t, s, &full, bystander)
	mustUpdate(t, other, "r1", func(r *ruapost.Report) error {
		if d := cmp.Diff(&full, r, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("given (-want +got):\n%s", d)
		}
		r.Recipients = r.Recipients[:1]
		r.Recipients[0].State = ruapost.RecipientBounced
		return nil
	})
	full.Recipients = full.Recipients[:1]
	full.Recipients[0].State = ruapost.RecipientBounced
	wantReports(t, s, full, *bystander)
	// The ID is what it is stored under.
	mustUpdate(t, s, "r1", func(r *ruapost.Report) error {
		r.ID = bystander.ID
		return nil
	})
	wantReports(t, s, full, *bystander)
	mustUpdate(t, s, "r1", func(*ruapost.Report) error { return nil })
	wantReports(t, s, full, *bystander)
}

func testUpdateReportRefused(t *testing.T, d *data) {
	s := d.store(t)
	r := report("r1")
	putReports(t, s, r)
	refuse := errors.New("not this one")
	err := s.UpdateReport(t.Context(), "r1", func(r *ruapost.Report) error {
		r.State = ruapost.ReportDone
		r.Recipients[0].State = ruapost.RecipientSent
		return refuse
	})
	if !errors.Is(err, refuse) {
		t.Errorf("error %v, want fn's", err)
	}
	wantReports(t, s, *r)
	for _, id := range []string{"r2", ""} {
		err := s.UpdateReport(t.Context(), id, func(*ruapost.Report) error {
			t.Errorf("called for a report that is not there")
			return nil
		})
		if !errors.Is(err, ruapost.ErrNoReport) {
			t.Errorf("error %v", err)
		}
	}
	wantReports(t, s, *r)
}

// A panic of fn is its caller's; the store goes on, and what it held is there.
func testUpdateReportPanics(t *testing.T, d *data) {
	s := d.store(t)
	r := report("r1")
	putReports(t, s, r)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() { mustUpdate(t, s, "r1", oneMore) })
		wg.Go(func() {
			if p := recovered(func() {
				_ = s.UpdateReport(t.Context(), "r1", func(r *ruapost.Report) error {
					r.Size = 1000
					panic("oops")
				})
			}); p != "oops" {
				t.Errorf("the caller's panic is %v", p)
			}
		})
	}
	wg.Wait()
	r.Size = 10
	wantReports(t, s, *r)
}

func recovered(fn func()) (p any) {
	defer func() { p = recover() }()
	fn()
	return nil
}

// Whatever waits together: each change counts once, those that fail count for nothing.
func testUpdateReportConcurrent(t *testing.T, d *data) {
	processes := []Store{d.store(t), d.store(t)}
	r := report("r1")
	putReports(t, processes[0], r)
	refuse := errors.New("not this one")
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			s := processes[i%2]
			for range 10 {
				mustUpdate(t, s, "r1", oneMore)
				err := s.UpdateReport(t.Context(), "r1", func(r *ruapost.Report) error {
					r.Size += 1_000_000
					return refuse
				})
				if !errors.Is(err, refuse) {
					t.Errorf("error %v, want fn's", err)
				}
				if err := s.UpdateReport(t.Context(), "r2", oneMore); !errors.Is(err, ruapost.ErrNoReport) {
					t.Errorf("error %v, want ErrNoReport", err)
				}
			}
		})
	}
	wg.Wait()
	r.Size = 500
	wantReports(t, processes[0], *r)
}

// A report that is put, in one transaction with another, between two changes.
func testUpdateReportAgainstPut(t *testing.T, d *data) {
	processes := []Store{d.store(t), d.store(t)}
	put := func(s Store, n int) error {
		a, b := report("r1"), report("r2")
		a.Part, a.Parts, b.Part, b.Parts = n, n, n, n
		return s.PutReports(t.Context(), a, b)
	}
	if err := put(processes[0], 1); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 50 {
		s := processes[i%2]
		wg.Go(func() {
			for n := range 5 {
				if i%5 == 0 {
					if err := put(s, 1000*i+n); err != nil {
						t.Errorf("PutReports: %v", err)
					}
					continue
				}
				mustUpdate(t, s, fmt.Sprintf("r%d", 1+i%2), func(r *ruapost.Report) error {
					if r.Part != r.Parts {
						return fmt.Errorf("half of a change: %d, %d", r.Part, r.Parts)
					}
					r.Part++
					r.Parts = r.Part
					return nil
				})
			}
		})
	}
	wg.Wait()
	for _, r := range reports(t, processes[1]) {
		if r.Part != r.Parts {
			t.Errorf("%s: %d, %d", r.ID, r.Part, r.Parts)
		}
	}
}

func testUpdateReportEnded(t *testing.T, d *data) {
	s := d.store(t)
	putReports(t, s, report("r1"))
	was := int64(0)
	for looks, blown := 1, true; blown; looks++ {
		ctx := newFuse(t, looks)
		err := s.UpdateReport(ctx, "r1", oneMore)
		is := reports(t, s)[0].Size
		wantDone(t, "UpdateReport", err, is == was+1)
		if is > was+1 {
			t.Errorf("from %d to %d", was, is)
		}
		was, blown = is, ctx.blown()
	}
}
