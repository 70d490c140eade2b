package resolver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ruapost"
	"ruapost/internal/dnstest"
)

func TestTTL(t *testing.T) {
	for _, tt := range []struct {
		name, zone string
		rcode      int
		want       string
		ttl        time.Duration
	}{
		{name: "record", zone: "example.com. 300 IN TXT x", ttl: 300 * time.Second},
		{name: "chain", zone: "example.com. 60 IN CNAME b.example.\nb.example. 300 IN TXT x", ttl: 60 * time.Second},
		{name: "NXDOMAIN", want: "nxdomain", ttl: 60 * time.Second}, // dnstest's SOA
		{name: "NODATA", zone: "example.com. 300 IN A 192.0.2.1", want: "nodata", ttl: 60 * time.Second},
		{name: "failure", rcode: dns.RcodeServerFailure, want: "temporary", ttl: failureTTL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := startServer(t, tt.zone)
			s.SetRcode("example.com", tt.rcode)
			clock := newClock()
			r := startResolver(t, clock, s)
			look := func(queries int) {
				t.Helper()
				_, _, err := r.LookupTXT(t.Context(), "example.com")
				if tt.want != "" {
					checkError(t, err, tt.want)
				} else if err != nil {
					t.Fatal(err)
				}
				if q := s.Queries(); len(q) != queries {
					t.Fatalf("%d queries (%q), want %d", len(q), q, queries)
				}
			}
			look(1)
			clock.Advance(tt.ttl - time.Millisecond)
			look(0)
			clock.Advance(2 * time.Millisecond)
			look(1)
		})
	}
}

func TestCacheKeepsTypesApart(t *testing.T) {
	r, _ := start(t, "example.com. 300 IN TXT x\nexample.com. 300 IN MX 10 mx.example.com.")
	for range 2 {
		txts, _, err := r.LookupTXT(t.Context(), "example.com")
		mxs, _, err2 := r.LookupMX(t.Context(), "example.com")
		if len(txts) != 1 || len(mxs) != 1 || err != nil || err2 != nil {
			t.Fatal(txts, mxs, err, err2)
		}
	}
}

func TestCacheBounds(t *testing.T) {
	for _, octets := range []int{defaultCacheBytes, 1 << 20} {
		for _, tt := range []struct {
			name   string
			answer answer
			offers int
			most   int
		}{
			{"entries", answer{}, octets/entryWeight + 5000, octets / entryWeight},
			{"octets", answer{size: maxAnswerBytes}, 3 * octets / maxAnswerBytes, octets / maxAnswerBytes},
			{"records", answer{txts: make([]string, maxRecords)}, octets / 3000, octets / (maxRecords * recordWeight)},
			{"aliases", answer{chain: make([]string, maxAliases)}, octets / 600, octets / (maxAliases * recordWeight)},
		} {
			t.Run(fmt.Sprintf("%s in %d MB", tt.name, octets>>20), func(t *testing.T) {
				c, err := newCache(octets, newClock().Now)
				if err != nil {
					t.Fatal(err)
				}
				defer c.StopAllGoroutines()
				before := testutil.ToFloat64(limitCache)
				for i := range tt.offers {
					c.Set(key{fmt.Sprint(i), dns.TypeA}, &tt.answer)
				}
				c.CleanUp()
				n := c.EstimatedSize()
				if n > tt.most || n < tt.most/2 {
					t.Errorf("%d entries, want no more than %d", n, tt.most)
				}
				if gone := testutil.ToFloat64(limitCache) - before; gone != float64(tt.offers-n) {
					t.Errorf("%v made room, %d of %d are there", gone, n, tt.offers)
				}
			})
		}
	}
}

// The memory is what the bound says, also for answers of many records with next to
// nothing in them.
func TestCacheMemory(t *testing.T) {
	records := strings.Repeat("example.com. 60 IN TXT xy\n", 250)
	m := message(t, dns.RcodeSuccess, records, "")
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	heap := func() uint64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	for _, cfg := range []Config{{}, {CacheBytes: 2 << 20}} {
		octets := uint64(cmp.Or(cfg.CacheBytes, defaultCacheBytes))
		cfg.Servers = []string{"127.0.0.1:53"}
		before := heap()
		r, err := newResolver(cfg, nil, newClock().Now)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for i := range 5_000 {
			m := new(dns.Msg) // with texts of its own
			if err := m.Unpack(wire); err != nil {
				t.Fatal(err)
			}
			a, err := decode(m, key{"example.com", dns.TypeTXT})
			if err != nil {
				t.Fatal(err)
			}
			r.cache.Set(key{fmt.Sprint(i), dns.TypeTXT}, a)
		}
		r.cache.CleanUp()
		if after := heap(); after > before+octets {
			t.Errorf("%d KB for %d answers, want no more than %d", (after-before)>>10, r.cache.EstimatedSize(), octets>>10)
		}
		if n := r.cache.EstimatedSize(); n < int(octets)/40_000 {
			t.Errorf("only %d answers in %d KB", n, octets>>10)
		}
		runtime.KeepAlive(r)
	}
}

// blockServer makes the server wait with its answers until release is called.
// arrived gets an element for each query.
func blockServer(s *dnstest.Server) (arrived chan struct{}, release func()) {
	arrived = make(chan struct{}, 1000)
	gate := make(chan struct{})
	s.Handle(func(dns.ResponseWriter, *dns.Msg) bool {
		arrived <- struct{}{}
		<-gate
		return false
	})
	return arrived, sync.OnceFunc(func() { close(gate) })
}

