package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"time"

	"ruapost"
	"ruapost/bboltstore"
)

// Rows that make a file of about a megabyte, and one of about a gigabyte.
const (
	megabyteRows = 1_500
	gigabyteRows = 1_500_000
)

// hundred is the number of callers of a lone writer that makes batches of about a
// hundred: while half of them wait for a commit, the others gather in the next batch.
// A writer that has to wait for another finds all of its callers in one batch.
const hundred = 200

// suite runs the comparisons and writes a line of a table for each result. What is
// compared is measured in turns, so that whatever else the machine does meets both.
type suite struct {
	dir  string
	time time.Duration // of a run
	reps int
	out  io.Writer
	runs int // so far
}

func runSuite(ctx context.Context, dir string, d time.Duration, reps int, out io.Writer) error {
	s := &suite{dir: dir, time: d, reps: reps, out: out}
	fmt.Fprintf(out, "Medians of %d runs of %v.\n\n", reps, d)
	fmt.Fprintln(out, "| What | Measured | Against | Result | Target | Met |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|")
	for _, part := range []func(context.Context) error{s.sharing, s.batching, s.latency, s.slowDisk, s.size} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *suite) line(what, measured, against, value, target string, met bool) {
	yes := "yes"
	if target == "" {
		yes = ""
	} else if !met {
		yes = "**no**"
	}
	fmt.Fprintf(s.out, "| %s | %s | %s | %s | %s | %s |\n", what, measured, against, value, target, yes)
}

// run runs l on a new file.
func (s *suite) run(ctx context.Context, l load) (*outcome, error) {
	s.runs++
	path := filepath.Join(s.dir, fmt.Sprintf("%d.db", s.runs))
	if err := preload(ctx, path, l.rows); err != nil {
		return nil, err
	}
	l.time = s.time
	return l.run(ctx, path)
}

// sharing compares two processes with one that shares with nobody.
func (s *suite) sharing(ctx context.Context) error {
	var shared, single, ratios, shares []float64
	var batches []float64
	var waits []time.Duration
	for range s.reps {
		a, err := s.run(ctx, load{writers: 2, batch: 100})
		if err != nil {
			return err
		}
		all := a.all()
		b, err := s.run(ctx, load{single: true, writers: 2, batch: int(all.batch() + 0.5)})
		if err != nil {
			return err
		}
		shared, single = append(shared, all.perSecond()), append(single, b.writers[0].perSecond())
		ratios = append(ratios, all.perSecond()/b.writers[0].perSecond())
		shares = append(shares, 100*a.share())
		batches = append(batches, all.batch())
		waits = append(waits, all.percentile(100))
	}
	s.line("Two writers that record as fast as they can, against one process that keeps the file open for ever, with the same batches",
		fmt.Sprintf("%.0f records/s in commits of %.0f", median(shared), median(batches)),
		fmt.Sprintf("%.0f records/s", median(single)),
		fmt.Sprintf("%.2f", median(ratios)), "at least 0.95", median(ratios) >= 0.95)
	s.line("... part of the first writer", "", "", fmt.Sprintf("%.1f %%", median(shares)), "45 to 55 %", median(shares) >= 45 && median(shares) <= 55)
	s.line("... longest wait of a record call", "", "", ms(median(waits))+" ms", "under 50 ms", median(waits) < 50*time.Millisecond)
	return nil
}

// batching compares many record calls at a time with one, and what plain bbolt has from
// batches: no more can be had than single commits leave.
func (s *suite) batching(ctx context.Context) error {
	var batches []float64
	rate := func(l load) (float64, error) {
		l.writers = 1
		o, err := s.run(ctx, l)
		if err != nil {
			return 0, err
		}
		all := o.all()
		if l.batch == hundred {
			batches = append(batches, all.batch())
		}
		return all.perSecond(), nil
	}
	var ours, plain gain
	for range s.reps {
		err := errors.Join(
			ours.measure(rate, load{batch: hundred}, load{batch: 1}),
			plain.measure(rate, load{single: true, batch: 100}, load{single: true, batch: 1}))
		if err != nil {
			return err
		}
	}
	s.line("Batches of a hundred, against single commits; one writer",
		fmt.Sprintf("%.0f records/s in commits of %.0f", median(ours.many), median(batches)),
		fmt.Sprintf("%.0f records/s", median(ours.one)),
		fmt.Sprintf("%.1f", median(ours.ratios)), "at least 40", median(ours.ratios) >= 40)
	s.line("... plain bbolt's own, in one process that keeps the file open for ever",
		fmt.Sprintf("%.0f records/s", median(plain.many)), fmt.Sprintf("%.0f records/s", median(plain.one)),
		fmt.Sprintf("%.1f", median(plain.ratios)), "", true)
	return nil
}

// gain is what batches bring.
type gain struct {
	many, one, ratios []float64 // records/s
}

func (g *gain) measure(rate func(load) (float64, error), batches, single load) error {
	many, err := rate(batches)
	if err != nil {
		return err
	}
	one, err := rate(single)
	g.many, g.one, g.ratios = append(g.many, many), append(g.one, one), append(g.ratios, many/one)
	return err
}

