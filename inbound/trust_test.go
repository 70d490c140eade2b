package inbound

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/emersion/go-milter"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ruapost"
	"ruapost/authres"
	"ruapost/internal/arctest"
)

// fields reads lines, folded or not, as Postfix would give them.
func fields(header string) []field {
	var fields []field
	for _, line := range unfold(strings.ReplaceAll(strings.Trim(header, "\n"), "\n", "\r\n")) {
		name, value, _ := strings.Cut(line, ":")
		fields = append(fields, field{name, strings.ReplaceAll(value, "\r\n", "\n")})
	}
	return fields
}

// signaturesOf reads the signatures as a message does.
func signaturesOf(header []field) []signature {
	return (&message{header: header}).signatures()
}

// told writes down what upstream said: "spf=pass", "dkim=pass domain/selector" or "dkim"
// if that there is no signature, and "arc=pass".
func (u *upstream) told() string {
	var words []string
	if u.spf != nil {
		words = append(words, "spf="+string(u.spf.Result))
	}
	for _, s := range u.dkim {
		words = append(words, "dkim="+string(s.result)+" "+s.domain+"/"+s.selector)
	}
	if u.foundDKIM && len(u.dkim) == 0 {
		words = append(words, "dkim")
	}
	if u.arc != "" {
		words = append(words, "arc="+string(u.arc))
	}
	return strings.Join(words, "; ")
}

var mailFrom = ruapost.SPFResult{Domain: "example.com"}

// What the client sent, below what upstream put on top.
const sent = `
Received: from inner.example.com by out.example.com; Wed, 25 Nov 2026 08:57:31 +0000
DKIM-Signature: v=1; a=rsa-sha256; d=example.com; s=k2026; h=from; bh=x; b=cuhHmj/hXYZ
From: alice@example.com
`

