package inbound

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ruapost"
	"ruapost/internal/arctest"
)

// sealer returns a sealer whose key is in the DNS, and which found that DMARC passes for
// example.com.
func (r *rig) sealer(domain string) arctest.Sealer {
	s := arctest.NewSealer(domain)
	s.Results = "dmarc=pass header.from=example.com"
	r.dns.Add(fmt.Sprintf("%s. 300 IN TXT %q", s.KeyName(), s.Record()))
	return s
}

// resultOfMethod returns what an Authentication-Results field says of a method, empty if
// nothing.
func resultOfMethod(value, method string) string {
	for part := range strings.SplitSeq(value, "; ") {
		if strings.HasPrefix(part, method+"=") {
			return part
		}
	}
	return ""
}

func withFooter(msg []byte) []byte { return append(slices.Clone(msg), "-- \r\nA list\r\n"...) }

// RFC 8617 10.2.
func TestARCResults(t *testing.T) {
	r := newRig(t)
	one, two := r.sealer("one.example"), r.sealer("two.example")
	down, nowhere := r.sealer("down.example"), arctest.NewSealer("nowhere.example")
	r.dns.SetRcode(down.KeyName(), mdns.RcodeServerFailure)
	hostile := one
	hostile.Change = func(name string, _ int, value string) string {
		return strings.Replace(value, "cv=none", "cv=\"; dmarc=pass header.from=example.com; x=\"", 1)
	}
	msg := sample("a@example.com")
	s := r.connect("192.0.2.1", "mail.example.com")
	for name, tc := range map[string]struct {
		msg  []byte
		want string
	}{
		"no chain":                  {msg, ""},
		"a field that is like ARC":  {append([]byte("ARC: x\r\nARCHIVE: x\r\n"), msg...), ""},
		"one set":                   {one.Seal(msg), "arc=pass"},
		"two sets":                  {two.Seal(one.Seal(msg)), "arc=pass"},
		"changed behind the first":  {two.Seal(withFooter(one.Seal(msg))), "arc=pass header.oldest-pass=2"},
		"changed behind the last":   {withFooter(one.Seal(msg)), `arc=fail reason="instance 1: ARC-Message-Signature: the body has been changed"`},
		"field changed":             {bytes.Replace(one.Seal(msg), []byte("a test"), []byte("a pest"), 1), `arc=fail reason="instance 1: ARC-Message-Signature: the signature does not verify"`},
		"no key":                    {nowhere.Seal(msg), `arc=fail reason="instance 1: ARC-Message-Signature: there is no key"`},
		"5.2.1, DNS is down":        {down.Seal(msg), `arc=fail reason="instance 1: ARC-Message-Signature: the key could not be looked up"`},
		"5.2, step 3.1":             {append([]byte("arc-seal : i=1; x=y\r\n"), msg...), `arc=fail reason="instance 1: no ARC-Authentication-Results"`},
		"what a sealer may put in":  {hostile.Seal(msg), `arc=fail reason="instance 1: ARC-Seal: cv= is not \"none\""`},
		"a lone CR is no line end":  {one.Seal(append(slices.Clone(msg), "a\rb\r\r\n"...)), "arc=pass"},
		"body of a chunk and more":  {one.Seal(append(slices.Clone(msg), strings.Repeat(" x\t y\r\n\r\n", 20_000)...)), "arc=pass"},
		"a chain and no body":       {one.Seal([]byte("From: a@example.com\r\n\r\n")), "arc=pass"},
		"no empty field of a chain": {append([]byte("ARC-Seal:\r\n"), msg...), `arc=fail reason="ARC-Seal: the instance (i=) is not a number from 1 to 50"`},
	} {
		res := added(t, s.send("x@y.example", bob, tc.msg))
		if got := resultOfMethod(res, "arc"); got != tc.want || strings.Contains(res, "dmarc=pass") {
			t.Errorf("%s: %s, want %s", name, res, tc.want)
		}
	}
}

