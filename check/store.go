package check

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"ruapost/postconf"
)

// daemonUser is the user that the units run all programs as.
const daemonUser = "ruapost"

// checkStore looks whether the store can be written to, without opening it.
func (c *checker) checkStore() {
	path := c.cfg.Store.Path
	c.checkFolder("the store's folder", filepath.Dir(path), "nothing can be recorded", path, path+".lock")
}

// checkFolder looks whether a folder, and those of the files in it that are there, can
// be written to. loss is what does not work otherwise.
func (c *checker) checkFolder(what, dir, loss string, files ...string) {
	const mend = "The user of the programs must be able to write there:\n    systemd-tmpfiles --create"
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		c.fault(mend, "%s %s is not there: %s", what, dir, loss)
		return
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		c.fault(mend, "%s %s: %s may not write to it: %v", what, dir, me(), err)
		return
	}
	for _, file := range files {
		if err := unix.Access(file, unix.R_OK|unix.W_OK); err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.fault(mend, "%s: %s may not write to it: %v", file, me(), err)
			return
		}
	}
	who, err := lookupAccount(daemonUser)
	if err != nil || who.uid == uint32(os.Geteuid()) {
		c.ok("%s %s: %s may write to it", what, dir, me())
		return
	}
	for _, file := range append([]string{dir}, files...) {
		var st syscall.Stat_t
		if err := syscall.Stat(file, &st); err == nil && !who.can(&st, mayWrite) {
			c.fault(then("", "chown "+daemonUser+":"+daemonUser+" "+postconf.Quote(file), "chmod ug+rw "+postconf.Quote(file)),
				"%s (%s): user %s, as which the programs run, may not write to it", file, describe(&st), daemonUser)
			return
		}
	}
	c.ok("%s %s: users %s and %s may write to it", what, dir, daemonUser, strings.TrimPrefix(me(), "user "))
}
