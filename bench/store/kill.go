package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"ruapost/bboltstore"
)

// killPause is the longest time between two kills. A process needs some of it to get
// going, so that it also dies while it opens the file.
const killPause = 60 * time.Millisecond

// tally counts the record calls of one writer, whose processes write to it one after
// the other.
type tally struct {
	attempted, acknowledged [mailDomains]int64
}

func (t *tally) Write(p []byte) (int, error) {
	for _, b := range p {
		counts := &t.attempted
		if b&ackBit != 0 {
			counts = &t.acknowledged
		}
		counts[b&^ackBit]++
	}
	return len(p), nil
}

// mortal is a process that may be killed.
type mortal struct {
	job   job
	tally *tally
	cmd   *exec.Cmd
	in    io.WriteCloser
}

func (m *mortal) start(ctx context.Context) (err error) {
	if m.cmd, err = command(ctx, m.job, false); err != nil {
		return err
	}
	if m.tally != nil {
		m.cmd.Stdout = m.tally
	}
	if m.in, err = m.cmd.StdinPipe(); err != nil {
		return err
	}
	return m.cmd.Start()
}

// kill ends the process wherever it is. That it was gone already is an error.
func (m *mortal) kill() error {
	err := m.cmd.Process.Kill()
	werr := m.cmd.Wait()
	if status, ok := m.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGKILL {
		return err
	}
	return fmt.Errorf("%s %d ended by itself: %w", m.job.Role, m.job.Number, errors.Join(werr, err))
}

// kill runs writers, a reporter and a compactor on the file at path and kills one of
// them after the other. In the end every record that was acknowledged must have been
// reported, and none more than once, and the file must be sound.
func kill(ctx context.Context, path string, l load, kills int, out io.Writer) error {
	if err := preload(ctx, path, l.rows); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(kills)*killPause+grace)
	defer cancel()
	l.reporter, l.compactor, l.rate, l.single, l.spread = true, true, 0, false, false
	ledger := filepath.Join(filepath.Dir(path), "ledger")
	var mortals []*mortal
	tallies := make([]tally, l.writers)
	for _, j := range l.jobs(path) {
		j.Endless, j.Ledger = true, ledger
		m := &mortal{job: j}
		if j.Role == roleWriter {
			m.tally = &tallies[j.Number]
		}
		mortals = append(mortals, m)
	}
	died, err := killAll(ctx, mortals, kills)
	if err != nil {
		return err
	}
	reports, err := settle(ctx, path, ledger)
	if err != nil {
		return err
	}
	fmt.Fprint(out, "killed:")
	for _, r := range []role{roleWriter, roleReporter, roleCompactor} {
		fmt.Fprintf(out, " %s %d", r, died[r])
	}
	fmt.Fprintln(out)
	if err := compare(tallies, reports, out); err != nil {
		return err
	}
	return check(ctx, path, l.rows)
}

// killAll starts the processes, kills and restarts one of them at a time, and lets
// them end in peace. It returns how many of each role were killed.
func killAll(ctx context.Context, mortals []*mortal, kills int) (died map[role]int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends those that are left after an error
	for _, m := range mortals {
		if err := m.start(ctx); err != nil {
			return nil, err
		}
	}
	died = map[role]int{}
	for range kills {
		select {
		case <-time.After(rand.N(killPause)):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		m := mortals[rand.IntN(len(mortals))]
		if err := m.kill(); err != nil {
			return nil, err
		}
		died[m.job.Role]++
		if err := m.start(ctx); err != nil {
			return nil, err
		}
	}
	var errs []error
	for _, m := range mortals {
		m.in.Close()
	}
	for _, m := range mortals {
		if err := m.cmd.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("%s %d: %w", m.job.Role, m.job.Number, err))
		}
	}
	return died, errors.Join(errs...)
}

// settle reports what is left in the file, and returns all reports there ever were.
func settle(ctx context.Context, path, ledger string) ([]entry, error) {
	s, err := bboltstore.Open(path)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	for n := 1; n > 0; {
		if n, err = reportOnce(ctx, s, ledger, &result{}); err != nil {
			return nil, err
		}
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	return readLedger(ledger)
}

// compare says for each domain with wrong counts what is wrong.
func compare(tallies []tally, reports []entry, out io.Writer) error {
	reported := map[string]int64{}
	for _, r := range reports {
		reported[r.domain] += r.total
	}
	var errs []error
	var attempted, acknowledged, counted int64
	for writer := range tallies {
		t := &tallies[writer]
		for d := range mailDomains {
			domain := mailDomain(writer, d)
			n := reported[domain]
			delete(reported, domain)
			if n < t.acknowledged[d] || n > t.attempted[d] {
				errs = append(errs, fmt.Errorf("%s: %d acknowledged, %d attempted, but %d reported",
					domain, t.acknowledged[d], t.attempted[d], n))
			}
			attempted += t.attempted[d]
			acknowledged += t.acknowledged[d]
			counted += n
		}
	}
	for domain, n := range reported {
		errs = append(errs, fmt.Errorf("%s: %d reported, but never recorded", domain, n))
	}
	if acknowledged == 0 {
		errs = append(errs, errors.New("nothing was acknowledged"))
	}
	fmt.Fprintf(out, "records: %d acknowledged, %d reported in %d reports, %d attempted\n",
		acknowledged, counted, len(reports), attempted)
	return errors.Join(errs...)
}

// check has the store look at every page and at its own counts. Of the rows only the
// preloaded ones may be left.
func check(ctx context.Context, path string, preloaded int) error {
	set, err := filepath.Glob(path + ".damaged-*")
	if err != nil || len(set) > 0 {
		return errors.Join(err, fmt.Errorf("%d damaged files were set aside", len(set)))
	}
	s, err := bboltstore.Open(path)
	if err != nil {
		return err
	}
	defer s.Close()
	faults, err := s.Check(ctx)
	if err := errors.Join(append(faults, err)...); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	stats, err := s.Stats(ctx)
	if err != nil {
		return err
	}
	if stats.Rows != uint64(preloaded) {
		return fmt.Errorf("%d rows are left in the file, but %d should be", stats.Rows, preloaded)
	}
	return nil
}
