package outbound

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"ruapost"
	"ruapost/dmarc"
	"ruapost/mtasts"
	"ruapost/resolver"
)

const (
	// maxPolicyBytes bounds the memory for MTA-STS policies, approximately. Those
	// in use have some hundred octets. What has no room is read from the store again.
	maxPolicyBytes = 4 << 20
	// entryWeight, policyWeight and stringWeight are what an entry, a policy and each of
	// its strings take besides their octets.
	entryWeight  = 160
	policyWeight = 352
	stringWeight = 32
	// maxFetches is how many fetches may be under way, and maxOrganizationFetches how
	// many of names below one registered name. A hostile policy host can hold each for a
	// minute, and some MB with it.
	maxFetches             = 64
	maxOrganizationFetches = 8

	fetchRetry        = 5 * time.Minute // RFC 8461 3.3
	minPolicyLifetime = 5 * time.Minute // a max_age of 0 is for one use; one use is a delivery
	// refreshAfter is when a policy is fetched again, whatever its record says
	// (RFC 8461 3.3 suggests once a day), or after half of its lifetime if that is less.
	// Otherwise whoever can keep the policy host's answers from us at the right moment
	// would be rid of the policy.
	refreshAfter = 24 * time.Hour
	// storeTimeout is how long a delivery waits to hear from the store of a policy that
	// was fetched before, and keepTimeout how long a new one may take to be kept.
	storeTimeout = time.Second
	keepTimeout  = 30 * time.Second
)

// PolicyStore keeps MTA-STS policies over restarts, and for all processes.
type PolicyStore interface {
	// STSPolicy returns the policy of domain, nil if there is none.
	STSPolicy(ctx context.Context, domain string) (*ruapost.STSPolicy, error)
	// STSPolicies returns the next policies behind after, by order of their domains.
	STSPolicies(ctx context.Context, after string, most int) ([]ruapost.STSPolicy, error)
	// PutSTSPolicy keeps p instead of any other of its domain.
	PutSTSPolicy(ctx context.Context, p ruapost.STSPolicy) error
	// DeleteSTSPolicies returns how many there were.
	DeleteSTSPolicies(ctx context.Context, domains []string) (int, error)
	// STSVersion changes with each call of the other two, whoever made it.
	STSVersion(ctx context.Context) (uint64, error)
}

// stsCache keeps MTA-STS policies for as long as they say, and fetches them: in memory
// those in use, and all in the store, if there is one.
type stsCache struct {
	resolver mtasts.Resolver
	fetcher  atomic.Pointer[mtasts.Fetcher]
	store    PolicyStore // may be nil
	now      func() time.Time
	changed  func(domain string) // called when another policy of domain holds than before

	entries *otter.Cache[string, *stsEntry]

	ctx    context.Context // of fetches: a query that waits no longer does not end one
	cancel context.CancelFunc

	mu       sync.Mutex
	closed   bool
	fetching map[string]chan struct{} // by domain; closed when the fetch is over
	running  sync.WaitGroup           // fetches, and what is being kept
	keeping  sync.Mutex               // held by who writes to the store
	updating sync.Mutex               // held by who replaces an entry
	writes   version                  // see watch
}

// stsEntry is what is known of a domain. It is not changed once it is in the cache.
type stsEntry struct {
	policy  *mtasts.Policy // nil if none was fetched yet
	id      string         // the record's ID when it was fetched
	fetched time.Time
	expires time.Time
	used    time.Time // the day of the last use that the store knows of
	// looked says that the store need not be asked: it was, or this is newer.
	looked bool
	// failedID is the ID for which the last fetch failed with failure.
	failedID string
	failedAt time.Time
	failure  error
}

// stsFinding is what a look for a domain's policy has found.
type stsFinding struct {
	record    *mtasts.Record // nil if recordErr is set
	recordErr error
	// policy is the one that holds, nil if there is none; id is its record's.
	policy *mtasts.Policy
	id     string
	// fetchErr is why the policy of the record's ID could not be fetched, now or within
	// the last five minutes.
	fetchErr error
	// expires is until when the policy holds.
	expires time.Time
	// storeErr is why it is not known whether a policy is kept.
	storeErr error
}

// trouble says that nothing is known of a policy though there may be one, for a reason
// that may go away, or that whoever is between us and the policy host can cause.
func (f *stsFinding) trouble() bool {
	switch {
	case f.policy != nil:
		return false
	case f.storeErr != nil:
		return true
	case f.recordErr != nil:
		return resolver.IsTemporary(f.recordErr)
	}
	return f.fetchErr != nil && !mtasts.Answered(f.fetchErr)
}

// errFetching is the error of a fetch that is still under way, errFetches that of one
// that was not begun.
var (
	errFetching = errors.New("the policy is still being fetched")
	errFetches  = errors.New("too many policies are being fetched")
)

