package bboltstore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"ruapost"
)

var errOnPurpose = errors.New("on purpose")

// locked keeps the file locked while begin starts calls, until n of them wait for it.
func locked(t *testing.T, s *Store, n int, begin func(wait func(n int))) {
	t.Helper()
	h, err := open(s.path)
	if err != nil {
		t.Fatal(err)
	}
	wait := func(n int) {
		for waiting := 0; waiting < n; runtime.Gosched() {
			s.mu.Lock()
			waiting = len(s.calls)
			s.mu.Unlock()
		}
	}
	begin(wait)
	wait(n)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// fail is a call that leaves something behind if it is not rolled back.
func fail(s *Store) error {
	return s.update(context.Background(), func(tx *bolt.Tx) error {
		return errors.Join(addCount(tx.Bucket(countsBucket), "left behind", 1), errOnPurpose)
	})
}

func wantNothingLeft(t *testing.T, s *Store) {
	t.Helper()
	if counts, err := s.Counts(t.Context()); err != nil || counts["left behind"] != 0 {
		t.Errorf("a failed call has left something: %v, %v", counts, err)
	}
	checkStore(t, s)
}

// What waits at the same time costs one commit.
func TestCallsShareACommit(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	const n = shareCalls
	if err := s.PutReports(t.Context(), &ruapost.Report{ID: "r1"}); err != nil {
		t.Fatal(err)
	}
	was := txid(t, s)
	var wg sync.WaitGroup
	locked(t, s, n, func(func(int)) {
		for range n {
			wg.Go(func() {
				err := s.UpdateReport(t.Context(), "r1", func(r *ruapost.Report) error {
					r.Size++
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
	})
	wg.Wait()
	// A machine that is busy with other things may take longer than shareTime.
	if is := txid(t, s); is < was+1 || is > was+n/4 {
		t.Errorf("%d calls took %d commits", n, is-was)
	}
	if r, err := s.Report(t.Context(), "r1"); err != nil || r.Size != n {
		t.Errorf("%+v, %v", r, err)
	}
}

// testCalls makes calls by hand, each of which counts up a counter of its own.
func testCalls(n int) (calls []*call, runs []int) {
	runs = make([]int, n)
	for i := range n {
		calls = append(calls, &call{writable: true, done: make(chan error, 1), fn: func(tx *bolt.Tx) error {
			runs[i]++
			return addCount(tx.Bucket(countsBucket), fmt.Sprint(i), 1)
		}})
	}
	return calls, runs
}

// answers returns what the calls were answered; nil, too, for those that were not.
func answers(calls []*call) (errs []error, answered int) {
	for _, c := range calls {
		var err error
		select {
		case err = <-c.done:
			answered++
		default:
		}
		errs = append(errs, err)
	}
	return errs, answered
}

func openHandle(t *testing.T) *handle {
	t.Helper()
	h, err := open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.release() })
	return h
}

// counted returns the counters of the file.
func counted(t *testing.T, h *handle) map[string]uint64 {
	t.Helper()
	m := map[string]uint64{}
	err := h.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(countsBucket)
		return b.ForEach(func(k, _ []byte) error {
			m[string(k)] = counter(b, k)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// runAll runs calls until none is left, and returns in how many transactions.
func runAll(t *testing.T, h *handle, calls []*call) (transactions int) {
	t.Helper()
	for left := append([]*call(nil), calls...); len(left) > 0; transactions++ {
		was := len(left)
		var err error
		if left, err = shareTransaction(h.DB, left); err != nil || len(left) >= was {
			t.Fatalf("%d left of %d, %v", len(left), was, err)
		}
	}
	return transactions
}

// Those that fail are rolled back and told so, wherever they stand; the others are done
// once.
func TestFailedCallsHarmNoOther(t *testing.T) {
	for _, failing := range [][]int{{}, {0}, {9}, {4}, {0, 1, 2}, {3, 7, 9}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}} {
		h := openHandle(t)
		calls, _ := testCalls(10)
		want := map[int]bool{}
		for _, i := range failing {
			want[i] = true
			fn := calls[i].fn
			calls[i].fn = func(tx *bolt.Tx) error { return errors.Join(fn(tx), errOnPurpose) }
		}
		runAll(t, h, calls)
		errs, answered := answers(calls)
		counts := counted(t, h)
		if answered != len(calls) {
			t.Errorf("failing %v: %d answered", failing, answered)
		}
		for i, err := range errs {
			if want[i] != errors.Is(err, errOnPurpose) || !want[i] && err != nil {
				t.Errorf("failing %v: call %d was told %v", failing, i, err)
			}
			if done := counts[fmt.Sprint(i)]; want[i] == (done != 0) || done > 1 {
				t.Errorf("failing %v: call %d was done %d times", failing, i, done)
			}
		}
	}
}

// A call that fails because of what another one would do, which is then not done, is not
// told so: it runs again on what is there.
func TestCallFailsOnlyByItself(t *testing.T) {
	h := openHandle(t)
	calls, _ := testCalls(3)
	first, second := calls[0].fn, calls[1].fn
	calls[0].fn = func(tx *bolt.Tx) error { // succeeds only as the first
		if counter(tx.Bucket(countsBucket), []byte("1")) > 0 {
			return errOnPurpose
		}
		return first(tx)
	}
	calls[1].fn = func(tx *bolt.Tx) error {
		if counter(tx.Bucket(countsBucket), []byte("0")) > 0 {
			return errors.New("the first was here")
		}
		return second(tx)
	}
	runAll(t, h, calls)
	errs, _ := answers(calls)
	if !errors.Is(errs[0], errOnPurpose) || errs[1] != nil || errs[2] != nil {
		t.Errorf("answers %v", errs)
	}
	if got := counted(t, h); got["0"] != 0 || got["1"] != 1 || got["2"] != 1 {
		t.Errorf("done %v", got)
	}
}

// What changes nothing does not keep the others' changes out, and nothing is written for
// it alone.
func TestUnchangedCallsShare(t *testing.T) {
	h := openHandle(t)
	calls, runs := testCalls(3)
	for _, i := range []int{0, 2} {
		calls[i].fn = func(*bolt.Tx) error { return errUnchanged }
	}
	if n := runAll(t, h, calls); n != 1 || runs[1] != 1 {
		t.Errorf("%d transactions, ran %v", n, runs)
	}
	if errs, n := answers(calls); errors.Join(errs...) != nil || n != 3 || counted(t, h)["1"] != 1 {
		t.Errorf("answers %v, done %v", errs, counted(t, h))
	}
}

// Whoever has gone is not served, nor waited for.
func TestAbandonedCallIsNotRun(t *testing.T) {
	h := openHandle(t)
	calls, runs := testCalls(3)
	calls[1].taken.Store(true)
	runAll(t, h, calls)
	if runs[0] != 1 || runs[1] != 0 || runs[2] != 1 {
		t.Errorf("ran %v", runs)
	}
}

// A transaction ends in time for those who wait for the file.
func TestSharedTransactionIsBounded(t *testing.T) {
	h := openHandle(t)
	calls, _ := testCalls(shareCalls + 1)
	if left, err := shareTransaction(h.DB, calls); err != nil || len(left) < 1 {
		t.Errorf("%d left of %d, %v", len(left), len(calls), err)
	}
	calls, runs := testCalls(3)
	fn := calls[1].fn
	calls[1].fn = func(tx *bolt.Tx) error {
		for began := time.Now(); time.Since(began) <= shareTime; {
			runtime.Gosched()
		}
		return fn(tx)
	}
	left, err := shareTransaction(h.DB, calls)
	if _, answered := answers(calls); err != nil || runs[2] != 0 || len(left)+answered != 3 || answered > 2 {
		t.Errorf("%d left, %d answered, ran %v, %v", len(left), answered, runs, err)
	}
}

// If the transaction cannot be written, nobody is told that it was.
func TestSharedCommitFails(t *testing.T) {
	h := openHandle(t)
	h.MaxSize = 1
	calls, _ := testCalls(10)
	calls[5].fn = func(tx *bolt.Tx) error { return tx.Bucket(countsBucket).Put([]byte("x"), make([]byte, 1<<20)) }
	runAll(t, h, calls)
	errs, answered := answers(calls)
	done := counted(t, h)
	if answered != 10 || errs[5] == nil {
		t.Errorf("%d answered, %v", answered, errs)
	}
	for i, err := range errs {
		if (err == nil) != (done[fmt.Sprint(i)] == 1) {
			t.Errorf("call %d was told %v, done are %v", i, err, done)
		}
	}
}

// A damaged file ends all of them: there is nothing to go on with.
func TestDamageEndsSharedCalls(t *testing.T) {
	h := openHandle(t)
	calls, _ := testCalls(5)
	calls[2].fn = func(*bolt.Tx) error { panic("bbolt has found a page that is none") }
	left, err := shareTransaction(h.DB, calls)
	errs, answered := answers(calls)
	if !isDamage(err) || len(left) != 0 || answered != 5 {
		t.Errorf("%d left, %d answered, %v", len(left), answered, err)
	}
	for i, err := range errs {
		if !isDamage(err) {
			t.Errorf("call %d was told %v", i, err)
		}
	}
}

// Every method does the same, and says so, if its transaction is rolled back because of
// another's fault and it runs again.
func TestMethodsRunAgain(t *testing.T) {
	ctx := t.Context()
	report := &ruapost.Report{ID: "r1"}
	was := func(s *Store) {
		mustRecord(t, s, evaluation("a.example", 1), evaluation("a.example", 2), evaluation("b.example", 1))
		mustPut(t, s, policy("a.example", ""), policy("b.example", ""))
		sent(t, s, before(200), "long.ago.example")
		err := errors.Join(s.PutReports(ctx, &ruapost.Report{ID: "r0", Size: 1}), s.Count(ctx, map[string]uint64{"n": 1}))
		if err != nil {
			t.Fatal(err)
		}
	}
	now := noon.AddDate(0, 0, 1)
	for name, c := range map[string]struct {
		call  func(*Store) error
		check func(*Store) bool
	}{
		"Seal": {
			func(s *Store) error {
				report.Groups = groupsByHand(s)
				return s.Seal(ctx, report)
			},
			func(s *Store) bool {
				r, err := s.Report(ctx, "r1")
				return err == nil && len(r.Groups) == 2 && len(report.Groups) == 2 && report.Groups[0].Total == 2
			},
		},
		"Drop": {
			func(s *Store) error { return s.Drop(ctx, groupsByHand(s)) },
			func(s *Store) bool { st, err := s.Stats(ctx); return err == nil && st.Groups == 0 && st.Rows == 0 },
		},
		"DropRows": {
			func(s *Store) error { return s.DropRows(ctx, groupsByHand(s)) },
			func(s *Store) bool {
				st, err := s.Stats(ctx)
				// Groups that are not sealed: the check would find what was dropped.
				return err == nil && st.Rows == 0 && st.RowBytes == 0 && s.Drop(ctx, groups(t, s, now)) == nil
			},
		},
		"PutReports": {
			func(s *Store) error {
				return s.PutReports(ctx, &ruapost.Report{ID: "r0", Size: 3}, &ruapost.Report{ID: "r1"})
			},
			func(s *Store) bool { r, err := s.Report(ctx, "r0"); return err == nil && r.Size == 3 },
		},
		"UpdateReport": {
			func(s *Store) error {
				return s.UpdateReport(ctx, "r0", func(r *ruapost.Report) error { r.Size++; return nil })
			},
			func(s *Store) bool { r, err := s.Report(ctx, "r0"); return err == nil && r.Size == 2 },
		},
		"ForgetReport": {
			func(s *Store) error { return s.ForgetReport(ctx, "r0") },
			func(s *Store) bool { _, err := s.Report(ctx, "r0"); return errors.Is(err, ruapost.ErrNoReport) },
		},
		"UpdateSuppression": {
			func(s *Store) error {
				return s.UpdateSuppression(ctx, "a@example.com", func(sup *ruapost.Suppression) bool { sup.Bounces++; return true })
			},
			func(s *Store) bool {
				all, err := s.Suppressions(ctx)
				return err == nil && len(all) == 1 && all[0].Bounces == 1
			},
		},
		"Count": {
			func(s *Store) error { return s.Count(ctx, map[string]uint64{"n": 2, "m": 1}) },
			func(s *Store) bool { n, err := s.Counts(ctx); return err == nil && n["n"] == 3 && n["m"] == 1 },
		},
		"PutSTSPolicy": {
			func(s *Store) error { return s.PutSTSPolicy(ctx, policy("c.example", "")) },
			func(s *Store) bool { st, err := s.Stats(ctx); return err == nil && st.STSPolicies == 3 },
		},
		"DeleteSTSPolicies": {
			func(s *Store) error {
				n, err := s.DeleteSTSPolicies(ctx, []string{"a.example", "none.example", "b.example"})
				if n != 2 {
					return fmt.Errorf("says that it has deleted %d", n)
				}
				return err
			},
			func(s *Store) bool { st, err := s.Stats(ctx); return err == nil && st.STSPolicies == 0 },
		},
		"Tidy": {
			func(s *Store) error { return s.forgetKnown(ctx, now) },
			func(s *Store) bool { st, err := s.Stats(ctx); return err == nil && st.KnownDomains == 0 },
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, filepath.Join(t.TempDir(), "db"))
			was(s)
			var wg sync.WaitGroup
			locked(t, s, 2, func(wait func(int)) {
				wg.Go(func() {
					if err := c.call(s); err != nil {
						t.Error(err)
					}
				})
				wait(1) // first, so that it runs before the other fails
				wg.Go(func() {
					if err := fail(s); !errors.Is(err, errOnPurpose) {
						t.Errorf("the one that fails: %v", err)
					}
				})
			})
			wg.Wait()
			if !c.check(s) {
				t.Error("not as if it had run once")
			}
			wantNothingLeft(t, s)
		})
	}
}

// groupsByHand returns the groups that TestMethodsRunAgain has recorded, without asking the
// store, which is locked.
func groupsByHand(*Store) []ruapost.Group {
	w := ruapost.Day(noon)
	return []ruapost.Group{
		{ID: 1, Kind: ruapost.KindDMARC, Window: w, Domain: "a.example"},
		{ID: 2, Kind: ruapost.KindDMARC, Window: w, Domain: "b.example"},
	}
}

// The groups of a report cost a commit for so many rows, not one each; those of a large one
// come off in pieces.
func TestDropRowsInFewCommits(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	var many []ruapost.Group
	for i := range 50 {
		domain := fmt.Sprintf("d%02d.example", i)
		mustRecord(t, s, evaluation(domain, 1), evaluation(domain, 2))
	}
	many = groups(t, s, noon.AddDate(0, 0, 1))
	mustRecord(t, s, evaluation("z.example", 1))
	was := txid(t, s)
	// Each twice: a row counts once.
	if err := s.DropRows(t.Context(), append(many, many...)); err != nil {
		t.Fatal(err)
	}
	if is := txid(t, s); is != was+1 {
		t.Errorf("%d groups took %d commits", len(many), is-was)
	}
	if err := s.Drop(t.Context(), many); err != nil {
		t.Fatal(err)
	}
	checkStore(t, s)
}

// Those of a large group come off in pieces, by number and by size.
func TestDropRowsInPieces(t *testing.T) {
	short := func(t *testing.T, s *Store, n int) {
		for i := 0; i < n; i += chunk {
			se := ruapost.Session{Time: noon, Domain: "example.com", Failed: true}
			for j := i; j < min(i+chunk, n); j++ {
				se.Failures = append(se.Failures, ruapost.TLSFailure{Reason: fmt.Sprint(j)})
			}
			if err := s.RecordSessions(t.Context(), []ruapost.Session{se}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		fill          func(*testing.T, *Store, int)
		rows, commits int
	}{
		"short": {short, 2*dropRows + 1, 3},
		"large": {fill, dropRows - 1, 2},
	} {
		s := openStore(t, filepath.Join(t.TempDir(), "db"))
		c.fill(t, s, c.rows)
		gs := groups(t, s, noon.AddDate(0, 0, 1))
		if len(gs) != 1 || gs[0].Rows != int64(c.rows) {
			t.Fatalf("%s: groups %+v", name, gs)
		}
		mustRecord(t, s, evaluation("z.example", 1))
		was := txid(t, s)
		if err := s.Drop(t.Context(), gs); err != nil {
			t.Fatal(err)
		}
		if is := txid(t, s); is != was+1+c.commits {
			t.Errorf("%s: %d rows took %d commits", name, c.rows, is-was)
		}
		if st, err := s.Stats(t.Context()); err != nil || st.Rows != 1 || st.Groups != 1 {
			t.Errorf("%s: %+v, %v", name, st, err)
		}
		checkStore(t, s)
	}
}
