// Package reporting turns the rows of windows that are over into reports and hands
// them to sendmail.
//
// A report goes through states that the store keeps, so that a run that ends at any
// point is continued by the next one with the same identifier and the same bytes:
//
//	sealed    its groups were taken out of what is being recorded
//	composed  its content is frozen in OUTBOX/ID/; the rows are deleted
//	done      every recipient was served or given up
//
// and each recipient through: waiting, sent, failed. The mail to a recipient is
// composed once, when the recipient is known to accept the report, and kept in the
// report's folder until sendmail has taken it.
//
// sendmail runs under a shell that renames the mail when sendmail has taken it, and
// both hold the outbox's lock. So a run that is killed while sendmail works leaves
// behind what became of the mail, and the next run does not begin before that is
// certain. A mail is repeated, byte by byte, only if the machine dies, or that shell
// is killed too, in the instant between sendmail's success and the rename.
package reporting

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ruapost"
	"ruapost/compose"
	"ruapost/dmarc"
)

// Times and bounds.
const (
	// Grace is how long after its end a window is left alone: a daemon may still
	// have rows of it in its queue.
	Grace = 5 * time.Minute
	// Keep is how long what could not be made into a report because of DNS is kept
	// after its window, how long it is tried to compose a report that was sealed,
	// and how long a report that is done is kept for show and list.
	Keep = 7 * 24 * time.Hour
	// RetryFor is how long after the first attempt a report is offered to a
	// recipient that cannot be reached (RFC 8460 5.5).
	RetryFor = 24 * time.Hour
	// MaxRecipients is the number of destinations of one report.
	MaxRecipients = 5

	firstRetry = 15 * time.Minute
	// workers is the number of reports in work at a time: most of the time is spent
	// waiting for the DNS of others.
	workers = 8
	// lookupTimeout is for looking up whom a domain's record names, and then for
	// asking all of these.
	lookupTimeout   = 30 * time.Second
	sendmailTimeout = 2 * time.Minute
)

// Store is what this package asks of the store.
type Store interface {
	Groups(ctx context.Context, before time.Time) ([]ruapost.Group, error)
	Seal(ctx context.Context, r *ruapost.Report) error
	Drop(ctx context.Context, groups []ruapost.Group) error
	Rows(ctx context.Context, id ruapost.GroupID) iter.Seq2[ruapost.Row, error]
	DropRows(ctx context.Context, groups []ruapost.Group) error
	PutReport(ctx context.Context, r *ruapost.Report) error
	Reports(ctx context.Context) ([]ruapost.Report, error)
	ForgetReport(ctx context.Context, id string) error
	// RecordReported says that reports are about to be mailed to these organizational
	// domains.
	RecordReported(ctx context.Context, domains []string, at time.Time) error
}

// Reporter makes and sends reports. One at a time may work on an outbox.
type Reporter struct {
	Store    Store
	Resolver dmarc.Resolver
	// Suffixes is the public suffix list that organizational domains are found by, if
	// not nil.
	Suffixes dmarc.Suffixes

	// OrgName, Domain and From say who reports: a name, the submitter's domain and
	// the mail address that reports come from.
	OrgName string
	Domain  string
	From    string
	// Format is the form of DMARC reports.
	Format dmarc.Format
	// Sendmail is the command that takes a mail; -f, the envelope sender, -- and
	// the recipient are added.
	Sendmail []string
	// Outbox is the folder that holds what is not sent yet.
	Outbox string
	// Signer signs the mails, unless it is nil.
	Signer *compose.Signer
	// Now is the clock; nil means time.Now.
	Now func() time.Time

	locked   *os.File  // the outbox's lock, during Send
	unsigned sync.Once // that mails are not signed was said
}

// ErrBusy is returned by Send if another one works on the same outbox.
var ErrBusy = errors.New("another run is under way")

func (r *Reporter) now() time.Time {
	if r.Now != nil {
		return r.Now().UTC()
	}
	return time.Now().UTC()
}

// Send makes a report of every window that is over, or with everything of every
// window, and serves the recipients that are due. A fault with one report is logged,
// leaves it for the next run and does not keep the others from being sent. The error
// joins all faults, and that of ctx if it has ended. It wraps ErrBusy, and nothing was
// done, if another run is under way.
func (r *Reporter) Send(ctx context.Context, everything bool) error {
	if err := r.lock(); err != nil {
		return err
	}
	defer r.locked.Close()
	if err := r.findSendmail(); err != nil {
		return err
	}
	earlier, err := r.Store.Reports(ctx)
	if err != nil {
		return err
	}
	faults := each(ctx, earlier, r.resume)
	if ctx.Err() != nil || errors.Is(faults, errSendmail) {
		return faults
	}
	due, err := r.due(ctx, everything)
	if err != nil {
		return errors.Join(faults, err)
	}
	covered := coverage(earlier)
	return errors.Join(faults, each(ctx, due, func(ctx context.Context, d *dueReport) error {
		return r.sendNew(ctx, d, covered)
	}))
}

