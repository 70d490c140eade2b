package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
	"ruapost/socketmap"
)

const (
	startTime = 30 * time.Second // for the server to begin
	tickTime  = 10 * time.Millisecond
)

// server is the server under test.
type server struct {
	addr string
	pid  int // 0 if its costs are not known
	undo []func()
}

func (s *server) stop() {
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i]()
	}
}

// start starts what is to be measured, and has it know every domain.
func (b *bench) start(ctx context.Context) (s *server, err error) {
	s = &server{addr: b.addr, pid: b.pid}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	dir, err := os.MkdirTemp("", "ruapost-bench-")
	if err != nil {
		return nil, err
	}
	s.undo = append(s.undo, func() { os.RemoveAll(dir) })
	switch {
	case b.trivial:
		err = s.startTrivial(dir)
	case b.addr == "":
		err = b.startPolicies(ctx, s, dir)
	}
	if err != nil {
		return nil, err
	}
	return s, warm(ctx, s.addr, b.queries())
}

// startTrivial serves the protocol alone, in this process.
func (s *server) startTrivial(dir string) error {
	s.addr, s.pid = filepath.Join(dir, "policy"), os.Getpid()
	ln, err := net.Listen("unix", s.addr)
	if err != nil {
		return err
	}
	s.undo = append(s.undo, func() { ln.Close() })
	answer := func(context.Context, string, string) socketmap.Reply { return socketmap.NotFound() }
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go socketmap.Serve(context.Background(), conn, answer)
		}
	}()
	return nil
}

// startPolicies starts ruapost-tlspolicy. Of its domains 5 % have an MTA-STS policy, 5 %
// DANE, the others nothing.
func (b *bench) startPolicies(ctx context.Context, s *server, dir string) error {
	dns, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		return err
	}
	s.undo = append(s.undo, dns.Close)
	ca, err := lab.NewCA()
	if err != nil {
		return err
	}
	host, err := lab.StartPolicyHost("127.0.0.1:0", ca)
	if err != nil {
		return err
	}
	proxy, err := net.Listen("tcp", "127.0.0.1:0") // port 443 belongs to root
	if err != nil {
		return err
	}
	s.undo = append(s.undo, host.Close, func() { proxy.Close() })
	go lab.ServeConnect(proxy, func(string) string { return host.Addr })
	b.publish(dns, host)

	if b.binary == "" {
		b.binary = filepath.Join(dir, "ruapost-tlspolicy")
		build := exec.CommandContext(ctx, "go", "build", "-o", b.binary, "ruapost/cmd/tlspolicy")
		if text, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("go build: %w\n%s", err, text)
		}
	}
	s.addr = filepath.Join(dir, "policy")
	config := fmt.Sprintf("report_domain = \"sender.example\"\n[dns]\nservers = [%q]\n[store]\npath = %q\n[tlspolicy]\nlisten = [\"unix:%s\"]\ntlsrpt = \"\"\n",
		dns.Addr, filepath.Join(dir, "ruapost.db"), s.addr)
	for name, text := range map[string]string{"toml": config, "ca.pem": string(ca.PEM())} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return s.launch(exec.Command(b.binary, "-config", filepath.Join(dir, "toml")),
		"HTTPS_PROXY=http://"+proxy.Addr().String(), "SSL_CERT_FILE="+filepath.Join(dir, "ca.pem"), "SSL_CERT_DIR=/nonexistent")
}

func (b *bench) publish(dns *dnstest.Server, host *lab.PolicyHost) {
	zone := &strings.Builder{}
	zone.WriteString("mx.example. 3600 IN A 192.0.2.1\nmx.dane.example. 3600 IN A 192.0.2.2\n" +
		"_25._tcp.mx.dane.example. 3600 IN TLSA 3 1 1 " + strings.Repeat("ab", 32) + "\n")
	for i := range b.domains {
		mx := "mx.example."
		switch i % 20 {
		case 0:
			mx = "mx.dane.example."
		case 1:
			fmt.Fprintf(zone, "_mta-sts.%s. 3600 IN TXT \"v=STSv1; id=1\"\n", domain(i))
			host.SetPolicy(domain(i), "version: STSv1", "mode: enforce", "mx: mx.example", "mx: *.mail."+domain(i), "max_age: 604800")
		}
		fmt.Fprintf(zone, "%s. 3600 IN MX 10 %s\n", domain(i), mx)
	}
	dns.Add(zone.String())
}

// launch starts the program and waits until its socket is there.
func (s *server) launch(cmd *exec.Cmd, env ...string) error {
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Start(); err != nil {
		return err
	}
	s.pid = cmd.Process.Pid
	s.undo = append(s.undo, func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	for end := time.Now().Add(startTime); time.Now().Before(end); time.Sleep(tickTime) {
		if conn, err := dial(s.addr); err == nil {
			conn.Close()
			return nil
		}
	}
	return errors.New("the server does not begin; run it by hand")
}

// cpu is the CPU time that the server has taken so far.
func (s *server) cpu() time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(fields[11]) // proc_pid_stat(5): utime, the 14th field
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * tickTime
}

// memory is what the server has in memory now, in MB.
func (s *server) memory() float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.pid))
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.Atoi(fields[1])
	return float64(pages) * float64(os.Getpagesize()) / 1e6
}
