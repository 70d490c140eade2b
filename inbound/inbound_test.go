package inbound

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/mail"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-milter"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"ruapost"
	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
	"ruapost/resolver"
)

const us = "mx.receiver.example"

// rig is a Service with a DNS server of its own, and what it recorded.
type rig struct {
	t    *testing.T
	dns  *dnstest.Server
	svc  *Service
	addr string
	stop context.CancelFunc // ends the context of all connections

	mu       sync.Mutex
	recorded []ruapost.Evaluation
}

func (r *rig) RecordEvaluation(_ context.Context, e *ruapost.Evaluation) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recorded = append(r.recorded, *e)
	return nil
}

func (r *rig) take() []ruapost.Evaluation {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.recorded
	r.recorded = nil
	return got
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dns, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	res, err := resolver.New(resolver.Config{Servers: []string{dns.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dns: dns}
	r.svc = &Service{
		Config: Config{
			AuthservID:      us,
			TrustedNetworks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			RecordTimeout:   time.Second,
		},
		Resolver: res,
		Recorder: r,
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { r.svc.ServeConn(ctx, conn) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		cancel()
		wg.Wait()
		res.Close()
		dns.Close()
	})
	return r
}

// smtp is one SMTP session as Postfix tells it.
type smtp struct {
	t *testing.T
	*milter.ClientSession
}

func (r *rig) connect(client, helo string) *smtp {
	r.t.Helper()
	c := milter.NewClientWithOptions("tcp", r.addr, milter.ClientOptions{
		ActionMask: milter.OptAddHeader | milter.OptChangeHeader | milter.OptQuarantine,
	})
	s, err := c.Session()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { s.Close() })
	family := milter.FamilyInet
	if strings.Contains(client, ":") {
		family = milter.FamilyInet6
	}
	if _, err := s.Conn("["+client+"]", family, 40000, client); err != nil {
		r.t.Fatal(err)
	}
	if _, err := s.Helo(helo); err != nil {
		r.t.Fatal(err)
	}
	return &smtp{r.t, s}
}

// send sends a message and returns how Postfix is to change its header.
func (s *smtp) send(from string, rcpts []string, msg []byte) []milter.ModifyAction {
	s.t.Helper()
	s.transmit(from, rcpts, msg)
	mods := s.end()
	if err := s.Abort(); err != nil { // Postfix does so after every message
		s.t.Fatal(err)
	}
	return mods
}

func (s *smtp) must(act *milter.Action, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	if act.Code != milter.ActContinue {
		s.t.Fatalf("answer %c", act.Code)
	}
}

// transmit sends all of a message but its end.
func (s *smtp) transmit(from string, rcpts []string, msg []byte) {
	s.t.Helper()
	s.must(s.Mail(from, nil))
	for _, rcpt := range rcpts {
		s.must(s.Rcpt(rcpt, nil))
	}
	head, body, ok := bytes.Cut(msg, []byte("\r\n\r\n"))
	if !ok {
		s.t.Fatal("no empty line in the message")
	}
	for _, line := range unfold(string(head)) {
		name, value, _ := strings.Cut(line, ":")
		// As Postfix does with the leading blank left on: folds are LF.
		s.must(s.HeaderField(name, strings.ReplaceAll(value, "\r\n", "\n")))
	}
	s.must(s.HeaderEnd())
	for chunk := body; len(chunk) > 0; {
		n := min(len(chunk), 65535)
		s.must(s.BodyChunk(chunk[:n]))
		chunk = chunk[n:]
	}
}

func (s *smtp) end() []milter.ModifyAction {
	s.t.Helper()
	mods, act, err := s.End()
	s.must(act, err)
	return mods
}

func unfold(head string) (fields []string) {
	for _, line := range strings.Split(head, "\r\n") {
		if n := len(fields); n > 0 && strings.IndexAny(line, " \t") == 0 {
			fields[n-1] += "\r\n" + line
			continue
		}
		fields = append(fields, line)
	}
	return fields
}

// added returns the one Authentication-Results field that was put on top.
func added(t *testing.T, mods []milter.ModifyAction) string {
	t.Helper()
	var got []string
	for _, m := range mods {
		if m.Code == milter.ActInsertHeader && m.HeaderName == authResField {
			got = append(got, m.HeaderValue)
		}
	}
	if len(got) != 1 {
		t.Fatalf("fields added: %q", got)
	}
	return strings.Join(strings.Fields(got[0]), " ")
}

func key(t *testing.T, r *rig, domain string) *lab.Key {
	t.Helper()
	k, err := lab.NewEd25519Key(domain, "2026")
	if err != nil {
		t.Fatal(err)
	}
	line, err := k.ZoneLine()
	if err != nil {
		t.Fatal(err)
	}
	r.dns.Add(line)
	return k
}

func sign(t *testing.T, k *lab.Key, msg []byte) []byte {
	t.Helper()
	signed, err := k.Sign(msg)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func sample(from string) []byte {
	return lab.Mail{From: from, To: "bob@receiver.example", Subject: "a test", Body: "Hello.\r\n\r\nBye.\r\n"}.Bytes()
}

func TestAlignedDKIM(t *testing.T) {
	r := newRig(t)
	k := key(t, r, "example.com")
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"`)
	s := r.connect("192.0.2.1", "mail.example.com")
	mods := s.send("bounces@lists.example.net", []string{"bob@receiver.example"}, sign(t, k, sample("alice@example.com")))

	b := "" // header.b is random
	res := added(t, mods)
	if _, rest, ok := strings.Cut(res, "header.b="); ok {
		b = rest[:strings.Index(rest, ";")]
	}
	want := us + "; spf=none smtp.mailfrom=lists.example.net;" +
		" dkim=pass header.d=example.com header.s=2026 header.a=ed25519-sha256 header.b=" + b +
		"; dmarc=pass header.from=example.com policy.dmarc=reject"
	if res != want {
		t.Errorf("Authentication-Results\n%s\nwant\n%s", res, want)
	}
	got := r.take()
	if len(got) != 1 {
		t.Fatalf("%d evaluations", len(got))
	}
	wantEval := ruapost.Evaluation{
		Interval: 24 * time.Hour,
		Policy: ruapost.DMARCPolicy{
			Domain: "example.com", P: "reject", ADKIM: "r", ASPF: "r", FO: "0", Percent: 100, Discovery: "treewalk",
		},
		OrganizationalDomain: "example.com",
		Result: ruapost.DMARCResult{
			SourceIP: netip.MustParseAddr("192.0.2.1"), Disposition: ruapost.DispositionPass, AlignedDKIM: true,
			HeaderFrom: "example.com", EnvelopeFrom: "lists.example.net", EnvelopeTo: "receiver.example",
			DKIM: []ruapost.DKIMResult{{Domain: "example.com", Selector: "2026", Result: ruapost.AuthPass}},
			SPF:  ruapost.SPFResult{Domain: "lists.example.net", Result: ruapost.AuthNone},
		},
	}
	if d := cmp.Diff(wantEval, got[0], cmpopts.IgnoreFields(ruapost.Evaluation{}, "Time"), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
}

// go-milter forgets the client at every answer but Continue, and Postfix tells it
// only once per SMTP session.
func TestSeveralMessagesInOneSession(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=quarantine; rua=mailto:dmarc@example.com"
		example.com. 300 IN TXT "v=spf1 ip4:192.0.2.1 -all"`)
	s := r.connect("192.0.2.1", "mail.example.com")
	for range 3 {
		s.send("alice@example.com", []string{"bob@receiver.example", "eve@receiver.example"}, sample("alice@example.com"))
	}
	s.send("alice@example.com", []string{"bob@receiver.example", "carol@other.example"}, sample("mallory@example.org"))
	s.send("", []string{"bob@receiver.example"}, sample("mallory@sub.example.com"))
	var got []string
	for _, e := range r.take() {
		res := e.Result
		got = append(got, fmt.Sprintf("%s from=%s mfrom=%s to=%s spf=%s/%v dkim=%v disp=%s overrides=%v",
			res.SourceIP, res.HeaderFrom, res.EnvelopeFrom, res.EnvelopeTo, res.SPF.Result, res.AlignedSPF, res.AlignedDKIM, res.Disposition, res.Overrides))
	}
	pass := "192.0.2.1 from=example.com mfrom=example.com to=receiver.example spf=pass/true dkim=false disp=pass overrides=[]"
	want := []string{
		pass, pass, pass,
		"192.0.2.1 from=sub.example.com mfrom= to=receiver.example spf=none/false dkim=false disp=none overrides=[{local_policy policy is not enforced here}]",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestNotRecorded(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.norua.example. 300 IN TXT "v=DMARC1; p=reject"
		_dmarc.httponly.example. 300 IN TXT "v=DMARC1; p=reject; rua=https://httponly.example/"
		_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"`)
	s := r.connect("192.0.2.1", "mail.example.com")
	for from, want := range map[string]string{
		"a@norua.example":    `dmarc=fail reason="disposition none: local_policy (policy is not enforced here)" header.from=norua.example policy.dmarc=reject`,
		"a@httponly.example": `dmarc=fail reason="disposition none: local_policy (policy is not enforced here)" header.from=httponly.example policy.dmarc=reject`,
		"a@nothing.example":  "dmarc=none header.from=nothing.example",
		"nobody":             `dmarc=permerror reason="no author domain"`,
	} {
		if res := added(t, s.send("x@y.example", []string{"bob@receiver.example"}, sample(from))); !strings.HasSuffix(res, want) {
			t.Errorf("From %s: %s; want %s", from, res, want)
		}
	}
	trusted := r.connect("10.1.2.3", "inside")
	if act, err := trusted.Conn("inside", milter.FamilyInet, 1, "10.1.2.3"); err != nil || act.Code != milter.ActAccept {
		t.Errorf("trusted network: %+v, %v", act, err)
	}
	if got := r.take(); len(got) != 0 {
		t.Errorf("recorded %+v", got)
	}
}

// Mail of our own users and of clients without an address is not judged, but must
// not keep fields that claim to be ours either (RFC 8601 5).
func TestSkipped(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"`)
	msg := append([]byte("Authentication-Results: "+us+"; dmarc=pass\r\n"), sample("a@example.com")...)
	only := []milter.ModifyAction{{Code: milter.ActChangeHeader, HeaderIndex: 1, HeaderName: authResField}}

	s := r.connect("192.0.2.1", "mail.example.com")
	before := testutil.ToFloat64(messages.WithLabelValues("skipped"))
	if err := s.Macros(milter.CodeMail, "{auth_authen}", "alice"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(only, s.send("a@example.com", []string{"bob@receiver.example"}, msg)); d != "" {
		t.Errorf("authenticated client: %s", d)
	}
	unknown := r.connect("192.0.2.1", "mail.example.com")
	unknown.must(unknown.Conn("unknown", milter.FamilyUnknown, 0, ""))
	if d := cmp.Diff(only, unknown.send("a@example.com", []string{"bob@receiver.example"}, msg)); d != "" {
		t.Errorf("unknown client: %s", d)
	}
	if n := testutil.ToFloat64(messages.WithLabelValues("skipped")) - before; n != 2 {
		t.Errorf("%v messages counted as skipped", n)
	}
	if got := r.take(); len(got) != 0 {
		t.Errorf("recorded %+v", got)
	}
	// The same session goes on with a message that is nobody's user's.
	if err := s.Macros(milter.CodeMail); err != nil {
		t.Fatal(err)
	}
	s.send("x@y.example", []string{"bob@receiver.example"}, sample("a@example.com"))
	if got := r.take(); len(got) != 1 {
		t.Errorf("%d evaluations after an authenticated message", len(got))
	}
}

// RFC 8601 5: fields that claim to be ours are removed, from the last to the first
// because every removal shifts the indexes.
func TestForgedResultsAreRemoved(t *testing.T) {
	r := newRig(t)
	s := r.connect("192.0.2.1", "mail.example.com")
	msg := append([]byte(strings.Join([]string{
		"Authentication-Results: " + us + "; dmarc=pass",
		"Authentication-Results: other.example; dmarc=pass",
		"AUTHENTICATION-RESULTS: (c \\) (nested)) MX.Receiver.Example 1; dkim=pass",
		"Authentication-Results: \"mx.receiver.example\"; none",
		"Authentication-Results: (never ends",
		"Authentication-Results: mx.receiver.example.org; none",
	}, "\r\n")+"\r\n"), sample("a@example.com")...)
	var deleted []uint32
	for _, m := range s.send("x@y.example", []string{"bob@receiver.example"}, msg) {
		if m.Code == milter.ActChangeHeader {
			if m.HeaderValue != "" {
				t.Errorf("changed to %q", m.HeaderValue)
			}
			deleted = append(deleted, m.HeaderIndex)
		}
	}
	if d := cmp.Diff([]uint32{5, 4, 3, 1}, deleted); d != "" {
		t.Error(d)
	}
}

// go-msgauth copies a pending run of blank lines at each write, and canonicalization
// leaves blank lines at the end away (RFC 6376 3.4.3).
func TestBlankLines(t *testing.T) {
	r := newRig(t)
	k := key(t, r, "example.com")
	s := r.connect("192.0.2.1", "mail.example.com")
	base := string(sample("alice@example.com"))
	for name, tc := range map[string]struct{ body, want string }{
		"some inside":     {"Hello.\r\n" + strings.Repeat("\r\n", 1000) + "Bye.\r\n", "pass"},
		"many at the end": {"Hello.\r\n" + strings.Repeat("\r\n", 1<<20), "pass"},
		"many inside":     {"Hello.\r\n" + strings.Repeat("\r\n", MaxBlankLines) + "Bye.\r\n", `policy reason="too many blank lines in the body"`},
		"nothing else":    {"\r\n\r\n", "pass"},
		"at the start":    {"\r\n\r\nHello.\r\n", "pass"},
		"large":           {strings.Repeat("Line after line\r\n\r\n", 50_000), "pass"},
	} {
		head, _, _ := strings.Cut(base, "\r\n\r\n")
		began := time.Now()
		res := added(t, s.send("x@y.example", []string{"bob@receiver.example"}, sign(t, k, []byte(head+"\r\n\r\n"+tc.body))))
		if !strings.Contains(res, "dkim="+tc.want+" header.d=example.com") {
			t.Errorf("%s: %s", name, res)
		}
		if d := time.Since(began); d > 15*time.Second {
			t.Errorf("%s: took %s", name, d)
		}
	}
}

func TestDKIMResults(t *testing.T) {
	r := newRig(t)
	k := key(t, r, "example.com")
	nokey, err := lab.NewEd25519Key("example.com", "missing")
	if err != nil {
		t.Fatal(err)
	}
	huge := key(t, r, "huge.example")
	r.dns.Remove("2026._domainkey.huge.example")
	r.dns.Add(`2026._domainkey.huge.example. 300 IN TXT "v=DKIM1; p=` + strings.Repeat("A", 250) + `"` + strings.Repeat(` "`+strings.Repeat("A", 250)+`"`, 10))
	down := key(t, r, "down.example")
	r.dns.SetRcode("2026._domainkey.down.example", 2)
	s := r.connect("192.0.2.1", "mail.example.com")
	msg := sample("alice@example.com")
	for name, tc := range map[string]struct {
		msg  []byte
		want string
	}{
		"body changed":    {append(sign(t, k, msg), "more\r\n"...), "dkim=fail header.d=example.com"},
		"no key":          {sign(t, nokey, msg), "dkim=permerror header.d=example.com header.s=missing"},
		"key record huge": {sign(t, huge, msg), "dkim=permerror header.d=huge.example"},
		"DNS is down":     {sign(t, down, msg), "dkim=temperror header.d=down.example"},
		"no signature":    {msg, "dkim=none;"},
		"no domain":       {append([]byte("DKIM-Signature: v=1; d=a..b; s=x; b=y\r\n"), msg...), "dkim=none;"},
		"two, one good":   {sign(t, nokey, sign(t, k, msg)), "dkim=pass header.d=example.com header.s=2026"},
	} {
		if res := added(t, s.send("x@y.example", []string{"bob@receiver.example"}, tc.msg)); !strings.Contains(res, tc.want) {
			t.Errorf("%s: %s; want %s", name, res, tc.want)
		}
	}
	// Junk on top must not hide the signature that counts.
	junk := strings.Repeat("DKIM-Signature: v=1; a=rsa-sha256; d=junk.example; s=x; h=from; bh=; b=\r\n", 2*MaxSignatures)
	res := added(t, s.send("x@y.example", []string{"bob@receiver.example"}, append([]byte(junk), sign(t, k, msg)...)))
	if n := strings.Count(res, "dkim="); n != MaxSignatures || !strings.Contains(res, "dkim=pass header.d=example.com") {
		t.Errorf("%d results: %s", n, res)
	}
}

func TestHeaderTooLarge(t *testing.T) {
	r := newRig(t)
	s := r.connect("192.0.2.1", "mail.example.com")
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject"
		example.com. 300 IN TXT "v=spf1 ip4:192.0.2.1 -all"`)
	filler := []byte(strings.Repeat("X-Filler: "+strings.Repeat("x", 1000)+"\r\n", MaxHeader/1000))
	// Whoever makes it so large does not get around the policy.
	for sender, want := range map[string]string{"x@y.example": "fail", "x@example.com": "pass"} {
		res := added(t, s.send(sender, []string{"bob@receiver.example"}, append(filler, sample("a@example.com")...)))
		if !strings.Contains(res, `dkim=policy reason="header too large"; dmarc=`+want) {
			t.Error(res)
		}
	}
	res := added(t, s.send("x@y.example", []string{"bob@receiver.example"}, append([]byte("From: a@example.com\r\n"), append(filler, sample("a@example.org")...)...)))
	if !strings.Contains(res, "dmarc=fail") || !strings.Contains(res, "header.from=example.com") {
		t.Error(res)
	}
}

// A connection that is cut at any point leaves nothing behind.
func TestCutConnections(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("rig", func(t *testing.T) {
		r := newRig(t)
		k := key(t, r, "example.com")
		msg := sign(t, k, sign(t, k, sample("alice@example.com")))
		for stage := range 5 {
			s := r.connect("192.0.2.1", "mail.example.com")
			if stage > 0 {
				s.Mail("a@example.com", nil)
			}
			head, body, _ := bytes.Cut(msg, []byte("\r\n\r\n"))
			if stage > 1 {
				for _, line := range unfold(string(head)) {
					name, value, _ := strings.Cut(line, ":")
					s.HeaderField(name, value)
				}
			}
			if stage > 2 {
				s.HeaderEnd()
			}
			if stage > 3 {
				s.BodyChunk(body[:5])
			}
			s.Close()
		}
		s := r.connect("192.0.2.1", "mail.example.com")
		s.Mail("a@example.com", nil)
		s.HeaderEnd()
		s.Abort()
		s.send("a@example.com", []string{"bob@receiver.example"}, msg)
	})
}

func TestHostileHeaderValues(t *testing.T) {
	r := newRig(t)
	s := r.connect("192.0.2.1", "evil\r\nX-Injected: yes")
	msg := append([]byte("DKIM-Signature: v=1; a=a\"b(c; d=example.com; s=x; h=from; bh=x; b=\"; dmarc=pass\r\n"), sample("a@example.com")...)
	res := added(t, s.send("\"a@b\\\r\n c\"@example.com", []string{"bob@receiver.example"}, msg))
	if strings.ContainsAny(res, "\r\n") || strings.Contains(res, "; dmarc=pass") && !strings.Contains(res, `"`) {
		t.Error(res)
	}
	if _, err := mail.ReadMessage(strings.NewReader("Authentication-Results: " + res + "\r\n\r\n")); err != nil {
		t.Error(err)
	}
}

func FuzzParseSignature(f *testing.F) {
	for _, s := range []string{" v=1; a=rsa-sha256; d=example.com; s=x; h=from:to; b=A", "d=a.example;s=1;l=", "=;;", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		sig, ok := parseSignature(s)
		if _, err := ruapost.ParseDomain(sig.keyName()); ok && err != nil {
			t.Errorf("%q: %v", s, err)
		}
	})
}
