package bboltstore

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// exportFormat is the version of the form that Export writes.
const exportFormat = 1

// maxLine is the size of the longest line that Import reads: a report with the
// policies of all its groups.
const maxLine = 8 << 20

// line is one line of an export: the first has Format, each other one of the rest.
// The rows of a group, or of a report whose content is not composed yet, follow it.
type line struct {
	Format int             `json:"ruapost_store,omitempty"`
	Group  *exportedGroup  `json:"group,omitempty"`
	Report *ruapost.Report `json:"report,omitempty"`
	Row    *exportedRow    `json:"row,omitempty"`
	Known  *exportedKnown  `json:"known,omitempty"`
}

type exportedGroup struct {
	ruapost.Group
	Bytes uint64 `json:"bytes"` // of its rows
}

type exportedRow struct {
	Group ruapost.GroupID `json:"group"`
	Count int64           `json:"count"`
	Data  json.RawMessage `json:"data"`
}

// exportedKnown is a known domain. The days are as in 2006-01-02, or empty.
type exportedKnown struct {
	Domain      string `json:"domain"`
	Passed      string `json:"passed,omitempty"`
	Destination string `json:"destination,omitempty"`
	Reported    string `json:"reported,omitempty"`
}

// Export writes what the store holds as JSON lines, for Import. It is what was there
// at one instant: the file is copied under the lock, and the copy read afterwards, so
// that nobody has to wait for w.
func (s *Store) Export(ctx context.Context, w io.Writer) error {
	copied := s.path + ".export"
	defer os.Remove(copied)
	err := s.withFile(ctx, func(h *handle) error { return copyFile(h.file, copied) })
	if err != nil {
		return fmt.Errorf("bboltstore: export: %w", err)
	}
	db, err := bolt.Open(copied, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("bboltstore: export: %w", err)
	}
	defer db.Close()
	buffered := bufio.NewWriter(w)
	err = safely(func() error {
		return db.View(func(tx *bolt.Tx) error { return exportAll(ctx, tx, json.NewEncoder(buffered)) })
	})
	if err := errors.Join(err, buffered.Flush()); err != nil {
		return fmt.Errorf("bboltstore: export: %w", err)
	}
	return nil
}

// copyFile copies the open, locked file.
func copyFile(f *os.File, to string) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, io.NewSectionReader(f, 0, info.Size()))
	return errors.Join(err, dst.Close())
}

