package dane

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"ruapost"
	"ruapost/internal/dnstest"
	"ruapost/resolver"
)

const (
	digest256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	usableRR  = " 300 IN TLSA 3 1 1 " + digest256 + "\n"
)

func start(t *testing.T) (*dnstest.Server, *resolver.Resolver) {
	t.Helper()
	server, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	r, err := resolver.New(resolver.Config{Servers: []string{server.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return server, r
}

// describe puts all of a host that a test may want to see on one line.
func describe(h Host) string {
	s := fmt.Sprintf("%s addrs=%d", h.Name, len(h.Addrs))
	if h.Secure {
		s += " secure"
	}
	if h.TLSABase != "" {
		s += fmt.Sprintf(" base=%s tlsa=%d unusable=%d", h.TLSABase, len(h.TLSA), h.Unusable)
	}
	if h.Malformed > 0 {
		s += fmt.Sprintf(" malformed=%d", h.Malformed)
	}
	if h.Err != nil {
		s += " failed"
	}
	return s
}

func TestLookup(t *testing.T) {
	const (
		oneMX = "d.test. 300 IN MX 10 mx.d.test.\n"
		twoMX = "d.test. 300 IN MX 20 b.mx.test.\nd.test. 300 IN MX 10 a.mx.test.\n"
		mxA   = "mx.d.test. 300 IN A 192.0.2.1\n"
		aA    = "a.mx.test. 300 IN A 192.0.2.1\n"
		bA    = "b.mx.test. 300 IN AAAA 2001:db8::1\n"
		mxT   = "_25._tcp.mx.d.test." + usableRR
		aT    = "_25._tcp.a.mx.test." + usableRR
		bT    = "_25._tcp.b.mx.test." + usableRR
		bPKIX = "_25._tcp.b.mx.test. 300 IN TLSA 1 1 1 " + digest256 + "\n"
		bCut  = "_25._tcp.b.mx.test. 300 IN TLSA 3 1 1 0123\n"
		alias = "mx.d.test. 300 IN CNAME a.mx.test.\n"
	)
	tests := []struct {
		name     string
		zone     string
		insecure []string
		fail     []string // names that give SERVFAIL
		secure   bool     // of the MX
		hosts    []string
		level    Level
		enforce  *Level   // with an MTA-STS policy to be enforced; nil: the same
		asked    []string // TLSA queries, in any order; nil: do not look
	}{
		{
			name: "7672 2.2: all secure with usable records", zone: twoMX + aA + bA + aT + bT, secure: true,
			hosts: []string{
				"a.mx.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0",
				"b.mx.test addrs=1 secure base=b.mx.test tlsa=1 unusable=0",
			},
			level: LevelDANEOnly,
			asked: []string{"_25._tcp.a.mx.test. TLSA", "_25._tcp.b.mx.test. TLSA"},
		},
		{
			name: "7672 2.2: one host without records", zone: twoMX + aA + bA + aT, secure: true,
			hosts: []string{
				"a.mx.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0",
				"b.mx.test addrs=1 secure",
			},
			level: LevelDANE,
		},
		{
			name: "7672 2.2: no host with records", zone: twoMX + aA + bA, secure: true,
			hosts: []string{"a.mx.test addrs=1 secure", "b.mx.test addrs=1 secure"},
			level: LevelNone,
		},
		{
			name: "7672 2.2: usable and unusable records", zone: oneMX + mxA + mxT + "_25._tcp.mx.d.test. 300 IN TLSA 0 0 1 " + digest256, secure: true,
			hosts: []string{"mx.d.test addrs=1 secure base=mx.d.test tlsa=1 unusable=1"},
			level: LevelDANEOnly,
		},
		{
			name: "7672 2.2: only unusable records make TLS mandatory", zone: oneMX + mxA + "_25._tcp.mx.d.test. 300 IN TLSA 1 1 1 " + digest256, secure: true,
			hosts: []string{"mx.d.test addrs=1 secure base=mx.d.test tlsa=0 unusable=1"},
			level: LevelDANE, enforce: new(LevelNone),
		},
		{
			name: "7672 2.2: one host with only unusable records", zone: twoMX + aA + bA + aT + bPKIX, secure: true,
			hosts: []string{
				"a.mx.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0",
				"b.mx.test addrs=1 secure base=b.mx.test tlsa=0 unusable=1",
			},
			level: LevelDANE,
		},
		{
			name: "7672 2.2, 6698 4.1: one host with only malformed and unusable records", zone: twoMX + aA + bA + aT + bCut + bPKIX, secure: true,
			hosts: []string{
				"a.mx.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0",
				"b.mx.test addrs=1 secure base=b.mx.test tlsa=0 unusable=1 malformed=1",
			},
			level: LevelDANE,
		},
		{
			name: "7672 2.2, 6698 4.1: only malformed records make TLS mandatory", zone: "d.test. 300 IN MX 10 b.mx.test.\n" + bA + bCut, secure: true,
			hosts: []string{"b.mx.test addrs=1 secure base=b.mx.test tlsa=0 unusable=0 malformed=1"},
			level: LevelDANE, enforce: new(LevelNone),
		},
		{
			name: "7672 2.2: insecure TLSA answer is none", zone: oneMX + mxA + mxT, insecure: []string{"_tcp.mx.d.test"}, secure: true,
			hosts: []string{"mx.d.test addrs=1 secure"},
			level: LevelNone,
		},
		{
			name: "7672 2.2.1: insecure MX", zone: oneMX + mxA + mxT, insecure: []string{"d.test"}, secure: false,
			hosts: []string{"mx.d.test addrs=1"}, // a subdomain of the insecure zone
			level: LevelNone,
			asked: []string{},
		},
		{
			name: "7672 2.2.1: insecure MX, secure hosts of a provider", zone: twoMX + aA + bA + aT + bT, insecure: []string{"d.test"}, secure: false,
			hosts: []string{
				"a.mx.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0",
				"b.mx.test addrs=1 secure base=b.mx.test tlsa=1 unusable=0",
			},
			level: LevelDANE, enforce: new(LevelNone), // dane-only would defer: "non DNSSEC destination"
		},
		{
			name: "7672 2.2.1: MX reached by an alias", zone: "d.test. 300 IN CNAME e.test.\ne.test. 300 IN MX 10 a.mx.test.\n" + aA + aT, secure: true,
			hosts: []string{"a.mx.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0"},
			level: LevelDANEOnly,
		},
		{
			name: "7672 2.1.3: MX reached by an insecure alias", zone: "d.test. 300 IN CNAME e.test.\ne.test. 300 IN MX 10 a.mx.test.\n" + aA + aT,
			insecure: []string{"d.test"}, secure: false,
			hosts: []string{"a.mx.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0"},
			level: LevelDANE, enforce: new(LevelNone),
		},
		{
			name: "7672 2.2.1: implicit MX", zone: "d.test. 300 IN A 192.0.2.1\n_25._tcp.d.test." + usableRR, secure: true,
			hosts: []string{"d.test addrs=1 secure base=d.test tlsa=1 unusable=0"},
			level: LevelDANEOnly,
		},
		{
			name: "7672 2.2.1: implicit MX, insecure", zone: "d.test. 300 IN A 192.0.2.1\n_25._tcp.d.test." + usableRR, insecure: []string{"d.test"}, secure: false,
			hosts: []string{"d.test addrs=1"},
			level: LevelNone,
		},
		{
			name: "7672 2.2.1: implicit MX is an alias", zone: "d.test. 300 IN CNAME a.mx.test.\n" + aA + aT, secure: true,
			hosts: []string{"d.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0"},
			level: LevelDANEOnly,
		},
		{
			name: "7672 2.2.1: implicit MX is an alias with an insecure end", zone: "d.test. 300 IN CNAME a.mx.test.\n" + aA + "_25._tcp.d.test." + usableRR,
			insecure: []string{"a.mx.test"}, secure: false, // the denial of MX is that of the alias's target
			hosts: []string{"d.test addrs=1 base=d.test tlsa=1 unusable=0"},
			level: LevelDANE, enforce: new(LevelNone),
		},
		{
			name: "domain does not exist", zone: "other.test. 300 IN A 192.0.2.1\n", secure: true,
			hosts: []string{"d.test addrs=0"},
			level: LevelNone,
		},
		{
			name: "7505: null MX is no implicit MX", zone: "d.test. 300 IN MX 0 .\nd.test. 300 IN A 192.0.2.1\n_25._tcp.d.test." + usableRR, secure: true,
			level: LevelNone,
			asked: []string{},
		},
		{
			name: "5321 5.1: MX that names no host is no implicit MX", zone: "d.test. 300 IN MX 0 192.0.2.1.\nd.test. 300 IN A 192.0.2.1\n_25._tcp.d.test." + usableRR, secure: true,
			level: LevelNone,
			asked: []string{},
		},
		{
			name: "7672 2.2: MX that names an address, beside a host", zone: "d.test. 300 IN MX 5 192.0.2.1.\n" + oneMX + mxA + mxT, secure: true,
			hosts: []string{"mx.d.test addrs=1 secure base=mx.d.test tlsa=1 unusable=0"},
			level: LevelDANEOnly,
		},
		{
			name: "7672 2.2.2: IPv6 alone", zone: "d.test. 300 IN MX 10 b.mx.test.\n" + bA + bT, secure: true,
			hosts: []string{"b.mx.test addrs=1 secure base=b.mx.test tlsa=1 unusable=0"},
			level: LevelDANEOnly,
		},
		{
			name: "7672 2.2.2, 4592: wildcards give TLSA and addresses", zone: "d.test. 300 IN MX 10 mx.wild.test.\n*.wild.test. 300 IN A 192.0.2.1\n*.wild.test." + usableRR, secure: true,
			hosts: []string{"mx.wild.test addrs=1 secure base=mx.wild.test tlsa=1 unusable=0"},
			level: LevelDANEOnly,
		},
		{
			name: "4592: wildcard without TLSA makes the TLSA name exist", zone: "d.test. 300 IN MX 10 mx.wild.test.\n*.wild.test. 300 IN A 192.0.2.1\n", secure: true,
			hosts: []string{"mx.wild.test addrs=1 secure"},
			level: LevelNone,
		},
		{
			name: "7672 2.2.2, 4592: wildcard alias, at the TLSA name, too", zone: "d.test. 300 IN MX 10 mx.wild.test.\n*.wild.test. 300 IN CNAME a.mx.test.\n" + aA + aT, secure: true,
			hosts: []string{"mx.wild.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0"},
			level: LevelDANEOnly,
			asked: []string{"_25._tcp.a.mx.test. TLSA"},
		},
		{
			name: "same host twice", zone: oneMX + "d.test. 300 IN MX 20 MX.d.test.\n" + mxA + mxT, secure: true,
			hosts: []string{"mx.d.test addrs=1 secure base=mx.d.test tlsa=1 unusable=0"},
			level: LevelDANEOnly,
		},
		{
			name: "7672 2.2.2: insecure address, TLSA not asked for", zone: twoMX + aA + bA + aT + bT, insecure: []string{"b.mx.test"}, secure: true,
			hosts: []string{
				"a.mx.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0",
				"b.mx.test addrs=1",
			},
			level: LevelDANE, // dane-only would pass over b
			asked: []string{"_25._tcp.a.mx.test. TLSA"},
		},
		{
			name: "7672 2.2.2: host without addresses", zone: twoMX + aA + aT + bT, secure: true,
			hosts: []string{
				"a.mx.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0",
				"b.mx.test addrs=0",
			},
			level: LevelDANEOnly,
			asked: []string{"_25._tcp.a.mx.test. TLSA"},
		},
		{
			name: "7672 2.2.2: host that does not exist", zone: twoMX + aA + aT, secure: true,
			hosts: []string{
				"a.mx.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0",
				"b.mx.test addrs=0",
			},
			level: LevelDANEOnly,
			asked: []string{"_25._tcp.a.mx.test. TLSA"},
		},
		{
			name: "7672 2.2.2: alias, TLSA at its end", zone: oneMX + "mx.d.test. 300 IN CNAME m.test.\nm.test. 300 IN CNAME a.mx.test.\n" + aA + aT + mxT, secure: true,
			hosts: []string{"mx.d.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0"},
			level: LevelDANEOnly,
			asked: []string{"_25._tcp.a.mx.test. TLSA"},
		},
		{
			name: "7672 2.2.2: alias, TLSA at the name itself, between is not asked",
			zone: oneMX + "mx.d.test. 300 IN CNAME m.test.\nm.test. 300 IN CNAME a.mx.test.\n_25._tcp.m.test." + usableRR + aA + mxT, secure: true,
			hosts: []string{"mx.d.test addrs=1 secure base=mx.d.test tlsa=1 unusable=0"},
			level: LevelDANEOnly,
			asked: []string{"_25._tcp.a.mx.test. TLSA", "_25._tcp.mx.d.test. TLSA"},
		},
		{
			name: "7672 2.2.2: alias with insecure TLSA at its end, secure at the name",
			zone: oneMX + "mx.d.test. 300 IN CNAME a.mx.test.\n" + aA + aT + mxT, insecure: []string{"_tcp.a.mx.test"}, secure: true,
			hosts: []string{"mx.d.test addrs=1 secure base=mx.d.test tlsa=1 unusable=0"},
			level: LevelDANEOnly,
		},
		{
			name: "7672 2.2.2: alias with an insecure end, TLSA at the name alone",
			zone: oneMX + alias + aA + aT + mxT, insecure: []string{"a.mx.test"}, secure: true,
			hosts: []string{"mx.d.test addrs=1 base=mx.d.test tlsa=1 unusable=0"},
			level: LevelDANEOnly,
			asked: []string{"_25._tcp.mx.d.test. TLSA"},
		},
		{
			name: "7672 2.2.2: alias with an insecure link between, TLSA at the name alone",
			zone: oneMX + "mx.d.test. 300 IN CNAME m.test.\nm.test. 300 IN CNAME a.mx.test.\n" + aA + aT + mxT, insecure: []string{"m.test"}, secure: true,
			hosts: []string{"mx.d.test addrs=1 base=mx.d.test tlsa=1 unusable=0"},
			level: LevelDANEOnly,
			asked: []string{"_25._tcp.mx.d.test. TLSA"},
		},
		{
			name: "7672 2.2.2: alias with an insecure end, no TLSA at the name",
			zone: oneMX + alias + aA + aT, insecure: []string{"a.mx.test"}, secure: true,
			hosts: []string{"mx.d.test addrs=1"},
			level: LevelNone,
			asked: []string{"_25._tcp.mx.d.test. TLSA"},
		},
		{
			name: "7672 2.2.2: insecure alias", zone: "d.test. 300 IN MX 10 mx.e.test.\nmx.e.test. 300 IN CNAME a.mx.test.\n" + aA + aT + "_25._tcp.mx.e.test." + usableRR,
			insecure: []string{"e.test"}, secure: true,
			hosts: []string{"mx.e.test addrs=1"},
			level: LevelNone,
			asked: []string{},
		},
		{
			name: "7672 2.1.2, 2.2.2: alias with an insecure end, TLSA lookup at the name fails",
			zone: oneMX + alias + aA, insecure: []string{"a.mx.test"}, fail: []string{"_25._tcp.mx.d.test"}, secure: true,
			hosts: []string{"mx.d.test addrs=1 failed"},
			level: LevelDANE, enforce: new(LevelDANEOnly),
		},
		{
			name: "7672 2.1.3: loop of aliases is a failure", zone: oneMX + "mx.d.test. 300 IN CNAME m.test.\nm.test. 300 IN CNAME mx.d.test.\n", secure: true,
			hosts: []string{"mx.d.test addrs=0 failed"},
			level: LevelNone,
		},
		{
			name: "7672 2.2.3: alias at the TLSA name keeps the base domain",
			zone: oneMX + mxA + "_25._tcp.mx.d.test. 300 IN CNAME tlsa.test.\ntlsa.test." + usableRR, secure: true,
			hosts: []string{"mx.d.test addrs=1 secure base=mx.d.test tlsa=1 unusable=0"},
			level: LevelDANEOnly,
		},
		{
			name: "7672 2.1.3: insecure alias at the TLSA name",
			zone: oneMX + mxA + "_25._tcp.mx.d.test. 300 IN CNAME tlsa.test.\ntlsa.test." + usableRR, insecure: []string{"tlsa.test"}, secure: true,
			hosts: []string{"mx.d.test addrs=1 secure"},
			level: LevelNone,
		},
		{
			name: "7672 2.1.2: failing TLSA lookup of the only host never leads to STS", zone: oneMX + mxA, fail: []string{"_25._tcp.mx.d.test"}, secure: true,
			hosts: []string{"mx.d.test addrs=1 secure failed"},
			level: LevelDANE, enforce: new(LevelDANEOnly),
		},
		{
			name: "7672 2.1.2: failing TLSA lookup spoils no other host", zone: twoMX + aA + bA + aT, fail: []string{"_25._tcp.b.mx.test"}, secure: true,
			hosts: []string{
				"a.mx.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0",
				"b.mx.test addrs=1 secure failed",
			},
			level: LevelDANE,
		},
		{
			name: "7672 2.1.2, 8461 2: failing TLSA lookup beside a host without records bypasses no policy", zone: twoMX + aA + bA, fail: []string{"_25._tcp.b.mx.test"}, secure: true,
			hosts: []string{"a.mx.test addrs=1 secure", "b.mx.test addrs=1 secure failed"},
			level: LevelDANE, enforce: new(LevelDANEOnly),
		},
		{
			name: "7672 2.1.2, 8461 2: the same beside one with only unusable records", zone: twoMX + aA + bA + bPKIX, fail: []string{"_25._tcp.a.mx.test"}, secure: true,
			hosts: []string{"a.mx.test addrs=1 secure failed", "b.mx.test addrs=1 secure base=b.mx.test tlsa=0 unusable=1"},
			level: LevelDANE, enforce: new(LevelDANEOnly),
		},
		{
			name: "7672 2.2.1: failing TLSA lookup under an insecure MX", zone: twoMX + aA + bA, insecure: []string{"d.test"}, fail: []string{"_25._tcp.b.mx.test"}, secure: false,
			hosts: []string{"a.mx.test addrs=1 secure", "b.mx.test addrs=1 secure failed"},
			level: LevelDANE, enforce: new(LevelNone),
		},
		{
			name: "7672 2.1.2: failure at the end of an alias is not covered by the name", zone: oneMX + "mx.d.test. 300 IN CNAME a.mx.test.\n" + aA + mxT,
			fail: []string{"_25._tcp.a.mx.test"}, secure: true,
			hosts: []string{"mx.d.test addrs=1 secure failed"},
			level: LevelDANE, enforce: new(LevelDANEOnly),
			asked: []string{"_25._tcp.a.mx.test. TLSA"},
		},
		{
			name: "failing address lookup of the only host", zone: oneMX + mxT, fail: []string{"mx.d.test"}, secure: true,
			hosts: []string{"mx.d.test addrs=0 failed"},
			level: LevelNone, // an MTA-STS policy holds
		},
		{
			name: "7672 2.1.2: failing zone of the most preferred host spoils no other", zone: twoMX + bA + bT, fail: []string{"a.mx.test", "_25._tcp.a.mx.test"}, secure: true,
			hosts: []string{
				"a.mx.test addrs=0 failed",
				"b.mx.test addrs=1 secure base=b.mx.test tlsa=1 unusable=0",
			},
			level: LevelDANE,
			asked: []string{"_25._tcp.b.mx.test. TLSA"}, // RFC 7672 2.2.2: addresses first
		},
		{
			name: "failing address lookup of one host: not all are known", zone: twoMX + aA + aT, fail: []string{"b.mx.test"}, secure: true,
			hosts: []string{
				"a.mx.test addrs=1 secure base=a.mx.test tlsa=1 unusable=0",
				"b.mx.test addrs=0 failed",
			},
			level: LevelDANE,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server, r := start(t)
			server.Add(test.zone)
			server.SetInsecure(test.insecure...)
			for _, name := range test.fail {
				server.SetRcode(name, dns.RcodeServerFailure)
			}
			result, err := Lookup(t.Context(), r, "D.Test.")
			if err != nil {
				t.Fatal(err)
			}
			if result.MXSecure != test.secure {
				t.Errorf("MXSecure is %v", result.MXSecure)
			}
			var hosts []string
			for _, h := range result.Hosts {
				hosts = append(hosts, describe(h))
			}
			if !slices.Equal(hosts, test.hosts) {
				t.Errorf("hosts\n%s\nwant\n%s", strings.Join(hosts, "\n"), strings.Join(test.hosts, "\n"))
			}
			if level := result.Level(false); level != test.level {
				t.Errorf("level %q, want %q", level, test.level)
			}
			if level, want := result.Level(true), *cmp.Or(test.enforce, &test.level); level != want {
				t.Errorf("level %q beside an MTA-STS policy, want %q", level, want)
			}
			if test.asked != nil {
				if asked := tlsaQueries(server); !slices.Equal(asked, test.asked) {
					t.Errorf("TLSA queries %q, want %q", asked, test.asked)
				}
			}
		})
	}
}

func tlsaQueries(server *dnstest.Server) []string {
	queries := slices.DeleteFunc(server.Queries(), func(q string) bool { return !strings.HasSuffix(q, " TLSA") })
	slices.Sort(queries)
	return slices.Compact(queries)
}

// RFC 7672 2.1.2: without the list of servers there is no answer.
func TestLookupErrors(t *testing.T) {
	server, r := start(t)
	server.SetRcode("d.test", dns.RcodeServerFailure)
	if result, err := Lookup(t.Context(), r, "d.test"); !resolver.IsTemporary(err) || !resolver.IsServerFailure(err) {
		t.Errorf("MX fails: %v, error %v", result, err)
	}
	server.Queries()
	if result, err := Lookup(t.Context(), r, "[192.0.2.1]"); !errors.Is(err, ruapost.ErrDomain) {
		t.Errorf("no domain: %v, error %v", result, err)
	}
	if q := server.Queries(); len(q) > 0 {
		t.Errorf("no domain: asked %q", q)
	}
}

// RFC 7672 2.1.1: NXDOMAIN is an answer, silence and SERVFAIL are failures; RFC 8460 4.3:
// only the latter is a matter of DNSSEC. A host whose name servers never answer takes
// time, but spoils no other host.
func TestLookupFailures(t *testing.T) {
	server, _ := start(t)
	for i, name := range []string{"good", "denied", "servfail", "silent", "badalias", "noaddress"} {
		server.Add(fmt.Sprintf("d.test. 300 IN MX %d %s.test.\n", i, name))
		if name != "noaddress" && name != "badalias" {
			server.Add(name + ".test. 300 IN A 192.0.2.1\n")
		}
	}
	server.Add("badalias.test. 300 IN CNAME insecure.test.\ninsecure.test. 300 IN A 192.0.2.1\n_25._tcp.badalias.test." + usableRR)
	server.Add("_25._tcp.good.test." + usableRR)
	server.SetInsecure("insecure.test")
	server.SetRcode("_25._tcp.servfail.test", dns.RcodeServerFailure)
	server.SetRcode("_25._tcp.silent.test", -1)
	server.SetRcode("noaddress.test", -1)
	server.Handle(func(w dns.ResponseWriter, q *dns.Msg) bool {
		if q.Question[0].Qtype != dns.TypeCNAME {
			return false
		}
		m := new(dns.Msg)
		m.SetRcode(q, dns.RcodeServerFailure)
		w.WriteMsg(m)
		return true
	})
	r, err := resolver.New(resolver.Config{Servers: []string{server.Addr}, Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	result, err := Lookup(t.Context(), r, "d.test")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"good.test addrs=1 secure base=good.test tlsa=1 unusable=0",
		"denied.test addrs=1 secure",
		"servfail.test addrs=1 secure failed",
		"silent.test addrs=1 secure failed",
		"badalias.test addrs=1 failed", // whether the alias is secure cannot be told
		"noaddress.test addrs=0 failed",
	}
	var hosts []string
	for _, h := range result.Hosts {
		hosts = append(hosts, describe(h))
		isFailure := h.Name == "servfail.test" || h.Name == "badalias.test"
		if h.Err != nil && !resolver.IsTemporary(h.Err) || resolver.IsServerFailure(h.Err) != isFailure {
			t.Errorf("%s: error %v", h.Name, h.Err)
		}
	}
	if !slices.Equal(hosts, want) {
		t.Errorf("hosts\n%s\nwant\n%s", strings.Join(hosts, "\n"), strings.Join(want, "\n"))
	}
	if level := result.Level(false); level != LevelDANE {
		t.Errorf("level %q", level)
	}
}

// RFC 7672 2.1.2 holds for the lookup that tells whether an alias is secure, too.
func TestLookupFailingAlias(t *testing.T) {
	server, r := start(t)
	server.Add("d.test. 300 IN MX 10 mx.d.test.\nmx.d.test. 300 IN CNAME a.test.\na.test. 300 IN A 192.0.2.1\n")
	server.SetInsecure("a.test")
	server.Handle(func(w dns.ResponseWriter, q *dns.Msg) bool {
		m := new(dns.Msg)
		m.SetRcode(q, dns.RcodeServerFailure)
		if q.Question[0].Qtype == dns.TypeCNAME {
			w.WriteMsg(m)
		}
		return q.Question[0].Qtype == dns.TypeCNAME
	})
	result, err := Lookup(t.Context(), r, "d.test")
	if err != nil {
		t.Fatal(err)
	}
	if a, b := result.Level(false), result.Level(true); a != LevelDANE || b != LevelDANEOnly {
		t.Errorf("levels %q and %q", a, b)
	}
}

// panicking panics when it is asked for the addresses of b.test.
type panicking struct{ *resolver.Resolver }

func (r panicking) LookupIP(ctx context.Context, name string) ([]netip.Addr, []string, bool, error) {
	if name == "b.test" {
		panic("test")
	}
	return r.Resolver.LookupIP(ctx, name)
}

func TestLookupPanic(t *testing.T) {
	server, r := start(t)
	server.Add("d.test. 300 IN MX 10 a.test.\nd.test. 300 IN MX 20 b.test.\na.test. 300 IN A 192.0.2.1\n_25._tcp.a.test." + usableRR)
	result, err := Lookup(t.Context(), panicking{r}, "d.test")
	if err != nil {
		t.Fatal(err)
	}
	if a := describe(result.Hosts[0]); a != "a.test addrs=1 secure base=a.test tlsa=1 unusable=0" {
		t.Error(a)
	}
	if b := result.Hosts[1]; !resolver.IsTemporary(b.Err) {
		t.Errorf("%s: error %v", describe(b), b.Err)
	}
}

// RFC 7672 2.2.1: the hosts that are looked at are the most preferred ones.
func TestLookupManyHosts(t *testing.T) {
	server, r := start(t)
	for i := range MaxHosts + 3 {
		server.Add(fmt.Sprintf("d.test. 300 IN MX %d mx%d.test.\nmx%d.test. 300 IN A 192.0.2.1\n_25._tcp.mx%d.test.%s", i, i, i, i, usableRR))
	}
	result, err := Lookup(t.Context(), r, "d.test")
	if err != nil {
		t.Fatal(err)
	}
	last := result.Hosts[len(result.Hosts)-1]
	if len(result.Hosts) != MaxHosts || result.Skipped != 3 || last.Name != fmt.Sprintf("mx%d.test", MaxHosts-1) {
		t.Errorf("%d hosts up to %s, %d skipped", len(result.Hosts), last.Name, result.Skipped)
	}
	if level := result.Level(false); level != LevelDANE {
		t.Errorf("level %q for a domain of which not all hosts are known", level)
	}
}

// RFC 6698 4.1, RFC 7672 3.1.
func TestSetTLSA(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mx.test"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	d32, d64 := make([]byte, 32), make([]byte, 64)
	const usable, unusable, malformed = "usable", "unusable", "malformed"
	tests := []struct {
		name string
		tlsa resolver.TLSA
		want string
	}{
		{"3 1 1", resolver.TLSA{Usage: 3, Selector: 1, MatchingType: 1, Data: d32}, usable},
		{"2 0 1", resolver.TLSA{Usage: 2, Selector: 0, MatchingType: 1, Data: d32}, usable},
		{"3 0 2", resolver.TLSA{Usage: 3, Selector: 0, MatchingType: 2, Data: d64}, usable},
		{"2 0 0", resolver.TLSA{Usage: 2, Selector: 0, MatchingType: 0, Data: cert}, usable},
		{"3 1 0", resolver.TLSA{Usage: 3, Selector: 1, MatchingType: 0, Data: spki}, usable},
		{"PKIX-TA", resolver.TLSA{Usage: 0, Selector: 1, MatchingType: 1, Data: d32}, unusable},
		{"PKIX-EE", resolver.TLSA{Usage: 1, Selector: 1, MatchingType: 1, Data: d32}, unusable},
		{"unknown usage", resolver.TLSA{Usage: 4, Selector: 1, MatchingType: 1, Data: d32}, unusable},
		{"PrivCert", resolver.TLSA{Usage: 255, Selector: 1, MatchingType: 1, Data: d32}, unusable},
		{"unknown selector", resolver.TLSA{Usage: 3, Selector: 2, MatchingType: 1, Data: d32}, unusable},
		{"unknown matching type", resolver.TLSA{Usage: 3, Selector: 1, MatchingType: 3, Data: d64}, unusable},
		{"PrivSel", resolver.TLSA{Usage: 3, Selector: 255, MatchingType: 1, Data: d32}, unusable},
		{"PrivMatch", resolver.TLSA{Usage: 3, Selector: 1, MatchingType: 255, Data: d32[:1]}, unusable},
		{"unknown selector, all of it", resolver.TLSA{Usage: 3, Selector: 2, MatchingType: 0, Data: d32}, unusable},
		{"PKIX-EE with a certificate", resolver.TLSA{Usage: 1, Selector: 0, MatchingType: 0, Data: cert}, unusable},
		{"PKIX-EE, SHA-256 too short", resolver.TLSA{Usage: 1, Selector: 1, MatchingType: 1, Data: d32[:31]}, malformed},
		{"SHA-256, nothing", resolver.TLSA{Usage: 3, Selector: 1, MatchingType: 1}, malformed},
		{"SHA-256 too short", resolver.TLSA{Usage: 3, Selector: 1, MatchingType: 1, Data: d32[:31]}, malformed},
		{"SHA-256 too long", resolver.TLSA{Usage: 3, Selector: 1, MatchingType: 1, Data: d64}, malformed},
		{"SHA-512 too short", resolver.TLSA{Usage: 3, Selector: 1, MatchingType: 2, Data: d32}, malformed},
		{"empty certificate", resolver.TLSA{Usage: 2, Selector: 0, MatchingType: 0}, malformed},
		{"certificate with something after it", resolver.TLSA{Usage: 2, Selector: 0, MatchingType: 0, Data: append(slices.Clone(cert), 0)}, malformed},
		{"malformed certificate", resolver.TLSA{Usage: 2, Selector: 0, MatchingType: 0, Data: d32}, malformed},
		{"key where the certificate should be", resolver.TLSA{Usage: 3, Selector: 0, MatchingType: 0, Data: spki}, malformed},
		{"certificate where the key should be", resolver.TLSA{Usage: 3, Selector: 1, MatchingType: 0, Data: cert}, malformed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := &Host{}
			h.setTLSA([]resolver.TLSA{test.tlsa})
			got := map[string]int{usable: len(h.TLSA), unusable: h.Unusable, malformed: h.Malformed}
			want := map[string]int{usable: 0, unusable: 0, malformed: 0}
			want[test.want] = 1
			if !maps.Equal(got, want) || len(h.Records) != 1 {
				t.Errorf("%v of %d records, want %s", got, len(h.Records), test.want)
			}
		})
	}
}

// RFC 8460 4.4: a report quotes all records, RFC 6698 2.2: in their presentation form.
func TestRecords(t *testing.T) {
	server, r := start(t)
	server.Add("d.test. 300 IN MX 10 mx.d.test.\nmx.d.test. 300 IN A 192.0.2.1\n_25._tcp.mx.d.test." + usableRR +
		"_25._tcp.mx.d.test. 300 IN TLSA 1 1 1 " + digest256 + "\n_25._tcp.mx.d.test. 300 IN TLSA 2 0 1 ab\n")
	result, err := Lookup(t.Context(), r, "d.test")
	if err != nil {
		t.Fatal(err)
	}
	var records []string
	for _, record := range result.Hosts[0].Records {
		records = append(records, record.String())
	}
	digest := strings.ToUpper(digest256)
	if want := []string{"3 1 1 " + digest, "1 1 1 " + digest, "2 0 1 AB"}; !slices.Equal(records, want) {
		t.Errorf("records %q, want %q", records, want)
	}
}
