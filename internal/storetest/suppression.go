package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"ruapost"
)

// suppress stores the suppressions.
func suppress(t *testing.T, s Store, all ...ruapost.Suppression) {
	t.Helper()
	for _, sup := range all {
		err := s.UpdateSuppression(t.Context(), sup.Pattern, func(stored *ruapost.Suppression) bool {
			*stored = sup
			return true
		})
		if err != nil {
			t.Fatalf("UpdateSuppression: %v", err)
		}
	}
}

// wantSuppressions compares all suppressions, in the order of their patterns.
func wantSuppressions(t *testing.T, s Store, want ...ruapost.Suppression) {
	t.Helper()
	got, err := s.Suppressions(t.Context())
	if err != nil {
		t.Fatalf("Suppressions: %v", err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("suppressions (-want +got):\n%s", d)
	}
}

func testSuppressions(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	wantSuppressions(t, s)
	a := ruapost.Suppression{Pattern: "a@example.com", Since: noon, Until: noon.Add(time.Hour), Reason: "no such user", Bounces: 1}
	b := ruapost.Suppression{Pattern: "*.example.com", Since: noon}
	suppress(t, s, a, b)
	wantSuppressions(t, other, b, a)

	// It is changed from what is stored.
	err := other.UpdateSuppression(t.Context(), a.Pattern, func(sup *ruapost.Suppression) bool {
		if d := cmp.Diff(&a, sup); d != "" {
			t.Errorf("given (-want +got):\n%s", d)
		}
		sup.Bounces++
		sup.Pattern = "another" // is not what it is stored under
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	a.Bounces = 2
	wantSuppressions(t, s, b, a)

	// Deleting, also what is not there, or was not there before.
	for _, pattern := range []string{a.Pattern, a.Pattern, "example.net"} {
		err := s.UpdateSuppression(t.Context(), pattern, func(sup *ruapost.Suppression) bool {
			if sup.Pattern != pattern {
				t.Errorf("the pattern is %q", sup.Pattern)
			}
			return false
		})
		if err != nil {
			t.Errorf("delete %s: %v", pattern, err)
		}
	}
	wantSuppressions(t, other, b)
	mustClose(t, s)
	wantSuppressions(t, d.store(t), b)
}

func testSuppressionsEveryField(t *testing.T, d *data) {
	s := d.store(t)
	all := []ruapost.Suppression{{Pattern: "bare"}}
	for _, text := range hostile {
		full := filled[ruapost.Suppression](text)
		suppress(t, s, full)
		all = append(all, full)
	}
	suppress(t, s, all[0])
	slices.SortFunc(all, func(a, b ruapost.Suppression) int { return strings.Compare(a.Pattern, b.Pattern) })
	wantSuppressions(t, s, all...)
	for _, pattern := range []string{"", "\xff"} {
		if err := s.UpdateSuppression(t.Context(), pattern, func(*ruapost.Suppression) bool { return true }); err == nil {
			t.Errorf("pattern %q was kept", pattern)
		}
	}
	wantSuppressions(t, s, all...)
}

func testSuppressionsMany(t *testing.T, d *data) {
	s := d.store(t)
	var want []ruapost.Suppression
	for i := range 2000 {
		want = append(want, ruapost.Suppression{Pattern: fmt.Sprintf("u%04d@example.com", i), Since: noon, Bounces: i + 1})
	}
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for i := w; i < len(want); i += 20 {
				err := s.UpdateSuppression(t.Context(), want[i].Pattern, func(sup *ruapost.Suppression) bool {
					*sup = want[i]
					return true
				})
				if err != nil {
					t.Errorf("UpdateSuppression: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	wantSuppressions(t, s, want...)
}

// A reason is what a stranger's server said: it may be cut, but the rest is kept.
func testSuppressionSize(t *testing.T, d *data) {
	s := d.store(t)
	whole := ruapost.Suppression{Pattern: "whole", Since: noon, Reason: strings.Repeat("\u00e4", 300)}
	suppress(t, s, whole)
	wantSuppressions(t, s, whole)
	for _, reason := range []string{strings.Repeat("\u00e4", 1<<20), strings.Repeat("\x01<", 1<<20), strings.Repeat("\xff", 1<<20)} {
		cut := ruapost.Suppression{Pattern: "cut", Since: noon, Reason: reason, Bounces: 3}
		suppress(t, s, cut)
		all, err := s.Suppressions(t.Context())
		if err != nil || len(all) != 2 {
			t.Fatalf("%d suppressions, %v", len(all), err)
		}
		got := all[0]
		if n := len(got.Reason); n >= 1<<20 || n < 50 || !utf8.ValidString(got.Reason) ||
			utf8.ValidString(reason) && !strings.HasPrefix(reason, got.Reason) {
			t.Errorf("a reason of %d octets, %.20q", n, got.Reason)
		}
		got.Reason = reason
		if d := cmp.Diff(cut, got); d != "" {
			t.Errorf("the rest (-want +got):\n%s", d)
		}
	}
	err := s.UpdateSuppression(t.Context(), strings.Repeat("x", 1<<20), func(*ruapost.Suppression) bool { return true })
	if err == nil {
		t.Error("an overlong pattern was kept")
	}
}

// Bounces of one address that come at the same time are all counted.
func testSuppressionsConcurrent(t *testing.T, d *data) {
	processes := []Store{d.store(t), d.store(t)}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			err := processes[i%2].UpdateSuppression(t.Context(), "a@example.com", func(sup *ruapost.Suppression) bool {
				sup.Since = noon
				sup.Bounces++
				return true
			})
			if err != nil {
				t.Errorf("UpdateSuppression: %v", err)
			}
		})
	}
	wg.Wait()
	wantSuppressions(t, processes[0], ruapost.Suppression{Pattern: "a@example.com", Since: noon, Bounces: 50})
}

func testSuppressionPanics(t *testing.T, d *data) {
	s := d.store(t)
	p := recovered(func() {
		_ = s.UpdateSuppression(t.Context(), "a@example.com", func(*ruapost.Suppression) bool { panic("oops") })
	})
	if p != "oops" {
		t.Errorf("the caller's panic is %v", p)
	}
	wantSuppressions(t, s)
}

func secret(t *testing.T, s Store) string {
	t.Helper()
	secret, err := s.Secret(t.Context())
	if err != nil || len(secret) != 32 {
		t.Errorf("Secret: %d octets, %v", len(secret), err)
	}
	return string(secret)
}

// Tokens that were made with it must be good after a restart, in every process, and nobody
// can guess them.
func testSecret(t *testing.T, d *data) {
	stores := make([]Store, 4)
	secrets := make([]string, len(stores))
	var wg sync.WaitGroup
	for i := range stores { // the file is made by one of them
		wg.Go(func() {
			stores[i] = d.open(t, d.dir)
			secrets[i] = secret(t, stores[i])
		})
	}
	wg.Wait()
	for _, s := range stores {
		mustClose(t, s)
	}
	want := secret(t, d.store(t))
	for _, got := range secrets {
		if got != want {
			t.Errorf("secrets %x and %x", got, want)
		}
	}
	if strings.Count(want, want[:1]) == len(want) {
		t.Errorf("the secret is %x", want)
	}
	elsewhere := &data{open: d.open, dir: t.TempDir()}
	if secret(t, elsewhere.store(t)) == want {
		t.Error("two stores have the same secret")
	}
}

func wantCounts(t *testing.T, s Store, want map[string]uint64) {
	t.Helper()
	got, err := s.Counts(t.Context())
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("Counts: %v (-want +got):\n%s", err, d)
	}
}

func testCounts(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	wantCounts(t, s, map[string]uint64{})
	for _, add := range []map[string]uint64{{"sent": 2, "failed": 1}, {}, nil, {"sent": 1}, {"none": 0}} {
		if err := s.Count(t.Context(), add); err != nil {
			t.Errorf("Count %v: %v", add, err)
		}
	}
	wantCounts(t, other, map[string]uint64{"sent": 3, "failed": 1})
	// It stops at the highest number, and does not begin anew.
	for range 2 {
		if err := other.Count(t.Context(), map[string]uint64{"sent": 1<<64 - 2}); err != nil {
			t.Error(err)
		}
	}
	mustClose(t, s)
	wantCounts(t, d.store(t), map[string]uint64{"sent": 1<<64 - 1, "failed": 1})
}

func testCountNames(t *testing.T, d *data) {
	s := d.store(t)
	want := map[string]uint64{}
	for i := range 80 {
		want[fmt.Sprintf("n%d", i)] = uint64(i + 1)
	}
	for _, name := range []string{"a b", "sent{transport=\"mail\"}", "\x00", "\u2028"} {
		want[name] = 1
	}
	if err := s.Count(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "\xff", strings.Repeat("x", 1<<20)} {
		if err := s.Count(t.Context(), map[string]uint64{name: 1, "n1": 1}); err == nil {
			t.Errorf("the name %.10q was counted", name)
		}
	}
	wantCounts(t, s, want)
	// There is a bound; what is there is counted whatever else comes.
	for i := range 20 {
		more := map[string]uint64{"n0": 1}
		for j := range 1000 {
			more[fmt.Sprintf("m%d.%d", i, j)] = 1
		}
		if err := s.Count(t.Context(), more); err != nil && !errors.Is(err, ruapost.ErrNoRoom) {
			t.Errorf("Count: %v", err)
		}
	}
	got, err := s.Counts(t.Context())
	if err != nil || len(got) > 10_000 || got["n0"] != 21 {
		t.Errorf("%d counters, n0 is %d, %v", len(got), got["n0"], err)
	}
}

func testCountsConcurrent(t *testing.T, d *data) {
	processes := []Store{d.store(t), d.store(t)}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for range 4 {
				if err := processes[i%2].Count(t.Context(), map[string]uint64{"sent": 1, fmt.Sprintf("n%d", i%5): 2}); err != nil {
					t.Errorf("Count: %v", err)
				}
			}
		})
	}
	wg.Wait()
	wantCounts(t, processes[0], map[string]uint64{"sent": 200, "n0": 80, "n1": 80, "n2": 80, "n3": 80, "n4": 80})
}
