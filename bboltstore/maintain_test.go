package bboltstore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// fill records n rows of one domain with a text that makes them large.
func fill(t *testing.T, s *Store, n int) {
	t.Helper()
	s.bounds.groupBytes = MaxBytes
	var wg sync.WaitGroup
	const callers = 200 // a commit takes them all
	for w := range callers {
		wg.Go(func() {
			for i := w; i < n; i += callers {
				e := evaluation("example.com", 1)
				e.Result.DKIM[0].Reason = fmt.Sprintf("%01000d", i)
				if err := s.RecordEvaluation(context.Background(), e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func checkStore(t *testing.T, s *Store) {
	t.Helper()
	faults, err := s.Check(t.Context())
	if err != nil || len(faults) > 0 {
		t.Errorf("check: %v, %v", faults, err)
	}
}

// Compaction gives the space back and costs nobody anything: who waits for the old
// file writes into the new one.
func TestCompact(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	fill(t, s, 5000)
	before, err := s.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Drop(t.Context(), groups(t, s, noon.Add(24*time.Hour))); err != nil {
		t.Fatal(err)
	}
	mustRecord(t, s, evaluation("example.net", 1))
	var wg sync.WaitGroup
	other := openStore(t, path)
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if err := other.RecordEvaluation(context.Background(), evaluation("example.net", 1)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 5 {
		if err := s.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	after, err := s.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.FileBytes > before.FileBytes/10 || after.Rows != 1 || after.Groups != 1 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if g := groups(t, s, noon.Add(24*time.Hour)); g[0].Total != 201 {
		t.Errorf("groups %+v", g)
	}
	checkStore(t, s)
	if left, _ := filepath.Glob(path + ".compact*"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestTidyOnlyWhenWorthWhile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	inode := func() os.FileInfo {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	first := inode()
	fill(t, s, 25_000)
	if err := s.Tidy(t.Context()); err != nil || !os.SameFile(first, inode()) {
		t.Errorf("a full file was compacted: %v", err)
	}
	if err := s.Drop(t.Context(), groups(t, s, noon.Add(24*time.Hour))); err != nil {
		t.Fatal(err)
	}
	if err := s.Tidy(t.Context()); err != nil || os.SameFile(first, inode()) {
		t.Errorf("an empty file of %d MB was not compacted: %v", inode().Size()>>20, err)
	}
	checkStore(t, s)
}

// A check finds counts that do not fit.
func TestCheckFindsFaults(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	mustRecord(t, s, evaluation("example.com", 1), evaluation("example.com", 2))
	checkStore(t, s)
	err := s.update(t.Context(), func(tx *bolt.Tx) error {
		c := tx.Bucket(rowsBucket).Cursor()
		c.First()
		return c.Delete()
	})
	if err != nil {
		t.Fatal(err)
	}
	faults, err := s.Check(t.Context())
	if err != nil || len(faults) != 2 { // the group's counts and the usage
		t.Errorf("faults %v, %v", faults, err)
	}
}
