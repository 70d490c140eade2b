package mtasts

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"ruapost"
	"ruapost/internal/webdial"
	"ruapost/resolver"
)

// net/http reads these only once.
func TestMain(m *testing.M) {
	os.Setenv("HTTPS_PROXY", "http://proxy.test:3128")
	os.Setenv("NO_PROXY", "d.test")
	goleak.VerifyTestMain(m)
}

const goodPolicy = "version: STSv1\nmode: enforce\nmx: mx.d.test\nmax_age: 86400\n"

// authority is a CA of the test.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newKey(t), pool: x509.NewCertPool()}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA of the test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

// issue returns a certificate that is valid until notAfter for names, the first
// of which is the common name; if it is the only one, there is no subject
// alternative name. A nil authority signs with the certificate's own key.
func (a *authority) issue(t *testing.T, notAfter time.Time, names ...string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names[1:],
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: notAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	parent, signer := template, key
	if a != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// policyHost starts a server and returns a Fetcher whose connections all go there.
// The DNS knows mta-sts.d.test.
func policyHost(t *testing.T, ca *authority, config *tls.Config, h http.HandlerFunc) *Fetcher {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.TLS = config
	server.EnableHTTP2 = true // offered, and not to be taken
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	dnsServer, r := startDNS(t)
	dnsServer.Add("mta-sts.d.test. 300 IN CNAME host.test.\nhost.test. 300 IN A 192.0.2.1\n")
	return &Fetcher{
		Resolver: r, RootCAs: ca.pool,
		dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr != "192.0.2.1:443" {
				t.Errorf("connection to %s", addr)
			}
			return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
		},
	}
}

func servePolicy(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(w, goodPolicy)
}

// RFC 8461 3.3.
func TestFetch(t *testing.T) {
	ca := newAuthority(t)
	good := ca.issue(t, time.Now().Add(time.Hour), "x", "mta-sts.d.test")
	var serverName string
	config := &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		serverName = hello.ServerName
		return &good, nil
	}}
	var request *http.Request
	f := policyHost(t, ca, config, func(w http.ResponseWriter, r *http.Request) {
		request = r
		servePolicy(w, r)
	})
	p, err := f.Fetch(t.Context(), "D.Test.")
	if err != nil {
		t.Fatal(err)
	}
	want := &Policy{
		Mode: ModeEnforce, MX: []string{"mx.d.test"}, MaxAge: 24 * time.Hour,
		Text: []string{"version: STSv1", "mode: enforce", "mx: mx.d.test", "max_age: 86400"},
	}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Error(diff)
	}
	if serverName != "mta-sts.d.test" {
		t.Errorf("server name in TLS is %q", serverName)
	}
	line := request.Method + " " + request.Host + request.RequestURI + " " + request.Proto
	if line != "GET mta-sts.d.test/.well-known/mta-sts.txt HTTP/1.1" {
		t.Errorf("request %s", line)
	}
	wantHeader := http.Header{"User-Agent": {"ruapost/" + ruapost.Version}, "Connection": {"close"}}
	if diff := cmp.Diff(wantHeader, request.Header); diff != "" {
		t.Errorf("header: %s", diff)
	}
}

func TestFetchCertificate(t *testing.T) {
	ca := newAuthority(t)
	soon := time.Now().Add(time.Hour)
	const webPKI = ruapost.ResultSTSWebPKIInvalid
	tests := []struct {
		name string
		cert tls.Certificate
		want ruapost.TLSResultType
	}{
		{"one of several names", ca.issue(t, soon, "x", "other.test", "MTA-STS.d.test"), ""},
		{"wildcard for the left-most label", ca.issue(t, soon, "x", "*.d.test"), ""},
		{"expired", ca.issue(t, time.Now().Add(-time.Hour), "x", "mta-sts.d.test"), webPKI},
		{"wrong name", ca.issue(t, soon, "x", "d.test", "mta-sts.other.test"), webPKI},
		{"wildcard inside the label", ca.issue(t, soon, "x", "mta-*.d.test"), webPKI},
		{"wildcard for two labels", ca.issue(t, soon, "x", "*.test"), webPKI},
		{"common name only", ca.issue(t, soon, "mta-sts.d.test"), webPKI},
		{"self-signed", (*authority)(nil).issue(t, soon, "x", "mta-sts.d.test"), webPKI},
		{"unknown CA", newAuthority(t).issue(t, soon, "x", "mta-sts.d.test"), webPKI},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := policyHost(t, ca, &tls.Config{Certificates: []tls.Certificate{test.cert}}, servePolicy)
			p, err := f.Fetch(t.Context(), "d.test")
			if (err == nil) != (test.want == "") || (p == nil) != (err != nil) || ResultType(err) != test.want || Answered(err) {
				t.Errorf("policy %v, result type %q, answered %v, error %v; want %q", p, ResultType(err), Answered(err), err, test.want)
			}
		})
	}
}

