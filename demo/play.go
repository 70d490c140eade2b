package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/emersion/go-milter"

	"ruapost/internal/lab"
	"ruapost/socketmap"
)

// sample is a kind of message and how often it comes that day.
type sample struct {
	what     string
	times    int
	client   string
	helo     string
	mailFrom string
	from     string
	key      *lab.Key // signs it, unless nil
}

func (d *demo) playMail(w *world) error {
	samples := []sample{
		{"the shop's own, signed", 120, "192.0.2.10", "out.shop.example", "bounce@shop.example", "news@shop.example", w.shop},
		{"the shop's through a mailing list: SPF is the list's, the signature holds", 15, "198.51.100.7", "lists.example", "list@lists.example", "ann@shop.example", w.shop},
		{"forged in the shop's name", 40, "203.0.113.66", "dynamic-66.isp.example", "ann@shop.example", "ann@shop.example", nil},
		{"the club's, SPF alone", 30, "192.0.2.20", "mail.club.example", "info@club.example", "info@club.example", nil},
		{"the club's from a server that SPF does not know, signed", 5, "198.51.100.20", "new.club.example", "info@club.example", "info@club.example", w.club},
		{"a bounce of the club's, null sender", 2, "192.0.2.20", "mail.club.example", "", "mailer-daemon@club.example", nil},
		{"the bank's over IPv6, in U-labels", 9, "2001:db8::30", "mx.xn--bcherbank-q9a.example", "office@xn--bcherbank-q9a.example", "office@bücherbank.example", nil},
		{"from a name below the bank that does not exist", 11, "203.0.113.67", "dynamic-67.isp.example", "x@isp.example", "login@secure.bücherbank.example", nil},
		{"from a domain without DMARC", 8, "203.0.113.68", "mail.plain.example", "a@plain.example", "a@plain.example", nil},
	}
	for _, s := range samples {
		results, err := d.playSample(s)
		if err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
		d.printf("   %3d x %-75s %s\n", s.times, s.what, results)
	}
	d.printf("\n")
	return nil
}

// playSample sends the message as often as it comes, all in one SMTP session, and
// returns what the milter said about the last.
func (d *demo) playSample(s sample) (results string, err error) {
	msg := lab.Mail{From: s.from, To: "bob@receiver.example", Subject: s.what, Body: "Hello Bob.\r\n"}.Bytes()
	if s.key != nil {
		if msg, err = s.key.Sign(msg); err != nil {
			return "", err
		}
	}
	session, err := milter.NewClientWithOptions("unix", d.socket("milter"), milter.ClientOptions{
		ActionMask: milter.OptAddHeader | milter.OptChangeHeader,
	}).Session()
	if err != nil {
		return "", err
	}
	defer session.Close()
	family := milter.FamilyInet
	if strings.Contains(s.client, ":") {
		family = milter.FamilyInet6
	}
	if _, err := session.Conn("["+s.client+"]", family, 25000, s.client); err != nil {
		return "", err
	}
	if _, err := session.Helo(s.helo); err != nil {
		return "", err
	}
	for range s.times {
		if results, err = sendMessage(session, s.mailFrom, msg); err != nil {
			return "", err
		}
	}
	return results, nil
}

// sendMessage tells the milter of one message as Postfix does.
func sendMessage(session *milter.ClientSession, from string, msg []byte) (results string, err error) {
	if _, err := session.Mail(from, nil); err != nil {
		return "", err
	}
	if _, err := session.Rcpt("bob@receiver.example", nil); err != nil {
		return "", err
	}
	head, body, _ := bytes.Cut(msg, []byte("\r\n\r\n"))
	unfolded := strings.ReplaceAll(strings.ReplaceAll(string(head), "\r\n ", "\n "), "\r\n\t", "\n\t")
	for field := range strings.SplitSeq(unfolded, "\r\n") {
		name, value, _ := strings.Cut(field, ":")
		if _, err := session.HeaderField(name, value); err != nil {
			return "", err
		}
	}
	if _, err := session.HeaderEnd(); err != nil {
		return "", err
	}
	if _, err := session.BodyChunk(body); err != nil {
		return "", err
	}
	changes, action, err := session.End()
	if err != nil {
		return "", err
	}
	if action.Code != milter.ActContinue {
		return "", fmt.Errorf("the milter answered %q", action.Code)
	}
	for _, c := range changes {
		if c.Code == milter.ActInsertHeader {
			results = summary(c.HeaderValue)
		}
	}
	return results, session.Abort()
}

// summary keeps the results of an Authentication-Results field.
func summary(value string) string {
	var words []string
	for word := range strings.FieldsSeq(value) {
		if m, _, ok := strings.Cut(word, "="); ok && (m == "spf" || m == "dkim" || m == "dmarc") {
			words = append(words, strings.Trim(word, ";"))
		}
	}
	return strings.Join(words, " ")
}

func (d *demo) askPolicies(ctx context.Context) error {
	c, err := socketmap.Dial(ctx, "unix", d.socket("policy"))
	if err != nil {
		return err
	}
	defer c.Close()
	for _, key := range []string{"partner.example", "secure.example", "plain.example", ".example", "[192.0.2.1]:25"} {
		for _, table := range []string{"QUERY", "QUERYwithTLSRPT"} {
			reply, err := c.Query(table, key)
			if err != nil {
				return fmt.Errorf("query %s: %w", key, err)
			}
			d.printf("   %-15s %-16s %s\n", table, key, reply)
		}
	}
	d.printf("\n")
	return nil
}

// sendEvents tells of outbound sessions to partner.example in the form in which
// Postfix 3.10 does. The domain has moved from MTA-STS to DANE during that day, and
// some sessions came before it had either.
func (d *demo) sendEvents() error {
	const (
		head = `{"dpv": "1","d": "partner.example","pr": "v=TLSRPTv1; rua=mailto:tls@partner.example","policies":[{`
		sts  = `"policy-type":2,"policy-domain": "partner.example","policy-string":["version: STSv1","mode: enforce","mx: *.partner.example","max_age: 86400"],"mx-host":["*.partner.example"]`
		tlsa = `"policy-type":1,"policy-domain": "mx.partner.example","policy-string":["3 1 1 0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF"]`
		none = `"policy-type":9,"policy-domain": "partner.example"`
		ok   = `,"t":0,"f":0}]}`
	)
	failure := func(detail string) string {
		return `,"failure-details":[{` + detail + `,"s": "192.0.2.1","n": "mx.partner.example","h": "250-mx.partner.example\r\n250-PIPELINING\r\n250 STARTTLS","r": "192.0.2.40"}],"t":1,"f":1}]}`
	}
	events := []struct {
		times int
		what  string
		data  string
	}{
		{20, "no policy: fine", head + none + ok},
		{60, "MTA-STS: fine", head + sts + ok},
		{3, "MTA-STS: certificate expired", head + sts + failure(`"c":204`)},
		{1, "MTA-STS: handshake failed", head + sts + failure(`"c":205,"f": "tls-handshake-failure"`)},
		{80, "DANE: fine", head + tlsa + ok},
		{2, "DANE: no TLSA record matches", head + tlsa + failure(`"c":203`)},
		{1, "not a datagram of Postfix's, to be ignored", "GET / HTTP/1.1\r\n\r\n"},
	}
	conn, err := net.Dial("unixgram", d.socket("tlsrpt"))
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, e := range events {
		d.printf("   %3d x %s\n", e.times, e.what)
		for range e.times {
			if _, err := conn.Write([]byte(e.data)); err != nil {
				return err
			}
		}
	}
	d.printf("\n")
	return nil
}
