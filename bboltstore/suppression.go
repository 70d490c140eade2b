package bboltstore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// Suppressions returns what gets no reports, in the order of the patterns, also what has
// ended: what is stored under these patterns, or all if there is none.
func (s *Store) Suppressions(ctx context.Context, patterns ...string) ([]ruapost.Suppression, error) {
	var found []ruapost.Suppression
	add := func(k, v []byte) error {
		sup, err := decodeSuppression(k, v)
		found = append(found, sup)
		return err
	}
	var err error
	if len(patterns) == 0 {
		err = s.scan(ctx, suppressedBucket, add)
	} else {
		err = s.view(ctx, func(tx *bolt.Tx) error {
			found = nil
			for _, pattern := range slices.Compact(slices.Sorted(slices.Values(patterns))) {
				if v := tx.Bucket(suppressedBucket).Get([]byte(pattern)); v != nil {
					if err := add([]byte(pattern), v); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("bboltstore: read suppressions: %w", err)
	}
	return found, nil
}

// UpdateSuppression lets fn change the suppression with that pattern, in one transaction:
// nobody else changes it between. fn gets what is stored, or a zero one with the Pattern;
// what it leaves is stored, or deleted if keep is false. A Reason that does not fit into
// MaxSuppressionBytes is cut, a pattern that does not is an error. The error wraps
// ruapost.ErrNoRoom if there are MaxSuppressions others.
//
// The file is locked while fn runs: it must not wait, and not call the store. It may be
// called more than once, each time with what is stored.
func (s *Store) UpdateSuppression(ctx context.Context, pattern string, fn func(*ruapost.Suppression) (keep bool)) error {
	if !isName(pattern, MaxSuppressionBytes) {
		return fmt.Errorf("bboltstore: keep suppression: %.300q is no pattern", pattern)
	}
	var refused error
	err := s.update(ctx, func(tx *bolt.Tx) (err error) {
		refused, err = s.updateSuppression(tx, pattern, fn)
		return err
	})
	rethrow(refused)
	if err == nil && errors.Is(refused, ruapost.ErrNoRoom) {
		dropped.WithLabelValues("suppressions").Inc()
	}
	if err := cmp.Or(err, refused); err != nil {
		return fmt.Errorf("bboltstore: keep suppression of %.300q: %w", pattern, err)
	}
	return nil
}

// updateSuppression returns why it was refused, and, then too, errUnchanged if nothing was
// changed.
func (s *Store) updateSuppression(tx *bolt.Tx, pattern string, fn func(*ruapost.Suppression) bool) (refused, err error) {
	b, key := tx.Bucket(suppressedBucket), []byte(pattern)
	sup := ruapost.Suppression{Pattern: pattern}
	old := b.Get(key)
	if old != nil {
		if sup, err = decodeSuppression(key, old); err != nil {
			return nil, err
		}
	}
	var keep bool
	if refused = callersFunc(func() error { keep = fn(&sup); return nil }); refused != nil {
		return refused, errUnchanged
	}
	meta := tx.Bucket(metaBucket)
	if !keep && old != nil {
		return nil, errors.Join(b.Delete(key), count(meta, suppressedKey, -1))
	}
	sup.Pattern = pattern
	value, refused := encodeSuppression(sup)
	switch {
	case !keep || refused != nil || bytes.Equal(value, old):
		return refused, errUnchanged
	case old == nil && counter(meta, suppressedKey) >= s.maxSuppressions:
		return ruapost.ErrNoRoom, errUnchanged
	}
	return nil, putSuppression(tx, key, value)
}

func putSuppression(tx *bolt.Tx, key, value []byte) error {
	b := tx.Bucket(suppressedBucket)
	if b.Get(key) == nil {
		if err := count(tx.Bucket(metaBucket), suppressedKey, 1); err != nil {
			return err
		}
	}
	return b.Put(key, value)
}

// isName says whether text can be a key, and the same in JSON.
func isName(text string, most int) bool {
	return text != "" && len(text) <= most && utf8.ValidString(text)
}

// encodeSuppression cuts the Reason of one that is too large.
func encodeSuppression(sup ruapost.Suppression) ([]byte, error) {
	sup.Reason = cutText(sup.Reason, MaxSuppressionBytes)
	for {
		value, err := json.Marshal(sup)
		excess := len(value) - MaxSuppressionBytes
		switch {
		case err != nil || excess <= 0:
			return value, err
		case sup.Reason == "":
			return nil, fmt.Errorf("it has %d bytes, more than %d", len(value), MaxSuppressionBytes)
		}
		sup.Reason = cutText(sup.Reason, len(sup.Reason)-max(excess/6, 1)) // an octet can become six
	}
}

// cutText returns the beginning of text that has at most so many octets.
func cutText(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for most = max(most, 0); most > 0 && !utf8.RuneStart(text[most]); {
		most--
	}
	return text[:most]
}

func decodeSuppression(key, v []byte) (sup ruapost.Suppression, err error) {
	if err := json.Unmarshal(v, &sup); err != nil {
		return sup, fmt.Errorf("suppression at %q %w: %w", key, errUndecodable, err)
	}
	if sup.Pattern != string(key) {
		return sup, fmt.Errorf("suppression at %q, of %.300q, %w", key, sup.Pattern, errUndecodable)
	}
	return sup, nil
}

func checkSuppressions(tx *bolt.Tx) (faults []error) {
	have := uint64(0)
	_ = tx.Bucket(suppressedBucket).ForEach(func(k, v []byte) error {
		have++
		if _, err := decodeSuppression(k, v); err != nil {
			faults = append(faults, err)
		}
		return nil
	})
	if n := counter(tx.Bucket(metaBucket), suppressedKey); n != have {
		faults = append(faults, fmt.Errorf("number of suppressions says %d, there are %d", n, have))
	}
	return faults
}
