package bboltstore

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// hashLen is the length in bytes of the hashes in keys.
const hashLen = 16

// batch is what is committed in one transaction, equal rows merged.
type batch struct {
	groups    map[string]*addition // by key in the groups bucket
	seen      map[string]sighting  // by organizational domain
	positions map[string]*position // by source; nil if there are none
	rows      int                  // distinct rows, groups, domains and sources, the measure of MaxBatch
	bytes     int                  // size of their JSON, the measure of MaxBatchBytes
	records   int                  // evaluations and sessions
	waiting   int                  // record calls that wait for it
	sealed    bool                 // the store goroutine has taken it
	done      chan struct{}        // closed when it is on disk, or never will be
	err       error                // set before done is closed
}

// addition is what a batch adds to one group.
type addition struct {
	policy                  []byte
	records                 uint64 // that were added up, also those that do not count
	total, required, failed uint64
	passed                  uint64
	quarantined, rejected   uint64
	proven                  bool
	rows                    map[[hashLen]byte]*rowAddition
	// ifKnown counts the evaluations that are required if the organizational domain is
	// known on the day, which is that of all of them.
	ifKnown map[string]uint64
	day     day
}

type rowAddition struct {
	count  uint64
	data   []byte
	proven bool
}

// entry is one evaluation or session on its way into a batch, or, without a group, a
// domain that is seen. proven says that no forger could have made it, see the bounds.
type entry struct {
	group                   []byte
	policy                  []byte
	uncounted               bool // adds rows, but nothing to the total
	required, failed        uint64
	passed                  uint64
	quarantined, rejected   uint64
	groupProven, rowsProven bool
	rows                    [][]byte
	organization            string   // organizational domain, what follows is about it
	seen                    sighting // adds to what is known
	ifKnown                 bool     // required if it is known on the day
	day                     day
}

// RecordEvaluation adds e to the window of its time. It returns nil when e is on
// disk, as far as the bounds allow it; ErrQueued if ctx ended before (e is still
// written later); ErrQueueFull if e was dropped.
func (s *Store) RecordEvaluation(ctx context.Context, e *ruapost.Evaluation) error {
	policy, err := json.Marshal(e.Policy)
	if err != nil {
		return fmt.Errorf("bboltstore: encode policy: %w", err)
	}
	row, err := json.Marshal(e.Result)
	if err != nil {
		return fmt.Errorf("bboltstore: encode evaluation: %w", err)
	}
	window := ruapost.Part(e.Time, cmp.Or(e.Interval, 24*time.Hour))
	en := entry{
		group:  groupKey(ruapost.KindDMARC, window, e.Policy.Domain, policy),
		policy: policy,
		rows:   [][]byte{row},
		day:    dayOf(e.Time),
	}
	passed := e.Result.AlignedDKIM || e.Result.AlignedSPF
	en.groupProven, en.rowsProven = passed, passed
	en.count(passed, e.Result.Disposition)
	if canBeKnown(e.OrganizationalDomain) {
		en.organization = e.OrganizationalDomain
		if passed {
			en.seen.passed = en.day
		}
	}
	switch {
	case e.Optional:
	case e.OptionalIfUnknown && !passed: // passing is being known
		en.ifKnown = en.organization != ""
	default:
		en.required = 1
	}
	return s.record(ctx, []entry{en}, nil)
}

// count notes how a message fared.
func (en *entry) count(passed bool, done ruapost.Disposition) {
	switch {
	case passed:
		en.passed = 1
		return
	case done == ruapost.DispositionQuarantine:
		en.quarantined = 1
	case done == ruapost.DispositionReject:
		en.rejected = 1
	}
	en.failed = 1
}

// RecordSessions adds the sessions to the windows of their times. It returns as
// RecordEvaluation does.
func (s *Store) RecordSessions(ctx context.Context, sessions []ruapost.Session) error {
	entries, err := sessionEntries(sessions)
	if err != nil {
		return err
	}
	return s.record(ctx, entries, nil)
}

