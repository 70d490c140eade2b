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
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ruapost/internal/testhost"
)

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
	testhost.Main(m, "e2e", prerequisites, build, setUpNamespace)
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
			if _, err := os.Stat(filepath.Join(testhost.CacheDir(), v.release, "usr", program)); err != nil {
				return fmt.Errorf("no %s for Postfix %s; run e2e/setup.sh", program, v.number)
			}
		}
	}
	return nil
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
	if err := testhost.SetUp([]string{scratch}, postfixIPv4, postfixIPv6); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("mail")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return useNameServer()
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
