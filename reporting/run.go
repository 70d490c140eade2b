package reporting

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"ruapost"
)

// run is one Send.
type run struct {
	*Reporter
	what Selection
	// lookups ends when lookupsTimeout is over: what is not looked up then is left for the
	// next run.
	lookups    context.Context
	secret     []byte // of the tokens in envelope senders
	suppressed suppressions
	covered    coverage // by reports of earlier runs
	sentToday  int      // by these
	// unasked counts what they sent to domains that need not agree, see offer.
	unasked map[string]int

	progressing sync.Mutex

	mu     sync.Mutex
	offers []offer // what there is to send
	counts map[string]uint64
	noted  map[string]*sync.Once // domains that RecordReported was told of
	struck map[string]bool       // addresses that sendmail knows nobody at
	silent map[string]int        // posts that came to nothing, by registered domain
}

func (r *Reporter) newRun(ctx context.Context, what Selection) (*run, error) {
	run := &run{Reporter: r, what: what, covered: coverage{}, unasked: map[string]int{}, counts: map[string]uint64{}, noted: map[string]*sync.Once{}, silent: map[string]int{}, struck: map[string]bool{}}
	var err error
	if run.suppressed, err = r.suppressions(ctx); err != nil {
		return nil, err
	}
	if err := run.purge(ctx); err != nil {
		return nil, err
	}
	if r.BounceMaildir != "" {
		if run.secret, err = r.Store.Secret(ctx); err != nil {
			return nil, err
		}
	}
	return run, nil
}

// count counts something that the operator may want to know.
func (run *run) count(name string) {
	run.mu.Lock()
	defer run.mu.Unlock()
	run.counts[name]++
}

// writeCounts adds what was counted to the store's counters if that is at least so much,
// even if the run is to stop. What a run has not written when it is killed is lost.
func (run *run) writeCounts(ctx context.Context, least uint64) error {
	run.mu.Lock()
	counts := run.counts
	var n uint64
	for _, count := range counts {
		n += count
	}
	if n < least {
		run.mu.Unlock()
		return nil
	}
	run.counts = map[string]uint64{}
	run.mu.Unlock()
	return run.Store.Count(context.WithoutCancel(ctx), counts)
}

// scan looks through the reports of earlier runs: what is open, and what is over since
// long.
func (run *run) scan(ctx context.Context) (open, over []string, err error) {
	for rep, err := range run.Store.Reports(ctx) {
		if err != nil {
			return nil, nil, err
		}
		run.countSent(&rep)
		run.covered.add(&rep, run.now())
		switch {
		case rep.State != ruapost.ReportDone:
			open = append(open, rep.ID)
		case run.now().Sub(rep.Finished) >= run.Keep, rep.Finished.After(run.now()):
			over = append(over, rep.ID)
		}
	}
	return open, over, nil
}

// earlier takes the reports of earlier runs as far as they go without being sent.
func (run *run) earlier(ctx context.Context, open, over []string) error {
	err := run.prepareAll(ctx, func(ctx context.Context, found chan<- *preparation) error {
		return each(ctx, preparing, counted(run, "reports of earlier runs", open), func(ctx context.Context, id string) error {
			return run.resume(ctx, id, found)
		})
	})
	return errors.Join(err, each(ctx, preparing, slices.Values(over), run.forget))
}

// counted returns the items and shows how far whoever takes them has come.
func counted[T any](run *run, what string, items []T) iter.Seq[T] {
	return func(yield func(T) bool) {
		for i, item := range items {
			run.progress(what, i, len(items))
			if !yield(item) {
				return
			}
		}
	}
}

func (run *run) progress(what string, done, all int) {
	if run.Progress != nil {
		run.progressing.Lock()
		defer run.progressing.Unlock()
		run.Progress(what, done, all)
	}
}

// countSent counts what was sent since midnight UTC, for the bounds of a day.
func (run *run) countSent(rep *ruapost.Report) {
	now := run.now()
	today := ruapost.Day(now).Start
	for _, rc := range rep.Recipients {
		sent := rc.State == ruapost.RecipientSent || rc.State == ruapost.RecipientBounced ||
			rc.State == ruapost.RecipientWaiting && rc.Attempts == 0 // it is to be sent again
		if !sent || rc.Last.Before(today) || rc.Last.After(now) { // later: the clock was ahead
			continue
		}
		run.sentToday++
		if o := offerOf(rep, &rc); o.unasked() {
			run.unasked[registered(o.domain)]++
		}
	}
}

