package deb

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
)

// Addresses of the namespace: Postfix's, that of the mail server of everybody else, a client's,
// and that of one who forges.
const (
	postfixIP = "192.0.2.25"
	sinkIP    = "203.0.113.9"
	clientIP  = "198.51.100.9"
	forgerIP  = "198.51.100.66"
)

// group is the control group of a root.
func group(root string) string { return filepath.Join(groups, filepath.Base(filepath.Dir(root))) }

// boot makes this process, which is the first of its namespace, systemd of the root. It
// only returns if it cannot.
func boot(root string) error {
	// Namespaces are a thread's.
	runtime.LockOSThread()
	if err := os.MkdirAll(group(root), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(group(root), "cgroup.procs"), []byte("0"), 0o644); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return err
	}
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}{
		{"proc", "proc", "proc", 0, ""},
		{"sysfs", "sys", "sysfs", unix.MS_RDONLY, ""},
		{"cgroup2", "sys/fs/cgroup", "cgroup2", 0, ""},
		{"tmpfs", "run", "tmpfs", 0, "mode=0755"},
		{"tmpfs", "dev", "tmpfs", 0, "mode=0755"},
		{"/dev/null", "dev/null", "", unix.MS_BIND, ""},
		{"/dev/zero", "dev/zero", "", unix.MS_BIND, ""},
		{"/dev/full", "dev/full", "", unix.MS_BIND, ""},
		{"/dev/random", "dev/random", "", unix.MS_BIND, ""},
		{"/dev/urandom", "dev/urandom", "", unix.MS_BIND, ""},
		{"/dev/tty", "dev/tty", "", unix.MS_BIND, ""},
		{"devpts", "dev/pts", "devpts", 0, "newinstance,ptmxmode=666,mode=620"},
		{"tmpfs", "dev/shm", "tmpfs", 0, "mode=1777"},
	} {
		target := filepath.Join(root, m.target)
		var err error
		if m.flags&unix.MS_BIND != 0 {
			err = os.WriteFile(target, nil, 0o666)
		} else {
			err = os.MkdirAll(target, 0o755)
		}
		if err != nil {
			return err
		}
		if err := unix.Mount(m.source, target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// What systemd makes for PrivateDevices is a copy of this.
	if err := os.Symlink("pts/ptmx", filepath.Join(root, "dev/ptmx")); err != nil {
		return err
	}
	old := filepath.Join(root, "run/old")
	if err := os.Mkdir(old, 0o700); err != nil {
		return err
	}
	if err := unix.PivotRoot(root, old); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/run/old", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"container=other", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"})
}

// machine is a root whose systemd runs.
type machine struct {
	*root
	init *exec.Cmd
}

// beside are services of the root that the tests do not need, or that a namespace has
// nothing for.
var beside = []string{"rspamd", "opendmarc", "opendkim", "unbound", "postfix-mta-sts-resolver", "console-getty", "systemd-modules-load", "systemd-logind"}

// bootable makes a root for start, whose Postfix has the main.cf.
func bootable(t *testing.T, release, mainCf string) *root {
	t.Helper()
	r := newRoot(t, release)
	for _, name := range beside {
		if err := os.Symlink("/dev/null", r.path("/etc/systemd/system/"+name+".service")); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	// An empty one would have systemd set up anew all that it finds.
	r.write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	r.write("/etc/postfix/main.cf", mainCf)
	return r
}

// start boots the root and waits until that is done.
func start(r *root) *machine {
	r.t.Helper()
	m := &machine{root: r, init: exec.Command("/proc/self/exe")}
	m.init.Env = append(os.Environ(), envBoot+"="+r.dir)
	m.init.Stderr = os.Stderr
	m.init.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	if err := m.init.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if m.init != nil {
			m.init.Process.Kill()
			m.init.Wait()
		}
		m.removeGroups()
	})
	eventually(r.t, "systemd has booted", func() bool {
		out, _ := m.command("systemctl", "is-system-running").Output()
		state := strings.TrimSpace(string(out))
		return state == "running" || state == "degraded"
	})
	m.checkFailed()
	return m
}