func TestFetchResponse(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, time.Now().Add(time.Hour), "x", "mta-sts.d.test")
	const fetch, invalid = ruapost.ResultSTSPolicyFetchError, ruapost.ResultSTSPolicyInvalid
	with := func(status int, header map[string]string, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			for k, v := range header {
				w.Header().Set(k, v)
			}
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	padding := strings.Repeat("#", MaxPolicySize-len(goodPolicy)-len("x: "))
	type response struct {
		name     string
		handler  http.HandlerFunc
		want     ruapost.TLSResultType
		msg      string
		answered bool
	}
	tests := []response{
		{"media type with parameters", with(200, map[string]string{"Content-Type": `TEXT/plain ;charset="utf-8"; x`}, goodPolicy), "", "", false},
		{"identity coding", with(200, map[string]string{"Content-Encoding": "identity"}, goodPolicy), "", "", false},
		{"largest file", with(200, nil, goodPolicy+"x: "+padding), "", "", false},
		{"file too large", with(200, nil, goodPolicy+"x: "+padding+"#"), fetch, "larger than", true},
		{"no policy", with(200, nil, "hello\n"), invalid, "is no field", true},
		{"empty file", with(200, nil, ""), invalid, "no version", true},
		{"redirect to another host", with(302, map[string]string{"Location": "https://evil.test/"}, goodPolicy), fetch, "HTTP status 302", true},
		{"no content", with(204, nil, ""), fetch, "HTTP status 204", true},
		{"other success", with(203, nil, goodPolicy), fetch, "HTTP status 203", true},
		{"forbidden", with(403, nil, goodPolicy), fetch, "HTTP status 403", true},
		{"not found", with(404, nil, goodPolicy), fetch, "HTTP status 404", true},
		{"gone", with(410, nil, ""), fetch, "HTTP status 410", true},
		{"too many requests", with(429, nil, goodPolicy), fetch, "HTTP status 429", false},
		{"server error", with(500, nil, goodPolicy), fetch, "HTTP status 500", false},
		{"service unavailable", with(503, nil, goodPolicy), fetch, "HTTP status 503", false},
		{"no known status", with(999, nil, goodPolicy), fetch, "HTTP status 999", false},
		{"HTML", with(200, map[string]string{"Content-Type": "text/html; charset=utf-8"}, goodPolicy), fetch, `media type "text/html"`, true},
		{"longer media type", with(200, map[string]string{"Content-Type": "text/plainer"}, goodPolicy), fetch, "media type", true},
		{"no media type", with(200, map[string]string{"Content-Type": ""}, goodPolicy), fetch, `media type ""`, true},
		{"compressed without being asked", with(200, map[string]string{"Content-Encoding": "gzip"}, goodPolicy), fetch, `content coding "gzip"`, true},
		{"huge header", with(200, map[string]string{"X": strings.Repeat("x", 2*webdial.MaxHeaderSize)}, goodPolicy), fetch, "header", false},
		{"no answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, fetch, "EOF", false},
	}
	for _, status := range []int{300, 301, 303, 304, 305, 306, 307, 308, 399} {
		header := map[string]string{"Location": "/.well-known/other.txt"}
		tests = append(tests, response{fmt.Sprint(status), with(status, header, ""), fetch, fmt.Sprint("HTTP status ", status), true})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			requests := 0
			f := policyHost(t, ca, &tls.Config{Certificates: []tls.Certificate{cert}}, func(w http.ResponseWriter, r *http.Request) {
				requests++
				test.handler(w, r)
			})
			p, err := f.Fetch(t.Context(), "d.test")
			if (p == nil) != (err != nil) || ResultType(err) != test.want {
				t.Errorf("policy %v, result type %q, error %v; want %q", p, ResultType(err), err, test.want)
			}
			if err != nil && (!strings.HasPrefix(err.Error(), "mtasts: fetch policy for d.test: ") || !strings.Contains(err.Error(), test.msg)) {
				t.Errorf("error %v, want one with %q", err, test.msg)
			}
			if Answered(err) != test.answered || Answered(fmt.Errorf("wrapped: %w", err)) != test.answered {
				t.Errorf("answered %v", Answered(err))
			}
			if requests != 1 {
				t.Errorf("%d requests", requests)
			}
		})
	}
}

