package webdial

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
	"ruapost/resolver"
)

// net/http reads these only once.
func TestMain(m *testing.M) {
	os.Setenv("HTTPS_PROXY", "http://proxy.test:3128")
	os.Setenv("NO_PROXY", "d.test,d.test.,0.0.0.0/0,::/0,2130706433,0x7f.1")
	goleak.VerifyTestMain(m)
}

// A server's address may be anything its owner likes, and must not be a way into our own
// network.
func TestMayConnect(t *testing.T) {
	for _, tt := range []struct {
		addr  string
		allow string
		want  bool
	}{
		{"192.0.2.1", "", true},
		{"2001:db8::1", "", true},
		{"127.0.0.1", "", false},
		{"::1", "", false},
		{"10.1.2.3", "", false},
		{"172.16.0.1", "", false},
		{"192.168.1.1", "", false},
		{"169.254.169.254", "", false},
		{"100.64.0.1", "", false},
		{"0.0.0.0", "", false},
		{"224.0.0.1", "", false},
		{"255.255.255.255", "", false},
		{"::", "", false},
		{"fe80::1", "", false},
		{"fd00::1", "", false},
		{"::ffff:10.1.2.3", "", false},
		{"192.0.0.1", "", false},
		{"192.88.99.1", "", false},
		{"198.19.255.255", "", false},
		{"::127.0.0.1", "", false},
		{"64:ff9b::7f00:1", "", false},
		{"64:ff9b:1::7f00:1", "", false},
		{"2001:0:1::1", "", false},
		{"2002:7f00:1::1", "", false},
		{"fec0::1", "", false},
		{"ff02::1", "", false},
		{"10.1.2.3", "10.0.0.0/8", true},
		{"::ffff:10.1.2.3", "10.0.0.0/8", true},
		{"10.1.2.3", "192.168.0.0/16", false},
	} {
		c := &Client{}
		if tt.allow != "" {
			c.AllowNetworks = []netip.Prefix{netip.MustParsePrefix(tt.allow)}
		}
		if got := c.mayConnect(netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("%s, allowed %q: %v", tt.addr, tt.allow, got)
		}
	}
}

func startDNS(t *testing.T) (*dnstest.Server, *resolver.Resolver) {
	t.Helper()
	server, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	r, err := resolver.New(resolver.Config{Servers: []string{server.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return server, r
}

func post(t *testing.T, url string) (*http.Request, *body) {
	t.Helper()
	b := &body{Reader: strings.NewReader("x"), closed: make(chan struct{})}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, b)
	if err != nil {
		t.Fatal(err)
	}
	return req, b
}

// body is one that is to be closed, once.
type body struct {
	io.Reader
	closed chan struct{}
}

func (b *body) Close() error {
	close(b.closed)
	return nil
}

// However a URL names a host: what is not looked up and checked is not connected to.
func TestNoWayInside(t *testing.T) {
	server, r := startDNS(t)
	server.Add(`
d.test. 300 IN A 127.0.0.1
d.test. 300 IN AAAA ::1
x.d.test. 300 IN CNAME d.test.
`)
	c := &Client{
		Resolver: r, AllowKey: "x.allow_networks", Unverified: true,
		Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
			t.Errorf("connection to %s", addr)
			return nil, errors.New("no connection")
		},
	}
	for _, host := range []string{
		"d.test", "D.TEST", "d.test.", "x.d.test", "x.d.test:25", "d.test:0",
		"127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[fe80::1%25lo]", "2130706433", "0x7f.1", "",
	} {
		req, b := post(t, "https://"+host+"/report")
		resp, err := c.Do(req)
		if err == nil {
			resp.Body.Close()
			t.Errorf("%s: answered", host)
		}
		<-b.closed
	}
	req, _ := post(t, "https://d.test/")
	if _, err := c.Do(req); err == nil || err.Error() != "d.test's address ::1 is not on the Internet, and not in x.allow_networks" {
		t.Error(err)
	}
}

// The name is looked up once for a connection, so that no second answer can be another
// one than was checked.
func TestLookedUpOnce(t *testing.T) {
	server, r := startDNS(t)
	server.Handle(func(w dns.ResponseWriter, q *dns.Msg) bool {
		reply := new(dns.Msg).SetReply(q)
		reply.AuthenticatedData = true
		if q.Question[0].Qtype == dns.TypeA {
			rr, err := dns.NewRR(q.Question[0].Name + " 0 IN A 192.0.2.1")
			if err != nil {
				t.Error(err)
			}
			reply.Answer = []dns.RR{rr}
		}
		w.WriteMsg(reply)
		return true
	})
	var dialled []string
	c := &Client{Resolver: r, Dial: func(_ context.Context, _, addr string) (net.Conn, error) {
		dialled = append(dialled, addr)
		return nil, errors.New("refused")
	}}
	req, _ := post(t, "https://d.test:8443/")
	if _, err := c.Do(req); err == nil || len(dialled) != 1 || dialled[0] != "192.0.2.1:8443" {
		t.Errorf("connections to %q: %v", dialled, err)
	}
	if n := len(server.Queries()); n > 2 { // A and AAAA
		t.Errorf("asked %q", server.Queries())
	}
}

// A proxy is found by the system, and connects to what it likes: that is for its
// administrator to decide.
func TestProxy(t *testing.T) {
	ca, err := lab.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	host, err := lab.StartPolicyHost("127.0.0.1:0", ca)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		lab.ServeConnect(proxy, func(hostport string) string { asked <- hostport; return host.Addr })
	}()
	defer func() { proxy.Close(); <-done }()
	c := &Client{RootCAs: ca.Pool(), Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != "proxy.test:3128" {
			t.Errorf("connection to %s", addr)
		}
		return new(net.Dialer).DialContext(ctx, network, proxy.Addr().String())
	}}
	req, _ := post(t, "https://mta-sts.proxied.test:8443/")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if hostport := <-asked; hostport != "mta-sts.proxied.test:8443" || resp.StatusCode != http.StatusNotFound {
		t.Errorf("proxy was asked for %s; status %d", hostport, resp.StatusCode)
	}
}

// Whatever a redirect says, it is the response.
func TestRedirect(t *testing.T) {
	for _, location := range []string{"https://127.0.0.1/", "http://127.0.0.1:80/", "/again", "%zz", "//:0", ""} {
		requests := 0
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			requests++
			w.Header().Set("Location", location)
			w.WriteHeader(http.StatusTemporaryRedirect)
		}))
		c := &Client{Resolver: oneAddress{}, Unverified: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
		}}
		req, _ := post(t, "https://d.test/")
		resp, err := c.Do(req)
		if err != nil {
			t.Errorf("%q: %v", location, err)
		} else {
			resp.Body.Close()
		}
		server.Close()
		if err == nil && (resp.StatusCode != http.StatusTemporaryRedirect || requests != 1) {
			t.Errorf("%q: status %d, %d requests", location, resp.StatusCode, requests)
		}
	}
}

// oneAddress is a resolver that finds the same address for each name.
type oneAddress struct{}

func (oneAddress) LookupIP(context.Context, string) ([]netip.Addr, []string, bool, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil, false, nil
}
