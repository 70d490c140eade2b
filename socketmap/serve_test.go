package socketmap

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// serve runs Serve for one connection over a unix socket and returns the
// client's end and a channel with what Serve returned.
func serve(t *testing.T, ctx context.Context, h Handler) (net.Conn, <-chan error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, accepted, h) }()
	return conn, done
}

// echo answers with what it was asked, if that is a possible value.
func echo(_ context.Context, mapName, key string) Reply { return OK(mapName + "|" + key) }

func TestServe(t *testing.T) {
	long := strings.Repeat("k", MaxQuery-2)
	tests := []struct {
		name, in, out string
		err           error
	}{
		{"one query", "14:QUERY good.lab,", "17:OK QUERY|good.lab,", nil},
		{"split at the first blank", "7:M a b c,", "10:OK M|a b c,", nil},
		{"empty key", "6:QUERY ,", "9:OK QUERY|,", nil},
		{"key that cannot stand in a reply", "4:M \r\n,", "9:NOTFOUND ,", nil},
		{"pipelined", "3:M a,3:M b,3:M c,", "6:OK M|a,6:OK M|b,6:OK M|c,", nil},
		{"longest key", "10000:M " + long + ",", "10003:OK M|" + long + ",", nil},
		{"nothing", "", "", nil},
		{"key too long", "10001:M " + long + "k,", "", ErrMalformed},
		{"no blank", "5:QUERY,", "", ErrMalformed},
		{"empty netstring", "0:,", "", ErrMalformed},
		{"good, then malformed", "3:M a,x", "6:OK M|a,", ErrMalformed},
		{"malformed, then good", "3:M a;3:M b,", "", ErrMalformed},
		{"cut off", "3:M a,3:M", "6:OK M|a,", io.ErrUnexpectedEOF},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			conn, done := serve(t, t.Context(), echo)
			if _, err := io.WriteString(conn, test.in); err != nil {
				t.Fatal(err)
			}
			conn.(*net.UnixConn).CloseWrite()
			out, err := io.ReadAll(conn)
			// A close with unread input is a reset on a unix socket.
			if err != nil && !(test.err != nil && strings.Contains(err.Error(), "connection reset")) {
				t.Fatal(err)
			}
			if string(out) != test.out {
				t.Errorf("replies %.200q, want %.200q", out, test.out)
			}
			if err := <-done; !errors.Is(err, test.err) {
				t.Errorf("Serve returned %v, want %v", err, test.err)
			}
		})
	}
}

// Postfix keeps the connection: each reply must come before the next query.
func TestServeOneByOne(t *testing.T) {
	conn, done := serve(t, t.Context(), echo)
	for range 3 {
		io.WriteString(conn, "3:M ")
		io.WriteString(conn, "a,")
		buf := make([]byte, 8)
		if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "6:OK M|a" {
			t.Fatalf("reply %q, error %v", buf, err)
		}
		io.ReadFull(conn, buf[:1])
	}
	conn.Close()
	if err := <-done; err != nil {
		t.Errorf("Serve returned %v", err)
	}
}

func TestServePanic(t *testing.T) {
	var logged bytes.Buffer
	defer slog.SetDefault(slog.Default())
	slog.SetDefault(slog.New(slog.NewTextHandler(&logged, nil)))

	before := testutil.ToFloat64(panics)
	conn, done := serve(t, t.Context(), func(_ context.Context, _, key string) Reply {
		if key == "bad" {
			panic("broken\nhandler")
		}
		return OK(key)
	})
	io.WriteString(conn, "5:M bad,6:M good,")
	conn.(*net.UnixConn).CloseWrite()
	out, _ := io.ReadAll(conn)
	if want := "9:NOTFOUND ,7:OK good,"; string(out) != want {
		t.Errorf("replies %q, want %q", out, want)
	}
	if err := <-done; err != nil {
		t.Errorf("Serve returned %v", err)
	}
	if n := testutil.ToFloat64(panics) - before; n != 1 {
		t.Errorf("%v panics counted", n)
	}
	if s := logged.String(); !strings.Contains(s, "key=bad") || !strings.Contains(s, `panic="broken handler"`) {
		t.Errorf("log: %s", s)
	}
}

