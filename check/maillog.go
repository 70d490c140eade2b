package check

import (
	"context"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"ruapost/outbound"
)

// maillogMend is what to do if Postfix does not tell how TLS went.
const maillogMend = `Have its log read. In ruapost.toml, section [tlspolicy]:
    maillog = ["journal"]
It may be a file such as "/var/log/mail.log", too; see docs/outbound.md.`

// readsLog says whether the daemon reads Postfix's log.
func (c *checker) readsLog() bool { return len(c.cfg.TLSPolicy.Maillog) > 0 }

// checkMaillog looks whether there is a log, and, where systemd tells which groups the
// daemon's unit adds to its user's, whether the daemon may read it.
func (c *checker) checkMaillog() {
	const mend = "If Postfix logs elsewhere, change tlspolicy.maillog. Whether the daemon may read it is in its log:\n    journalctl -u ruapost-tlspolicy"
	for _, source := range c.cfg.TLSPolicy.Maillog {
		readable := readsJournal
		var err error
		if source == outbound.Journal {
			_, err = exec.LookPath("journalctl")
		} else {
			var info os.FileInfo
			if info, err = os.Stat(source); err == nil {
				readable = func(a *account) bool { return a.can(info.Sys().(*syscall.Stat_t), mayRead) }
			}
		}
		if err != nil {
			c.fault(mend, "tlspolicy.maillog: %s: %v", source, err)
			continue
		}
		if daemon := daemonAccount(); daemon != nil && !readable(daemon) {
			c.fault(then("Give its unit the groups that may, with this in the file that opens:", "systemctl edit ruapost-tlspolicy", "[Service]",
				"SupplementaryGroups=systemd-journal adm")+"\n"+then("and then:", "systemctl restart ruapost-tlspolicy"),
				"tlspolicy.maillog: the user %s may not read %s: there will be no TLS reports", daemonUser, source)
			continue
		}
		c.ok("tlspolicy.maillog: %s is there", source)
	}
}

// daemonAccount returns the user of the TLS policy daemon with the groups that its unit adds,
// nil if they cannot be told.
func daemonAccount() *account {
	ctx, cancel := context.WithTimeout(context.Background(), postconfLimit)
	defer cancel()
	added, err := exec.CommandContext(ctx, "systemctl", "show", "-P", "SupplementaryGroups", "ruapost-tlspolicy.service").Output()
	if err != nil {
		return nil
	}
	a, err := lookupAccount(daemonUser)
	if err != nil {
		return nil
	}
	for _, name := range strings.Fields(string(added)) {
		if g, err := user.LookupGroup(name); err == nil {
			gid, _ := strconv.ParseUint(g.Gid, 10, 32)
			a.gids = append(a.gids, uint32(gid))
		}
	}
	return a
}

// readsJournal says whether an account may read what others log (systemd-journald(8)).
func readsJournal(a *account) bool {
	return a.uid == 0 || slices.ContainsFunc([]string{"systemd-journal", "adm", "wheel"}, func(name string) bool {
		g, err := user.LookupGroup(name)
		return err == nil && slices.ContainsFunc(a.gids, func(gid uint32) bool { return strconv.Itoa(int(gid)) == g.Gid })
	})
}
