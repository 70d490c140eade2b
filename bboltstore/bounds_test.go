package bboltstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// small makes a store with small bounds.
func small(t *testing.T, b bounds) *Store {
	t.Helper()
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	s.bounds = b
	return s
}

// forged is a message that did not pass DMARC.
func forged(domain string, lastOctet byte) *ruapost.Evaluation {
	e := evaluation(domain, lastOctet)
	e.Result.AlignedDKIM = false
	e.Result.Disposition = ruapost.DispositionNone
	return e
}

// A flood of forged domains takes half of what there is; honest ones still find room,
// and those that are there are counted in whatever comes.
func TestForgedDomainsLeaveRoom(t *testing.T) {
	s := small(t, bounds{20, 50, 8, 100, 1 << 20, 1000, 1 << 20})
	mustRecord(t, s, evaluation("honest.example", 1))
	for i := range 100 {
		mustRecord(t, s, forged(fmt.Sprintf("forged%d.example", i), 1))
	}
	for i := range 5 {
		mustRecord(t, s, evaluation(fmt.Sprintf("late%d.example", i), 1))
	}
	mustRecord(t, s, evaluation("honest.example", 1), forged("honest.example", 9))
	domains := map[string]int64{}
	kept := 0
	for _, g := range groups(t, s, noon.Add(24*time.Hour)) {
		domains[g.Domain] = g.Total
		if strings.HasPrefix(g.Domain, "forged") {
			kept++
		}
	}
	if kept != 9 || domains["honest.example"] != 3 || domains["late4.example"] != 1 {
		t.Errorf("%d forged domains kept, %v", kept, domains)
	}
}

// The same inside one domain: its own mail is listed whatever is forged in its name.
func TestForgedSourcesLeaveRoom(t *testing.T) {
	for name, b := range map[string]bounds{
		"rows of a group":  {20, 50, 8, 20, 1 << 20, 1000, 1 << 20},
		"bytes of a group": {20, 50, 8, 1000, 20 * 215, 1000, 1 << 20},
		"rows in all":      {20, 50, 8, 1000, 1 << 20, 20, 1 << 20},
		"bytes in all":     {20, 50, 8, 1000, 1 << 20, 1000, 20 * 215},
	} {
		s := small(t, b)
		for i := range 100 {
			mustRecord(t, s, forged("example.com", byte(i)))
		}
		for i := range 3 {
			mustRecord(t, s, evaluation("example.com", 200+byte(i)))
		}
		mustRecord(t, s, forged("example.com", 0)) // a row that is there is counted in
		g := groups(t, s, noon.Add(24*time.Hour))[0]
		got := counts(t, s, g.ID)
		if g.Total != 104 || g.Rows > 16 || g.Rows < 8 || got["192.0.2.200"] != 1 || got["192.0.2.202"] != 1 || got["192.0.2.0"] != 2 {
			t.Errorf("%s: %+v %v", name, g, got)
		}
		var sum int64
		for _, n := range got {
			sum += n
		}
		if sum != g.Listed {
			t.Errorf("%s: rows count %d, listed %d", name, sum, g.Listed)
		}
	}
}

