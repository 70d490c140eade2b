package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ruapost"
	"ruapost/bboltstore"
	"ruapost/internal/dnstest"
	"ruapost/socketmap"
)

// TestMain lets the tests run the program: the test binary is it, if asked.
func TestMain(m *testing.M) {
	if os.Getenv("TLSPOLICY_TEST") == "run" {
		main()
	}
	os.Exit(m.Run())
}

// process is the running program.
type process struct {
	*exec.Cmd
	dir    string
	output output
}

// output is what the program has logged so far.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// start starts the program in dir, with its store there, and waits until it is
// ready.
func start(t *testing.T, dir string) *process {
	t.Helper()
	dns, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dns.Close)
	dns.Add(`
		a.example. 300 IN MX 10 mx.a.example.
		mx.a.example. 300 IN A 192.0.2.1
		_25._tcp.mx.a.example. 300 IN TLSA 3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
	`)
	config := fmt.Sprintf("report_domain = \"example.org\"\n[dns]\nservers = [%q]\n[store]\npath = %q\n"+
		"[tlspolicy]\nlisten = [\"unix:%s\"]\ntlsrpt = \"unix:%s\"\n",
		dns.Addr, filepath.Join(dir, "store"), filepath.Join(dir, "policy"), filepath.Join(dir, "tlsrpt"))
	if err := os.WriteFile(filepath.Join(dir, "toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	notify := filepath.Join(dir, "notify")
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{Cmd: exec.Command(binary, "-config", filepath.Join(dir, "toml")), dir: dir}
	p.Env = append(os.Environ(), "TLSPOLICY_TEST=run", "NOTIFY_SOCKET="+notify)
	p.Stdout, p.Stderr = &p.output, &p.output
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Process.Kill() })
	buf := make([]byte, 100)
	ready.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := ready.Read(buf); err != nil || !strings.Contains(string(buf[:n]), "READY=1") {
		t.Fatalf("not ready: %v\n%s", err, &p.output)
	}
	return p
}

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// tell sends n datagrams, each about a session of a domain of its own.
func (p *process) tell(t *testing.T, n int) {
	t.Helper()
	conn, err := net.Dial("unixgram", filepath.Join(p.dir, "tlsrpt"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(time.Minute))
	for i := range n {
		if _, err := fmt.Fprintf(conn, `{"dpv":"1","d":"d%d.example","policies":[{"policy-type":9,"t":0,"f":0}]}`, i); err != nil {
			t.Fatalf("datagram %d: %v", i, err)
		}
	}
}

// What Postfix has told by the time of a stop is recorded.
func TestStop(t *testing.T) {
	const n = 10 // fit into the socket's queue everywhere (net.unix.max_dgram_qlen)
	dir := t.TempDir()
	p := start(t, dir)
	p.signal(t, syscall.SIGSTOP)
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(p.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("not stopped: %v, %v", status, err)
	}
	p.tell(t, n)
	p.signal(t, syscall.SIGTERM)
	p.signal(t, syscall.SIGCONT)
	if err := p.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, &p.output)
	}
	store, err := bboltstore.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	groups, err := store.Groups(t.Context(), time.Now().Add(48*time.Hour))
	if err != nil || len(groups) != n {
		t.Errorf("sessions of %d domains recorded, want %d; %v\n%s", len(groups), n, err, &p.output)
	}
	for _, g := range groups {
		if g.Kind != ruapost.KindTLS {
			t.Errorf("%+v", g)
		}
	}
}

// Without its policies Postfix would defer all mail.
func TestForeignStore(t *testing.T) {
	dir := t.TempDir()
	foreign := strings.Repeat("not a store\n", 10_000)
	if err := os.WriteFile(filepath.Join(dir, "store"), []byte(foreign), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, dir)
	c, err := socketmap.Dial(t.Context(), "unix", filepath.Join(dir, "policy"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if reply, err := c.Query("QUERY", "a.example"); reply != socketmap.OK("dane-only") || err != nil {
		t.Errorf("%v, %v", reply, err)
	}
	p.tell(t, 2000) // the socket is drained, or this would block
	c.Close()
	p.signal(t, syscall.SIGTERM)
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	if log := p.output.String(); t.Failed() || !strings.Contains(log, "level=ERROR msg=\"TLS sessions are not recorded, MTA-STS policies only kept in memory\"") {
		t.Errorf("log:\n%s", log)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "store")); string(got) != foreign || err != nil {
		t.Errorf("the file was changed (%v)", err)
	}
}

// Whoever keeps connections without taking part, or does not read what he asked for,
// does not keep Postfix from its answers.
func TestManyConnections(t *testing.T) {
	dir := t.TempDir()
	start(t, dir)
	socket := filepath.Join(dir, "policy")
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	const others = maxConnections - 1
	var readers sync.WaitGroup
	for i := range others {
		conn := dial()
		switch i % 3 {
		case 0: // says nothing
		case 1: // half a query
			io.WriteString(conn, "15:QUERY a.exam")
		case 2: // many queries, whose answers nobody reads
			readers.Go(func() {
				conn.SetWriteDeadline(time.Now().Add(time.Second))
				for range 100 {
					if _, err := io.WriteString(conn, strings.Repeat("15:QUERY a.example,", 100)); err != nil {
						return
					}
				}
			})
		}
	}
	began := time.Now()
	c, err := socketmap.Dial(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if reply, err := c.Query("QUERY", "a.example"); reply != socketmap.OK("dane-only") || err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("%v, %v after %v", reply, err, time.Since(began))
	}
	readers.Wait()
}

// A change of the configuration is in force after SIGHUP, a mistake is not.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	file := filepath.Join(dir, "toml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c, err := socketmap.Dial(t.Context(), "unix", filepath.Join(dir, "policy"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, step := range []struct{ more, log, want string }{
		{"", "configuration reloaded", "OK dane-only"},
		{"[[tls_override]]\ndomain = \".example\"\nlevel = \"encrypt\"\n", "tls_overrides=1", "OK encrypt"},
		{"[[tls_override]]\ndomain = \".example\"\nlevel = \"much\"\n", "the old one stays in force", "OK encrypt"},
		{"[[tls_override]]\ndomain = \"a.example\"\nignore = \"dane\"\n", "tls_overrides=1", "OK may"},
	} {
		if err := os.WriteFile(file, []byte(string(text)+step.more), 0o600); err != nil {
			t.Fatal(err)
		}
		seen := strings.Count(p.output.String(), step.log)
		p.signal(t, syscall.SIGHUP)
		for end := time.Now().Add(time.Minute); strings.Count(p.output.String(), step.log) == seen; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not in the log: %s\n%s", step.log, p.output.String())
			}
		}
		if reply, err := c.Query("QUERY", "a.example"); reply.String() != step.want || err != nil {
			t.Errorf("%s: %v, %v; want %s", step.more, reply, err, step.want)
		}
	}
}
