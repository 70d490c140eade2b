package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ruapost/internal/lab"
	"ruapost/internal/testhost"
)

// Who the programs are, for the reports.
const (
	orgName      = "Receiver of Examples"
	reportDomain = "receiver.example"
	reportFrom   = "reports@receiver.example"
	authservID   = "mail.receiver.example"
	dkimSelector = "ruapost"
)

// installation is the three programs beside one Postfix, installed as contrib has
// it: where not told otherwise they use their default paths, and run as a user of
// their own.
type installation struct {
	postfix *postfix

	t *testing.T
}

// ruapostUID is the number of the programs' own user and group.
const ruapostUID = 61234

// contrib is the folder of files that come with the programs, from here.
const contrib = "../contrib"

// install puts the programs into Postfix's root, and makes the world know the key
// that signs the reports.
func install(t *testing.T, w *world, p *postfix) *installation {
	t.Helper()
	r := &installation{postfix: p, t: t}
	p.mount(testhost.Built(), filepath.Join(p.root, "usr/local/sbin"), "", unix.MS_BIND, "")
	p.write("etc/passwd", p.read("etc/passwd")+fmt.Sprintf("ruapost:x:%d:%[1]d::/var/lib/ruapost:/usr/sbin/nologin\n", ruapostUID))
	p.write("etc/group", p.read("etc/group")+fmt.Sprintf("ruapost:x:%d:\n", ruapostUID))
	r.makeFolders()
	// For the certificates of policy hosts and mail servers.
	const authorities = "etc/ssl/certs/ca-certificates.crt"
	p.write(authorities, p.read(authorities)+string(w.ca.PEM()))

	key, err := lab.NewRSAKey(reportDomain, dkimSelector)
	if err != nil {
		t.Fatal(err)
	}
	line, err := key.ZoneLine()
	if err != nil {
		t.Fatal(err)
	}
	w.dns.Add(line)
	keyPEM, err := key.PEM()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(p.root, "etc/ruapost"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.write("etc/ruapost/dkim.pem", string(keyPEM))
	r.configure(reportAll + r.tlsPolicySection())

	p.configure(baseMainCf + r.mainCf())
	return r
}

// mainCf returns what main.cf has for the programs.
func (r *installation) mainCf() string {
	r.t.Helper()
	text := r.contrib("postfix/" + r.postfix.version.mainCf)
	if r.postfix.version.way == log310 {
		text = strings.NewReplacer(":QUERYwithTLSRPT\n", ":QUERY\n", "smtp_tlsrpt_enable = yes", "smtp_tlsrpt_enable = no").Replace(text)
	}
	return text
}

// tlsPolicySection returns the section [tlspolicy], and lets the programs read the log
// if they are to: Postfix would make a file for root alone.
func (r *installation) tlsPolicySection() string {
	r.t.Helper()
	section := "[tlspolicy]\n"
	if r.postfix.version.testing {
		section += "testing_mode = \"report\"\n"
	}
	if r.postfix.version.log {
		section += fmt.Sprintf("maillog = [%q]\n", "/"+mailLog)
		r.postfix.write(mailLog, "")
	}
	return section
}

// baseConfiguration is what differs from the defaults in all tests. A loaded machine
// may be slow to write, and the tests want every record: hence the record_timeout.
const baseConfiguration = `
org_name = "` + orgName + `"
report_domain = "` + reportDomain + `"
[store]
record_timeout = "20s"
[dkim]
domain = "` + reportDomain + `"
selector = "` + dkimSelector + `"
key_file = "/etc/ruapost/dkim.pem"
[milter]
authserv_id = "` + authservID + `"
trusted_networks = ["` + trustedNetwork + `"]
`

// reportAll makes failing mail cause reports whatever domain it claims to be from.
const reportAll = "report_on = \"all\"\n"

// configure writes the configuration file with more lines of the section [milter],
// and sections behind it. Programs that run know nothing of it.
func (r *installation) configure(milter string) {
	r.t.Helper()
	r.postfix.write("etc/ruapost/ruapost.toml", baseConfiguration+milter+"\n")
}

// contrib returns the text of a file that comes with the programs.
func (r *installation) contrib(name string) string {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(contrib, name))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(text)
}

