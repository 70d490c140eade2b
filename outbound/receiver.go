package outbound

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ruapost"
	"ruapost/tlsrpt"
)

const (
	// maxDatagram is the size of the largest datagram that is read whole. Linux
	// does not let Postfix send one of more than about 208 KiB (net.core.wmem_default).
	maxDatagram = 256 << 10
	// maxWaiting is the number of sessions that may wait for the store. More are
	// dropped and counted: the socket must be drained, since Postfix does not try
	// twice, and its queue may be only 11 datagrams long.
	maxWaiting = 20_000
	// maxWaitingBytes bounds the octets of the datagrams that those came in, and of
	// those that are being recorded.
	maxWaitingBytes = 64 << 20
	// maxTogether is the number of sessions that are recorded in one call.
	maxTogether = 500
	// lastLook is how long a receiver that is to stop waits for another datagram,
	// and lastDatagrams how many it still reads. Far fewer fit into the queue.
	lastLook      = 50 * time.Millisecond
	lastDatagrams = 10_000
	// lastRecording is how long it then waits for the store, which may be locked.
	lastRecording = 5 * time.Second
	// readRetry is the pause after the socket itself failed.
	readRetry = time.Second
	// complainEach is how often what Postfix gets wrong is logged; it is all counted.
	complainEach = time.Minute
)

// Recorder is what this package asks of the store. RecordSessions returns when the
// sessions are on disk or ctx ends; in the latter case they may still be recorded.
type Recorder interface {
	RecordSessions(ctx context.Context, sessions []ruapost.Session) error
}

// waiting are the sessions that wait for the store.
type waiting struct {
	sessions chan waitingSession
	octets   atomic.Int64
}

type waitingSession struct {
	ruapost.Session
	octets int // of the datagram it came in
}

// Receive reads Postfix's TLSRPT datagrams from conn and records what they tell
// until ctx ends; then it records what is still there and returns. A datagram that
// cannot be read is counted and forgotten. If rec is nil all sessions are, so that
// Postfix does not find the socket full.
func Receive(ctx context.Context, conn *net.UnixConn, rec Recorder) {
	w := &waiting{sessions: make(chan waitingSession, maxWaiting)}
	recorded := make(chan struct{})
	// While nobody waits for it the store may take as long as it likes: what comes
	// meanwhile gathers for the next call.
	recording, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	go func() {
		defer close(recorded)
		w.record(recording, rec)
	}()
	stop := context.AfterFunc(ctx, func() {
		conn.SetReadDeadline(time.Now().Add(lastLook))
		time.AfterFunc(lastRecording, cancel)
	})
	defer stop()
	w.receive(ctx, conn)
	close(w.sessions)
	<-recorded
}

// receive reads datagrams until conn is of no more use, or ctx has ended and the
// queue is empty.
func (w *waiting) receive(ctx context.Context, conn *net.UnixConn) {
	buf := make([]byte, maxDatagram)
	var complained time.Time
	for left := lastDatagrams; left > 0; {
		stopping := ctx.Err() != nil
		if stopping {
			// Anew for each, or datagrams would stay unread because this goroutine did
			// not get to run: a deadline that has passed ends a read before it begins.
			conn.SetReadDeadline(time.Now().Add(lastLook))
			left--
		}
		n, _, flags, _, err := conn.ReadMsgUnix(buf, nil)
		switch {
		case errors.Is(err, net.ErrClosed) || stopping && errors.Is(err, os.ErrDeadlineExceeded):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue // ctx ended meanwhile
		case err != nil:
			slog.Error("TLSRPT socket cannot be read", "err", err)
			time.Sleep(readRetry)
			continue
		case flags&unix.MSG_TRUNC != 0:
			err = errors.New("longer than the limit")
		}
		var sessions []ruapost.Session
		if err == nil {
			sessions, err = tlsrpt.ParseDatagram(buf[:n])
		}
		if err != nil {
			datagrams.WithLabelValues("bad").Inc()
			if now := time.Now(); now.Sub(complained) > complainEach {
				complained = now
				slog.Warn("TLSRPT datagram dropped", "octets", n, "err", ruapost.Clean(err.Error(), 300))
			}
			continue
		}
		datagrams.WithLabelValues("ok").Inc()
		for _, s := range sessions {
			s.Time = time.Now()
			w.add(s, n)
		}
	}
}

// add has s, which came in a datagram of so many octets, wait for the store, or
// drops it.
func (w *waiting) add(s ruapost.Session, octets int) {
	if w.octets.Add(int64(octets)) <= maxWaitingBytes {
		select {
		case w.sessions <- waitingSession{s, octets}:
			return
		default:
		}
	}
	w.octets.Add(-int64(octets))
	sessionsDropped.Inc()
}

// record records sessions, many in one call if many wait.
func (w *waiting) record(ctx context.Context, rec Recorder) {
	for s := range w.sessions {
		batch, octets := []ruapost.Session{s.Session}, s.octets
		for more := true; more && len(batch) < maxTogether; {
			select {
			case next, ok := <-w.sessions:
				if more = ok; ok {
					batch, octets = append(batch, next.Session), octets+next.octets
				}
			default:
				more = false
			}
		}
		if rec == nil {
			sessionsDropped.Add(float64(len(batch)))
		} else if err := rec.RecordSessions(ctx, batch); err != nil {
			sessionsDropped.Add(float64(len(batch)))
			slog.Error("TLS sessions could not be recorded", "sessions", len(batch), "err", err)
		}
		w.octets.Add(-int64(octets))
	}
}
