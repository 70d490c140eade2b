package resolver

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ruapost/internal/dnstest"
)

func TestProbe(t *testing.T) {
	for _, tt := range []struct {
		name      string
		prepare   func(*dnstest.Server)
		untrusted bool
		want      string // after the address
		ad        bool
		queries   int
	}{
		{name: "validates", prepare: func(*dnstest.Server) {}, want: "AD bit", ad: true, queries: 1},
		{name: "does not", prepare: func(s *dnstest.Server) { s.SetInsecure(".") }, want: "no AD bit", queries: 1},
		{name: "validates, not trusted", prepare: func(*dnstest.Server) {}, untrusted: true, want: "AD bit, not trusted", ad: true, queries: 1},
		{name: "knows the root", prepare: func(s *dnstest.Server) { s.Add(". 300 IN NS a.root.test.") }, want: "AD bit", ad: true, queries: 1},
		{name: "fails", prepare: func(s *dnstest.Server) { s.SetRcode(".", dns.RcodeServerFailure) }, want: "server answered SERVFAIL", queries: 1},
		{name: "is silent", prepare: func(s *dnstest.Server) { s.SetRcode(".", -1) }, want: "i/o timeout", queries: rounds},
		{name: "a packet is lost", prepare: func(s *dnstest.Server) {
			var asked atomic.Int32
			s.Handle(func(dns.ResponseWriter, *dns.Msg) bool { return asked.Add(1) == 1 })
		}, want: "AD bit", ad: true, queries: 2},
		{name: "truncated", prepare: func(s *dnstest.Server) {
			for i := range 100 {
				s.Add(fmt.Sprintf(". 300 IN NS ns%d.a-rather-long-name.test.", i))
			}
		}, want: "AD bit", ad: true, queries: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, s := start(t, "")
			r.timeout = 200 * time.Millisecond
			r.servers[0].trusted = !tt.untrusted
			tt.prepare(s)
			states := r.Probe(t.Context())
			if len(states) != 1 {
				t.Fatalf("states %v", states)
			}
			got := states[0]
			if got.Addr != netip.MustParseAddrPort(s.Addr) || got.Trusted == tt.untrusted || got.AD != tt.ad || (got.Err == nil) != (got.RoundTrip > 0) {
				t.Errorf("%+v", got)
			}
			if text, ok := strings.CutPrefix(got.String(), s.Addr+": "); !ok || !strings.Contains(text, tt.want) || got.Err == nil && text != tt.want {
				t.Errorf("%q, want %q", got.String(), tt.want)
			}
			if got.Err != nil {
				checkError(t, got.Err, map[bool]string{true: "temporary", false: "timeout"}[IsServerFailure(got.Err)])
			}
			if q := s.Queries(); len(q) != tt.queries || q[0] != ". NS" {
				t.Errorf("queries %q, want %d", q, tt.queries)
			}
		})
	}
}

// All servers are asked at the same time, and told about in their order.
func TestProbeAll(t *testing.T) {
	first, second := startServer(t, ""), startServer(t, "")
	r := startResolver(t, newClock(), first, second)
	r.prefer(r.servers[1])
	asked := make(chan struct{})
	first.Handle(func(dns.ResponseWriter, *dns.Msg) bool {
		<-asked // until the second one is
		return false
	})
	second.Handle(func(dns.ResponseWriter, *dns.Msg) bool {
		close(asked)
		return false
	})
	got := r.Probe(t.Context())
	if len(got) != 2 || got[0].Addr.String() != first.Addr || !got[0].AD || !got[1].AD {
		t.Errorf("states %v", got)
	}
}

