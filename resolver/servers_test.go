package resolver

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"ruapost/internal/dnstest"
)

// lockedBuffer is a buffer that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// take returns what was written since the last call.
func (b *lockedBuffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.b.String()
	b.b.Reset()
	return s
}

// captureLog has what is logged during the test.
func captureLog(t *testing.T) *lockedBuffer {
	t.Helper()
	b := &lockedBuffer{}
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(b, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	return b
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestResolvConf(t *testing.T) {
	trusted := func(s string) server { return server{addr: netip.MustParseAddrPort(s), trusted: true} }
	untrusted := func(s string) server { return server{addr: netip.MustParseAddrPort(s)} }
	tests := []struct {
		name, text string
		want       []server
	}{
		{
			"all servers in order", "search example.com\nnameserver 192.0.2.1\nnameserver ::1\nnameserver fe80::1%eth0\nnameserver 127.0.0.53\noptions edns0\n",
			[]server{untrusted("192.0.2.1:53"), trusted("[::1]:53"), untrusted("[fe80::1%eth0]:53"), trusted("127.0.0.53:53")},
		},
		{"no address", "nameserver localhost\nnameserver\nnameserver 192.0.2.1\n", []server{untrusted("192.0.2.1:53")}},
		{"none", "search example.com\n", []server{trusted("127.0.0.1:53")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "resolv.conf")
			writeFile(t, path, tt.text)
			got, err := (&confFile{path: path, port: 53}).first()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(server{}), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("no file", func(t *testing.T) {
		got, err := (&confFile{path: filepath.Join(t.TempDir(), "resolv.conf"), port: 53}).first()
		if err != nil || len(got) != 1 || got[0] != trusted("127.0.0.1:53") {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("unreadable", func(t *testing.T) {
		if r, err := newResolver(Config{}, &confFile{path: t.TempDir(), port: 53}, time.Now); err == nil {
			r.Close()
			t.Error("no error")
		}
	})
}

// watched is a resolver that takes its servers from a file, and two servers on
// loopback with the same port, which is the one of the file's servers.
type watched struct {
	*Resolver
	clock    *testClock
	path     string
	servers  [2]*dnstest.Server
	lines    [2]string // of the servers in the file
	captured *lockedBuffer
}

// watch starts a resolver whose file names the first server. Each server answers for
// example.com with its own number.
func watch(t *testing.T) *watched {
	t.Helper()
	w := &watched{clock: newClock(), path: filepath.Join(t.TempDir(), "resolv.conf"), captured: captureLog(t)}
	addr := "127.0.0.2:0"
	for i := range w.servers {
		s, err := dnstest.Start(addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		s.Add(fmt.Sprintf("example.com. 3600 IN TXT %d", i))
		_, port, err := net.SplitHostPort(s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		w.servers[i] = s
		w.lines[i] = fmt.Sprintf("nameserver 127.0.0.%d\n", i+2)
		addr = "127.0.0.3:" + port
	}
	writeFile(t, w.path, w.lines[0])
	_, port, _ := net.SplitHostPort(addr)
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	if w.Resolver, err = newResolver(Config{}, &confFile{path: w.path, port: uint16(n)}, w.clock.Now); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// look looks at names that are not in the cache, which makes the resolver look at its
// file, and says which server was asked.
func (w *watched) look(t *testing.T, want int) {
	t.Helper()
	w.servers[0].Queries()
	w.servers[1].Queries()
	w.LookupTXT(t.Context(), fmt.Sprintf("n%d.example", time.Now().UnixNano()))
	asked := [2]int{len(w.servers[0].Queries()), len(w.servers[1].Queries())}
	if asked[want] != 1 || asked[1-want] != 0 {
		t.Errorf("queries %v, want one to server %d", asked, want)
	}
}

func TestResolvConfChange(t *testing.T) {
	w := watch(t)
	w.look(t, 0)
	writeFile(t, w.path, "search example.com\n"+w.lines[1])
	w.clock.Advance(confEach - time.Millisecond)
	w.look(t, 0)
	w.clock.Advance(time.Millisecond)
	w.look(t, 1)
	if text := w.captured.take(); strings.Count(text, "level=INFO") != 1 || strings.Count(text, "\n") != 1 ||
		!strings.Contains(text, w.servers[1].Addr) {
		t.Errorf("logged %q", text)
	}
	// A change that is none of the servers.
	writeFile(t, w.path, w.lines[1]+"options edns0\n")
	w.LookupTXT(t.Context(), "example.com")
	w.clock.Advance(confEach)
	w.look(t, 1)
	if _, _, err := w.LookupTXT(t.Context(), "example.com"); err != nil || len(w.servers[1].Queries()) > 0 {
		t.Errorf("cache is empty, error %v", err)
	}
	if text := w.captured.take(); text != "" {
		t.Errorf("logged %q", text)
	}
}

// Each of what tells a change is enough.
func TestResolvConfNoticed(t *testing.T) {
	old := time.Now().Add(-time.Hour)
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, w *watched)
	}{
		{"time", func(t *testing.T, w *watched) { writeFile(t, w.path, w.lines[1]) }},
		{"size", func(t *testing.T, w *watched) {
			writeFile(t, w.path, w.lines[1]+"\n")
			os.Chtimes(w.path, old, old)
		}},
		{"another file, of the same time and size", func(t *testing.T, w *watched) {
			writeFile(t, w.path+".new", w.lines[1])
			os.Chtimes(w.path+".new", old, old)
			if err := os.Rename(w.path+".new", w.path); err != nil {
				t.Fatal(err)
			}
		}},
		{"link to another file", func(t *testing.T, w *watched) {
			writeFile(t, w.path+".new", w.lines[1])
			os.Remove(w.path)
			if err := os.Symlink(filepath.Base(w.path)+".new", w.path); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := watch(t)
			os.Chtimes(w.path, old, old)
			w.clock.Advance(confEach)
			w.look(t, 0)
			tt.change(t, w)
			w.clock.Advance(confEach)
			w.look(t, 1)
		})
	}
}

// A file that is missing, unreadable or without servers for a moment changes nothing,
// and is logged once.
func TestResolvConfUnusable(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(w *watched) error
	}{
		{"missing", func(w *watched) error { return os.Remove(w.path) }},
		{"unreadable", func(w *watched) error {
			os.Remove(w.path)
			return os.Mkdir(w.path, 0o700)
		}},
		{"empty", func(w *watched) error { return os.Truncate(w.path, 0) }},
		{"without an address", func(w *watched) error { return os.WriteFile(w.path, []byte("nameserver localhost\n"), 0o600) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := watch(t)
			w.LookupTXT(t.Context(), "example.com")
			if err := tt.spoil(w); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				w.clock.Advance(confEach)
				w.look(t, 0)
			}
			w.LookupTXT(t.Context(), "example.com")
			if q := w.servers[0].Queries(); len(q) > 0 {
				t.Errorf("cache is empty: asked %q", q)
			}
			if text := w.captured.take(); strings.Count(text, "level=WARN") != 1 || strings.Count(text, "\n") != 1 {
				t.Errorf("logged %q", text)
			}
			os.Remove(w.path)
			writeFile(t, w.path, w.lines[1])
			w.clock.Advance(confEach)
			w.look(t, 1)
		})
	}
}

// A program that starts before there is a resolv.conf is not left to the server of this
// host.
func TestResolvConfAppears(t *testing.T) {
	w := watch(t)
	conf := &confFile{path: w.path + ".later", port: w.conf.port}
	r, err := newResolver(Config{}, conf, w.clock.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if s := fmt.Sprint(r.order()); s != fmt.Sprintf("[127.0.0.1:%d]", conf.port) {
		t.Errorf("servers %s", s)
	}
	writeFile(t, conf.path, w.lines[1])
	if txts, _, err := r.LookupTXT(t.Context(), "example.com"); err != nil || txts[0] != "1" {
		t.Errorf("%q, %v", txts, err)
	}
}

// What the servers of before have said, above all that they failed, does not outlive
// the switch.
func TestResolvConfForgets(t *testing.T) {
	w := watch(t)
	w.servers[0].SetRcode("failing.example", dns.RcodeServerFailure)
	w.servers[0].SetInsecure("example.com")
	w.servers[1].Add("failing.example. 300 IN TXT x\nunknown.example. 300 IN TXT x")
	lookups := func() (results []string) {
		for _, name := range []string{"failing.example", "unknown.example", "example.com"} {
			txts, authentic, err := w.LookupTXT(t.Context(), name)
			results = append(results, fmt.Sprintf("%s %q %v %v", name, txts, authentic, err != nil))
		}
		return results
	}
	before := []string{"failing.example [] false true", "unknown.example [] true true", `example.com ["0"] false false`}
	if diff := cmp.Diff(before, lookups()); diff != "" {
		t.Fatal(diff)
	}
	w.prefer(w.Resolver.servers[0])
	writeFile(t, w.path, w.lines[1]+w.lines[0]) // the failure would be remembered for failureTTL
	w.conf.next = time.Time{}
	w.look(t, 1)
	after := []string{`failing.example ["x"] true false`, `unknown.example ["x"] true false`, `example.com ["1"] true false`}
	if diff := cmp.Diff(after, lookups()); diff != "" {
		t.Error(diff)
	}
}

// A lookup that is under way at the switch ends for those alone who wait for it.
func TestResolvConfFlight(t *testing.T) {
	w := watch(t)
	arrived, release := blockServer(w.servers[0])
	defer release()
	w.servers[0].SetRcode("example.com", dns.RcodeServerFailure)
	errs := make(chan error, 1)
	go func() {
		_, _, err := w.LookupTXT(t.Context(), "example.com")
		errs <- err
	}()
	<-arrived
	old := w.order()[0]
	writeFile(t, w.path, w.lines[1])
	w.clock.Advance(confEach)
	for range 2 { // the second time from the cache
		if txts, _, err := w.LookupTXT(t.Context(), "example.com"); err != nil || txts[0] != "1" {
			t.Errorf("%q, %v", txts, err)
		}
	}
	release()
	checkError(t, <-errs, "temporary")
	if txts, _, err := w.LookupTXT(t.Context(), "example.com"); err != nil || txts[0] != "1" {
		t.Errorf("after the failure: %q, %v", txts, err)
	}
	w.prefer(old) // as if it had been found to answer
	w.look(t, 1)
}

// A lookup at servers of before ends when nobody waits for it any more.
func TestResolvConfFlightAbandoned(t *testing.T) {
	w := watch(t)
	arrived := make(chan struct{}, rounds)
	w.servers[0].Handle(func(dns.ResponseWriter, *dns.Msg) bool {
		arrived <- struct{}{}
		return true // without an answer
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k := key{"example.com", dns.TypeTXT}
	f := w.join(ctx, k)
	<-arrived
	writeFile(t, w.path, w.lines[1])
	w.clock.Advance(confEach)
	w.look(t, 1)
	cancel()
	begin := time.Now()
	checkError(t, w.wait(ctx, k, f).error(), "temporary")
	<-f.done
	if d := time.Since(begin); d > defaultTimeout/2 {
		t.Errorf("ended after %v", d)
	}
}

func TestResolvConfRace(t *testing.T) {
	w := watch(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 100 {
				name := fmt.Sprintf("n%d.%d.example", n, i)
				if n%2 == 0 {
					name = "example.com"
				}
				if _, _, err := w.LookupTXT(t.Context(), name); err != nil && !IsNotFound(err) {
					t.Error(err)
				}
				w.clock.Advance(confEach / 2)
			}
		})
	}
	for i := range 50 {
		writeFile(t, w.path+".new", w.lines[i%2])
		if err := os.Rename(w.path+".new", w.path); err != nil {
			t.Error(err)
		}
		w.LookupTXT(t.Context(), fmt.Sprintf("m%d.example", i))
	}
	wg.Wait()
	w.clock.Advance(confEach)
	w.look(t, 1)
	if len(w.slots) != 0 || len(w.flights) != 0 {
		t.Errorf("%d slots taken, %d flights", len(w.slots), len(w.flights))
	}
}

// Who names the servers in the configuration means those.
func TestResolvConfNotRead(t *testing.T) {
	s := startServer(t, "example.com. 300 IN TXT x")
	r, err := newResolver(Config{Servers: []string{s.Addr}}, &confFile{path: t.TempDir()}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, _, err := r.LookupTXT(t.Context(), "example.com"); err != nil || r.conf != nil {
		t.Error(err)
	}
}
