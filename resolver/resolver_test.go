package resolver

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"ruapost/internal/dnstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testClock is a clock that stands still.
type testClock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *testClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func newClock() *testClock { return &testClock{t: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)} }

func startServer(t *testing.T, zone string) *dnstest.Server {
	t.Helper()
	s, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.Add(zone)
	return s
}

func startResolver(t *testing.T, clock *testClock, servers ...*dnstest.Server) *Resolver {
	t.Helper()
	cfg := Config{Timeout: 5 * time.Second}
	for _, s := range servers {
		cfg.Servers = append(cfg.Servers, s.Addr)
	}
	r, err := newResolver(cfg, nil, clock.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// start returns a resolver that asks a server with zone, and the server.
func start(t *testing.T, zone string) (*Resolver, *dnstest.Server) {
	t.Helper()
	s := startServer(t, zone)
	return startResolver(t, newClock(), s), s
}

// checkError checks that err is a *net.DNSError, directly, of just the kind want.
func checkError(t *testing.T, err error, want string) {
	t.Helper()
	e, ok := err.(*net.DNSError)
	if !ok {
		t.Fatalf("error is %T (%v), want *net.DNSError", err, err)
	}
	var got string
	switch {
	case IsNXDomain(err) && e.IsNotFound && !e.Temporary() && !IsTemporary(err):
		got = "nxdomain"
	case IsNotFound(err) && e.IsNotFound && !e.Temporary() && !IsTemporary(err):
		got = "nodata"
	case IsTemporary(err) && e.IsTemporary && e.IsTimeout && !IsNotFound(err):
		got = "timeout"
	case IsTemporary(err) && e.IsTemporary && !IsNotFound(err):
		got = "temporary"
	}
	if got != want {
		t.Errorf("error %v (%+v) is %q, want %q", err, *e, got, want)
	}
}

func TestNewServers(t *testing.T) {
	tests := []struct {
		addr string
		ok   bool
	}{
		{"127.0.0.1:53", true},
		{"[::1]:5353", true},
		{"[fe80::1%eth0]:53", true},
		{"127.0.0.1", false},
		{"::1", false},
		{"127.0.0.1:0", false},
		{"localhost:53", false},
		{"127.0.0.1:domain", false},
		{"", false},
	}
	for _, tt := range tests {
		r, err := New(Config{Servers: []string{"127.0.0.1:53", tt.addr}})
		if (err == nil) != tt.ok {
			t.Errorf("New with server %q: error %v, want ok %v", tt.addr, err, tt.ok)
		}
		if r != nil {
			r.Close()
		}
	}
}

func TestClose(t *testing.T) {
	r, s := start(t, "")
	arrived := make(chan struct{}, 10)
	s.Handle(func(dns.ResponseWriter, *dns.Msg) bool {
		arrived <- struct{}{}
		return true
	})
	errs := make(chan error)
	go func() {
		_, _, err := r.LookupTXT(t.Context(), "example.com")
		errs <- err
	}()
	<-arrived
	r.Close()
	checkError(t, <-errs, "temporary")
	_, _, err := r.LookupTXT(t.Context(), "example.net")
	checkError(t, err, "temporary")
	if len(arrived) != 0 {
		t.Error("query after Close")
	}
	r.Close() // may be called twice
}

func TestInvalidNames(t *testing.T) {
	r, s := start(t, "")
	ctx := t.Context()
	long := strings.Repeat("a.", 127) + "a"
	for _, name := range []string{
		"", ".", "a..b", ".a", "a b.example", "a\tb", "a\x00b", "[192.0.2.1]", "192.0.2.1", `a\.b.example`, `\097.example`,
		"a@example.com", strings.Repeat("a", 64) + ".example", long, strings.Repeat("x", 100000),
	} {
		_, _, err := r.LookupTXT(ctx, name)
		checkError(t, err, "nxdomain")
		_, _, err = r.LookupMX(ctx, name)
		checkError(t, err, "nxdomain")
		_, _, _, err = r.LookupIP(ctx, name)
		checkError(t, err, "nxdomain")
		_, _, err = r.LookupTLSA(ctx, name)
		checkError(t, err, "nxdomain")
		if ok, err := r.Exists(ctx, name); ok || err != nil {
			t.Errorf("Exists(%q) = %v, %v", name, ok, err)
		}
	}
	_, err := r.LookupPTR(ctx, netip.Addr{})
	checkError(t, err, "nxdomain")
	if q := s.Queries(); len(q) != 0 {
		t.Errorf("queries %q, want none", q)
	}
}

func TestNames(t *testing.T) {
	r, s := start(t, "xn--bcher-kva.example. 300 IN TXT found")
	for _, name := range []string{"xn--bcher-kva.example", "XN--BCHER-KVA.Example.", "bücher.example", "Bücher.EXAMPLE."} {
		if txts, _, err := r.LookupTXT(t.Context(), name); err != nil || !cmp.Equal(txts, []string{"found"}) {
			t.Errorf("%s: %q, %v", name, txts, err)
		}
	}
	if diff := cmp.Diff([]string{"xn--bcher-kva.example. TXT"}, s.Queries()); diff != "" {
		t.Errorf("one name, one query: %s", diff)
	}
}

func TestNotFound(t *testing.T) {
	r, _ := start(t, `
		mail.example.com. 300 IN A 192.0.2.1
		alias.example.com. 300 IN CNAME mail.example.com.
		dangling.example.com. 300 IN CNAME gone.example.net.
	`)
	ctx := t.Context()
	for _, tt := range []struct {
		name, want string
		exists     bool
	}{
		{"mail.example.com", "nodata", true},
		{"example.com", "nodata", true}, // empty non-terminal
		{"alias.example.com", "nodata", true},
		{"gone.example.net", "nxdomain", false},
		{"dangling.example.com", "nxdomain", true}, // RFC 6604 3
	} {
		txts, _, err := r.LookupTXT(ctx, tt.name)
		checkError(t, err, tt.want)
		if len(txts) != 0 {
			t.Errorf("%s: texts %q", tt.name, txts)
		}
		if exists, err := r.Exists(ctx, tt.name); exists != tt.exists || err != nil {
			t.Errorf("Exists(%s) = %v, %v; want %v", tt.name, exists, err, tt.exists)
		}
	}
}

func TestExistsTemporary(t *testing.T) {
	r, s := start(t, "")
	s.SetRcode("example.com", dns.RcodeServerFailure)
	ok, err := r.Exists(t.Context(), "example.com")
	checkError(t, err, "temporary")
	if ok {
		t.Error("true with an error")
	}
}

// The caller owns what is returned.
func TestResultsAreCopies(t *testing.T) {
	r, _ := start(t, `
		example.com. 300 IN TXT one
		example.com. 300 IN MX 10 mx.example.com.
		example.com. 300 IN A 192.0.2.1
		example.com. 300 IN TLSA 3 1 1 00
	`)
	ctx := t.Context()
	for range 2 {
		txts, _, _ := r.LookupTXT(ctx, "example.com")
		mxs, _, _ := r.LookupMX(ctx, "example.com")
		ips, _, _, _ := r.LookupIP(ctx, "example.com")
		tlsa, _, _ := r.LookupTLSA(ctx, "example.com")
		_, _, err := r.LookupTXT(ctx, "gone.example.com")
		if txts[0] != "one" || mxs[0].Pref != 10 || ips[0] != netip.MustParseAddr("192.0.2.1") || tlsa[0].Data[0] != 0 {
			t.Fatal(txts, mxs, ips, tlsa)
		}
		checkError(t, err, "nxdomain")
		txts[0], mxs[0].Pref, ips[0], tlsa[0].Data[0] = "two", 20, netip.Addr{}, 1
		err.(*net.DNSError).IsNotFound = false
	}
}

func TestMX(t *testing.T) {
	r, _ := start(t, `
		example.com. 300 IN MX 20 b.example.com.
		example.com. 300 IN MX 10 A.example.com.
		example.com. 300 IN MX 20 a.example.com.
		null.example.com. 300 IN MX 0 .
		bad.example.com. 300 IN MX 10 192.0.2.1.
		bad.example.com. 300 IN MX 10 a\.b.example.com.
		alias.example.com. 300 IN CNAME null.example.com.
	`)
	for _, tt := range []struct {
		name string
		want []MX
	}{
		{"example.com", []MX{{"a.example.com", 10}, {"b.example.com", 20}, {"a.example.com", 20}}},
		{"null.example.com", []MX{{"", 0}}},
		{"alias.example.com", []MX{{"", 0}}},
		{"bad.example.com", nil}, // but not "not found", which would make it its own MX
	} {
		mxs, authentic, err := r.LookupMX(t.Context(), tt.name)
		if diff := cmp.Diff(tt.want, mxs); diff != "" || err != nil || !authentic {
			t.Errorf("%s: authentic %v, %v\n%s", tt.name, authentic, err, diff)
		}
	}
}

func TestTLSA(t *testing.T) {
	r, s := start(t, `
		_25._tcp.mx.example.com. 300 IN TLSA 3 1 1 0a1BFF
		_25._tcp.mx.example.com. 300 IN TLSA 255 9 7 00
	`)
	tlsa, authentic, err := r.LookupTLSA(t.Context(), "_25._tcp.mx.example.com")
	want := []TLSA{{3, 1, 1, []byte{0x0a, 0x1b, 0xff}}, {255, 9, 7, []byte{0}}}
	if diff := cmp.Diff(want, tlsa); diff != "" || err != nil || !authentic {
		t.Fatalf("authentic %v, %v\n%s", authentic, err, diff)
	}
	if got := tlsa[0].String(); got != "3 1 1 0A1BFF" {
		t.Errorf("String() = %q", got)
	}
	s.SetRcode("_25._tcp.bogus.example.com", dns.RcodeServerFailure)
	_, _, err = r.LookupTLSA(t.Context(), "_25._tcp.bogus.example.com")
	checkError(t, err, "temporary")
}

// RFC 7672 2.1.3: whether the first alias is authentic says nothing of what follows it.
func TestCNAME(t *testing.T) {
	r, s := start(t, `
		secure.example. 300 IN CNAME insecure.example.
		insecure.example. 300 IN CNAME end.example.
		end.example. 300 IN A 192.0.2.1
	`)
	s.SetInsecure("insecure.example")
	for _, tt := range []struct {
		name, want string
		authentic  bool
		err        string
	}{
		{name: "secure.example", want: "insecure.example", authentic: true},
		{name: "insecure.example", want: "end.example"},
		{name: "end.example", authentic: true, err: "nodata"},
		{name: "gone.example", authentic: true, err: "nxdomain"},
		{name: "a..b", err: "nxdomain"},
	} {
		target, authentic, err := r.LookupCNAME(t.Context(), tt.name)
		if tt.err != "" {
			checkError(t, err, tt.err)
		} else if err != nil {
			t.Error(err)
		}
		if target != tt.want || authentic != tt.authentic {
			t.Errorf("%s: %q, authentic %v; want %q, %v", tt.name, target, authentic, tt.want, tt.authentic)
		}
	}
	if _, _, authentic, err := r.LookupIP(t.Context(), "secure.example"); authentic || err != nil {
		t.Errorf("addresses by way of an insecure alias: authentic %v, %v", authentic, err)
	}
}

func TestPTR(t *testing.T) {
	r, _ := start(t, `
		1.2.0.192.in-addr.arpa. 300 IN PTR Mail.example.com.
		1.2.0.192.in-addr.arpa. 300 IN PTR not\ a\ name.example.com.
		1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 300 IN PTR six.example.com.
	`)
	for addr, want := range map[string][]string{
		"192.0.2.1":        {"mail.example.com"},
		"::ffff:192.0.2.1": {"mail.example.com"},
		"2001:db8::1":      {"six.example.com"},
		"2001:db8::1%eth0": {"six.example.com"},
	} {
		names, err := r.LookupPTR(t.Context(), netip.MustParseAddr(addr))
		if diff := cmp.Diff(want, names); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", addr, err, diff)
		}
	}
	_, err := r.LookupPTR(t.Context(), netip.MustParseAddr("192.0.2.2"))
	checkError(t, err, "nxdomain")
}

func TestAliases(t *testing.T) {
	r, s := start(t, `
		a.example.com. 300 IN CNAME B.example.com.
		b.example.com. 300 IN CNAME c.example.net.
		c.example.net. 300 IN A 192.0.2.1
	`)
	s.SetInsecure("example.net")
	// The addresses are insecure, although the first alias is not (RFC 7672 2.1.3).
	_, chain, authentic, err := r.LookupIP(t.Context(), "a.example.com")
	if diff := cmp.Diff([]string{"b.example.com", "c.example.net"}, chain); diff != "" || err != nil || authentic {
		t.Errorf("LookupIP: authentic %v, %v\n%s", authentic, err, diff)
	}
}

// handleType makes queries of type qtype be answered with rcode, or with an
// empty, unauthenticated denial if rcode is 0.
func handleType(s *dnstest.Server, qtype uint16, rcode int) {
	s.Handle(func(w dns.ResponseWriter, q *dns.Msg) bool {
		if q.Question[0].Qtype != qtype {
			return false
		}
		m := new(dns.Msg)
		m.SetRcode(q, rcode)
		m.RecursionAvailable = true
		w.WriteMsg(m)
		return true
	})
}

func TestLookupIP(t *testing.T) {
	const both = `
		mx.example.com. 300 IN A 192.0.2.1
		mx.example.com. 300 IN AAAA 2001:db8::1
	`
	ip4, ip6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	tests := []struct {
		name      string
		zone      string
		prepare   func(*dnstest.Server)
		want      []netip.Addr
		authentic bool
		err       string
	}{
		{name: "both", zone: both, want: []netip.Addr{ip4, ip6}, authentic: true},
		{name: "IPv4 only", zone: "mx.example.com. 300 IN A 192.0.2.1", want: []netip.Addr{ip4}, authentic: true},
		{name: "IPv6 only", zone: "mx.example.com. 300 IN AAAA 2001:db8::1", want: []netip.Addr{ip6}, authentic: true},
		{
			name: "insecure", zone: both, want: []netip.Addr{ip4, ip6},
			prepare: func(s *dnstest.Server) { s.SetInsecure("example.com") },
		},
		{
			name: "IPv6 fails", zone: both, want: []netip.Addr{ip4}, authentic: true,
			prepare: func(s *dnstest.Server) { handleType(s, dns.TypeAAAA, dns.RcodeServerFailure) },
		},
		{
			name: "IPv4 fails", zone: both, want: []netip.Addr{ip6}, authentic: true,
			prepare: func(s *dnstest.Server) { handleType(s, dns.TypeA, dns.RcodeRefused) },
		},
		{
			name: "IPv6 denial insecure", zone: both, want: []netip.Addr{ip4}, authentic: true,
			prepare: func(s *dnstest.Server) { handleType(s, dns.TypeAAAA, 0) },
		},
		{
			name: "one family insecure", zone: both, want: []netip.Addr{ip4, ip6},
			prepare: func(s *dnstest.Server) {
				s.Handle(func(w dns.ResponseWriter, q *dns.Msg) bool {
					if q.Question[0].Qtype != dns.TypeAAAA {
						return false
					}
					m := new(dns.Msg)
					m.SetReply(q)
					rr, _ := dns.NewRR("mx.example.com. 300 IN AAAA 2001:db8::1")
					m.Answer = append(m.Answer, rr)
					w.WriteMsg(m)
					return true
				})
			},
		},
		{name: "no such name", zone: "", authentic: true, err: "nxdomain"},
		{name: "no addresses", zone: "mx.example.com. 300 IN TXT x", authentic: true, err: "nodata"},
		{
			name: "no addresses, one denial insecure", zone: "mx.example.com. 300 IN TXT x", err: "nodata",
			prepare: func(s *dnstest.Server) { handleType(s, dns.TypeAAAA, 0) },
		},
		{
			name: "NODATA outweighs NXDOMAIN of a broken server", zone: "mx.example.com. 300 IN TXT x", err: "nodata",
			prepare: func(s *dnstest.Server) { handleType(s, dns.TypeA, dns.RcodeNameError) },
		},
		{
			name: "failure outweighs denial", zone: "mx.example.com. 300 IN TXT x", err: "temporary",
			prepare: func(s *dnstest.Server) { handleType(s, dns.TypeAAAA, dns.RcodeServerFailure) },
		},
		{
			name: "both fail", zone: both, err: "temporary",
			prepare: func(s *dnstest.Server) { s.SetRcode("mx.example.com", dns.RcodeServerFailure) },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, s := start(t, tt.zone)
			if tt.prepare != nil {
				tt.prepare(s)
			}
			for _, pass := range []string{"asked", "cached"} {
				ips, chain, authentic, err := r.LookupIP(t.Context(), "mx.example.com")
				if tt.err != "" {
					checkError(t, err, tt.err)
				} else if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, ips, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("%s: %s", pass, diff)
				}
				if authentic != tt.authentic || len(chain) != 0 {
					t.Errorf("%s: authentic %v, want %v; aliases %q", pass, authentic, tt.authentic, chain)
				}
			}
			if q := s.Queries(); len(q) != 2 {
				t.Errorf("queries %q, want one for each family", q)
			}
		})
	}
}

