package outbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ruapost"
	"ruapost/dane"
	"ruapost/mtasts"
	"ruapost/resolver"
)

var noHosts dane.Result

var (
	tlsa = []resolver.TLSA{{Usage: 3, Selector: 1, MatchingType: 1, Data: make([]byte, 32)}}
	pkix = []resolver.TLSA{{Usage: 1, Selector: 1, MatchingType: 1, Data: make([]byte, 32)}}
)

// hosts returns a secure MX answer with these hosts.
func hosts(all ...dane.Host) *dane.Result {
	for i := range all {
		h := &all[i]
		if h.Name == "" {
			h.Name = fmt.Sprintf("mx%d.example.com", i+1)
		}
		if h.Err == nil || h.Secure { // else the addresses are what is not known
			h.Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		}
	}
	return &dane.Result{MXSecure: true, Hosts: all}
}

func kept(mode mtasts.Mode) stsFinding {
	return stsFinding{id: "1", record: &mtasts.Record{ID: "1"}, expires: time.Unix(2_000_000_000, 0), policy: &mtasts.Policy{
		Mode: mode, MX: []string{"*.example.com"}, Text: []string{"version: STSv1", "mode: " + string(mode)},
	}}
}

var (
	temporary = &net.DNSError{Err: "server answered SERVFAIL", IsTemporary: true}
	noRecord  = stsFinding{recordErr: mtasts.ErrNoRecord}
)

func TestVerdict(t *testing.T) {
	usable := dane.Host{Secure: true, TLSA: tlsa}
	plain := dane.Host{Secure: true}
	const (
		secure  = "OK secure match=.example.com servername=hostname"
		none    = "NOTFOUND "
		deferst = "TEMP the TLS policy of example.com cannot be found out at this time"
	)
	for name, tc := range map[string]struct {
		finding  finding
		settings Settings
		want     Level
		reply    string
		trouble  bool
	}{
		"nothing":          {finding: finding{hosts: hosts(plain), sts: noRecord}, reply: none},
		"DANE":             {finding: finding{hosts: hosts(usable), sts: noRecord}, want: LevelDANEOnly, reply: "OK dane-only"},
		"DANE in part":     {finding: finding{hosts: hosts(usable, plain), sts: noRecord}, want: LevelDANE, reply: "OK dane"},
		"STS":              {finding: finding{hosts: hosts(plain), sts: kept("enforce")}, want: LevelSTS, reply: secure},
		"both: RFC 8461 2": {finding: finding{hosts: hosts(usable), sts: kept("enforce")}, want: LevelDANEOnly, reply: "OK dane-only"},
		"STS none":         {finding: finding{hosts: hosts(plain), sts: kept("none")}, reply: none},
		"testing":          {finding: finding{hosts: hosts(plain), sts: kept("testing")}, reply: none},
		"testing, with reports": {
			finding: finding{hosts: hosts(plain), sts: kept("testing")}, settings: Settings{ReportTesting: true},
			want: LevelTesting, reply: none, // to Postfix before 3.10
		},
		"none, with reports on testing": {finding: finding{hosts: hosts(plain), sts: kept("none")}, settings: Settings{ReportTesting: true}, reply: none},
		"MX unknown":                    {finding: finding{hosts: &noHosts, hostsErr: temporary, sts: noRecord}, reply: none, trouble: true},
		"MX unknown, to be deferred": {
			finding: finding{hosts: &noHosts, hostsErr: temporary, sts: noRecord}, settings: Settings{DeferOnError: true},
			reply: deferst, trouble: true,
		},
		// A policy that is known holds; Postfix finds out about the MX hosts itself.
		"MX unknown, STS known": {
			finding: finding{hosts: &noHosts, hostsErr: temporary, sts: kept("enforce")}, settings: Settings{DeferOnError: true},
			want: LevelSTS, reply: secure, trouble: true,
		},
		"STS record unknown": {
			finding: finding{hosts: hosts(plain), sts: stsFinding{recordErr: temporary}}, settings: Settings{DeferOnError: true},
			reply: deferst, trouble: true,
		},
		// One MX host that cannot be looked up must not spoil the others.
		"one host unknown": {
			finding: finding{hosts: hosts(plain, dane.Host{Err: temporary}), sts: noRecord}, settings: Settings{DeferOnError: true}, reply: none,
		},
		"STS policy not fetched": {
			finding:  finding{hosts: hosts(plain), sts: stsFinding{record: &mtasts.Record{}, fetchErr: errors.New("connection refused")}},
			settings: Settings{DeferOnError: true}, reply: deferst, trouble: true,
		},
		"STS policy still being fetched": {
			finding: finding{hosts: hosts(plain), sts: stsFinding{record: &mtasts.Record{}, fetchErr: errFetching}}, reply: none, trouble: true,
		},
		"DANE, MX unknown for STS": {
			finding: finding{hosts: hosts(usable), sts: stsFinding{recordErr: temporary}}, settings: Settings{DeferOnError: true},
			want: LevelDANEOnly, reply: "OK dane-only", trouble: true,
		},
		"a level of our own": {
			finding: finding{hosts: hosts(usable), sts: kept("enforce"), override: Override{Level: LevelEncrypt}},
			want:    LevelEncrypt, reply: "OK encrypt",
		},
		"a level of our own, with trouble": {
			finding:  finding{hosts: &noHosts, hostsErr: temporary, sts: noRecord, override: Override{Level: LevelMay}},
			settings: Settings{DeferOnError: true}, want: LevelMay, reply: "OK may",
		},
		"DANE ignored": {
			finding: finding{hosts: hosts(usable), sts: kept("enforce"), override: Override{IgnoreDANE: true}},
			want:    LevelSTS, reply: secure,
		},
		"DANE ignored, MX unknown": {
			finding:  finding{hosts: &noHosts, hostsErr: temporary, sts: noRecord, override: Override{IgnoreDANE: true}},
			settings: Settings{DeferOnError: true}, want: LevelMay, reply: "OK may", // or main.cf's level dane would be
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc.finding.domain = "example.com"
			v := tc.finding.verdict(&tc.settings)
			if v.level != tc.want || v.plain.String() != tc.reply || v.trouble != tc.trouble {
				t.Errorf("level %q, reply %q, trouble %v; want %q, %q, %v", v.level, v.plain, v.trouble, tc.want, tc.reply, tc.trouble)
			}
			if reason := tc.finding.reason(v, &tc.settings); reason == "" {
				t.Error("no reason")
			}
		})
	}
}

