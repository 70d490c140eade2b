package outbound

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
	"ruapost/mtasts"
	"ruapost/resolver"
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
	r.Policies = NewPolicies(res, &mtasts.Fetcher{Resolver: res, RootCAs: ca.Pool()}, nil, Settings{})
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
	working, fetcher := r.Policies.resolver, r.Policies.sts.fetcher.Load()
	for _, tt := range []struct{ kind, domain, want string }{
		{"TXT", "plain.example", "NOTFOUND "},
		{"TXT", "all.example", "OK dane-only"},
		{"IP", "plain.example", "OK secure match=mx.plain.example servername=hostname"},
		{"IP", "all.example", "NOTFOUND "},
		{"TLSA", "all.example", "OK dane"},
	} {
		p := NewPolicies(panicking{working, tt.kind}, fetcher, nil, Settings{})
		if got := p.Answer(t.Context(), TableQuery, tt.domain).String(); got != tt.want {
			t.Errorf("%s panics: %s: %q, want %q", tt.kind, tt.domain, got, tt.want)
		}
		p.Close()
	}
	t.Run("fetch", func(t *testing.T) {
		p := NewPolicies(working, nil, nil, Settings{}) // a nil Fetcher panics
		defer p.Close()
		if got := p.Answer(t.Context(), TableQuery, "plain.example").String(); got != "NOTFOUND " {
			t.Errorf("%q", got)
		}
	})
}