// loopback returns the two ends of a connection.
func loopback(t *testing.T) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if near, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

// rawHost returns a Fetcher with a policy host at the far end of a connection, which
// reads the request and then does what it likes. The Fetcher is to be used once.
func rawHost(t *testing.T, near, far net.Conn, version uint16, serve func(conn *tls.Conn)) *Fetcher {
	t.Helper()
	ca := newAuthority(t)
	cert := ca.issue(t, time.Now().Add(time.Hour), "x", "mta-sts.d.test")
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		defer far.Close()
		conn := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: version})
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			serve(conn)
		}
	}()
	dial := func(context.Context, string, string) (net.Conn, error) { return near, nil }
	return &Fetcher{Resolver: oneAddress{}, RootCAs: ca.pool, dial: dial}
}

// RFC 9112 8, 9.8: what is cut off is no policy, even if it looks like one. Where the
// end of the connection is all that ends the policy, it must be TLS that ends it.
func TestFetchCut(t *testing.T) {
	const (
		more     = "mx: mx2.d.test\n"
		http11   = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
		http10   = "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n"
		chunking = http11 + "Transfer-Encoding: chunked\r\n\r\n"
	)
	length := func(n int) string { return fmt.Sprintf("%sContent-Length: %d\r\n\r\n", http11, n) }
	chunk := fmt.Sprintf("%x\r\n%s\r\n", len(goodPolicy), goodPolicy)
	tests := []struct {
		name, response string
		afterCut       bool // a policy although the connection is cut
		afterClose     bool // a policy if TLS is closed before
	}{
		{"length", length(len(goodPolicy)) + goodPolicy, true, true},
		{"length, more was to come", length(len(goodPolicy+more)) + goodPolicy, false, false},
		{"chunked", chunking + chunk + "0\r\n\r\n", true, true},
		{"chunked, no last chunk", chunking + chunk, false, false},
		{"chunked, inside a chunk", chunking + fmt.Sprintf("%x\r\n%s", len(goodPolicy+more), goodPolicy), false, false},
		{"HTTP/1.1 without length", http11 + "\r\n" + goodPolicy, false, true},
		{"HTTP/1.0 without length", http10 + goodPolicy, false, true},
		{"inside the header", http11, false, false},
		{"unknown transfer coding", http11 + "Transfer-Encoding: gzip, chunked\r\n\r\n" + chunk + "0\r\n\r\n", false, false},
	}
	for _, test := range tests {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for how, want := range map[string]bool{"cut": test.afterCut, "closed": test.afterClose} {
				t.Run(fmt.Sprintf("%s, %s %s", test.name, tls.VersionName(version), how), func(t *testing.T) {
					near, far := loopback(t)
					f := rawHost(t, near, far, version, func(conn *tls.Conn) {
						io.WriteString(conn, test.response)
						if how == "closed" {
							conn.Close() // with close_notify
						}
					})
					p, err := f.Fetch(t.Context(), "d.test")
					if (p != nil) != want || (err == nil) != want || err != nil && ResultType(err) != ruapost.ResultSTSPolicyFetchError || Answered(err) {
						t.Errorf("policy %v, error %v, answered %v", p, err, Answered(err))
					}
				})
			}
		}
	}
}

