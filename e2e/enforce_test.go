package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"net/mail"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	gocmp "github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"

	"ruapost/internal/lab"
)

// phase is a configuration of the milter, with mails that come in one SMTP session
// under it.
type phase struct {
	name   string
	milter string // lines of the section [milter] and sections behind it
	broken bool   // the name server fails for what is in brokenNames
	mails  []treated
}

// treated is a mail from mta.esp.example with what must become of it.
type treated struct {
	sample
	reply     string // how the refusal begins, "" if the mail is accepted
	held      bool   // it waits in Postfix's hold queue
	marked    bool   // it has the field that marks what fails
	discarded bool   // by main.cf: the sink cannot take it
}

const espIP = "198.51.100.10"

// enforceZone is what the mails need beside the senders of TestInbound.
const enforceZone = `
_dmarc.esp.example. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@esp.example"
_dmarc.xn--bcher-kva.example. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@xn--bcher-kva.example"
_dmarc.author.example. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@author.example"
_dmarc.temp.example. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@temp.example"
_dmarc.stranger.example. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@stranger.example"
`

// brokenNames are those of temp.example's SPF record and of another domain's policy.
var brokenNames = []string{"temp.example", "_dmarc.unanswered.example"}

// fails is a mail that fails DMARC, as it is aligned with nothing.
func fails(name, author string) sample {
	return sample{
		name: name, mailFrom: "bounces@esp.example", from: "a@" + author, dmarc: "fail",
		row: row{dkim: "fail", spf: "fail", headerFrom: author, envelopeFrom: "esp.example", authSPF: "esp.example=pass"},
	}
}

// under is what the report about domain must say that was done with m, and the type
// of the reason for that.
func (m sample) under(domain, disposition, reason string) sample {
	m.policyDomain, m.row.disposition, m.row.reason = domain, disposition, reason
	return m
}

// fromAuthor is the same mail by another author, who is in domain, signed by signer,
// which has the policy.
func (m sample) fromAuthor(author, domain, signer string) sample {
	m.from, m.row.headerFrom = author, domain
	m.policyDomain, m.sign, m.row.authDKIM = signer, []string{signer}, signer+"/sel1=pass"
	return m
}

// fromList is a post of author.example to a mailing list, which has changed Subject
// and body, so that the signature is broken, and sealed the message (RFC 8617): when
// it came to the list, it passed DMARC. It was signed and sealed by dkimpy 1.1.4.
func fromList() sample {
	m := fails("[cake] Tuesday", "author.example")
	m.file, m.mailFrom, m.policyDomain = "list.eml", "cake-bounces@list.example", "author.example"
	m.row.envelopeFrom, m.row.authDKIM, m.row.authSPF = "list.example", "author.example/sel1=fail", "list.example=none"
	return m
}

// fromTemp is a mail that nobody can judge while the name server fails for
// temp.example, because that is what has its SPF record.
func fromTemp() sample {
	return sample{
		name: "SPF cannot be checked", mailFrom: "a@temp.example", from: "a@temp.example", dmarc: "temperror",
		row: row{dkim: "fail", spf: "fail", headerFrom: "temp.example", envelopeFrom: "temp.example", authSPF: "temp.example=temperror"},
	}
}

// fromUnanswered is a mail whose author's policy, if there is one, cannot be found.
func fromUnanswered() sample {
	m := fails("policy cannot be found", "unanswered.example")
	m.dmarc = "temperror"
	return m
}

