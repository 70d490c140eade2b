package deb

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ruapost/internal/testhost"
)

func eachRelease(t *testing.T, test func(t *testing.T, release string)) {
	for _, release := range releases {
		t.Run(release, func(t *testing.T) { test(t, release) })
	}
}

// dpkg, as unattended upgrades call it: files that the administrator has changed stay.
var dpkg = []string{"dpkg", "--force-confdef", "--force-confold"}

// newPackage and oldPackage are the packages in a root.
const (
	newPackage = "/mnt/" + newer
	oldPackage = "/mnt/" + older
)

// The same sources make the same bytes.
func TestReproducible(t *testing.T) {
	read := func(name string) []byte {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(testhost.Built(), name))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	if !bytes.Equal(read(older), read(olderToo)) {
		t.Error("the package is another when it is made once more")
	}
}

// An installation, an upgrade, a removal and a purge where systemd does not run, as when an
// image is made.
func TestInstall(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		r := newChroot(t, release)
		before := r.files()
		mainCf := "# the administrator's\n"
		r.write("/etc/postfix/main.cf", mainCf)

		said := r.run(append(dpkg, "-i", oldPackage)...)
		checkSaid(t, said)
		if !strings.Contains(said, "ruapost-reporter setup") {
			t.Errorf("the installation does not say what is to be done:\n%s", said)
		}
		checkFiles(r)
		checkUnits(r)
		if got := r.read("/etc/postfix/main.cf"); got != mainCf {
			t.Errorf("main.cf was changed: %s", got)
		}

		// What the administrator has decided outlasts an upgrade.
		const mine = "report_domain = \"receiver.example\"\n"
		r.write("/etc/ruapost/ruapost.toml", mine)
		r.run("systemctl", "disable", "ruapost-reporter.timer")
		r.run("systemctl", "enable", "ruapost-milter.service")
		r.write("/var/lib/ruapost/ruapost.db", "store")
		checkSaid(t, r.run(append(dpkg, "-i", newPackage)...))
		if got := r.read("/etc/ruapost/ruapost.toml"); got != mine {
			t.Errorf("the upgrade changed the configuration: %s", got)
		}
		if got := r.read("/etc/ruapost/ruapost.toml.dpkg-dist"); !strings.HasSuffix(got, newDefault) {
			t.Error("the new configuration is not there to be compared")
		}
		checkEnabled(r, "ruapost-milter.service", "ruapost-milter.socket", "ruapost-policy.socket", "ruapost-tlsrpt.socket")

		// A removal stands for "come back later": it leaves what an installation would miss.
		checkSaid(t, r.run("dpkg", "-r", "ruapost"))
		for _, file := range []string{"/etc/ruapost/ruapost.toml", "/var/lib/ruapost/ruapost.db"} {
			if !r.exists(file) {
				t.Errorf("the removal took %s", file)
			}
		}
		for _, file := range []string{"/usr/sbin/ruapost-milter", "/usr/lib/systemd/system/ruapost-milter.socket"} {
			if r.exists(file) {
				t.Errorf("the removal left %s", file)
			}
		}

		checkSaid(t, r.run("dpkg", "-P", "ruapost"))
		after := r.files()
		delete(before, "/etc/postfix/main.cf")
		delete(after, "/etc/postfix/main.cf")
		for _, file := range slices.Sorted(maps.Keys(after)) {
			if _, ok := before[file]; !ok {
				t.Errorf("the purge left %s", file)
			}
		}
		for _, file := range slices.Sorted(maps.Keys(before)) {
			if after[file] != before[file] {
				t.Errorf("%s was %q, is %q after the purge", file, before[file], after[file])
			}
		}
		// Else its number could be another's one day, with what files of it are left.
		r.run("getent", "passwd", "ruapost")
	})
}

const notEmpty = "dpkg: warning: while removing ruapost, directory '/usr/lib/systemd/system-preset' not empty so not removed"

// checkSaid fails the test for what an administrator would take for a mistake.
func checkSaid(t *testing.T, said string) {
	t.Helper()
	// In Debian 12 dpkg knows the folder of systemd's own presets by its name in /lib only.
	lower := strings.ToLower(strings.ReplaceAll(said, notEmpty, ""))
	for _, bad := range []string{"error", "warning", "failed", "cannot", "not found", "no such"} {
		if strings.Contains(lower, bad) {
			t.Errorf("%q was said:\n%s", bad, said)
		}
	}
}

