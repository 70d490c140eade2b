package outbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"

	"ruapost"
	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
	"ruapost/mtasts"
	"ruapost/resolver"
	"ruapost/socketmap"
)

type rig struct {
	*Policies
	t    *testing.T
	dns  *dnstest.Server
	host *lab.PolicyHost
}

// newRig has a policy host behind a proxy: port 443 belongs to root.
func newRig(t *testing.T) *rig {
	t.Helper()
	dns, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dns.Close)
	ca, err := lab.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	host, err := lab.StartPolicyHost("127.0.0.1:0", ca)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	res, err := resolver.New(resolver.Config{Servers: []string{dns.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(res.Close)
	r := &rig{t: t, dns: dns, host: host}
	r.Policies = NewPolicies(res, &mtasts.Fetcher{Resolver: res, RootCAs: ca.Pool()})
	t.Cleanup(r.Policies.Close)
	return r
}

func (r *rig) ask(table, key string) string {
	r.t.Helper()
	return r.Answer(r.t.Context(), table, key).String()
}

const zone = `
all.example. 300 IN MX 10 mx1.all.example.
all.example. 300 IN MX 20 mx2.all.example.
mx1.all.example. 300 IN A 192.0.2.1
mx2.all.example. 300 IN A 192.0.2.2
_25._tcp.mx1.all.example. 300 IN TLSA 3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
_25._tcp.mx2.all.example. 300 IN TLSA 3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
some.example. 300 IN MX 10 mx1.all.example.
some.example. 300 IN MX 20 mx.plain.example.
mx.plain.example. 300 IN A 192.0.2.3
plain.example. 300 IN MX 10 mx.plain.example.
broken.example. 300 IN MX 10 mx.broken.example.
mx.broken.example. 300 IN A 192.0.2.4
`

func TestDANE(t *testing.T) {
	r := newRig(t)
	r.dns.Add(zone)
	r.dns.SetRcode("down.example", mdns.RcodeServerFailure)
	r.dns.SetRcode("_25._tcp.mx.broken.example", mdns.RcodeServerFailure)
	for key, want := range map[string]string{
		"all.example":    "OK dane-only",
		"ALL.Example.":   "OK dane-only",
		"some.example":   "OK dane",
		"plain.example":  "NOTFOUND ",
		"absent.example": "NOTFOUND ",
		// A DNS failure must not defer mail here; Postfix decides.
		"down.example": "NOTFOUND ",
		// RFC 7672 2.1.2: a TLSA lookup that fails is Postfix's matter too, which
		// defers at level dane.
		"broken.example": "OK dane",
	} {
		for _, table := range []string{TableQuery, TableQueryTLSRPT} {
			if got := r.ask(table, key); got != want {
				t.Errorf("%s %s: %q, want %q", table, key, got, want)
			}
		}
	}
}

// What is no domain gets its answer without any DNS query.
func TestNotADomain(t *testing.T) {
	r := newRig(t)
	for _, key := range []string{
		"", ".", ".example.com", ".com", "com", "[mx.example.com]", "[mx.example.com]:25", "example.com:25", "[192.0.2.1]:25",
		"192.0.2.1", "2001:db8::1", "unix:/path", "/path", "a b.example", "a..example", "\xff.example", strings.Repeat("a.", 300) + "example",
	} {
		if got := r.ask(TableQuery, key); got != "NOTFOUND " {
			t.Errorf("%q: %q", key, got)
		}
	}
	if got := r.ask("querywithtlsrpt", "example.com"); got != "NOTFOUND " {
		t.Errorf("unknown table: %q", got)
	}
	if q := r.dns.Queries(); len(q) != 0 {
		t.Errorf("queries %v", q)
	}
}

func policy(mx []string, text ...string) *mtasts.Policy {
	return &mtasts.Policy{Mode: mtasts.ModeEnforce, MX: mx, MaxAge: time.Hour, Text: text}
}

// postfix.md's traps: match is never missing, wildcards are written two ways, the
// attributes come all or not at all, nothing unbalanced stands in braces.
func TestSecureReply(t *testing.T) {
	good := policy([]string{"mx.example.com", "*.example.net"}, "version: STSv1", "mode: enforce")
	for name, tc := range map[string]struct {
		policy *mtasts.Policy
		tlsrpt bool
		want   string
	}{
		"plain": {good, false, "secure match=mx.example.com:.example.net servername=hostname"},
		"TLSRPT": {good, true, "secure match=mx.example.com:.example.net servername=hostname policy_type=sts policy_domain=example.com" +
			" { policy_string = version: STSv1 } { policy_string = mode: enforce } mx_host_pattern=mx.example.com mx_host_pattern=*.example.net"},
		"a brace in a line": {
			policy([]string{"mx.example.com"}, "version: STSv1", "x: {", "y: }", "z: {}"), true,
			"secure match=mx.example.com servername=hostname policy_type=sts policy_domain=example.com { policy_string = version: STSv1 } mx_host_pattern=mx.example.com",
		},
		"no line that could be told": {policy([]string{"mx.example.com"}, "x: {", "ü: y", " "), true, "secure match=mx.example.com servername=hostname"},
		"no MX":                      {policy(nil, "version: STSv1"), true, ""},
		"text too long": {
			policy([]string{"mx.example.com"}, strings.Repeat("x", socketmap.MaxReply)), true,
			"secure match=mx.example.com servername=hostname",
		},
	} {
		if got := secureReply("example.com", tc.policy, tc.tlsrpt); got != tc.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, tc.want)
		}
	}
	var many []string
	for i := range 1000 {
		many = append(many, fmt.Sprintf("%s%d.example", strings.Repeat("a", 60), i)+strings.Repeat(".abcdefgh", 10))
	}
	if got := secureReply("example.com", policy(many, "version: STSv1"), false); got != "" {
		t.Errorf("a reply of %d octets", len(got))
	}
}

