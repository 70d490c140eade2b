// Package program is what the load programs share: their main function, and how they
// build, start and measure the programs that they are about.
package program

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	startTime = 10 * time.Second // for a program to begin
	stopTime  = 30 * time.Second // and to end
	retryTime = 5 * time.Millisecond
	// samplePeriod is how often the memory of a program is looked at.
	samplePeriod = 5 * time.Millisecond
	// clockTick is the unit of CPU times in /proc, USER_HZ.
	clockTick = 10 * time.Millisecond
)

// Main is the main function of the load program bench/NAME. The context of run ends with
// an interrupt or SIGTERM; an error of run is printed and makes the exit status 1. What is
// below the level is not logged.
func Main(name string, level slog.Level, run func(ctx context.Context, args []string, out io.Writer) error) {
	slog.SetLogLoggerLevel(level)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "bench/%s: %v\n", name, err)
		os.Exit(1)
	}
}

// Build builds the command of this module at path, such as "cmd/milter", into dir, as
// "make build" does, and returns the file.
func Build(ctx context.Context, dir, path string) (file string, err error) {
	file = filepath.Join(dir, "ruapost-"+filepath.Base(path))
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", file, "ruapost/"+path)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", path, err, said)
	}
	return file, nil
}

// Process is a program that was started.
type Process struct {
	cmd   *exec.Cmd
	log   string        // the file with what it says
	ended chan struct{} // closed when it has
	err   error         // of its end, set before ended is closed

	mu   sync.Mutex
	used Usage // as far as it was sampled
}

// Usage is what a process has used. Memory is in bytes.
type Usage struct {
	// CPU is its own time. Children is that of the processes which it has started and
	// waited for, and of theirs.
	CPU, Children time.Duration
	// Resident is the memory that it has now, Peak the most that it had (VmHWM): with
	// pages of files that it has mapped, which the kernel can take back at any time. The
	// kernel keeps it for the process since it is this program.
	Resident, Peak int64
	// Anon is the most that was seen of what is no page of a file.
	Anon int64
}

// Start starts the command. What it says goes to the file log, unless the command has
// another place for it. Nothing is left of it if this program is cut off, unless the
// command has attributes of its own.
func Start(cmd *exec.Cmd, log string) (*Process, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = f
	}
	if cmd.Stderr == nil {
		cmd.Stderr = f
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{cmd: cmd, log: log, ended: make(chan struct{})}
	go p.wait()
	go p.sample()
	return p, nil
}

// wait waits for the end, and reads what the process has used before it is forgotten.
func (p *Process) wait() {
	for {
		err := unix.Waitid(unix.P_PID, p.PID(), nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.look()
	p.err = p.cmd.Wait()
	close(p.ended)
}

func (p *Process) sample() {
	ticker := time.NewTicker(samplePeriod)
	defer ticker.Stop()
	for {
		p.look()
		select {
		case <-p.ended:
			return
		case <-ticker.C:
		}
	}
}

// look adds what there is to be seen now.
func (p *Process) look() (Usage, error) {
	now, err := UsageOf(p.PID())
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		now.Peak, now.Anon = max(p.used.Peak, now.Peak), max(p.used.Anon, now.Anon)
		p.used = now
	}
	return p.used, err
}

// UsageOf returns what a process has used that need not have been started here; Anon is
// what it has now. A process that has ended, and was not waited for, has CPU times but no
// memory.
func UsageOf(pid int) (u Usage, err error) {
	proc := fmt.Sprintf("/proc/%d/", pid)
	stat, err1 := os.ReadFile(proc + "stat")
	status, err2 := os.ReadFile(proc + "status")
	if err := errors.Join(err1, err2); err != nil {
		return u, err
	}
	// The name of the program, in parentheses, is the second field (proc_pid_stat(5)).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 15 {
		return u, fmt.Errorf("%sstat: %d fields", proc, len(fields))
	}
	var times [4]int // utime, stime, cutime, cstime
	for i := range times {
		if times[i], err = strconv.Atoi(fields[11+i]); err != nil {
			return u, fmt.Errorf("%sstat: %w", proc, err)
		}
	}
	u.CPU = time.Duration(times[0]+times[1]) * clockTick
	u.Children = time.Duration(times[2]+times[3]) * clockTick
	u.Resident, u.Peak, u.Anon = size(status, "VmRSS:"), size(status, "VmHWM:"), size(status, "RssAnon:")
	return u, nil
}

// size returns a size of /proc/PID/status.
func size(status []byte, name string) int64 {
	_, rest, _ := bytes.Cut(status, []byte(name))
	line, _, _ := bytes.Cut(rest, []byte("kB"))
	n, _ := strconv.ParseInt(strings.TrimSpace(string(line)), 10, 64)
	return n << 10
}

// PID is the number of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Usage returns what the process has used so far, or, if it has ended, until then. An
// error is that of reading it while the process is there.
func (p *Process) Usage() (Usage, error) {
	select {
	case <-p.ended:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.used, nil
	default:
		return p.look()
	}
}

// Ready calls try until it returns no error. An error means that the process has ended, by
// itself or because it took too long.
func (p *Process) Ready(try func() error) error {
	for began := time.Now(); ; {
		err := try()
		if err == nil {
			return nil
		}
		if time.Since(began) > startTime {
			p.Kill()
			return p.Failed(fmt.Errorf("not ready: %w", err))
		}
		select {
		case <-p.ended:
			return p.Failed(cmp.Or(p.err, errors.New("ended at once")))
		case <-time.After(retryTime):
		}
	}
}

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Wait waits for the end, which must be a success.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.ended:
		return p.Failed(p.err)
	case <-ctx.Done():
		p.Kill()
		return p.Failed(context.Cause(ctx))
	}
}

// Stop ends the process as systemd does.
func (p *Process) Stop() error {
	p.cmd.Process.Signal(syscall.SIGTERM)
	ctx, cancel := context.WithTimeoutCause(context.Background(), stopTime, errors.New("did not end"))
	defer cancel()
	return p.Wait(ctx)
}

// Kill ends the process at once.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.ended
}

// Failed tells with err, if there is one, what the process said last.
func (p *Process) Failed(err error) error {
	if err == nil {
		return nil
	}
	said, _ := os.ReadFile(p.log)
	return fmt.Errorf("%s: %w\n%s", filepath.Base(p.cmd.Path), err, said[max(0, len(said)-2000):])
}

// Complaints are the warnings and errors in the log.
func (p *Process) Complaints() ([]string, error) {
	said, err := os.ReadFile(p.log)
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(string(said)) {
		if !strings.Contains(line, "level=INFO") && !strings.Contains(line, "level=DEBUG") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines, nil
}

// Profile records where the time of the process goes until the function that it returns
// is called.
func (p *Process) Profile(ctx context.Context, file string, out io.Writer) (stop func() error, err error) {
	perf := exec.CommandContext(ctx, "perf", "record", "-q", "-g", "-o", file, "-p", strconv.Itoa(p.PID()))
	perf.Stdout, perf.Stderr = out, out
	if err := perf.Start(); err != nil {
		return nil, err
	}
	return func() error {
		perf.Process.Signal(os.Interrupt)
		err := perf.Wait()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return nil // it passes the signal on that it was sent
		}
		return err
	}, nil
}

// OwnTime is the CPU time of this process.
func OwnTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