// However slow the policy host is, and wherever, the fetch ends in time (RFC 8461 3.3).
func TestFetchSlow(t *testing.T) {
	header := "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"
	tests := []struct {
		name        string
		start, rest string // what is sent at once, and then one octet a second
	}{
		{"no answer", "", ""},
		{"silent inside the header", header, ""},
		{"silent after the header", header + "\r\n", ""},
		{"silent after a policy that more may follow", header + "\r\n" + goodPolicy, ""},
		{"one octet a second of the header", "", header + "X: " + strings.Repeat("x", 100)},
		{"one octet a second of the policy", header + "\r\n", goodPolicy + "x: " + strings.Repeat("x", 100)},
		{"one octet a second of a chunk's length", header + "Transfer-Encoding: chunked\r\n\r\n", strings.Repeat("0", 100)},
		{"one interim response a second", "", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 4)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				f := rawHost(t, near, far, 0, func(conn *tls.Conn) {
					hungUp := make(chan struct{})
					go func() {
						defer close(hungUp)
						io.Copy(io.Discard, far)
					}()
					io.WriteString(conn, test.start)
					for i := range len(test.rest) {
						time.Sleep(time.Second)
						if _, err := io.WriteString(conn, test.rest[i:i+1]); err != nil {
							return
						}
					}
					<-hungUp
				})
				start := time.Now()
				p, err := f.Fetch(t.Context(), "d.test")
				if p != nil || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != FetchTimeout {
					t.Errorf("after %v: policy %v, error %v", time.Since(start), p, err)
				}
				if ResultType(err) != ruapost.ResultSTSPolicyFetchError || Answered(err) {
					t.Errorf("result type %q, answered %v", ResultType(err), Answered(err))
				}
			})
		})
	}
}

// Without end: what is taken is bounded.
func TestFetchEndless(t *testing.T) {
	for name, part := range map[string]string{
		"header field":      strings.Repeat("x", 1000),
		"header fields":     "X: " + strings.Repeat("x", 100) + "\r\n",
		"interim responses": "\r\n\r\nHTTP/1.1 103 Early Hints\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			const enough = 64 << 20
			sent := make(chan int, 1)
			near, far := loopback(t)
			f := rawHost(t, near, far, 0, func(conn *tls.Conn) {
				io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nX: ")
				n := 0
				for block := strings.Repeat(part, 100); n < enough; n += len(block) {
					if _, err := io.WriteString(conn, block); err != nil {
						break
					}
				}
				sent <- n
			})
			p, err := f.Fetch(t.Context(), "d.test")
			if p != nil || ResultType(err) != ruapost.ResultSTSPolicyFetchError || Answered(err) {
				t.Errorf("policy %v, error %v, answered %v", p, err, Answered(err))
			}
			if n := <-sent; n >= enough { // some is in the kernel's buffers
				t.Errorf("took %d octets", n)
			}
		})
	}
}

func TestFetchHugeBody(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, time.Now().Add(time.Hour), "x", "mta-sts.d.test")
	const size = 1 << 30
	for _, length := range []string{"", strconv.Itoa(size)} { // chunked, or as announced
		var sent atomic.Int64
		f := policyHost(t, ca, &tls.Config{Certificates: []tls.Certificate{cert}}, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			if length != "" {
				w.Header().Set("Content-Length", length)
			}
			for chunk := make([]byte, 64<<10); sent.Load() < size; {
				n, err := w.Write(chunk)
				sent.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
		p, err := f.Fetch(t.Context(), "d.test")
		if p != nil || ResultType(err) != ruapost.ResultSTSPolicyFetchError || !strings.Contains(err.Error(), "larger than") || !Answered(err) {
			t.Errorf("length %q: policy %v, error %v, answered %v", length, p, err, Answered(err))
		}
		if n := sent.Load(); n > size/32 { // what the kernel's buffers take
			t.Errorf("length %q: took %d octets", length, n)
		}
	}
}

func TestFetchOldTLS(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, time.Now().Add(time.Hour), "x", "mta-sts.d.test")
	config := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	f := policyHost(t, ca, config, servePolicy)
	if p, err := f.Fetch(t.Context(), "d.test"); ResultType(err) != ruapost.ResultSTSPolicyFetchError || Answered(err) {
		t.Errorf("policy %v, error %v, answered %v", p, err, Answered(err))
	}
}

