package e2e

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/mail"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	gocmp "github.com/google/go-cmp/cmp"

	"ruapost/internal/lab"
)

// trustedNetwork is where receiver.example's own hosts are: mail from there is
// not judged.
const trustedNetwork = "192.0.2.128/25"

// senders are the domains that mail claims to be from, with their DMARC records.
var senders = []struct {
	domain string
	dmarc  string // "" for no record
	// policy is what the report must say of it; sp and np that are not published
	// are what p or sp make them.
	policy dmarcPolicy
	// reports are the addresses that must get the report.
	reports []string
}{
	{
		domain: "dkim.example",
		// The collector takes reports about dkim.example, the third does not
		// (RFC 9990 4).
		dmarc: "v=DMARC1; p=reject; sp=quarantine; adkim=s; fo=1; " +
			"rua=mailto:dmarc@dkim.example,mailto:dkim@collector.example,mailto:dmarc@uninvited.example",
		policy:  dmarcPolicy{P: "reject", SP: "quarantine", NP: "quarantine", ADKIM: "s", ASPF: "r", FO: "1", Testing: "n"},
		reports: []string{"dmarc@dkim.example", "dkim@collector.example"},
	},
	{
		domain:  "spf.example",
		dmarc:   "v=DMARC1; p=none; rua=mailto:dmarc@spf.example",
		policy:  dmarcPolicy{P: "none", SP: "none", NP: "none", ADKIM: "r", ASPF: "r", FO: "0", Testing: "n"},
		reports: []string{"dmarc@spf.example"},
	},
	{
		domain:  "reject.example",
		dmarc:   "v=DMARC1; p=reject; rua=mailto:dmarc@reject.example",
		policy:  dmarcPolicy{P: "reject", SP: "reject", NP: "reject", ADKIM: "r", ASPF: "r", FO: "0", Testing: "n"},
		reports: []string{"dmarc@reject.example"},
	},
	{
		domain:  "tree.example",
		dmarc:   "v=DMARC1; p=none; sp=quarantine; np=reject; rua=mailto:dmarc@tree.example",
		policy:  dmarcPolicy{P: "none", SP: "quarantine", NP: "reject", ADKIM: "r", ASPF: "r", FO: "0", Testing: "n"},
		reports: []string{"dmarc@tree.example"},
	},
	{
		domain:  "bounce.example",
		dmarc:   "v=DMARC1; p=quarantine; rua=mailto:dmarc@bounce.example",
		policy:  dmarcPolicy{P: "quarantine", SP: "quarantine", NP: "quarantine", ADKIM: "r", ASPF: "r", FO: "0", Testing: "n"},
		reports: []string{"dmarc@bounce.example"},
	},
	{domain: "silent.example", dmarc: "v=DMARC1; p=reject"}, // wants no reports
	{domain: "unpublished.example"},
}

// sendersZone is the rest of what the senders have in the DNS.
const sendersZone = `
dkim.example._report._dmarc.collector.example. 300 IN TXT "v=DMARC1"
esp.example. 300 IN TXT "v=spf1 ip4:198.51.100.10 -all"
reject.example. 300 IN TXT "v=spf1 -all"
news.spf.example. 300 IN TXT "v=spf1 ip4:198.51.100.20 ip6:2001:db8::20 -all"
mail.tree.example. 300 IN A 198.51.100.10
mail.bounce.example. 300 IN TXT "v=spf1 ip4:198.51.100.30 -all"
`

// session is an SMTP session with the mails that are sent in it.
type session struct {
	from  string // the client's address
	hello string
	login string // who has logged in, "" for nobody
	mails []sample
}

// sample is a mail from outside.
type sample struct {
	name     string // its subject
	mailFrom string
	from     string // the address in From
	fields   []string
	flood    bool     // fields are so many that some of them stay
	body     string   // "" for the usual one
	sign     []string // signing domains, the last signature on top
	tamper   bool     // the body is changed behind the signatures
	// file is in testdata and has the whole mail; name is its subject.
	file    string
	options *smtp.MailOptions
	// rcpts are the recipients; those in refusedRecipients must be refused. nil
	// means alice alone.
	rcpts []string

	// dmarc is the result in Authentication-Results, "" if the mail must not have
	// been judged.
	dmarc string
	// upstream are the authserv-ids of fields below ours that other milters have left.
	upstream []string
	// policyDomain is the domain whose report must have the row, "" if it must be
	// in no report.
	policyDomain string
	row          row
}

var refusedRecipients = map[string]bool{
	"nobody@receiver.example": true, // not there
	"alice@other.example":     true, // not ours
}

const (
	allReceivers = "receiver.example" // the envelope_to of every mail
	selector     = "sel1"             // the DKIM selector of every sender
)

