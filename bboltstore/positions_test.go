package bboltstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	bolt "go.etcd.io/bbolt"

	"ruapost"
)

func session(domain string, failures ...ruapost.TLSFailure) ruapost.Session {
	return ruapost.Session{
		Time: noon, Domain: domain, Policy: ruapost.TLSPolicy{Type: ruapost.PolicySTS, Domain: domain},
		Failed: len(failures) > 0, Failures: failures,
	}
}

func recordAt(t *testing.T, s *Store, source, at string, sessions ...ruapost.Session) {
	t.Helper()
	if err := s.RecordSessionsAt(t.Context(), sessions, ruapost.Position{Source: source, At: at}); err != nil {
		t.Fatal(err)
	}
}

func wantPosition(t *testing.T, s *Store, source, want string) {
	t.Helper()
	if got, err := s.Position(t.Context(), source); err != nil || got != want {
		t.Errorf("position of %q: %q, %v, want %q", source, got, err, want)
	}
}

// TestKilledReaders kills processes that read a log and go on from their position when
// they begin anew: in the end each line is counted, and none twice.
func TestKilledReaders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	var wg sync.WaitGroup
	for _, source := range []string{"a.example", "b.example"} {
		wg.Go(func() {
			for range 10 {
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), "BBOLTSTORE_TEST_READER="+path, "BBOLTSTORE_TEST_SOURCE="+source)
				cmd.Stderr = os.Stderr
				if err := cmd.Start(); err != nil {
					t.Error(err)
					return
				}
				timer := time.AfterFunc(50*time.Millisecond+rand.N(100*time.Millisecond), func() { cmd.Process.Kill() })
				cmd.Wait()
				timer.Stop()
			}
		})
	}
	wg.Wait()
	gs := groups(t, s, noon.Add(24*time.Hour))
	if len(gs) != 2 {
		t.Fatalf("groups %+v", gs)
	}
	for _, g := range gs {
		at, err := s.Position(t.Context(), g.Domain)
		if err != nil || at != fmt.Sprint(g.Total) || g.Total < 20 {
			t.Errorf("%s: %d lines counted, read to %s, %v", g.Domain, g.Total, at, err)
		}
	}
	checkStore(t, s)
}

// readLog is the process of TestKilledReaders: its log has a session in each line, and
// its position is the number of the last one.
func readLog(path, source string) error {
	s, err := Open(path)
	if err != nil {
		return err
	}
	at, err := s.Position(context.Background(), source)
	if err != nil {
		return err
	}
	for line, _ := strconv.Atoi(at); ; {
		sessions := make([]ruapost.Session, 1+rand.N(5))
		for i := range sessions {
			sessions[i] = session(source)
		}
		line += len(sessions)
		if err := s.RecordSessionsAt(context.Background(), sessions, ruapost.Position{Source: source, At: strconv.Itoa(line)}); err != nil {
			return err
		}
	}
}

