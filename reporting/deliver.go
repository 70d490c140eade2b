package reporting

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/net/publicsuffix"

	"ruapost"
	"ruapost/dmarc"
)

// offer is a report that is to be sent to one recipient.
type offer struct{ id, address, domain string }

// isDue tells whether something is to be done for a recipient now.
func (r *Reporter) isDue(rc *ruapost.Recipient) bool {
	return rc.State == ruapost.RecipientWaiting && !rc.NotBefore.After(r.now())
}

// addOffers adds what is to be sent of a report that is composed.
func (run *run) addOffers(rep *ruapost.Report) {
	run.mu.Lock()
	defer run.mu.Unlock()
	for _, rc := range rep.Recipients {
		if run.isDue(&rc) && rc.Accepted {
			run.offers = append(run.offers, offer{rep.ID, rc.Address, hostOf(&rc)})
		}
	}
}

// offerAll offers the reports, in random order and spread over the time there is, so
// that no receiver gets them in a rush. It ends when ctx does, between two of them.
func (run *run) offerAll(ctx context.Context) error {
	rand.Shuffle(len(run.offers), func(i, j int) { run.offers[i], run.offers[j] = run.offers[j], run.offers[i] })
	run.holdBack()
	var gap time.Duration
	if n := len(run.offers); n > 1 {
		gap = min(run.Spread/time.Duration(n), MaxGap)
	}
	size, atOnce := 1, offering
	if gap == 0 { // what each needs of the disk they can need together
		size, atOnce = preparing, batches
	}
	return each(ctx, atOnce, func(yield func([]offer) bool) {
		next := time.Now()
		done := 0
		for batch := range slices.Chunk(run.offers, size) {
			run.progress("sending", done, len(run.offers))
			if !sleepUntil(ctx, next) || !yield(batch) {
				return
			}
			next = next.Add(gap)
			done += len(batch)
		}
	}, run.offerBatch)
}

// sleepUntil tells whether ctx has not ended.
func sleepUntil(ctx context.Context, t time.Time) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// holdBack leaves for later runs what is past the bounds, and says so.
func (run *run) holdBack() {
	held := map[string]int{}
	perDomain := map[string]int{}
	var kept []offer
	for _, o := range run.offers {
		reason := ""
		switch {
		case run.MaxPerRun > 0 && len(kept) >= run.MaxPerRun:
			reason = "max_reports_per_run"
		case run.MaxPerDay > 0 && run.sentToday+len(kept) >= run.MaxPerDay:
			reason = "max_reports_per_day"
		case run.MaxPerDestination > 0 && perDomain[registered(o.domain)] >= run.MaxPerDestination:
			reason = "max_per_destination_domain"
		}
		if reason != "" {
			held[reason]++
			run.count("held_back_" + reason)
			continue
		}
		perDomain[registered(o.domain)]++
		kept = append(kept, o)
	}
	for reason, n := range held {
		slog.Warn("reports are held back for the next runs", "reports", n, "by", "reporter."+reason)
	}
	run.offers = kept
}

// registered returns the part of a domain that somebody has registered: whoever has that
// can invent any number of names below.
func registered(domain string) string {
	if name, err := publicsuffix.EffectiveTLDPlusOne(domain); err == nil {
		return name
	}
	return domain
}

// attempt is an offer on its way.
type attempt struct {
	offer
	rep *ruapost.Report
	rc  *ruapost.Recipient
	// file has the mail, unless it goes by HTTPS. fresh says that it is to be put in its
	// place before it can be sent, taken that sendmail has taken it already: an earlier run
	// was killed before it could note that.
	file         string
	fresh, taken bool
	// tried says that it was offered, or could not be; err is what came of it.
	tried bool
	err   error
}

// offerBatch makes the mails of a batch, sends them and notes what became of them. The
// error is what is no matter of one recipient alone.
func (run *run) offerBatch(ctx context.Context, batch []offer) error {
	attempts := make([]*attempt, len(batch))
	for i, o := range batch {
		attempts[i] = &attempt{offer: o}
	}
	errFind := each(ctx, preparing, slices.Values(attempts), run.find)
	// What was not found out, as when ctx ends, is left for the next run.
	attempts = slices.DeleteFunc(attempts, func(a *attempt) bool { return a.rc == nil })
	if err := run.putInPlace(attempts); err != nil {
		return errors.Join(errFind, err)
	}
	errSend := each(ctx, offering, slices.Values(attempts), run.send)
	// What was sent must be noted even if the run is to stop.
	return errors.Join(errFind, errSend, each(context.WithoutCancel(ctx), preparing, slices.Values(attempts), run.noteOutcome),
		run.writeCounts(ctx, someCounts))
}

