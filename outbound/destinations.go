package outbound

import (
	"context"
	"hash/maphash"
	"log/slog"
	"sync"
	"time"

	"ruapost/dmarc"
	"ruapost/resolver"
)

const (
	// maxNoted is the number of domains that are remembered as noted today. One more,
	// and all are noted once again.
	maxNoted = 100_000
	// maxToNote is the number of domains that may wait to be noted. Others are noted
	// with the next mail to them.
	maxToNote = 1000
	// noters is the number of domains that are looked up at a time, for noteTimeout
	// at most.
	noters      = 32
	noteTimeout = 10 * time.Second
)

// DestinationRecorder is what Destinations asks of the store. RecordDestinations
// returns when it is on disk that mail was sent to these organizational domains, or
// ctx ends.
type DestinationRecorder interface {
	RecordDestinations(ctx context.Context, domains []string, at time.Time) error
}

// Destinations notes once a day which domains mail is sent to, for the milter: a domain
// that this system writes to is worth a report about mail that only claims to be from
// there. Create it with NewDestinations.
type Destinations struct {
	evaluator *dmarc.Evaluator
	now       func() time.Time
	queue     chan string
	seed      maphash.Seed

	mu    sync.Mutex
	today time.Time
	noted map[uint64]bool // hashes of those that are noted today, or about to be
}

// NewDestinations returns a Destinations that finds organizational domains by e.
func NewDestinations(e *dmarc.Evaluator) *Destinations {
	return &Destinations{evaluator: e, now: time.Now, queue: make(chan string, maxToNote), seed: maphash.MakeSeed()}
}

// Add says that mail is sent to domain. It does not wait for anything.
func (d *Destinations) Add(domain string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if today := d.now().UTC().Truncate(24 * time.Hour); today != d.today || len(d.noted) >= maxNoted {
		d.today, d.noted = today, map[uint64]bool{}
	}
	hash := maphash.String(d.seed, domain)
	if d.noted[hash] {
		return
	}
	select {
	case d.queue <- domain:
		d.noted[hash] = true
	default:
		destinations.WithLabelValues("missed").Inc()
	}
}

// Run notes what is added until ctx ends.
func (d *Destinations) Run(ctx context.Context, rec DestinationRecorder) {
	var workers sync.WaitGroup
	for range noters {
		workers.Go(func() {
			for {
				select {
				case domain := <-d.queue:
					resolver.Safely(domain, func() { d.note(ctx, rec, domain) })
				case <-ctx.Done():
					return
				}
			}
		})
	}
	workers.Wait()
}

func (d *Destinations) note(ctx context.Context, rec DestinationRecorder, domain string) {
	ctx, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	organization, err := d.evaluator.OrganizationalDomain(ctx, domain)
	if err == nil {
		err = rec.RecordDestinations(ctx, []string{organization}, d.now())
	}
	if err == nil {
		destinations.WithLabelValues("noted").Inc()
		return
	}
	slog.Debug("policy: destination not noted", "domain", domain, "err", err)
	destinations.WithLabelValues("missed").Inc()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.noted, maphash.String(d.seed, domain)) // with the next mail
}