// Whatever the size of a call, it is one transaction, and calls that come together share
// one. What changes nothing costs no commit.
func TestPositionTransactions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	var many []ruapost.Session
	for i := range 3 * MaxBatch {
		many = append(many, session("example.com", ruapost.TLSFailure{ReceivingMX: fmt.Sprint(i)}))
	}
	was := txid(t, s)
	recordAt(t, s, "mail.log", "1", many...)
	if is := txid(t, s); is != was+1 {
		t.Errorf("%d commits", is-was)
	}
	recordAt(t, s, "mail.log", "1")
	recordAt(t, s, "other.log", "")
	if is := txid(t, s); is != was+1 {
		t.Errorf("%d commits for nothing", is-was-1)
	}

	other, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 20 {
		at := ruapost.Position{Source: []string{"mail.log", "journal"}[i%2], At: fmt.Sprint(i)}
		if err := s.RecordSessionsAt(ended, []ruapost.Session{session("example.org")}, at); !errors.Is(err, ErrQueued) {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	b := s.batches[0]
	if len(s.batches) != 1 || len(b.positions) != 2 || s.queued != b.rows || s.queuedBytes != b.bytes || b.rows != 3 || b.bytes < 2*MaxPositionBytes {
		t.Errorf("%d batches, %d rows of %d bytes, queued %d of %d", len(s.batches), b.rows, b.bytes, s.queued, s.queuedBytes)
	}
	s.mu.Unlock()
	other.Close()
	wantPosition(t, s, "mail.log", "18")
	wantPosition(t, s, "journal", "19")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queued != 0 || s.queuedBytes != 0 {
		t.Errorf("queued %d rows of %d bytes", s.queued, s.queuedBytes)
	}
}

// One that finds no room for its position says so to its caller alone, and is counted.
func TestPositionWithoutRoom(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	for i := range MaxPositions - 1 {
		recordAt(t, s, fmt.Sprint(i), "1")
	}
	cut := testutil.ToFloat64(dropped.WithLabelValues("positions"))
	entries, err := sessionEntries([]ruapost.Session{session("example.com")})
	if err != nil {
		t.Fatal(err)
	}
	var b *batch
	s.mu.Lock() // so that they are one batch
	for _, source := range []string{"0", "y", "z"} {
		b, _ = s.addAt(entries, &ruapost.Position{Source: source, At: "2"})
		b.waiting++
	}
	s.mu.Unlock()
	s.notify()
	<-b.done
	for source, want := range map[string]error{"0": nil, "y": nil, "z": ruapost.ErrNoRoom} {
		if err := b.positions[source].err; b.err != nil || !errors.Is(err, want) {
			t.Errorf("%s: %v, %v, want %v", source, b.err, err, want)
		}
	}
	if err := s.RecordSessionsAt(t.Context(), nil, ruapost.Position{Source: "z", At: "2"}); !errors.Is(err, ruapost.ErrNoRoom) {
		t.Errorf("RecordSessionsAt: %v", err)
	}
	// What is refused in a transaction that is rolled back may find room in the next.
	again := &position{at: "2", err: ruapost.ErrNoRoom}
	err = s.update(t.Context(), func(tx *bolt.Tx) error {
		_, _, err := writePositions(tx, map[string]*position{"0": again})
		return err
	})
	if err != nil || again.err != nil {
		t.Errorf("%v, %v", err, again.err)
	}
	wantPosition(t, s, "0", "2")
	wantPosition(t, s, "y", "2")
	wantPosition(t, s, "z", "")
	if g := groups(t, s, noon.Add(24*time.Hour)); len(g) != 1 || g[0].Total != 3 {
		t.Errorf("groups %+v", g)
	}
	if n := testutil.ToFloat64(dropped.WithLabelValues("positions")) - cut; n != 2 {
		t.Errorf("%v dropped", n)
	}
	checkStore(t, s)
}

// A queue that is full takes neither sessions nor position: they may be given again.
func TestPositionAndFullQueue(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	queue := func(n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.queued += n
	}
	queue(MaxQueue)
	err := s.RecordSessionsAt(t.Context(), []ruapost.Session{session("example.com")}, ruapost.Position{Source: "mail.log", At: "1"})
	if !errors.Is(err, ErrQueueFull) {
		t.Errorf("error %v", err)
	}
	queue(-MaxQueue)
	wantPosition(t, s, "mail.log", "")
	recordAt(t, s, "mail.log", "1", session("example.com"))
	if g := groups(t, s, noon.Add(24*time.Hour)); len(g) != 1 || g[0].Total != 1 {
		t.Errorf("groups %+v", g)
	}
}

// Sessions that the bounds keep out do not come again: the position moves, also in a file
// that has no room at all.
func TestPositionMovesWithoutSessions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	recordAt(t, s, "mail.log", "1", session("example.com"))
	long := strings.Repeat("x", MaxPositionBytes-2)
	for i := range 40 {
		recordAt(t, s, fmt.Sprint(i), long)
	}
	count := func(limit string) float64 { return testutil.ToFloat64(dropped.WithLabelValues(limit)) }

	s.bounds.windowGroups = 1
	was := count("groups")
	recordAt(t, s, "mail.log", "2", session("example.net"), session("example.com"))
	wantPosition(t, s, "mail.log", "2")
	if n := count("groups") - was; n != 1 {
		t.Errorf("%v dropped", n)
	}

	s.bounds = defaultBounds
	var failures []ruapost.TLSFailure
	for i := range 2000 {
		failures = append(failures, ruapost.TLSFailure{ReceivingMX: fmt.Sprint(i)})
	}
	all := session("example.com", failures...) // counting it in once more changes all pages
	recordAt(t, s, "mail.log", "3", all)
	if err := s.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.maxFile = 1
	was = count("file_size")
	other, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 40 { // there are no pages for these either
		if err := s.RecordSessionsAt(ended, nil, ruapost.Position{Source: fmt.Sprint(i), At: fmt.Sprint(long, i)}); !errors.Is(err, ErrQueued) {
			t.Fatal(err)
		}
	}
	if err := s.RecordSessionsAt(ended, []ruapost.Session{session("example.net"), all}, ruapost.Position{Source: "mail.log", At: "4"}); !errors.Is(err, ErrQueued) {
		t.Fatal(err)
	}
	other.Close()
	wantPosition(t, s, "mail.log", "4")
	for i := range 40 {
		wantPosition(t, s, fmt.Sprint(i), fmt.Sprint(long, i))
	}
	if n := count("file_size") - was; n != 2 {
		t.Errorf("%v dropped", n)
	}
	s.maxFile = MaxFileSize
	g := groups(t, s, noon.Add(24*time.Hour))
	if len(g) != 1 || g[0].Total != 3 || g[0].Listed != 2000 {
		t.Errorf("groups %+v", g)
	}

	// A domain that no key can hold.
	err = s.RecordSessionsAt(t.Context(), []ruapost.Session{session(strings.Repeat("x", bolt.MaxKeySize))}, ruapost.Position{Source: "mail.log", At: "5"})
	if err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("error %v", err)
	}
	wantPosition(t, s, "mail.log", "5")
	checkStore(t, s)
}