// The caller's context ends a fetch wherever it is.
func TestFetchCancelled(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, time.Now().Add(time.Hour), "x", "mta-sts.d.test")
	for _, start := range []string{"", "version: STSv1\n"} {
		ctx, cancel := context.WithCancel(t.Context())
		f := policyHost(t, ca, &tls.Config{Certificates: []tls.Certificate{cert}}, func(w http.ResponseWriter, r *http.Request) {
			if start != "" {
				w.Header().Set("Content-Type", "text/plain")
				io.WriteString(w, start)
				w.(http.Flusher).Flush()
			}
			cancel()
			<-r.Context().Done() // until the client hangs up
		})
		p, err := f.Fetch(ctx, "d.test")
		if p != nil || !errors.Is(err, context.Canceled) || ResultType(err) != ruapost.ResultSTSPolicyFetchError || Answered(err) {
			t.Errorf("after %q: policy %v, error %v", start, p, err)
		}
	}
}

// oneAddress answers in the bubble of synctest, where a resolver with sockets
// cannot be.
type oneAddress struct{}

func (oneAddress) LookupIP(context.Context, string) ([]netip.Addr, []string, bool, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil, false, nil
}

// A policy host that accepts the connection and says nothing.
func TestFetchTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		far := make(chan net.Conn, 1)
		f := &Fetcher{Resolver: oneAddress{}, dial: func(context.Context, string, string) (net.Conn, error) {
			near, server := net.Pipe()
			far <- server
			return near, nil
		}}
		start := time.Now()
		p, err := f.Fetch(t.Context(), "d.test")
		if p != nil || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != FetchTimeout {
			t.Errorf("after %v: policy %v, error %v", time.Since(start), p, err)
		}
		(<-far).Close()
	})
}

// A policy host's address may be anything its owner likes, and must not be a way into
// our own network.
func TestFetchNotOnTheInternet(t *testing.T) {
	dns, r := startDNS(t)
	dns.Add("mta-sts.d.test. 300 IN A 127.0.0.1\n")
	f := &Fetcher{Resolver: r, dial: func(_ context.Context, _, addr string) (net.Conn, error) {
		t.Errorf("connection to %s", addr)
		return nil, errors.New("no connection")
	}}
	_, err := f.Fetch(t.Context(), "d.test")
	if ResultType(err) != ruapost.ResultSTSPolicyFetchError || !strings.Contains(err.Error(), "127.0.0.1 is not on the Internet") {
		t.Error(err)
	}
	f = &Fetcher{Resolver: r, AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, dial: func(_ context.Context, _, addr string) (net.Conn, error) {
		return nil, errors.New("connection to " + addr)
	}}
	if _, err := f.Fetch(t.Context(), "d.test"); err == nil || !strings.Contains(err.Error(), "connection to 127.0.0.1:443") {
		t.Error(err)
	}
}

func TestFetchAddresses(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, time.Now().Add(time.Hour), "x", "mta-sts.d.test", "mta-sts.many.d.test")
	f := policyHost(t, ca, &tls.Config{Certificates: []tls.Certificate{cert}}, servePolicy)
	server, r := startDNS(t)
	f.Resolver = r
	toServer := f.dial
	var mu sync.Mutex
	var tried []string
	f.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		tried = append(tried, addr)
		if addr == "192.0.2.1:443" {
			return toServer(ctx, network, addr)
		}
		return nil, errors.New("unreachable")
	}
	server.Add(`
mta-sts.d.test. 300 IN AAAA 2001:db8::1
mta-sts.d.test. 300 IN A 192.0.2.2
mta-sts.d.test. 300 IN A 192.0.2.1
mta-sts.six.d.test. 300 IN AAAA 2001:db8::1
mta-sts.none.d.test. 300 IN TXT "no address"
`)
	for i := range webdial.MaxAddresses {
		server.Add("mta-sts.many.d.test. 300 IN A 198.51.100." + string(rune('0'+i)))
	}
	server.Add("mta-sts.many.d.test. 300 IN AAAA 2001:db8::1")
	server.SetRcode("mta-sts.down.d.test", dns.RcodeServerFailure)

	if _, err := f.Fetch(t.Context(), "d.test"); err != nil {
		t.Error(err)
	}
	if want := []string{"192.0.2.2:443", "192.0.2.1:443"}; !slices.Equal(tried, want) {
		t.Errorf("tried %q, want %q", tried, want)
	}
	tried = nil
	if _, err := f.Fetch(t.Context(), "six.d.test"); Answered(err) || ResultType(err) != ruapost.ResultSTSPolicyFetchError || !strings.HasSuffix(err.Error(), ": unreachable") {
		t.Errorf("error %v", err)
	}
	if want := []string{"[2001:db8::1]:443"}; !slices.Equal(tried, want) {
		t.Errorf("tried %q, want %q", tried, want)
	}
	tried = nil
	if _, err := f.Fetch(t.Context(), "many.d.test"); err == nil || len(tried) != webdial.MaxAddresses {
		t.Errorf("tried %q, error %v", tried, err)
	}
	tried = nil
	if _, err := f.Fetch(t.Context(), "none.d.test"); Answered(err) || !resolver.IsNotFound(err) || ResultType(err) != ruapost.ResultSTSPolicyFetchError {
		t.Errorf("no address: error %v", err)
	}
	if _, err := f.Fetch(t.Context(), "down.d.test"); Answered(err) || !resolver.IsTemporary(err) || ResultType(err) != ruapost.ResultSTSPolicyFetchError {
		t.Errorf("server failure: error %v", err)
	}
	if _, err := f.Fetch(t.Context(), "[192.0.2.1]"); Answered(err) || !errors.Is(err, ruapost.ErrDomain) || ResultType(err) != ruapost.ResultSTSPolicyFetchError {
		t.Errorf("no domain: error %v", err)
	}
	if len(tried) > 0 {
		t.Errorf("tried %q", tried)
	}
}

