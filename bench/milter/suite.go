package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// parts is the number of parts that a long run has.
const parts = 10

// long sends messages in parts and prints after each what the milter has grown to.
func (b *bench) long(ctx context.Context, l load, messages int) error {
	w, err := newWorld(ctx, l)
	if err != nil {
		return err
	}
	defer w.close()
	c, err := b.serve(l, w, func(p *daemon) error {
		fmt.Fprintf(b.out, "The milter is process %d.\n\n", p.PID())
		fmt.Fprintln(b.out, "| Messages | messages/s | p99, ms | Memory, MB | Peak, MB | Next collection at, MB | Goroutines |")
		fmt.Fprintln(b.out, "|---:|---:|---:|---:|---:|---:|---:|")
		if err := l.warmUp(ctx, w, p); err != nil {
			return err
		}
		l.messages = messages / parts
		for part := range parts {
			o, err := l.measure(ctx, w, p, b.out)
			if err != nil {
				return err
			}
			if err := p.idle(ctx); err != nil {
				return err
			}
			u, err := p.usage()
			if err != nil {
				return err
			}
			fmt.Fprintf(b.out, "| %d | %.0f | %.1f | %.1f | %.1f | %.1f | %d |\n", (part+1)*l.messages, o.perSecond(),
				millis(percentile(o.whole, 99)), megabytes(u.Resident), megabytes(u.Peak), megabytes(u.heap), u.goroutines)
		}
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "\n%s.\n", c)
	return nil
}

// suiteCase is what the suite measures with milters of all kinds.
type suiteCase struct {
	size, connections int
	share             int     // of -messages, in per cent
	rate, cpu         float64 // aimed at: messages a second, microseconds of a message
}

var suiteCases = []suiteCase{
	{size: 4 << 10, connections: 16, share: 100, rate: 3000, cpu: 400},
	{size: 4 << 10, connections: 64, share: 100, rate: 3000, cpu: 400},
	{size: 100 << 10, connections: 16, share: 30, rate: 1200, cpu: 1300},
	{size: 100 << 10, connections: 64, share: 30, rate: 1200, cpu: 1300},
}

// kinds are the milters that are compared.
var kinds = []struct {
	name         string
	record, noop bool
}{
	{name: "recording", record: true},
	{name: "not recording"},
	{name: "does nothing", noop: true},
}

// target is something that was measured, and what it is to be.
type target struct {
	what            string
	measured, limit float64
	least           bool // the limit is the least, else the most
}

func (t target) String() string {
	most, met := "at most", t.measured <= t.limit
	if t.least {
		most, met = "at least", t.measured >= t.limit
	}
	yes := "yes"
	if !met {
		yes = "**no**"
	}
	return fmt.Sprintf("| %s | %.0f | %s %.0f | %s |", t.what, t.measured, most, t.limit, yes)
}

// suite measures everything and writes the tables.
func (b *bench) suite(ctx context.Context, messages, reps int) error {
	fmt.Fprintf(b.out, "Medians of %d runs of %d messages of 4 KB or %d of 100 KB.\n\n", reps, messages, messages*30/100)
	fmt.Fprintln(b.out, "| Message | Connections | Milter | Messages/s | Its CPU, µs | Load program's, µs "+
		"| Whole message, ms: p50 | p99 | max | At its end: p50 | p99 | max | Peak memory, MB |")
	fmt.Fprintln(b.out, "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
	var targets []target
	for _, c := range suiteCases {
		ts, err := b.measureCase(ctx, c, messages, reps)
		if err != nil {
			return err
		}
		targets = append(targets, ts...)
	}
	ordinary := load{connections: 16, perConnection: 1, size: 4 << 10, domains: 200, ttl: time.Hour, record: true}
	large, err := b.run(ctx, ordinary.big())
	if err != nil {
		return err
	}
	targets = append(targets, target{what: "200 connections with 10 MB messages: peak memory, MB", measured: large.peak(), limit: 150})
	fmt.Fprintln(b.out, "\n| What | Measured | Target | Met |\n|---|---:|---:|---|")
	for _, t := range targets {
		fmt.Fprintln(b.out, t)
	}
	fmt.Fprintln(b.out)
	return b.long(ctx, ordinary, 100_000)
}

// measureCase measures the kinds of a case in turns, so that whatever else the machine
// does meets all of them, and writes their lines.
func (b *bench) measureCase(ctx context.Context, c suiteCase, messages, reps int) ([]target, error) {
	outcomes := make([][]*outcome, len(kinds))
	for range reps {
		for k, kind := range kinds {
			o, err := b.run(ctx, load{
				messages: messages * c.share / 100, connections: c.connections, perConnection: 1,
				size: c.size, domains: 200, ttl: time.Hour, record: kind.record, noop: kind.noop,
			})
			if err != nil {
				return nil, err
			}
			outcomes[k] = append(outcomes[k], o)
		}
	}
	for k, kind := range kinds {
		fmt.Fprintf(b.out, "| %d KB | %d | %s |%s\n", c.size>>10, c.connections, kind.name, columns(outcomes[k]))
	}
	return c.targets(outcomes[0], outcomes[1]), nil
}

// medianOf returns the median of what a function says of the outcomes.
func medianOf(outcomes []*outcome, f func(*outcome) float64) float64 {
	var values []float64
	for _, o := range outcomes {
		values = append(values, f(o))
	}
	return median(values)
}

// columns are the numbers in a line of the suite's first table.
func columns(outcomes []*outcome) string {
	var b strings.Builder
	for _, f := range []func(*outcome) float64{(*outcome).perSecond, (*outcome).cpu, (*outcome).ownCPU} {
		fmt.Fprintf(&b, " %.0f |", medianOf(outcomes, f))
	}
	for _, sorted := range []func(*outcome) []time.Duration{
		func(o *outcome) []time.Duration { return o.whole },
		func(o *outcome) []time.Duration { return o.end },
	} {
		for _, p := range []int{50, 99, 100} {
			fmt.Fprintf(&b, " %.1f |", medianOf(outcomes, func(o *outcome) float64 { return millis(percentile(sorted(o), p)) }))
		}
	}
	fmt.Fprintf(&b, " %.0f |", medianOf(outcomes, (*outcome).peak))
	return b.String()
}

// targets are what is aimed at, given the outcomes with and without recording.
func (c *suiteCase) targets(recording, not []*outcome) []target {
	var kept []float64
	for i := range recording {
		kept = append(kept, recording[i].perSecond()/not[i].perSecond())
	}
	what := fmt.Sprintf("%d KB, %d connections: ", c.size>>10, c.connections)
	targets := []target{
		{what + "messages/s", medianOf(recording, (*outcome).perSecond), c.rate, true},
		{what + "CPU of a message, µs", medianOf(recording, (*outcome).cpu), c.cpu, false},
		{what + "cost of recording, % of the messages/s", 100 * (1 - median(kept)), 15, false},
	}
	if c.connections == 16 {
		p99 := medianOf(recording, func(o *outcome) float64 { return millis(percentile(o.whole, 99)) })
		targets = append(targets, target{what + "p99 of a whole message, ms", p99, 30, false})
	}
	if c.size == 4<<10 {
		targets = append(targets, target{what + "peak memory, MB", medianOf(recording, (*outcome).peak), 50, false})
	}
	return targets
}
