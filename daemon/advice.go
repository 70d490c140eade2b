package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"ruapost/config"
	"ruapost/internal/mend"
)

// Advise returns an error that a program ends with together with what to do about it, if
// that is known.
func Advise(cfg *config.Config, err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all := slices.Clone(joined.Unwrap())
		if same := errors.Join(all...); same != nil && same.Error() == err.Error() { // nothing is told of but these
			for i := range all {
				all[i] = Advise(cfg, all[i])
			}
			return errors.Join(all...)
		}
	}
	if program, ok := errors.AsType[*exec.Error](err); ok && program.Name == cfg.Reporter.Sendmail[0] {
		return fmt.Errorf("%w; install Postfix, or set reporter.sendmail to the program that takes mail here", err)
	}
	file, ok := errors.AsType[*fs.PathError](err)
	if !ok {
		return mend.Disk(err)
	}
	switch {
	case strings.HasPrefix(file.Path, cfg.Store.Path), strings.HasPrefix(file.Path, cfg.Reporter.Outbox):
		return mend.State(err)
	case file.Path == cfg.DKIM.KeyFile && errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; chgrp ruapost %s; chmod 640 %s", err, file.Path, file.Path)
	case file.Path == cfg.DKIM.KeyFile && errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; ruapost-reporter dkim-keygen %s makes a key", err, file.Path)
	case file.Path == cfg.Milter.SuffixList:
		return fmt.Errorf(`%w; install the package publicsuffix, or set milter.public_suffix_list = "" for the built-in list`, err)
	case below(file.Path, cfg.Reporter.BounceMaildir):
		return folderAdvice(err, filepath.Dir(cfg.Reporter.BounceMaildir), "reporter.bounce_maildir")
	case cfg.Reporter.Textfile != "" && below(file.Path, filepath.Dir(cfg.Reporter.Textfile)):
		return folderAdvice(err, filepath.Dir(cfg.Reporter.Textfile), "reporter.textfile")
	}
	return mend.Disk(err)
}

// below tells whether a path is that of a folder, or of what is in it; folder may be empty.
func below(path, folder string) bool {
	return folder != "" && (path == folder || strings.HasPrefix(path, folder+"/"))
}

// folderAdvice is about a folder that the administrator has to make.
func folderAdvice(err error, folder, key string) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w; the user ruapost must be able to write to %s, or set another %s", err, folder, key)
	}
	return mend.Disk(err)
}