func FuzzSecureReply(f *testing.F) {
	f.Add("mx.example.com", "version: STSv1", "x: {a")
	f.Fuzz(func(t *testing.T, mx, line1, line2 string) {
		if strings.ContainsAny(mx, " \t\r\n,{}:=") || mx == "" {
			return // mtasts gives domain names only
		}
		got := secureReply("example.com", policy([]string{mx}, line1, line2), true)
		if strings.Count(got, "{") != strings.Count(got, "}") || strings.ContainsAny(got, "\r\n\x00") {
			t.Errorf("%q", got)
		}
		if strings.Contains(got, "policy_type") != strings.Contains(got, "policy_string") {
			t.Errorf("%q", got)
		}
	})
}

// stsRig is a stsCache whose fetches reach the policy host by its proxy.
func stsRig(t *testing.T) *rig {
	proxyTo(t)
	r := newRig(t)
	proxyTarget.Store(&r.host.Addr)
	return r
}

// The environment's proxy is read once in a process: it stays, and where it leads is
// changed.
var (
	proxyOnce   sync.Once
	proxyTarget atomic.Pointer[string]
)

func proxyTo(t *testing.T) {
	t.Helper()
	proxyOnce.Do(func() {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		os.Setenv("HTTPS_PROXY", "http://"+ln.Addr().String())
		os.Setenv("NO_PROXY", "")
		go lab.ServeConnect(ln, func(string) string { return *proxyTarget.Load() })
	})
}

