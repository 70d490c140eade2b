package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"ruapost/config"
)

// pipeListener is a listener for tests with virtual time, which sockets do not
// have.
type pipeListener struct {
	results chan any // net.Conn or error
	closed  chan struct{}
	once    sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{results: make(chan any), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case r := <-l.results:
		if err, ok := r.(error); ok {
			return nil, err
		}
		return r.(net.Conn), nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{} }

// dial returns the client's end of a connection that the listener accepts.
func (l *pipeListener) dial() net.Conn {
	server, client := net.Pipe()
	l.results <- server
	return client
}

// counting returns how much a counter has grown since.
func counting(counter prometheus.Counter) func() float64 {
	before := testutil.ToFloat64(counter)
	return func() float64 { return testutil.ToFloat64(counter) - before }
}

// say sends one byte and reads one.
func say(conn net.Conn) error {
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

// serve runs a server over a pipeListener until stop is called, which waits.
func serve(t *testing.T, s *Server) (l *pipeListener, stop func()) {
	t.Helper()
	l = newPipeListener()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		s.Serve(ctx, l)
		close(done)
	}()
	return l, func() {
		cancel()
		<-done
	}
}

func TestServeOnRealSockets(t *testing.T) {
	defer goleak.VerifyNone(t)
	counted := counting(accepted.WithLabelValues("real"))
	listeners, err := Listen("echo", []config.Listen{
		{Network: "unix", Address: filepath.Join(t.TempDir(), "s")},
		{Network: "tcp", Address: "127.0.0.1:0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Name: "real", Handle: echo, MaxConns: 2}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var clients sync.WaitGroup
	for _, l := range listeners {
		for range 20 { // ten times as many as are handled at a time
			clients.Go(func() {
				conn, err := net.Dial(l.Addr().Network(), l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				if err := say(conn); err != nil {
					t.Error(err)
				}
			})
		}
	}
	done := make(chan struct{})
	go func() {
		s.Serve(ctx, listeners...)
		close(done)
	}()
	clients.Wait()

	idle, err := net.Dial(listeners[0].Addr().Network(), listeners[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if err := say(idle); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("connection is open after the end")
	}
	for _, l := range listeners {
		if conn, err := net.Dial(l.Addr().Network(), l.Addr().String()); err == nil {
			conn.Close()
			t.Errorf("%s still accepts", l.Addr())
		}
	}
	if got := counted(); got != 41 {
		t.Errorf("counted %v connections", got)
	}
	if got := testutil.ToFloat64(connections.WithLabelValues("real")); got != 0 {
		t.Errorf("%v connections left", got)
	}
}

func TestConnectionLimitMakesPeersWait(t *testing.T) {
	counted := counting(limitWaits.WithLabelValues("limit"))
	synctest.Test(t, func(t *testing.T) {
		l, stop := serve(t, &Server{Name: "limit", Handle: echo, MaxConns: 1})
		first := l.dial()
		if err := say(first); err != nil {
			t.Fatal(err)
		}
		second := l.dial()
		answered := make(chan error)
		go func() { answered <- say(second) }()
		synctest.Wait()
		select {
		case err := <-answered:
			t.Fatalf("second connection is handled: %v", err)
		default:
		}
		first.Close()
		if err := <-answered; err != nil {
			t.Error(err)
		}
		if got := counted(); got != 1 {
			t.Errorf("counted %v waits", got)
		}
		third := l.dial() // waits when the server stops
		synctest.Wait()
		stop()
		if _, err := third.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("waiting connection: %v", err)
		}
	})
}

func TestAcceptErrorsDoNotEndServe(t *testing.T) {
	counted := counting(acceptErrors.WithLabelValues("errors"))
	synctest.Test(t, func(t *testing.T) {
		l, stop := serve(t, &Server{Name: "errors", Handle: echo, MaxConns: 1})
		start := time.Now()
		for range 70 { // enough for an unbounded shift to overflow
			l.results <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
		}
		conn := l.dial()
		if err := say(conn); err != nil {
			t.Error(err)
		}
		// 5, 10, … 640 ms, then a second each.
		if got, want := time.Since(start), 1275*time.Millisecond+62*time.Second; got != want {
			t.Errorf("paused for %s, want %s", got, want)
		}
		if got := counted(); got != 70 {
			t.Errorf("counted %v errors", got)
		}
		l.results <- errors.New("again")
		synctest.Wait()
		start = time.Now()
		stop() // does not sit the pause out
		if got := time.Since(start); got != 0 {
			t.Errorf("stopped after %s", got)
		}
	})
}

func TestPanicClosesOneConnection(t *testing.T) {
	counted := counting(panics)
	synctest.Test(t, func(t *testing.T) {
		l, stop := serve(t, &Server{Name: "panics", MaxConns: 1, Handle: func(ctx context.Context, conn net.Conn) {
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Error(err)
			}
			panic("on purpose")
		}})
		for range 2 { // the slot is free again
			if err := say(l.dial()); !errors.Is(err, io.EOF) {
				t.Errorf("got %v, want EOF", err)
			}
		}
		stop()
		if got := counted(); got != 2 {
			t.Errorf("counted %v panics", got)
		}
	})
}

func TestStopLetsHandlersFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const work = grace - time.Nanosecond
		l, stop := serve(t, &Server{Name: "finish", MaxConns: 1, Handle: func(ctx context.Context, conn net.Conn) {
			<-ctx.Done()
			time.Sleep(work)
			fmt.Fprint(conn, "done")
		}})
		conn := l.dial()
		synctest.Wait()
		start := time.Now()
		go stop()
		if got, err := io.ReadAll(conn); err != nil || string(got) != "done" {
			t.Errorf("got %q, %v", got, err)
		}
		if got := time.Since(start); got != work {
			t.Errorf("finished after %s, want %s", got, work)
		}
	})
}

func TestStopClosesConnectionsAfterGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, stop := serve(t, &Server{Name: "grace", MaxConns: 1, Handle: func(ctx context.Context, conn net.Conn) {
			io.Copy(io.Discard, conn) // heeds no context
		}})
		l.dial()
		synctest.Wait()
		start := time.Now()
		stop()
		if got := time.Since(start); got != grace {
			t.Errorf("stopped after %s, want %s", got, grace)
		}
	})
}