// stop shuts the machine down in order.
func (m *machine) stop() {
	m.t.Helper()
	m.run("systemctl", "--no-block", "poweroff")
	stuck := time.AfterFunc(deadline, func() { m.init.Process.Kill() })
	m.init.Wait()
	if !stuck.Stop() {
		m.t.Errorf("the machine was not down within %v", deadline)
	}
	m.init = nil
}

// removeGroups removes the control groups of a machine that is down, which outlast it.
func (m *machine) removeGroups() {
	var dirs []string
	err := filepath.WalkDir(group(m.dir), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	for _, dir := range slices.Backward(dirs) {
		err = errors.Join(err, unix.Rmdir(dir))
	}
	if err != nil {
		m.t.Errorf("control groups: %v", err)
	}
}

// checkFailed fails the test for units that have failed.
func (m *machine) checkFailed() {
	m.t.Helper()
	if failed := m.run("systemctl", "list-units", "--state=failed", "--no-legend", "--plain"); failed != "" {
		m.t.Errorf("units have failed:\n%s\n%s", failed, m.run("journalctl", "-b", "--no-pager", "-n", "60"))
	}
}

func (m *machine) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{
		"-t", strconv.Itoa(m.init.Process.Pid), "-m", "-u", "-i", "-p", "-C", "--",
	}, args...)...)
	cmd.Env = environment
	return cmd
}

// run runs a command in the machine and returns all that it says.
func (m *machine) run(args ...string) string {
	m.t.Helper()
	return output(m.t, m.command(args...), args)
}

// property returns one of a unit.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return strings.TrimSpace(m.run("systemctl", "show", "-P", name, unit))
}

// checkStates compares what units do.
func (m *machine) checkStates(want string, units ...string) {
	m.t.Helper()
	for _, unit := range units {
		if got := m.property(unit, "ActiveState"); got != want {
			m.t.Errorf("%s is %s, want %s\n%s", unit, got, want, m.run("journalctl", "-b", "--no-pager", "-n", "30", "-u", unit))
		}
	}
}

// The units, by what starts them.
var (
	atBoot  = []string{"ruapost-milter.socket", "ruapost-policy.socket", "ruapost-tlsrpt.socket", "ruapost-reporter.timer"}
	byMails = []string{"ruapost-milter.service", "ruapost-tlspolicy.service"}
)

// Mail through a Debian that systemd runs: from the installation over an upgrade and a
// reboot to the purge.
func TestBooted(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		// One Postfix is told by "setup --apply", which the removal takes back, the other by
		// hand.
		bySetup := release == "trixie"
		w := newWorld(t)
		r := bootable(t, release, mainCf)
		m := start(r)

		// The package alone changes nothing for mail, and only holds sockets open.
		checkSaid(t, m.run(append(dpkg, "-i", oldPackage)...))
		m.checkStates("active", atBoot...)
		w.deliver(1)
		if judged(w.last()) {
			t.Error("the installation changed what happens with mail")
		}
		m.checkStates("inactive", byMails...)
		if got := r.read("/etc/postfix/main.cf"); got != mainCf {
			t.Errorf("the installation changed main.cf: %s", got)
		}

		// Postfix is told; its first connections start the daemons.
		r.write("/etc/ruapost/ruapost.toml", "report_domain = \"receiver.example\"\n"+r.read("/etc/ruapost/ruapost.toml"))
		if bySetup {
			said, _ := m.command("ruapost-reporter", "setup", "--apply").CombinedOutput()
			t.Logf("%s", said)
		} else {
			r.tell()
		}
		// Not "postfix reload": for a moment an smtpd from before could still take the mail.
		m.run("systemctl", "restart", "postfix")
		w.deliver(2)
		if !judged(w.last()) {
			t.Errorf("the milter did not see the mail:\n%s\n%s", w.last().Data, m.run("journalctl", "-b", "--no-pager", "-n", "60"))
		}
		m.checkStates("active", slices.Concat(atBoot, byMails)...)
		m.run("systemctl", "reload", "ruapost-milter", "ruapost-tlspolicy")

		// The reporter gets mail into the queue as the unit confines it.
		m.run("mkdir", "-p", "/run/systemd/system/ruapost-reporter.service.d")
		m.run("sh", "-c", "printf '[Service]\\nExecStart=\\nExecStart=/usr/sbin/ruapost-reporter send --now\\n' >/run/systemd/system/ruapost-reporter.service.d/now.conf")
		m.run("systemctl", "daemon-reload")
		if err := m.command("systemctl", "start", "ruapost-reporter.service").Run(); err != nil {
			t.Fatalf("the reporter: %v\n%s", err, m.run("journalctl", "-b", "--no-pager", "-u", "ruapost-reporter.service"))
		}
		w.wait(3)
		if got := w.last(); len(got.To) != 1 || got.To[0] != "dmarc@sender.example" || !strings.Contains(string(got.Data), "Report Domain: sender.example") {
			t.Errorf("the report did not leave: %v\n%s", got.To, got.Data)
		}

		upgrade(m)

		m.stop()
		m = start(r)
		m.checkStates("active", atBoot...)
		w.deliver(4)
		if !judged(w.last()) {
			t.Error("after a reboot the milter does not see mail")
		}

		said := m.run("dpkg", "-P", "ruapost")
		if strings.Contains(said, "MAIL WAITS") == bySetup {
			t.Errorf("the removal says:\n%s\n%s", said, r.read("/etc/postfix/main.cf"))
		}
		m.checkFailed()
		if units := m.run("systemctl", "list-units", "--all", "--no-legend", "--plain", "ruapost-*"); units != "" {
			t.Errorf("after the purge there are units:\n%s", units)
		}
		for _, dir := range []string{"/etc/ruapost", "/var/lib/ruapost", "/var/spool/postfix/run", "/var/lib/systemd/timers/stamp-ruapost-reporter.timer", "/etc/postfix/ruapost-setup.undo"} {
			if r.exists(dir) {
				t.Errorf("the purge left %s", dir)
			}
		}
		if bySetup {
			w.deliver(5)
		}
		m.stop()
	})
}

