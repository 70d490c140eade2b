package resolver

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"ruapost"
)

// MX is a mail exchanger of a domain.
type MX struct {
	// Host is the exchanger's name as ruapost.ParseDomain gives it, or empty in a
	// null MX, by which a domain says that it takes no mail (RFC 7505).
	Host string
	// Pref is the preference; hosts with lower values come first.
	Pref uint16
}

// TLSA is a TLSA record (RFC 6698 2.1). It may have any values: whether they make
// sense is for the user to decide.
type TLSA struct {
	Usage        uint8
	Selector     uint8
	MatchingType uint8
	Data         []byte // certificate association data
}

// String returns the record's presentation form, such as "3 1 1 0A1B…".
func (t TLSA) String() string {
	return fmt.Sprintf("%d %d %d %X", t.Usage, t.Selector, t.MatchingType, t.Data)
}

// LookupTXT returns the texts of name's TXT records, the strings of each joined
// (RFC 7208 3.3). They are octets as they were sent, of any value and charset.
func (r *Resolver) LookupTXT(ctx context.Context, name string) (txts []string, authentic bool, err error) {
	a := r.get(ctx, name, dns.TypeTXT)
	return slices.Clone(a.txts), a.authentic, a.error()
}

// LookupMX returns the mail exchangers of name, the most preferred first. Hosts
// that are no domain names are left out; if that leaves none, mxs is empty and err
// is nil, because the domain is not one without MX records (RFC 5321 5.1).
func (r *Resolver) LookupMX(ctx context.Context, name string) (mxs []MX, authentic bool, err error) {
	a := r.get(ctx, name, dns.TypeMX)
	return slices.Clone(a.mxs), a.authentic, a.error()
}

// LookupIP returns the IPv4 and IPv6 addresses of name, and in cname the targets
// of the aliases on the way to them, in order; the last is the name that has the
// addresses. Addresses of one family are returned even if the lookup for the other
// failed. Without any, err tells of a failure rather than of a denial.
//
// authentic says whether every answer that gave addresses was authentic, or, if
// none did, both denials. It decides whether a host's TLSA records are looked for
// (RFC 7672 2.2.2). So a family without addresses has no say beside one with: else
// DANE could be turned off by keeping one answer from us, and would be for zones
// whose denials alone count as insecure (RFC 9276 3.2).
func (r *Resolver) LookupIP(ctx context.Context, name string) (ips []netip.Addr, cname []string, authentic bool, err error) {
	domain, err := ruapost.ParseDomain(name)
	if err != nil {
		return nil, nil, false, nxDomain(name)
	}
	a := merge(r.bothFamilies(ctx, domain))
	return slices.Clone(a.addrs), slices.Clone(a.chain), a.authentic, a.error()
}

// LookupTLSA returns the TLSA records at name, such as _25._tcp.mx.example.com.
func (r *Resolver) LookupTLSA(ctx context.Context, name string) (tlsa []TLSA, authentic bool, err error) {
	a := r.get(ctx, name, dns.TypeTLSA)
	for _, t := range a.tlsa {
		t.Data = bytes.Clone(t.Data)
		tlsa = append(tlsa, t)
	}
	return tlsa, a.authentic, a.error()
}

// LookupCNAME returns the name that name is an alias for, not what that may be an alias
// for in turn. Unlike the lookups that follow aliases it tells whether this first one
// is authentic by itself.
func (r *Resolver) LookupCNAME(ctx context.Context, name string) (target string, authentic bool, err error) {
	a := r.get(ctx, name, dns.TypeCNAME)
	if len(a.names) > 0 {
		target = a.names[0]
	}
	return target, a.authentic, a.error()
}

// LookupPTR returns the names that addr's reverse entry gives. They are claims of
// the address's owner: only their own addresses can confirm them.
func (r *Resolver) LookupPTR(ctx context.Context, addr netip.Addr) ([]string, error) {
	arpa, err := dns.ReverseAddr(addr.WithZone("").String())
	if err != nil {
		return nil, nxDomain(addr.String())
	}
	a := r.get(ctx, arpa, dns.TypePTR)
	return slices.Clone(a.names), a.error()
}

// Exists reports whether name exists, with records of whatever type or as a part
// of longer names. It is false only if the servers deny that: NXDOMAIN
// (RFC 9989 3.2.13, RFC 8020 2). An alias exists even if its target does not
// (RFC 6604 3).
func (r *Resolver) Exists(ctx context.Context, name string) (bool, error) {
	a := r.get(ctx, name, dns.TypeA)
	err := a.error()
	switch {
	case IsNXDomain(err) && len(a.chain) == 0:
		return false, nil
	case err == nil || IsNotFound(err):
		return true, nil
	}
	return false, err
}

// get returns the answer for name, which comes from a caller.
func (r *Resolver) get(ctx context.Context, name string, qtype uint16) *answer {
	domain, err := ruapost.ParseDomain(name)
	if err != nil {
		return &answer{err: nxDomain(name)}
	}
	return r.lookup(ctx, key{domain, qtype})
}

// bothFamilies asks for the IPv4 and IPv6 addresses of domain at the same time.
func (r *Resolver) bothFamilies(ctx context.Context, domain string) (v4, v6 *answer) {
	k4, k6 := key{domain, dns.TypeA}, key{domain, dns.TypeAAAA}
	f4, f6 := r.join(ctx, k4), r.join(ctx, k6)
	return r.wait(ctx, k4, f4), r.wait(ctx, k6, f6)
}

// merge returns the answer of LookupIP.
func merge(v4, v6 *answer) *answer {
	m := *v4
	if rank(v6.err) > rank(v4.err) {
		m = *v6
	}
	if (v4.err == nil) == (v6.err == nil) {
		m.addrs = slices.Concat(v4.addrs, v6.addrs)
		m.authentic = v4.authentic && v6.authentic
	}
	return &m
}

// The ranks order the answers of the two families by how much they have to say:
// if one says that there is no such name, but not the other, then there is.
const (
	rankNXDomain = iota
	rankNoData
	rankFailed
	rankFound
)

func rank(err *net.DNSError) int {
	switch {
	case err == nil:
		return rankFound
	case !err.IsNotFound:
		return rankFailed
	case !IsNXDomain(err):
		return rankNoData
	}
	return rankNXDomain
}
