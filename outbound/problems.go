package outbound

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/maypok86/otter/v2"

	"ruapost"
	"ruapost/dane"
	"ruapost/maillog"
	"ruapost/mtasts"
	"ruapost/resolver"
	"ruapost/tlsrpt"
)

const (
	// problemEach is how often the same problem of a domain is counted at most: what a
	// domain's owner needs is that there is one, and a query is not a delivery.
	problemEach = 5 * time.Minute
	// maxProblems is the number of problems that may wait to be noted, maxRecent that of
	// those that are remembered for problemEach.
	maxProblems = 1000
	maxRecent   = 10_000
)

// Reason codes for what no RFC has a word for (failure-reason-code, RFC 8460 4.4): the
// same as for lines of Postfix's log where there are such.
const (
	reasonMXOutside    = maillog.ReasonMXMismatch
	reasonTLSALookup   = "TLSA-lookup-error"
	reasonUnusable     = "TLSA-records-unusable"
	reasonNoTLSA       = "no-TLSA-records-found"
	reasonNotDNSSEC    = "non-DNSSEC-destination"
	reasonCertificate  = "certificate-not-valid"
	reasonPolicySyntax = "policy-syntax-error"
)

// Problems notes what kept a policy from being applied to a delivery, and of which
// Postfix cannot tell: each as a Session that is Uncounted. Create it with NewProblems.
type Problems struct {
	// FromLog says that Postfix's log tells of what its own policy lookups run into.
	FromLog bool

	resolver tlsrpt.Resolver
	queue    chan ruapost.Session
	recent   *otter.Cache[problemKey, struct{}]
}

type problemKey struct {
	domain string
	ruapost.TLSFailure
}

// NewProblems returns a Problems that looks up with r who wants reports.
func NewProblems(r tlsrpt.Resolver) *Problems {
	return &Problems{
		resolver: r,
		queue:    make(chan ruapost.Session, maxProblems),
		recent: otter.Must(&otter.Options[problemKey, struct{}]{
			MaximumSize:      maxRecent,
			ExpiryCalculator: otter.ExpiryCreating[problemKey, struct{}](problemEach),
		}),
	}
}

// add takes the problems that were found for a delivery. It does not wait.
func (p *Problems) add(f *finding, v *verdict) {
	for _, s := range f.problems(v, p.FromLog) {
		if _, fresh := p.recent.SetIfAbsent(problemKey{s.Domain, s.Failures[0]}, struct{}{}); !fresh {
			continue
		}
		s.Time = time.Now()
		select {
		case p.queue <- s:
		default:
			problemsTotal.WithLabelValues("missed").Inc()
		}
	}
}

// Run has what is added recorded until ctx ends.
func (p *Problems) Run(ctx context.Context, rec Recorder) {
	var workers sync.WaitGroup
	for range noters {
		workers.Go(func() {
			for {
				select {
				case s := <-p.queue:
					resolver.Safely(s.Domain, func() { p.note(ctx, rec, s) })
				case <-ctx.Done():
					return
				}
			}
		})
	}
	workers.Wait()
}

// note records s if its domain asks for reports.
func (p *Problems) note(ctx context.Context, rec Recorder, s ruapost.Session) {
	ctx, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	record, err := tlsrpt.LookupRecord(ctx, p.resolver, s.Domain)
	switch {
	case errors.Is(err, tlsrpt.ErrNoRecord), errors.Is(err, tlsrpt.ErrMultipleRecords), err == nil && len(record.RUA) == 0:
		problemsTotal.WithLabelValues("unwanted").Inc()
		return
	case err == nil:
		err = rec.RecordSessions(ctx, []ruapost.Session{s})
	}
	if err != nil {
		problemsTotal.WithLabelValues("missed").Inc()
		slog.Debug("policy: problem not noted", "domain", s.Domain, "result", s.Failures[0].Result, "err", err)
		return
	}
	problemsTotal.WithLabelValues("noted").Inc()
}

