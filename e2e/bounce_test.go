package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/emersion/go-smtp"
	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ruapost/check"
	"ruapost/internal/lab"
)

// TestBounce has reports come back, with all set up as docs/bounces.md says: who does not
// exist is not written to again, and nothing is lost while a bounce cannot be taken.
func TestBounce(t *testing.T) { eachVersion(t, versions, testBounce) }

func testBounce(t *testing.T, v version) {
	b, mx := newBounces(t, v)
	b.startAll()
	b.tryIt()
	b.checkBounces()

	// One address is dead, and some are refused for now.
	mx.refuse("dead@gone.example", noSuchUser)
	mx.wantReports(b.w, "gone.example", "dead@gone.example", "live@gone.example")
	for _, f := range bounceFaults {
		mx.refuse(f.address(), notNow)
		mx.wantReports(b.w, f.domain, f.address())
	}
	b.mailFrom("gone.example")
	for _, f := range bounceFaults {
		b.mailFrom(f.domain)
	}
	b.report(sendNow...)
	b.becomes("dead@gone.example", "bounced")
	b.becomes("live@gone.example", "sent")
	b.wantSuppressed("dead@gone.example")
	b.wantFiled(2)

	b.mailFrom("gone.example")
	b.report(sendNow...)
	b.becomes("dead@gone.example", "bounced", "suppressed")
	b.becomes("live@gone.example", "sent", "sent")
	sender := b.lastSender("live@gone.example", 2)
	b.postfix.settle()
	if senders := mx.senders("dead@gone.example"); len(senders) != 1 {
		t.Errorf("%d mails to the dead address, not 1", len(senders))
	}

	b.fromOutside(sender)
	suppressed := []string{"dead@gone.example", "live@gone.example"}
	for _, f := range bounceFaults {
		b.withFault(f)
		suppressed = append(suppressed, f.address())
	}
	slices.Sort(suppressed)
	b.wantSuppressed(suppressed...)
}

// bounceWays are what contrib/postfix/bounces has for other installations.
var bounceWays = []struct {
	name   string
	all    bool // mail to reports@ itself is filed, too
	adjust func(b *bounces)
}{
	{"a virtual alias", false, func(b *bounces) {
		b.postfix.write("etc/postfix/virtual", "reports@receiver.example alice\n")
		b.postfix.run(nil, "postmap", "/etc/postfix/virtual")
		b.set("recipient_delimiter = +\n" + b.commented("#virtual_alias_maps"))
		b.postfix.write("etc/postfix/ruapost_bounces_keep", b.commented("#   /etc/postfix/ruapost_bounces_keep:"))
	}},
	{"a virtual alias domain", false, func(b *bounces) {
		b.postfix.write("etc/postfix/virtual", "alice@receiver.example alice\nreports@receiver.example alice\n")
		b.postfix.run(nil, "postmap", "/etc/postfix/virtual")
		b.set("mydestination = mail.receiver.example\nvirtual_alias_domains = receiver.example\n" + b.commented("#virtual_alias_maps"))
		const of = "# If the domain is in virtual_alias_domains"
		b.postfix.write("etc/postfix/ruapost_bounces_keep", b.commented(of, "#   /etc/postfix/ruapost_bounces_keep:"))
		b.postfix.write("etc/postfix/ruapost_bounces", b.postfix.read("etc/postfix/ruapost_bounces")+
			b.commented(of, "#   /etc/postfix/ruapost_bounces:"))
	}},
	{"a domain of virtual mailboxes", false, func(b *bounces) {
		b.setKind("virtual_mailbox_domains", "virtual_mailbox_maps", "virtual_transport")
	}},
	{"a domain that is relayed", false, func(b *bounces) {
		b.setKind("relay_domains", "relay_recipient_maps", "relay_transport")
	}},
	{"an alias that runs the program", true, func(b *bounces) {
		b.postfix.write("etc/aliases", "postmaster: alice\n")
		b.postfix.run(nil, "postalias", "/etc/aliases")
		const table = "etc/ruapost/bounce_aliases"
		b.postfix.write(table, b.commented("#   /etc/ruapost/bounce_aliases, after"))
		if err := os.Chown(filepath.Join(b.postfix.root, table), ruapostUID, ruapostUID); err != nil {
			b.t.Fatal(err)
		}
		b.set("recipient_delimiter = +\ntransport_maps =\nlocal_recipient_maps = proxy:unix:passwd.byname $alias_maps\n" + b.commented("#alias_maps"))
	}},
}

