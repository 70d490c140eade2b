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
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"

	"ruapost"
	"ruapost/dmarc"
)

// offer is a report that is to be sent to one recipient.
type offer struct {
	id, address string
	// about is the domain that the report is about, domain where it goes.
	about, domain string
	kind          ruapost.Kind
	https         bool
	// expired says that it was held back for too long: find gives it up.
	expired bool
}

func offerOf(rep *ruapost.Report, rc *ruapost.Recipient) offer {
	return offer{id: rep.ID, address: rc.Address, about: rep.Domain, domain: hostOf(rc), kind: rep.Kind, https: rc.HTTPS}
}

// unasked tells whether it goes to somebody else who was not asked whether he wants it: who
// writes a TLSRPT record can name anybody (RFC 8460 7).
func (o offer) unasked() bool {
	return o.kind == ruapost.KindTLS && registered(o.about) != registered(o.domain)
}

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
			o := offerOf(rep, &rc)
			o.expired = run.isExpired(rep, &rc)
			run.offers = append(run.offers, o)
		}
	}
}

// isExpired tells whether a report could have been offered for as long as it is kept, and
// was held back all that time.
func (run *run) isExpired(rep *ruapost.Report, rc *ruapost.Recipient) bool {
	since := rep.Sealed
	if rc.NotBefore.After(since) {
		since = rc.NotBefore
	}
	return rc.Attempts == 0 && run.now().Sub(since) >= run.Keep
}

// offerAll offers the reports, in random order and spread over the time there is, so
// that no receiver gets them in a rush. It ends when ctx does, between two of them. Mails do
// not wait for https destinations, which take as long as they like.
func (run *run) offerAll(ctx context.Context) error {
	run.holdBack()
	var mails, posts []offer
	for _, o := range run.offers {
		if o.https {
			posts = append(posts, o)
		} else {
			mails = append(mails, o)
		}
	}
	var errPosts error
	var posting sync.WaitGroup
	posting.Go(func() { errPosts = run.spread(ctx, "posting", posts) })
	errMails := run.spread(ctx, "sending", mails)
	posting.Wait()
	return errors.Join(errMails, errPosts)
}

