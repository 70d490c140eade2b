package outbound

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"

	"ruapost/mtasts"
	"ruapost/resolver"
)

const (
	// maxPolicyBytes bounds the memory for MTA-STS policies, approximately. Those
	// in use have some hundred octets.
	maxPolicyBytes = 64 << 20
	// policyWeight and stringWeight are what an entry and each of a policy's strings
	// take besides their octets.
	policyWeight = 512
	stringWeight = 32
	// maxFetches is how many fetches may be under way. It is for times when very
	// many policy hosts are silent: each holds a socket for up to a minute.
	maxFetches = 1000

	fetchRetry        = 5 * time.Minute // RFC 8461 3.3
	minPolicyLifetime = 5 * time.Minute // a max_age of 0 is for one use; one use is a delivery
	// refreshAfter is when a policy in use is fetched again, whatever its record
	// says (RFC 8461 3.3 suggests once a day), or after half of its lifetime if that
	// is less. Otherwise whoever can keep the policy host's answers from us at the
	// right moment would be rid of the policy.
	refreshAfter = 24 * time.Hour
)

// stsCache keeps MTA-STS policies for as long as they say, and fetches them.
type stsCache struct {
	resolver mtasts.Resolver
	fetcher  *mtasts.Fetcher
	now      func() time.Time

	entries *otter.Cache[string, *stsEntry]

	ctx    context.Context // of fetches: a query that waits no longer does not end one
	cancel context.CancelFunc

	mu       sync.Mutex
	closed   bool
	fetching map[string]chan struct{} // by domain; closed when the fetch is over
	running  sync.WaitGroup           // the fetches
}

// stsEntry is what is known of a domain. It is not changed once it is in the cache.
type stsEntry struct {
	policy   *mtasts.Policy // nil if none was fetched yet
	id       string         // the record's ID when it was fetched
	refresh  time.Time      // when it should be fetched again
	expires  time.Time
	failedID string // the ID for which the last fetch failed
	failedAt time.Time
}

func newSTSCache(r mtasts.Resolver, f *mtasts.Fetcher) *stsCache {
	c := &stsCache{
		resolver: r, fetcher: f, now: time.Now,
		entries: otter.Must(&otter.Options[string, *stsEntry]{
			MaximumWeight: maxPolicyBytes,
			Weigher:       weight,
		}),
		fetching: map[string]chan struct{}{},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

func weight(domain string, e *stsEntry) uint32 {
	n := policyWeight + len(domain)
	if e.policy != nil {
		for _, s := range e.policy.Text {
			n += stringWeight + len(s)
		}
		for _, s := range e.policy.MX {
			n += stringWeight + len(s)
		}
	}
	return uint32(n)
}

func (c *stsCache) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.running.Wait()
}

// policy returns the policy of domain, nil if there is none or it cannot be had in
// time. A policy that is known and has not expired holds whatever becomes of the
// record or of a fetch (RFC 8461 3.1, 3.3). It is returned at once: if it is to be
// fetched again, the next query sees what came of that.
func (c *stsCache) policy(ctx context.Context, domain string) *mtasts.Policy {
	entry := c.entry(domain)
	known := entry.current(c.now())
	record, err := mtasts.LookupRecord(ctx, c.resolver, domain)
	var id string
	switch {
	case err == nil:
		id = record.ID
	case known != nil:
		id = entry.id
	default:
		return nil
	}
	if known != nil && id == entry.id && c.now().Before(entry.refresh) || entry.tooSoon(id, c.now()) {
		return known
	}
	fetched := c.start(domain, id)
	if known != nil {
		return known
	}
	select {
	case <-fetched:
		return c.entry(domain).current(c.now())
	case <-ctx.Done():
		return nil
	}
}

// entry returns what is known of domain, nil if that is nothing.
func (c *stsCache) entry(domain string) *stsEntry {
	e, _ := c.entries.GetIfPresent(domain)
	return e
}

// current returns the policy unless it has expired.
func (e *stsEntry) current(now time.Time) *mtasts.Policy {
	if e == nil || e.policy == nil || !now.Before(e.expires) {
		return nil
	}
	return e.policy
}

// tooSoon says whether the last fetch for this ID failed only recently. To fetch
// again what is known is no hurry: then the last one for whatever ID counts.
func (e *stsEntry) tooSoon(id string, now time.Time) bool {
	return e != nil && (id == e.failedID || id == e.id) && now.Sub(e.failedAt) < fetchRetry
}

// start has the domain's policy fetched unless that is already under way. The
// channel is closed when it is over, at once if it cannot be begun.
func (c *stsCache) start(domain, id string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if done := c.fetching[domain]; done != nil {
		return done
	}
	done := make(chan struct{})
	if c.closed || len(c.fetching) >= maxFetches {
		fetches.WithLabelValues("refused").Inc()
		close(done)
		return done
	}
	c.fetching[domain] = done
	c.running.Go(func() {
		c.fetch(domain, id)
		c.mu.Lock()
		delete(c.fetching, domain)
		c.mu.Unlock()
		close(done)
	})
	return done
}

// fetch gets the domain's policy and keeps it.
func (c *stsCache) fetch(domain, id string) {
	var policy *mtasts.Policy
	var err error
	if perr := resolver.Safely(domain, func() { policy, err = c.fetcher.Fetch(c.ctx, domain) }); perr != nil {
		err = perr
	}
	now := c.now()
	fresh := stsEntry{}
	if err != nil {
		old := c.entry(domain)
		fetches.WithLabelValues("failed").Inc()
		slog.Warn("MTA-STS policy cannot be fetched", "domain", domain, "id", id,
			"known", old.current(now) != nil, "err", err)
		if old != nil {
			fresh = *old
		}
		fresh.failedID, fresh.failedAt = id, now
	} else {
		fetches.WithLabelValues("ok").Inc()
		slog.Info("MTA-STS policy", "domain", domain, "mode", policy.Mode, "id", id, "max_age", policy.MaxAge)
		lifetime := max(policy.MaxAge, minPolicyLifetime)
		fresh = stsEntry{
			policy: policy, id: id,
			refresh: now.Add(min(refreshAfter, lifetime/2)), expires: now.Add(lifetime),
		}
	}
	c.entries.Set(domain, &fresh)
}
