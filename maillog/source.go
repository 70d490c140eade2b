package maillog

import (
	"context"
	"log/slog"
	"time"

	"ruapost"
)

// Deliver takes entries of a source, in their order, and the position after them. The
// source waits for it. If it fails it is called with the same again after a pause.
//
// It is also called without entries, so that what it keeps does not fall far behind
// when there is nothing to tell for long.
//
// A source that is started with the position that was kept last goes on there: nothing
// is delivered twice but what Deliver had not kept.
type Deliver func(entries []Entry, position string) error

const (
	// positionEach is how often a position is delivered without entries.
	positionEach = time.Minute

	firstPause = time.Second
	lastPause  = time.Minute
)

// outlet is where a source delivers.
type outlet struct {
	name      string // of the source, for the log
	deliver   Deliver
	delivered time.Time
}

// put delivers, as often as it takes. It returns false when ctx ended before.
func (o *outlet) put(ctx context.Context, entries []Entry, position string) bool {
	if len(entries) == 0 && time.Since(o.delivered) < positionEach {
		return true
	}
	for pause := firstPause; ctx.Err() == nil; pause = min(2*pause, lastPause) {
		err := o.deliver(entries, position)
		if err == nil {
			o.delivered = time.Now()
			return true
		}
		sourceFaults.WithLabelValues("undelivered").Inc()
		slog.Warn("lines of the mail log are kept for another try", "source", o.name, "lines", len(entries),
			"pause", pause, "err", ruapost.Clean(err.Error(), 300))
		wait(ctx, pause)
	}
	return false
}

func wait(ctx context.Context, pause time.Duration) {
	select {
	case <-time.After(pause):
	case <-ctx.Done():
	}
}
