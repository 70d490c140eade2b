// Package dane finds out which mail servers of a domain can be authenticated by
// DANE (RFC 7672) and which TLS security level that makes right in Postfix.
//
// It does not authenticate anything: Postfix looks the same records up again when
// it delivers. What is found here only decides whether that is left to DANE, or
// whether an MTA-STS policy may be applied instead.
package dane

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"ruapost"
	"ruapost/resolver"
)

// MaxHosts is how many MX hosts of a domain are looked at, the most preferred
// first. Postfix itself tries no more than 5 addresses by default
// (smtp_mx_address_limit), and a domain whose hosts' name servers are silent must
// not take the resolver from others.
const MaxHosts = 8

// Resolver is what is asked of a validating resolver: *resolver.Resolver.
type Resolver interface {
	LookupMX(ctx context.Context, name string) (mxs []resolver.MX, authentic bool, err error)
	LookupIP(ctx context.Context, name string) (ips []netip.Addr, cname []string, authentic bool, err error)
	LookupCNAME(ctx context.Context, name string) (target string, authentic bool, err error)
	LookupTLSA(ctx context.Context, name string) (tlsa []resolver.TLSA, authentic bool, err error)
}

// Result is what DNS says about a domain's mail servers.
type Result struct {
	// MXSecure tells whether the MX answer, or its denial, is authentic. If it is
	// not, whoever can forge it can name any host: DANE then is optional
	// (RFC 7672 2.2.1) and protects less than an MTA-STS policy to be enforced.
	MXSecure bool
	// Hosts are the MX hosts, the most preferred first, without repetitions; the
	// domain itself if it has no MX records; none if it has a null MX (RFC 7505)
	// or only MX records that name no host.
	Hosts []Host
	// Skipped counts the hosts past MaxHosts.
	Skipped int
}

// Host is one mail server.
type Host struct {
	// Name is the name in the MX record.
	Name string
	// Addrs are its addresses. If there are none, and no Err, it cannot be
	// delivered to.
	Addrs []netip.Addr
	// Secure tells whether the addresses, and all aliases that led to them, are
	// authentic.
	Secure bool
	// TLSABase is the name that the TLSA records are for, without _25._tcp: Name,
	// or what it is an alias for. It is empty if there are no authentic ones.
	TLSABase string
	// Records are the authentic TLSA records, in the order of the answer. TLSA are
	// those of them that can be used. Of the others, which make TLS mandatory all the
	// same (RFC 7672 2.2), Malformed counts those whose data is not what they say it
	// is, and Unusable those that are well-formed, but of a usage, selector or
	// matching type that is unknown or has no meaning in SMTP.
	Records   []resolver.TLSA
	TLSA      []resolver.TLSA
	Unusable  int
	Malformed int
	// Err is why this is not known: that a lookup failed, for addresses if there are
	// none, else for TLSA records. resolver.IsServerFailure tells whether a server
	// said so.
	Err error
}

// Lookup looks up the mail servers of domain, all at the same time. A failure at
// one of them is noted there alone: it must not spoil the others (RFC 7672 2.1.2).
// An error is returned if the hosts cannot be told: it wraps ruapost.ErrDomain or
// that of the MX lookup, which is temporary.
func Lookup(ctx context.Context, r Resolver, domain string) (*Result, error) {
	domain, err := ruapost.ParseDomain(domain)
	if err != nil {
		return nil, fmt.Errorf("dane: %w", err)
	}
	result := &Result{}
	mxs, authentic, err := r.LookupMX(ctx, domain)
	switch {
	case err == nil:
		result.addHosts(mxs)
	case resolver.IsNotFound(err):
		result.Hosts = []Host{{Name: domain}} // implicit MX (RFC 5321 5.1)
	default:
		return nil, fmt.Errorf("dane: MX of %s: %w", domain, err)
	}
	result.MXSecure = authentic

	var wg sync.WaitGroup
	for i := range result.Hosts {
		h := &result.Hosts[i]
		wg.Go(func() {
			if err := resolver.Safely(h.Name, func() { h.lookup(ctx, r) }); err != nil {
				h.Err = err
			}
		})
	}
	wg.Wait()
	return result, nil
}

func (r *Result) addHosts(mxs []resolver.MX) {
	for _, mx := range mxs {
		isSame := func(h Host) bool { return h.Name == mx.Host }
		switch {
		case mx.Host == "" || slices.ContainsFunc(r.Hosts, isSame):
		case len(r.Hosts) == MaxHosts:
			r.Skipped++
		default:
			r.Hosts = append(r.Hosts, Host{Name: mx.Host})
		}
	}
}

// lookup fills in all but the name. Addresses come first: there are name servers
// that fail on any query for TLSA records, mostly in zones that are not signed
// (RFC 7672 2.2.2).
func (h *Host) lookup(ctx context.Context, r Resolver) {
	addrs, aliases, secure, err := r.LookupIP(ctx, h.Name)
	if err != nil {
		if !resolver.IsNotFound(err) {
			h.Err = err
		}
		return
	}
	h.Addrs, h.Secure = addrs, secure
	bases, err := h.bases(ctx, r, aliases)
	if err != nil {
		h.Err = err
		return
	}
	for _, base := range bases {
		records, secure, err := r.LookupTLSA(ctx, "_25._tcp."+base)
		switch {
		case err != nil && !resolver.IsNotFound(err):
			h.Err = err // no going on with the next: this one may be the right one
			return
		case err == nil && secure && len(records) > 0:
			h.TLSABase = base
			h.setTLSA(records)
			return
		}
	}
}

// bases returns the names to look for TLSA records at (RFC 7672 2.2.2), most of the
// time one: the host's. For an alias, what it leads to in the end is tried first, then
// the name itself, never what is between them. If the end is not authentic, but the
// first alias is, the name itself can still have records.
func (h *Host) bases(ctx context.Context, r Resolver, aliases []string) ([]string, error) {
	switch {
	case h.Secure && len(aliases) > 0:
		return []string{aliases[len(aliases)-1], h.Name}, nil
	case h.Secure:
		return []string{h.Name}, nil
	case len(aliases) > 0:
		_, secure, err := r.LookupCNAME(ctx, h.Name)
		if err == nil && secure {
			return []string{h.Name}, nil
		}
		return nil, err // RFC 7672 2.1.2 holds for this lookup, too
	}
	return nil, nil
}

func (h *Host) setTLSA(records []resolver.TLSA) {
	h.Records = records
	for _, t := range records {
		switch {
		case !wellFormed(t):
			h.Malformed++
		case !usable(t):
			h.Unusable++
		default:
			h.TLSA = append(h.TLSA, t)
		}
	}
}

// wellFormed tells whether t's data is what its selector and matching type say. If one
// of those is unknown, so is what the data should be.
func wellFormed(t resolver.TLSA) bool {
	switch t.MatchingType {
	case 0: // all of it
		var err error
		switch t.Selector {
		case 0:
			_, err = x509.ParseCertificate(t.Data)
		case 1:
			_, err = x509.ParsePKIXPublicKey(t.Data)
		}
		return err == nil
	case 1: // SHA-256
		return len(t.Data) == 32
	case 2: // SHA-512
		return len(t.Data) == 64
	}
	return true
}

// usable tells whether a server can be authenticated by records like t (RFC 6698 4.1).
// The usages 0 and 1 need a set of CAs that both sides agree on; in SMTP there is none
// (RFC 7672 3.1.3).
func usable(t resolver.TLSA) bool {
	return (t.Usage == 2 || t.Usage == 3) && // DANE-TA, DANE-EE
		t.Selector <= 1 && t.MatchingType <= 2
}
