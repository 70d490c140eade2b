// Package tlsrpt knows SMTP TLS reporting (RFC 8460): the DNS record that asks
// for reports, the datagrams in which Postfix 3.10 and later tells how TLS went
// in a connection, and the JSON report.
//
// A domain's record names where reports about TLS to its mail servers go
// (LookupRecord). Each datagram is one or more Sessions (ParseDatagram). A
// report is streamed from the rows those add up to (WriteReport), and travels
// under a file name and subject of fixed form (Filename, Subject).
package tlsrpt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"ruapost"
	"ruapost/internal/mailtouri"
)

var (
	// ErrNoRecord is the error, possibly wrapped, of a domain that does not take
	// part in TLS reporting.
	ErrNoRecord = errors.New("no TLSRPT record")
	// ErrMultipleRecords is the error, possibly wrapped, of a domain with more
	// than one TLSRPT record, which counts as none (RFC 8460 3).
	ErrMultipleRecords = errors.New("multiple TLSRPT records")
)

// Bounds on what is taken from a record. TXT records may be 64 KiB long; nobody
// has as many destinations, or as long ones, as fit into that.
const (
	maxURIs = 64
	maxURL  = 2048 // octets
)

// Resolver is what LookupRecord needs of the DNS. Its errors are *net.DNSError,
// with IsNotFound set if the name has no TXT records.
type Resolver interface {
	LookupTXT(ctx context.Context, name string) (txts []string, authentic bool, err error)
}

// Record is a TLSRPT record (RFC 8460 3).
type Record struct {
	// RUA are the destinations that can be used, in the order of the record. It
	// is empty if the record has none, which says that no report can be sent.
	RUA []URI
}

// URI is a destination for reports.
type URI struct {
	// Raw is the URI as published: valid UTF-8 without control characters.
	Raw string
	// Scheme is "mailto" or "https".
	Scheme string
	// Address is the mail address of a mailto URI, else empty. Its domain is as
	// ruapost.ParseDomain gives it; its local part may be beyond ASCII.
	Address string
	// URL is where to POST to for https, else nil. Its host is a domain name as
	// ruapost.ParseDomain gives it, never an IP address, with or without a port;
	// it has no user information and no fragment.
	URL *url.URL
}

// LookupRecord returns the TLSRPT record of domain. The error wraps ErrNoRecord,
// ErrMultipleRecords or what the resolver returned.
func LookupRecord(ctx context.Context, r Resolver, domain string) (*Record, error) {
	txts, _, err := r.LookupTXT(ctx, "_smtp._tls."+domain)
	var dnsErr *net.DNSError
	if errors.As(err, &dnsErr) && dnsErr.IsNotFound {
		err = ErrNoRecord
	}
	if err != nil {
		return nil, fmt.Errorf("tlsrpt: look up record of %s: %w", domain, err)
	}
	rec, err := ParseRecord(txts)
	if err != nil {
		return nil, fmt.Errorf("tlsrpt: record of %s: %w", domain, err)
	}
	return rec, nil
}

// ParseRecord returns the one TLSRPT record among the TXT records of a name. The
// error is ErrNoRecord or ErrMultipleRecords. Within the record nothing is an
// error: fields other than rua, and URIs that are malformed or of an unknown
// scheme, are left out.
func ParseRecord(txts []string) (*Record, error) {
	var fields string
	found := 0
	for _, txt := range txts {
		if after, ok := cutVersion(txt); ok {
			fields = after
			found++
		}
	}
	// RFC 8460 3: if not exactly one is left, the domain does not do TLSRPT.
	switch found {
	case 0:
		return nil, ErrNoRecord
	case 1:
		return &Record{RUA: parseRUA(fields)}, nil
	}
	return nil, ErrMultipleRecords
}

// cutVersion returns what follows the version and its delimiter. RFC 8460 3
// discards what does not begin with "v=TLSRPTv1;", while its grammar allows
// blanks before the semicolon; they are accepted, as Postfix does.
func cutVersion(txt string) (fields string, ok bool) {
	rest, ok := strings.CutPrefix(txt, "v=TLSRPTv1")
	if !ok {
		return "", false
	}
	return strings.CutPrefix(strings.TrimLeft(rest, " \t"), ";")
}

// parseRUA collects the URIs of all rua fields. The grammar allows several,
// anywhere among extensions.
func parseRUA(fields string) []URI {
	var uris []URI
	for field := range strings.SplitSeq(fields, ";") {
		name, list, _ := strings.Cut(field, "=")
		if strings.Trim(name, " \t") != "rua" {
			continue
		}
		for raw := range strings.SplitSeq(list, ",") {
			uri, err := parseURI(strings.Trim(raw, " \t"))
			if err != nil {
				continue
			}
			if uris = append(uris, uri); len(uris) == maxURIs {
				return uris
			}
		}
	}
	return uris
}

func parseURI(raw string) (URI, error) {
	if scheme, _, _ := strings.Cut(raw, ":"); strings.EqualFold(scheme, "https") {
		u, err := parseHTTPS(raw)
		return URI{Raw: raw, Scheme: "https", URL: u}, err
	}
	address, err := mailtouri.Parse(raw) // refuses any other scheme
	return URI{Raw: raw, Scheme: "mailto", Address: address}, err
}

func parseHTTPS(raw string) (*url.URL, error) {
	if ruapost.Clean(raw, maxURL) != raw || strings.Contains(raw, " ") {
		return nil, errors.New("too long, or has blanks or control characters")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	if u.User != nil {
		return nil, errors.New("user information in an https URI")
	}
	host, err := ruapost.ParseDomain(u.Hostname())
	if err != nil {
		return nil, err
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("port %q", port)
		}
		host += ":" + port
	}
	u.Host = host
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}
