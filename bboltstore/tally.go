package bboltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// TallyDays is for how many days, the current one among them, daily totals are kept.
const TallyDays = 35

// Keys of the days bucket begin with the day and the kind.
const tallyKeyHeader = 4 + 1

func tallyKey(d day, kind ruapost.Kind, domain string) []byte {
	key := binary.BigEndian.AppendUint32(make([]byte, 0, tallyKeyHeader+len(domain)), uint32(d))
	return append(append(key, kindByte[kind]), domain...)
}

// dayDomains is behind day and kind in the key of the number of domains.
const dayDomains = "\x00"

// isTallied says whether a domain has daily totals under its name.
func isTallied(domain string) bool {
	return canBeKnown(domain) && domain != ruapost.OtherDomains && domain[0] != dayDomains[0]
}

// AddTallies adds to the daily totals, all in one transaction. Past MaxDayDomains, and if
// it cannot be a domain's name, a domain is counted among ruapost.OtherDomains.
func (s *Store) AddTallies(ctx context.Context, tallies ...ruapost.Tally) error {
	err := s.update(ctx, func(tx *bolt.Tx) error {
		result := errUnchanged
		for i := range tallies {
			if tallies[i].Counts == (ruapost.OutcomeCounts{}) {
				continue
			}
			if err := addTally(tx, &tallies[i]); err != nil {
				return err
			}
			result = nil
		}
		return result
	})
	if err != nil {
		return fmt.Errorf("bboltstore: daily totals: %w", err)
	}
	return nil
}

// tallyGroup adds what is counted in a group that is taken.
func tallyGroup(tx *bolt.Tx, g *ruapost.Group) error {
	t := ruapost.Tally{Day: g.Window.Start, Kind: g.Kind, Domain: g.Domain, Counts: g.Outcomes()}
	switch {
	case t.Counts == (ruapost.OutcomeCounts{}):
		return nil
	case t.Domain == ruapost.WholeDay:
		t.Domain = ruapost.OtherDomains
	}
	return addTally(tx, &t)
}

func addTally(tx *bolt.Tx, t *ruapost.Tally) error {
	if kindByte[t.Kind] == 0 {
		return fmt.Errorf("daily totals of kind %q", t.Kind)
	}
	b, d := tx.Bucket(daysBucket), dayOf(t.Day)
	key := tallyKey(d, t.Kind, t.Domain)
	switch {
	case t.Domain == ruapost.WholeDay:
	case !isTallied(t.Domain):
		key = tallyKey(d, t.Kind, ruapost.OtherDomains)
	case b.Get(key) == nil:
		number := tallyKey(d, t.Kind, dayDomains)
		proven := t.Kind == ruapost.KindTLS || t.Counts[ruapost.OutcomePass] > 0
		if counter(b, number) >= share(MaxDayDomains, proven) {
			key = tallyKey(d, t.Kind, ruapost.OtherDomains)
			break
		}
		if err := count(b, number, 1); err != nil {
			return err
		}
	}
	counts, err := decodeCounts(b.Get(key))
	if err != nil {
		return err
	}
	for o, n := range t.Counts {
		if n < 0 || counts[o] > math.MaxInt64-n {
			return fmt.Errorf("daily totals of %.300q: %d messages or sessions cannot be added", t.Domain, n)
		}
		counts[o] += n
	}
	return b.Put(key, encodeCounts(&counts))
}

// encodeCounts leaves out what is zero at the end.
func encodeCounts(c *ruapost.OutcomeCounts) []byte {
	v := make([]byte, 0, 2*len(c))
	end := 0
	for _, n := range c {
		if v = binary.AppendUvarint(v, uint64(n)); n != 0 {
			end = len(v)
		}
	}
	return v[:end]
}

func decodeCounts(v []byte) (c ruapost.OutcomeCounts, err error) {
	for o := 0; len(v) > 0; o++ {
		n, size := binary.Uvarint(v)
		if size <= 0 || n > math.MaxInt64 || o >= len(c) {
			return c, fmt.Errorf("daily totals of %d bytes %w", len(v), errUndecodable)
		}
		c[o], v = int64(n), v[size:]
	}
	return c, nil
}

