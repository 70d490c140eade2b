package check

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"syscall"

	"ruapost/config"
	"ruapost/postconf"
)

// milterMend is how to have Postfix ask the milter.
const milterMend = "This says what to change:\n    ruapost-reporter setup"

// unjudged is what becomes of mail that comes in if Postfix asks in vain.
const unjudged = "mail that comes in is not judged, and waits without default_action=accept"

// server is a smtpd(8) of master.cf.
type server struct {
	name    string
	front   bool // takes mail from other hosts: at port 25, or behind postscreen(8)
	proxied bool // passes all on before there is a message that a milter could see
	asks    bool // its milters are asked, and ruapost-milter is one of them
	chroot  bool
}

// readServers reads what postconf says of master.cf.
func (c *checker) readServers(p *postfix, override, columns map[string]string) {
	for key, command := range columns {
		name, ok := strings.CutSuffix(key, "/command")
		if program, _, _ := strings.Cut(command, " "); !ok || program != "smtpd" {
			continue
		}
		setting := func(parameter string) string {
			if value, ok := override[name+"/"+parameter]; ok {
				return value
			}
			return p.settings[parameter]
		}
		s := server{
			name: name, front: takesMail(name), proxied: setting("smtpd_proxy_filter") != "",
			chroot: postconf.Chroot(columns[name+"/chroot"], p.settings["compatibility_level"]),
		}
		s.asks = !slices.Contains(postconf.Words(setting("receive_override_options")), "no_milters") &&
			slices.ContainsFunc(postconf.Items(setting("smtpd_milters")), func(item string) bool { return c.isMilter(p, item, s.chroot) })
		p.servers = append(p.servers, s)
	}
	slices.SortFunc(p.servers, func(a, b server) int { return strings.Compare(a.name, b.name) })
}

// takesMail says whether a service such as smtp/inet takes mail from other hosts.
func takesMail(name string) bool {
	port, kind := portOf(name)
	return kind == "pass" || kind == "inet" && (port == "smtp" || port == "25")
}

// takesSubmission says whether a service takes mail of this system's own users, which is
// not judged.
func takesSubmission(name string) bool {
	port, kind := portOf(name)
	return kind == "inet" && slices.Contains([]string{"submission", "submissions", "smtps", "465", "587"}, port)
}

// portOf returns the port and type of a service, such as 25 and inet of 192.0.2.1:25/inet.
func portOf(name string) (port, kind string) {
	slash := strings.LastIndexByte(name, '/')
	endpoint := name[:max(slash, 0)]
	return endpoint[strings.LastIndexByte(endpoint, ':')+1:], name[slash+1:]
}

// isMilter says whether an item of smtpd_milters, such as { unix:run/m.sock, protocol=6 },
// leads to ruapost-milter.
func (c *checker) isMilter(p *postfix, item string, chroot bool) bool {
	words := postconf.Words(strings.Trim(item, "{}"))
	if len(words) == 0 {
		return false
	}
	network, address, _ := strings.Cut(words[0], ":")
	if network == "unix" || network == "local" {
		network, address = "unix", p.reached(address, chroot)
	}
	return slices.ContainsFunc(c.cfg.Milter.Listen, func(l config.Listen) bool { return postconf.Reaches(network, address, l) })
}

// checkMilter looks whether mail that comes in is judged.
func (c *checker) checkMilter(ctx context.Context) {
	all := c.postfix.servers
	front := slices.ContainsFunc(all, func(s server) bool { return s.front })
	proxied := slices.ContainsFunc(all, func(s server) bool { return s.front && s.proxied })
	asked := false
	var silent []string
	for _, s := range all {
		switch {
		case s.asks && !s.proxied && (s.front || proxied && !takesSubmission(s.name)):
			asked = true
		case s.front && !s.proxied:
			silent = append(silent, s.name)
		}
	}
	switch {
	case asked:
		c.checkMilterAnswers(ctx)
		if len(silent) > 0 {
			c.warn(milterMend, "smtpd_milters of %s in master.cf does not name ruapost-milter: mail that comes in there is not judged", strings.Join(silent, ", "))
		}
	case !front:
		c.ok("Postfix takes no mail from other hosts: ruapost-milter is not needed")
	case c.asksPolicy() && c.milterAbsent(ctx):
		c.warn(milterMend, "smtpd_milters does not name ruapost-milter, which does not run: mail that comes in is not judged")
	default:
		c.fault(milterMend, "smtpd_milters does not name ruapost-milter as smtpd(8) reaches it: mail that comes in is not judged")
	}
}

// checkMilterAnswers asks the milter as Postfix does, which smtpd_milters names.
func (c *checker) checkMilterAnswers(ctx context.Context) {
	before := len(c.findings)
	c.checkMilterSockets(ctx)
	for i := range c.findings[before:] {
		if f := &c.findings[before+i]; f.Level == Fault {
			f.What += ": " + unjudged
		}
	}
	if slices.ContainsFunc(c.findings[before:], func(f Finding) bool { return f.Level != OK }) {
		return
	}
	for _, l := range c.cfg.Milter.Listen {
		if err := negotiate(ctx, l); err != nil {
			c.fault(startMilterMend, "milter socket %s: the milter does not answer: %v: %s", l.Address, err, unjudged)
			return
		}
	}
	c.ok("smtpd_milters has ruapost-milter, which answers")
}

// milterAbsent says whether nobody listens for smtpd(8).
func (c *checker) milterAbsent(ctx context.Context) bool {
	return !slices.ContainsFunc(c.cfg.Milter.Listen, func(l config.Listen) bool {
		conn, err := new(net.Dialer).DialContext(ctx, l.Network, l.Address)
		if err == nil {
			conn.Close()
		}
		return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED)
	})
}

// negotiate begins a session with a milter, as each one does, and ends it. systemd takes the
// connection also if the milter does not start.
func negotiate(ctx context.Context, l config.Listen) error {
	ctx, cancel := context.WithTimeout(ctx, queryLimit)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, l.Network, l.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	// Version 6, all actions and all of the protocol, as Postfix offers them.
	if _, err := conn.Write([]byte("\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff")); err != nil {
		return err
	}
	var head [5]byte
	_, err = io.ReadFull(conn, head[:])
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("nothing within %v", queryLimit)
	case err != nil:
		return err
	case head[4] != 'O' || binary.BigEndian.Uint32(head[:]) < 13:
		return errors.New("it is no milter")
	}
	conn.Write([]byte("\x00\x00\x00\x01Q")) // a milter that hangs up now has answered
	return nil
}

// asksPolicy says whether one of Postfix's tables leads to ruapost-tlspolicy.
func (c *checker) asksPolicy() bool {
	p := c.postfix
	return slices.ContainsFunc(postconf.Items(p.settings["smtp_tls_policy_maps"]), func(text string) bool {
		m, ok := postconf.ParseSocketmap(text)
		seen := m
		if m.Network == "unix" {
			seen.Address = p.reached(m.Address, p.chroot && !m.Proxied)
		}
		return ok && (c.listensAt(seen) || c.listensAt(m))
	})
}

// relayed says whether all mail goes out by a relay host, and ruapost-tlspolicy is not asked.
func (c *checker) relayed() bool { return c.postfix.settings["relayhost"] != "" && !c.asksPolicy() }