// What a sealer that is trusted must have said so that a message which fails DMARC here
// is not treated as the policy asks, and what the report then says (RFC 8617 7.2.2).
func TestTrustedSealers(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"
		_dmarc.xn--bcher-kva.example. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"
		_dmarc.attack.example. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@attack.example"
		_dmarc.bank.example. 300 IN TXT "v=DMARC1; p=quarantine; rua=mailto:dmarc@bank.example"`)
	r.svc.Config.Enforce = ruapost.DispositionReject
	r.svc.Config.TrustedSealers = []string{"relay.example", "list.example"}
	list, relay, other := r.sealer("list.example"), r.sealer("relay.example"), r.sealer("other.example")
	subdomain, suffix := r.sealer("mx.list.example"), r.sealer("blacklist.example")
	keyless := arctest.NewSealer("list.example")
	keyless.Selector, keyless.Results = "none", list.Results
	saying := func(s arctest.Sealer, results string) arctest.Sealer {
		s.Results = results
		return s
	}
	aar := func(value string) arctest.Sealer {
		s := list
		s.Change = func(name string, _ int, signed string) string {
			if name == "ARC-Authentication-Results" {
				return value
			}
			return signed
		}
		return s
	}
	msg := sample("a@example.com")
	const (
		byList = "arc=pass as[1].d=list.example as[1].s=2023"
		client = " remote-ip[1]=192.0.2.1"
	)
	for name, tc := range map[string]struct {
		msg     []byte
		comment string // empty: rejected
	}{
		"no chain":                     {msg, ""},
		"trusted":                      {list.Seal(msg), byList + client},
		"a subdomain":                  {subdomain.Seal(msg), "arc=pass as[1].d=mx.list.example as[1].s=2023" + client},
		"a longer name":                {suffix.Seal(msg), ""},
		"not trusted":                  {other.Seal(msg), ""},
		"9.3, a later one not trusted": {other.Seal(list.Seal(msg)), ""},
		"and one after that trusted":   {relay.Seal(other.Seal(list.Seal(msg))), "arc=pass as[3].d=relay.example as[3].s=2023 as[2].d=other.example as[2].s=2023 as[1].d=list.example as[1].s=2023" + client},
		"that saw it fail":             {saying(relay, "dmarc=fail header.from=example.com").Seal(other.Seal(list.Seal(msg))), ""},
		"an earlier one not trusted":   {list.Seal(other.Seal(msg)), "arc=pass as[2].d=list.example as[2].s=2023 as[1].d=other.example as[1].s=2023" + client},
		"the later saw it fail": {
			saying(relay, "dmarc=fail header.from=example.com").Seal(withFooter(list.Seal(msg))),
			"arc=pass as[2].d=relay.example as[2].s=2023 as[1].d=list.example as[1].s=2023" + client,
		},

		"another author":          {saying(list, "dmarc=pass header.from=example.org").Seal(msg), ""},
		"the author's subdomain":  {saying(list, "dmarc=pass header.from=mail.example.com").Seal(msg), ""},
		"no author":               {saying(list, "dmarc=pass").Seal(msg), ""},
		"an author that is none":  {saying(list, `dmarc=pass header.from="a b"`).Seal(msg), ""},
		"two authors":             {saying(list, "dmarc=pass header.from=example.org header.from=example.com").Seal(msg), ""},
		"in any case":             {saying(list, "DMARC=Pass Header.From=Example.COM").Seal(msg), byList + client},
		"dmarc=fail":              {saying(list, "dmarc=fail header.from=example.com").Seal(msg), ""},
		"dmarc=none":              {saying(list, "dmarc=none header.from=example.com").Seal(msg), ""},
		"dmarc=bestguesspass":     {saying(list, "dmarc=bestguesspass header.from=example.com").Seal(msg), ""},
		"pass and fail":           {saying(list, "dmarc=pass header.from=example.com; dmarc=fail header.from=example.com").Seal(msg), ""},
		"fail of another author":  {saying(list, "dmarc=fail header.from=example.org; dmarc=pass header.from=example.com").Seal(msg), byList + client},
		"another version":         {saying(list, "dmarc/2=pass header.from=example.com").Seal(msg), ""},
		"another method":          {saying(list, "dkim=pass header.from=example.com; spf=pass smtp.mailfrom=example.com").Seal(msg), ""},
		"in a comment":            {saying(list, "spf=fail (; dmarc=pass header.from=example.com;)").Seal(msg), ""},
		"in a quoted string":      {saying(list, `spf=fail smtp.mailfrom="; dmarc=pass header.from=example.com;"`).Seal(msg), ""},
		"unreadable":              {saying(list, `dmarc=pass header.from=example.com; spf=fail (never ends`).Seal(msg), ""},
		"as Google":               {saying(list, "dkim=pass header.i=@example.com header.s=s header.b=\"a/b\";\r\n dmarc=pass (p=REJECT sp=REJECT dis=NONE) header.from=example.com").Seal(msg), byList + client},
		"as Microsoft":            {aar(" i=1; mx.microsoft.com 1; spf=pass\r\n smtp.mailfrom=example.com; dmarc=pass action=none header.from=example.com; arc=none").Seal(msg), byList},
		"no results":              {aar(" i=1;").Seal(msg), ""},
		"RFC 8616, in U-labels":   {saying(list, "dmarc=pass header.from=bücher.example").Seal(sample("a@xn--bcher-kva.example")), byList + client},
		"another field of itself": {append([]byte("Authentication-Results: list.example; dmarc=pass header.from=example.com\r\n"), saying(list, "dmarc=none").Seal(msg)...), ""},

		"body changed behind the seal":    {withFooter(list.Seal(msg)), ""},
		"results changed behind the seal": {bytes.Replace(saying(list, "dmarc=fail header.from=example.com").Seal(msg), []byte("dmarc=fail"), []byte("dmarc=pass"), 1), ""},
		"no key":                          {keyless.Seal(msg), ""},
		"a chain that had failed":         {func() []byte { s := list; s.CV = "fail"; return s.Seal(msg) }(), ""},

		// A chain need not cover a From field that is put on top later, and whose policy
		// is the strictest is up to the forger.
		"From put on top":             {append([]byte("From: boss@bank.example\r\n"), saying(list, "dmarc=pass header.from=attack.example").Seal(sample("a@attack.example"))...), ""},
		"From put on top, one domain": {append([]byte("From: boss@example.com\r\n"), list.Seal(msg)...), ""},
		"two domains in From":         {list.Seal(sample("a@example.com, b@bank.example")), ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := testutil.ToFloat64(overridden.WithLabelValues("arc"))
			s := r.connect("192.0.2.1", "mail.example.com")
			s.transmit("x@y.example", bob, tc.msg)
			done, got := s.finish(), r.take()
			if len(got) != 1 {
				t.Fatalf("%d evaluations", len(got))
			}
			result := got[0].Result
			is, want := fmt.Sprintf("%s %v", result.Disposition, result.Overrides), "reject []"
			if tc.comment != "" {
				want = "none [{local_policy " + tc.comment + "}]"
			}
			if is != want || strings.HasPrefix(done, "550 5.7.1 ") != (tc.comment == "") || done != "" && tc.comment != "" {
				t.Errorf("%q, reported %s; want %s", done, is, want)
			}
			if result.AlignedDKIM || result.AlignedSPF {
				t.Error("the exception counts as a pass")
			}
			if n := testutil.ToFloat64(overridden.WithLabelValues("arc")) - before; (n == 1) != (tc.comment != "") || n > 1 {
				t.Errorf("counted %v times", n)
			}
		})
	}
}

// A seal is no reason where the policy asks for nothing, where the message passes, or
// where nobody is trusted; and the administrator's own exceptions come first.
func TestSealsThatDoNotMatter(t *testing.T) {
	trusted := []string{"list.example"}
	everywhere := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	for _, tt := range []struct {
		name   string
		record string
		config Config
		from   string
		done   string
		want   string
	}{
		{"policy of none", "p=none", Config{TrustedSealers: trusted}, "x@y.example", "", "none []"},
		{"pass", "p=reject", Config{TrustedSealers: trusted}, "x@example.com", "", "pass []"},
		{"pass under none", "p=none", Config{TrustedSealers: trusted}, "x@example.com", "", "none []"},
		{"nobody is trusted", "p=reject", Config{}, "x@y.example", rejected, "reject []"},
		{
			"another exception", "p=reject",
			Config{TrustedSealers: trusted, Overrides: []Override{{Sources: everywhere, Type: ruapost.OverrideOther, Comment: "all"}}},
			"x@y.example", "", "none [{other all}]",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			tt.config.AuthservID, tt.config.RecordTimeout = us, r.svc.Config.RecordTimeout
			tt.config.Enforce = ruapost.DispositionReject
			r.svc.Config = tt.config
			r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; ` + tt.record + `; rua=mailto:dmarc@example.com"
				example.com. 300 IN TXT "v=spf1 ip4:192.0.2.1 -all"`)
			before := testutil.ToFloat64(overridden.WithLabelValues("arc"))
			s := r.connect("192.0.2.1", "mail.example.com")
			s.transmit(tt.from, bob, r.sealer("list.example").Seal(sample("a@example.com")))
			if done := s.finish(); done != tt.done {
				t.Errorf("done: %q, want %q", done, tt.done)
			}
			got := r.take()
			if len(got) != 1 || fmt.Sprintf("%s %v", got[0].Result.Disposition, got[0].Result.Overrides) != tt.want {
				t.Errorf("reported %+v, want %s", got, tt.want)
			}
			if n := testutil.ToFloat64(overridden.WithLabelValues("arc")) - before; n != 0 {
				t.Errorf("counted %v times", n)
			}
		})
	}
}

