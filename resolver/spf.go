package resolver

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

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
	found  *spfNames
}

// spfNames are names that the check was told by answers, not by the record.
type spfNames struct {
	mx, ptr map[string]bool
	// until is when the ptr mechanism has to be done; the zero time if it was not used.
	until time.Time
}

const (
	// maxSPFRecord is the size in bytes of a record that is read. Macros in a larger
	// one cost time that grows with its square.
	maxSPFRecord = 4 << 10
	// ptrTime is how long a check may take for the ptr mechanism. The client's operator
	// decides how slow that is; names that do not come in time do not match, and are no
	// error (RFC 7208 5.5).
	ptrTime = 2 * time.Second
)

// SPF returns the resolver for checking the SMTP client at address client.
func (r *Resolver) SPF(client netip.Addr) SPF {
	return SPF{r: r, client: client.Unmap(), found: &spfNames{mx: map[string]bool{}, ptr: map[string]bool{}}}
}

// LookupTXT returns the texts of domain's TXT records.
func (s SPF) LookupTXT(ctx context.Context, domain string) ([]string, error) {
	a := s.get(ctx, domain, dns.TypeTXT)
	for _, txt := range a.txts {
		if len(txt) > maxSPFRecord && strings.HasPrefix(txt, "v=spf1") {
			limitSPFRecord.Inc()
			return nil, &net.DNSError{Err: "SPF record too large", Name: domain}
		}
	}
	return slices.Clone(a.txts), a.error()
}

// LookupMX returns the mail exchangers of domain, the most preferred first.
func (s SPF) LookupMX(ctx context.Context, domain string) ([]*net.MX, error) {
	a := s.get(ctx, domain, dns.TypeMX)
	var out []*net.MX
	for _, mx := range a.mxs {
		s.found.mx[mx.Host] = true
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
	switch {
	case s.found.ptr[name]:
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, s.found.until)
		defer cancel()
		a = s.r.lookup(ctx, key{name, s.family()})
		s.countLate(ctx)
	case s.client.Is4(), s.found.mx[name]: // no mechanism but exists wants another family
		a = s.r.lookup(ctx, key{name, s.family()})
	default:
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

// family is the type of the records with addresses of the client's family.
func (s SPF) family() uint16 {
	if s.client.Is4() {
		return dns.TypeA
	}
	return dns.TypeAAAA
}

// LookupAddr returns the names that the reverse entry of the address addr gives.
func (s SPF) LookupAddr(ctx context.Context, addr string) ([]string, error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return nil, nxDomain(addr)
	}
	if s.found.until.IsZero() {
		s.found.until = time.Now().Add(ptrTime)
	}
	ctx, cancel := context.WithDeadline(ctx, s.found.until)
	defer cancel()
	names, err := s.r.LookupPTR(ctx, ip)
	s.countLate(ctx)
	for i, name := range names {
		s.found.ptr[name] = true
		names[i] += "."
	}
	return names, err
}

// countLate counts a lookup for ptr that had no more time.
func (s SPF) countLate(ctx context.Context) {
	if ctx.Err() != nil && !time.Now().Before(s.found.until) {
		limitSPFPTR.Inc()
	}
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
