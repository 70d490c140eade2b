// Package deb installs the Debian package in Debian 12 and 13, upgrades, removes and
// purges it: in a root where nothing runs, and in one that systemd has booted, with
// Postfix and mail.
//
// The tests need root on Debian and the folders that e2e/setup.sh makes. The test binary
// starts itself again in namespaces of its own, where the name server and the Internet
// are the tests' own. systemd is started as the first process of a namespace below, with
// control groups of its own.
package deb

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ruapost/internal/testhost"
)

// envBoot tells a process in the namespaces what root to boot.
const envBoot = "RUAPOST_DEB_BOOT"

// The packages, below the folder that testhost.Built returns.
const (
	older    = "a/ruapost_1.0_" + runtime.GOARCH + ".deb"
	olderToo = "b/ruapost_1.0_" + runtime.GOARCH + ".deb" // made once more
	newer    = "ruapost_2.0.deb"
)

// scratch is where everything lies that the tests write: a file system in memory, mounted
// where they alone see it. groups is where the tree of control groups is.
const (
	scratch = "/mnt"
	groups  = scratch + "/cgroup"
)

var releases = []string{"bookworm", "trixie"}

func TestMain(m *testing.M) {
	if root := os.Getenv(envBoot); root != "" {
		fmt.Fprintln(os.Stderr, "e2e/deb: boot:", boot(root))
		os.Exit(1)
	}
	testhost.Main(m, "e2e/deb", prerequisites, makePackages, setUpNamespace)
}

func prerequisites() error {
	if os.Geteuid() != 0 {
		return errors.New("they need root")
	}
	for _, program := range []string{"ip", "nsenter", "dpkg-deb", "make"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("they need %s; run e2e/setup.sh", program)
		}
	}
	for _, release := range releases {
		for _, program := range []string{"sbin/postfix", "bin/systemd-analyze", "sbin/init"} {
			if _, err := os.Stat(filepath.Join(testhost.CacheDir(), release, "usr", program)); err != nil {
				return fmt.Errorf("no %s in Debian %s; run e2e/setup.sh", program, release)
			}
		}
	}
	return nil
}

// newDefault is a line that the newer package's ruapost.toml has besides.
const newDefault = "# New in 2.0.\n"

// makePackages makes one with "make deb", the same once more out of the same programs, and
// a later one, whose configuration file is another.
func makePackages(dir string) error {
	a, b, unpacked := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "unpacked")
	if err := command("../..", "make", "deb", "BIN="+a); err != nil {
		return err
	}
	if err := os.Mkdir(b, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"milter", "tlspolicy", "reporter"} {
		if err := os.Link(filepath.Join(a, "ruapost-"+name), filepath.Join(b, "ruapost-"+name)); err != nil {
			return err
		}
	}
	if err := command("../..", "contrib/debian/build", b); err != nil {
		return err
	}
	if err := command("", "dpkg-deb", "-R", filepath.Join(dir, older), unpacked); err != nil {
		return err
	}
	for file, edit := range map[string]func(string) string{
		"DEBIAN/control":           func(s string) string { return strings.Replace(s, "Version: 1.0", "Version: 2.0", 1) },
		"etc/ruapost/ruapost.toml": func(s string) string { return s + newDefault },
	} {
		text, err := os.ReadFile(filepath.Join(unpacked, file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(unpacked, file), []byte(edit(string(text))), 0o644); err != nil {
			return err
		}
	}
	return command("", "dpkg-deb", "-Zzstd", "-z1", "-b", unpacked, filepath.Join(dir, newer))
}

// command runs a program in a folder, with a version for the package.
func command(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEB_VERSION=1.0", "MAKEFLAGS=", "MFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

// setUpNamespace makes the fresh namespaces habitable.
func setUpNamespace() error {
	if err := testhost.SetUp([]string{scratch}, postfixIP); err != nil {
		return err
	}
	if err := os.Mkdir(groups, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("cgroup2", groups, "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount control groups: %w", err)
	}
	return nil
}

// deadline is how long anything may take.
const deadline = 45 * time.Second

// eventually waits until ok returns true and fails the test if it does not in time. What
// is waited for happens in other processes, which cannot tell us.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", deadline, what)
		}
	}
}
