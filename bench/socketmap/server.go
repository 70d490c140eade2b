package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"ruapost/bench/internal/program"
	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
	"ruapost/socketmap"
)

// server is the server under test.
type server struct {
	addr    string
	pid     int              // 0 if its costs are not known
	process *program.Process // nil if it is not our own
	undo    []func()
}

func (s *server) stop() (err error) {
	if s.process != nil {
		err = s.process.Stop()
	}
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i]()
	}
	return err
}

// start starts what is to be measured, and has it know every domain.
func (b *bench) start(ctx context.Context) (_ *server, err error) {
	s := &server{addr: b.addr, pid: b.pid}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
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
		if b.binary, err = program.Build(ctx, dir, "cmd/tlspolicy"); err != nil {
			return err
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
	cmd := exec.Command(b.binary, "-config", filepath.Join(dir, "toml"))
	cmd.Env = append(os.Environ(), "HTTPS_PROXY=http://"+proxy.Addr().String(),
		"SSL_CERT_FILE="+filepath.Join(dir, "ca.pem"), "SSL_CERT_DIR=/nonexistent")
	p, err := program.Start(cmd, filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	err = p.Ready(func() error {
		conn, err := dial(s.addr)
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err == nil {
		s.process, s.pid = p, p.PID()
	}
	return err
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

// usage is what the server has used so far, nothing if that is not to be known.
func (s *server) usage() (u program.Usage, err error) {
	if s.pid != 0 {
		u, err = program.UsageOf(s.pid)
	}
	return u, err
}
