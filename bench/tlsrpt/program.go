package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ruapost/internal/dnstest"
)

const (
	startTime = 10 * time.Second // for the daemon to begin
	stopTime  = 60 * time.Second // and to end
)

// program is a ruapost-tlspolicy under test.
type program struct {
	cmd    *exec.Cmd
	dns    *dnstest.Server
	socket string // for datagrams
	store  string // its file
	log    string // the file with what it says
	ended  chan error
	ready  *net.UnixConn // what the daemon tells systemd; it stays open for the end
}

const configuration = `report_domain = "sender.example"
[store]
path = %q
[dns]
servers = [%q]
[tlspolicy]
listen = ["unix:%s"]
tlsrpt = "unix:%s"
`

// start starts a daemon in the folder dir and waits until it is ready.
func (b *bench) start(dir string, qlen int) (p *program, err error) {
	notify := filepath.Join(dir, "notify")
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ready.Close()
		}
	}()
	p = &program{
		ready:  ready,
		socket: filepath.Join(dir, "tlsrpt.sock"), store: filepath.Join(dir, "ruapost.db"),
		log: filepath.Join(dir, "log"), ended: make(chan error, 1),
	}
	launch := func() error { return p.launch(b.binary, dir, notify) }
	if qlen > 0 {
		err = inNamespace(qlen, launch)
	} else {
		err = launch()
	}
	if err != nil {
		return nil, err
	}
	ready.SetReadDeadline(time.Now().Add(startTime))
	buf := make([]byte, 100)
	if n, err := ready.Read(buf); err != nil || !bytes.Contains(buf[:n], []byte("READY=1")) {
		p.kill()
		return nil, p.failed(fmt.Errorf("not ready: %w", err))
	}
	return p, nil
}

// launch starts the daemon and its DNS server, which has nothing: no MX host wants reports
// of its own.
func (p *program) launch(binary, dir, notify string) (err error) {
	if p.dns, err = dnstest.Start("127.0.0.1:0"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			p.dns.Close()
		}
	}()
	file := filepath.Join(dir, "ruapost.toml")
	text := fmt.Appendf(nil, configuration, p.store, p.dns.Addr, filepath.Join(dir, "policy.sock"), p.socket)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	log, err := os.Create(p.log)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(binary, "-config", file)
	p.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() { p.ended <- p.cmd.Wait() }()
	return nil
}

// failed tells with err what the daemon said.
func (p *program) failed(err error) error {
	said, _ := os.ReadFile(p.log)
	return fmt.Errorf("the daemon: %w\n%s", err, said[max(0, len(said)-2000):])
}

// stop ends the daemon as systemd does.
func (p *program) stop() error {
	defer p.ready.Close()
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-p.ended:
		p.dns.Close()
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
	<-p.ended
	p.ready.Close()
	p.dns.Close()
}

// complaints are the warnings and errors in the daemon's log.
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

// cpu is the CPU time of the daemon, which has ended, and peak the most memory it had.
func (p *program) cpu() time.Duration {
	return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
}

func (p *program) peak() int64 {
	return p.cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
}

// profile records where the daemon's time goes until the function that it returns is
// called.
func (p *program) profile(ctx context.Context, file string, out io.Writer) (stop func() error, err error) {
	perf := exec.CommandContext(ctx, "perf", "record", "-q", "-g", "-o", file, "-p", strconv.Itoa(p.cmd.Process.Pid))
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