// spread offers reports over the time there is.
func (run *run) spread(ctx context.Context, what string, offers []offer) error {
	var gap time.Duration
	if n := len(offers); n > 1 {
		gap = min(run.Spread/time.Duration(n), MaxGap)
	}
	size, atOnce := 1, offering
	if gap == 0 { // what each needs of the disk they can need together
		size, atOnce = preparing, 1
	}
	return each(ctx, atOnce, func(yield func([]offer) bool) {
		next := time.Now()
		done := 0
		for batch := range slices.Chunk(offers, size) {
			run.progress(what, done, len(offers))
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

// holdBack leaves for later runs what is past the bounds, and says so. The others are in
// random order then.
func (run *run) holdBack() {
	held := map[string]int{}
	perDomain := map[string]int{}
	var kept, past []offer
	for _, o := range run.fairly() {
		if o.expired {
			past = append(past, o)
			continue
		}
		reason := ""
		switch {
		case run.MaxPerRun > 0 && len(kept) >= run.MaxPerRun:
			reason = "max_reports_per_run"
		case run.MaxPerDay > 0 && run.sentToday+len(kept) >= run.MaxPerDay:
			reason = "max_reports_per_day"
		case run.MaxPerDestination > 0 && (perDomain[registered(o.domain)] >= run.MaxPerDestination ||
			o.unasked() && run.unasked[registered(o.domain)] >= run.MaxPerDestination):
			reason = "max_per_destination_domain"
		}
		if reason != "" {
			held[reason]++
			run.count("held_back_" + reason)
			continue
		}
		perDomain[registered(o.domain)]++
		if o.unasked() {
			run.unasked[registered(o.domain)]++
		}
		kept = append(kept, o)
	}
	for reason, n := range held {
		slog.Warn("reports are held back for the next runs", "reports", n, "by", "reporter."+reason)
	}
	rand.Shuffle(len(kept), func(i, j int) { kept[i], kept[j] = kept[j], kept[i] })
	run.offers = append(past, kept...)
}

// fairly returns the offers so that the first report about each registered domain comes
// before the second about any: whoever has reports about many names below his own must not
// use up the bounds.
func (run *run) fairly() []offer {
	rand.Shuffle(len(run.offers), func(i, j int) { run.offers[i], run.offers[j] = run.offers[j], run.offers[i] })
	seen := map[string]int{}
	var ranks [][]offer
	for _, o := range run.offers {
		name := registered(o.about)
		rank := seen[name]
		seen[name]++
		if rank == len(ranks) {
			ranks = append(ranks, nil)
		}
		ranks[rank] = append(ranks[rank], o)
	}
	return slices.Concat(ranks...)
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
	// rep and rc are nil if there is nothing to do any more.
	rep *ruapost.Report
	rc  *ruapost.Recipient
	// file has the mail, unless it goes by HTTPS. fresh says that it is to be put in its
	// place before it can be sent.
	file  string
	fresh bool
	// decided says that the report is not to be offered now: what came of it, err or the
	// state of rc, is known.
	decided bool
	err     error
}

// offerBatch makes the mails of a batch together, sends them, and notes what became of
// each. The error is what is no matter of one recipient alone.
func (run *run) offerBatch(ctx context.Context, batch []offer) error {
	disk, err := os.Open(run.Outbox)
	if err != nil {
		return fmt.Errorf("reporting: outbox: %w", err)
	}
	defer disk.Close()
	attempts := make([]*attempt, len(batch))
	for i, o := range batch {
		attempts[i] = &attempt{offer: o}
	}
	errFind := each(ctx, preparing, slices.Values(attempts), run.find)
	// What was not found out, as when ctx ends, is left for the next run.
	attempts = slices.DeleteFunc(attempts, func(a *attempt) bool { return a.rc == nil })
	if err := run.putInPlace(disk, attempts); err != nil {
		return errors.Join(errFind, err)
	}
	return errors.Join(errFind, each(ctx, offering, slices.Values(attempts), run.send), run.writeCounts(ctx, someCounts))
}

// find finds the report and makes the mail, unless that was done before.
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
	rc := &rep.Recipients[i]
	if !rc.HTTPS {
		a.file = run.mailFile(rep, rc)
		if a.decided, err = exists(a.file + takenSuffix); err != nil {
			return err
		}
	}
	// Suppressed since the run began, perhaps.
	suppressed, err := run.Store.Suppressions(ctx, patterns(rep.Domain, rc)...)
	if err != nil {
		return err
	}
	switch {
	case a.decided: // an earlier run was killed before it could note that sendmail took it
	case run.suppress(rep.Domain, rc, byPattern(suppressed)):
		a.decided = true
	case run.isExpired(rep, rc):
		a.decided, a.err = true, errHeldBack
	case !rc.HTTPS:
		a.fresh, a.err = run.makeMail(a.file, rep, rc)
		a.decided = a.err != nil
	}
	a.rep, a.rc = rep, rc
	return nil
}

// putInPlace gives the mails that were made just now their names, which never stand for
// less than a whole mail. disk is of before they were made, see syncFiles.
func (run *run) putInPlace(disk *os.File, attempts []*attempt) error {
	var files, folders []string
	for _, a := range attempts {
		if a.fresh {
			files = append(files, a.file+newSuffix)
			folders = append(folders, filepath.Dir(a.file))
		}
	}
	if err := syncFiles(disk, files); err != nil {
		return err
	}
	for _, a := range attempts {
		if !a.fresh {
			continue
		}
		if err := os.Rename(a.file+newSuffix, a.file); err != nil {
			a.decided, a.err = true, fmt.Errorf("reporting: outbox: %w", err)
		}
	}
	return syncFiles(disk, folders)
}

// send sends a report to one recipient and notes what became of it, even if the run is to
// stop. The error is what is no matter of that one alone.
func (run *run) send(ctx context.Context, a *attempt) error {
	if !a.decided && run.isStruck(a.rc) {
		a.decided = true
		a.rc.State, a.rc.Error = ruapost.RecipientSuppressed, "suppressed: sendmail has just refused the address"
	}
	if !a.decided {
		sender, err := run.envelopeSender(a.rep, a.rc)
		if err == nil && !a.https && !a.unasked() { // or anybody's domain could be made unknown
			run.noteReported(ctx, a.domain)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
		case a.https:
			err = run.post(context.WithoutCancel(ctx), a.rep, a.rc)
		default:
			err = run.sendmail(ctx, a.file, sender, a.rc.Address)
		}
		if errors.Is(err, errSilent) { // the next run tries
			return nil
		}
		if errors.Is(err, errSendmail) {
			return fmt.Errorf("reporting: %w", err)
		}
		a.err = err
	}
	if a.rc.State == ruapost.RecipientWaiting {
		run.judge(ctx, a.rep, a.rc, a.err)
	}
	return run.noteOutcome(context.WithoutCancel(ctx), a)
}

// noteOutcome notes what became of an attempt, and tidies up behind it.
func (run *run) noteOutcome(ctx context.Context, a *attempt) error {
	err := run.Store.UpdateReport(ctx, a.id, func(stored *ruapost.Report) error {
		for i := range stored.Recipients {
			// It may have come back already.
			rc := &stored.Recipients[i]
			if rc.Address != a.address {
				continue
			}
			if rc.State == ruapost.RecipientBounced {
				rc.Attempts, rc.First, rc.Last = a.rc.Attempts, a.rc.First, a.rc.Last
				continue
			}
			*rc = *a.rc
		}
		run.settle(stored)
		return nil
	})
	if err != nil {
		return err
	}
	run.countOutcome(a.rep.Kind, a.rc)
	if a.rc.State == ruapost.RecipientWaiting || a.file == "" {
		return nil
	}
	return removeMail(a.file)
}

// removeMail removes a mail and the mark that it was taken.
func removeMail(file string) error {
	for _, f := range []string{file, file + takenSuffix} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("reporting: outbox: %w", err)
		}
	}
	return nil
}

// countOutcome counts what was stored of a recipient.
func (run *run) countOutcome(kind ruapost.Kind, rc *ruapost.Recipient) {
	switch rc.State {
	case ruapost.RecipientSent:
		run.count("sent_" + string(kind))
	case ruapost.RecipientFailed:
		run.count("failed_" + string(kind))
	case ruapost.RecipientRefused:
		run.count("refused")
	case ruapost.RecipientWaiting:
		run.count("put_off_" + string(kind))
	case ruapost.RecipientSuppressed:
		run.count("suppressed")
	}
}

// judge notes in rc what sending the report there has come to.
func (run *run) judge(ctx context.Context, rep *ruapost.Report, rc *ruapost.Recipient, err error) {
	run.try(rc)
	switch {
	case err == nil && run.isTooLarge(rep, rc):
		run.giveUp(rep, rc, fmt.Errorf("%w: it was told so", errTooLarge))
	case err == nil:
		rc.State, rc.Error, rc.NotBefore = ruapost.RecipientSent, "", time.Time{}
		slog.Info("report sent", "kind", rep.Kind, "domain", rep.Domain, "report_id", rep.ID, "recipient", rc.Address)
	case isFinal(err), postRefused(err), isAny(err, errNoContent, errTooLarge, errHeldBack):
		run.giveUp(rep, rc, err)
	default:
		run.putOff(rep, rc, err)
	}
	if isUnknownUser(err) {
		if _, err := run.strike(context.WithoutCancel(ctx), patternOf(rc.Address), rc.Error, rc.Last); err != nil {
			slog.Warn("the address could not be suppressed", "recipient", rc.Address, "err", err)
		}
		run.mu.Lock()
		run.struck[patternOf(rc.Address)] = true
		run.mu.Unlock()
	}
}

// isStruck tells whether sendmail has refused the address for good in this run.
func (run *run) isStruck(rc *ruapost.Recipient) bool {
	run.mu.Lock()
	defer run.mu.Unlock()
	return run.struck[patternOf(rc.Address)]
}

// noteReported notes, once in a run, that what goes to a domain next is no mail that
// anybody here wrote. If it cannot be noted the report goes out all the same.
func (run *run) noteReported(ctx context.Context, domain string) {
	run.mu.Lock()
	once := run.noted[domain]
	if once == nil {
		once = new(sync.Once)
		run.noted[domain] = once
	}
	run.mu.Unlock()
	once.Do(func() {
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
	})
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
	rc.Error = ruapost.Clean(err.Error(), 500)
	rc.NotBefore = run.now().Add(firstRetry << min(rc.Attempts-1, 6))
	if rc.NotBefore.After(end) {
		rc.NotBefore = end
	}
	slog.Warn("report has to wait", "kind", rep.Kind, "domain", rep.Domain, "report_id", rep.ID,
		"recipient", rc.Address, "until", rc.NotBefore, "err", err)
}

var (
	// errNoContent means that somebody has emptied the outbox.
	errNoContent = errors.New("the report is not in the outbox any more")
	errHeldBack  = errors.New("it was held back for too long")
)

func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}

// newSuffix is behind the name of a mail that is not whole yet.
const newSuffix = ".new"

// makeMail makes sure that there is a mail, or a fresh one, which is to be put in its place:
// it is composed the first time and the same from then on.
func (run *run) makeMail(file string, rep *ruapost.Report, rc *ruapost.Recipient) (fresh bool, err error) {
	if there, err := exists(file); there || err != nil {
		return false, err
	}
	switch there, err := exists(run.contentFile(rep, rc.Legacy)); {
	case err != nil:
		return false, err
	case !there:
		return false, errNoContent
	}
	if err := run.composeMail(file+newSuffix, rep, rc); err != nil {
		return false, fmt.Errorf("reporting: compose mail of report %s to %s: %w", rep.ID, rc.Address, err)
	}
	return true, nil
}