// latency measures what a message waits for on an ordinary day, and more.
func (s *suite) latency(ctx context.Context) error {
	w, err := s.waits(ctx, load{writers: 2, batch: 1, rate: 1000, reporter: true})
	if err != nil {
		return err
	}
	const what = "Twice 1,000 records/s while a reporter reads and deletes all the time"
	lone := fmt.Sprintf("lone fdatasync pair: %s ms", ms(median(w.sync)))
	quick := median(w.sync) < time.Millisecond
	s.line(what+": median from call to disk", ms(median(w.p50))+" ms", lone, "", "", true)
	target := "under 15 ms"
	if !quick {
		target += " (where the pair takes under 1 ms)"
	}
	s.line("... 99th percentile", ms(median(w.p99))+" ms", lone, "", target, !quick || median(w.p99) < 15*time.Millisecond)
	s.line("... longest of all runs", ms(w.longest)+" ms", lone, "", "never above 100 ms", w.longest <= 100*time.Millisecond)
	return nil
}

// slowDisk is latency with a disk that takes 20 ms for a commit.
func (s *suite) slowDisk(ctx context.Context) error {
	const what = "Twice 200 records/s and a reporter, fdatasync takes 10 ms longer for the writers"
	if _, err := exec.LookPath("strace"); err != nil {
		s.line(what, "not measured: needs strace", "", "", "", true)
		return nil
	}
	w, err := s.waits(ctx, load{writers: 2, batch: 1, rate: 200, reporter: true, slow: true})
	if err != nil {
		return err
	}
	s.line(what+": median, 99th percentile, longest", fmt.Sprintf("%s, %s, %s ms", ms(median(w.p50)), ms(median(w.p99)), ms(w.longest)),
		"", "", "", true)
	return nil
}

type waits struct {
	p50, p99, sync []time.Duration
	longest        time.Duration
}

func (s *suite) waits(ctx context.Context, l load) (w waits, err error) {
	for range s.reps {
		o, err := s.run(ctx, l)
		if err != nil {
			return w, err
		}
		all := o.all()
		w.p50, w.p99 = append(w.p50, all.percentile(50)), append(w.p99, all.percentile(99))
		w.sync = append(w.sync, o.sync)
		w.longest = max(w.longest, all.percentile(100))
	}
	return w, nil
}

// size compares a large file with a small one, and once more when most of it was
// deleted and the file compacted.
func (s *suite) size(ctx context.Context) error {
	small, large := filepath.Join(s.dir, "small.db"), filepath.Join(s.dir, "large.db")
	if err := preload(ctx, small, megabyteRows); err != nil {
		return err
	}
	if err := preload(ctx, large, gigabyteRows); err != nil {
		return err
	}
	kinds := []struct {
		what   string
		load   load
		target float64
	}{
		{"one at a time", load{writers: 1, batch: 1}, 1.2},
		{"batches of a hundred", load{writers: 1, batch: hundred}, 1.2},
		{"batches of a hundred, spread over all the rows of the file", load{writers: 1, batch: hundred, spread: true}, 0},
	}
	for _, k := range kinds {
		if err := s.costs(ctx, k.what, large, gigabyteRows, small, k.load, k.target); err != nil {
			return err
		}
	}
	if err := s.delete(ctx, large); err != nil {
		return err
	}
	for _, k := range kinds[:2] {
		if err := s.costs(ctx, k.what+", 70 % deleted and compacted", large, gigabyteRows, small, k.load, k.target); err != nil {
			return err
		}
	}
	return nil
}

// costs compares what a record, and opening, cost with the file large and the file
// small.
func (s *suite) costs(ctx context.Context, what, large string, largeRows int, small string, l load, target float64) error {
	var big, little, ratios, opening []float64
	var opened [2][]time.Duration
	var sizes [2]int64
	l.time = s.time
	for range s.reps {
		l.rows = largeRows
		a, err := l.run(ctx, large)
		if err != nil {
			return err
		}
		l.rows = megabyteRows
		b, err := l.run(ctx, small)
		if err != nil {
			return err
		}
		ra, rb := a.all(), b.all()
		big, little = append(big, 1e6/ra.perSecond()), append(little, 1e6/rb.perSecond())
		ratios = append(ratios, rb.perSecond()/ra.perSecond())
		oa, ob := ra.OpenTime/time.Duration(ra.Opened), rb.OpenTime/time.Duration(rb.Opened)
		opened[0], opened[1] = append(opened[0], oa), append(opened[1], ob)
		opening = append(opening, float64(oa)/float64(ob))
		sizes = [2]int64{a.size, b.size}
	}
	limit := ""
	if target > 0 {
		limit = fmt.Sprintf("at most %.1f", target)
	}
	s.line("Cost of a record: "+what,
		fmt.Sprintf("%.1f µs, file of %.0f MB", median(big), float64(sizes[0])/1e6),
		fmt.Sprintf("%.1f µs, file of %.0f MB", median(little), float64(sizes[1])/1e6),
		fmt.Sprintf("%.2f", median(ratios)), limit, median(ratios) <= target)
	s.line("... opening the file", ms(median(opened[0]))+" ms", ms(median(opened[1]))+" ms", fmt.Sprintf("%.2f", median(opening)), limit, median(opening) <= target)
	return nil
}

// delete deletes 70 per cent of the preloaded rows and compacts the file.
func (s *suite) delete(ctx context.Context, path string) error {
	st, err := bboltstore.Open(path)
	if err != nil {
		return err
	}
	defer st.Close()
	groups, err := st.Groups(ctx, ruapost.Day(tomorrow).End)
	if err != nil {
		return err
	}
	if err := st.Drop(ctx, groups[:len(groups)*7/10]); err != nil {
		return err
	}
	return st.Tidy(ctx)
}
