// Command report measures what it costs ruapost-reporter to send reports: time, CPU time
// and memory of one run of "send" with a store full of the rows of a day that is over.
//
//	go run ./bench/report [flags]     one run
//	go run ./bench/report -suite      the tables of docs/reports.md
//
// The rows are of DMARC evaluations, all different, with two DKIM results each. The mails
// are signed with an RSA key of 2048 bits. A DNS server in this program answers at once:
// each domain wants its reports at an address of its own, below its own name. What takes
// the mails is a small program in the place of sendmail, which writes each into a file.
// ruapost-reporter starts it for each mail, with a shell between, and so it is a part of
// the time; what it costs alone is measured, too.
//
// After each run all mails are read: each report must have come exactly once, and the
// counts of its rows must sum up to what was recorded.
//
// This program and its DNS server run on the same CPUs as the reporter: its CPU time is
// printed, too. The reporter's peak memory is that of its process (VmHWM), with pages of
// the store's file, which it maps; what it had without these was looked at every 5 ms.
//
//	-reports N       reports, each about a domain of its own (1000)
//	-rows N          rows of each (100); more than 50,000 of a report, the store's bound,
//	                 get there by an import, which is not held to it
//	-reporter FILE   the ruapost-reporter to measure; else it is built from cmd/reporter
//	-dir DIR         where to put the folder for temporary files with store and outbox in
//	                 it, which decides on the disk ($TMPDIR)
//	-perf FILE       record a profile of the reporter: perf record -g -o FILE
//	-suite           -reps, -reporter, -dir count
//	-reps N          repetitions of each measurement of the suite, at least 3 (3)
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"

	"ruapost/bboltstore"
	"ruapost/bench/internal/program"
)

func main() {
	program.Main("report", slog.LevelWarn, run) // not that the store was opened
}

// run is main with its surroundings as parameters.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	b := &bench{out: out}
	l := load{}
	flags := flag.NewFlagSet("report", flag.ExitOnError)
	flags.IntVar(&l.reports, "reports", 1000, "reports")
	flags.IntVar(&l.rows, "rows", 100, "rows of each")
	flags.StringVar(&b.reporter, "reporter", "", "the ruapost-reporter to measure")
	flags.StringVar(&l.perf, "perf", "", "file for a profile of the reporter")
	dir := flags.String("dir", "", "where to put the folder for temporary files")
	suite := flags.Bool("suite", false, "measure what docs/reports.md has")
	reps := flags.Int("reps", 3, "repetitions in the suite")
	flags.Parse(args)
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("%s: not a flag", flags.Arg(0))
	case l.reports < 1 || l.rows < 1:
		return errors.New("-reports and -rows must be positive")
	case l.reports > maxReports || l.rows > maxRows:
		return fmt.Errorf("-reports must be at most %d, -rows at most %d", maxReports, maxRows)
	case l.rows > bboltstore.MaxGroupRows && l.reports > 1:
		return fmt.Errorf("with more than %d rows -reports must be 1", bboltstore.MaxGroupRows)
	case *suite && *reps < 3:
		return errors.New("-reps must be at least 3")
	}
	if b.scratch, err = os.MkdirTemp(*dir, "ruapost-bench-*"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.scratch)) }()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	if *suite {
		return b.suite(ctx, suiteCases, *reps)
	}
	return b.one(ctx, l)
}
