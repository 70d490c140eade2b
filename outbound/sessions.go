package outbound

import (
	"context"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"

	"ruapost"
	"ruapost/resolver"
	"ruapost/tlsrpt"
	"ruapost/totals"
)

const (
	// maxHosts is the number of MX hosts that are remembered to ask for reports, or not,
	// for hostFor, or for hostRetry if that could not be found out.
	maxHosts  = 10_000
	hostFor   = 10 * time.Minute
	hostRetry = time.Minute
	// maxForHosts is the number of sessions that may wait for that to be found out.
	maxForHosts = 10_000
)

// Sessions decides into which reports TLS sessions go, and records them. Create it with
// NewSessions.
type Sessions struct {
	policies *Policies
	resolver tlsrpt.Resolver
	rec      Recorder
	// Totals, unless nil, counts all sessions, each once, also those that are not reported.
	Totals *totals.Counter
	// hosts are the MX hosts that are known to ask for reports, or not to.
	hosts *otter.Cache[string, bool]
	// waiting are sessions with hosts of which that is not known.
	waiting chan ruapost.Session
}

// NewSessions returns a Sessions that records into rec.
func NewSessions(p *Policies, r tlsrpt.Resolver, rec Recorder) *Sessions {
	return &Sessions{
		policies: p, resolver: r, rec: rec, waiting: make(chan ruapost.Session, maxForHosts),
		hosts: otter.Must(&otter.Options[string, bool]{
			MaximumSize:      maxHosts,
			ExpiryCalculator: otter.ExpiryCreating[string, bool](hostFor),
		}),
	}
}

// RecordSessions records the sessions in all reports that they are part of: at once in
// those of their domains, and in those of MX hosts when it is known which there are.
func (r *Sessions) RecordSessions(ctx context.Context, sessions []ruapost.Session) error {
	return r.rec.RecordSessions(ctx, r.forReports(sessions))
}

// Run finds out which MX hosts ask for reports, until ctx ends; then it does so, for
// lastRecording at most, for what still waits. By then nothing should be recorded any more.
func (r *Sessions) Run(ctx context.Context) {
	working, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastRecording, cancel) })()
	var workers sync.WaitGroup
	for range noters {
		workers.Go(func() {
			for s, ok := r.next(ctx); ok; s, ok = r.next(ctx) {
				resolver.Safely(s.Domain, func() { r.recordForHost(working, s) })
			}
		})
	}
	workers.Wait()
}

// next returns the next session that waits, false when ctx has ended and none does.
func (r *Sessions) next(ctx context.Context) (s ruapost.Session, ok bool) {
	select {
	case s = <-r.waiting:
		return s, true
	case <-ctx.Done():
	}
	select {
	case s = <-r.waiting:
		return s, true
	default:
		return s, false
	}
}

// recordForHost records s, whose domain is an MX host, if that asks for reports.
func (r *Sessions) recordForHost(ctx context.Context, s ruapost.Session) {
	ctx, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	if !r.asksForReports(ctx, s.Domain) {
		return
	}
	if err := r.rec.RecordSessions(ctx, []ruapost.Session{s}); err != nil {
		droppedByStore.Inc()
	}
}

// forReports returns the sessions as they stand in reports: without those of domains that
// are not to get any, and again for each MX host that asks for reports of its own.
func (r *Sessions) forReports(sessions []ruapost.Session) []ruapost.Session {
	settings := r.policies.settings.Load()
	var all []ruapost.Session
	for _, s := range sessions {
		reported := !settings.override(s.Domain).NoReport
		if reported {
			r.judgeHosts(&s)
			all = append(all, s)
		}
		if !s.Uncounted {
			r.Totals.Add(s.Time, ruapost.KindTLS, ruapost.SessionOutcome(s.Policy.Type, s.Failed))
		}
		// The policy domain of DANE is the MX host, which may serve many recipient domains
		// and belong to somebody else than they do (RFC 8460 1.1).
		host := s.Policy.Domain
		if s.Policy.Type != ruapost.PolicyTLSA || host == s.Domain || settings.override(host).NoReport {
			continue
		}
		s.Domain = host
		if asks, ok := r.hosts.GetIfPresent(host); asks {
			all = append(all, s)
		} else if !ok {
			select {
			case r.waiting <- s:
			default:
				droppedForHosts.Inc()
			}
		}
	}
	return all
}

// judgeHosts makes s a failed session if it can only have been with an MX host outside
// the MTA-STS policy: at a level where nothing is enforced Postfix does not look.
func (r *Sessions) judgeHosts(s *ruapost.Session) {
	if s.Failed || s.Uncounted || s.Policy.Type != ruapost.PolicySTS {
		return
	}
	a, ok := r.policies.answers.GetIfPresent(s.Domain)
	if !ok {
		return
	}
	if v := a.at(s.Time); v.level == LevelTesting && v.hostOutside {
		s.Failed = true
		s.Failures = []ruapost.TLSFailure{{Result: ruapost.ResultValidationFailure, Reason: reasonMXOutside}}
	}
}

// asksForReports says whether an MX host has a TLSRPT record of its own. What cannot be
// found out is taken for a no: nothing is lost but this host's own view.
func (r *Sessions) asksForReports(ctx context.Context, host string) bool {
	if asks, ok := r.hosts.GetIfPresent(host); ok {
		return asks
	}
	record, err := tlsrpt.LookupRecord(ctx, r.resolver, host)
	asks := err == nil && len(record.RUA) > 0
	r.hosts.Set(host, asks)
	if resolver.IsTemporary(err) {
		r.hosts.SetExpiresAfter(host, hostRetry)
	}
	return asks
}
