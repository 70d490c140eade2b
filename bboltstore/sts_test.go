package bboltstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// policy returns a policy whose JSON form grows with the text.
func policy(domain, text string) ruapost.STSPolicy {
	return ruapost.STSPolicy{Domain: domain, Mode: "enforce", MX: []string{"mx." + domain}, Text: []string{text}, Fetched: noon}
}

func sizeOf(t *testing.T, p ruapost.STSPolicy) uint64 {
	t.Helper()
	v, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(len(v))
}

func mustPut(t *testing.T, s *Store, policies ...ruapost.STSPolicy) {
	t.Helper()
	for _, p := range policies {
		if err := s.PutSTSPolicy(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
}

// wantRefused puts a policy that the bound has no room for.
func wantRefused(t *testing.T, s *Store, limit string, p ruapost.STSPolicy) {
	t.Helper()
	was := testutil.ToFloat64(dropped.WithLabelValues(limit))
	before, err := s.STSPolicy(t.Context(), p.Domain)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.PutSTSPolicy(t.Context(), p); !errors.Is(err, ruapost.ErrNoRoom) || !strings.Contains(err.Error(), limit) {
		t.Errorf("put policy of %s: %v, want %s", p.Domain, err, limit)
	}
	if is := testutil.ToFloat64(dropped.WithLabelValues(limit)); is != was+1 {
		t.Errorf("%s was counted %v times", limit, is-was)
	}
	after, err := s.STSPolicy(t.Context(), p.Domain)
	if d := cmp.Diff(before, after); err != nil || d != "" {
		t.Errorf("a refused policy has changed what was there, %v:\n%s", err, d)
	}
}

// stsNumbers returns the number and size of all policies.
func stsNumbers(t *testing.T, s *Store) usage {
	t.Helper()
	st, err := s.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return usage{st.STSPolicies, st.STSBytes}
}

func TestSTSBoundOfPolicies(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	s.stsBounds.policies = 3
	mustPut(t, s, policy("a.example", ""), policy("b.example", ""), policy("c.example", ""))
	wantRefused(t, s, "sts_policies", policy("d.example", ""))
	mustPut(t, s, policy("b.example", "a longer one takes its place"))
	if _, err := s.DeleteSTSPolicies(t.Context(), []string{"a.example"}); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, policy("d.example", ""))
	wantRefused(t, s, "sts_policies", policy("a.example", ""))
	checkStore(t, s)
}

// A wildcard makes policies of any name below one that somebody has registered.
func TestSTSBoundOfOrganization(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	mustPut(t, s, policy("wild.co.uk", ""), policy("honest.co.uk", ""))
	for i := range MaxOrganizationSTSPolicies - 1 {
		mustPut(t, s, policy(fmt.Sprintf("a.d%d.wild.co.uk", i), ""))
	}
	wantRefused(t, s, "sts_organization", policy("late.wild.co.uk", ""))
	mustPut(t, s, policy("a.d7.wild.co.uk", "again"), policy("late.honest.co.uk", ""), policy("co.uk", ""), policy("uk", ""))
	if n, err := s.DeleteSTSPolicies(t.Context(), []string{"a.d7.wild.co.uk", "wild.co.uk"}); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	mustPut(t, s, policy("late.wild.co.uk", ""), policy("wild.co.uk", ""))
	wantRefused(t, s, "sts_organization", policy("a.d7.wild.co.uk", ""))
	checkStore(t, s)
}

func TestSTSBoundOfBytes(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	a, b := policy("a.example", strings.Repeat("x", 500)), policy("b.example", strings.Repeat("x", 500))
	full := usage{2, sizeOf(t, a) + sizeOf(t, b)}
	s.stsBounds.bytes = full.bytes
	mustPut(t, s, a, b, a)
	if got := stsNumbers(t, s); got != full {
		t.Errorf("%+v, want %+v", got, full)
	}
	wantRefused(t, s, "sts_bytes", policy("c.example", ""))
	wantRefused(t, s, "sts_bytes", policy("b.example", strings.Repeat("x", 501)))
	mustPut(t, s, policy("b.example", strings.Repeat("x", 499)))
	wantRefused(t, s, "sts_bytes", policy("c.example", ""))
	s.stsBounds.bytes++
	mustPut(t, s, policy("b.example", strings.Repeat("x", 501)))
	// A version with smaller bounds came: what does not grow may still be kept.
	s.stsBounds.bytes = 10
	mustPut(t, s, policy("b.example", strings.Repeat("y", 501)), policy("a.example", ""))
	wantRefused(t, s, "sts_bytes", policy("a.example", "x"))
	checkStore(t, s)
}

func TestSTSBoundOfAPolicy(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	p := policy("a.example", "")
	p.Text[0] = strings.Repeat("x", int(MaxSTSPolicyBytes-sizeOf(t, p)))
	mustPut(t, s, p)
	larger := policy("a.example", p.Text[0]+"x")
	wantRefused(t, s, "sts_policy_bytes", larger)
	checkStore(t, s)
}

// The bounds as they are: nothing in them is so large that a program could not go on.
func TestSTSBounds(t *testing.T) {
	if want := (stsBounds{50_000, 128, 128 << 20}); defaultSTSBounds != want {
		t.Errorf("%+v", defaultSTSBounds)
	}
	if MaxSTSPolicyBytes != 16<<10 || MaxPositions != 64 || MaxPositionBytes != 1<<10 {
		t.Error(MaxSTSPolicyBytes, MaxPositions, MaxPositionBytes)
	}
}

// A policy that cannot be read would stay for ever, and so would a count: the file is
// damaged.
func TestUndecodableSTS(t *testing.T) {
	for name, c := range map[string]struct {
		bucket, key []byte
		value       string
		read        bool // a reader finds it, else who writes
	}{
		"no JSON":        {stsBucket, []byte("a.example"), "x", true},
		"empty":          {stsBucket, []byte("a.example"), "", true},
		"another domain": {stsBucket, []byte("a.example"), `{"domain":"b.example"}`, true},
		"usage":          {metaBucket, stsKey, "short", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, filepath.Join(t.TempDir(), "db"))
			mustPut(t, s, policy("a.example", ""))
			err := s.update(t.Context(), func(tx *bolt.Tx) error { return tx.Bucket(c.bucket).Put(c.key, []byte(c.value)) })
			if err != nil {
				t.Fatal(err)
			}
			if faults, err := s.Check(t.Context()); err != nil || len(faults) == 0 {
				t.Errorf("check: %v, %v", faults, err)
			}
			if c.read {
				_, err = s.STSPolicies(t.Context(), "", 10)
			} else {
				err = s.PutSTSPolicy(t.Context(), policy("b.example", ""))
			}
			if !errors.Is(err, errUndecodable) {
				t.Errorf("error %v", err)
			}
			if p, err := s.STSPolicy(t.Context(), "a.example"); p != nil || err != nil {
				t.Errorf("then: %+v, %v", p, err)
			}
			mustPut(t, s, policy("a.example", ""))
			if left := aside(t, s.path); len(left) != 1 {
				t.Errorf("set aside: %v", left)
			}
		})
	}
}

