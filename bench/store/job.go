package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ruapost"
	"ruapost/bboltstore"
)

// jobVariable is the environment variable that makes a process of this program work
// on a job instead of being the command.
const jobVariable = "RUAPOST_BENCH_JOB"

type role string

const (
	roleWriter    role = "writer"
	roleReporter  role = "reporter"
	roleCompactor role = "compactor"
	roleSingle    role = "single"
)

// job is what one process does.
//
// A process that has opened the store writes a byte to its standard output and begins
// when one comes on its standard input; when it is done it writes a result. An endless
// one begins at once. If it is a writer it writes a byte for each record call: the
// domain's number before the call, and the same with ackBit when it has returned.
// Either ends when its standard input does.
type job struct {
	Role    role
	Number  int // of the writer, from 0
	Writers int // whose messages the single process records
	Path    string
	Ledger  string // the reporter's, see there
	Rate    int
	Batch   int
	Spread  int // number of preloaded rows to record onto
	Time    time.Duration
	Endless bool
}

const ackBit = 0x80

// result is what a process has to say after its job.
type result struct {
	Role    role
	Number  int
	Elapsed time.Duration
	// Records is the number of record calls of a writer, of records of the single
	// process, of messages the reporter has reported, of runs of the compactor.
	Records int
	// Commits counts batches, Opened the turns with the file and OpenTime is the
	// time it took to get it, the waiting included; of a writer.
	Commits  int
	Opened   int
	OpenTime time.Duration
	// Latencies are how long the calls on the store took: record calls of a writer,
	// commits of the single process.
	Latencies []time.Duration
}

// runJob does what the environment says and returns the exit status.
func runJob(encoded string) int {
	slog.SetLogLoggerLevel(slog.LevelWarn) // not each compaction
	var j job
	err := json.Unmarshal([]byte(encoded), &j)
	if err == nil {
		err = j.run()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s %d: %v\n", j.Role, j.Number, err)
		return 1
	}
	return 0
}

func (j *job) run() error {
	work, done, err := j.prepare()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if !j.Endless {
		if _, err := os.Stdout.Write([]byte{0}); err != nil {
			return err
		}
		if _, err := io.ReadFull(os.Stdin, make([]byte, 1)); err != nil {
			return err
		}
		ctx, cancel = context.WithTimeout(ctx, j.Time)
		defer cancel()
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	r := result{Role: j.Role, Number: j.Number}
	began := time.Now()
	err = work(ctx, &r)
	r.Elapsed = time.Since(began)
	if err := errors.Join(err, done()); err != nil || j.Endless {
		return err
	}
	if err := r.gather(); err != nil {
		return err
	}
	return gob.NewEncoder(os.Stdout).Encode(r)
}

// prepare opens the file. It returns the work to do, which ends with its context, and
// the function that closes the file.
func (j *job) prepare() (work func(context.Context, *result) error, done func() error, err error) {
	if j.Role == roleSingle {
		b, err := openBaseline(j.Path)
		if err != nil {
			return nil, nil, err
		}
		return func(ctx context.Context, r *result) error { return b.write(ctx, j.Writers, j.Batch, r) }, b.db.Close, nil
	}
	s, err := bboltstore.Open(j.Path)
	if err != nil {
		return nil, nil, err
	}
	switch j.Role {
	case roleWriter:
		work = func(ctx context.Context, r *result) error { return j.write(ctx, s, r) }
	case roleReporter:
		work = func(ctx context.Context, r *result) error { return report(ctx, s, j.Ledger, r) }
	case roleCompactor:
		work = func(ctx context.Context, r *result) error { return compact(ctx, s, r) }
	default:
		return nil, nil, fmt.Errorf("no such role: %s", j.Role)
	}
	return work, s.Close, nil
}

// gather takes the numbers from the store's metrics.
func (r *result) gather() error {
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		return err
	}
	for _, f := range families {
		switch h := f.GetMetric()[0].GetHistogram(); f.GetName() {
		case "ruapost_store_commit_duration_seconds":
			r.Commits += int(h.GetSampleCount())
		case "ruapost_store_open_duration_seconds":
			r.Opened = int(h.GetSampleCount())
			r.OpenTime = time.Duration(h.GetSampleSum() * float64(time.Second))
		}
	}
	return nil
}

