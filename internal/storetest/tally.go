package storetest

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ruapost"
)

// tallies returns the daily totals from a time on.
func tallies(t *testing.T, s Store, from time.Time, domain string) (all []ruapost.Tally) {
	t.Helper()
	for tally, err := range s.Tallies(t.Context(), from, domain) {
		if err != nil {
			t.Fatalf("Tallies: %v", err)
		}
		all = append(all, tally)
	}
	return all
}

func wantTallies(t *testing.T, s Store, domain string, want ...ruapost.Tally) {
	t.Helper()
	if d := cmp.Diff(want, tallies(t, s, time.Time{}, domain)); d != "" {
		t.Errorf("daily totals of %q (-want +got):\n%s", domain, d)
	}
}

// tally returns the daily totals of noon's day with pairs of an outcome and a number.
func tally(kind ruapost.Kind, domain string, counts ...int64) ruapost.Tally {
	t := ruapost.Tally{Day: ruapost.Day(noon).Start, Kind: kind, Domain: domain}
	for i := 0; i < len(counts); i += 2 {
		t.Counts[counts[i]] = counts[i+1]
	}
	return t
}

const (
	pass, fail     = int64(ruapost.OutcomePass), int64(ruapost.OutcomeFail)
	quarantine     = int64(ruapost.OutcomeQuarantine)
	reject         = int64(ruapost.OutcomeReject)
	sts, stsFailed = int64(ruapost.OutcomeSTS), int64(ruapost.OutcomeSTSFailed)
	unknownOutcome = int64(ruapost.OutcomeUnknown)
	tlsa           = int64(ruapost.OutcomeTLSA)
)

// failed returns an evaluation that failed, with what was done.
func failedEvaluation(domain string, n int, done ruapost.Disposition) *ruapost.Evaluation {
	e := evaluation(domain, n)
	e.Result.AlignedDKIM, e.Result.Disposition = false, done
	return e
}

