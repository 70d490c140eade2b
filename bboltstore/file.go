package bboltstore

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// schema is the version of the layout this program reads and writes.
//
//	1  groups, rows, reports
//	2  windows, trash, the usage in meta and the bytes of a group
//	3  known, and their counts in meta
//	4  a third day of those
//	5  sts, stsnames, positions, and the usage of sts in meta
//	6  suppressed and their number in meta, counts, and the secret in meta
//	7  days, and three more numbers of a group
const schema = 7

var (
	metaBucket       = []byte("meta")
	groupsBucket     = []byte("groups")
	rowsBucket       = []byte("rows")
	windowsBucket    = []byte("windows")
	trashBucket      = []byte("trash")
	reportsBucket    = []byte("reports")
	knownBucket      = []byte("known")
	stsBucket        = []byte("sts")
	stsNamesBucket   = []byte("stsnames")
	positionsBucket  = []byte("positions")
	suppressedBucket = []byte("suppressed")
	countsBucket     = []byte("counts")
	daysBucket       = []byte("days")
	schemaKey        = []byte("schema")
	usageKey         = []byte("usage")
	knownKey         = []byte("known")
	stsKey           = []byte("sts")
	suppressedKey    = []byte("suppressed")
	secretKey        = []byte("secret")
)

// fileMode lets the programs run as different users of one group.
const fileMode = 0o660

// handle is the open, locked database.
type handle struct {
	*bolt.DB
	file   *os.File  // holds the lock
	locked time.Time // since when
}

// release closes the database. Between transactions there is nothing left to write, so
// the next one may have the file while this one unmaps it.
func (h *handle) release() error {
	err := unix.Flock(int(h.file.Fd()), unix.LOCK_UN)
	return errors.Join(err, h.Close())
}

// abandon lets go of a database in which bbolt has panicked: it may still hold its
// own locks, for which Close would wait for ever. The file's lock must be given back
// by itself: bbolt's memory map keeps the closed file, and its lock, alive.
func (h *handle) abandon() {
	_ = unix.Flock(int(h.file.Fd()), unix.LOCK_UN)
	h.file.Close()
}

// open waits for its turn and returns the open, locked database. See the package
// comment for the turnstile. A file that is damaged is set aside and a new one begun.
func open(path string) (*handle, error) {
	turnstile, err := takeTurnstile(path)
	if err != nil {
		return nil, err
	}
	defer turnstile.Close() // lets the next one in
	h, err := openNext(path)
	if isDamage(err) {
		if !wasOurs(path) {
			return nil, fmt.Errorf("%w: it is no bbolt file: set another store.path: %w", err, ErrForeign)
		}
		if err := setAside(path, err); err != nil {
			return nil, err
		}
		h, err = openNext(path)
	}
	return h, err
}

func takeTurnstile(path string) (*os.File, error) {
	// Who owns the folder must not lead root elsewhere by a symbolic link.
	turnstile, err := lockAndOpen(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return nil, fmt.Errorf("bboltstore: lock: %w", err)
	}
	// The umask may have taken the group's right to write. Not ours: not ours to mend.
	_ = turnstile.Chmod(fileMode)
	return turnstile, nil
}

// openNext opens the database for whoever holds the turnstile.
func openNext(path string) (*handle, error) {
	// An empty file is one that was created by hand, to set its owner or mode.
	if st, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) || err == nil && st.Size() == 0 {
		if err := create(path); err != nil {
			return nil, fmt.Errorf("bboltstore: create %s: %w", path, err)
		}
	}
	h := &handle{}
	err := safely(func() (err error) {
		h.DB, err = bolt.Open(path, fileMode, options(func(path string, flag int, mode os.FileMode) (*os.File, error) {
			h.file, err = lockAndOpen(path, flag&^os.O_CREATE, mode)
			h.locked = time.Now()
			return h.file, err
		}))
		return err
	})
	if err != nil {
		if isDamage(err) && h.file != nil {
			h.abandon() // bbolt has closed it, unless it has panicked
		}
		return nil, fmt.Errorf("bboltstore: open %s: %w", path, err)
	}
	if err := safely(func() error { return bringUp(h.DB) }); err != nil {
		if isDamage(err) {
			h.abandon()
		} else {
			h.Close()
		}
		return nil, fmt.Errorf("bboltstore: %s %w", path, err)
	}
	return h, nil
}

func options(openFile func(string, int, os.FileMode) (*os.File, error)) *bolt.Options {
	return &bolt.Options{
		OpenFile: openFile,
		// A freelist that is not written makes every Open scan the whole file.
		NoFreelistSync: false,
		FreelistType:   bolt.FreelistMapType,
	}
}

// lockAndOpen opens the file at path and locks it, however long that takes. As
// bbolt's OpenFile hook it makes bbolt's own try on the same descriptor succeed at
// once. Compaction puts a new file in the place of the old one, and somebody may
// remove a file; who waited for the old one's lock must not take it for the new
// one's, so the path is compared again once the lock is held.
func lockAndOpen(path string, flag int, mode os.FileMode) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, flag, mode)
		if err != nil {
			return nil, err
		}
		if err := flock(f); err != nil {
			f.Close()
			return nil, fmt.Errorf("flock %s: %w", path, err)
		}
		held, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		named, err := os.Stat(path)
		if err == nil && os.SameFile(held, named) {
			return f, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
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
	var file *os.File
	db, err := bolt.Open(fresh, fileMode, options(newFile(&file)))
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		if err := makeBuckets(tx); err != nil {
			return err
		}
		return putSchema(tx)
	})
	if err := errors.Join(err, db.Sync(), file.Chmod(fileMode), db.Close()); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// newFile returns a hook for bbolt that makes a file, and never opens one that is there, nor
