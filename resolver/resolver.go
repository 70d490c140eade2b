// Package resolver asks DNS servers the questions that mail authentication and
// transport security have: TXT, MX, addresses, TLSA and whether a name exists.
//
// It is a stub resolver: the servers it asks do the recursion and, for DANE, the
// DNSSEC validation. What it adds is what a stub must do itself: to match answers
// with questions, to follow aliases inside an answer, to repeat a truncated one
// over TCP, to turn to the next server if one fails, to remember answers for as
// long as they are valid, and to ask only once for what many want to know at the
// same time.
//
// # Authentic answers
//
// Every lookup tells whether the answer is authentic: validated with DNSSEC by
// the server, which says so with the AD bit. The bit is worth as much as the path
// to the server (RFC 4035 4.9.3). It is therefore believed only if the server is
// on loopback or was named in Config.Servers, by which the administrator vouches
// for the path. A denial can be authentic too. All servers should validate:
// a name whose signatures are bad fails on a server that validates, and is then
// asked for on the next one.
//
// # Errors
//
// Every error is a *net.DNSError, not wrapped in another, because SPF
// implementations look at the type itself. There are two kinds. IsNotFound: the
// name or records of that type do not exist; IsNXDomain tells the first case from
// the second. IsTemporary: everything else, from a server's failure to an answer
// that makes no sense and the end of the caller's context; IsTimeout is set where
// it applies.
package resolver

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
)

const (
	// defaultTimeout is how long a server may take for an answer.
	defaultTimeout = 2 * time.Second
	// lookupBudget is the time for one lookup with all its tries. A caller may
	// give up earlier; the lookup goes on for as long as others wait for it.
	lookupBudget = 10 * time.Second
	// maxConcurrent bounds the queries, and with them the sockets, that are open
	// at a time. Lookups past it wait, at the cost of their budget. Past a half of
	// it silent servers are not tried again, so that whoever asks for names that
	// nobody answers for keeps a place for a third of the time.
	maxConcurrent = 2000
)

// Config says whom to ask. The zero value asks the servers of /etc/resolv.conf.
type Config struct {
	// Servers are the servers' addresses with ports, for example "127.0.0.1:53",
	// in the order in which to try them. They are trusted to validate and to be
	// reached over a safe path. If empty, the servers are those of
	// /etc/resolv.conf, which is read again when it changes, and only those on
	// loopback are so trusted; its other directives are ignored.
	Servers []string
	// Timeout is how long to wait for one server before the next one is tried;
	// 2 s if zero.
	Timeout time.Duration
	// CacheBytes bounds the memory for answers, approximately; 32 MiB if zero.
	CacheBytes int
	// WantDNSSEC has the servers probed in the background, at once and now and then
	// during lookups, for whether they validate. If no trusted one does, nothing is
	// authentic: that is logged, and the gauge ruapost_dns_validating is 0.
	WantDNSSEC bool
}

// Resolver looks up names. Its methods may be called concurrently.
type Resolver struct {
	conf       *confFile // nil if Config.Servers are asked
	timeout    time.Duration
	wantDNSSEC bool
	now        func() time.Time
	cache      *otter.Cache[key, *answer]
	slots      chan struct{} // one element for each query under way

	ctx     context.Context // ended by Close
	cancel  context.CancelFunc
	running sync.WaitGroup // the flights and probes

	complained atomic.Int64 // when a server was last logged, Unix time

	mu          sync.Mutex
	closed      bool
	flights     map[key]*flight
	servers     []server // in the order of the configuration; replaced, never changed
	preferred   server   // asked first until preferUntil
	preferUntil time.Time
	probeAt     time.Time // not before
	judged      bool      // validates is known
	validates   bool      // a trusted server does
}

// New returns a Resolver. It returns an error if an element of cfg.Servers is not
// an address with a port, or if /etc/resolv.conf cannot be read.
func New(cfg Config) (*Resolver, error) {
	return newResolver(cfg, &confFile{path: "/etc/resolv.conf", port: 53}, time.Now)
}

func newResolver(cfg Config, conf *confFile, now func() time.Time) (*Resolver, error) {
	var servers []server
	var err error
	if len(cfg.Servers) > 0 {
		conf = nil
		servers, err = parseServers(cfg.Servers)
	} else {
		servers, err = conf.first()
	}
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	if cfg.CacheBytes <= 0 {
		cfg.CacheBytes = defaultCacheBytes
	}
	cache, err := newCache(cfg.CacheBytes, now)
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	r := &Resolver{
		conf:       conf,
		timeout:    cfg.Timeout,
		wantDNSSEC: cfg.WantDNSSEC,
		now:        now,
		cache:      cache,
		slots:      make(chan struct{}, maxConcurrent),
		flights:    map[key]*flight{},
		servers:    servers,
	}
	if r.timeout <= 0 {
		r.timeout = defaultTimeout
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.probeIfDue()
	return r, nil
}

// Close ends the lookups under way, which fail with a temporary error, and
// returns when all is quiet. Later lookups fail likewise.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.running.Wait()
	r.cache.StopAllGoroutines()
}