// checkFiles looks at what the package has installed and made.
func checkFiles(r *root) {
	r.t.Helper()
	for file, want := range map[string]string{
		"/usr/sbin/ruapost-milter":                                "755 root:root",
		"/usr/sbin/ruapost-tlspolicy":                             "755 root:root",
		"/usr/sbin/ruapost-reporter":                              "755 root:root",
		"/etc/ruapost":                                            "755 root:root",
		"/etc/ruapost/ruapost.toml":                               "644 root:root",
		"/var/lib/ruapost":                                        "2770 ruapost:ruapost",
		"/var/lib/ruapost/outbox":                                 "2770 ruapost:ruapost",
		"/var/spool/postfix/run/ruapost":                          "2750 ruapost:postfix",
		"/usr/share/doc/ruapost/copyright":                        "644 root:root",
		"/usr/share/doc/ruapost/changelog.gz":                     "644 root:root",
		"/usr/share/doc/ruapost/README.md":                        "644 root:root",
		"/usr/share/doc/ruapost/docs/package.md":                  "644 root:root",
		"/usr/share/doc/ruapost/examples/postfix/bounces":         "644 root:root",
		"/usr/share/man/man5/ruapost.toml.5.gz":                   "644 root:root",
		"/usr/share/man/man8/ruapost-milter.8.gz":                 "644 root:root",
		"/usr/share/man/man8/ruapost-tlspolicy.8.gz":              "644 root:root",
		"/usr/share/man/man8/ruapost-reporter.8.gz":               "644 root:root",
		"/usr/lib/systemd/system-preset/80-ruapost.preset":        "644 root:root",
		"/usr/lib/sysusers.d/ruapost.conf":                        "644 root:root",
		"/usr/lib/tmpfiles.d/ruapost.conf":                        "644 root:root",
		"/usr/share/bash-completion/completions/ruapost-reporter": "644 root:root",
	} {
		if !r.exists(file) {
			r.t.Errorf("there is no %s", file)
		} else if got := r.owner(file); got != want {
			r.t.Errorf("%s has %s, want %s", file, got, want)
		}
	}
	if got := r.run("dpkg", "--verify", "ruapost"); got != "" {
		r.t.Errorf("what was installed is not what was packed:\n%s", got)
	}
	if got := r.run("dpkg-query", "-W", "-f", "${Conffiles}", "ruapost"); !strings.Contains(got, "/etc/ruapost/ruapost.toml") || strings.Count(got, "/") != 3 {
		r.t.Errorf("configuration files: %s", got)
	}
	for file := range strings.Lines(r.run("dpkg-query", "-L", "ruapost")) {
		file = strings.TrimSpace(file)
		if strings.HasPrefix(file, "/usr/local") || strings.Contains(file, "/man/") && filepath.Ext(file) != "" && filepath.Ext(file) != ".gz" {
			r.t.Errorf("%s does not belong into a package", file)
		}
	}
	for _, program := range []string{"ruapost-milter", "ruapost-tlspolicy", "ruapost-reporter"} {
		r.run("runuser", "-u", "ruapost", "--", program, "-check")
		r.run("bash", "-c", ". /usr/share/bash-completion/completions/"+program+" && complete -p "+program)
	}
}

// checkUnits has systemd of the root look at the units.
func checkUnits(r *root) {
	r.t.Helper()
	units, err := filepath.Glob(r.path("/usr/lib/systemd/system/ruapost-*"))
	if err != nil || len(units) < 7 {
		r.t.Fatalf("units: %v, %v", units, err)
	}
	var names []string
	for _, unit := range units {
		names = append(names, filepath.Base(unit))
	}
	if got := r.run(append([]string{"systemd-analyze", "verify", "--man=no"}, names...)...); got != "" {
		r.t.Errorf("systemd-analyze verify: %s", got)
	}
	for _, name := range names {
		text := r.read("/usr/lib/systemd/system/" + name)
		if strings.Contains(text, "/usr/local") {
			r.t.Errorf("%s: names /usr/local", name)
		}
		if filepath.Ext(name) == ".service" {
			// 19 stands for 1.9: the command fails above it.
			said := r.run("systemd-analyze", "security", "--offline=true", "--threshold=19", "--no-pager", name)
			lines := strings.Split(strings.TrimSpace(said), "\n")
			r.t.Log(lines[len(lines)-1])
		}
	}
	checkEnabled(r, "ruapost-milter.socket", "ruapost-policy.socket", "ruapost-reporter.timer", "ruapost-tlsrpt.socket")
}

