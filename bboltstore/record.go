package bboltstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// hashLen is the length in bytes of the hashes in keys.
const hashLen = 16

// batch is what is committed in one transaction, equal rows merged.
type batch struct {
	groups  map[string]*addition // by key in the groups bucket
	rows    int                  // distinct rows and groups, the measure of MaxBatch
	records int                  // record calls, and sessions in them
	sealed  bool                 // the store goroutine has taken it
	done    chan struct{}        // closed when it was written or dropped
	err     error                // set before done is closed
}

// addition is what a batch adds to one group.
type addition struct {
	policy                  []byte
	total, required, failed uint64
	rows                    map[[hashLen]byte]*rowAddition
}

type rowAddition struct {
	count uint64
	data  []byte
}

// entry is one evaluation or session on its way into a batch.
type entry struct {
	group            []byte
	policy           []byte
	required, failed uint64
	rows             [][]byte
}

// RecordEvaluation adds e to the window of its time. It returns nil when e is on
// disk, ErrQueued if ctx ended before (e is still written later), ErrQueueFull if e
// was dropped.
func (s *Store) RecordEvaluation(ctx context.Context, e *ruapost.Evaluation) error {
	policy, err := json.Marshal(e.Policy)
	if err != nil {
		return fmt.Errorf("bboltstore: encode policy: %w", err)
	}
	row, err := json.Marshal(e.Result)
	if err != nil {
		return fmt.Errorf("bboltstore: encode evaluation: %w", err)
	}
	en := entry{
		group:  groupKey(ruapost.KindDMARC, ruapost.Day(e.Time), e.Policy.Domain, policy),
		policy: policy,
		rows:   [][]byte{row},
	}
	if !e.Optional {
		en.required = 1
	}
	return s.record(ctx, []entry{en})
}

// RecordSessions adds the sessions to the windows of their times, all in one batch.
// It returns as RecordEvaluation does.
func (s *Store) RecordSessions(ctx context.Context, sessions []ruapost.Session) error {
	entries := make([]entry, 0, len(sessions))
	for i := range sessions {
		se := &sessions[i]
		policy, err := json.Marshal(se.Policy)
		if err != nil {
			return fmt.Errorf("bboltstore: encode policy: %w", err)
		}
		en := entry{
			group:  groupKey(ruapost.KindTLS, ruapost.Day(se.Time), se.Domain, policy),
			policy: policy,
		}
		if se.Failed {
			en.failed = 1
		}
		for _, f := range se.Failures {
			row, err := json.Marshal(f)
			if err != nil {
				return fmt.Errorf("bboltstore: encode session: %w", err)
			}
			en.rows = append(en.rows, row)
		}
		entries = append(entries, en)
	}
	if len(entries) == 0 {
		return nil
	}
	return s.record(ctx, entries)
}

func (s *Store) record(ctx context.Context, entries []entry) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	if s.queued >= MaxQueue {
		s.mu.Unlock()
		dropped.WithLabelValues("queue").Add(float64(len(entries)))
		return ErrQueueFull
	}
	b := s.openBatch()
	before := b.rows
	for i := range entries {
		b.add(&entries[i])
	}
	s.queued += b.rows - before
	queueLength.Set(float64(s.queued))
	s.mu.Unlock()
	s.notify()
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return ErrQueued
	}
}

// openBatch returns the batch that takes rows now. s.mu is held.
func (s *Store) openBatch() *batch {
	if n := len(s.batches); n > 0 && !s.batches[n-1].sealed && s.batches[n-1].rows < MaxBatch {
		return s.batches[n-1]
	}
	b := &batch{groups: map[string]*addition{}, done: make(chan struct{})}
	s.batches = append(s.batches, b)
	return b
}

func (b *batch) add(en *entry) {
	b.records++
	g := b.groups[string(en.group)]
	if g == nil {
		g = &addition{policy: en.policy, rows: map[[hashLen]byte]*rowAddition{}}
		b.groups[string(en.group)] = g
		b.rows++
	}
	g.total++
	g.required += en.required
	g.failed += en.failed
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
			b.rows++
		}
		r.count++
	}
}

// write adds the batch to the file. It returns the number of rows that were left
// out because their group had MaxGroupRows.
func (b *batch) write(tx *bolt.Tx) (cut int, err error) {
	groups, rows := tx.Bucket(groupsBucket), tx.Bucket(rowsBucket)
	for _, key := range slices.Sorted(maps.Keys(b.groups)) {
		add := b.groups[key]
		g, err := loadGroup(groups, []byte(key), add.policy)
		if err != nil {
			return 0, err
		}
		g.total += add.total
		g.required += add.required
		g.failed += add.failed
		n, err := writeRows(rows, &g, add.rows)
		if err != nil {
			return 0, err
		}
		cut += n
		if err := groups.Put([]byte(key), g.encode()); err != nil {
			return 0, err
		}
	}
	return cut, nil
}

func writeRows(rows *bolt.Bucket, g *groupValue, add map[[hashLen]byte]*rowAddition) (cut int, err error) {
	hashes := slices.SortedFunc(maps.Keys(add), func(a, b [hashLen]byte) int { return bytes.Compare(a[:], b[:]) })
	for _, h := range hashes {
		key := rowKey(g.id, h[:])
		count := add[h].count
		old := rows.Get(key)
		if len(old) >= 8 {
			count += binary.BigEndian.Uint64(old)
		} else if g.rows >= MaxGroupRows {
			cut++
			continue
		} else {
			g.rows++
		}
		g.listed += add[h].count
		value := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(add[h].data)), count)
		if err := rows.Put(key, append(value, add[h].data...)); err != nil {
			return 0, err
		}
	}
	return cut, nil
}

// groupValue is the value of a key in the groups bucket.
type groupValue struct {
	id                                    uint64
	total, rows, listed, required, failed uint64
	policy                                []byte
}

const groupHeader = 6 * 8

// loadGroup returns the group at key, or a new one.
func loadGroup(groups *bolt.Bucket, key, policy []byte) (groupValue, error) {
	if v := groups.Get(key); v != nil {
		return decodeGroup(v)
	}
	id, err := groups.NextSequence()
	return groupValue{id: id, policy: policy}, err
}

func decodeGroup(v []byte) (groupValue, error) {
	if len(v) < groupHeader {
		return groupValue{}, fmt.Errorf("group value of %d bytes", len(v))
	}
	u := func(i int) uint64 { return binary.BigEndian.Uint64(v[8*i:]) }
	return groupValue{
		id: u(0), total: u(1), rows: u(2), listed: u(3), required: u(4), failed: u(5),
		policy: v[groupHeader:],
	}, nil
}

func (g *groupValue) encode() []byte {
	v := make([]byte, 0, groupHeader+len(g.policy))
	for _, n := range []uint64{g.id, g.total, g.rows, g.listed, g.required, g.failed} {
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
