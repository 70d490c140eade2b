package reporting

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ruapost"
)

// Resend has a report sent again to all its recipients but those that are suppressed,
// or to one of them, in the next run: with the same identifier, file name and content
// (RFC 9990 3.5.4). The error wraps ruapost.ErrNoReport, or says why it cannot be.
func (r *Reporter) Resend(ctx context.Context, id, address string) error {
	return r.alone(func() error {
		rep, err := r.Store.Report(ctx, id)
		if err != nil {
			return err
		}
		if rep.State == ruapost.ReportSealed {
			return fmt.Errorf("report %s is not composed yet", id)
		}
		if there, err := exists(r.dir(rep)); err != nil || !there {
			return errors.Join(err, errNoContent)
		}
		again := func(rc *ruapost.Recipient) bool { return rc.Accepted && (address == "" || rc.Address == address) }
		found := false
		for _, rc := range rep.Recipients {
			if !again(&rc) {
				continue
			}
			found = true
			// What is left of the last time would be taken for this one.
			if err := removeMail(r.mailFile(rep, &rc)); err != nil {
				return err
			}
		}
		if !found {
			return fmt.Errorf("report %s has no such recipient", id)
		}
		return r.Store.UpdateReport(ctx, id, func(rep *ruapost.Report) error {
			for i := range rep.Recipients {
				if rc := &rep.Recipients[i]; again(rc) {
					rc.State, rc.Attempts, rc.Error = ruapost.RecipientWaiting, 0, ""
					rc.First, rc.NotBefore = time.Time{}, time.Time{} // Last counts for the bounds of a day
				}
			}
			rep.State, rep.Sealed, rep.Finished = ruapost.ReportComposed, r.now(), time.Time{}
			return nil
		})
	})
}

// Forget deletes all that is recorded and reported about a domain, and returns how many
// messages and sessions, and how many reports, that was.
func (r *Reporter) Forget(ctx context.Context, domain string) (recorded int64, reports int, err error) {
	err = r.alone(func() error {
		due, err := r.due(ctx, r.now().AddDate(100, 0, 0), domain) // whatever the clock said
		if err != nil {
			return err
		}
		for _, d := range due {
			if err := r.Store.Drop(ctx, d.groups); err != nil {
				return err
			}
			recorded += total(d.groups)
		}
		var ids []string
		for rep, err := range r.Store.Reports(ctx) {
			if err != nil {
				return err
			}
			if rep.Domain == domain {
				ids = append(ids, rep.ID)
			}
		}
		for _, id := range ids {
			if err := r.forgetReport(ctx, id); err != nil {
				return err
			}
		}
		reports = len(ids)
		return r.Store.DropTallies(ctx, domain)
	})
	return recorded, reports, err
}

// forgetReport deletes a report and what is left of its rows and files.
func (r *Reporter) forgetReport(ctx context.Context, id string) error {
	rep, err := r.Store.Report(ctx, id)
	if err != nil {
		return err
	}
	if err := r.Store.DropRows(ctx, rep.Groups); err != nil {
		return err
	}
	if err := r.removeContent(rep); err != nil {
		return err
	}
	return r.Store.ForgetReport(ctx, id)
}

// Suppress has nothing sent to what matches the pattern, see ruapost.Suppression, until a
// time; the zero time is for good.
func (r *Reporter) Suppress(ctx context.Context, pattern string, until time.Time, reason string) error {
	pattern = patternOf(pattern)
	return r.Store.UpdateSuppression(ctx, pattern, func(s *ruapost.Suppression) bool {
		*s = ruapost.Suppression{Pattern: pattern, Since: r.now(), Until: until, Reason: ruapost.Clean(reason, 300)}
		return true
	})
}

// Unsuppress takes that back, or what bounces have led to. It tells whether there was
// anything.
func (r *Reporter) Unsuppress(ctx context.Context, pattern string) (was bool, err error) {
	err = r.Store.UpdateSuppression(ctx, patternOf(pattern), func(s *ruapost.Suppression) bool {
		was = !s.Since.IsZero()
		return false
	})
	return was, err
}

// alone does something while no run is under way.
func (r *Reporter) alone(do func() error) error {
	if err := r.lock(); err != nil {
		return err
	}
	defer r.locked.Close()
	return do()
}
