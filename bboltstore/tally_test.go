package bboltstore

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"ruapost"
)

func tallies(t *testing.T, s *Store, domain string) (all []ruapost.Tally) {
	t.Helper()
	for tally, err := range s.Tallies(t.Context(), time.Time{}, domain) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, tally)
	}
	return all
}

func tallyOf(at time.Time, domain string, o ruapost.Outcome, n int64) ruapost.Tally {
	t := ruapost.Tally{Day: ruapost.Day(at).Start, Kind: ruapost.KindDMARC, Domain: domain}
	t.Counts[o] = n
	return t
}

// Past the bound a domain is counted among the others; half of the room is kept from those
// that anybody can forge.
func TestDayDomainsBound(t *testing.T) {
	if MaxDayDomains != 5_000 || TallyDays != 35 {
		t.Errorf("MaxDayDomains is %d, TallyDays %d", MaxDayDomains, TallyDays)
	}
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	var forged, honest []ruapost.Tally
	for i := range MaxDayDomains {
		forged = append(forged, tallyOf(noon, fmt.Sprintf("forged%d.example", i), ruapost.OutcomeReject, 1))
		honest = append(honest, tallyOf(noon, fmt.Sprintf("honest%d.example", i), ruapost.OutcomePass, 1))
	}
	if err := s.AddTallies(t.Context(), append(forged, honest...)...); err != nil {
		t.Fatal(err)
	}
	var others ruapost.OutcomeCounts
	names := 0
	for _, tally := range tallies(t, s, "") {
		if tally.Domain == ruapost.OtherDomains {
			others = tally.Counts
		} else {
			names++
		}
	}
	if names != MaxDayDomains || others[ruapost.OutcomeReject] != MaxDayDomains/2 || others[ruapost.OutcomePass] != MaxDayDomains/2 {
		t.Errorf("%d domains, others %v", names, others)
	}
	// Those that are there are counted on, and one that goes makes room.
	err := errors.Join(
		s.AddTallies(t.Context(), honest[0]), s.DropTallies(t.Context(), "forged1.example"),
		s.AddTallies(t.Context(), tallyOf(noon, "new.example", ruapost.OutcomePass, 1)),
	)
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]int64{"honest0.example": 2, "new.example": 1} {
		if got := tallies(t, s, domain); len(got) != 1 || got[0].Counts[ruapost.OutcomePass] != want {
			t.Errorf("%s: %+v", domain, got)
		}
	}
	if st, err := s.Stats(t.Context()); err != nil || st.Tallies != MaxDayDomains+1 {
		t.Errorf("stats %+v, %v", st, err)
	}
	checkStore(t, s)
}

// Days go when they are past, and those that only a clock that was ahead has known.
func TestForgetTallies(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	for _, ago := range []int{-400, -2, -1, 0, TallyDays - 1, TallyDays, TallyDays + 1000} {
		var all []ruapost.Tally
		for i := range 3 {
			all = append(all, tallyOf(noon.AddDate(0, 0, -ago), []string{"", "*", "example.com"}[i], ruapost.OutcomePass, 1))
		}
		if err := s.AddTallies(t.Context(), all...); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.forgetTallies(t.Context(), noon); err != nil {
		t.Fatal(err)
	}
	got := tallies(t, s, "")
	if len(got) != 9 {
		t.Errorf("%d are left: %+v", len(got), got)
	}
	for _, tally := range got {
		if ago := int(ruapost.Day(noon).Start.Sub(tally.Day).Hours() / 24); ago < -1 || ago > TallyDays-1 {
			t.Errorf("%v is left", tally.Day)
		}
	}
	checkStore(t, s)
}

// A day that only a clock that was ahead has known does not hide the others of a domain.
func TestTalliesOfDomainBehindOneAhead(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	for years := range 2 {
		if err := s.AddTallies(t.Context(), tallyOf(noon.AddDate(years, 0, 0), "example.com", ruapost.OutcomePass, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if got := tallies(t, s, "example.com"); len(got) != 2 {
		t.Errorf("%+v", got)
	}
}

// A group of before schema 7 says nothing of how its messages fared; what comes from then
// on is counted.
func TestMigrationToTallies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	mustRecord(t, s, evaluation("example.com", 1), evaluation("example.com", 2), forged("example.com", 3))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	downgrade(t, path, 6)
	s = openStore(t, path)
	checkStore(t, s)
	mustRecord(t, s, evaluation("example.com", 1), forged("example.com", 3))
	gs := groups(t, s, noon.Add(48*time.Hour))
	if len(gs) != 1 || gs[0].Total != 5 || gs[0].Rows != 3 || gs[0].Passed != 1 || gs[0].Failed != 1 {
		t.Fatalf("%+v", gs)
	}
	if c := gs[0].Outcomes(); c[ruapost.OutcomeUnknown] != 3 || c.Total() != 5 {
		t.Errorf("outcomes %v", c)
	}
	if st, err := s.Stats(t.Context()); err != nil || st.Schema != schema {
		t.Errorf("%+v, %v", st, err)
	}
	checkStore(t, s)
}

// Daily totals are exported and added to what there is. An older export has none.
func TestTalliesExport(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	all := []ruapost.Tally{tallyOf(noon, "", ruapost.OutcomePass, 3), tallyOf(noon, "*", ruapost.OutcomeFail, 2), tallyOf(noon, "example.com", ruapost.OutcomeReject, 1)}
	var exported bytes.Buffer
	if err := errors.Join(s.AddTallies(t.Context(), all...), s.Export(t.Context(), &exported)); err != nil {
		t.Fatal(err)
	}
	moved := openStore(t, filepath.Join(t.TempDir(), "db"))
	if err := errors.Join(moved.AddTallies(t.Context(), all[0]), moved.Import(t.Context(), &exported)); err != nil {
		t.Fatal(err)
	}
	got := tallies(t, moved, "")
	all[0].Counts[ruapost.OutcomePass] = 6
	if len(got) != 3 || got[0] != all[0] || got[1] != all[1] || got[2] != all[2] {
		t.Errorf("%+v", got)
	}
	checkStore(t, moved)
}

// What cannot be read is found by the check.
func TestCheckTallies(t *testing.T) {
	for name, damage := range map[string]func(b *bolt.Bucket) error{
		"counts": func(b *bolt.Bucket) error { return b.Put(tallyKey(1, ruapost.KindTLS, "x"), []byte{0xff}) },
		"key":    func(b *bolt.Bucket) error { return b.Put([]byte("x"), nil) },
		"kind":   func(b *bolt.Bucket) error { return b.Put([]byte("\x00\x00\x00\x01?x"), nil) },
		"number": func(b *bolt.Bucket) error {
			return b.Put(tallyKey(1, ruapost.KindTLS, dayDomains), make([]byte, 8)[:7])
		},
		"without": func(b *bolt.Bucket) error { return b.Put(tallyKey(1, ruapost.KindTLS, "x"), []byte{1}) },
	} {
		s := openStore(t, filepath.Join(t.TempDir(), "db"))
		if err := s.update(t.Context(), func(tx *bolt.Tx) error { return damage(tx.Bucket(daysBucket)) }); err != nil {
			t.Fatal(err)
		}
		faults, err := s.Check(t.Context())
		if want := name != "number"; err != nil || len(faults) > 0 != want {
			t.Errorf("%s: %v, %v", name, faults, err)
		}
	}
}