type panicking struct{}

func (panicking) LookupIP(context.Context, string) ([]netip.Addr, []string, bool, error) {
	panic("test")
}

// A panic in a goroutine of net/http would end the program.
func TestFetchPanic(t *testing.T) {
	f := &Fetcher{Resolver: panicking{}}
	if p, err := f.Fetch(t.Context(), "d.test"); !resolver.IsTemporary(err) || Answered(err) {
		t.Errorf("policy %v, error %v", p, err)
	}
}

// What the proxy says is not what the policy host says.
func TestFetchProxyRefuses(t *testing.T) {
	for _, status := range []int{200, 302, 403, 404, 407, 502} {
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) }))
		defer proxy.Close()
		f := &Fetcher{Resolver: panicking{}, dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, proxy.Listener.Addr().String())
		}}
		p, err := f.Fetch(t.Context(), "proxied.test")
		if p != nil || ResultType(err) != ruapost.ResultSTSPolicyFetchError || Answered(err) {
			t.Errorf("%d: policy %v, error %v, answered %v", status, p, err, Answered(err))
		}
	}
}

func TestFetchProxy(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.issue(t, time.Now().Add(time.Hour), "x", "mta-sts.proxied.test")
	f := policyHost(t, ca, &tls.Config{Certificates: []tls.Certificate{cert}}, servePolicy)
	toServer := f.dial
	var connect string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		connect = r.Method + " " + r.Host
		out, err := toServer(r.Context(), "tcp", "192.0.2.1:443")
		if err != nil {
			t.Error(err)
			return
		}
		defer out.Close()
		in, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer in.Close()
		io.WriteString(in, "HTTP/1.1 200 OK\r\n\r\n")
		go io.Copy(out, in)
		io.Copy(in, out)
	}))
	defer proxy.Close()
	server, r := startDNS(t)
	f.Resolver = r
	f.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != "proxy.test:3128" {
			t.Errorf("connection to %s", addr)
		}
		return new(net.Dialer).DialContext(ctx, network, proxy.Listener.Addr().String())
	}
	if p, err := f.Fetch(t.Context(), "proxied.test"); err != nil {
		t.Errorf("policy %v, error %v", p, err)
	}
	if connect != "CONNECT mta-sts.proxied.test:443" {
		t.Errorf("proxy was asked to %s", connect)
	}
	if queries := server.Queries(); len(queries) > 0 {
		t.Errorf("asked %q", queries)
	}
}

func TestResultTypeOfOtherErrors(t *testing.T) {
	for _, err := range []error{nil, ErrNoRecord, context.Canceled} {
		if got := ResultType(err); got != "" {
			t.Errorf("%v: %q", err, got)
		}
		if Answered(err) {
			t.Errorf("%v: answered", err)
		}
	}
}