// Without its listeners a server still waits for its handlers.
func TestListenerClosedByOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newPipeListener()
		s := &Server{Name: "closed", Handle: echo, MaxConns: 1}
		done := make(chan struct{})
		go func() {
			s.Serve(t.Context(), l)
			close(done)
		}()
		conn := l.dial()
		l.Close()
		if err := say(conn); err != nil {
			t.Error(err)
		}
		conn.Close()
		<-done
	})
}

// An alert on the first step of a counter needs it to be there before.
func TestServerMetricsFromTheStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	(&Server{Name: "idle", MaxConns: 7}).Serve(ctx)
	for name, vec := range map[string]*prometheus.CounterVec{"accepted": accepted, "delayed": limitWaits, "errors": acceptErrors} {
		if !vec.DeleteLabelValues("idle") {
			t.Errorf("there was no counter of connections %s", name)
		}
	}
	if got := testutil.ToFloat64(connectionsLimit.WithLabelValues("idle")); got != 7 {
		t.Errorf("limit %v", got)
	}
}

func TestServeMetrics(t *testing.T) {
	defer goleak.VerifyNone(t)
	defer http.DefaultClient.CloseIdleConnections()
	connections.WithLabelValues("metrics").Set(3)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		serveMetrics(ctx, l)
		close(done)
	}()
	for path, want := range map[string]string{
		"/metrics": "\nruapost_connections{server=\"metrics\"} 3\n",
		"/":        "404 page not found\n",
	} {
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(body), want) {
			t.Errorf("%s: got %v, %q", path, err, body)
		}
	}
	cancel()
	<-done
}

// Trouble with metrics is no trouble for mail.
func TestServeMetricsWithoutSocket(t *testing.T) {
	ServeMetrics(t.Context(), config.Listen{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ServeMetrics(t.Context(), config.Listen{Network: "tcp", Address: l.Addr().String()}) // in use
}
