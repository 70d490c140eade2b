// Package container builds the image of ruapost as "make container" does, runs each
// program in it, and runs the sample in contrib/container with Podman: mail comes in
// and goes out through its Postfix, and the reports leave.
//
// It needs root on Debian and what e2e/setup.sh installs. Podman runs in namespaces of
// its own, in which the ports 25, 53 and 443 are free, and its images and volumes lie in
// memory: of the host's containers it sees nothing, and leaves nothing behind.
package container

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

// envOutside tells the second process that it is in the namespaces, by the name of the
// one that the first is in.
const envOutside = "RUAPOST_E2E_OUTSIDE"

// Addresses of the namespace, from documentation networks.
const (
	nameServer   = "127.0.0.1:53"
	postfixIP    = "192.0.2.25"
	clientIP     = "198.51.100.10"
	policyHostIP = "203.0.113.8"
	sinkIP       = "203.0.113.9"
	stsIP        = "203.0.113.10"
)

func TestMain(m *testing.M) {
	if outside := os.Getenv(envOutside); outside != "" && outside != mountNamespace() {
		if err := setUpNamespace(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e/container: namespace:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if err := prerequisites(); err != nil {
		if os.Getenv("RUAPOST_E2E") == "require" {
			fmt.Fprintln(os.Stderr, "e2e/container:", err)
			os.Exit(1)
		}
		fmt.Println("e2e/container: all tests skipped:", err)
		os.Exit(0)
	}
	os.Exit(runInNamespace())
}

func mountNamespace() string {
	name, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err.Error()
	}
	return name
}

// debian returns the Debian that the sample's Postfix is installed in.
func debian() string {
	if dir := os.Getenv("RUAPOST_E2E_ROOT"); dir != "" {
		return filepath.Join(dir, "trixie")
	}
	return "/var/cache/ruapost-e2e/trixie"
}

func prerequisites() error {
	if os.Geteuid() != 0 {
		return errors.New("they need root")
	}
	for _, program := range []string{"ip", "make", "tar", "buildah", "podman", "crun", "podman-compose"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("no %s; run e2e/setup.sh", program)
		}
	}
	if _, err := os.Stat(filepath.Join(debian(), "usr/sbin/postfix")); err != nil {
		return errors.New("no Postfix 3.10; run e2e/setup.sh")
	}
	return nil
}

// runInNamespace runs this same binary again in namespaces of its own. Their first
// process is a shell, which takes care of orphans: Podman's monitors become some.
func runInNamespace() int {
	cmd := exec.Command("/bin/sh", append([]string{"-c", `"$0" "$@"; exit $?`, "/proc/self/exe"}, os.Args[1:]...)...)
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e/container:", err)
		return 1
	}
	cmd.Args[3] = self
	cmd.Env = append(os.Environ(), envOutside+"="+mountNamespace())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The child dies with the thread that started it, so this one must last.
	runtime.LockOSThread()
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "e2e/container: namespaces:", err)
		return 1
	}
	return 0
}

// containersConf is what is different here from a host where Podman is used every day:
// a control group is nothing that the namespace has of its own, and a process in it may
// not raise its limits, which Podman does otherwise.
const containersConf = `[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
`

// setUpNamespace makes the fresh namespaces habitable.
func setUpNamespace() error {
	// Nothing that is mounted from here on may show outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, dir := range []string{"/run", "/dev/shm", "/var/lib/containers"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	// crun takes no host that has control groups of both versions.
	_ = unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH)
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount /sys/fs/cgroup: %w", err)
	}
	if err := ownEtc(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("host")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return setUpLoopback()
}

// ownEtc gives the namespace an /etc that it may change, with the tests' name server
// and the configuration of Podman.
func ownEtc() error {
	upper, work := "/run/etc/upper", "/run/etc/work"
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("mount /etc: %w", err)
	}
	os.Remove("/etc/resolv.conf") // it may be a link
	if err := os.WriteFile("/etc/resolv.conf", []byte("nameserver 127.0.0.1\noptions trust-ad\n"), 0o644); err != nil {
		return err
	}
	return os.WriteFile("/etc/containers/containers.conf", []byte(containersConf), 0o644)
}

// setUpLoopback makes the loopback interface own the documentation networks (RFC 5737).
func setUpLoopback() error {
	ip := exec.Command("ip", "-batch", "-")
	ip.Stdin = strings.NewReader("link set lo up\n" +
		"route add local 198.51.100.0/24 dev lo\n" +
		"route add local 203.0.113.0/24 dev lo\n" +
		"addr add " + postfixIP + "/32 dev lo\n")
	if out, err := ip.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
	}
	return nil
}

// deadline is how long anything that happens in containers may take.
const deadline = 30 * time.Second

// eventually waits until ok returns true and fails the test if it does not in time.
// What is waited for happens in containers, which cannot tell us.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	const interval = 50 * time.Millisecond
	for end := time.Now().Add(deadline); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", deadline, what)
		}
		time.Sleep(interval)
	}
}