// What a group counts is in the daily totals from the moment it is taken, once, and before
// that nowhere.
func testTalliesOfGroups(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	record(t, s, evaluation("example.com", 1), evaluation("example.com", 1), evaluation("example.com", 2),
		failedEvaluation("example.com", 3, ruapost.DispositionNone), failedEvaluation("example.com", 3, ruapost.DispositionReject),
		failedEvaluation("example.com", 4, ruapost.DispositionReject), failedEvaluation("example.org", 4, ruapost.DispositionQuarantine))
	dane := session("example.com")
	dane.Policy.Type = ruapost.PolicyTLSA
	uncounted := session("example.net", failure(2))
	uncounted.Uncounted = true
	recordSessions(t, s, session("example.com"), session("example.com", failure(1)), dane, uncounted)
	wantTallies(t, other, "")

	of := map[string][]ruapost.Group{}
	for _, g := range groups(t, s) {
		of[g.Domain+string(g.Kind)] = append(of[g.Domain+string(g.Kind)], g)
	}
	r := &ruapost.Report{ID: "r1", Kind: ruapost.KindDMARC, Domain: "example.com", State: ruapost.ReportSealed, Groups: of["example.comdmarc"]}
	again := *r
	again.ID = "r2"
	for _, r := range []*ruapost.Report{r, &again} { // the second finds nothing
		if err := s.Seal(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	first := tally(ruapost.KindDMARC, "example.com", pass, 3, fail, 1, reject, 2)
	wantTallies(t, other, "", first)
	for range 2 {
		for _, name := range []string{"example.comtls", "example.orgdmarc", "example.nettls"} {
			if err := other.Drop(t.Context(), of[name]); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantTallies(t, s, "", first, tally(ruapost.KindDMARC, "example.org", quarantine, 1),
		tally(ruapost.KindTLS, "example.com", sts, 1, stsFailed, 1, tlsa, 1))

	// What comes late is added.
	record(t, s, evaluation("example.com", 7))
	if err := s.Drop(t.Context(), groups(t, s)); err != nil {
		t.Fatal(err)
	}
	first.Counts[ruapost.OutcomePass]++
	wantTallies(t, other, "example.com", first, tally(ruapost.KindTLS, "example.com", sts, 1, stsFailed, 1, tlsa, 1))
	if err := s.DropTallies(t.Context(), "example.com"); err != nil {
		t.Fatal(err)
	}
	wantTallies(t, other, "", tally(ruapost.KindDMARC, "example.org", quarantine, 1))
	mustClose(t, s)
	wantTallies(t, d.store(t), "", tally(ruapost.KindDMARC, "example.org", quarantine, 1))
}

func testTalliesAdded(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	whole := tally(ruapost.KindDMARC, ruapost.WholeDay, pass, 5, unknownOutcome, 1)
	next := tally(ruapost.KindTLS, "example.com", int64(ruapost.Outcomes)-1, 1)
	next.Day = next.Day.AddDate(0, 0, 1)
	for range 2 {
		if err := s.AddTallies(t.Context(), next, whole, tally(ruapost.KindTLS, "nothing.example")); err != nil {
			t.Fatal(err)
		}
	}
	for _, tl := range []*ruapost.Tally{&whole, &next} {
		counts := tl.Counts
		tl.Counts.Add(&counts)
	}
	wantTallies(t, other, "", whole, next)
	if got := tallies(t, s, next.Day, ""); len(got) != 1 || got[0] != next {
		t.Errorf("from the next day on: %+v", got)
	}
	if got := tallies(t, s, next.Day.Add(-time.Second), "example.com"); len(got) != 1 || got[0] != next {
		t.Errorf("of the domain: %+v", got)
	}
	// All or nothing.
	bad := tally("nonsense", "example.com", pass, 1)
	if err := s.AddTallies(t.Context(), whole, bad); err == nil {
		t.Error("a kind that there is not was counted")
	}
	bad = tally(ruapost.KindDMARC, "example.com", pass, -1)
	if err := s.AddTallies(t.Context(), whole, bad); err == nil {
		t.Error("a negative number was counted")
	}
	wantTallies(t, other, "", whole, next)
	if err := s.DropTallies(t.Context(), ruapost.WholeDay); err != nil {
		t.Error(err)
	}
	wantTallies(t, other, "", whole, next)
}

func testTalliesMany(t *testing.T, d *data) {
	s := d.store(t)
	var want []ruapost.Tally
	for i := range 2000 {
		want = append(want, tally(ruapost.KindDMARC, fmt.Sprintf("d%04d.example", i), reject, int64(i+1)))
	}
	if err := s.AddTallies(t.Context(), want...); err != nil {
		t.Fatal(err)
	}
	wantTallies(t, s, "", want...)
	for tl, err := range s.Tallies(t.Context(), time.Time{}, "") {
		if err != nil || tl != want[0] {
			t.Errorf("%+v, %v", tl, err)
		}
		break
	}
}

// Whatever a domain is called, what is counted is neither lost nor taken for the whole day.
func testTalliesHostile(t *testing.T, d *data) {
	s := d.store(t)
	n := int64(0)
	for _, domain := range slices.AppendSeq([]string{"*", "\x00", "\x00x", "example.com"}, maps.Values(hostile)) {
		record(t, s, evaluation(domain, 1))
		n++
	}
	if err := s.Drop(t.Context(), groups(t, s)); err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	for _, tl := range tallies(t, s, time.Time{}, "") {
		if tl.Domain == ruapost.WholeDay {
			t.Errorf("counted as the whole day: %+v", tl)
		}
		sum += tl.Counts[ruapost.OutcomePass]
	}
	if sum == 0 || sum > n {
		t.Errorf("%d of %d were counted", sum, n)
	}
}

func testTalliesConcurrent(t *testing.T, d *data) {
	stores := []Store{d.store(t), d.store(t)}
	one := tally(ruapost.KindDMARC, ruapost.WholeDay, pass, 1)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for range 10 {
				if err := stores[i%2].AddTallies(t.Context(), one); err != nil {
					t.Errorf("AddTallies: %v", err)
				}
			}
		})
	}
	wg.Wait()
	wantTallies(t, stores[0], "", tally(ruapost.KindDMARC, ruapost.WholeDay, pass, 200))
}
