package bboltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	bolterrors "go.etcd.io/bbolt/errors"
)

// errPanic is how bbolt reports a damaged page.
var errPanic = errors.New("bbolt panicked")

// errUndecodable is the error, wrapped, for a value that this program cannot have written.
var errUndecodable = errors.New("cannot be decoded")

// safely turns a panic of bbolt, and the fault of a file that is shorter than it
// should be, into an error wrapping errPanic.
func safely(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errPanic, p)
		}
	}()
	return fn()
}

// isDamage says whether err means that the file is damaged, not that the disk is full
// or a right is missing.
func isDamage(err error) bool {
	return errors.Is(err, errPanic) || errors.Is(err, errUndecodable) || errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrChecksum)
}

// wasOurs says whether the file at path may once have been a bbolt file. One that
// never was is somebody's whose name came into the configuration by mistake: it is
// left alone.
func wasOurs(path string) bool {
	const magic, magicOffset, zeros = 0xED0CDAED, 16, 64
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	// The meta pages are the first two. A page that was lost may be all zeros.
	for _, page := range []int64{0, int64(os.Getpagesize())} {
		head := make([]byte, zeros)
		if _, err := f.ReadAt(head, page); err != nil { // io.EOF: there is no such page
			return false
		}
		if binary.NativeEndian.Uint32(head[magicOffset:]) == magic || bytes.Equal(head, make([]byte, zeros)) {
			return true
		}
	}
	return false
}

// setAside gives the damaged file at path another name, so that a new one is begun.
// The caller holds the turnstile, and nobody has the file open. If that was done within
// the last hour, the error is the cause.
func setAside(path string, cause error) error {
	prefix := path + damageInfix
	if last := lastDamage(prefix); !last.IsZero() && time.Since(last).Abs() < damageEach {
		return fmt.Errorf("damaged again, the last time at %s: %w", last.Format(time.RFC3339), cause)
	}
	name, err := unusedName(prefix + time.Now().UTC().Format(damageTime))
	if err == nil {
		err = os.Rename(path, name)
	}
	if err != nil {
		return fmt.Errorf("bboltstore: set damaged file aside: %w (it is damaged: %w)", err, cause)
	}
	damaged.Inc()
	slog.Error("store: the file is damaged and was set aside, a new one is begun; what it held is not reported",
		"file", name, "err", cause)
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("bboltstore: set damaged file aside: %w", err)
	}
	return nil
}

// The names of files that were set aside: damageInfix is behind the path, damageTime the
// form of what follows.
const (
	damageInfix = ".damaged-"
	damageTime  = "20060102T150405Z"
)

// lastDamage returns when a file was last set aside under a name with that prefix.
func lastDamage(prefix string) (last time.Time) {
	files, _ := os.ReadDir(filepath.Dir(prefix)) // without the right, what follows fails anyhow
	for _, f := range files {
		text, _ := strings.CutPrefix(f.Name(), filepath.Base(prefix))
		if at, err := time.Parse(damageTime, text[:min(len(text), len(damageTime))]); err == nil && at.After(last) {
			last = at
		}
	}
	return last
}

// unusedName returns name, or name with a number if there is such a file.
func unusedName(name string) (string, error) {
	unused := name
	for n := 2; ; n++ {
		if _, err := os.Lstat(unused); errors.Is(err, fs.ErrNotExist) {
			return unused, nil
		} else if err != nil {
			return "", err
		}
		unused = fmt.Sprintf("%s-%d", name, n)
	}
}

// setAsideOpen sets aside the file that was open as was when it was found damaged, unless
// another process has done so by now.
func setAsideOpen(path string, was os.FileInfo, cause error) error {
	turnstile, err := takeTurnstile(path)
	if err != nil {
		return err
	}
	defer turnstile.Close()
	f, err := lockAndOpen(path, os.O_RDWR, fileMode) // waits until nobody has it open
	if err != nil {
		return fmt.Errorf("bboltstore: %w", err)
	}
	defer f.Close()
	now, err := f.Stat()
	if err != nil || !os.SameFile(was, now) {
		return err
	}
	return setAside(path, cause)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