// problems returns what Postfix cannot tell of, if v is what a delivery is done by. What
// is in Postfix's log is left out if that is read.
func (f *finding) problems(v *verdict, fromLog bool) []ruapost.Session {
	if f.override.NoReport {
		return nil
	}
	var all []ruapost.Session
	add := func(policy ruapost.TLSPolicy, failure ruapost.TLSFailure) {
		all = append(all, ruapost.Session{
			Domain: f.domain, Policy: policy, Failures: []ruapost.TLSFailure{failure}, Uncounted: true,
		})
	}
	if result := mtasts.ResultType(f.sts.fetchErr); result != "" && (f.sts.policy == nil || f.sts.policy.Mode != mtasts.ModeNone) {
		add(stsPolicy(f.domain, f.sts.policy), ruapost.TLSFailure{Result: result, Reason: fetchReason(f.sts.fetchErr)})
	}
	if v.level == LevelSTS && v.hostOutside && !fromLog {
		for _, h := range f.hosts.Hosts {
			add(stsPolicy(f.domain, v.policy), ruapost.TLSFailure{
				Result: ruapost.ResultValidationFailure, ReceivingMX: h.Name, Reason: reasonMXOutside,
			})
		}
	}
	for _, h := range f.hosts.Hosts {
		if result, reason := f.tlsaProblem(&h, v.level, fromLog); result != "" {
			add(tlsaPolicy(&h), ruapost.TLSFailure{Result: result, ReceivingMX: h.Name, Reason: reason})
		}
	}
	return all
}

// tlsaProblem says what is wrong with a host's TLSA records, if that has an effect at
// this level.
func (f *finding) tlsaProblem(h *dane.Host, level Level, fromLog bool) (result ruapost.TLSResultType, reason string) {
	switch {
	case len(h.TLSA) > 0 || len(h.Addrs) == 0 && !h.Secure:
	case level != LevelDANE && level != LevelDANEOnly:
		// Whoever sends by an MTA-STS policy does not need them.
	case h.Secure && h.Err != nil:
		// Of timeouts and the like RFC 8460 4.3.4 does not want to know. Only if the other
		// hosts are no better is a delivery sure to wait.
		if !fromLog && resolver.IsServerFailure(h.Err) && !slices.ContainsFunc(f.hosts.Hosts, reachable) {
			return ruapost.ResultDNSSECInvalid, reasonTLSALookup
		}
	case len(h.Records) > 0:
		// Of records that OpenSSL cannot use Postfix tells itself.
		if !slices.ContainsFunc(h.Records, func(r resolver.TLSA) bool { return r.Usage > 1 }) {
			return ruapost.ResultTLSAInvalid, reasonUnusable
		}
	case f.override.Level == LevelDANEOnly && !fromLog:
		if !f.hosts.MXSecure || !h.Secure {
			return ruapost.ResultDANERequired, reasonNotDNSSEC
		}
		return ruapost.ResultDANERequired, reasonNoTLSA
	}
	return "", ""
}

// reachable says whether nothing in the DNS keeps mail from a host.
func reachable(h dane.Host) bool { return h.Err == nil && len(h.Addrs) > 0 }

// stsPolicy is an MTA-STS policy as reports tell of it; policy may be nil.
func stsPolicy(domain string, policy *mtasts.Policy) ruapost.TLSPolicy {
	p := ruapost.TLSPolicy{Type: ruapost.PolicySTS, Domain: domain}
	if policy != nil {
		p.Strings, p.MXHosts = policy.Text, policy.MX
	}
	return p
}

// tlsaPolicy is a host's TLSA record set as reports tell of it.
func tlsaPolicy(h *dane.Host) ruapost.TLSPolicy {
	return ruapost.TLSPolicy{Type: ruapost.PolicyTLSA, Domain: cmp.Or(h.TLSABase, h.Name), Strings: tlsaRecords(h)}
}

// tlsaRecords are a host's TLSA records in the form of reports (RFC 8460 4.5), in an order
// that does not depend on the answer.
func tlsaRecords(h *dane.Host) []string {
	var all []string
	for _, r := range h.Records {
		all = append(all, r.String())
	}
	slices.Sort(all)
	return all
}

// fetchReason is a short word for why a policy could not be fetched: one that is the same
// each time, unlike the error.
func fetchReason(err error) string {
	if cert, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return certificateReason(cert.Err)
	}
	netErr, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, mtasts.ErrPolicySyntax):
		return reasonPolicySyntax
	case resolver.IsNotFound(err):
		return "policy-host-not-found"
	case resolver.IsTemporary(err):
		return "policy-host-lookup-failed"
	case errors.Is(err, context.DeadlineExceeded), isNet && netErr.Timeout():
		return "timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection-refused"
	case mtasts.Answered(err):
		return "policy-not-served"
	}
	return "connection-failed"
}

func certificateReason(err error) string {
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return string(ruapost.ResultCertificateHostMismatch)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return string(ruapost.ResultCertificateNotTrusted)
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return string(ruapost.ResultCertificateExpired)
	}
	return reasonCertificate
}
