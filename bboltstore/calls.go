package bboltstore

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
)

// call is a transaction that somebody other than the recorder wants.
type call struct {
	writable bool
	fn       func(*bolt.Tx) error
	// taken is set by the store goroutine before it first runs fn, or by the caller when
	// it waits no longer; whoever comes second leaves the call alone.
	taken atomic.Bool
	begun bool       // the store goroutine has run fn; of it alone
	done  chan error // has room for one
}

// errUnchanged is returned by a call that has changed nothing, so that nothing is written.
var errUnchanged = errors.New("nothing to write")

// update runs fn in a read-write transaction, view in a read-only one. They return fn's
// error but for errUnchanged, the file's, or the context's if it ended before.
//
// Updates that wait at the same time share a transaction, each seeing what those before it
// have done. If one fails, it is rolled back for all, and fn runs again: only what it did
// last has happened.
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

// take says whether fn may be run: not if the caller has gone.
func (c *call) take() bool {
	c.begun = c.begun || c.taken.CompareAndSwap(false, true)
	return c.begun
}

// callersPanic is a panic of a caller's function, on its way to the caller.
type callersPanic struct{ value any }

func (callersPanic) Error() string { return "the caller's function panicked" }

// callersFunc runs a function of the caller's in a transaction. Its panic must not be taken
// for one of bbolt's.
func callersFunc(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = callersPanic{p}
		}
	}()
	return fn()
}

// rethrow panics if err is that of a caller's function that did.
func rethrow(err error) {
	var p callersPanic
	if errors.As(err, &p) {
		panic(p.value)
	}
}

// runCalls runs the calls that wait now: those that read, and those that write as far as
// they fit into one transaction. The error is that of a file that is damaged.
func (s *Store) runCalls(db *bolt.DB) error {
	s.mu.Lock()
	calls := s.calls
	s.calls = nil
	s.mu.Unlock()
	var writers []*call
	for i, c := range calls {
		if c.writable {
			writers = append(writers, c)
			continue
		}
		if !c.take() {
			continue
		}
		err := safely(func() error { return db.View(c.fn) })
		c.done <- err
		if isDamage(err) {
			answer(append(writers, calls[i+1:]...), err)
			return err
		}
	}
	left, err := shareTransaction(db, writers)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(left, s.calls...)
	return err
}

// shareTransaction runs calls in one transaction, and returns those that did not fit. If
// one fails, it is run alone instead, so that the others can go on without it. The error is
// that of a file that is damaged.
func shareTransaction(db *bolt.DB, calls []*call) (left []*call, damage error) {
	if len(calls) == 0 {
		return nil, nil
	}
	n, failed, err := runInOne(db, calls[:min(len(calls), shareCalls)])
	if failed && n > 1 && !isDamage(err) {
		calls[0], calls[n-1] = calls[n-1], calls[0]
		n, _, err = runInOne(db, calls[:1])
	}
	if isDamage(err) {
		answer(calls, err)
		return nil, err
	}
	answer(calls[:n], err)
	return calls[n:], nil
}

// runInOne runs calls in one transaction, and returns how many. Nothing is written if there
// is an error: if failed, that of the last one, else that of the transaction.
func runInOne(db *bolt.DB, calls []*call) (n int, failed bool, err error) {
	began := time.Now()
	err = safely(func() error {
		return db.Update(func(tx *bolt.Tx) error {
			result := errUnchanged
			for _, c := range calls {
				if n > 0 && time.Since(began) > shareTime {
					break
				}
				n++
				if !c.take() {
					continue
				}
				err := c.fn(tx)
				if err == nil {
					result = nil
				} else if !errors.Is(err, errUnchanged) {
					failed = true
					return err
				}
			}
			return result
		})
	})
	if errors.Is(err, errUnchanged) {
		err = nil
	}
	return n, failed, err
}

// failCalls answers the waiting calls with err: unlike rows, they are not kept for
// better times.
func (s *Store) failCalls(err error) {
	s.mu.Lock()
	calls := s.calls
	s.calls = nil
	s.mu.Unlock()
	answer(calls, err)
}

func answer(calls []*call, err error) {
	for _, c := range calls {
		c.done <- err
	}
}