// RFC 4035 4.9.3: the AD bit is worth as much as the path to the server.
func TestAuthentic(t *testing.T) {
	r, s := start(t, "secure.example. 300 IN TXT x\ninsecure.example. 300 IN TXT x")
	s.SetInsecure("insecure.example")
	untrusting := startResolver(t, newClock(), s)
	untrusting.servers[0].trusted = false
	for _, tt := range []struct {
		name      string
		authentic bool
	}{
		{"secure.example", true},
		{"gone.secure.example", true},
		{"insecure.example", false},
		{"gone.insecure.example", false},
	} {
		for _, pass := range []string{"asked", "cached"} {
			if _, authentic, _ := r.LookupTXT(t.Context(), tt.name); authentic != tt.authentic {
				t.Errorf("%s, %s: authentic %v", tt.name, pass, authentic)
			}
		}
		if _, authentic, err := untrusting.LookupTXT(t.Context(), tt.name); authentic {
			t.Errorf("%s: authentic from a server that is not trusted (error %v)", tt.name, err)
		}
	}
}

func TestContextEnded(t *testing.T) {
	r, s := start(t, "example.com. 300 IN TXT x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := r.LookupTXT(ctx, "example.com")
	checkError(t, err, "temporary")
	if q := s.Queries(); len(q) != 0 {
		t.Errorf("queries %q, want none", q)
	}
	// What is known needs no time.
	if _, _, err := r.LookupTXT(t.Context(), "example.com"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.LookupTXT(ctx, "example.com"); err != nil {
		t.Error(err)
	}
}
