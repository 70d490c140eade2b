package inbound

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-milter"
	mdns "github.com/miekg/dns"

	"ruapost"
	"ruapost/bboltstore"
	"ruapost/dmarc"
)

// finish ends a message and returns what Postfix is to do: its answer, "hold" if it is
// to hold the message, and the header field that marks it.
func (s *smtp) finish() string {
	s.t.Helper()
	mods, act, err := s.End()
	if err != nil {
		s.t.Fatal(err)
	}
	var done []string
	switch act.Code {
	case milter.ActContinue:
	case milter.ActReplyCode:
		done = append(done, fmt.Sprintf("%d %s", act.SMTPCode, act.SMTPText))
	default:
		done = append(done, string(act.Code))
	}
	for _, m := range mods {
		switch {
		case m.Code == milter.ActQuarantine:
			done = append(done, "hold: "+m.Reason)
		case m.Code == milter.ActInsertHeader && m.HeaderName == quarantineField:
			done = append(done, m.HeaderName+":"+m.HeaderValue)
		}
	}
	if err := s.Abort(); err != nil {
		s.t.Fatal(err)
	}
	return strings.Join(done, ", ")
}

const (
	rejected = "550 5.7.1 rejected by the DMARC policy of example.com"
	held     = "hold: DMARC policy of example.com"
)