// upgrade installs the newer package while somebody asks for policies: each query is
// answered. The daemons are replaced, the sockets are not; and a daemon that would not
// start is not stopped.
func upgrade(m *machine) {
	t := m.t
	t.Helper()
	opened := m.property("ruapost-policy.socket", "ActiveEnterTimestampMonotonic")
	pids := func() (pids []string) {
		for _, unit := range byMails {
			pids = append(pids, m.property(unit, "MainPID"))
		}
		return pids
	}
	before := pids()
	done, refused := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		queries := 0
		for running := true; running && err == nil; queries++ {
			select {
			case <-done:
				running = false
			default:
			}
			err = query(m.path("/var/spool/postfix/run/ruapost/policy.sock"))
		}
		t.Logf("%d queries during the upgrade", queries)
		refused <- err
	}()
	checkSaid(t, m.run(append(dpkg, "-i", newPackage)...))
	close(done)
	if err := <-refused; err != nil {
		t.Errorf("a query during the upgrade: %v", err)
	}
	after := pids()
	for i, unit := range byMails {
		if after[i] == before[i] || after[i] == "0" {
			t.Errorf("%s: process %s before the upgrade, %s after", unit, before[i], after[i])
		}
	}
	if m.property("ruapost-policy.socket", "ActiveEnterTimestampMonotonic") != opened {
		t.Error("the upgrade opened the socket anew")
	}
	m.checkStates("active", slices.Concat(atBoot, byMails)...)
	if got := m.read("/etc/ruapost/ruapost.toml"); !strings.HasPrefix(got, "report_domain") {
		t.Error("the upgrade changed the configuration")
	}

	good := m.read("/etc/ruapost/ruapost.toml")
	m.write("/etc/ruapost/ruapost.toml", "no_such_key = 1\n")
	said := m.run(append(dpkg, "-i", newPackage)...)
	if !strings.Contains(said, "ruapost-milter runs on") || !strings.Contains(said, "no_such_key") {
		t.Errorf("an upgrade with a mistake in the configuration says:\n%s", said)
	}
	if got := pids(); !slices.Equal(got, after) {
		t.Errorf("daemons that would not start were stopped: %v, then %v", after, got)
	}
	m.write("/etc/ruapost/ruapost.toml", good)
}

