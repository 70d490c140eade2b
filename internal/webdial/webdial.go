// Package webdial speaks HTTPS with servers that anybody can name in the DNS: hosts of
// MTA-STS policies and destinations of TLS reports. It does not let such a name lead
// into networks that only this host can reach, and bounds what a server can send.
package webdial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ruapost/resolver"
)

const (
	// MaxAddresses is the number of a server's addresses that are tried.
	MaxAddresses = 8
	// MaxHeaderSize is the number of octets that the header of a response may have.
	MaxHeaderSize = 16 << 10

	connectTimeout = 10 * time.Second // for each address
	answerTimeout  = time.Second      // to read what came before a request could not be written
	maxReceived    = 160 << 10        // octets of a connection: TLS handshake, header and a body of 64 KiB
)

// AddrResolver finds the addresses of servers: *resolver.Resolver.
type AddrResolver interface {
	LookupIP(ctx context.Context, name string) (ips []netip.Addr, cname []string, authentic bool, err error)
}

// Client sends requests, each on a connection of its own. Its method may be called
// several times at once.
//
// If the environment names a proxy for HTTPS (see http.ProxyFromEnvironment), it is used;
// the server is still authenticated here, but its name is resolved by the proxy and the
// proxy's own by the system. The proxy decides then which networks may be reached.
type Client struct {
	// Resolver is asked for the addresses of servers.
	Resolver AddrResolver
	// RootCAs are the trusted CAs; nil stands for the system's.
	RootCAs *x509.CertPool
	// Unverified says that the server's certificate is not checked.
	Unverified bool
	// AllowNetworks are those where servers may be although they are not on the
	// Internet: loopback, private or link-local ones. Elsewhere whoever publishes an
	// address could have us talk to hosts that only we can reach. AllowKey is the key of
	// the configuration that has them, for errors.
	AllowNetworks []netip.Prefix
	AllowKey      string
	// Dial replaces the connection to an address in tests.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Response is what a server answered.
type Response struct {
	*http.Response
	cut *atomic.Bool
}

// Cut tells whether the connection below TLS has ended without TLS having ended before.
// crypto/tls takes that for a good end, too.
func (r *Response) Cut() bool { return r.cut.Load() }

// Do sends req and returns the response to it, whatever its status: redirects are not
// followed. The body of the response is to be closed; that of req is closed by Do, but
// perhaps after it has returned. The context of req bounds the time for all of it.
func (c *Client) Do(req *http.Request) (*Response, error) {
	proxy, err := http.ProxyFromEnvironment(req)
	if err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	connect := c.connect
	if proxy != nil {
		connect = c.dial // the transport connects to nothing else then
	}
	cut := new(atomic.Bool)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	transport := &http.Transport{
		Proxy: http.ProxyURL(proxy),
		// Called in a goroutine of the transport.
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			var conn net.Conn
			var err error
			if perr := resolver.Safely(req.URL.Hostname(), func() { conn, err = connect(ctx, network, addr) }); perr != nil {
				err = perr
			}
			if err != nil {
				return nil, err
			}
			return newCutConn(conn, cut), nil
		},
		// The server name is the one in the URL, which net/http fills in.
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.RootCAs, InsecureSkipVerify: c.Unverified},
		Protocols:              protocols,
		DisableKeepAlives:      true, // the next request is to another server
		DisableCompression:     true, // what is inflated would escape limits on the size
		MaxResponseHeaderBytes: MaxHeaderSize,
	}
	// An http.Client would follow redirects, or fail where one leads nowhere.
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	return &Response{resp, cut}, nil
}

// connect opens a connection to a server. It tries one address after the other, IPv4
// first: connecting by IPv6 without a working route may fail only after a long time. What
// it connects to are the addresses that it has checked; the name is not resolved again.
func (c *Client) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ips, _, _, err := c.Resolver.LookupIP(ctx, host)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(ips, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	err = errors.New("no address")
	for _, ip := range ips[:min(len(ips), MaxAddresses)] {
		if !c.mayConnect(ip) {
			err = fmt.Errorf("%s's address %s is not on the Internet, and not in %s", host, ip, c.AllowKey)
			continue
		}
		var conn net.Conn
		if conn, err = c.dial(ctx, network, net.JoinHostPort(ip.String(), port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

func (c *Client) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if c.Dial != nil {
		return c.Dial(ctx, network, addr)
	}
	return (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, network, addr)
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

func (c *Client) mayConnect(ip netip.Addr) bool {
	ip = ip.Unmap()
	contains := func(p netip.Prefix) bool { return p.Contains(ip) }
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && !slices.ContainsFunc(specialAddresses, contains) ||
		slices.ContainsFunc(c.AllowNetworks, contains)
}

// cutConn notes that the connection below TLS has ended. crypto/tls reads no further
// than to the close_notify.
//
// It ends the connection when more has come than an answer and the server's certificates
// can be: what is parsed of certificates takes many times their octets.
type cutConn struct {
	net.Conn
	cut   *atomic.Bool
	left  int // octets that may still come
	ended chan struct{}
	end   func() // closes ended
}

func newCutConn(conn net.Conn, cut *atomic.Bool) *cutConn {
	ended := make(chan struct{})
	return &cutConn{conn, cut, maxReceived, ended, sync.OnceFunc(func() { close(ended) })}
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.left -= n; err == nil && c.left < 0 {
		err = errors.New("the server sends too much")
	}
	if err != nil {
		c.cut.Store(true)
		c.end()
	}
	return n, err
}

// Write lets an answer that has come go before its own error. A server may refuse a
// request that it has not read and hang up (RFC 9112 9.5), and net/http then takes what
// it is told first.
func (c *cutConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		select {
		case <-c.ended:
		case <-time.After(answerTimeout):
		}
	}
	return n, err
}

func (c *cutConn) Close() error {
	c.end()
	return c.Conn.Close()
}