// What is done with a message, and what the report says was done: the same, with a
// reason where it is not what the policy asks (RFC 9989 5.4, RFC 9990 3.1.1.9).
func TestDisposition(t *testing.T) {
	reject := Config{Enforce: ruapost.DispositionReject}
	for _, tt := range []struct {
		name   string
		record string
		config Config
		pass   bool
		done   string
		want   string // disposition and overrides
	}{
		{"not enforced", "p=reject", Config{}, false, "", "none [{local_policy policy is not enforced here}]"},
		{"off", "p=quarantine", Config{Enforce: ruapost.DispositionNone}, false, "", "none [{local_policy policy is not enforced here}]"},
		{"reject", "p=reject", reject, false, rejected, "reject []"},
		{"quarantine under reject", "p=quarantine", reject, false, held, "quarantine []"},
		{"policy of none", "p=none", reject, false, "", "none []"},
		{"pass", "p=reject", reject, true, "", "pass []"},
		{"pass under none", "p=none", reject, true, "", "none []"},
		{"reject as quarantine", "p=reject", Config{Enforce: ruapost.DispositionQuarantine}, false, held, "quarantine [{local_policy quarantined instead of rejected}]"},
		{"marked", "p=quarantine", Config{Enforce: ruapost.DispositionQuarantine, MarkQuarantine: true}, false, "X-DMARC-Quarantine: yes", "quarantine []"},
		{"testing reject", "p=reject; t=y", reject, false, held, "quarantine [{policy_test_mode }]"},
		{"testing quarantine", "p=quarantine; t=y", reject, false, "", "none [{policy_test_mode }]"},
		{"pct is history", "p=reject; pct=0", reject, false, rejected, "reject []"},
		{"sampled out of reject", "p=reject; pct=50", Config{Enforce: ruapost.DispositionReject, Suffixes: dmarc.BuiltinSuffixes{}}, false, held, "quarantine [{sampled_out }]"},
		{"sampled out of quarantine", "p=quarantine; pct=50", Config{Enforce: ruapost.DispositionReject, Suffixes: dmarc.BuiltinSuffixes{}}, false, "", "none [{sampled_out }]"},
		{"in the sample", "p=reject; pct=51", Config{Enforce: ruapost.DispositionReject, Suffixes: dmarc.BuiltinSuffixes{}}, false, rejected, "reject []"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			tt.config.AuthservID, tt.config.RecordTimeout = us, r.svc.Config.RecordTimeout
			r.svc.Config = tt.config
			r.svc.Draw = func() int { return 50 }
			r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; ` + tt.record + `; rua=mailto:dmarc@example.com"
				example.com. 300 IN TXT "v=spf1 ip4:192.0.2.1 -all"`)
			s := r.connect("192.0.2.1", "mail.example.com")
			from := "x@y.example"
			if tt.pass {
				from = "x@example.com"
			}
			// Twice: whatever was answered, the session goes on as before.
			for range 2 {
				s.transmit(from, bob, sample("a@example.com"))
				if done := s.finish(); done != tt.done {
					t.Errorf("done: %q, want %q", done, tt.done)
				}
			}
			got := r.take()
			if len(got) != 2 {
				t.Fatalf("%d evaluations", len(got))
			}
			for _, e := range got {
				if is := fmt.Sprintf("%s %v", e.Result.Disposition, e.Result.Overrides); is != tt.want || e.Result.SourceIP != netip.MustParseAddr("192.0.2.1") {
					t.Errorf("reported of %s: %s, want %s", e.Result.SourceIP, is, tt.want)
				}
			}
		})
	}
}

// A temporary error is neither pass nor fail (RFC 9989 5.3.6): the message goes on, or
// comes again if that is asked for, and is not reported until then.
func TestDefer(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"
		_dmarc.none.example. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@none.example"`)
	r.svc.Config.Enforce = ruapost.DispositionReject
	s := r.connect("192.0.2.1", "mail.example.com")
	try := func(domain string) (string, []ruapost.Evaluation) {
		t.Helper()
		r.dns.SetRcode(domain, mdns.RcodeServerFailure)
		s.transmit("x@"+domain, bob, sample("a@"+domain))
		return s.finish(), r.take()
	}
	const want = "none [{local_policy no verdict: temperror}]"
	done, got := try("example.com")
	if done != "" || len(got) != 1 || fmt.Sprintf("%s %v", got[0].Result.Disposition, got[0].Result.Overrides) != want {
		t.Errorf("accepted: %q, %+v", done, got)
	}
	r.svc.Config.DeferTemperror = true
	if done, got := try("example.com"); done != "451 4.7.1 DMARC of example.com could not be checked now, try again later" || len(got) != 0 {
		t.Errorf("deferred: %q, %+v", done, got)
	}
	if done, got := try("none.example"); done != "" || len(got) != 1 {
		t.Errorf("nothing depends on it: %q, %+v", done, got)
	}
	r.dns.SetRcode("_dmarc.lost.example", mdns.RcodeServerFailure)
	if done, got := try("lost.example"); !strings.HasPrefix(done, "451 4.7.1 DMARC of lost.example") || len(got) != 0 {
		t.Errorf("the policy is not known: %q, %+v", done, got)
	}
	r.svc.Config.DeferTemperror = false
	if done, got := try("lost.example"); done != "" || len(got) != 0 {
		t.Errorf("the policy is not known, accepted: %q, %+v", done, got)
	}
}

// Whoever asks in the morning why a message was rejected finds one line with all that an
// exception could go by; hostile text does not get into it raw.
func TestLogOfFailures(t *testing.T) {
	var log bytes.Buffer
	defer slog.SetDefault(slog.Default())
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	r := newRig(t)
	k := key(t, r, "lists.example.net")
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject"
		_dmarc.example.org. 300 IN TXT "v=DMARC1; p=reject"
		example.org. 300 IN TXT "v=spf1 ip4:192.0.2.1 -all"`)
	r.svc.Config.Enforce = ruapost.DispositionQuarantine
	s := r.connect("192.0.2.1", "mail.example.com")
	msg := append([]byte("List-Id: A list <some.lists.example.net\x1b>\r\n"), sample("a@example.com")...)
	s.transmit("x@y.example", bob, sign(t, k, msg))
	s.finish()
	s.send("x@example.org", bob, sample("a@example.org"))
	const want = `level=INFO msg=judged queue_id="" client=192.0.2.1 domain=example.com dmarc=fail policy=reject done=quarantine ` +
		`why="local_policy (quarantined instead of rejected)" spf=none:y.example dkim=pass:lists.example.net list_id=some.lists.example.net` + "\n"
	_, got, _ := strings.Cut(log.String(), " ")
	if got != want {
		t.Errorf("%q\nwant\n%q", got, want)
	}
}

// An exception keeps a failing message from its policy, and the report says why.
func TestOverrides(t *testing.T) {
	r := newRig(t)
	list := key(t, r, "lists.example.net")
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"
		fwd.example. 300 IN TXT "v=spf1 ip4:192.0.2.1 -all"`)
	r.svc.Config.Enforce = ruapost.DispositionReject
	s := r.connect("192.0.2.1", "mail.example.com")
	listed := append([]byte("List-Id: A list\r\n <Some.Lists.Example.net>\r\n"), sample("a@example.com")...)
	network := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	other := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	for _, tt := range []struct {
		name string
		rule Override
		from string
		rcpt []string
		msg  []byte
		want bool
	}{
		{"source", Override{Sources: network}, "x@y.example", bob, listed, true},
		{"another source", Override{Sources: other}, "x@y.example", bob, listed, false},
		{"DKIM", Override{DKIM: []string{"example.net"}}, "x@y.example", bob, sign(t, list, listed), true},
		{"DKIM without a signature", Override{DKIM: []string{"example.net"}}, "x@y.example", bob, listed, false},
		{"DKIM that fails", Override{DKIM: []string{"example.net"}}, "x@y.example", bob, append(sign(t, list, listed), 'x'), false},
		{"SPF", Override{SPF: []string{"fwd.example"}}, "x@fwd.example", bob, listed, true},
		{"SPF of another", Override{SPF: []string{"wd.example"}}, "x@fwd.example", bob, listed, false},
		{"List-Id", Override{ListIDs: []string{"some.lists.example.net"}}, "x@y.example", bob, listed, true},
		{"no List-Id", Override{ListIDs: []string{"some.lists.example.net"}}, "x@y.example", bob, sample("a@example.com"), false},
		{"recipient", Override{Recipients: []string{"example"}}, "x@y.example", bob, listed, true},
		{"not all recipients", Override{Recipients: []string{"receiver.example"}}, "x@y.example", []string{bob[0], "x@else.example"}, listed, false},
		{"both", Override{Sources: network, Recipients: []string{"receiver.example"}}, "x@y.example", bob, listed, true},
		{"one of two", Override{Sources: other, Recipients: []string{"receiver.example"}}, "x@y.example", bob, listed, false},
	} {
		tt.rule.Type, tt.rule.Comment = ruapost.OverrideTrustedForwarder, "ours"
		r.svc.Config.Overrides = []Override{{Sources: other, Type: ruapost.OverrideOther}, tt.rule}
		s.transmit(tt.from, tt.rcpt, tt.msg)
		done, got := s.finish(), r.take()
		want, reasons := rejected, "[]"
		if tt.want {
			want, reasons = "", "[{trusted_forwarder ours}]"
		}
		if len(got) != 1 || done != want || fmt.Sprint(got[0].Result.Overrides) != reasons {
			t.Errorf("%s: %q, %+v", tt.name, done, got)
		}
	}
}

