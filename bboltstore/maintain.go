package bboltstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
)

// When Tidy compacts. bbolt writes the whole list of free pages at every commit and
// reads it at every open, and never makes the file smaller.
const (
	// tidyPages is the number of free pages that is worth nothing to begin with: a
	// list of that many costs less than the commit.
	tidyPages = 5_000
	// tidyAlways is the number that is worth it whatever else the file holds: the list
	// makes a commit cost twice as much.
	tidyAlways = 30_000
	// compactChunk is how much is copied in one transaction.
	compactChunk = 1 << 20
)

// Stats says what the file holds.
type Stats struct {
	Schema uint64 `json:"schema"`
	// FileBytes is the size of the file, FreeBytes what of it is free.
	FileBytes int64 `json:"file_bytes"`
	FreeBytes int64 `json:"free_bytes"`
	// Groups are those that are being recorded or due, Rows and RowBytes all rows.
	Groups   int    `json:"groups"`
	Rows     uint64 `json:"rows"`
	RowBytes uint64 `json:"row_bytes"`
	Reports  int    `json:"reports"`
	// KnownDomains are those that are remembered as known.
	KnownDomains uint64 `json:"known_domains"`
	// STSPolicies and STSBytes are the number and size of all MTA-STS policies.
	STSPolicies uint64 `json:"sts_policies"`
	STSBytes    uint64 `json:"sts_bytes"`
	// Positions are the sources of log lines whose position is kept.
	Positions int `json:"positions"`
	// Suppressions are those that are stored, also such that have ended; Counts the
	// names of counters.
	Suppressions uint64 `json:"suppressions"`
	Counts       int    `json:"counts"`
	// Tallies are the daily totals of domains, and of all together.
	Tallies int `json:"tallies"`
}

// Used returns how much of each bound of the file is used, by the names that
// ruapost_store_dropped_total has for them where it has one; 1 if it is reached.
func (st *Stats) Used() map[string]float64 {
	return map[string]float64{
		"file_size":    float64(st.FileBytes-st.FreeBytes) / MaxFileSize,
		"rows":         float64(st.Rows) / MaxRows,
		"bytes":        float64(st.RowBytes) / MaxBytes,
		"known":        float64(st.KnownDomains) / MaxKnownDomains,
		"sts_policies": float64(st.STSPolicies) / MaxSTSPolicies,
		"sts_bytes":    float64(st.STSBytes) / MaxSTSBytes,
		"positions":    float64(st.Positions) / MaxPositions,
		"suppressions": float64(st.Suppressions) / MaxSuppressions,
		"counts":       float64(st.Counts) / MaxCounts,
	}
}

// withFile opens the file for fn alone, for as long as fn takes.
func (s *Store) withFile(ctx context.Context, fn func(*handle) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h, err := open(s.path)
	if err != nil {
		return err
	}
	err = safely(func() error { return fn(h) })
	if isDamage(err) {
		h.abandon()
		return err
	}
	return errors.Join(err, h.Close())
}

// Stats counts what the file holds.
func (s *Store) Stats(ctx context.Context) (st Stats, err error) {
	err = s.withFile(ctx, func(h *handle) error {
		return h.View(func(tx *bolt.Tx) error {
			st, err = stats(h, tx)
			return err
		})
	})
	return st, err
}

