package outbound

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"ruapost"
	"ruapost/dane"
	"ruapost/maillog"
	"ruapost/resolver"
	"ruapost/tlsrpt"
)

const (
	// Journal is the source of log lines that is the systemd journal.
	Journal = "journal"
	// logLookups is how many events are looked at at a time, for logTimeout at most: one
	// domain whose name servers are silent must not keep others' sessions waiting.
	logLookups = 128
	logTimeout = 10 * time.Second
	// logTries is how often events are looked at if the DNS fails for all of them, as it
	// may when a host has just started.
	logTries = 5
)

var journalctl = []string{"journalctl"}

// PositionRecorder is what Logs asks of the store.
type PositionRecorder interface {
	// Position returns how far the source was read, "" if it never was.
	Position(ctx context.Context, source string) (string, error)
	// RecordSessionsAt is RecordSessions, and notes together with the sessions how far
	// the source was read.
	RecordSessionsAt(ctx context.Context, sessions []ruapost.Session, at ruapost.Position) error
}

// Logs turns Postfix's log into TLS sessions. Its lines do not tell which policy
// applied: that follows from the answer that Postfix got, and from what the DNS says
// about the mail servers.
type Logs struct {
	Policies *Policies
	Sessions *Sessions
	Store    PositionRecorder
	// Resolver tells who asks for reports.
	Resolver tlsrpt.Resolver
	// Sources are Journal, or paths of log files.
	Sources []string
	// ReportFrom is the envelope sender of reports, whose deliveries do not count.
	ReportFrom string

	// byDatagram says of hosts, as the log names them, when their Postfix was last seen to
	// tell of a session by a datagram, too: those that it does not tell of are not to be
	// reported.
	byDatagram sync.Map
}

// Run reads the sources until ctx ends.
func (l *Logs) Run(ctx context.Context) {
	var sources sync.WaitGroup
	for _, source := range l.Sources {
		sources.Go(func() { l.read(ctx, source) })
	}
	sources.Wait()
}

func (l *Logs) read(ctx context.Context, source string) {
	position, err := l.position(ctx, source)
	if err != nil {
		return // ctx has ended
	}
	deliver := maillog.New(l.ReportFrom).Deliver(l.recorder(ctx, source))
	slog.Info("reading Postfix's log", "source", source, "position", ruapost.Clean(position, 200))
	if source == Journal {
		maillog.Journal(ctx, journalctl, position, deliver)
	} else {
		maillog.Follow(ctx, source, position, deliver)
	}
}

// recorder returns what records the events of a source.
func (l *Logs) recorder(ctx context.Context, source string) func(events []maillog.Event, position string) error {
	tries := 0 // for the events that are next
	return func(events []maillog.Event, position string) error {
		tries++
		sessions, err := l.sessions(ctx, events)
		if err != nil && tries < logTries {
			return err
		}
		tries = 0
		// This waits for as long as it takes: what was given to the store once must not be
		// given again. Nor must what is counted on the way there.
		return l.record(ctx, l.Sessions.forReports(sessions), ruapost.Position{Source: source, At: position})
	}
}

