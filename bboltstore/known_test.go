package bboltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// from returns a message from an organizational domain that passed, and whose policy is
// about another domain.
func from(org string, at time.Time) *ruapost.Evaluation {
	e := evaluation("passed.example", 1)
	e.Time, e.OrganizationalDomain = at, org
	return e
}

// asks returns a message that did not pass, and is required if its organizational
// domain is known.
func asks(org string) *ruapost.Evaluation {
	e := forged(org, 1)
	e.OrganizationalDomain, e.OptionalIfUnknown = org, true
	return e
}

func sent(t *testing.T, s *Store, at time.Time, domains ...string) {
	t.Helper()
	if err := s.RecordDestinations(t.Context(), domains, at); err != nil {
		t.Fatal(err)
	}
}

func before(days int) time.Time { return noon.AddDate(0, 0, -days) }

// seen returns what is remembered.
func seen(t *testing.T, s *Store) (domains map[string]sighting, counts knownCounts) {
	t.Helper()
	domains = map[string]sighting{}
	err := s.view(t.Context(), func(tx *bolt.Tx) error {
		k, err := loadKnown(tx, s.maxKnown)
		if err != nil {
			return err
		}
		counts = k.counts
		return k.bucket.ForEach(func(key, v []byte) error {
			domains[reverse(string(key))], err = decodeSighting(v)
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return domains, counts
}

// knownStore returns a store with room for that many known domains.
func knownStore(t *testing.T, max uint64) *Store {
	t.Helper()
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	s.maxKnown = max
	return s
}

// What a batch makes known is known to all of it, whatever came first.
func TestKnownWithinABatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	other, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	wait := func(err error) {
		if !errors.Is(err, ErrQueued) {
			t.Fatal(err)
		}
	}
	late := asks("lapsed.example")
	for _, e := range []*ruapost.Evaluation{
		asks("passed.example"), asks("sent.example"), asks("unknown.example"), late,
		from("passed.example", noon), from("lapsed.example", before(PassDays+1)), asks("passed.example"),
	} {
		wait(s.RecordEvaluation(ended, e))
	}
	wait(s.RecordDestinations(ended, []string{"sent.example"}, noon))
	s.mu.Lock()
	n := len(s.batches)
	s.mu.Unlock()
	if n != 1 {
		t.Fatalf("%d batches", n)
	}
	other.Close()
	required := map[string]int64{}
	for _, g := range groups(t, s, noon.Add(24*time.Hour)) {
		if g.Window == ruapost.Day(noon) {
			required[g.Domain] += g.Required
		}
	}
	// The message that passed is one of the three of passed.example.
	if required["passed.example"] != 3 || required["sent.example"] != 1 || required["unknown.example"] != 0 || required["lapsed.example"] != 0 {
		t.Errorf("required %v", required)
	}
}

// Days are days of UTC, whatever the hour.
func TestKnownDays(t *testing.T) {
	for _, c := range []struct {
		pass, asked string
		want        int64
	}{
		{"2026-10-01T00:00:00Z", "2026-10-31T23:59:59Z", 1},
		{"2026-10-01T23:59:59Z", "2026-11-01T00:00:00Z", 0},
		{"2026-10-01T23:00:00-02:00", "2026-11-01T12:00:00Z", 1},
		{"1969-12-31T12:00:00Z", "1970-01-01T12:00:00Z", 0}, // a clock that was not set
	} {
		s := knownStore(t, 10)
		parse := func(text string) time.Time {
			at, err := time.Parse(time.RFC3339, text)
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
		e := asks("example.com")
		e.Time = parse(c.asked)
		mustRecord(t, s, from("example.com", parse(c.pass)), e)
		for _, g := range groups(t, s, parse(c.asked).AddDate(0, 0, 2)) {
			if g.Domain == "example.com" && g.Required != c.want {
				t.Errorf("pass at %s, asked at %s: required %d", c.pass, c.asked, g.Required)
			}
		}
	}
}

// A busy domain costs one write a day, and what changes nothing costs no commit.
func TestKnownIsWrittenOnceADay(t *testing.T) {
	s := knownStore(t, MaxKnownDomains)
	var many []string
	for i := range 500 { // more than bbolt keeps inside its parent
		many = append(many, fmt.Sprintf("d%d.example", i))
	}
	sent(t, s, noon, many...)
	root := func() (pages [2]uint64) {
		err := s.view(t.Context(), func(tx *bolt.Tx) error {
			pages = [2]uint64{uint64(tx.Bucket(knownBucket).Root()), uint64(tx.ID())}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return pages
	}
	mustRecord(t, s, from("d7.example", noon))
	was := root()
	if was[0] == 0 {
		t.Fatal("the bucket has no page of its own")
	}
	sent(t, s, noon, many...)
	sent(t, s, before(1), many...)
	if is := root(); is != was {
		t.Errorf("root page and transaction were %v, are %v", was, is)
	}
	mustRecord(t, s, from("d7.example", noon.Add(time.Hour)), from("d7.example", before(1)), asks("d8.example"))
	if is := root(); is[0] != was[0] || is[1] == was[1] {
		t.Errorf("root page and transaction were %v, are %v", was, is)
	}
	mustRecord(t, s, from("d7.example", noon.AddDate(0, 0, 1)))
	if is := root(); is[0] == was[0] {
		t.Error("the next day was not written")
	}
}

// A flood of throwaway domains whose messages pass takes half of the room. Destinations
// are kept, and find room.
func TestThrowawayDomainsLeaveRoom(t *testing.T) {
	const most, callers, each = 100, 50, 100
	s := knownStore(t, most)
	cut := testutil.ToFloat64(dropped.WithLabelValues("known"))
	sent(t, s, noon, "first.example", "both.example")
	mustRecord(t, s, from("both.example", noon))
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				if err := s.RecordEvaluation(context.Background(), from(fmt.Sprintf("throwaway%d-%d.example", c, i), noon)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	domains, counts := seen(t, s)
	if counts != (knownCounts{all: most/2 + 2, destinations: 2}) || len(domains) != most/2+2 {
		t.Errorf("%d domains, counts %+v", len(domains), counts)
	}
	if n := testutil.ToFloat64(dropped.WithLabelValues("known")) - cut; n != callers*each-most/2 {
		t.Errorf("%v dropped", n)
	}

	// A domain that had no room has it when it is written to; one that had gives it back.
	var more []string
	for i := range most {
		more = append(more, fmt.Sprintf("d%d.example", i))
	}
	for domain, seen := range domains {
		if seen.destination == 0 {
			more = append([]string{domain}, more...)
			break
		}
	}
	sent(t, s, noon, more...)
	last := from("one-more.example", noon)
	last.OptionalIfUnknown = true // it passed, remembered or not
	mustRecord(t, s, last)
	domains, counts = seen(t, s)
	if counts.all != most || counts.destinations != most/2+1 || len(domains) != most {
		t.Errorf("%d domains, counts %+v", len(domains), counts)
	}
	for _, domain := range []string{"first.example", "both.example", more[0]} {
		if domains[domain].destination == 0 {
			t.Errorf("%s is not known any more", domain)
		}
	}
	mustRecord(t, s, asks("first.example"), asks("one-more.example"))
	for _, g := range groups(t, s, noon.Add(24*time.Hour)) {
		if want := map[string]int64{"first.example": 1, "one-more.example": 0, "passed.example": g.Total}[g.Domain]; g.Required != want {
			t.Errorf("%s: required %d", g.Domain, g.Required)
		}
	}
	checkStore(t, s)
}

// RFC 9989 4.7: psd=n makes a name an organizational domain, and a wildcard record all
// that somebody invents below their one name.
func TestInventedOrganizationalDomains(t *testing.T) {
	s := knownStore(t, MaxKnownDomains)
	for i := range MaxKnownSubdomains {
		mustRecord(t, s, from(fmt.Sprintf("d%d.wild.example", i), noon))
	}
	mustRecord(t, s, from("wild.example", noon), from("wild-2.example", noon), from("a.wild-2.example", noon))
	sent(t, s, noon, "sent.wild.example")
	domains, counts := seen(t, s)
	if counts.all != MaxKnownSubdomains/2+4 || domains["sent.wild.example"].destination == 0 || domains["wild.example"].passed == 0 {
		t.Errorf("counts %+v", counts)
	}
}

// What is not known any more is deleted in steps, once a day, and leaves its room.
func TestForgetKnown(t *testing.T) {
	s := knownStore(t, MaxKnownDomains)
	var lapsed, fresh []string
	for i := range 2*chunk + 100 {
		lapsed = append(lapsed, fmt.Sprintf("lapsed%d.example", i))
		fresh = append(fresh, fmt.Sprintf("fresh%d.example", i))
	}
	sent(t, s, before(DestinationDays+1), lapsed...)
	sent(t, s, before(DestinationDays), fresh...)
	sent(t, s, before(DestinationDays+1), "both.example", "pass.example")
	mustRecord(t, s, from("both.example", before(PassDays+1)), from("pass.example", before(PassDays)),
		from("passed-only.example", before(PassDays)), from("passed-once.example", before(PassDays+1)))
	lastPass := sighting{passed: dayOf(before(PassDays))}
	for range 2 {
		if err := s.forgetKnown(t.Context(), noon); err != nil {
			t.Fatal(err)
		}
		domains, counts := seen(t, s)
		want := knownCounts{all: uint64(len(fresh)) + 2, destinations: uint64(len(fresh)), swept: uint64(dayOf(noon))}
		if counts != want || len(domains) != len(fresh)+2 {
			t.Errorf("%d domains, counts %+v, want %+v", len(domains), counts, want)
		}
		if domains["pass.example"] != lastPass || domains["passed-only.example"] != lastPass {
			t.Errorf("pass.example %v, passed-only.example %v", domains["pass.example"], domains["passed-only.example"])
		}
		checkStore(t, s)
	}

	// Once a day is enough.
	mustRecord(t, s, from("late.example", before(PassDays+1)))
	if err := s.forgetKnown(t.Context(), noon.Add(11*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if domains, _ := seen(t, s); domains["late.example"] == (sighting{}) {
		t.Error("deleted again on the same day")
	}
	if err := s.forgetKnown(t.Context(), noon.Add(12*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if domains, counts := seen(t, s); len(domains) != 0 || counts.all != 0 || counts.destinations != 0 {
		t.Errorf("%d domains left, counts %+v", len(domains), counts)
	}
	checkStore(t, s)
}

// An interrupted deletion has done a part of it and is begun again.
func TestForgetKnownInterrupted(t *testing.T) {
	s := knownStore(t, MaxKnownDomains)
	var lapsed []string
	for i := range 3 * chunk {
		lapsed = append(lapsed, fmt.Sprintf("lapsed%d.example", i))
	}
	sent(t, s, before(DestinationDays+1), lapsed...)
	err := s.update(t.Context(), func(tx *bolt.Tx) error {
		k, err := loadKnown(tx, s.maxKnown)
		if err == nil {
			_, err = k.sweep(nil, dayOf(noon))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, counts := seen(t, s); counts != (knownCounts{all: 2 * chunk, destinations: 2 * chunk}) {
		t.Errorf("counts %+v", counts)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.forgetKnown(ended, noon); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := s.forgetKnown(t.Context(), noon); err != nil {
		t.Fatal(err)
	}
	if _, counts := seen(t, s); counts != (knownCounts{swept: uint64(dayOf(noon))}) {
		t.Errorf("counts %+v", counts)
	}
}

// A destination that has lapsed must not add to the half of those that only passed.
func TestForgetKnownKeepsTheHalf(t *testing.T) {
	s := knownStore(t, 4)
	sent(t, s, before(DestinationDays+1), "a.example", "b.example")
	mustRecord(t, s, from("a.example", noon), from("b.example", noon), from("c.example", noon), from("d.example", noon))
	if err := s.forgetKnown(t.Context(), noon); err != nil {
		t.Fatal(err)
	}
	domains, counts := seen(t, s)
	if counts.all != 2 || counts.destinations != 0 || len(domains) != 2 {
		t.Errorf("%v, counts %+v", domains, counts)
	}
	checkStore(t, s)
}

// Tidy and compaction know of the bucket.
func TestTidyForgetsKnown(t *testing.T) {
	s := knownStore(t, MaxKnownDomains)
	now := time.Now()
	mustRecord(t, s, from("old.example", now.AddDate(0, 0, -PassDays-2)), from("new.example", now))
	if err := errors.Join(s.Tidy(t.Context()), s.Compact(t.Context())); err != nil {
		t.Fatal(err)
	}
	domains, _ := seen(t, s)
	if len(domains) != 1 || domains["new.example"].passed == 0 {
		t.Errorf("%v", domains)
	}
	st, err := s.Stats(t.Context())
	if err != nil || st.KnownDomains != 1 {
		t.Errorf("stats %+v, %v", st, err)
	}
	checkStore(t, s)
}

// A file that has no room takes days for the domains it has, and no new one.
func TestKnownInAFullFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	sent(t, s, before(1), "example.com")
	h, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	today := sighting{destination: dayOf(noon)}
	c, err := s.writeBatch(h.DB, &batch{seen: map[string]sighting{"example.com": today, "example.net": today}}, true)
	h.Close()
	if err != nil || c != (cut{known: 1}) {
		t.Errorf("cut %+v, %v", c, err)
	}
	if domains, _ := seen(t, s); len(domains) != 1 || domains["example.com"] != today {
		t.Errorf("%v", domains)
	}
}

// Names count in what the queue is bounded by, though no row may come with them.
func TestKnownIsBoundedInTheQueue(t *testing.T) {
	b := &batch{groups: map[string]*addition{}, seen: map[string]sighting{}}
	overlong := bytes.Repeat([]byte("x"), MaxRowBytes+1)
	for i := range 10 {
		for range 2 {
			name := fmt.Sprintf("%d.example", i)
			b.add(&entry{group: []byte("g"), rows: [][]byte{overlong}, organization: name, ifKnown: true})
			b.add(&entry{organization: name, seen: sighting{passed: 1}})
		}
	}
	if b.rows != 1+20 || b.bytes != 20*len("0.example") || b.records != 20 {
		t.Errorf("%d rows, %d bytes, %d records", b.rows, b.bytes, b.records)
	}
}

// downgrade makes a file of an older schema, for 1 of an empty one.
func downgrade(t *testing.T, path string, to uint64) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bolt.Tx) error {
		meta := tx.Bucket(metaBucket)
		err := errors.Join(tx.DeleteBucket(daysBucket), cutGroups(tx))
		if to < 6 {
			err = errors.Join(err, meta.Delete(suppressedKey), meta.Delete(secretKey), tx.DeleteBucket(suppressedBucket), tx.DeleteBucket(countsBucket))
		}
		if to < 5 {
			err = errors.Join(err, meta.Delete(stsKey), tx.DeleteBucket(stsBucket), tx.DeleteBucket(stsNamesBucket), tx.DeleteBucket(positionsBucket))
		}
		if to < 3 {
			err = errors.Join(err, meta.Delete(knownKey), tx.DeleteBucket(knownBucket))
		}
		if to < 2 {
			err = errors.Join(err, meta.Delete(usageKey), tx.DeleteBucket(windowsBucket), tx.DeleteBucket(trashBucket))
		}
		return errors.Join(err, meta.Put(schemaKey, binary.BigEndian.AppendUint64(nil, to)))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Files of schema 1 and 2 get the bucket; what they hold stays.
func TestMigrationToKnown(t *testing.T) {
	for _, older := range []uint64{1, 2} {
		path := filepath.Join(t.TempDir(), "db")
		s := openStore(t, path)
		want := 0
		if older == 2 {
			mustRecord(t, s, evaluation("example.net", 1), evaluation("example.net", 2))
			want = 1
		}
		s.Close()
		downgrade(t, path, older)
		s = openStore(t, path)
		if gs := groups(t, s, noon.Add(24*time.Hour)); len(gs) != want || want > 0 && gs[0].Rows != 2 {
			t.Errorf("from %d: groups %+v", older, gs)
		}
		mustRecord(t, s, from("example.com", noon))
		if domains, _ := seen(t, s); len(domains) != 1 {
			t.Errorf("from %d: %v", older, domains)
		}
		if left := aside(t, path); len(left) > 0 {
			t.Errorf("from %d: set aside: %v", older, left)
		}
		st, err := s.Stats(t.Context())
		if err != nil || st.Schema != schema {
			t.Errorf("from %d: %+v, %v", older, st, err)
		}
		checkStore(t, s)
	}
}

// cutGroups takes from groups what schema 7 has added.
func cutGroups(tx *bolt.Tx) (err error) {
	groups := tx.Bucket(groupsBucket)
	values := map[string][]byte{}
	groups.ForEach(func(k, v []byte) error {
		values[string(k)] = slices.Concat(v[:7*8], v[10*8:])
		if k[0] == kindByte[ruapost.KindDMARC] { // only sessions were counted as failed
			clear(values[string(k)][6*8 : 7*8])
		}
		return nil
	})
	for k, v := range values {
		err = errors.Join(err, groups.Put([]byte(k), v))
	}
	return err
}

// A file of schema 3 has known domains with two days.
func TestMigrationOfKnown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	sent(t, s, noon, "example.com")
	err := s.update(t.Context(), func(tx *bolt.Tx) error {
		v := sighting{destination: dayOf(noon)}.encode()[:8]
		return errors.Join(tx.Bucket(knownBucket).Put([]byte("com.example"), v),
			tx.Bucket(metaBucket).Put(schemaKey, binary.BigEndian.AppendUint64(nil, 3)))
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, path)
	checkStore(t, s)
	mustRecord(t, s, from("example.com", noon))
	want := sighting{passed: dayOf(noon), destination: dayOf(noon)}
	if domains, _ := seen(t, s); domains["example.com"] != want {
		t.Errorf("%+v", domains)
	}
}

// A migration that fails at its last step has done none.
func TestMigrationIsAtomic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	openStore(t, path).Close()
	downgrade(t, path, 1)
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { // what migrateTo2 comes to last
		return tx.Bucket(groupsBucket).Put([]byte("short"), []byte("value"))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := open(path); err == nil || !strings.Contains(err.Error(), "cannot be brought up from schema 1 to 7") {
		t.Errorf("open: %v, %v", h, err)
	}
	if is, err := os.ReadFile(path); err != nil || !bytes.Equal(was, is) {
		t.Errorf("the file has changed, %v", err)
	}
}

func TestExportKnown(t *testing.T) {
	s := knownStore(t, MaxKnownDomains)
	sent(t, s, noon, "sent.example", "both.example")
	mustRecord(t, s, from("both.example", before(1)), from("passed.a.example", before(2)))
	var exported bytes.Buffer
	if err := s.Export(t.Context(), &exported); err != nil {
		t.Fatal(err)
	}
	if want := `{"known":{"domain":"both.example","passed":"2026-11-21","destination":"2026-11-22"}}`; !strings.Contains(exported.String(), want) {
		t.Errorf("%s is not in %s", want, exported.String())
	}
	moved := knownStore(t, MaxKnownDomains)
	if err := moved.Import(t.Context(), bytes.NewReader(exported.Bytes())); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := moved.Export(t.Context(), &again); err != nil || !bytes.Equal(exported.Bytes(), again.Bytes()) {
		t.Errorf("the second export differs, %v: %s", err, again.String())
	}
	if domains, counts := seen(t, moved); counts != (knownCounts{all: 3, destinations: 2}) || len(domains) != 3 {
		t.Errorf("%v, counts %+v", domains, counts)
	}
	checkStore(t, moved)

	// An export of before there were known domains.
	var older []string
	for line := range strings.Lines(withoutSecret(exported.String())) {
		if !strings.HasPrefix(line, `{"known"`) {
			older = append(older, line)
		}
	}
	moved = knownStore(t, MaxKnownDomains)
	if err := moved.Import(t.Context(), strings.NewReader(strings.Join(older, ""))); err != nil {
		t.Error(err)
	}
	if gs := groups(t, moved, noon.Add(24*time.Hour)); len(gs) != len(older)/2 || len(gs) == 0 {
		t.Errorf("groups %+v of lines %q", gs, older)
	}

	occupied := knownStore(t, MaxKnownDomains)
	sent(t, occupied, noon, "example.com")
	if err := occupied.Import(t.Context(), bytes.NewReader(exported.Bytes())); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("import into a store that is not empty: %v", err)
	}
	for _, text := range []string{
		`{"known":{}}`, `{"known":{"domain":"example.com"}}`, `{"known":{"passed":"2026-11-21"}}`,
		`{"known":{"domain":"example.com","passed":"21.11.2026"}}`,
		`{"known":{"domain":"example.com","passed":"1969-12-31"}}`,
		`{"known":{"domain":"` + strings.Repeat("x", 254) + `","passed":"2026-11-21"}}`,
	} {
		if err := knownStore(t, MaxKnownDomains).Import(t.Context(), strings.NewReader(`{"ruapost_store":1}`+"\n"+text)); err == nil {
			t.Errorf("%q was imported", text)
		}
	}
}

func TestCheckFindsFaultsOfKnown(t *testing.T) {
	for name, damage := range map[string]func(*known) error{
		"one too few":   func(k *known) error { return k.bucket.Delete([]byte("com.example")) },
		"one too many":  func(k *known) error { return k.bucket.Put([]byte("x"), sighting{passed: 1}.encode()) },
		"seen never":    func(k *known) error { return k.bucket.Put([]byte("com.example"), sighting{}.encode()) },
		"another value": func(k *known) error { return k.bucket.Put([]byte("com.example"), []byte("x")) },
		"other counts":  func(k *known) error { return k.meta.Put(knownKey, make([]byte, 24)) },
		"no counts":     func(k *known) error { return k.meta.Put(knownKey, []byte("x")) },
	} {
		s := knownStore(t, 10)
		sent(t, s, noon, "example.com")
		checkStore(t, s)
		err := s.update(t.Context(), func(tx *bolt.Tx) error {
			k, err := loadKnown(tx, s.maxKnown)
			return errors.Join(err, damage(k))
		})
		if err != nil {
			t.Fatal(err)
		}
		if faults, err := s.Check(t.Context()); err != nil || len(faults) == 0 {
			t.Errorf("%s: faults %v, %v", name, faults, err)
		}
	}
}

// Whatever passed below a name, and however little room passes have: a report that is
// mailed there is noted, else it would make the domain one that users write to.
func TestReportedIsNoted(t *testing.T) {
	s := knownStore(t, 4*MaxKnownSubdomains)
	for i := range 3 * MaxKnownSubdomains {
		mustRecord(t, s, from(fmt.Sprintf("d%d.evil.example", i), noon), from(fmt.Sprintf("d%d.example", i), noon))
	}
	names := []string{"r.evil.example", "other.example"}
	if err := s.RecordReported(t.Context(), names, noon); err != nil {
		t.Fatal(err)
	}
	sent(t, s, noon, names...) // the report mails pass the MTA
	domains, _ := seen(t, s)
	for _, name := range names {
		if domains[name] != (sighting{reported: dayOf(noon)}) {
			t.Errorf("%s: %+v", name, domains[name])
		}
	}
	checkStore(t, s)
}

// An export may hold more below a name than would be admitted in its order.
func TestImportKeepsAllKnown(t *testing.T) {
	s := knownStore(t, MaxKnownDomains)
	for i := range MaxKnownSubdomains {
		mustRecord(t, s, from(fmt.Sprintf("x%d.big.example", i), noon))
		sent(t, s, noon, fmt.Sprintf("a%d.big.example", i))
	}
	_, want := seen(t, s)
	var exported bytes.Buffer
	if err := s.Export(t.Context(), &exported); err != nil {
		t.Fatal(err)
	}
	moved := knownStore(t, MaxKnownDomains)
	moved.maxKnown = 10
	if err := moved.Import(t.Context(), &exported); err != nil {
		t.Fatal(err)
	}
	if _, got := seen(t, moved); got != want {
		t.Errorf("exported %+v, imported %+v", want, got)
	}
	checkStore(t, moved)
}

// What a clock that was ahead has left does no harm, and is put right by the next sweep.
func TestClockAhead(t *testing.T) {
	s := knownStore(t, MaxKnownDomains)
	ahead := noon.AddDate(20, 0, 0)
	if err := s.RecordReported(t.Context(), []string{"reported.example"}, ahead); err != nil {
		t.Fatal(err)
	}
	sent(t, s, ahead, "sent.example")
	sent(t, s, noon.AddDate(0, 0, 1), "tomorrow.example")
	mustRecord(t, s, from("passed.example", ahead), asks("passed.example"), asks("sent.example"))
	sent(t, s, noon, "reported.example")
	mustRecord(t, s, asks("reported.example"))
	for _, g := range groups(t, s, noon.Add(24*time.Hour)) {
		want := int64(0)
		if g.Domain == "reported.example" { // no report lately
			want = 1
		}
		if g.Window == ruapost.Day(noon) && g.Required != want {
			t.Errorf("%s: required %d", g.Domain, g.Required)
		}
	}
	if err := s.forgetKnown(t.Context(), noon); err != nil {
		t.Fatal(err)
	}
	today := dayOf(noon)
	want := map[string]sighting{
		"reported.example": {reported: today, destination: today}, "sent.example": {destination: today},
		"tomorrow.example": {destination: today + 1}, "passed.example": {passed: today},
	}
	if domains, _ := seen(t, s); !maps.Equal(domains, want) {
		t.Errorf("%+v", domains)
	}
	checkStore(t, s)
}

// Whoever probes names below one makes this system write to them, with bounces say: they
// leave room for others.
func TestProbedDestinationsLeaveRoom(t *testing.T) {
	s := knownStore(t, 10*MaxKnownSubdomains)
	var probes []string
	for i := range 12 * MaxKnownSubdomains {
		probes = append(probes, fmt.Sprintf("p%d.one.example", i))
	}
	sent(t, s, noon, probes...)
	sent(t, s, noon, "honest.example")
	mustRecord(t, s, from("honest-too.example", noon))
	domains, counts := seen(t, s)
	if domains["honest.example"].destination == 0 || domains["honest-too.example"].passed == 0 || counts.all > 2*MaxKnownSubdomains+2 {
		t.Errorf("counts %+v", counts)
	}
}
