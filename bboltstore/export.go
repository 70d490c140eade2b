package bboltstore

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// exportFormat is the version of the form that Export writes.
const exportFormat = 1

// maxLine is the size of the longest line that Import reads: a report with the
// policies of all its groups.
const maxLine = 8 << 20

// line is one line of an export: the first has Format and LastGroup, each other one of
// the rest. The rows of a group, or of a report whose content is not composed yet, follow
// it.
type line struct {
	Format int `json:"ruapost_store,omitempty"`
	// LastGroup is no less than any group's ID.
	LastGroup ruapost.GroupID    `json:"last_group,omitempty"`
	Group     *exportedGroup     `json:"group,omitempty"`
	Report    *ruapost.Report    `json:"report,omitempty"`
	Row       *exportedRow       `json:"row,omitempty"`
	Known     *exportedKnown     `json:"known,omitempty"`
	STS       *ruapost.STSPolicy `json:"sts,omitempty"`
	// What follows is there from schema 6 on.
	Secret      []byte               `json:"secret,omitempty"`
	Suppression *ruapost.Suppression `json:"suppression,omitempty"`
	Count       *exportedCount       `json:"count,omitempty"`
	// And from schema 7 on.
	Tally *exportedTally `json:"tally,omitempty"`
}

// highestGroup returns the highest ID that rows are, or may be, found by.
func (l *line) highestGroup() (id ruapost.GroupID) {
	switch {
	case l.Group != nil:
		return l.Group.ID
	case l.Report != nil:
		for _, g := range l.Report.Groups {
			id = max(id, g.ID)
		}
	case l.Row != nil:
		return l.Row.Group
	}
	return id
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

type exportedCount struct {
	Name string `json:"name"`
	N    uint64 `json:"n"`
}

// Export writes what the store holds as JSON lines, for Import. It is what was there
// at one instant: the file is copied under the lock, and the copy read afterwards, so
// that nobody has to wait for w. Positions are left out: they mean something only where
// the log is.
func (s *Store) Export(ctx context.Context, w io.Writer) error {
	// A name of its own: another export may be under way.
	copied, err := os.CreateTemp(filepath.Dir(s.path), filepath.Base(s.path)+".export-*")
	if err != nil {
		return fmt.Errorf("bboltstore: export: %w", err)
	}
	defer os.Remove(copied.Name())
	err = s.withFile(ctx, func(h *handle) error { return copyFile(copied, h.file) })
	if err := errors.Join(err, copied.Close()); err != nil {
		return fmt.Errorf("bboltstore: export: %w", err)
	}
	db, err := bolt.Open(copied.Name(), 0o600, &bolt.Options{ReadOnly: true})
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

// copyFile copies the open, locked file f.
func copyFile(dst, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, io.NewSectionReader(f, 0, info.Size()))
	return err
}

func exportAll(ctx context.Context, tx *bolt.Tx, out *json.Encoder) error {
	last := ruapost.GroupID(tx.Bucket(groupsBucket).Sequence())
	if err := out.Encode(line{Format: exportFormat, LastGroup: last}); err != nil {
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
	err = tx.Bucket(knownBucket).ForEach(func(k, v []byte) error {
		s, err := decodeSighting(v)
		if err != nil {
			return err
		}
		l := line{Known: &exportedKnown{reverse(string(k)), s.passed.String(), s.destination.String(), s.reported.String()}}
		return errors.Join(ctx.Err(), out.Encode(l))
	})
	if err != nil {
		return err
	}
	err = tx.Bucket(stsBucket).ForEach(func(k, v []byte) error {
		p, err := decodeSTS(k, v)
		if err != nil {
			return err
		}
		return errors.Join(ctx.Err(), out.Encode(line{STS: p}))
	})
	if err != nil {
		return err
	}
	return exportKept(ctx, tx, out)
}

// exportKept writes what bounces, and people, have to do with.
func exportKept(ctx context.Context, tx *bolt.Tx, out *json.Encoder) error {
	if err := out.Encode(line{Secret: tx.Bucket(metaBucket).Get(secretKey)}); err != nil {
		return err
	}
	err := tx.Bucket(suppressedBucket).ForEach(func(k, v []byte) error {
		sup, err := decodeSuppression(k, v)
		if err != nil {
			return err
		}
		return errors.Join(ctx.Err(), out.Encode(line{Suppression: &sup}))
	})
	if err != nil {
		return err
	}
	counts := tx.Bucket(countsBucket)
	err = counts.ForEach(func(k, _ []byte) error {
		return out.Encode(line{Count: &exportedCount{string(k), counter(counts, k)}})
	})
	if err != nil {
		return err
	}
	return exportTallies(ctx, tx, out)
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

// ErrNotEmpty is returned by Import into a store that holds groups, rows, reports or known
// domains: what is in both would be counted twice.
var ErrNotEmpty = errors.New("bboltstore: the store is not empty")

// Import reads what Export has written into a store that is empty, ErrNotEmpty else. If
// it fails in the middle the store holds a part: remove the file and begin anew. What is
// recorded meanwhile is kept, but makes it fail if it is about a group that is still to
// come. Of two MTA-STS policies of a domain the one that was fetched later is kept, of two
// suppressions with a pattern the one that began later; counters and daily totals are
// added up, and the secret takes the place of the store's own. The outbox belongs to the store and is to be
// moved with it.
func (s *Store) Import(ctx context.Context, r io.Reader) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxLine)
	var lines []line
	var last ruapost.GroupID
	n := 0
	for sc.Scan() {
		n++
		var l line
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			return fmt.Errorf("bboltstore: import: line %d: %w: is it what store export writes?", n, err)
		}
		if n == 1 {
			if l.Format != exportFormat {
				return fmt.Errorf("bboltstore: import: line 1 says format %d, not %d: is it an export?", l.Format, exportFormat)
			}
			last = l.LastGroup
			if err := s.beginImport(ctx, last); err != nil {
				return err
			}
			continue
		}
		if lines = append(lines, l); len(lines) < chunk {
			continue
		}
		if err := s.importLines(ctx, lines, last); err != nil {
			return fmt.Errorf("bboltstore: import: before line %d: %w", n+1, err)
		}
		lines = lines[:0]
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("bboltstore: import: behind line %d: %w", n, err)
	}
	if n == 0 {
		return errors.New("bboltstore: import: there is nothing to read; it takes what store export writes from standard input")
	}
	if err := s.importLines(ctx, lines, last); err != nil {
		return fmt.Errorf("bboltstore: import: before line %d: %w", n+1, err)
	}
	return nil
}

