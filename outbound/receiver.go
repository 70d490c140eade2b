package outbound

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
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
	// maxTogether is the number of sessions that are recorded in one call.
	maxTogether = 500
	// lastLook is how long a receiver that is to stop still reads what is there.
	lastLook = 50 * time.Millisecond
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

// Receive reads Postfix's TLSRPT datagrams from conn and records what they tell
// until ctx ends; then it records what it has and returns. A datagram that cannot be
// read is counted and forgotten.
func Receive(ctx context.Context, conn *net.UnixConn, rec Recorder) {
	waiting := make(chan ruapost.Session, maxWaiting)
	recorded := make(chan struct{})
	go func() {
		defer close(recorded)
		recordAll(rec, waiting)
	}()
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Now().Add(lastLook)) })
	defer stop()
	receive(ctx, conn, waiting)
	close(waiting)
	<-recorded
}

// receive reads datagrams until conn is of no more use.
func receive(ctx context.Context, conn *net.UnixConn, waiting chan<- ruapost.Session) {
	buf := make([]byte, maxDatagram)
	var complained time.Time
	for {
		n, _, flags, _, err := conn.ReadMsgUnix(buf, nil)
		switch {
		case errors.Is(err, net.ErrClosed) || ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded):
			return
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
			select {
			case waiting <- s:
			default:
				sessionsDropped.Inc()
			}
		}
	}
}

// recordAll records sessions, many in one call if many wait.
func recordAll(rec Recorder, waiting <-chan ruapost.Session) {
	for s := range waiting {
		batch := []ruapost.Session{s}
		for more := true; more && len(batch) < maxTogether; {
			select {
			case next, ok := <-waiting:
				if more = ok; ok {
					batch = append(batch, next)
				}
			default:
				more = false
			}
		}
		// Without an end: nobody waits for this one, and what comes meanwhile
		// gathers for the next call.
		if err := rec.RecordSessions(context.Background(), batch); err != nil {
			sessionsDropped.Add(float64(len(batch)))
			slog.Error("TLS sessions could not be recorded", "sessions", len(batch), "err", err)
		}
	}
}
