package resolver

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"blitiri.com.ar/go/spf"
	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

var _ spf.DNSResolver = SPF{}

func TestSPF(t *testing.T) {
	r, s := start(t, `
		a.example. 300 IN TXT "v=spf1 a " "-all"
		a.example. 300 IN A 192.0.2.1
		a.example. 300 IN AAAA 2001:db8::1
		mx.example. 300 IN TXT "v=spf1 mx -all"
		mx.example. 300 IN MX 10 a.example.
		ptr.example. 300 IN TXT "v=spf1 ptr -all"
		ptr.example. 300 IN A 192.0.2.1
		1.2.0.192.in-addr.arpa. 300 IN PTR ptr.example.
		exists.example. 300 IN TXT "v=spf1 exists:%{l}._spf.exists.example -all"
		joe+list=x._spf.exists.example. 300 IN A 127.0.0.2
		include.example. 300 IN TXT "v=spf1 include:%{l}._at.include.example -all"
		joe+list._at.include.example. 300 IN TXT "v=spf1 ip4:192.0.2.1"
		macromx.example. 300 IN TXT "v=spf1 mx:%{l}.macromx.example -all"
		joe+list.macromx.example. 300 IN MX 10 a.example.
		null.example. 300 IN TXT "v=spf1 mx -all"
		null.example. 300 IN MX 0 .
	`)
	s.SetRcode("broken.example", dns.RcodeServerFailure)
	s.SetRcode("silent.example", -1)
	for _, tt := range []struct {
		client, sender string
		want           spf.Result
	}{
		{"192.0.2.1", "joe@a.example", spf.Pass},
		{"192.0.2.2", "joe@a.example", spf.Fail},
		{"2001:db8::1", "joe@a.example", spf.Pass},
		{"192.0.2.1", "joe@mx.example", spf.Pass},
		{"192.0.2.1", "joe@null.example", spf.Fail},
		{"192.0.2.1", "joe@ptr.example", spf.Pass},
		{"192.0.2.1", "joe@gone.example", spf.None},
		{"192.0.2.1", "joe@a..example", spf.None},
		{"192.0.2.1", "joe@broken.example", spf.TempError},
		{"192.0.2.1", "joe+list=x@exists.example", spf.Pass},
		{"2001:db8::2", "joe+list=x@exists.example", spf.Pass},
		{"192.0.2.1", "joe+list@exists.example", spf.Fail},
		{"192.0.2.1", "joe+list@include.example", spf.Pass},
		{"192.0.2.2", "joe+list@include.example", spf.Fail},
		{"192.0.2.1", "joe+list@macromx.example", spf.Pass},
		{"192.0.2.2", "joe+list@macromx.example", spf.Fail},
	} {
		client := netip.MustParseAddr(tt.client)
		got, err := spf.CheckHostWithSender(client.AsSlice(), "helo.example", tt.sender,
			spf.WithContext(t.Context()), spf.WithResolver(r.SPF(client)))
		if got != tt.want {
			t.Errorf("%s from %s: %s (%v), want %s", tt.sender, tt.client, got, err, tt.want)
		}
	}
	t.Run("context ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		client := netip.MustParseAddr("192.0.2.1")
		got, err := spf.CheckHostWithSender(client.AsSlice(), "helo.example", "joe@silent.example",
			spf.WithContext(ctx), spf.WithResolver(r.SPF(client)))
		if got != spf.TempError {
			t.Errorf("%s (%v), want temperror", got, err)
		}
	})
}