// beginImport sets the IDs up to last aside for what is imported, if the store is empty.
// A group that is recorded meanwhile gets a higher one.
func (s *Store) beginImport(ctx context.Context, last ruapost.GroupID) error {
	return s.update(ctx, func(tx *bolt.Tx) error {
		for _, name := range [][]byte{groupsBucket, rowsBucket, reportsBucket, knownBucket} {
			if k, _ := tx.Bucket(name).Cursor().First(); k != nil {
				return ErrNotEmpty
			}
		}
		groups := tx.Bucket(groupsBucket)
		return groups.SetSequence(max(groups.Sequence(), uint64(last)))
	})
}

// importLines adds lines about groups up to the ID last.
func (s *Store) importLines(ctx context.Context, lines []line, last ruapost.GroupID) error {
	return s.update(ctx, func(tx *bolt.Tx) error {
		u, err := loadUsage(tx, usageKey)
		if err != nil {
			return err
		}
		k, err := loadKnown(tx, s.maxKnown)
		if err != nil {
			return err
		}
		sts, err := loadSTS(tx)
		if err != nil {
			return err
		}
		for _, l := range lines {
			if id := l.highestGroup(); id > last {
				return fmt.Errorf("group %d, but line 1 says that %d is the last", id, last)
			}
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
			case l.STS != nil:
				err = importSTS(sts, l.STS)
			case l.Secret != nil:
				err = importSecret(tx, l.Secret)
			case l.Suppression != nil:
				err = importSuppression(tx, l.Suppression)
			case l.Count != nil:
				err = importCount(tx, l.Count)
			case l.Tally != nil:
				err = importTally(tx, l.Tally)
			default:
				err = errors.New("a line that is nothing this program knows")
			}
			if err != nil {
				return err
			}
		}
		return errors.Join(u.store(tx, usageKey), k.storeCounts(), sts.store())
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
		required: uint64(g.Required), failed: uint64(g.Failed),
		passed: uint64(g.Passed), quarantined: uint64(g.Quarantined), rejected: uint64(g.Rejected), policy: data,
	}
	groups := tx.Bucket(groupsBucket)
	if groups.Get(key) != nil {
		return fmt.Errorf("group %d about %s is there already", g.ID, g.Domain)
	}
	return errors.Join(groups.Put(key, v.encode()), countGroup(tx, key, 1))
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

// importKnown keeps whatever was known, room or not.
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
	old, err := k.get(e.Domain) // may have been seen meanwhile
	if err != nil {
		return err
	}
	return k.put([]byte(reverse(e.Domain)), old, old.with(s))
}

// importSTS keeps the policy that was fetched later, room or not.
func importSTS(b *stsPolicies, p *ruapost.STSPolicy) error {
	value, err := encodeSTS(p)
	if err != nil {
		return err
	}
	if len(value) > MaxSTSPolicyBytes {
		return fmt.Errorf("MTA-STS policy of %s has %d bytes", p.Domain, len(value))
	}
	old, err := b.get(p.Domain)
	if err != nil || old != nil && !old.Fetched.Before(p.Fetched) {
		return err
	}
	return b.put(p.Domain, value)
}

func importReport(tx *bolt.Tx, r *ruapost.Report) error {
	if r.ID == "" {
		return errors.New("report without an ID")
	}
	return putReport(tx, r)
}

func importSecret(tx *bolt.Tx, secret []byte) error {
	if len(secret) != secretLen {
		return fmt.Errorf("a secret of %d bytes", len(secret))
	}
	return tx.Bucket(metaBucket).Put(secretKey, secret)
}

// importSuppression keeps the one that began later, room or not.
func importSuppression(tx *bolt.Tx, sup *ruapost.Suppression) error {
	value, err := encodeSuppression(*sup)
	if err != nil || !isName(sup.Pattern, MaxSuppressionBytes) {
		return fmt.Errorf("suppression of %.300q: %w", sup.Pattern, cmp.Or(err, errors.New("that is no pattern")))
	}
	key := []byte(sup.Pattern)
	if old := tx.Bucket(suppressedBucket).Get(key); old != nil {
		there, err := decodeSuppression(key, old)
		if err != nil || !there.Since.Before(sup.Since) {
			return err
		}
	}
	return putSuppression(tx, key, value)
}

// importCount adds, room or not.
func importCount(tx *bolt.Tx, c *exportedCount) error {
	if !isName(c.Name, MaxCountBytes) {
		return fmt.Errorf("%.300q is no name of a counter", c.Name)
	}
	return addCount(tx.Bucket(countsBucket), c.Name, c.N)
}
