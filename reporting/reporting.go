// Package reporting turns the rows of windows that are over into reports and hands
// them to sendmail, or to https destinations.
//
// A report goes through states that the store keeps, so that a run that ends at any
// point is continued by the next one with the same identifier and the same bytes:
//
//	sealed    its groups were taken out of what is being recorded
//	composed  its content is frozen in OUTBOX/ID/; the rows are deleted
//	done      every recipient was served or given up
//
// and each recipient from waiting to sent, failed, refused or suppressed, and from sent
// perhaps to bounced. A run first prepares all reports, which is composing them and asking
// their recipients whether they accept them; then it offers them, spread over the time it
// has. The mail to a recipient is composed once and kept in the report's folder until
// sendmail has taken it.
//
// sendmail runs under a shell that holds the outbox's lock, and leaves a mark when sendmail
// has taken the mail. So a run that is killed while sendmail works leaves behind what became
// of the mail, and the next run does not begin before that is certain. A mail is repeated,
// byte by byte, only if the machine dies, or that shell is killed too, in the instant
// between sendmail's success and that. A report that was POSTed is repeated if the run is
// killed before it could note the answer.
package reporting

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
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
	// RetryFor is how long after the first attempt a report is offered to a
	// recipient that cannot be reached (RFC 8460 5.5).
	RetryFor = 24 * time.Hour
	// MaxGap is the longest time between two mails of a run that spreads them.
	MaxGap = 5 * time.Minute

	firstRetry = 15 * time.Minute
	// preparing is the number of reports that are prepared at a time: most of the time
	// is spent waiting for the DNS of others and for the disk. Of reading as many rows are
	// held at a time, a thousand of each at most. offering is the number of those that are
	// handed to sendmail at a time, and of those that are POSTed.
	preparing = 64
	reading   = 16
	offering  = 8
	// someCounts is how much is counted before it is written.
	someCounts = 100
	// lookupTimeout is for looking up whom a domain's record names, and then for
	// asking all of these.
	lookupTimeout = 30 * time.Second
	// lookupsTimeout is for those of all reports that a run makes.
	lookupsTimeout  = 15 * time.Minute
	sendmailTimeout = 2 * time.Minute
)

// Store is what this package asks of the store. Functions given to it may be called
// more than once.
type Store interface {
	Groups(ctx context.Context, before time.Time) ([]ruapost.Group, error)
	Seal(ctx context.Context, r *ruapost.Report) error
	Drop(ctx context.Context, groups []ruapost.Group) error
	Rows(ctx context.Context, id ruapost.GroupID) iter.Seq2[ruapost.Row, error]
	DropRows(ctx context.Context, groups []ruapost.Group) error
	// PutReports stores the reports in one transaction, UpdateReport changes a stored
	// one in one; that and Report wrap ruapost.ErrNoReport.
	PutReports(ctx context.Context, reports ...*ruapost.Report) error
	UpdateReport(ctx context.Context, id string, change func(*ruapost.Report) error) error
	Report(ctx context.Context, id string) (*ruapost.Report, error)
	// Reports returns all reports, oldest first.
	Reports(ctx context.Context) iter.Seq2[ruapost.Report, error]
	ForgetReport(ctx context.Context, id string) error
	// RecordReported says that reports are about to be mailed to these organizational
	// domains.
	RecordReported(ctx context.Context, domains []string, at time.Time) error

	// Suppressions returns those with these patterns, or all if there is none.
	Suppressions(ctx context.Context, patterns ...string) ([]ruapost.Suppression, error)
	// UpdateSuppression changes what is stored for a pattern, at first nothing but that
	// pattern; it is deleted if change returns false.
	UpdateSuppression(ctx context.Context, pattern string, change func(*ruapost.Suppression) (keep bool)) error
	// Secret returns what the tokens of envelope senders are made with.
	Secret(ctx context.Context) ([]byte, error)
	// Count adds to counters, which Counts returns.
	Count(ctx context.Context, counts map[string]uint64) error
	Counts(ctx context.Context) (map[string]uint64, error)

	// Tallies returns the daily totals from a day on, in the order of day, kind and domain:
	// of one domain, or all if domain is empty. Seal and Drop add what the groups count.
	Tallies(ctx context.Context, from time.Time, domain string) iter.Seq2[ruapost.Tally, error]
	// DropTallies deletes those of a domain.
	DropTallies(ctx context.Context, domain string) error
}