// setKind makes the domain one of a kind whose people have their mail elsewhere.
func (b *bounces) setKind(domains, people, transport string) {
	b.t.Helper()
	b.set("mydestination =\nlocal_recipient_maps =\n" + domains + " = " + reportDomain + "\n" + transport + " = smtp:[" + sinkIP + "]:25\n" +
		people + " = inline:{alice@" + reportDomain + "=x, " + reportFrom + "=x} regexp:/etc/postfix/ruapost_bounces\n")
}

// TestBounceWays has a report come back to installations of other kinds.
func TestBounceWays(t *testing.T) {
	for _, way := range bounceWays {
		t.Run(way.name, func(t *testing.T) {
			eachVersion(t, versions, func(t *testing.T, v version) { testBounceWay(t, v, way.adjust, way.all) })
		})
	}
}

func testBounceWay(t *testing.T, v version, adjust func(b *bounces), all bool) {
	b, mx := newBounces(t, v)
	adjust(b)
	b.startAll()
	mx.refuse("dead@gone.example", noSuchUser)
	mx.wantReports(b.w, "gone.example", "dead@gone.example", "live@gone.example")
	b.mailFrom("gone.example")
	b.report(sendNow...)
	b.becomes("dead@gone.example", "bounced")
	b.becomes("live@gone.example", "sent")
	b.wantFiled(1)
	b.comesIn("", b.lastSender("live@gone.example", 1), bounceOf("live@gone.example"))
	b.becomes("live@gone.example", "bounced")
	b.wantFiled(2)

	b.comesIn("somebody@unpublished.example", reportFrom, question)
	b.postfix.settle()
	if all {
		b.filed++
	}
	b.wantFiled(b.filed)
}

// question is a mail from a person.
var question = lab.Mail{
	From: "somebody@unpublished.example", To: reportFrom, Subject: "A question about your report", Body: "Why?",
}.Bytes()

// commented returns what contrib/postfix/bounces has as a comment. The texts are how lines
// of it begin, one below the other. The last begins either a setting, which is returned, or
// the line with the name of a file, for which the file's content is returned.
func (b *bounces) commented(texts ...string) string {
	b.t.Helper()
	rest := ours.Replace(b.contrib("postfix/bounces"))
	for _, text := range texts {
		i := strings.Index(rest, "\n"+text)
		if i < 0 {
			b.t.Fatalf("contrib/postfix/bounces has no %q", text)
		}
		rest = rest[i+1:]
	}
	line, rest, _ := strings.Cut(rest, "\n")
	if !strings.HasPrefix(line, "# ") {
		return line[1:] + "\n"
	}
	var content strings.Builder
	for line := range strings.Lines(rest) {
		text, ok := strings.CutPrefix(line, "#     ")
		if !ok {
			break
		}
		content.WriteString(text)
	}
	return content.String()
}

var (
	noSuchUser = &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user"}
	notNow     = &smtp.SMTPError{Code: 450, EnhancedCode: smtp.EnhancedCode{4, 2, 0}, Message: "not now"}
)

// bounces is an installation that reads the bounces of its reports.
type bounces struct {
	*installation
	w     *world
	mx    *pickyMX // of the domains that ask for reports
	filed int      // messages that the Maildir must have
}

// newBounces makes a world with an installation, which startAll starts.
func newBounces(t *testing.T, v version) (*bounces, *pickyMX) {
	t.Helper()
	w := newWorld(t)
	b := &bounces{installation: install(t, w, newPostfix(t, v)), w: w, mx: w.startPickyMX()}
	b.setUp()
	return b, b.mx
}

func (b *bounces) startAll() {
	b.t.Helper()
	b.startMilter()
	b.startTLSPolicy()
	b.postfix.start()
}

// bounceMaildir is the folder of docs/bounces.md, in the root.
const bounceMaildir = "var/lib/ruapost/bounces"

