package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// BecomeOwner has root go on as the user who owns the folder of a file, if that is not root:
// for a command at the terminal that works in that folder. Its owner could lead root
// elsewhere by symbolic links, and could not open what root has made there.
func BecomeOwner(file string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	dir := filepath.Dir(file)
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // and nothing can be made there
	} else if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	if owner.Uid == 0 {
		return nil
	}
	uid, gid, groups := int(owner.Uid), int(owner.Gid), []int{int(owner.Gid)}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		names, err := u.GroupIds()
		if err != nil {
			return err
		}
		for _, name := range append(names, u.Gid) {
			n, err := strconv.Atoi(name)
			if err != nil {
				return err
			}
			groups = append(groups, n)
		}
	}
	if err := errors.Join(syscall.Setgroups(groups), syscall.Setgid(gid), syscall.Setuid(uid)); err != nil {
		return fmt.Errorf("go on as user %d, who owns %s: %w; run this as that user", uid, dir, err)
	}
	return nil
}
