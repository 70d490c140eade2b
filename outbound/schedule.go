package outbound

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"ruapost"
	"ruapost/mtasts"
)

const (
	// refreshEach is how often the kept policies are gone through, and the pause before
	// the first time.
	refreshEach = time.Hour
	// refreshers is how many policies are then fetched at a time.
	refreshers = 4
	// unusedAfter is how long a policy is kept that no mail needs. One who writes to the
	// domain again is then as unprotected as at the first time.
	unusedAfter = 180 * 24 * time.Hour
	// refreshChunk is how many policies are read from the store at a time.
	refreshChunk = 200
	// watchEach is how often the store is asked whether another process has changed
	// policies, as "ruapost-tlspolicy purge" does.
	watchEach = 10 * time.Second
)

// Run keeps the policies in the store up to date until ctx ends: refreshes those in
// use, deletes those that have expired or that nobody needs, and notices what others
// change there.
func (p *Policies) Run(ctx context.Context) {
	if p.sts.store == nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		p.watch(ctx)
		each(ctx, watchEach, p.watch)
	})
	both.Go(func() { each(ctx, refreshEach, p.sts.refreshAll) })
	both.Wait()
}

// each calls do again and again until ctx ends, always after a pause.
func each(ctx context.Context, pause time.Duration, do func(ctx context.Context)) {
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			do(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// version tells changes in the store that this process has made from those that others
// have made.
type version struct {
	mu       sync.Mutex
	writing  int    // calls under way, which may or may not be counted there yet
	written  uint64 // those that were
	expected uint64 // what the store's version is but for written
	known    bool   // expected is
}

func (v *version) begin() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.writing++
}

func (v *version) end(wrote bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.writing--
	if wrote {
		v.written++
	}
}

// mark returns the number of own writes, false while one is under way.
func (v *version) mark() (written uint64, quiet bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.written, v.writing == 0
}

// replaced is by how much the version of a new file differs at least from that of the one
// before: each begins to count from another time, in nanoseconds.
const replaced = 1 << 20

// changes returns how many changes others have made between the last call and now, when
// the store's version is n: replaced or more if the file is another one. mark has returned
// written before n was read; if there were own writes since, nothing can be told.
func (v *version) changes(written, n uint64) uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.written != written || v.writing > 0 {
		return 0
	}
	changes := n - written - v.expected
	if !v.known {
		changes = 0
	}
	v.expected, v.known = n-written, true
	return changes
}

// watch forgets what is in memory if others have changed the store.
func (p *Policies) watch(ctx context.Context) {
	c := p.sts
	written, quiet := c.writes.mark()
	if !quiet {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	n, err := c.store.STSVersion(ctx)
	if err != nil {
		slog.Debug("policy: store cannot be read", "err", err)
		return
	}
	switch changes := c.writes.changes(written, n); {
	case changes == 0:
	case changes >= replaced: // damaged and set aside, or removed: what is in memory still holds
		slog.Warn("the store is a new one, MTA-STS policies that are in memory are kept there again")
		for domain, e := range c.entries.All() {
			if e.current(c.now()) != nil {
				c.keep(domain)
			}
		}
	default:
		slog.Info("MTA-STS policies were changed by another process", "changes", changes)
		for domain, e := range c.entries.All() {
			if e.policy != nil || e == nothingKept {
				c.entries.Invalidate(domain)
			}
		}
		p.answers.InvalidateAll()
	}
}

// refreshAll goes through the kept policies once.
func (c *stsCache) refreshAll(ctx context.Context) {
	work := make(chan string)
	var workers sync.WaitGroup
	defer workers.Wait()
	defer close(work)
	for range refreshers {
		workers.Go(func() {
			for domain := range work {
				c.refresh(ctx, domain)
			}
		})
	}
	for after := ""; ; {
		read, cancel := context.WithTimeout(ctx, keepTimeout)
		policies, err := c.store.STSPolicies(read, after, refreshChunk)
		cancel()
		if err != nil {
			slog.Warn("MTA-STS policies cannot be gone through, again in an hour", "err", err)
			return
		}
		if len(policies) == 0 {
			return
		}
		for _, p := range policies {
			select {
			case work <- p.Domain:
			case <-ctx.Done():
				return
			}
		}
		after = policies[len(policies)-1].Domain
	}
}

// refresh does what is due about the policy of domain: nothing, to fetch it again
// (RFC 8461 3.3), or to forget it.
func (c *stsCache) refresh(ctx context.Context, domain string) {
	now := c.now()
	e, err := c.entry(ctx, domain) // which may have changed since it was listed
	if err != nil || e == nil || e.policy == nil {
		return
	}
	if !now.Before(e.expires) || now.Sub(e.used) > unusedAfter && !e.used.IsZero() {
		c.forget(ctx, domain)
		return
	}
	if now.Before(e.refreshAt()) && e.policy.Mode != mtasts.ModeNone {
		return
	}
	record, err := mtasts.LookupRecord(ctx, c.resolver, domain)
	switch {
	case errors.Is(err, mtasts.ErrNoRecord) && e.policy.Mode == mtasts.ModeNone:
		c.forget(ctx, domain) // RFC 8461 8.3: the domain has taken its leave
	case err != nil:
		// The policy holds until it expires. A domain that has taken its record away is
		// not held to it for longer.
	case now.Before(e.refreshAt()) && record.ID == e.id || e.tooSoon(record.ID, now):
	default:
		select {
		case <-c.start(domain, record.ID):
		case <-ctx.Done():
		}
	}
}

// forget removes the policy of domain from the store and from memory.
func (c *stsCache) forget(ctx context.Context, domain string) {
	ctx, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	c.writes.begin()
	n, err := c.store.DeleteSTSPolicies(ctx, []string{domain})
	c.writes.end(n > 0)
	if err != nil {
		storeErrors.Inc()
		slog.Warn("MTA-STS policy cannot be deleted", "domain", domain, "err", err)
		return
	}
	c.entries.Invalidate(domain)
	c.changed(domain)
	slog.Info("MTA-STS policy forgotten", "domain", domain)
}

// ReadOnly is a PolicyStore that keeps nothing, for looking at what an answer would be.
type ReadOnly struct{ PolicyStore }

func (ReadOnly) PutSTSPolicy(context.Context, ruapost.STSPolicy) error { return nil }
