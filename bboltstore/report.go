package bboltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
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
	err := s.update(ctx, func(tx *bolt.Tx) error {
		groups, err := takeGroups(tx, r.Groups)
		if err != nil {
			return err
		}
		r.Groups = groups
		if len(groups) == 0 {
			return errUnchanged
		}
		return putReport(tx, r)
	})
	if err != nil {
		return fmt.Errorf("bboltstore: seal report %s about %s: %w", r.ID, r.Domain, err)
	}
	return nil
}

// takeGroups deletes the groups' keys and returns what they held last.
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
			if err := countGroup(tx, key, -1); err != nil {
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
			id, _ := trash.Cursor().First()
			if more = id != nil; !more {
				return errUnchanged
			}
			id = bytes.Clone(id)
			if n, err := dropChunk(tx, id); n == chunk || err != nil {
				return err
			}
			return trash.Delete(id)
		})
		if err != nil {
			return fmt.Errorf("bboltstore: drop rows: %w", err)
		}
	}
	return nil
}

// Rows returns the rows of a sealed group. The file is not locked while the caller
// is busy with a row.
func (s *Store) Rows(ctx context.Context, id ruapost.GroupID) iter.Seq2[ruapost.Row, error] {
	return func(yield func(ruapost.Row, error) bool) {
		after := rowKey(uint64(id), nil)
		for {
			rows, last, err := s.readRows(ctx, after)
			if err != nil {
				yield(ruapost.Row{}, fmt.Errorf("bboltstore: read rows: %w", err))
				return
			}
			for _, r := range rows {
				if !yield(r, nil) {
					return
				}
			}
			if last == nil {
				return
			}
			after = last
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
	for _, g := range groups {
		for more := true; more; {
			err := s.update(ctx, func(tx *bolt.Tx) error {
				n, err := dropChunk(tx, rowKey(uint64(g.ID), nil))
				more = n == chunk
				if n == 0 && err == nil {
					return errUnchanged
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("bboltstore: drop rows about %s: %w", g.Domain, err)
			}
		}
	}
	return nil
}

// dropChunk deletes at most chunk rows whose keys begin with prefix, and returns how
// many. There may be more if it is chunk.
func dropChunk(tx *bolt.Tx, prefix []byte) (n int, err error) {
	u, err := loadUsage(tx, usageKey)
	if err != nil {
		return 0, err
	}
	c := tx.Bucket(rowsBucket).Cursor()
	// From the beginning each time: a cursor's Next may pass over a key after Delete.
	for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix) && n < chunk; k, v = c.Seek(prefix) {
		u.remove(1, uint64(len(v)))
		if err := c.Delete(); err != nil {
			return n, err
		}
		n++
	}
	if n == 0 {
		return 0, nil
	}
	return n, u.store(tx, usageKey)
}

// PutReport stores r in the place of what was stored under its ID.
func (s *Store) PutReport(ctx context.Context, r *ruapost.Report) error {
	err := s.update(ctx, func(tx *bolt.Tx) error { return putReport(tx, r) })
	if err != nil {
		return fmt.Errorf("bboltstore: store report %s: %w", r.ID, err)
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

// Reports returns all reports, oldest first.
func (s *Store) Reports(ctx context.Context) ([]ruapost.Report, error) {
	var reports []ruapost.Report
	err := s.scan(ctx, reportsBucket, func(_, v []byte) error {
		var r ruapost.Report
		if err := json.Unmarshal(v, &r); err != nil {
			return err
		}
		reports = append(reports, r)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("bboltstore: read reports: %w", err)
	}
	slices.SortStableFunc(reports, func(a, b ruapost.Report) int { return a.Sealed.Compare(b.Sealed) })
	return reports, nil
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
