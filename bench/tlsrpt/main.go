// Command tlsrpt measures how many TLSRPT datagrams ruapost-tlspolicy takes, and whether
// it loses any: it starts one with a configuration and a store of its own, tells it of TLS
// sessions as Postfix does, and compares what is in the store with what was sent.
//
//	go run ./bench/tlsrpt [flags]     one run
//	go run ./bench/tlsrpt -suite      the table of docs/outbound.md
//
// A sender is a thread that, like libtlsrpt, opens a socket for each event, sends one
// datagram without waiting, and closes the socket. It pauses for random times in between,
// so that the rate is as wanted on average. A sender that is late hurries, but never sends
// without a pause: a process of Postfix has a whole SMTP session between two events. The
// events are those that Postfix has, about -domains domains.
//
// Where the daemon's socket is full, the datagram is lost at the sender (EAGAIN). What was
// sent and is not in the store was lost in the daemon. How many datagrams fit into a
// socket is net.unix.max_dgram_qlen when it is made: 10 from the kernel, 512 with systemd.
// With -qlen the daemon runs in a network namespace of its own that has this value; only
// root can make one.
//
// This program runs on the same CPUs as the daemon: its CPU time is printed, too. The
// daemon's is that of its whole life, with its start and its end.
//
//	-rate N          datagrams a second, of all senders together (5000); 0 is as many as
//	                 go, without pauses
//	-senders N       senders (16)
//	-seconds D       how long they send (10s)
//	-domains N       domains that the events are about (1000)
//	-qlen N          net.unix.max_dgram_qlen for the daemon (0: as it is)
//	-tlspolicy FILE  the ruapost-tlspolicy to measure; else it is built from cmd/tlspolicy
//	-dir DIR         where to put the folder for temporary files with the store in it,
//	                 which decides on the disk ($TMPDIR)
//	-perf FILE       record a profile of the daemon: perf record -g -o FILE
//	-suite           -reps, -seconds, -domains, -tlspolicy, -dir count
//	-reps N          repetitions of each measurement of the suite (5)
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
	program.Main("tlsrpt", slog.LevelWarn, run) // not that the store was opened
}

// run is main with its surroundings as parameters.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	b := &bench{out: out}
	l := load{}
	flags := flag.NewFlagSet("tlsrpt", flag.ExitOnError)
	flags.IntVar(&l.rate, "rate", 5000, "datagrams a second")
	flags.IntVar(&l.senders, "senders", 16, "senders")
	flags.DurationVar(&l.time, "seconds", 10*time.Second, "how long they send")
	flags.IntVar(&l.domains, "domains", 1000, "domains that the events are about")
	flags.IntVar(&l.qlen, "qlen", 0, "net.unix.max_dgram_qlen for the daemon")
	flags.StringVar(&b.binary, "tlspolicy", "", "the ruapost-tlspolicy to measure")
	flags.StringVar(&l.perf, "perf", "", "file for a profile of the daemon")
	dir := flags.String("dir", "", "where to put the folder for temporary files")
	suite := flags.Bool("suite", false, "measure what docs/outbound.md has")
	reps := flags.Int("reps", 5, "repetitions in the suite")
	flags.Parse(args)
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("%s: not a flag", flags.Arg(0))
	case l.rate < 0 || l.qlen < 0:
		return errors.New("-rate and -qlen must not be negative")
	case l.senders < 1 || l.domains < 1 || l.time <= 0 || *reps < 1:
		return errors.New("-senders, -domains, -seconds and -reps must be positive")
	case l.domains > maxDomains:
		return fmt.Errorf("-domains must be at most %d", maxDomains)
	}
	if b.scratch, err = os.MkdirTemp(*dir, "ruapost-bench-*"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.scratch)) }()
	if err := b.build(ctx); err != nil {
		return err
	}
	if *suite {
		return b.suite(ctx, l, *reps)
	}
	return b.one(ctx, l)
}