func newSTSCache(r mtasts.Resolver, f *mtasts.Fetcher, store PolicyStore, changed func(domain string)) *stsCache {
	c := &stsCache{
		resolver: r, store: store, now: time.Now, changed: changed,
		entries: otter.Must(&otter.Options[string, *stsEntry]{
			MaximumWeight: maxPolicyBytes,
			Weigher:       weight,
			OnAtomicDeletion: func(e otter.DeletionEvent[string, *stsEntry]) {
				if e.Cause == otter.CauseOverflow {
					limitPolicies.Inc()
				}
			},
		}),
		fetching: map[string]chan struct{}{},
	}
	c.fetcher.Store(f)
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

func weight(domain string, e *stsEntry) uint32 {
	n := entryWeight + len(domain)
	if e != nothingKept {
		n += policyWeight
	}
	if e.policy != nil {
		for _, s := range slices.Concat(e.policy.Text, e.policy.MX) {
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

// find looks for the policy of domain, for a delivery. A policy that is known and has
// not expired holds whatever becomes of the record or of a fetch (RFC 8461 3.1, 3.3). It
// is returned at once: if it is to be fetched again, the next look sees what came of that.
func (c *stsCache) find(ctx context.Context, domain string) (f stsFinding) {
	entry, err := c.entry(ctx, domain)
	f.storeErr = err
	f.set(entry, c.now())
	if f.policy != nil {
		c.use(domain)
	}
	f.record, f.recordErr = mtasts.LookupRecord(ctx, c.resolver, domain)
	id := f.id
	switch {
	case f.record != nil:
		id = f.record.ID
	case f.policy == nil || !resolver.IsTemporary(f.recordErr):
		// Without a record the policy holds until it expires (RFC 8461 3.1), and no longer.
		return f
	}
	if f.policy != nil && id == f.id && c.now().Before(entry.refreshAt()) || entry.tooSoon(id, c.now()) {
		f.fetchErr = entry.failureOf(id, c.now())
		return f
	}
	fetched := c.start(domain, id)
	if f.policy != nil {
		return f
	}
	select {
	case <-fetched:
		entry = c.known(domain)
		if f.set(entry, c.now()); f.policy == nil {
			f.fetchErr = cmp.Or(entry.failureOf(id, c.now()), errFetches)
		}
	case <-ctx.Done():
		f.fetchErr = errFetching
	}
	return f
}

// set takes the policy of e, unless it has expired.
func (f *stsFinding) set(e *stsEntry, now time.Time) {
	if f.policy = e.current(now); f.policy != nil {
		f.id, f.expires = e.id, e.expires
	}
}

// known returns what is known of domain in memory, nil if that is nothing.
func (c *stsCache) known(domain string) *stsEntry {
	e, _ := c.entries.GetIfPresent(domain)
	return e
}

// entry returns what is known of domain in memory or in the store, nil if that is
// nothing. An error says that the store does not tell.
func (c *stsCache) entry(ctx context.Context, domain string) (*stsEntry, error) {
	e := c.known(domain)
	if c.store == nil || e != nil && e.looked {
		return e, nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	p, err := c.store.STSPolicy(ctx, domain)
	if err != nil {
		storeErrors.Inc()
		slog.Warn("MTA-STS policy cannot be read from the store", "domain", domain, "err", err)
		return e, err
	}
	return c.update(domain, func(e *stsEntry) *stsEntry {
		switch {
		case e != nil && e.looked: // a fetch was quicker
			return e
		case e == nil && p == nil:
			return nothingKept
		}
		fresh := &stsEntry{}
		if p != nil {
			fresh = keptEntry(p)
		}
		if fresh.looked = true; e != nil {
			fresh.failedID, fresh.failedAt, fresh.failure = e.failedID, e.failedAt, e.failure
		}
		return fresh
	}), nil
}

// update replaces what is known of domain in memory.
func (c *stsCache) update(domain string, replace func(e *stsEntry) *stsEntry) *stsEntry {
	c.updating.Lock()
	defer c.updating.Unlock()
	e := replace(c.known(domain))
	if e != nil {
		c.entries.Set(domain, e)
	}
	return e
}

// nothingKept is the entry of a domain that the store has no policy of.
var nothingKept = &stsEntry{looked: true}

// keptEntry is what the store has kept.
func keptEntry(p *ruapost.STSPolicy) *stsEntry {
	return &stsEntry{
		policy: &mtasts.Policy{
			Mode: mtasts.Mode(p.Mode), MX: p.MX, Text: p.Text,
			MaxAge: p.Expires.Sub(p.Fetched),
		},
		id: p.ID, fetched: p.Fetched, expires: p.Expires, used: p.Used,
	}
}

// kept is e as the store keeps it.
func (e *stsEntry) kept(domain string) ruapost.STSPolicy {
	return ruapost.STSPolicy{
		Domain: domain, ID: e.id, Mode: string(e.policy.Mode), MX: e.policy.MX, Text: e.policy.Text,
		Fetched: e.fetched, Expires: e.expires, Used: e.used,
	}
}

// current returns the policy unless it has expired.
func (e *stsEntry) current(now time.Time) *mtasts.Policy {
	if e == nil || e.policy == nil || !now.Before(e.expires) {
		return nil
	}
	return e.policy
}

// refreshAt is when the policy should be fetched again though its record is the same.
func (e *stsEntry) refreshAt() time.Time {
	return e.fetched.Add(min(refreshAfter, e.expires.Sub(e.fetched)/2))
}

// tooSoon says whether the last fetch for this ID failed only recently. To fetch
// again what is known is no hurry: then the last one for whatever ID counts.
func (e *stsEntry) tooSoon(id string, now time.Time) bool {
	return e != nil && (id == e.failedID || id == e.id) && now.Sub(e.failedAt) < fetchRetry
}

// failureOf returns why the last fetch for this ID failed, if that is not long ago.
func (e *stsEntry) failureOf(id string, now time.Time) error {
	if e.tooSoon(id, now) {
		return e.failure
	}
	return nil
}

// use notes that the policy is in use today.
func (c *stsCache) use(domain string) {
	today, before := day(c.now()), time.Time{}
	c.update(domain, func(e *stsEntry) *stsEntry {
		if e == nil { // driven out of memory just now
			before = today
			return nil
		}
		used := *e
		before, used.used = e.used, today
		return &used
	})
	if !before.Equal(today) {
		c.keep(domain)
	}
}

func day(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

// start has the domain's policy fetched unless that is already under way. The
// channel is closed when it is over, at once if it cannot be begun.
func (c *stsCache) start(domain, id string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if done := c.fetching[domain]; done != nil {
		return done
	}
	done := make(chan struct{})
	if c.closed || !c.hasRoom(domain) {
		fetches.WithLabelValues("refused").Inc()
		close(done)
		return done
	}
	c.fetching[domain] = done
	c.running.Go(func() {
		changed := c.fetch(domain, id)
		c.mu.Lock()
		delete(c.fetching, domain)
		c.mu.Unlock()
		close(done)
		if changed {
			c.changed(domain)
		}
	})
	return done
}

// hasRoom says whether a fetch for domain may be begun.
func (c *stsCache) hasRoom(domain string) bool {
	if len(c.fetching) >= maxFetches {
		return false
	}
	org, same := dmarc.BuiltinSuffixes{}.OrganizationalDomain(domain), 0
	for other := range c.fetching {
		if ruapost.Within(other, org) {
			same++
		}
	}
	return same < maxOrganizationFetches
}

// fetch gets the domain's policy and keeps it. It returns whether that is another one than
// was known.
func (c *stsCache) fetch(domain, id string) (changed bool) {
	var policy *mtasts.Policy
	var err error
	if perr := resolver.Safely(domain, func() { policy, err = c.fetcher.Load().Fetch(c.ctx, domain) }); perr != nil {
		err = perr
	}
	now := c.now()
	var known *mtasts.Policy
	c.update(domain, func(e *stsEntry) *stsEntry {
		known = e.current(now)
		fresh := &stsEntry{
			policy: policy, id: id, looked: true,
			fetched: now, used: day(now),
		}
		if e != nil && e.policy != nil {
			fresh.used = e.used
		}
		if err == nil {
			fresh.expires = now.Add(max(policy.MaxAge, minPolicyLifetime))
			return fresh
		}
		if fresh = new(stsEntry); e != nil {
			*fresh = *e
		}
		fresh.failedID, fresh.failedAt, fresh.failure = id, now, err
		return fresh
	})
	if err != nil {
		fetches.WithLabelValues("failed").Inc()
		slog.Warn("MTA-STS policy cannot be fetched", "domain", domain, "id", id, "known", known != nil, "err", err)
		return false
	}
	fetches.WithLabelValues("ok").Inc()
	c.keep(domain)
	if known != nil && known.Mode == policy.Mode && slices.Equal(known.MX, policy.MX) && slices.Equal(known.Text, policy.Text) {
		return false
	}
	slog.Info("MTA-STS policy", "domain", domain, "mode", policy.Mode, "mx", policy.MX[:min(len(policy.MX), 5)], "patterns", len(policy.MX), "id", id, "max_age", policy.MaxAge)
	// Without a known one who asks waits for this, or has not got an answer that lasts.
	return known != nil
}

// keep writes what is known of domain to the store, without anybody waiting for it.
func (c *stsCache) keep(domain string) {
	if c.store == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return // the next process fetches it again
	}
	c.running.Go(func() {
		ctx, cancel := context.WithTimeout(c.ctx, keepTimeout)
		defer cancel()
		c.keeping.Lock() // or an older policy could come after a newer one
		defer c.keeping.Unlock()
		e := c.known(domain)
		if e == nil || e.policy == nil {
			return
		}
		c.writes.begin()
		err := c.store.PutSTSPolicy(ctx, e.kept(domain))
		c.writes.end(err == nil)
		if err == nil {
			return
		}
		storeErrors.Inc()
		slog.Warn("MTA-STS policy is kept in memory only", "domain", domain, "err", err)
		c.update(domain, func(e *stsEntry) *stsEntry { // the next use tries again
			if e == nil {
				return nil
			}
			again := *e
			again.used = time.Time{}
			return &again
		})
	})
}
