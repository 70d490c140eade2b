package bboltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolterrors "go.etcd.io/bbolt/errors"
)

// errPanic is how bbolt reports a damaged page.
var errPanic = errors.New("bbolt panicked")

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
	return errors.Is(err, errPanic) || errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrChecksum)
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
		if _, err := f.ReadAt(head, page); err != nil && err != io.EOF {
			return false
		}
		if binary.NativeEndian.Uint32(head[magicOffset:]) == magic || bytes.Equal(head, make([]byte, zeros)) {
			return true
		}
	}
	return false
}

// setAside gives the damaged file at path another name, so that a new one is begun.
// The caller holds the turnstile, and nobody has the file open.
func setAside(path string, cause error) error {
	name := path + ".damaged-" + time.Now().UTC().Format("20060102T150405Z")
	if err := os.Rename(path, name); err != nil {
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

// setAsideOpen sets aside the file that was open as was when bbolt panicked, unless
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