func TestSingleFlight(t *testing.T) {
	r, s := start(t, "example.com. 300 IN TXT x")
	arrived, release := blockServer(s)
	defer release()
	k := key{"example.com", dns.TypeTXT}
	first := r.join(t.Context(), k)
	<-arrived
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if txts, _, err := r.LookupTXT(t.Context(), "example.com"); len(txts) != 1 || err != nil {
				t.Error(txts, err)
			}
		})
	}
	if r.join(t.Context(), k) != first {
		t.Error("two lookups under way for one question")
	}
	release()
	wg.Wait()
	if q := s.Queries(); len(q) != 1 {
		t.Errorf("queries %q, want one", q)
	}
}

func TestCancelledCaller(t *testing.T) {
	r, s := start(t, "example.com. 300 IN TXT x")
	arrived, release := blockServer(s)
	defer release()

	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 1)
	go func() {
		_, _, err := r.LookupTXT(ctx, "example.com") // starts the lookup
		errs <- err
	}()
	<-arrived
	f := r.join(t.Context(), key{"example.com", dns.TypeTXT}) // another caller
	cancel()
	err := <-errs
	checkError(t, err, "temporary")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v does not tell of the cancelled context", err)
	}
	release()
	<-f.done
	if f.answer.err != nil || len(f.answer.txts) != 1 {
		t.Errorf("the other caller got %+v", f.answer)
	}
	if q := s.Queries(); len(q) != 1 {
		t.Errorf("queries %q, want one", q)
	}
}

// A lookup that nobody waits for any more ends at once and leaves nothing behind,
// not even its failure.
func TestLastCallerGone(t *testing.T) {
	r, s := start(t, "example.com. 300 IN TXT x")
	s.SetRcode("example.com", -1)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	k := key{"example.com", dns.TypeTXT}
	f := r.join(ctx, k)
	for range 2 {
		other := r.join(ctx, k)
		wg.Go(func() { checkError(t, r.wait(ctx, k, other).error(), "temporary") })
	}
	cancel()
	wg.Wait()
	select {
	case <-f.done:
		t.Fatal("ended although one still waits")
	default:
	}
	r.wait(ctx, k, f)
	<-f.done
	if len(r.slots) != 0 || len(r.flights) != 0 {
		t.Errorf("%d slots taken, %d flights", len(r.slots), len(r.flights))
	}
	s.SetRcode("example.com", dns.RcodeSuccess)
	if txts, _, err := r.LookupTXT(t.Context(), "example.com"); len(txts) != 1 || err != nil {
		t.Error(txts, err)
	}
}

// Whoever asks for many names of silent servers and gives up takes no time from
// others.
func TestSilentNames(t *testing.T) {
	r, s := start(t, "example.com. 300 IN TXT x")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	s.Handle(func(_ dns.ResponseWriter, q *dns.Msg) bool { return q.Question[0].Name != "example.com." })
	for i := range maxConcurrent {
		k := key{fmt.Sprintf("n%d.example", i), dns.TypeTXT}
		f := r.join(ctx, k)
		wg.Go(func() { r.wait(ctx, k, f) })
	}
	cancel()
	wg.Wait()
	if txts, _, err := r.LookupTXT(t.Context(), "example.com"); len(txts) != 1 || err != nil {
		t.Error(txts, err)
	}
}

// With many queries under way a silent server is not tried again.
func TestBusy(t *testing.T) {
	r, s := start(t, "")
	s.SetRcode("example.com", -1)
	r.timeout = 100 * time.Millisecond
	for range maxConcurrent/2 + 1 {
		r.slots <- struct{}{}
	}
	_, _, err := r.LookupTXT(t.Context(), "example.com")
	checkError(t, err, "timeout")
	if q := s.Queries(); len(q) != 1 {
		t.Errorf("queries %q, want one", q)
	}
}

func TestPanic(t *testing.T) {
	r, _ := start(t, "")
	before := testutil.ToFloat64(panics)
	r.now = func() time.Time { panic("test\r\n") }
	_, _, _, err := r.LookupIP(t.Context(), "example.com")
	checkError(t, err, "temporary")
	if n := testutil.ToFloat64(panics) - before; n != 2 || len(r.slots) != 0 || len(r.flights) != 0 {
		t.Errorf("%v panics counted, %d slots taken, %d flights", n, len(r.slots), len(r.flights))
	}
}

func TestDeadline(t *testing.T) {
	r, s := start(t, "")
	s.SetRcode("example.com", -1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, _, _, err := r.LookupIP(ctx, "example.com")
	checkError(t, err, "timeout")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v does not tell of the context's deadline", err)
	}
	if d := time.Since(begin); d > r.timeout/2 {
		t.Errorf("returned after %v", d)
	}
}

func TestTooManyQueries(t *testing.T) {
	r, s := start(t, "example.com. 300 IN TXT x")
	for range maxConcurrent {
		r.slots <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // as if the budget were spent
	before := testutil.ToFloat64(limitQueries)
	a := r.query(ctx, key{"example.com", dns.TypeTXT})
	checkError(t, a.error(), "temporary")
	if n := testutil.ToFloat64(limitQueries) - before; n != 1 {
		t.Errorf("counted %v", n)
	}
	<-r.slots
	if a := r.query(t.Context(), key{"example.com", dns.TypeTXT}); a.err != nil {
		t.Error(a.err)
	}
	if len(r.slots) != maxConcurrent-1 {
		t.Errorf("%d slots taken after the query, want %d", len(r.slots), maxConcurrent-1)
	}
	if q := s.Queries(); len(q) != 1 {
		t.Errorf("queries %q, want one", q)
	}
}

func TestErrorTextIsClean(t *testing.T) {
	r, _ := start(t, "")
	_, _, err := r.LookupTXT(t.Context(), "evil\r\nHeader: x\x00\x1b[31m.example")
	if got, clean := err.Error(), ruapost.Clean(err.Error(), 1000); got != clean {
		t.Errorf("error text %q", got)
	}
}
