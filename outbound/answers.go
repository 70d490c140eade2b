package outbound

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/maypok86/otter/v2"
)

const (
	// maxAnswerBytes bounds the memory for answers, approximately: 150,000 domains without a
	// policy.
	maxAnswerBytes = 32 << 20
	// answerWeight and verdictWeight are what an answer, and one that is not the same for
	// many domains, take besides their octets.
	answerWeight  = 192
	verdictWeight = 256

	// For freshFor an answer is given as it is; beyond that it is still given while a new
	// one is found, so that deliveries need not wait; after staleFor it is forgotten. It
	// adds to what the DNS itself lets answers live. If there was trouble it is the much
	// shorter troubleFor.
	freshFor   = 5 * time.Minute
	staleFor   = 15 * time.Minute
	troubleFor = 5 * time.Second
)

// answer is what is kept of a domain.
type answer struct {
	*verdict
	// before is the verdict until since, Unix seconds, or nil if that is long ago: sessions
	// are judged by what held when they began.
	since  int64
	before *verdict
	// settings are those that it was found by.
	settings *Settings
}

// at returns the verdict that held at t.
func (a *answer) at(t time.Time) *verdict {
	if a.before != nil && t.Unix() < a.since {
		return a.before
	}
	return a.verdict
}

// answers is the cache of answers by domain. It finds those that it does not have, and
// those that are no longer fresh behind the back of who asks.
type answers struct {
	*otter.Cache[string, *answer]
	loader loader
}

func newAnswers(find func(ctx context.Context, domain string, old *answer) *answer) *answers {
	a := &answers{}
	a.Cache = otter.Must(&otter.Options[string, *answer]{
		MaximumWeight: maxAnswerBytes,
		Weigher: func(domain string, a *answer) uint32 {
			return uint32(answerWeight + len(domain) + a.verdict.weight() + a.before.weight())
		},
		ExpiryCalculator: otter.ExpiryWritingFunc(func(e otter.Entry[string, *answer]) time.Duration {
			return e.Value.lifetime(time.Now())
		}),
		RefreshCalculator: otter.RefreshWriting[string, *answer](freshFor),
		OnAtomicDeletion: func(e otter.DeletionEvent[string, *answer]) {
			if e.Cause == otter.CauseOverflow {
				limitAnswers.Inc()
			}
		},
		Logger: &otter.NoopLogger{},
	})
	a.loader = find
	return a
}

// weight is the memory that the verdict takes, approximately.
func (v *verdict) weight() int {
	if v == nil || v == nothing {
		return 0
	}
	n := verdictWeight + len(v.plain.Data()) + len(v.tlsrpt.Data())
	if v.policy != nil {
		for _, s := range slices.Concat(v.policy.Text, v.policy.MX) {
			n += stringWeight + len(s)
		}
	}
	return n
}

// lifetime is how long the answer may be given.
func (a *answer) lifetime(now time.Time) time.Duration {
	switch {
	case a.trouble:
		return troubleFor
	case !a.expires.IsZero():
		return max(min(staleFor, a.expires.Sub(now)), time.Second)
	}
	return staleFor
}

// loader finds answers for the cache.
type loader func(ctx context.Context, domain string, old *answer) *answer

func (l loader) Load(ctx context.Context, domain string) (*answer, error) {
	return l(ctx, domain, nil), nil
}

// Reload keeps the old answer if there is trouble: it is given until staleFor is over.
func (l loader) Reload(ctx context.Context, domain string, old *answer) (*answer, error) {
	a := l(ctx, domain, old)
	if a.trouble {
		return nil, errTrouble
	}
	return a, nil
}

var errTrouble = errors.New("trouble with DNS or HTTPS")

// get returns the answer for domain. An error is that of ctx.
func (a *answers) get(ctx context.Context, domain string) (*answer, error) {
	return a.Get(ctx, domain, a.loader)
}