// write records until ctx ends.
func (j *job) write(ctx context.Context, s *bboltstore.Store, r *result) error {
	w := writer{job: j, store: s, sources: j.sources()}
	if j.Rate > 0 {
		w.atRate(ctx)
	} else {
		w.saturated(ctx)
	}
	r.Latencies, r.Records = w.latencies, len(w.latencies)
	return errors.Join(w.errs...)
}

type writer struct {
	job     *job
	store   *bboltstore.Store
	sources func(caller int) func() (int, *ruapost.Evaluation)

	mu        sync.Mutex
	latencies []time.Duration
	errs      []error
}

// saturated has Batch callers, each of which records as soon as it can.
func (w *writer) saturated(ctx context.Context) {
	var callers sync.WaitGroup
	for n := range w.job.Batch {
		callers.Go(func() {
			next := w.sources(n)
			var latencies []time.Duration
			var err error
			for err == nil && ctx.Err() == nil {
				domain, e := next()
				began := time.Now()
				if err = w.record(domain, e); err == nil && !w.job.Endless {
					latencies = append(latencies, time.Since(began))
				}
			}
			w.add(err, latencies...)
		})
	}
	callers.Wait()
}

// atRate makes Batch calls at once, as often as makes Rate calls a second, however
// many are still waiting.
func (w *writer) atRate(ctx context.Context) {
	next := w.sources(0)
	tick := time.NewTicker(time.Second * time.Duration(w.job.Batch) / time.Duration(w.job.Rate))
	defer tick.Stop()
	began, calls := time.Now(), 0
	var callers sync.WaitGroup
	defer callers.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// A ticker drops the ticks that came too fast: go by the clock.
		due := int(time.Since(began).Seconds() * float64(w.job.Rate))
		for ; calls < due-due%w.job.Batch; calls++ {
			domain, e := next()
			called := time.Now()
			callers.Go(func() {
				err := w.record(domain, e)
				w.add(err, time.Since(called))
			})
		}
	}
}

func (w *writer) record(domain int, e *ruapost.Evaluation) error {
	if !w.job.Endless {
		return w.store.RecordEvaluation(context.Background(), e)
	}
	_, err := os.Stdout.Write([]byte{byte(domain)})
	if err == nil {
		err = w.store.RecordEvaluation(context.Background(), e)
	}
	if err == nil {
		_, err = os.Stdout.Write([]byte{byte(domain) | ackBit})
	}
	return err
}

func (w *writer) add(err error, latencies ...time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.errs = append(w.errs, err)
		return
	}
	w.latencies = append(w.latencies, latencies...)
}