// ours makes the example of the documentation the host of the tests.
var ours = strings.NewReplacer("example.org", reportDomain, `example\.org`, regexp.QuoteMeta(reportDomain))

// setUp does what docs/bounces.md says, with the lines of contrib. There the domain is one
// of mydestination with users of the host, as Postfix has it by default.
func (b *bounces) setUp() {
	b.t.Helper()
	p := b.postfix
	pieces := b.pieces()
	b.checkSteps(pieces)
	b.configure(reportAll + strings.Join(docsBlock(b.t, "In `/etc/ruapost/ruapost.toml`:"), "\n") + "\n" + b.tlsPolicySection())
	p.write("etc/postfix/ruapost_bounces", pieces["/etc/postfix/ruapost_bounces"])
	p.write("etc/postfix/master.cf", p.read("etc/postfix/master.cf")+pieces["/etc/postfix/master.cf"])
	p.write("etc/passwd", p.read("etc/passwd")+
		"alice:x:61240:100::/nonexistent:/usr/sbin/nologin\nreports:x:61241:100::/nonexistent:/usr/sbin/nologin\n")
	b.set("local_transport = local:$myhostname\n" + pieces["/etc/postfix/main.cf"])
}

// set puts lines into main.cf in the place of those for the same parameters.
func (b *bounces) set(lines string) {
	b.t.Helper()
	text := b.postfix.read("etc/postfix/main.cf")
	for line := range strings.Lines(lines) {
		if name, _, ok := strings.Cut(line, " ="); ok {
			text = regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(name)+` *=.*\n([ \t].*\n)*`).ReplaceAllString(text, "")
		}
	}
	b.postfix.configure(text + lines)
}

// pieces returns what contrib/postfix/bounces has for each file, without comments.
func (b *bounces) pieces() map[string]string {
	b.t.Helper()
	pieces := map[string]string{}
	file := ""
	for line := range strings.Lines(ours.Replace(b.contrib("postfix/bounces"))) {
		if title, ok := strings.CutPrefix(line, "# ---- "); ok {
			file, _, _ = strings.Cut(title, " ")
		} else if !strings.HasPrefix(line, "#") {
			pieces[file] += line
		}
	}
	return pieces
}

// checkSteps wants docs/bounces.md to have the lines of contrib for each file.
func (b *bounces) checkSteps(pieces map[string]string) {
	b.t.Helper()
	for file, step := range map[string]string{
		"/etc/postfix/ruapost_bounces": "Write `/etc/postfix/ruapost_bounces`",
		"/etc/postfix/main.cf":         "Put into `/etc/postfix/main.cf`",
		"/etc/postfix/master.cf":       "Put into `/etc/postfix/master.cf`",
	} {
		var lines []string
		for line := range strings.Lines(pieces[file]) {
			if line = strings.TrimSpace(line); line != "" {
				lines = append(lines, line)
			}
		}
		documented := docsBlock(b.t, step)
		slices.Sort(lines)
		slices.Sort(documented)
		if diff := gocmp.Diff(lines, documented); diff != "" {
			b.t.Errorf("%s in docs/bounces.md (-contrib +docs):\n%s", file, diff)
		}
	}
}

// docsBlock returns the lines of the first block of docs/bounces.md that stands behind a text.
func docsBlock(t *testing.T, behind string) []string {
	t.Helper()
	text, err := os.ReadFile("../docs/bounces.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(ours.Replace(string(text)), behind)
	if !ok {
		t.Fatalf("docs/bounces.md has no %q", behind)
	}
	_, rest, _ = strings.Cut(rest, "\n\n")
	var block []string
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "    ") {
			break
		}
		block = append(block, strings.TrimSpace(line))
	}
	return block
}

// tryIt does what docs/bounces.md says under Trying it.
func (b *bounces) tryIt() {
	b.t.Helper()
	for _, command := range docsBlock(b.t, "## Trying it") {
		b.postfix.run(nil, "sh", "-c", command)
	}
	b.filed++
	b.wantFiled(b.filed)
	b.postfix.settle()
	if log := b.postfix.log(); !regexp.MustCompile(`relay=ruapost-bounce,.* status=sent `).MatchString(log) {
		b.t.Error("no relay=ruapost-bounce with status=sent in the log")
	}
	b.wantSuppressed()
}

