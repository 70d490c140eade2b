package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"ruapost/config"
)

// What an administrator meets first says what to do about it.
func TestAdvise(t *testing.T) {
	cfg := config.Default()
	cfg.DKIM.KeyFile = "/etc/ruapost/dkim.pem"
	cfg.Milter.SuffixList = "/usr/share/list.dat"
	cfg.Reporter.BounceMaildir = "/srv/bounces"
	cfg.Reporter.Textfile = "/srv/prom/ruapost.prom"
	at := func(path string, err error) error {
		return fmt.Errorf("store: %w", &fs.PathError{Op: "open", Path: path, Err: err})
	}
	for _, tt := range []struct {
		err  error
		want string // behind the error; none if there is nothing to say
	}{
		{at(cfg.Store.Path+".lock", syscall.EACCES), "sudo -u ruapost"},
		{at(cfg.Store.Path, syscall.ENOENT), "systemd-tmpfiles --create"},
		{at(cfg.Reporter.Outbox+"/.lock", syscall.ENOENT), "systemd-tmpfiles --create"},
		{at(cfg.Store.Path, syscall.EROFS), "mount it"},
		{at("/elsewhere", syscall.ENOSPC), "make room"},
		{fmt.Errorf("write: %w", syscall.EDQUOT), "make room"},
		{at(cfg.DKIM.KeyFile, syscall.EACCES), "chgrp ruapost /etc/ruapost/dkim.pem; chmod 640"},
		{at(cfg.DKIM.KeyFile, syscall.ENOENT), "ruapost-reporter dkim-keygen /etc/ruapost/dkim.pem"},
		{at(cfg.Milter.SuffixList, syscall.ENOENT), "publicsuffix"},
		{at("/srv/bounces/tmp/x", syscall.EACCES), "write to /srv, or set another reporter.bounce_maildir"},
		{at("/srv/prom/ruapost.prom.new", syscall.ENOENT), "write to /srv/prom, or set another reporter.textfile"},
		{&exec.Error{Name: cfg.Reporter.Sendmail[0], Err: exec.ErrNotFound}, "install Postfix"},
		{&exec.Error{Name: "/bin/other", Err: exec.ErrNotFound}, ""},
		{at("/srv/bouncesx", syscall.EACCES), ""},
		{errors.New("broken"), ""},
	} {
		got := Advise(cfg, tt.err)
		advice, ok := strings.CutPrefix(got.Error(), tt.err.Error())
		if !ok || !errors.Is(got, tt.err) || !strings.Contains(advice, tt.want) || tt.want == "" && advice != "" {
			t.Errorf("%v, want behind it: %s", got, tt.want)
		}
	}
	both := Advise(cfg, errors.Join(at(cfg.DKIM.KeyFile, syscall.ENOENT), at("/elsewhere", syscall.ENOSPC))).Error()
	if !strings.Contains(both, "makes a key\n") || !strings.Contains(both, "make room") {
		t.Errorf("of two errors: %s", both)
	}
}
