// Package bboltstore keeps what the programs record in one bbolt file that all
// of them open, write and close in turns.
//
// # Sharing
//
// bbolt locks the whole file for as long as a process has it open, and waits for
// that lock by polling, so that a busy process starves the others. Here nobody
// keeps the file open for long, and nobody polls: a process first takes a blocking
// flock on PATH.lock, the turnstile, then opens the file with a hook that takes a
// blocking flock on it, and then lets the turnstile go. Whoever waits at the
// turnstile is next, so that processes alternate.
//
// One goroutine per Store does all of this. What is recorded while it waits or
// commits gathers in the next batch and is committed in one transaction (group
// commit); a record call returns when its batch is on disk. Other calls that write and
// wait at the same time share a transaction, too. Each is as if it had one of its own: what
// one has done those behind it see, and if one fails, it alone has done nothing. To that
// end a transaction in which one fails is rolled back and the others run again.
//
// # Layout
//
//	meta      "schema"                                      -> version of this layout
//	          "usage"                                       -> number and size of all rows
//	          "known"                                       -> number of known domains, of
//	                                                           destinations, last day swept
//	          "sts"                                         -> number and size of all
//	                                                           MTA-STS policies
//	          "suppressed"                                  -> number of suppressions
//	          "secret"                                      -> 32 random octets
//	windows   kind, window start, window length             -> number of its groups
//	windows   the same, organization                        -> number of its groups
//	trash     group ID                                      -> nothing; rows to be deleted
//	groups    kind, window start, window length, domain, 0, -> group ID, totals,
//	          hash of the policy                               policy as JSON
//	rows      group ID, hash of the row                     -> count, row as JSON
//	reports   report ID                                     -> ruapost.Report as JSON
//	known     organizational domain, labels reversed        -> last day of a pass, of a
//	                                                           message, of a report sent there
//	sts       policy domain                                 -> ruapost.STSPolicy as JSON; the
//	                                                           bucket's sequence is STSVersion
//	stsnames  registered name                               -> number of policies below it
//	positions source of log lines                           -> how far it was read
//	suppressed pattern                                      -> ruapost.Suppression as JSON
//	counts    name                                          -> counter
//	days      day, kind, domain                             -> counts by ruapost.Outcome
//	days      day, kind, 0                                  -> number of its domains
//
// Equal rows are merged when they are written: what a report costs does not grow
// with the number of messages, only with the number of distinct rows. Group IDs
// count up, so the rows of a group lie together, next to those of groups that began
// about then: a report is one range scan and its deletion frees pages in a row.
//
// Sealing a report takes its groups out of the groups bucket in one transaction.
// Whatever is recorded later for the same window, domain and policy starts a new
// group, so sealed rows never change, and the reporter can read and delete them
// in pieces without keeping the file locked.
//
// # Known domains
//
// A domain is known if a message from it passed DMARC here in the last 30 days, or
// one was sent to it in the last 90. Evaluations ask for that, see
// [ruapost.Evaluation], and it is answered in the transaction that writes them, after
// the batch's own passes and destinations are noted: nobody reads the file while mail
// waits. Days are all that is kept, so a domain is written once a day, however busy it is.
//
// # Positions
//
// Sessions that were read from a log are written in one transaction with the position
// behind their lines. Whoever goes on from there, after a crash, say, counts no line
// twice and misses none.
package bboltstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"ruapost/internal/mend"
)