// Uncounted sessions whose failures have no room leave nothing behind, and one that is
// dropped is counted as such.
func TestUncountedWithoutRoom(t *testing.T) {
	uncounted := func(domain, text string) ruapost.Session {
		se := session(domain, ruapost.TLSFailure{Result: ruapost.ResultSTSPolicyFetchError, Additional: text})
		se.Uncounted = true
		return se
	}
	mustRecord := func(s *Store, sessions ...ruapost.Session) {
		t.Helper()
		if err := s.RecordSessions(t.Context(), sessions); err != nil {
			t.Fatal(err)
		}
	}
	count := func(limit string) float64 { return testutil.ToFloat64(dropped.WithLabelValues(limit)) }

	// 2 groups; 2 rows of those that a forger can make.
	s := small(t, bounds{2, 50, 8, 4, 1 << 20, 1000, 1 << 20})
	was := count("row_bytes")
	mustRecord(s, uncounted("a.example", strings.Repeat("x", MaxRowBytes)))
	if g := groups(t, s, noon.Add(24*time.Hour)); len(g) != 0 || count("row_bytes") != was+1 {
		t.Errorf("groups %+v", g)
	}
	checkStore(t, s)

	mustRecord(s, uncounted("a.example", "1"), uncounted("a.example", "2"), uncounted("b.example", "1"))
	was = count("details")
	mustRecord(s, uncounted("a.example", "3"), uncounted("a.example", "1"), uncounted("a.example", strings.Repeat("x", MaxRowBytes)))
	if n := count("details") - was; n != 1 {
		t.Errorf("%v details dropped", n)
	}
	was = count("groups")
	mustRecord(s, uncounted("c.example", "1"), uncounted("c.example", "2"))
	if n := count("groups") - was; n != 2 {
		t.Errorf("%v dropped", n)
	}
	g := groups(t, s, noon.Add(24*time.Hour))
	if len(g) != 2 || g[0].Total != 0 || g[0].Rows != 2 || g[0].Listed != 3 || g[0].Failed != 0 {
		t.Errorf("groups %+v", g)
	}
	checkStore(t, s)
}

// A position that is too long is refused with its sessions, and counted.
func TestPositionTooLong(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	was := testutil.ToFloat64(dropped.WithLabelValues("position_bytes"))
	at := ruapost.Position{Source: "mail.log", At: strings.Repeat("x", MaxPositionBytes+1)}
	if err := s.RecordSessionsAt(t.Context(), []ruapost.Session{session("example.com")}, at); err == nil {
		t.Error("no error")
	}
	if n := testutil.ToFloat64(dropped.WithLabelValues("position_bytes")) - was; n != 1 {
		t.Errorf("counted %v", n)
	}
	if g := groups(t, s, noon.Add(24*time.Hour)); len(g) != 0 {
		t.Errorf("groups %+v", g)
	}
}
