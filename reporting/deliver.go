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
	return each(ctx, offering, func(yield func(offer) bool) {
		next := time.Now()
		for i, o := range run.offers {
			run.progress("sending", i, len(run.offers))
			if !sleepUntil(ctx, next) || !yield(o) {
				return
			}
			next = next.Add(gap)
		}
	}, run.offer)
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
		case run.MaxPerDestination > 0 && perDomain[o.domain] >= run.MaxPerDestination:
			reason = "max_per_destination_domain"
		}
		if reason != "" {
			held[reason]++
			run.count("held_back_" + reason)
			continue
		}
		perDomain[o.domain]++
		kept = append(kept, o)
	}
	for reason, n := range held {
		slog.Warn("reports are held back for the next runs", "reports", n, "by", "reporter."+reason)
	}
	run.offers = kept
}

// offer sends a report to one recipient and notes what became of it. It returns an
// error if that is no matter of this recipient alone.
func (run *run) offer(ctx context.Context, o offer) error {
	rep, err := run.Store.Report(ctx, o.id)
	if errors.Is(err, ruapost.ErrNoReport) { // forgotten meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	i := slices.IndexFunc(rep.Recipients, func(rc ruapost.Recipient) bool { return rc.Address == o.address })
	if i < 0 || !run.isDue(&rep.Recipients[i]) {
		return nil
	}
	rc := &rep.Recipients[i]
	switch {
	case run.suppress(rc, run.suppressed):
		run.count("suppressed")
	case run.now().Sub(rep.Sealed) >= run.Keep:
		run.giveUp(rep, rc, fmt.Errorf("given up after %s: it was held back", run.Keep))
	default:
		err = run.send(ctx, rep, rc)
		if errors.Is(err, errSendmail) {
			return fmt.Errorf("reporting: %w", err)
		}
		run.noteOutcome(ctx, rep, rc, err)
	}
	return run.store(ctx, rep, rc)
}

// noteOutcome notes in rc what became of sending the report there.
func (run *run) noteOutcome(ctx context.Context, rep *ruapost.Report, rc *ruapost.Recipient, err error) {
	run.attempt(rc)
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

// store notes what became of one recipient. It must be noted even if the run is to
// stop: the mail is out.
func (run *run) store(ctx context.Context, rep *ruapost.Report, rc *ruapost.Recipient) error {
	err := run.Store.UpdateReport(context.WithoutCancel(ctx), rep.ID, func(stored *ruapost.Report) error {
		for i := range stored.Recipients {
			if stored.Recipients[i].Address == rc.Address {
				stored.Recipients[i] = *rc
			}
		}
		run.settle(stored)
		return nil
	})
	if err != nil || rc.State == ruapost.RecipientWaiting || rc.HTTPS {
		return err
	}
	file := run.mailFile(rep, rc)
	for _, f := range []string{file, file + takenSuffix} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("reporting: outbox: %w", err)
		}
	}
	return nil
}

// send sends the report to one recipient.
func (run *run) send(ctx context.Context, rep *ruapost.Report, rc *ruapost.Recipient) error {
	if rc.HTTPS {
		return run.post(ctx, rep, rc)
	}
	taken, err := run.makeMail(rep, rc)
	if err != nil || taken { // taken: an earlier run was killed before it could note that
		return err
	}
	run.noteReported(ctx, hostOf(rc))
	sender, err := run.envelopeSender(rep, rc)
	if err != nil {
		return err
	}
	return run.sendmail(ctx, run.mailFile(rep, rc), sender, rc.Address)
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

// attempt notes that rc was tried.
func (r *Reporter) attempt(rc *ruapost.Recipient) {
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

// makeMail makes sure that the mail to rc is in its file, where it is composed the first
// time and the same from then on. If sendmail has taken it already it need not be there.
func (run *run) makeMail(rep *ruapost.Report, rc *ruapost.Recipient) (taken bool, err error) {
	file := run.mailFile(rep, rc)
	for _, suffix := range []string{takenSuffix, ""} {
		if there, err := exists(file + suffix); there || err != nil {
			return suffix == takenSuffix, err
		}
	}
	switch there, err := exists(run.contentFile(rep, rc.Legacy)); {
	case err != nil:
		return false, err
	case !there:
		return false, errNoContent
	}
	fresh := file + ".new"
	if err = run.composeMail(fresh, rep, rc); err == nil {
		err = run.putInPlace(fresh, file)
	}
	if err != nil && !errors.Is(err, errTooLarge) {
		err = fmt.Errorf("reporting: compose mail of report %s to %s: %w", rep.ID, rc.Address, err)
	}
	return false, err
}

// putInPlace renames a file so that the new name never stands for less than all of it.
func (run *run) putInPlace(fresh, file string) error {
	if err := run.disk.sync(fresh); err != nil {
		return err
	}
	if err := os.Rename(fresh, file); err != nil {
		return err
	}
	return run.disk.sync(filepath.Dir(file))
}
