package bboltstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
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

// bbolt would read behind the end of a file that was cut off, in a goroutine whose fault
// nobody can catch.
func TestCheckOfShortFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	fill(t, s, 3000)
	// A file whose list of free pages was cut off cannot even be opened. Each commit
	// puts that list somewhere else.
	for range 50 {
		mustRecord(t, s, evaluation("example.com", 1))
		copied := filepath.Join(t.TempDir(), "db")
		copyShort(t, path, copied)
		faults, err := openStore(t, copied).Check(t.Context())
		if len(aside(t, copied)) > 0 {
			continue
		}
		if err != nil || len(faults) == 0 {
			t.Errorf("faults %v, %v", faults, err)
		}
		return
	}
	t.Error("no file that was cut off could be opened")
}

// copyShort copies half of the file's pages.
func copyShort(t *testing.T, path, copied string) {
	t.Helper()
	h, err := open(path) // nobody else has it open
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	err = h.View(func(tx *bolt.Tx) error {
		data := make([]byte, tx.Size()/2)
		_, err := h.file.ReadAt(data, 0)
		return errors.Join(err, os.WriteFile(copied, data, 0o600))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A program that may write the file because of its group may compact it, too.
func TestCompactAsMember(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	first := openStore(t, path)
	mustRecord(t, first, evaluation("example.com", 1))
	first.Close()
	p := startUnprivileged(t, path)
	for _, name := range []string{path, path + ".lock"} {
		if err := errors.Join(os.Chown(name, os.Geteuid(), -1), os.Chmod(name, fileMode)); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	p.do(t, "compact")
	p.in.Close()
	if err := p.cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, &p.log)
	}
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	gid := func(info os.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Gid }
	if os.SameFile(before, after) || gid(after) != gid(before) || after.Mode() != fileMode {
		t.Errorf("group %d, mode %v", gid(after), after.Mode())
	}
	mustRecord(t, openStore(t, path), evaluation("example.com", 1))
}

func TestWorthCompacting(t *testing.T) {
	for _, c := range []struct {
		free, all int64
		want      bool
	}{
		{0, 0, false},
		{4_999, 5_000, false},
		{5_000, 10_001, true},
		{5_000, 10_002, false},
		{29_999, 100_000, false},
		{30_000, 500_000, true},
	} {
		if got := worthCompacting(c.free, c.all); got != c.want {
			t.Errorf("%d free of %d pages: %t", c.free, c.all, got)
		}
	}
}
