// Package bboltstore keeps what the programs record in one bbolt file that all
// of them open, write and close in turns.
//
// # Sharing
//
// bbolt locks the whole file for as long as a process has it open, and waits for
// that lock by polling, so that a busy process starves the others. Here nobody
// keeps the file open for long, and nobody polls: a process first takes a blocking
// flock on PATH.lock, the turnstile, then opens the file with a hook that takes a
// blocking flock on it, and then lets the turnstile go. Whoever waits at the
// turnstile is next, so that processes alternate.
//
// One goroutine per Store does all of this. What is recorded while it waits or
// commits gathers in the next batch and is committed in one transaction (group
// commit); a record call returns when its batch is on disk.
//
// # Layout
//
//	meta     "schema"                                      -> format version
//	groups   kind, window start, window length, domain, 0, -> group ID, totals,
//	         hash of the policy                               policy as JSON
//	rows     group ID, hash of the row                     -> count, row as JSON
//	reports  report ID                                     -> ruapost.Report as JSON
//
// Equal rows are merged when they are written: what a report costs does not grow
// with the number of messages, only with the number of distinct rows. Group IDs
// count up, so the rows of a group, and the groups of a window, lie together: a
// report is one range scan and its deletion frees pages in a row.
//
// Sealing a report takes its groups out of the groups bucket in one transaction.
// Whatever is recorded later for the same window, domain and policy starts a new
// group, so sealed rows never change, and the reporter can read and delete them
// in pieces without keeping the file locked.
package bboltstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Bounds and times. What does not fit is dropped, counted in
// ruapost_store_dropped_total and never in the way of mail.
const (
	// MaxQueue is the number of distinct rows that may wait to be written.
	MaxQueue = 20_000
	// MaxBatch is the number of distinct rows that are written in one transaction.
	MaxBatch = 1_000
	// MaxRowBytes is the size of a row's JSON form. A larger one is only counted
	// in its group's total.
	MaxRowBytes = 8 << 10
	// MaxGroupRows is the number of distinct rows of a group. Past it messages are
	// only counted in the group's total.
	MaxGroupRows = 50_000
	// MaxFileSize is the size in bytes the file may grow to.
	MaxFileSize = 1 << 30

	// minHold and holdFactor bound how long the file is kept open while there is
	// more to write: minHold or holdFactor times what opening it took.
	minHold    = 5 * time.Millisecond
	holdFactor = 4

	// chunk is the number of keys that are read or deleted per lock hold.
	chunk = 1_000

	retryMin     = 100 * time.Millisecond
	retryMax     = 5 * time.Second
	complainEach = time.Minute
	closeTimeout = 5 * time.Second
)

var (
	// ErrQueued is returned by a record call whose context ended before the row was
	// on disk. The row stays queued and is still written when that is possible.
	ErrQueued = errors.New("bboltstore: still waiting to be written")
	// ErrQueueFull is returned by a record call when MaxQueue rows are waiting: this
	// one was dropped.
	ErrQueueFull = errors.New("bboltstore: queue is full, row dropped")
	// ErrClosed is returned by calls on a closed Store.
	ErrClosed = errors.New("bboltstore: closed")
)

// Store is one process's access to the shared file. Its methods may be called
// from any number of goroutines.
type Store struct {
	path string
	wake chan struct{} // has room for one: there is something to do
	gone chan struct{} // closed when the store goroutine has ended

	mu      sync.Mutex
	batches []*batch // the last one still takes rows; the first may be in work
	queued  int      // distinct rows in batches
	calls   []*call
	closed  bool

	complained time.Time // of the store goroutine alone
}

// call is a transaction that somebody other than the recorder wants.
type call struct {
	writable bool
	fn       func(*bolt.Tx) error
	// taken is set by the store goroutine before it runs fn, or by the caller when
	// it waits no longer; whoever comes second leaves the call alone.
	taken atomic.Bool
	done  chan error // has room for one
}

// Open returns the store in the file at path, which is created if it does not
// exist; its folder must. It fails if the file cannot be opened or was written by
// a newer version of this program.
func Open(path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("bboltstore: %w", err)
	}
	// Once now, so that the operator hears of a bad path or file at the start.
	db, err := open(path)
	if err != nil {
		return nil, err
	}
	if err := db.Close(); err != nil {
		return nil, fmt.Errorf("bboltstore: close %s: %w", path, err)
	}
	s := &Store{
		path: path,
		wake: make(chan struct{}, 1),
		gone: make(chan struct{}),
	}
	go s.run()
	return s, nil
}

// Close writes what is queued and ends the store. It gives up after five seconds,
// as when another process keeps the file locked, and says how many rows it left.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.notify()
	select {
	case <-s.gone:
	case <-time.After(closeTimeout):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queued > 0 {
		dropped.WithLabelValues("closed").Add(float64(s.queued))
		return fmt.Errorf("bboltstore: %d rows could not be written to %s", s.queued, s.path)
	}
	return nil
}

