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
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ruapost/internal/testhost"
)

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
	testhost.Main(m, "e2e/container", prerequisites, nil, setUpNamespace)
}

// debian returns the Debian that the sample's Postfix is installed in.
func debian() string { return filepath.Join(testhost.CacheDir(), "trixie") }

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
	if err := testhost.SetUp([]string{"/run", "/dev/shm", "/var/lib/containers"}, postfixIP); err != nil {
		return err
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
	return nil
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
