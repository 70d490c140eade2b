package bboltstore

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"ruapost"
	"ruapost/internal/storetest"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func openStore(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func evaluation(domain string, lastOctet byte) *ruapost.Evaluation {
	return &ruapost.Evaluation{
		Time:   noon,
		Policy: ruapost.DMARCPolicy{Domain: domain, P: ruapost.DispositionReject, ADKIM: ruapost.Relaxed, ASPF: ruapost.Relaxed, FO: "0", Percent: 100, Discovery: "treewalk"},
		Result: ruapost.DMARCResult{
			SourceIP:    netip.AddrFrom4([4]byte{192, 0, 2, lastOctet}),
			Disposition: ruapost.DispositionPass,
			AlignedDKIM: true,
			HeaderFrom:  domain,
			DKIM:        []ruapost.DKIMResult{{Domain: domain, Selector: "s1", Result: ruapost.AuthPass}},
			SPF:         ruapost.SPFResult{Domain: domain, Result: ruapost.AuthPass},
		},
	}
}

func mustRecord(t *testing.T, s *Store, evs ...*ruapost.Evaluation) {
	t.Helper()
	for _, e := range evs {
		if err := s.RecordEvaluation(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

// counts returns the row counts of a group by source address.
func counts(t *testing.T, s *Store, id ruapost.GroupID) map[string]int64 {
	t.Helper()
	got := map[string]int64{}
	for row, err := range s.Rows(t.Context(), id) {
		if err != nil {
			t.Fatal(err)
		}
		var r ruapost.DMARCResult
		if err := json.Unmarshal(row.Data, &r); err != nil {
			t.Fatal(err)
		}
		got[r.SourceIP.String()] += row.Count
	}
	return got
}

func groups(t *testing.T, s *Store, before time.Time) []ruapost.Group {
	t.Helper()
	g, err := s.Groups(t.Context(), before)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T, dir string) storetest.Store {
		t.Helper()
		s, err := Open(filepath.Join(dir, "db"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestRowBounds(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	big := evaluation("example.com", 1)
	big.Result.DKIM[0].Reason = strings.Repeat("x", MaxRowBytes)
	mustRecord(t, s, evaluation("example.com", 1), big)
	gs := groups(t, s, noon.Add(24*time.Hour))
	if len(gs) != 1 || gs[0].Total != 2 || gs[0].Rows != 1 || gs[0].Listed != 1 {
		t.Errorf("an overlong row must only be counted: %+v", gs)
	}
}

// While the file cannot be had, record calls return at their deadline and the rows
// are written as soon as it can be had again.
func TestHeldLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	other, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.RecordEvaluation(ctx, evaluation("example.com", 1)); !errors.Is(err, ErrQueued) {
		t.Errorf("record with the file locked: %v", err)
	}
	if _, err := s.Groups(ctx, noon); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read with the file locked: %v", err)
	}
	for i := range MaxQueue + 10 {
		e := evaluation(fmt.Sprintf("d%d.example", i), 1)
		if err := s.RecordEvaluation(ctx, e); errors.Is(err, ErrQueueFull) {
			break
		} else if i > MaxQueue {
			t.Fatal("the queue has no end")
		}
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	for err = ErrQueueFull; errors.Is(err, ErrQueueFull); { // until the first batches are written
		err = s.RecordEvaluation(t.Context(), evaluation("example.com", 1))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups(t, s, noon.Add(24*time.Hour)) {
		if g.Domain == "example.com" && g.Total != 2 {
			t.Errorf("total %d, want 2", g.Total)
		}
	}
}

func TestCloseWritesTheQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		if err := s.RecordEvaluation(ended, evaluation("example.com", 1)); err != nil && !errors.Is(err, ErrQueued) {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.RecordEvaluation(t.Context(), evaluation("example.com", 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("record after Close: %v", err)
	}
	if gs := groups(t, openStore(t, path), noon.Add(24*time.Hour)); len(gs) != 1 || gs[0].Total != 100 {
		t.Errorf("groups %+v", gs)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	newer := filepath.Join(dir, "newer")
	openStore(t, newer).Close()
	setSchema(t, newer, schema+1)
	other := filepath.Join(dir, "other")
	db, err := bolt.Open(other, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("no database\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	note := filepath.Join(dir, "note") // less than a page
	if err := os.WriteFile(note, []byte(strings.Repeat("no database\n", 10)), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		note:  "it is no bbolt file",
		newer: fmt.Sprintf("was written by a newer version of ruapost (schema %d; this program knows %d)", schema+1, schema),
		other: "is a bbolt file, but not a ruapost store",
		text:  "invalid database",
	} {
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%s): %v; want %q", filepath.Base(path), err, want)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s was changed, %v", filepath.Base(path), err)
		}
	}
}

// What may pass is waited for: rows are written when it has.
func TestFolderAppearsLater(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	s := openStore(t, filepath.Join(dir, "db"))
	if _, err := s.Groups(t.Context(), noon); err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("read: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.RecordEvaluation(ended, evaluation("example.com", 1)); !errors.Is(err, ErrQueued) {
		t.Errorf("record: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mustRecord(t, s, evaluation("example.com", 1))
	if gs := groups(t, s, noon.Add(24*time.Hour)); len(gs) != 1 || gs[0].Total != 2 {
		t.Errorf("groups %+v", gs)
	}
}

// A store whose lock is never let go ends nevertheless, and so does who waits for it.
func TestCloseWhileLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	other, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	done := make(chan error)
	go func() { done <- s.RecordEvaluation(context.Background(), evaluation("example.com", 1)) }()
	waitForWaiter(t, path)
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "could not be written") {
		t.Errorf("Close: %v", err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("record: %v", err)
	}
}

func setSchema(t *testing.T, path string, v uint64) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(metaBucket).Put(schemaKey, binary.BigEndian.AppendUint64(nil, v))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A waiter whose file was replaced while it waited must write into the new one:
// this is what compaction does.
func TestReplacedFileIsNotWrittenTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	db, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- s.RecordEvaluation(context.Background(), evaluation("example.com", 1)) }()
	waitForWaiter(t, path)
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := create(path); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if gs := groups(t, s, noon.Add(24*time.Hour)); len(gs) != 1 {
		t.Errorf("the row is not in the file that the path names: %+v", gs)
	}
}

// waitForWaiter returns when somebody holds the turnstile, which means that they
// wait for the file.
func waitForWaiter(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 5000 {
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
			return
		}
		syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		time.Sleep(time.Millisecond)
	}
	t.Fatal("nobody came to wait")
}

// TestKilledWriters kills writer processes at random and counts what they said was
// on disk.
func TestKilledWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	acknowledged := map[string]int64{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for range 10 {
				n := runWriter(t, path, byte(w))
				mu.Lock()
				acknowledged[netip.AddrFrom4([4]byte{192, 0, 2, byte(w)}).String()] += n
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	gs := groups(t, s, noon.Add(24*time.Hour))
	if len(gs) != 1 {
		t.Fatalf("groups %+v", gs)
	}
	got := counts(t, s, gs[0].ID)
	for ip, n := range acknowledged {
		// Each of the ten lives may have ended between commit and answer.
		if got[ip] < n || got[ip] > n+10*writerCalls || n == 0 {
			t.Errorf("%s: %d in the file, %d acknowledged", ip, got[ip], n)
		}
	}
	err := s.view(t.Context(), func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			t.Error(err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// writerCalls is how many record calls a writer process has under way at a time.
const writerCalls = 4

func runWriter(t *testing.T, path string, who byte) (acknowledged int64) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BBOLTSTORE_TEST_WRITER="+path, fmt.Sprintf("BBOLTSTORE_TEST_WHO=%d", who))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Error(err)
		return 0
	}
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return 0
	}
	timer := time.AfterFunc(50*time.Millisecond+rand.N(150*time.Millisecond), func() { cmd.Process.Kill() })
	defer timer.Stop()
	for sc := bufio.NewScanner(out); sc.Scan(); {
		acknowledged++
	}
	cmd.Wait()
	return acknowledged
}

// A disk that is full, here a limit on the size of files in a process of its own,
// costs nothing but time: rows wait and are written when there is room.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BBOLTSTORE_TEST_FULL="+path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	gs := groups(t, openStore(t, path), noon.Add(24*time.Hour))
	if len(gs) != 1 || gs[0].Total != fullRecords || gs[0].Rows != fullRecords {
		t.Errorf("groups %+v", gs)
	}
}

const fullRecords = 500

// recordOnFullDisk is the process of TestFullDisk.
func recordOnFullDisk(path string) error {
	signal.Ignore(syscall.SIGXFSZ)
	s, err := Open(path)
	if err != nil {
		return err
	}
	e := func(i int) *ruapost.Evaluation {
		e := evaluation("example.com", 1)
		e.Result.DKIM[0].Reason = fmt.Sprintf("%01000d", i)
		return e
	}
	if err := s.RecordEvaluation(context.Background(), e(0)); err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	room := limit
	limit.Cur = uint64(st.Size())
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	late := 0
	for i := 1; i < fullRecords-1; i++ {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		err := s.RecordEvaluation(ctx, e(i))
		cancel()
		if errors.Is(err, ErrQueued) {
			late++
		} else if err != nil {
			return err
		}
	}
	if late < 100 {
		return fmt.Errorf("only %d records were late", late)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &room); err != nil {
		return err
	}
	if err := s.RecordEvaluation(context.Background(), e(fullRecords-1)); err != nil {
		return err
	}
	return s.Close()
}

func TestMain(m *testing.M) {
	if path := os.Getenv("BBOLTSTORE_TEST_FULL"); path != "" {
		if err := recordOnFullDisk(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if path := os.Getenv("BBOLTSTORE_TEST_UNPRIVILEGED"); path != "" {
		if err := recordUnprivileged(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if path := os.Getenv("BBOLTSTORE_TEST_READER"); path != "" {
		if err := readLog(path, os.Getenv("BBOLTSTORE_TEST_SOURCE")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if path := os.Getenv("BBOLTSTORE_TEST_WRITER"); path != "" {
		write(path)
		return
	}
	os.Exit(m.Run())
}

func write(path string) {
	s, err := Open(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var who byte
	fmt.Sscan(os.Getenv("BBOLTSTORE_TEST_WHO"), &who)
	var wg sync.WaitGroup
	for range writerCalls {
		wg.Go(func() {
			for {
				if err := s.RecordEvaluation(context.Background(), evaluation("example.com", who)); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				os.Stdout.WriteString("ok\n")
			}
		})
	}
	wg.Wait()
}

// txid counts the commits of the file.
func txid(t *testing.T, s *Store) (id int) {
	t.Helper()
	err := s.view(t.Context(), func(tx *bolt.Tx) error {
		id = tx.ID()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Callers who are fewer than a batch can take do not wait for more again and again. In
// the bubble nothing takes time but waiting for them.
func TestFewCallersDoNotWait(t *testing.T) {
	for _, callers := range []int{1, 2, 8, 15, 16, 40} {
		t.Run(fmt.Sprint(callers), func(t *testing.T) {
			const each = 400
			path := filepath.Join(t.TempDir(), "db")
			synctest.Test(t, func(t *testing.T) {
				s := openStore(t, path)
				was, began := txid(t, s), time.Now()
				var wg sync.WaitGroup
				for c := range callers {
					wg.Go(func() {
						for range each {
							if err := s.RecordEvaluation(context.Background(), evaluation("example.com", byte(c))); err != nil {
								t.Error(err)
							}
						}
					})
				}
				wg.Wait()
				waited, commits := time.Since(began), txid(t, s)-was
				lost := int(waited / (gatherTime + linger))
				t.Logf("%d commits, waited %v", commits, waited)
				if lost > commits/probeAfter+2*callers {
					t.Errorf("waited %v, in %d commits", waited, commits)
				}
				if callers >= gatherCalls && commits > each*callers/8+300 {
					t.Errorf("%d commits", commits)
				}
				s.Close()
			})
		})
	}
}

// What a batch waits for grows with those who come, and is what was there when they do not.
func TestGather(t *testing.T) {
	g := gather{calls: 1}
	batches := func(n int, others bool, want int) {
		t.Helper()
		for range n {
			g.others = others
			g.inTime()
		}
		if g.calls != want {
			t.Errorf("waits for %d, want %d", g.calls, want)
		}
	}
	batches(100, false, 1) // a caller who is alone waits for nobody
	batches(probeAfter, true, 1)
	batches(1, true, 2)
	batches(2*(probeAfter+1), true, 8)
	batches(100, true, gatherCalls)
	g.late(9)
	batches(probeAfter, true, 9)
	batches(1, true, gatherCalls)
	g.late(0)
	batches(probeAfter, true, 1)
}

// A store that is being closed does not keep the file for what will not come.
func TestClosedStoreHasNoMore(t *testing.T) {
	s := &Store{closed: true, wake: make(chan struct{}, 1), gather: gather{calls: 1}}
	for _, wrote := range []bool{false, true} {
		if s.hasMore(wrote) {
			t.Errorf("wrote %t: there is more", wrote)
		}
	}
}

// A key that bbolt refuses would make it refuse the whole batch, for ever.
func TestOverlongDomainIsRefused(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	name := strings.Repeat("x", bolt.MaxKeySize)
	if err := s.RecordEvaluation(ctx, evaluation(name, 1)); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("evaluation: %v", err)
	}
	session := func(domain string) ruapost.Session { return ruapost.Session{Time: noon, Domain: domain} }
	err := s.RecordSessions(ctx, []ruapost.Session{session(name), session("honest.example")})
	if err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("sessions: %v", err)
	}
	if err := s.RecordEvaluation(ctx, evaluation("honest.example", 1)); err != nil {
		t.Fatal(err)
	}
	if gs := groups(t, s, noon.Add(24*time.Hour)); len(gs) != 2 {
		t.Errorf("groups %+v", gs)
	}
}

// What changes nothing costs no commit.
func TestNothingIsNotCommitted(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	mustRecord(t, s, evaluation("example.com", 1))
	gs := groups(t, s, noon.Add(24*time.Hour))
	if err := errors.Join(s.Drop(t.Context(), gs), s.Tidy(t.Context())); err != nil {
		t.Fatal(err)
	}
	was := txid(t, s)
	for name, f := range map[string]func() error{
		"Drop":         func() error { return s.Drop(t.Context(), gs) },
		"DropRows":     func() error { return s.DropRows(t.Context(), gs) },
		"ForgetReport": func() error { return s.ForgetReport(t.Context(), "none") },
		"Seal":         func() error { return s.Seal(t.Context(), &ruapost.Report{ID: "x", Groups: gs}) },
		"Tidy":         func() error { return s.Tidy(t.Context()) },
		"PutReports":   func() error { return s.PutReports(t.Context()) },
		"Count":        func() error { return s.Count(t.Context(), map[string]uint64{"n": 0}) },
		"UpdateSuppression": func() error {
			return s.UpdateSuppression(t.Context(), "none", func(*ruapost.Suppression) bool { return false })
		},
		"DeleteSTSPolicies": func() error {
			_, err := s.DeleteSTSPolicies(t.Context(), []string{"example.com"})
			return err
		},
	} {
		if err := f(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if is := txid(t, s); is != was {
			t.Errorf("%s of nothing was committed", name)
			was = is
		}
	}
}