var inboundSessions = []session{
	{
		from: "198.51.100.10", hello: "mta.esp.example",
		mails: []sample{
			alignedDKIM("aligned DKIM"),
			{
				name: "another author in the same session", mailFrom: "bounces@esp.example", from: "ceo@reject.example",
				dmarc: "fail", policyDomain: "reject.example",
				row: row{
					disposition: "none", reason: "local_policy", dkim: "fail", spf: "fail",
					headerFrom: "reject.example", envelopeFrom: "esp.example", authSPF: "esp.example=pass",
				},
			},
			alignedDKIM("aligned DKIM again"),
			{
				name: "DKIM of a subdomain under adkim=s", mailFrom: "bounces@esp.example", from: "a@dkim.example",
				sign:  []string{"sub.dkim.example"},
				dmarc: "fail", policyDomain: "dkim.example",
				row: row{
					disposition: "none", reason: "local_policy", dkim: "fail", spf: "fail",
					headerFrom: "dkim.example", envelopeFrom: "esp.example",
					authDKIM: "sub.dkim.example/sel1=pass", authSPF: "esp.example=pass",
				},
			},
			{
				// forged.example's key is not the one in the DNS.
				name: "one good signature of two", mailFrom: "bounces@esp.example", from: "a@mail.tree.example",
				sign:  []string{"tree.example", "forged.example"},
				dmarc: "pass", policyDomain: "tree.example",
				row: row{
					disposition: "pass", dkim: "pass", spf: "fail",
					headerFrom: "mail.tree.example", envelopeFrom: "esp.example",
					authDKIM: "forged.example/sel1=fail tree.example/sel1=pass", authSPF: "esp.example=pass",
				},
			},
			{
				name: "a subdomain that does not exist", mailFrom: "bounces@esp.example", from: "a@nosuch.tree.example",
				dmarc: "fail", policyDomain: "tree.example",
				row: row{
					disposition: "none", reason: "local_policy", dkim: "fail", spf: "fail",
					headerFrom: "nosuch.tree.example", envelopeFrom: "esp.example", authSPF: "esp.example=pass",
				},
			},
			{name: "no reports wanted", mailFrom: "bounces@esp.example", from: "a@silent.example", dmarc: "fail"},
			{name: "no policy", mailFrom: "bounces@esp.example", from: "a@unpublished.example", dmarc: "none"},
		},
	},
	{
		from: "198.51.100.20", hello: "mx.spf.example",
		mails: []sample{{
			name: "SPF alone, rejected recipients between good ones", mailFrom: "list@news.spf.example", from: "editor@spf.example",
			rcpts: []string{"alice@receiver.example", "nobody@receiver.example", "alice@other.example", "bob@receiver.example"},
			dmarc: "pass", policyDomain: "spf.example",
			row: row{
				disposition: "none", dkim: "fail", spf: "pass",
				headerFrom: "spf.example", envelopeFrom: "news.spf.example", authSPF: "news.spf.example=pass",
			},
		}},
	},
	{
		from: "2001:db8::20", hello: "mx.spf.example",
		mails: []sample{{
			name: "SPF alone over IPv6", mailFrom: "list@news.spf.example", from: "editor@spf.example",
			dmarc: "pass", policyDomain: "spf.example",
			row: row{
				disposition: "none", dkim: "fail", spf: "pass",
				headerFrom: "spf.example", envelopeFrom: "news.spf.example", authSPF: "news.spf.example=pass",
			},
		}},
	},
	{
		from: "198.51.100.66", hello: "friendly.example",
		mails: []sample{{
			name: "forged", mailFrom: "ceo@reject.example", from: "ceo@reject.example",
			fields: []string{
				"Authentication-Results: " + authservID + "; dmarc=pass header.from=reject.example",
				"authentication-results: MAIL.receiver.example (forged) 1; spf=pass",
				"Authentication-Results: elsewhere.example; none",
			},
			dmarc: "fail", policyDomain: "reject.example",
			row: row{
				disposition: "none", reason: "local_policy", dkim: "fail", spf: "fail",
				headerFrom: "reject.example", envelopeFrom: "reject.example", authSPF: "reject.example=fail",
			},
		}, {
			// To remove them all would crash cleanup(8), and with it other mail.
			name: "10,500 forged results", mailFrom: "ceo@reject.example", from: "ceo@reject.example",
			fields: slices.Repeat([]string{"Authentication-Results:;"}, 10_500), flood: true,
			dmarc: "fail", policyDomain: "reject.example",
			row: row{
				disposition: "none", reason: "local_policy", dkim: "fail", spf: "fail",
				headerFrom: "reject.example", envelopeFrom: "reject.example", authSPF: "reject.example=fail",
			},
		}},
	},
	{
		from: "198.51.100.30", hello: "mail.bounce.example",
		mails: []sample{{
			name: "null reverse-path", mailFrom: "", from: "postmaster@bounce.example",
			dmarc: "pass", policyDomain: "bounce.example",
			row: row{
				disposition: "pass", dkim: "fail", spf: "pass",
				headerFrom: "bounce.example", authSPF: "mail.bounce.example=pass",
			},
		}},
	},
	{
		from: "192.0.2.200", hello: "desk.receiver.example",
		mails: []sample{{name: "from a trusted network", mailFrom: "ceo@reject.example", from: "ceo@reject.example"}},
	},
	{
		from: frontEnd, hello: "laptop.example", login: "alice",
		mails: []sample{{name: "from somebody who logged in", mailFrom: "ceo@reject.example", from: "ceo@reject.example"}},
	},
}