func sessionEntries(sessions []ruapost.Session) ([]entry, error) {
	entries := make([]entry, 0, len(sessions))
	for i := range sessions {
		se := &sessions[i]
		policy, err := json.Marshal(se.Policy)
		if err == nil && len(policy) > MaxPolicyBytes {
			dropped.WithLabelValues("policy_bytes").Inc()
			policy, err = json.Marshal(ruapost.TLSPolicy{Type: se.Policy.Type, Domain: se.Policy.Domain})
		}
		if err != nil {
			return nil, fmt.Errorf("bboltstore: encode policy: %w", err)
		}
		en := entry{
			group:     groupKey(ruapost.KindTLS, ruapost.Day(se.Time), se.Domain, policy),
			policy:    policy,
			uncounted: se.Uncounted,
			// Our own users wrote to the domain; what its servers said is theirs.
			groupProven: true,
		}
		if se.Failed && !se.Uncounted {
			en.failed = 1
		}
		for _, f := range se.Failures {
			row, err := json.Marshal(f)
			if err != nil {
				return nil, fmt.Errorf("bboltstore: encode session: %w", err)
			}
			en.rows = append(en.rows, row)
		}
		entries = append(entries, en)
	}
	return entries, nil
}

// record adds the entries to batches and waits until the last of those, and with it
// all, is on disk. Those that bbolt would refuse, and with them the batch, are left out.
// With a position, if at is not nil, they are all in one batch.
func (s *Store) record(ctx context.Context, entries []entry, at *ruapost.Position) error {
	var refused error
	entries = slices.DeleteFunc(entries, func(en entry) bool {
		tooLong := len(en.group) > bolt.MaxKeySize
		if tooLong {
			refused = fmt.Errorf("bboltstore: a domain is too long for a key of %d bytes, not recorded", bolt.MaxKeySize)
		}
		return tooLong
	})
	if len(entries) == 0 && at == nil {
		return refused
	}
	return errors.Join(refused, s.recordAll(ctx, entries, at))
}

func (s *Store) recordAll(ctx context.Context, entries []entry, at *ruapost.Position) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	if s.queued >= MaxQueue || s.queuedBytes >= MaxQueueBytes {
		s.mu.Unlock()
		dropped.WithLabelValues("queue").Add(float64(len(entries)))
		s.queueFull()
		return ErrQueueFull
	}
	var b *batch
	var p *position
	if at != nil {
		b, p = s.addAt(entries, at)
	} else {
		b = s.addEach(entries)
	}
	b.waiting++
	s.showQueue()
	s.mu.Unlock()
	s.notify()
	select {
	case <-b.done:
		if p != nil && b.err == nil {
			return p.err
		}
		return b.err
	case <-ctx.Done():
		return ErrQueued
	}
}

// addEach adds the entries to as many batches as they need, and returns the last. s.mu
// is held.
func (s *Store) addEach(entries []entry) (b *batch) {
	for i := range entries {
		b = s.openBatch()
		rows, size := b.rows, b.bytes
		b.add(&entries[i])
		s.queued += b.rows - rows
		s.queuedBytes += b.bytes - size
	}
	return b
}

// openBatch returns the batch that takes rows now. s.mu is held.
func (s *Store) openBatch() *batch {
	if n := len(s.batches); n > 0 {
		if b := s.batches[n-1]; !b.sealed && b.rows < MaxBatch && b.bytes < MaxBatchBytes {
			return b
		}
	}
	b := &batch{groups: map[string]*addition{}, seen: map[string]sighting{}, done: make(chan struct{})}
	s.batches = append(s.batches, b)
	return b
}

func (b *batch) add(en *entry) {
	if en.seen != (sighting{}) {
		if _, found := b.seen[en.organization]; !found {
			b.grow(len(en.organization))
		}
		b.seen[en.organization] = b.seen[en.organization].with(en.seen)
	}
	if en.group != nil {
		b.addToGroup(en)
	}
}

func (b *batch) addToGroup(en *entry) {
	b.records++
	g := b.groups[string(en.group)]
	if g == nil {
		g = &addition{policy: en.policy, rows: map[[hashLen]byte]*rowAddition{}, ifKnown: map[string]uint64{}, day: en.day}
		b.groups[string(en.group)] = g
		b.grow(len(en.policy))
	}
	g.records++
	if !en.uncounted {
		g.total++
	}
	g.required += en.required
	g.failed += en.failed
	g.passed += en.passed
	g.quarantined += en.quarantined
	g.rejected += en.rejected
	g.proven = g.proven || en.groupProven
	if en.ifKnown {
		if g.ifKnown[en.organization] == 0 {
			b.grow(len(en.organization))
		}
		g.ifKnown[en.organization]++
	}
	for _, data := range en.rows {
		if len(data) > MaxRowBytes {
			dropped.WithLabelValues("row_bytes").Inc()
			continue
		}
		h := hash(data)
		r := g.rows[h]
		if r == nil {
			r = &rowAddition{data: data}
			g.rows[h] = r
			b.grow(len(data))
		}
		r.count++
		r.proven = r.proven || en.rowsProven
	}
}

