package bounce

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 25, 12, 0, 0, 123456789, time.UTC)

// file files a message that can be filed.
func file(t *testing.T, dir, message string, now time.Time) string {
	t.Helper()
	path, err := File(dir, []byte(message), now)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// list returns the names in a folder of a Maildir.
func list(t *testing.T, dir, sub string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, sub))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestFile(t *testing.T) {
	old := syscall.Umask(0o077) // that of pipe(8); no test of this package runs beside this one
	defer syscall.Umask(old)
	dir := filepath.Join(t.TempDir(), "Maildir")
	path := file(t, dir, "Subject: ../../x\n\ntext\n", now)
	if got, err := os.ReadFile(path); err != nil || string(got) != "Subject: ../../x\n\ntext\n" {
		t.Errorf("%q, %v", got, err)
	}
	if filepath.Dir(path) != filepath.Join(dir, "cur") {
		t.Errorf("filed at %s", path)
	}
	if name := filepath.Base(path); !regexp.MustCompile(`^1795608000\.M123456P\d+R[A-Z2-7]{13}_ruapost\.[^/:]+:2,S$`).MatchString(name) {
		t.Errorf("named %s", name)
	}
	for sub, want := range map[string]os.FileMode{"": 0o770, "cur": 0o770, "new": 0o770, "tmp": 0o770} {
		if info, err := os.Stat(filepath.Join(dir, sub)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v, %v", sub, info.Mode(), err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if names := list(t, dir, "tmp"); len(names) > 0 {
		t.Errorf("left in tmp: %q", names)
	}
	if again := file(t, dir, "x", now); again == path {
		t.Error("two messages with one name")
	}
}

// A Maildir that is there keeps the mode that somebody gave it.
func TestFileMode(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "cur"), 0o700); err != nil {
		t.Fatal(err)
	}
	file(t, dir, "x", now)
	if info, err := os.Stat(filepath.Join(dir, "cur")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestFileCut(t *testing.T) {
	path := file(t, t.TempDir(), strings.Repeat("x", MaxSize+1), now)
	if info, err := os.Stat(path); err != nil || info.Size() != MaxSize {
		t.Errorf("%v, %v", info.Size(), err)
	}
}

// The oldest go, also those that a mail reader has touched; what others have put there
// stays.
func TestFileBound(t *testing.T) {
	dir := t.TempDir()
	first := file(t, dir, "first", now)
	second := file(t, dir, "second", now.Add(time.Millisecond))
	if err := os.Rename(first, strings.Replace(strings.TrimSuffix(first, "S"), "/cur/", "/new/", 1)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(second, second+"T"); err != nil {
		t.Fatal(err)
	}
	foreign := []string{"1000000000.M1P1.host:2,S", "1000000000.M1P1R1_other.host:2,S", "x_ruapost", "y.x_ruapost"}
	for _, name := range foreign {
		if err := os.WriteFile(filepath.Join(dir, "cur", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "cur", "1.M1P1R1_ruapost.host"), 0o700); err != nil {
		t.Fatal(err)
	}
	const others = 5
	for i := range MaxFiles - 2 {
		write1(t, dir, now.Add(time.Minute+time.Duration(i)*time.Millisecond), 1)
	}
	if n := len(list(t, dir, "cur")) + len(list(t, dir, "new")); n != MaxFiles+others {
		t.Fatalf("%d files", n)
	}
	third := file(t, dir, "third", now.Add(time.Hour))
	if names := list(t, dir, "new"); len(names) != 0 {
		t.Errorf("the oldest is there: %q", names)
	}
	file(t, dir, "fourth", now.Add(time.Hour))
	if _, err := os.Stat(second + "T"); err == nil {
		t.Error("the second is there")
	}
	if _, err := os.Stat(third); err != nil {
		t.Error(err)
	}
	if n := len(list(t, dir, "cur")); n != MaxFiles+others {
		t.Errorf("%d files", n)
	}
	for _, name := range foreign {
		if _, err := os.Stat(filepath.Join(dir, "cur", name)); err != nil {
			t.Error(err)
		}
	}
}

// write1 makes a file as if File had filed it, of a size that takes no room on disk.
func write1(t *testing.T, dir string, at time.Time, size int64) {
	t.Helper()
	name := fmt.Sprintf("%d.M%06dP1R1_ruapost.host:2,S", at.Unix(), at.Nanosecond()/1000)
	path := filepath.Join(dir, "cur", name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func TestFileTotal(t *testing.T) {
	dir := t.TempDir()
	file(t, dir, "x", now)
	for i := range 2 * maxTotal / MaxSize {
		write1(t, dir, now.Add(time.Duration(i)*time.Second), MaxSize)
	}
	file(t, dir, strings.Repeat("x", MaxSize), now.Add(time.Hour))
	if n := len(list(t, dir, "cur")); n != maxTotal/MaxSize {
		t.Errorf("%d files of 1 MiB", n)
	}
}

func TestFileUnfinished(t *testing.T) {
	dir := t.TempDir()
	file(t, dir, "x", now)
	for _, name := range []string{"1795608000.M000000P1R1_ruapost.host", "1795608000.M000000P1.host"} {
		if err := os.WriteFile(filepath.Join(dir, "tmp", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file(t, dir, "x", now.Add(35*time.Hour))
	if names := list(t, dir, "tmp"); len(names) != 2 {
		t.Errorf("after 35 hours: %q", names)
	}
	file(t, dir, "x", now.Add(37*time.Hour))
	if names := list(t, dir, "tmp"); len(names) != 1 || strings.Contains(names[0], mark) {
		t.Errorf("after 37 hours: %q", names)
	}
}

func TestFileErrors(t *testing.T) {
	dir := t.TempDir()
	if path, err := File(filepath.Join(dir, "a", "b"), nil, now); err == nil || path != "" {
		t.Errorf("without a directory above: %q", path)
	}
	if err := os.WriteFile(filepath.Join(dir, "cur"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if path, err := File(dir, []byte("x"), now); err == nil || path != "" {
		t.Errorf("cur is a file: %q", path)
	}
	if names := list(t, dir, "tmp"); len(names) > 0 {
		t.Errorf("left in tmp: %q", names)
	}
}

// local(8) may run several programs at a time.
func TestFileTogether(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "Maildir")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 10 {
				message := fmt.Appendf(nil, "%d %d", i, j)
				path, err := File(dir, message, now)
				if err != nil {
					t.Error(err)
				}
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, message) {
					t.Errorf("%q, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(list(t, dir, "cur")); n != 80 {
		t.Errorf("%d files", n)
	}
}