// each does something with all items, some of them at a time, until ctx ends or
// sendmail cannot be run. It logs the faults and joins them.
func each[T any](ctx context.Context, items []T, do func(context.Context, *T) error) error {
	run, stop := context.WithCancel(ctx)
	defer stop()
	var mu sync.Mutex
	var faults []error
	var group errgroup.Group
	group.SetLimit(workers)
	for i := range items {
		if run.Err() != nil {
			break
		}
		group.Go(func() error {
			err := do(run, &items[i])
			if err == nil || run.Err() != nil && errors.Is(err, run.Err()) { // the stop is no fault
				return nil
			}
			slog.Error("fault with a report", "err", err)
			mu.Lock()
			defer mu.Unlock()
			faults = append(faults, err)
			if errors.Is(err, errSendmail) { // it would meet every other report, too
				stop()
			}
			return nil
		})
	}
	_ = group.Wait() // the faults are in faults
	return errors.Join(append(faults, ctx.Err())...)
}

func (r *Reporter) findSendmail() error {
	if _, err := exec.LookPath(r.Sendmail[0]); err != nil {
		return fmt.Errorf("reporting: %w: %w", errSendmail, err)
	}
	return nil
}

// lock makes this the only run on the outbox, until r.locked is closed here and in
// every sendmail that it was handed to.
func (r *Reporter) lock() error {
	if err := mkdir(r.Outbox); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("reporting: outbox: %w", err)
	}
	path := filepath.Join(r.Outbox, ".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return fmt.Errorf("reporting: outbox: %w", err)
	}
	_ = f.Chmod(fileMode) // if it is another user's, that is not ours to mend
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("reporting: %w (%s is locked)", ErrBusy, path)
		}
		return fmt.Errorf("reporting: lock %s: %w", path, err)
	}
	r.locked = f
	return nil
}

// dueReport is a report that could be made: one group of evaluations, or all groups
// of sessions of a window and domain.
type dueReport struct {
	kind   ruapost.Kind
	domain string
	window ruapost.Window
	groups []ruapost.Group
}

// due returns what there is to report, in the order of kind, window and domain.
func (r *Reporter) due(ctx context.Context, everything bool) ([]dueReport, error) {
	before := r.now().Add(-Grace)
	if everything {
		before = r.now().Add(2 * 24 * time.Hour) // no window is longer than a day
	}
	groups, err := r.Store.Groups(ctx, before)
	if err != nil {
		return nil, err
	}
	var due []dueReport
	for _, g := range groups {
		if n := len(due); n > 0 && g.Kind == ruapost.KindTLS && due[n-1].kind == g.Kind &&
			due[n-1].domain == g.Domain && due[n-1].window == g.Window {
			due[n-1].groups = append(due[n-1].groups, g)
			continue
		}
		due = append(due, dueReport{kind: g.Kind, domain: g.Domain, window: g.Window, groups: []ruapost.Group{g}})
	}
	return due, nil
}

// reportable returns nil, or why no report can be made: a noReport.
func (d *dueReport) reportable() error {
	switch g := d.groups[0]; {
	case d.kind == ruapost.KindTLS:
		return nil
	case g.Required == 0:
		return noReport("optional only")
	case g.Listed == 0:
		return noReport("none of its rows fits into a report")
	}
	return nil
}

// resume takes a report of an earlier run as far as it goes.
func (r *Reporter) resume(ctx context.Context, rep *ruapost.Report) error {
	if r.bringBack(rep) {
		slog.Warn("the clock was ahead: times of the report are taken for now", "domain", rep.Domain, "report_id", rep.ID)
		if err := r.Store.PutReport(ctx, rep); err != nil {
			return err
		}
	}
	if rep.State != ruapost.ReportDone {
		return r.advance(ctx, rep)
	}
	if r.now().Sub(rep.Finished) < Keep {
		return nil
	}
	if err := os.RemoveAll(r.dir(rep)); err != nil {
		return fmt.Errorf("reporting: outbox: %w", err)
	}
	return r.Store.ForgetReport(ctx, rep.ID)
}

// bringBack makes now of times that lie so far ahead that the clock must have been
// wrong: nothing waits for them.
func (r *Reporter) bringBack(rep *ruapost.Report) (changed bool) {
	now := r.now()
	notAfter := func(t *time.Time, latest time.Time) {
		if t.After(latest) {
			*t, changed = now, true
		}
	}
	notAfter(&rep.Sealed, now)
	notAfter(&rep.Finished, now)
	for i := range rep.Recipients {
		notAfter(&rep.Recipients[i].First, now)
		notAfter(&rep.Recipients[i].NotBefore, now.Add(RetryFor))
	}
	return changed
}

