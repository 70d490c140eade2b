package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"

	"ruapost"
	"ruapost/compose"
	"ruapost/config"
	"ruapost/dmarc"
	"ruapost/postconf"
	"ruapost/resolver"
)

// maxPublished bounds how many texts of one name are told.
const maxPublished = 20

// Reporter returns what there is to say about the host and the DNS for
// ruapost-reporter with the configuration cfg: whether receivers take its reports. The
// records are those that the reports' domain should have. It asks host.Resolver, which
// must not be nil, and takes 20 seconds at most.
func Reporter(ctx context.Context, cfg *config.Config, host Host) ([]Finding, []Record) {
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	from := cfg.Reporter.From
	s := &sender{checker: &checker{cfg: cfg, host: host}, domain: from[strings.LastIndexByte(from, '@')+1:]}
	s.mail = sync.OnceValue(func() map[string]string { return s.mailSettings(ctx) })
	s.readKey()
	s.together(
		func(s *sender) { s.checkFrom(ctx) },
		func(s *sender) { s.checkKey(ctx) },
		func(s *sender) { s.checkMX(ctx) },
		func(s *sender) { s.checkSPF(ctx) },
		func(s *sender) { s.checkDMARC(ctx) },
		func(s *sender) { s.checkSendmail() },
		func(s *sender) { s.checkBounces() },
	)
	s.checkFolder("the outbox", cfg.Reporter.Outbox, "no report can be composed")
	s.checkStore()
	return s.findings, s.records
}

// sender looks at what receivers of reports look at.
type sender struct {
	*checker
	domain  string          // of reporter.from
	signer  *compose.Signer // nil if there is none
	records []Record
	mail    func() map[string]string // Postfix's settings, nil if they are not known
}

// together does all checks at once, and gathers what they find in their order.
func (s *sender) together(checks ...func(*sender)) {
	parts := make([]sender, len(checks))
	var running sync.WaitGroup
	for i, check := range checks {
		parts[i] = *s
		parts[i].checker = &checker{cfg: s.cfg, host: s.host}
		parts[i].records = nil
		running.Go(func() { check(&parts[i]) })
	}
	running.Wait()
	for _, part := range parts {
		s.findings = append(s.findings, part.findings...)
		s.records = append(s.records, part.records...)
	}
}

// texts returns the TXT records of a name, nil with an error. That there are none is no
// error.
func (s *sender) texts(ctx context.Context, name string) ([]string, error) {
	txts, _, err := s.host.Resolver.LookupTXT(ctx, name)
	if err != nil && !resolver.IsNotFound(err) {
		return nil, err
	}
	return append([]string{}, txts...), nil
}

// unknown tells of something that the DNS did not answer.
func (s *sender) unknown(what string, err error) {
	s.warn("Try again; and see dns.servers in ruapost.toml.", "%s cannot be looked up: %v", what, err)
}

// keygenMend is how to get a key.
const keygenMend = "Make a key, and do as this says:\n    ruapost-reporter dkim-keygen /etc/ruapost/dkim.pem"

// mayRead is beside mayWrite and mayPass.
const mayRead permission = 4

// readKey loads the key that reports are signed with.
func (s *sender) readKey() {
	d := &s.cfg.DKIM
	if d.Domain == "" {
		return
	}
	var err error
	if s.signer, err = compose.LoadSigner(d.Domain, d.Selector, d.KeyFile); errors.Is(err, fs.ErrPermission) {
		s.warn(rootMend, "dkim.key_file: %s may not read %s", me(), d.KeyFile)
		return
	} else if err != nil {
		s.fault(keygenMend, "dkim.key_file: reports cannot be signed, and are not sent: %v", err)
		return
	}
	if warning := s.signer.Warning(); warning != "" {
		s.warn(keygenMend, "%s", warning)
	}
	s.checkKeyMode(d.KeyFile)
}

// checkKeyMode looks who may read the private key.
func (s *sender) checkKeyMode(file string) {
	var st syscall.Stat_t
	if err := syscall.Stat(file, &st); err != nil {
		s.fault("", "dkim.key_file: %v", err)
		return
	}
	who, err := lookupAccount(daemonUser)
	switch {
	case err == nil && who.uid != uint32(os.Geteuid()) && !who.can(&st, mayRead):
		s.fault(then("", "chgrp "+daemonUser+" "+postconf.Quote(file), "chmod g+r "+postconf.Quote(file)),
			"dkim.key_file %s (%s): user %s, as which the reporter runs, may not read it", file, describe(&st), daemonUser)
	case permission(st.Mode)&mayRead != 0:
		s.warn(then("", "chmod o-r "+postconf.Quote(file)), "dkim.key_file %s (%s): everybody on this host may read the private key", file, describe(&st))
	default:
		s.ok("dkim.key_file %s (%s)", file, describe(&st))
	}
}

// checkFrom looks whether the domain that signs stands for the one reports come from.
func (s *sender) checkFrom(ctx context.Context) {
	if !sameOwner(s.cfg.ReportDomain, s.domain) {
		s.warn(then("In ruapost.toml:", `report_domain = "`+s.domain+`"`),
			"report_domain is %s, but reports come from %s", s.cfg.ReportDomain, s.domain)
	}
	d := s.cfg.DKIM.Domain
	switch d {
	case "":
		s.warn(keygenMend, "reports come from %s, and [dkim] is not set: unless something else signs them, "+
			"receivers ignore TLS reports (RFC 8460 3), and DMARC rests on SPF alone", s.cfg.Reporter.From)
		return
	case s.domain:
		s.ok("reports come from %s, and %s signs them", s.cfg.Reporter.From, d)
		return
	}
	signed := fmt.Sprintf("reports come from %s, but %s signs them", s.cfg.Reporter.From, d)
	mend := then("In ruapost.toml, section [dkim]:", `domain = "`+s.domain+`"`)
	evaluator := &dmarc.Evaluator{Resolver: s.host.Resolver}
	v := evaluator.Evaluate(ctx, s.domain, []ruapost.DKIMResult{{Domain: d, Result: ruapost.AuthPass}}, ruapost.SPFResult{})
	switch {
	case v.Result == dmarc.ResultTemperror:
		s.warn(mend, "%s: whether that is aligned cannot be told: %v", signed, v.Err)
	case v.Policy != nil && v.Policy.Record.ADKIM == ruapost.Strict:
		s.fault(mend, "%s: not aligned, as the DMARC record has adkim=s (RFC 9989 4.4)", signed)
	case v.AlignedDKIM, v.Policy == nil && sameOwner(d, s.domain):
		s.warn(mend, "%s: aligned for DMARC, but TLS reports are to be signed by the domain that submits them (RFC 8460 3)", signed)
	default:
		s.fault(mend, "%s: not aligned (RFC 9989 4.4), reports fail DMARC", signed)
	}
}

// sameOwner says whether two domains are below the same registered one.
func sameOwner(a, b string) bool { return registered(a) == registered(b) }

// registered returns the domain that somebody has registered, with whatever is below it.
func registered(domain string) string { return dmarc.BuiltinSuffixes{}.OrganizationalDomain(domain) }
