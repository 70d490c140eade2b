// Command milter measures what ruapost-milter can do and what it costs: it starts one
// with a configuration and a store of its own, speaks to it as Postfix does, and prints
// how many messages a second it took, how long they had to wait, and what CPU time and
// memory it needed.
//
//	go run ./bench/milter [flags]     one run
//	go run ./bench/milter -suite      the tables of docs/inbound.md
//	go run ./bench/milter -big        200 connections with messages of 10 MB
//	go run ./bench/milter -long N     N messages in ten parts: does it grow?
//
// The messages have about 30 header fields, a text with some base64, and one DKIM
// signature (RSA of 2048 bits, relaxed). They come in turn from each domain, and for each
// domain from 20 addresses. SPF, DKIM and DMARC pass: an answer that says anything else
// ends the run with an error. Each domain has sent one message before the time is taken,
// so that the milter has its records for as long as they live. The domains share a few
// keys, since making one takes a while. An answer waits until the evaluation is on disk.
// In the end the evaluations in the store are counted, and must be as many as the
// messages.
//
// This program, with the DNS server in it, runs on the same CPUs as the milter, and takes
// its share of them: its CPU time is printed, too. A line is about the measured messages
// alone, but for the peak memory, which is of the whole life of the milter's process.
//
//	-messages N        messages (20000)
//	-connections N     connections at a time (16)
//	-per-connection N  messages of a connection (1)
//	-size N            size of a message in bytes, its header included (4096)
//	-domains N         domains that they come from (200)
//	-ttl D             how long DNS records live (1h)
//	-record=false      no domain wants reports, so that nothing is recorded
//	-noop              instead of ruapost-milter a go-milter server that only says "go
//	                   on", in a process of its own: the most that can be reached
//	-milter FILE       the ruapost-milter to measure; else it is built from cmd/milter
//	-dir DIR           where to put the folder for temporary files with the store in it,
//	                   which decides on the disk ($TMPDIR)
//	-perf FILE         record a profile of the milter: perf record -g -o FILE
//	-suite             -reps, -messages, -milter, -dir count
//	-reps N            repetitions of each measurement of the suite, at least 5 (5)
//	-big               -milter, -noop, -record, -perf, -dir count
//	-long N            all but -messages count
//
// Variables such as GOGC and GODEBUG reach the milter, and -perf is the same as
// "perf record -g -p PID" while a longer run goes on, which prints the PID.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"ruapost/bench/internal/program"
)

func main() {
	if socket := os.Getenv(noopVariable); socket != "" {
		fmt.Fprintln(os.Stderr, "bench/milter:", serveNoop(socket))
		os.Exit(1)
	}
	program.Main("milter", slog.LevelWarn, run) // not that the store was opened
}

// run is main with its surroundings as parameters.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	b := &bench{out: out}
	l := load{}
	flags := flag.NewFlagSet("milter", flag.ExitOnError)
	flags.IntVar(&l.messages, "messages", 20_000, "messages")
	flags.IntVar(&l.connections, "connections", 16, "connections at a time")
	flags.IntVar(&l.perConnection, "per-connection", 1, "messages of a connection")
	flags.IntVar(&l.size, "size", 4<<10, "size of a message in bytes")
	flags.IntVar(&l.domains, "domains", 200, "domains that they come from")
	flags.DurationVar(&l.ttl, "ttl", time.Hour, "how long DNS records live")
	flags.BoolVar(&l.record, "record", true, "domains want reports")
	flags.BoolVar(&l.noop, "noop", false, "a milter that does nothing")
	flags.StringVar(&b.binary, "milter", "", "the ruapost-milter to measure")
	flags.StringVar(&l.perf, "perf", "", "file for a profile of the milter")
	dir := flags.String("dir", "", "where to put the folder for temporary files")
	suite := flags.Bool("suite", false, "measure what docs/inbound.md has")
	reps := flags.Int("reps", 5, "repetitions in the suite")
	big := flags.Bool("big", false, "200 connections with messages of 10 MB")
	long := flags.Int("long", 0, "messages, in ten parts")
	flags.Parse(args)
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("%s: not a flag", flags.Arg(0))
	case l.messages < 1 || l.connections < 1 || l.perConnection < 1 || l.domains < 1:
		return errors.New("-messages, -connections, -per-connection and -domains must be positive")
	case l.domains > maxDomains:
		return fmt.Errorf("-domains must be at most %d", maxDomains)
	case l.size < minSize:
		return fmt.Errorf("-size must be at least %d", minSize)
	case l.ttl < time.Second:
		return errors.New("-ttl must be at least 1s")
	case *long < 0 || *long > 0 && *long < parts:
		return fmt.Errorf("-long must be at least %d", parts)
	case *suite && *reps < 5:
		return errors.New("-reps must be at least 5")
	}
	if b.scratch, err = os.MkdirTemp(*dir, "ruapost-bench-*"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.scratch)) }()
	if !l.noop || *suite {
		if err := b.build(ctx); err != nil {
			return err
		}
	}
	switch {
	case *suite:
		return b.suite(ctx, l.messages, *reps)
	case *long > 0:
		return b.long(ctx, l, *long)
	case *big:
		return b.one(ctx, l.big())
	default:
		return b.one(ctx, l)
	}
}