// grow counts one more of what the batch is bounded in.
func (b *batch) grow(bytes int) {
	b.rows++
	b.bytes += bytes
}

// writer adds a batch to the file.
type writer struct {
	tx           *bolt.Tx
	bounds       bounds
	groups, rows *bolt.Bucket
	known        *known
	usage        usage
	// frugal adds no new group or row: the file has no room.
	frugal bool
	cut    cut
}

// cut counts what a bound has kept out.
type cut struct {
	records   uint64 // whole messages and sessions
	full      uint64 // the same, because the file is full
	details   uint64 // those of which only the total was counted
	known     uint64 // domains
	positions uint64
}

// write adds the batch to the file, or returns errUnchanged if it is there already.
func (b *batch) write(tx *bolt.Tx, bounds bounds, known *known, frugal bool) (cut, error) {
	w := &writer{
		tx: tx, bounds: bounds, known: known, frugal: frugal,
		groups: tx.Bucket(groupsBucket), rows: tx.Bucket(rowsBucket),
	}
	var err error
	if w.usage, err = loadUsage(tx, usageKey); err != nil {
		return cut{}, err
	}
	// First: what it makes known is known to the rest of it.
	if err := w.writeSeen(b.seen); err != nil {
		return cut{}, err
	}
	var moved bool
	if moved, w.cut.positions, err = writePositions(tx, b.positions); err != nil {
		return cut{}, err
	}
	if len(b.groups) == 0 && !known.changed && !moved {
		return w.cut, errUnchanged
	}
	for _, key := range slices.Sorted(maps.Keys(b.groups)) {
		if err := w.writeGroup([]byte(key), b.groups[key]); err != nil {
			return cut{}, err
		}
	}
	return w.cut, w.usage.store(tx, usageKey)
}

func (w *writer) writeSeen(seen map[string]sighting) error {
	for _, domain := range slices.Sorted(maps.Keys(seen)) {
		ok, err := w.known.see(domain, seen[domain], w.frugal)
		if err != nil {
			return err
		}
		if !ok {
			w.cut.known++
		}
	}
	if !w.known.changed {
		return nil
	}
	return w.known.storeCounts()
}

func (w *writer) writeGroup(key []byte, add *addition) error {
	g, found, err := w.loadGroup(key, add)
	if err != nil {
		return err
	}
	switch {
	case !found && w.frugal:
		w.cut.full += add.records
		return nil
	case !found:
		w.cut.records += add.records
		return nil
	}
	g.total += add.total
	g.required += add.required
	g.failed += add.failed
	g.passed += add.passed
	g.quarantined += add.quarantined
	g.rejected += add.rejected
	for domain, n := range add.ifKnown {
		if known, err := w.known.isKnown(domain, add.day); err != nil {
			return err
		} else if known {
			g.required += n
		}
	}
	if err := w.writeRows(key, &g, add.rows); err != nil {
		return err
	}
	if g.total == 0 && g.rows == 0 {
		// Uncounted sessions without failures, or no room for these: nothing to report.
		return errors.Join(w.groups.Delete(key), countGroup(w.tx, key, -1))
	}
	return w.groups.Put(key, g.encode())
}

// loadGroup returns the group at key, or a new one if there is room for it.
func (w *writer) loadGroup(key []byte, add *addition) (g groupValue, ok bool, err error) {
	if v := w.groups.Get(key); v != nil {
		g, err = decodeGroup(v)
		return g, true, err
	}
	if w.frugal || !w.bounds.admits(w.tx, key, add.proven) {
		return g, false, nil
	}
	id, err := w.groups.NextSequence()
	if err != nil {
		return g, false, err
	}
	return groupValue{id: id, policy: add.policy}, true, countGroup(w.tx, key, 1)
}

