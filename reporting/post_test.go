package reporting

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"ruapost"
	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
	"ruapost/resolver"
)

// net/http reads it only once. Proxies are the matter of internal/webdial.
func init() { os.Setenv("NO_PROXY", "*") }

const (
	gzipReport = "application/tlsrpt+gzip"
	postHost   = "rua.d.test"
)

var loopbackNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// destination is an HTTPS server, and a Poster that finds it as rua.d.test.
type destination struct {
	*Poster
	dns  *dnstest.Server
	addr string
	url  string
}

func newDestination(t *testing.T, listen string, config *tls.Config, h http.HandlerFunc) *destination {
	t.Helper()
	ca, err := lab.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	if config == nil {
		config = new(tls.Config)
	}
	if config.Certificates == nil && config.GetCertificate == nil {
		cert, err := ca.Issue(postHost)
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(h)
	server.Listener.Close()
	server.Listener = ln
	server.TLS = config
	server.EnableHTTP2 = true // offered, and not to be taken
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)

	ns, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ns.Close)
	addr := netip.MustParseAddrPort(ln.Addr().String())
	kind := "A"
	if addr.Addr().Is6() {
		kind = "AAAA"
	}
	ns.Add(fmt.Sprintf("%s. 300 IN CNAME host.test.\nhost.test. 300 IN %s %s\n", postHost, kind, addr.Addr()))
	return &destination{
		Poster: &Poster{Resolver: newResolver(t, ns), RootCAs: ca.Pool(), AllowNetworks: loopbackNetworks},
		dns:    ns, addr: addr.String(),
		url: fmt.Sprintf("https://%s:%d/reports?key=1", postHost, addr.Port()),
	}
}

