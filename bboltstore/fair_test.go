package bboltstore

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Whoever has let the file go, and wants it again at once, does not get in front of one
// that waits for it.
func TestTurnstile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	greedy, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		var served atomic.Bool
		done := make(chan error, 1)
		go func() {
			done <- s.view(context.Background(), func(*bolt.Tx) error {
				served.Store(true)
				return nil
			})
		}()
		waitForWaiter(t, path)
		if err := unix.Flock(int(greedy.file.Fd()), unix.LOCK_UN); err != nil {
			t.Fatal(err)
		}
		again, err := open(path)
		if err != nil {
			t.Fatal(err)
		}
		if !served.Load() {
			t.Fatalf("round %d: who waited was passed over", i)
		}
		greedy.Close()
		greedy = again
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if err := greedy.Close(); err != nil {
		t.Error(err)
	}
}

// turns tells who had the file, turn by turn.
type turns struct {
	mu   sync.Mutex
	who  []int
	last *bolt.DB // of the turn that is under way: each opens the file anew
	done bool     // nobody needs to be busy any more
}

// keepBusy makes a store one that always has something to write: whenever it comes to
// do something, the next call and the next row are already there.
func (ts *turns) keepBusy(t *testing.T, who int, path string) {
	s := openStore(t, path)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	var enqueue func()
	again := func(tx *bolt.Tx) error {
		if ts.note(who, tx.DB()) {
			enqueue()
		}
		return nil
	}
	enqueue = func() {
		s.RecordEvaluation(ended, evaluation("example.com", byte(who)))
		s.mu.Lock()
		s.calls = append(s.calls, &call{fn: again, done: make(chan error, 1)})
		s.mu.Unlock()
		s.notify()
	}
	enqueue()
}

// note is called by who has the file open. It says whether to stay busy.
func (ts *turns) note(who int, db *bolt.DB) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if db != ts.last {
		ts.who = append(ts.who, who)
		ts.last = db
	}
	return !ts.done
}

func (ts *turns) count() int {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return len(ts.who)
}

// finish returns how many turns each of the writers has had, and how many others at
// most came between two of them.
func (ts *turns) finish(writers int) (had, longest []int) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.done = true
	had, longest = make([]int, writers), make([]int, writers)
	for who := range writers {
		last := -1
		for i, w := range append(slices.Clone(ts.who), who) {
			if w == who {
				had[who]++
				longest[who] = max(longest[who], i-last-1)
				last = i
			}
		}
	}
	return had, longest
}

// However busy writers are, who comes now and then, as the reporter does, gets the file
// soon, and they share the rest. What counts is turns: a turn takes as long as it takes.
func TestNobodyStarves(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	reporter := openStore(t, path)
	mustRecord(t, reporter, evaluation("example.com", 0))
	id := groups(t, reporter, noon.Add(24*time.Hour))[0].ID
	var ts turns
	for who := range 2 {
		ts.keepBusy(t, who, path)
	}
	const calls = 50
	before, longest := ts.count(), 0
	for i := range calls {
		began := ts.count()
		if i%2 == 0 {
			groups(t, reporter, noon)
		} else {
			counts(t, reporter, id)
		}
		longest = max(longest, ts.count()-began)
	}
	all := ts.count() - before
	for ts.count() < 300 {
		groups(t, reporter, noon)
	}
	had, l := ts.finish(2)
	t.Logf("longest %d, all %d, had %v, writers longest %v", longest, all, had, l)
}

func TestFiveWritersShare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	var ts turns
	for who := range 5 {
		ts.keepBusy(t, who, path)
	}
	for ts.count() < 300 {
		time.Sleep(time.Millisecond)
	}
	had, l := ts.finish(5)
	t.Logf("had %v, writers longest %v", had, l)
}