// RFC 7208 5: A is asked for an IPv4 client, AAAA for an IPv6 one; 5.7: exists
// always wants A.
func TestSPFFamilies(t *testing.T) {
	ip4, ip6 := net.ParseIP("192.0.2.1").To4(), net.ParseIP("2001:db8::1")
	for _, tt := range []struct {
		name, client string
		failing      uint16
		want         []net.IPAddr
		err          string
		queries      int
	}{
		{"IPv4 client", "192.0.2.9", 0, []net.IPAddr{{IP: ip4}}, "", 1},
		{"IPv4-mapped client", "::ffff:192.0.2.9", 0, []net.IPAddr{{IP: ip4}}, "", 1},
		{"IPv6 client", "2001:db8::9", 0, []net.IPAddr{{IP: ip4}, {IP: ip6}}, "", 2},
		{"IPv4 client, AAAA fails", "192.0.2.9", dns.TypeAAAA, []net.IPAddr{{IP: ip4}}, "", 1},
		{"IPv4 client, A fails", "192.0.2.9", dns.TypeA, nil, "temporary", 1},
		{"IPv6 client, AAAA fails", "2001:db8::9", dns.TypeAAAA, nil, "temporary", 2},
		{"IPv6 client, A fails", "2001:db8::9", dns.TypeA, []net.IPAddr{{IP: ip6}}, "", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, s := start(t, "a.example. 300 IN A 192.0.2.1\na.example. 300 IN AAAA 2001:db8::1")
			if tt.failing != 0 {
				handleType(s, tt.failing, dns.RcodeServerFailure)
			}
			ips, err := r.SPF(netip.MustParseAddr(tt.client)).LookupIPAddr(t.Context(), "a.example.")
			if tt.err != "" {
				checkError(t, err, tt.err)
			} else if err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(tt.want, ips); diff != "" {
				t.Error(diff)
			}
			if q := s.Queries(); len(q) != tt.queries {
				t.Errorf("queries %q, want %d", q, tt.queries)
			}
		})
	}
	t.Run("IPv6 client, A fails and there is no AAAA", func(t *testing.T) {
		r, s := start(t, "a.example. 300 IN A 192.0.2.1")
		handleType(s, dns.TypeA, dns.RcodeServerFailure)
		_, err := r.SPF(netip.MustParseAddr("2001:db8::9")).LookupIPAddr(t.Context(), "a.example.")
		checkError(t, err, "temporary")
	})
	t.Run("one family only", func(t *testing.T) {
		r, _ := start(t, "a.example. 300 IN A 192.0.2.1\nb.example. 300 IN AAAA 2001:db8::1")
		res := r.SPF(netip.MustParseAddr("2001:db8::9"))
		for _, host := range []string{"a.example", "b.example"} {
			if ips, err := res.LookupIPAddr(t.Context(), host); len(ips) != 1 || err != nil {
				t.Errorf("%s: %v, %v", host, ips, err)
			}
		}
		_, err := res.LookupIPAddr(t.Context(), "c.example")
		checkError(t, err, "nxdomain")
	})
}

func TestSPFName(t *testing.T) {
	for _, tt := range []struct {
		host, want string
		ok         bool
	}{
		{"Example.com.", "example.com", true},
		{"joe+List=x!._spf.example", "joe+list=x!._spf.example", true},
		{`a\b"c@d;e.example`, `a\\b\"c\@d\;e.example`, true},
		{`a\.example`, `a\\.example`, true},
		{"1.2.3.4", "1.2.3.4", true},
		{"", "", false},
		{".", "", false},
		{"a..b", "", false},
		{"a b.example", "", false},
		{"a\x00b.example", "", false},
		{"+\xff.example", "", false},
		{"+" + strings.Repeat("a", 63) + ".example", "", false},
		{"+" + strings.Repeat(".a", 127), "", false},
		{strings.Repeat("+", 100000), "", false},
	} {
		got, ok := spfName(tt.host)
		if got != tt.want || ok != tt.ok {
			t.Errorf("spfName(%.100q) = %q, %v; want %q, %v", tt.host, got, ok, tt.want, tt.ok)
		}
	}
}