func newResolver(t *testing.T, ns *dnstest.Server) *resolver.Resolver {
	t.Helper()
	r, err := resolver.New(resolver.Config{Servers: []string{ns.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// text is a report, and whether what was opened was closed.
type text struct {
	*strings.Reader
	closed chan struct{}
}

func (r *text) Close() error {
	close(r.closed)
	return nil
}

// try posts a report and waits until what was opened is closed.
func (p *Poster) try(ctx context.Context, url, report string) error {
	r := &text{strings.NewReader(report), make(chan struct{})}
	err := p.post(ctx, url, gzipReport, func() (io.ReadCloser, error) { return r, nil }, int64(len(report)))
	<-r.closed
	return err
}

// wantPostError fails the test unless err is one of post's that has these words.
func wantPostError(t *testing.T, err error, final bool, words string) {
	t.Helper()
	if err == nil || postRefused(err) != final || postRefused(fmt.Errorf("wrapped: %w", err)) != final || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v, final %v; want final %v with %q", err, postRefused(err), final, words)
	}
	if err != nil && !strings.HasPrefix(err.Error(), "reporting: post report to ") {
		t.Errorf("got %v", err)
	}
}

// RFC 8460 3, 5.4, 6.5: the gzip'ed report is the content itself.
func TestPost(t *testing.T) {
	report := strings.Repeat("\x1f\x8b report", 50_000)
	var request *http.Request
	var received []byte
	connections := map[string]bool{}
	d := newDestination(t, "127.0.0.1:0", nil, func(w http.ResponseWriter, r *http.Request) {
		request = r
		received, _ = io.ReadAll(r.Body)
		connections[r.RemoteAddr] = true
		http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
		w.WriteHeader(http.StatusCreated)
	})
	for range 2 {
		if err := d.try(t.Context(), d.url, report); err != nil {
			t.Fatal(err)
		}
		line := request.Method + " " + request.Host + request.RequestURI + " " + request.Proto
		if line != "POST "+strings.TrimPrefix(d.url, "https://")+" HTTP/1.1" {
			t.Errorf("request %s", line)
		}
		want := http.Header{
			"Content-Type": {gzipReport}, "Content-Length": {strconv.Itoa(len(report))},
			"User-Agent": {"ruapost/" + ruapost.Version}, "Connection": {"close"},
		}
		if diff := cmp.Diff(want, request.Header); diff != "" || request.TransferEncoding != nil || request.ContentLength != int64(len(report)) {
			t.Errorf("header: %s; transfer coding %q, length %d", diff, request.TransferEncoding, request.ContentLength)
		}
		if request.TLS.ServerName != postHost || request.TLS.Version < tls.VersionTLS12 {
			t.Errorf("server name %q, %s", request.TLS.ServerName, tls.VersionName(request.TLS.Version))
		}
		if string(received) != report {
			t.Errorf("received %d octets", len(received))
		}
	}
	if len(connections) != 2 {
		t.Errorf("connections from %v", connections)
	}
	d.UserAgent = "ruapost/test"
	if err := d.try(t.Context(), d.url+"#part", report); err != nil || request.UserAgent() != "ruapost/test" || request.RequestURI != "/reports?key=1" {
		t.Errorf("User-Agent %q, %s: %v", request.UserAgent(), request.RequestURI, err)
	}
}

// RFC 9110 15: what a status says of trying again (RFC 8460 5.5).
func TestPostStatus(t *testing.T) {
	status := 0
	requests := 0
	d := newDestination(t, "127.0.0.1:0", nil, func(w http.ResponseWriter, r *http.Request) {
		requests++
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Location", "/other")
		w.WriteHeader(status)
	})
	for _, tt := range []struct {
		statuses []int
		final    bool
	}{
		{[]int{400, 401, 402, 403, 404, 405, 406, 407, 409, 410, 411, 413, 415, 417, 421, 422, 426, 451, 499}, true},
		{[]int{300, 301, 302, 303, 304, 305, 307, 308, 399}, true},
		{[]int{408, 425, 429}, false},
		{[]int{500, 501, 502, 503, 504, 505, 511, 599, 600, 999}, false},
	} {
		for _, status = range tt.statuses {
			requests = 0
			wantPostError(t, d.try(t.Context(), d.url, "report"), tt.final, fmt.Sprint("HTTP status ", status))
			if requests != 1 {
				t.Errorf("%d: %d requests", status, requests)
			}
		}
	}
	for _, status = range []int{200, 201, 202, 203, 204, 205, 206, 226, 299} {
		if err := d.try(t.Context(), d.url, "report"); err != nil || postRefused(err) {
			t.Errorf("%d: %v", status, err)
		}
	}
	if postRefused(errors.New("other")) {
		t.Error("an error that is not of a post is final")
	}
}

// A redirect must not lead a report, or us, anywhere.
func TestPostRedirect(t *testing.T) {
	inside := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s", r.Method, r.RequestURI)
	}))
	defer inside.Close()
	for _, to := range []string{inside.URL + "/admin", "/again", "https://" + postHost + "/other", "%zz", ""} {
		requests := 0
		d := newDestination(t, "127.0.0.1:0", nil, func(w http.ResponseWriter, r *http.Request) {
			requests++
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusTemporaryRedirect)
		})
		wantPostError(t, d.try(t.Context(), d.url, "report"), true, "HTTP status 307: redirects are not followed")
		if requests != 1 {
			t.Errorf("%q: %d requests", to, requests)
		}
	}
}

// What a destination says is shown as far as it is fit to be.
func TestPostAnswer(t *testing.T) {
	for _, tt := range []struct{ said, want string }{
		{"not a report\r\n", "HTTP status 400: not a report"},
		{"<p>\n\n  no\t such\x00\x1b[31m domain\xff</p>", "HTTP status 400: <p> no such  [31m domain </p>"},
		{"", "HTTP status 400"},
		{"\r\n \x07", "HTTP status 400"},
		{strings.Repeat("x", 1<<20), "HTTP status 400: " + strings.Repeat("x", maxPostAnswerShown)},
		{strings.Repeat(" ", maxPostAnswer) + "x", "HTTP status 400"},
	} {
		d := newDestination(t, "127.0.0.1:0", nil, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, tt.said)
		})
		err := d.try(t.Context(), d.url, "report")
		wantPostError(t, err, true, "")
		host := strings.TrimSuffix(strings.TrimPrefix(d.url, "https://"), "/reports?key=1")
		if want := "reporting: post report to " + host + ": " + tt.want; err != nil && err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	}
}