// Names is a set of domains and mail addresses. An address is in it if its domain is.
type Names interface{ Has(name string) bool }

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
	// Format is the form of DMARC reports but for those about Legacy, or to addresses
	// there, which get that of RFC 7489. Nil is nobody.
	Format dmarc.Format
	Legacy Names
	// Sendmail is the command that takes a mail; -f, the envelope sender, -- and
	// the recipient are added.
	Sendmail []string
	// HTTPS takes what goes to https destinations; nil means that nothing does.
	HTTPS *Poster
	// Outbox is the folder that holds what is not sent yet.
	Outbox string
	// Signer signs the mails, unless it is nil.
	Signer *compose.Signer

	// Keep is how long after its window something that could not be reported yet is
	// kept, how long it is tried to compose or send a report, and how long a report
	// that is done is kept.
	Keep time.Duration
	// Spread is the time over which a run spreads what it sends. 0: all at once.
	Spread time.Duration
	// MaxRecipients is the number of destinations of a report that are served.
	MaxRecipients int
	// MaxReportSize is the compressed size above which a DMARC report is split, and
	// above which a TLS report has no further details.
	MaxReportSize int64
	// TLSFailuresOnly says that TLS reports without a failure are not sent.
	TLSFailuresOnly bool
	// What is past these bounds waits for the next run. 0 is no bound.
	MaxPerRun, MaxPerDay, MaxPerDestination int
	// ExcludedDomains get no report about themselves, nor does any domain that is not
	// in OnlyDomains unless that is nil. Nothing is sent to ExcludedRecipients. Nil is
	// nobody.
	ExcludedDomains, OnlyDomains, ExcludedRecipients Names
	// BounceMaildir is where bounces are filed. Unless it is empty, the envelope sender
	// is From with BounceDelimiter and a token behind its local part.
	BounceMaildir, BounceDelimiter string

	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Progress, unless nil, is called now and then with how much of a run is done, never
	// by two at a time. Mails and posts go out side by side, so two things may be told of.
	Progress func(what string, done, all int)

	locked   *os.File  // the outbox's lock, during Send
	unsigned sync.Once // that mails are not signed was said
}

// ErrBusy is returned if another one works on the same outbox.
var ErrBusy = errors.New("another run is under way")

func (r *Reporter) now() time.Time {
	if r.Now != nil {
		return r.Now().UTC()
	}
	return time.Now().UTC()
}

// Selection is what a run is about.
type Selection struct {
	// Open says that windows that are not over yet are reported, too.
	Open bool
	// Domain, unless it is empty, is the only one that is reported about.
	Domain string
}

// Send makes the reports of windows that are over, and offers those that are due to
// their recipients. A fault with one report is logged, leaves it for the next run and
// does not keep the others from being sent. The error joins all faults, and that of
// ctx if it has ended: nothing is begun after that, but what sendmail is at is noted. It
// wraps ErrBusy, and nothing was done, if another run is under way.
func (r *Reporter) Send(ctx context.Context, what Selection) error {
	if err := r.lock(); err != nil {
		return err
	}
	defer r.locked.Close()
	if err := r.findSendmail(); err != nil {
		return err
	}
	run, err := r.newRun(ctx, what)
	if err != nil {
		return err
	}
	var cancel context.CancelFunc
	run.lookups, cancel = context.WithTimeout(ctx, lookupsTimeout)
	defer cancel()
	open, over, err := run.scan(ctx)
	if err != nil {
		return err
	}
	err = errors.Join(run.earlier(ctx, open, over), run.fresh(ctx))
	if ctx.Err() == nil {
		err = errors.Join(err, run.offerAll(ctx))
	}
	return errors.Join(err, run.writeCounts(ctx, 1), ctx.Err())
}

// each does something with all items, some of them at a time, until ctx ends or
// sendmail cannot be run. It logs the faults and joins them.
func each[T any](ctx context.Context, limit int, items iter.Seq[T], do func(context.Context, T) error) error {
	run, stop := context.WithCancel(ctx)
	defer stop()
	var mu sync.Mutex
	var faults []error
	var group errgroup.Group
	group.SetLimit(limit)
	for item := range items {
		if run.Err() != nil {
			break
		}
		group.Go(func() error {
			err := safely(func() error { return do(run, item) })
			if err == nil || run.Err() != nil && errors.Is(err, run.Err()) { // the stop is no fault
				return nil
			}
			if _, ok := errors.AsType[loggedError](err); !ok {
				slog.Error("fault with a report", "err", err)
				err = loggedError{err}
			}
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
	return errors.Join(faults...)
}

// safely makes an error of a panic: one report must not take the others with it, in this
// run and all that follow.
func safely(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("reporting: panic: %v\n%s", p, debug.Stack())
		}
	}()
	return do()
}

// loggedError is a fault that was logged.
type loggedError struct{ error }

func (e loggedError) Unwrap() error { return e.error }

func (r *Reporter) findSendmail() error {
	if _, err := exec.LookPath(r.Sendmail[0]); err != nil {
		return fmt.Errorf("reporting: %w: %w", errSendmail, err)
	}
	return nil
}

// lock makes this the only run on the outbox, until r.locked is closed here and in
// every shell that it was handed to.
func (r *Reporter) lock() error {
	if err := mkdir(r.Outbox); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("reporting: outbox: %w", err)
	}
	path := filepath.Join(r.Outbox, ".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, fileMode)
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
