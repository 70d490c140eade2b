package inbound

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-milter"
	"github.com/emersion/go-msgauth/dkim"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ruapost"
	"ruapost/dmarc"
	"ruapost/internal/lab"
	"ruapost/resolver"
)

var bob = []string{"bob@receiver.example"}

// signAs signs in ways that lab.Key does not.
func signAs(t *testing.T, k *lab.Key, msg string, change func(*dkim.SignOptions)) []byte {
	t.Helper()
	text, err := k.PEM()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	signer, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	opts := &dkim.SignOptions{Domain: k.Domain, Selector: k.Selector, Signer: signer.(crypto.Signer)}
	change(opts)
	var b bytes.Buffer
	if err := dkim.Sign(&b, strings.NewReader(msg), opts); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// RFC 6376 3.4.3: line ends at the end of a body do not count, a lone CR does. 64
// KiB is what is kept of them.
func TestTrailingLineEnds(t *testing.T) {
	r := newRig(t)
	k := key(t, r, "example.com")
	s := r.connect("192.0.2.1", "mail.example.com")
	head, _, _ := strings.Cut(string(sample("alice@example.com")), "\r\n\r\n")
	const tooMany = `policy reason="too many blank lines in the body"`
	for name, tc := range map[string]struct{ body, simple, relaxed string }{
		"none":                  {"Hello.", "pass", "pass"},
		"64 KiB and two":        {"Hello.\r\n" + strings.Repeat("\r\n", MaxBlankLines/2), "pass", "pass"},
		"64 KiB":                {"Hello." + strings.Repeat("\r\n", MaxBlankLines/2), "pass", "pass"},
		"256 KiB":               {"Hello." + strings.Repeat("\r\n", 1<<17), "pass", "pass"},
		"a chunk ends in CR":    {strings.Repeat("x", 65534) + "\r\n\r\n", "pass", "pass"},
		"a chunk begins with":   {strings.Repeat("x", 65535) + "\r\n\r\nx\r\n", "pass", "pass"},
		"lone CR at the end":    {"Hello.\r\n\r\n\r", "pass", "pass"},
		"lone CR among them":    {"Hello.\r\n\r\r\n\r\n", "pass", "pass"},
		"lone CR and 64 KiB":    {"Hello.\r\r\n" + strings.Repeat("\r\n", MaxBlankLines/2), tooMany, tooMany},
		"blanks among them":     {"Hello.\r\n \r\n\t\r\n\r\n", "pass", "pass"},
		"64 KiB of blank lines": {"Hello." + strings.Repeat(" \r\n", MaxBlankLines/3), "pass", "pass"},
		"more of blank lines":   {"Hello." + strings.Repeat(" \r\n", MaxBlankLines/3+2), tooMany, tooMany},
		"many, and then text":   {"Hello." + strings.Repeat("\t\r\n", MaxBlankLines) + "Bye.", tooMany, tooMany},
		"blanks alone":          {"Hello." + strings.Repeat(" ", MaxBlankLines+1) + "Bye.", tooMany, tooMany},
	} {
		for can, want := range map[dkim.Canonicalization]string{
			dkim.CanonicalizationSimple: tc.simple, dkim.CanonicalizationRelaxed: tc.relaxed,
		} {
			msg := signAs(t, k, head+"\r\n\r\n"+tc.body, func(o *dkim.SignOptions) {
				o.HeaderCanonicalization, o.BodyCanonicalization = can, can
			})
			if res := added(t, s.send("x@y.example", bob, msg)); !strings.Contains(res, "dkim="+want+" header.d=") {
				t.Errorf("%s, %s: %s; want %s", name, can, res, want)
			}
		}
	}
}

func TestSignaturesNotAccepted(t *testing.T) {
	r := newRig(t)
	k := key(t, r, "example.com")
	strict, err := lab.NewEd25519Key("strict.example", "2026")
	if err != nil {
		t.Fatal(err)
	}
	txt, err := strict.TXT()
	if err != nil {
		t.Fatal(err)
	}
	r.dns.Add(`2026._domainkey.strict.example. 300 IN TXT "` + txt + `; t=y : s"`)
	identifier := func(k *lab.Key, id string) []byte {
		return signAs(t, k, string(sample("alice@example.com")), func(o *dkim.SignOptions) { o.Identifier = id })
	}
	tags := func(add string, msg []byte) []byte {
		return bytes.Replace(msg, []byte("DKIM-Signature:"), []byte("DKIM-Signature:"+add), 1)
	}
	s := r.connect("192.0.2.1", "mail.example.com")
	for name, tc := range map[string]struct {
		msg  []byte
		want string
	}{
		"RFC 6376 8.2, l=": {tags(" l=3;", sign(t, k, sample("a@example.com"))), `policy reason="body length limit (l=) is not accepted" header.d=example.com`},
		"l= and expired":   {tags(" l=3; x=1;", sign(t, k, sample("a@example.com"))), `permerror header.d=example.com`},

		"RFC 6376 3.6.1, i= below d=":  {identifier(k, "a@sub.example.com"), "pass header.d=example.com"},
		"t=s, i= below d=":             {identifier(strict, "a@sub.strict.example"), `permerror reason="the key is not for subdomains (t=s)" header.d=strict.example`},
		"t=s, i= below d=, no @":       {identifier(strict, "sub.strict.example"), "permerror reason"},
		"t=s, i= at d=":                {identifier(strict, "a@strict.example"), "pass header.d=strict.example"},
		"t=s, no i=":                   {identifier(strict, ""), "pass header.d=strict.example"},
		"t=s, i= below d=, body wrong": {append(identifier(strict, "a@sub.strict.example"), 'x'), "fail header.d=strict.example"},
	} {
		if res := added(t, s.send("x@y.example", bob, tc.msg)); !strings.Contains(res, "dkim="+tc.want) {
			t.Errorf("%s: %s; want %s", name, res, tc.want)
		}
	}
}

// A signature may cover those that were there before it, and none that came later can
// change what it says. A single one may not cover the whole header as often as it likes.
func TestSignaturesOfSignatures(t *testing.T) {
	r := newRig(t)
	author, list := key(t, r, "example.com"), key(t, r, "list.example")
	s := r.connect("192.0.2.1", "mail.example.com")
	all := func(o *dkim.SignOptions) { o.HeaderKeys = nil } // each field in the header, signatures included
	base := string(sample("alice@example.com"))
	signed := string(signAs(t, author, base, all))
	first := strings.TrimSuffix(signed, base)
	both := string(signAs(t, list, signed, all))
	third := string(signAs(t, author, both, func(o *dkim.SignOptions) { o.HeaderKeys = []string{"From"} }))
	big := strings.Replace(signed, "\r\n\r\n", "\r\nTo: "+strings.Repeat("x", MaxSignedHeader/8)+"\r\n\r\n", 1)
	for range MaxSignatures - 1 {
		big = string(signAs(t, author, big, func(o *dkim.SignOptions) { o.HeaderKeys = []string{"From", "To"} }))
	}
	const pass, much = "pass", `policy reason="too much signed header"`
	for name, tc := range map[string]struct {
		msg  string
		want []string // the topmost first
	}{
		"both":                   {both, []string{pass, pass}},
		"the first is changed":   {strings.Replace(both, first, strings.Replace(first, ":", ": n=1;", 1), 1), []string{"fail", "fail"}},
		"the first is taken out": {strings.Replace(both, first, "", 1), []string{"fail"}},
		"another on top":         {third, []string{pass, pass, pass}},
		"a bad one on top":       {strings.Replace(third, ":", ": n=1;", 1), []string{"fail", pass, pass}},
		"junk between":           {strings.Replace(both, "\r\nDKIM-Signature:", "\r\nDKIM-Signature: d=junk.example; s=x\r\nDKIM-Signature:", 1), []string{pass, "permerror", pass}},
		"ten times 1/8":          {big, []string{pass, pass, pass, pass, pass, pass, pass, much, much, much}},
	} {
		var got []string
		for _, result := range strings.Split(added(t, s.send("x@y.example", bob, []byte(tc.msg))), "; ") {
			if method, rest, _ := strings.Cut(result, "="); method == "dkim" {
				got = append(got, strings.TrimSpace(rest[:strings.Index(rest, " header.d")]))
			}
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// What the verifier did not expect says nothing of the signature, and one that it has
// not come to the end of is a temporary error.
func TestVerifierFails(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	c := &dkimCheck{signatures: make([]signature, 4), keys: map[string]*keyRecord{"._domainkey.": {}}}
	c.signatures[3].result = ruapost.AuthPolicy
	for i := range 3 {
		_, w := io.Pipe()
		v := &verification{signature: &c.signatures[i], in: w, done: make(chan struct{})}
		c.running = append(c.running, v)
	}
	c.running[0].err = errors.New("unexpected")
	close(c.running[0].done)
	c.running[2].result = &dkim.Verification{}
	close(c.running[2].done)
	var got []ruapost.AuthResult
	for _, s := range c.finish(ended) {
		got = append(got, s.result)
	}
	want := []ruapost.AuthResult{ruapost.AuthNeutral, ruapost.AuthTemperror, ruapost.AuthPass, ruapost.AuthPolicy}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// What go-msgauth does per name in h=, per field and per fold is quadratic.
func TestCostlyHeaders(t *testing.T) {
	r := newRig(t)
	k := key(t, r, "example.com")
	s := r.connect("192.0.2.1", "mail.example.com")
	signed := string(sign(t, k, sample("alice@example.com")))
	many := func(n int) string {
		return "DKIM-Signature: v=1; a=ed25519-sha256; d=example.com; s=2026; bh=; b=; h=from" + strings.Repeat(":a", n-1) + "\r\n"
	}
	const pass = "dkim=pass header.d=example.com"
	const fields = `dkim=policy reason="too many header fields or folds" header.d=example.com`
	for name, tc := range map[string]struct {
		msg  string
		want []string
	}{
		"h= with a name too many": {
			many(MaxSignedFields+1) + signed,
			[]string{`dkim=policy reason="too many names in h=" header.d=example.com`, pass},
		},
		"h= full":       {many(MaxSignedFields) + signed, []string{"dkim=fail header.d=example.com", pass}},
		"h= enormous":   {strings.Repeat(many(48_000), 4) + strings.Repeat("a:\r\n", 5_000) + signed, []string{fields}},
		"many fields":   {strings.Repeat("X: y\r\n", MaxFields-10) + signed, []string{pass}},
		"fields beyond": {strings.Repeat("X: y\r\n", MaxFields) + signed, []string{fields}},
		"many folds":    {"X: y\r\n" + strings.Repeat(" z\r\n", MaxFolds-10) + signed, []string{pass}},
		"folds beyond":  {strings.Repeat("X:"+strings.Repeat("\r\n ", 3000)+"\r\n", 10) + signed, []string{fields}},
	} {
		began := time.Now()
		res := added(t, s.send("x@y.example", bob, []byte(tc.msg)))
		for _, want := range tc.want {
			if !strings.Contains(res, want) {
				t.Errorf("%s: %s; want %s", name, res, want)
			}
		}
		if d := time.Since(began); d > 10*time.Second {
			t.Errorf("%s: took %s", name, d)
		}
	}
}

// Postfix's cleanup(8) needs time that grows with the square of the removals, and
// memory it may not have.
func TestManyForgedFields(t *testing.T) {
	r := newRig(t)
	s := r.connect("192.0.2.1", "mail.example.com")
	before := testutil.ToFloat64(limits.WithLabelValues("forged"))
	msg := append([]byte(strings.Repeat("Authentication-Results:;\r\n", 10_500)), sample("a@example.com")...)
	want := uint32(MaxForged)
	for _, m := range s.send("x@y.example", bob, msg) {
		if m.Code != milter.ActChangeHeader {
			continue
		}
		if m.HeaderIndex != want {
			t.Fatalf("field %d removed, not %d", m.HeaderIndex, want)
		}
		want--
	}
	if want != 0 {
		t.Errorf("the topmost %d fields not removed", want)
	}
	if n := testutil.ToFloat64(limits.WithLabelValues("forged")) - before; n != 1 {
		t.Errorf("counted %v times", n)
	}
}

// A message under way when the program is told to stop is judged as ever, and the
// connection ends with its answer.
func TestStopInsideMessage(t *testing.T) {
	r := newRig(t)
	k := key(t, r, "example.com")
	s := r.connect("192.0.2.1", "mail.example.com")
	s.transmit("x@y.example", bob, sign(t, k, sample("alice@example.com")))
	r.stop()
	if res := added(t, s.end()); !strings.Contains(res, "dkim=pass") {
		t.Error(res)
	}
	if _, err := s.Mail("x@y.example", nil); err == nil {
		t.Error("the connection goes on after its message")
	}
}

// faulty is a Resolver whose lookups of names with some part panic.
type faulty struct {
	Resolver
	part string
}

func (f faulty) LookupTXT(ctx context.Context, name string) ([]string, bool, error) {
	if strings.Contains(name, f.part) {
		panic("LookupTXT")
	}
	return f.Resolver.LookupTXT(ctx, name)
}

func (f faulty) SPF(netip.Addr) resolver.SPF { panic("SPF") }

func TestFaults(t *testing.T) {
	r := newRig(t)
	k := key(t, r, "example.com")
	real := r.svc.Resolver
	s := r.connect("192.0.2.1", "mail.example.com")
	msg := append([]byte("Authentication-Results: "+us+"; dmarc=pass\r\n"), sign(t, k, sample("a@example.com"))...)
	before := testutil.ToFloat64(panics)

	r.svc.Resolver = faulty{real, "_domainkey"}
	res := added(t, s.send("x@y.example", bob, msg))
	if !strings.Contains(res, "; spf=temperror smtp.mailfrom=y.example; dkim=temperror header.d=example.com") {
		t.Error(res)
	}
	if n := testutil.ToFloat64(panics) - before; n != 2 {
		t.Errorf("%v faults counted", n)
	}
	// Nor is there a verdict then; the forged field goes all the same.
	r.svc.Resolver = faulty{real, ""}
	mods := s.send("x@y.example", bob, msg)
	if len(mods) != 2 || mods[0].Code != milter.ActChangeHeader || !strings.Contains(added(t, mods), "dmarc=temperror header.from=example.com") {
		t.Errorf("%+v", mods)
	}
	r.svc.Resolver = real
	if res := added(t, s.send("x@y.example", bob, msg)); !strings.Contains(res, "dkim=pass") {
		t.Error(res)
	}
}

// silent is a Resolver that never answers.
type silent struct{ Resolver }

func (silent) LookupTXT(ctx context.Context, _ string) ([]string, bool, error) {
	<-ctx.Done()
	return nil, false, ctx.Err()
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := &Service{Config: Config{AuthservID: us}, Resolver: silent{}}
		k, err := lab.NewEd25519Key("example.com", "2026")
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		m := newMessage(t.Context(), svc)
		defer m.abandon()
		m.begin(netip.MustParseAddr("192.0.2.1"), "helo", "")
		head, body, _ := strings.Cut(string(sign(t, k, sample("a@example.com"))), "\r\n\r\n")
		for _, line := range unfold(head) {
			name, value, _ := strings.Cut(line, ":")
			m.addHeader(field{name, value})
		}
		m.endOfHeader("1")
		m.body([]byte(body))
		j := m.judge()
		if d := time.Since(began); d > DefaultBudget {
			t.Errorf("took %s", d)
		}
		if len(j.dkim) != 1 || j.result != dmarc.ResultTemperror {
			t.Errorf("%+v, %v", j.dkim, j.result)
		}
	})
}

// With the null reverse-path the HELO name was not checked in time: that is no fail
// (RFC 7208 2.4).
func TestSPFTooLate(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m := newMessage(ctx, &Service{Resolver: silent{}})
	m.judged = true
	m.identify("mail.example.com", "") // and no check begins
	want := ruapost.SPFResult{Domain: "mail.example.com", Helo: true, Result: ruapost.AuthTemperror}
	if j := m.judge(); j.spf != want {
		t.Errorf("%+v", j.spf)
	}
}

// go-milter keeps the header of a message a second time, as a map.
func TestHeaderMemory(t *testing.T) {
	r := newRig(t)
	var inside atomic.Uint64
	heap := func() uint64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	r.svc.Now = func() time.Time {
		inside.Store(heap())
		return time.Now()
	}
	s := r.connect("192.0.2.1", "mail.example.com")
	s.must(s.Mail("x@y.example", nil))
	before := heap()
	value := strings.Repeat("x", 100)
	for range 100_000 {
		s.must(s.HeaderField("X", value))
	}
	s.must(s.HeaderEnd())
	s.end()
	if now := inside.Load(); now > before+4<<20 {
		t.Errorf("%d bytes for a header of 10 MB", now-before)
	}
}

// Reports about reports would never end (RFC 9990 3.5.2, RFC 8460 5.3).
func TestReportsAreOptional(t *testing.T) {
	r := newRig(t)
	r.svc.Config.ReportAddress, r.svc.Config.ReportDelimiter = "Reports@receiver.example", "="
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@example.com"`)
	s := r.connect("192.0.2.1", "mail.example.com")
	for name, tc := range map[string]struct {
		rcpts   []string
		subject string
		want    bool
	}{
		"DMARC report":     {bob, "Report Domain: example.com Submitter: example.org Report-ID: <1>", true},
		"folded, any case": {bob, "\r\n report\r\n\tdomain: example.com", true},
		// What the large ones write, whatever the RFCs say.
		"Google":                    {bob, "Report domain: example.com Submitter: google.com Report-ID: 123", true},
		"Microsoft":                 {bob, "[Preview] Report Domain: example.com Submitter: protection.outlook.com Report-ID: 1", true},
		"Microsoft, RFC 2047":       {bob, "=?utf-8?B?W1ByZXZpZXddIFJlcG9ydCBE?=\r\n =?utf-8?B?b21haW46IGV4YW1wbGUuY29t?=", true},
		"RFC 2047, Q":               {bob, "=?us-ascii?Q?Report_Domain:_example.com?=", true},
		"Amazon SES":                {bob, "Dmarc Aggregate Report Domain: {example.com}  Submitter:\r\n {Amazon SES}  Date: {2026-11-23}", true},
		"home-made":                 {bob, "DMARC report for example.com", true},
		"failure report":            {bob, "DMARC Forensic Report for example.com from IP 192.0.2.1", true},
		"of DMARC reporting":        {bob, "DMARC reporting: when?", false},
		"long":                      {bob, "=?utf-8?Q?Report_Domain:?= " + strings.Repeat("=?utf-8?Q?", 50_000), true},
		"mail.ru":                   {bob, "Report Domain: example.com; Submitter: Mail.Ru; Report-ID: 1", true},
		"RFC 2047, broken":          {bob, "=?utf-8?B?W1ByZXZ?= =?x?Report Domain:", false},
		"another tag":               {bob, "[users] My report domain: example.com", false},
		"to the report address":     {[]string{"reports@receiver.example"}, "Bounce", true},
		"to its extension":          {[]string{"reports+0123@receiver.example"}, "Bounce", true},
		"to ours behind another":    {[]string{"reports=0123@receiver.example"}, "Bounce", true},
		"to others as well":         {[]string{bob[0], "reports@receiver.example"}, "Hello", true},
		"to a similar address":      {[]string{"reportsx@receiver.example"}, "Hello", false},
		"another mail":              {bob, "Hello", false},
		"about a report":            {bob, "Re: Report Domain: example.com", false},
		"a mail about a domain":     {bob, "Report Domains: all", false},
		"to another report address": {[]string{"reports@other.example"}, "Hello", false},
	} {
		msg := lab.Mail{From: "a@example.com", To: "b@receiver.example", Subject: tc.subject, Body: "x"}.Bytes()
		s.send("x@y.example", tc.rcpts, msg)
		if got := r.take(); len(got) != 1 || got[0].Optional != tc.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
	// Without an address of our own nothing is sent to it.
	r.svc.Config.ReportAddress = ""
	s.send("x@y.example", nil, sample("a@example.com"))
	if got := r.take(); len(got) != 1 || got[0].Optional {
		t.Errorf("no recipient: %+v", got)
	}
}

// RFC 6376 3.6.2.2: of several key records none counts, and none is kept while the
// message arrives, as they may have 32 KiB.
func TestSeveralKeyRecords(t *testing.T) {
	r := newRig(t)
	r.dns.Add("k.example. 300 IN TXT v=DKIM1\nk.example. 300 IN TXT v=DKIM1")
	k := &keyRecord{done: make(chan struct{})}
	k.fetch(t.Context(), r.svc.Resolver, "k.example")
	if k.txts != nil || k.err == nil || resolver.IsTemporary(k.err) {
		t.Errorf("%q, %v", k.txts, k.err)
	}
}

// keyed is a Resolver that has one text for all names.
type keyed struct {
	Resolver
	txt string
}

func (k keyed) LookupTXT(context.Context, string) ([]string, bool, error) {
	return []string{k.txt}, false, nil
}

// Whatever is in a signature, the header and the body: a result, and no other header
// passes than the one that was signed.
func FuzzVerify(f *testing.F) {
	k, err := lab.NewEd25519Key("example.com", "2026")
	if err != nil {
		f.Fatal(err)
	}
	txt, err := k.TXT()
	if err != nil {
		f.Fatal(err)
	}
	signed, err := k.Sign([]byte("From: alice@example.com\r\n\r\nHello.\r\n"))
	if err != nil {
		f.Fatal(err)
	}
	value, _, _ := strings.Cut(strings.TrimPrefix(string(signed), "DKIM-Signature:"), "\r\nFrom:")
	f.Add(value, " alice@example.com", "Hello.\r\n")
	f.Add(value, " alice@example.com", "Hello.\r\n\r")
	f.Add(" v=1; a=rsa-sha256; c=relaxed; d=example.com; s=2026; h=from:dkim-signature; bh=; b=; l=0; x=1; t=2; q=dns/txt; i=@example.com", "x", "")
	faults := testutil.ToFloat64(panics)
	f.Fuzz(func(t *testing.T, sig, from, body string) {
		m := newMessage(t.Context(), &Service{Config: Config{AuthservID: us}, Resolver: keyed{txt: txt}})
		defer m.abandon()
		m.header = []field{{signatureField, sig}, {"From", from}}
		c := m.startDKIM(m.signatures())
		if c == nil {
			return
		}
		for chunk := range slices.Chunk([]byte(body), 7) {
			c.write(chunk)
		}
		for _, s := range c.finish(t.Context()) {
			switch s.result {
			case ruapost.AuthPass:
				if from := strings.TrimSpace(from); from != "alice@example.com" {
					t.Errorf("%q passes for %q", sig, from)
				}
			case ruapost.AuthFail, ruapost.AuthPolicy, ruapost.AuthNeutral, ruapost.AuthPermerror:
			default:
				t.Errorf("%q: result %q", sig, s.result)
			}
		}
		if testutil.ToFloat64(panics) != faults {
			t.Error("fault")
		}
	})
}