// RFC 8460 5.5: a certificate may be renewed.
func TestPostCertificate(t *testing.T) {
	other, err := lab.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		issue func(ca *lab.CA) (tls.Certificate, error)
		good  bool
	}{
		{"good", func(ca *lab.CA) (tls.Certificate, error) { return ca.Issue(postHost) }, true},
		{"wildcard", func(ca *lab.CA) (tls.Certificate, error) { return ca.Issue("*.d.test") }, true},
		{"expired", func(ca *lab.CA) (tls.Certificate, error) { return ca.IssueExpired(postHost) }, false},
		{"not yet valid", func(ca *lab.CA) (tls.Certificate, error) { return ca.IssueFuture(postHost) }, false},
		{"wrong name", func(ca *lab.CA) (tls.Certificate, error) { return ca.Issue("d.test", "host.test") }, false},
		{"for clients", func(ca *lab.CA) (tls.Certificate, error) { return ca.IssueForClients(postHost) }, false},
		{"unknown CA", func(*lab.CA) (tls.Certificate, error) { return other.Issue(postHost) }, false},
		{"self-signed", func(*lab.CA) (tls.Certificate, error) { return lab.SelfSigned(postHost) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ca, err := lab.NewCA()
			if err != nil {
				t.Fatal(err)
			}
			cert, err := tt.issue(ca)
			if err != nil {
				t.Fatal(err)
			}
			requests := 0
			d := newDestination(t, "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}}, func(_ http.ResponseWriter, r *http.Request) {
				requests++
				io.Copy(io.Discard, r.Body)
			})
			d.RootCAs = ca.Pool()
			switch err := d.try(t.Context(), d.url, "report"); {
			case tt.good && err != nil:
				t.Error(err)
			case !tt.good:
				wantPostError(t, err, false, "certificate")
				if requests > 0 {
					t.Error("the report was sent")
				}
			}
			d.Unverified = true
			if err := d.try(t.Context(), d.url, "report"); err != nil {
				t.Errorf("unverified: %v", err)
			}
		})
	}
}

// RFC 8996: TLS 1.2 is the oldest version that is any good, checked or not.
func TestPostOldTLS(t *testing.T) {
	d := newDestination(t, "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, func(http.ResponseWriter, *http.Request) {
		t.Error("the report was sent")
	})
	for _, d.Unverified = range []bool{false, true} {
		wantPostError(t, d.try(t.Context(), d.url, "report"), false, "protocol version")
	}
}

// A name may lead anywhere: what is not on the Internet is reached only if allowed.
func TestPostInside(t *testing.T) {
	d := newDestination(t, "127.0.0.1:0", nil, func(http.ResponseWriter, *http.Request) { t.Error("request") })
	d.AllowNetworks = nil
	wantPostError(t, d.try(t.Context(), d.url, "report"), false, "127.0.0.1 is not on the Internet, and not in reporter.allow_networks")
	d.AllowNetworks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for _, addr := range []string{"A 127.0.0.1", "A 192.168.0.1", "A 169.254.169.254", "A 0.0.0.0", "A 100.64.0.1", "AAAA ::1", "AAAA ::ffff:127.0.0.1", "AAAA fd00::1", "AAAA 64:ff9b::7f00:1"} {
		kind, addr, _ := strings.Cut(addr, " ")
		name := strings.NewReplacer(".", "-", ":", "-").Replace("h"+addr+"h") + ".d.test"
		d.dns.Add(name + ". 300 IN " + kind + " " + addr + "\n")
		wantPostError(t, d.try(t.Context(), "https://"+name+strings.TrimPrefix(d.url, "https://"+postHost), "report"), false, "is not on the Internet")
	}
	d.AllowNetworks = loopbackNetworks
	host := strings.TrimPrefix(d.addr, "127.0.0.1")
	wantPostError(t, d.try(t.Context(), "https://127.0.0.1"+host+"/", "report"), false, "no such domain")
}

// DNS rebinding: an address that is another one when the name is looked up again.
func TestPostRebinding(t *testing.T) {
	d := newDestination(t, "127.0.0.1:0", nil, func(http.ResponseWriter, *http.Request) { t.Error("request") })
	d.AllowNetworks = nil
	var lookups atomic.Int32
	d.dns.Handle(func(w dns.ResponseWriter, q *dns.Msg) bool {
		reply := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			addr := "127.0.0.1"
			if lookups.Add(1) == 1 {
				addr = "192.0.2.1"
			}
			reply.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.ParseIP(addr)}}
		}
		w.WriteMsg(reply)
		return true
	})
	var tried []string
	d.dial = func(_ context.Context, _, addr string) (net.Conn, error) {
		tried = append(tried, addr)
		return nil, errors.New("unreachable")
	}
	port := strings.TrimPrefix(d.addr, "127.0.0.1")
	wantPostError(t, d.try(t.Context(), d.url, "report"), false, "unreachable")
	if !slices.Equal(tried, []string{"192.0.2.1" + port}) {
		t.Errorf("tried %q", tried)
	}
	tried = nil
	d.Resolver = newResolver(t, d.dns) // a run later, with an empty cache
	wantPostError(t, d.try(t.Context(), d.url, "report"), false, "127.0.0.1 is not on the Internet")
	if len(tried) > 0 {
		t.Errorf("tried %q", tried)
	}
}

