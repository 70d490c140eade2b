package bboltstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// schema is the version of the layout this program reads and writes.
const schema = 1

var (
	metaBucket    = []byte("meta")
	groupsBucket  = []byte("groups")
	rowsBucket    = []byte("rows")
	reportsBucket = []byte("reports")
	schemaKey     = []byte("schema")
)

// fileMode lets the programs run as different users of one group.
const fileMode = 0o660

var errFileFull = bolterrors.ErrMaxSizeReached

// open waits for its turn and returns the open, locked database. See the package
// comment for the turnstile.
func open(path string) (*bolt.DB, error) {
	turnstile, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, fmt.Errorf("bboltstore: %w", err)
	}
	defer turnstile.Close() // lets the next one in
	if err := flock(turnstile); err != nil {
		return nil, fmt.Errorf("bboltstore: lock %s.lock: %w", path, err)
	}
	// The umask may have taken the group's right to write. Not ours: not ours to mend.
	_ = turnstile.Chmod(fileMode)

	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := create(path); err != nil {
			return nil, fmt.Errorf("bboltstore: create %s: %w", path, err)
		}
	}
	var db *bolt.DB
	err = safely(func() (err error) {
		db, err = bolt.Open(path, fileMode, options(lockAndOpen))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("bboltstore: open %s: %w", path, err)
	}
	if err := safely(func() error { return db.View(checkSchema) }); err != nil {
		db.Close()
		return nil, fmt.Errorf("bboltstore: %s %w", path, err)
	}
	return db, nil
}

func options(openFile func(string, int, os.FileMode) (*os.File, error)) *bolt.Options {
	return &bolt.Options{
		OpenFile: openFile,
		// A freelist that is not written makes every Open scan the whole file.
		NoFreelistSync: false,
		FreelistType:   bolt.FreelistMapType,
		NoStatistics:   true,
		MaxSize:        MaxFileSize,
	}
}

// lockAndOpen is bbolt's OpenFile hook: it returns the file at path locked, so that
// bbolt's own try on the same descriptor succeeds at once. Compaction puts a new
// file in the place of the old one; who waited for the old one's lock must not
// write into it, so the path is compared again once the lock is held.
func lockAndOpen(path string, flag int, mode os.FileMode) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, flag&^os.O_CREATE, mode)
		if err != nil {
			return nil, err
		}
		if err := flock(f); err != nil {
			f.Close()
			return nil, err
		}
		held, err1 := f.Stat()
		named, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(held, named) {
			return f, nil
		}
		f.Close()
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
	}
}

// flock takes an exclusive lock, however long that takes.
func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			return err
		}
	}
}

// create makes an empty database appear at path whole or not at all: a new bbolt
// file that loses power while it is written is the one it cannot recover.
func create(path string) error {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bolt.Open(fresh, fileMode, options(os.OpenFile))
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{metaBucket, groupsBucket, rowsBucket, reportsBucket} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return tx.Bucket(metaBucket).Put(schemaKey, binary.BigEndian.AppendUint64(nil, schema))
	})
	if err := errors.Join(err, db.Sync(), db.Close(), os.Chmod(fresh, fileMode)); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// checkSchema refuses a file that this program would misread.
func checkSchema(tx *bolt.Tx) error {
	meta := tx.Bucket(metaBucket)
	if meta == nil {
		return errors.New("is a bbolt file, but not a ruapost store: set another store.path")
	}
	v := meta.Get(schemaKey)
	if len(v) != 8 {
		return errors.New("has no schema version: it is not a ruapost store, or damaged")
	}
	if found := binary.BigEndian.Uint64(v); found != schema {
		return fmt.Errorf("was written by a newer version of ruapost (schema %d; this program knows %d): "+
			"upgrade this program, or set another store.path", found, schema)
	}
	return nil
}