func TestUpstream(t *testing.T) {
	for name, tc := range map[string]struct{ header, want string }{
		"OpenDKIM": {
			`
Authentication-Results: mx.example;
	dkim=pass (2048-bit key; unprotected) header.d=example.com header.i=@example.com header.a=rsa-sha256 header.s=k2026 header.b=cuhHmj/h;
	dkim-atps=neutral`,
			"dkim=pass example.com/k2026",
		},
		"OpenDKIM, several, one of them bad": {
			`
Authentication-Results: mx.example;
	dkim=fail reason="signature verification failed" (2048-bit key; unprotected) header.d=example.com header.i=@example.com header.a=rsa-sha256 header.s=k2026 header.b=cuhHmj/h;
	dkim=permerror (0-bit key) header.d=example.com header.i=@example.com header.b="cuhHmj/h";
	dkim=pass (1024-bit key) header.d=esp.example header.i=@esp.example header.b="g+dkNDxI"`,
			"dkim=fail example.com/k2026; dkim=permerror example.com/k2026; dkim=pass esp.example/",
		},
		"OpenDKIM and OpenDMARC": {
			`
Authentication-Results: mx.example; dmarc=pass (p=quarantine dis=none) header.from=example.com
Authentication-Results: mx.example; spf=pass smtp.mailfrom=example.com
DKIM-Filter: OpenDKIM Filter v2.11.0 mx.example 4cX0fy3Frj
Authentication-Results: mx.example;
	dkim=pass (2048-bit key) header.d=example.com header.i=@example.com header.b="cuhHmj/h"`,
			"spf=pass; dkim=pass example.com/k2026",
		},
		"OpenARC": {
			`
Authentication-Results: mx.example; arc=pass smtp.remote-ip="2001:db8:f403::3" arc.chain=example.net
Authentication-Results: mx.example; spf=fail smtp.mailfrom=example.com`,
			"spf=fail; arc=pass",
		},
		"pypolicyd-spf": {
			`
Authentication-Results: mx.example; spf=pass (sender SPF authorized) smtp.mailfrom=example.com (client-ip=2001:db8::1; helo=out.example.com; envelope-from=bob@example.com; receiver=<UNKNOWN>)`,
			"spf=pass",
		},
		"rspamd": {
			`
Authentication-Results: mx.example;
	dkim=pass header.d=Example.COM header.s=Selector2 header.b=cuhHmj/h;
	spf=pass (mx.example: domain of "list+1-bob=mx.example@example.com" designates 192.0.2.10 as permitted sender) smtp.mailfrom="list+1-bob=mx.example@example.com";
	dmarc=pass (policy=reject) header.from=example.com;
	arc=reject ("cv is fail on i=2")
X-Rspamd-Server: mx.example`,
			"spf=pass; dkim=pass example.com/selector2; arc=fail",
		},
		"rspamd, nothing there": {
			`
Authentication-Results: mx.example;
	dkim=none;
	dmarc=none;
	spf=none;
	arc=none`,
			"spf=none; dkim; arc=none",
		},
		"amavis": {
			`
Authentication-Results: mx.example (amavis); dkim=pass (2048-bit key)
 reason="pass (just generated, assumed good)" header.d=example.com`,
			"dkim=pass example.com/k2026",
		},
		"amavisd-new": {
			`
Authentication-Results: mx.example (amavisd-new); dkim=softfail
	(fail, message has been altered) header.i=@example.com`,
			"dkim=neutral example.com/k2026",
		},
		"header.i only": {
			`
Authentication-Results: mx.example; dkim=pass header.i=@mail.example.com header.s=20230601; spf=softfail smtp.mailfrom=<a@example.com>`,
			"spf=softfail; dkim=pass example.com/20230601",
		},
		"header.i of no signature": {
			"Authentication-Results: mx.example; dkim=pass header.i=@example.org", "",
		},

		"authserv-id in any case, quoted": {
			"Authentication-Results: \"MX.\n\texample\" 1; spf=pass smtp.mailfrom=example.com", "spf=pass",
		},
		"authserv-id in U-labels, which milters do not know": {
			"Authentication-Results: bücher.example; spf=pass smtp.mailfrom=example.com", "",
		},
		"authserv-id with a dot, which OpenDKIM does not know": {
			"Authentication-Results: mx.example.; spf=pass smtp.mailfrom=example.com", "",
		},
		"authserv-id that is no domain name": {
			"Authentication-Results: Gateway_7; spf=pass smtp.mailfrom=example.com", "spf=pass",
		},
		"another authserv-id on top": {
			"Authentication-Results: list.example; spf=fail smtp.mailfrom=example.com\nAuthentication-Results: mx.example; spf=pass smtp.mailfrom=example.com",
			"spf=pass",
		},
		"Microsoft, no authserv-id": {
			"Authentication-Results: spf=pass (sender IP is 192.0.2.10)\n smtp.mailfrom=example.com; mx.example; dkim=pass header.d=example.com", "",
		},
		"RFC 8601 2.6, another version": {
			"Authentication-Results: mx.example 2; spf=pass smtp.mailfrom=example.com", "",
		},
		"no-result":      {"Authentication-Results: mx.example; none", ""},
		"no field":       {"X-Spam: no", ""},
		"of DMARC alone": {"Authentication-Results: mx.example; dmarc=fail header.from=example.com; arc=none", "arc=none"},

		"another authserv-id":           {"Authentication-Results: other.example; spf=pass smtp.mailfrom=example.com", ""},
		"longer authserv-id":            {"Authentication-Results: mx.example.net; spf=pass smtp.mailfrom=example.com", ""},
		"subdomain's authserv-id":       {"Authentication-Results: a.mx.example; spf=pass smtp.mailfrom=example.com", ""},
		"authserv-id in a comment":      {"Authentication-Results: (mx.example;) other.example (mx.example); spf=pass smtp.mailfrom=example.com", ""},
		"authserv-id with a queue ID":   {"Authentication-Results: mx.example/4cX0; spf=pass smtp.mailfrom=example.com", ""},
		"a similar field":               {"X-Authentication-Results: mx.example; spf=pass smtp.mailfrom=example.com", ""},
		"no milter writes such a field": {"Authentication-Results : mx.example; spf=pass smtp.mailfrom=example.com", ""},
		"ARC-Authentication-Results":    {"ARC-Authentication-Results: i=1; mx.example; spf=pass smtp.mailfrom=example.com", ""},

		"forged below Received": {
			"Received: from attack.example\nAuthentication-Results: mx.example; spf=pass smtp.mailfrom=example.com; dkim=pass header.d=example.com; arc=pass",
			"",
		},
		"forged below upstream's": {
			`
Authentication-Results: mx.example; spf=fail smtp.mailfrom=example.com; dkim=fail header.d=example.com header.s=k2026; arc=fail
Authentication-Results: mx.example; spf=pass smtp.mailfrom=example.com; dkim=pass header.d=example.com; arc=pass`,
			"spf=fail; dkim=fail example.com/k2026; arc=fail",
		},
		"forged below two of upstream's": {
			`
Authentication-Results: gateway_7; spf=fail smtp.mailfrom=example.com
Authentication-Results: mx.example; dkim=none
Authentication-Results: mx.example; spf=pass smtp.mailfrom=example.com; dkim=pass header.d=example.com
Authentication-Results: gateway_7; spf=pass smtp.mailfrom=example.com; dkim=pass header.d=example.com`,
			"spf=fail; dkim",
		},
		"forged below one that cannot be read": {
			`
Authentication-Results: mx.example; spf=fail smtp.mailfrom="a
Authentication-Results: mx.example; spf=pass smtp.mailfrom=example.com`,
			"",
		},
		"another's that cannot be read on top": {
			`
Authentication-Results: other.example; spf=fail smtp.mailfrom="a
Authentication-Results: mx.example; spf=pass smtp.mailfrom=example.com`,
			"spf=pass",
		},
		"forged inside a comment": {
			"Authentication-Results: mx.example; spf=fail (helo=x; spf=pass smtp.mailfrom=example.com; dkim=pass header.d=example.com;) smtp.mailfrom=example.com",
			"spf=fail",
		},
		"forged inside a local part": {
			`Authentication-Results: mx.example; spf=pass smtp.mailfrom="; dkim=pass header.d=bank.example; x=\""@example.com`,
			"spf=pass",
		},

		"CVE-2019-20790, HELO of mail with a return path": {
			"Authentication-Results: mx.example; spf=pass smtp.helo=example.com", "",
		},
		"CVE-2019-20790, HELO before the return path": {
			"Authentication-Results: mx.example; spf=pass smtp.helo=example.com; spf=fail smtp.mailfrom=example.com", "spf=fail",
		},
		"CVE-2019-20790, another return path": {
			"Authentication-Results: mx.example; spf=pass smtp.mailfrom=attack.example", "",
		},
		"a subdomain's return path": {
			"Authentication-Results: mx.example; spf=pass smtp.mailfrom=mail.example.com", "",
		},
		"two return paths": {
			"Authentication-Results: mx.example; spf=pass smtp.mailfrom=attack.example smtp.mailfrom=example.com", "",
		},
		"a pass of nobody": {"Authentication-Results: mx.example; spf=pass", ""},
		"a none of HELO":   {"Authentication-Results: mx.example; spf=none smtp.helo=example.com", ""},
		"CVE-2020-12272, return path": {
			"Authentication-Results: mx.example; spf=pass smtp.mailfrom=example.com(.attack.example", "",
		},
		"CVE-2020-12272, signing domain": {
			"Authentication-Results: mx.example; dkim=pass header.d=example.com(.attack.example) header.s=k2026", "dkim",
		},
		"signing domain that is none": {
			`Authentication-Results: mx.example; dkim=pass header.d="example.com/"; dkim=pass header.d=192.0.2.1; dkim=fail header.d="" header.i=@example.com`, "dkim",
		},
		"two signing domains": {
			"Authentication-Results: mx.example; dkim=pass header.d=attack.example header.d=example.com", "dkim",
		},
		"no signing domain": {
			"Authentication-Results: mx.example; dkim=pass (good signature)", "",
		},
		"selectors that are none": {
			`Authentication-Results: mx.example; dkim=pass header.d=example.com header.s="a b"; dkim=pass header.d=example.com header.s=a header.s=b header.b=other`,
			"dkim=pass example.com/k2026; dkim=pass example.com/",
		},
		"words": {
			"Authentication-Results: mx.example; spf=HardFail smtp.mailfrom=example.com; dkim=policy header.d=a.example; dkim=TempFail header.d=b.example; dkim=invalid header.d=c.example; dkim=great header.d=d.example; arc=temperror",
			"spf=fail; dkim=policy a.example/; dkim=temperror b.example/; dkim=permerror c.example/; dkim=neutral d.example/; arc=fail",
		},
		"several states of the chain": {"Authentication-Results: mx.example; spf=none; dkim=none; arc=pass; arc=fail", "spf=none; dkim; arc=fail"},
	} {
		header := append(fields(tc.header), fields(sent)...)
		u := readUpstream(header, []string{"mx.example", "xn--bcher-kva.example", "gateway_7"}, mailFrom, signaturesOf(header))
		if got := u.told(); got != tc.want {
			t.Errorf("%s:\n%s; want\n%s", name, got, tc.want)
		}
	}
}

