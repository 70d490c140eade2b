// Package crash kills the three programs while they work, again and again, or gives
// them a disk that is far too slow, and then compares what was reported or recorded
// with what really happened. It needs neither Postfix nor root, but strace(1) for the
// slow disk.
package crash

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
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
	"ruapost/internal/testhost"
	"ruapost/socketmap"
	"ruapost/tlsrpt"
)

const (
	kills   = 50 // of each program, at least
	domains = 8
	// nobody is the number of the domain whose reports nobody can get: what is
	// recorded about it is dropped.
	nobody = domains - 1
	// everybody is where the reports about all domains but that one go, besides
	// their owners: the agreement of the place that their records name names it.
	everybody    = "all@third.example"
	smtpSessions = 4 // at a time
	perSession   = 5 // messages
	senders      = 2 // of TLSRPT datagrams
)

func TestMain(m *testing.M) {
	if _, err := exec.LookPath("strace"); err != nil {
		if err := testhost.LeaveOut("e2e/crash: TestSlowDisk and TestKilledSends", errors.New("no strace; run e2e/setup.sh")); err != nil {
			fmt.Fprintln(os.Stderr, "e2e/crash:", err)
			os.Exit(1)
		}
		flag.Set("test.skip", "^(TestSlowDisk|TestKilledSends)$")
	}
	os.Exit(m.Run())
}

type lives struct {
	t       *testing.T
	dir     string
	config  string
	metrics string // the address of which the programs have a port each
	dns     *dnstest.Server
	ctx     context.Context // of the load
	// alive counts the programs that have not been killed often enough, killed the
	// processes that were killed, by program.
	alive  atomic.Int64
	killed map[string]*atomic.Int64

	// What happened, by domain. A message was answered when its Continue came; it
	// was attempted when its end was sent.
	answered, attempted [domains]atomic.Int64
	// Datagrams have no answer. events is how many were sent; recorded how many the
	// daemon said were on disk when it was asked for its metrics, just before it was
	// killed. Some are recorded after that, others are lost with the daemon.
	events, recorded atomic.Int64
	queries          atomic.Int64
}

func domain(i int) string { return fmt.Sprintf("d%d.example", i) }

func TestKilledPrograms(t *testing.T) {
	// The answer to a message waits for the disk here: what was answered must be in
	// the reports.
	l := newLives(t, 30*time.Second)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	l.ctx = ctx
	var programs, load sync.WaitGroup
	l.alive.Store(int64(len(l.killed)))
	for name := range l.killed {
		programs.Go(func() { l.live(name) })
	}
	for i := range smtpSessions {
		load.Go(func() { l.sendMail(i) })
	}
	for range senders {
		load.Go(l.sendEvents)
	}
	load.Go(l.ask)
	programs.Wait() // each has been killed often enough
	stop()
	load.Wait()
	l.check()
}

func newLives(t *testing.T, recordTimeout time.Duration) *lives {
	t.Helper()
	dns, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dns.Close)
	for i := range nobody {
		dns.Add(fmt.Sprintf(`_dmarc.%[1]s. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@%[1]s,mailto:a@third.example,mailto:b@third.example"
			%[1]s._report._dmarc.third.example. 300 IN TXT "v=DMARC1; rua=mailto:%[2]s"
			_smtp._tls.%[1]s. 300 IN TXT "v=TLSRPTv1; rua=mailto:tls@%[1]s"`, domain(i), everybody))
	}
	dns.Add(fmt.Sprintf(`_dmarc.%s. 300 IN TXT "v=DMARC1; p=none; rua=mailto:root@localhost"`, domain(nobody)))
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
	for _, p := range []string{"../../cmd/milter", "../../cmd/tlspolicy", "../../cmd/reporter", "./sendmail"} {
		out, err := exec.Command("go", "build", "-o", filepath.Join(dir, filepath.Base(p)), p).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	// An address of its own on loopback, so that nobody else has the port.
	metrics := fmt.Sprintf("127.83.%d.%d", os.Getpid()>>8&0xff, max(1, os.Getpid()&0xfe))
	l := &lives{t: t, dir: dir, dns: dns, config: filepath.Join(dir, "ruapost.toml"), metrics: metrics}
	l.killed = map[string]*atomic.Int64{"milter": {}, "tlspolicy": {}, "reporter": {}}
	text := fmt.Sprintf(`report_domain = "receiver.example"
[store]
path = "%[1]s/db"
record_timeout = "%[4]s"
[dns]
servers = [%[2]q]
[milter]
listen = ["unix:%[1]s/milter.sock"]
authserv_id = "receiver.example"
trusted_networks = []
report_on = "all"
[tlspolicy]
listen = ["unix:%[1]s/policy.sock"]
tlsrpt = "unix:%[1]s/tlsrpt.sock"
[reporter]
sendmail = ["%[1]s/sendmail", "%[1]s"]
outbox = "%[1]s/outbox"
[metrics]
listen = "tcp:%[3]s:9184"
`, dir, dns.Addr, metrics, recordTimeout)
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

// live starts the program again and again, and kills it at random until all of them
// have been killed often enough. A reporter is started again when it is done, too.
func (l *lives) live(program string) {
	longest := 400 * time.Millisecond
	if program == "reporter" {
		longest = 100 * time.Millisecond // it is hardly ever at work for longer
	}
	for l.alive.Load() > 0 {
		cmd := l.command(program)
		if err := cmd.Start(); err != nil {
			l.t.Error(err)
			l.alive.Add(-kills) // the others need not go on
			return
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-time.After(5*time.Millisecond + rand.N(longest)):
			if program == "tlspolicy" {
				l.recorded.Add(l.metric(9185, "ruapost_store_records_total"))
			}
			cmd.Process.Kill()
			<-ended
			if l.killed[program].Add(1) == kills {
				l.alive.Add(-1)
			}
		case err := <-ended:
			if program != "reporter" {
				l.t.Errorf("%s ended by itself: %v", program, err)
				l.showLog(program)
				l.alive.Add(-kills)
				return
			}
		}
	}
}

// metric returns what the program with this port has counted in this life, 0 if it does
// not say so soon.
func (l *lives) metric(port int, name string) int64 {
	client := http.Client{Timeout: 200 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(fmt.Sprintf("http://%s:%d/metrics", l.metrics, port))
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		if value, ok := strings.CutPrefix(sc.Text(), name+" "); ok {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				l.t.Error(err)
			}
			return int64(n)
		}
	}
	return 0
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
	for range perSession {
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
		_, action, err := s.End()
		if err != nil {
			return err
		}
		if action.Code != milter.ActAccept && action.Code != milter.ActContinue {
			l.t.Errorf("the message was answered %q", action.Code)
		}
		l.answered[d].Add(1)
	}
	return nil
}

