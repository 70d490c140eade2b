package resolver

import (
	"context"
	"errors"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

const (
	// maxCacheBytes bounds the memory for answers, approximately.
	maxCacheBytes = 32 << 20
	// maxCacheEntries bounds the number of answers.
	maxCacheEntries = 1 << 16

	// minTTL and maxTTL bound how long an answer is kept. The lower one makes the
	// lookups for one message agree with each other; the upper one limits the
	// harm of a wrong answer.
	minTTL = 5 * time.Second
	maxTTL = time.Hour
	// maxNegativeTTL is the same for denials, shorter than the 1 to 3 hours of
	// RFC 2308 5: what an administrator has just published should be seen soon.
	maxNegativeTTL = 15 * time.Minute
	// failureTTL is how long a failure is kept, the least that RFC 9520 3.2 asks
	// for. It spares servers in distress the repetitions, and lets whoever tries
	// again a little later find out whether the trouble is over.
	failureTTL = time.Second
)

var (
	lookups = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_dns_lookups_total",
		Help: "DNS lookups by where the answer came from: the cache (hit), a lookup already under way (joined) or a new one (miss).",
	}, []string{"result"})
	lookupsHit    = lookups.WithLabelValues("hit")
	lookupsJoined = lookups.WithLabelValues("joined")
	lookupsMiss   = lookups.WithLabelValues("miss")
)

var errClosed = errors.New("resolver closed")

// key is a question in class IN.
type key struct {
	name  string // in presentation form, lower case, without final dot
	qtype uint16
}

func (k key) fqdn() string { return k.name + "." }

// flight is a lookup under way. answer may be read once done is closed.
type flight struct {
	done   chan struct{}
	answer *answer
}

// newCache returns a cache that takes the time from now alone. It cleans up when
// it is used, not by a goroutine of its own.
func newCache(now func() time.Time) (*otter.Cache[key, *answer], error) {
	return otter.New(&otter.Options[key, *answer]{
		MaximumWeight: maxCacheBytes,
		Weigher: func(k key, a *answer) uint32 {
			// The least weight is what bounds the number of entries.
			return uint32(max(len(k.name)+a.size, maxCacheBytes/maxCacheEntries))
		},
		ExpiryCalculator: otter.ExpiryWritingFunc(func(e otter.Entry[key, *answer]) time.Duration {
			return e.Value.ttl
		}),
		Clock: cacheClock{now: now, start: now()},
	})
}

// cacheClock is now as otter wants it: counted from a fixed point, by the
// monotonic clock if now has one.
type cacheClock struct {
	now   func() time.Time
	start time.Time
}

func (c cacheClock) NowNano() int64 { return int64(c.now().Sub(c.start)) }

func (c cacheClock) Tick(time.Duration) <-chan time.Time { return nil }

// lookup returns the answer to k from the cache, from a lookup already under
// way, or from a new one. A caller whose ctx ends gets a failure at once; the
// lookup itself goes on, because others may wait for it, now or later.
func (r *Resolver) lookup(ctx context.Context, k key) *answer {
	if a, ok := r.cache.GetIfPresent(k); ok {
		lookupsHit.Inc()
		return a
	}
	if err := ctx.Err(); err != nil {
		return failure(k, err)
	}
	f := r.join(k)
	select {
	case <-f.done:
		return f.answer
	case <-ctx.Done():
		return failure(k, ctx.Err())
	}
}

// join returns the flight for k, which it starts if there is none.
func (r *Resolver) join(k key) *flight {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.flights[k]; f != nil {
		lookupsJoined.Inc()
		return f
	}
	f := &flight{done: make(chan struct{})}
	switch a, ok := r.cache.GetIfPresent(k); {
	case ok: // from a flight that landed a moment ago
		lookupsHit.Inc()
		f.answer = a
		close(f.done)
	case r.closed:
		f.answer = failure(k, errClosed)
		close(f.done)
	default:
		lookupsMiss.Inc()
		r.flights[k] = f
		r.running.Go(func() { r.fly(k, f) })
	}
	return f
}

// fly carries out the flight f for k. The answer is in the cache before the
// flight is over, so that there is no gap in which k would be asked for again.
func (r *Resolver) fly(k key, f *flight) {
	ctx, cancel := context.WithTimeout(r.ctx, lookupBudget)
	defer cancel()
	f.answer = r.query(ctx, k)
	r.cache.Set(k, f.answer)

	r.mu.Lock()
	delete(r.flights, k)
	r.mu.Unlock()
	close(f.done)
}

// failure is the answer to k if there is none, because of err.
func failure(k key, err error) *answer {
	return &answer{err: temporary(k.name, err), ttl: failureTTL}
}
