package setup

import (
	"fmt"
	"slices"
	"strings"

	"ruapost"
	"ruapost/check"
	"ruapost/config"
	"ruapost/postconf"
)

// maxText is how many octets of a text from outside are shown.
const maxText = 1000

// planner makes a Plan.
type planner struct {
	*Plan
	p        *Postfix
	cfg      *config.Config // as it is
	toml     *tomlFile
	replace  []string
	replaced map[string]bool // those of replace that are there, and what has been told of them
	direct   bool            // mail goes out to the mail servers of its domains
	policies bool            // ruapost-tlspolicy is asked, or is to be
}

func (pl *planner) add(level check.Level, mend, format string, args ...any) {
	pl.Findings = append(pl.Findings, check.Finding{
		Level: level, What: ruapost.Clean(fmt.Sprintf(format, args...), maxText), Mend: mend,
	})
}

func (pl *planner) found(format string, args ...any) { pl.add(check.OK, "", format, args...) }

func (pl *planner) note(mend, format string, args ...any) {
	pl.add(check.Warning, mend, format, args...)
}

func (pl *planner) needs(mend, format string, args ...any) {
	pl.add(check.Fault, mend, format, args...)
}

// lines returns a text with commands or lines below it, as check.Finding.Mend has it.
func lines(text string, commands ...string) string {
	for _, c := range commands {
		text += "\n    " + ruapost.Clean(c, 10*maxText)
	}
	return strings.TrimPrefix(text, "\n")
}

// set proposes a parameter of main.cf, unless it is already so.
func (pl *planner) set(name, value, reason string) { pl.setTo(name, value, value, reason) }

// setTo is set for a value with names of other parameters in it, which stand for effect.
func (pl *planner) setTo(name, value, effect, reason string) {
	c := Change{File: MainCf, Name: name, New: value, Reason: reason, effect: effect}
	if old, ok := pl.p.Main[name]; ok {
		if sameText(old, value) {
			return
		}
		c.Old = &old
	}
	pl.Changes = append(pl.Changes, c)
}

// sameText says whether two values are the same to Postfix.
func sameText(a, b string) bool { return slices.Equal(strings.Fields(a), strings.Fields(b)) }

// key proposes a key of ruapost.toml that is not set there. The value is as it is written
// there.
func (pl *planner) key(name, value, reason string) {
	if !pl.toml.has(name) {
		pl.Changes = append(pl.Changes, Change{File: Toml, Name: name, New: value, Reason: reason})
	}
}

// describe tells what there is.
func (pl *planner) describe() {
	p := pl.p
	inside := func(chroot bool) string {
		if chroot {
			return "in a chroot"
		}
		return "in no chroot"
	}
	var servers []string
	for _, s := range p.servers() {
		servers = append(servers, fmt.Sprintf("smtpd (%s) %s", s, inside(s.Chroot)))
	}
	if servers == nil {
		servers = []string{"no smtpd at port 25"}
	}
	pl.found("Postfix %s in %s, queue directory %s: %s, smtp %s", p.VersionText, p.Directory, p.Queue, strings.Join(servers, ", "), inside(p.client().Chroot))
}

// asked says whether --replace names an entry, by its tool or as it stands.
func (pl *planner) asked(e entry, tools []tool) bool {
	for _, name := range pl.replace {
		i := slices.IndexFunc(tools, func(t tool) bool { return t.called(name) })
		if i >= 0 && tools[i].name == e.tool || name == e.text {
			pl.replaced[name] = true
			return true
		}
	}
	return false
}

// unknownReplacements tells of names that --replace has for nothing that is there.
func (pl *planner) unknownReplacements() {
	for _, name := range pl.replace {
		if !pl.replaced[name] {
			pl.needs("", "--replace %s: there is no such thing in smtpd_milters or smtp_tls_policy_maps that ruapost could take the place of", name)
		}
	}
}

// entries splits a parameter as it stands in main.cf, and as it is in force.
func (pl *planner) entries(name string, read func(string) entry) (raw, effect []entry) {
	for _, text := range postconf.Items(pl.p.Main[name]) {
		raw = append(raw, read(text))
	}
	for _, text := range postconf.Items(pl.p.Settings[name]) {
		effect = append(effect, read(text))
	}
	return raw, effect
}

// join makes a list of entries.
func join(entries []entry) string {
	texts := make([]string, len(entries))
	for i, e := range entries {
		texts[i] = e.text
	}
	return strings.Join(texts, ", ")
}

// endpoint returns how services of Postfix, with and without chroot or without alone, find
// one of the sockets; ok is false if all are outside the chroot.
func (p *Postfix) endpoint(listen []config.Listen, chroot bool) (network, address string, ok bool) {
	for _, l := range listen {
		if l.Network == "tcp" {
			return "inet", l.Address, true
		}
		if name, ok := postconf.Spelling(p.Queue, l.Address, chroot); ok {
			return "unix", name, true
		}
	}
	return "", "", false
}

// unreachable tells how to have a socket where Postfix finds it. A key that takes one socket
// alone has no others.
func (pl *planner) unreachable(key string, others []config.Listen, file, unit string) {
	socket := pl.p.Queue + "/run/ruapost/" + file
	value, listen := quoteToml("unix:"+socket), "ListenDatagram="
	if others != nil {
		var all []string
		for _, l := range others {
			all = append(all, quoteToml(l.String()))
		}
		value, listen = "["+strings.Join(append(all, value), ", ")+"]", "ListenStream="
	}
	section, name, _ := strings.Cut(key, ".")
	pl.needs(lines("Have one there, and run this again. In ruapost.toml, section ["+section+"]:", name+" = "+value)+"\n"+
		lines("Make the folder as contrib/systemd/tmpfiles.d does it. If systemd makes the sockets, run", "systemctl edit "+unit)+"\n"+
		lines("and write", "[Socket]", listen+socket),
		"%s: Postfix is in a chroot, %s, and none of the sockets is in there", key, pl.p.Queue)
}