// Bounds of what waits, and times. What does not fit is dropped, counted in
// ruapost_store_dropped_total and never in the way of mail.
const (
	// MaxQueue and MaxQueueBytes are the number and size of distinct rows that may
	// wait to be written.
	MaxQueue      = 20_000
	MaxQueueBytes = 64 << 20
	// MaxBatch and MaxBatchBytes are the number and size of distinct rows that are
	// written in one transaction.
	MaxBatch      = 1_000
	MaxBatchBytes = 1 << 20

	// The file is kept open while there is more to write: for minHold, or holdFactor
	// times what opening it took if its list of free pages is long, up to maxHold.
	// Whoever was answered often has the next row soon, so that a busy program has
	// more to write if linger is allowed for; that saves most of the openings.
	minHold    = 10 * time.Millisecond
	maxHold    = 100 * time.Millisecond
	holdFactor = 4
	linger     = 200 * time.Microsecond

	// A commit costs as much for one record call as for several. A batch waits for as
	// many as have come in time before, up to gatherCalls, but before the file is opened
	// no longer than gatherTime. After probeAfter batches, others having come while they
	// were written, it waits for twice as many.
	gatherCalls = 16
	gatherTime  = 4 * time.Millisecond
	probeAfter  = 16

	// Calls that write share a transaction, up to shareCalls of them, but none begins in it
	// after shareTime.
	shareCalls = 128
	shareTime  = 5 * time.Millisecond

	// chunk is the number of keys that are read or deleted per lock hold, dropRows and
	// dropBytes the number and size of rows that are deleted in one transaction.
	chunk     = 1_000
	dropRows  = 4_000
	dropBytes = 4 << 20

	retryMin     = 100 * time.Millisecond
	retryMax     = 5 * time.Second
	complainEach = time.Minute
	openTimeout  = 2 * time.Second
	closeTimeout = 5 * time.Second
	// damageEach is how often a damaged file is set aside. If the next one is damaged so
	// soon, the fault is not with the file.
	damageEach = time.Hour
)

var (
	// ErrQueued is returned by a record call whose context ended before the row was
	// on disk. The row stays queued and is still written when that is possible.
	ErrQueued = errors.New("bboltstore: still waiting to be written")
	// ErrQueueFull is returned by a record call when MaxQueue rows are waiting: this
	// one was dropped.
	ErrQueueFull = errors.New("bboltstore: queue is full, row dropped")
	// ErrClosed is returned by calls on a closed Store.
	ErrClosed = errors.New("bboltstore: closed")
	// ErrForeign is the error, wrapped, of Open for a file that must not be touched:
	// one of a newer version of this program, or none of its files at all.
	ErrForeign = errors.New("this file cannot be used")
)

// Store is one process's access to the shared file. Its methods may be called
// from any number of goroutines.
type Store struct {
	path string
	// Tests make these smaller; maxKnown is MaxKnownDomains, maxSuppressions
	// MaxSuppressions, maxFile MaxFileSize.
	bounds          bounds
	stsBounds       stsBounds
	maxKnown        uint64
	maxSuppressions uint64
	maxFile         int

	wake chan struct{} // has room for one: there is something to do
	gone chan struct{} // closed when the store goroutine has ended

	mu          sync.Mutex
	batches     []*batch // the last one still takes rows; the first may be in work
	queued      int      // distinct rows in batches
	queuedBytes int
	calls       []*call
	closed      bool
	closing     chan struct{} // closed when closed is set
	giveUp      time.Time     // after closed was set: when to end with rows unwritten
	complained  time.Time

	gather gather // of the store goroutine alone
}

// Open returns the store in the file at path, which is created if it does not
// exist; its folder must. The error wraps ErrForeign. Any other fault is logged, and
// what is recorded waits until it has gone away: mail goes on, and so does the program.
func Open(path string) (*Store, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("bboltstore: %w", err)
	}
	s := &Store{
		path:            abs,
		bounds:          defaultBounds,
		stsBounds:       defaultSTSBounds,
		maxKnown:        MaxKnownDomains,
		maxSuppressions: MaxSuppressions,
		maxFile:         MaxFileSize,
		wake:            make(chan struct{}, 1),
		gone:            make(chan struct{}),
		closing:         make(chan struct{}),
		gather:          gather{calls: 1},
	}
	go s.run()
	// Once now, so that the operator hears of a fault at the start.
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	err = s.view(ctx, func(*bolt.Tx) error { return nil })
	switch {
	case errors.Is(err, ErrForeign):
		s.Close()
		return nil, err
	case errors.Is(err, context.DeadlineExceeded):
		slog.Warn("store: another process keeps the file locked, rows wait; 'fuser' with the file's name shows which", "file", abs)
	}
	return s, nil
}