func TestCheckFindsFaultsOfSTS(t *testing.T) {
	for name, damage := range map[string]func(*stsPolicies) error{
		"one too few":    func(b *stsPolicies) error { return b.policies.Delete([]byte("a.example")) },
		"one too many":   func(b *stsPolicies) error { return b.policies.Put([]byte("b"), []byte(`{"domain":"b"}`)) },
		"another value":  func(b *stsPolicies) error { return b.policies.Put([]byte("a.example"), []byte("x")) },
		"another usage":  func(b *stsPolicies) error { return b.tx.Bucket(metaBucket).Put(stsKey, make([]byte, 16)) },
		"no usage":       func(b *stsPolicies) error { return b.tx.Bucket(metaBucket).Put(stsKey, []byte("x")) },
		"another count":  func(b *stsPolicies) error { return count(b.names, []byte("a.example"), 1) },
		"no count":       func(b *stsPolicies) error { return b.names.Delete([]byte("a.example")) },
		"count of none":  func(b *stsPolicies) error { return count(b.names, []byte("b.example"), 1) },
		"a short count":  func(b *stsPolicies) error { return b.names.Put([]byte("a.example"), []byte("x")) },
		"empty position": func(b *stsPolicies) error { return b.tx.Bucket(positionsBucket).Put([]byte("x"), nil) },
		"long position": func(b *stsPolicies) error {
			return b.tx.Bucket(positionsBucket).Put([]byte("x"), make([]byte, MaxPositionBytes+1))
		},
		"many positions": func(b *stsPolicies) (err error) {
			for i := range MaxPositions + 1 {
				err = errors.Join(err, b.tx.Bucket(positionsBucket).Put([]byte{byte(i)}, []byte("x")))
			}
			return err
		},
	} {
		s := openStore(t, filepath.Join(t.TempDir(), "db"))
		mustPut(t, s, policy("a.example", ""))
		checkStore(t, s)
		err := s.update(t.Context(), func(tx *bolt.Tx) error {
			b, err := loadSTS(tx)
			return errors.Join(err, damage(b))
		})
		if err != nil {
			t.Fatal(err)
		}
		if faults, err := s.Check(t.Context()); err != nil || len(faults) == 0 {
			t.Errorf("%s: faults %v, %v", name, faults, err)
		}
	}
}

