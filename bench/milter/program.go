package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startTime = 10 * time.Second // for a program to begin
	stopTime  = 30 * time.Second // and to end
	// clockTick is the unit of CPU times in /proc, USER_HZ.
	clockTick = 10 * time.Millisecond
)

// program is a milter under test.
type program struct {
	cmd     *exec.Cmd
	socket  string
	store   string // its file, empty if it has none
	metrics string // where it serves them, empty if it does not
	log     string // the file with what it says
	ended   chan error
	sent    int // messages so far
}

// start starts a milter in the folder dir; l.noop says which. dns is the address of its
// DNS server.
func (b *bench) start(l load, dir, dns string) (*program, error) {
	p := &program{socket: filepath.Join(dir, "milter.sock"), log: filepath.Join(dir, "log"), ended: make(chan error, 1)}
	if l.noop {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		p.cmd = exec.Command(self)
		p.cmd.Env = append(os.Environ(), noopVariable+"="+p.socket)
	} else {
		p.store = filepath.Join(dir, "ruapost.db")
		// An address of its own on loopback, so that nobody else has the port.
		pid := os.Getpid()
		listen := fmt.Sprintf("127.84.%d.%d:9184", pid>>8&0xff, max(1, pid&0xfe))
		p.metrics = "http://" + listen + "/metrics"
		file := filepath.Join(dir, "ruapost.toml")
		if err := os.WriteFile(file, fmt.Appendf(nil, configuration, p.store, dns, p.socket, receiver, listen), 0o600); err != nil {
			return nil, err
		}
		p.cmd = exec.Command(b.binary, "-config", file)
	}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// Nothing is left if this program is cut off.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.ended <- p.cmd.Wait() }()
	return p, p.ready()
}

// configuration makes the answer to a message wait for the disk.
const configuration = `report_domain = "receiver.example"
[store]
path = %q
record_timeout = "30s"
[dns]
servers = [%q]
[milter]
listen = ["unix:%s"]
authserv_id = %q
[metrics]
listen = "tcp:%s"
`

// ready waits until the milter takes connections and answers for its metrics.
func (p *program) ready() error {
	for began := time.Now(); ; {
		conn, err := net.Dial("unix", p.socket)
		if err == nil {
			conn.Close()
			if p.metrics == "" {
				return nil
			}
			if _, err = p.measures(); err == nil {
				return nil
			}
		}
		select {
		case err := <-p.ended:
			p.ended <- err
			return p.failed(cmp.Or(err, errors.New("ended at once")))
		case <-time.After(5 * time.Millisecond):
		}
		if time.Since(began) > startTime {
			p.kill()
			return p.failed(err)
		}
	}
}

// failed tells with err what the milter said.
func (p *program) failed(err error) error {
	said, _ := os.ReadFile(p.log)
	return fmt.Errorf("the milter: %w\n%s", err, said[max(0, len(said)-2000):])
}

// stop ends the milter as systemd does.
func (p *program) stop() error {
	if p.metrics == "" {
		p.kill() // the one that does nothing has no other end
		return nil
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-p.ended:
		p.ended <- err
		if err != nil {
			return p.failed(err)
		}
		return nil
	case <-time.After(stopTime):
		p.kill()
		return p.failed(errors.New("did not end"))
	}
}

func (p *program) kill() {
	p.cmd.Process.Kill()
	p.ended <- <-p.ended
}

// complaints are the warnings and errors in the milter's log.
func (p *program) complaints() ([]string, error) {
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

// usage is what a process has used.
type usage struct {
	cpu             time.Duration
	resident, peak  int64 // bytes of memory
	goroutines      int   // 0 if it does not say
	heap            int64 // the size at which the garbage collector runs next
	queries         int   // DNS queries
	commits, waited float64
}

// usage reads what the milter has used so far.
func (p *program) usage() (u usage, err error) {
	proc := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	stat, err1 := os.ReadFile(proc + "stat")
	status, err2 := os.ReadFile(proc + "status")
	if err := errors.Join(err1, err2); err != nil {
		return u, err
	}
	// The name of the program, in parentheses, is the second field (proc_pid_stat(5)).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return u, fmt.Errorf("%sstat: %d fields", proc, len(fields))
	}
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	u.cpu = time.Duration(user+system) * clockTick
	u.resident, u.peak = memory(status, "VmRSS:"), memory(status, "VmHWM:")
	if err := errors.Join(err1, err2); err != nil || p.metrics == "" {
		return u, err
	}
	m, err := p.measures()
	u.goroutines, u.heap = int(m["go_goroutines"]), int64(m["go_memstats_next_gc_bytes"])
	u.commits, u.waited = m["ruapost_store_commit_seconds_count"], m["ruapost_milter_record_seconds_sum"]
	for name, value := range m {
		if strings.HasPrefix(name, "ruapost_dns_queries_total{") {
			u.queries += int(value)
		}
	}
	return u, err
}

// memory returns a size of /proc/PID/status.
func memory(status []byte, name string) int64 {
	_, rest, _ := bytes.Cut(status, []byte(name))
	line, _, _ := bytes.Cut(rest, []byte("kB"))
	n, _ := strconv.ParseInt(strings.TrimSpace(string(line)), 10, 64)
	return n << 10
}

// measures are the milter's metrics by name and labels.
func (p *program) measures() (map[string]float64, error) {
	client := http.Client{Timeout: startTime, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(p.metrics)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	m := map[string]float64{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			m[name] = n
		}
	}
	return m, lines.Err()
}

// idle waits until the milter has forgotten its connections.
func (p *program) idle(ctx context.Context) error {
	for p.metrics != "" {
		m, err := p.measures()
		if err != nil || m[`ruapost_connections{server="milter"}`] == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// profile records where the milter's time goes until the function that it returns is
// called.
func (p *program) profile(file string, out io.Writer) (stop func() error, err error) {
	perf := exec.Command("perf", "record", "-q", "-g", "-o", file, "-p", strconv.Itoa(p.cmd.Process.Pid))
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
