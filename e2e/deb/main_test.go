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
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// envPackages tells the second process that it is the second, and where the packages are.
	envPackages = "RUAPOST_DEB_PACKAGES"
	// envBoot tells the third what root to boot.
	envBoot = "RUAPOST_DEB_BOOT"
)

// The packages, below the folder of envPackages.
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
	switch root := os.Getenv(envBoot); {
	case root != "":
		fmt.Fprintln(os.Stderr, "e2e/deb: boot:", boot(root))
		os.Exit(1)
	case os.Getenv(envPackages) != "" && os.Getpid() == 1:
		if err := setUpNamespace(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e/deb: namespace:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if err := prerequisites(); err != nil {
		if os.Getenv("RUAPOST_E2E") == "require" {
			fmt.Fprintln(os.Stderr, "e2e/deb:", err)
			os.Exit(1)
		}
		fmt.Println("e2e/deb: all tests skipped:", err)
		os.Exit(0)
	}
	if err := runInNamespace(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e/deb:", err)
		os.Exit(1)
	}
}

// cacheDir is where setup.sh keeps its folders.
func cacheDir() string {
	if dir := os.Getenv("RUAPOST_E2E_ROOT"); dir != "" {
		return dir
	}
	return "/var/cache/ruapost-e2e"
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
			if _, err := os.Stat(filepath.Join(cacheDir(), release, "usr", program)); err != nil {
				return fmt.Errorf("no %s in Debian %s; run e2e/setup.sh", program, release)
			}
		}
	}
	return nil
}

// runInNamespace makes the packages and runs this same binary again in its own namespaces,
// as their first process.
func runInNamespace() error {
	dir, err := os.MkdirTemp("", "ruapost-deb-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := makePackages(dir); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), envPackages+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The child dies with the thread that started it, so this one must last.
	runtime.LockOSThread()
	return cmd.Run()
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

// setUpNamespace makes the fresh namespaces habitable: mounts that do not show outside, a
// folder in memory, the documentation's networks (RFC 5737) on the loopback interface.
func setUpNamespace() error {
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""},
		{"proc", "/proc", "proc", 0, ""},
		{"tmpfs", scratch, "tmpfs", 0, "mode=0755"},
	} {
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := os.Mkdir(groups, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("cgroup2", groups, "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount control groups: %w", err)
	}
	ip := exec.Command("ip", "-batch", "-")
	ip.Stdin = strings.NewReader("link set lo up\n" +
		"route add local 192.0.2.0/24 dev lo\n" +
		"route add local 198.51.100.0/24 dev lo\n" +
		"route add local 203.0.113.0/24 dev lo\n" +
		"addr add " + postfixIP + "/32 dev lo\n")
	if out, err := ip.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
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