// sendEvents sends TLSRPT datagrams as Postfix does: without waiting, without trying
// twice.
func (l *lives) sendEvents() {
	for i := 0; l.ctx.Err() == nil; i++ {
		d := domain(i % nobody)
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
		lo, hi := l.answered[i].Load(), l.attempted[i].Load()
		answered, attempted = answered+lo, attempted+hi
		if i == nobody {
			continue
		}
		n := got.messages[domain(i)]["dmarc@"+domain(i)]
		reported += n
		if n < lo || n > hi {
			t.Errorf("%s: %d messages reported, %d answered of %d attempted", domain(i), n, lo, hi)
		}
		if all := got.messages[domain(i)]; len(all) != 2 || all[everybody] != n {
			t.Errorf("%s: reported by recipient: %v", domain(i), all)
		}
	}
	if len(got.messages[domain(nobody)]) > 0 {
		t.Errorf("%s: reported by recipient: %v", domain(nobody), got.messages[domain(nobody)])
	}
	// What is in doubt must stay little, or a row that was counted twice could hide.
	if attempted-answered > l.killed["milter"].Load()*smtpSessions {
		t.Errorf("%d messages answered of %d attempted: more are in doubt than were under way at the kills", answered, attempted)
	}
	if answered == 0 || l.queries.Load() == 0 || l.recorded.Load() == 0 {
		t.Error("the load did nothing")
	}
	if got.sessions < l.recorded.Load() || got.sessions > l.events.Load() {
		t.Errorf("%d TLS sessions reported, %d told, at least %d of them recorded", got.sessions, l.events.Load(), l.recorded.Load())
	}
	t.Logf("kills: milter %d, tlspolicy %d, reporter %d; messages: %d answered, %d attempted, %d reported, of %d answered nobody wants to know; TLS sessions: %d told, %d surely recorded, %d reported; %d policy answers; %d mails, %d repeated",
		l.killed["milter"].Load(), l.killed["tlspolicy"].Load(), l.killed["reporter"].Load(), answered, attempted, reported, l.answered[nobody].Load(), l.events.Load(), l.recorded.Load(), got.sessions, l.queries.Load(), got.mails, got.repeated)
	if got.repeated != 0 {
		t.Errorf("%d mails were sent twice", got.repeated)
	}
}

// nothingLeft says whether all that is recorded was sent.
func (l *lives) nothingLeft() bool {
	out, err := exec.Command(filepath.Join(l.dir, "reporter"), "-config", l.config, "list", "-json", "-n", "0").Output()
	if err != nil {
		return false
	}
	var list struct{ Reports []struct{ State string } }
	if err := json.Unmarshal(out, &list); err != nil {
		l.t.Error(err)
	}
	for _, r := range list.Reports {
		if r.State != "sent" {
			return false
		}
	}
	return true
}

type reported struct {
	messages        map[string]map[string]int64 // by policy domain and recipient
	sessions        int64
	mails, repeated int
}

// mailFiles returns the files of the mails that sendmail took.
func (l *lives) mailFiles() []string {
	files, err := filepath.Glob(filepath.Join(l.dir, "mails", "*.mail"))
	if err != nil {
		l.t.Fatal(err)
	}
	return files
}

// readMails adds up the reports that sendmail got.
func (l *lives) readMails() reported {
	t := l.t
	got := reported{messages: map[string]map[string]int64{}}
	seen := map[string][]byte{}
	for _, f := range l.mailFiles() {
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
			if got.messages[rep.Policy.Domain] == nil {
				got.messages[rep.Policy.Domain] = map[string]int64{}
			}
			for _, r := range rep.Records {
				got.messages[rep.Policy.Domain][string(recipient)] += r.Count
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
