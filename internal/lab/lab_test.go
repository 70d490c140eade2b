package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/emersion/go-smtp"

	"ruapost/internal/dnstest"
)

func TestCertificates(t *testing.T) {
	ca := newCA(t)
	between, err := ca.Intermediate()
	if err != nil {
		t.Fatal(err)
	}
	if between, err = between.Intermediate(); err != nil {
		t.Fatal(err)
	}
	const host = "mx.example.com"
	for _, test := range []struct {
		name string
		cert func() (tls.Certificate, error)
		ok   func(error) bool
	}{
		{"good", func() (tls.Certificate, error) { return ca.Issue(host) }, func(err error) bool { return err == nil }},
		{"wrong name", func() (tls.Certificate, error) { return ca.Issue("mx.example.net") }, func(err error) bool {
			return errors.As(err, new(x509.HostnameError))
		}},
		{"expired", func() (tls.Certificate, error) { return ca.IssueExpired(host) }, func(err error) bool {
			var invalid x509.CertificateInvalidError
			return errors.As(err, &invalid) && invalid.Reason == x509.Expired
		}},
		{"not yet valid", func() (tls.Certificate, error) { return ca.IssueFuture(host) }, func(err error) bool {
			var invalid x509.CertificateInvalidError
			return errors.As(err, &invalid) && invalid.Reason == x509.Expired // so Go calls both
		}},
		{"for clients", func() (tls.Certificate, error) { return ca.IssueForClients(host) }, func(err error) bool {
			var invalid x509.CertificateInvalidError
			return errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage
		}},
		{"with a chain", func() (tls.Certificate, error) { return between.Issue(host) }, func(err error) bool { return err == nil }},
		{"self-signed", func() (tls.Certificate, error) { return SelfSigned(host) }, func(err error) bool {
			return errors.As(err, new(x509.UnknownAuthorityError))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cert, err := test.cert()
			if err != nil {
				t.Fatal(err)
			}
			intermediates := x509.NewCertPool()
			for _, der := range cert.Certificate[1:] {
				c, err := x509.ParseCertificate(der)
				if err != nil {
					t.Fatal(err)
				}
				intermediates.AddCert(c)
			}
			_, err = cert.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: ca.Pool(), Intermediates: intermediates})
			if !test.ok(err) {
				t.Errorf("verify: %v", err)
			}
		})
	}
}

func TestPEM(t *testing.T) {
	ca := newCA(t)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca.PEM()) {
		t.Fatalf("no certificate in %s", ca.PEM())
	}
	if !pool.Equal(ca.Pool()) {
		t.Error("not the authority's certificate")
	}
}

func TestMX(t *testing.T) {
	ca := newCA(t)
	cert, err := ca.Issue("mx.example.com")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name     string
		cfg      MXConfig
		offered  bool
		startTLS int // code of the error, 0 for success, 1 for none of SMTP
	}{
		{"STARTTLS", MXConfig{Certificate: &cert}, true, 0},
		{"no STARTTLS", MXConfig{}, false, 502},
		{"STARTTLS refused", MXConfig{Certificate: &cert, RefuseTLS: true}, true, 454},
		{"TLS broken", MXConfig{Certificate: &cert, BreakTLS: true}, true, 1},
		{"STARTTLS refused without certificate", MXConfig{RefuseTLS: true}, true, 454},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.Name, test.cfg.Addr = "mx.example.com", "127.0.0.1:0"
			mx, err := StartMX(test.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer mx.Close()

			c, err := smtp.Dial(mx.Addr.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.Hello("client.example"); err != nil {
				t.Fatal(err)
			}
			if offered, _ := c.Extension("STARTTLS"); offered != test.offered {
				t.Errorf("STARTTLS offered = %v", offered)
			}
			sessions := 1
			if test.startTLS != 0 {
				// DialStartTLS sends STARTTLS only if it was offered.
				if test.offered {
					sessions++
					c, err := smtp.DialStartTLS(mx.Addr.String(), nil)
					if err == nil {
						defer c.Close()
						err = c.Noop() // only now there is a handshake
					}
					code := 1
					var smtpErr *smtp.SMTPError
					if errors.As(err, &smtpErr) {
						code = smtpErr.Code
					}
					if err == nil || code != test.startTLS {
						t.Errorf("STARTTLS: %v, not %d", err, test.startTLS)
					}
				}
			} else {
				sessions++
				c, err = smtp.DialStartTLS(mx.Addr.String(), &tls.Config{RootCAs: ca.Pool(), ServerName: "mx.example.com"})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
			}
			mail := Mail{From: "a@example.org", To: "b@example.com", Subject: "s", Body: "x"}.Bytes()
			if err := c.SendMail("a@example.org", []string{"b@example.com", "c@example.com"}, bytes.NewReader(mail)); err != nil {
				t.Fatal(err)
			}

			got, err := mx.Mailbox.Wait(timeout(t), 1)
			if err != nil {
				t.Fatal(err)
			}
			m, withTLS := got[0], test.startTLS == 0
			if m.From != "a@example.org" || strings.Join(m.To, " ") != "b@example.com c@example.com" || !bytes.Equal(m.Data, mail) || m.TLS != withTLS {
				t.Errorf("mail: %+v", m)
			}
			all := mx.Sessions()
			if len(all) != sessions {
				t.Fatalf("%d sessions, not %d", len(all), sessions)
			}
			for i, s := range all {
				if asked := i == 1; s.StartTLS != asked {
					t.Errorf("session %d: StartTLS = %v", i, s.StartTLS)
				}
			}
			// The mail's session is the last one that could be used.
			i := 0
			if withTLS {
				i = 1
			}
			if s := all[i]; s.Mails != 1 || s.TLS != withTLS || withTLS && s.ServerName != "mx.example.com" || s.Remote.Addr() != netip.MustParseAddr("127.0.0.1") {
				t.Errorf("session: %+v", s)
			}
		})
	}
}