func (w *writer) writeRows(groupKey []byte, g *groupValue, add map[[hashLen]byte]*rowAddition) error {
	// Most rows are there already, and ask for no room.
	room := sync.OnceValue(func() bounds { return w.bounds.among(w.tx, groupKey) })
	hashes := slices.SortedFunc(maps.Keys(add), func(a, b [hashLen]byte) int { return bytes.Compare(a[:], b[:]) })
	for _, h := range hashes {
		row := add[h]
		key := rowKey(g.id, h[:])
		count := row.count
		size := 8 + len(row.data)
		if old := w.rows.Get(key); len(old) >= 8 {
			count += binary.BigEndian.Uint64(old)
		} else if b := room(); w.frugal || !b.fits(g, &w.usage, size, row.proven) {
			w.cut.details += row.count
			continue
		} else {
			g.rows++
			g.bytes += uint64(size)
			w.usage.add(1, size)
		}
		g.listed += row.count
		value := binary.BigEndian.AppendUint64(make([]byte, 0, size), count)
		if err := w.rows.Put(key, append(value, row.data...)); err != nil {
			return err
		}
	}
	return nil
}

// groupValue is the value of a key in the groups bucket.
type groupValue struct {
	id                                           uint64
	total, rows, bytes, listed, required, failed uint64
	passed, quarantined, rejected                uint64
	policy                                       []byte
}

const groupHeader = 10 * 8

func decodeGroup(v []byte) (groupValue, error) {
	if len(v) < groupHeader {
		return groupValue{}, fmt.Errorf("group value of %d bytes %w", len(v), errUndecodable)
	}
	u := func(i int) uint64 { return binary.BigEndian.Uint64(v[8*i:]) }
	return groupValue{
		id: u(0), total: u(1), rows: u(2), bytes: u(3), listed: u(4), required: u(5), failed: u(6),
		passed: u(7), quarantined: u(8), rejected: u(9),
		policy: v[groupHeader:],
	}, nil
}

func (g *groupValue) encode() []byte {
	v := make([]byte, 0, groupHeader+len(g.policy))
	for _, n := range []uint64{g.id, g.total, g.rows, g.bytes, g.listed, g.required, g.failed, g.passed, g.quarantined, g.rejected} {
		v = binary.BigEndian.AppendUint64(v, n)
	}
	return append(v, g.policy...)
}

var kindByte = map[ruapost.Kind]byte{ruapost.KindDMARC: 'D', ruapost.KindTLS: 'T'}

const groupKeyHeader = 1 + 8 + 4

func groupKey(kind ruapost.Kind, w ruapost.Window, domain string, policy []byte) []byte {
	key := make([]byte, 0, groupKeyHeader+len(domain)+1+hashLen)
	key = append(key, kindByte[kind])
	key = binary.BigEndian.AppendUint64(key, uint64(w.Start.Unix()))
	key = binary.BigEndian.AppendUint32(key, uint32(w.End.Sub(w.Start)/time.Second))
	key = append(key, domain...)
	key = append(key, 0)
	h := hash(policy)
	return append(key, h[:]...)
}

// decodeGroupKey is the inverse of groupKey but for the hash.
func decodeGroupKey(key []byte) (kind ruapost.Kind, w ruapost.Window, domain string, err error) {
	if len(key) < groupKeyHeader+1+hashLen {
		return "", w, "", fmt.Errorf("group key of %d bytes", len(key))
	}
	switch key[0] {
	case 'D':
		kind = ruapost.KindDMARC
	case 'T':
		kind = ruapost.KindTLS
	default:
		return "", w, "", fmt.Errorf("group of unknown kind %q", key[0])
	}
	w.Start = time.Unix(int64(binary.BigEndian.Uint64(key[1:])), 0).UTC()
	w.End = w.Start.Add(time.Duration(binary.BigEndian.Uint32(key[9:])) * time.Second)
	return kind, w, string(key[groupKeyHeader : len(key)-hashLen-1]), nil
}

func rowKey(id uint64, hash []byte) []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+hashLen), id), hash...)
}

func hash(data []byte) (h [hashLen]byte) {
	sum := sha256.Sum256(data)
	copy(h[:], sum[:])
	return h
}