// compact compacts the file until ctx ends, with pauses that let it grow.
func compact(ctx context.Context, s *bboltstore.Store, r *result) error {
	for ctx.Err() == nil {
		began := time.Now()
		if err := s.Compact(context.Background()); err != nil {
			return err
		}
		r.Latencies = append(r.Latencies, time.Since(began))
		r.Records++
		pause(ctx, 50*time.Millisecond)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// report makes reports of what was recorded until ctx ends: each group is sealed,
// read, noted in the ledger and deleted, as the reporter does it. Where an earlier
// process was killed it goes on.
//
// The ledger is a file with a line for each report: its ID, its domain, the messages
// in the group and the sum of its rows. A process that was killed after it wrote the
// line may be followed by one that writes the same again. An empty name is no ledger.
func report(ctx context.Context, s *bboltstore.Store, ledger string, r *result) error {
	for ctx.Err() == nil {
		n, err := reportOnce(ctx, s, ledger, r)
		if err != nil {
			return err
		}
		if n == 0 {
			pause(ctx, 10*time.Millisecond)
		}
	}
	return nil
}

// reportOnce goes over what is there now, or until ctx ends, and returns the number
// of reports.
func reportOnce(ctx context.Context, s *bboltstore.Store, ledger string, r *result) (reports int, err error) {
	// Like a record call, a call that was begun is waited for.
	call := func(f func(context.Context) error) {
		if err == nil {
			began := time.Now()
			err = f(context.Background())
			r.Latencies = append(r.Latencies, time.Since(began))
		}
	}
	finish := func(rep *ruapost.Report) {
		if rep.State == ruapost.ReportSealed {
			call(func(ctx context.Context) error { return compose(ctx, s, rep, ledger) })
			rep.State = ruapost.ReportComposed
			call(func(ctx context.Context) error { return s.PutReports(ctx, rep) })
		}
		call(func(ctx context.Context) error { return s.DropRows(ctx, rep.Groups) })
		call(func(ctx context.Context) error { return s.ForgetReport(ctx, rep.ID) })
		reports++
		r.Records += int(rep.Groups[0].Total)
	}

	var begun []ruapost.Report
	call(func(ctx context.Context) error {
		for rep, err := range s.Reports(ctx) {
			if err != nil {
				return err
			}
			begun = append(begun, rep)
		}
		return nil
	})
	for i := range begun {
		finish(&begun[i])
	}
	var groups []ruapost.Group
	call(func(ctx context.Context) (err error) {
		groups, err = s.Groups(ctx, ruapost.Day(today).End)
		return err
	})
	for _, g := range groups {
		if ctx.Err() != nil {
			break
		}
		rep := ruapost.Report{
			ID: fmt.Sprintf("r%d", g.ID), Kind: g.Kind, Domain: g.Domain, Window: g.Window,
			Sealed: time.Now(), State: ruapost.ReportSealed, Groups: []ruapost.Group{g},
		}
		call(func(ctx context.Context) error { return s.Seal(ctx, &rep) })
		if err == nil && len(rep.Groups) > 0 {
			finish(&rep)
		}
	}
	return reports, err
}

// compose reads the report's rows and notes them in the ledger.
func compose(ctx context.Context, s *bboltstore.Store, rep *ruapost.Report, ledger string) error {
	g := rep.Groups[0]
	var sum int64
	for row, err := range s.Rows(ctx, g.ID) {
		if err != nil {
			return err
		}
		sum += row.Count
	}
	if ledger == "" {
		return nil
	}
	f, err := os.OpenFile(ledger, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s %s %d %d\n", rep.ID, rep.Domain, g.Total, sum)
	return errors.Join(err, f.Close())
}

// entry is a line of the ledger.
type entry struct {
	id, domain string
	total, sum int64
}

// readLedger returns the ledger's reports, each once, and complains of those that do
// not agree with themselves.
func readLedger(path string) (reports []entry, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var errs []error
	for line := range bytes.Lines(data) {
		var e entry
		if _, err := fmt.Sscanf(string(line), "%s %s %d %d\n", &e.id, &e.domain, &e.total, &e.sum); err != nil {
			return nil, fmt.Errorf("ledger line %q: %w", line, err)
		}
		if e.total != e.sum {
			errs = append(errs, fmt.Errorf("report %s about %s: %d messages, but %d in rows", e.id, e.domain, e.total, e.sum))
		}
		reports = append(reports, e)
	}
	slices.SortFunc(reports, func(a, b entry) int { return cmp.Compare(a.id, b.id) })
	reports = slices.Compact(reports)
	for i := 1; i < len(reports); i++ {
		if reports[i].id == reports[i-1].id {
			errs = append(errs, fmt.Errorf("two reports %s: %v and %v", reports[i].id, reports[i-1], reports[i]))
		}
	}
	return reports, errors.Join(errs...)
}