func TestPostIPv6(t *testing.T) {
	requests := 0
	d := newDestination(t, "[::1]:0", nil, func(_ http.ResponseWriter, r *http.Request) {
		requests++
		io.Copy(io.Discard, r.Body)
	})
	if err := d.try(t.Context(), d.url, "report"); err != nil || requests != 1 {
		t.Errorf("%d requests: %v", requests, err)
	}
	// IPv4 goes first, where nobody listens.
	d.dns.Add("six.d.test. 300 IN AAAA ::1\nsix.d.test. 300 IN A 127.9.8.7\n")
	d.Unverified = true
	if err := d.try(t.Context(), strings.Replace(d.url, postHost, "six.d.test", 1), "report"); err != nil || requests != 2 {
		t.Errorf("%d requests: %v", requests, err)
	}
}

// Of many addresses a few are tried, none of them forever.
func TestPostAddresses(t *testing.T) {
	d := newDestination(t, "127.0.0.1:0", nil, func(http.ResponseWriter, *http.Request) {})
	var tried []string
	d.dial = func(_ context.Context, _, addr string) (net.Conn, error) {
		tried = append(tried, addr)
		return nil, errors.New("unreachable")
	}
	for i := range 20 {
		d.dns.Add(fmt.Sprintf("many.d.test. 300 IN A 192.0.2.%d", i+1))
	}
	d.dns.SetRcode("down.d.test", dns.RcodeServerFailure)
	wantPostError(t, d.try(t.Context(), "https://many.d.test/", "report"), false, "unreachable")
	if len(tried) != 8 || !strings.HasSuffix(tried[0], ":443") {
		t.Errorf("tried %q", tried)
	}
	tried = nil
	wantPostError(t, d.try(t.Context(), "https://down.d.test/", "report"), false, "down.d.test")
	wantPostError(t, d.try(t.Context(), "https://none.d.test/", "report"), false, "none.d.test")
	if len(tried) > 0 {
		t.Errorf("tried %q", tried)
	}
}

func TestPostURL(t *testing.T) {
	p := &Poster{}
	for _, url := range []string{
		"http://rua.d.test/", "mailto:rua@d.test", "rua.d.test/report", "", "https:", "https:///report", "https:rua.d.test",
		"https://rua.d.test:x/", "https://rua.d.test/%zz", "https://rua.d.test/\r\nX: y", "https://[::1/", "HTTPX://rua.d.test",
	} {
		err := p.post(t.Context(), url, gzipReport, func() (io.ReadCloser, error) {
			t.Errorf("%q: opened", url)
			return nil, errors.New("opened")
		}, 1)
		wantPostError(t, err, true, "not an https URL")
		if err != nil && strings.ContainsAny(err.Error(), "\r\n") {
			t.Errorf("%q", err)
		}
	}
}

// What goes wrong with the report itself is no refusal, and a part of it no report.
func TestPostReport(t *testing.T) {
	var received atomic.Int32
	d := newDestination(t, "127.0.0.1:0", nil, func(_ http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err == nil {
			received.Add(1)
		}
	})
	broken := errors.New("broken")
	err := d.post(t.Context(), d.url, gzipReport, func() (io.ReadCloser, error) { return nil, broken }, 1)
	wantPostError(t, err, false, "broken")
	if !errors.Is(err, broken) {
		t.Errorf("%v does not wrap what open said", err)
	}
	for name, r := range map[string]io.Reader{
		"shorter": strings.NewReader("report"),
		"broken":  io.MultiReader(strings.NewReader("report"), &failing{broken}),
		"longer":  strings.NewReader(strings.Repeat("x", 101)),
	} {
		err := d.post(t.Context(), d.url, gzipReport, func() (io.ReadCloser, error) { return io.NopCloser(r), nil }, 100)
		if name == "longer" && err == nil {
			continue // taken before it was seen
		}
		wantPostError(t, err, false, "")
	}
	if n := received.Load(); n > 1 {
		t.Errorf("%d reports received", n)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// rawDestination returns a Poster with a destination at the far end of a connection,
// which does what it likes once TLS is there. The Poster is to be used once.
func rawDestination(t *testing.T, near, far net.Conn, serve func(conn *tls.Conn)) *Poster {
	t.Helper()
	ca, err := lab.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(postHost)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		defer far.Close()
		conn := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{cert}})
		if conn.Handshake() == nil {
			serve(conn)
		}
	}()
	dial := func(context.Context, string, string) (net.Conn, error) { return near, nil }
	return &Poster{Resolver: fixedAddress{}, RootCAs: ca.Pool(), dial: dial}
}

