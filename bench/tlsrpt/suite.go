package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// suiteCases are what the suite measures: the targets, and what is lost beyond them.
var suiteCases = []struct {
	rate, senders, qlen int
	target              bool // nothing is to be lost
}{
	{rate: 5000, senders: 1, qlen: 10, target: true},
	{rate: 5000, senders: 16, qlen: 10, target: true},
	{rate: 5000, senders: 100, qlen: 10, target: true},
	{rate: 20_000, senders: 16, qlen: 10},
	{rate: 40_000, senders: 16, qlen: 512, target: true},
	{rate: 0, senders: 2, qlen: 512},
}

// suite measures everything and writes the table.
func (b *bench) suite(ctx context.Context, l load, reps int) error {
	fmt.Fprintf(b.out, "Medians of %d runs of %v; lost are those of all runs.\n\n", reps, l.time)
	fmt.Fprintln(b.out, "| Senders | Queue | Datagrams/s | Sent | Lost at the socket | Lost in the daemon | Nothing is to be lost "+
		"| CPU of the daemon, µs | Load program's, µs | Peak memory, MB |")
	fmt.Fprintln(b.out, "|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|")
	for _, c := range suiteCases {
		l.rate, l.senders, l.qlen = c.rate, c.senders, c.qlen
		var outcomes []*outcome
		sent, lost, missing := 0, 0, 0
		for range reps {
			o, err := b.run(ctx, l)
			if err != nil {
				return err
			}
			outcomes = append(outcomes, o)
			sent, lost, missing = sent+o.taken+o.lost, lost+o.lost, missing+o.missing()
		}
		met := ""
		if c.target {
			met = "yes"
			if lost > 0 || missing > 0 {
				met = "**no**"
			}
		}
		fmt.Fprintf(b.out, "| %d | %d | %.0f | %d | %d | %d | %s | %.1f | %.1f | %.0f |\n", c.senders, c.qlen,
			medianOf(outcomes, (*outcome).offered), sent, lost, missing, met,
			medianOf(outcomes, (*outcome).cpuEach), medianOf(outcomes, (*outcome).ownEach),
			medianOf(outcomes, func(o *outcome) float64 { return megabytes(o.peak) }))
	}
	return nil
}

// medianOf returns the median of what a function says of the outcomes.
func medianOf(outcomes []*outcome, f func(*outcome) float64) float64 {
	sorted := slices.SortedFunc(slices.Values(outcomes), func(a, b *outcome) int { return cmp.Compare(f(a), f(b)) })
	return f(sorted[len(sorted)/2])
}
