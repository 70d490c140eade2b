package bboltstore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"

	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// secretLen is the number of octets of the secret.
const secretLen = 32

// Secret returns 32 random octets. They were made with the file, or, if an import brought
// it here, with the file that was exported.
func (s *Store) Secret(ctx context.Context) (secret []byte, err error) {
	err = s.view(ctx, func(tx *bolt.Tx) error {
		secret = bytes.Clone(tx.Bucket(metaBucket).Get(secretKey))
		if len(secret) != secretLen {
			return fmt.Errorf("it has %d bytes", len(secret))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("bboltstore: read secret: %w", err)
	}
	return secret, nil
}

// Count adds to the counters with these names. One that is new finds no room if there are
// MaxCounts others: the rest is counted, and the error wraps ruapost.ErrNoRoom. If a name is
// empty or longer than MaxCountBytes nothing is counted.
func (s *Store) Count(ctx context.Context, counts map[string]uint64) error {
	for name := range counts {
		if !isName(name, MaxCountBytes) {
			return fmt.Errorf("bboltstore: count: %.300q is no name", name)
		}
	}
	var refused error
	err := s.update(ctx, func(tx *bolt.Tx) (err error) {
		refused, err = addCounts(tx, counts)
		return err
	})
	if err == nil && refused != nil {
		dropped.WithLabelValues("counts").Inc()
	}
	if err := cmp.Or(err, refused); err != nil {
		return fmt.Errorf("bboltstore: count: %w", err)
	}
	return nil
}

// addCounts returns why one was refused, and, then too, errUnchanged if nothing was changed.
func addCounts(tx *bolt.Tx, counts map[string]uint64) (refused, err error) {
	b := tx.Bucket(countsBucket)
	changed := false
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		add := counts[name]
		if add == 0 {
			continue
		}
		if b.Get([]byte(name)) == nil && keys(b) >= MaxCounts {
			refused = fmt.Errorf("%q: %w: there are %d others", name, ruapost.ErrNoRoom, MaxCounts)
			continue
		}
		if err := addCount(b, name, add); err != nil {
			return nil, err
		}
		changed = true
	}
	if !changed {
		return refused, errUnchanged
	}
	return refused, nil
}

// addCount adds to one counter. It stops at the highest number.
func addCount(b *bolt.Bucket, name string, add uint64) error {
	old := counter(b, []byte(name))
	sum := old + min(add, math.MaxUint64-old)
	return b.Put([]byte(name), binary.BigEndian.AppendUint64(nil, sum))
}

// Counts returns the counters that are not zero by their names.
func (s *Store) Counts(ctx context.Context) (counts map[string]uint64, err error) {
	err = s.view(ctx, func(tx *bolt.Tx) error {
		counts = map[string]uint64{}
		b := tx.Bucket(countsBucket)
		return b.ForEach(func(k, _ []byte) error {
			counts[string(k)] = counter(b, k)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("bboltstore: read counts: %w", err)
	}
	return counts, nil
}

func checkCounts(tx *bolt.Tx) (faults []error) {
	_ = tx.Bucket(countsBucket).ForEach(func(k, v []byte) error {
		if len(v) != 8 {
			faults = append(faults, fmt.Errorf("counter %q has %d bytes", k, len(v)))
		}
		return nil
	})
	return faults
}

func checkSecret(tx *bolt.Tx) []error {
	if n := len(tx.Bucket(metaBucket).Get(secretKey)); n != secretLen {
		return []error{fmt.Errorf("the secret has %d bytes", n)}
	}
	return nil
}