// With a null reverse-path SPF is about HELO (RFC 7208 2.4), and about nothing if that
// is no domain name.
func TestUpstreamNullSender(t *testing.T) {
	helo := ruapost.SPFResult{Domain: "out.example.com", Helo: true, Result: ruapost.AuthTemperror}
	for name, tc := range map[string]struct {
		identity ruapost.SPFResult
		results  string
		want     string
	}{
		"HELO":                {helo, "spf=pass smtp.helo=Out.example.com", "spf=pass"},
		"with a return path":  {helo, `spf=pass smtp.mailfrom="" smtp.helo=out.example.com`, "spf=pass"},
		"another HELO":        {helo, "spf=pass smtp.helo=example.com", ""},
		"return path":         {helo, "spf=pass smtp.mailfrom=out.example.com", ""},
		"null":                {helo, "spf=none smtp.mailfrom=<>", ""},
		"no name to check":    {ruapost.SPFResult{Helo: true}, `spf=pass smtp.helo=""`, "spf=none"},
		"no name, no result":  {ruapost.SPFResult{Helo: true}, "iprev=fail", ""},
		"unsigned, DKIM only": {helo, "dkim=none", "dkim"},
	} {
		header := fields("Authentication-Results: mx.example; " + tc.results)
		u := readUpstream(header, []string{"mx.example"}, tc.identity, nil)
		if got := u.told(); got != tc.want {
			t.Errorf("%s: %s; want %s", name, got, tc.want)
		}
		if u.spf != nil && (u.spf.Domain != tc.identity.Domain || u.spf.Helo != tc.identity.Helo) {
			t.Errorf("%s: %+v", name, u.spf)
		}
	}
}

