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
	"sync/atomic"
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
	maxReceived    = 160 << 10        // octets of a connection: TLS handshake, header and policy
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
// error is, Answered whether it is what the policy host itself said.
//
// It does not wait after failures; that the caller must do (RFC 8461 3.3).
func (f *Fetcher) Fetch(ctx context.Context, domain string) (*Policy, error) {
	ctx, cancel := context.WithTimeout(ctx, FetchTimeout)
	defer cancel()
	text, answered, err := f.get(ctx, domain)
	if ctx.Err() != nil {
		// A policy host that sees us hang up may still end its answer, short as it
		// is, in good order.
		return nil, &fetchError{domain, ruapost.ResultSTSPolicyFetchError, false, ctx.Err()}
	}
	if err != nil {
		result := ruapost.ResultSTSPolicyFetchError
		if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			result = ruapost.ResultSTSWebPKIInvalid
		}
		return nil, &fetchError{domain, result, answered, err}
	}
	policy, err := ParsePolicy(text)
	if err != nil {
		return nil, &fetchError{domain, ruapost.ResultSTSPolicyInvalid, answered, err}
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

// Answered reports whether err, from Fetch, is the policy host's own answer over an
// authenticated connection: a status such as 404, another media type, a file that is too
// large or no policy. Nobody else can have brought such an error about. It is false if
// the host was not reached, not authenticated or not heard to the end, and if it
// says that it is in trouble itself: status 429 or 500 and above.
func Answered(err error) bool {
	e, ok := errors.AsType[*fetchError](err)
	return ok && e.answered
}

// fetchError is the error of Fetch. What it wraps may quote the policy host at
// length, for example all names in its certificate.
type fetchError struct {
	domain   string
	result   ruapost.TLSResultType
	answered bool
	err      error
}

func (e *fetchError) Error() string {
	return "mtasts: fetch policy for " + ruapost.Clean(e.domain, 253) + ": " + ruapost.Clean(e.err.Error(), 300)
}

func (e *fetchError) Unwrap() error { return e.err }

// get returns what the policy host of domain serves. answered tells what Answered does.
func (f *Fetcher) get(ctx context.Context, domain string) (text []byte, answered bool, err error) {
	host, err := ruapost.ParseDomain("mta-sts." + domain)
	if err != nil {
		return nil, false, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/.well-known/mta-sts.txt", nil)
	if err != nil {
		return nil, false, err
	}
	req.Header.Set("User-Agent", "ruapost/"+ruapost.Version)
	var cut atomic.Bool
	resp, err := f.client(host, &cut).Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the URL, which is always the same
		}
		return nil, false, err
	}
	defer resp.Body.Close()
	if err := checkResponse(resp); err != nil {
		inTrouble := resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= http.StatusInternalServerError
		return nil, !inTrouble, err
	}
	text, err = io.ReadAll(io.LimitReader(resp.Body, MaxPolicySize+1))
	switch {
	case len(text) > MaxPolicySize:
		return nil, true, fmt.Errorf("policy larger than %d octets", MaxPolicySize)
	case err != nil:
		return nil, false, err
	case resp.ContentLength < 0 && len(resp.TransferEncoding) == 0 && cut.Load():
		// Nothing but TLS's own goodbye says that all of it has come (RFC 9112 9.8).
		// A policy without its last lines could go unnoticed for as long as it is kept.
		return nil, false, io.ErrUnexpectedEOF
	}
	return text, true, nil
}

// client returns a client for one request to host: a connection is of no use for
// the policy host of the next domain. It sets cut if the connection ends without TLS
// having ended before.
func (f *Fetcher) client(host string, cut *atomic.Bool) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // RFC 8461 3.3: redirects MUST NOT be followed
		},
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment,
			// Called in a goroutine of the transport.
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				var conn net.Conn
				var err error
				if perr := resolver.Safely(host, func() { conn, err = f.connect(ctx, network, addr, host) }); perr != nil {
					err = perr
				}
				if err != nil {
					return nil, err
				}
				return &cutConn{conn, cut, maxReceived}, nil
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

// cutConn notes that the connection below TLS has ended. crypto/tls reads no further
// than to the close_notify, and takes an end without one for a good end, too.
//
// It ends the connection when more has come than a policy and its host's certificates
// can be: what is parsed of certificates takes many times their octets.
type cutConn struct {
	net.Conn
	cut  *atomic.Bool
	left int // octets that may still come
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.left -= n; err == nil && c.left < 0 {
		err = errors.New("the policy host sends too much")
	}
	if err != nil {
		c.cut.Store(true)
	}
	return n, err
}

// specialAddresses are those that are no hosts on the Internet beside those that netip
// knows, or lead by a translation to any IPv4 address (IANA special-purpose registries).
var specialAddresses = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // carriers' own, RFC 6598
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"),
	netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("2001::/32"), // Teredo
	netip.MustParsePrefix("2002::/16"), // 6to4
	netip.MustParsePrefix("fec0::/10"),
}

func (f *Fetcher) mayConnect(ip netip.Addr) bool {
	ip = ip.Unmap()
	contains := func(p netip.Prefix) bool { return p.Contains(ip) }
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && !slices.ContainsFunc(specialAddresses, contains) ||
		slices.ContainsFunc(f.AllowNetworks, contains)
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