// position asks the store until it answers, how far the source was read.
func (l *Logs) position(ctx context.Context, source string) (string, error) {
	for {
		asked, cancel := context.WithTimeout(ctx, keepTimeout)
		position, err := l.Store.Position(asked, source)
		cancel()
		if err == nil {
			return position, nil
		}
		slog.Warn("Postfix's log is not read yet: the store does not say how far it was read", "source", source, "err", err)
		select {
		case <-time.After(readRetry):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// record records sessions, and how far the log was read.
func (l *Logs) record(ctx context.Context, sessions []ruapost.Session, at ruapost.Position) error {
	err := l.Store.RecordSessionsAt(ctx, sessions, at)
	if errors.Is(err, ruapost.ErrNoRoom) { // for the position; the sessions are recorded
		slog.Error("how far Postfix's log was read cannot be kept: after a restart it is read from its end", "source", at.Source, "err", err)
		return nil
	}
	return err
}

// sessions returns what the events are for the domains of their recipients. An error is
// returned if ctx has ended, or if the DNS fails for all of them; without one, what could
// not be found out is left out.
func (l *Logs) sessions(ctx context.Context, events []maillog.Event) ([]ruapost.Session, error) {
	for i := range events {
		if events[i].Datagram {
			l.byDatagram.Store(events[i].Host, events[i].Time)
		}
	}
	found := make([][]ruapost.Session, len(events))
	errs := make([]error, len(events))
	var lookups sync.WaitGroup
	turns := make(chan struct{}, logLookups)
	for i := range events {
		turns <- struct{}{}
		lookups.Go(func() {
			defer func() { <-turns }()
			ctx, cancel := context.WithTimeout(ctx, logTimeout)
			defer cancel()
			perr := resolver.Safely(events[i].Domains[0], func() { found[i], errs[i] = l.look(ctx, &events[i]) })
			errs[i] = errors.Join(errs[i], perr)
		})
	}
	lookups.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	sessions := slices.Concat(found...)
	failed := slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(failed) > 0 && len(failed) == len(events) {
		return sessions, failed[0]
	}
	for i := range events {
		logEvents.WithLabelValues(logResult(&events[i], found[i])).Inc()
	}
	return sessions, nil
}

func logResult(e *maillog.Event, sessions []ruapost.Session) string {
	switch {
	case e.Kind == maillog.KindPlaintext:
		return "plaintext"
	case e.Datagram:
		return "datagram"
	case len(sessions) == 0:
		return "unreported"
	}
	return "recorded"
}

// look returns what an event is for the domains that ask for reports. If Postfix
// tells of its sessions by datagrams as well, they count there. An error says that the
// DNS failed, and that this can be told later.
func (l *Logs) look(ctx context.Context, e *maillog.Event) ([]ruapost.Session, error) {
	if e.Kind == maillog.KindPlaintext || e.Kind == maillog.KindSession && l.toldByDatagram(e) {
		return nil, nil
	}
	var all []ruapost.Session
	var errs []error
	for _, domain := range e.Domains {
		record, err := tlsrpt.LookupRecord(ctx, l.Resolver, domain)
		switch {
		case errors.Is(err, tlsrpt.ErrNoRecord), errors.Is(err, tlsrpt.ErrMultipleRecords), err == nil && len(record.RUA) == 0:
			continue
		case err != nil:
			errs = append(errs, err)
			continue
		}
		s, ok, err := l.session(ctx, domain, e)
		if ok {
			all = append(all, s)
		}
		errs = append(errs, err)
	}
	return all, errors.Join(errs...)
}

// toldByDatagram says whether Postfix tells of its sessions by datagrams: it has told of
// one in the last day.
func (l *Logs) toldByDatagram(e *maillog.Event) bool {
	last, ok := l.byDatagram.Load(e.Host)
	return ok && e.Time.Sub(last.(time.Time)) < 24*time.Hour
}

// session returns what an event is for a domain, false if it has nothing to do with the
// domain's own mail servers. An error is that of finding it out.
func (l *Logs) session(ctx context.Context, domain string, e *maillog.Event) (s ruapost.Session, ok bool, err error) {
	host, ok, err := l.host(ctx, domain, e)
	if !ok {
		return s, false, err
	}
	// Postfix may come to wait for the same answer, so it does not end with ctx.
	a, err := l.Policies.current(context.WithoutCancel(ctx), domain)
	if err != nil {
		return s, false, err
	}
	s = ruapost.Session{Time: e.Time, Domain: domain, Uncounted: e.Kind == maillog.KindProblem}
	v := a.at(e.Time)
	s.Policy = policyOf(domain, v, host, e)
	if e.Failure.Result != "" {
		s.Failed, s.Failures = !s.Uncounted, []ruapost.TLSFailure{e.Failure}
	}
	if len(s.Failures) > 0 {
		return s, true, nil
	}
	if v.level == LevelTesting {
		s.Failures = testingFailures(v, e)
		s.Failed = len(s.Failures) > 0
	}
	return s, !setAside(v, s.Policy.Type, e.Peer), nil
}

// setAside says that a session went well although its server was not authenticated, as
// the policy wants: then Postfix did not heed the policy, as for mail with "TLS-Required:
// No" (RFC 8689). There is nothing to tell of it, which Postfix 3.10.4 does not either.
func setAside(v *verdict, policy ruapost.TLSPolicyType, peer maillog.Peer) bool {
	switch {
	case v.level == LevelTesting || policy == ruapost.PolicyNone:
		return false
	case v.level == LevelDANE && peer == maillog.PeerTrusted:
		return false // by its TLSA records, though the MX answer was not secure
	}
	return peer != maillog.PeerVerified
}

// host returns the MX host of the domain that the event is about, false if it is none of
// them, or another address: mail to the domain was then routed to a relay host, or the
// domain's records were changed since, and it is not known what they were.
func (l *Logs) host(ctx context.Context, domain string, e *maillog.Event) (*dane.Host, bool, error) {
	found, err := dane.Lookup(ctx, l.Policies.resolver, domain)
	if err != nil {
		return nil, false, err
	}
	i := slices.IndexFunc(found.Hosts, func(h dane.Host) bool { return h.Name == e.MX })
	if i < 0 {
		return &dane.Host{Name: e.MX}, found.Skipped > 0, nil // it may be one that was not looked at
	}
	h := &found.Hosts[i]
	return h, !e.IP.IsValid() || slices.Contains(h.Addrs, e.IP), nil
}

// policyOf returns the policy that a session with host was held to, as Postfix 3.10
// would tell it. At a DANE level that is the host's TLSA records if they can be used, or
// if they are what failed.
func policyOf(domain string, v *verdict, host *dane.Host, e *maillog.Event) ruapost.TLSPolicy {
	switch v.level {
	case LevelSTS, LevelTesting:
		return stsPolicy(domain, v.policy)
	case LevelDANE, LevelDANEOnly:
		if len(host.TLSA) > 0 || e.Kind == maillog.KindProblem || e.Failure.Result == ruapost.ResultTLSAInvalid {
			return tlsaPolicy(host)
		}
	}
	return ruapost.TLSPolicy{Type: ruapost.PolicyNone, Domain: domain}
}

// testingFailures are those that would have kept mail from the server if the policy was
// enforced (RFC 8461 5).
func testingFailures(v *verdict, e *maillog.Event) []ruapost.TLSFailure {
	failure := ruapost.TLSFailure{ReceivingMX: e.MX}
	if e.IP.IsValid() {
		failure.ReceivingIP = e.IP.String()
	}
	switch {
	case !v.policy.Matches(e.MX):
		failure.Result, failure.Reason = ruapost.ResultValidationFailure, reasonMXOutside
	case e.Peer == maillog.PeerUntrusted:
		failure.Result = ruapost.ResultCertificateNotTrusted
	default:
		return nil
	}
	return []ruapost.TLSFailure{failure}
}