// Nor does it matter what of its messages a forger makes anew each time: a /64 has more
// addresses than any bound, and names are of 253 octets. What the domain itself sends,
// and others, is listed and counted exactly; so is the total.
func TestForgedDetailsLeaveRoom(t *testing.T) {
	const flood, each = 3000, 10
	long := func(i int) string { return fmt.Sprintf("%[1]s.%[1]s.%[1]s.%061d", strings.Repeat("x", 63), i) }
	for name, c := range map[string]struct {
		bounds bounds
		forge  func(r *ruapost.DMARCResult, i int)
	}{
		"addresses of a /64": {bounds{20, 50, 8, 40, 1 << 20, 1000, 1 << 20}, func(r *ruapost.DMARCResult, i int) {
			a := netip.MustParseAddr("2001:db8::").As16()
			binary.BigEndian.PutUint64(a[8:], uint64(i)*0x9e3779b97f4a7c15) // all over it
			r.SourceIP = netip.AddrFrom16(a)
		}},
		"names in HELO": {bounds{20, 50, 8, 1000, 20_000, 1000, 1 << 20}, func(r *ruapost.DMARCResult, i int) {
			r.EnvelopeFrom, r.SPF = "", ruapost.SPFResult{Domain: long(i), Helo: true, Result: ruapost.AuthNone}
		}},
		"names of envelope senders": {bounds{20, 50, 8, 1000, 1 << 20, 40, 1 << 20}, func(r *ruapost.DMARCResult, i int) {
			r.EnvelopeFrom, r.SPF = long(i), ruapost.SPFResult{Domain: long(i), Result: ruapost.AuthPass}
		}},
		"signatures": {bounds{20, 50, 8, 1000, 1 << 20, 1000, 20_000}, func(r *ruapost.DMARCResult, i int) {
			r.DKIM = []ruapost.DKIMResult{{Domain: long(i), Selector: long(-i), Result: ruapost.AuthPass}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := small(t, c.bounds)
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			for i := range flood {
				e := forged("example.com", 200)
				c.forge(&e.Result, i)
				if err := s.RecordEvaluation(ended, e); err != nil && !errors.Is(err, ErrQueued) {
					t.Fatal(err)
				}
				if i%(flood/each) == 0 {
					mustRecord(t, s, evaluation("example.com", 1), evaluation("example.org", 1))
				}
			}
			late := evaluation("example.com", 2)
			mustRecord(t, s, late, evaluation("example.net", 1))

			gs := groups(t, s, noon.Add(24*time.Hour))
			if len(gs) != 3 || gs[0].Total != flood+each+1 || gs[1].Total != 1 || gs[2].Total != each {
				t.Fatalf("groups %+v", gs)
			}
			own, org := counts(t, s, gs[0].ID), counts(t, s, gs[2].ID)
			if own["192.0.2.1"] != each || own["192.0.2.2"] != 1 || org["192.0.2.1"] != each {
				t.Errorf("honest rows: %v, %v", own, org)
			}
			if n := gs[0].Listed - each - 1; n < 5 || n > 25 {
				t.Errorf("%d forged messages are listed", n)
			}
			st, err := s.Stats(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if st.Rows > 30 || st.RowBytes > 20_000 || st.FileBytes > 256<<10 {
				t.Errorf("the file holds %+v", st)
			}
			checkStore(t, s)
		})
	}
}

// What is sealed and dropped makes room again.
func TestRoomComesBack(t *testing.T) {
	s := small(t, bounds{4, 4, 4, 4, 1 << 20, 4, 1 << 20})
	for round := range 3 {
		for i := range 4 {
			mustRecord(t, s, evaluation(fmt.Sprintf("d%d.example", i), 1))
		}
		gs := groups(t, s, noon.Add(24*time.Hour))
		if len(gs) != 4 {
			t.Fatalf("round %d: %d groups", round, len(gs))
		}
		for _, g := range gs {
			if g.Listed != 1 {
				t.Errorf("round %d: %+v", round, g)
			}
		}
		if err := s.Drop(t.Context(), gs); err != nil {
			t.Fatal(err)
		}
	}
	err := s.view(t.Context(), func(tx *bolt.Tx) error {
		u, err := loadUsage(tx, usageKey)
		if u != (usage{}) || tx.Bucket(windowsBucket).Inspect().KeyN != 0 {
			t.Errorf("empty, but %+v", u)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A file of schema 1 is brought up once, with what it holds.
func TestMigration(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	mustRecord(t, s, evaluation("a.example", 1), evaluation("a.example", 2), evaluation("b.example", 1))
	s.Close()
	var want usage
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { // back to what it was
		if want, err = loadUsage(tx, usageKey); err != nil {
			return err
		}
		if err := tx.Bucket(metaBucket).Delete(usageKey); err != nil {
			return err
		}
		for _, name := range [][]byte{windowsBucket, trashBucket} {
			if err := tx.DeleteBucket(name); err != nil {
				return err
			}
		}
		groups := tx.Bucket(groupsBucket)
		values := map[string][]byte{}
		groups.ForEach(func(k, v []byte) error {
			values[string(k)] = slices.Concat(v[:3*8], v[4*8:7*8], v[10*8:])
			return nil
		})
		for k, v := range values {
			if err := groups.Put([]byte(k), v); err != nil {
				return err
			}
		}
		return tx.Bucket(metaBucket).Put(schemaKey, binary.BigEndian.AppendUint64(nil, 1))
	})
	if err != nil {
		t.Fatal(err)
	}
	db.Close()

	s = openStore(t, path)
	if gs := groups(t, s, noon.Add(24*time.Hour)); len(gs) != 2 || gs[0].Rows != 2 {
		t.Errorf("groups %+v", gs)
	}
	err = s.view(t.Context(), func(tx *bolt.Tx) error {
		u, err := loadUsage(tx, usageKey)
		if u != want || u.number != 3 {
			t.Errorf("usage %+v, want %+v", u, want)
		}
		if v, err := readSchema(tx); v != schema || err != nil {
			t.Errorf("schema %d, %v", v, err)
		}
		if n := counter(tx.Bucket(windowsBucket), windowKey(groupKey(ruapost.KindDMARC, ruapost.Day(noon), "", nil))); n != 2 {
			t.Errorf("%d groups in the window", n)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	checkStore(t, s)
}

// Whoever changes a policy with every message, or invents names below a wildcard
// record, gets some reports and no more.
func TestManyPolicies(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	for i := range 100 {
		e := evaluation("example.com", 1)
		e.Policy.Error = fmt.Sprint("flaw ", i)
		mustRecord(t, s, e)
		mustRecord(t, s, evaluation(fmt.Sprintf("d%d.wild.example.org", i), 1))
	}
	n := map[string]int{}
	for _, g := range groups(t, s, noon.Add(24*time.Hour)) {
		n[g.Domain[len(g.Domain)-len("example.com"):]]++
	}
	if n["example.com"] != MaxDomainGroups || n["example.org"] != MaxOrganizationGroups {
		t.Errorf("groups %v", n)
	}
	big := ruapost.Session{Time: noon, Domain: "example.net", Policy: ruapost.TLSPolicy{Type: "sts", Domain: "example.net", Strings: []string{strings.Repeat("x", MaxPolicyBytes)}}}
	cut := testutil.ToFloat64(dropped.WithLabelValues("policy_bytes"))
	if err := s.RecordSessions(t.Context(), []ruapost.Session{big}); err != nil {
		t.Fatal(err)
	}
	if n := testutil.ToFloat64(dropped.WithLabelValues("policy_bytes")) - cut; n != 1 {
		t.Errorf("%v texts of policies counted as left out", n)
	}
	gs := groups(t, s, noon.Add(24*time.Hour))
	if g := gs[len(gs)-1]; g.Kind != ruapost.KindTLS || g.TLS.Type != "sts" || g.TLS.Strings != nil || g.Total != 1 {
		t.Errorf("group with a large policy: %+v", g)
	}
	checkStore(t, s)
}

// aside returns the files that were set aside.
func aside(t *testing.T, path string) []string {
	t.Helper()
	files, err := filepath.Glob(path + ".damaged-*")
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Whatever happens to the file, rows are recorded again as soon as that is possible,
// and nothing is thrown away.
func TestDamagedFile(t *testing.T) {
	page := int64(os.Getpagesize())
	for name, damage := range map[string]func(t *testing.T, f *os.File){
		"both meta pages zero": func(t *testing.T, f *os.File) { overwrite(t, f, 0, 2*page, 0) },
		"both meta pages rubbed": func(t *testing.T, f *os.File) {
			overwrite(t, f, 64, page-64, 'x')
			overwrite(t, f, page+64, page-64, 'x')
		},
		"all pages but meta":  func(t *testing.T, f *os.File) { overwrite(t, f, 2*page, 30*page, 'x') },
		"cut off behind meta": func(t *testing.T, f *os.File) { truncate(t, f, 2*page) },
		"cut in half":         func(t *testing.T, f *os.File) { truncate(t, f, 8*page) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			s := openStore(t, path)
			for i := range 200 {
				mustRecord(t, s, evaluation(fmt.Sprintf("d%d.example", i), 1))
			}
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			damage(t, f)
			f.Close()
			for i := range 200 {
				if err := s.RecordEvaluation(t.Context(), evaluation(fmt.Sprintf("d%d.example", i), 2)); err != nil {
					t.Fatal(err)
				}
			}
			gs, err := s.Groups(t.Context(), noon.Add(24*time.Hour))
			if err != nil { // the damage may have been found only now
				gs = groups(t, s, noon.Add(24*time.Hour))
			}
			if left := aside(t, path); len(left) != 1 {
				t.Errorf("set aside: %v", left)
			}
			if slices.ContainsFunc(gs, func(g ruapost.Group) bool { return g.Total > 2 }) {
				t.Errorf("groups %+v", gs)
			}
			mustRecord(t, s, evaluation("after.example", 1))
		})
	}
}

func overwrite(t *testing.T, f *os.File, at, n int64, with byte) {
	t.Helper()
	if _, err := f.WriteAt(slices.Repeat([]byte{with}, int(n)), at); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, f *os.File, size int64) {
	t.Helper()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

// An empty file, made by hand to set its owner, and one that was removed while the
// program runs, are begun anew.
func TestEmptyAndRemovedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, path)
	mustRecord(t, s, evaluation("example.com", 1))
	h, err := open(path) // the store has closed it
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	h.Close()
	mustRecord(t, s, evaluation("example.com", 2))
	if gs := groups(t, s, noon.Add(24*time.Hour)); len(gs) != 1 || gs[0].Total != 1 {
		t.Errorf("groups %+v", gs)
	}
}

// Names invented below a domain leave room for its own mail.
func TestInventedNamesLeaveRoom(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	for i := range 2 * MaxOrganizationGroups {
		mustRecord(t, s, forged(fmt.Sprintf("invented%d.victim.example", i), 1))
	}
	mustRecord(t, s, evaluation("victim.example", 1))
	gs := groups(t, s, noon.Add(24*time.Hour))
	if len(gs) != MaxOrganizationGroups/2+1 || gs[len(gs)-1].Domain != "victim.example" {
		t.Errorf("%d groups, the last is %s", len(gs), gs[len(gs)-1].Domain)
	}
}

// Many names below one that somebody registered to throw away do not have the room of
// many domains.
func TestThrowawayRowsLeaveRoom(t *testing.T) {
	for name, b := range map[string]bounds{
		"rows":  {1000, 50, 8, 100, 1 << 20, 10_000, 1 << 20},
		"bytes": {1000, 50, 8, 1000, 100 * 228, 10_000, 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			s := small(t, b)
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			const names = 10
			for i := range names {
				domain := fmt.Sprintf("s%d.throwaway.example", i)
				mustRecord(t, s, evaluation(domain, 0))
				for octet := range 150 {
					if err := s.RecordEvaluation(ended, evaluation(domain, byte(octet))); err != nil && !errors.Is(err, ErrQueued) {
						t.Fatal(err)
					}
				}
				mustRecord(t, s, evaluation(domain, 0))
			}
			for i, g := range groups(t, s, noon.Add(24*time.Hour)) {
				if most := int64(100 / (i + 1)); g.Rows > most || g.Rows < most/2 || g.Total != 152 {
					t.Errorf("%s: %d rows, want at most %d; total %d", g.Domain, g.Rows, most, g.Total)
				}
			}
		})
	}
}

// A value that cannot be decoded would keep every batch from being written: the file is
// damaged, though bbolt finds no fault in it.
func TestUndecodableValue(t *testing.T) {
	for name, c := range map[string]struct{ bucket, key []byte }{
		"known":  {knownBucket, []byte("example.known")},
		"group":  {groupsBucket, nil},
		"usage":  {metaBucket, usageKey},
		"counts": {metaBucket, knownKey},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, filepath.Join(t.TempDir(), "db"))
			e := evaluation("example.com", 1)
			e.OrganizationalDomain = "known.example"
			mustRecord(t, s, e)
			err := s.update(t.Context(), func(tx *bolt.Tx) error {
				b, key := tx.Bucket(c.bucket), c.key
				if key == nil {
					key, _ = b.Cursor().First()
				}
				return b.Put(slices.Clone(key), []byte("short"))
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := s.RecordEvaluation(ctx, e); err != nil {
				t.Errorf("record: %v", err)
			}
			if left := aside(t, s.path); len(left) != 1 {
				t.Errorf("set aside: %v", left)
			}
		})
	}
}

// A file that is damaged soon after another is not to blame, and not set aside; one that
// was set aside is never overwritten.
func TestDamagedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	damage := func() {
		t.Helper()
		mustRecord(t, s, evaluation("example.com", 1))
		h, err := open(path) // the store has closed it
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		overwrite(t, f, 0, 2*int64(os.Getpagesize()), 0)
	}
	damage()
	damage()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.RecordEvaluation(ctx, evaluation("example.com", 2)); !errors.Is(err, ErrQueued) {
		t.Errorf("record: %v", err)
	}
	first := aside(t, path)
	if len(first) != 1 {
		t.Fatalf("set aside: %v", first)
	}
	// An hour later.
	if err := os.Rename(first[0], path+".damaged-"+time.Now().Add(-damageEach).UTC().Format(damageTime)); err != nil {
		t.Fatal(err)
	}
	mustRecord(t, s, evaluation("example.com", 3))
	if left := aside(t, path); len(left) != 2 {
		t.Errorf("set aside: %v", left)
	}
	taken := path + ".damaged-20261122T120000Z"
	for _, want := range []string{taken, taken + "-2", taken + "-3"} {
		name, err := unusedName(taken)
		if err != nil || name != want {
			t.Errorf("name %s, %v, want %s", name, err, want)
		}
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
