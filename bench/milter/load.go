package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"ruapost"
	"ruapost/bboltstore"
	"ruapost/bench/internal/program"
)

// load is what to do to a milter. The fields are the flags of these names.
type load struct {
	messages, connections, perConnection int
	size, domains                        int
	ttl                                  time.Duration
	record, noop                         bool
	perf                                 string
}

// big is l with large messages on many connections.
func (l load) big() load {
	l.messages, l.connections, l.perConnection = 200, 200, 1
	l.size, l.domains = 10_000_000, 20
	return l
}

// bench is where loads are run.
type bench struct {
	scratch string
	binary  string // ruapost-milter
	out     io.Writer
	runs    int // so far
}

// build builds the milter, unless there is one.
func (b *bench) build(ctx context.Context) (err error) {
	if b.binary == "" {
		b.binary, err = program.Build(ctx, b.scratch, "cmd/milter")
	}
	return err
}

// outcome is what came of a load.
type outcome struct {
	messages   int // that were measured
	elapsed    time.Duration
	whole, end []time.Duration // of the messages, sorted
	before     usage           // of the milter
	after      usage
	own        time.Duration // CPU time of this program
	counts
}

// run starts a milter for l alone, runs l and counts what was recorded.
func (b *bench) run(ctx context.Context, l load) (*outcome, error) {
	w, err := newWorld(ctx, l)
	if err != nil {
		return nil, err
	}
	defer w.close()
	return b.runWith(ctx, l, w)
}

func (b *bench) runWith(ctx context.Context, l load, w *world) (o *outcome, err error) {
	counts, err := b.serve(l, w, func(p *daemon) error {
		if err := l.warmUp(ctx, w, p); err != nil {
			return err
		}
		o, err = l.measure(ctx, w, p, b.out)
		return err
	})
	if err != nil {
		return nil, err
	}
	o.counts = counts
	return o, nil
}

// counts are how many messages were sent to a milter, how many evaluations are in its
// store and how many different ones.
type counts struct{ sent, recorded, rows int64 }

func (c counts) String() string {
	return fmt.Sprintf("%d messages sent, %d evaluations in the store, %d different", c.sent, c.recorded, c.rows)
}

// serve runs work with a milter that has nothing in its store. It returns an error if
// another number of evaluations was recorded than messages were sent.
func (b *bench) serve(l load, w *world, work func(*daemon) error) (c counts, err error) {
	b.runs++
	dir := filepath.Join(b.scratch, fmt.Sprint(b.runs))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return c, err
	}
	p, err := b.start(l, dir, w.dns.Addr)
	if err != nil {
		return c, err
	}
	if err := work(p); err != nil {
		p.Kill()
		return c, p.Failed(err)
	}
	if err := p.stop(); err != nil {
		return c, err
	}
	complaints, err := p.Complaints()
	if err != nil {
		return c, err
	}
	for _, line := range complaints {
		fmt.Fprintln(b.out, line)
	}
	c.sent = int64(p.sent)
	if p.store == "" {
		return c, nil
	}
	return c, c.compare(p.store, l.record)
}

// compare counts what is in the store.
func (c *counts) compare(path string, record bool) error {
	s, err := bboltstore.Open(path)
	if err != nil {
		return err
	}
	defer s.Close()
	groups, err := s.Groups(context.Background(), time.Now().Add(48*time.Hour))
	if err != nil {
		return err
	}
	for _, g := range groups {
		if g.Kind == ruapost.KindDMARC {
			c.recorded += g.Total
			c.rows += g.Rows
		}
	}
	want := c.sent
	if !record {
		want = 0
	}
	if c.recorded != want {
		return fmt.Errorf("%d evaluations in the store, of %d messages", c.recorded, c.sent)
	}
	return nil
}

// warmUp sends a message of each domain.
func (l load) warmUp(ctx context.Context, w *world, p *daemon) error {
	l.messages = l.domains
	_, err := l.send(ctx, w, p)
	return err
}

