package container

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"

	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
)

// world is the Internet around the containers: sender.example sends mail from clientIP,
// sts.example has an MTA-STS policy, and both want reports. The sink takes the mail for
// sender.example and for the people of receiver.example, whom the sample serves.
type world struct {
	dns       *dnstest.Server
	sink, sts *lab.MX
}

const zone = `
. 300 IN NS ns.test.
sink.example. 300 IN A ` + sinkIP + `
sender.example. 300 IN MX 10 sink.example.
sender.example. 300 IN TXT "v=spf1 ip4:` + clientIP + ` -all"
_dmarc.sender.example. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@sender.example"
sts.example. 300 IN MX 10 mx.sts.example.
mx.sts.example. 300 IN A ` + stsIP + `
mta-sts.sts.example. 300 IN A ` + policyHostIP + `
_mta-sts.sts.example. 300 IN TXT "v=STSv1; id=1"
_smtp._tls.sts.example. 300 IN TXT "v=TLSRPTv1; rua=mailto:tls@sts.example"
`

func newWorld(t *testing.T, ca *lab.CA) *world {
	t.Helper()
	w := &world{}
	var err error
	if w.dns, err = dnstest.Start(nameServer); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.dns.Close)
	w.dns.Add(zone)
	policyHost, err := lab.StartPolicyHost(policyHostIP+":443", ca)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(policyHost.Close)
	policyHost.SetPolicy("sts.example", "version: STSv1", "mode: enforce", "mx: mx.sts.example", "max_age: 86400")
	certificate, err := ca.Issue("mx.sts.example")
	if err != nil {
		t.Fatal(err)
	}
	w.sink = startMX(t, lab.MXConfig{Name: "sink.example", Addr: sinkIP + ":25"})
	w.sts = startMX(t, lab.MXConfig{Name: "mx.sts.example", Addr: stsIP + ":25", Certificate: &certificate})
	return w
}

func startMX(t *testing.T, cfg lab.MXConfig) *lab.MX {
	t.Helper()
	mx, err := lab.StartMX(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mx.Close)
	return mx
}

// received waits until a server has taken n mails, and returns the last.
func received(t *testing.T, mx *lab.MX, n int) lab.Message {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), deadline)
	defer stop()
	mails, err := mx.Mailbox.Wait(ctx, n)
	if err != nil {
		t.Fatalf("%s: %v", mx.Name, err)
	}
	return mails[n-1]
}

// send sends a mail to the sample's Postfix.
func send(t *testing.T, client, from, to string) {
	t.Helper()
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(client), 0)), Timeout: deadline}
	conn, err := dialer.Dial("tcp", postfixIP+":25")
	if err != nil {
		t.Fatal(err)
	}
	c := smtp.NewClient(conn)
	defer c.Close()
	mail := lab.Mail{From: from, To: to, Subject: "Hello", Body: "Hello"}.Bytes()
	if err := c.SendMail(from, []string{to}, strings.NewReader(string(mail))); err != nil {
		t.Fatalf("mail from %s to %s: %v", from, to, err)
	}
}