// decodeTally returns ok false for the number of a day's domains.
func decodeTally(k, v []byte) (t ruapost.Tally, ok bool, err error) {
	if len(k) < tallyKeyHeader {
		return t, false, fmt.Errorf("daily totals at %x %w", k, errUndecodable)
	}
	t.Day = time.Unix(int64(binary.BigEndian.Uint32(k))*secondsOfDay, 0).UTC()
	switch k[4] {
	case kindByte[ruapost.KindDMARC]:
		t.Kind = ruapost.KindDMARC
	case kindByte[ruapost.KindTLS]:
		t.Kind = ruapost.KindTLS
	default:
		return t, false, fmt.Errorf("daily totals of kind %q %w", k[4], errUndecodable)
	}
	if t.Domain = string(k[tallyKeyHeader:]); t.Domain == dayDomains {
		return t, false, nil
	}
	t.Counts, err = decodeCounts(v)
	return t, err == nil, err
}

// Tallies returns the daily totals from a day on, in the order of day, kind and domain: of
// one domain, or all if domain is empty. The file is not locked while the caller is busy
// with one.
func (s *Store) Tallies(ctx context.Context, from time.Time, domain string) iter.Seq2[ruapost.Tally, error] {
	read := s.readTallies
	if domain != "" {
		read = func(ctx context.Context, from []byte) ([]ruapost.Tally, []byte, error) {
			return s.readDomainTallies(ctx, from, domain)
		}
	}
	return func(yield func(ruapost.Tally, error) bool) {
		for next := tallyKey(dayOf(from), "", "")[:4]; next != nil; {
			var tallies []ruapost.Tally
			var err error
			if tallies, next, err = read(ctx, next); err != nil {
				yield(ruapost.Tally{}, fmt.Errorf("bboltstore: read daily totals: %w", err))
				return
			}
			for _, t := range tallies {
				if !yield(t, nil) {
					return
				}
			}
		}
	}
}

// readTallies returns at most chunk from a key on, and the key to go on from.
func (s *Store) readTallies(ctx context.Context, from []byte) (tallies []ruapost.Tally, next []byte, err error) {
	err = s.view(ctx, func(tx *bolt.Tx) error {
		tallies, next = nil, nil
		c := tx.Bucket(daysBucket).Cursor()
		for k, v := c.Seek(from); k != nil; k, v = c.Next() {
			if len(tallies) == chunk {
				next = bytes.Clone(k)
				return nil
			}
			t, ok, err := decodeTally(k, v)
			if err != nil {
				return err
			}
			if ok {
				tallies = append(tallies, t)
			}
		}
		return nil
	})
	return tallies, next, err
}

// readDomainTallies returns all of a domain from the day of a key on.
func (s *Store) readDomainTallies(ctx context.Context, from []byte, domain string) (tallies []ruapost.Tally, next []byte, err error) {
	err = s.view(ctx, func(tx *bolt.Tx) error {
		tallies = nil
		b := tx.Bucket(daysBucket)
		c := b.Cursor()
		for k, _ := c.Seek(from); len(k) >= tallyKeyHeader; {
			d := day(binary.BigEndian.Uint32(k))
			for _, kind := range []ruapost.Kind{ruapost.KindDMARC, ruapost.KindTLS} {
				key := tallyKey(d, kind, domain)
				v := b.Get(key)
				if v == nil {
					continue
				}
				t, ok, err := decodeTally(key, v)
				if err != nil {
					return err
				}
				if ok {
					tallies = append(tallies, t)
				}
			}
			if d == math.MaxUint32 {
				break
			}
			k, _ = c.Seek(tallyKey(d+1, "", "")[:4])
		}
		return nil
	})
	return tallies, nil, err
}

// DropTallies deletes the daily totals of a domain.
func (s *Store) DropTallies(ctx context.Context, domain string) error {
	if !isTallied(domain) {
		return nil
	}
	return s.deleteTallies(ctx, 0, math.MaxUint32, domain)
}

// forgetTallies deletes those of days that are past, or that only a clock that was ahead can
// have known.
func (s *Store) forgetTallies(ctx context.Context, now time.Time) error {
	today := dayOf(now)
	return errors.Join(
		s.deleteTallies(ctx, 0, today-min(today, TallyDays-1), ""),
		s.deleteTallies(ctx, today+2, math.MaxUint32, ""),
	)
}

