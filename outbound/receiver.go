package outbound

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ruapost"
	"ruapost/tlsrpt"
)

const (
	// maxWaiting is the number of datagrams that may wait for the store. More are
	// dropped and counted: the socket must be drained, since Postfix does not try
	// twice, and its queue may be only 11 datagrams long.
	maxWaiting = 20_000
	// maxWaitingBytes bounds their octets, and of those that are being recorded.
	maxWaitingBytes = 64 << 20
	// gather is how long a datagram waits for others to be recorded with.
	gather = 100 * time.Millisecond
	// maxTogether is the number of sessions that are recorded in one call, give or take
	// those of a datagram.
	maxTogether = 5000
	// lastLook is how long a receiver that is to stop waits for another datagram,
	// and lastDatagrams how many it still reads. Far fewer fit into the queue.
	lastLook      = 50 * time.Millisecond
	lastDatagrams = 10_000
	// lastReading is how long it reads these at most: Postfix goes on telling.
	lastReading = time.Second
	// lastRecording is how long it then waits for the store, which may be locked.
	lastRecording = 5 * time.Second
	// drainNice is the niceness of the thread that drains the socket, if RLIMIT_NICE allows
	// it: the thread does little, and what it comes late for is lost.
	drainNice = -10
	// nap is how long that thread sleeps when it has found several datagrams, so that it
	// need not wake up for each of many.
	nap = 100 * time.Microsecond
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

// waiting are the datagrams that wait to be read for what they tell, and recorded.
type waiting struct {
	datagrams chan datagram
	octets    atomic.Int64 // of these, and of those that are being recorded
}

type datagram struct {
	data []byte
	at   time.Time // when it came
}

// batch are sessions that are recorded in one call.
type batch struct {
	sessions []ruapost.Session
	octets   int // of the datagrams they came in
}

// Receive reads Postfix's TLSRPT datagrams from conn and records what they tell
// until ctx ends; then it records what is still there and returns. A datagram that
// cannot be read is counted and forgotten. If rec is nil all sessions are, so that
// Postfix does not find the socket full. conn must stay open until Receive returns, which
// should be called in a goroutine of its own: it is bound to a thread from then on.
func Receive(ctx context.Context, conn *net.UnixConn, rec Recorder) {
	w := &waiting{datagrams: make(chan datagram, maxWaiting)}
	batches := make(chan batch)
	// While nobody waits for it the store may take as long as it likes: what comes
	// meanwhile gathers for the next call.
	recording, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastRecording, cancel) })()
	var work sync.WaitGroup
	work.Go(func() { w.parse(ctx, batches) })
	work.Go(func() { w.record(recording, batches, rec) })
	if err := w.drain(ctx, conn); err != nil {
		slog.Error("TLSRPT socket cannot be read", "err", err)
	}
	close(w.datagrams)
	work.Wait()
}

// drain takes datagrams from the socket until ctx has ended and the socket is empty.
//
// It does so on a thread that waits in the kernel. Were it to wait as other goroutines do,
// it would learn of a datagram only when some other is done and the runtime asks for news,
// while a full queue of 11 datagrams is 2 ms of a busy host.
func (w *waiting) drain(ctx context.Context, conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(stop)
	told := make(chan struct{})
	unregister := context.AfterFunc(ctx, func() {
		defer close(told)
		unix.Write(stop, []byte{7: 1}) // cannot fail: it is the first
	})
	defer func() {
		if !unregister() {
			<-told
		}
	}()
	return raw.Control(func(fd uintptr) {
		runtime.LockOSThread() // for good: nobody else is to have its niceness
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), drainNice)
		w.drainFD(ctx, int(fd), stop)
	})
}

