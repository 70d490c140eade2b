package totals

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ruapost"
)

type store struct {
	mu    sync.Mutex
	err   error
	calls int
	sum   ruapost.OutcomeCounts
}

func (s *store) AddTallies(_ context.Context, tallies ...ruapost.Tally) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.err != nil {
		return s.err
	}
	for _, t := range tallies {
		if t.Domain != ruapost.WholeDay || t.Day != ruapost.Day(t.Day).Start {
			return errors.New("not a whole day")
		}
		s.sum.Add(&t.Counts)
	}
	return nil
}

func (s *store) state() (calls int, passed int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls, s.sum[ruapost.OutcomePass]
}

// The store hears once a minute, not at all if there is nothing, and of what came last when
// the program ends. What it did not take comes again, once.
func TestCounter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &store{}
		c := New(s)
		ctx, cancel := context.WithCancel(t.Context())
		counted, ended := make(chan struct{}), make(chan struct{})
		go func() {
			c.Run(ctx, counted)
			close(ended)
		}()
		want := func(calls int, passed int64) {
			t.Helper()
			synctest.Wait()
			if n, p := s.state(); n != calls || p != passed {
				t.Errorf("%d calls, %d passed; want %d, %d", n, p, calls, passed)
			}
		}
		time.Sleep(3 * each) // of the bubble: no time passes
		want(0, 0)
		for range 3 {
			c.Add(time.Now(), ruapost.KindDMARC, ruapost.OutcomePass)
		}
		want(0, 0)
		time.Sleep(each)
		want(1, 3)
		s.mu.Lock()
		s.err = errors.New("no disk")
		s.mu.Unlock()
		c.Add(time.Now(), ruapost.KindDMARC, ruapost.OutcomePass)
		time.Sleep(each)
		want(2, 3)
		s.mu.Lock()
		s.err = nil
		s.mu.Unlock()
		c.Add(time.Now(), ruapost.KindDMARC, ruapost.OutcomePass)
		time.Sleep(each)
		want(3, 5)
		cancel()
		c.Add(time.Now(), ruapost.KindDMARC, ruapost.OutcomePass)
		want(3, 5) // others may still count
		close(counted)
		<-ended
		want(4, 6)
	})
}

// A store that is away for ever takes no more memory than some days.
func TestCounterIsBounded(t *testing.T) {
	s := &store{err: errors.New("no disk")}
	c := New(s)
	for i := range 1000 {
		c.Add(time.Unix(int64(i)*86400, 0), ruapost.KindTLS, ruapost.OutcomeSTS)
		c.flush(t.Context())
	}
	if len(c.days) > 2*maxDays {
		t.Errorf("%d days are kept", len(c.days))
	}
	var none *Counter
	none.Add(time.Now(), ruapost.KindTLS, ruapost.OutcomeSTS)
}