// Names with special characters must be recognized in the answer.
func TestSPFSpecialCharacters(t *testing.T) {
	r, s := start(t, `
		joe+x\@y\;z\\._spf.example. 300 IN A 127.0.0.2
	`)
	ips, err := r.SPF(netip.MustParseAddr("192.0.2.1")).LookupIPAddr(t.Context(), `Joe+x@y;z\._spf.example`)
	if len(ips) != 1 || err != nil {
		t.Error(ips, err, s.Queries())
	}
}

// RFC 7208 5.5: what is wrong with the names of the client's address is no error. Its
// operator, who may be a forger, decides how long they take.
func TestSPFSlowPTR(t *testing.T) {
	r, s := start(t, `
		example.com. 300 IN TXT "v=spf1 ptr -all"
		1.2.0.192.in-addr.arpa. 300 IN PTR one.silent.example.
		1.2.0.192.in-addr.arpa. 300 IN PTR two.silent.example.
		1.2.0.192.in-addr.arpa. 300 IN PTR three.silent.example.
	`)
	for _, name := range []string{"one", "two", "three"} {
		s.SetRcode(name+".silent.example", -1)
	}
	s.SetRcode("9.2.0.192.in-addr.arpa", -1)
	before := testutil.ToFloat64(limitSPFPTR)
	for _, client := range []string{"192.0.2.1", "192.0.2.9"} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*ptrTime)
		defer cancel()
		addr := netip.MustParseAddr(client)
		got, err := spf.CheckHostWithSender(net.IP(addr.AsSlice()), "h.example", "a@example.com", spf.WithContext(ctx), spf.WithResolver(r.SPF(addr)))
		if got != spf.Fail || ctx.Err() != nil {
			t.Errorf("%s: %s, %v", client, got, err)
		}
	}
	if n := testutil.ToFloat64(limitSPFPTR) - before; n < 2 {
		t.Errorf("counted %v lookups without an answer in time", n)
	}
}

// Macros with endless delimiters cost time that grows with the square of their length.
func TestSPFRecordTooLarge(t *testing.T) {
	long := strings.Repeat("-", 200)
	var zone strings.Builder
	zone.WriteString(`example.com. 300 IN TXT "v=spf1 include:b.%{d2.`)
	for range maxSPFRecord/200 + 1 {
		zone.WriteString(long + `" "`)
	}
	zone.WriteString(`} -all"`)
	r, _ := start(t, zone.String())
	addr := netip.MustParseAddr("192.0.2.1")
	before := testutil.ToFloat64(limitSPFRecord)
	got, err := spf.CheckHostWithSender(net.IP(addr.AsSlice()), "h.example", "a@example.com", spf.WithContext(t.Context()), spf.WithResolver(r.SPF(addr)))
	if got != spf.PermError || err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("%s, %v", got, err)
	}
	if n := testutil.ToFloat64(limitSPFRecord) - before; n != 1 {
		t.Errorf("counted %v", n)
	}
}

// The hosts of mx are asked for addresses of the client's family alone: there can be a
// hundred of them.
func TestSPFAsksForOneFamily(t *testing.T) {
	r, s := start(t, `
		example.com. 300 IN TXT "v=spf1 mx -all"
		example.com. 300 IN MX 10 mx.example.net.
		mx.example.net. 300 IN A 192.0.2.1
		mx.example.net. 300 IN AAAA 2001:db8::1
	`)
	for _, client := range []string{"2001:db8::1", "192.0.2.1"} {
		addr := netip.MustParseAddr(client)
		got, _ := spf.CheckHostWithSender(net.IP(addr.AsSlice()), "h.example", "a@example.com", spf.WithContext(t.Context()), spf.WithResolver(r.SPF(addr)))
		if got != spf.Pass {
			t.Errorf("%s: %s", client, got)
		}
	}
	want := []string{"example.com. TXT", "example.com. MX", "mx.example.net. AAAA", "mx.example.net. A"}
	if d := cmp.Diff(want, s.Queries()); d != "" {
		t.Error(d)
	}
}
