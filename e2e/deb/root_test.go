package deb

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ruapost/internal/testhost"
)

// root is a Debian of its own, over the one that setup.sh has made, which stays as it is.
type root struct {
	dir     string
	release string

	t *testing.T
}

// newRoot makes a root with both packages in /mnt, and a name server on the loopback
// interface. It goes away with the test.
func newRoot(t *testing.T, release string) *root {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, release+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &root{dir: filepath.Join(dir, "root"), release: release, t: t}
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{dir, r.dir, upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lower := filepath.Join(testhost.CacheDir(), release)
	r.mount("overlay", "/", "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work))
	r.mount(testhost.Built(), "/mnt", "", unix.MS_BIND, "")
	r.write("/etc/resolv.conf", "nameserver 127.0.0.1\noptions trust-ad\n")
	r.write("/etc/hosts", "127.0.0.1 localhost\n192.0.2.25 mail.receiver.example mail\n")
	r.write("/etc/hostname", "mail\n")
	return r
}

// newChroot makes a root for programs to be run in without systemd.
func newChroot(t *testing.T, release string) *root {
	t.Helper()
	r := newRoot(t, release)
	r.mount("proc", "/proc", "proc", 0, "")
	r.mount("/dev", "/dev", "", unix.MS_BIND|unix.MS_REC, "")
	return r
}

func (r *root) path(file string) string { return filepath.Join(r.dir, file) }

func (r *root) mount(source, target, fstype string, flags uintptr, data string) {
	r.t.Helper()
	target = r.path(target)
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		r.t.Fatalf("mount %s: %v", target, err)
	}
	r.t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			r.t.Errorf("unmount %s: %v", target, err)
		}
	})
}

func (r *root) read(file string) string {
	r.t.Helper()
	text, err := os.ReadFile(r.path(file))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(text)
}

func (r *root) write(file, text string) {
	r.t.Helper()
	if err := os.WriteFile(r.path(file), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *root) exists(file string) bool {
	_, err := os.Lstat(r.path(file))
	return err == nil
}

// environment is that of whoever installs packages by hand, but for questions.
var environment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}

// run runs a command in the root and returns all that it says.
func (r *root) run(args ...string) string {
	r.t.Helper()
	cmd := exec.Command("chroot", append([]string{r.dir}, args...)...)
	return output(r.t, cmd, args)
}

func output(t *testing.T, cmd *exec.Cmd, args []string) string {
	t.Helper()
	cmd.Env = environment
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, &out)
	}
	return out.String()
}

// ofDpkg are what a package leaves that was there once: dpkg's own memory, and the accounts,
// which stay on purpose. Others write the rest whenever a program of theirs is run.
var ofDpkg = []string{"/var/lib/dpkg", "/var/log", "/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/.pwd.lock", "/mnt", "/run", "/dev", "/proc", "/var/cache/ldconfig"}

// files returns what there is in the root, each with its mode and owner.
func (r *root) files() map[string]string {
	r.t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, r.dir)
		for _, prefix := range ofDpkg {
			if strings.HasPrefix(name, prefix) {
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		found[name] = fmt.Sprintf("%v %d:%d", info.Mode(), st.Uid, st.Gid)
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return found
}

// owner returns a file's mode and owners as stat(1) prints them in the root.
func (r *root) owner(file string) string {
	r.t.Helper()
	return strings.TrimSpace(r.run("stat", "-c", "%a %U:%G", file))
}