func TestBusyMX(t *testing.T) {
	mx, err := StartMX(MXConfig{Name: "mx.example.com", Addr: "127.0.0.1:0", Busy: true})
	if err != nil {
		t.Fatal(err)
	}
	defer mx.Close()
	c, err := smtp.Dial(mx.Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var smtpErr *smtp.SMTPError
	if err := c.Hello("client.example"); !errors.As(err, &smtpErr) || smtpErr.Code != 421 {
		t.Errorf("greeting: %v", err)
	}
	if n := len(mx.Sessions()); n != 1 {
		t.Errorf("%d sessions", n)
	}
}

func TestMailboxWait(t *testing.T) {
	b := NewMailbox()
	b.add(Message{From: "a@example.org"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := b.Wait(ctx, 2); !errors.Is(err, context.Canceled) || len(got) != 1 {
		t.Errorf("%d mails, %v", len(got), err)
	}
}

func TestPolicyHost(t *testing.T) {
	ca := newCA(t)
	h, err := StartPolicyHost("127.0.0.1:0", ca)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	h.SetPolicy("example.com", "version: STSv1", "mode: none", "max_age: 60")
	expired, err := ca.IssueExpired("mta-sts.example.net")
	if err != nil {
		t.Fatal(err)
	}
	h.SetPolicy("example.net", "version: STSv1")
	h.SetCertificate("example.net", expired)

	get := func(domain string) (int, string, error) {
		client := &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), ServerName: "mta-sts." + domain},
		}}
		defer client.CloseIdleConnections()
		req := httptest.NewRequest(http.MethodGet, "https://"+h.Addr+"/.well-known/mta-sts.txt", nil)
		req.RequestURI, req.Host = "", "mta-sts."+domain
		resp, err := client.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body), err
	}
	if code, body, err := get("example.com"); code != 200 || body != "version: STSv1\r\nmode: none\r\nmax_age: 60\r\n" {
		t.Errorf("%d %q %v", code, body, err)
	}
	if code, _, err := get("example.org"); code != 404 {
		t.Errorf("no policy: %d %v", code, err)
	}
	var invalid x509.CertificateInvalidError
	if _, _, err := get("example.net"); !errors.As(err, &invalid) {
		t.Errorf("expired: %v", err)
	}
	h.SetPolicy("example.com")
	if code, _, err := get("example.com"); code != 404 {
		t.Errorf("policy taken back: %d %v", code, err)
	}
	if got := strings.Join(h.Requests(), " "); got != "example.com example.org example.com" {
		t.Errorf("requests: %s", got)
	}
}

func TestSign(t *testing.T) {
	for name, newKey := range map[string]func(domain, selector string) (*Key, error){
		"RSA": NewRSAKey, "Ed25519": NewEd25519Key,
	} {
		t.Run(name, func(t *testing.T) {
			key, err := newKey("example.com", "s1")
			if err != nil {
				t.Fatal(err)
			}
			line, err := key.ZoneLine()
			if err != nil {
				t.Fatal(err)
			}
			dns, err := dnstest.Start("127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer dns.Close()
			dns.Add(line) // panics if it is not a record
			txt, err := key.TXT()
			if err != nil {
				t.Fatal(err)
			}
			if unquoted := strings.ReplaceAll(strings.ReplaceAll(line, `" "`, ""), `"`, ""); unquoted != "s1._domainkey.example.com. 300 IN TXT "+txt {
				t.Errorf("zone line %q does not hold %q", line, txt)
			}
			signed, err := key.Sign(Mail{From: "a@example.com", To: "b@example.org", Subject: "s", Body: "one\n\n two \n"}.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			results, err := dkim.VerifyWithOptions(bytes.NewReader(signed), &dkim.VerifyOptions{
				LookupTXT: func(name string) ([]string, error) {
					if name != "s1._domainkey.example.com" {
						t.Errorf("looked up %s", name)
					}
					return []string{txt}, nil
				},
			})
			if err != nil || len(results) != 1 || results[0].Err != nil || results[0].Domain != "example.com" {
				t.Errorf("%v %+v", err, results)
			}
		})
	}
}

func newCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}