func stats(h *handle, tx *bolt.Tx) (st Stats, err error) {
	info, err := h.file.Stat()
	if err != nil {
		return st, err
	}
	if st.Schema, err = readSchema(tx); err != nil {
		return st, err
	}
	u, err := loadUsage(tx, usageKey)
	if err != nil {
		return st, err
	}
	st.FileBytes, st.Rows, st.RowBytes = info.Size(), u.number, u.bytes
	st.FreeBytes = freeBytes(h.DB)
	st.Groups = tx.Bucket(groupsBucket).Inspect().KeyN
	st.Reports = tx.Bucket(reportsBucket).Inspect().KeyN
	k, err := loadKnown(tx, MaxKnownDomains)
	if err != nil {
		return st, err
	}
	st.KnownDomains = k.counts.all
	st.Positions = tx.Bucket(positionsBucket).Inspect().KeyN
	st.Suppressions = counter(tx.Bucket(metaBucket), suppressedKey)
	st.Counts = tx.Bucket(countsBucket).Inspect().KeyN
	if st.Tallies, err = countTallies(tx); err != nil {
		return st, err
	}
	u, err = loadUsage(tx, stsKey)
	st.STSPolicies, st.STSBytes = u.number, u.bytes
	return st, err
}

func freeBytes(db *bolt.DB) int64 {
	return int64(db.Stats().FreePageN) * int64(db.Info().PageSize)
}

// Check looks for faults: those of the file's structure, which bbolt finds, and
// counts that do not fit what is there. It returns nil if there are none.
func (s *Store) Check(ctx context.Context) (faults []error, err error) {
	err = s.withFile(ctx, func(h *handle) error {
		return h.View(func(tx *bolt.Tx) error {
			info, err := h.file.Stat()
			if err != nil {
				return err
			}
			if info.Size() < tx.Size() {
				// bbolt looks in a goroutine of its own, whose fault behind the end of the
				// file nobody could catch.
				faults = []error{fmt.Errorf("the file has %d bytes, its pages %d", info.Size(), tx.Size())}
				return nil
			}
			for err := range tx.Check() {
				faults = append(faults, err)
			}
			if len(faults) == 0 {
				faults = checkAll(tx)
			}
			return nil
		})
	})
	return faults, err
}

// checkAll compares what is kept counted with what there is.
func checkAll(tx *bolt.Tx) (faults []error) {
	type found struct{ rows, bytes, listed uint64 }
	byGroup := map[uint64]found{}
	var have usage
	tx.Bucket(rowsBucket).ForEach(func(k, v []byte) error {
		if len(k) != 8+hashLen || len(v) < 8 {
			faults = append(faults, fmt.Errorf("row of %d and %d bytes", len(k), len(v)))
			return nil
		}
		id := binary.BigEndian.Uint64(k)
		f := byGroup[id]
		f.rows++
		f.bytes += uint64(len(v))
		f.listed += binary.BigEndian.Uint64(v)
		byGroup[id] = f
		have.add(1, len(v))
		return nil
	})
	if want, err := loadUsage(tx, usageKey); err != nil || want != have {
		faults = append(faults, fmt.Errorf("usage says %+v, there are %+v, %v", want, have, err))
	}
	windows := map[string]uint64{}
	tx.Bucket(groupsBucket).ForEach(func(k, v []byte) error {
		g, err := decodeGroup(v)
		if err != nil || len(k) < groupKeyHeader+hashLen+1 {
			faults = append(faults, fmt.Errorf("group %x: %w", k, err))
			return nil
		}
		windows[string(windowKey(k))]++
		windows[string(organizationKey(k))]++
		if f := byGroup[g.id]; f != (found{g.rows, g.bytes, g.listed}) {
			faults = append(faults, fmt.Errorf("group %d says %+v, there are %+v", g.id, found{g.rows, g.bytes, g.listed}, f))
		}
		return nil
	})
	return slices.Concat(faults, checkCounters(tx.Bucket(windowsBucket), windows), checkKnown(tx), checkSTS(tx),
		checkPositions(tx), checkReports(tx), checkSuppressions(tx), checkCounts(tx), checkSecret(tx), checkTallies(tx))
}

// checkCounters compares counters with what there is at their keys.
func checkCounters(counters *bolt.Bucket, have map[string]uint64) (faults []error) {
	counters.ForEach(func(k, v []byte) error {
		if len(v) != 8 || have[string(k)] != binary.BigEndian.Uint64(v) {
			faults = append(faults, fmt.Errorf("counter %q says %x, there are %d", k, v, have[string(k)]))
		}
		delete(have, string(k))
		return nil
	})
	for k, n := range have {
		faults = append(faults, fmt.Errorf("counter %q is not there, but %d of what it counts", k, n))
	}
	return faults
}

