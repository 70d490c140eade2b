package crash

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"ruapost/bboltstore"
)

// A disk that takes far longer than mail may wait delays no message for longer than
// store.record_timeout, and costs none: what was answered is written later.
func TestSlowDisk(t *testing.T) {
	const (
		timeout   = 50 * time.Millisecond
		fdatasync = 500 * time.Millisecond
		commit    = 2 * fdatasync // at least
		messages  = domains * perSession
	)
	l := newLives(t, timeout)
	cmd := onSlowDisk(l.command("milter"), fdatasync)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	l.waitForMilter()

	began := time.Now()
	for d := range domains {
		if err := l.session(d); err != nil {
			l.showLog("milter")
			t.Fatal(err)
		}
	}
	took := time.Since(began)
	if took > messages*commit/2 {
		t.Errorf("%d messages took %v: they waited for the disk", messages, took)
	}
	// Or the disk was not slow.
	if late := l.metric(9184, "ruapost_milter_records_late_total"); late != messages {
		t.Errorf("%d of %d messages were answered before they were recorded", late, messages)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		l.showLog("milter")
		t.Errorf("milter: %v", err)
	}
	t.Logf("%d messages in %v, on a disk where a commit takes %v", messages, took, commit)

	s, err := bboltstore.Open(filepath.Join(l.dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	groups, err := s.Groups(t.Context(), time.Now().Add(48*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	recorded := map[string]int64{}
	for _, g := range groups {
		recorded[g.Domain] += g.Total
	}
	for d := range domains {
		if n := recorded[domain(d)]; n != perSession {
			t.Errorf("%s: %d messages recorded, want %d", domain(d), n, perSession)
		}
	}
	if len(recorded) != domains {
		t.Errorf("recorded %v", recorded)
	}
}

// onSlowDisk lets the command wait before each fdatasync. It is the child still, and
// the tracer is beside it.
func onSlowDisk(cmd *exec.Cmd, delay time.Duration) *exec.Cmd {
	slow := exec.Command("strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", os.DevNull, "-e", "trace=fdatasync",
		"-e", fmt.Sprintf("inject=fdatasync:delay_enter=%d", delay.Microseconds()))
	slow.Args = append(slow.Args, cmd.Args...)
	slow.Env, slow.Stderr, slow.SysProcAttr = cmd.Env, cmd.Stderr, cmd.SysProcAttr
	return slow
}

// waitForMilter returns when the milter listens: its first look at the disk takes time.
func (l *lives) waitForMilter() {
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("unix", filepath.Join(l.dir, "milter.sock"))
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) {
			l.showLog("milter")
			l.t.Fatal(err)
		}
	}
}
