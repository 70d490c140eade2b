package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ruapost"
	"ruapost/config"
	"ruapost/outbound"
	"ruapost/postconf"
	"ruapost/socketmap"
)

// queueLength is net.unix.max_dgram_qlen as systemd sets it.
const queueLength = 512

// What to do when nobody answers.
const (
	startMend = "See why:\n    systemctl status ruapost-policy.socket ruapost-tlsrpt.socket ruapost-tlspolicy\n    journalctl -u ruapost-tlspolicy"
	rootMend  = "Run this as root."

	startMilterMend = "See why:\n    systemctl status ruapost-milter.socket ruapost-milter\n    journalctl -u ruapost-milter"
)

// checkPolicySockets asks the daemon as Postfix does.
func (c *checker) checkPolicySockets(ctx context.Context) {
	if c.postfix != nil && c.relayed() {
		return
	}
	for _, l := range c.cfg.TLSPolicy.Listen {
		what := "policy socket " + l.Address
		if l.Network == "unix" && !c.checkSocketFile(what, l.Address, "ruapost-policy.socket", c.postfix.clientJailed()) {
			continue
		}
		took, err := ask(ctx, l)
		if c.connected(what, startMend, err) {
			c.answered = true
			c.ok("%s: the daemon answers within %v", what, took.Round(time.Millisecond/10))
		}
	}
}

// ask asks for a policy that there cannot be, and returns how long the answer took.
func ask(ctx context.Context, l config.Listen) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, queryLimit)
	defer cancel()
	began := time.Now()
	client, err := socketmap.Dial(ctx, l.Network, l.Address)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	defer context.AfterFunc(ctx, func() { client.Close() })()
	reply, err := client.Query(outbound.TableQuery, "localhost")
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case err == nil && reply.Status() != socketmap.StatusNotFound:
		err = fmt.Errorf("the answer for localhost is %q; expected NOTFOUND", ruapost.Clean(reply.String(), 100))
	}
	return time.Since(began), err
}

// checkEventSocket looks whether somebody listens for Postfix's TLSRPT events.
func (c *checker) checkEventSocket() {
	path := c.cfg.TLSPolicy.TLSRPT.Address
	what := "TLSRPT socket " + path
	if !c.expectEvents() || !c.checkSocketFile(what, path, "ruapost-tlsrpt.socket", c.postfix.clientJailed()) {
		return
	}
	conn, err := net.Dial("unixgram", path)
	if c.connected(what, startMend, err) {
		conn.Close()
		c.ok("%s: the daemon, or systemd for it, listens", what)
	}
}

// expectEvents says whether Postfix is to tell the daemon how TLS went.
func (c *checker) expectEvents() bool {
	return c.cfg.TLSPolicy.TLSRPT.Network != "" && (c.postfix == nil || !c.postfix.version.Before(3, 10, 0) && !c.relayed())
}

// checkMilterSockets looks whether somebody listens for smtpd(8).
func (c *checker) checkMilterSockets(ctx context.Context) {
	for _, l := range c.cfg.Milter.Listen {
		what := "milter socket " + l.Address
		if l.Network == "unix" && !c.checkSocketFile(what, l.Address, "ruapost-milter.socket", c.postfix.serverJailed()) {
			continue
		}
		conn, err := new(net.Dialer).DialContext(ctx, l.Network, l.Address)
		if c.connected(what, startMilterMend, err) {
			conn.Close()
			c.ok("%s: the milter, or systemd for it, listens", what)
		}
	}
}