// checkEnabled compares the units that start at boot.
func checkEnabled(r *root, want ...string) {
	r.t.Helper()
	links, err := filepath.Glob(r.path("/etc/systemd/system/*.wants/ruapost-*"))
	if err != nil {
		r.t.Fatal(err)
	}
	var got []string
	for _, link := range links {
		got = append(got, filepath.Base(link))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		r.t.Errorf("enabled are %v, want %v", got, want)
	}
}

// Whoever removes the package although Postfix still asks for it hears what to do: the
// policy daemon's absence defers mail. What is not ours to change is left.
func TestRemoveToldPostfix(t *testing.T) {
	eachRelease(t, func(t *testing.T, release string) {
		r := newChroot(t, release)
		mainCf := "compatibility_level = 3.6\nsmtp_tls_policy_maps = socketmap:unix:run/ruapost/policy.sock:QUERY\n"
		r.write("/etc/postfix/main.cf", mainCf)
		r.run(append(dpkg, "-i", oldPackage)...)
		said := r.run("dpkg", "-r", "ruapost")
		for _, want := range []string{"MAIL WAITS", "smtp_tls_policy_maps = socketmap:unix:run/ruapost/policy.sock:QUERY", "Take the word that begins with \"socketmap:\"", "postfix -c /etc/postfix reload"} {
			if !strings.Contains(said, want) {
				t.Errorf("%q is missing in:\n%s", want, said)
			}
		}
		if got := r.read("/etc/postfix/main.cf"); got != mainCf {
			t.Errorf("main.cf was changed: %s", got)
		}
	})
}

// What setup wrote is taken back even if the configuration has a mistake: then, too, mail
// would wait.
func TestRemoveBrokenConfiguration(t *testing.T) {
	r := newChroot(t, "bookworm")
	r.write("/etc/postfix/main.cf", "compatibility_level = 3.6\n")
	r.run(append(dpkg, "-i", oldPackage)...)
	r.run("sh", "-c", "ruapost-reporter setup --apply || true")
	const table = "socketmap:unix:run/ruapost/policy.sock:QUERY"
	r.run("postconf", "-e", "smtp_tls_policy_maps = inline:{{other.example=none}}, "+table)
	r.write("/etc/postfix/ruapost-setup.undo", strings.Replace(r.read("/etc/postfix/ruapost-setup.undo"), `"parameters": [`,
		`"parameters": [{"name": "smtp_tls_policy_maps", "after": "`+table+`"},`, 1))
	r.write("/etc/ruapost/ruapost.toml", "report_domian = \"receiver.example\"\n")
	said := r.run("dpkg", "-r", "ruapost")
	got := r.read("/etc/postfix/main.cf")
	if strings.Contains(got, "ruapost") || !strings.Contains(got, "inline:{{other.example=none}}") || strings.Contains(said, "POSTFIX STILL ASKS") {
		t.Errorf("main.cf is\n%s\nand the removal says:\n%s", got, said)
	}
}

// Mail waits for the policy daemon alone. No command is offered that would take out what
// others have in the same list.
func TestRemoveToldOthers(t *testing.T) {
	r := newChroot(t, "bookworm")
	r.write("/etc/postfix/main.cf", "compatibility_level = 3.6\nsmtpd_milters = inet:localhost:8891, unix:run/ruapost/milter.sock\n"+
		"transport_maps = regexp:/etc/postfix/ruapost_bounces\n")
	r.run(append(dpkg, "-i", oldPackage)...)
	said := r.run("dpkg", "-r", "ruapost")
	for _, want := range []string{"default_action=accept is there, too:\n\nsmtpd_milters = ", "Bounces of reports wait in the queue:\n\ntransport_maps = ", "docs/bounces.md"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is missing in:\n%s", want, said)
		}
	}
	for _, wrong := range []string{"MAIL WAITS", "postconf -c"} {
		if strings.Contains(said, wrong) {
			t.Errorf("it says %q:\n%s", wrong, said)
		}
	}
}

