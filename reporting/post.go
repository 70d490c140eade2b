package reporting

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"ruapost"
	"ruapost/internal/webdial"
)

const (
	// postTimeout is how long it may take to post a report in all.
	postTimeout = time.Minute
	// maxPostAnswer is the number of octets that are read of what a destination says about a
	// report that it does not take, and maxPostAnswerShown of those that an error shows.
	maxPostAnswer, maxPostAnswerShown = 4 << 10, 200
)

// Poster brings TLS reports to https destinations (RFC 8460 3, 5.4). Its method may be
// called several times at once.
type Poster struct {
	Resolver webdial.AddrResolver
	// RootCAs are the trusted CAs, nil stands for the system's. Unverified says that
	// certificates are not checked.
	RootCAs    *x509.CertPool
	Unverified bool
	// AllowNetworks are those where destinations may be although they are not on the
	// Internet.
	AllowNetworks []netip.Prefix
	// UserAgent is what we call ourselves; empty stands for ruapost and its version.
	UserAgent string

	// dial replaces the connection to an address in tests.
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// post sends a report of size octets, which open opens, to the https URL of a
// destination: once, without following redirects, and in postTimeout and the few
// seconds that TLS may need to say goodbye. What was opened may be closed a little later
// than post returns.
//
// The destination has taken the report if the error is nil. Else postRefused tells
// whether it is of any use to try again.
func (p *Poster) post(ctx context.Context, to, contentType string, open func() (io.ReadCloser, error), size int64) error {
	ctx, cancel := context.WithTimeout(ctx, postTimeout)
	defer cancel()
	req, err := p.request(ctx, to, contentType)
	if err != nil {
		return err
	}
	if req.Body, err = open(); err != nil {
		return &postError{host: req.URL.Host, err: err}
	}
	req.ContentLength = size
	client := &webdial.Client{
		Resolver: p.Resolver, RootCAs: p.RootCAs, Unverified: p.Unverified,
		AllowNetworks: p.AllowNetworks, AllowKey: "reporter.allow_networks",
		Dial: p.dial,
	}
	resp, err := client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return &postError{host: req.URL.Host, err: err}
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		return nil
	}
	return &postError{host: req.URL.Host, final: finalPostStatus(resp.StatusCode), err: postAnswer(resp.Response)}
}

// request returns the request without its body.
func (p *Poster) request(ctx context.Context, to, contentType string) (*http.Request, error) {
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, &postError{host: to, final: true, err: errors.New("not an https URL")}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), nil)
	if err != nil {
		return nil, &postError{host: u.Host, final: true, err: err}
	}
	// RFC 8460 5.4, 6.5: the report is the gzip'ed file, so gzip is no content coding.
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("User-Agent", cmp.Or(p.UserAgent, "ruapost/"+ruapost.Version))
	return req, nil
}

// postAnswer is the error of a response that is no success.
func postAnswer(resp *http.Response) error {
	if resp.StatusCode/100 == 3 {
		return fmt.Errorf("HTTP status %d: redirects are not followed", resp.StatusCode)
	}
	// What has come before an error is good enough.
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxPostAnswer))
	said := ruapost.Clean(strings.Join(strings.Fields(string(text)), " "), maxPostAnswerShown)
	if said == "" {
		return fmt.Errorf("HTTP status %d", resp.StatusCode)
	}
	return fmt.Errorf("HTTP status %d: %s", resp.StatusCode, said)
}

// finalPostStatus tells whether a status will not change by itself (RFC 9110 15). Of those
// that say that the request was wrong, these say that it came at the wrong time.
func finalPostStatus(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return 300 <= status && status < 500
}

// postRefused tells whether err, of posting a report, is final: the destination refuses
// it, leads elsewhere, or cannot be posted to at all. Other errors may be gone when the
// report is posted again, as RFC 8460 5.5 asks: of the network, of certificates, and what
// a server says of its own trouble.
func postRefused(err error) bool {
	e, ok := errors.AsType[*postError](err)
	return ok && e.final
}

// postError is the error of post. What it wraps may quote the destination at length, for
// example all names in its certificate.
type postError struct {
	host  string
	final bool
	err   error
}

func (e *postError) Error() string {
	return "reporting: post report to " + ruapost.Clean(e.host, 260) + ": " + ruapost.Clean(e.err.Error(), 300)
}

func (e *postError) Unwrap() error { return e.err }
