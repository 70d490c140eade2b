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
	"strings"
	"time"

	"ruapost"
	"ruapost/internal/webdial"
)

const (
	// FetchTimeout is how long a fetch may take in all (RFC 8461 3.3).
	FetchTimeout = time.Minute
	// MaxPolicySize is how many octets a policy file may have (RFC 8461 3.3).
	MaxPolicySize = 64 << 10
)

// Fetcher fetches policies. Its methods may be called at the same time.
//
// If the environment names a proxy for HTTPS (see http.ProxyFromEnvironment), it
// is used; the policy host is still authenticated here, but its name is resolved
// by the proxy and the proxy's own by the system.
type Fetcher struct {
	// Resolver is asked for the addresses of policy hosts.
	Resolver webdial.AddrResolver
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
	// RFC 8461 3.3: redirects MUST NOT be followed.
	resp, err := f.client().Do(req)
	if err != nil {
		return nil, false, err
	}
	defer resp.Body.Close()
	if err := checkResponse(resp.Response); err != nil {
		inTrouble := resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= http.StatusInternalServerError
		return nil, !inTrouble, err
	}
	text, err = io.ReadAll(io.LimitReader(resp.Body, MaxPolicySize+1))
	switch {
	case len(text) > MaxPolicySize:
		return nil, true, fmt.Errorf("policy larger than %d octets", MaxPolicySize)
	case err != nil:
		return nil, false, err
	case resp.ContentLength < 0 && len(resp.TransferEncoding) == 0 && resp.Cut():
		// Nothing but TLS's own goodbye says that all of it has come (RFC 9112 9.8).
		// A policy without its last lines could go unnoticed for as long as it is kept.
		return nil, false, io.ErrUnexpectedEOF
	}
	return text, true, nil
}

func (f *Fetcher) client() *webdial.Client {
	return &webdial.Client{
		Resolver: f.Resolver, RootCAs: f.RootCAs,
		AllowNetworks: f.AllowNetworks, AllowKey: "tlspolicy.allow_networks",
		Dial: f.dial,
	}
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
