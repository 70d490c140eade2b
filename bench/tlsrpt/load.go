package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"ruapost"
	"ruapost/bboltstore"
	"ruapost/bench/internal/program"
)

// load is what to do to a daemon. The fields are the flags of these names.
type load struct {
	rate, senders int
	time          time.Duration // -seconds
	domains, qlen int
	perf          string
}

// bench is where loads are run.
type bench struct {
	scratch string
	binary  string // ruapost-tlspolicy
	out     io.Writer
	runs    int // so far
}

// build builds the daemon, unless there is one.
func (b *bench) build(ctx context.Context) (err error) {
	if b.binary == "" {
		b.binary, err = program.Build(ctx, b.scratch, "cmd/tlspolicy")
	}
	return err
}

// outcome is what came of a load.
type outcome struct {
	sent
	recorded int // sessions in the store
	elapsed  time.Duration
	cpu, own time.Duration // CPU time of the daemon and of this program
	peak     int64         // bytes of memory
}

// offered is the number of datagrams a second that were sent or lost, cpuEach the daemon's
// CPU time for one that it got, in microseconds, and ownEach this program's.
func (o *outcome) offered() float64 { return float64(o.taken+o.lost) / o.elapsed.Seconds() }
func (o *outcome) cpuEach() float64 { return micros(o.cpu) / float64(max(o.taken, 1)) }
func (o *outcome) ownEach() float64 { return micros(o.own) / float64(max(o.taken+o.lost, 1)) }

// missing is the number of datagrams that the daemon got and did not record.
func (o *outcome) missing() int { return o.taken - o.recorded }

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func megabytes(n int64) float64      { return float64(n) / 1e6 }

// run starts a daemon for l alone, runs l and counts what was recorded.
func (b *bench) run(ctx context.Context, l load) (*outcome, error) {
	b.runs++
	dir := filepath.Join(b.scratch, fmt.Sprint(b.runs))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	p, err := b.start(dir, l.qlen)
	if err != nil {
		return nil, err
	}
	o, err := l.measure(ctx, p, b.out)
	if err != nil {
		p.kill()
		return nil, p.Failed(err)
	}
	if err := p.stop(); err != nil {
		return nil, err
	}
	used, err := p.Usage()
	if err != nil {
		return nil, err
	}
	o.cpu, o.peak = used.CPU, used.Peak
	complaints, err := p.Complaints()
	if err != nil {
		return nil, err
	}
	for _, line := range complaints {
		fmt.Fprintln(b.out, line)
	}
	o.recorded, err = recorded(p.store)
	return o, err
}

// measure sends the datagrams.
func (l load) measure(ctx context.Context, p *daemon, out io.Writer) (o *outcome, err error) {
	if l.perf != "" {
		stop, err := p.Profile(ctx, l.perf, out)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	own, began := program.OwnTime(), time.Now()
	o = &outcome{sent: l.send(ctx, p.socket)}
	o.elapsed, o.own = time.Since(began), program.OwnTime()-own
	return o, errors.Join(o.err, context.Cause(ctx))
}

// recorded counts the sessions in the store.
func recorded(path string) (n int, err error) {
	s, err := bboltstore.Open(path)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	groups, err := s.Groups(context.Background(), time.Now().Add(48*time.Hour))
	for _, g := range groups {
		if g.Kind == ruapost.KindTLS {
			n += int(g.Total)
		}
	}
	return n, err
}

// one runs a load and prints what came of it.
func (b *bench) one(ctx context.Context, l load) error {
	o, err := b.run(ctx, l)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "datagrams/s\tdaemon µs\tthis µs\tlatest ms\tpeak MB\tsent\tlost (EAGAIN)\trecorded\tmissing\t")
	fmt.Fprintf(t, "%.0f\t%.1f\t%.1f\t%.1f\t%.0f\t%d\t%d\t%d\t%d\t\n", o.offered(), o.cpuEach(), o.ownEach(),
		millis(o.latest), megabytes(o.peak), o.taken, o.lost, o.recorded, o.missing())
	return t.Flush()
}
