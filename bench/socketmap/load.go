package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// result is a measurement. Times are in microseconds, memory in MB.
type result struct {
	rate, cpu, p50, p99, longest, memory float64
}

// measure asks for as long as it is told to.
func (b *bench) measure(ctx context.Context, s *server) (*result, error) {
	queries := b.queries()
	before, err := s.usage()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	ctx, cancel := context.WithDeadline(ctx, began.Add(b.duration))
	defer cancel()
	times := make([][]time.Duration, b.connections)
	errs := make([]error, b.connections)
	var clients sync.WaitGroup
	for i := range b.connections {
		clients.Go(func() { times[i], errs[i] = ask(ctx, s.addr, queries) })
	}
	clients.Wait()
	elapsed := time.Since(began)
	after, err := s.usage()
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	all := slices.Concat(times...)
	slices.Sort(all)
	n := len(all)
	if n == 0 {
		return nil, errors.New("no query was answered")
	}
	micros := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	return &result{
		rate: float64(n) / elapsed.Seconds(), cpu: micros(after.CPU-before.CPU) / float64(n),
		p50: micros(all[n/2]), p99: micros(all[n*99/100]), longest: micros(all[n-1]), memory: float64(after.Resident) / 1e6,
	}, nil
}

func domain(i int) string { return fmt.Sprintf("d%d.example", i) }

// queries are the queries as they go over the wire.
func (b *bench) queries() [][]byte {
	all := make([][]byte, b.domains)
	for i := range all {
		payload := b.table + " " + domain(i)
		all[i] = fmt.Appendf(nil, "%d:%s,", len(payload), payload)
	}
	return all
}

// dial connects to a path or host:port.
func dial(addr string) (net.Conn, error) {
	network := "tcp"
	if strings.Contains(addr, "/") {
		network = "unix"
	}
	return net.Dial(network, addr)
}

// ask asks one query after the other until ctx ends, and returns how long each took.
func ask(ctx context.Context, addr string, queries [][]byte) (times []time.Duration, err error) {
	conn, err := dial(addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	for ctx.Err() == nil {
		began := time.Now()
		if err := exchange(conn, r, queries[rand.IntN(len(queries))]); err != nil {
			return nil, err
		}
		times = append(times, time.Since(began))
	}
	return times, nil
}

// exchange sends a query and reads its answer, which must be no error.
func exchange(conn net.Conn, r *bufio.Reader, query []byte) error {
	if _, err := conn.Write(query); err != nil {
		return err
	}
	n := 0
	for {
		c, err := r.ReadByte()
		if err != nil {
			return err
		}
		if c == ':' {
			break
		}
		n = 10*n + int(c-'0')
	}
	status, err := r.Peek(2)
	if err != nil {
		return err
	}
	if string(status) != "OK" && string(status) != "NO" {
		rest, _ := io.ReadAll(io.LimitReader(r, int64(n)))
		return fmt.Errorf("answer %.200q", rest)
	}
	_, err = r.Discard(n + 1)
	return err
}

// warm has every domain asked about once.
func warm(ctx context.Context, addr string, queries [][]byte) error {
	const clients = 32
	errs := make([]error, clients)
	var running sync.WaitGroup
	for c := range clients {
		running.Go(func() {
			conn, err := dial(addr)
			if err != nil {
				errs[c] = err
				return
			}
			defer conn.Close()
			r := bufio.NewReader(conn)
			for i := c; i < len(queries) && ctx.Err() == nil && errs[c] == nil; i += clients {
				errs[c] = exchange(conn, r, queries[i])
			}
		})
	}
	running.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}