// checkBounces wants the reporter's check to find the table and the Maildir, and nothing
// wrong with them.
func (b *bounces) checkBounces() {
	b.t.Helper()
	var stdout bytes.Buffer
	cmd := b.command("ruapost-reporter", "check", "-json")
	cmd.Stdout = &stdout
	cmd.Run() // which finds faults: the world has no reverse DNS
	var found struct{ Findings []check.Finding }
	if err := json.Unmarshal(stdout.Bytes(), &found); err != nil {
		b.t.Fatalf("check: %v in %s", err, &stdout)
	}
	var about []check.Level
	for _, f := range found.Findings {
		if strings.Contains(f.What, "go to the transport ruapost-bounce:") || strings.Contains(f.What, "the folder for bounces") {
			about = append(about, f.Level)
		}
	}
	if !slices.Equal(about, []check.Level{check.OK, check.OK}) {
		b.t.Errorf("check on bounces: %v in %s", about, &stdout)
	}
}

// mailFrom has a mail come in that claims to be from the domain.
func (b *bounces) mailFrom(domain string) {
	b.t.Helper()
	from := "somebody@" + domain
	b.comesIn(from, "alice@"+reportDomain, lab.Mail{From: from, To: "alice@" + reportDomain, Subject: "Hello", Body: "Hello."}.Bytes())
}

// comesIn sends a mail from outside, which must be accepted.
func (b *bounces) comesIn(from, to string, mail []byte) {
	b.t.Helper()
	c := connect(b.t, netip.MustParseAddr("198.51.100.90"), "mx.gone.example", "")
	if err := c.send(from, []string{to}, nil, mail); err != nil {
		b.t.Errorf("mail to %s: %v", to, err)
	}
	c.quit()
}

// lines returns the objects that the reporter prints.
func (b *bounces) lines(args ...string) []map[string]any {
	b.t.Helper()
	cmd := b.command("ruapost-reporter", args...)
	out, err := cmd.Output()
	if err != nil {
		b.t.Fatalf("ruapost-reporter %v: %v", args, err)
	}
	var all []map[string]any
	for line := range bytes.Lines(out) {
		var object map[string]any
		if err := json.Unmarshal(line, &object); err != nil {
			b.t.Fatalf("ruapost-reporter %v: %v in %s", args, err, line)
		}
		all = append(all, object)
	}
	return all
}

// states returns what became of the reports to an address, sorted: the history does not
// tell which of two of the same second is the older one.
func (b *bounces) states(address string) []string {
	b.t.Helper()
	var states []string
	for _, report := range b.lines("history", "-json") {
		for _, rc := range report["recipients"].([]any) {
			if rc := rc.(map[string]any); rc["address"] == address {
				states = append(states, rc["state"].(string))
			}
		}
	}
	slices.Sort(states)
	return states
}

// becomes waits until that has become of the reports to an address, see states.
func (b *bounces) becomes(address string, states ...string) {
	b.t.Helper()
	eventually(b.t, fmt.Sprintf("history says of %s: %v", address, states), func() bool {
		return slices.Equal(b.states(address), states)
	})
}

// lastSender waits until n mails have come for an address, and returns the envelope sender
// of the last.
func (b *bounces) lastSender(address string, n int) string {
	b.t.Helper()
	var senders []string
	eventually(b.t, fmt.Sprintf("%d mails came for %s", n, address), func() bool {
		senders = b.mx.senders(address)
		return len(senders) == n
	})
	return senders[n-1]
}

// wantSuppressed wants these addresses and no others to be suppressed.
func (b *bounces) wantSuppressed(addresses ...string) {
	b.t.Helper()
	var suppressed []string
	for _, s := range b.lines("suppress", "list", "-json") {
		if s["active"] == true {
			suppressed = append(suppressed, s["pattern"].(string))
		}
	}
	slices.Sort(suppressed)
	if diff := gocmp.Diff(addresses, suppressed); diff != "" {
		b.t.Errorf("suppressed (-want +got):\n%s", diff)
	}
}