func TestProbeCancelled(t *testing.T) {
	r, s := start(t, "")
	s.SetRcode(".", -1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if states := r.Probe(ctx); states[0].Err == nil {
		t.Errorf("states %v", states)
	}
}

// dnssecWatch is a resolver that wants DNSSEC.
type dnssecWatch struct {
	*Resolver
	clock    *testClock
	captured *lockedBuffer
	lookups  int
}

func wantDNSSEC(t *testing.T, servers ...*dnstest.Server) *dnssecWatch {
	t.Helper()
	validating.Reset()
	w := &dnssecWatch{clock: newClock(), captured: captureLog(t)}
	cfg := Config{WantDNSSEC: true, Timeout: 200 * time.Millisecond}
	for _, s := range servers {
		cfg.Servers = append(cfg.Servers, s.Addr)
	}
	var err error
	if w.Resolver, err = newResolver(cfg, nil, w.clock.Now); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	w.running.Wait()
	return w
}

// check checks the gauge, which is -1 if it is not there, and what has been logged since
// the last call: its level, or nothing.
func (w *dnssecWatch) check(t *testing.T, when string, gauge int, level string) {
	t.Helper()
	got := -1
	if testutil.CollectAndCount(validating) > 0 {
		got = int(testutil.ToFloat64(validating))
	}
	if got != gauge {
		t.Errorf("%s: gauge %d, want %d", when, got, gauge)
	}
	if text := w.captured.take(); level == "" && text != "" || level != "" && (strings.Count(text, "\n") != 1 || !strings.Contains(text, "level="+level)) {
		t.Errorf("%s: logged %q, want %q", when, text, level)
	}
}

// later makes a lookup that much later and waits for what it has started. It returns
// how often s was probed.
func (w *dnssecWatch) later(t *testing.T, d time.Duration, s *dnstest.Server) (probes int) {
	t.Helper()
	w.clock.Advance(d)
	w.lookups++
	w.LookupTXT(t.Context(), fmt.Sprintf("n%d.example", w.lookups))
	w.running.Wait()
	for _, q := range s.Queries() {
		if q == ". NS" {
			probes++
		}
	}
	return probes
}

// RFC 4035 4.9.3: without a validating resolver there is no DANE. This is told once.
func TestWantDNSSEC(t *testing.T) {
	s := startServer(t, "")
	s.SetInsecure(".")
	w := wantDNSSEC(t, s)
	w.check(t, "at once", 0, "WARN")
	if n := w.later(t, probeAgain-time.Second, s); n != 1 {
		t.Errorf("probed %d times before the first lookup, want once", n)
	}
	if n := w.later(t, time.Second, s); n != 1 {
		t.Errorf("a minute later: probed %d times", n)
	}
	w.check(t, "still", 0, "")
	s.SetSecure(".")
	w.later(t, probeAgain, s)
	w.check(t, "validates", 1, "INFO")
	if n := w.later(t, probeValidating-time.Second, s); n != 0 {
		t.Errorf("validates: probed %d times", n)
	}
	s.SetInsecure(".")
	w.later(t, time.Second, s)
	w.check(t, "no more", 0, "WARN")
}

func TestWantDNSSECServers(t *testing.T) {
	validates := func(*dnstest.Server) {}
	plain := func(s *dnstest.Server) { s.SetInsecure(".") }
	silent := func(s *dnstest.Server) { s.SetRcode(".", -1) }
	fails := func(s *dnstest.Server) { s.SetRcode(".", dns.RcodeServerFailure) }
	for _, tt := range []struct {
		name    string
		servers []func(*dnstest.Server)
		gauge   int
		level   string
	}{
		{"validates", []func(*dnstest.Server){validates}, 1, ""},
		{"one of two validates", []func(*dnstest.Server){plain, validates}, 1, ""},
		{"the other is silent", []func(*dnstest.Server){silent, validates}, 1, ""},
		{"none validates", []func(*dnstest.Server){plain, plain}, 0, "WARN"},
		{"one does not, the other is silent", []func(*dnstest.Server){plain, silent}, 0, "WARN"},
		{"silent", []func(*dnstest.Server){silent}, -1, ""},
		{"fails", []func(*dnstest.Server){fails}, -1, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var servers []*dnstest.Server
			for _, prepare := range tt.servers {
				s := startServer(t, "")
				prepare(s)
				servers = append(servers, s)
			}
			wantDNSSEC(t, servers...).check(t, "at once", tt.gauge, tt.level)
		})
	}
}

// Whatever servers of resolv.conf that are not on loopback say does not count.
func TestWantDNSSECNotTrusted(t *testing.T) {
	s := startServer(t, "")
	w := wantDNSSEC(t, s)
	w.check(t, "trusted", 1, "")
	trusted := w.Resolver.servers[0]
	w.use([]server{{addr: trusted.addr}})
	w.captured.take()
	w.later(t, 0, s)
	w.check(t, "not trusted", 0, "WARN")
	w.use([]server{trusted})
	w.captured.take()
	if n := w.later(t, 0, s); n != 1 {
		t.Errorf("probed %d times after the change of servers, want once", n)
	}
	w.check(t, "trusted again", 1, "")
}

// A probe that takes its time holds up nothing, and says nothing of servers that came
// after it.
func TestWantDNSSECDelaysNothing(t *testing.T) {
	s := startServer(t, "example.com. 300 IN TXT x")
	probed, gate := make(chan struct{}), make(chan struct{})
	s.Handle(func(_ dns.ResponseWriter, q *dns.Msg) bool {
		if q.Question[0].Name == "." {
			probed <- struct{}{}
			<-gate
		}
		return false
	})
	s.SetInsecure(".")
	validating.Reset()
	captured := captureLog(t)
	r, err := New(Config{Servers: []string{s.Addr}, WantDNSSEC: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	<-probed
	if _, _, err := r.LookupTXT(t.Context(), "example.com"); err != nil {
		t.Error(err)
	}
	r.use([]server{{addr: r.servers[0].addr}})
	captured.take()
	close(gate)
	r.running.Wait()
	if text := captured.take(); text != "" || testutil.CollectAndCount(validating) > 0 {
		t.Errorf("logged %q", text)
	}
}

// Programs that do not want DNSSEC ask nothing of their own accord.
func TestNoDNSSECWanted(t *testing.T) {
	r, s := start(t, "")
	validating.Reset()
	r.LookupTXT(t.Context(), "example.com")
	r.running.Wait()
	if q := s.Queries(); len(q) != 1 || testutil.CollectAndCount(validating) > 0 {
		t.Errorf("queries %q", q)
	}
}
