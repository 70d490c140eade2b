package bboltstore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// Groups returns the groups whose window is over at the time before, in the order
// of kind, window and domain.
func (s *Store) Groups(ctx context.Context, before time.Time) ([]ruapost.Group, error) {
	var found []ruapost.Group
	err := s.scan(ctx, groupsBucket, func(k, v []byte) error {
		g, err := readGroup(k, v)
		if err == nil && !g.Window.End.After(before) {
			found = append(found, g)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("bboltstore: read groups: %w", err)
	}
	return found, nil
}

// scan calls fn for all keys of a bucket, chunk of them per lock hold.
func (s *Store) scan(ctx context.Context, bucket []byte, fn func(k, v []byte) error) error {
	var after []byte
	for more := true; more; {
		err := s.view(ctx, func(tx *bolt.Tx) error {
			c := tx.Bucket(bucket).Cursor()
			more = false
			n := 0
			for k, v := seekAfter(c, after); k != nil; k, v = c.Next() {
				if n++; n > chunk {
					more = true
					return nil
				}
				after = bytes.Clone(k)
				if err := fn(k, v); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// seekAfter places c behind key, or at the beginning if key is nil.
func seekAfter(c *bolt.Cursor, key []byte) (k, v []byte) {
	if key == nil {
		return c.First()
	}
	k, v = c.Seek(key)
	if bytes.Equal(k, key) {
		k, v = c.Next()
	}
	return k, v
}

func readGroup(key, value []byte) (g ruapost.Group, err error) {
	g.Kind, g.Window, g.Domain, err = decodeGroupKey(key)
	if err != nil {
		return g, err
	}
	v, err := decodeGroup(value)
	if err != nil {
		return g, err
	}
	g.ID = ruapost.GroupID(v.id)
	g.Total, g.Rows, g.Listed = int64(v.total), int64(v.rows), int64(v.listed)
	g.Required, g.Failed = int64(v.required), int64(v.failed)
	g.Passed, g.Quarantined, g.Rejected = int64(v.passed), int64(v.quarantined), int64(v.rejected)
	var policy any = &g.DMARC
	if g.Kind == ruapost.KindTLS {
		policy = &g.TLS
	}
	if err := json.Unmarshal(v.policy, policy); err != nil {
		return g, fmt.Errorf("policy of %s: %w", g.Domain, err)
	}
	return g, nil
}

// Seal takes the groups with the IDs in r.Groups out of what is being recorded and
// stores r with their totals, all in one transaction. What is recorded later for
// the same window and domain goes into new groups. Groups that are gone, because
// somebody else sealed or dropped them, are left out of r; if none is left, Seal
// stores nothing and r.Groups is empty.
func (s *Store) Seal(ctx context.Context, r *ruapost.Report) error {
	sealed := *r
	err := s.update(ctx, func(tx *bolt.Tx) (err error) {
		sealed.Groups, err = takeGroups(tx, r.Groups)
		if err != nil {
			return err
		}
		if len(sealed.Groups) == 0 {
			return errUnchanged
		}
		return putReport(tx, &sealed)
	})
	if err != nil {
		return fmt.Errorf("bboltstore: seal report %s about %s: %w", r.ID, r.Domain, err)
	}
	r.Groups = sealed.Groups
	return nil
}

// takeGroups deletes the groups' keys, adds what they count to the daily totals, and
// returns what they held last.
func takeGroups(tx *bolt.Tx, groups []ruapost.Group) (taken []ruapost.Group, err error) {
	b := tx.Bucket(groupsBucket)
	for _, want := range groups {
		prefix := groupKey(want.Kind, want.Window, want.Domain, nil)
		prefix = prefix[:len(prefix)-hashLen]
		c := b.Cursor()
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
			g, err := readGroup(k, v)
			if err != nil {
				return nil, err
			}
			if g.ID != want.ID {
				continue
			}
			taken = append(taken, g)
			key := bytes.Clone(k)
			if err := b.Delete(key); err != nil {
				return nil, err
			}
			if err := errors.Join(countGroup(tx, key, -1), tallyGroup(tx, &g)); err != nil {
				return nil, err
			}
			break
		}
	}
	return taken, nil
}

// Drop forgets the groups and their rows: nobody is to be told of them. If it is
// interrupted, the next Drop or Tidy deletes what is left.
func (s *Store) Drop(ctx context.Context, groups []ruapost.Group) error {
	err := s.update(ctx, func(tx *bolt.Tx) error {
		taken, err := takeGroups(tx, groups)
		if err != nil {
			return err
		}
		if len(taken) == 0 {
			return errUnchanged
		}
		for _, g := range taken {
			if err := tx.Bucket(trashBucket).Put(rowKey(uint64(g.ID), nil), nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("bboltstore: drop: %w", err)
	}
	return s.emptyTrash(ctx)
}

// emptyTrash deletes the rows of dropped groups.
func (s *Store) emptyTrash(ctx context.Context) error {
	for more := true; more; {
		err := s.update(ctx, func(tx *bolt.Tx) error {
			trash := tx.Bucket(trashBucket)
			var ids [][]byte
			c := trash.Cursor()
			for id, _ := c.First(); id != nil && len(ids) < chunk; id, _ = c.Next() {
				ids = append(ids, bytes.Clone(id))
			}
			if more = len(ids) > 0; !more {
				return errUnchanged
			}
			_, gone, err := dropChunk(tx, ids)
			for _, id := range ids[:gone] {
				err = errors.Join(err, trash.Delete(id))
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("bboltstore: drop rows: %w", err)
		}
	}
	return nil
}

// Rows returns the rows of a sealed group. The file is not locked while the caller
// is busy with a row; the next rows are read meanwhile.
func (s *Store) Rows(ctx context.Context, id ruapost.GroupID) iter.Seq2[ruapost.Row, error] {
	return func(yield func(ruapost.Row, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var reading sync.WaitGroup
		defer reading.Wait()
		defer cancel()
		type part struct {
			rows []ruapost.Row
			last []byte
			err  error
		}
		read := func(after []byte) <-chan part {
			c := make(chan part, 1)
			reading.Go(func() {
				rows, last, err := s.readRows(ctx, after)
				c <- part{rows, last, err}
			})
			return c
		}
		for next := read(rowKey(uint64(id), nil)); next != nil; {
			p := <-next
			if p.err != nil {
				yield(ruapost.Row{}, fmt.Errorf("bboltstore: read rows: %w", p.err))
				return
			}
			next = nil
			if p.last != nil {
				next = read(p.last)
			}
			for _, r := range p.rows {
				if !yield(r, nil) {
					return
				}
			}
		}
	}
}

// readRows returns at most chunk rows behind the key after, of the group that key
// begins with. last is nil if there are no more.
func (s *Store) readRows(ctx context.Context, after []byte) (rows []ruapost.Row, last []byte, err error) {
	err = s.view(ctx, func(tx *bolt.Tx) error {
		c := tx.Bucket(rowsBucket).Cursor()
		for k, v := seekAfter(c, after); bytes.HasPrefix(k, after[:8]); k, v = c.Next() {
			if len(v) < 8 {
				return fmt.Errorf("row value of %d bytes", len(v))
			}
			rows = append(rows, ruapost.Row{
				Count: int64(binary.BigEndian.Uint64(v)),
				Data:  bytes.Clone(v[8:]),
			})
			if len(rows) == chunk {
				last = bytes.Clone(k)
				return nil
			}
		}
		return nil
	})
	return rows, last, err
}

// DropRows deletes the rows of sealed groups. It may be called again for groups
// whose rows are gone, in part or as a whole.
func (s *Store) DropRows(ctx context.Context, groups []ruapost.Group) error {
	ids := make([][]byte, 0, len(groups))
	for _, g := range groups {
		ids = append(ids, rowKey(uint64(g.ID), nil))
	}
	slices.SortFunc(ids, bytes.Compare)
	ids = slices.CompactFunc(ids, bytes.Equal)
	for gone := 0; len(ids) > 0; ids = ids[gone:] {
		err := s.update(ctx, func(tx *bolt.Tx) (err error) {
			var deleted int
			deleted, gone, err = dropChunk(tx, ids[:min(len(ids), chunk)])
			if deleted == 0 && err == nil {
				return errUnchanged
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("bboltstore: drop rows: %w", err)
		}
	}
	return nil
}

// dropChunk deletes rows of the groups with these IDs, each there once, as many as one
// transaction may, and returns how many, and how many of the groups have no row any more.
func dropChunk(tx *bolt.Tx, ids [][]byte) (deleted, gone int, err error) {
	u, err := loadUsage(tx, usageKey)
	if err != nil {
		return 0, 0, err
	}
	// All found before the first is deleted: a cursor's Next may pass over a key after
	// Delete, and Seek from the beginning goes through all pages that are empty by then.
	keys, size, gone := findRows(tx, ids)
	if len(keys) == 0 {
		return 0, gone, nil
	}
	rows := tx.Bucket(rowsBucket)
	for _, k := range keys {
		if err := rows.Delete(k); err != nil {
			return 0, 0, err
		}
	}
	u.remove(uint64(len(keys)), size)
	return len(keys), gone, u.store(tx, usageKey)
}

// findRows returns the keys and the size of rows of the groups with these IDs, up to dropRows
// and dropBytes, and how many of the groups have no other.
func findRows(tx *bolt.Tx, ids [][]byte) (keys [][]byte, size uint64, gone int) {
	c := tx.Bucket(rowsBucket).Cursor()
	for _, id := range ids {
		for k, v := c.Seek(id); bytes.HasPrefix(k, id); k, v = c.Next() {
			if len(keys) == dropRows || size >= dropBytes {
				return keys, size, gone
			}
			keys = append(keys, bytes.Clone(k))
			size += uint64(len(v))
		}
		gone++
	}
	return keys, size, gone
}

// PutReports stores each report in the place of what was stored under its ID, all in one
// transaction.
func (s *Store) PutReports(ctx context.Context, reports ...*ruapost.Report) error {
	if len(reports) == 0 {
		return nil
	}
	err := s.update(ctx, func(tx *bolt.Tx) error {
		for _, r := range reports {
			if err := putReport(tx, r); err != nil {
				return fmt.Errorf("%s: %w", r.ID, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("bboltstore: store report %w", err)
	}
	return nil
}

func putReport(tx *bolt.Tx, r *ruapost.Report) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return tx.Bucket(reportsBucket).Put([]byte(r.ID), data)
}

// UpdateReport lets fn change the report with that ID, in one transaction: nobody else
// changes it between. The error wraps ruapost.ErrNoReport if there is none. If fn returns
// an error nothing is changed, and UpdateReport returns it.
//
// The file is locked while fn runs: it must not wait, and not call the store. It may be
// called more than once, each time with what is stored.
func (s *Store) UpdateReport(ctx context.Context, id string, fn func(*ruapost.Report) error) error {
	var refused error
	err := s.update(ctx, func(tx *bolt.Tx) error {
		var r *ruapost.Report
		if r, refused = getReport(tx, id); refused == nil {
			refused = callersFunc(func() error { return fn(r) })
		}
		if refused != nil {
			return errUnchanged
		}
		r.ID = id
		return putReport(tx, r)
	})
	rethrow(refused)
	if err := cmp.Or(err, refused); err != nil {
		return fmt.Errorf("bboltstore: change report %s: %w", id, err)
	}
	return nil
}

// Report returns the report with that ID. The error wraps ruapost.ErrNoReport if there is
// none.
func (s *Store) Report(ctx context.Context, id string) (r *ruapost.Report, err error) {
	err = s.view(ctx, func(tx *bolt.Tx) error {
		r, err = getReport(tx, id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("bboltstore: read report %s: %w", id, err)
	}
	return r, nil
}

func getReport(tx *bolt.Tx, id string) (*ruapost.Report, error) {
	v := tx.Bucket(reportsBucket).Get([]byte(id))
	if v == nil {
		return nil, ruapost.ErrNoReport
	}
	r := &ruapost.Report{}
	return r, json.Unmarshal(v, r)
}

// Reports returns all reports in the order of their IDs. The file is not locked while the
// caller is busy with one. What is stored or forgotten meanwhile may be among them or not.
func (s *Store) Reports(ctx context.Context) iter.Seq2[ruapost.Report, error] {
	return func(yield func(ruapost.Report, error) bool) {
		var after []byte
		for more := true; more; {
			var values [][]byte
			err := s.view(ctx, func(tx *bolt.Tx) error {
				values, after, more = readReports(tx, after)
				return nil
			})
			if err != nil {
				yield(ruapost.Report{}, fmt.Errorf("bboltstore: read reports: %w", err))
				return
			}
			for _, v := range values {
				var r ruapost.Report
				if err := json.Unmarshal(v, &r); err != nil {
					yield(ruapost.Report{}, fmt.Errorf("bboltstore: read reports: %w", err))
					return
				}
				if !yield(r, nil) {
					return
				}
			}
		}
	}
}

// readReports returns the values of at most chunk reports behind the ID after, and no more
// than are read in a moment, the last one's ID, and whether there are more.
func readReports(tx *bolt.Tx, after []byte) (values [][]byte, last []byte, more bool) {
	size := 0
	c := tx.Bucket(reportsBucket).Cursor()
	for k, v := seekAfter(c, after); k != nil; k, v = c.Next() {
		if len(values) == chunk || size > MaxBatchBytes {
			return values, last, true
		}
		values, last = append(values, bytes.Clone(v)), bytes.Clone(k)
		size += len(v)
	}
	return values, last, false
}

// ForgetReport deletes the report with that ID.
func (s *Store) ForgetReport(ctx context.Context, id string) error {
	err := s.update(ctx, func(tx *bolt.Tx) error {
		reports := tx.Bucket(reportsBucket)
		if reports.Get([]byte(id)) == nil {
			return errUnchanged
		}
		return reports.Delete([]byte(id))
	})
	if err != nil {
		return fmt.Errorf("bboltstore: forget report %s: %w", id, err)
	}
	return nil
}

// checkReports looks for reports that nobody could read: that would end every run.
func checkReports(tx *bolt.Tx) (faults []error) {
	_ = tx.Bucket(reportsBucket).ForEach(func(k, _ []byte) error {
		if r, err := getReport(tx, string(k)); err != nil {
			faults = append(faults, fmt.Errorf("report at %q: %w", k, err))
		} else if r.ID != string(k) {
			faults = append(faults, fmt.Errorf("report at %q has the ID %.300q", k, r.ID))
		}
		return nil
	})
	return faults
}