// connected says whether a connection has come about, and tells if not, and how to start
// what should listen.
func (c *checker) connected(what, start string, err error) bool {
	switch {
	case err == nil:
		return true
	case errors.Is(err, syscall.EACCES):
		c.warn(rootMend, "%s: %s may not connect to it, whether the daemon answers cannot be told", what, me())
	case errors.Is(err, syscall.EPROTOTYPE):
		c.fault("Policy queries take a stream socket, TLSRPT events a datagram socket: tlspolicy.listen and tlspolicy.tlsrpt, or the systemd socket units, are mixed up.",
			"%s: is a socket of the wrong type", what)
	case errors.Is(err, syscall.ECONNREFUSED):
		c.fault(start, "%s: nobody listens", what)
	case errors.Is(err, context.DeadlineExceeded):
		c.fault(start, "%s: no answer in time; Postfix waits 100 s and then defers the mail", what)
	default:
		c.fault(start, "%s: %v", what, err)
	}
	return false
}

// checkSocketFile says whether there is a socket at path that can be tried, and tells
// if Postfix, from its chroot if it is in one, may not use it.
func (c *checker) checkSocketFile(what, path, unit string, chroot bool) bool {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		c.warn(rootMend, "%s: %s cannot see it", what, me())
		return false
	case errors.Is(err, fs.ErrNotExist):
		c.fault("Start what makes it:\n    systemctl enable --now "+unit, "%s: there is none", what)
		return false
	case err != nil:
		c.fault("", "%s: %v", what, err)
		return false
	case info.Mode().Type() != fs.ModeSocket:
		c.fault(then("Remove it, and start what makes the socket:", "systemctl restart "+unit), "%s: is not a socket", what)
		return false
	}
	if c.postfix != nil && c.postfix.user != nil {
		c.checkAccess(what, path, unit, chroot)
	}
	return true
}

// checkAccess looks whether Postfix's user can pass all folders on the way to a socket
// and write to it, as connect(2) demands.
func (c *checker) checkAccess(what, path, unit string, chroot bool) {
	p := c.postfix
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		c.warn(rootMend, "%s: whether Postfix may use it cannot be told: %v", what, err)
		return
	}
	from, ok := c.entrance(path, target, chroot)
	if !ok {
		c.fault("Make a folder of the link.", "%s: a symbolic link leads to %s, outside the chroot of Postfix", what, target)
		return
	}
	for _, step := range way(from, target) {
		var st syscall.Stat_t
		if err := syscall.Stat(step, &st); err != nil {
			c.warn(rootMend, "%s: whether Postfix may use it cannot be told: %s: %v", what, step, err)
			return
		}
		may, verb := mayPass, "enter"
		if step == target {
			may, verb = mayWrite, "write to"
		}
		if !p.user.can(&st, may) {
			mend := p.user.mend(step, &st, may)
			if step == target {
				mend += "\nTo last, it takes SocketGroup=" + p.user.group + " and SocketMode=0660 in " + unit +
					", or a folder with Postfix's group and the setgid bit, as contrib/systemd/tmpfiles.d makes it."
			}
			c.fault(mend, "%s: user %s may not %s %s (%s)", what, p.user.name, verb, step, describe(&st))
			return
		}
	}
	c.ok("%s: user %s may write to it", what, p.user.name)
}

// entrance returns the folder from which Postfix sets out for a path that leads to
// target: the queue directory, where it is from its start, if the way is through that.
// ok is false if a link on the way leads out of the chroot that it is in.
func (c *checker) entrance(path, target string, chroot bool) (from string, ok bool) {
	p := c.postfix
	queue, err := filepath.EvalSymlinks(p.queue)
	if err != nil {
		return "/", true
	}
	if _, inside := postconf.Below(queue, target); inside {
		return queue, true
	}
	_, looksInside := postconf.Below(p.queue, path)
	return "/", !looksInside || !chroot
}

// way returns the folders from one to a file, and the file.
func way(from, file string) []string {
	steps := []string{file}
	for dir := file; dir != from && dir != "/"; {
		dir = filepath.Dir(dir)
		steps = append(steps, dir)
	}
	slices.Reverse(steps)
	return steps
}

// permission is one of the bits of each class of users in a file's mode.
type permission uint32

