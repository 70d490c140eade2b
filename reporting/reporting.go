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
	"time"

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
	// after its window, and how long a report that is done is kept for show and
	// list.
	Keep = 7 * 24 * time.Hour
	// RetryFor is how long after it was sealed a report is offered to a recipient
	// that cannot be reached (RFC 8460 5.5).
	RetryFor = 24 * time.Hour
	// MaxRecipients is the number of destinations of one report.
	MaxRecipients = 5

	firstRetry      = 15 * time.Minute
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
}

// Resolver is what this package asks of DNS.
type Resolver interface{ dmarc.Resolver }

// Reporter makes and sends reports. One at a time may work on an outbox.
type Reporter struct {
	Store    Store
	Resolver Resolver

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

	locked *os.File // the outbox's lock, during Send
}

// ErrBusy is returned by Send if another one works on the same outbox.
var ErrBusy = errors.New("another run is under way")

// errSendmail means that sendmail could not be started at all: the fault is here,
// not with a recipient.
var errSendmail = errors.New("cannot run sendmail")

func (r *Reporter) now() time.Time {
	if r.Now != nil {
		return r.Now().UTC()
	}
	return time.Now().UTC()
}

// Send makes a report of every window that is over, or with everything of every
// window, and serves the recipients that are due. A fault with one report leaves it
// for the next run and does not keep the others from being sent. The error joins all
// faults; it is ErrBusy if there was nothing but another run.
func (r *Reporter) Send(ctx context.Context, everything bool) error {
	if err := r.lock(); err != nil {
		return err
	}
	defer r.locked.Close()
	if _, err := exec.LookPath(r.Sendmail[0]); err != nil {
		return fmt.Errorf("reporting: %w: %w", errSendmail, err)
	}
	earlier, err := r.Store.Reports(ctx)
	if err != nil {
		return err
	}
	var faults []error
	for i := range earlier {
		if err := r.resume(ctx, &earlier[i]); err != nil {
			faults = append(faults, err)
			if stops(ctx, err) {
				return errors.Join(faults...)
			}
		}
	}
	due, err := r.due(ctx, everything)
	if err != nil {
		return errors.Join(append(faults, err)...)
	}
	for _, d := range due {
		if err := r.sendNew(ctx, d, earlier); err != nil {
			faults = append(faults, err)
			if stops(ctx, err) {
				break
			}
		}
	}
	return errors.Join(faults...)
}

// stops says whether err would meet every other report too.
func stops(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, errSendmail)
}

// lock makes this the only run on the outbox, until r.locked is closed here and in
// every sendmail that it was handed to.
func (r *Reporter) lock() error {
	if err := os.Mkdir(r.Outbox, 0o770); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("reporting: outbox: %w", err)
	}
	path := filepath.Join(r.Outbox, ".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o660)
	if err != nil {
		return fmt.Errorf("reporting: outbox: %w", err)
	}
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

// required says whether the groups hold anything that may cause a report.
func (d *dueReport) required() bool {
	return d.kind == ruapost.KindTLS || d.groups[0].Required > 0
}

// resume takes a report of an earlier run as far as it goes.
func (r *Reporter) resume(ctx context.Context, rep *ruapost.Report) error {
	if rep.State == ruapost.ReportDone {
		if r.now().Sub(rep.Finished) < Keep {
			return nil
		}
		if err := os.RemoveAll(r.dir(rep)); err != nil {
			return fmt.Errorf("reporting: outbox: %w", err)
		}
		return r.Store.ForgetReport(ctx, rep.ID)
	}
	return r.advance(ctx, rep)
}

// sendNew makes and sends a report that is due. earlier are the reports that there
// were before this run.
func (r *Reporter) sendNew(ctx context.Context, d dueReport, earlier []ruapost.Report) error {
	log := slog.With("kind", d.kind, "domain", d.domain, "day", d.window.Start.Format(time.DateOnly))
	if !d.required() {
		return r.Store.Drop(ctx, d.groups)
	}
	if d.kind == ruapost.KindDMARC && d.groups[0].Listed == 0 {
		log.Warn("report dropped: none of its rows fits into one", "messages", d.groups[0].Total)
		return r.Store.Drop(ctx, d.groups)
	}
	recipients, err := r.recipients(ctx, d.kind, d.domain)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && r.now().Sub(d.window.End) < Keep:
		log.Warn("cannot look up who wants the report, trying again in the next run", "err", err)
		return nil
	case err != nil:
		log.Error("report given up: its recipients could not be looked up", "for", Keep, "err", err)
		return r.Store.Drop(ctx, d.groups)
	case len(recipients) == 0:
		log.Info("nobody wants the report any more, its rows are dropped")
		return r.Store.Drop(ctx, d.groups)
	}
	rep := &ruapost.Report{
		ID:         newID(),
		Kind:       d.kind,
		Domain:     d.domain,
		Window:     r.reportWindow(d, earlier),
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

// reportWindow is the interval that a report made now covers. A report that is made
// before its window is over ends now, and begins where the last such one ended, so
// that reports do not overlap (RFC 9990 3.1.1.4).
func (r *Reporter) reportWindow(d dueReport, earlier []ruapost.Report) ruapost.Window {
	w := d.window
	if now := r.now().Truncate(time.Second).Add(time.Second); now.Before(w.End) {
		w.End = now
	}
	for _, e := range earlier {
		if e.Kind == d.kind && e.Domain == d.domain &&
			!e.Window.Start.Before(d.window.Start) && e.Window.End.Before(w.End) && e.Window.End.After(w.Start) {
			w.Start = e.Window.End
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
		if err := r.freeze(ctx, rep); err != nil {
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
	rep.State, rep.Finished = ruapost.ReportDone, r.now()
	return r.Store.PutReport(ctx, rep)
}
