package program

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The test program is also the one that is measured: it takes memory and CPU time, has a
// child that takes CPU time, and waits for the end of its standard input.
func TestMain(m *testing.M) {
	switch os.Getenv("PROGRAM_TEST") {
	case "parent":
		memory := make([]byte, 64<<20)
		for i := range memory {
			memory[i] = byte(i)
		}
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), "PROGRAM_TEST=child")
		child.Run()
		os.Stderr.WriteString("level=INFO msg=ready\nlevel=WARN msg=trouble\n")
		os.Stdin.Read(memory[:1])
		os.Exit(0)
	case "child":
		for began := OwnTime(); OwnTime() < began+100*time.Millisecond; {
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// start starts the program, which ends when the function that it returns is called.
func start(t *testing.T) (*Process, func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PROGRAM_TEST=parent")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(cmd, filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	return p, func() { in.Close() }
}

// Also of a process that has ended it is known what it has used, and of its children.
func TestUsage(t *testing.T) {
	p, end := start(t)
	end()
	if err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	u, err := p.Usage()
	if err != nil || u.Children < 90*time.Millisecond || u.CPU == 0 || u.CPU > 10*time.Second {
		t.Errorf("%+v, %v", u, err)
	}
	if u.Anon < 64<<20 || u.Peak < u.Anon || u.Peak > 1<<30 {
		t.Errorf("peak %d, anonymous %d", u.Peak, u.Anon)
	}
	lines, err := p.Complaints()
	if err != nil || len(lines) != 1 || lines[0] != "level=WARN msg=trouble" {
		t.Errorf("%q, %v", lines, err)
	}
}

// A process is ready when it says so; one that ends before is not waited for.
func TestReady(t *testing.T) {
	p, end := start(t)
	says := func(what string) func() error {
		return func() error {
			if said, err := os.ReadFile(p.log); err != nil || !strings.Contains(string(said), what) {
				return errors.New("it does not say " + what)
			}
			return nil
		}
	}
	if err := p.Ready(says("msg=ready")); err != nil {
		t.Fatal(err)
	}
	if u, err := UsageOf(p.PID()); err != nil || u.CPU == 0 || u.Resident < 64<<20 {
		t.Errorf("%+v, %v", u, err)
	}
	end()
	if err := p.Ready(says("something else")); err == nil || !strings.Contains(err.Error(), "ended at once\nlevel=INFO msg=ready") {
		t.Errorf("error %v", err)
	}
}

// A process that does not end, or ends with an error, says why.
func TestFailures(t *testing.T) {
	for name, end := range map[string]func(*Process) error{
		"cut off": func(p *Process) error {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(errors.New("no more time"))
			return p.Wait(ctx)
		},
		"stopped": (*Process).Stop,
		"killed":  func(p *Process) error { p.Kill(); return p.Wait(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := start(t)
			if err := end(p); err == nil || !strings.HasPrefix(err.Error(), "program.test: ") {
				t.Errorf("error %v", err)
			}
			select {
			case <-p.Ended():
			default:
				t.Error("it has not ended")
			}
		})
	}
}
