// Package totals counts how all messages and sessions of a day fared, also those that
// nobody wants reports about. It counts in memory, so that no mail waits for it, and adds
// that to the store once a minute: a program that is killed loses a minute at most.
package totals

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"ruapost"
)

const (
	// each is how often the store is told.
	each = time.Minute
	// atEnd is how long it may take to be told for the last time.
	atEnd = 5 * time.Second
	// maxDays is how many days may wait while the store cannot be used; each has two kinds.
	maxDays = 8
)

// Store is what this package asks of the store.
type Store interface {
	// AddTallies adds to the daily totals, all or nothing.
	AddTallies(ctx context.Context, tallies ...ruapost.Tally) error
}

// Counter counts. A nil Counter does nothing.
type Counter struct {
	store Store

	mu   sync.Mutex
	days map[dayKind]*ruapost.OutcomeCounts
}

type dayKind struct {
	start int64 // Unix time
	kind  ruapost.Kind
}

// New returns a Counter that nothing was counted with. Run must be called for the store to
// hear of it.
func New(store Store) *Counter {
	return &Counter{store: store, days: map[dayKind]*ruapost.OutcomeCounts{}}
}

// Add counts one.
func (c *Counter) Add(at time.Time, kind ruapost.Kind, o ruapost.Outcome) {
	if c == nil {
		return
	}
	var one ruapost.OutcomeCounts
	one[o] = 1
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(dayKind{ruapost.Day(at).Start.Unix(), kind}, &one)
}

// add adds, if there is room. c.mu is held.
func (c *Counter) add(key dayKind, counts *ruapost.OutcomeCounts) {
	day := c.days[key]
	if day == nil {
		if len(c.days) >= 2*maxDays {
			return
		}
		day = &ruapost.OutcomeCounts{}
		c.days[key] = day
	}
	day.Add(counts)
}

// Run tells the store once a minute, until ctx ends, and then for the last time when
// counted, which may be nil, is closed: when nothing is counted any more.
func (c *Counter) Run(ctx context.Context, counted <-chan struct{}) {
	tick := time.NewTicker(each)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.flush(ctx)
			continue
		case <-ctx.Done():
		}
		break
	}
	if counted != nil {
		<-counted
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), atEnd)
	defer cancel()
	c.flush(ctx)
}

// flush tells the store. What it does not take is kept.
func (c *Counter) flush(ctx context.Context) {
	c.mu.Lock()
	days := c.days
	c.days = map[dayKind]*ruapost.OutcomeCounts{}
	c.mu.Unlock()
	if len(days) == 0 {
		return
	}
	var tallies []ruapost.Tally
	for key, counts := range days {
		tallies = append(tallies, ruapost.Tally{Day: time.Unix(key.start, 0).UTC(), Kind: key.kind, Domain: ruapost.WholeDay, Counts: *counts})
	}
	err := c.store.AddTallies(ctx, tallies...)
	if err == nil {
		return
	}
	slog.Debug("daily totals are not on disk yet", "err", err)
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, counts := range days {
		c.add(key, counts)
	}
}
