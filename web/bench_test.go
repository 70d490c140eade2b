package web

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"ruapost"
	"ruapost/reporting"
)

// many records so many different rows of a domain.
func (w *world) many(at time.Time, domain string, rows int, passed bool) {
	var recording sync.WaitGroup
	const writers = 200
	for i := range writers {
		recording.Go(func() {
			for n := i; n < rows; n += writers {
				e := &ruapost.Evaluation{
					Time: at,
					Policy: ruapost.DMARCPolicy{
						Domain: domain, P: ruapost.DispositionReject, ADKIM: ruapost.Relaxed, ASPF: ruapost.Relaxed, FO: "0", Percent: 100, Discovery: "treewalk",
					},
					Result: ruapost.DMARCResult{
						SourceIP: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), Disposition: ruapost.DispositionReject, HeaderFrom: domain,
						EnvelopeFrom: domain, EnvelopeTo: "example.net", AlignedDKIM: passed, SPF: ruapost.SPFResult{Domain: domain, Result: ruapost.AuthFail},
						DKIM: []ruapost.DKIMResult{{Domain: domain, Selector: "s2026", Result: ruapost.AuthPass}},
					},
				}
				if err := w.store.RecordEvaluation(context.Background(), e); err != nil {
					panic(err)
				}
			}
		})
	}
	recording.Wait()
}

// BenchmarkPages asks for pages of a store with 100,000 recorded rows, and for those of a
// report with 30,000, each time of a handler that has kept nothing. What is told is the time
// of one page.
func BenchmarkPages(b *testing.B) {
	w := newWorld(b)
	w.wants("sent.example", "dmarc")
	w.many(afternoon.AddDate(0, 0, -1), "sent.example", 30_000, true)
	w.must(w.reporter.Send(b.Context(), reporting.Selection{}))
	for _, domain := range []string{"large.example", "other.example"} {
		w.many(afternoon, domain, 30_000, true)
	}
	for _, domain := range []string{"forged.example", "flood.example", "spam.example"} { // of such a report less is kept
		w.many(afternoon, domain, 40_000/3+1, false)
	}
	gs, err := w.store.Groups(b.Context(), afternoon.AddDate(0, 0, 2))
	w.must(err)
	rows, next := int64(0), ""
	for _, g := range gs {
		rows += g.Rows
		if g.Domain == "large.example" {
			next = fmt.Sprintf("/domain/large.example/next/%d", g.ID)
		}
	}
	if rows < 100_000 {
		b.Fatalf("%d rows are recorded", rows)
	}
	report := "/report/" + w.reportID("sent.example", ruapost.KindDMARC)
	for _, path := range []string{
		"/", "/domains", "/reports", "/domain/large.example", "/domain/forged.example", next, next + "?page=150", report, report + "?page=150",
	} {
		b.Run(path, func(b *testing.B) {
			for b.Loop() {
				if res := get(New(w.config()), path); res.Code != http.StatusOK {
					b.Fatal(res.Code)
				}
			}
		})
	}
}
