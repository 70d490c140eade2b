package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"ruapost"
	"ruapost/internal/metric"
)

const (
	// grace is how long handlers may go on when the server is told to stop.
	grace = 10 * time.Second
	// minBackoff and maxBackoff bound the pause after a failure to accept.
	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Second
	// limitLogInterval is the least time between log lines about MaxConns.
	limitLogInterval = time.Minute
)

var (
	connections = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "ruapost_connections",
		Help: "Connections being handled.",
	}, []string{"server"})
	connectionsLimit = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "ruapost_connections_limit",
		Help: "Connections that are handled at a time at most.",
	}, []string{"server"})
	accepted = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_connections_accepted_total",
		Help: "Connections accepted.",
	}, []string{"server"})
	limitWaits = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_connections_delayed_total",
		Help: "Connections that had to wait because as many as allowed were being handled.",
	}, []string{"server"})
	acceptErrors = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_connections_accept_errors_total",
		Help: "Failures to accept a connection.",
	}, []string{"server"})
	panics = metric.NewPanics("connection")
)

// Server accepts connections and has each handled on its own, whatever happens
// to the others.
type Server struct {
	// Name stands in logs and as the label "server" in metrics.
	Name string
	// Handle speaks the protocol. The connection is closed when it returns or
	// panics. When ctx ends it should finish what the peer waits for and return:
	// 10 seconds later the connection is closed under it.
	//
	// Handle sees to its own timeouts; a silent peer keeps its place.
	Handle func(ctx context.Context, conn net.Conn)
	// MaxConns is how many connections are handled at a time, at least 1. Peers
	// beyond that are not turned away, but wait: to Postfix, a closed connection
	// is a failure, and a late answer is not.
	MaxConns int
}

// Serve accepts connections until ctx ends. Then it closes the listeners, gives
// the handlers 10 seconds to finish, closes the connections that remain and
// returns when all handlers have.
//
// Errors of accepting, such as too many open files, never end it; a listener
// that someone else closes is no longer served.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) {
	r := &serverRun{
		Server: s,
		slots:  make(chan struct{}, s.MaxConns),
		conns:  make(map[net.Conn]struct{}),
	}
	r.begin()
	unregister := context.AfterFunc(ctx, func() {
		for _, l := range listeners {
			l.Close()
		}
	})
	defer unregister()
	var loops sync.WaitGroup
	for _, l := range listeners {
		loops.Go(func() { r.accept(ctx, l) })
	}
	loops.Wait()
	r.drain(ctx)
}

// serverRun is the state of one call of Serve.
type serverRun struct {
	*Server
	slots    chan struct{} // one element for each connection being handled
	handlers sync.WaitGroup

	mu       sync.Mutex
	conns    map[net.Conn]struct{} // being handled
	limitLog time.Time             // of the last log line about MaxConns
}

// begin sets the server's metrics to what they are before the first connection.
func (r *serverRun) begin() {
	connections.WithLabelValues(r.Name)
	connectionsLimit.WithLabelValues(r.Name).Set(float64(r.MaxConns))
	for _, c := range []*prometheus.CounterVec{accepted, limitWaits, acceptErrors} {
		c.WithLabelValues(r.Name)
	}
}

// accept is the loop of one listener.
func (r *serverRun) accept(ctx context.Context, l net.Listener) {
	failures := 0 // in a row
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			acceptErrors.WithLabelValues(r.Name).Inc()
			if failures == 0 {
				slog.Error("cannot accept connections, trying on", "server", r.Name, "err", err)
			}
			pause(ctx, min(minBackoff<<min(failures, 10), maxBackoff))
			failures++
			continue
		}
		if failures > 0 {
			slog.Info("accepting connections again", "server", r.Name, "failures", failures)
			failures = 0
		}
		accepted.WithLabelValues(r.Name).Inc()
		if !r.takeSlot(ctx) {
			conn.Close()
			return
		}
		r.handlers.Go(func() { r.handle(ctx, conn) })
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// takeSlot waits until one more connection may be handled. It returns false if
// the server is to stop.
func (r *serverRun) takeSlot(ctx context.Context) bool {
	select {
	case r.slots <- struct{}{}:
		return true
	default:
	}
	limitWaits.WithLabelValues(r.Name).Inc()
	r.logLimit()
	select {
	case r.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (r *serverRun) logLimit() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.limitLog) >= limitLogInterval {
		r.limitLog = now
		slog.Warn("connection limit reached, peers have to wait", "server", r.Name, "limit", r.MaxConns)
	}
}

// handle has one connection handled.
func (r *serverRun) handle(ctx context.Context, conn net.Conn) {
	gauge := connections.WithLabelValues(r.Name)
	gauge.Inc()
	r.mu.Lock()
	r.conns[conn] = struct{}{}
	r.mu.Unlock()
	defer func() {
		if v := recover(); v != nil {
			panics.Inc()
			slog.Error("panic, connection closed", "server", r.Name,
				"panic", ruapost.Clean(fmt.Sprint(v), 500), "stack", string(debug.Stack()))
		}
		conn.Close()
		r.mu.Lock()
		delete(r.conns, conn)
		r.mu.Unlock()
		gauge.Dec()
		<-r.slots
	}()
	r.Handle(ctx, conn)
}

// drain waits for the handlers. Once ctx has ended it does so for the time of
// grace and then closes their connections. No handlers are begun any more.
func (r *serverRun) drain(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		r.handlers.Wait()
		close(done)
	}()
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	select {
	case <-done:
		return
	case <-time.After(grace):
	}
	r.mu.Lock()
	slog.Warn("closing connections that did not end in time", "server", r.Name, "connections", len(r.conns))
	for conn := range r.conns {
		conn.Close()
	}
	r.mu.Unlock()
	<-done
}