// Results are those of the signature that they are about.
func TestUpstreamSelector(t *testing.T) {
	header := fields(`
Authentication-Results: mx.example; dkim=pass header.d=example.com header.b=BBBBcccc; dkim=pass header.d=example.com header.b="AAAA";
 dkim=pass header.d=example.com; dkim=pass header.d=example.net header.a=ed25519-sha256; dkim=pass header.d=example.org header.s=given header.b=ZZZZ
DKIM-Signature: v=1; a=rsa-sha256; d=example.com; s=one; h=from; bh=x; b=AAAAbbbbcccc
DKIM-Signature: v=1; a=rsa-sha256; d=example.com; s=two; h=from; bh=x; b=BBBBccccdddd
DKIM-Signature: v=1; a=rsa-sha256; d=example.net; s=same; h=from; bh=x; b=CC
DKIM-Signature: v=1; a=rsa-sha256; d=example.net; s=same; h=from; bh=x; b=DD
DKIM-Signature: v=1; a=rsa-sha256; d=example.org; s=other; h=from; bh=x; b=EE
`)
	u := readUpstream(header, []string{"mx.example"}, mailFrom, signaturesOf(header))
	want := []signature{
		{domain: "example.com", selector: "two", b: "BBBBcccc", result: ruapost.AuthPass},
		{domain: "example.com", selector: "one", b: "AAAA", result: ruapost.AuthPass},
		{domain: "example.com", result: ruapost.AuthPass}, // one of two
		{domain: "example.net", selector: "same", algorithm: "ed25519-sha256", result: ruapost.AuthPass},
		{domain: "example.org", selector: "given", b: "ZZZZ", result: ruapost.AuthPass},
	}
	if d := cmp.Diff(want, u.dkim, cmp.AllowUnexported(signature{})); d != "" {
		t.Error(d)
	}
}