// A new file has versions that no old one had: to whoever knows one of these, policies
// have changed. A compacted file is the same.
func TestSTSVersionOfANewFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	mustPut(t, s, policy("a.example", ""), policy("b.example", ""))
	version := func() uint64 {
		n, err := s.STSVersion(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	was := version()
	if err := s.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	if is := version(); is != was {
		t.Errorf("version was %d, is %d in the compacted file", was, is)
	}
	h, err := open(path) // the store has closed it
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), h.Close()); err != nil {
		t.Fatal(err)
	}
	if is := version(); is <= was {
		t.Errorf("version was %d, is %d in a new file", was, is)
	}
}

func TestExportSTS(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	fetched := func(domain string, days int) ruapost.STSPolicy {
		p := policy(domain, fmt.Sprint(days))
		p.Fetched = noon.AddDate(0, 0, days)
		return p
	}
	older, same, newer := fetched("older.example", 1), fetched("same.example", 1), fetched("newer.example", 1)
	mustPut(t, s, older, same, newer, fetched("new.example", 1))
	if err := s.RecordSessionsAt(t.Context(), nil, ruapost.Position{Source: "mail.log", At: "1"}); err != nil {
		t.Fatal(err)
	}
	var exported bytes.Buffer
	if err := s.Export(t.Context(), &exported); err != nil {
		t.Fatal(err)
	}
	if text := withoutSecret(exported.String()); strings.Count(text, "\n") != 5 || !strings.Contains(text, `{"sts":{"domain":"new.example",`) {
		t.Errorf("exported %s", text)
	}

	// What was fetched later stays, whatever bounds there are.
	moved := openStore(t, filepath.Join(t.TempDir(), "db"))
	there := []ruapost.STSPolicy{fetched("older.example", 0), policy("same.example", "other"), fetched("newer.example", 2)}
	there[1].Fetched = same.Fetched
	mustPut(t, moved, there...)
	moved.stsBounds = stsBounds{}
	was, err := moved.STSVersion(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := moved.Import(t.Context(), bytes.NewReader(exported.Bytes())); err != nil {
		t.Fatal(err)
	}
	got, err := moved.STSPolicies(t.Context(), "", 10)
	want := []ruapost.STSPolicy{fetched("new.example", 1), there[2], older, there[1]}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	is, err := moved.STSVersion(t.Context())
	if err != nil || is == was {
		t.Errorf("version was %d, is %d, %v", was, is, err)
	}
	if err := moved.Import(t.Context(), bytes.NewReader(exported.Bytes())); err != nil {
		t.Errorf("the same once more: %v", err)
	}
	if again, err := moved.STSVersion(t.Context()); err != nil || again != is {
		t.Errorf("nothing was newer, but the version was %d and is %d, %v", is, again, err)
	}
	if at, err := moved.Position(t.Context(), "mail.log"); at != "" || err != nil {
		t.Errorf("position %q, %v", at, err)
	}
	checkStore(t, moved)

	fresh := openStore(t, filepath.Join(t.TempDir(), "db"))
	var again bytes.Buffer
	err = errors.Join(fresh.Import(t.Context(), bytes.NewReader(exported.Bytes())), fresh.Export(t.Context(), &again))
	if err != nil || !bytes.Equal(exported.Bytes(), again.Bytes()) {
		t.Errorf("the second export differs, %v: %s", err, &again)
	}
	for _, text := range []string{
		`{"sts":{}}`, `{"sts":{"domain":"` + strings.Repeat("x", 254) + `"}}`, `{"sts":{"domain":"a.example","fetched":"today"}}`,
		`{"sts":{"domain":"a.example","id":"` + strings.Repeat("x", MaxSTSPolicyBytes) + `"}}`,
	} {
		s := openStore(t, filepath.Join(t.TempDir(), "db"))
		if err := s.Import(t.Context(), strings.NewReader(`{"ruapost_store":1}`+"\n"+text)); err == nil {
			t.Errorf("%.100q was imported", text)
		}
	}
}

// What is exported of a file of schema 4 has no policies, and what it holds otherwise
// stays.
func TestMigrationToSTS(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	mustRecord(t, s, evaluation("example.net", 1), evaluation("example.net", 2), evaluation("sealed.example", 1))
	sent(t, s, noon, "known.example")
	gs := groups(t, s, noon.Add(24*time.Hour))
	if err := s.Seal(t.Context(), &ruapost.Report{ID: "r1", Groups: gs[1:]}); err != nil {
		t.Fatal(err)
	}
	var exported, again bytes.Buffer
	if err := errors.Join(s.Export(t.Context(), &exported), s.Close()); err != nil {
		t.Fatal(err)
	}
	downgrade(t, path, 4)

	// Several processes find it at the same time.
	stores := []*Store{openStore(t, path), openStore(t, path)}
	s = stores[0]
	if err := s.Export(t.Context(), &again); err != nil || withoutSecret(exported.String()) != withoutSecret(again.String()) {
		t.Errorf("the export differs, %v: %s", err, &again)
	}
	n, err := stores[1].STSVersion(t.Context())
	if err != nil || n == 0 {
		t.Errorf("version %d, %v", n, err)
	}
	if p, err := s.STSPolicy(t.Context(), "a.example"); p != nil || err != nil {
		t.Errorf("policy %+v, %v", p, err)
	}
	mustPut(t, s, policy("a.example", ""))
	if err := s.RecordSessionsAt(t.Context(), nil, ruapost.Position{Source: "mail.log", At: "1"}); err != nil {
		t.Error(err)
	}
	st, err := stores[1].Stats(t.Context())
	if err != nil || st.Schema != schema || st.STSPolicies != 1 || st.Positions != 1 || st.KnownDomains != 1 || st.Rows != 3 {
		t.Errorf("stats %+v, %v", st, err)
	}
	checkStore(t, s)
	if left := aside(t, path); len(left) > 0 {
		t.Errorf("set aside: %v", left)
	}
}

// A file that is locked keeps nobody waiting for longer than they want, and a policy that
// was not put then is not put later.
func TestSTSWhileLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	other, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err1 := s.STSPolicy(ctx, "a.example")
	err2 := s.PutSTSPolicy(ctx, policy("a.example", ""))
	n, err3 := s.DeleteSTSPolicies(ctx, []string{"a.example"})
	for _, err := range []error{err1, err2, err3} {
		if !errors.Is(err, context.DeadlineExceeded) || n != 0 {
			t.Errorf("with the file locked: %d, %v", n, err)
		}
	}
	other.Close()
	mustPut(t, s, policy("b.example", ""))
	if got, err := s.STSPolicies(t.Context(), "", 10); err != nil || len(got) != 1 {
		t.Errorf("policies %+v, %v", got, err)
	}
}

// While a large number is read others have their turn, however large each is.
func TestSTSReadsAreShort(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	var want []string
	for i := range 240 {
		p := policy(fmt.Sprintf("d%03d.example", i), strings.Repeat("x", 15<<10))
		mustPut(t, s, p)
		want = append(want, p.Domain)
	}
	var got []string
	reads := 0
	for more := true; more; reads++ {
		err := s.view(t.Context(), func(tx *bolt.Tx) error {
			after := ""
			if len(got) > 0 {
				after = got[len(got)-1]
			}
			policies, m, err := readSTS(tx, after, chunk)
			more = m
			for _, p := range policies {
				got = append(got, p.Domain)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(got, want) || reads < 3 {
		t.Errorf("%d policies in %d reads", len(got), reads)
	}
	all, err := s.STSPolicies(t.Context(), "", 1000)
	if err != nil || len(all) != len(want) {
		t.Errorf("%d policies, %v", len(all), err)
	}
}