// wantFiled waits until the Maildir has so many messages.
func (b *bounces) wantFiled(n int) {
	b.t.Helper()
	b.filed = n
	eventually(b.t, fmt.Sprintf("%d messages are in the Maildir", n), func() bool {
		entries, err := os.ReadDir(filepath.Join(b.postfix.root, bounceMaildir, "cur"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			b.t.Fatal(err)
		}
		return len(entries) == n
	})
}

// fromOutside has mail come in for the envelope sender of a report that live@gone.example
// has got, and for what looks like it.
func (b *bounces) fromOutside(sender string) {
	b.t.Helper()
	dsn := bounceOf("live@gone.example")

	// A token that somebody has made up.
	const at = len("reports+") + 30
	other := map[bool]string{true: "b", false: "a"}[sender[at] == 'a']
	b.comesIn("", sender[:at]+other+sender[at+1:], dsn)
	b.wantFiled(b.filed + 1)
	b.wantSuppressed("dead@gone.example")

	// Mail from people goes where it went before.
	b.comesIn("somebody@unpublished.example", reportFrom, question)
	b.comesIn("", reportFrom, dsn)
	eventually(b.t, "mail to reports@ is delivered", func() bool {
		mbox, _ := os.ReadFile(filepath.Join(b.postfix.root, "var/mail/reports"))
		return bytes.Contains(mbox, []byte("A question about")) && bytes.Contains(mbox, []byte("delivery-status"))
	})
	// As the test's Postfix knows no delimiter, and these have no token.
	c := connect(b.t, netip.MustParseAddr("198.51.100.90"), "mx.gone.example", "")
	refused := []string{"reports+hello@" + reportDomain, "reports+" + strings.Repeat("a", 45) + "@" + reportDomain, "x" + sender}
	err := c.send("somebody@unpublished.example", append(refused, "alice@"+reportDomain),
		map[string]bool{refused[0]: true, refused[1]: true, refused[2]: true}, dsn)
	if err != nil {
		b.t.Error(err)
	}
	c.quit()
	b.postfix.settle()
	b.wantFiled(b.filed)
	b.wantSuppressed("dead@gone.example")

	// The real one, changed to capitals on its way.
	b.comesIn("", strings.ToUpper(sender), dsn)
	b.becomes("live@gone.example", "bounced", "sent")
	b.wantFiled(b.filed + 1)
	b.wantSuppressed("dead@gone.example", "live@gone.example")
}

// bounceOf returns a delivery status notification (RFC 3464).
func bounceOf(recipient string) []byte {
	return lab.Mail{
		From: "MAILER-DAEMON@gone.example", To: reportFrom, Subject: "Undelivered Mail Returned to Sender",
		Fields: []string{"MIME-Version: 1.0", `Content-Type: multipart/report; report-type=delivery-status; boundary="b"`},
		Body: "--b\nContent-Type: text/plain\n\nSorry.\n\n--b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; mx.gone.example\n\n" +
			"Final-Recipient: rfc822; " + recipient + "\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 5.1.1 gone\n\n--b--\n",
	}.Bytes()
}

// bounceFault is a reason for which a bounce cannot be taken.
type bounceFault struct {
	name   string
	domain string // whose report comes back meanwhile
	reason string // part of what Postfix says
	// cause causes it and returns what mends it.
	cause func(p *postfix) (mend func() error, err error)
}

func (f bounceFault) address() string { return "dead@" + f.domain }

var bounceFaults = []bounceFault{
	{
		name: "store", domain: "store.example", reason: "temporary failure. Command output: ",
		cause: func(p *postfix) (func() error, error) {
			dir := filepath.Join(p.root, "var/lib/ruapost")
			return func() error { return os.Chown(dir, ruapostUID, ruapostUID) }, os.Chown(dir, 0, 0)
		},
	},
	{
		name: "Maildir", domain: "maildir.example", reason: "file into Maildir: ",
		cause: func(p *postfix) (func() error, error) {
			dir := filepath.Join(p.root, bounceMaildir, "tmp")
			return func() error { return os.Chmod(dir, 0o770) }, os.Chmod(dir, 0o500)
		},
	},
	{
		name: "program", domain: "program.example", reason: "temporary failure",
		cause: func(p *postfix) (func() error, error) {
			p.warnings = append(p.warnings, "execvp /usr/local/sbin/ruapost-reporter: No such file")
			dir := filepath.Join(p.root, "usr/local/sbin")
			return func() error { return unix.Unmount(dir, 0) }, unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755")
		},
	},
}

// withFault has a report come back while a fault keeps the bounce from being taken. Postfix
// must keep the bounce, and deliver it once the fault is gone.
func (b *bounces) withFault(f bounceFault) {
	b.t.Helper()
	p := b.postfix
	report := waitingFor(p, f.address())
	if len(report) != 1 {
		b.t.Fatalf("%d reports to %s wait, not 1", len(report), f.address())
	}
	mend, err := f.cause(p)
	if err != nil {
		b.t.Fatal(err)
	}
	b.mx.refuse(f.address(), noSuchUser)
	p.retry(report[0].ID)
	p.settle()
	kept := waitingFor(p, report[0].Sender)
	b.wantFiled(b.filed)
	if err := mend(); err != nil {
		b.t.Fatal(err)
	}
	if len(kept) != 1 || !strings.Contains(kept[0].Recipients[0].Delay, f.reason) {
		b.t.Fatalf("the bounce does not wait because of %q: %+v", f.reason, kept)
	}
	p.retry(kept[0].ID)
	b.becomes(f.address(), "bounced")
	b.wantFiled(b.filed + 1)
}

// waitingFor returns the mails in the queue that are for the address.
func waitingFor(p *postfix, address string) []queued {
	p.t.Helper()
	return slices.DeleteFunc(p.waiting(), func(q queued) bool { return q.Recipients[0].Address != address })
}

// pickyMX is a mail server that does not take mail to everybody.
type pickyMX struct {
	mu      sync.Mutex
	replies map[string]error
	tried   map[string][]string // the senders of what came for an address
}

// pickyMXIP is where it listens.
const pickyMXIP = "203.0.113.10"

func (w *world) startPickyMX() *pickyMX {
	w.t.Helper()
	mx := &pickyMX{replies: map[string]error{}, tried: map[string][]string{}}
	ln, err := net.Listen("tcp", pickyMXIP+":25")
	if err != nil {
		w.t.Fatal(err)
	}
	server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return &pickySession{mx: mx}, nil }))
	server.Domain = "picky.example"
	server.ErrorLog = log.New(w.t.Output(), "picky.example: ", 0)
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	w.t.Cleanup(func() {
		server.Close()
		ln.Close()
		<-served
	})
	w.dns.Add("picky.example. 300 IN A " + pickyMXIP)
	return mx
}

