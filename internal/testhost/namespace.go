package testhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	// envOutside tells a process that Again has started that it is in the namespaces, by the
	// name of the one that its parent is in. So it cannot be on the host by mistake.
	envOutside = "RUAPOST_TEST_OUTSIDE"
	envBuilt   = "RUAPOST_TEST_BUILT"
)

// Main runs a package's tests in namespaces of their own, where the network is theirs, and
// ends the process. Before, where missing finds nothing that the tests need, build makes
// what they run, in the folder that Built returns to them; nil makes nothing. setUp is the
// first thing in the namespaces. What runs or is mounted there is gone at the end.
func Main(m *testing.M, name string, missing func() error, build func(dir string) error, setUp func() error) {
	status, err := run(m, name, missing, build, setUp)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M, name string, missing func() error, build func(dir string) error, setUp func() error) (status int, err error) {
	if Inside() {
		if err := setUp(); err != nil {
			return 0, fmt.Errorf("namespace: %w", err)
		}
		return m.Run(), nil
	}
	if err := missing(); err != nil {
		return 0, LeaveOut(name+": all tests", err)
	}
	dir, err := os.MkdirTemp("", "ruapost-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	// Daemons run as other users.
	if err := os.Chmod(dir, 0o755); err != nil {
		return 0, err
	}
	if build != nil {
		if err := build(dir); err != nil {
			return 0, err
		}
	}
	err = Again(context.Background(), envBuilt+"="+dir, os.Stdout, os.Stderr, os.Args[1:]...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// Built is the folder that the build of Main has filled.
func Built() string { return os.Getenv(envBuilt) }

// Again runs this program once more, in namespaces of its own and with another variable in
// its environment, and waits for its end. That of ctx is one.
func Again(ctx context.Context, variable string, stdout, stderr io.Writer, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// The first process is a shell, which takes care of orphans: Podman's monitors become some.
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", `"$0" "$@"; exit $?`, self}, args...)...)
	cmd.Env = append(os.Environ(), envOutside+"="+mountNamespace(), variable)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The child dies with the thread that started it, so this one must last.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// Inside tells whether this process is one that Again has started.
func Inside() bool {
	outside := os.Getenv(envOutside)
	return outside != "" && outside != mountNamespace()
}

func mountNamespace() string {
	name, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err.Error()
	}
	return name
}

// SetUp makes fresh namespaces habitable: folders in memory, mounted where this process and
// its children alone see them, and a loopback interface that owns the documentation
// networks (RFC 5737, RFC 3849). Addresses of a mail server must be given, as Postfix wants
// its own to be those of an interface.
func SetUp(memory []string, addresses ...string) error {
	// Nothing that is mounted from here on may show outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, dir := range memory {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	for file, value := range map[string]string{
		// A host without IPv6 passes that on to new namespaces.
		"conf/all/disable_ipv6": "0",
		// IPv6 takes more than a local route before one may bind to an address.
		"ip_nonlocal_bind": "1",
	} {
		if err := os.WriteFile("/proc/sys/net/ipv6/"+file, []byte(value), 0o644); err != nil {
			return err
		}
	}
	batch := "link set lo up\n"
	// With a local route every address of a network is the host's own.
	for _, network := range []string{"192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"} {
		batch += "route add local " + network + " dev lo\n"
	}
	for _, address := range addresses {
		batch += "addr add " + address + " dev lo\n"
	}
	ip := exec.Command("ip", "-batch", "-")
	ip.Stdin = strings.NewReader(batch)
	if out, err := ip.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
	}
	return nil
}