// Of several authors the strictest policy among those that fail decides (RFC 9989
// 11.5); that one of them passes does not help the others.
func TestSeveralAuthors(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"
		_dmarc.good.example. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@good.example"
		good.example. 300 IN TXT "v=spf1 ip4:192.0.2.1 -all"`)
	r.svc.Config.Enforce = ruapost.DispositionReject
	s := r.connect("192.0.2.1", "mail.good.example")
	for _, tt := range []struct{ name, from, more, done, author string }{
		{"two addresses", "a@good.example, b@example.com", "", rejected, "example.com"},
		{"the other way", "b@example.com, a@good.example", "", rejected, "example.com"},
		{"two fields", "a@good.example", "From: b@example.com\r\n", rejected, "example.com"},
		{"two fields that pass", "a@good.example", "From: b@good.example\r\n", "", ""},
		{"one domain", "a@good.example, b@good.example", "", "", "good.example"},
	} {
		s.transmit("x@good.example", bob, append([]byte(tt.more), sample(tt.from)...))
		done, got := s.finish(), r.take()
		if done != tt.done {
			t.Errorf("%s: %q, want %q", tt.name, done, tt.done)
		}
		if tt.author == "" && len(got) > 0 || tt.author != "" && (len(got) != 1 || got[0].Result.HeaderFrom != tt.author) {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
}

// Forged mail in the name of a domain that has nothing to do with this system causes
// no report, unless that is asked for. The store knows which domains those are.
func TestUnknownDomains(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@example.com"
		example.com. 300 IN TXT "v=spf1 ip4:192.0.2.1 -all"`)
	s := r.connect("192.0.2.1", "mail.example.com")
	try := func(from string) ruapost.Evaluation {
		t.Helper()
		s.transmit(from, bob, sample("a@sub.example.com"))
		s.finish()
		got := r.take()
		if len(got) != 1 || got[0].OrganizationalDomain != "example.com" {
			t.Fatalf("%+v", got)
		}
		return got[0]
	}
	if e := try("x@example.com"); e.OptionalIfUnknown || e.Optional {
		t.Errorf("pass: %+v", e)
	}
	if e := try("x@y.example"); !e.OptionalIfUnknown || e.Optional {
		t.Errorf("fail: %+v", e)
	}
	r.svc.Config.ReportUnknown = true
	if e := try("x@y.example"); e.OptionalIfUnknown {
		t.Errorf("all are asked for: %+v", e)
	}
}