var enforcePhases = []phase{
	{
		name:   "reject, a session of mails that take turns in passing",
		milter: reportAll + `enforce = "reject"`, broken: true,
		mails: []treated{
			{sample: alignedDKIM("passes under reject")},
			{sample: fails("fails under reject", "reject.example").under("reject.example", "reject", ""), reply: "550 5.7.1"},
			{sample: alignedDKIM("DKIM of another domain").fromAuthor("a@mail.tree.example", "mail.tree.example", "tree.example")},
			{sample: fails("fails under quarantine", "bounce.example").under("bounce.example", "quarantine", ""), held: true},
			{sample: sample{
				name: "SPF alone passes", mailFrom: "bounces@esp.example", from: "a@esp.example", dmarc: "pass", policyDomain: "esp.example",
				row: row{
					disposition: "pass", dkim: "fail", spf: "pass",
					headerFrom: "esp.example", envelopeFrom: "esp.example", authSPF: "esp.example=pass",
				},
			}},
			{sample: fails("fails under np=reject", "nosuch.tree.example").under("tree.example", "reject", ""), reply: "550 5.7.1"},
			{sample: eightBit()},
			{sample: fails("fails under none", "spf.example").under("spf.example", "none", "")},
			{sample: internationalized(), discarded: true},
			{sample: fails("fails, no reports wanted", "silent.example"), reply: "550 5.7.1"},
			{sample: alignedDKIM("passes again")},
			{sample: fromList().under("author.example", "reject", ""), reply: "550 5.7.1"},
			{sample: fromTemp().under("temp.example", "none", "local_policy")},
			{sample: fromUnanswered()},
		},
	},
	{
		name: "quarantine, temporary errors deferred",
		milter: reportAll + `enforce = "quarantine"
			temperror = "defer"`, broken: true,
		mails: []treated{
			{sample: fails("fails under reject", "reject.example").under("reject.example", "quarantine", "local_policy"), held: true},
			{sample: alignedDKIM("passes")},
			{sample: fails("fails under quarantine", "bounce.example").under("bounce.example", "quarantine", ""), held: true},
			{sample: fromTemp(), reply: "451 4.7.1"},
			{sample: fromUnanswered(), reply: "451 4.7.1"},
		},
	},
	{
		name: "quarantine by a field, a trusted sealer",
		milter: reportAll + `enforce = "reject"
			quarantine = "header"
			trusted_sealers = ["list.example"]`,
		mails: []treated{
			{sample: fails("fails under quarantine", "bounce.example").under("bounce.example", "quarantine", ""), marked: true},
			{sample: alignedDKIM("passes")},
			{sample: fromList().under("author.example", "none", "local_policy")},
			{sample: fails("no chain", "author.example").under("author.example", "reject", ""), reply: "550 5.7.1"},
		},
	},
	{
		name: "an exception for a list",
		milter: reportAll + `enforce = "reject"
			[[override]]
			list_id = ["cake.list.example"]
			source = ["0.0.0.0/0", "::/0"]
			type = "mailing_list"
			comment = "we like cake"`,
		mails: []treated{
			{sample: fromList().under("author.example", "none", "mailing_list")},
			{sample: fails("no list", "author.example").under("author.example", "reject", ""), reply: "550 5.7.1"},
		},
	},
}

// enforceReasons are all reasons with comments that the reports must have.
var enforceReasons = []string{
	"local_policy arc=pass as[1].d=list.example as[1].s=arc1 remote-ip[1]=192.0.2.1",
	"local_policy no verdict: temperror",
	"local_policy quarantined instead of rejected",
	"mailing_list we like cake",
}

// eightBit is a mail whose body Postfix must be told to leave as it is.
func eightBit() sample {
	m := alignedDKIM("8BITMIME")
	m.fields = []string{"MIME-Version: 1.0", "Content-Type: text/plain; charset=iso-8859-1", "Content-Transfer-Encoding: 8bit"}
	m.body, m.options = "Gr\xfc\xdfe\n", &smtp.MailOptions{Body: smtp.Body8BitMIME}
	return m
}

// internationalized is a mail (RFC 6531, RFC 6532) whose author domain is in U-labels
// where the DNS, DKIM and reports have A-labels.
func internationalized() sample {
	const author, domain = "jürgen@bücher.example", "xn--bcher-kva.example"
	m := alignedDKIM("SMTPUTF8: schöne Grüße").fromAuthor(author, domain, domain)
	m.mailFrom, m.row.envelopeFrom, m.row.authSPF = author, domain, domain+"=none"
	m.rcpts, m.options = []string{"bob@receiver.example"}, &smtp.MailOptions{Body: smtp.Body8BitMIME, UTF8: true}
	return m
}

// TestEnforce has mail come in that is rejected, deferred, quarantined or let through,
// and wants the reports to say so.
func TestEnforce(t *testing.T) { eachVersion(t, versions, testEnforce) }