// RFC 9990 3.1.3: at most 100 signatures in a row of a report.
func TestUpstreamManyResults(t *testing.T) {
	header := fields("Authentication-Results: mx.example" + strings.Repeat(";\n dkim=pass header.d=example.com header.s=a", 150))
	u := readUpstream(header, []string{"mx.example"}, mailFrom, nil)
	if len(u.dkim) != 100 {
		t.Errorf("%d results", len(u.dkim))
	}
}

// What the results of upstream look like in our own field.
func TestUpstreamInOurField(t *testing.T) {
	header := append(fields("Authentication-Results: mx.example; spf=pass smtp.mailfrom=example.com; dkim=pass header.d=example.com header.s=\"a b\" header.b=\"x;y\""), fields(sent)...)
	u := readUpstream(header, []string{"mx.example"}, mailFrom, nil)
	m := &message{config: &Config{AuthservID: us}}
	j := &judgement{msg: m, spf: *u.spf, dkim: u.dkim, result: "pass", author: "example.com"}
	want := "mx.receiver.example;\n\tspf=pass smtp.mailfrom=example.com;\n\tdkim=pass header.d=example.com header.b=\"x;y\";\n\tdmarc=pass header.from=example.com"
	if got := j.authResValue(); got != want {
		t.Errorf("%q", got)
	}
}

func FuzzUpstream(f *testing.F) {
	f.Add("mx.example; spf=pass smtp.mailfrom=a@example.com; dkim=pass header.d=a.example header.s=1", "mx.example; dkim=fail (")
	f.Add("other.example; x", "mx.example; spf=none; arc=pass; dkim=bad header.i=\"@b.example\" header.b=a/b")
	f.Fuzz(func(t *testing.T, one, two string) {
		header := append([]field{{authResField, one}, {authResField, two}}, fields(sent)...)
		trusted := []string{"mx.example"}
		u := readUpstream(header, trusted, mailFrom, signaturesOf(header))
		if u.spf != nil && u.spf.Domain != mailFrom.Domain || len(u.dkim) > authres.MaxResults {
			t.Fatalf("%+v", u)
		}
		if !slices.Contains([]ruapost.AuthResult{"", "none", "pass", "fail"}, u.arc) {
			t.Fatal(u.arc)
		}
		for _, s := range u.dkim {
			domain, err := ruapost.ParseDomain(s.domain)
			selector, errS := ruapost.ParseDomain(s.selector + "._domainkey")
			if err != nil || domain != s.domain || s.selector != "" && (errS != nil || selector != s.selector+"._domainkey") {
				t.Fatalf("%+v", s)
			}
			if s.result == ruapost.AuthSoftfail || s.result == ruapost.AuthNone { // not of a signature
				t.Fatalf("%+v", s)
			}
		}
		// Nobody but who is trusted adds a pass, and nothing below Received.
		if !authres.ClaimsToBe(one, trusted[0]) && !authres.ClaimsToBe(two, trusted[0]) && u.told() != "" {
			t.Fatalf("found %+v", u)
		}
		below := append([]field{{"Received", "x"}}, header...)
		if b := readUpstream(below, trusted, mailFrom, nil); b.told() != "" {
			t.Fatalf("below Received: %+v", b)
		}
	})
}

