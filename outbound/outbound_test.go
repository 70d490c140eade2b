package outbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"

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
_mta-sts.broken.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.unusable.example. 300 IN TXT "v=STSv1; id=1"
unusable.example. 300 IN MX 10 mx.unusable.example.
mx.unusable.example. 300 IN A 192.0.2.5
_25._tcp.mx.unusable.example. 300 IN TLSA 1 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
_mta-sts.down.example. 300 IN TXT "v=STSv1; id=1"
`)
	r.dns.SetRcode("_25._tcp.mx.broken.example", mdns.RcodeServerFailure)
	r.dns.SetRcode("down.example", mdns.RcodeServerFailure)
	r.dns.SetInsecure("insecure.example")
	enforce := []string{"version: STSv1", "mode: enforce", "mx: *.plain.example", "max_age: 86400"}
	for _, d := range []string{"plain.example", "all.example", "some.example", "insecure.example", "norecord.example", "broken.example", "unusable.example", "down.example"} {
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
		// RFC 7672 2.1.2, RFC 8461 2: neither is bypassed while it is not known whether
		// there are TLSA records.
		"broken.example": "OK dane-only",
		// RFC 7672 2.2 wants TLS, which the policy makes mandatory.
		"unusable.example": secure,
		"down.example":     secure,
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
	c.running.Wait()
	publish("testing")
	expect("within five minutes of that", "enforce")
	c.running.Wait()
	expect("still within five minutes", "enforce")
	now = now.Add(fetchRetry)
	expect("after five minutes, which begins a fetch", "enforce")
	c.running.Wait()
	expect("after that", "testing")
	record("")
	now = now.Add(time.Hour)
	expect("record gone and policy expired", "no policy")
}

// RFC 8461 3.3: a policy in use is fetched again before it expires, without anyone
// waiting for that, and no more than every five minutes if it fails.
func TestSTSRefresh(t *testing.T) {
	r := stsRig(t)
	now := time.Now()
	c := r.Policies.sts
	c.now = func() time.Time { return now }
	r.dns.Add(`_mta-sts.example.com. 300 IN TXT "v=STSv1; id=1"`)
	publish := func(mode string) {
		r.host.SetPolicy("example.com", "version: STSv1", "mode: "+mode, "mx: mx.example.com", "max_age: 604800")
	}
	publish("enforce")
	for _, step := range []struct {
		name    string
		pass    time.Duration
		publish string
		want    mtasts.Mode
		fetches int
	}{
		{"first", 0, "enforce", "enforce", 1},
		{"fresh", refreshAfter - time.Second, "", "enforce", 0},
		{"a day old, and the host has nothing", time.Second, "", "enforce", 1},
		{"too soon after that", fetchRetry - time.Second, "", "enforce", 0},
		{"again", time.Second, "testing", "enforce", 1},
		{"what that fetched", 0, "testing", "testing", 0},
		{"which is fresh", refreshAfter - time.Second, "none", "testing", 0},
		{"until a day has passed", time.Second, "none", "testing", 1},
		{"what that fetched", 0, "none", "none", 0},
	} {
		now = now.Add(step.pass)
		r.host.SetPolicy("example.com")
		if step.publish != "" {
			publish(step.publish)
		}
		before := len(r.host.Requests())
		if p := c.policy(t.Context(), "example.com"); p == nil || p.Mode != step.want {
			t.Errorf("%s: %+v, want mode %s", step.name, p, step.want)
		}
		c.running.Wait()
		if n := len(r.host.Requests()) - before; n != step.fetches {
			t.Errorf("%s: %d fetches, want %d", step.name, n, step.fetches)
		}
	}
}

// A fetch that fails does not take away what another one got while it was under way.
func TestSTSFetchesInTurn(t *testing.T) {
	r := stsRig(t)
	c := r.Policies.sts
	r.host.SetPolicy("example.com", "version: STSv1", "mode: enforce", "mx: mx.example.com", "max_age: 3600")
	<-c.start("example.com", "1")
	r.host.SetPolicy("example.com")
	<-c.start("example.com", "2")
	if e := c.entry("example.com"); e.current(c.now()) == nil || e.id != "1" || !e.tooSoon("2", c.now()) || e.tooSoon("3", c.now()) {
		t.Errorf("%+v", e)
	}
}

func TestSTSClose(t *testing.T) {
	c := newRig(t).Policies.sts
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() { <-c.start(fmt.Sprint(i, ".example"), "1") })
	}
	c.close()
	<-c.start("late.example", "1")
	wg.Wait()
	if len(c.fetching) != 0 {
		t.Errorf("%d fetches after the end", len(c.fetching))
	}
}

// The memory is bounded whatever policies are like.
func TestSTSWeight(t *testing.T) {
	c := newRig(t).Policies.sts
	big := policy(make([]string, mtasts.MaxMX), strings.Repeat("x", mtasts.MaxPolicySize))
	most := maxPolicyBytes / mtasts.MaxPolicySize
	for i := range 2 * most {
		c.entries.Set(fmt.Sprint(i), &stsEntry{policy: big})
	}
	c.entries.CleanUp()
	if n := c.entries.EstimatedSize(); n > most || n < most/2 {
		t.Errorf("%d policies kept, want no more than %d", n, most)
	}
}

// panicking panics at each lookup of one kind.
type panicking struct {
	Resolver
	kind string
}

func (r panicking) LookupTXT(ctx context.Context, name string) ([]string, bool, error) {
	if r.kind == "TXT" {
		panic("test")
	}
	return r.Resolver.LookupTXT(ctx, name)
}

func (r panicking) LookupIP(ctx context.Context, name string) ([]netip.Addr, []string, bool, error) {
	if r.kind == "IP" {
		panic("test")
	}
	return r.Resolver.LookupIP(ctx, name)
}

func (r panicking) LookupTLSA(ctx context.Context, name string) ([]resolver.TLSA, bool, error) {
	if r.kind == "TLSA" {
		panic("test")
	}
	return r.Resolver.LookupTLSA(ctx, name)
}

// Queries are answered whatever panics in the goroutines behind them.
func TestPanic(t *testing.T) {
	r := stsRig(t)
	r.dns.Add(zone + `_mta-sts.plain.example. 300 IN TXT "v=STSv1; id=1"`)
	r.host.SetPolicy("plain.example", "version: STSv1", "mode: enforce", "mx: mx.plain.example", "max_age: 86400")
	working, fetcher := r.Policies.resolver, r.Policies.sts.fetcher
	for _, tt := range []struct{ kind, domain, want string }{
		{"TXT", "plain.example", "NOTFOUND "},
		{"TXT", "all.example", "OK dane-only"},
		{"IP", "plain.example", "OK secure match=mx.plain.example servername=hostname"},
		{"IP", "all.example", "NOTFOUND "},
		{"TLSA", "all.example", "OK dane"},
	} {
		p := NewPolicies(panicking{working, tt.kind}, fetcher)
		if got := p.Answer(t.Context(), TableQuery, tt.domain).String(); got != tt.want {
			t.Errorf("%s panics: %s: %q, want %q", tt.kind, tt.domain, got, tt.want)
		}
		p.Close()
	}
	t.Run("fetch", func(t *testing.T) {
		p := NewPolicies(working, nil) // a nil Fetcher panics
		defer p.Close()
		if got := p.Answer(t.Context(), TableQuery, "plain.example").String(); got != "NOTFOUND " {
			t.Errorf("%q", got)
		}
	})
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
	c := r.Policies.sts
	if p := c.policy(ctx, "example.com"); p != nil {
		t.Errorf("policy %+v", p)
	}
	// What is known is returned at once, whatever is being fetched.
	c.entries.Set("example.com", &stsEntry{policy: policy(nil), id: "0", expires: c.now().Add(time.Hour)})
	if p := c.policy(t.Context(), "example.com"); p == nil || len(c.fetching) != 1 {
		t.Errorf("policy %+v, %d fetches", p, len(c.fetching))
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

// receiving starts a Receive that records into rec, and returns a connection to its
// socket, what ends it and what is closed when it has ended.
func receiving(t *testing.T, rec Recorder) (out net.Conn, cancel func(), done <-chan struct{}) {
	t.Helper()
	conn, path := listenEvents(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { Receive(ctx, conn, rec); close(ended) }()
	out, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	return out, cancel, ended
}

func TestReceive(t *testing.T) {
	rec := &recorder{fail: errors.New("a store that fails does not end it")}
	out, cancel, done := receiving(t, rec)
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
	rec := &recorder{gate: make(chan struct{})}
	out, cancel, done := receiving(t, rec)
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

// What waits is bounded by its size, too.
func TestReceiveLongDatagrams(t *testing.T) {
	rec := &recorder{gate: make(chan struct{})}
	out, cancel, done := receiving(t, rec)
	before := testutil.ToFloat64(sessionsDropped)
	long := event("a.example", 0)
	long = long[:len(long)-1] + `,"x":"` + strings.Repeat("y", 150_000) + `"}`
	const more = 30
	most := maxWaitingBytes / len(long)
	for range most + more {
		if _, err := out.Write([]byte(long)); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	close(rec.gate)
	<-done
	dropped := testutil.ToFloat64(sessionsDropped) - before
	if len(rec.sessions)+int(dropped) != most+more || dropped == 0 || len(rec.sessions) < most {
		t.Errorf("%d sessions recorded, %v dropped; want about %d and %d", len(rec.sessions), dropped, most, more)
	}
}

// Without a store the socket is drained all the same.
func TestReceiveWithoutStore(t *testing.T) {
	before := testutil.ToFloat64(sessionsDropped)
	out, cancel, done := receiving(t, nil)
	const n = 100
	for range n {
		if _, err := out.Write([]byte(event("a.example", 0))); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	<-done
	if dropped := testutil.ToFloat64(sessionsDropped) - before; dropped != n {
		t.Errorf("%v sessions dropped, want %d", dropped, n)
	}
}