// measure sends the messages and finds out what that cost.
func (l load) measure(ctx context.Context, w *world, p *daemon, out io.Writer) (o *outcome, err error) {
	if l.perf != "" {
		stop, err := p.Profile(ctx, l.perf, out)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	before, err := p.usage()
	if err != nil {
		return nil, err
	}
	own := program.OwnTime()
	began := time.Now()
	ts, err := l.send(ctx, w, p)
	if err != nil {
		return nil, err
	}
	o = &outcome{messages: l.messages, elapsed: time.Since(began), before: before, own: program.OwnTime() - own}
	if o.after, err = p.usage(); err != nil {
		return nil, err
	}
	for _, t := range ts {
		o.whole = append(o.whole, t.whole)
		o.end = append(o.end, t.end)
	}
	slices.Sort(o.whole)
	slices.Sort(o.end)
	return o, nil
}

// send sends the messages over as many connections as l says, and returns how long each
// took. Their numbers go on where those that the milter has got before end.
func (l load) send(ctx context.Context, w *world, p *daemon) ([]times, error) {
	ts := make([]times, l.messages)
	var next atomic.Int64
	clients, working := errgroup.WithContext(ctx)
	for range l.connections {
		clients.Go(func() error {
			for working.Err() == nil {
				to := int(next.Add(int64(l.perConnection)))
				from := to - l.perConnection
				if from >= l.messages {
					return nil
				}
				if err := l.session(working, w, p, p.sent+from, ts[from:min(to, l.messages)]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := clients.Wait()
	p.sent += l.messages
	return ts, cmp.Or(context.Cause(ctx), err)
}

// session sends as many messages as ts has room for, from number n on, in one SMTP
// session.
func (l load) session(ctx context.Context, w *world, p *daemon, n int, ts []times) error {
	s, err := openSession(ctx, p.socket, address(n/l.domains%addresses))
	if err != nil {
		return fmt.Errorf("session: %w", err)
	}
	defer s.conn.Close()
	defer context.AfterFunc(ctx, func() { s.conn.Close() })()
	for i := range ts {
		m := w.messages[(n+i)%l.domains]
		v, t, err := s.send(m, queueID(n+i))
		if err == nil && !l.noop && !v.passed() {
			err = fmt.Errorf("verdict %q %q", v.action, v.results)
		}
		if err != nil {
			return fmt.Errorf("message of %s: %w", m.domain, err)
		}
		ts[i] = t
	}
	return s.quit()
}

// queueID looks like those of Postfix.
func queueID(n int) string { return fmt.Sprintf("4%010X", n) }

// one runs a load and prints what came of it.
func (b *bench) one(ctx context.Context, l load) error {
	o, err := b.run(ctx, l)
	if err != nil {
		return err
	}
	return o.print(b.out)
}

// perSecond is the number of messages a second.
func (o *outcome) perSecond() float64 { return float64(o.messages) / o.elapsed.Seconds() }

// cpu is the milter's CPU time for a message in microseconds, ownCPU this program's.
func (o *outcome) cpu() float64    { return micros(o.after.CPU-o.before.CPU) / float64(o.messages) }
func (o *outcome) ownCPU() float64 { return micros(o.own) / float64(o.messages) }

// peak is the most memory that the milter had, in megabytes.
func (o *outcome) peak() float64 { return megabytes(o.after.Peak) }

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func megabytes(n int64) float64      { return float64(n) / 1e6 }

// percentile returns the one of sorted that p per cent do not exceed.
func percentile(sorted []time.Duration, p int) time.Duration { return sorted[(len(sorted)-1)*p/100] }

func median[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// print writes the outcome as a table for people.
func (o *outcome) print(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "messages/s\tmilter µs\tthis µs\twhole p50 ms\tp99\tmax\tend p50 ms\tp99\tmax\tpeak MB\tgoroutines\tDNS queries\t")
	fmt.Fprintf(t, "%.0f\t%.0f\t%.0f", o.perSecond(), o.cpu(), o.ownCPU())
	for _, sorted := range [][]time.Duration{o.whole, o.end} {
		for _, p := range []int{50, 99, 100} {
			fmt.Fprintf(t, "\t%.1f", millis(percentile(sorted, p)))
		}
	}
	fmt.Fprintf(t, "\t%.0f\t%d\t%d\t\n", o.peak(), o.after.goroutines, o.after.queries-o.before.queries)
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out, "µs are CPU time of a message; whole is from MAIL to the final answer, end from the end of the message to that")
	if commits := o.after.commits - o.before.commits; commits > 0 {
		fmt.Fprintf(out, "recording: %.1f messages a commit, %.1f ms from verdict to disk\n",
			float64(o.messages)/commits, 1000*(o.after.waited-o.before.waited)/float64(o.messages))
	}
	_, err := fmt.Fprintln(out, o.counts)
	return err
}
