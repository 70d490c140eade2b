package bboltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

// How long an organizational domain stays known, in days.
const (
	// PassDays is how long a message that passed DMARC makes its author's
	// organizational domain known.
	PassDays = 30
	// DestinationDays is how long a message that was sent to a domain does.
	DestinationDays = 90
	// ReportedDays is for how long after a report was mailed to a domain a message
	// sent there does not: it may be that report, which Postfix can have in its queue
	// for five days. Reports would else make themselves necessary.
	ReportedDays = 6
)

// day is a UTC day, counted from the first of 1970; 0 is never.
type day uint32

const secondsOfDay = int64(24 * time.Hour / time.Second)

func dayOf(t time.Time) day { return day(max(t.Unix(), 0) / secondsOfDay) }

// String is empty for never.
func (d day) String() string {
	if d == 0 {
		return ""
	}
	return time.Unix(int64(d)*secondsOfDay, 0).UTC().Format(time.DateOnly)
}

func parseDay(s string) (day, error) {
	if s == "" {
		return 0, nil
	}
	t, err := time.Parse(time.DateOnly, s)
	return dayOf(t), err
}

// sighting is when an organizational domain was last seen: the day on which a message
// passed DMARC here, the day on which one was sent there, and the day on which a report
// was.
type sighting struct {
	passed, destination, reported day
}

// on returns what of it matters on that day: what is not too old, nor of a clock that was
// ahead, but for the hours around midnight.
func (s sighting) on(d day) sighting {
	matters := func(at *day, days day) {
		if *at+days < d || *at > d+1 {
			*at = 0
		}
	}
	matters(&s.passed, PassDays)
	matters(&s.destination, DestinationDays)
	matters(&s.reported, ReportedDays)
	return s
}

// cut returns it with what a clock that was ahead has left put down to that day.
func (s sighting) cut(d day) sighting {
	for _, at := range []*day{&s.passed, &s.destination, &s.reported} {
		if *at > d+1 {
			*at = d
		}
	}
	return s
}

// known says whether it makes the domain known on that day.
func (s sighting) known(d day) bool {
	s = s.on(d)
	return s.passed != 0 || s.destination != 0
}

// with returns the last days of both. Of other a destination counts only if no report
// had been mailed there shortly before.
func (s sighting) with(other sighting) sighting {
	if s.on(other.destination).reported != 0 {
		other.destination = 0
	}
	return sighting{max(s.passed, other.passed), max(s.destination, other.destination), max(s.reported, other.reported)}
}

func (s sighting) encode() []byte {
	v := make([]byte, 0, 12)
	for _, d := range []day{s.passed, s.destination, s.reported} {
		v = binary.BigEndian.AppendUint32(v, uint32(d))
	}
	return v
}

// decodeSighting also reads values of schema 3, which lack the last day.
func decodeSighting(v []byte) (sighting, error) {
	u := func(i int) day { return day(binary.BigEndian.Uint32(v[4*i:])) }
	switch len(v) {
	case 8:
		return sighting{passed: u(0), destination: u(1)}, nil
	case 12:
		return sighting{u(0), u(1), u(2)}, nil
	}
	return sighting{}, fmt.Errorf("known domain with a value of %d bytes %w", len(v), errUndecodable)
}

// canBeKnown says whether the name fits into a key. What does not is no domain.
func canBeKnown(domain string) bool { return len(domain) > 0 && len(domain) <= 253 }

// RecordDestinations says that this system has sent mail to these organizational
// domains at that time, which makes them known. It returns as RecordEvaluation does.
func (s *Store) RecordDestinations(ctx context.Context, domains []string, at time.Time) error {
	return s.recordSeen(ctx, domains, sighting{destination: dayOf(at)})
}

// RecordReported says that reports are about to be mailed to these organizational
// domains at that time: for ReportedDays, RecordDestinations does not make them known.
// It returns as RecordEvaluation does.
func (s *Store) RecordReported(ctx context.Context, domains []string, at time.Time) error {
	return s.recordSeen(ctx, domains, sighting{reported: dayOf(at)})
}

func (s *Store) recordSeen(ctx context.Context, domains []string, seen sighting) error {
	entries := make([]entry, 0, len(domains))
	for _, domain := range domains {
		if canBeKnown(domain) {
			entries = append(entries, entry{organization: domain, seen: seen})
		}
	}
	if len(entries) == 0 {
		return nil
	}
	return s.record(ctx, entries, nil)
}

// knownCounts is what is kept counted of the known domains.
type knownCounts struct {
	// all is the number of known domains, destinations of those that mail was sent to.
	all, destinations uint64
	// swept is the day for which those that are known no longer were deleted.
	swept uint64
}

// change counts a domain that was seen as from, or is new, and is seen as to, or gone.
func (c *knownCounts) change(from, to sighting) {
	step := func(n *uint64, from, to bool) {
		switch {
		case to && !from:
			*n++
		case from && !to:
			*n--
		}
	}
	step(&c.all, from != sighting{}, to != sighting{})
	step(&c.destinations, from.destination != 0, to.destination != 0)
}

// known is the bucket of known domains in a transaction.
type known struct {
	meta, bucket *bolt.Bucket
	max          uint64 // see MaxKnownDomains
	counts       knownCounts
	changed      bool
}