func exportAll(ctx context.Context, tx *bolt.Tx, out *json.Encoder) error {
	if err := out.Encode(line{Format: exportFormat}); err != nil {
		return err
	}
	err := tx.Bucket(groupsBucket).ForEach(func(k, v []byte) error {
		g, err := readGroup(k, v)
		if err != nil {
			return err
		}
		value, err := decodeGroup(v)
		if err != nil {
			return err
		}
		l := line{Group: &exportedGroup{g, value.bytes}}
		return errors.Join(ctx.Err(), out.Encode(l), exportRows(tx, out, g.ID))
	})
	if err != nil {
		return err
	}
	err = tx.Bucket(reportsBucket).ForEach(func(_, v []byte) error {
		var r ruapost.Report
		if err := json.Unmarshal(v, &r); err != nil {
			return err
		}
		if err := errors.Join(ctx.Err(), out.Encode(line{Report: &r})); err != nil {
			return err
		}
		for _, g := range r.Groups {
			if err := exportRows(tx, out, g.ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return tx.Bucket(knownBucket).ForEach(func(k, v []byte) error {
		s, err := decodeSighting(v)
		if err != nil {
			return err
		}
		l := line{Known: &exportedKnown{reverse(string(k)), s.passed.String(), s.destination.String(), s.reported.String()}}
		return errors.Join(ctx.Err(), out.Encode(l))
	})
}

func exportRows(tx *bolt.Tx, out *json.Encoder, id ruapost.GroupID) error {
	prefix := rowKey(uint64(id), nil)
	c := tx.Bucket(rowsBucket).Cursor()
	for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if len(v) < 8 {
			return fmt.Errorf("row value of %d bytes", len(v))
		}
		row := exportedRow{Group: id, Count: int64(binary.BigEndian.Uint64(v)), Data: v[8:]}
		if err := out.Encode(line{Row: &row}); err != nil {
			return err
		}
	}
	return nil
}

// ErrNotEmpty is returned by Import into a store that holds something: what is in
// both would be counted twice.
var ErrNotEmpty = errors.New("bboltstore: the store is not empty")

// Import reads what Export has written into a store that is empty, ErrNotEmpty else. If
// it fails in the middle the store holds a part: remove the file and begin anew. The
// outbox belongs to the store and is to be moved with it.
func (s *Store) Import(ctx context.Context, r io.Reader) error {
	st, err := s.Stats(ctx)
	if err != nil {
		return err
	}
	if st.Groups > 0 || st.Rows > 0 || st.Reports > 0 || st.KnownDomains > 0 {
		return ErrNotEmpty
	}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxLine)
	var lines []line
	n := 0
	for sc.Scan() {
		n++
		var l line
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			return fmt.Errorf("bboltstore: import: line %d: %w", n, err)
		}
		if n == 1 {
			if l.Format != exportFormat {
				return fmt.Errorf("bboltstore: import: line 1 says format %d, not %d: is it an export?", l.Format, exportFormat)
			}
			continue
		}
		if lines = append(lines, l); len(lines) < chunk {
			continue
		}
		if err := s.importLines(ctx, lines); err != nil {
			return fmt.Errorf("bboltstore: import: before line %d: %w", n+1, err)
		}
		lines = lines[:0]
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("bboltstore: import: behind line %d: %w", n, err)
	}
	if n == 0 {
		return errors.New("bboltstore: import: there is nothing to read")
	}
	if err := s.importLines(ctx, lines); err != nil {
		return fmt.Errorf("bboltstore: import: before line %d: %w", n+1, err)
	}
	return nil
}

func (s *Store) importLines(ctx context.Context, lines []line) error {
	return s.update(ctx, func(tx *bolt.Tx) error {
		u, err := loadUsage(tx)
		if err != nil {
			return err
		}
		k, err := loadKnown(tx, s.maxKnown)
		if err != nil {
			return err
		}
		for _, l := range lines {
			var err error
			switch {
			case l.Group != nil:
				err = importGroup(tx, l.Group)
			case l.Report != nil:
				err = importReport(tx, l.Report)
			case l.Row != nil:
				err = importRow(tx, l.Row, &u)
			case l.Known != nil:
				err = importKnown(k, l.Known)
			default:
				err = errors.New("a line that is neither group nor report nor row nor known domain")
			}
			if err != nil {
				return err
			}
		}
		return errors.Join(u.store(tx), k.storeCounts())
	})
}

func importGroup(tx *bolt.Tx, g *exportedGroup) error {
	var policy any = g.DMARC
	if g.Kind == ruapost.KindTLS {
		policy = g.TLS
	}
	data, err := json.Marshal(policy)
	if err != nil {
		return err
	}
	if kindByte[g.Kind] == 0 || g.Domain == "" || g.ID == 0 {
		return fmt.Errorf("group %d of kind %q about %q", g.ID, g.Kind, g.Domain)
	}
	key := groupKey(g.Kind, g.Window, g.Domain, data)
	v := groupValue{
		id: uint64(g.ID), total: uint64(g.Total), rows: uint64(g.Rows), bytes: g.Bytes, listed: uint64(g.Listed),
		required: uint64(g.Required), failed: uint64(g.Failed), policy: data,
	}
	groups := tx.Bucket(groupsBucket)
	if groups.Get(key) != nil {
		return fmt.Errorf("group %d is there already", g.ID)
	}
	return errors.Join(raiseSequence(groups, g.ID), groups.Put(key, v.encode()), countGroup(tx, key, 1))
}

func importRow(tx *bolt.Tx, r *exportedRow, u *usage) error {
	h := hash(r.Data)
	key := rowKey(uint64(r.Group), h[:])
	rows := tx.Bucket(rowsBucket)
	if rows.Get(key) != nil || r.Count <= 0 {
		return fmt.Errorf("a row of group %d with count %d is there twice, or never was", r.Group, r.Count)
	}
	v := append(binary.BigEndian.AppendUint64(nil, uint64(r.Count)), r.Data...)
	u.add(1, len(v))
	return rows.Put(key, v)
}

func importKnown(k *known, e *exportedKnown) error {
	passed, err1 := parseDay(e.Passed)
	destination, err2 := parseDay(e.Destination)
	reported, err3 := parseDay(e.Reported)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	s := sighting{passed, destination, reported}
	if !canBeKnown(e.Domain) || s == (sighting{}) {
		return fmt.Errorf("known domain %q, seen never", e.Domain)
	}
	_, err := k.see(e.Domain, s, false)
	return err
}

// importReport keeps what may still refer to rows by their group's ID.
func importReport(tx *bolt.Tx, r *ruapost.Report) error {
	if r.ID == "" {
		return errors.New("report without an ID")
	}
	for _, g := range r.Groups {
		if err := raiseSequence(tx.Bucket(groupsBucket), g.ID); err != nil {
			return err
		}
	}
	return putReport(tx, r)
}

// raiseSequence makes new groups get higher IDs.
func raiseSequence(groups *bolt.Bucket, id ruapost.GroupID) error {
	if uint64(id) <= groups.Sequence() {
		return nil
	}
	return groups.SetSequence(uint64(id))
}
