// Package mend knows what an administrator does about errors that come from the system
// rather than from ruapost.
package mend

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Disk returns an error about a file with what to do about it if the file's disk is to blame,
// else the error as it is.
func Disk(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w; make room on that disk, 'df -h' shows how full it is", err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w; mount it to be written to, the kernel's log may say why it is not", err)
	}
	return err
}

// State does the same for a file below /var/lib/ruapost, or the folder that is configured in
// its place.
func State(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; run it as root or with 'sudo -u ruapost'; 'systemd-tmpfiles --create' gives the folder to that user", err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; 'systemd-tmpfiles --create' makes the folder, store.path and reporter.outbox say which", err)
	}
	return Disk(err)
}