// The longest name counts, and a name is not one of those below it.
func TestOverride(t *testing.T) {
	s := Settings{Overrides: []Override{
		{Domains: []string{".example.com"}, Level: LevelMay},
		{Domains: []string{".b.example.com", "c.example.com"}, Level: LevelEncrypt},
		{Domains: []string{"example.com", "example.net"}, NoReport: true},
		{Domains: []string{".org"}, IgnoreSTS: true},
	}}
	for domain, want := range map[string]string{
		"example.com": "no TLS reports", "a.example.com": "level may", "b.example.com": "level may",
		"a.b.example.com": "level encrypt", "c.example.com": "level encrypt", "a.c.example.com": "level may",
		"a.example.net": "", "example.org": "MTA-STS ignored", "org": "", "xexample.com": "",
	} {
		o := s.override(domain)
		if got := o.words(); got != want {
			t.Errorf("%s: %q, want %q", domain, got, want)
		}
	}
}

// RFC 8460 4.3: what Postfix cannot tell of, tied to what it did to the delivery.
func TestProblems(t *testing.T) {
	unreachable := fetchError(t)
	failed := dane.Host{Secure: true, Err: serverFailure(t)}
	for name, tc := range map[string]struct {
		finding finding
		fromLog bool
		want    string
	}{
		"nothing": {finding: finding{hosts: hosts(dane.Host{Secure: true}), sts: noRecord}},
		"policy not fetched": {
			finding: finding{hosts: &noHosts, sts: stsFinding{record: &mtasts.Record{}, fetchErr: unreachable}},
			want:    "sts example.com: sts-policy-fetch-error  connection-failed",
		},
		"still being fetched": {finding: finding{hosts: &noHosts, sts: stsFinding{record: &mtasts.Record{}, fetchErr: errFetching}}},
		"policy not refreshed (RFC 8461 6)": {
			finding: finding{hosts: &noHosts, sts: with(kept("enforce"), unreachable)},
			want:    "sts example.com [version: STSv1 mode: enforce]: sts-policy-fetch-error  connection-failed",
		},
		"nor one of mode none": {finding: finding{hosts: &noHosts, sts: with(kept("none"), unreachable)}},
		"MX outside the policy": {
			finding: finding{hosts: hosts(dane.Host{Name: "mx.example.net"}), sts: kept("enforce")},
			want:    "sts example.com [version: STSv1 mode: enforce]: validation-failure mx.example.net mx-mismatch",
		},
		"the same in the log": {finding: finding{hosts: hosts(dane.Host{Name: "mx.example.net"}), sts: kept("enforce")}, fromLog: true},
		"one of two MX outside: mail may have gone to the other": {
			finding: finding{hosts: hosts(dane.Host{Name: "mx.example.net"}, dane.Host{}), sts: kept("enforce")},
		},
		"TLSA lookup fails": {
			finding: finding{hosts: hosts(failed), sts: noRecord},
			want:    "tlsa mx1.example.com: dnssec-invalid mx1.example.com TLSA-lookup-error",
		},
		"TLSA lookup fails, but there is another host": {finding: finding{hosts: hosts(failed, dane.Host{Secure: true}), sts: noRecord}},
		"TLSA lookup times out": {
			finding: finding{hosts: hosts(dane.Host{Secure: true, Err: &net.DNSError{IsTimeout: true, IsTemporary: true}}), sts: noRecord},
		},
		"TLSA unusable": {
			finding: finding{hosts: hosts(dane.Host{Secure: true, TLSABase: "base.example", Unusable: 1, Records: pkix}), sts: noRecord},
			want:    "tlsa base.example [1 1 1 " + strings.Repeat("00", 32) + "]: tlsa-invalid mx1.example.com TLSA-records-unusable",
		},
		// Postfix reports it as 304.
		"TLSA malformed":                     {finding: finding{hosts: hosts(dane.Host{Secure: true, Malformed: 1, Records: tlsa}), sts: noRecord}},
		"TLSA unusable, but STS is enforced": {finding: finding{hosts: hosts(dane.Host{Secure: true, Unusable: 1, Records: pkix}), sts: kept("enforce")}},
		"DANE required": {
			finding: finding{hosts: hosts(dane.Host{}, dane.Host{Secure: true}, dane.Host{Secure: true, TLSA: tlsa}), sts: noRecord, override: Override{Level: LevelDANEOnly}},
			want: "tlsa mx1.example.com: dane-required mx1.example.com non-DNSSEC-destination, " +
				"tlsa mx2.example.com: dane-required mx2.example.com no-TLSA-records-found",
		},
		"no reports": {
			finding: finding{hosts: hosts(dane.Host{Secure: true, Unusable: 1, Records: pkix}), sts: noRecord, override: Override{NoReport: true}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc.finding.domain = "example.com"
			var got []string
			for _, s := range tc.finding.problems(tc.finding.verdict(&Settings{}), tc.fromLog) {
				if !s.Uncounted || s.Failed || len(s.Failures) != 1 || s.Domain != "example.com" {
					t.Errorf("%+v", s)
				}
				text := ""
				if len(s.Policy.Strings) > 0 {
					text = fmt.Sprint(" ", s.Policy.Strings)
				}
				failure := s.Failures[0]
				got = append(got, fmt.Sprintf("%s %s%s: %s %s %s", s.Policy.Type, s.Policy.Domain, text, failure.Result, failure.ReceivingMX, failure.Reason))
			}
			if diff := cmp.Diff(tc.want, strings.Join(got, ", ")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func with(f stsFinding, fetchErr error) stsFinding {
	f.fetchErr = fetchErr
	return f
}

// fetchError is the error of a fetch from a policy host that cannot be reached.
func fetchError(t *testing.T) error {
	t.Helper()
	proxyTo(t)
	nowhere := "127.0.0.1:1"
	proxyTarget.Store(&nowhere)
	_, err := (&mtasts.Fetcher{}).Fetch(t.Context(), "example.com")
	if err == nil {
		t.Fatal("fetched")
	}
	return err
}

// serverFailure is what a resolver makes of SERVFAIL.
func serverFailure(t *testing.T) error {
	r := newRig(t)
	r.dns.SetRcode("fails.example", mdns.RcodeServerFailure)
	_, _, err := r.Policies.resolver.LookupTLSA(t.Context(), "fails.example")
	return err
}

// Problems are noted for domains that ask for reports, and each once in five minutes.
func TestProblemsNoted(t *testing.T) {
	p := NewProblems(records{"_smtp._tls.example.com": "v=TLSRPTv1; rua=mailto:a@example.com", "_smtp._tls.none.example": "v=TLSRPTv1; rua=ftp:x", "_smtp._tls.down.example": "broken"})
	f := &finding{domain: "example.com", hosts: hosts(dane.Host{Secure: true, Unusable: 1, Records: pkix}), sts: noRecord}
	v := f.verdict(&Settings{})
	p.add(f, v)
	p.add(f, v)
	for _, domain := range []string{"none.example", "absent.example", "down.example"} {
		f.domain = domain
		p.add(f, v)
	}
	rec := &recorder{}
	for range len(p.queue) {
		p.note(t.Context(), rec, <-p.queue)
	}
	if len(rec.sessions) != 1 || rec.sessions[0].Domain != "example.com" || rec.sessions[0].Time.IsZero() {
		t.Errorf("%+v", rec.sessions)
	}
	for i := range 2 * maxProblems { // nobody notes: none of it waits
		f.domain = fmt.Sprint(i, ".example")
		p.add(f, v)
	}
}

// A report for each of the two policy domains (RFC 8460 1.1), none for those that are
// not to get any.
func TestSessions(t *testing.T) {
	r := newRig(t)
	r.Reload(nil, Settings{Overrides: []Override{{Domains: []string{"quiet.example", "mx.quiet.example"}, NoReport: true}}})
	rec := &recorder{}
	z := records{
		"_smtp._tls.mx.example.net":    "v=TLSRPTv1; rua=mailto:a@example.net",
		"_smtp._tls.mx.quiet.example":  "v=TLSRPTv1; rua=mailto:a@example.net",
		"_smtp._tls.mx.nobody.example": "v=TLSRPTv1; rua=ftp:x", "_smtp._tls.mx.down.example": "broken",
	}
	s := NewSessions(r.Policies, z, rec)
	session := func(domain string, kind ruapost.TLSPolicyType, base string) ruapost.Session {
		return ruapost.Session{Domain: domain, Policy: ruapost.TLSPolicy{Type: kind, Domain: base}}
	}
	err := s.RecordSessions(t.Context(), []ruapost.Session{
		session("a.example", "tlsa", "mx.example.net"),
		session("b.example", "tlsa", "mx.example.net"),
		session("a.example", "tlsa", "mx.other.example"),
		session("a.example", "tlsa", "mx.nobody.example"),
		session("a.example", "tlsa", "mx.down.example"),
		session("a.example", "tlsa", "mx.quiet.example"),
		session("mx.example.net", "tlsa", "mx.example.net"), // its own MX host: one report
		session("a.example", "sts", "mx.example.net"),
		session("quiet.example", "no-policy-found", "quiet.example"),
		session("quiet.example", "tlsa", "mx.example.net"),
	})
	if err != nil {
		t.Fatal(err)
	}
	for len(s.waiting) > 0 {
		s.recordForHost(t.Context(), <-s.waiting)
	}
	s.RecordSessions(t.Context(), []ruapost.Session{ // of both hosts it is known by now
		session("c.example", "tlsa", "mx.example.net"), session("c.example", "tlsa", "mx.other.example"),
	})
	got := map[string]int{}
	for _, s := range rec.sessions {
		got[fmt.Sprint(s.Domain, " ", s.Policy.Type, " ", s.Policy.Domain)]++
	}
	if diff := cmp.Diff(map[string]int{
		"a.example tlsa mx.example.net": 1, "b.example tlsa mx.example.net": 1, "mx.example.net tlsa mx.example.net": 5,
		"c.example tlsa mx.example.net": 1, "c.example tlsa mx.other.example": 1,
		"a.example tlsa mx.other.example": 1, "a.example tlsa mx.nobody.example": 1, "a.example tlsa mx.down.example": 1,
		"a.example tlsa mx.quiet.example": 1, "a.example sts mx.example.net": 1,
	}, got); diff != "" {
		t.Error(diff)
	}
}

// Mode testing is there to learn what enforce would do: a session with an MX host outside
// the policy is a failure, though mail flows.
func TestTestingSessions(t *testing.T) {
	r := newRig(t)
	outside := &verdict{level: LevelTesting, hostOutside: true}
	for domain, v := range map[string]*verdict{
		"outside.example": outside, "inside.example": {level: LevelTesting}, "enforce.example": {level: LevelSTS, hostOutside: true},
	} {
		r.answers.Set(domain, &answer{verdict: v})
	}
	rec := &recorder{}
	s := NewSessions(r.Policies, records{}, rec)
	var all []ruapost.Session
	for _, domain := range []string{"outside.example", "inside.example", "enforce.example", "unknown.example"} {
		all = append(all, ruapost.Session{Time: time.Now(), Domain: domain, Policy: ruapost.TLSPolicy{Type: ruapost.PolicySTS, Domain: domain}})
	}
	s.RecordSessions(t.Context(), all)
	for _, s := range rec.sessions {
		failed := s.Domain == "outside.example"
		if s.Failed != failed || failed && s.Failures[0].Reason != reasonMXOutside {
			t.Errorf("%+v", s)
		}
	}
}

// What waits for the DNS at the end is recorded, too.
func TestSessionsAtTheEnd(t *testing.T) {
	r := newRig(t)
	rec := &recorder{}
	s := NewSessions(r.Policies, records{"_smtp._tls.mx.example.net": "v=TLSRPTv1; rua=mailto:a@example.net"}, rec)
	const n = 100
	for range n {
		s.RecordSessions(t.Context(), []ruapost.Session{{Domain: "a.example", Policy: ruapost.TLSPolicy{Type: ruapost.PolicyTLSA, Domain: "mx.example.net"}}})
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	s.Run(ended)
	if len(rec.sessions) != 2*n {
		t.Errorf("%d sessions recorded, want %d", len(rec.sessions), 2*n)
	}
}

// What keeps an answer from being complete is counted, an answer that is complete is not.
func TestLimitsOfAnswers(t *testing.T) {
	r := newRig(t)
	r.dns.Add("few.example. 300 IN MX 10 mx.few.example.\nmx.few.example. 300 IN A 192.0.2.1")
	for i := range dane.MaxHosts + 1 {
		r.dns.Add(fmt.Sprintf("many.example. 300 IN MX 10 mx%[1]d.many.example.\nmx%[1]d.many.example. 300 IN A 192.0.2.1", i))
	}
	r.dns.SetRcode("silent.example", -1)
	for domain, want := range map[string]map[string]float64{
		"few.example": {}, "many.example": {"hosts": 1}, "silent.example": {"time": 1},
	} {
		before := map[string]float64{}
		for _, limit := range []string{"hosts", "time"} {
			before[limit] = testutil.ToFloat64(limits.WithLabelValues(limit))
		}
		ctx, cancel := context.WithTimeout(t.Context(), queryTimeout/10)
		r.look(ctx, &finding{domain: domain, hosts: &dane.Result{}})
		cancel()
		for limit, was := range before {
			if n := testutil.ToFloat64(limits.WithLabelValues(limit)) - was; n != want[limit] {
				t.Errorf("%s: %s counted %v times", domain, limit, n)
			}
		}
	}
}