const (
	mayWrite permission = 2
	mayPass  permission = 1
)

// account is a user as smtp(8) runs as it, with all groups.
type account struct {
	name  string
	group string // the first one's name
	uid   uint32
	gids  []uint32
}

func lookupAccount(name string) (*account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	groups, err := u.GroupIds()
	if err != nil {
		return nil, err
	}
	a := &account{name: name, group: groupName(u.Gid)}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	a.uid = uint32(uid)
	for _, g := range append(groups, u.Gid) {
		gid, errGroup := strconv.ParseUint(g, 10, 32)
		err = errors.Join(err, errGroup)
		a.gids = append(a.gids, uint32(gid))
	}
	return a, err
}

// class returns by which letter of chmod(1) the user's permissions for a file go, and
// how far to the left they are in its mode.
func (a *account) class(st *syscall.Stat_t) (letter string, shift int) {
	switch {
	case a.uid == st.Uid:
		return "u", 6
	case slices.Contains(a.gids, st.Gid):
		return "g", 3
	}
	return "o", 0
}

func (a *account) can(st *syscall.Stat_t, p permission) bool {
	_, shift := a.class(st)
	return a.uid == 0 || permission(st.Mode>>shift)&p != 0
}

// mend returns how to give the user a permission that it does not have.
func (a *account) mend(file string, st *syscall.Stat_t, p permission) string {
	letter, _ := a.class(st)
	bit := map[permission]string{mayWrite: "w", mayPass: "x"}[p]
	switch {
	case letter != "o":
		return then("", "chmod "+letter+"+"+bit+" "+postconf.Quote(file))
	case st.Gid != 0 && permission(st.Mode>>3)&p != 0: // whoever is in root's group can do more than that
		return then("", "usermod -a -G "+postconf.Quote(groupName(strconv.Itoa(int(st.Gid))))+" "+postconf.Quote(a.name), "postfix reload")
	case p == mayPass:
		return then("", "chmod o+x "+postconf.Quote(file))
	}
	return then("", "chgrp "+postconf.Quote(a.group)+" "+postconf.Quote(file), "chmod g+w "+postconf.Quote(file))
}

// describe returns owner, group and mode of a file.
func describe(st *syscall.Stat_t) string {
	owner := strconv.Itoa(int(st.Uid))
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	}
	return fmt.Sprintf("%s:%s, mode %04o", owner, groupName(strconv.Itoa(int(st.Gid))), st.Mode&0o7777)
}

func groupName(gid string) string {
	if g, err := user.LookupGroupId(gid); err == nil {
		return g.Name
	}
	return gid
}

// me returns the user that this runs as.
func me() string {
	if u, err := user.Current(); err == nil {
		return "user " + u.Username
	}
	return "this user"
}

// checkQueueLength looks how many TLSRPT events fit into the socket. Postfix drops
// what does not.
func (c *checker) checkQueueLength() {
	if !c.expectEvents() {
		return
	}
	const name = "net.unix.max_dgram_qlen"
	file := c.host.QueueLength
	if file == "" {
		file = "/proc/sys/net/unix/max_dgram_qlen"
	}
	text, err := postconf.ReadFile(file)
	n, errNumber := strconv.Atoi(strings.TrimSpace(string(text)))
	switch err := errors.Join(err, errNumber); {
	case err != nil:
		c.warn("", "%s cannot be read: %v", name, err)
	case n < queueLength:
		c.warn(then("It counts when the socket is made:",
			fmt.Sprintf("echo %s = %d > /etc/sysctl.d/60-ruapost.conf", name, queueLength),
			"sysctl -p /etc/sysctl.d/60-ruapost.conf",
			"systemctl restart ruapost-tlsrpt.socket ruapost-tlspolicy"),
			"%s = %d: when much mail goes out at once, events for TLS reports are lost", name, n)
	default:
		c.ok("%s = %d", name, n)
	}
}