// drainFD is drain for the file descriptor fd. The event stop happens when ctx ends.
func (w *waiting) drainFD(ctx context.Context, fd, stop int) {
	buf := make([]byte, tlsrpt.MaxDatagram+1) // what fills it is too long
	polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
	patience := -1
	var until time.Time
	rest := unix.NsecToTimespec(int64(nap))
	found := 0 // datagrams since the socket was empty
	for left := lastDatagrams; left > 0; {
		if ctx.Err() != nil { // from now on only what is there already
			if patience < 0 {
				until = time.Now().Add(lastReading)
			}
			polled, patience = polled[:1], int(lastLook.Milliseconds())
			if left--; time.Now().After(until) {
				return
			}
		}
		n, err := unix.Read(fd, buf)
		switch {
		case err == nil:
			w.add(buf[:n])
			found++
		case errors.Is(err, unix.EAGAIN) && found > 1:
			found = 0
			unix.Nanosleep(&rest, nil) // a signal ends it early, which does no harm
		case errors.Is(err, unix.EAGAIN):
			found = 0
			if n, err := unix.Poll(polled, patience); n == 0 && err == nil {
				return
			}
		case !errors.Is(err, unix.EINTR):
			slog.Error("TLSRPT socket cannot be read", "err", err)
			time.Sleep(readRetry)
		}
	}
}

// add has a datagram wait, or drops it.
func (w *waiting) add(data []byte) {
	if w.octets.Add(int64(len(data))) <= maxWaitingBytes {
		select {
		case w.datagrams <- datagram{bytes.Clone(data), time.Now()}:
			return
		default:
		}
	}
	w.octets.Add(-int64(len(data)))
	datagramsDropped.Inc()
}

// parse reads what waits, in batches. A batch waits for others of its kind, so that the
// store need not write the same pages again for each of them, and until the one before is
// recorded.
func (w *waiting) parse(ctx context.Context, batches chan<- batch) {
	defer close(batches)
	var complained time.Time
	var known parsed
	for d := range w.datagrams {
		if len(w.datagrams) < maxTogether {
			select {
			case <-time.After(gather):
			case <-ctx.Done():
			}
		}
		b := batch{sessions: make([]ruapost.Session, 0, min(len(w.datagrams)+1, maxTogether))}
		for more := true; more; {
			if err := b.add(d, &known); err != nil && time.Since(complained) > complainEach {
				complained = time.Now()
				slog.Warn("TLSRPT datagram dropped", "octets", len(d.data), "err", ruapost.Clean(err.Error(), 300))
			}
			if len(b.sessions) >= maxTogether {
				break
			}
			select {
			case d, more = <-w.datagrams:
			default:
				more = false
			}
		}
		batches <- b
	}
}

// add adds what the datagram tells. If it cannot be read that is counted.
func (b *batch) add(d datagram, known *parsed) error {
	b.octets += len(d.data)
	sessions, err := known.parse(d.data)
	if err != nil {
		datagramsBad.Inc()
		return err
	}
	datagramsOK.Inc()
	for _, s := range sessions {
		s.Time = d.at
		b.sessions = append(b.sessions, s)
	}
	return nil
}

// maxParsed bounds the octets of the datagrams of which it is remembered what they tell. In
// memory that may be 16 times as much, of datagrams that nobody sends.
const maxParsed = 1 << 20

// parsed are the sessions that datagrams have told of. Most say what others have said:
// that a session with some host went well.
type parsed struct {
	sessions map[string][]ruapost.Session
	octets   int
}

// parse is tlsrpt.ParseDatagram. What it returns is not to be changed.
func (p *parsed) parse(data []byte) ([]ruapost.Session, error) {
	if sessions, ok := p.sessions[string(data)]; ok {
		return sessions, nil
	}
	sessions, err := tlsrpt.ParseDatagram(data)
	if err != nil {
		return nil, err
	}
	if p.octets += len(data); p.octets > maxParsed || p.sessions == nil {
		p.sessions, p.octets = map[string][]ruapost.Session{}, len(data)
	}
	p.sessions[string(data)] = sessions
	return sessions, nil
}

// record records the batches.
func (w *waiting) record(ctx context.Context, batches <-chan batch, rec Recorder) {
	for b := range batches {
		if len(b.sessions) > 0 {
			if rec == nil {
				droppedByStore.Add(float64(len(b.sessions)))
			} else if err := rec.RecordSessions(ctx, b.sessions); err != nil {
				droppedByStore.Add(float64(len(b.sessions)))
				slog.Error("TLS sessions could not be recorded", "sessions", len(b.sessions), "err", err)
			}
		}
		w.octets.Add(-int64(b.octets))
	}
}
