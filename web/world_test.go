package web

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ruapost"
	"ruapost/bboltstore"
	"ruapost/check"
	"ruapost/dmarc"
	"ruapost/internal/dnstest"
	"ruapost/reporting"
	"ruapost/resolver"
)

// afternoon is what the clock says in the tests.
var afternoon = time.Date(2026, 11, 22, 15, 4, 5, 0, time.UTC)

// hostile is a text that would be markup if it were not escaped.
const hostile = `"><script>alert(1)</script><img src=x onerror=alert(2)>`

// world is a store with a month of mail, and the reporter that has worked on it.
type world struct {
	t        testing.TB
	dns      *dnstest.Server
	store    *bboltstore.Store
	reporter *reporting.Reporter
	clock    time.Time
}

// newWorld returns a world without mail.
func newWorld(t testing.TB) *world {
	t.Helper()
	dns, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dns.Close)
	res, err := resolver.New(resolver.Config{Servers: []string{dns.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(res.Close)
	folder := t.TempDir()
	store, err := bboltstore.Open(filepath.Join(folder, "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	sendmail := filepath.Join(folder, "sendmail")
	const script = "#!/bin/sh\ncat >/dev/null\ncase \"$*\" in *nobody@*) echo 'user unknown' >&2; exit 67;; *later@*) exit 75;; esac\n"
	if err := os.WriteFile(sendmail, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dns: dns, store: store, clock: afternoon}
	w.reporter = &reporting.Reporter{
		Store: store, Resolver: res, OrgName: "Example Mail", Domain: "reports.example.net", From: "reports@reports.example.net",
		Format: dmarc.RFC9990, Sendmail: []string{sendmail}, Outbox: filepath.Join(folder, "outbox"),
		Keep: 7 * 24 * time.Hour, MaxRecipients: 5, MaxReportSize: 10_000_000, MaxPerDay: 10_000, MaxPerDestination: 1000, BounceDelimiter: "+",
		Now: func() time.Time { return w.clock },
	}
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// wants publishes who gets reports about a domain.
func (w *world) wants(domain, local string) {
	w.dns.Add(fmt.Sprintf("_dmarc.%s. 300 IN TXT \"v=DMARC1; p=reject; rua=mailto:%s@%s\"\n_smtp._tls.%s. 300 IN TXT \"v=TLSRPTv1; rua=mailto:%s@%s\"",
		domain, local, domain, domain, local, domain))
}

func (w *world) message(at time.Time, domain string, source netip.Addr, done ruapost.Disposition, n int) {
	e := &ruapost.Evaluation{
		Time: at,
		Policy: ruapost.DMARCPolicy{
			Domain: domain, P: ruapost.DispositionReject, ADKIM: ruapost.Relaxed, ASPF: ruapost.Relaxed, FO: "0", Percent: 100, Discovery: "treewalk",
		},
		Result: ruapost.DMARCResult{
			SourceIP: source, Disposition: done, HeaderFrom: domain, EnvelopeFrom: domain, EnvelopeTo: "example.net",
			SPF: ruapost.SPFResult{Domain: domain, Result: ruapost.AuthFail},
		},
	}
	if done == ruapost.DispositionPass {
		e.Result.AlignedDKIM = true
		e.Result.DKIM = []ruapost.DKIMResult{{Domain: domain, Selector: "s2026", Result: ruapost.AuthPass}}
		e.Result.SPF.Result = ruapost.AuthPass
	} else if done == ruapost.DispositionNone {
		e.Result.EnvelopeFrom = hostile
		e.Result.Overrides = []ruapost.Override{{Type: ruapost.OverrideLocalPolicy, Comment: "policy is not enforced here " + hostile}}
		e.Result.DKIM = []ruapost.DKIMResult{{Domain: domain, Selector: "x", Result: ruapost.AuthFail, Reason: "body hash did not verify"}}
	}
	for range n {
		w.must(w.store.RecordEvaluation(context.Background(), e))
	}
}

func (w *world) session(at time.Time, domain string, kind ruapost.TLSPolicyType, failures ...ruapost.TLSFailure) {
	s := ruapost.Session{Time: at, Domain: domain, Policy: ruapost.TLSPolicy{Type: kind, Domain: domain}, Failed: len(failures) > 0, Failures: failures}
	if kind == ruapost.PolicySTS {
		s.Policy.Strings = []string{"version: STSv1", "mode: enforce", "mx: mx." + domain, "max_age: 604800"}
		s.Policy.MXHosts = []string{"mx." + domain}
	}
	w.must(w.store.RecordSessions(context.Background(), []ruapost.Session{s}))
}

func addr(last byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, last}) }

// live has a month go by.
func (w *world) live() {
	w.t.Helper()
	for domain, local := range map[string]string{
		"example.com": "dmarc", "example.org": "dmarc", "shop.example": "nobody", "slow.example": "later", "quiet.example": "dmarc",
	} {
		w.wants(domain, local)
	}
	w.must(w.reporter.Suppress(context.Background(), "dmarc@quiet.example", time.Time{}, "asked for it "+hostile))
	w.must(w.reporter.Suppress(context.Background(), "*.spam.example", afternoon.AddDate(0, 1, 0), ""))
	var all []ruapost.Tally
	for ago := range 24 {
		day := ruapost.Day(afternoon).Start.AddDate(0, 0, -ago)
		wave := int64(1 + (ago*7)%11)
		weekend := int64(1)
		if wd := day.Weekday(); wd == time.Saturday || wd == time.Sunday {
			weekend = 3
		}
		m := ruapost.Tally{Day: day, Kind: ruapost.KindDMARC}
		m.Counts[ruapost.OutcomePass] = (4200 + 90*wave) / weekend
		m.Counts[ruapost.OutcomeNoPolicy] = (1300 + 40*wave) / weekend
		m.Counts[ruapost.OutcomeFail] = 130 + 20*wave
		m.Counts[ruapost.OutcomeQuarantine] = 60 + 9*wave
		m.Counts[ruapost.OutcomeReject] = 350 + 100*wave
		m.Counts[ruapost.OutcomeTemperror] = 3 * wave
		s := ruapost.Tally{Day: day, Kind: ruapost.KindTLS}
		s.Counts[ruapost.OutcomeTLSA] = (500 + 30*wave) / weekend
		s.Counts[ruapost.OutcomeSTS] = (1500 + 25*wave) / weekend
		s.Counts[ruapost.OutcomeNoTLSPolicy] = (300 + 5*wave) / weekend
		s.Counts[ruapost.OutcomeSTSFailed] = 9 * wave
		s.Counts[ruapost.OutcomeTLSAFailed] = 4 * wave
		all = append(all, m, s)
		if ago > 2 { // the others come from what is recorded
			d := ruapost.Tally{Day: day, Kind: ruapost.KindDMARC, Domain: "example.com"}
			d.Counts[ruapost.OutcomePass], d.Counts[ruapost.OutcomeReject] = 100/weekend, 3*wave
			o := ruapost.Tally{Day: day, Kind: ruapost.KindTLS, Domain: "example.org"}
			o.Counts[ruapost.OutcomeSTS], o.Counts[ruapost.OutcomeSTSFailed] = 80/weekend, wave
			all = append(all, d, o)
		}
	}
	w.must(w.store.AddTallies(context.Background(), all...))
	for ago := 2; ago >= 0; ago-- {
		at := ruapost.Day(afternoon).Start.AddDate(0, 0, -ago).Add(9 * time.Hour)
		w.day(at)
		if ago > 0 {
			w.clock = at.AddDate(0, 0, 1)
			_ = w.reporter.Send(context.Background(), reporting.Selection{}) // what cannot be sent is told there
		}
	}
	w.clock = afternoon
}

// day records a day.
func (w *world) day(at time.Time) {
	for i, domain := range []string{"example.com", "example.org", "shop.example", "slow.example", "quiet.example"} {
		w.message(at, domain, addr(byte(10+i)), ruapost.DispositionPass, 9-i)
		w.message(at, domain, addr(byte(200+i)), ruapost.DispositionReject, 2+i)
		w.message(at, domain, addr(77), ruapost.DispositionNone, 3)
		w.session(at, domain, ruapost.PolicySTS)
		w.session(at, domain, ruapost.PolicyNone)
		w.session(at, domain, ruapost.PolicySTS, ruapost.TLSFailure{
			Result: ruapost.ResultCertificateExpired, ReceivingMX: "mx." + domain, ReceivingHelo: hostile, Reason: "certificate has expired " + hostile,
		})
	}
}

// config is that of pages that have buttons.
func (w *world) config() Config {
	return Config{Reporter: w.reporter, Check: w.check}
}

// check is what the DNS page shows.
func (w *world) check(context.Context) ([]check.Finding, []check.Record) {
	findings := []check.Finding{
		{Level: check.OK, What: "reports come from reports@reports.example.net, and reports.example.net signs them"},
		{Level: check.Fault, What: "_dmarc.reports.example.net is not published: receivers refuse reports " + hostile, Mend: "Publish one:\n    _dmarc.reports.example.net. IN TXT \"v=DMARC1; p=reject\""},
		{Level: check.Warning, What: "SPF of reports.example.net is neutral for 192.0.2.25"},
	}
	records := []check.Record{
		{Name: "s2026._domainkey.reports.example.net", Why: "the public key that reports are signed with", Want: "v=DKIM1; k=rsa; p=MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAwFw", Published: []string{"v=DKIM1; k=rsa; p=MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAwFw"}, OK: true},
		{Name: "_dmarc.reports.example.net", Why: "the policy", Want: "v=DMARC1; p=reject", Published: []string{}},
		{Name: "_smtp._tls.reports.example.net", Why: "asks for reports about TLS", Want: "v=TLSRPTv1; rua=mailto:postmaster@reports.example.net", Published: []string{hostile}},
	}
	return findings, records
}