func TestSTS(t *testing.T) {
	r := stsRig(t)
	r.dns.Add(zone + `
_mta-sts.plain.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.testing.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.none.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.nopolicy.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.badpolicy.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.all.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.some.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.insecure.example. 300 IN TXT "v=STSv1; id=1"
insecure.example. 300 IN MX 10 mx1.all.example.
`)
	r.dns.SetInsecure("insecure.example")
	enforce := []string{"version: STSv1", "mode: enforce", "mx: *.plain.example", "max_age: 86400"}
	for _, d := range []string{"plain.example", "all.example", "some.example", "insecure.example", "norecord.example"} {
		r.host.SetPolicy(d, enforce...)
	}
	r.host.SetPolicy("testing.example", "version: STSv1", "mode: testing", "mx: x.example", "max_age: 86400")
	r.host.SetPolicy("none.example", "version: STSv1", "mode: none", "max_age: 86400")
	r.host.SetPolicy("badpolicy.example", "version: STSv1", "mode: enforce")
	secure := "OK secure match=.plain.example servername=hostname"
	for key, want := range map[string]string{
		"plain.example":     secure,
		"testing.example":   "NOTFOUND ",
		"none.example":      "NOTFOUND ",
		"nopolicy.example":  "NOTFOUND ",
		"badpolicy.example": "NOTFOUND ",
		"norecord.example":  "NOTFOUND ",
		// RFC 8461 2: DANE wins, where the MX answer is secure.
		"all.example":      "OK dane-only",
		"some.example":     "OK dane",
		"insecure.example": secure,
	} {
		if got := r.ask(TableQuery, key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	r.host.Requests()
	before := len(r.host.Requests())
	for range 10 {
		r.ask(TableQuery, "plain.example")
		r.ask(TableQuery, "nopolicy.example") // RFC 8461 3.3: not again within five minutes
	}
	if n := len(r.host.Requests()) - before; n != 0 {
		t.Errorf("%d fetches more", n)
	}
}

// RFC 8461 3.1, 3.3: a policy that has not expired holds without a record and when a
// fetch fails; a new ID replaces it.
func TestSTSCache(t *testing.T) {
	r := stsRig(t)
	now := time.Now()
	c := r.Policies.sts
	c.now = func() time.Time { return now }
	record := func(id string) {
		r.dns.Remove("_mta-sts.example.com")
		if id != "" {
			r.dns.Add(`_mta-sts.example.com. 300 IN TXT "v=STSv1; id=` + id + `"`)
		}
		res, err := resolver.New(resolver.Config{Servers: []string{r.dns.Addr}}) // with an empty cache
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(res.Close)
		c.resolver = res
	}
	mode := func() string {
		p := c.policy(t.Context(), "example.com")
		if p == nil {
			return "no policy"
		}
		return string(p.Mode)
	}
	expect := func(step, want string) {
		t.Helper()
		if got := mode(); got != want {
			t.Errorf("%s: %s, want %s", step, got, want)
		}
	}
	publish := func(mode string) {
		r.host.SetPolicy("example.com", "version: STSv1", "mode: "+mode, "mx: mx.example.com", "max_age: 3600")
	}
	record("1")
	publish("enforce")
	expect("first", "enforce")
	publish("testing")
	expect("new policy under the same id", "enforce")
	record("")
	expect("record gone", "enforce")
	record("2")
	r.host.SetPolicy("example.com")
	expect("new id, but the fetch fails", "enforce")
	publish("testing")
	expect("within five minutes of that", "enforce")
	now = now.Add(fetchRetry)
	expect("after five minutes", "testing")
	record("")
	now = now.Add(time.Hour)
	expect("record gone and policy expired", "no policy")
}

// A query does not wait for a policy host that does not answer, and the fetch goes on
// for those that ask later.
func TestSlowPolicyHost(t *testing.T) {
	r := stsRig(t)
	r.dns.Add(`_mta-sts.example.com. 300 IN TXT "v=STSv1; id=1"`)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	addr := silent.Addr().String()
	proxyTarget.Store(&addr)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if p := r.Policies.sts.policy(ctx, "example.com"); p != nil {
		t.Errorf("policy %+v", p)
	}
}

// recorder keeps what it is given; with a gate it is as slow as the gate.
type recorder struct {
	mu       sync.Mutex
	sessions []ruapost.Session
	gate     chan struct{}
	fail     error
}

func (r *recorder) RecordSessions(_ context.Context, s []ruapost.Session) error {
	if r.gate != nil {
		<-r.gate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions = append(r.sessions, s...)
	return r.fail
}

func listenEvents(t *testing.T) (*net.UnixConn, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "events")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, path
}

func event(domain string, failed int) string {
	return fmt.Sprintf(`{"dpv": "1","d": %q,"pr": "v=TLSRPTv1; rua=mailto:a@b.example","policies":[{"policy-type":9,"policy-domain": %[1]q,"t":0,"f":%d}]}`, domain, failed)
}

func TestReceive(t *testing.T) {
	conn, path := listenEvents(t)
	ctx, cancel := context.WithCancel(t.Context())
	rec := &recorder{fail: errors.New("a store that fails does not end it")}
	done := make(chan struct{})
	go func() { Receive(ctx, conn, rec); close(done) }()
	out, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	send := func(data string) {
		t.Helper()
		if _, err := out.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	send(event("a.example", 0))
	for _, bad := range []string{"", "{", "not JSON", `{"d":1}`, "\x00\xff", `{"d":"a.example","policies":[{"policy-type":9,"f":7}]}`} {
		send(bad)
	}
	send(event("b.example", 1))
	long := event("c.example", 0)
	send(long[:len(long)-1] + `,"x":"` + strings.Repeat("y", 150_000) + `"}`)
	cancel()
	<-done
	var got []string
	for _, s := range rec.sessions {
		got = append(got, fmt.Sprint(s.Domain, " ", s.Failed, " ", s.Time.IsZero()))
	}
	if d := cmp.Diff([]string{"a.example false false", "b.example true false", "c.example false false"}, got); d != "" {
		t.Error(d)
	}
}

// The socket is drained whatever the store does: its own queue may hold eleven
// datagrams, and Postfix does not send twice.
func TestReceiveWithSlowStore(t *testing.T) {
	conn, path := listenEvents(t)
	ctx, cancel := context.WithCancel(t.Context())
	rec := &recorder{gate: make(chan struct{})}
	done := make(chan struct{})
	go func() { Receive(ctx, conn, rec); close(done) }()
	out, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	const n = 2000
	for range n {
		if _, err := out.Write([]byte(event("a.example", 0))); err != nil {
			t.Fatal(err)
		}
	}
	close(rec.gate)
	cancel()
	<-done
	if len(rec.sessions) != n {
		t.Errorf("%d sessions, want %d", len(rec.sessions), n)
	}
}