// find finds the report and makes the mail, unless that was done before. rc stays nil if
// there is nothing to do.
func (run *run) find(ctx context.Context, a *attempt) error {
	rep, err := run.Store.Report(ctx, a.id)
	if errors.Is(err, ruapost.ErrNoReport) { // forgotten meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	i := slices.IndexFunc(rep.Recipients, func(rc ruapost.Recipient) bool { return rc.Address == a.address })
	if i < 0 || !run.isDue(&rep.Recipients[i]) {
		return nil
	}
	a.rep, a.rc = rep, &rep.Recipients[i]
	switch {
	case run.suppress(a.rc, run.suppressed):
		run.count("suppressed")
	case run.now().Sub(rep.Sealed) >= run.Keep:
		run.giveUp(rep, a.rc, fmt.Errorf("given up after %s: it was held back", run.Keep))
	case !a.rc.HTTPS:
		a.file = run.mailFile(rep, a.rc)
		a.err = run.makeMail(a)
		a.tried = a.err != nil
	}
	return nil
}

// putInPlace gives the mails that were made just now their names, which never stand for
// less than a whole mail.
func (run *run) putInPlace(attempts []*attempt) error {
	var files, folders []string
	for _, a := range attempts {
		if a.fresh {
			files = append(files, a.file+newSuffix)
			folders = append(folders, filepath.Dir(a.file))
		}
	}
	err := syncFiles(files)
	for _, a := range attempts {
		if a.fresh && err == nil {
			err = os.Rename(a.file+newSuffix, a.file)
		}
	}
	if err == nil {
		err = syncFiles(folders)
	}
	if err != nil {
		return fmt.Errorf("reporting: outbox: %w", err)
	}
	return nil
}

// send sends a report to one recipient. The error is what is no matter of that one alone.
func (run *run) send(ctx context.Context, a *attempt) error {
	if a.tried || a.rc.State != ruapost.RecipientWaiting {
		return nil
	}
	switch {
	case a.taken:
	case a.rc.HTTPS:
		a.err = run.post(ctx, a.rep, a.rc)
	default:
		a.err = run.hand(ctx, a)
	}
	if errors.Is(a.err, errSendmail) {
		return fmt.Errorf("reporting: %w", a.err)
	}
	a.tried = true
	return nil
}

// hand hands a mail to sendmail.
func (run *run) hand(ctx context.Context, a *attempt) error {
	sender, err := run.envelopeSender(a.rep, a.rc)
	if err != nil {
		return err
	}
	run.noteReported(ctx, a.domain)
	return run.sendmail(ctx, a.file, sender, a.rc.Address)
}

// noteOutcome notes what became of an attempt.
func (run *run) noteOutcome(ctx context.Context, a *attempt) error {
	if a.tried {
		run.judge(ctx, a.rep, a.rc, a.err)
	} else if a.rc.State == ruapost.RecipientWaiting {
		return nil // the run was stopped before
	}
	err := run.Store.UpdateReport(ctx, a.id, func(stored *ruapost.Report) error {
		for i := range stored.Recipients {
			// It may have come back already.
			if rc := &stored.Recipients[i]; rc.Address == a.address && rc.State != ruapost.RecipientBounced {
				*rc = *a.rc
			}
		}
		run.settle(stored)
		return nil
	})
	if err != nil || a.rc.State == ruapost.RecipientWaiting || a.file == "" {
		return err
	}
	for _, f := range []string{a.file, a.file + takenSuffix} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("reporting: outbox: %w", err)
		}
	}
	return nil
}