// Other instances of Postfix are left in peace, too: what setup wrote there is taken back, and
// what is left is told.
func TestRemoveToldInstances(t *testing.T) {
	r := newChroot(t, "trixie")
	const plain = "compatibility_level = 3.6\n"
	const ours = "smtp_tls_policy_maps = socketmap:unix:run/ruapost/policy.sock:QUERY\n"
	r.run("sh", "-c", "cp -a /etc/postfix /etc/postfix-a; cp -a /etc/postfix /etc/postfix-b")
	r.write("/etc/postfix/main.cf", plain+"multi_instance_directories = /etc/postfix-a, /etc/postfix-b\n")
	r.write("/etc/postfix-a/main.cf", plain)
	r.write("/etc/postfix-b/main.cf", plain+ours)
	r.run(append(dpkg, "-i", oldPackage)...)
	r.run("sh", "-c", "ruapost-reporter setup -postfix /etc/postfix-a --apply || true")
	r.run("postconf", "-c", "/etc/postfix-a", "-e", strings.TrimSpace(ours))
	r.write("/etc/postfix-a/ruapost-setup.undo", strings.Replace(r.read("/etc/postfix-a/ruapost-setup.undo"), `"parameters": [`,
		`"parameters": [{"name": "smtp_tls_policy_maps", "after": "socketmap:unix:run/ruapost/policy.sock:QUERY"},`, 1))
	said := r.run("dpkg", "-r", "ruapost")
	if got := r.read("/etc/postfix-a/main.cf"); strings.Contains(got, "ruapost") || r.exists("/etc/postfix-a/ruapost-setup.undo") {
		t.Errorf("what setup wrote is still there:\n%s\n%s", got, said)
	}
	if !strings.Contains(said, "In /etc/postfix-b:") || strings.Contains(said, "In /etc/postfix-a:") {
		t.Errorf("the removal says:\n%s", said)
	}
}

// Postfix may come after the package: its installation makes the folder for the sockets.
func TestPostfixComesLater(t *testing.T) {
	r := newChroot(t, "trixie")
	r.run("dpkg", "-P", "--force-depends", "postfix")
	r.run("sh", "-c", "rm -rf /var/spool/postfix; ! getent group postfix || groupdel -f postfix")
	// Another's sendmail, and a Postfix that makes its group as Debian's does.
	build := func(name, control, postinst, program string) string {
		dir := "/tmp/" + name
		for _, d := range []string{"/DEBIAN", "/usr/sbin"} {
			if err := os.MkdirAll(r.path(dir+d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		r.write(dir+"/DEBIAN/control", "Package: "+name+"\nVersion: 3.10\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: test\n"+control)
		r.write(dir+"/DEBIAN/postinst", "#!/bin/sh\nset -e\n"+postinst)
		r.write(dir+"/usr/sbin/"+program, "#!/bin/sh\n")
		r.run("chmod", "755", dir+"/DEBIAN/postinst", dir+"/usr/sbin/"+program)
		r.run("dpkg-deb", "-b", dir, dir+".deb")
		return dir + ".deb"
	}
	r.run("dpkg", "-i", build("othermta", "Provides: mail-transport-agent\n", "", "sendmail"))
	checkSaid(t, r.run(append(dpkg, "-i", oldPackage)...))
	if r.exists("/var/spool/postfix") {
		t.Error("there is a queue directory without Postfix")
	}
	if got := r.owner("/var/lib/ruapost"); got != "2770 ruapost:ruapost" {
		t.Errorf("/var/lib/ruapost has %s", got)
	}
	checkSaid(t, r.run("dpkg", "-i", build("postfix", "", "groupadd -r postfix\nmkdir -p /var/spool/postfix\n", "postfix")))
	if got := r.owner("/var/spool/postfix/run/ruapost"); got != "2750 ruapost:postfix" {
		t.Errorf("/var/spool/postfix/run/ruapost has %s", got)
	}
}
