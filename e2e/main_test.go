// Package e2e runs the three programs beside a real Postfix 3.7 and a real
// Postfix 3.10 and compares the reports that leave with what happened.
//
// The tests need root on Debian and the folders that setup.sh makes. The test
// binary starts itself again in namespaces of its own: there the ports 25, 53 and
// 443 are free, every host of the tests has its own address, all of them on the
// loopback interface, and the name server is the tests' own. When that process
// ends, everything it started and mounted is gone.
package e2e

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

// envPrograms is how the first process tells the second that it is the second,
// and where the built programs are.
const envPrograms = "RUAPOST_E2E_PROGRAMS"

// scratch is where everything that the tests write lies: a file system in memory,
// mounted where the namespace's programs alone see it. The path is short because
// sockets lie below it.
const scratch = "/mnt"

// Addresses of the namespace. Those of the servers are here; clients and
// destinations take theirs from the same documentation networks.
const (
	nameServer   = "127.0.0.1:53"
	postfixIPv4  = "192.0.2.25"
	postfixIPv6  = "2001:db8::25"
	policyHostIP = "203.0.113.8"
	sinkIP       = "203.0.113.9"
)

func TestMain(m *testing.M) {
	// As the first process of its namespace it cannot be on the host by mistake.
	if os.Getenv(envPrograms) != "" && os.Getpid() == 1 {
		if err := setUpNamespace(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: namespace:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if err := prerequisites(); err != nil {
		if os.Getenv("RUAPOST_E2E") == "require" {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			os.Exit(1)
		}
		fmt.Println("e2e: all tests skipped:", err)
		os.Exit(0)
	}
	os.Exit(runInNamespace())
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
	if _, err := exec.LookPath("ip"); err != nil {
		return errors.New("they need iproute2; run e2e/setup.sh")
	}
	for _, v := range versions {
		for _, program := range []string{"sbin/postfix", "sbin/opendkim", "sbin/unbound", "bin/ldns-signzone"} {
			if _, err := os.Stat(filepath.Join(cacheDir(), v.release, "usr", program)); err != nil {
				return fmt.Errorf("no %s for Postfix %s; run e2e/setup.sh", program, v.number)
			}
		}
	}
	return nil
}

// runInNamespace builds the programs and runs this same binary again in its own
// namespaces, as their first process.
func runInNamespace() int {
	dir, err := os.MkdirTemp("", "ruapost-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	// The daemons run as another user.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), envPrograms+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS,
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
		fmt.Fprintln(os.Stderr, "e2e: namespaces:", err)
		return 1
	}
	return 0
}

// build builds the three programs into dir, without a need for the host's
// libraries: they will run in the roots.
func build(dir string) error {
	for _, name := range []string{"milter", "tlspolicy", "reporter"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "ruapost-"+name), "../cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build ../cmd/%s: %w\n%s", name, err, out)
		}
	}
	return nil
}

// setUpNamespace makes the fresh namespaces habitable.
func setUpNamespace() error {
	// Nothing that is mounted from here on may show outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", scratch, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount %s: %w", scratch, err)
	}
	if err := unix.Sethostname([]byte("mail")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := useNameServer(); err != nil {
		return err
	}
	return setUpLoopback()
}

// useNameServer keeps the host's resolver out.
func useNameServer() error {
	file := filepath.Join(scratch, "resolv.conf")
	if err := os.WriteFile(file, []byte(resolvConf), 0o644); err != nil {
		return err
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if errors.Is(err, os.ErrNotExist) {
		return nil // without the file the resolver asks 127.0.0.1 anyway
	} else if err != nil {
		return err
	}
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount /etc/resolv.conf: %w", err)
	}
	return nil
}

const resolvConf = "nameserver 127.0.0.1\noptions trust-ad\n"

// setUpLoopback makes the loopback interface own the documentation networks
// (RFC 5737, RFC 3849).
func setUpLoopback() error {
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
	var batch strings.Builder
	batch.WriteString("link set lo up\n")
	// With a local route every address of a network is the host's own.
	for _, network := range []string{"192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"} {
		fmt.Fprintf(&batch, "route add local %s dev lo\n", network)
	}
	// Postfix wants its own to be those of an interface.
	fmt.Fprintf(&batch, "addr add %s/32 dev lo\n", postfixIPv4)
	fmt.Fprintf(&batch, "addr add %s/128 dev lo\n", postfixIPv6)
	ip := exec.Command("ip", "-batch", "-")
	ip.Stdin = strings.NewReader(batch.String())
	if out, err := ip.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
	}
	return nil
}

// deadline is how long a real Postfix may take for anything.
const deadline = 30 * time.Second

// eventually waits until ok returns true and fails the test if it does not in
// time. What is waited for happens in other processes, which cannot tell us.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	const interval = 10 * time.Millisecond
	for end := time.Now().Add(deadline); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", deadline, what)
		}
		time.Sleep(interval)
	}
}
