package resolver

import (
	"context"
	"errors"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"

	"ruapost/internal/metric"
)

const (
	// defaultCacheBytes is Config.CacheBytes if that is not set.
	defaultCacheBytes = 32 << 20
	// maxCachedBytes is the size of the largest answer that is kept: whoever has mail
	// judged must not be able to drive out all others' answers with a few of his own.
	maxCachedBytes = 8 << 10
	// entryWeight and recordWeight are what an answer and each of its records take
	// besides their octets: structures, slice and string headers, and what the
	// allocator rounds up.
	entryWeight  = 512
	recordWeight = 64

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
	lookups = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_dns_lookups_total",
		Help: "DNS lookups by where the answer came from: the cache (hit), a lookup already under way (joined) or a new one (miss).",
	}, "result", "hit", "joined", "miss")
	lookupsHit    = lookups.WithLabelValues("hit")
	lookupsJoined = lookups.WithLabelValues("joined")
	lookupsMiss   = lookups.WithLabelValues("miss")

	limits = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_dns_limit_hits_total",
		Help: "Limits of lookups: queries (too many under way, so that the lookup failed), cache (answers that made room " +
			"for others), spf_record (too large, a permanent error), spf_ptr (no answer in time, which does not match).",
	}, "limit", "queries", "cache", "spf_record", "spf_ptr")
	limitQueries   = limits.WithLabelValues("queries")
	limitCache     = limits.WithLabelValues("cache")
	limitSPFRecord = limits.WithLabelValues("spf_record")
	limitSPFPTR    = limits.WithLabelValues("spf_ptr")
)

var errClosed = errors.New("resolver closed")

// key is a question in class IN.
type key struct {
	name  string // in presentation form, lower case, without final dot
	qtype uint16
}

func (k key) fqdn() string { return k.name + "." }

// flight is a lookup, which may be under way. answer may be read once done is
// closed.
type flight struct {
	done   chan struct{}
	answer *answer

	// Of one under way. Resolver.mu guards waiting.
	waiting int // callers
	cancel  context.CancelFunc
}

// landed returns a flight that is over.
func landed(a *answer) *flight {
	f := &flight{done: make(chan struct{}), answer: a}
	close(f.done)
	return f
}

// newCache returns a cache for so many octets that takes the time from now alone. It
// cleans up when it is used, not by a goroutine of its own.
func newCache(octets int, now func() time.Time) (*otter.Cache[key, *answer], error) {
	return otter.New(&otter.Options[key, *answer]{
		MaximumWeight: uint64(octets),
		Weigher: func(k key, a *answer) uint32 {
			return uint32(entryWeight + len(k.name) + a.size + recordWeight*a.records())
		},
		ExpiryCalculator: otter.ExpiryWritingFunc(func(e otter.Entry[key, *answer]) time.Duration {
			return e.Value.ttl
		}),
		OnAtomicDeletion: func(e otter.DeletionEvent[key, *answer]) {
			if e.Cause == otter.CauseOverflow {
				limitCache.Inc()
			}
		},
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
// way, or from a new one. A caller whose ctx ends gets a failure at once.
func (r *Resolver) lookup(ctx context.Context, k key) *answer {
	return r.wait(ctx, k, r.join(ctx, k))
}

// join returns the flight for k, which it starts if there is none. Whoever joins
// must wait.
func (r *Resolver) join(ctx context.Context, k key) *flight {
	if a, ok := r.cache.GetIfPresent(k); ok {
		lookupsHit.Inc()
		return landed(a)
	}
	if err := ctx.Err(); err != nil {
		return landed(failure(k, err))
	}
	r.reread()
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.flights[k]; f != nil {
		lookupsJoined.Inc()
		f.waiting++
		return f
	}
	if a, ok := r.cache.GetIfPresent(k); ok { // from a flight that landed a moment ago
		lookupsHit.Inc()
		return landed(a)
	}
	if r.closed {
		return landed(failure(k, errClosed))
	}
	lookupsMiss.Inc()
	r.probeIfDue()
	f := &flight{done: make(chan struct{}), waiting: 1}
	ctx, f.cancel = context.WithTimeout(r.ctx, lookupBudget) // not the caller's, who may not be the last to wait
	r.flights[k] = f
	r.running.Go(func() { r.fly(ctx, k, f) })
	return f
}

// wait returns the answer of f, which the caller has joined.
func (r *Resolver) wait(ctx context.Context, k key, f *flight) *answer {
	select {
	case <-f.done: // also if ctx has ended
		return f.answer
	default:
	}
	select {
	case <-f.done:
		return f.answer
	case <-ctx.Done():
		r.leave(k, f)
		return failure(k, ctx.Err())
	}
}

// leave ends f when nobody waits for it any more: names whose servers are silent
// would else pile up, since lookupBudget is longer than most callers wait.
func (r *Resolver) leave(k key, f *flight) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.waiting--; f.waiting > 0 {
		return
	}
	if r.flights[k] == f {
		delete(r.flights, k) // who asks from now on does not get the failure
	}
	f.cancel()
}

// fly carries out the flight f for k. The answer is in the cache before the
// flight is over, so that there is no gap in which k would be asked for again, unless
// it is too large to be kept.
func (r *Resolver) fly(ctx context.Context, k key, f *flight) {
	defer f.cancel()
	if err := Safely(k.name, func() { f.answer = r.query(ctx, k) }); err != nil {
		f.answer = failure(k, err)
	}
	r.mu.Lock()
	if r.flights[k] == f { // else it was ended, or asked servers that are not asked any more
		delete(r.flights, k)
		if f.answer.size <= maxCachedBytes {
			r.cache.Set(k, f.answer)
		}
	}
	r.mu.Unlock()
	close(f.done)
}

// failure is the answer to k if there is none, because of err.
func failure(k key, err error) *answer {
	return &answer{err: temporary(k.name, err), ttl: failureTTL}
}