// fixedAddress answers in the bubble of synctest, where a resolver with sockets cannot be.
type fixedAddress struct{}

func (fixedAddress) LookupIP(context.Context, string) ([]netip.Addr, []string, bool, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil, false, nil
}

// However slow a destination is, and wherever, it is over in time.
func TestPostSlow(t *testing.T) {
	report := strings.Repeat("x", 1<<20)
	hear := func(conn *tls.Conn) { http.ReadRequest(bufio.NewReader(conn)) }
	trickle := func(conn *tls.Conn, s string) {
		for i := range len(s) {
			time.Sleep(time.Second)
			if _, err := io.WriteString(conn, s[i:i+1]); err != nil {
				return
			}
		}
	}
	readAll := func(conn *tls.Conn) {
		if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			io.Copy(io.Discard, req.Body)
		}
	}
	for _, tt := range []struct {
		name  string
		serve func(conn *tls.Conn)
		final bool // the status came before the time was over
	}{
		{"reads nothing", func(*tls.Conn) {}, false},
		{"reads the header and no more", hear, false},
		{"reads an octet a second", func(conn *tls.Conn) {
			for one := make([]byte, 1); ; time.Sleep(time.Second) {
				if _, err := conn.Read(one); err != nil {
					return
				}
			}
		}, false},
		{"never answers", readAll, false},
		{"answers an octet a second", func(conn *tls.Conn) {
			readAll(conn)
			trickle(conn, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 200))
		}, false},
		{"sends an interim response a second", func(conn *tls.Conn) {
			readAll(conn)
			trickle(conn, strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 10))
		}, false},
		{"refuses, and says why an octet a second", func(conn *tls.Conn) {
			readAll(conn)
			io.WriteString(conn, "HTTP/1.1 400 Bad\r\nConnection: close\r\n\r\n")
			trickle(conn, strings.Repeat("x", 200))
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				hungUp := make(chan struct{})
				p := rawDestination(t, near, far, func(conn *tls.Conn) {
					tt.serve(conn)
					<-hungUp
				})
				start := time.Now()
				err := p.try(t.Context(), "https://"+postHost+"/", report)
				// crypto/tls may take 5 s to say goodbye.
				if took := time.Since(start); took < postTimeout || took > postTimeout+5*time.Second || !tt.final && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("after %v: %v", took, err)
				}
				wantPostError(t, err, tt.final, "")
				close(hungUp)
			})
		})
	}
}

// A connection is accepted, and TLS never begins.
func TestPostNoTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		p := &Poster{Resolver: fixedAddress{}, dial: func(context.Context, string, string) (net.Conn, error) { return near, nil }}
		start := time.Now()
		err := p.try(t.Context(), "https://"+postHost+"/", "report")
		wantPostError(t, err, false, "")
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != postTimeout {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		far.Close()
	})
}

// tcpPipe returns the two ends of a connection.
func tcpPipe(t *testing.T) (near, far net.Conn) {
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

// What breaks off says nothing about the report.
func TestPostReset(t *testing.T) {
	report := strings.Repeat("x", 20<<20) // more than the kernel's buffers take
	for name, serve := range map[string]func(conn *tls.Conn){
		"before the request":  func(*tls.Conn) {},
		"inside the report":   func(conn *tls.Conn) { io.CopyN(io.Discard, conn, 1<<20) },
		"instead of a status": func(conn *tls.Conn) { readRequest(conn) },
		"inside the header": func(conn *tls.Conn) {
			readRequest(conn)
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Le")
		},
		"no HTTP": func(conn *tls.Conn) {
			readRequest(conn)
			io.WriteString(conn, "220 mx.d.test ESMTP\r\n\r\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := tcpPipe(t)
			p := rawDestination(t, near, far, func(conn *tls.Conn) {
				serve(conn)
				far.(*net.TCPConn).SetLinger(0) // RST
			})
			wantPostError(t, p.try(t.Context(), "https://"+postHost+"/", report), false, "")
		})
	}
	t.Run("inside the answer", func(t *testing.T) {
		near, far := tcpPipe(t)
		p := rawDestination(t, near, far, func(conn *tls.Conn) {
			readRequest(conn)
			io.WriteString(conn, "HTTP/1.1 400 Bad\r\nContent-Length: 100\r\n\r\nnot a rep")
		})
		wantPostError(t, p.try(t.Context(), "https://"+postHost+"/", report), true, "HTTP status 400: not a rep")
	})
}

func readRequest(conn *tls.Conn) {
	if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
		io.Copy(io.Discard, req.Body)
	}
}

