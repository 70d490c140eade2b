package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"ruapost/bench/internal/program"
	"ruapost/internal/dnstest"
)

const startTime = 10 * time.Second // for the daemon to begin

// daemon is a ruapost-tlspolicy under test.
type daemon struct {
	*program.Process
	dns    *dnstest.Server
	socket string        // for datagrams
	store  string        // its file
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
func (b *bench) start(dir string, qlen int) (p *daemon, err error) {
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
	p = &daemon{ready: ready, socket: filepath.Join(dir, "tlsrpt.sock"), store: filepath.Join(dir, "ruapost.db")}
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
		return nil, p.Failed(fmt.Errorf("not ready: %w", err))
	}
	return p, nil
}

// launch starts the daemon and its DNS server, which has nothing: no MX host wants reports
// of its own.
func (p *daemon) launch(binary, dir, notify string) (err error) {
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
	cmd := exec.Command(binary, "-config", file)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	// With -qlen this thread ends soon, and a signal at its death would come too early.
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	p.Process, err = program.Start(cmd, filepath.Join(dir, "log"))
	return err
}

// stop ends the daemon as systemd does.
func (p *daemon) stop() error {
	defer p.close()
	return p.Stop()
}

func (p *daemon) kill() {
	p.Kill()
	p.close()
}

func (p *daemon) close() {
	p.ready.Close()
	p.dns.Close()
}
