package bboltstore

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// suppress stores a suppression, or deletes it.
func suppress(t *testing.T, s *Store, sup ruapost.Suppression, keep bool) error {
	t.Helper()
	return s.UpdateSuppression(t.Context(), sup.Pattern, func(stored *ruapost.Suppression) bool {
		*stored = sup
		return keep
	})
}

func suppressions(t *testing.T, s *Store) []ruapost.Suppression {
	t.Helper()
	all, err := s.Suppressions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestSuppressionBound(t *testing.T) {
	if MaxSuppressions != 100_000 {
		t.Errorf("MaxSuppressions is %d", MaxSuppressions)
	}
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	if s.maxSuppressions != MaxSuppressions {
		t.Errorf("the store's bound is %d", s.maxSuppressions)
	}
	s.maxSuppressions = 3
	for _, pattern := range []string{"a", "b", "c"} {
		if err := suppress(t, s, ruapost.Suppression{Pattern: pattern}, true); err != nil {
			t.Fatal(err)
		}
	}
	was := testutil.ToFloat64(dropped.WithLabelValues("suppressions"))
	if err := suppress(t, s, ruapost.Suppression{Pattern: "d"}, true); !errors.Is(err, ruapost.ErrNoRoom) {
		t.Errorf("past the bound: %v", err)
	}
	if is := testutil.ToFloat64(dropped.WithLabelValues("suppressions")); is != was+1 {
		t.Errorf("it was counted %v times", is-was)
	}
	// Those that are there can be changed, and one that goes makes room.
	err := errors.Join(
		suppress(t, s, ruapost.Suppression{Pattern: "a", Bounces: 1}, true),
		suppress(t, s, ruapost.Suppression{Pattern: "d"}, false),
		suppress(t, s, ruapost.Suppression{Pattern: "b"}, false),
		suppress(t, s, ruapost.Suppression{Pattern: "d"}, true),
	)
	if err != nil {
		t.Error(err)
	}
	want := []ruapost.Suppression{{Pattern: "a", Bounces: 1}, {Pattern: "c"}, {Pattern: "d"}}
	if d := cmp.Diff(want, suppressions(t, s)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if st, err := s.Stats(t.Context()); err != nil || st.Suppressions != 3 {
		t.Errorf("stats %+v, %v", st, err)
	}
	checkStore(t, s)
}

// The bound is that of the JSON form, in which an octet can become six.
func TestSuppressionIsCut(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	for _, c := range []string{"x", "\u00e4", "\U0001F4E8", "<", "\x01", "\xff", "a\u00e4<\x01"} {
		for _, n := range []int{1, 100, 150, 200, 900, 1000, 10_000} {
			sup := ruapost.Suppression{Pattern: "a@example.com", Since: noon, Until: noon, Bounces: 7, Reason: strings.Repeat(c, n)}
			whole, err := json.Marshal(sup)
			if err := errors.Join(err, suppress(t, s, sup, true)); err != nil {
				t.Fatal(err)
			}
			got := suppressions(t, s)[0]
			var kept int
			err = s.view(t.Context(), func(tx *bolt.Tx) error {
				kept = len(tx.Bucket(suppressedBucket).Get([]byte(sup.Pattern)))
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			// No more is cut than a character or two.
			if kept > MaxSuppressionBytes || kept < min(len(whole), MaxSuppressionBytes)-24 {
				t.Errorf("%d times %q: %d bytes were kept of %d", n, c, kept, len(whole))
			}
			if got.Bounces != 7 || !got.Until.Equal(noon) {
				t.Errorf("%d times %q: kept %+v", n, c, got)
			}
		}
	}
	for _, pattern := range []string{strings.Repeat("x", MaxSuppressionBytes-10), strings.Repeat("<", 200)} {
		if err := suppress(t, s, ruapost.Suppression{Pattern: pattern, Reason: "x"}, true); err == nil || errors.Is(err, ruapost.ErrNoRoom) {
			t.Errorf("a pattern of %d octets: %v", len(pattern), err)
		}
	}
	if got := suppressions(t, s); len(got) != 1 {
		t.Errorf("%d are kept", len(got))
	}
	checkStore(t, s)
}

func TestCountBound(t *testing.T) {
	if MaxCounts != 200 {
		t.Errorf("MaxCounts is %d", MaxCounts)
	}
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	all := map[string]uint64{}
	for i := range MaxCounts {
		all[fmt.Sprintf("n%03d", i)] = 1
	}
	if err := s.Count(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	was := testutil.ToFloat64(dropped.WithLabelValues("counts"))
	if err := s.Count(t.Context(), map[string]uint64{"another": 1, "n000": 1}); !errors.Is(err, ruapost.ErrNoRoom) {
		t.Errorf("past the bound: %v", err)
	}
	if is := testutil.ToFloat64(dropped.WithLabelValues("counts")); is != was+1 {
		t.Errorf("it was counted %v times", is-was)
	}
	all["n000"] = 2
	if got, err := s.Counts(t.Context()); err != nil || !cmp.Equal(all, got) {
		t.Errorf("%v, %v", got, err)
	}
	if err := s.Count(t.Context(), map[string]uint64{strings.Repeat("x", MaxCountBytes+1): 1}); err == nil {
		t.Error("an overlong name was counted")
	}
	if st, err := s.Stats(t.Context()); err != nil || st.Counts != MaxCounts {
		t.Errorf("stats %+v, %v", st, err)
	}
	checkStore(t, s)
}

// A file of schema 5 gets the buckets and a secret; what it holds stays, to the octet.
func TestMigrationToSuppressions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	mustRecord(t, s, evaluation("example.net", 1))
	sent(t, s, noon, "known.example")
	mustPut(t, s, policy("a.example", ""))
	// As schema 5 had it.
	const report = `{"id":"r1","kind":"dmarc","domain":"example.com","window":{"start":"2026-11-21T00:00:00Z","end":"2026-11-22T00:00:00Z"},` +
		`"sealed":"2026-11-22T00:00:00Z","state":"composed","groups":null,"recipients":[{"uri":"mailto:a@example.com!10m","address":"a@example.com",` +
		`"max_size":10485760,"accepted":true,"state":"waiting","attempts":2,"not_before":"2026-11-22T01:00:00Z","error":"exit status 75"}]}`
	err := errors.Join(
		s.RecordSessionsAt(t.Context(), nil, ruapost.Position{Source: "mail.log", At: "1"}),
		s.update(t.Context(), func(tx *bolt.Tx) error { return tx.Bucket(reportsBucket).Put([]byte("r1"), []byte(report)) }),
	)
	version, err2 := s.STSVersion(t.Context())
	was, err3 := s.Secret(t.Context())
	if err := errors.Join(err, err2, err3, s.Close()); err != nil {
		t.Fatal(err)
	}
	downgrade(t, path, 5)

	// Several processes find it at the same time, and have one secret.
	stores := []*Store{openStore(t, path), openStore(t, path)}
	s = stores[0]
	secret, err := s.Secret(t.Context())
	other, err2 := stores[1].Secret(t.Context())
	if err := errors.Join(err, err2); err != nil || len(secret) != secretLen || !bytes.Equal(secret, other) || bytes.Equal(secret, was) {
		t.Errorf("secrets %x, %x; of the file before %x; %v", secret, other, was, err)
	}
	err = s.view(t.Context(), func(tx *bolt.Tx) error {
		if v := tx.Bucket(reportsBucket).Get([]byte("r1")); string(v) != report {
			t.Errorf("report %s", v)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	r, err := s.Report(t.Context(), "r1")
	if err != nil || r.State != ruapost.ReportComposed || r.Recipients[0].State != ruapost.RecipientWaiting || r.Recipients[0].Attempts != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	if is, err := s.STSVersion(t.Context()); err != nil || is != version {
		t.Errorf("STSVersion was %d, is %d, %v", version, is, err)
	}
	err = errors.Join(suppress(t, s, ruapost.Suppression{Pattern: "a"}, true), s.Count(t.Context(), map[string]uint64{"n": 1}))
	st, err2 := stores[1].Stats(t.Context())
	if err := errors.Join(err, err2); err != nil || st.Schema != schema || st.Suppressions != 1 || st.Counts != 1 || st.Positions != 1 ||
		st.STSPolicies != 1 || st.KnownDomains != 1 || st.Rows != 1 || st.Reports != 1 {
		t.Errorf("stats %+v, %v", st, err)
	}
	checkStore(t, s)
	if left := aside(t, path); len(left) > 0 {
		t.Errorf("set aside: %v", left)
	}
}

// withoutSecret returns an export as if it were one of before schema 6, if there are no
// suppressions and counters, and no message has failed.
func withoutSecret(export string) string {
	var rest strings.Builder
	for line := range strings.Lines(export) {
		if !strings.HasPrefix(line, `{"secret"`) && !strings.HasPrefix(line, `{"tally"`) {
			rest.WriteString(passed.ReplaceAllString(line, ""))
		}
	}
	return rest.String()
}

// passed is what schema 7 has added to a group.
var passed = regexp.MustCompile(`,"passed":[0-9]+`)

func TestExportSuppressions(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	sup := func(pattern string, day int) ruapost.Suppression {
		return ruapost.Suppression{Pattern: pattern, Since: noon.AddDate(0, 0, day), Reason: fmt.Sprint(day)}
	}
	for _, x := range []ruapost.Suppression{sup("newer", 1), sup("older", 1), sup("other", 1)} {
		if err := suppress(t, s, x, true); err != nil {
			t.Fatal(err)
		}
	}
	secret, err := s.Secret(t.Context())
	var exported, again bytes.Buffer
	err = errors.Join(err, s.Count(t.Context(), map[string]uint64{"n": 1<<64 - 3, "m": 2}), s.Export(t.Context(), &exported))
	if err != nil {
		t.Fatal(err)
	}

	// The same comes out of a fresh one, with the secret: tokens stay good.
	fresh := openStore(t, filepath.Join(t.TempDir(), "db"))
	if err := errors.Join(fresh.Import(t.Context(), bytes.NewReader(exported.Bytes())), fresh.Export(t.Context(), &again)); err != nil {
		t.Fatal(err)
	}
	if exported.String() != again.String() {
		t.Errorf("exported %s, then %s", &exported, &again)
	}
	if got, err := fresh.Secret(t.Context()); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("secret %x, want %x, %v", got, secret, err)
	}
	checkStore(t, fresh)

	// What is there is no hindrance, whatever bounds there are.
	moved := openStore(t, filepath.Join(t.TempDir(), "db"))
	err = errors.Join(
		suppress(t, moved, sup("newer", 2), true), suppress(t, moved, sup("older", 0), true),
		moved.Count(t.Context(), map[string]uint64{"n": 1, "m": 1}),
	)
	if err != nil {
		t.Fatal(err)
	}
	moved.maxSuppressions = 0
	if err := moved.Import(t.Context(), bytes.NewReader(exported.Bytes())); err != nil {
		t.Fatal(err)
	}
	want := []ruapost.Suppression{sup("newer", 2), sup("older", 1), sup("other", 1)}
	if d := cmp.Diff(want, suppressions(t, moved)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	got, err := moved.Counts(t.Context())
	if d := cmp.Diff(map[string]uint64{"n": 1<<64 - 2, "m": 3}, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	checkStore(t, moved)

	// An export of schema 5 leaves the store its own secret.
	own, err := s.Secret(t.Context())
	err = errors.Join(err, s.Import(t.Context(), strings.NewReader(`{"ruapost_store":1,"last_group":2}`+"\n"+
		`{"known":{"domain":"a.example","passed":"2026-11-21"}}`+"\n"+
		`{"sts":{"domain":"a.example","id":"1","mode":"none","fetched":"2026-11-23T12:00:00Z","expires":"2026-11-23T12:00:00Z","used":"2026-11-23T12:00:00Z"}}`)))
	if err != nil {
		t.Fatal(err)
	}
	if is, err := s.Secret(t.Context()); err != nil || !bytes.Equal(is, own) {
		t.Errorf("the secret was %x, is %x, %v", own, is, err)
	}

	for _, text := range []string{
		`{"secret":""}`, `{"secret":"AAAA"}`, `{"suppression":{}}`, `{"count":{}}`, `{"count":{"name":"n","n":-1}}`,
		`{"suppression":{"pattern":"` + strings.Repeat("x", MaxSuppressionBytes) + `"}}`,
		`{"count":{"name":"` + strings.Repeat("x", MaxCountBytes+1) + `"}}`,
	} {
		s := openStore(t, filepath.Join(t.TempDir(), "db"))
		if err := s.Import(t.Context(), strings.NewReader(`{"ruapost_store":1}`+"\n"+text)); err == nil {
			t.Errorf("%.100q was imported", text)
		}
	}
}

func TestCheckFindsFaultsOfSuppressions(t *testing.T) {
	for name, damage := range map[string]func(*bolt.Tx) error{
		"one too few": func(tx *bolt.Tx) error { return tx.Bucket(suppressedBucket).Delete([]byte("a")) },
		"one too many": func(tx *bolt.Tx) error {
			return tx.Bucket(suppressedBucket).Put([]byte("b"), []byte(`{"pattern":"b"}`))
		},
		"another pattern": func(tx *bolt.Tx) error {
			return tx.Bucket(suppressedBucket).Put([]byte("a"), []byte(`{"pattern":"b"}`))
		},
		"no JSON":         func(tx *bolt.Tx) error { return tx.Bucket(suppressedBucket).Put([]byte("a"), []byte("x")) },
		"another number":  func(tx *bolt.Tx) error { return count(tx.Bucket(metaBucket), suppressedKey, 1) },
		"a short counter": func(tx *bolt.Tx) error { return tx.Bucket(countsBucket).Put([]byte("n"), []byte("x")) },
		"no secret":       func(tx *bolt.Tx) error { return tx.Bucket(metaBucket).Delete(secretKey) },
		"a short secret":  func(tx *bolt.Tx) error { return tx.Bucket(metaBucket).Put(secretKey, []byte("x")) },
		"report no JSON":  func(tx *bolt.Tx) error { return tx.Bucket(reportsBucket).Put([]byte("r"), []byte("x")) },
		"another report":  func(tx *bolt.Tx) error { return tx.Bucket(reportsBucket).Put([]byte("r"), []byte(`{"id":"q"}`)) },
	} {
		s := openStore(t, filepath.Join(t.TempDir(), "db"))
		if err := suppress(t, s, ruapost.Suppression{Pattern: "a"}, true); err != nil {
			t.Fatal(err)
		}
		checkStore(t, s)
		if err := s.update(t.Context(), damage); err != nil {
			t.Fatal(err)
		}
		if faults, err := s.Check(t.Context()); err != nil || len(faults) == 0 {
			t.Errorf("%s: faults %v, %v", name, faults, err)
		}
	}
}

// A report that cannot be read is an error of whoever wants it, and the file stays.
func TestUndecodableReport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	err := s.update(t.Context(), func(tx *bolt.Tx) error { return tx.Bucket(reportsBucket).Put([]byte("r1"), []byte("x")) })
	if err != nil {
		t.Fatal(err)
	}
	if r, err := s.Report(t.Context(), "r1"); r != nil || err == nil || errors.Is(err, ruapost.ErrNoReport) {
		t.Errorf("Report: %+v, %v", r, err)
	}
	err = s.UpdateReport(t.Context(), "r1", func(*ruapost.Report) error {
		t.Error("called with a report that cannot be read")
		return nil
	})
	if err == nil || errors.Is(err, ruapost.ErrNoReport) {
		t.Errorf("UpdateReport: %v", err)
	}
	for _, err := range s.Reports(t.Context()) {
		if err == nil {
			t.Error("Reports: no error")
		}
	}
	if err := s.ForgetReport(t.Context(), "r1"); err != nil {
		t.Error(err)
	}
	if left := aside(t, path); len(left) > 0 {
		t.Errorf("set aside: %v", left)
	}
}

// A counter that is damaged reads as none.
func TestShortCounter(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	err := s.update(t.Context(), func(tx *bolt.Tx) error {
		return errors.Join(
			tx.Bucket(countsBucket).Put([]byte("n"), []byte("x")),
			tx.Bucket(countsBucket).Put([]byte("m"), binary.BigEndian.AppendUint64(nil, 5)),
		)
	})
	if err := errors.Join(err, s.Count(t.Context(), map[string]uint64{"n": 2})); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Counts(t.Context()); err != nil || got["n"] != 2 || got["m"] != 5 {
		t.Errorf("%v, %v", got, err)
	}
}
