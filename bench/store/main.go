// Command store measures what a store file does when several processes write it: it
// starts writer processes, which are copies of itself, on one file and prints how
// much each of them recorded and how long it waited for that to be on disk.
//
//	go run ./bench/store [flags]     one run
//	go run ./bench/store -suite      the comparisons in docs/store.md, as a table
//	go run ./bench/store -kill 1000  processes are killed at random, and the counts compared
//	go run ./bench/store -flood N    N messages forged in the names of as many domains
//
// What is recorded is mail from 20 addresses for each of 100 domains. A few of these
// 2,000 rows make up most of the mail (Zipf's law), as it is with mail. Every writer has
// domains of its own.
//
//	-writers N    writer processes (2)
//	-rate N       records per second of each writer; 0: as many as it can (0)
//	-batch N      record calls at a time of each writer: that many callers, or, with
//	              -rate, as many calls at once (100)
//	-time D       length of a run (3s)
//	-rows N       distinct rows that are in the file before, of other domains (0)
//	-spread       record onto those rows instead of own ones, all equally often
//	-reporter     one more process makes, reads and deletes reports all the time
//	-compactor    one more process compacts the file all the time
//	-mode M       "store", or "single": one process that keeps plain bbolt open for ever
//	              and commits batches of -batch records of the writers, the measure to
//	              compare with
//	-slow         a slow disk: every fdatasync takes 10 ms longer, and a commit has two;
//	              needs strace(1)
//	-dir DIR      where to put the folder for temporary files, which decides on the disk
//	              ($TMPDIR)
//	-suite        run the comparisons: -time, -reps, -dir count
//	-reps N       repetitions of each measurement of the suite, at least 5 (5)
//	-kill N       kill writers, reporter and compactor, N times in all: -writers, -batch,
//	              -rows, -dir count
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"ruapost/bench/internal/program"
)

func main() {
	if encoded := os.Getenv(jobVariable); encoded != "" {
		os.Exit(runJob(encoded))
	}
	program.Main("store", slog.LevelInfo, run)
}

// run is main with its surroundings as parameters.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	var l load
	flags := flag.NewFlagSet("store", flag.ExitOnError)
	flags.IntVar(&l.writers, "writers", 2, "writer processes")
	flags.IntVar(&l.rate, "rate", 0, "records per second and writer; 0: as many as it can")
	flags.IntVar(&l.batch, "batch", 100, "record calls at a time and writer")
	flags.DurationVar(&l.time, "time", 3*time.Second, "length of a run")
	flags.IntVar(&l.rows, "rows", 0, "distinct rows that are in the file before")
	flags.BoolVar(&l.spread, "spread", false, "record onto the rows of -rows")
	flags.BoolVar(&l.reporter, "reporter", false, "with a reporter process")
	flags.BoolVar(&l.compactor, "compactor", false, "with a compactor process")
	flags.BoolVar(&l.slow, "slow", false, "a slow disk")
	mode := flags.String("mode", "store", `"store" or "single"`)
	dir := flags.String("dir", "", "where to put the folder for temporary files")
	suite := flags.Bool("suite", false, "run the comparisons of docs/store.md")
	reps := flags.Int("reps", 5, "repetitions in the suite")
	forgeries := flags.Int("flood", 0, "number of forged messages")
	kills := flags.Int("kill", 0, "number of processes to kill")
	flags.Parse(args)
	switch l.single = *mode == "single"; {
	case !l.single && *mode != "store":
		return fmt.Errorf("-mode %s: neither store nor single", *mode)
	case flags.NArg() > 0:
		return fmt.Errorf("%s: not a flag", flags.Arg(0))
	case l.writers < 1 || l.batch < 1 || l.rate < 0 || l.rows < 0 || l.time <= 0:
		return errors.New("-writers, -batch and -time must be positive, -rate and -rows not negative")
	case l.spread && l.rows == 0:
		return errors.New("-spread needs -rows")
	case l.single && (l.rate > 0 || l.spread || l.reporter || l.compactor):
		return errors.New("-mode single has no -rate, -spread, -reporter, -compactor")
	case *suite && *reps < 5:
		return errors.New("-reps must be at least 5")
	}
	if l.slow {
		if _, err := exec.LookPath("strace"); err != nil {
			return fmt.Errorf("-slow needs strace: %w", err)
		}
	}

	scratch, err := os.MkdirTemp(*dir, "ruapost-bench-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	path := filepath.Join(scratch, "ruapost.db")
	switch {
	case *suite:
		return runSuite(ctx, scratch, l.time, *reps, out)
	case *forgeries > 0:
		return flood(ctx, path, *forgeries, out)
	case *kills > 0:
		return kill(ctx, path, l, *kills, out)
	default:
		if err := preload(ctx, path, l.rows); err != nil {
			return err
		}
		o, err := l.run(ctx, path)
		if err != nil {
			return err
		}
		return o.print(out)
	}
}
