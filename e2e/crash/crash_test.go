// Package crash kills the three programs while they work, again and again, and then
// compares what was reported with what really happened. It needs neither Postfix nor
// root.
package crash

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-milter"

	"ruapost/dmarc"
	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
	"ruapost/socketmap"
	"ruapost/tlsrpt"
)

const (
	kills        = 50 // of each program
	domains      = 8
	smtpSessions = 4 // at a time
	senders      = 2 // of TLSRPT datagrams
)

// The test program is also the sendmail of its tests: it puts the mail into a file
// of the folder in its second argument, whole or not at all.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "sendmail" {
		if err := takeMail(os.Args[2], os.Args[len(os.Args)-1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(75)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func takeMail(dir, recipient string) error {
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "new-*")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s\n%s", recipient, data)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), f.Name()+".mail")
}

type lives struct {
	t       *testing.T
	dir     string
	config  string
	dns     *dnstest.Server
	ctx     context.Context // of the load
	stopped atomic.Int64    // processes that were killed

	// What happened, by domain. A message was answered when its Continue came; it
	// was attempted when its end was sent.
	answered, attempted [domains]atomic.Int64
	// Datagrams have no answer: sent is all that is known.
	events  atomic.Int64
	queries atomic.Int64
}

func domain(i int) string { return fmt.Sprintf("d%d.example", i) }

func TestKilledPrograms(t *testing.T) {
	l := newLives(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	l.ctx = ctx
	var programs, load sync.WaitGroup
	for _, name := range []string{"milter", "tlspolicy", "reporter"} {
		programs.Go(func() { l.live(name) })
	}
	for i := range smtpSessions {
		load.Go(func() { l.sendMail(i) })
	}
	for range senders {
		load.Go(l.sendEvents)
	}
	load.Go(l.ask)
	programs.Wait() // each has been killed often enough and runs its last life
	stop()
	load.Wait()
	l.check()
}

func newLives(t *testing.T) *lives {
	t.Helper()
	dns, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dns.Close)
	for i := range domains {
		dns.Add(fmt.Sprintf(`_dmarc.%[1]s. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@%[1]s"
			_smtp._tls.%[1]s. 300 IN TXT "v=TLSRPTv1; rua=mailto:tls@%[1]s"`, domain(i)))
	}
	// The sockets' names must be short.
	dir, err := os.MkdirTemp("", "crash")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, d := range []string{"outbox", "mails"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"milter", "tlspolicy", "reporter"} {
		out, err := exec.Command("go", "build", "-o", filepath.Join(dir, p), "../../cmd/"+p).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	l := &lives{t: t, dir: dir, dns: dns, config: filepath.Join(dir, "ruapost.toml")}
	// The answer to a message waits for the disk here: what was answered must be in
	// the reports.
	text := fmt.Sprintf(`report_domain = "receiver.example"
[store]
path = "%[1]s/db"
record_timeout = "30s"
[dns]
servers = [%[2]q]
[milter]
listen = ["unix:%[1]s/milter.sock"]
authserv_id = "receiver.example"
trusted_networks = []
[tlspolicy]
listen = ["unix:%[1]s/policy.sock"]
tlsrpt = "unix:%[1]s/tlsrpt.sock"
[reporter]
sendmail = [%[3]q, "sendmail", "%[1]s/mails"]
outbox = "%[1]s/outbox"
`, dir, dns.Addr, os.Args[0])
	if err := os.WriteFile(l.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return l
}

// command returns a program, ready to start; what it logs goes into a file.
func (l *lives) command(program string, args ...string) *exec.Cmd {
	log, err := os.OpenFile(filepath.Join(l.dir, program+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	defer log.Close()
	if program == "reporter" {
		args = append(args, "send", "--now")
	}
	cmd := exec.Command(filepath.Join(l.dir, program), append([]string{"-config", l.config}, args...)...)
	cmd.Stderr = log
	cmd.Env = append(os.Environ(), "GOTRACEBACK=all")
	// Nothing is left if the test itself is cut off.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// live starts the program again and again, and kills it at random until it has been
// killed often enough. A reporter is started again when it is done, too.
func (l *lives) live(program string) {
	for n := 0; n < kills; {
		cmd := l.command(program)
		if err := cmd.Start(); err != nil {
			l.t.Error(err)
			return
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-time.After(20*time.Millisecond + rand.N(380*time.Millisecond)):
			cmd.Process.Kill()
			<-ended
			n++
			l.stopped.Add(1)
		case err := <-ended:
			if program != "reporter" {
				l.t.Errorf("%s ended by itself: %v", program, err)
				l.showLog(program)
				return
			}
		}
	}
}

// sendMail is an SMTP client whose session Postfix tells the milter of. When the
// milter dies, Postfix would go on without it.
func (l *lives) sendMail(n int) {
	for i := n; l.ctx.Err() == nil; i++ {
		if err := l.session(i % domains); err != nil {
			time.Sleep(5 * time.Millisecond)
		}
	}
}

func (l *lives) session(d int) error {
	s, err := milter.NewClientWithOptions("unix", filepath.Join(l.dir, "milter.sock"), milter.ClientOptions{
		ActionMask: milter.OptAddHeader | milter.OptChangeHeader, ReadTimeout: time.Minute,
	}).Session()
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.Conn("client", milter.FamilyInet, 1, fmt.Sprintf("192.0.2.%d", rand.N(20))); err != nil {
		return err
	}
	if _, err := s.Helo("client.example"); err != nil {
		return err
	}
	for range 5 {
		if _, err := s.Mail("a@"+domain(d), nil); err != nil {
			return err
		}
		if _, err := s.Rcpt("b@receiver.example", nil); err != nil {
			return err
		}
		if _, err := s.HeaderField("From", " a@"+domain(d)); err != nil {
			return err
		}
		if _, err := s.HeaderEnd(); err != nil {
			return err
		}
		l.attempted[d].Add(1)
		if _, _, err := s.End(); err != nil {
			return err
		}
		l.answered[d].Add(1)
	}
	return nil
}

// sendEvents sends TLSRPT datagrams as Postfix does: without waiting, without trying
// twice.
func (l *lives) sendEvents() {
	for i := 0; l.ctx.Err() == nil; i++ {
		d := domain(i % domains)
		data := fmt.Sprintf(`{"dpv":"1","d":%q,"pr":"v=TLSRPTv1; rua=mailto:tls@%[1]s","policies":[{"policy-type":9,"policy-domain":%[1]q,"t":0,"f":0}]}`, d)
		if conn, err := net.Dial("unixgram", filepath.Join(l.dir, "tlsrpt.sock")); err == nil {
			conn.SetWriteDeadline(time.Now().Add(time.Millisecond))
			if _, err := conn.Write([]byte(data)); err == nil {
				l.events.Add(1)
			}
			conn.Close()
		}
		time.Sleep(time.Millisecond)
	}
}

// ask asks for policies; every answer that comes must be the right one.
func (l *lives) ask() {
	for l.ctx.Err() == nil {
		c, err := socketmap.Dial(l.ctx, "unix", filepath.Join(l.dir, "policy.sock"))
		if err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		for err == nil && l.ctx.Err() == nil {
			var reply socketmap.Reply
			if reply, err = c.Query("QUERY", domain(0)); err == nil {
				l.queries.Add(1)
				if reply.Status() != socketmap.StatusNotFound {
					l.t.Errorf("answer %s", reply)
				}
			}
			time.Sleep(time.Millisecond)
		}
		c.Close()
	}
}

// check lets everything that is left be reported and compares.
func (l *lives) check() {
	t := l.t
	for i := 0; ; i++ {
		out, err := l.command("reporter").Output()
		if err == nil && l.nothingLeft() {
			break
		}
		if i == 100 {
			l.showLog("reporter")
			t.Fatalf("the reporter does not come to an end: %v\n%s", err, out)
		}
		time.Sleep(50 * time.Millisecond) // a sendmail of a killed one may be at work
	}
	got := l.readMails()
	var answered, attempted, reported int64
	for i := range domains {
		n, lo, hi := got.messages[domain(i)], l.answered[i].Load(), l.attempted[i].Load()
		answered, attempted, reported = answered+lo, attempted+hi, reported+n
		if n < lo || n > hi {
			t.Errorf("%s: %d messages reported, %d answered of %d attempted", domain(i), n, lo, hi)
		}
	}
	if answered == 0 || l.queries.Load() == 0 || got.sessions == 0 {
		t.Error("the load did nothing")
	}
	if sent := l.events.Load(); got.sessions > sent {
		t.Errorf("%d TLS sessions reported, %d told", got.sessions, sent)
	}
	t.Logf("%d kills; messages: %d answered, %d attempted, %d reported; TLS sessions: %d told, %d reported; %d policy answers; %d mails, %d repeated",
		l.stopped.Load(), answered, attempted, reported, l.events.Load(), got.sessions, l.queries.Load(), got.mails, got.repeated)
	if got.repeated != 0 {
		t.Errorf("%d mails were sent twice", got.repeated)
	}
}

// nothingLeft says whether all that is recorded was sent.
func (l *lives) nothingLeft() bool {
	cmd := exec.Command(filepath.Join(l.dir, "reporter"), "-config", l.config, "list")
	out, err := cmd.Output()
	if err != nil {
		return false
	}
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		for _, word := range strings.Fields(sc.Text()) {
			switch word {
			case "recording", "due", "sealed", "composed", "waiting", "failed":
				return false
			}
		}
	}
	return true
}

type reported struct {
	messages        map[string]int64 // by policy domain
	sessions        int64
	mails, repeated int
}

// readMails adds up the reports that sendmail got.
func (l *lives) readMails() reported {
	t := l.t
	files, err := filepath.Glob(filepath.Join(l.dir, "mails", "*.mail"))
	if err != nil {
		t.Fatal(err)
	}
	got := reported{messages: map[string]int64{}}
	seen := map[string][]byte{}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		got.mails++
		recipient, raw, _ := bytes.Cut(data, []byte("\n"))
		m, err := lab.ReadReportMail(raw)
		if err != nil {
			t.Fatal(err)
		}
		key := string(recipient) + " " + m.Filename
		if before, ok := seen[key]; ok {
			got.repeated++
			if !bytes.Equal(before, raw) {
				t.Errorf("%s was sent twice with different bytes", m.Filename)
			}
			continue
		}
		seen[key] = raw
		if strings.HasSuffix(m.Filename, ".xml.gz") {
			rep, err := dmarc.ParseReport(bytes.NewReader(m.Content))
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range rep.Records {
				got.messages[rep.Policy.Domain] += r.Count
			}
			continue
		}
		rep, err := tlsrpt.ParseReport(bytes.NewReader(m.Content))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range rep.Policies {
			got.sessions += p.Summary.Successful + p.Summary.Failed
		}
	}
	return got
}

func (l *lives) showLog(program string) {
	data, _ := os.ReadFile(filepath.Join(l.dir, program+".log"))
	lines := bytes.Split(data, []byte("\n"))
	l.t.Logf("%s.log ends:\n%s", program, bytes.Join(lines[max(0, len(lines)-30):], []byte("\n")))
}