// deleteTallies deletes the daily totals from one day to another, that excluded: of one
// domain, or all if domain is empty. It looks at chunk keys in a transaction.
func (s *Store) deleteTallies(ctx context.Context, from, to day, domain string) error {
	for next := tallyKey(from, "", "")[:4]; next != nil; {
		after := next
		err := s.update(ctx, func(tx *bolt.Tx) (err error) {
			next, err = deleteSomeTallies(tx, after, to, domain)
			return err
		})
		if err != nil {
			return fmt.Errorf("bboltstore: delete daily totals: %w", err)
		}
	}
	return nil
}

// deleteSomeTallies returns the key to go on from, nil if there are no more.
func deleteSomeTallies(tx *bolt.Tx, from []byte, to day, domain string) (next []byte, err error) {
	b := tx.Bucket(daysBucket)
	var keys [][]byte
	n := 0
	c := b.Cursor()
	for k, _ := c.Seek(from); k != nil && day(binary.BigEndian.Uint32(k)) < to; k, _ = c.Next() {
		if n++; n > chunk {
			next = bytes.Clone(k)
			break
		}
		if of := string(k[tallyKeyHeader:]); of != dayDomains && (domain == "" || domain == of) {
			keys = append(keys, bytes.Clone(k))
		}
	}
	for _, k := range keys {
		err = errors.Join(err, b.Delete(k))
		if isTallied(string(k[tallyKeyHeader:])) {
			err = errors.Join(err, count(b, append(bytes.Clone(k[:tallyKeyHeader]), dayDomains...), -1))
		}
	}
	if len(keys) == 0 && err == nil {
		err = errUnchanged
	}
	return next, err
}

func countTallies(tx *bolt.Tx) (n int, err error) {
	err = tx.Bucket(daysBucket).ForEach(func(k, v []byte) error {
		_, ok, err := decodeTally(k, v)
		if ok {
			n++
		}
		return err
	})
	return n, err
}

// checkTallies looks for daily totals that cannot be read, and for wrong numbers of domains.
func checkTallies(tx *bolt.Tx) (faults []error) {
	b := tx.Bucket(daysBucket)
	domains := map[string]uint64{}
	_ = b.ForEach(func(k, v []byte) error {
		t, ok, err := decodeTally(k, v)
		switch {
		case err != nil:
			faults = append(faults, err)
		case !ok:
			domains[string(k)] += 0
		case isTallied(t.Domain):
			domains[string(k[:tallyKeyHeader])+dayDomains]++
		}
		return nil
	})
	for k, have := range domains {
		if n := counter(b, []byte(k)); n != have {
			faults = append(faults, fmt.Errorf("daily totals at %x are of %d domains, there are %d", k, n, have))
		}
	}
	return faults
}

// exportedTally is a ruapost.Tally with its counts by name.
type exportedTally struct {
	Day    time.Time        `json:"day"`
	Kind   ruapost.Kind     `json:"kind"`
	Domain string           `json:"domain,omitempty"`
	Counts map[string]int64 `json:"counts"`
}

func exportTallies(ctx context.Context, tx *bolt.Tx, out interface{ Encode(any) error }) error {
	return tx.Bucket(daysBucket).ForEach(func(k, v []byte) error {
		t, ok, err := decodeTally(k, v)
		if err != nil || !ok {
			return err
		}
		e := &exportedTally{t.Day, t.Kind, t.Domain, map[string]int64{}}
		for o, n := range t.Counts {
			if n != 0 {
				e.Counts[ruapost.Outcome(o).String()] = n
			}
		}
		return errors.Join(ctx.Err(), out.Encode(line{Tally: e}))
	})
}

// importTally adds.
func importTally(tx *bolt.Tx, e *exportedTally) error {
	t := ruapost.Tally{Day: e.Day, Kind: e.Kind, Domain: e.Domain}
	for name, n := range e.Counts {
		o, err := ruapost.ParseOutcome(name)
		if err != nil {
			return err
		}
		t.Counts[o] = n
	}
	return addTally(tx, &t)
}