// Close writes what is queued and ends the store. It gives up after five seconds,
// as when another process keeps the file locked, and says how many rows it left.
func (s *Store) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		s.giveUp = time.Now().Add(closeTimeout)
		close(s.closing)
	}
	s.mu.Unlock()
	select {
	case <-s.gone:
	case <-time.After(closeTimeout + time.Second):
		// It waits for the file's lock. Whoever waits for it need not.
		s.end()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queued > 0 {
		return fmt.Errorf("bboltstore: %d rows could not be written to %s", s.queued, s.path)
	}
	return nil
}

// end answers everybody who still waits: nothing more will be done.
func (s *Store) end() {
	s.failCalls(ErrClosed)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.batches {
		dropped.WithLabelValues("closed").Add(float64(b.records))
		b.err = ErrClosed
		close(b.done)
	}
	s.batches = nil
}

func (s *Store) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run is the store goroutine: it alone opens the file to write.
func (s *Store) run() {
	defer close(s.gone)
	defer s.end()
	for retry := retryMin; ; {
		w := s.work()
		switch {
		case !w.any() && w.closed:
			return
		case !w.any():
			select {
			case <-s.wake:
			case <-s.closing:
			}
			continue
		}
		if !s.await(gatherTime) {
			s.gather.late(s.work().calls)
		}
		err := s.turn()
		if err == nil {
			retry = retryMin
			continue
		}
		s.complain(err)
		s.failCalls(err)
		if w.closed && time.Now().After(w.giveUp) {
			return
		}
		select {
		case <-time.After(retry):
			retry = min(2*retry, retryMax)
		case <-s.closing:
			time.Sleep(retryMin)
		}
	}
}

// turn opens the file, does what is queued for as long as it may hold the file,
// and closes it. An error means that the file could not be opened or a batch not
// be written; the batch is still queued then.
func (s *Store) turn() error {
	began := time.Now()
	h, err := open(s.path)
	if err != nil {
		return err
	}
	opened := time.Now()
	lockWait.Observe(opened.Sub(began).Seconds())
	hold := min(max(minHold, holdFactor*opened.Sub(h.locked)), maxHold)
	for more := true; more; {
		var wrote bool
		wrote, err = s.commitBatch(h.DB)
		if err == nil {
			err = s.runCalls(h.DB)
		}
		more = err == nil && time.Since(opened) <= hold && s.hasMore(wrote)
	}
	if isDamage(err) {
		return s.damaged(h, err)
	}
	if cerr := h.release(); err == nil && cerr != nil {
		err = fmt.Errorf("bboltstore: close %s: %w", s.path, cerr)
	}
	return err
}

// hasMore reports whether there is something to do, or is soon after a batch was
// written.
func (s *Store) hasMore(wrote bool) bool {
	if !wrote {
		return s.work().any()
	}
	return s.await(linger)
}

// gather is how many record calls a batch waits for: the number that was found to come
// in time.
type gather struct {
	calls   int
	reached int  // batches since then that had as many, when there were others
	others  bool // came while the last batch was written
}

// inTime says that a wait has brought as many, late that only so many were there when it
// was over.
func (g *gather) inTime() {
	if !g.others {
		return // a caller who is alone would wait for nobody
	}
	if g.reached++; g.reached > probeAfter {
		g.calls, g.reached = min(2*g.calls, gatherCalls), 0
	}
}

func (g *gather) late(there int) { g.calls, g.reached = max(there, 1), 0 }

// await waits until enough record calls, or anything else, are to be done, or for the
// time. It returns false in the latter case, and if the store is closed with nothing to
// do.
func (s *Store) await(most time.Duration) bool {
	timer := time.NewTimer(most)
	defer timer.Stop()
	for timedOut := false; ; {
		switch w := s.work(); {
		case w.other:
			return true
		case w.calls >= s.gather.calls:
			s.gather.inTime()
			return true
		case w.closed:
			return w.calls > 0
		case timedOut:
			return false
		}
		select {
		case <-s.wake:
		case <-timer.C:
			timedOut = true
		}
	}
}

// work is what is to be done.
type work struct {
	calls  int  // record calls of the batch that is next
	other  bool // more than that batch
	closed bool
	giveUp time.Time // see Store
}

