package docs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ruapost/internal/dnstest"
	"ruapost/internal/testhost"
)

// The commands of the pages that are not ours run in a Debian of e2e/setup.sh that is
// booted in a container, with its systemd, Postfix, rspamd and the others. This test binary
// starts itself again in namespaces of its own for that; what it changes lies in memory.

// envJob is how the first process tells the second what to do: a file.
const envJob = "RUAPOST_DOCS_JOB"

func TestMain(m *testing.M) {
	if file := os.Getenv(envJob); file != "" && testhost.Inside() {
		if err := work(file); err != nil {
			fmt.Fprintln(os.Stderr, "docs:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	var err error
	if binDir, err = os.MkdirTemp("", "ruapost-docs-"); err != nil {
		fmt.Fprintln(os.Stderr, "docs:", err)
		os.Exit(1)
	}
	status := m.Run()
	os.RemoveAll(binDir)
	os.Exit(status)
}

// debian is the folder of Debian 13 with Postfix 3.10.
func debian() string { return filepath.Join(testhost.CacheDir(), "trixie") }

// needDebian returns false, and says so, if the test cannot run here and need not.
func needDebian(t *testing.T) bool {
	t.Helper()
	err := errors.New("they need root")
	if os.Geteuid() == 0 {
		_, err = os.Stat(filepath.Join(debian(), "usr/sbin/postfix"))
	}
	if err == nil {
		return true
	}
	if err := testhost.LeaveOut("docs: commands in a Debian", err); err != nil {
		t.Fatal(err)
	}
	return false
}

// job is what is to be done in the Debian, in this order.
type job struct {
	Programs string // folder of ours
	Source   string // the top of the project
	Debian   string
	Scratch  string // an empty folder
	Files    []file // as the pages have them
	Commands []command
}

func newJob(t *testing.T) *job {
	t.Helper()
	j := &job{Programs: bin(t), Debian: debian(), Scratch: t.TempDir()}
	var err error
	if j.Source, err = filepath.Abs(".."); err != nil {
		t.Fatal(err)
	}
	return j
}

// add adds a command, and what is to be looked at afterwards.
func (j *job) add(c command) {
	j.Commands = append(j.Commands, c)
	if probe := probes[c.Text]; probe != "" {
		j.Commands = append(j.Commands, command{c.Page, c.Line, probe})
	}
}

// file is text for the end of a file.
type file struct{ Path, Text string }

// result is what became of a command.
type result struct {
	Status int
	Output string
}

// elsewhere are commands that do not run here, by their beginning, and why.
var elsewhere = map[string]string{
	"make ":                              "the Makefile runs this test",
	"apt ":                               "e2e/deb installs and removes the package",
	"podman ":                            "e2e/container runs them",
	"podman-compose ":                    "the same",
	"install -m 644 contrib/prometheus/": "Prometheus is not in that Debian",
	"promtool ":                          "e2e/metrics runs it",
	"postmap -q gmail.com socketmap:inet:127.0.0.1:8642:QUERY": "postfix-tlspol is not in Debian; the same runs with another socket",
}

// statuses are those of commands that do not end with 0 here, by their beginning.
var statuses = map[string]struct {
	status int
	why    string
}{
	"ruapost-reporter check":           {1, "the domain has no records here, which is a fault"},
	"grep -rl opendmarc ":              {2, "the folder of crontabs is not there, and no file is found"},
	"journalctl -u ruapost-milter -g ": {1, "no line is found"},
}

// probes are commands that must succeed once one of the pages was run: what it is there
// for has come about.
var probes = map[string]string{
	"rspamadm configtest": "rspamadm configdump dmarc | grep 'enabled = false'",
	"systemctl start ruapost-milter.socket ruapost-milter": "journalctl -u ruapost-milter | grep address=192.0.2.10:8890",
	"rm -r /var/lib/ruapost":                               "! systemctl is-active ruapost-milter ruapost-tlspolicy",
	"systemctl restart ruapost-tlspolicy":                  "systemctl is-active ruapost-tlspolicy && systemctl show -P SupplementaryGroups ruapost-tlspolicy | grep adm",
	"systemctl restart opendkim":                           waitFor("test -S /var/spool/postfix/run/opendkim/opendkim.sock"),
	"systemctl disable --now opendmarc":                    "! systemctl is-active opendmarc",
	"systemctl disable --now ruapost-reporter.timer":       "! systemctl is-active ruapost-reporter.timer",
}

// waitFor returns a command that waits until another one succeeds: what it looks for other
// programs do in the background.
func waitFor(text string) string {
	return "for i in $(seq 100); do " + text + " && exit 0; sleep 0.1; done; exit 1"
}

// prefixOf returns the longest entry of a table that a command begins with, empty if none.
func prefixOf[T any](text string, table map[string]T) string {
	longest := ""
	for prefix := range table {
		if strings.HasPrefix(text, prefix) && len(prefix) > len(longest) {
			longest = prefix
		}
	}
	return longest
}

// inText are commands in the text that run, too: those that are whole.
var inText = regexp.MustCompile(`^(ruapost-reporter setup( |$)|systemctl (cat|disable|enable|reload|restart|start|status|stop) (--now )?[a-z]|postfix reload$|postconf -?[a-z]|postqueue -p|systemd-tmpfiles |chown |df |ls |usermod )`)

// TestCommandsOfOthers runs the commands that are not ours, page by page, beside a Postfix
// with our lines in main.cf and our daemons.
func TestCommandsOfOthers(t *testing.T) {
	t.Parallel()
	if !needDebian(t) {
		return
	}
	j := newJob(t)
	used := map[string]bool{} // entries of the tables
	for _, p := range pages(t) {
		for _, part := range piecesOf(t, p) {
			switch part.kind {
			case otherFile:
				j.Files = append(j.Files, file{part.path, part.text})
			case commands:
				all := commandsOf(t, part)
				// Those of ours that set up or try an installation belong here, too.
				setUp := p.name == "README.md" && slices.ContainsFunc(all, func(c command) bool { return !strings.HasPrefix(c.Text, "ruapost-") })
				for _, c := range all {
					prefix := prefixOf(c.Text, elsewhere)
					used[prefix] = true
					if prefix == "" && (!c.own() || setUp) {
						j.add(c)
					}
				}
			}
		}
		for _, s := range p.spans {
			if inText.MatchString(s.text) && !strings.Contains(s.text, "...") {
				j.add(command{p.name, s.line, s.text})
			}
		}
	}
	fragments := fragmentsOf(t)
	for i, f := range fragments {
		j.Files = append(j.Files, f.files(i)...)
		j.Commands = append(j.Commands, command{f.page, f.line, fmt.Sprintf("postconf -c /fragments/%d -n 2>&1 >/dev/null | grep . && exit 1 || true", i)})
	}
	for i, r := range j.run(t) {
		c := j.Commands[i]
		prefix := prefixOf(c.Text, statuses)
		used[prefix] = true
		want := statuses[prefix].status
		if testing.Verbose() {
			t.Logf("%s:%d: %s: exit status %d\n%s", c.Page, c.Line, c.Text, r.Status, r.Output)
		}
		if r.Status != want {
			t.Errorf("%s:%d: %s: exit status %d, want %d\n%s", c.Page, c.Line, c.Text, r.Status, want, r.Output)
		}
	}
	for _, prefix := range append(slices.Collect(maps.Keys(elsewhere)), slices.Collect(maps.Keys(statuses))...) {
		if !used[prefix] {
			t.Errorf("elsewhere or statuses has %q, which no command begins with", prefix)
		}
	}
}

// TestBesideOpenDMARC sets up the week beside OpenDMARC as coming-from.md has it, with
// Debian's OpenDKIM and OpenDMARC, and sends a mail from outside: both find the same,
// neither removes what the other writes, and both record.
func TestBesideOpenDMARC(t *testing.T) {
	t.Parallel()
	if !needDebian(t) {
		return
	}
	j := newJob(t)
	for _, part := range piecesOf(t, readPage(t, "coming-from.md", "docs/coming-from.md")) {
		if part.kind == mainCf && strings.Contains(part.text, "opendmarc.sock") || part.kind == settings && strings.Contains(part.text, "authserv_id") {
			j.Files = append(j.Files, file{part.path, part.text})
		}
	}
	if len(j.Files) != 2 {
		t.Fatalf("the page has %d of 2 files", len(j.Files))
	}
	j.Files = append(j.Files,
		file{"/root/opendkim.conf", "Mode v\nUserID opendkim\nUMask 007\nPidFile /run/opendkim/opendkim.pid\n" +
			"Socket local:/var/spool/postfix/run/opendkim/opendkim.sock\nAuthservID mail.example.org\nAlwaysAddARHeader yes\n"},
		file{"/root/opendmarc.conf", "UserID opendmarc\nUMask 0002\nPidFile /run/opendmarc/opendmarc.pid\n" +
			"Socket local:/var/spool/postfix/run/opendmarc/opendmarc.sock\nAuthservID mail.example.org\nSPFSelfValidate yes\n" +
			"HistoryFile /run/opendmarc/history\n"},
		file{"/root/mail.py", `import smtplib
s = smtplib.SMTP("192.0.2.10", 25, source_address=("192.0.2.10", 0), timeout=20)
s.sendmail("a@example.com", ["root@example.org"], "From: a@example.com\r\nTo: root@example.org\r\nSubject: x\r\n\r\nx\r\n")
`})
	j.Commands = []command{
		{Text: "cp /root/*.conf /etc/ && for m in opendkim opendmarc; do install -d -o $m -g postfix -m 750 /var/spool/postfix/run/$m; " +
			"usermod -a -G $m postfix; done && systemctl reset-failed && systemctl restart opendkim opendmarc postfix"},
		{Text: waitFor("test -S /var/spool/postfix/run/opendkim/opendkim.sock && test -S /var/spool/postfix/run/opendmarc/opendmarc.sock")},
		{Text: "python3 /root/mail.py"},
		{Text: waitFor("grep -q '^Subject: x' /var/mail/root && cat /var/mail/root")},
		{Text: "cat /run/opendmarc/history"},
		{Text: "ruapost-reporter list example.com"},
	}
	results := j.run(t)
	for i, r := range results {
		if r.Status != 0 {
			t.Errorf("%s: exit status %d\n%s", j.Commands[i].Text, r.Status, r.Output)
		}
	}
	for i, want := range map[int][]string{
		3: {"Authentication-Results: mail.example.org; dmarc=fail (p=reject", "Authentication-Results: ruapost.mail.example.org;", "\tdmarc=fail"},
		4: {"from example.com", "rua mailto:dmarc@example.com"},
		5: {"failed 1 of 1"},
	} {
		for _, text := range want {
			if !strings.Contains(results[i].Output, text) {
				t.Errorf("%s: no %q in\n%s", j.Commands[i].Text, text, results[i].Output)
			}
		}
	}
}

// fragment is a piece of main.cf with all that its page has for master.cf.
type fragment struct {
	page   string
	line   int
	mainCf string
	master string
}

func fragmentsOf(t *testing.T) []fragment {
	t.Helper()
	var all []fragment
	for _, p := range pages(t) {
		var mains []piece
		var master string
		for _, part := range piecesOf(t, p) {
			switch part.kind {
			case mainCf:
				mains = append(mains, part)
			case masterCf:
				master += part.text
			}
		}
		for _, part := range mains {
			all = append(all, fragment{p.name, part.line, part.text, master})
		}
		if len(mains) == 0 && master != "" {
			t.Errorf("%s: lines for master.cf without any for main.cf are not tested", p.name)
		}
	}
	if len(all) < 4 {
		t.Errorf("%d pieces of main.cf were found", len(all))
	}
	return all
}

func (f fragment) files(i int) []file {
	dir := fmt.Sprintf("/fragments/%d/", i)
	return []file{
		{dir + "main.cf", "compatibility_level = 3.6\n" + f.mainCf},
		{dir + "master.cf", "smtp unix - - y - - smtp\n" + f.master},
	}
}

// run has another process do the job, and returns what became of each command.
func (j *job) run(t *testing.T) []result {
	t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	in := filepath.Join(t.TempDir(), "job")
	if err := os.WriteFile(in, text, 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	if err := testhost.Again(ctx, envJob+"="+in, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	var results []result
	if err := json.Unmarshal(stdout.Bytes(), &results); err != nil || len(results) != len(j.Commands) {
		t.Fatalf("%v, %d results of %d\n%s", err, len(results), len(j.Commands), &stderr)
	}
	return results
}

// work does the job in a file, as the first process of its namespaces: it boots the Debian,
// in which a service runs the commands.
func work(in string) error {
	text, err := os.ReadFile(in)
	if err != nil {
		return err
	}
	var j job
	if err := json.Unmarshal(text, &j); err != nil {
		return err
	}
	// The host's own address is one of docs/many-hosts.md; systemd-nspawn leaves things in /run.
	if err := testhost.SetUp([]string{j.Scratch, "/run"}, "192.0.2.10"); err != nil {
		return err
	}
	dns, err := dnstest.Start("127.0.0.1:53")
	if err != nil {
		return err
	}
	defer dns.Close()
	dns.Add(zones)
	dns.Add(`gmail.com. 300 IN MX 10 mx.gmail.com.
		mx.gmail.com. 300 IN A 192.0.2.1
		_25._tcp.mx.gmail.com. 300 IN TLSA 3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef`)
	root, err := j.mountRoot()
	if err != nil {
		return err
	}
	if err := j.install(root); err != nil {
		return err
	}
	// It has the network of this process, and so its name server.
	boot := exec.Command("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--link-journal=no", "--resolv-conf=off",
		"--timezone=off", "--console=pipe", "--boot", "-D", root, "systemd.show_status=false")
	said, bootErr := boot.CombinedOutput()
	results := make([]result, len(j.Commands))
	for i := range results {
		path := filepath.Join(root, "job", fmt.Sprint(i))
		status, err := os.ReadFile(path + ".status")
		if err != nil {
			return fmt.Errorf("%w (%w: %s)", err, bootErr, said)
		}
		results[i].Status, _ = strconv.Atoi(strings.TrimSpace(string(status)))
		output, _ := os.ReadFile(path + ".output")
		results[i].Output = string(output[:min(len(output), 2000)])
	}
	return json.NewEncoder(os.Stdout).Encode(results)
}

// mountRoot mounts Debian with memory over it.
func (j *job) mountRoot() (root string, err error) {
	root = filepath.Join(j.Scratch, "root")
	upper, layer := filepath.Join(j.Scratch, "upper"), filepath.Join(j.Scratch, "work")
	for _, dir := range []string{root, upper, layer} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", err
		}
	}
	err = unix.Mount("overlay", root, "overlay", 0, "lowerdir="+j.Debian+",upperdir="+upper+",workdir="+layer)
	return root, err
}

// install puts into the root what somebody has who follows the README, the project's
// files, built; a Postfix that is set up; the files of the pages; and the service.
func (j *job) install(root string) error {
	src := filepath.Join(root, "root/src")
	contrib, err := os.ReadFile(filepath.Join(j.Source, "contrib/postfix/main.cf-3.10"))
	err = errors.Join(err,
		os.MkdirAll(src, 0o755),
		os.CopyFS(filepath.Join(src, "bin"), os.DirFS(j.Programs)),
		os.CopyFS(filepath.Join(src, "contrib"), os.DirFS(filepath.Join(j.Source, "contrib"))),
		replace(root+"/etc/resolv.conf", "nameserver 127.0.0.1\noptions trust-ad\n", 0o644),
		replace(root+"/etc/hosts", "127.0.0.1 localhost\n127.0.0.1 mail.example.org mail\n", 0o644),
		replace(root+"/etc/hostname", "mail\n", 0o644),
		replace(root+"/etc/postfix/main.cf", "compatibility_level = 3.6\nmyhostname = mail.example.org\nmydestination = example.org\n"+
			"local_recipient_maps =\n"+string(contrib), 0o644),
		// Debian's minimum has no sudo.
		replace(root+"/usr/local/bin/sudo", "#!/bin/sh\n[ \"$1\" = -u ] || exit 1\nuser=$2\nshift 2\nexec runuser -u \"$user\" -- \"$@\"\n", 0o755),
		// The name server is another one.
		os.Symlink("/dev/null", root+"/etc/systemd/system/unbound.service"),
		os.MkdirAll(root+"/etc/systemd/system/multi-user.target.wants", 0o755),
		replace(root+"/etc/systemd/system/job.service", jobUnit, 0o644),
		os.Symlink("/etc/systemd/system/job.service", root+"/etc/systemd/system/multi-user.target.wants/job.service"),
		os.Mkdir(root+"/job", 0o755),
		replace(root+"/job/run", j.script(), 0o755))
	for _, f := range j.Files {
		err = errors.Join(err, add(filepath.Join(root, f.Path), f.Text))
	}
	for i, c := range j.Commands {
		text := c.Text
		for _, p := range placeholders {
			if !strings.Contains(p.out, "$") {
				text = strings.ReplaceAll(text, p.in, p.out)
			}
		}
		err = errors.Join(err, replace(fmt.Sprintf("%s/job/%d.command", root, i), text+"\n", 0o644))
	}
	return err
}

const jobUnit = `[Unit]
After=postfix.service rspamd.service
[Service]
Type=exec
ExecStart=/job/run
WorkingDirectory=/root/src
Environment=HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
`

// script installs ruapost and runs all commands. What a page has stopped runs again when
// the next one begins.
func (j *job) script() string {
	var b strings.Builder
	b.WriteString(`#!/bin/sh
install bin/ruapost-* /usr/local/sbin/
install -d /etc/ruapost /etc/sysusers.d /etc/tmpfiles.d
install -m 644 contrib/systemd/*.service contrib/systemd/*.socket contrib/systemd/*.timer /etc/systemd/system/
install -m 644 contrib/systemd/sysusers.d/ruapost.conf /etc/sysusers.d/
install -m 644 contrib/systemd/tmpfiles.d/ruapost.conf /etc/tmpfiles.d/
systemd-sysusers
systemd-tmpfiles --create
systemctl daemon-reload
`)
	page := "none"
	for i, c := range j.Commands {
		if c.Page != page {
			b.WriteString("systemctl reset-failed\nsystemctl enable --now ruapost-milter.socket ruapost-milter ruapost-policy.socket " +
				"ruapost-tlsrpt.socket ruapost-tlspolicy ruapost-reporter.timer\n")
		}
		page = c.Page
		fmt.Fprintf(&b, "timeout 30 sh /job/%d.command >/job/%[1]d.output 2>&1 </dev/null\necho $? >/job/%[1]d.status\n", i)
	}
	b.WriteString("exec systemctl --force --force poweroff\n")
	return b.String()
}

// replace writes a file that may be a link out of the root.
func replace(path, text string, mode os.FileMode) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, []byte(text), mode)
}

// add writes to the end of a file.
func add(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// TestPostfixSays looks for the texts that trouble.md quotes in Postfix's programs.
func TestPostfixSays(t *testing.T) {
	if !needDebian(t) {
		return
	}
	files, err := filepath.Glob(debian() + "/usr/lib/postfix/*.so*")
	more, err2 := filepath.Glob(debian() + "/usr/lib/postfix/sbin/*")
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, file := range append(files, more...) {
		info, err := os.Stat(file)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range postfixSays {
			found[s] = found[s] || bytes.Contains(text, []byte(s))
		}
	}
	for _, s := range postfixSays {
		if !found[s] {
			t.Errorf("Postfix does not say %q", s)
		}
	}
}
