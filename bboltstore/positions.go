package bboltstore

import (
	"context"
	"fmt"
	"maps"
	"slices"

	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// position is how far a source is to be noted as read.
type position struct {
	at  string
	err error // why it was not noted, set before the batch's done is closed
}

// RecordSessionsAt records the sessions, of which there may be none, as RecordSessions
// does, and with them notes at: all in one transaction, so that one that begins again at
// the position counts no line twice and misses none. The position last noted for a source
// holds; an empty one forgets the source.
//
// It returns nil when all is on disk. Then the position has moved, whatever sessions the
// bounds have kept out. If ctx ended before, with ErrQueued, sessions and position are
// still written later, neither without the other. After ErrQueueFull and ErrClosed neither
// is: the lines may be given again. A position that is overlong or has no source is an
// error, and nothing is recorded. If MaxPositions sources are kept and this is none of
// them the sessions are recorded, but not the position: the error wraps ruapost.ErrNoRoom.
func (s *Store) RecordSessionsAt(ctx context.Context, sessions []ruapost.Session, at ruapost.Position) error {
	if at.Source == "" {
		return fmt.Errorf("bboltstore: a position without a source, nothing recorded")
	}
	if n := max(len(at.Source), len(at.At)); n > MaxPositionBytes {
		dropped.WithLabelValues("position_bytes").Inc()
		return fmt.Errorf("bboltstore: a position or its source has %d bytes, more than %d, nothing recorded", n, MaxPositionBytes)
	}
	entries, err := sessionEntries(sessions)
	if err != nil {
		return err
	}
	return s.record(ctx, entries, &at)
}

// Position returns how far the source was read, "" if that is not known.
func (s *Store) Position(ctx context.Context, source string) (at string, err error) {
	err = s.view(ctx, func(tx *bolt.Tx) error {
		at = string(tx.Bucket(positionsBucket).Get([]byte(source)))
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("bboltstore: read position: %w", err)
	}
	return at, nil
}

// addAt adds the entries and the position to one batch, whatever its size. s.mu is held.
func (s *Store) addAt(entries []entry, at *ruapost.Position) (*batch, *position) {
	b := s.openBatch()
	rows, size := b.rows, b.bytes
	for i := range entries {
		b.add(&entries[i])
	}
	p := b.positions[at.Source]
	if p == nil {
		p = &position{}
		if b.positions == nil {
			b.positions = map[string]*position{}
		}
		b.positions[at.Source] = p
		b.grow(len(at.Source) + MaxPositionBytes)
	}
	p.at = at.At
	s.queued += b.rows - rows
	s.queuedBytes += b.bytes - size
	return b, p
}

// writePositions notes the positions, and says whether that has changed anything, and
// for how many there was no room.
func writePositions(tx *bolt.Tx, positions map[string]*position) (changed bool, refused uint64, err error) {
	if len(positions) == 0 {
		return false, 0, nil // bbolt writes small buckets anew that were only looked at
	}
	bucket := tx.Bucket(positionsBucket)
	for _, source := range slices.Sorted(maps.Keys(positions)) {
		p := positions[source]
		p.err = nil // of a transaction that was rolled back
		key := []byte(source)
		old := bucket.Get(key)
		switch {
		case string(old) == p.at:
			continue
		case p.at == "":
			err = bucket.Delete(key)
		case old == nil && keys(bucket) >= MaxPositions:
			p.err = fmt.Errorf("bboltstore: note position of %q: %w: %d others are kept", source, ruapost.ErrNoRoom, MaxPositions)
			refused++
			continue
		default:
			err = bucket.Put(key, []byte(p.at))
		}
		if err != nil {
			return false, 0, err
		}
		changed = true
	}
	return changed, refused, nil
}

func keys(b *bolt.Bucket) (n int) {
	_ = b.ForEach(func(_, _ []byte) error { // which fails only if this does
		n++
		return nil
	})
	return n
}

// movePositions writes the positions of a batch for which the file has no room.
func movePositions(db *bolt.DB, positions map[string]*position) (refused uint64, err error) {
	if len(positions) == 0 {
		return 0, nil
	}
	err = safely(func() error {
		return db.Update(func(tx *bolt.Tx) error {
			_, refused, err = writePositions(tx, positions)
			return err
		})
	})
	return refused, err
}

func checkPositions(tx *bolt.Tx) (faults []error) {
	n := 0
	_ = tx.Bucket(positionsBucket).ForEach(func(k, v []byte) error {
		n++
		if len(v) == 0 || max(len(k), len(v)) > MaxPositionBytes {
			faults = append(faults, fmt.Errorf("position of a source with %d bytes has %d", len(k), len(v)))
		}
		return nil
	})
	if n > MaxPositions {
		faults = append(faults, fmt.Errorf("positions of %d sources", n))
	}
	return faults
}
