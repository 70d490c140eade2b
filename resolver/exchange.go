package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"ruapost/internal/metric"
)

const (
	// rounds is how often a server that gives no answer is tried for one lookup,
	// the most that RFC 9520 3.1 allows.
	rounds = 3
	// preferFor is how long a server is asked first that answered when those
	// before it did not. Then the order of the configuration holds again: the
	// first server is often the near and trusted one, and may be back.
	preferFor = 30 * time.Second
	// udpSize is the largest UDP answer asked for: one that is not fragmented on
	// the way (DNS Flag Day 2020).
	udpSize = 1232
	// complainEach is how often a server that refuses us is logged.
	complainEach = time.Minute
)

var (
	queries = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_dns_queries_total",
		Help: "Queries to DNS servers by what came back: an answer, a denial, an error, or nothing in time (timeout).",
	}, "result", "answer", "denial", "error", "timeout")
	queriesAnswer  = queries.WithLabelValues("answer")
	queriesDenial  = queries.WithLabelValues("denial")
	queriesError   = queries.WithLabelValues("error")
	queriesTimeout = queries.WithLabelValues("timeout")
)

var (
	errNoAnswer = os.ErrDeadlineExceeded // not a context's error: the caller's may not have ended
	errBusy     = errors.New("too many DNS queries at a time")
	errGarbled  = errors.New("garbled answer")
	errRefused  = errors.New("server answered REFUSED")
	errServFail = errors.New("server answered SERVFAIL")
)

// query asks one server after the other for k until one has an answer. A server
// that fails is not asked again; one that is silent or out of reach is, since the
// network may have lost the packet, unless many queries are under way.
func (r *Resolver) query(ctx context.Context, k key) *answer {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		limitQueries.Inc()
		return failure(k, errBusy)
	}
	var failed *answer
	servers := r.order()
	tries := rounds
	if len(r.slots) > maxConcurrent/2 {
		tries = 1
	}
	for range tries {
		var silent []server
		for i, s := range servers {
			a, heard, err := r.ask(ctx, s, k)
			if err == nil {
				// A server that fails for one name may be the one that validates, and
				// the name bogus: no reason to leave it for other names.
				if i > 0 && len(silent) == i {
					r.prefer(s)
				}
				return a
			}
			r.complain(s, err)
			if failed == nil || !IsServerFailure(failed.err) { // which tells more than another's silence
				failed = failure(k, err)
				failed.err.Server = s.addr.String()
			}
			if ctx.Err() != nil {
				return failed
			}
			if !heard {
				silent = append(silent, s)
			}
		}
		servers = silent
	}
	return failed
}

// complain logs, at most once a minute, a server that does not work for us at all. One
// that fails for a name, or is silent about it, need not be to blame.
func (r *Resolver) complain(s server, err error) {
	var system syscall.Errno // such as connection refused, network unreachable
	if !errors.Is(err, errRefused) && !errors.As(err, &system) {
		return
	}
	now, last := r.now().Unix(), r.complained.Load()
	if now-last >= int64(complainEach/time.Second) && r.complained.CompareAndSwap(last, now) {
		slog.Warn("DNS server does not answer us: what it would have told counts as a temporary error",
			"server", s.addr, "err", err)
	}
}

// order returns the servers in the order in which to ask them.
func (r *Resolver) order() []server {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.now().Before(r.preferUntil) {
		return r.servers
	}
	others := slices.DeleteFunc(slices.Clone(r.servers), func(s server) bool { return s == r.preferred })
	return slices.Insert(others, 0, r.preferred)
}

// prefer makes s the first to be asked for a while. One that is not trusted never
// takes the place of one that is: a domain whose own servers are slow could else
// make all others lose DANE.
func (r *Resolver) prefer(s server) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !s.trusted && r.servers[0].trusted || !slices.Contains(r.servers, s) {
		return
	}
	r.preferred, r.preferUntil = s, r.now().Add(preferFor)
}

// ask asks s for k, and again over TCP if the answer does not fit into a datagram
// (RFC 7766 5). heard tells whether s answered at all.
func (r *Resolver) ask(ctx context.Context, s server, k key) (a *answer, heard bool, err error) {
	m, err := r.exchange(ctx, "udp", s, k)
	heard = err == nil || errors.Is(err, errGarbled)
	if err == nil && m.Truncated {
		m, err = r.exchange(ctx, "tcp", s, k)
	}
	if err == nil {
		a, err = decode(m, k)
	}
	switch {
	case isTimeout(err):
		queriesTimeout.Inc()
	case err != nil:
		queriesError.Inc()
	case a.err != nil:
		queriesDenial.Inc()
	default:
		queriesAnswer.Inc()
	}
	if err != nil {
		return nil, heard, err
	}
	a.authentic = m.AuthenticatedData && s.trusted
	return a, true, nil
}

// exchange sends a query for k to s and returns the message that answers it. Each
// query has a socket of its own, and so a port that is hard to guess
// (RFC 5452 9.2).
func (r *Resolver) exchange(ctx context.Context, network string, s server, k key) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	m, err := r.roundTrip(ctx, network, s, k)
	switch {
	case err == nil:
		return m, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, errNoAnswer
	case ctx.Err() != nil:
		return nil, errClosed
	}
	return nil, err
}

// roundTrip sends a query for k to s and waits until ctx ends for the message that
// answers it. Others, which are late, lost or forged, are passed over: they must
// not make the lookup fail.
func (r *Resolver) roundTrip(ctx context.Context, network string, s server, k key) (*dns.Msg, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, s.addr.String())
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { nc.Close() })() // ends a read
	c := &dns.Conn{Conn: nc, UDPSize: udpSize}

	q := new(dns.Msg)
	q.SetQuestion(k.fqdn(), k.qtype)
	q.AuthenticatedData = true // asks for the AD bit without the signatures (RFC 6840 5.7)
	q.SetEdns0(udpSize, false)
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	for {
		var h dns.Header
		packet, err := c.ReadMsgHeader(&h)
		if err != nil {
			return nil, err
		}
		if h.Id != q.Id {
			continue
		}
		m := new(dns.Msg)
		if err := m.Unpack(packet); err != nil {
			return nil, fmt.Errorf("%w: %w", errGarbled, err)
		}
		if answers(m, q) {
			return m, nil
		}
	}
}

// answers reports whether m is a response to q's question (RFC 5452 9.1). A
// server that could not read the question may leave it out of its error.
func answers(m, q *dns.Msg) bool {
	if !m.Response || m.Opcode != dns.OpcodeQuery {
		return false
	}
	if len(m.Question) == 0 {
		return m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError
	}
	got, want := m.Question[0], q.Question[0]
	return len(m.Question) == 1 && got.Qtype == want.Qtype && got.Qclass == want.Qclass &&
		strings.EqualFold(got.Name, want.Name)
}