// net.Pipe has deadlines that follow the clock of the bubble.
func TestServeTimeouts(t *testing.T) {
	t.Run("idle", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			start := time.Now()
			err := Serve(t.Context(), server, echo)
			if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != IdleTimeout {
				t.Errorf("ended after %v with %v", time.Since(start), err)
			}
		})
	})
	t.Run("query that trickles in", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			go func() {
				for _, s := range []string{"3", ":", "M"} {
					io.WriteString(client, s)
					time.Sleep(IdleTimeout / 4)
				}
			}()
			start := time.Now()
			err := Serve(t.Context(), server, echo)
			if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != IdleTimeout {
				t.Errorf("ended after %v with %v", time.Since(start), err)
			}
		})
	})
	t.Run("reply not taken", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			go io.WriteString(client, "3:M a,")
			start := time.Now()
			err := Serve(t.Context(), server, echo)
			if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != WriteTimeout {
				t.Errorf("ended after %v with %v", time.Since(start), err)
			}
		})
	})
	t.Run("busy for longer than the timeouts", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			done := make(chan error, 1)
			go func() { done <- Serve(t.Context(), server, echo) }()
			start := time.Now()
			buf := make([]byte, len("6:OK M|a,"))
			for pause := time.Millisecond; pause < IdleTimeout-renewAfter; pause *= 2 {
				for range 5 {
					time.Sleep(pause)
					io.WriteString(client, "3:M a,")
					if _, err := io.ReadFull(client, buf); err != nil || string(buf) != "6:OK M|a," {
						t.Fatalf("reply %q, error %v after pauses of up to %v", buf, err, pause)
					}
				}
			}
			if total := time.Since(start); total < 2*IdleTimeout {
				t.Errorf("only %v in all", total)
			}
			last := time.Now()
			if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(last) < IdleTimeout-renewAfter || time.Since(last) > IdleTimeout {
				t.Errorf("ended after %v with %v", time.Since(last), err)
			}
			client.Close()
		})
	})
	t.Run("handler slower than the idle timeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			go Serve(t.Context(), server, func(context.Context, string, string) Reply {
				time.Sleep(2 * IdleTimeout)
				return OK("late")
			})
			io.WriteString(client, "3:M a,")
			buf := make([]byte, len("7:OK late,"))
			if _, err := io.ReadFull(client, buf); err != nil || string(buf) != "7:OK late," {
				t.Errorf("reply %q, error %v", buf, err)
			}
			client.Close()
			synctest.Wait()
		})
	})
}

func TestServeEndOfContext(t *testing.T) {
	t.Run("between queries", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		conn, done := serve(t, ctx, echo)
		io.WriteString(conn, "3:M a,3:M") // the second query never ends
		io.ReadFull(conn, make([]byte, len("6:OK M|a,")))
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
	t.Run("the query in hand is answered", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		conn, done := serve(t, ctx, func(ctx context.Context, _, _ string) Reply {
			cancel()
			if ctx.Err() != nil {
				return Temp("cancelled")
			}
			return OK("answered")
		})
		io.WriteString(conn, "3:M a,")
		out, err := io.ReadAll(conn)
		if string(out) != "11:OK answered," || err != nil {
			t.Errorf("reply %q, error %v", out, err)
		}
		if err := <-done; err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
}

// A connection that was accepted just before the end is not closed on its query: if it is
// Postfix's second try, that would defer the mail.
func TestServeAtTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	conn, done := serve(t, ctx, echo)
	io.WriteString(conn, "3:M a,")
	out, err := io.ReadAll(conn)
	if string(out) != "6:OK M|a," || err != nil {
		t.Errorf("reply %q, error %v", out, err)
	}
	if err := <-done; err != nil {
		t.Errorf("Serve returned %v", err)
	}
}

// Of a query only its text is allocated: policies are asked for more often than anything
// else.
func TestServeAllocations(t *testing.T) {
	reply := OK("secure match=mx1.good.lab:.good.lab servername=hostname")
	conn, _ := serve(t, t.Context(), func(context.Context, string, string) Reply { return reply })
	query, buf := []byte("14:QUERY good.lab,"), make([]byte, 100)
	n := testing.AllocsPerRun(2000, func() {
		if _, err := conn.Write(query); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(buf); n != len("58:")+58+1 || err != nil {
			t.Fatalf("reply %q, error %v", buf[:n], err)
		}
	})
	if n > 1 {
		t.Errorf("%v allocations for a query", n)
	}
}

func BenchmarkServe(b *testing.B) {
	path := filepath.Join(b.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		reply := OK("secure match=mx1.good.lab:.good.lab servername=hostname")
		Serve(context.Background(), conn, func(context.Context, string, string) Reply { return reply })
	}()
	c, err := Dial(b.Context(), "unix", path)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Query("QUERY", "good.lab"); err != nil {
			b.Fatal(err)
		}
	}
}
