package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// suiteCase is what the suite measures, and what is aimed at; 0 is no target.
type suiteCase struct {
	reports, rows int
	seconds, peak float64
	// times is how many times as long as the case before it may take.
	times float64
}

var suiteCases = []suiteCase{
	{reports: 1000, rows: 100, seconds: 2.5, peak: 40},
	{reports: 50_000, rows: 1, seconds: 300},
	{reports: 1, rows: 10_000},
	{reports: 1, rows: 100_000, times: 12},
	{reports: 1, rows: 1_000_000, times: 12, seconds: 15, peak: 64},
}

// target is something that was measured, and the most that it is to be.
type target struct {
	what            string
	measured, limit float64
}

func (t target) String() string {
	met := "yes"
	if t.measured > t.limit {
		met = "**no**"
	}
	return fmt.Sprintf("| %s | %.1f | %g | %s |", t.what, t.measured, t.limit, met)
}

// suite measures everything and writes the tables.
func (b *bench) suite(ctx context.Context, cases []suiteCase, reps int) error {
	cpu, err := b.sendmailTime(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "Medians of %d runs. The program in the place of sendmail alone takes %.1f ms of CPU time for a mail.\n\n", reps, cpu)
	fmt.Fprintln(b.out, "| Reports | Rows of each | Mails | Largest, MB | Time, s | Reporter's CPU, s | CPU of shell and sendmail, s "+
		"| Load program's CPU, s | Peak memory, MB | Peak without mapped files, MB |")
	fmt.Fprintln(b.out, "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
	var targets []target
	var before float64 // seconds
	for _, c := range cases {
		outcomes, err := b.repeat(ctx, load{reports: c.reports, rows: c.rows}, reps)
		if err != nil {
			return err
		}
		fmt.Fprintf(b.out, "| %d | %d |%s\n", c.reports, c.rows, columns(outcomes))
		seconds := medianOf(outcomes, (*outcome).seconds)
		targets = append(targets, c.targets(seconds, medianOf(outcomes, (*outcome).peak), before)...)
		before = seconds
	}
	fmt.Fprintln(b.out, "\n| What | Measured | At most | Met |\n|---|---:|---:|---|")
	for _, t := range targets {
		fmt.Fprintln(b.out, t)
	}
	return nil
}

// repeat runs l several times with the same rows.
func (b *bench) repeat(ctx context.Context, l load, reps int) (outcomes []*outcome, err error) {
	store, err := b.filled(ctx, l)
	if err != nil {
		return nil, err
	}
	for range reps {
		o, err := b.run(ctx, l, store)
		if err != nil {
			return nil, err
		}
		outcomes = append(outcomes, o)
	}
	return outcomes, os.Remove(store)
}

// sendmailTime returns the CPU time in milliseconds that the program in the place of
// sendmail takes for a small mail.
func (b *bench) sendmailTime(ctx context.Context) (float64, error) {
	const runs = 200
	dir := filepath.Join(b.scratch, "sendmail")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	mail := strings.Repeat(strings.Repeat("x", 76)+"\n", 50)
	var cpu time.Duration
	for range runs {
		cmd := exec.CommandContext(ctx, b.sendmail, dir, "-f", "reports@receiver.example", "--", recipient(0))
		cmd.Stdin = strings.NewReader(mail)
		if err := cmd.Run(); err != nil {
			return 0, err
		}
		cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	return float64(cpu) / runs / float64(time.Millisecond), os.RemoveAll(dir)
}

func (o *outcome) seconds() float64 { return o.elapsed.Seconds() }
func (o *outcome) peak() float64    { return megabytes(o.used.Peak) }

// columns are the numbers in a line of the suite's first table.
func columns(outcomes []*outcome) string {
	var b strings.Builder
	for _, c := range []struct {
		format string
		value  func(*outcome) float64
	}{
		{" %.0f |", func(o *outcome) float64 { return float64(o.got.number) }},
		{" %.1f |", func(o *outcome) float64 { return megabytes(o.got.largest) }},
		{" %.2f |", (*outcome).seconds},
		{" %.2f |", func(o *outcome) float64 { return o.used.CPU.Seconds() }},
		{" %.2f |", func(o *outcome) float64 { return o.used.Children.Seconds() }},
		{" %.2f |", func(o *outcome) float64 { return o.own.Seconds() }},
		{" %.0f |", (*outcome).peak},
		{" %.0f |", func(o *outcome) float64 { return megabytes(o.used.Anon) }},
	} {
		fmt.Fprintf(&b, c.format, medianOf(outcomes, c.value))
	}
	return b.String()
}

// targets are what is aimed at, given what was measured; before is the time of the case
// before this one.
func (c *suiteCase) targets(seconds, peak, before float64) (targets []target) {
	what := fmt.Sprintf("%d reports of %d rows: ", c.reports, c.rows)
	if c.seconds > 0 {
		targets = append(targets, target{what + "time, s", seconds, c.seconds})
	}
	if c.peak > 0 {
		targets = append(targets, target{what + "peak memory, MB", peak, c.peak})
	}
	if c.times > 0 {
		targets = append(targets, target{what + "times as long as for a tenth of the rows", seconds / before, c.times})
	}
	return targets
}

// medianOf returns the median of what a function says of the outcomes.
func medianOf(outcomes []*outcome, f func(*outcome) float64) float64 {
	sorted := slices.SortedFunc(slices.Values(outcomes), func(a, b *outcome) int { return cmp.Compare(f(a), f(b)) })
	return f(sorted[len(sorted)/2])
}
