package check

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

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
	c.ok("the store's folder %s: %s may write to it", dir, me())
}