// judge notes in rc what sending the report there has come to.
func (run *run) judge(ctx context.Context, rep *ruapost.Report, rc *ruapost.Recipient, err error) {
	run.try(rc)
	switch {
	case err == nil && isTooLarge(rep, rc):
		run.giveUp(rep, rc, fmt.Errorf("%w: it was told so", errTooLarge))
	case err == nil:
		rc.State, rc.Error, rc.NotBefore = ruapost.RecipientSent, "", time.Time{}
		run.count("sent_" + string(rep.Kind))
		slog.Info("report sent", "kind", rep.Kind, "domain", rep.Domain, "report_id", rep.ID, "recipient", rc.Address)
	case isFinal(err), PostRefused(err), errors.Is(err, errNoContent), errors.Is(err, errTooLarge):
		run.giveUp(rep, rc, err)
	default:
		run.putOff(rep, rc, err)
	}
	if isUnknownUser(err) {
		if err := run.strike(ctx, rc.Address, rc.Error, rc.Last); err != nil {
			slog.Warn("the address could not be suppressed", "recipient", rc.Address, "err", err)
		}
	}
}

// noteReported notes that what goes to a domain next is no mail that anybody here
// wrote. If it cannot be noted the report goes out all the same.
func (run *run) noteReported(ctx context.Context, domain string) {
	run.mu.Lock()
	done := run.noted[domain]
	run.noted[domain] = true
	run.mu.Unlock()
	if done {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	evaluator := dmarc.Evaluator{Resolver: run.Resolver, Suffixes: run.Suffixes}
	organization, err := evaluator.OrganizationalDomain(ctx, domain)
	if err == nil {
		err = run.Store.RecordReported(ctx, []string{organization}, run.now())
	}
	if err != nil {
		slog.Warn("this domain may be taken for one that mail is sent to", "domain", domain, "err", err)
	}
}

// try notes that rc was tried.
func (r *Reporter) try(rc *ruapost.Recipient) {
	rc.Attempts++
	rc.Last = r.now()
	if rc.First.IsZero() {
		rc.First = rc.Last
	}
}

func (run *run) giveUp(rep *ruapost.Report, rc *ruapost.Recipient, err error) {
	run.count("failed_" + string(rep.Kind))
	rc.State, rc.Error, rc.NotBefore = ruapost.RecipientFailed, ruapost.Clean(err.Error(), 500), time.Time{}
	slog.Warn("report not sent", "kind", rep.Kind, "domain", rep.Domain, "report_id", rep.ID, "recipient", rc.Address, "err", err)
}

// putOff makes a recipient wait that was tried, longer each time, until RetryFor is
// over.
func (run *run) putOff(rep *ruapost.Report, rc *ruapost.Recipient, err error) {
	end := rc.First.Add(RetryFor)
	if !run.now().Before(end) {
		run.giveUp(rep, rc, fmt.Errorf("given up after %s: %w", RetryFor, err))
		return
	}
	run.count("put_off_" + string(rep.Kind))
	rc.Error = ruapost.Clean(err.Error(), 500)
	rc.NotBefore = run.now().Add(firstRetry << min(rc.Attempts-1, 6))
	if rc.NotBefore.After(end) {
		rc.NotBefore = end
	}
	slog.Warn("report has to wait", "kind", rep.Kind, "domain", rep.Domain, "report_id", rep.ID,
		"recipient", rc.Address, "until", rc.NotBefore, "err", err)
}

// errNoContent means that somebody has emptied the outbox.
var errNoContent = errors.New("the report is not in the outbox any more")

// newSuffix is behind the name of a mail that is not whole yet.
const newSuffix = ".new"

// makeMail makes sure that there is a mail: it is composed the first time and the same
// from then on. If sendmail has taken it already it need not be there.
func (run *run) makeMail(a *attempt) error {
	taken, err := exists(a.file + takenSuffix)
	if err != nil || taken {
		a.taken = taken
		return err
	}
	if there, err := exists(a.file); err != nil || there {
		return err
	}
	switch there, err := exists(run.contentFile(a.rep, a.rc.Legacy)); {
	case err != nil:
		return err
	case !there:
		return errNoContent
	}
	err = run.composeMail(a.file+newSuffix, a.rep, a.rc)
	a.fresh = err == nil
	if err != nil && !errors.Is(err, errTooLarge) {
		err = fmt.Errorf("reporting: compose mail of report %s to %s: %w", a.id, a.address, err)
	}
	return err
}