func testEnforce(t *testing.T, v version) {
	s := newSite(t, v)
	listKeys, err := os.ReadFile("testdata/list.zone")
	if err != nil {
		t.Fatal(err)
	}
	s.w.dns.Add(enforceZone + string(listKeys))
	s.w.receives("esp.example", "xn--bcher-kva.example", "author.example", "temp.example", "stranger.example")
	s.addKey("xn--bcher-kva.example")
	s.addKey("stranger.example")
	s.p.configure(s.p.read("etc/postfix/main.cf") + "transport_maps = inline:{bob@receiver.example=discard:}\n")

	for _, ph := range enforcePhases {
		s.run(ph)
	}
	reports, when := s.report()
	checkRows(t, enforcePhases, reports, when)
	if diff := gocmp.Diff(enforceReasons, reasons(t, reports, when)); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}

	// Failing mail of a domain that was never seen to pass is no reason for a report,
	// but belongs to one (docs/inbound.md, What is recorded).
	stranger := func(m sample) phase {
		return phase{name: "stranger.example, " + m.dmarc, mails: []treated{{sample: m}}}
	}
	forged := stranger(fails("forged", "stranger.example").under("stranger.example", "none", "local_policy"))
	s.run(forged)
	if reports, _ := s.report(); len(reports) > 0 {
		t.Errorf("reports about unknown domains: %v", recipients(reports))
	}
	genuine := stranger(alignedDKIM("genuine").fromAuthor("a@stranger.example", "stranger.example", "stranger.example"))
	s.run(genuine)
	s.run(forged)
	reports, when = s.report()
	checkRows(t, []phase{forged, genuine, forged}, reports, when) // the first were kept: the day was not over
}

// site is a Postfix with the programs, and the world with the senders around it.
type site struct {
	w      *world
	p      *postfix
	r      *installation
	keys   map[string]*lab.Key
	milter *daemon // nil before the first phase
	// first is when the time of the next report began.
	first time.Time

	t *testing.T
}

func newSite(t *testing.T, v version) *site {
	t.Helper()
	s := &site{w: newWorld(t), p: newPostfix(t, v), t: t, first: time.Now().UTC()}
	s.keys = s.w.addSenders()
	s.r = install(t, s.w, s.p)
	s.r.startTLSPolicy()
	return s
}

// addKey makes and publishes a DKIM key of a domain.
func (s *site) addKey(domain string) {
	s.t.Helper()
	s.keys[domain] = s.w.newKey(domain)
	line, err := s.keys[domain].ZoneLine()
	if err != nil {
		s.t.Fatal(err)
	}
	s.w.dns.Add(line)
}

// start starts the milter with a configuration, and Postfix if it does not run.
func (s *site) start(milter string) {
	s.t.Helper()
	first := s.milter == nil
	if !first {
		s.milter.stop()
	}
	s.r.configure(milter)
	s.milter = s.r.startMilter()
	if first {
		s.p.start()
	}
}

// run has the mails of a phase come in and checks what becomes of each. What is held
// is released in the end.
func (s *site) run(ph phase) {
	s.t.Helper()
	s.start(ph.milter)
	if ph.broken {
		for _, name := range brokenNames {
			s.w.dns.SetRcode(name, mdns.RcodeServerFailure)
			defer s.w.dns.SetRcode(name, mdns.RcodeSuccess)
		}
	}
	before := len(s.w.sink.Mailbox.Messages())
	c := connect(s.t, netip.MustParseAddr(espIP), "mta.esp.example", "")
	for _, m := range ph.mails {
		c.options = m.options
		m.checkReply(s.t, c.send(m.mailFrom, m.recipients(), nil, m.bytes(s.t, s.keys)))
	}
	c.quit()

	held := ph.count(func(m treated) bool { return m.held })
	eventually(s.t, fmt.Sprintf("%s: %d mails are held and no other waits", ph.name, held), func() bool {
		waiting := s.p.waiting()
		return len(waiting) == held && !slices.ContainsFunc(waiting, func(q queued) bool { return q.Queue != "hold" })
	})
	arrived := bySubject(s.t, s.w.sink.Mailbox.Messages()[before:])
	if held > 0 {
		s.p.run(nil, "postsuper", "-H", "ALL")
		s.p.run(nil, "postqueue", "-f")
		eventually(s.t, ph.name+": nothing waits", func() bool { return len(s.p.waiting()) == 0 })
	}
	released := bySubject(s.t, s.w.sink.Mailbox.Messages()[before+len(arrived):])
	for _, m := range ph.mails {
		m.checkPlace(s.t, arrived[m.name], released[m.name])
	}
	if want := ph.count(func(m treated) bool { return m.reply == "" && !m.discarded }); len(arrived)+len(released) != want {
		s.t.Errorf("%s: %d mails were delivered, not %d", ph.name, len(arrived)+len(released), want)
	}
}

