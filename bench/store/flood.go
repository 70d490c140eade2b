package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"ruapost"
	"ruapost/bboltstore"
)

// honest is how many messages of its own mail, one after the other, each of the
// mailDomains honest domains gets in between the flood.
const honest = 200

// flood records n forged messages, each from an address and a domain of its own, and
// among them the mail of honest domains. In the end these must be counted exactly, and
// the file be no larger than its bound.
func flood(ctx context.Context, path string, n int, out io.Writer) error {
	s, err := bboltstore.Open(path)
	if err != nil {
		return err
	}
	defer s.Close()
	own := mail(0)
	every := max(n/(honest*mailDomains), 1)
	var next atomic.Int64
	var callers errgroup.Group
	began := time.Now()
	var first time.Duration
	for range bboltstore.MaxBatch {
		callers.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if i == n/10 {
					first = time.Since(began)
				}
				if i%every == 0 && i/every < honest*mailDomains {
					if err := s.RecordEvaluation(ctx, own[i/every%mailDomains]); err != nil {
						return err
					}
				}
				if err := s.RecordEvaluation(ctx, forged(i)); err != nil {
					return err
				}
			}
		})
	}
	if err := callers.Wait(); err != nil {
		return err
	}
	took := time.Since(began)
	fmt.Fprintf(out, "%d forged messages in %s, %.0f records/s; the first tenth %.0f/s\n",
		n, took.Round(time.Millisecond), float64(n)/took.Seconds(), float64(n)/10/first.Seconds())
	return checkFlood(ctx, s, path, min(n, honest*mailDomains*every)/every, out)
}

func checkFlood(ctx context.Context, s *bboltstore.Store, path string, sent int, out io.Writer) error {
	groups, err := s.Groups(ctx, tomorrow)
	if err != nil {
		return err
	}
	var total, listed, domains int64
	for _, g := range groups {
		for d := range mailDomains {
			if g.Domain == mailDomain(0, d) {
				domains, total, listed = domains+1, total+g.Total, listed+g.Listed
			}
		}
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d groups in a file of %d MB (bound %d); honest: %d domains, %d of %d messages, %d of them listed\n",
		len(groups), st.Size()>>20, int64(bboltstore.MaxFileSize)>>20, domains, total, sent, listed)
	if total != int64(sent) || listed != total || st.Size() > bboltstore.MaxFileSize {
		return errors.New("the flood has cost honest domains their counts, or the file its bound")
	}
	return nil
}

// forged is the n-th message of the flood.
func forged(n int) *ruapost.Evaluation {
	e := evaluation(today, fmt.Sprintf("forged%d.example", n), 0)
	e.Result.SourceIP = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	e.Result.AlignedDKIM, e.Result.AlignedSPF = false, false
	e.Result.Disposition = ruapost.DispositionNone
	return e
}