// resume finds what is to be done for a report of an earlier run.
func (run *run) resume(ctx context.Context, id string, found chan<- *preparation) error {
	rep, err := run.Store.Report(ctx, id)
	if errors.Is(err, ruapost.ErrNoReport) {
		return nil
	}
	if err != nil || run.what.Domain != "" && rep.Domain != run.what.Domain {
		return err
	}
	if run.bringBack(rep) {
		slog.Warn("the clock was ahead: times of the report are taken for now", "domain", rep.Domain, "report_id", rep.ID)
		err := run.Store.UpdateReport(ctx, id, func(rep *ruapost.Report) error { run.bringBack(rep); return nil })
		if err != nil {
			return err
		}
	}
	asked, without := run.askRecipients(run.lookups, rep)
	if ctx.Err() == nil {
		found <- &preparation{rep: rep, asked: asked, without: without}
	}
	return ctx.Err()
}

// bringBack makes now of times that lie so far ahead that the clock must have been
// wrong: nothing waits for them.
func (run *run) bringBack(rep *ruapost.Report) (changed bool) {
	now := run.now()
	notAfter := func(t *time.Time, latest time.Time) {
		if t.After(latest) {
			*t, changed = now, true
		}
	}
	notAfter(&rep.Sealed, now)
	for i := range rep.Recipients {
		notAfter(&rep.Recipients[i].First, now)
		notAfter(&rep.Recipients[i].NotBefore, now.Add(RetryFor))
	}
	return changed
}

// forget deletes a report that is done since long. If mail to an address that had been
// suppressed has not come back all that time, the address is as good as any.
func (run *run) forget(ctx context.Context, id string) error {
	rep, err := run.Store.Report(ctx, id)
	if errors.Is(err, ruapost.ErrNoReport) {
		return nil
	}
	if err != nil {
		return err
	}
	if rep.Finished.After(run.now()) { // the clock was ahead
		return run.Store.UpdateReport(ctx, id, func(rep *ruapost.Report) error { rep.Finished = run.now(); return nil })
	}
	for _, rc := range rep.Recipients {
		if err := run.clear(ctx, rep.Domain, &rc); err != nil {
			return err
		}
	}
	if err := run.removeContent(rep); err != nil {
		return err
	}
	return run.Store.ForgetReport(ctx, id)
}

// fresh makes the reports that are due. Those whose domains' DNS answers slowly are looked
// up in random order, for as long as lookupsTimeout: the others must not wait for them.
func (run *run) fresh(ctx context.Context) error {
	due, err := run.due(ctx, run.before(run.what), run.what.Domain)
	if err != nil {
		return err
	}
	mathrand.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	return run.prepareAll(ctx, func(ctx context.Context, found chan<- *preparation) error {
		err := each(run.lookups, preparing, counted(run, "reports", due), func(ctx context.Context, d dueReport) error {
			return run.begin(ctx, &d, found)
		})
		if run.lookups.Err() != nil && ctx.Err() == nil {
			run.count("limit_hits_lookups")
			slog.Warn("the DNS is slow: some reports are left for the next run", "after", lookupsTimeout)
		}
		return err
	})
}

// begin finds who is to get a report that is due, and drops it if that is nobody.
func (run *run) begin(ctx context.Context, d *dueReport, found chan<- *preparation) error {
	log := slog.With("kind", d.kind, "domain", d.domain, "from", d.window.Start.Format(time.DateTime))
	recipients, full, err := run.wanted(ctx, d, run.suppressed)
	why, none := errors.AsType[noReport](err)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case d.window.End.After(run.now()) && (why == errSuccessOnly || why == errOptional || why == errNoRows):
		return nil // what is to come may make it worth a report
	case none:
		log.Info("no report is made, its rows are dropped", "why", why.why)
		return run.drop(ctx, d, why.counter)
	case err != nil && run.now().Sub(d.window.End) >= run.Keep:
		log.Error("no report is made, its rows are dropped", "why", errExpired.why, "err", err)
		return run.drop(ctx, d, errExpired.counter)
	case err != nil:
		log.Warn("cannot look up who wants the report, trying again in the next run", "err", err)
		return nil
	}
	rep := &ruapost.Report{
		ID:         newID(run.now()),
		Kind:       d.kind,
		Domain:     d.domain,
		State:      ruapost.ReportSealed,
		Groups:     d.groups,
		Recipients: recipients,
	}
	_, without := run.askRecipients(ctx, rep)
	if full {
		run.count("limit_hits_max_recipients")
	}
	if ctx.Err() == nil {
		found <- &preparation{rep: rep, due: d, without: without}
	}
	return ctx.Err()
}

// drop drops what is due and counts that.
func (run *run) drop(ctx context.Context, d *dueReport, counter string) error {
	err := run.Store.Drop(ctx, d.groups)
	if err == nil {
		run.count(counter)
	}
	return err
}

// newID returns a report identifier: letters and digits only, so that the same string
// can stand in the file name (RFC 9990 3.5.1), and in the order of time.
func newID(now time.Time) string {
	var b [12]byte
	rand.Read(b[:])
	return fmt.Sprintf("%08x%x", uint32(now.Unix()), b)
}

// partID returns the identifier of a later part of the report with that identifier.
func partID(id string, part int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s part %d", id, part))
	return id[:8] + hex.EncodeToString(sum[:12])
}