func (ph *phase) count(is func(m treated) bool) int {
	n := 0
	for _, m := range ph.mails {
		if is(m) {
			n++
		}
	}
	return n
}

// checkReply compares the answer to the end of data. That of a refusal tells what
// refused the mail, and whose wish it was.
func (m *treated) checkReply(t *testing.T, err error) {
	t.Helper()
	var refusal *smtp.SMTPError
	if m.reply == "" {
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		return
	}
	if !errors.As(err, &refusal) {
		t.Errorf("%s: accepted", m.name)
		return
	}
	code := refusal.EnhancedCode
	got := fmt.Sprintf("%d %d.%d.%d", refusal.Code, code[0], code[1], code[2])
	if got != m.reply || !strings.Contains(refusal.Message, "DMARC") || !strings.Contains(refusal.Message, m.row.headerFrom) {
		t.Errorf("%s: answered %s %s", m.name, got, refusal.Message)
	}
}

// checkPlace wants the mail to be where it belongs, with the results in it: arrived at
// once, released, or in neither place; there it is nil.
func (m *treated) checkPlace(t *testing.T, arrived, released *mail.Message) {
	t.Helper()
	where := map[bool]string{true: "delivered"}[arrived != nil] + map[bool]string{true: "held"}[released != nil]
	want := "delivered"
	switch {
	case m.held:
		want = "held"
	case m.reply != "" || m.discarded:
		want = ""
	}
	if where != want {
		t.Errorf("%s: %q, not %q", m.name, where, want)
		return
	}
	msg := cmp.Or(arrived, released)
	if msg == nil {
		return
	}
	checkAuthResults(t, m.sample, msg.Header["Authentication-Results"])
	var mark []string
	if m.marked {
		mark = []string{"yes"}
	}
	if diff := gocmp.Diff(mark, msg.Header["X-Dmarc-Quarantine"]); diff != "" {
		t.Errorf("%s: X-DMARC-Quarantine (-want +got):\n%s", m.name, diff)
	}
}

// report has the reports sent about what happened since the last ones, and returns
// them with when that was.
func (s *site) report() ([]*reportMail, span) {
	s.t.Helper()
	when := span{first: s.first, last: time.Now().UTC()}
	before := len(s.w.sink.Mailbox.Messages())
	s.r.report(sendNow...)
	when.reported = time.Now().UTC()
	if deferred := s.p.settle(); len(deferred) > 0 {
		s.t.Errorf("reports not delivered: %+v", deferred)
	}
	s.first = when.reported
	return s.w.reportMails(s.w.sink.Mailbox.Messages()[before:]), when
}

// checkRows compares the rows of reports with the mails of the phases.
func checkRows(t *testing.T, phases []phase, reports []*reportMail, when span) {
	t.Helper()
	want := map[string]map[row]int{}
	for _, ph := range phases {
		for _, m := range ph.mails {
			if m.policyDomain == "" {
				continue
			}
			if want[m.policyDomain] == nil {
				want[m.policyDomain] = map[row]int{}
			}
			r := m.row
			r.sourceIP, r.envelopeTo = espIP, allReceivers
			want[m.policyDomain][r]++
		}
	}
	got := map[string]map[row]int{}
	for domain, content := range dmarcContents(t, reports, when) {
		got[domain] = content.rows
	}
	if diff := gocmp.Diff(want, got, gocmp.AllowUnexported(row{})); diff != "" {
		t.Errorf("rows of reports (-want +got):\n%s", diff)
	}
}

// reasons returns "type comment" of all reasons in the reports that have a comment,
// sorted and without repetition.
func reasons(t *testing.T, reports []*reportMail, when span) []string {
	t.Helper()
	var all []string
	for _, mail := range reports {
		for _, rec := range parseDMARC(t, mail, when).Records {
			for _, o := range rec.Row.Evaluated.Reasons {
				if o.Comment != "" {
					all = append(all, o.Type+" "+o.Comment)
				}
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