// what a symbolic link leads to. It tells which file that is: what is at its path later may
// be another one.
func newFile(made **os.File) func(string, int, os.FileMode) (*os.File, error) {
	return func(path string, flag int, mode os.FileMode) (f *os.File, err error) {
		f, err = os.OpenFile(path, flag|os.O_CREATE|os.O_EXCL, mode)
		*made = f
		return f, err
	}
}

// makeBuckets makes those that are not there.
func makeBuckets(tx *bolt.Tx) error {
	for _, name := range [][]byte{
		metaBucket, groupsBucket, rowsBucket, windowsBucket, trashBucket, reportsBucket, knownBucket,
		stsBucket, stsNamesBucket, positionsBucket, suppressedBucket, countsBucket, daysBucket,
	} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	if sts := tx.Bucket(stsBucket); sts.Sequence() == 0 {
		// Not from zero: the file may take the place of another, whose version others know.
		if err := sts.SetSequence(uint64(time.Now().UnixNano())); err != nil {
			return err
		}
	}
	meta := tx.Bucket(metaBucket)
	if meta.Get(secretKey) != nil {
		return nil
	}
	secret := make([]byte, secretLen)
	rand.Read(secret) // does not fail
	return meta.Put(secretKey, secret)
}

func putSchema(tx *bolt.Tx) error {
	return tx.Bucket(metaBucket).Put(schemaKey, binary.BigEndian.AppendUint64(nil, schema))
}

// bringUp refuses a file that this program would misread, and brings one that an
// older version has left up to date, in one transaction.
func bringUp(db *bolt.DB) error {
	var found uint64
	err := db.View(func(tx *bolt.Tx) (err error) {
		found, err = readSchema(tx)
		return err
	})
	if err != nil || found == schema {
		return err
	}
	if found > schema {
		return fmt.Errorf("was written by a newer version of ruapost (schema %d; this program knows %d): "+
			"upgrade this program, or set another store.path: %w", found, schema, ErrForeign)
	}
	if err := db.Update(func(tx *bolt.Tx) error { return migrate(tx, found) }); err != nil {
		return fmt.Errorf("cannot be brought up from schema %d to %d: %w", found, schema, err)
	}
	slog.Info("store: brought up to date", "file", db.Path(), "from_schema", found, "to_schema", schema)
	return nil
}

func readSchema(tx *bolt.Tx) (uint64, error) {
	meta := tx.Bucket(metaBucket)
	if meta == nil {
		return 0, fmt.Errorf("is a bbolt file, but not a ruapost store: set another store.path: %w", ErrForeign)
	}
	v := meta.Get(schemaKey)
	if len(v) != 8 {
		return 0, fmt.Errorf("has no schema version: it is not a ruapost store: %w", ErrForeign)
	}
	return binary.BigEndian.Uint64(v), nil
}

// migrate brings up a file of an older schema, one after the other.
func migrate(tx *bolt.Tx, found uint64) error {
	if err := makeBuckets(tx); err != nil {
		return err
	}
	if found < 2 {
		if err := migrateTo2(tx); err != nil {
			return err
		}
	}
	if found < 7 {
		if err := migrateTo7(tx); err != nil {
			return err
		}
	}
	return putSchema(tx)
}

// migrateTo2 counts what from then on is kept counted.
func migrateTo2(tx *bolt.Tx) error {
	var u usage
	bytesOf := map[uint64]uint64{}
	err := tx.Bucket(rowsBucket).ForEach(func(k, v []byte) error {
		u.add(1, len(v))
		bytesOf[binary.BigEndian.Uint64(k)] += uint64(len(v))
		return nil
	})
	if err != nil {
		return err
	}
	if err := u.store(tx, usageKey); err != nil {
		return err
	}
	return insertIntoGroups(tx, 6*8, func(k, old []byte) (at int, insert []byte, err error) {
		// The bytes come behind the first three numbers.
		return 3 * 8, binary.BigEndian.AppendUint64(nil, bytesOf[binary.BigEndian.Uint64(old)]), countGroup(tx, k, 1)
	})
}

// migrateTo7 makes room for how messages fared. Of those that are there it is not known.
func migrateTo7(tx *bolt.Tx) error {
	return insertIntoGroups(tx, 7*8, func(_, _ []byte) (at int, insert []byte, err error) {
		return 7 * 8, make([]byte, 3*8), nil
	})
}

// insertIntoGroups inserts what change returns into the values of all groups, whose numbers
// take up so many bytes.
func insertIntoGroups(tx *bolt.Tx, header int, change func(k, old []byte) (at int, insert []byte, err error)) error {
	groups := tx.Bucket(groupsBucket)
	var keys [][]byte
	groups.ForEach(func(k, _ []byte) error {
		keys = append(keys, bytes.Clone(k))
		return nil
	})
	for _, k := range keys {
		old := groups.Get(k)
		if len(k) < groupKeyHeader+hashLen+1 || len(old) < header {
			return fmt.Errorf("group of %d and %d bytes", len(k), len(old))
		}
		at, insert, err := change(k, old)
		if err != nil {
			return err
		}
		if err := groups.Put(k, slices.Insert(bytes.Clone(old), at, insert...)); err != nil {
			return err
		}
	}
	return nil
}
