package mtasts

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"ruapost"
	"ruapost/resolver"
)

const (
	// FetchTimeout is how long a fetch may take in all (RFC 8461 3.3).
	FetchTimeout = time.Minute
	// MaxPolicySize is how many octets a policy file may have (RFC 8461 3.3).
	MaxPolicySize = 64 << 10

	connectTimeout = 10 * time.Second // for each address
	maxAddresses   = 8                // to try
	maxHeaderSize  = 16 << 10         // of the response
)

// AddrResolver finds the addresses of policy hosts: *resolver.Resolver.
type AddrResolver interface {
	LookupIP(ctx context.Context, name string) (ips []netip.Addr, cname []string, authentic bool, err error)
}

// Fetcher fetches policies. Its methods may be called at the same time.
//
// If the environment names a proxy for HTTPS (see http.ProxyFromEnvironment), it
// is used; the policy host is still authenticated here, but its name is resolved
// by the proxy and the proxy's own by the system.
type Fetcher struct {
	// Resolver is asked for the addresses of policy hosts.
	Resolver AddrResolver
	// RootCAs are the trusted CAs; nil stands for the system's.
	RootCAs *x509.CertPool
	// AllowNetworks are those where policy hosts may be although they are not on the
	// Internet: loopback, private or link-local ones. Elsewhere whoever publishes an
	// address could have us talk to hosts that only we can reach.
	AllowNetworks []netip.Prefix

	// dial replaces the connection to an address in tests.
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Fetch gets the policy of domain from its policy host, as RFC 8461 3.3 has it:
// no redirects, no caches, and only status 200 with media type text/plain. It
// ends with ctx, or after FetchTimeout. ResultType tells what kind of failure an
// error is.
//
// It does not wait after failures; that the caller must do (RFC 8461 3.3).
func (f *Fetcher) Fetch(ctx context.Context, domain string) (*Policy, error) {
	ctx, cancel := context.WithTimeout(ctx, FetchTimeout)
	defer cancel()
	text, err := f.get(ctx, domain)
	if ctx.Err() != nil {
		// A policy host that sees us hang up may still end its answer, short as it
		// is, in good order.
		err = ctx.Err()
	}
	if err != nil {
		result := ruapost.ResultSTSPolicyFetchError
		if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			result = ruapost.ResultSTSWebPKIInvalid
		}
		return nil, &fetchError{domain, result, err}
	}
	policy, err := ParsePolicy(text)
	if err != nil {
		return nil, &fetchError{domain, ruapost.ResultSTSPolicyInvalid, err}
	}
	return policy, nil
}

// ResultType tells which result type of RFC 8460 4.3 stands for an error of
// Fetch: sts-webpki-invalid if the policy host's certificate is not valid for it,
// sts-policy-invalid if what it serves is no policy, sts-policy-fetch-error for
// all else. For other errors it is empty.
func ResultType(err error) ruapost.TLSResultType {
	if e, ok := errors.AsType[*fetchError](err); ok {
		return e.result
	}
	return ""
}

// fetchError is the error of Fetch. What it wraps may quote the policy host at
// length, for example all names in its certificate.
type fetchError struct {
	domain string
	result ruapost.TLSResultType
	err    error
}

func (e *fetchError) Error() string {
	return "mtasts: fetch policy for " + ruapost.Clean(e.domain, 253) + ": " + ruapost.Clean(e.err.Error(), 300)
}

func (e *fetchError) Unwrap() error { return e.err }

// get returns what the policy host of domain serves.
func (f *Fetcher) get(ctx context.Context, domain string) ([]byte, error) {
	host, err := ruapost.ParseDomain("mta-sts." + domain)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/.well-known/mta-sts.txt", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "ruapost/"+ruapost.Version)
	resp, err := f.client(host).Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the URL, which is always the same
		}
		return nil, err
	}
	defer resp.Body.Close()
	if err := checkResponse(resp); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, MaxPolicySize+1))
	if len(text) > MaxPolicySize {
		return nil, fmt.Errorf("policy larger than %d octets", MaxPolicySize)
	}
	return text, err
}

// client returns a client for one request to host: a connection is of no use for
// the policy host of the next domain.
func (f *Fetcher) client(host string) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // RFC 8461 3.3: redirects MUST NOT be followed
		},
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment,
			// Called in a goroutine of the transport.
			DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
				if perr := resolver.Safely(host, func() { conn, err = f.connect(ctx, network, addr, host) }); perr != nil {
					return nil, perr
				}
				return conn, err
			},
			// The server name is the policy host's, which net/http fills in.
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: f.RootCAs},
			Protocols:              protocols,
			DisableKeepAlives:      true,
			DisableCompression:     true, // what is inflated would escape the limit on the size
			MaxResponseHeaderBytes: maxHeaderSize,
		},
	}
}

// sharedAddresses are for carriers' own use (RFC 6598).
var sharedAddresses = netip.MustParsePrefix("100.64.0.0/10")

func (f *Fetcher) mayConnect(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && !sharedAddresses.Contains(ip) ||
		slices.ContainsFunc(f.AllowNetworks, func(p netip.Prefix) bool { return p.Contains(ip) })
}

func checkResponse(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("HTTP status %d", resp.StatusCode)
	}
	// Without this check anyone who may place files on the host could publish a
	// policy (RFC 8461 3.2). Parameters are ignored.
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	if !strings.EqualFold(strings.TrimSpace(mediaType), "text/plain") {
		return fmt.Errorf("media type %q is not text/plain", ruapost.Clean(mediaType, 64))
	}
	if coding := resp.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return fmt.Errorf("content coding %q was not asked for", ruapost.Clean(coding, 64))
	}
	return nil
}

// connect opens a connection to addr, the policy host's or the proxy's. Of the
// policy host it tries one address after the other, IPv4 first: connecting by
// IPv6 without a working route may fail only after a long time.
func (f *Fetcher) connect(ctx context.Context, network, addr, policyHost string) (net.Conn, error) {
	dial := f.dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: connectTimeout}).DialContext
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host != policyHost {
		return dial(ctx, network, addr)
	}
	ips, _, _, err := f.Resolver.LookupIP(ctx, host)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(ips, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	err = errors.New("no address")
	for _, ip := range ips[:min(len(ips), maxAddresses)] {
		if !f.mayConnect(ip) {
			err = fmt.Errorf("the policy host's address %s is not on the Internet, and not in tlspolicy.allow_networks", ip)
			continue
		}
		var conn net.Conn
		if conn, err = dial(ctx, network, net.JoinHostPort(ip.String(), port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}
