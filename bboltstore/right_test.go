package bboltstore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A file that must not be written is none that is damaged: mail does not wait for it,
// rows do, and are written when the right is back.
func TestMissingRight(t *testing.T) {
	for name, c := range map[string]struct {
		of            string
		without, with os.FileMode
	}{
		"read-only file":  {"db", 0o440, 0o660},
		"unreadable file": {"db", 0, 0o660},
		"read-only lock":  {"db.lock", 0o440, 0o660},
		"closed folder":   {".", 0o600, 0o700},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "db")
			first := openStore(t, path)
			mustRecord(t, first, evaluation("example.com", 1))
			first.Close()
			p := startUnprivileged(t, path)
			setMode := func(mode os.FileMode) {
				// While nobody has the file open, and could go on with it.
				h, err := open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer h.Close()
				if err := os.Chmod(filepath.Join(dir, c.of), mode); err != nil {
					t.Fatal(err)
				}
			}
			for range unprivilegedRounds {
				setMode(c.without)
				p.do(t, "late")
				if err := os.Chmod(filepath.Join(dir, c.of), c.with); err != nil {
					t.Fatal(err)
				}
				p.do(t, "written")
			}
			p.in.Close()
			if err := p.cmd.Wait(); err != nil {
				t.Errorf("%v\n%s", err, &p.log)
			}
			if !strings.Contains(p.log.String(), "permission denied") {
				t.Errorf("the log does not say why:\n%s", &p.log)
			}
			if left := aside(t, path); len(left) > 0 {
				t.Errorf("set aside: %v", left)
			}
			gs := groups(t, openStore(t, path), noon.Add(24*time.Hour))
			if len(gs) != 1 || gs[0].Total != 1+unprivilegedRounds*(unprivilegedLate+1) || gs[0].Rows != 3 {
				t.Errorf("groups %+v", gs)
			}
		})
	}
}

const (
	unprivilegedRounds = 2
	unprivilegedLate   = 50 // records in each while the right is missing
)

// unprivileged is a process that file modes mean something to.
type unprivileged struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	log bytes.Buffer
}

// startUnprivileged starts recordUnprivileged as a user who owns the file at path.
func startUnprivileged(t *testing.T, path string) *unprivileged {
	t.Helper()
	// Not os.Args[0], which lies in a folder that the user may not enter.
	p := &unprivileged{cmd: exec.Command("/proc/self/exe")}
	p.cmd.Env = append(os.Environ(), "BBOLTSTORE_TEST_UNPRIVILEGED="+path)
	p.cmd.Stderr = &p.log
	if os.Geteuid() == 0 {
		const nobody = 65534
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		dir := filepath.Dir(path)
		err := os.Chmod(filepath.Dir(dir), 0o755)
		for _, name := range []string{dir, path, path + ".lock"} {
			err = errors.Join(err, os.Chown(name, nobody, nobody))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	in, err1 := p.cmd.StdinPipe()
	out, err2 := p.cmd.StdoutPipe()
	if err := errors.Join(err1, err2, p.cmd.Start()); err != nil {
		t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	return p
}

// do lets the process do one thing.
func (p *unprivileged) do(t *testing.T, what string) {
	t.Helper()
	_, err := fmt.Fprintln(p.in, what)
	if err == nil {
		_, err = p.out.ReadString('\n')
	}
	if err != nil {
		p.in.Close()
		t.Fatalf("%s: %v\n%v\n%s", what, err, p.cmd.Wait(), &p.log)
	}
}

// recordUnprivileged is the process of TestMissingRight. It does what it reads: "late"
// are records while the right is missing, "written" is one when it is back, "compact" is
// of TestCompactAsMember. The right is
// not back before the answer, so that a call that waited for it would wait for ever.
func recordUnprivileged(path string) error {
	s := (*Store)(nil)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); fmt.Println(in.Text()) {
		if s == nil {
			var err error
			if s, err = Open(path); err != nil { // without the right
				return err
			}
		}
		if in.Text() == "compact" {
			if err := s.Compact(context.Background()); err != nil {
				return err
			}
			continue
		}
		if in.Text() == "written" {
			if err := s.RecordEvaluation(context.Background(), evaluation("example.com", 2)); err != nil {
				return err
			}
			continue
		}
		for range unprivilegedLate {
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			err := s.RecordEvaluation(ctx, evaluation("example.com", 3))
			cancel()
			if !errors.Is(err, ErrQueued) {
				return fmt.Errorf("record without the right: %v", err)
			}
		}
	}
	return s.Close()
}

// Root works in folders of another user: a symbolic link there must lead it nowhere, also
// one that comes the moment after what was there was removed.
func TestLinksAreNotFollowed(t *testing.T) {
	dir := t.TempDir()
	path, victim := filepath.Join(dir, "db"), filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o400); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{path + ".lock", path + ".new"} {
		if err := os.Symlink(victim, link); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := open(path); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("the lock: %v", err)
	}
	var made *os.File
	if _, err := newFile(&made)(path+".new", os.O_RDWR, fileMode); !errors.Is(err, os.ErrExist) || made != nil {
		t.Errorf("a new file: %v, %v", made, err)
	}
	if info, err := os.Stat(victim); err != nil || info.Mode().Perm() != 0o400 || info.Size() != int64(len("precious")) {
		t.Errorf("the file is now %v, %v", info, err)
	}
}
