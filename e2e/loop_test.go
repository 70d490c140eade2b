package e2e

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/mail"
	"os/exec"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"ruapost/internal/lab"
)

// The other side of TestLoop.
const (
	peerDomain = "peer.example"
	peerIPv4   = "192.0.2.26"
)

// TestLoop has two hosts with these programs, one with Postfix 3.7 and one with 3.10,
// exchange a mail and then nothing but their reports, which both ask for. Reports must
// not be answered by reports for ever (RFC 9990 3.5.2, RFC 8460 5.3): the DMARC report
// about the ordinary mail is the last one, and the TLS report that the session which
// brought it still causes.
//
// With bounce_maildir each report has an envelope sender of its own.
func TestLoop(t *testing.T) {
	for name, reporter := range map[string]string{
		"one envelope sender":   "",
		"many envelope senders": "[reporter]\nbounce_maildir = \"/var/lib/ruapost/bounces\"\n",
	} {
		t.Run(name, func(t *testing.T) { testLoop(t, reporter) })
	}
}

func testLoop(t *testing.T, reporter string) {
	w := newWorld(t)
	if out, err := exec.Command("ip", "addr", "add", peerIPv4+"/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("ip", "addr", "del", peerIPv4+"/32", "dev", "lo").Run() })
	here := newSide(t, w, versions[0], reportDomain, postfixIPv4, reporter)
	there := newSide(t, w, versions[1], peerDomain, peerIPv4, reporter)
	sides := []*side{here, there}
	for _, s := range sides {
		w.dns.Add(s.key) // install makes receiver.example's anew each time
	}

	here.write(there)
	there.write(here)
	settle(sides)
	for day, want := range [][]string{
		{
			"dmarc report of peer.example to dmarc@receiver.example",
			"dmarc report of receiver.example to dmarc@peer.example",
			"tls report of peer.example to tls@receiver.example",
			"tls report of receiver.example to tls@peer.example",
		},
		// About the session of the DMARC report, which Postfix 3.10 tells of like of any
		// other; in the log, deliveries of reports are passed over.
		{"tls report of peer.example to tls@receiver.example"},
		nil, nil, nil,
	} {
		before := len(w.sink.Mailbox.Messages())
		for _, s := range sides {
			s.logRead()
			s.tlspolicy.stop() // what it has been told by now is in the store then
			s.tlspolicy = s.startTLSPolicy()
		}
		for _, s := range sides {
			s.report(sendNow...)
		}
		settle(sides)
		if diff := gocmp.Diff(want, reportsAmong(t, w.sink.Mailbox.Messages()[before:])); diff != "" {
			t.Errorf("day %d (-want +got):\n%s", day+1, diff)
		}
	}
}

// side is an installation of a domain of its own.
type side struct {
	*installation
	domain    string
	key       string // the DKIM key as a line of a zone file
	tlspolicy *daemon
}

// newSide installs the programs for a domain beside a Postfix at the address, with more
// lines of the configuration, and starts all of it.
func newSide(t *testing.T, w *world, v version, domain, ip, reporter string) *side {
	t.Helper()
	p := newPostfix(t, v)
	s := &side{installation: install(t, w, p), domain: domain}
	mine := strings.NewReplacer(reportDomain, domain, ", "+postfixIPv6, "", postfixIPv4, ip,
		"inet_protocols = all", "inet_protocols = ipv4", "{alice=x,", "{dmarc=x, tls=x, alice=x,")
	p.configure(mine.Replace(baseMainCf+s.mainCf()) + "\nsmtpd_tls_security_level = may\nsmtpd_tls_chain_files = /etc/postfix/chain.pem\n")
	p.write("etc/postfix/chain.pem", certificate(t, w, "mail."+domain))
	p.write("etc/ruapost/ruapost.toml", mine.Replace(baseConfiguration)+reporter+s.tlsPolicySection())
	s.sign(w)
	w.dns.Add(fmt.Sprintf(`
		%[1]s. 300 IN MX 10 mail.%[1]s.
		mail.%[1]s. 300 IN A %[2]s
		%[1]s. 300 IN TXT "v=spf1 ip4:%[2]s -all"
		_dmarc.%[1]s. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@%[1]s"
		_smtp._tls.%[1]s. 300 IN TXT "v=TLSRPTv1; rua=mailto:tls@%[1]s"`, domain, ip))
	s.startMilter()
	s.tlspolicy = s.startTLSPolicy()
	p.startAt(ip)
	return s
}

// startAt runs the mail system, which listens at the address.
func (p *postfix) startAt(ip string) {
	p.t.Helper()
	if ip == postfixIPv4 {
		p.start()
		return
	}
	p.t.Cleanup(p.stop)
	p.run(nil, "postfix", "start")
	eventually(p.t, "smtpd answers", func() bool {
		c, err := net.Dial("tcp", net.JoinHostPort(ip, "25"))
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

// sign makes the DKIM key of the domain.
func (s *side) sign(w *world) {
	s.t.Helper()
	w.dns.Remove(dkimSelector + "._domainkey." + reportDomain)
	key, err := lab.NewRSAKey(s.domain, dkimSelector)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.key, err = key.ZoneLine(); err != nil {
		s.t.Fatal(err)
	}
	text, err := key.PEM()
	if err != nil {
		s.t.Fatal(err)
	}
	s.postfix.write("etc/ruapost/dkim.pem", string(text))
}

// certificate returns a key and a certificate for the name as Postfix wants them.
func certificate(t *testing.T, w *world, name string) string {
	t.Helper()
	cert, err := w.ca.Issue(name)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	for _, der := range cert.Certificate {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return string(text)
}

// write sends an ordinary mail to the other side.
func (s *side) write(other *side) {
	s.t.Helper()
	from, to := "alice@"+s.domain, "bob@"+other.domain
	s.postfix.submit(from, []string{to}, lab.Mail{From: from, To: to, Subject: "Hello", Body: "Hello."}.Bytes())
}

// settle waits until all mail is delivered. What one side sends the other then has.
func settle(sides []*side) {
	for range 2 {
		for _, s := range sides {
			for _, q := range s.postfix.settle() {
				s.t.Errorf("%s: not delivered: %+v", s.domain, q)
			}
		}
	}
}

// reportsAmong returns the reports among the mails in words.
func reportsAmong(t *testing.T, messages []lab.Message) []string {
	t.Helper()
	var all []string
	for _, m := range messages {
		msg, err := mail.ReadMessage(bytes.NewReader(m.Data))
		if err != nil {
			t.Fatal(err)
		}
		results := strings.Join(strings.Fields(msg.Header.Get("Authentication-Results")), " ")
		if !strings.Contains(results, "dkim=pass") || !strings.Contains(results, "dmarc=pass") {
			t.Errorf("the other side's judgement: %s", results)
		}
		kind := "dmarc"
		if msg.Header.Get("TLS-Report-Domain") != "" {
			kind = "tls"
		}
		_, of, _ := strings.Cut(m.From, "@")
		all = append(all, fmt.Sprintf("%s report of %s to %s", kind, of, strings.Join(m.To, " ")))
	}
	slices.Sort(all)
	return all
}