func alignedDKIM(name string) sample {
	return sample{
		name: name, mailFrom: "bounces@esp.example", from: "news@dkim.example",
		sign:  []string{"dkim.example"},
		dmarc: "pass", policyDomain: "dkim.example",
		row: row{
			disposition: "pass", dkim: "pass", spf: "fail",
			headerFrom: "dkim.example", envelopeFrom: "esp.example",
			authDKIM: "dkim.example/sel1=pass", authSPF: "esp.example=pass",
		},
	}
}

// TestInbound sends mail to Postfix from all over the world and wants the DMARC
// reports that go out to tell of each one.
func TestInbound(t *testing.T) { eachVersion(t, versions, testInbound) }

func testInbound(t *testing.T, v version) {
	w := newWorld(t)
	keys := w.addSenders()
	p := newPostfix(t, v)
	r := install(t, w, p)
	r.startMilter()
	r.startTLSPolicy()
	p.start()

	when := span{first: time.Now().UTC()}
	mails := 0
	for _, s := range inboundSessions {
		c := connect(t, netip.MustParseAddr(s.from), s.hello, s.login)
		for _, m := range s.mails {
			if err := c.send(m.mailFrom, m.recipients(), refusedRecipients, m.bytes(t, keys)); err != nil {
				t.Errorf("%s: %v", m.name, err)
			}
			mails++
		}
		c.quit()
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	delivered, err := w.sink.Mailbox.Wait(ctx, mails)
	if err != nil {
		t.Fatal(err)
	}
	when.last = time.Now().UTC()
	checkDelivered(t, delivered)

	plan := r.report("send", "--dry-run", "--now")
	for _, s := range senders {
		if (s.reports != nil) != strings.Contains(plan, s.domain) {
			t.Errorf("send --dry-run does not say that there is a report about %s, or says so wrongly:\n%s", s.domain, plan)
		}
	}
	r.report(sendNow...)
	when.reported = time.Now().UTC()
	if deferred := p.settle(); len(deferred) > 0 {
		t.Errorf("reports not delivered: %+v", deferred)
	}
	reports := w.reportMails(w.sink.Mailbox.Messages())
	checkDMARC(t, reports, when)

	r.report(sendNow...)
	p.settle()
	if again := w.reportMails(w.sink.Mailbox.Messages()); len(again) > len(reports) {
		t.Errorf("a second run of the reporter sent %v", recipients(again[len(reports):]))
	}
}

// addSenders publishes the senders and returns their DKIM keys.
func (w *world) addSenders() map[string]*lab.Key {
	w.t.Helper()
	w.dns.Add(sendersZone)
	w.receives("collector.example", "uninvited.example")
	for _, s := range senders {
		w.receives(s.domain)
		if s.dmarc != "" {
			w.dns.Add(fmt.Sprintf("_dmarc.%s. 300 IN TXT %q", s.domain, s.dmarc))
		}
	}
	keys := map[string]*lab.Key{}
	for _, domain := range []string{"dkim.example", "sub.dkim.example", "tree.example", "forged.example"} {
		key, published := w.newKey(domain), w.newKey(domain)
		if domain != "forged.example" {
			published = key
		}
		line, err := published.ZoneLine()
		if err != nil {
			w.t.Fatal(err)
		}
		w.dns.Add(line)
		keys[domain] = key
	}
	return keys
}

func (w *world) newKey(domain string) *lab.Key {
	w.t.Helper()
	key, err := lab.NewEd25519Key(domain, selector)
	if err != nil {
		w.t.Fatal(err)
	}
	return key
}

func (m *sample) recipients() []string {
	if m.rcpts == nil {
		return []string{"alice@receiver.example"}
	}
	return m.rcpts
}

func (m *sample) bytes(t *testing.T, keys map[string]*lab.Key) []byte {
	t.Helper()
	if m.file != "" {
		data, err := os.ReadFile(filepath.Join("testdata", m.file))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	data := lab.Mail{
		From:    "Somebody <" + m.from + ">",
		To:      "alice@receiver.example",
		Subject: m.name,
		Fields:  m.fields,
		Body:    cmp.Or(m.body, "Hello,\n\n  trailing blanks and empty lines   \n.dots\n\n\n"),
	}.Bytes()
	for _, domain := range m.sign {
		var err error
		if data, err = keys[domain].Sign(data); err != nil {
			t.Fatal(err)
		}
	}
	if m.tamper {
		data = append(data, "P.S.\r\n"...)
	}
	return data
}

// checkDelivered compares the mails as the people of receiver.example get them.
func checkDelivered(t *testing.T, delivered []lab.Message) {
	t.Helper()
	arrived := bySubject(t, delivered)
	for _, s := range inboundSessions {
		for _, m := range s.mails {
			msg := arrived[m.name]
			if msg == nil {
				t.Errorf("%s: not delivered", m.name)
				continue
			}
			checkAuthResults(t, m, msg.Header["Authentication-Results"])
		}
	}
}

func bySubject(t *testing.T, delivered []lab.Message) map[string]*mail.Message {
	t.Helper()
	messages := map[string]*mail.Message{}
	for _, d := range delivered {
		msg, err := mail.ReadMessage(bytes.NewReader(d.Data))
		if err != nil {
			t.Fatal(err)
		}
		messages[msg.Header.Get("Subject")] = msg
	}
	return messages
}

// checkAuthResults wants one field of ours, on top, with the result, and of those
// that the sender put there only the ones that do not claim to be ours.
func checkAuthResults(t *testing.T, m sample, fields []string) {
	t.Helper()
	var want []string
	if m.dmarc != "" {
		want = append(want, authservID+" dmarc="+m.dmarc)
	}
	for _, id := range m.upstream {
		want = append(want, id+" no dmarc result")
	}
	for _, f := range m.fields {
		if name, value, _ := strings.Cut(f, ": "); strings.HasPrefix(value, "elsewhere.example;") {
			want = append(want, name+" untouched")
		}
	}
	if m.flood && len(fields) > 0 {
		fields = fields[:1]
	}
	var got []string
	for _, f := range fields {
		if strings.HasPrefix(strings.TrimSpace(f), "elsewhere.example;") {
			got = append(got, "Authentication-Results untouched")
		} else {
			got = append(got, authservIDAnd("dmarc", f))
		}
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("%s: Authentication-Results (-want +got):\n%s\nin %q", m.name, diff, fields)
	}
}

// authservIDAnd returns the authserv-id and the first result of the method in an
// Authentication-Results field.
func authservIDAnd(method, field string) string {
	id, results, _ := strings.Cut(field, ";")
	result := "no " + method + " result"
	for word := range strings.FieldsSeq(results) {
		if strings.HasPrefix(word, method+"=") {
			result = strings.TrimSuffix(word, ";")
			break
		}
	}
	return strings.TrimSpace(id) + " " + result
}

// checkDMARC compares the reports with the mails that were sent.
func checkDMARC(t *testing.T, reports []*reportMail, when span) {
	t.Helper()
	want := map[string]*dmarcContent{}
	var wantRecipients []string
	for _, s := range senders {
		for _, to := range s.reports {
			wantRecipients = append(wantRecipients, to+" "+s.domain)
		}
		if s.reports != nil {
			policy := s.policy
			policy.Domain, policy.Discovery = s.domain, "treewalk"
			want[s.domain] = &dmarcContent{policy: policy, rows: map[row]int{}}
		}
	}
	for _, s := range inboundSessions {
		for _, m := range s.mails {
			if m.policyDomain != "" {
				r := m.row
				r.sourceIP, r.envelopeTo = s.from, allReceivers
				want[m.policyDomain].rows[r]++
			}
		}
	}
	slices.Sort(wantRecipients)
	if diff := gocmp.Diff(wantRecipients, recipients(reports)); diff != "" {
		t.Errorf("recipients of reports (-want +got):\n%s", diff)
	}
	all := gocmp.AllowUnexported(dmarcContent{}, row{}, unknown{}, dmarcPolicy{})
	if diff := gocmp.Diff(want, dmarcContents(t, reports, when), all); diff != "" {
		t.Errorf("reports (-want +got):\n%s", diff)
	}
	for _, r := range reports {
		if !strings.Contains(r.text, r.domain) {
			t.Errorf("report about %s to %s: the text for people does not name the domain: %q", r.domain, r.to, r.text)
		}
		if mediaType := r.header.Get("Content-Type"); !strings.HasPrefix(mediaType, "multipart/mixed;") {
			t.Errorf("report about %s: Content-Type: %q", r.domain, mediaType)
		}
	}
}
