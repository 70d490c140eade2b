package reporting

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

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
	file, taken, err := r.mailFile(rep, rc)
	if err != nil {
		return err
	}
	if !taken { // else an earlier run was killed before it could note that
		rc.Attempts++
		rc.Last = r.now()
		err = r.sendmail(ctx, file, rc.Address)
	}
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

// handOver is the shell script that runs sendmail: its $0 is the file with the mail,
// the rest is the command. The mail comes from a file, so that sendmail never gets
// half of one from a program that was killed. Its status is sendmail's.
const handOver = `"$@" <"$0" || exit $?; mv -f -- "$0" "$0` + takenSuffix + `" || :`

// takenSuffix is behind the name of a mail that sendmail has taken.
const takenSuffix = ".taken"

// The shell's own statuses for a command that cannot be run or found.
const (
	shCannotRun = 126
	shNotFound  = 127
)

// sendmail hands the mail in file to sendmail. The error is errSendmail if that
// could not be run, else it wraps an *exec.ExitError.
func (r *Reporter) sendmail(ctx context.Context, file, recipient string) error {
	// A file takes what sendmail says: a pipe would break when we are killed.
	out, err := os.CreateTemp(r.Outbox, ".sendmail-*")
	if err != nil {
		return fmt.Errorf("%w: %w", errSendmail, err)
	}
	defer out.Close()
	defer os.Remove(out.Name())
	// A run that is stopped lets sendmail finish.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendmailTimeout)
	defer cancel()
	args := append([]string{"-c", handOver, file}, r.Sendmail...)
	cmd := exec.CommandContext(ctx, "/bin/sh", append(args, "-f", r.From, "--", recipient)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{r.locked}
	// A process group of its own: what is sent to ours from a terminal is not meant
	// for sendmail, and it can be ended as a whole.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: %w", errSendmail, err)
	}
	err = cmd.Wait()
	if err == nil {
		return nil
	}
	said := make([]byte, 1000)
	n, _ := out.ReadAt(said, 0)
	err = fmt.Errorf("sendmail: %w: %s", err, ruapost.Clean(string(said[:n]), 300))
	if code := cmd.ProcessState.ExitCode(); code == shCannotRun || code == shNotFound {
		return fmt.Errorf("%w: %w", errSendmail, err)
	}
	return err
}

// mailFile returns the file with the mail to rc, which is composed the first time and
// the same from then on, and whether sendmail has taken it already.
func (r *Reporter) mailFile(rep *ruapost.Report, rc *ruapost.Recipient) (path string, taken bool, err error) {
	path = filepath.Join(r.dir(rep), mailName(rc.Address))
	for _, suffix := range []string{"", takenSuffix} {
		if _, err := os.Stat(path + suffix); err == nil {
			return path, suffix == takenSuffix, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", false, fmt.Errorf("reporting: outbox: %w", err)
		}
	}
	fresh := path + ".new"
	err = r.composeMail(fresh, rep, rc)
	if err == nil {
		err = errors.Join(os.Rename(fresh, path), syncDir(filepath.Dir(path)))
	}
	if err != nil {
		return "", false, fmt.Errorf("reporting: compose mail of report %s to %s: %w", rep.ID, rc.Address, err)
	}
	return path, false, nil
}
