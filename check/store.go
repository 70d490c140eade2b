package check

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// daemonUser is the user that the daemon's unit runs it as.
const daemonUser = "ruapost"

// checkStore looks whether the store can be written to, without opening it.
func (c *checker) checkStore() {
	path := c.cfg.Store.Path
	dir := filepath.Dir(path)
	const mend = "The user of the daemon must be able to write there:\n    systemd-tmpfiles --create"
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		c.fault(mend, "the store's folder %s is not there: nothing can be recorded", dir)
		return
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		c.fault(mend, "the store's folder %s: %s may not write to it: %v", dir, me(), err)
		return
	}
	if err := unix.Access(path, unix.R_OK|unix.W_OK); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.fault(mend, "the store %s: %s may not write to it: %v", path, me(), err)
		return
	}
	if who, err := lookupAccount(daemonUser); err == nil && who.uid != uint32(os.Geteuid()) {
		for _, file := range []string{dir, path, path + ".lock"} {
			var st syscall.Stat_t
			if err := syscall.Stat(file, &st); err == nil && !who.can(&st, mayWrite) {
				c.fault(then("", "chown "+daemonUser+":"+daemonUser+" "+quote(file), "chmod ug+rw "+quote(file)),
					"%s (%s): user %s, as which the daemon runs, may not write to it", file, describe(&st), daemonUser)
				return
			}
		}
		c.ok("the store's folder %s: users %s and %s may write to it", dir, daemonUser, strings.TrimPrefix(me(), "user "))
		return
	}
	c.ok("the store's folder %s: %s may write to it", dir, me())
}
