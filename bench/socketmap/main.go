// Command socketmap measures how fast ruapost-tlspolicy, or another socketmap server,
// answers Postfix's policy queries from what it keeps: queries/s, how long one takes, and
// what it costs in CPU time and memory.
//
//	go run ./bench/socketmap -suite               the table of docs/outbound.md
//	go run ./bench/socketmap -connections 50      one measurement
//	go run ./bench/socketmap -trivial             a server that knows one answer only: the
//	                                              most that the protocol allows here
//	go run ./bench/socketmap -addr 127.0.0.1:8642 -pid PID -domains 1000
//	                                              another server that runs, its domains made
//	                                              known to the DNS by somebody else
//
// It brings a DNS server and a policy host of its own. Each connection asks a query and
// waits for the answer, as smtp(8) does, for a domain that is chosen at random.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"ruapost/bench/internal/program"
)

func main() {
	program.Main("socketmap", slog.LevelInfo, run)
}

// bench is what is to be measured.
type bench struct {
	domains     int
	connections int
	duration    time.Duration
	table       string
	trivial     bool
	addr        string // of a server that runs, "" for one of our own
	pid         int    // of that server, 0 if its costs are not to be known
	binary      string // ruapost-tlspolicy, "" to build it
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	var b bench
	flags := flag.NewFlagSet("socketmap", flag.ContinueOnError)
	flags.IntVar(&b.domains, "domains", 100_000, "how many domains are asked about")
	flags.IntVar(&b.connections, "connections", 50, "how many connections ask")
	flags.DurationVar(&b.duration, "duration", 5*time.Second, "how long")
	flags.StringVar(&b.table, "table", "QUERYwithTLSRPT", "the name of the table")
	flags.BoolVar(&b.trivial, "trivial", false, "measure a server that knows one answer only")
	flags.StringVar(&b.addr, "addr", "", "socket of a server that runs: a path, or host:port")
	flags.IntVar(&b.pid, "pid", 0, "process of that server")
	flags.StringVar(&b.binary, "tlspolicy", "", "the program, built before")
	suite := flags.Bool("suite", false, "measure all that docs/outbound.md has")
	reps := flags.Int("reps", 5, "how often, for the suite")
	if err := flags.Parse(args); err != nil {
		return err
	}
	s, err := b.start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if !*suite {
		r, err := b.measure(ctx, s)
		if err == nil {
			fmt.Fprintln(out, heading)
			fmt.Fprintln(out, r.row(b.connections))
		}
		return err
	}
	fmt.Fprintln(out, heading)
	for _, connections := range []int{1, 50} {
		b.connections = connections
		var all []*result
		for range *reps {
			r, err := b.measure(ctx, s)
			if err != nil {
				return err
			}
			all = append(all, r)
		}
		fmt.Fprintln(out, medianOf(all).row(connections))
	}
	return nil
}

const heading = `| Connections | Queries/s | Server's CPU of a query, µs | p50, µs | p99, µs | Longest, ms | Memory, MB |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: |`

func (r *result) row(connections int) string {
	return fmt.Sprintf("| %d | %.0f | %.1f | %.0f | %.0f | %.1f | %.0f |",
		connections, r.rate, r.cpu, r.p50, r.p99, r.longest/1000, r.memory)
}

// medianOf returns the median of each figure.
func medianOf(all []*result) *result {
	median := func(f func(*result) float64) float64 {
		var values []float64
		for _, r := range all {
			values = append(values, f(r))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	return &result{
		rate: median(func(r *result) float64 { return r.rate }), cpu: median(func(r *result) float64 { return r.cpu }),
		p50: median(func(r *result) float64 { return r.p50 }), p99: median(func(r *result) float64 { return r.p99 }),
		longest: median(func(r *result) float64 { return r.longest }), memory: median(func(r *result) float64 { return r.memory }),
	}
}