// Quarantine, too, gives way to a seal.
func TestTrustedSealerQuarantine(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=quarantine; rua=mailto:dmarc@example.com"`)
	r.svc.Config.Enforce = ruapost.DispositionQuarantine
	r.svc.Config.TrustedSealers = []string{"list.example"}
	s := r.connect("192.0.2.1", "mail.example.com")
	for domain, want := range map[string]string{"list.example": "", "other.example": held} {
		s.transmit("x@y.example", bob, r.sealer(domain).Seal(sample("a@example.com")))
		if done := s.finish(); done != want {
			t.Errorf("%s: %q, want %q", domain, done, want)
		}
	}
}

// Keys that do not come cost the message no more than its budget.
func TestARCBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		m := newMessage(t.Context(), &Service{Config: Config{AuthservID: us}, Resolver: silent{}})
		defer m.abandon()
		m.judged = true
		m.spf <- m.spfResult(ruapost.AuthNone)
		header, body := arctest.Parse(arctest.NewSealer("list.example").Seal([]byte("To: x\r\n\r\nHello.\r\n")))
		for _, f := range header {
			m.addHeader(field{f.Name, f.Value})
		}
		m.endOfHeader("1")
		m.body([]byte(body))
		j := m.judge()
		if took := time.Since(began); took > DefaultBudget {
			t.Errorf("took %s", took)
		}
		if want := "instance 1: ARC-Message-Signature: the key did not come in time"; j.arc == nil || j.arc.Status != ruapost.AuthFail || j.arc.Reason != want {
			t.Errorf("%+v", j.arc)
		}
	})
}
