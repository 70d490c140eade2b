package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"ruapost"
	"ruapost/bboltstore"
)

const (
	mailDomains = 100 // of a writer; fits into a byte of the kill mode's protocol
	mailRows    = 2_000

	preloadedRows = 1_000 // of a domain
)

// What the writers record is of one day, and what was in the file before is of the
// next: the reporter leaves that alone.
var (
	today    = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	tomorrow = today.Add(24 * time.Hour)
)

// evaluation returns what the n-th client of the domain sent.
func evaluation(at time.Time, domain string, n int) *ruapost.Evaluation {
	return &ruapost.Evaluation{
		Time: at,
		Policy: ruapost.DMARCPolicy{
			Domain: domain, P: ruapost.DispositionReject, SP: ruapost.DispositionQuarantine,
			ADKIM: ruapost.Relaxed, ASPF: ruapost.Relaxed, FO: "0", Percent: 100, Discovery: "treewalk",
		},
		OrganizationalDomain: domain,
		OptionalIfUnknown:    true,
		Result: ruapost.DMARCResult{
			SourceIP:     address(n),
			Disposition:  ruapost.DispositionPass,
			AlignedDKIM:  true,
			HeaderFrom:   domain,
			EnvelopeFrom: "bounce." + domain,
			DKIM: []ruapost.DKIMResult{
				{Domain: domain, Selector: "s2026", Result: ruapost.AuthPass},
				{Domain: "sender.example.net", Selector: "key1", Result: ruapost.AuthPass},
			},
			SPF: ruapost.SPFResult{Domain: "bounce." + domain, Result: ruapost.AuthSoftfail},
		},
	}
}

func address(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

// mail returns the messages of a writer. Message n is of domain n%mailDomains.
func mail(writer int) []*ruapost.Evaluation {
	ms := make([]*ruapost.Evaluation, mailRows)
	for n := range ms {
		ms[n] = evaluation(today, mailDomain(writer, n%mailDomains), n/mailDomains)
	}
	return ms
}

func mailDomain(writer, n int) string { return fmt.Sprintf("d%02d-writer%d.example", n, writer) }

// preloaded returns the message that makes the n-th row of those in the file before.
func preloaded(n int) *ruapost.Evaluation {
	return evaluation(tomorrow, fmt.Sprintf("p%05d.example", n/preloadedRows), n%preloadedRows)
}

// sources returns a function that makes a source of messages for each caller. A source
// is not random from run to run. The number is the message's domain, of mail's.
func (j *job) sources() func(caller int) func() (domain int, e *ruapost.Evaluation) {
	own := mail(j.Number)
	return func(caller int) func() (int, *ruapost.Evaluation) {
		random := rand.New(rand.NewPCG(uint64(j.Number), uint64(caller)))
		if j.Spread > 0 {
			return func() (int, *ruapost.Evaluation) { return 0, preloaded(random.IntN(j.Spread)) }
		}
		// A few clients send most of the mail.
		zipf := rand.NewZipf(random, 1.1, 1, mailRows-1)
		return func() (int, *ruapost.Evaluation) {
			n := int(zipf.Uint64())
			return n % mailDomains, own[n]
		}
	}
}

// preload records rows distinct rows in the file at path, which it creates if need
// be, and makes sure that they are there: bounds of the store may be in the way.
func preload(ctx context.Context, path string, rows int) error {
	s, err := bboltstore.Open(path)
	if err != nil {
		return err
	}
	defer s.Close()
	var next atomic.Int64
	var callers errgroup.Group
	for range min(rows, bboltstore.MaxBatch) {
		callers.Go(func() error {
			for ctx.Err() == nil {
				n := int(next.Add(1)) - 1
				if n >= rows {
					return nil
				}
				if err := s.RecordEvaluation(ctx, preloaded(n)); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	if err := callers.Wait(); err != nil {
		return fmt.Errorf("preload: %w", err)
	}
	groups, err := s.Groups(ctx, tomorrow.Add(24*time.Hour))
	if err != nil {
		return err
	}
	var found int
	for _, g := range groups {
		found += int(g.Rows)
	}
	if found != rows {
		return fmt.Errorf("preload: %d of %d rows are in the file: the store's bounds left out the rest", found, rows)
	}
	return s.Close()
}
