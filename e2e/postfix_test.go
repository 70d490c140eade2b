package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ruapost/internal/testhost"
)

// version is a Postfix that the tests run against, and how the policy daemon goes with it.
type version struct {
	way     way
	number  string // as Postfix calls itself, without the patch level
	release string // the Debian it comes with, and its folder
	mainCf  string // what contrib/postfix has for it to add to main.cf
	// log and datagrams tell how the policy daemon learns of TLS sessions: from Postfix's
	// log, from TLSRPT's datagrams, or both.
	log, datagrams bool
	// testing tells that sessions are reported under policies in mode testing.
	testing bool
}

// way names a version.
type way string

const (
	log37     way = "3.7-log"
	datagrams way = "3.10"
	log310    way = "3.10-log" // as if built without TLSRPT
	both      way = "3.10-both"
)

const (
	mainCf37  = "main.cf-3.4-to-3.9"
	mainCf310 = "main.cf-3.10"
)

// versions are those that contrib is made for.
var versions = []version{
	{way: log37, number: "3.7", release: "bookworm", mainCf: mainCf37, log: true},
	{way: datagrams, number: "3.10", release: "trixie", mainCf: mainCf310, datagrams: true},
}

// outboundVersions are all that make a difference for TLS reports.
var outboundVersions = []version{
	{way: log37, number: "3.7", release: "bookworm", mainCf: mainCf37, log: true, testing: true},
	{way: datagrams, number: "3.10", release: "trixie", mainCf: mainCf310, datagrams: true},
	{way: log310, number: "3.10", release: "trixie", mainCf: mainCf310, log: true},
	{way: both, number: "3.10", release: "trixie", mainCf: mainCf310, log: true, datagrams: true, testing: true},
}

// eachVersion runs test against every Postfix, one after the other.
func eachVersion(t *testing.T, versions []version, test func(t *testing.T, v version)) {
	for _, v := range versions {
		t.Run("postfix-"+string(v.way), func(t *testing.T) { test(t, v) })
	}
}

// postfix is a Postfix in a root of its own, with Debian's master.cf: smtp and
// smtpd run as user postfix, chrooted into the queue directory.
type postfix struct {
	version version
	// root is the file system it runs in, queue its queue directory; both as this
	// process sees them.
	root, queue string
	// warnings are parts of the warnings that it may log.
	warnings []string
	marks    int // that the tests left in the log

	t *testing.T
}

// newPostfix makes a root with an empty queue out of the cached one, which it
// leaves as it is. It goes away with the test. The mail system is not started.
func newPostfix(t *testing.T, v version) *postfix {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "postfix-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := &postfix{version: v, root: filepath.Join(dir, "root"), t: t}
	p.queue = filepath.Join(p.root, "var/spool/postfix")
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{p.root, upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lower := filepath.Join(testhost.CacheDir(), v.release)
	p.mount("overlay", p.root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work))
	p.mount("proc", filepath.Join(p.root, "proc"), "proc", 0, "")
	p.mount("/dev", filepath.Join(p.root, "dev"), "", unix.MS_BIND|unix.MS_REC, "")
	p.write("etc/resolv.conf", resolvConf)
	p.write("etc/hosts", "127.0.0.1 localhost\n")
	return p
}

func (p *postfix) mount(source, target, fstype string, flags uintptr, data string) {
	p.t.Helper()
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		p.t.Fatalf("mount %s: %v", target, err)
	}
	p.t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			p.t.Errorf("unmount %s: %v", target, err)
		}
	})
}

// read reads a file of the root, given by its path in there.
func (p *postfix) read(path string) string {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join(p.root, path))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(text)
}

// write writes a file of the root, readable for everybody.
func (p *postfix) write(path, text string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.root, path), []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// frontEnd is a host that may tell Postfix who has logged in there (XCLIENT).
const frontEnd = "198.51.100.40"

// baseMainCf is what the tests want of Postfix beside what contrib/postfix has: it
// takes mail for two people of receiver.example and sends it on to the sink, where
// the tests read it. It does not keep connections open for further mails, except to
// one domain, nor does it give up on a destination for one mail's failure, so that each
// mail to a destination is a session. A mail whose handshake failed goes in clear text
// once it is as old as minimal_backoff_time.
const baseMainCf = `compatibility_level = 3.6
maillog_file = /` + mailLog + `
myhostname = mail.receiver.example
mydestination = receiver.example
mynetworks = 127.0.0.0/8
inet_interfaces = ` + postfixIPv4 + `, ` + postfixIPv6 + `
inet_protocols = all
smtpd_peername_lookup = no
smtpd_authorized_xclient_hosts = ` + frontEnd + `
alias_maps =
local_recipient_maps = inline:{alice=x, bob=x, reports=x}
local_transport = smtp:[` + sinkIP + `]:25
smtp_connection_cache_on_demand = no
smtp_connection_cache_destinations = reused.example
smtp_connection_cache_time_limit = 60s
smtp_destination_concurrency_failed_cohort_limit = 10
minimal_backoff_time = 1s
`