// sendNew makes and sends a report that is due. covered is what reports of earlier
// runs cover.
func (r *Reporter) sendNew(ctx context.Context, d *dueReport, covered map[subject][]ruapost.Window) error {
	log := slog.With("kind", d.kind, "domain", d.domain, "day", d.window.Start.Format(time.DateOnly))
	recipients, err := r.wanted(ctx, d)
	why, none := errors.AsType[noReport](err)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case none:
		log.Info("no report is made, its rows are dropped", "why", why)
		return r.Store.Drop(ctx, d.groups)
	case err != nil && r.now().Sub(d.window.End) < Keep:
		log.Warn("cannot look up who wants the report, trying again in the next run", "err", err)
		return nil
	case err != nil:
		log.Error("report given up: its recipients could not be looked up", "for", Keep, "err", err)
		return r.Store.Drop(ctx, d.groups)
	}
	rep := &ruapost.Report{
		ID:         newID(),
		Kind:       d.kind,
		Domain:     d.domain,
		Window:     r.reportWindow(d, covered),
		Sealed:     r.now(),
		State:      ruapost.ReportSealed,
		Groups:     d.groups,
		Recipients: recipients,
	}
	if err := r.Store.Seal(ctx, rep); err != nil {
		return err
	}
	if len(rep.Groups) == 0 {
		return nil
	}
	return r.advance(ctx, rep)
}

// wanted returns who wants a report that can be made. The error is a noReport or
// temporary.
func (r *Reporter) wanted(ctx context.Context, d *dueReport) ([]ruapost.Recipient, error) {
	if err := d.reportable(); err != nil {
		return nil, err
	}
	return r.recipients(ctx, d.kind, d.domain)
}

// subject is what a report is about.
type subject struct {
	kind   ruapost.Kind
	domain string
}

// coverage returns the windows of the reports by what they are about.
func coverage(reports []ruapost.Report) map[subject][]ruapost.Window {
	covered := make(map[subject][]ruapost.Window)
	for _, rep := range reports {
		s := subject{rep.Kind, rep.Domain}
		covered[s] = append(covered[s], rep.Window)
	}
	return covered
}

// reportWindow is the interval that a report made now covers. A report that is made
// before its window is over ends now, and begins where the last such one ended, so
// that reports do not overlap (RFC 9990 3.1.1.4).
func (r *Reporter) reportWindow(d *dueReport, covered map[subject][]ruapost.Window) ruapost.Window {
	w := d.window
	if now := r.now().Truncate(time.Second).Add(time.Second); now.Before(w.End) {
		w.End = now
	}
	for _, e := range covered[subject{d.kind, d.domain}] {
		if !e.Start.Before(d.window.Start) && e.End.Before(w.End) && e.End.After(w.Start) {
			w.Start = e.End
		}
	}
	return w
}

// newID returns a report identifier: letters and digits only, so that the same
// string can stand in the file name (RFC 9990 3.5.1).
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// advance takes a report from its state as far as it goes now.
func (r *Reporter) advance(ctx context.Context, rep *ruapost.Report) error {
	if rep.State == ruapost.ReportSealed {
		err := r.freeze(ctx, rep)
		if err != nil && ctx.Err() == nil && r.now().Sub(rep.Sealed) >= Keep {
			return r.abandon(ctx, rep, err)
		}
		if err != nil {
			return err
		}
		rep.State = ruapost.ReportComposed
		if err := r.Store.PutReport(ctx, rep); err != nil {
			return err
		}
	}
	if err := r.Store.DropRows(ctx, rep.Groups); err != nil {
		return err
	}
	if err := r.deliver(ctx, rep); err != nil {
		return err
	}
	for _, rc := range rep.Recipients {
		if rc.State == ruapost.RecipientWaiting {
			return nil
		}
	}
	return r.finish(ctx, rep)
}

// abandon gives up a report that cannot be composed, with its rows. The error it
// returns says so.
func (r *Reporter) abandon(ctx context.Context, rep *ruapost.Report, cause error) error {
	cause = fmt.Errorf("given up after %s: %w", Keep, cause)
	for i := range rep.Recipients {
		r.giveUp(rep, &rep.Recipients[i], cause)
	}
	if err := r.Store.DropRows(ctx, rep.Groups); err != nil {
		return err
	}
	return errors.Join(cause, r.finish(ctx, rep))
}

// finish notes that nothing more is to be done for a report.
func (r *Reporter) finish(ctx context.Context, rep *ruapost.Report) error {
	rep.State, rep.Finished = ruapost.ReportDone, r.now()
	return r.Store.PutReport(ctx, rep)
}