func checkKnown(tx *bolt.Tx) (faults []error) {
	k, err := loadKnown(tx, MaxKnownDomains)
	if err != nil {
		return []error{err}
	}
	have := knownCounts{swept: k.counts.swept}
	k.bucket.ForEach(func(key, v []byte) error {
		s, err := decodeSighting(v)
		if err != nil || s == (sighting{}) || !canBeKnown(string(key)) {
			faults = append(faults, fmt.Errorf("known domain %q: %x, %v", key, v, err))
		}
		have.change(sighting{}, s)
		return nil
	})
	if have != k.counts {
		faults = append(faults, fmt.Errorf("counts of known domains say %+v, there are %+v", k.counts, have))
	}
	return faults
}

// Tidy finishes what was interrupted, forgets domains that are not known any more and daily
// totals that are past, and compacts the file if that is worth while.
func (s *Store) Tidy(ctx context.Context) error {
	if err := s.emptyTrash(ctx); err != nil {
		return err
	}
	if err := errors.Join(s.forgetKnown(ctx, time.Now()), s.forgetTallies(ctx, time.Now())); err != nil {
		return err
	}
	return s.withFile(ctx, func(h *handle) error {
		info, err := h.file.Stat()
		if err != nil {
			return err
		}
		if page := int64(h.Info().PageSize); !worthCompacting(freeBytes(h.DB)/page, info.Size()/page) {
			return nil
		}
		return s.compact(h, info.Size())
	})
}

// worthCompacting says whether a file with so many free pages among all is to be
// compacted: if they are many, and most of all.
func worthCompacting(free, all int64) bool {
	return free >= tidyAlways || free >= tidyPages && free >= all/2
}

// Compact copies what the file holds into a new one without free pages.
func (s *Store) Compact(ctx context.Context) error {
	return s.withFile(ctx, func(h *handle) error {
		info, err := h.file.Stat()
		if err != nil {
			return err
		}
		return s.compact(h, info.Size())
	})
}

// compact puts a copy of the open file in its place. Who waits for the old one's
// lock finds that the path names another (lockAndOpen).
func (s *Store) compact(h *handle, before int64) error {
	began := time.Now()
	fresh := s.path + ".compact"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("bboltstore: compact: %w", err)
	}
	defer os.Remove(fresh) // is gone when all went well
	var file *os.File
	opts := options(newFile(&file))
	opts.NoSync = true // once at the end is enough: until then nobody needs the copy
	dst, err := bolt.Open(fresh, fileMode, opts)
	if err != nil {
		return fmt.Errorf("bboltstore: compact: %w", err)
	}
	err = bolt.Compact(dst, h.DB, compactChunk)
	err = errors.Join(err, dst.Sync(), file.Chmod(fileMode), keepOwner(h.file, file))
	after, errStat := file.Stat()
	if err := errors.Join(err, errStat, dst.Close()); err != nil {
		return fmt.Errorf("bboltstore: compact: %w", err)
	}
	if err := errors.Join(os.Rename(fresh, s.path), syncDir(filepath.Dir(s.path))); err != nil {
		return fmt.Errorf("bboltstore: compact: %w", err)
	}
	slog.Info("store: compacted", "file", s.path, "before", before, "after", after.Size(), "took", time.Since(began))
	return nil
}

// keepOwner gives a new file the owner of f: whoever compacts, root perhaps,
// must not lock the daemons out. A member of the group can keep only that, and need not
// do more: everybody else is one, too.
func keepOwner(f, to *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	err = to.Chown(int(st.Uid), int(st.Gid))
	if errors.Is(err, fs.ErrPermission) {
		err = to.Chown(-1, int(st.Gid))
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}
