package reporting

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"ruapost"
)

// Exit statuses of sendmail (sysexits.h): "try again later", and that the address or its
// host does not exist.
const (
	exNoUser   = 67
	exNoHost   = 68
	exTempfail = 75
)

// Statuses that are the shell's own: for a command that cannot be run or found, and
// from shSignal on for one that was killed.
const (
	shCannotRun = 126
	shNotFound  = 127
	shSignal    = 128
)

// takenSuffix is behind the name of the mark of a mail that sendmail has taken.
const takenSuffix = ".taken"

// handOver is the shell script that runs sendmail: its $0 is the file with the mail,
// the rest is the command. Its status is sendmail's, which does not get the lock: what it
// leaves in the background must not hold it. The mark is made by the shell itself, since a
// program more would take as long as all the rest; by "true", since a shell ends when it
// cannot open a file for ":".
const handOver = `"$@" 3<&- || exit $?; true >"$0` + takenSuffix + `" || true`

// errSendmail means that sendmail could not be started at all: the fault is here,
// not with a recipient.
var errSendmail = errors.New("cannot run sendmail")

// isFinal says whether err is a refusal of sendmail's that will not change. It is not
// if sendmail was killed, as when memory ran out.
func isFinal(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	return ok && exit.Exited() && exit.ExitCode() != exTempfail && exit.ExitCode() < shSignal
}

// isUnknownUser says whether err is sendmail's word that there is no such address.
func isUnknownUser(err error) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	return ok && (exit.ExitCode() == exNoUser || exit.ExitCode() == exNoHost)
}

// sendmail hands the mail in file to sendmail. The error wraps errSendmail if that
// could not be run, or an *exec.ExitError if it did not take the mail.
func (r *Reporter) sendmail(ctx context.Context, file, sender, recipient string) error {
	// A file, so that sendmail never gets half a mail from a program that was killed.
	mail, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	defer mail.Close()
	// What sendmail says goes into a file, too, in memory: a pipe would break when we are
	// killed.
	fd, err := unix.MemfdCreate("sendmail", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("%w: %w", errSendmail, err)
	}
	out := os.NewFile(uintptr(fd), "output of sendmail")
	defer out.Close()
	// A run that is stopped lets sendmail finish.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendmailTimeout)
	defer cancel()
	cmd := r.sendmailCommand(ctx, file, sender, recipient)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = mail, out, out
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: %w", errSendmail, err)
	}
	if err = cmd.Wait(); err == nil {
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

// sendmailCommand returns the shell with sendmail, which holds the outbox's lock.
func (r *Reporter) sendmailCommand(ctx context.Context, file, sender, recipient string) *exec.Cmd {
	args := append([]string{"-c", handOver, file}, r.Sendmail...)
	cmd := exec.CommandContext(ctx, "/bin/sh", append(args, "-f", sender, "--", recipient)...)
	cmd.ExtraFiles = []*os.File{r.locked}
	// A process group of its own: what is sent to ours from a terminal is not meant
	// for sendmail, and it can be ended as a whole.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}
