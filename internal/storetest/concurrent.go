package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ruapost"
)

// ledger adds up what was recorded or reported: by kind and domain, and by row.
type ledger struct {
	mu     sync.Mutex
	totals map[string]int64
	rows   map[string]int64
}

func newLedger() *ledger { return &ledger{totals: map[string]int64{}, rows: map[string]int64{}} }

func (l *ledger) total(kind ruapost.Kind, domain string, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.totals[string(kind)+" "+domain] += n
}

func (l *ledger) row(domain, form string, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rows[domain+" "+form] += n
}

// Recorders and reporters of two processes at work at the same time: in the end, the
// reports have told exactly what was recorded.
func testConcurrent(t *testing.T, d *data) {
	processes := []Store{d.store(t), d.store(t)}
	recorded, reported := newLedger(), newLedger()
	var recorders, reporters sync.WaitGroup
	var done atomic.Bool
	for p, s := range processes {
		for w := range 6 {
			recorders.Go(func() {
				for i := range 15 {
					if err := recordSome(t.Context(), s, recorded, p+w, i); err != nil {
						t.Errorf("recorder: %v", err)
						return
					}
				}
			})
		}
		reporters.Go(func() {
			for run := 0; !t.Failed(); run++ {
				last := done.Load()
				if err := reportAll(t.Context(), s, reported, fmt.Sprintf("p%drun%d", p, run)); err != nil {
					t.Errorf("reporter: %v", err)
					return
				}
				if last {
					return
				}
			}
		})
	}
	recorders.Wait()
	done.Store(true)
	reporters.Wait()
	if d := cmp.Diff(recorded.totals, reported.totals); d != "" {
		t.Errorf("totals (-recorded +reported):\n%s", d)
	}
	if d := cmp.Diff(recorded.rows, reported.rows); d != "" {
		t.Errorf("rows (-recorded +reported):\n%s", d)
	}
	wantGroups(t, groups(t, processes[0]))
	wantReports(t, processes[1])
}

// recordSome records two calls' worth of what depends on n and i.
func recordSome(ctx context.Context, s Store, l *ledger, n, i int) error {
	domain := fmt.Sprintf("d%d.example", i%3)
	e := evaluation(domain, n%2+i%5)
	if err := s.RecordEvaluation(ctx, e); err != nil {
		return err
	}
	l.total(ruapost.KindDMARC, domain, 1)
	l.row(domain, form(e.Result), 1)

	several := []ruapost.Session{session(domain), longSession(domain, n%3+1), session("shared.example", failure(i))}
	if err := s.RecordSessions(ctx, several); err != nil {
		return err
	}
	for _, se := range several {
		l.total(ruapost.KindTLS, se.Domain, 1)
		for _, f := range se.Failures {
			l.row(se.Domain, form(f), 1)
		}
	}
	return nil
}

// reportAll does what a run of the reporter does, and checks that each report agrees
// with itself.
func reportAll(ctx context.Context, s Store, l *ledger, run string) error {
	gs, err := s.Groups(ctx, over)
	if err != nil {
		return err
	}
	for i, g := range gs {
		r := report(fmt.Sprintf("%sg%d", run, i), g)
		if err := s.Seal(ctx, r); err != nil {
			return err
		}
		if len(r.Groups) == 0 {
			continue // the other reporter was faster
		}
		g = r.Groups[0]
		read := list[ruapost.TLSFailure]
		if g.Kind == ruapost.KindDMARC {
			read = list[ruapost.DMARCResult]
		}
		rows, err := read(ctx, s, g.ID)
		if err != nil {
			return err
		}
		var sum int64
		for form, n := range rows {
			sum += n
			l.row(g.Domain, form, n)
		}
		if sum != g.Listed || int64(len(rows)) != g.Rows {
			return fmt.Errorf("group %+v has %d rows that count %d", g, len(rows), sum)
		}
		l.total(g.Kind, g.Domain, g.Total)
		r.State = ruapost.ReportComposed
		err = errors.Join(s.PutReports(ctx, r), s.DropRows(ctx, r.Groups), s.ForgetReport(ctx, r.ID))
		if err != nil {
			return err
		}
	}
	return nil
}

// Reports are independent of one another.
func testConcurrentReports(t *testing.T, d *data) {
	processes := []Store{d.store(t), d.store(t)}
	var wg sync.WaitGroup
	var want []ruapost.Report
	for i := range 20 {
		r := report(fmt.Sprintf("r%02d", i))
		r.Sealed = over.Add(time.Duration(i) * time.Second)
		kept := *r
		kept.State = ruapost.ReportDone
		s := processes[i%2]
		wg.Go(func() {
			err := s.PutReports(t.Context(), r)
			r.State = ruapost.ReportDone
			err = errors.Join(err, s.PutReports(t.Context(), r))
			if i%4 == 3 {
				err = errors.Join(err, s.ForgetReport(t.Context(), r.ID))
			}
			if err != nil {
				t.Error(err)
			}
		})
		if i%4 != 3 {
			want = append(want, kept)
		}
	}
	wg.Wait()
	wantReports(t, processes[0], want...)
}

// Calls that are under way when the store is closed come back, and told the truth.
func testCloseUnderWay(t *testing.T, d *data) {
	// Far more than any call needs: only a call that hangs gets there.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var acknowledged, tried atomic.Int64
	for range 40 {
		s := d.open(t, d.dir)
		var wg, begun sync.WaitGroup
		for i := range 8 {
			begun.Add(1)
			begin := sync.OnceFunc(begun.Done)
			wg.Go(func() {
				defer begin()
				for n := 0; ; n++ {
					if n > i%4 {
						begin()
					}
					var err error
					if i%2 == 0 {
						_, err = listReports(ctx, s)
					} else {
						tried.Add(1)
						if err = s.RecordEvaluation(ctx, evaluation("example.com", i)); err == nil {
							acknowledged.Add(1)
						}
					}
					if ctx.Err() != nil {
						t.Error("a call was never answered")
					}
					if err != nil {
						return
					}
				}
			})
		}
		begun.Wait()
		mustClose(t, s)
		wg.Wait()
		if ctx.Err() != nil {
			return
		}
	}
	g := oneGroup(t, d.store(t))
	if g.Total < acknowledged.Load() || g.Total > tried.Load() {
		t.Errorf("%d recorded, %d acknowledged of %d", g.Total, acknowledged.Load(), tried.Load())
	}
}