func loadKnown(tx *bolt.Tx, max uint64) (*known, error) {
	k := &known{meta: tx.Bucket(metaBucket), bucket: tx.Bucket(knownBucket), max: max}
	switch v := k.meta.Get(knownKey); len(v) {
	case 0:
	case 24:
		u := func(i int) uint64 { return binary.BigEndian.Uint64(v[8*i:]) }
		k.counts = knownCounts{u(0), u(1), u(2)}
	default:
		return nil, fmt.Errorf("counts of known domains of %d bytes %w", len(v), errUndecodable)
	}
	return k, nil
}

func (k *known) storeCounts() error {
	v := make([]byte, 0, 24)
	for _, n := range []uint64{k.counts.all, k.counts.destinations, k.counts.swept} {
		v = binary.BigEndian.AppendUint64(v, n)
	}
	return k.meta.Put(knownKey, v)
}

// reverse returns a domain as a key of the known bucket, and the other way round: with
// its labels in reverse order, so that the names below one are next to each other.
func reverse(domain string) string {
	labels := strings.Split(domain, ".")
	slices.Reverse(labels)
	return strings.Join(labels, ".")
}

// get returns the zero sighting for a domain that is not there.
func (k *known) get(domain string) (sighting, error) {
	v := k.bucket.Get([]byte(reverse(domain)))
	if v == nil {
		return sighting{}, nil
	}
	return decodeSighting(v)
}

func (k *known) isKnown(domain string, on day) (bool, error) {
	s, err := k.get(domain)
	return s.known(on), err
}

// see adds a sighting. ok is false if there is no room for the domain.
func (k *known) see(domain string, seen sighting, frugal bool) (ok bool, err error) {
	old, err := k.get(domain)
	now := old.with(seen)
	switch {
	case err != nil || now == old: // a busy domain is written once a day
		return true, err
	case old == sighting{} && (frugal || !k.admits(domain, seen)):
		return false, nil
	}
	return true, k.put([]byte(reverse(domain)), old, now)
}

// put changes what is at key from old to now; the zero sighting is not there.
func (k *known) put(key []byte, old, now sighting) error {
	k.changed = true
	k.counts.change(old, now)
	if now == (sighting{}) {
		return k.bucket.Delete(key)
	}
	return k.bucket.Put(key, now.encode())
}

// admits says whether there is room for one more domain that was seen so.
func (k *known) admits(domain string, seen sighting) bool {
	if k.counts.all >= k.max {
		return false
	}
	switch {
	case seen.reported != 0: // what is not noted would make the report a destination
		return true
	case seen.destination != 0:
		return k.nameHasRoom(domain, true)
	}
	return k.passesHaveRoom() && k.nameHasRoom(domain, false)
}

func (k *known) passesHaveRoom() bool {
	return k.counts.all-k.counts.destinations < share(k.max, false)
}

// nameHasRoom says whether one more of the names below a registered one may be known, as a
// destination or because of a pass: each can be an organizational domain by its own word
// (RFC 9989 4.7, psd=n).
func (k *known) nameHasRoom(domain string, destination bool) bool {
	registered := registeredName(domain)
	if registered == domain {
		return true
	}
	prefix := []byte(reverse(registered) + ".")
	n, most := uint64(0), share(MaxKnownSubdomains, destination)
	c := k.bucket.Cursor()
	for key, _ := c.Seek(prefix); bytes.HasPrefix(key, prefix) && n < most; key, _ = c.Next() {
		n++
	}
	return n < most
}

// forgetKnown deletes the domains that are not known any more at that time, once a day.
func (s *Store) forgetKnown(ctx context.Context, now time.Time) error {
	today := dayOf(now)
	var after, last []byte
	for more := true; more; after = last {
		err := s.update(ctx, func(tx *bolt.Tx) error {
			k, err := loadKnown(tx, s.maxKnown)
			if err != nil {
				return err
			}
			if more = k.counts.swept != uint64(today); !more {
				return errUnchanged // somebody has done it
			}
			last, err = k.sweep(after, today)
			return err
		})
		if err != nil {
			return fmt.Errorf("bboltstore: forget known domains: %w", err)
		}
	}
	return nil
}

// sweep deletes those of the next chunk of domains behind after that are not known
// today, and returns the last it has looked at.
func (k *known) sweep(after []byte, today day) (last []byte, err error) {
	type change struct {
		key      []byte
		old, now sighting
	}
	var changes []change
	n := 0
	c := k.bucket.Cursor()
	for key, v := seekAfter(c, after); key != nil && n < chunk; key, v = c.Next() {
		n++
		last = bytes.Clone(key)
		old, err := decodeSighting(v)
		if err != nil {
			return nil, err
		}
		// A lapsed pass is left for the next one, but a domain that is no destination
		// any more takes the room of those that only passed.
		right := old.cut(today)
		if now := right.on(today); right != old || now.destination != old.destination || now == (sighting{}) {
			changes = append(changes, change{last, old, now})
		}
	}
	for _, ch := range changes {
		if ch.now.destination == 0 && ch.now.reported == 0 && !k.passesHaveRoom() {
			ch.now = sighting{}
		}
		if err := k.put(ch.key, ch.old, ch.now); err != nil {
			return nil, err
		}
	}
	if n < chunk {
		k.counts.swept = uint64(today)
	} else if len(changes) == 0 {
		return last, errUnchanged
	}
	return last, k.storeCounts()
}
