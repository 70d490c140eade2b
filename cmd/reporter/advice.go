package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"ruapost/config"
	"ruapost/daemon"
	"ruapost/reporting"
)

// advised returns the error of a command with what to do about it, if that is known. At a
// terminal it prints it as a line for people, and returns one that is not logged.
func advised(cfg *config.Config, args []string, err error) error {
	if err == nil || err == daemon.ErrFound || daemon.IsStop(err) || errors.Is(err, daemon.ErrUsage) {
		return err
	}
	file, ok := errors.AsType[*fs.PathError](err)
	switch {
	case errors.Is(err, reporting.ErrBusy):
		err = fmt.Errorf("%w: the timer's run is sending, which may take %s; \"systemctl stop ruapost-reporter\" ends it "+
			"between two mails and loses nothing, then repeat this", err, max(cfg.Reporter.Spread, 0))
	case ok && (strings.HasPrefix(file.Path, cfg.Store.Path) || strings.HasPrefix(file.Path, cfg.Reporter.Outbox)):
		err = fileAdvice(file, args)
	}
	if !isTerminal(os.Stderr) {
		return err
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", program, err)
	return daemon.ErrFound
}

// fileAdvice returns an error about the store or the outbox with what to do about it.
func fileAdvice(err *fs.PathError, args []string) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; run it as root, or: sudo -u ruapost %s %s", err, program, strings.Join(args, " "))
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; \"systemd-tmpfiles --create\" makes the folder, store.path and reporter.outbox say which", err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w; mount it to be written to, the kernel's log may say why it is not", err)
	}
	return err
}
