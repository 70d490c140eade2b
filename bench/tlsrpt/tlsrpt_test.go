package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ruapost/tlsrpt"
)

// newBench returns a bench with a ruapost-tlspolicy.
func newBench(t *testing.T) *bench {
	t.Helper()
	// The sockets' names must be short.
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{scratch: dir, out: t.Output()}
	if err := b.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// Each datagram that the socket took is a session in the store.
func TestRun(t *testing.T) {
	b := newBench(t)
	loads := map[string]load{
		"one sender":    {rate: 300, senders: 1},
		"several":       {rate: 600, senders: 8},
		"without pause": {senders: 2},
	}
	if os.Geteuid() == 0 { // nobody else can make a namespace
		loads["long queue"] = load{rate: 600, senders: 8, qlen: 512}
	}
	for name, l := range loads {
		t.Run(name, func(t *testing.T) {
			b.out = t.Output()
			l.time, l.domains = 500*time.Millisecond, 50
			o, err := b.run(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			if o.taken == 0 || o.missing() != 0 {
				t.Errorf("%d sent, %d lost at the socket, %d recorded", o.taken, o.lost, o.recorded)
			}
			if o.cpu == 0 || o.own == 0 || o.peak < 1<<20 {
				t.Errorf("CPU %v and %v, memory %d", o.cpu, o.own, o.peak)
			}
			if n := float64(l.rate); n > 0 && o.offered() > 2*n {
				t.Errorf("%.0f datagrams a second, want about %.0f", o.offered(), n)
			}
		})
	}
}

// What a full socket refuses is counted as lost, and the length of its queue is -qlen.
func TestFullSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listen := func() error {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err == nil {
			t.Cleanup(func() { conn.Close() })
		}
		return err
	}
	fits := func() (n int) {
		for ; n < 10_000; n++ {
			if err := tell(&unix.SockaddrUnix{Name: path}, []byte("x")); err != nil {
				return n
			}
		}
		return n
	}
	if err := listen(); err != nil {
		t.Fatal(err)
	}
	fits()
	s := load{senders: 2, domains: 1, time: 20 * time.Millisecond}.send(t.Context(), path)
	if s.err != nil || s.taken > 0 || s.lost == 0 {
		t.Errorf("%+v", s)
	}
	if os.Geteuid() != 0 {
		return
	}
	path += "q"
	if err := inNamespace(3, listen); err != nil {
		t.Fatal(err)
	}
	if n := fits(); n != 4 { // unix(7) has room for one more than the queue is long
		t.Errorf("%d datagrams fit", n)
	}
}

// Each event is one session, of a domain that keeps its policy.
func TestEvents(t *testing.T) {
	policies := map[string]string{}
	for _, datagram := range events(8) {
		sessions, err := tlsrpt.ParseDatagram(datagram)
		if err != nil || len(sessions) != 1 {
			t.Fatalf("%s: %v, %d sessions", datagram, err, len(sessions))
		}
		s := sessions[0]
		policy := strings.Join(append(s.Policy.Strings, s.Policy.MXHosts...), "|") + s.Policy.Domain
		if was, ok := policies[s.Domain]; ok && was != policy {
			t.Errorf("%s: policies %q and %q", s.Domain, was, policy)
		}
		policies[s.Domain] = policy
	}
	if len(policies) != 8 {
		t.Errorf("%d domains", len(policies))
	}
}

func TestCommand(t *testing.T) {
	dir := t.TempDir()
	var out strings.Builder
	args := "-rate 200 -senders 2 -seconds 200ms -dir " + dir + " -tlspolicy " + newBench(t).binary
	if err := run(t.Context(), strings.Fields(args), &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "lost (EAGAIN)") {
		t.Errorf("output:\n%s", &out)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for _, wrong := range []string{"-rate -1", "-senders 0", "-domains 0", "-domains 100000", "-seconds 0s", "-suite -reps 0", "10"} {
		if err := run(t.Context(), strings.Fields(wrong), &out); err == nil {
			t.Errorf("%s: no error", wrong)
		}
	}
}
