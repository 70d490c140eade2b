package reporting

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"ruapost"
	"ruapost/dmarc"
	"ruapost/internal/mailtouri"
)

// deliver serves the recipients that are due.
func (r *Reporter) deliver(ctx context.Context, rep *ruapost.Report) error {
	if err := r.askRecipients(ctx, rep); err != nil {
		return err
	}
	for i := range rep.Recipients {
		rc := &rep.Recipients[i]
		if !r.isDue(rc) || !rc.Accepted {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.mail(ctx, rep, rc); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reporter) isDue(rc *ruapost.Recipient) bool {
	return rc.State == ruapost.RecipientWaiting && !rc.NotBefore.After(r.now())
}

// answer is what accept returned for a recipient that was asked.
type answer struct {
	asked   bool
	instead []ruapost.Recipient
	err     error
}

// askRecipients asks those recipients that are due whether they accept the report,
// and notes the answers.
func (r *Reporter) askRecipients(ctx context.Context, rep *ruapost.Report) error {
	answers := r.ask(ctx, rep)
	asked := slices.ContainsFunc(answers, func(a answer) bool { return a.asked })
	if !asked || ctx.Err() != nil {
		return ctx.Err()
	}
	r.noteAnswers(rep, answers)
	return r.Store.PutReport(ctx, rep)
}

// ask asks the recipients that are due, all at once, and returns an answer for each
// recipient of the report.
func (r *Reporter) ask(ctx context.Context, rep *ruapost.Report) []answer {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	answers := make([]answer, len(rep.Recipients))
	var asking sync.WaitGroup
	for i, rc := range rep.Recipients {
		if rc.Accepted || !r.isDue(&rc) {
			continue
		}
		asking.Go(func() {
			instead, err := r.accept(ctx, rep.Domain, rc)
			answers[i] = answer{true, instead, err}
		})
	}
	asking.Wait()
	return answers
}

// noteAnswers puts the answers into the report. Those who are named in the place of
// others come last: they must not displace anybody.
func (r *Reporter) noteAnswers(rep *ruapost.Report, answers []answer) {
	var list, added []ruapost.Recipient
	for i, rc := range rep.Recipients {
		switch a := answers[i]; {
		case !a.asked:
		case errors.Is(a.err, errRefused):
			r.attempt(&rc)
			r.giveUp(rep, &rc, a.err)
		case a.err != nil:
			r.attempt(&rc)
			r.putOff(rep, &rc, a.err)
		case len(a.instead) > 0:
			added = append(added, a.instead...)
			continue
		default:
			rc.Accepted, rc.Attempts, rc.First, rc.Last, rc.Error = true, 0, time.Time{}, time.Time{}, ""
		}
		list = append(list, rc)
	}
	for _, rc := range added {
		list = addRecipient(list, rc)
	}
	rep.Recipients = list
}

// noteReported notes that what goes to the recipient's domain next is no mail that
// anybody here wrote. If it cannot be noted the report goes out all the same.
func (r *Reporter) noteReported(ctx context.Context, rc *ruapost.Recipient) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	evaluator := dmarc.Evaluator{Resolver: r.Resolver, Suffixes: r.Suffixes}
	organization, err := evaluator.OrganizationalDomain(ctx, mailtouri.Domain(rc.Address))
	if err == nil {
		err = r.Store.RecordReported(ctx, []string{organization}, r.now())
	}
	if err != nil {
		slog.Warn("the domain of this recipient may be taken for one that mail is sent to", "recipient", rc.Address, "err", err)
	}
}

// mail hands the report to sendmail for one recipient and notes what became of it.
// It returns an error if that is no matter of this recipient alone.
func (r *Reporter) mail(ctx context.Context, rep *ruapost.Report, rc *ruapost.Recipient) error {
	file := filepath.Join(r.dir(rep), mailName(rc.Address))
	taken, err := r.mailFile(file, rep, rc)
	if err == nil && !taken { // else an earlier run was killed before it could note that
		r.noteReported(ctx, rc)
		err = r.sendmail(ctx, file, rc.Address)
	}
	if errors.Is(err, errSendmail) {
		return fmt.Errorf("reporting: %w", err)
	}
	r.attempt(rc)
	switch {
	case err == nil:
		rc.State, rc.Error = ruapost.RecipientSent, ""
		slog.Info("report sent", "kind", rep.Kind, "domain", rep.Domain, "report_id", rep.ID, "recipient", rc.Address)
	case isFinal(err), errors.Is(err, errNoContent):
		r.giveUp(rep, rc, err)
	default:
		r.putOff(rep, rc, err)
	}
	// The note must be made even if the run is to stop: the mail is out.
	if err := r.Store.PutReport(context.WithoutCancel(ctx), rep); err != nil {
		return err
	}
	if rc.State == ruapost.RecipientWaiting {
		return nil
	}
	for _, f := range []string{file, file + takenSuffix} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("reporting: outbox: %w", err)
		}
	}
	return nil
}

// attempt notes that rc was tried.
func (r *Reporter) attempt(rc *ruapost.Recipient) {
	rc.Attempts++
	rc.Last = r.now()
	if rc.First.IsZero() {
		rc.First = rc.Last
	}
}

func (r *Reporter) giveUp(rep *ruapost.Report, rc *ruapost.Recipient, err error) {
	rc.State, rc.Error = ruapost.RecipientFailed, ruapost.Clean(err.Error(), 500)
	slog.Warn("report not sent", "kind", rep.Kind, "domain", rep.Domain, "report_id", rep.ID, "recipient", rc.Address, "err", err)
}

// putOff makes a recipient wait that was tried, longer each time, until RetryFor is
// over.
func (r *Reporter) putOff(rep *ruapost.Report, rc *ruapost.Recipient, err error) {
	end := rc.First.Add(RetryFor)
	if !r.now().Before(end) {
		r.giveUp(rep, rc, fmt.Errorf("given up after %s: %w", RetryFor, err))
		return
	}
	rc.Error = ruapost.Clean(err.Error(), 500)
	rc.NotBefore = r.now().Add(firstRetry << min(rc.Attempts-1, 6))
	if rc.NotBefore.After(end) {
		rc.NotBefore = end
	}
	slog.Warn("report has to wait", "kind", rep.Kind, "domain", rep.Domain, "report_id", rep.ID,
		"recipient", rc.Address, "until", rc.NotBefore, "err", err)
}

// errNoContent means that somebody has emptied the outbox.
var errNoContent = errors.New("the report is not in the outbox any more")

// mailFile makes sure that file holds the mail to rc, which is composed the first time
// and the same from then on. If sendmail has taken it already it need not be there.
func (r *Reporter) mailFile(file string, rep *ruapost.Report, rc *ruapost.Recipient) (taken bool, err error) {
	for _, suffix := range []string{takenSuffix, ""} {
		if there, err := exists(file + suffix); there || err != nil {
			return suffix == takenSuffix, err
		}
	}
	switch there, err := exists(r.contentFile(rep)); {
	case err != nil:
		return false, err
	case !there:
		return false, errNoContent
	}
	fresh := file + ".new"
	if err = r.composeMail(fresh, rep, rc); err == nil {
		err = errors.Join(os.Rename(fresh, file), syncDir(filepath.Dir(file)))
	}
	if err != nil {
		return false, fmt.Errorf("reporting: compose mail of report %s to %s: %w", rep.ID, rc.Address, err)
	}
	return false, nil
}
