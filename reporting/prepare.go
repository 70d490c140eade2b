package reporting

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"ruapost"
)

// preparation is a report on its way to being offered to its recipients, who have been
// looked up and asked.
type preparation struct {
	rep *ruapost.Report
	// due is what it is made of, if the store does not have it yet. Else asked tells whether
	// its recipients were asked.
	due   *dueReport
	asked bool
	// without are the recipients who are not to get it now.
	without []ruapost.Recipient
	// parts are what it is now that its content is written: itself, or more.
	parts []*ruapost.Report
}

// prepareAll prepares the reports that find finds, many at a time: what they need of the
// disk they need together. It calls find once, which may run for long: the DNS of others
// is slow.
func (run *run) prepareAll(ctx context.Context, find func(ctx context.Context, found chan<- *preparation) error) error {
	found := make(chan *preparation, preparing)
	var errFind error
	go func() {
		defer close(found)
		errFind = find(ctx, found)
	}()
	var faults []error
	for first := range found {
		batch := append(make([]*preparation, 0, preparing), first)
		for more := true; more && len(batch) < preparing; {
			var p *preparation
			select {
			case p, more = <-found:
				if more {
					batch = append(batch, p)
				}
			default:
				more = false
			}
		}
		faults = append(faults, run.prepare(ctx, batch))
	}
	return errors.Join(append(faults, errFind)...)
}

// prepare takes reports so far that they only need to be offered.
func (run *run) prepare(ctx context.Context, batch []*preparation) error {
	var faults []error
	// step does something with all that are left, and leaves out those with a fault.
	step := func(limit int, do func(context.Context, *preparation) error) {
		var mu sync.Mutex
		var left []*preparation
		faults = append(faults, each(ctx, limit, slices.Values(batch), func(ctx context.Context, p *preparation) error {
			err := do(ctx, p)
			if err == nil && p.rep != nil {
				mu.Lock()
				left = append(left, p)
				mu.Unlock()
			}
			return err
		}))
		batch = left
	}
	disk, err := os.Open(run.Outbox)
	if err != nil {
		return fmt.Errorf("reporting: outbox: %w", err)
	}
	defer disk.Close()
	step(preparing, run.seal)
	step(reading, run.write)
	if err := run.syncContent(disk, batch); err != nil {
		return errors.Join(append(faults, err)...)
	}
	step(preparing, run.note)
	var groups []ruapost.Group
	for _, p := range batch {
		groups = append(groups, p.rep.Groups...)
	}
	// Also if an earlier run should have done so: it may have ended just before.
	if err := run.Store.DropRows(ctx, groups); err != nil {
		return errors.Join(append(faults, err)...)
	}
	for _, p := range batch {
		for _, part := range p.parts {
			run.addOffers(part)
		}
	}
	return errors.Join(append(faults, run.writeCounts(ctx, someCounts))...)
}

// seal makes sure that the store has the report. If its groups are gone there is none.
func (run *run) seal(ctx context.Context, p *preparation) error {
	if p.due == nil {
		return nil
	}
	p.rep.Sealed = run.now()
	p.rep.Window = run.reportWindow(p.due, run.covered)
	err := run.Store.Seal(ctx, p.rep)
	if len(p.rep.Groups) == 0 {
		p.rep = nil
	}
	return err
}

// write writes the content of a report that is not composed yet. One that nobody is to
// get, or that has failed for too long, is given up.
func (run *run) write(ctx context.Context, p *preparation) error {
	if p.rep.State != ruapost.ReportSealed {
		p.parts = []*ruapost.Report{p.rep}
		return nil
	}
	if !isWaiting(p.rep.Recipients) {
		return run.giveUpRows(ctx, p)
	}
	var err error
	p.parts, err = run.writeParts(ctx, p.rep)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("reporting: compose report %s about %s: %w", p.rep.ID, p.rep.Domain, err)
	if ctx.Err() == nil && run.now().Sub(p.rep.Sealed) >= run.Keep {
		err = fmt.Errorf("given up after %s: %w", run.Keep, err)
		for i := range p.rep.Recipients {
			if rc := &p.rep.Recipients[i]; rc.State == ruapost.RecipientWaiting {
				run.giveUp(p.rep, rc, err)
			}
		}
		err = errors.Join(err, run.giveUpRows(ctx, p))
	}
	return err
}

// giveUpRows ends a report that is not composed and that nobody waits for.
func (run *run) giveUpRows(ctx context.Context, p *preparation) error {
	rep := p.rep
	p.rep = nil
	if err := errors.Join(run.Store.DropRows(ctx, rep.Groups), run.removeContent(rep)); err != nil {
		return err
	}
	run.settle(rep)
	if err := run.Store.PutReports(ctx, rep); err != nil {
		return err
	}
	for _, rc := range rep.Recipients {
		run.countOutcome(rep.Kind, &rc)
	}
	return nil
}

// note notes that a report is composed, or what its recipients have answered.
func (run *run) note(ctx context.Context, p *preparation) error {
	composed := p.rep.State == ruapost.ReportSealed
	var err error
	switch {
	case composed:
		for _, part := range p.parts {
			part.State = ruapost.ReportComposed
		}
		err = run.Store.PutReports(ctx, p.parts...)
	case p.asked:
		err = run.storeAnswers(ctx, p.rep)
	}
	if err != nil {
		return err
	}
	for _, rc := range p.without {
		run.countOutcome(p.rep.Kind, &rc)
	}
	if composed {
		run.countComposed(p)
	}
	return nil
}

// countComposed counts what a report is now that it is composed, and whom it does not go to.
func (run *run) countComposed(p *preparation) {
	if len(p.parts) > 1 {
		run.count("limit_hits_max_report_size")
	}
	for _, part := range p.parts {
		run.count("reports_" + string(part.Kind))
	}
	for _, rc := range p.rep.Recipients {
		if rc.State == ruapost.RecipientSuppressed {
			run.countOutcome(p.rep.Kind, &rc)
		}
	}
}

// storeAnswers stores what the recipients of a composed report have answered. Mails to some
// of them may be out, and come back meanwhile.
func (run *run) storeAnswers(ctx context.Context, rep *ruapost.Report) error {
	return run.Store.UpdateReport(ctx, rep.ID, func(stored *ruapost.Report) error {
		for i := range rep.Recipients {
			for _, rc := range stored.Recipients {
				if rc.State == ruapost.RecipientBounced && rc.Address == rep.Recipients[i].Address {
					rep.Recipients[i] = rc
				}
			}
		}
		stored.Recipients = rep.Recipients
		run.settle(stored)
		return nil
	})
}

// isWaiting tells whether any of the recipients is still to get the report.
func isWaiting(recipients []ruapost.Recipient) bool {
	return slices.ContainsFunc(recipients, func(rc ruapost.Recipient) bool { return rc.State == ruapost.RecipientWaiting })
}

// settle notes that a report is done if nobody waits for it.
func (r *Reporter) settle(rep *ruapost.Report) {
	if rep.State != ruapost.ReportDone && !isWaiting(rep.Recipients) {
		rep.State, rep.Finished = ruapost.ReportDone, r.now()
	}
}