// Without end: what is taken is bounded.
func TestPostEndless(t *testing.T) {
	for name, part := range map[string]string{
		"header field":      strings.Repeat("x", 1000),
		"header fields":     "X: " + strings.Repeat("x", 100) + "\r\n",
		"interim responses": "\r\n\r\nHTTP/1.1 103 Early Hints\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			const enough = 64 << 20
			sent := make(chan int, 1)
			near, far := tcpPipe(t)
			p := rawDestination(t, near, far, func(conn *tls.Conn) {
				readRequest(conn)
				io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nX: ")
				n := 0
				for block := strings.Repeat(part, 100); n < enough; n += len(block) {
					if _, err := io.WriteString(conn, block); err != nil {
						break
					}
				}
				sent <- n
			})
			wantPostError(t, p.try(t.Context(), "https://"+postHost+"/", "report"), false, "")
			if n := <-sent; n >= enough { // some is in the kernel's buffers
				t.Errorf("took %d octets", n)
			}
		})
	}
}

func TestPostHugeAnswer(t *testing.T) {
	const size = 1 << 30
	for _, status := range []int{http.StatusOK, http.StatusForbidden, http.StatusServiceUnavailable} {
		for _, length := range []string{"", strconv.Itoa(size)} { // chunked, or as announced
			var sent atomic.Int64
			over := make(chan struct{})
			d := newDestination(t, "127.0.0.1:0", nil, func(w http.ResponseWriter, r *http.Request) {
				defer close(over)
				io.Copy(io.Discard, r.Body)
				if length != "" {
					w.Header().Set("Content-Length", length)
				}
				w.WriteHeader(status)
				for block := bytes.Repeat([]byte("x"), 64<<10); sent.Load() < size; {
					n, err := w.Write(block)
					sent.Add(int64(n))
					if err != nil {
						return
					}
				}
			})
			err := d.try(t.Context(), d.url, "report")
			if status == http.StatusOK && err != nil {
				t.Error(err)
			} else if status != http.StatusOK {
				wantPostError(t, err, status == http.StatusForbidden, strings.Repeat("x", maxPostAnswerShown))
			}
			<-over
			if n := sent.Load(); n > size/32 { // what the kernel's buffers take
				t.Errorf("status %d, length %q: took %d octets", status, length, n)
			}
		}
	}
}

// A destination may refuse a report, not read it, and hang up (RFC 9112 9.5).
func TestPostRefusedEarly(t *testing.T) {
	d := newDestination(t, "127.0.0.1:0", nil, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		io.WriteString(w, "too large")
	})
	for _, size := range []int{1 << 10, 100 << 10, 1 << 20, 10 << 20} {
		wantPostError(t, d.try(t.Context(), d.url, strings.Repeat("x", size)), true, "HTTP status 413")
	}
}

// The caller's context ends it wherever it is.
func TestPostCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	d := newDestination(t, "127.0.0.1:0", nil, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		cancel()
		<-r.Context().Done() // until the client hangs up
		panic(http.ErrAbortHandler)
	})
	err := d.try(ctx, d.url, "report")
	wantPostError(t, err, false, "canceled")
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	d.dial = func(context.Context, string, string) (net.Conn, error) { panic("connection") }
	wantPostError(t, d.try(ctx, d.url, "report"), false, "canceled")
}

type panicking struct{}

func (panicking) LookupIP(context.Context, string) ([]netip.Addr, []string, bool, error) {
	panic("test")
}

// A panic in a goroutine of net/http would end the program.
func TestPostPanic(t *testing.T) {
	p := &Poster{Resolver: panicking{}}
	wantPostError(t, p.try(t.Context(), "https://"+postHost+"/", "report"), false, "panic")
}