// A new configuration is in force for the next message of a session.
func TestReload(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"`)
	s := r.connect("192.0.2.1", "mail.example.com")
	var done []string
	for _, most := range []ruapost.Disposition{ruapost.DispositionNone, ruapost.DispositionReject, ruapost.DispositionQuarantine} {
		cfg := r.svc.Config
		cfg.Enforce = most
		r.svc.Reload(cfg)
		s.transmit("x@y.example", bob, sample("a@example.com"))
		done = append(done, s.finish())
	}
	if want := []string{"", rejected, held}; !slices.Equal(done, want) {
		t.Errorf("%q, want %q", done, want)
	}
}

// Whether an exception applies may be unknown for a while; a final answer would be about
// our DNS, not about the message.
func TestExceptionTemperror(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"`)
	r.svc.Config.Enforce = ruapost.DispositionReject
	r.svc.Config.TrustedSealers = []string{"list.example"}
	r.svc.Config.Overrides = []Override{{DKIM: []string{"lists.example.net"}}, {SPF: []string{"fwd.example"}}}
	list, k := r.sealer("list.example"), key(t, r, "lists.example.net")
	for _, name := range []string{"2023._domainkey.list.example", "2026._domainkey.lists.example.net", "fwd.example"} {
		r.dns.SetRcode(name, mdns.RcodeServerFailure)
	}
	s := r.connect("192.0.2.1", "mail.example.com")
	for name, tc := range map[string]struct {
		from string
		msg  []byte
	}{
		"sealer": {"x@y.example", list.Seal(sample("a@example.com"))},
		"dkim":   {"x@y.example", sign(t, k, sample("a@example.com"))},
		"spf":    {"x@fwd.example", sample("a@example.com")},
	} {
		r.svc.Config.DeferTemperror = false
		s.transmit(tc.from, bob, tc.msg)
		const want = "none [{local_policy temporary error, an exception may apply}]"
		if done, got := s.finish(), r.take(); done != "" || len(got) != 1 || fmt.Sprintf("%s %v", got[0].Result.Disposition, got[0].Result.Overrides) != want {
			t.Errorf("%s: %q, %+v", name, done, got)
		}
		r.svc.Config.DeferTemperror = true
		s.transmit(tc.from, bob, tc.msg)
		if done, got := s.finish(), r.take(); !strings.HasPrefix(done, "451 4.7.1") || len(got) != 0 {
			t.Errorf("%s, deferred: %q, %+v", name, done, got)
		}
	}
}

// A message is not deferred for an answer that can change nothing.
func TestNotDeferredInVain(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"`)
	r.dns.SetRcode("example.com", mdns.RcodeServerFailure)
	r.dns.SetRcode("_dmarc.lost.example", mdns.RcodeServerFailure)
	r.svc.Config.DeferTemperror = true
	s := r.connect("192.0.2.1", "mail.example.com")
	try := func(why string) {
		t.Helper()
		for _, domain := range []string{"example.com", "lost.example"} {
			s.transmit("x@"+domain, bob, sample("a@"+domain))
			if done := s.finish(); done != "" {
				t.Errorf("%s, %s: %q", why, domain, done)
			}
		}
	}
	try("nothing is enforced")
	r.svc.Config.Enforce = ruapost.DispositionReject
	r.svc.Config.Overrides = []Override{{Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}}
	try("the client is excepted")
}

// The mark of a quarantine is ours alone.
func TestForgedQuarantine(t *testing.T) {
	r := newRig(t)
	r.svc.Config.Enforce, r.svc.Config.MarkQuarantine = ruapost.DispositionQuarantine, true
	s := r.connect("192.0.2.1", "mail.example.com")
	msg := append([]byte("X-DMARC-Quarantine: yes\r\nx-dmarc-quarantine: yes\r\n"), sample("a@example.com")...)
	var removed []uint32
	for _, m := range s.send("x@example.com", bob, msg) {
		if m.Code == milter.ActChangeHeader && m.HeaderName == quarantineField && m.HeaderValue == "" {
			removed = append(removed, m.HeaderIndex)
		}
	}
	if !slices.Equal(removed, []uint32{2, 1}) {
		t.Errorf("removed %v", removed)
	}
}

