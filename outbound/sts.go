package outbound

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/singleflight"

	"ruapost/mtasts"
)

// stsCache keeps MTA-STS policies for as long as they say, and fetches them.
type stsCache struct {
	resolver mtasts.Resolver
	fetcher  *mtasts.Fetcher
	now      func() time.Time

	entries *otter.Cache[string, *stsEntry]
	flight  singleflight.Group

	ctx    context.Context // of fetches: a query that waits no longer does not end one
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// stsEntry is what is known of a domain. It is not changed once it is in the cache.
type stsEntry struct {
	policy   *mtasts.Policy // nil if none was fetched yet
	id       string         // the record's ID when it was fetched
	expires  time.Time
	failedID string // the ID for which the last fetch failed
	failedAt time.Time
}

func newSTSCache(r mtasts.Resolver, f *mtasts.Fetcher) *stsCache {
	c := &stsCache{
		resolver: r, fetcher: f, now: time.Now,
		entries: otter.Must(&otter.Options[string, *stsEntry]{MaximumSize: maxPolicies}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

func (c *stsCache) close() {
	c.cancel()
	c.wg.Wait()
}

// policy returns the policy of domain, nil if there is none or it cannot be had in
// time. A policy that is known and has not expired holds whatever becomes of the
// record or of a fetch (RFC 8461 3.1, 3.3).
func (c *stsCache) policy(ctx context.Context, domain string) *mtasts.Policy {
	entry, _ := c.entries.GetIfPresent(domain)
	known := entry.current(c.now())
	record, err := mtasts.LookupRecord(ctx, c.resolver, domain)
	if err != nil || known != nil && entry.id == record.ID || entry.tooSoon(record, c.now()) {
		return known
	}
	done := c.flight.DoChan(domain, func() (any, error) {
		c.wg.Add(1)
		defer c.wg.Done()
		return c.fetch(domain, record.ID, entry), nil
	})
	select {
	case res := <-done:
		return res.Val.(*stsEntry).current(c.now())
	case <-ctx.Done():
		return known
	}
}

// current returns the policy unless it has expired.
func (e *stsEntry) current(now time.Time) *mtasts.Policy {
	if e == nil || e.policy == nil || !now.Before(e.expires) {
		return nil
	}
	return e.policy
}

// tooSoon says whether the last fetch for this ID failed only recently.
func (e *stsEntry) tooSoon(record *mtasts.Record, now time.Time) bool {
	return e != nil && e.failedID == record.ID && now.Sub(e.failedAt) < fetchRetry
}

// fetch gets the domain's policy and keeps it. It returns the new entry.
func (c *stsCache) fetch(domain, id string, old *stsEntry) *stsEntry {
	policy, err := c.fetcher.Fetch(c.ctx, domain)
	fresh := &stsEntry{policy: policy, id: id}
	switch {
	case err != nil:
		fetches.WithLabelValues("failed").Inc()
		slog.Warn("MTA-STS policy cannot be fetched", "domain", domain, "id", id,
			"known", old.current(c.now()) != nil, "err", err)
		fresh = &stsEntry{failedID: id, failedAt: c.now()}
		if old != nil {
			fresh.policy, fresh.id, fresh.expires = old.policy, old.id, old.expires
		}
	default:
		fetches.WithLabelValues("ok").Inc()
		fresh.expires = c.now().Add(max(policy.MaxAge, minPolicyLifetime))
		slog.Info("MTA-STS policy", "domain", domain, "mode", policy.Mode, "id", id, "max_age", policy.MaxAge)
	}
	c.entries.Set(domain, fresh)
	return fresh
}