// trusting returns a rig that trusts the milter mx.example, and a message for which
// everything that is verified here has another result than upstream says in the tests.
func trusting(t *testing.T) (*rig, []byte) {
	t.Helper()
	r := newRig(t)
	r.svc.Config.TrustedAuthservIDs = []string{"mx.example"}
	k := key(t, r, "example.com")
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"
		example.com. 300 IN TXT "v=spf1 -all"`)
	list := r.sealer("list.example")
	list.H = "From:Subject" // not Received, which is put on top of it below
	return r, append([]byte("Received: from out.example.com\r\n"), list.Seal(sign(t, k, sample("a@example.com")))...)
}

// under returns the message below upstream's field.
func under(results string, msg []byte) []byte {
	return append([]byte("Authentication-Results: mx.example;\r\n\t"+results+"\r\n"), msg...)
}

// What upstream has a result of is not verified, and what it has none of is.
func TestTrustMode(t *testing.T) {
	const (
		saysSPF  = "spf=pass smtp.mailfrom=bounces@example.com"
		saysDKIM = "dkim=fail (bad; dkim=pass) header.d=example.com header.s=2026"
		saysARC  = "arc=fail"

		spfHere  = "spf=fail smtp.mailfrom=example.com"
		dkimHere = "dkim=pass header.d=example.com header.s=2026 header.a=ed25519-sha256"
		arcHere  = "arc=pass"
		spfThere = "spf=pass smtp.mailfrom=example.com"
		// The rest of a signature that upstream leaves out is not made up.
		dkimThere = "dkim=fail header.d=example.com header.s=2026;"
		arcThere  = "arc=fail"

		askedSPF  = "example.com. TXT"
		askedDKIM = "2026._domainkey.example.com. TXT"
		askedARC  = "2023._domainkey.list.example. TXT"
	)
	for _, tc := range []struct {
		name  string
		field string // what upstream says
		want  []string
		asked []string
	}{
		{"all", saysSPF + "; " + saysDKIM + "; " + saysARC, []string{spfThere, dkimThere, arcThere}, nil},
		{"two fields", saysDKIM + "\r\nX-Other: x\r\nAuthentication-Results: mx.example; " + saysSPF + "; " + saysARC, []string{spfThere, dkimThere, arcThere}, nil},
		{"SPF", saysSPF, []string{spfThere, dkimHere, arcHere}, []string{askedDKIM, askedARC}},
		{"DKIM", saysDKIM, []string{spfHere, dkimThere, arcHere}, []string{askedSPF, askedARC}},
		{"ARC", saysARC, []string{spfHere, dkimHere, arcThere}, []string{askedSPF, askedDKIM}},
		{"DMARC", "dmarc=none header.from=example.com", []string{spfHere, dkimHere, arcHere}, []string{askedSPF, askedDKIM, askedARC}},
		{"nothing", "none", []string{spfHere, dkimHere, arcHere}, []string{askedSPF, askedDKIM, askedARC}},
		{"that there is nothing", saysSPF + "; dkim=none; arc=none", []string{spfThere, "dkim=none;"}, nil},
		{"SPF of another name", "spf=pass smtp.helo=example.com; " + saysDKIM, []string{spfHere, dkimThere, arcHere}, []string{askedSPF, askedARC}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, msg := trusting(t)
			s := r.connect("192.0.2.1", "mail.example.com")
			mods := s.send("bounces@example.com", bob, under(tc.field, msg))
			res := added(t, mods)
			for _, want := range tc.want {
				if !strings.Contains(res, "; "+want) {
					t.Errorf("%s; want %s", res, want)
				}
			}
			if len(mods) != 1 {
				t.Errorf("upstream's field is not left alone: %+v", mods)
			}
			queries := r.dns.Queries()
			for _, name := range []string{askedSPF, askedDKIM, askedARC} {
				if slices.Contains(queries, name) != slices.Contains(tc.asked, name) {
					t.Errorf("queries for %s: %q", name, queries)
				}
			}
			// Both ways it passes DMARC by one of them.
			if got := r.take(); len(got) != 1 || got[0].Result.AlignedSPF != slices.Contains(tc.want, spfThere) ||
				got[0].Result.AlignedDKIM != slices.Contains(tc.want, dkimHere) {
				t.Errorf("%+v", got)
			}
		})
	}
	t.Run("no field", func(t *testing.T) {
		r, msg := trusting(t)
		s := r.connect("192.0.2.1", "mail.example.com")
		before := testutil.ToFloat64(upstreamResults.WithLabelValues("nothing"))
		res := added(t, s.send("bounces@example.com", bob, msg))
		if n := testutil.ToFloat64(upstreamResults.WithLabelValues("nothing")) - before; n != 1 {
			t.Errorf("counted %v times", n)
		}
		for _, want := range []string{spfHere, dkimHere, arcHere} {
			if !strings.Contains(res, "; "+want) {
				t.Errorf("%s; want %s", res, want)
			}
		}
	})
}

// removed returns the indexes of the Authentication-Results fields that are removed.
func removed(mods []milter.ModifyAction) (indexes []uint32) {
	for _, m := range mods {
		if m.Code == milter.ActChangeHeader && m.HeaderName == authResField && m.HeaderValue == "" {
			indexes = append(indexes, m.HeaderIndex)
		}
	}
	return indexes
}

// RFC 8601 5: what upstream cannot have put where it stands is forged. What a client put
// above its own Received field cannot be told from upstream's, and does not count below
// it.
func TestForgedUpstream(t *testing.T) {
	const forged = "spf=pass smtp.mailfrom=example.com; dkim=pass header.d=example.com; arc=pass"
	for name, tc := range map[string]struct {
		upstream string // its authserv-id, and the only one that is trusted
		header   []string
		want     string
		removed  []uint32
	}{
		"below Received": {
			"mx.example",
			[]string{
				"Authentication-Results: MX.example; spf=fail smtp.mailfrom=example.com; dkim=none; arc=none",
				"Authentication-Results: other.example; spf=pass",
				"Received: by x",
				"Authentication-Results: mx.EXAMPLE (c) 1; " + forged,
				"Authentication-Results: other.example; " + forged,
				"Received: by y",
				"Authentication-Results: \"mx.example\"; " + forged,
			},
			"spf=fail smtp.mailfrom=example.com; dkim=none",
			[]uint32{5, 3},
		},
		"above Received, below upstream's": {
			"mx.example",
			[]string{
				"Authentication-Results: mx.example; spf=fail smtp.mailfrom=example.com; dkim=none; arc=none",
				"Authentication-Results: mx.example; " + forged,
				"Received: by x",
			},
			"spf=fail smtp.mailfrom=example.com; dkim=none", nil,
		},
		"upstream has our authserv-id": {
			us,
			[]string{
				"Authentication-Results: " + us + "; spf=fail smtp.mailfrom=example.com; dkim=fail header.d=example.com header.s=s header.b=b; arc=fail",
				"Authentication-Results: " + us + "; " + forged,
				"Received: by x",
				"Authentication-Results: " + us + "; " + forged,
			},
			"spf=fail smtp.mailfrom=example.com; dkim=fail header.d=example.com header.s=s header.b=b; arc=fail",
			[]uint32{3, 2, 1},
		},
		"our authserv-id, which is not trusted": {
			"mx.example",
			[]string{
				"Authentication-Results: " + us + "; " + forged,
				"Authentication-Results: mx.example; spf=fail smtp.mailfrom=example.com; dkim=none; arc=none",
			},
			"spf=fail smtp.mailfrom=example.com; dkim=none",
			[]uint32{1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"`)
			r.svc.Config.TrustedAuthservIDs = []string{tc.upstream}
			r.svc.Config.Enforce = ruapost.DispositionReject
			s := r.connect("192.0.2.1", "mail.example.com")
			msg := append([]byte(strings.Join(tc.header, "\r\n")+"\r\n"), sample("a@example.com")...)
			s.transmit("x@example.com", bob, msg)
			mods, act, err := s.End()
			if err != nil || act.Code != milter.ActReplyCode {
				t.Fatalf("not rejected: %+v, %v", act, err)
			}
			want := us + "; " + tc.want + `; dmarc=fail reason="disposition reject" header.from=example.com policy.dmarc=reject`
			if res := added(t, mods); res != want {
				t.Errorf("%s\nwant\n%s", res, want)
			}
			if got := removed(mods); !slices.Equal(got, tc.removed) {
				t.Errorf("fields %d removed, want %d", got, tc.removed)
			}
		})
	}
}

