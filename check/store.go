package check

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"ruapost/config"
	"ruapost/postconf"
)

// daemonUser is the user that the units run all programs as.
const daemonUser = "ruapost"

// checkStore looks whether the store can be written to, without opening it.
func (c *checker) checkStore() {
	path := c.cfg.Store.Path
	c.checkFolder("the store's folder", filepath.Dir(path), "nothing can be recorded", path, path+".lock")
}

// With less than this the file system is as good as full.
const (
	minFreeOctets = 16 << 20
	minFreeFiles  = 16
)

// checkFolder looks whether a folder, and those of the files in it that are there, can
// be written to. loss is what does not work otherwise.
func (c *checker) checkFolder(what, dir, loss string, files ...string) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrPermission):
		c.warn(rootMend, "%s %s cannot be looked at by %s", what, dir, me())
	case err != nil || !info.IsDir():
		c.fault("The user of the programs must be able to write there:\n    systemd-tmpfiles --create", "%s %s is not there: %s", what, dir, loss)
	case c.checkWritable(what, dir, append([]string{dir}, files...)):
		c.checkSpace(what, dir, loss)
	}
}

// checkWritable says whether the programs may write to a folder and files in it.
func (c *checker) checkWritable(what, dir string, files []string) bool {
	who, err := lookupAccount(daemonUser)
	others := err == nil && who.uid != uint32(os.Geteuid()) // the programs run as another user than this
	for _, file := range files {
		name, mode := file, uint32(unix.R_OK|unix.W_OK)
		if file == dir {
			name, mode = what+" "+dir, unix.W_OK|unix.X_OK
		}
		var st syscall.Stat_t
		err := unix.Access(file, mode)
		errStat := syscall.Stat(file, &st)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil && others && os.Geteuid() != 0: // which says nothing of the programs
			c.warn(rootMend, "%s cannot be looked at by %s", name, me())
			return false
		case err != nil:
			c.fault(ownerMend(dir, file), "%s: %s may not write to it: %v", name, me(), err)
			return false
		case others && errStat == nil && !who.can(&st, mayWrite):
			c.fault(ownerMend(dir, file), "%s (%s): user %s, as which the programs run, may not write to it", file, describe(&st), daemonUser)
			return false
		}
	}
	if others {
		c.ok("%s %s: users %s and %s may write to it", what, dir, daemonUser, strings.TrimPrefix(me(), "user "))
	} else {
		c.ok("%s %s: %s may write to it", what, dir, me())
	}
	return true
}

// ownerMend returns how to give a folder, or a file in it, to the programs: with all that is
// in it, if the folder is ruapost's own, as others are then mostly somebody else's too.
func ownerMend(dir, file string) string {
	own := filepath.Dir(config.Default().Store.Path)
	if _, below := postconf.Below(own, dir); below || dir == own {
		return then("", "chown -R "+daemonUser+": "+postconf.Quote(own), "chmod ug+rw "+postconf.Quote(file))
	}
	return then("", "chown "+daemonUser+": "+postconf.Quote(file), "chmod ug+rw "+postconf.Quote(file))
}

// checkSpace looks whether there is room for more. Only some file systems count files.
func (c *checker) checkSpace(what, dir, loss string) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil && full(&st) {
		c.fault(then("", "df -h "+postconf.Quote(dir), "df -i "+postconf.Quote(dir)), "%s %s is on a file system that is full: %s", what, dir, loss)
	}
}

func full(st *unix.Statfs_t) bool {
	return st.Blocks > 0 && st.Bavail*uint64(st.Bsize) < minFreeOctets || st.Files > 0 && st.Ffree < minFreeFiles
}
