package resolver

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"ruapost"
)

// SPF answers the questions of one SPF check, in the form of package net. It is
// the DNSResolver of blitiri.com.ar/go/spf. Unlike LookupIP it fails if the lookup
// for addresses of the client's family fails: RFC 7208 5 wants a temporary error
// where a part of the addresses would make a client fail. Names may have what
// macros put into them (RFC 7208 7.3).
type SPF struct {
	r      *Resolver
	client netip.Addr
}

// SPF returns the resolver for checking the SMTP client at address client.
func (r *Resolver) SPF(client netip.Addr) SPF {
	return SPF{r: r, client: client.Unmap()}
}

// LookupTXT returns the texts of domain's TXT records.
func (s SPF) LookupTXT(ctx context.Context, domain string) ([]string, error) {
	a := s.get(ctx, domain, dns.TypeTXT)
	return slices.Clone(a.txts), a.error()
}

// LookupMX returns the mail exchangers of domain, the most preferred first.
func (s SPF) LookupMX(ctx context.Context, domain string) ([]*net.MX, error) {
	a := s.get(ctx, domain, dns.TypeMX)
	var out []*net.MX
	for _, mx := range a.mxs {
		out = append(out, &net.MX{Host: mx.Host + ".", Pref: mx.Pref})
	}
	return out, a.error()
}

// get returns the answer for name.
func (s SPF) get(ctx context.Context, name string, qtype uint16) *answer {
	domain, ok := spfName(name)
	if !ok {
		return &answer{err: nxDomain(name)}
	}
	return s.r.lookup(ctx, key{domain, qtype})
}

// LookupIPAddr returns the addresses of host: IPv4 addresses, and for an IPv6
// client also IPv6 addresses, because the exists mechanism looks for IPv4
// addresses whatever the client is (RFC 7208 5.7). For an IPv6 client, a failure
// to find the IPv4 addresses is an error only if there are no IPv6 addresses: a
// host that has some is not what exists is used with, and all else asks only for
// those (RFC 7208 5).
func (s SPF) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	name, ok := spfName(host)
	if !ok {
		return nil, nxDomain(host)
	}
	var a *answer
	if s.client.Is4() {
		a = s.r.lookup(ctx, key{name, dns.TypeA})
	} else {
		v4, v6 := s.r.bothFamilies(ctx, name)
		if a = merge(v4, v6); rank(v6.err) == rankFailed {
			a = v6
		}
	}
	var ips []net.IPAddr
	for _, addr := range a.addrs {
		ips = append(ips, net.IPAddr{IP: addr.AsSlice()})
	}
	return ips, a.error()
}

// LookupAddr returns the names that the reverse entry of the address addr gives.
func (s SPF) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, nxDomain(addr)
	}
	names, err := s.r.LookupPTR(ctx, ip)
	for i := range names {
		names[i] += "."
	}
	return names, err
}

// spfName returns host as a key has it. Macros put local parts into names, so that
// characters are allowed that no host or mail domain has (RFC 7208 7.3), for
// example joe+list._spf.example.com, but nothing invisible or outside ASCII.
func spfName(host string) (name string, ok bool) {
	if name, err := ruapost.ParseDomain(host); err == nil {
		return name, true
	}
	for i := range len(host) {
		if host[i] <= ' ' || host[i] > '~' {
			return "", false
		}
	}
	// To the wire and back: this checks lengths and labels, and gives the form in
	// which the name will stand in the answer.
	wire := make([]byte, 255)
	escaped := dns.Fqdn(strings.ReplaceAll(host, `\`, `\\`))
	if _, err := dns.PackDomainName(escaped, wire, 0, nil, false); err != nil {
		return "", false
	}
	name, _, err := dns.UnpackDomainName(wire, 0)
	if err != nil || name == "." {
		return "", false
	}
	return strings.ToLower(strings.TrimSuffix(name, ".")), true
}