// wantReports makes the server that of a domain, which asks for reports at the addresses.
func (mx *pickyMX) wantReports(w *world, domain string, addresses ...string) {
	w.t.Helper()
	w.dns.Add(fmt.Sprintf("%s. 300 IN MX 10 picky.example.\n_dmarc.%[1]s. 300 IN TXT \"v=DMARC1; p=none; rua=mailto:%s\"",
		domain, strings.Join(addresses, ",mailto:")))
}

// refuse has mail to an address refused from now on.
func (mx *pickyMX) refuse(address string, reply *smtp.SMTPError) {
	mx.mu.Lock()
	defer mx.mu.Unlock()
	mx.replies[address] = reply
}

// senders returns the envelope senders of the mails that came for an address, whether it
// took them or not.
func (mx *pickyMX) senders(address string) []string {
	mx.mu.Lock()
	defer mx.mu.Unlock()
	return slices.Clone(mx.tried[address])
}

type pickySession struct {
	mx   *pickyMX
	from string
}

func (s *pickySession) Reset()        {}
func (s *pickySession) Logout() error { return nil }

func (s *pickySession) Mail(from string, _ *smtp.MailOptions) error {
	s.from = from
	return nil
}

func (s *pickySession) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.mx.mu.Lock()
	defer s.mx.mu.Unlock()
	s.mx.tried[to] = append(s.mx.tried[to], s.from)
	return s.mx.replies[to]
}

func (s *pickySession) Data(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}