func (s *Store) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// update runs fn in a read-write transaction of its own, view in a read-only one.
// They return fn's error, the file's, or the context's if it ended before.
func (s *Store) update(ctx context.Context, fn func(*bolt.Tx) error) error {
	return s.do(ctx, &call{writable: true, fn: fn, done: make(chan error, 1)})
}

func (s *Store) view(ctx context.Context, fn func(*bolt.Tx) error) error {
	return s.do(ctx, &call{fn: fn, done: make(chan error, 1)})
}

func (s *Store) do(ctx context.Context, c *call) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.calls = append(s.calls, c)
	s.mu.Unlock()
	s.notify()
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		if c.taken.CompareAndSwap(false, true) {
			return ctx.Err()
		}
		return <-c.done // fn is running, and it writes to the caller's variables
	}
}

// run is the store goroutine: it alone opens the file.
func (s *Store) run() {
	defer close(s.gone)
	retry := retryMin
	for range s.wake {
		for s.busy() {
			err := s.turn()
			if err == nil {
				retry = retryMin
				continue
			}
			s.complain(err)
			s.failCalls(err)
			if s.isClosed() {
				return
			}
			time.Sleep(retry)
			retry = min(2*retry, retryMax)
		}
		if s.isClosed() {
			return
		}
	}
}

func (s *Store) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.batches) > 0 || len(s.calls) > 0
}

func (s *Store) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// turn opens the file, does what is queued for as long as it may hold the file,
// and closes it. An error means that the file could not be opened or a batch not
// be written; the batch is still queued then.
func (s *Store) turn() error {
	began := time.Now()
	db, err := open(s.path)
	if err != nil {
		return err
	}
	opened := time.Now()
	lockWait.Observe(opened.Sub(began).Seconds())
	hold := max(minHold, holdFactor*opened.Sub(began))
	for {
		err = s.commitBatch(db)
		s.runCalls(db)
		if err != nil || !s.busy() || time.Since(opened) > hold {
			break
		}
	}
	if cerr := db.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("bboltstore: close %s: %w", s.path, cerr)
	}
	return err
}

// commitBatch writes the first batch, if there is one.
func (s *Store) commitBatch(db *bolt.DB) error {
	s.mu.Lock()
	if len(s.batches) == 0 {
		s.mu.Unlock()
		return nil
	}
	b := s.batches[0]
	b.sealed = true // takes no more rows
	s.mu.Unlock()

	began := time.Now()
	var cut int
	err := safely(func() error {
		return db.Update(func(tx *bolt.Tx) (err error) {
			cut, err = b.write(tx)
			return err
		})
	})
	full := errors.Is(err, errFileFull)
	if err != nil && !full {
		return fmt.Errorf("bboltstore: write to %s: %w", s.path, err)
	}
	commitTime.Observe(time.Since(began).Seconds())
	if full {
		// Waiting would not help: the file only has room again when the reporter
		// has sent and deleted reports.
		dropped.WithLabelValues("file_full").Add(float64(b.records))
		s.complain(fmt.Errorf("%w: %s", err, s.path))
	} else {
		recorded.Add(float64(b.records))
		dropped.WithLabelValues("group_rows").Add(float64(cut))
	}
	s.mu.Lock()
	s.batches = s.batches[1:]
	s.queued -= b.rows
	queueLength.Set(float64(s.queued))
	s.mu.Unlock()
	b.err = nil
	if full {
		b.err = err
	}
	close(b.done)
	return nil
}

// runCalls runs the calls that wait now.
func (s *Store) runCalls(db *bolt.DB) {
	s.mu.Lock()
	calls := s.calls
	s.calls = nil
	s.mu.Unlock()
	for _, c := range calls {
		if !c.taken.CompareAndSwap(false, true) {
			continue
		}
		begin := db.View
		if c.writable {
			begin = db.Update
		}
		c.done <- safely(func() error { return begin(c.fn) })
	}
}

// failCalls answers the waiting calls with err: unlike rows, they are not kept for
// better times.
func (s *Store) failCalls(err error) {
	s.mu.Lock()
	calls := s.calls
	s.calls = nil
	s.mu.Unlock()
	for _, c := range calls {
		c.done <- err
	}
}

// complain logs err at most once a minute.
func (s *Store) complain(err error) {
	writeErrors.Inc()
	if time.Since(s.complained) < complainEach {
		return
	}
	s.complained = time.Now()
	s.mu.Lock()
	queued := s.queued
	s.mu.Unlock()
	slog.Error("store: cannot write, rows wait", "err", err, "queued", queued, "queue_limit", MaxQueue)
}

// safely turns a panic, which is how bbolt reports a corrupt page, into an error.
func safely(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return fn()
}
