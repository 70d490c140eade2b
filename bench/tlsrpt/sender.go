package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sent is what became of the datagrams of one sender or of all.
type sent struct {
	taken, lost int
	// latest is the most that a datagram was behind its time.
	latest time.Duration
	err    error
}

func (s *sent) add(o sent) {
	s.taken += o.taken
	s.lost += o.lost
	s.latest = max(s.latest, o.latest)
	s.err = errors.Join(s.err, o.err)
}

// send has all senders send to the socket at path.
func (l load) send(ctx context.Context, path string) (all sent) {
	// Each sender is a thread, and must not wait for another one as processes need not.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(l.senders + runtime.NumCPU()))
	datagrams := events(l.domains)
	until := time.Now().Add(l.time)
	results := make([]sent, l.senders)
	var senders sync.WaitGroup
	for i := range results {
		senders.Go(func() {
			runtime.LockOSThread()
			results[i] = l.sender(ctx, path, datagrams, until)
			// The thread, which wakes up more exactly than others, ends here.
		})
	}
	senders.Wait()
	for _, r := range results {
		all.add(r)
	}
	return all
}

// sender sends datagrams with random pauses.
func (l load) sender(ctx context.Context, path string, datagrams [][]byte, until time.Time) (s sent) {
	// prctl(2): wake up when it is time, not up to 50 µs later.
	if s.err = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); s.err != nil {
		return s
	}
	to := &unix.SockaddrUnix{Name: path}
	pause := time.Duration(0)
	if l.rate > 0 {
		pause = time.Second * time.Duration(l.senders) / time.Duration(l.rate)
	}
	gap := func() time.Duration { return time.Duration(rand.ExpFloat64() * float64(pause)) }
	due := time.Now().Add(gap())
	for at := due; at.Before(until) && ctx.Err() == nil; {
		sleep(time.Until(at))
		switch err := tell(to, datagrams[rand.IntN(len(datagrams))]); {
		case err == nil:
			s.taken++
		case errors.Is(err, unix.EAGAIN):
			s.lost++
		default:
			s.err = err
			return s
		}
		now, next := time.Now(), gap()
		if pause > 0 {
			s.latest = max(s.latest, now.Sub(due))
		}
		due = due.Add(next)
		if at = due; at.Before(now) {
			at = now.Add(next / 2)
		}
	}
	return s
}

func sleep(d time.Duration) {
	if d > 0 {
		t := unix.NsecToTimespec(int64(d))
		unix.Nanosleep(&t, nil) // a signal ends it early, which does no harm
	}
}

// tell sends a datagram as libtlsrpt does.
func tell(to *unix.SockaddrUnix, datagram []byte) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, datagram, unix.MSG_DONTWAIT, to)
}
