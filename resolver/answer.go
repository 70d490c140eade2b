package resolver

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"ruapost"
)

const (
	// maxRecords bounds the records of an answer, aliases included.
	maxRecords = 256
	// maxAnswerBytes bounds what is kept of an answer, which is mostly the text of
	// TXT records. Names with many verification tokens have a few KB.
	maxAnswerBytes = 32 << 10
	// maxAliases bounds the aliases on the way to an answer.
	maxAliases = 16
)

// answer is what is kept of a server's answer.
type answer struct {
	// err is nil if there are records of the type that was asked for.
	err *net.DNSError
	// authentic is true if the server has validated the answer or denial.
	authentic bool
	// chain are the targets of the aliases that were followed, in order, also
	// those that led to a denial.
	chain []string
	ttl   time.Duration
	size  int // octets in names, texts and data

	// One of these has the records.
	txts  []string
	mxs   []MX
	addrs []netip.Addr
	tlsa  []TLSA
	names []string // PTR, CNAME
}

// records returns the number of records and aliases that are kept.
func (a *answer) records() int {
	return len(a.chain) + len(a.txts) + len(a.mxs) + len(a.addrs) + len(a.tlsa) + len(a.names)
}

// error returns nil or a copy of a's error that the caller may keep.
func (a *answer) error() error {
	if a.err == nil {
		return nil
	}
	e := *a.err
	return &e
}

// decode returns the answer to k that m holds. It returns an error if m holds none:
// the server failed, or m contradicts itself or exceeds the bounds.
func decode(m *dns.Msg, k key) (*answer, error) {
	switch {
	case m.Rcode == dns.RcodeRefused:
		return nil, errRefused
	case m.Rcode == dns.RcodeServerFailure:
		return nil, errServFail
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
		return nil, fmt.Errorf("server answered %s", rcode(m.Rcode))
	case m.Truncated:
		return nil, errors.New("answer truncated over TCP")
	case len(m.Answer) > maxRecords:
		return nil, fmt.Errorf("answer with more than %d records", maxRecords)
	case m.Rcode == dns.RcodeSuccess && len(m.Answer) == 0 && !m.RecursionAvailable && !m.Authoritative:
		return nil, errors.New("server refers to others") // says nothing about the name
	}
	a := &answer{ttl: maxTTL}
	rrs, err := a.follow(m.Answer, k)
	if err != nil {
		return nil, err
	}
	if m.Rcode == dns.RcodeNameError || len(rrs) == 0 {
		a.deny(m, k)
		return a, nil
	}
	for _, rr := range rrs {
		if rr.Header().Rdlength == 0 { // accepted by the library
			return nil, errors.New("record without data")
		}
		if err := a.add(rr); err != nil {
			return nil, err
		}
	}
	if a.size > maxAnswerBytes {
		return nil, fmt.Errorf("answer with more than %d octets", maxAnswerBytes)
	}
	slices.SortStableFunc(a.mxs, func(x, y MX) int { return cmp.Compare(x.Pref, y.Pref) })
	a.ttl = max(a.ttl, minTTL)
	return a, nil
}

func rcode(code int) string {
	if s, ok := dns.RcodeToString[code]; ok {
		return s
	}
	return fmt.Sprintf("RCODE%d", code)
}

// follow returns the records of k's type at k's name or at the end of the aliases
// that start there, and sets the answer's chain. The records of an alias and what
// it leads to are valid as long as all of them are.
func (a *answer) follow(section []dns.RR, k key) ([]dns.RR, error) {
	owner := k.fqdn()
	for range maxAliases + 1 {
		var found []dns.RR
		var alias *dns.CNAME
		for _, rr := range section {
			h := rr.Header()
			if h.Class != dns.ClassINET || !strings.EqualFold(h.Name, owner) {
				continue
			}
			if h.Rrtype == k.qtype {
				found = append(found, rr)
			} else if cname, ok := rr.(*dns.CNAME); ok {
				alias = cname
			} else {
				continue
			}
			a.ttl = min(a.ttl, time.Duration(h.Ttl)*time.Second)
		}
		if len(found) > 0 || alias == nil {
			return found, nil
		}
		name, err := aliasTarget(alias)
		if err != nil {
			return nil, err
		}
		a.chain = append(a.chain, name)
		a.size += len(name)
		owner = alias.Target
	}
	return nil, errors.New("loop of aliases, or too many of them")
}

// deny makes a the denial m of k. It is valid as long as m's SOA record says; a
// denial without one should not be kept at all (RFC 2308 5).
func (a *answer) deny(m *dns.Msg, k key) {
	a.err = noData(k.name)
	if m.Rcode == dns.RcodeNameError {
		a.err = nxDomain(k.name)
	}
	a.ttl = min(a.ttl, maxNegativeTTL)
	negative := minTTL
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			negative = time.Duration(min(soa.Hdr.Ttl, soa.Minttl)) * time.Second
			break
		}
	}
	a.ttl = max(min(a.ttl, negative), minTTL)
}

// add adds the data of rr. MX and PTR records whose names are no domain names are
// left out, since those cannot be asked for; an MX without a host (RFC 7505) stays.
func (a *answer) add(rr dns.RR) error {
	switch rr := rr.(type) {
	case *dns.TXT:
		txt := unescape(strings.Join(rr.Txt, "")) // RFC 7208 3.3, RFC 9989 4.8
		a.txts = append(a.txts, txt)
		a.size += len(txt)
	case *dns.MX:
		host, err := ruapost.ParseDomain(rr.Mx)
		if err == nil || rr.Mx == "." {
			a.mxs = append(a.mxs, MX{Host: host, Pref: rr.Preference})
			a.size += len(host)
		}
	case *dns.A:
		return a.addAddr(rr.A.To4())
	case *dns.AAAA:
		return a.addAddr(rr.AAAA)
	case *dns.TLSA:
		data, err := hex.DecodeString(rr.Certificate)
		if err != nil {
			return fmt.Errorf("TLSA record: %w", err)
		}
		a.tlsa = append(a.tlsa, TLSA{Usage: rr.Usage, Selector: rr.Selector, MatchingType: rr.MatchingType, Data: data})
		a.size += len(data)
	case *dns.CNAME:
		name, err := aliasTarget(rr)
		if err != nil {
			return err
		}
		a.names = append(a.names, name)
		a.size += len(name)
	case *dns.PTR:
		if name, err := ruapost.ParseDomain(rr.Ptr); err == nil {
			a.names = append(a.names, name)
			a.size += len(name)
		}
	}
	return nil
}

func (a *answer) addAddr(ip net.IP) error {
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return errors.New("address record of the wrong length")
	}
	a.addrs = append(a.addrs, addr)
	a.size += len(ip)
	return nil
}

// aliasTarget returns the name that rr leads to.
func aliasTarget(rr *dns.CNAME) (string, error) {
	name, err := ruapost.ParseDomain(rr.Target)
	if err != nil {
		return "", fmt.Errorf("target of an alias: %w", err)
	}
	return name, nil
}
