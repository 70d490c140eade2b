package crash

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"ruapost"
	"ruapost/bboltstore"
	"ruapost/dmarc"
	"ruapost/internal/lab"
	"ruapost/tlsrpt"
)

var sendReports = flag.Int("reports", 400, "number of reports in TestKilledSends")

const (
	rowsEach    = 3           // rows of a DMARC report
	longestLife = time.Second // of a reporter, whatever it is to be killed at
	mostBusy    = 1000        // how often a reporter may find another run under way
	mostLives   = 10          // for each report
)

// way is a way to kill a reporter in the middle of its work. The zero one is not to.
type way struct {
	// call is the system call before which to kill it. Together these are all by which a
	// reporter changes something on disk, or hears from sendmail.
	call string
	// state is one of the stand-in for sendmail, see there.
	state string
	// most is the highest number of the call, which each thread counts for itself, or of
	// the mail. It is the first the first time, and then drawn at random.
	most int
	// anytime is to kill it after a random time.
	anytime bool
}

var ways = []way{
	{call: "mkdirat", most: 1},
	{state: "started", most: 4},
	{call: "fsync", most: 6},
	{state: "half", most: 4},
	{call: "renameat", most: 6},
	{state: "read", most: 4},
	{call: "fdatasync", most: 16},
	{state: "taken", most: 4},
	{call: "pwrite64", most: 50},
	{state: "lost", most: 4},
	{call: "unlinkat", most: 4},
	{call: "waitid", most: 2},
	{anytime: true},
}

func (w way) String() string {
	switch {
	case w.call != "":
		return "before " + w.call
	case w.state != "":
		return "sendmail: " + w.state
	}
	return "at any time"
}

// sends is what the reporter alone is tested with.
type sends struct {
	*lives
	domains int // each is owed a report of each kind
	started int // reporters
	kills   map[way]int
	traces  map[string]string // files of strace, and the call before which it killed
	// lost are the recipients of mails that sendmail had taken when everybody who knew
	// of it was killed.
	lost map[string]int
}

// TestKilledSends kills reporters before each change that they make on disk, and wherever
// a mail has got to in sendmail, until all is sent. Each recipient gets one report, and
// once: or, if nobody was left who knew that sendmail had taken it, the same mail again.
func TestKilledSends(t *testing.T) {
	s := newSends(t, *sendReports/2)
	for i := 0; !s.live(ways[i%len(ways)]) || !s.nothingLeft(); i++ {
		if i == mostLives**sendReports {
			s.showLog("reporter")
			t.Fatal("the reporter does not come to an end")
		}
	}
	mails := len(s.mailFiles())
	if !s.live(way{}) || len(s.mailFiles()) != mails {
		t.Errorf("there were %d mails, and %d after a run with nothing to do", mails, len(s.mailFiles()))
	}
	s.compare()
	s.table()
}

