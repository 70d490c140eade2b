// Package outbound answers Postfix's question for a TLS policy (smtp_tls_policy_maps)
// from what a domain publishes, DANE or MTA-STS, and turns Postfix's TLSRPT
// datagrams into Sessions. It also notes which domains mail is sent to.
//
// An error answer, or none, makes Postfix defer the mail. So there is none: where
// nothing is known, the answer is NOTFOUND and main.cf decides.
package outbound

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"ruapost"
	"ruapost/dane"
	"ruapost/mtasts"
	"ruapost/resolver"
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
	// Destinations, unless it is nil, is told of the domains that are asked about.
	Destinations *Destinations

	resolver   Resolver
	sts        *stsCache
	complained atomic.Int64 // when an unknown table was last asked for, Unix time
}

// NewPolicies returns a Policies that fetches MTA-STS policies with f.
func NewPolicies(r Resolver, f *mtasts.Fetcher) *Policies {
	return &Policies{resolver: r, sts: newSTSCache(r, f)}
}

// Close ends the fetches that are under way.
func (p *Policies) Close() { p.sts.close() }

// Answer is the socketmap.Handler.
func (p *Policies) Answer(ctx context.Context, table, key string) socketmap.Reply {
	began := time.Now()
	reply, kind := p.answer(ctx, table, key)
	queries.WithLabelValues(kind).Inc()
	queryTime.Observe(time.Since(began).Seconds())
	return reply
}

// answer returns the reply and what kind it is, for counting.
func (p *Policies) answer(ctx context.Context, table, key string) (reply socketmap.Reply, kind string) {
	if table != TableQuery && table != TableQueryTLSRPT {
		now, last := time.Now().Unix(), p.complained.Load()
		if now-last >= int64(complainEach/time.Second) && p.complained.CompareAndSwap(last, now) {
			slog.Warn("policy: query for an unknown table, see smtp_tls_policy_maps in main.cf",
				"table", ruapost.Clean(table, 64), "known", TableQuery+", "+TableQueryTLSRPT)
		}
		return socketmap.NotFound(), "unknown-table"
	}
	domain, ok := policyDomain(key)
	if !ok {
		return socketmap.NotFound(), "no-domain"
	}
	if p.Destinations != nil {
		p.Destinations.Add(domain)
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	return p.answerFor(ctx, domain, table == TableQueryTLSRPT)
}

// answerFor returns the reply about domain and what kind it is.
func (p *Policies) answerFor(ctx context.Context, domain string, tlsrpt bool) (reply socketmap.Reply, kind string) {
	// Both at once: most domains have neither, and then both have to be waited for.
	sts := make(chan *mtasts.Policy, 1)
	go func() {
		var policy *mtasts.Policy // stays nil if that panics
		resolver.Safely(domain, func() { policy = p.sts.policy(ctx, domain) })
		sts <- policy
	}()
	found, err := dane.Lookup(ctx, p.resolver, domain)
	if err != nil {
		// Postfix will not find the MX hosts either. An MTA-STS policy that is known
		// still holds.
		slog.Debug("policy: DANE lookup failed", "domain", domain, "err", err)
		found = &dane.Result{}
	}
	level, beside := found.Level(false), found.Level(true)
	if level == dane.LevelNone || level != beside { // else a policy makes no difference
		if policy := <-sts; policy != nil && policy.Mode == mtasts.ModeEnforce {
			level = beside
			if value := secureReply(domain, policy, tlsrpt); level == dane.LevelNone && value != "" {
				return socketmap.OK(value), "secure"
			}
		}
	}
	if level == dane.LevelNone {
		return socketmap.NotFound(), "none"
	}
	return socketmap.OK(string(level)), string(level)
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