// makeFolders does what systemd-tmpfiles makes of tmpfiles.d on installation.
func (r *installation) makeFolders() {
	r.t.Helper()
	for line := range strings.Lines(r.contrib("systemd/tmpfiles.d/ruapost.conf")) {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) < 5 || f[0] != "d" {
			r.t.Fatalf("tmpfiles.d: this test does not know %q", line)
		}
		mode, err := strconv.ParseUint(f[2], 8, 32)
		if err != nil {
			r.t.Fatalf("tmpfiles.d: %v in %q", err, line)
		}
		path := filepath.Join(r.postfix.root, f[1])
		if err := os.MkdirAll(path, 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.Chown(path, r.id("passwd", f[3]), r.id("group", f[4])); err != nil {
			r.t.Fatal(err)
		}
		if err := syscall.Chmod(path, uint32(mode)); err != nil {
			r.t.Fatal(err)
		}
	}
}

// id returns the number of a user ("passwd") or group ("group") of the root.
func (r *installation) id(file, name string) int {
	r.t.Helper()
	for line := range strings.Lines(r.postfix.read("etc/" + file)) {
		if f := strings.Split(line, ":"); f[0] == name {
			id, err := strconv.Atoi(strings.TrimSpace(f[2]))
			if err != nil {
				r.t.Fatalf("etc/%s: %v in %q", file, err, line)
			}
			return id
		}
	}
	r.t.Fatalf("etc/%s: no %s", file, name)
	return 0
}

// daemon is a running program.
type daemon struct {
	name   string
	cmd    *exec.Cmd    // nil once it was stopped
	output bytes.Buffer // its log
	exited chan error

	t *testing.T
}

// command is a program ready to be started.
func (r *installation) command(name string, args ...string) *exec.Cmd {
	return &exec.Cmd{
		Path: "/usr/local/sbin/" + name,
		Args: append([]string{name}, args...),
		Dir:  "/",
		Env:  []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		SysProcAttr: &syscall.SysProcAttr{
			Chroot:     r.postfix.root,
			Credential: &syscall.Credential{Uid: ruapostUID, Gid: ruapostUID},
		},
	}
}

func (r *installation) startMilter() *daemon {
	r.t.Helper()
	return r.start("ruapost-milter", "unix:milter.sock")
}

func (r *installation) startTLSPolicy() *daemon {
	r.t.Helper()
	return r.start("ruapost-tlspolicy", "unix:policy.sock", "unixgram:tlsrpt.sock")
}

// start starts a daemon and waits until its sockets in run/ruapost answer.
func (r *installation) start(name string, sockets ...string) *daemon {
	r.t.Helper()
	for i, s := range sockets {
		network, socket, _ := strings.Cut(s, ":")
		sockets[i] = network + ":" + filepath.Join(r.postfix.queue, "run/ruapost", socket)
	}
	return startDaemon(r.t, name, r.command(name), sockets...)
}

// startDaemon starts a daemon and waits until its sockets answer, each given as
// "network:path".
func startDaemon(t *testing.T, name string, cmd *exec.Cmd, sockets ...string) *daemon {
	t.Helper()
	d := &daemon{name: name, exited: make(chan error, 1), t: t}
	cmd.Stdout, cmd.Stderr = &d.output, &d.output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.cmd = cmd
	go func() { d.exited <- cmd.Wait() }()
	t.Cleanup(d.stop)
	for _, s := range sockets {
		network, path, _ := strings.Cut(s, ":")
		eventually(t, name+" listens on "+path, func() bool {
			select {
			case err := <-d.exited:
				d.exited <- err // for stop
				t.Fatalf("%s ended: %v", name, err)
			default:
			}
			c, err := net.Dial(network, path)
			if err != nil {
				return false
			}
			c.Close()
			return true
		})
	}
	return d
}

// stop ends the daemon as systemd would. It must not take long, and must succeed.
// Further calls do nothing.
func (d *daemon) stop() {
	d.t.Helper()
	if d.cmd == nil {
		return
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	var err error
	select {
	case err = <-d.exited:
	case <-time.After(deadline):
		d.cmd.Process.Kill()
		err = fmt.Errorf("still running %v after SIGTERM: %w", deadline, <-d.exited)
	}
	d.cmd = nil
	if err != nil {
		d.t.Errorf("%s: %v", d.name, err)
	}
	if d.t.Failed() {
		d.t.Logf("log of %s:\n%s", d.name, &d.output)
	}
}

// sendNow is the reporter's command for all that has been recorded so far, although
// the day is not over.
var sendNow = []string{"send", "--now"}

// report runs the reporter and returns what it prints.
func (r *installation) report(args ...string) string {
	r.t.Helper()
	cmd := r.command("ruapost-reporter", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r.t.Cleanup(func() {
		if r.t.Failed() {
			r.t.Logf("log of ruapost-reporter %v:\n%s%s", args, &stdout, &stderr)
		}
	})
	if err != nil {
		r.t.Errorf("ruapost-reporter %v: %v", args, err)
	}
	return stdout.String()
}
