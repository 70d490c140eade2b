package bboltstore

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// However busy the others are, whoever wants the file gets it soon. What counts is
// turns: how long one takes is the disk's business. A turn of this test ends when all
// others wait for theirs, so that none is late because the machine is busy.
func TestFairness(t *testing.T) {
	for name, c := range map[string]struct{ writers, readers int }{
		"two writers and a reporter": {2, 1},
		"five writers":               {5, 0},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			ts := &turns{stores: c.writers + c.readers}
			var stores []*Store
			for range ts.stores {
				stores = append(stores, openStore(t, path))
			}
			for who, s := range stores {
				if who < c.writers {
					ts.write(who, s)
				} else {
					ts.read(t, who, s)
				}
			}
			const each = 60
			who := ts.end(t, each*ts.stores)
			for i := range who[1:] {
				if who[i] == who[i+1] {
					t.Errorf("turn %d: %d had the file again while others waited", i, who[i])
				}
			}
			for w := range stores {
				had, longest := waits(who, w)
				if had < each/2 || had > 2*each || longest > 10*ts.stores {
					t.Errorf("%d had %d of %d turns, and waited for up to %d of the others'", w, had, len(who), longest)
				}
			}
		})
	}
}

// waits returns how many turns w had, and for how many others it waited at most.
func waits(who []int, w int) (had, longest int) {
	for i := 0; i < len(who); had++ {
		n := slices.Index(who[i:], w)
		if n < 0 {
			return had, max(longest, len(who)-i)
		}
		longest = max(longest, n)
		i += n + 1
	}
	return had, longest
}

// turns tells who had the file, turn by turn.
type turns struct {
	stores int

	mu      sync.Mutex
	who     []int
	last    *bolt.DB // of the turn that is under way: each opens the file anew
	ended   bool     // nobody needs to want the file any more
	readers sync.WaitGroup
}

// take notes whose turn it is and comes back when all others wait for theirs. It says
// whether to go on.
func (ts *turns) take(who int, tx *bolt.Tx) bool {
	ts.mu.Lock()
	if ts.last != tx.DB() {
		ts.last = tx.DB()
		ts.who = append(ts.who, who)
	}
	ts.mu.Unlock()
	for {
		_, ended := ts.state()
		if ended || waiting() == ts.stores-1 {
			return !ended
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func (ts *turns) state() (had int, ended bool) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return len(ts.who), ts.ended
}

// waiting is how many locks of files this process waits for.
func waiting() int {
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		panic(err)
	}
	n, self := 0, strconv.Itoa(os.Getpid())
	for line := range strings.Lines(string(locks)) {
		// 7: -> FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF
		if f := strings.Fields(line); len(f) > 5 && f[1] == "->" && f[2] == "FLOCK" && f[5] == self {
			n++
		}
	}
	return n
}

// write makes a store one that always has something to write: whenever it comes to do
// something, the next call and the next row are already there.
func (ts *turns) write(who int, s *Store) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // does not wait
	var enqueue func()
	again := func(tx *bolt.Tx) error {
		if ts.take(who, tx) {
			enqueue()
		}
		return nil
	}
	enqueue = func() {
		s.RecordEvaluation(ctx, evaluation("example.com", byte(who)))
		s.mu.Lock()
		s.calls = append(s.calls, &call{fn: again, done: make(chan error, 1)})
		s.mu.Unlock()
		s.notify()
	}
	enqueue()
}

// read makes one call after the other, as Groups and Rows do.
func (ts *turns) read(t *testing.T, who int, s *Store) {
	ts.readers.Go(func() {
		for more := true; more; {
			err := s.view(context.Background(), func(tx *bolt.Tx) error {
				more = ts.take(who, tx)
				return nil
			})
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
}

// end waits for n turns, lets everybody go and returns them.
func (ts *turns) end(t *testing.T, n int) []int {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for had, _ := ts.state(); had < n && time.Now().Before(deadline); had, _ = ts.state() {
		time.Sleep(time.Millisecond)
	}
	ts.mu.Lock()
	ts.ended = true
	who := slices.Clone(ts.who)
	ts.mu.Unlock()
	ts.readers.Wait()
	if len(who) < n {
		t.Fatalf("%d turns in a minute, want %d", len(who), n)
	}
	return who[:n]
}