// Of a header that is too large nothing is taken, SPF is checked as ever, and nobody
// waits for what never began.
func TestTrustModeHeaderTooLarge(t *testing.T) {
	r, msg := trusting(t)
	before := testutil.ToFloat64(limits.WithLabelValues("budget"))
	s := r.connect("192.0.2.1", "mail.example.com")
	filler := strings.Repeat("X-Filler: "+strings.Repeat("x", 1000)+"\r\n", MaxHeader/1000)
	res := added(t, s.send("x@example.com", bob, under("spf=pass smtp.mailfrom=example.com; dkim=none", append([]byte(filler), msg...))))
	if want := us + `; spf=fail smtp.mailfrom=example.com; dkim=policy reason="header too large"; dmarc=fail `; !strings.HasPrefix(res, want) {
		t.Errorf("%s, want %s", res, want)
	}
	if n := testutil.ToFloat64(limits.WithLabelValues("budget")) - before; n != 0 {
		t.Error("waited for the budget")
	}
}

// Upstream's word about the chain stands for ours: a pass makes what the sets say count,
// even where we could not validate them, and nothing else does.
func TestTrustModeSealers(t *testing.T) {
	const others = "spf=fail smtp.mailfrom=example.com; dkim=none; "
	for name, tc := range map[string]struct {
		field string
		sets  bool
		want  string
	}{
		"pass":                {others + "arc=pass", true, "none [{local_policy arc=pass as[1].d=list.example as[1].s=2023 remote-ip[1]=192.0.2.1}]"},
		"fail":                {others + "arc=fail", true, "reject []"},
		"none":                {others + "arc=none", true, "reject []"},
		"pass and fail":       {others + "arc=pass; arc=fail", true, "reject []"},
		"nothing, and no key": {others[:len(others)-2], true, "reject []"},
		"pass of no chain":    {others + "arc=pass", false, "reject []"},
		"of another host":     {others[:len(others)-2] + "\r\nAuthentication-Results: other.example; arc=pass", true, "reject []"},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := trusting(t)
			r.svc.Config.Enforce = ruapost.DispositionReject
			r.svc.Config.TrustedSealers = []string{"list.example"}
			list := arctest.NewSealer("list.example") // whose key is not in the DNS
			list.Results = "dmarc=pass header.from=example.com"
			msg := sample("a@example.com")
			if tc.sets {
				msg = list.Seal(msg)
			}
			s := r.connect("192.0.2.1", "mail.example.com")
			s.transmit("x@example.com", bob, under(tc.field, msg))
			s.finish()
			got := r.take()
			if len(got) != 1 || fmt.Sprintf("%s %v", got[0].Result.Disposition, got[0].Result.Overrides) != tc.want {
				t.Errorf("%+v, want %s", got, tc.want)
			}
		})
	}
}