func (w work) any() bool { return w.calls > 0 || w.other }

func (s *Store) work() (w work) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.batches) > 0 {
		w.calls = s.batches[0].waiting
	}
	w.other = len(s.calls) > 0 || len(s.batches) > 1
	w.closed, w.giveUp = s.closed, s.giveUp
	return w
}

// damaged sets the open file aside that was found damaged.
func (s *Store) damaged(h *handle, cause error) error {
	was, err := h.file.Stat()
	h.abandon()
	if err != nil {
		return errors.Join(cause, err)
	}
	return setAsideOpen(s.path, was, cause)
}

// commitBatch writes the first batch, if there is one.
func (s *Store) commitBatch(db *bolt.DB) (wrote bool, err error) {
	s.mu.Lock()
	if len(s.batches) == 0 {
		s.mu.Unlock()
		return false, nil
	}
	b := s.batches[0]
	b.sealed = true // takes no more rows
	s.mu.Unlock()

	began := time.Now()
	db.MaxSize = s.maxFile
	c, err := s.writeBatch(db, b, false)
	if errors.Is(err, bolterrors.ErrMaxSizeReached) {
		// What is there already can still be counted in.
		c, err = s.writeBatch(db, b, true)
	}
	if errors.Is(err, bolterrors.ErrMaxSizeReached) {
		// Waiting would not help: there is room again when the reporter has sent and
		// deleted reports.
		s.complain(fmt.Errorf("bboltstore: %s has reached its largest size: %w", s.path, err))
		c = cut{full: uint64(b.records), known: uint64(len(b.seen))}
		db.MaxSize = 0 // else the lines of a log would come again
		c.positions, err = movePositions(db, b.positions)
	}
	// What the reporter writes, in order to delete, must not be in want of room.
	db.MaxSize = 0
	if err != nil {
		return false, fmt.Errorf("bboltstore: write to %s: %w", s.path, err)
	}
	commitTime.Observe(time.Since(began).Seconds())
	recorded.Add(float64(uint64(b.records) - c.records - c.full))
	dropped.WithLabelValues("groups").Add(float64(c.records))
	dropped.WithLabelValues("file_size").Add(float64(c.full))
	dropped.WithLabelValues("details").Add(float64(c.details))
	dropped.WithLabelValues("known").Add(float64(c.known))
	dropped.WithLabelValues("positions").Add(float64(c.positions))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queued -= b.rows
	s.queuedBytes -= b.bytes
	s.showQueue()
	s.gather.others = len(s.batches) > 1
	if len(s.batches) > 0 { // else Close has not waited
		s.batches = s.batches[1:]
		close(b.done)
	}
	return true, nil
}

func (s *Store) writeBatch(db *bolt.DB, b *batch, frugal bool) (c cut, err error) {
	err = safely(func() error {
		return db.Update(func(tx *bolt.Tx) error {
			k, err := loadKnown(tx, s.maxKnown)
			if err == nil {
				c, err = b.write(tx, s.bounds, k, frugal)
			}
			return err
		})
	})
	if errors.Is(err, errUnchanged) {
		err = nil
	}
	return c, err
}

// showQueue shows how much waits. s.mu is held.
func (s *Store) showQueue() {
	queueLength.Set(float64(s.queued))
	queueBytes.Set(float64(s.queuedBytes))
}

// complain logs err at most once a minute.
func (s *Store) complain(err error) {
	writeErrors.Inc()
	err = mend.State(err)
	switch queued, ok := s.mayComplain(); {
	case !ok:
	case queued > 0:
		slog.Error("store: cannot write, rows wait", "err", err, "queued", queued, "queue_limit", MaxQueue)
	default:
		slog.Error("store: cannot be used", "err", err)
	}
}

func (s *Store) queueFull() {
	if queued, ok := s.mayComplain(); ok {
		slog.Error("store: too many rows wait to be written, more are dropped", "queued", queued, "queue_limit", MaxQueue)
	}
}

func (s *Store) mayComplain() (queued int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.complained) < complainEach {
		return s.queued, false
	}
	s.complained = time.Now()
	return s.queued, true
}