// query asks the policy daemon as Postfix does.
func query(socket string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(deadline))
	if _, err := io.WriteString(c, "21:QUERY sender.example.,"); err != nil {
		return err
	}
	answer, err := bufio.NewReader(c).ReadString(',')
	if err == nil && !strings.Contains(answer, ":NOTFOUND ") {
		err = fmt.Errorf("the answer is %q", answer)
	}
	return err
}

// mainCf is a Postfix before it knows of ruapost: it takes mail for alice, and sends it on
// to where the tests read it.
const mainCf = `compatibility_level = 3.6
myhostname = mail.receiver.example
mydestination = receiver.example
mynetworks = 127.0.0.0/8
inet_interfaces = ` + postfixIP + `
inet_protocols = ipv4
smtpd_peername_lookup = no
alias_maps =
local_recipient_maps = inline:{alice=x}
local_transport = smtp:[` + sinkIP + `]:25
`

// tell adds the lines of the package's examples to main.cf.
func (r *root) tell() {
	r.t.Helper()
	name := map[string]string{"bookworm": "main.cf-3.4-to-3.9", "trixie": "main.cf-3.10"}[r.release]
	r.write("/etc/postfix/main.cf", mainCf+r.read("/usr/share/doc/ruapost/examples/postfix/"+name))
}

// world is the Internet around the machine.
type world struct {
	dns  *dnstest.Server
	sink *lab.MX

	t *testing.T
}

func newWorld(t *testing.T) *world {
	t.Helper()
	var dns *dnstest.Server
	eventually(t, "the last test's name server has gone", func() (ok bool) {
		var err error
		dns, err = dnstest.Start("127.0.0.1:53")
		return err == nil
	})
	t.Cleanup(dns.Close)
	dns.Add(`. 300 IN NS ns.test.
sender.example. 300 IN MX 10 sink.example.
sender.example. 300 IN TXT "v=spf1 ip4:` + clientIP + ` -all"
_dmarc.sender.example. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@sender.example"
sink.example. 300 IN A ` + sinkIP)
	sink, err := lab.StartMX(lab.MXConfig{Name: "sink.example", Addr: sinkIP + ":25"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sink.Close)
	return &world{dns: dns, sink: sink, t: t}
}

// deliver sends alice a mail, which is to be the n-th that arrives.
func (w *world) deliver(n int) {
	w.t.Helper()
	w.send(clientIP, n)
	w.wait(n)
}

// send sends alice mail n from a client.
func (w *world) send(client string, n int) {
	w.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}
	var conn net.Conn
	eventually(w.t, "smtpd answers", func() (ok bool) {
		var err error
		conn, err = dialer.Dial("tcp", postfixIP+":25")
		return err == nil
	})
	conn.SetDeadline(time.Now().Add(deadline))
	c, err := smtp.NewClient(conn, "mail.receiver.example")
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	err = errors.Join(c.Hello("sender.example"), c.Mail("someone@sender.example"), c.Rcpt("alice@receiver.example"))
	if err != nil {
		w.t.Fatal(err)
	}
	data, err := c.Data()
	if err != nil {
		w.t.Fatal(err)
	}
	_, err = io.WriteString(data, "From: someone@sender.example\r\nTo: alice@receiver.example\r\nSubject: hello\r\n"+
		"Message-ID: <"+strconv.Itoa(n)+"@sender.example>\r\nDate: Mon, 02 Jan 2006 15:04:05 +0000\r\n\r\nHello.\r\n")
	if err := errors.Join(err, data.Close(), c.Quit()); err != nil {
		w.t.Fatal(err)
	}
}

// wait waits until n mails have arrived.
func (w *world) wait(n int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), deadline)
	defer cancel()
	if _, err := w.sink.Mailbox.Wait(ctx, n); err != nil {
		w.t.Fatalf("mail %d has not arrived: %v", n, err)
	}
}

// last returns the mail that arrived last.
func (w *world) last() lab.Message {
	messages := w.sink.Mailbox.Messages()
	return messages[len(messages)-1]
}

// judged tells whether the milter has seen a mail.
func judged(m lab.Message) bool {
	return strings.Contains(string(m.Data), "Authentication-Results: mail.receiver.example;")
}