// RFC 7489 6.3: a domain gets as many reports a day as it asks for by ri, if as many are
// made; what it asks for and the configuration count as they are with each message.
func TestInterval(t *testing.T) {
	r := newRig(t)
	store, err := bboltstore.Open(filepath.Join(t.TempDir(), "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	r.svc.Recorder = both{r, store}
	r.svc.Now = func() time.Time { return time.Date(2026, 3, 1, 13, 30, 0, 0, time.UTC) }
	s := r.connect("192.0.2.1", "mail.example.com")
	const hour = time.Hour
	for i, tt := range []struct {
		tag        string
		least      time.Duration
		want       time.Duration
		start, end int // hours of the day
	}{
		{"", 0, 24 * hour, 0, 24},
		{"; ri=3600", 0, 24 * hour, 0, 24},
		{"; ri=3600", 24 * hour, 24 * hour, 0, 24},
		{"", hour, 24 * hour, 0, 24},
		{"; ri=86400", hour, 24 * hour, 0, 24},
		{"; ri=3600", hour, hour, 13, 14},
		{"; ri=10801", hour, 4 * hour, 12, 16},
		{"; ri=3600", 6 * hour, 6 * hour, 12, 18},
		{"; ri=36000", 6 * hour, 12 * hour, 12, 24},
	} {
		domain := fmt.Sprintf("d%d.example", i)
		r.dns.Add(`_dmarc.` + domain + `. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@` + domain + tt.tag + `"`)
		cfg := r.svc.Config
		cfg.MinInterval = tt.least
		r.svc.Reload(cfg)
		s.transmit("x@y.example", bob, sample("a@"+domain))
		s.finish()
		if got := r.take(); len(got) != 1 || got[0].Interval != tt.want {
			t.Errorf("%q, at least %v: %+v", tt.tag, tt.least, got)
		}
		groups, err := store.Groups(t.Context(), r.svc.Now().Add(24*hour))
		if err != nil {
			t.Fatal(err)
		}
		midnight := ruapost.Day(r.svc.Now()).Start
		want := ruapost.Window{Start: midnight.Add(time.Duration(tt.start) * hour), End: midnight.Add(time.Duration(tt.end) * hour)}
		found := slices.ContainsFunc(groups, func(g ruapost.Group) bool { return g.Domain == domain && g.Window == want })
		if len(groups) != i+1 || !found {
			t.Errorf("%q, at least %v: want %v in %+v", tt.tag, tt.least, want, groups)
		}
	}
}

// A network that is trusted from now on is so for open sessions, too.
func TestReloadTrustedNetworks(t *testing.T) {
	r := newRig(t)
	s := r.connect("192.0.2.1", "mail.example.com")
	cfg := r.svc.Config
	cfg.TrustedNetworks = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	r.svc.Reload(cfg)
	if mods := s.send("x@y.example", bob, sample("a@example.com")); len(mods) != 0 {
		t.Errorf("judged: %+v", mods)
	}
}

// A From field that cannot be read is no way around a policy: some mail client may show
// any of the addresses in it.
func TestUnreadableFrom(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.bank.example. 300 IN TXT "v=DMARC1; p=reject"`)
	r.svc.Config.Enforce = ruapost.DispositionReject
	s := r.connect("192.0.2.1", "mail.example.com")
	for _, from := range []string{
		"<ceo@bank.example> .", "<ceo@bank.example>, (", "Ceo <ceo@bank.example", `"Ceo <ceo@bank.example>`,
		"<@evil.example:ceo@bank.example>", strings.Repeat("x", 17<<10) + " <ceo@bank.example>", "ceo@bank.example\u200d",
		"ceo@bank.example\r\nFrom: (", "(\r\nFrom: <ceo@bank.example>",
	} {
		s.transmit("x@evil.example", bob, bytes.Replace(sample("FROM"), []byte("FROM"), []byte(from), 1))
		if done := s.finish(); !strings.HasPrefix(done, "550 5.7.1") {
			t.Errorf("%.100q: %q", from, done)
		}
	}
}

// The policy is found however long other names, which the sender chose, take: a slow
// name server of its own gets no message past somebody else's policy.
func TestSlowNamesOfTheSender(t *testing.T) {
	r := newRig(t)
	r.svc.Config.Enforce, r.svc.Config.Budget = ruapost.DispositionReject, 800*time.Millisecond
	r.dns.Add(`_dmarc.bank.example. 0 IN TXT "v=DMARC1; p=reject"`) // never cached
	s := r.connect("192.0.2.1", "mail.example.com")
	signature := "DKIM-Signature: v=1; a=rsa-sha256; d=evil.example; s=s; h=from; bh=x; b=x\r\n"
	for _, name := range []string{"s._domainkey.evil.example", "evil.example", "_dmarc.evil.example"} {
		r.dns.SetRcode(name, -1)
	}
	for _, from := range []string{"ceo@bank.example", "x@evil.example, ceo@bank.example", "ceo@bank.example, x@evil.example"} {
		s.transmit("x@evil.example", bob, append([]byte(signature), sample(from)...))
		if done := s.finish(); !strings.HasPrefix(done, "550 5.7.1") {
			t.Errorf("%s: %q", from, done)
		}
	}
}
