package reporting

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"ruapost"
)

// exTempfail is sendmail's exit status for "try again later" (sysexits.h).
const exTempfail = 75

// deliver serves the recipients that are due.
func (r *Reporter) deliver(ctx context.Context, rep *ruapost.Report) error {
	if err := r.askRecipients(ctx, rep); err != nil {
		return err
	}
	for i := range rep.Recipients {
		rc := &rep.Recipients[i]
		if rc.State != ruapost.RecipientWaiting || !rc.Accepted || rc.NotBefore.After(r.now()) {
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

// askRecipients asks those recipients that are due whether they accept the report,
// and notes the answers. One may put others in its place.
func (r *Reporter) askRecipients(ctx context.Context, rep *ruapost.Report) error {
	var list []ruapost.Recipient
	asked := false
	for _, rc := range rep.Recipients {
		instead := []ruapost.Recipient{rc}
		if rc.State == ruapost.RecipientWaiting && !rc.Accepted && !rc.NotBefore.After(r.now()) {
			asked = true
			var err error
			instead, err = r.accept(ctx, rep.Domain, rc)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				rc.Attempts++
				if errors.Is(err, errRefused) {
					r.giveUp(rep, &rc, err)
				} else {
					r.putOff(rep, &rc, err)
				}
				instead = []ruapost.Recipient{rc}
			}
		}
		for _, n := range instead {
			list = addRecipient(list, n)
		}
	}
	if !asked {
		return nil
	}
	rep.Recipients = list
	return r.Store.PutReport(ctx, rep)
}

// mail hands the report to sendmail for one recipient and notes what became of it.
func (r *Reporter) mail(ctx context.Context, rep *ruapost.Report, rc *ruapost.Recipient) error {
	file, err := r.mailFile(rep, rc)
	if err != nil {
		return err
	}
	rc.Attempts++
	rc.Last = r.now()
	if err := r.Store.PutReport(ctx, rep); err != nil {
		return err
	}
	err = r.sendmail(ctx, file, rc.Address)
	var exit *exec.ExitError
	switch {
	case err == nil:
		rc.State, rc.Error = ruapost.RecipientSent, ""
		slog.Info("report sent", "kind", rep.Kind, "domain", rep.Domain, "report_id", rep.ID, "recipient", rc.Address)
	case errors.Is(err, errSendmail):
		return fmt.Errorf("reporting: %w", err)
	case errors.As(err, &exit) && exit.Exited() && exit.ExitCode() != exTempfail:
		r.giveUp(rep, rc, err)
	default:
		r.putOff(rep, rc, err)
	}
	// The note must be made even if the run is to stop: the mail is out.
	if err := r.Store.PutReport(context.WithoutCancel(ctx), rep); err != nil {
		return err
	}
	if rc.State == ruapost.RecipientSent {
		if err := os.Remove(file); err != nil {
			return fmt.Errorf("reporting: outbox: %w", err)
		}
	}
	return nil
}

func (r *Reporter) giveUp(rep *ruapost.Report, rc *ruapost.Recipient, err error) {
	rc.State, rc.Error = ruapost.RecipientFailed, ruapost.Clean(err.Error(), 500)
	slog.Warn("report not sent", "kind", rep.Kind, "domain", rep.Domain, "report_id", rep.ID, "recipient", rc.Address, "err", err)
}

// putOff makes the recipient wait, longer each time, until RetryFor is over.
func (r *Reporter) putOff(rep *ruapost.Report, rc *ruapost.Recipient, err error) {
	end := rep.Sealed.Add(RetryFor)
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

// sendmail runs sendmail with the mail in file as its standard input: from a file,
// so that it never gets half a mail from a program that was killed.
func (r *Reporter) sendmail(ctx context.Context, file, recipient string) error {
	in, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("%w: %w", errSendmail, err)
	}
	defer in.Close()
	// A stopped run lets sendmail finish, or the mail might be out without a note.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendmailTimeout)
	defer cancel()
	args := append(slices.Clone(r.Sendmail[1:]), "-f", r.From, "--", recipient)
	cmd := exec.CommandContext(ctx, r.Sendmail[0], args...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &out
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w %s: %w", errSendmail, r.Sendmail[0], err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("sendmail: %w: %s", err, ruapost.Clean(out.String(), 300))
	}
	return nil
}

// mailFile returns the file with the mail to rc, which is composed the first time
// and the same from then on.
func (r *Reporter) mailFile(rep *ruapost.Report, rc *ruapost.Recipient) (string, error) {
	path := filepath.Join(r.dir(rep), mailName(rc.Address))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reporting: outbox: %w", err)
	}
	fresh := path + ".new"
	err := r.composeMail(fresh, rep, rc)
	if err == nil {
		err = errors.Join(os.Rename(fresh, path), syncDir(filepath.Dir(path)))
	}
	if err != nil {
		return "", fmt.Errorf("reporting: compose mail of report %s to %s: %w", rep.ID, rc.Address, err)
	}
	return path, nil
}