func newSends(t *testing.T, domains int) *sends {
	l := newLives(t, 30*time.Second)
	s := &sends{lives: l, domains: domains, kills: map[way]int{}, traces: map[string]string{}, lost: map[string]int{}}
	for i := range domains {
		l.dns.Add(fmt.Sprintf(`_dmarc.%[1]s. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@%[1]s"
			_smtp._tls.%[1]s. 300 IN TXT "v=TLSRPTv1; rua=mailto:tls@%[1]s"`, s.domain(i)))
	}
	text := fmt.Sprintf(`report_domain = "receiver.example"
[store]
path = "%[1]s/db"
[dns]
servers = [%[2]q]
[reporter]
sendmail = ["%[1]s/sendmail", "%[1]s"]
outbox = "%[1]s/outbox"
spread = "0s"
max_reports_per_day = 0
max_per_destination_domain = 0
`, l.dir, l.dns.Addr)
	if err := os.WriteFile(l.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.record()
	return s
}

func (s *sends) domain(i int) string { return fmt.Sprintf("s%d.example", i) }

// Of each domain other numbers are recorded: messages are those of its n-th row, sessions
// those that did not fail; another one did.
func messages(domain, n int) int { return 1 + (domain+n)%3 }
func sessions(domain int) int    { return domain % 4 }

// record records all that is to be reported, of a day that is over.
func (s *sends) record() {
	store, err := bboltstore.Open(filepath.Join(s.dir, "db"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer store.Close()
	at := time.Now().Add(-36 * time.Hour)
	var all errgroup.Group
	for i := range s.domains {
		all.Go(func() error {
			for n := range rowsEach {
				for range messages(i, n) {
					if err := store.RecordEvaluation(s.t.Context(), s.evaluation(at, i, n)); err != nil {
						return err
					}
				}
			}
			return store.RecordSessions(s.t.Context(), s.sessions(at, i))
		})
	}
	if err := all.Wait(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sends) evaluation(at time.Time, i, n int) *ruapost.Evaluation {
	return &ruapost.Evaluation{
		Time: at,
		Policy: ruapost.DMARCPolicy{
			Domain: s.domain(i), P: ruapost.DispositionNone, ADKIM: ruapost.Relaxed, ASPF: ruapost.Relaxed,
			FO: "0", Percent: 100, Discovery: "treewalk",
		},
		Result: ruapost.DMARCResult{
			SourceIP:    netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}),
			Disposition: ruapost.DispositionNone, AlignedSPF: true, HeaderFrom: s.domain(i),
			SPF: ruapost.SPFResult{Domain: s.domain(i), Result: ruapost.AuthPass},
		},
	}
}

func (s *sends) sessions(at time.Time, i int) []ruapost.Session {
	session := ruapost.Session{
		Time: at, Domain: s.domain(i),
		Policy: ruapost.TLSPolicy{Type: ruapost.PolicyNone, Domain: s.domain(i)},
	}
	all := slices.Repeat([]ruapost.Session{session}, sessions(i))
	session.Failed, session.Failures = true, []ruapost.TLSFailure{{Result: ruapost.ResultStartTLSNotSupported}}
	return append(all, session)
}

// live starts a reporter and kills it. It returns true if it came to its end before that,
// and had no fault. If another run is under way, it tries again.
func (s *sends) live(w way) (done bool) {
	for range mostBusy {
		switch err := s.run(w); {
		case err == nil:
			return true
		case wasKilled(err):
			return false
		}
		time.Sleep(10 * time.Millisecond) // a sendmail of a killed one is at work
	}
	s.showLog("reporter")
	s.t.Fatal("the reporter does not run")
	return false
}

func wasKilled(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	return ok && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}

// run is the life of one reporter.
func (s *sends) run(w way) error {
	s.started++
	s.plan(w)
	cmd := s.lives.command("reporter")
	trace := filepath.Join(s.dir, fmt.Sprintf("trace-%d", s.started))
	if w.call != "" {
		cmd = killedBefore(cmd, w.call, s.number(w), trace)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
		switch {
		case !wasKilled(err):
			return err
		case w.call != "":
			s.traces[trace] = w.call
		}
		s.kills[w]++
	case <-after(w):
		cmd.Process.Kill()
		if err = <-ended; wasKilled(err) {
			s.kills[way{anytime: true}]++
		}
	}
	if recipient, err := os.ReadFile(filepath.Join(s.dir, "lost")); err == nil {
		s.lost[string(recipient)]++
	}
	return err
}

// after is when to kill the reporter if it does not end before.
func after(w way) <-chan time.Time {
	switch w {
	case way{}:
		return nil
	case way{anytime: true}:
		return time.After(5*time.Millisecond + rand.N(60*time.Millisecond))
	}
	return time.After(longestLife)
}

// number is that of the call or mail to kill the reporter at.
func (s *sends) number(w way) int {
	if s.kills[w] == 0 {
		return 1
	}
	return 1 + rand.N(w.most)
}

// plan tells sendmail what to do.
func (s *sends) plan(w way) {
	for _, name := range []string{"plan", "count", "struck", "lost"} {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.t.Fatal(err)
		}
	}
	if w.state == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(s.dir, "plan"), fmt.Appendf(nil, "%s %d", w.state, s.number(w)), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// killedBefore lets the command be killed when one of its threads is about to make the
// n-th such system call. It is the child still, and the tracer is beside it.
//
// Not with --seccomp-bpf: it would lose the signal.
func killedBefore(cmd *exec.Cmd, call string, n int, trace string) *exec.Cmd {
	traced := exec.Command("strace", "-D", "-f", "-y", "-qq", "-o", trace, "-e", "trace="+call,
		"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n))
	traced.Args = append(traced.Args, cmd.Args...)
	traced.Env, traced.Stderr, traced.SysProcAttr = cmd.Env, cmd.Stderr, cmd.SysProcAttr
	return traced
}

// sentMail is what a recipient got under one file name, which has the report's ID.
type sentMail struct {
	raw      []byte
	times    int
	messages int64 // or sessions
}

// compare compares what came with what was recorded.
func (s *sends) compare() {
	got := map[string]map[string]*sentMail{} // by recipient and file name
	for _, f := range s.mailFiles() {
		s.readMail(f, got)
	}
	repeated := 0
	for i := range s.domains {
		var count int64
		for n := range rowsEach {
			count += int64(messages(i, n))
		}
		repeated += s.compareOne("dmarc@"+s.domain(i), got, count)
		repeated += s.compareOne("tls@"+s.domain(i), got, int64(sessions(i)+1))
	}
	if len(got) != 2*s.domains {
		s.t.Errorf("%d recipients, want %d", len(got), 2*s.domains)
	}
	s.t.Logf("%d reports, %d reporters started; %d mails came again, where %d were taken when nobody was left who knew",
		2*s.domains, s.started, repeated, len(s.lost))
}

// compareOne returns how many mails came again.
func (s *sends) compareOne(recipient string, got map[string]map[string]*sentMail, count int64) (repeated int) {
	if n := len(got[recipient]); n != 1 {
		s.t.Errorf("%s got %d reports: %q", recipient, n, slices.Collect(maps.Keys(got[recipient])))
	}
	for _, m := range got[recipient] {
		if m.messages != count {
			s.t.Errorf("%s was told of %d, want %d", recipient, m.messages, count)
		}
		if repeated = m.times - 1; repeated > s.lost[recipient] {
			s.t.Errorf("%s got the same mail %d times, and %d were lost", recipient, m.times, s.lost[recipient])
		}
	}
	return repeated
}

func (s *sends) readMail(file string, got map[string]map[string]*sentMail) {
	data, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	first, raw, _ := bytes.Cut(data, []byte("\n"))
	recipient := string(first)
	m, err := lab.ReadReportMail(raw)
	if err != nil {
		s.t.Fatal(err)
	}
	if got[recipient] == nil {
		got[recipient] = map[string]*sentMail{}
	}
	if before := got[recipient][m.Filename]; before != nil {
		before.times++
		if !bytes.Equal(before.raw, raw) {
			s.t.Errorf("%s was sent twice with different bytes", m.Filename)
		}
		return
	}
	domain, count, err := contents(m)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, of, _ := strings.Cut(recipient, "@"); of != domain {
		s.t.Errorf("%s got a report about %s", recipient, domain)
	}
	got[recipient][m.Filename] = &sentMail{raw, 1, count}
}

// contents returns what a report is about, and of how many messages or sessions it tells.
func contents(m *lab.ReportMail) (domain string, count int64, err error) {
	if strings.HasSuffix(m.Filename, ".xml.gz") {
		rep, err := dmarc.ParseReport(bytes.NewReader(m.Content))
		if err != nil {
			return "", 0, err
		}
		for _, r := range rep.Records {
			count += r.Count
		}
		return rep.Policy.Domain, count, nil
	}
	rep, err := tlsrpt.ParseReport(bytes.NewReader(m.Content))
	if err != nil {
		return "", 0, err
	}
	for _, p := range rep.Policies {
		count += p.Summary.Successful + p.Summary.Failed
	}
	return m.Header.Get("TLS-Report-Domain"), count, nil
}

var (
	tracedLine = regexp.MustCompile(`^(\d+) +(?:<\.\.\. )?(\w+)[( ](.*)$`)
	tracedPath = regexp.MustCompile(`["<](/[^">]*)`)
	anyID      = regexp.MustCompile(`[0-9a-f]{8,}`)
)

// table logs how often the reporter was killed where.
func (s *sends) table() {
	files := map[string]map[string]int{} // kills by the call and the file that it was about
	for trace, call := range s.traces {
		if files[call] == nil {
			files[call] = map[string]int{}
		}
		files[call][lastFile(s.t, trace, call)]++
	}
	total := 0
	for _, w := range ways {
		total += s.kills[w]
		s.t.Logf("%5d kills %s", s.kills[w], w)
		for _, file := range slices.Sorted(maps.Keys(files[w.call])) {
			s.t.Logf("%11d %s", files[w.call][file], file)
		}
		if s.kills[w] == 0 {
			s.t.Errorf("no reporter was killed %s", w)
		}
	}
	s.t.Logf("%5d in all", total)
}

// lastFile returns the name of the file that the call was about before which a process was
// killed, with * for what differs from report to report.
func lastFile(t *testing.T, trace, call string) string {
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	arguments := map[string]string{} // of the last call, by thread
	for line := range strings.Lines(string(text)) {
		m := tracedLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || m[2] != call {
			continue
		}
		if strings.Contains(line, call+"(") {
			arguments[m[1]] = m[3]
		}
		if !strings.HasSuffix(strings.TrimSpace(line), "= ?") {
			continue
		}
		paths := tracedPath.FindAllStringSubmatch(arguments[m[1]], -1)
		if len(paths) == 0 {
			return ""
		}
		return anyID.ReplaceAllString(filepath.Base(paths[len(paths)-1][1]), "*")
	}
	return ""
}
