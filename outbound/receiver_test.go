package outbound

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ruapost"
)

// recorder keeps what it is given; with a gate it is as slow as the gate.
type recorder struct {
	mu       sync.Mutex
	sessions []ruapost.Session
	gate     chan struct{}
	fail     error
}

func (r *recorder) RecordSessions(_ context.Context, s []ruapost.Session) error {
	if r.gate != nil {
		<-r.gate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions = append(r.sessions, s...)
	return r.fail
}

func listenEvents(t *testing.T) (*net.UnixConn, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "events")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, path
}

func event(domain string, failed int) string {
	return fmt.Sprintf(`{"dpv": "1","d": %q,"pr": "v=TLSRPTv1; rua=mailto:a@b.example","policies":[{"policy-type":9,"policy-domain": %[1]q,"t":0,"f":%d}]}`, domain, failed)
}

// receiving starts a Receive that records into rec, and returns a connection to its
// socket, what ends it and what is closed when it has ended.
func receiving(t *testing.T, rec Recorder) (out net.Conn, cancel func(), done <-chan struct{}) {
	t.Helper()
	conn, path := listenEvents(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { Receive(ctx, conn, rec); close(ended) }()
	out, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	return out, cancel, ended
}

func TestReceive(t *testing.T) {
	rec := &recorder{fail: errors.New("a store that fails does not end it")}
	out, cancel, done := receiving(t, rec)
	send := func(data string) {
		t.Helper()
		if _, err := out.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	send(event("a.example", 0))
	for _, bad := range []string{"", "{", "not JSON", `{"d":1}`, "\x00\xff", `{"d":"a.example","policies":[{"policy-type":9,"f":7}]}`} {
		send(bad)
	}
	send(event("b.example", 1))
	long := event("c.example", 0)
	send(long[:len(long)-1] + `,"x":"` + strings.Repeat("y", 150_000) + `"}`)
	cancel()
	<-done
	var got []string
	for _, s := range rec.sessions {
		got = append(got, fmt.Sprint(s.Domain, " ", s.Failed, " ", s.Time.IsZero()))
	}
	if d := cmp.Diff([]string{"a.example false false", "b.example true false", "c.example false false"}, got); d != "" {
		t.Error(d)
	}
}

// What a datagram tells is remembered, errors are not, and so much only: domains are what
// strangers say.
func TestParsedIsBounded(t *testing.T) {
	var known parsed
	if _, err := known.parse([]byte("{")); err == nil || len(known.sessions) > 0 {
		t.Fatal("a datagram that cannot be read is remembered:", known.sessions)
	}
	first := []byte(event("a.example", 1))
	want, err := known.parse(first)
	if err != nil {
		t.Fatal(err)
	}
	var most int
	for i := range 3 * maxParsed / len(first) {
		got, err := known.parse(fmt.Appendf(nil, "%s%*s", event("b.example", 0), i, ""))
		if err != nil || len(got) != 1 || got[0].Domain != "b.example" {
			t.Fatal(got, err)
		}
		octets := 0
		for data := range known.sessions {
			octets += len(data)
		}
		if most = max(most, octets); octets != known.octets || most > maxParsed {
			t.Fatalf("%d octets are remembered, counted as %d, at most %d", octets, known.octets, maxParsed)
		}
		if again, err := known.parse(first); err != nil || !cmp.Equal(want, again) {
			t.Fatal(cmp.Diff(want, again), err)
		}
		if known.octets < most {
			return
		}
	}
	t.Error("never began anew")
}

// The socket is drained whatever the store does: its own queue may hold eleven
// datagrams, and Postfix does not send twice.
func TestReceiveWithSlowStore(t *testing.T) {
	rec := &recorder{gate: make(chan struct{})}
	out, cancel, done := receiving(t, rec)
	const n = 2000
	for range n {
		if _, err := out.Write([]byte(event("a.example", 0))); err != nil {
			t.Fatal(err)
		}
	}
	close(rec.gate)
	cancel()
	<-done
	if len(rec.sessions) != n {
		t.Errorf("%d sessions, want %d", len(rec.sessions), n)
	}
}

// Senders that do not pause do not keep it from ending.
func TestReceiveEndsWhateverComes(t *testing.T) {
	conn, path := listenEvents(t)
	for range 4 {
		out, err := net.Dial("unixgram", path)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		go func() {
			for {
				if _, err := out.Write([]byte(event("a.example", 0))); err != nil {
					return // closed at the end
				}
			}
		}()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rec := &recorder{}
	Receive(ctx, conn, rec)
	if len(rec.sessions) < lastDatagrams/2 {
		t.Errorf("it ended after %d sessions", len(rec.sessions))
	}
}

// What waits is bounded by its size, too.
// Postfix does not stop telling when the daemon is to stop.
func TestReceiveEndsThoughMoreComes(t *testing.T) {
	out, cancel, done := receiving(t, &recorder{})
	ticks := time.NewTicker(4 * time.Millisecond)
	defer ticks.Stop()
	cancel()
	for late := time.After(2 * lastReading); ; {
		select {
		case <-done:
			return
		case <-late:
			t.Fatal("still reading")
		case <-ticks.C:
			out.Write([]byte(event("a.example", 0)))
		}
	}
}

func TestReceiveLongDatagrams(t *testing.T) {
	rec := &recorder{gate: make(chan struct{})}
	out, cancel, done := receiving(t, rec)
	before := testutil.ToFloat64(datagramsDropped)
	long := event("a.example", 0)
	long = long[:len(long)-1] + `,"x":"` + strings.Repeat("y", 150_000) + `"}`
	const more = 30
	most := maxWaitingBytes / len(long)
	for range most + more {
		if _, err := out.Write([]byte(long)); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	close(rec.gate)
	<-done
	dropped := testutil.ToFloat64(datagramsDropped) - before
	if len(rec.sessions)+int(dropped) != most+more || dropped == 0 || len(rec.sessions) < most {
		t.Errorf("%d sessions recorded, %v dropped; want about %d and %d", len(rec.sessions), dropped, most, more)
	}
}

// Without a store the socket is drained all the same.
func TestReceiveWithoutStore(t *testing.T) {
	before := testutil.ToFloat64(droppedByStore)
	out, cancel, done := receiving(t, nil)
	const n = 100
	for range n {
		if _, err := out.Write([]byte(event("a.example", 0))); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	<-done
	if dropped := testutil.ToFloat64(droppedByStore) - before; dropped != n {
		t.Errorf("%v sessions dropped, want %d", dropped, n)
	}
}
