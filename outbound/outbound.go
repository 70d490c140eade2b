// Package outbound answers Postfix's question for a TLS policy (smtp_tls_policy_maps)
// from what a domain publishes, DANE or MTA-STS, and turns what Postfix tells of its TLS
// sessions, in TLSRPT datagrams or in its log, into Sessions. It also notes which
// domains mail is sent to.
//
// An error answer, or none, makes Postfix defer the mail. So there is none, unless the
// administrator asks for it: where nothing is known, the answer is NOTFOUND and main.cf
// decides.
package outbound

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ruapost"
	"ruapost/dane"
	"ruapost/mtasts"
	"ruapost/socketmap"
)

// The names of the tables, the third part of socketmap:unix:PATH:NAME. Postfix
// before 3.10 defers mail when an answer has the attributes for TLS reports, so
// those are only given to who asks for them.
const (
	TableQuery       = "QUERY"
	TableQueryTLSRPT = "QUERYwithTLSRPT"
)

const queryTimeout = 5 * time.Second // Postfix waits up to 100 s, its mail does too

// Resolver is what this package asks of DNS.
type Resolver interface {
	dane.Resolver
	mtasts.Resolver
}

// Policies answers queries. Create it with NewPolicies.
type Policies struct {
	// Destinations, unless it is nil, is told of the domains that are asked about, and
	// Problems of what keeps a policy from being applied.
	Destinations *Destinations
	Problems     *Problems

	resolver   Resolver
	settings   atomic.Pointer[Settings]
	sts        *stsCache
	answers    *answers
	complained atomic.Int64 // when something was last logged, Unix time
}

// NewPolicies returns a Policies that fetches MTA-STS policies with f and keeps them in
// store, or in memory only if that is nil.
func NewPolicies(r Resolver, f *mtasts.Fetcher, store PolicyStore, s Settings) *Policies {
	p := &Policies{resolver: r}
	p.use(s)
	p.answers = newAnswers(p.evaluate)
	p.sts = newSTSCache(r, f, store, func(domain string) {
		if _, ok := p.answers.GetIfPresent(domain); ok {
			p.answers.Refresh(context.Background(), domain, p.answers.loader)
		}
	})
	return p
}

// Reload changes the settings and the fetcher. Queries that are being answered may still
// get answers by the old ones, which are forgotten.
func (p *Policies) Reload(f *mtasts.Fetcher, s Settings) {
	p.sts.fetcher.Store(f)
	p.use(s)
	p.answers.InvalidateAll()
}

func (p *Policies) use(s Settings) {
	s.nothing = answer{verdict: nothing, settings: &s}
	p.settings.Store(&s)
}

// Close ends the fetches that are under way.
func (p *Policies) Close() {
	p.sts.close()
	p.answers.StopAllGoroutines()
}

// Answer is the socketmap.Handler.
func (p *Policies) Answer(ctx context.Context, table, key string) socketmap.Reply {
	began := time.Now()
	reply, counter := p.answer(ctx, table, key)
	counter.Inc()
	queryTime.Observe(time.Since(began).Seconds())
	return reply
}

func (p *Policies) answer(ctx context.Context, table, key string) (socketmap.Reply, prometheus.Counter) {
	if table != TableQuery && table != TableQueryTLSRPT {
		p.complain(table)
		return socketmap.NotFound(), queriesUnknownTable
	}
	domain, ok := policyDomain(key)
	if !ok {
		return socketmap.NotFound(), queriesNoDomain
	}
	a, err := p.current(ctx, domain)
	switch {
	case err != nil: // ctx has ended, or the evaluation panicked
		return socketmap.NotFound(), queriesUnknown
	case table == TableQueryTLSRPT:
		return a.tlsrpt, a.counter
	}
	return a.plain, a.counter
}

// current returns the answer for domain by the settings that are in force. An error is that
// of ctx, or that finding it panicked.
func (p *Policies) current(ctx context.Context, domain string) (*answer, error) {
	a, err := p.answers.get(ctx, domain)
	if err == nil && a.settings != p.settings.Load() { // was being found when they changed
		p.answers.Invalidate(domain)
		a, err = p.answers.get(ctx, domain)
	}
	return a, err
}

// evaluate finds the answer for a delivery to domain; old is the answer until now, or nil.
func (p *Policies) evaluate(ctx context.Context, domain string, old *answer) *answer {
	if p.Destinations != nil {
		p.Destinations.Add(domain)
	}
	settings := p.settings.Load()
	f := p.find(ctx, domain, settings)
	a := &answer{verdict: f.verdict(settings), settings: settings, since: time.Now().Unix()}
	if a.trouble && settings.DeferOnError && a.level == LevelNone {
		if p.mayComplain() {
			slog.Warn("policy: mail waits, since the policy cannot be found out (on_error)", "domain", domain,
				"mx", f.hostsErr, "record", f.sts.recordErr, "policy", f.sts.fetchErr, "store", f.sts.storeErr)
		}
	}
	if old != nil {
		f.log(a.verdict, old.verdict)
		if a.before = old.verdict; a.sameAs(old.verdict) {
			a.since, a.before = old.since, old.before
		}
	}
	if p.Problems != nil {
		p.Problems.add(f, a.verdict)
	}
	if a.verdict == nothing && a.before == nil {
		return &settings.nothing
	}
	return a
}

func (p *Policies) complain(table string) {
	if p.mayComplain() {
		slog.Warn("policy: query for an unknown table, see smtp_tls_policy_maps in main.cf",
			"table", ruapost.Clean(table, 64), "known", TableQuery+", "+TableQueryTLSRPT)
	}
}

// mayComplain says whether what keeps mail waiting may be logged: once a minute.
func (p *Policies) mayComplain() bool {
	now, last := time.Now().Unix(), p.complained.Load()
	return now-last >= int64(complainEach/time.Second) && p.complained.CompareAndSwap(last, now)
}

// policyDomain returns the domain that key asks about. Postfix asks about whatever
// the next hop is, and about its parent domains with a leading dot; a host in
// brackets, one with a port or an address is a relay host, whose MTA-STS policy, if
// any, does not apply (RFC 8461 3.4).
func policyDomain(key string) (domain string, ok bool) {
	if strings.HasPrefix(key, ".") || strings.ContainsAny(key, "[]:/") {
		return "", false
	}
	domain, err := ruapost.ParseDomain(key)
	return domain, err == nil && ruapost.Labels(domain) > 1
}