// configure writes main.cf. Postfix would wait for two seconds before it reads a file
// that may still be written, each time, so it is made to look older.
func (p *postfix) configure(mainCf string) {
	p.t.Helper()
	const file = "etc/postfix/main.cf"
	p.write(file, mainCf)
	anHourAgo := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(p.root, file), anHourAgo, anHourAgo); err != nil {
		p.t.Fatal(err)
	}
}

// start runs the mail system.
func (p *postfix) start() {
	p.t.Helper()
	if p.version.release == "bookworm" {
		// What its unit file does before: fill the chroot. Later ones do it on start.
		p.run(nil, "/usr/lib/postfix/configure-instance.sh", "-")
	}
	p.t.Cleanup(p.stop)
	p.run(nil, "postfix", "start")
	eventually(p.t, "smtpd answers", func() bool {
		c, err := net.Dial("tcp", net.JoinHostPort(postfixIPv4, "25"))
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

func (p *postfix) stop() {
	if out, err := p.command("postfix", "stop").CombinedOutput(); err != nil {
		p.t.Errorf("postfix stop: %v: %s", err, out)
	}
	// In these tests everything of Postfix's own works, so a warning is about us, unless
	// it is about the machine's clock.
	fine := append(p.warnings, "file system clock is ", "resetting file time stamps")
	for line := range strings.Lines(p.log()) {
		bad := strings.Contains(line, "warning: ") || strings.Contains(line, "fatal: ") || strings.Contains(line, "panic: ")
		if bad && !slices.ContainsFunc(fine, func(w string) bool { return strings.Contains(line, w) }) {
			p.t.Errorf("Postfix complains: %s", line)
		}
	}
	if p.t.Failed() {
		p.t.Logf("log of Postfix %s:\n%s", p.version.number, p.log())
	}
}

func (p *postfix) command(args ...string) *exec.Cmd {
	cmd := exec.Command("chroot", append([]string{p.root}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	return cmd
}

// run runs a command of the root and returns its output.
func (p *postfix) run(stdin []byte, args ...string) []byte {
	p.t.Helper()
	cmd := p.command(args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		p.t.Fatalf("%v: %v: %s%s", args, err, &stdout, &stderr)
	}
	return stdout.Bytes()
}

// mailLog is the log's path in the root.
const mailLog = "var/log/postfix.log"

// log returns the mail log so far.
func (p *postfix) log() string {
	p.t.Helper()
	return p.read(mailLog)
}

// submit hands a mail to Postfix's sendmail.
func (p *postfix) submit(from string, to []string, mail []byte) {
	p.t.Helper()
	p.run(mail, append([]string{"sendmail", "-i", "-f", from, "--"}, to...)...)
}

// queued is a mail in the queue.
type queued struct {
	Queue      string `json:"queue_name"`
	ID         string `json:"queue_id"`
	Sender     string `json:"sender"`
	Recipients []struct {
		Address string `json:"address"`
		Delay   string `json:"delay_reason"`
	} `json:"recipients"`
}

// waiting returns the mails in the queue.
func (p *postfix) waiting() []queued {
	p.t.Helper()
	var mails []queued
	for line := range bytes.Lines(p.run(nil, "postqueue", "-j")) {
		var q queued
		if err := json.Unmarshal(line, &q); err != nil {
			p.t.Fatalf("postqueue: %v: %s", err, line)
		}
		mails = append(mails, q)
	}
	return mails
}

// settle waits until every mail has been delivered or deferred, and returns the
// deferred ones.
func (p *postfix) settle() []queued {
	p.t.Helper()
	var mails []queued
	eventually(p.t, "Postfix has tried every mail", func() bool {
		mails = p.waiting()
		for _, q := range mails {
			if q.Queue != "deferred" {
				return false
			}
		}
		return true
	})
	return mails
}

// retry has a deferred mail tried again, and waits until it is delivered.
func (p *postfix) retry(id string) {
	p.t.Helper()
	p.run(nil, "postqueue", "-i", id)
	eventually(p.t, id+" is delivered", func() bool {
		return !slices.ContainsFunc(p.waiting(), func(q queued) bool { return q.ID == id })
	})
}
