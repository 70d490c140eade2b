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
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/miekg/dns"
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

	resolvConf = "/etc/resolv.conf"
)

// Config says whom to ask. The zero value asks the servers of /etc/resolv.conf.
type Config struct {
	// Servers are the servers' addresses with ports, for example "127.0.0.1:53",
	// in the order in which to try them. They are trusted to validate and to be
	// reached over a safe path. If empty, the servers are those of
	// /etc/resolv.conf, and only those on loopback are so trusted; its other
	// directives are ignored.
	Servers []string
	// Timeout is how long to wait for one server before the next one is tried;
	// 2 s if zero.
	Timeout time.Duration
}

// Resolver looks up names. Its methods may be called concurrently.
type Resolver struct {
	servers []server
	timeout time.Duration
	now     func() time.Time
	cache   *otter.Cache[key, *answer]
	slots   chan struct{} // one element for each query under way

	ctx     context.Context // ended by Close
	cancel  context.CancelFunc
	running sync.WaitGroup // the flights

	complained atomic.Int64 // when a server was last logged, Unix time

	mu          sync.Mutex
	closed      bool
	flights     map[key]*flight
	preferred   server // asked first until preferUntil
	preferUntil time.Time
}

// server is a DNS server.
type server struct {
	addr    netip.AddrPort
	trusted bool // its AD bit is believed
}

// New returns a Resolver. It returns an error if an element of cfg.Servers is not
// an address with a port, or if /etc/resolv.conf cannot be read.
func New(cfg Config) (*Resolver, error) {
	return newResolver(cfg, time.Now)
}

func newResolver(cfg Config, now func() time.Time) (*Resolver, error) {
	servers, err := parseServers(cfg.Servers)
	if len(cfg.Servers) == 0 {
		servers, err = readResolvConf(resolvConf)
	}
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	cache, err := newCache(now)
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	r := &Resolver{
		servers: servers,
		timeout: cfg.Timeout,
		now:     now,
		cache:   cache,
		slots:   make(chan struct{}, maxConcurrent),
		flights: map[key]*flight{},
	}
	if r.timeout <= 0 {
		r.timeout = defaultTimeout
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
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

func parseServers(addrs []string) ([]server, error) {
	var servers []server
	for _, s := range addrs {
		addr, err := netip.ParseAddrPort(s)
		if err != nil || addr.Port() == 0 {
			return nil, fmt.Errorf("DNS server %q is not an IP address with a port, such as 127.0.0.1:53", s)
		}
		servers = append(servers, server{addr: addr, trusted: true})
	}
	return servers, nil
}

// readResolvConf returns the servers of a resolv.conf(5) file. As that page says,
// without any the server of this host is meant, and what is no address is passed over.
func readResolvConf(path string) ([]server, error) {
	conf, err := dns.ClientConfigFromFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		conf = &dns.ClientConfig{}
	} else if err != nil {
		return nil, err
	}
	var servers []server
	for _, s := range conf.Servers {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			continue
		}
		servers = append(servers, server{addr: netip.AddrPortFrom(ip, 53), trusted: ip.IsLoopback()})
	}
	if len(servers) == 0 {
		return parseServers([]string{"127.0.0.1:53"})
	}
	return servers, nil
}
