package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// baseline is what the store is compared with: one process that shares the file with
// nobody and keeps it open for ever. It writes groups and rows as the store does.
// While it commits a batch, it encodes and merges the next one.
type baseline struct {
	db *bolt.DB
}

var (
	groupsBucket = []byte("groups")
	rowsBucket   = []byte("rows")
)

func openBaseline(path string) (*baseline, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, NoStatistics: true})
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		_, err1 := tx.CreateBucketIfNotExists(groupsBucket)
		_, err2 := tx.CreateBucketIfNotExists(rowsBucket)
		return errors.Join(err1, err2)
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &baseline{db}, nil
}

// rowHash and groupName are what the store's keys are made of.
type (
	rowHash   [16]byte
	groupName struct {
		domain string
		policy rowHash
	}
)

func hashOf(data []byte) rowHash {
	sum := sha256.Sum256(data)
	return rowHash(sum[:16])
}

// addition is what a batch adds to a group.
type addition struct {
	policy []byte
	total  uint64
	rows   map[rowHash]*rowAddition
}

type rowAddition struct {
	count uint64
	data  []byte
}

// write commits batches of size records, what that many writers would record, until
// ctx ends.
func (b *baseline) write(ctx context.Context, writers, size int, r *result) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	batches := make(chan map[groupName]*addition)
	go func() {
		defer close(batches)
		// As with writers that take turns, each batch is one writer's. How much is in
		// the file decides how scattered the pages are that a commit writes.
		sources := make([]func() (int, *ruapost.Evaluation), writers)
		for n := range sources {
			sources[n] = (&job{Number: n}).sources()(0)
		}
		for n := 0; ctx.Err() == nil; n++ {
			next := sources[n%writers]
			batch := map[groupName]*addition{}
			for range size {
				_, e := next()
				policy, err1 := json.Marshal(e.Policy)
				row, err2 := json.Marshal(e.Result)
				if err := errors.Join(err1, err2); err != nil {
					panic(err)
				}
				name := groupName{e.Policy.Domain, hashOf(policy)}
				if batch[name] == nil {
					batch[name] = &addition{policy: policy, rows: map[rowHash]*rowAddition{}}
				}
				batch[name].add(row)
			}
			select {
			case batches <- batch:
			case <-ctx.Done():
			}
		}
	}()
	for batch := range batches {
		began := time.Now()
		if err := b.db.Update(func(tx *bolt.Tx) error { return commit(tx, batch) }); err != nil {
			return err
		}
		r.Latencies = append(r.Latencies, time.Since(began))
		r.Records += size
		r.Commits++
	}
	return nil
}

func (a *addition) add(row []byte) {
	a.total++
	h := hashOf(row)
	if a.rows[h] == nil {
		a.rows[h] = &rowAddition{data: row}
	}
	a.rows[h].count++
}

// commit adds the batch to the file: a group has an ID, nine counters and the policy,
// a row a count and what the report says.
func commit(tx *bolt.Tx, batch map[groupName]*addition) error {
	groups, rows := tx.Bucket(groupsBucket), tx.Bucket(rowsBucket)
	names := slices.SortedFunc(maps.Keys(batch), func(a, b groupName) int { return cmp.Compare(a.domain, b.domain) })
	for _, name := range names {
		add := batch[name]
		key := append(binary.BigEndian.AppendUint64([]byte{'D'}, uint64(ruapost.Day(today).Start.Unix())), 0, 1, 0x51, 0x80)
		key = append(append(append(key, name.domain...), 0), name.policy[:]...)
		value := make([]byte, 10*8)
		if old := groups.Get(key); old != nil {
			copy(value, old)
		} else {
			id, err := groups.NextSequence()
			if err != nil {
				return err
			}
			binary.BigEndian.PutUint64(value, id)
		}
		id := value[:8:8]
		binary.BigEndian.PutUint64(value[8:], binary.BigEndian.Uint64(value[8:])+add.total)
		if err := groups.Put(key, append(value, add.policy...)); err != nil {
			return err
		}
		for _, h := range slices.SortedFunc(maps.Keys(add.rows), func(a, b rowHash) int { return slices.Compare(a[:], b[:]) }) {
			key, count := append(id, h[:]...), add.rows[h].count
			if old := rows.Get(key); old != nil {
				count += binary.BigEndian.Uint64(old)
			}
			if err := rows.Put(key, append(binary.BigEndian.AppendUint64(nil, count), add.rows[h].data...)); err != nil {
				return err
			}
		}
	}
	return nil
}
