// Command month plays a month of reporting in minutes, and counts what must not happen:
// that a mail is repeated, a window is lost, a report answers a report, an address that
// works is suppressed.
//
//	go run ./bench/month [flags]
//
// Hour by hour, with a clock of its own, mail comes in, the reporter runs as its timer
// does, and its mails are delivered. What is real: package inbound judges the mail over
// the milter protocol, bboltstore keeps the rows in a file, package reporting sends
// through a sendmail that puts the mails into a folder, and all of them ask a name server
// over the network. What is made up is the world: domains, forgers, mailboxes, and what
// comes back from these.
//
// Half of the mail is forged. Of the domains, a third only ever appears in forged mail. A
// fifth of the addresses for reports is dead, in several ways. Of all names in the DNS, 5 %
// fail in each hour, others than in the hour before. From day 10 to 12 the host is off; on
// days 20 and 21 only the reporter's timer is; on day 15 sendmail takes no mail for some
// hours, and one run is ended in the middle. When the month is over no more mail comes,
// and the reporter runs for -after days more.
//
//	-domains N   domains (300)
//	-days N      days with mail (30)
//	-after N     days without, for what has to wait (8)
//	-seed N      decides on everything that is left to chance (1)
//	-dir DIR     where to put the folder for temporary files with the store in it ($TMPDIR)
//
// The output is the table of docs/reports.md. The exit status is 1 if one of the counts
// that must be zero is not.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"ruapost/bench/internal/program"
)

// quiet is a level above all that is logged: 5 % of the DNS fails, which is much to tell.
const quiet = slog.LevelError + 1

func main() {
	program.Main("month", quiet, run)
}

// run is main with its surroundings as parameters.
func run(ctx context.Context, args []string, out io.Writer) error {
	var s settings
	flags := flag.NewFlagSet("month", flag.ExitOnError)
	flags.IntVar(&s.domains, "domains", 300, "domains")
	flags.IntVar(&s.days, "days", 30, "days with mail")
	flags.IntVar(&s.after, "after", 8, "days without")
	flags.Uint64Var(&s.seed, "seed", 1, "decides on everything that is left to chance")
	dir := flags.String("dir", "", "where to put the folder for temporary files")
	flags.Parse(args)
	if flags.NArg() > 0 {
		return fmt.Errorf("%s: not a flag", flags.Arg(0))
	}
	s.off, s.timerOff, s.busy, s.ended = days{10, 12}, days{20, 21}, 15, 17
	scratch, err := os.MkdirTemp(*dir, "month")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	began := time.Now()
	w, err := newWorld(s, scratch)
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.play(ctx); err != nil {
		return err
	}
	faults := w.ledger.print(out)
	fmt.Fprintf(out, "\n%d domains, %d days, seed %d: played in %s.\n", s.domains, s.days, s.seed, time.Since(began).Round(time.Second))
	return faults
}
