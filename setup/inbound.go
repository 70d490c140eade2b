package setup

import (
	"slices"
	"strings"

	"ruapost/config"
	"ruapost/postconf"
)

// milterOptions are those that contrib/postfix explains.
const milterOptions = "default_action=accept, protocol=6, connect_timeout=10s, command_timeout=15s, content_timeout=60s"

// inbound proposes the milter.
func (pl *planner) inbound() {
	raw, effect := pl.entries("smtpd_milters", pl.milter)
	pl.tellMilters(effect)
	if !pl.milterWorks() {
		return
	}
	chroot := slices.ContainsFunc(pl.p.servers(), func(s *Service) bool { return s.Chroot })
	network, address, ok := pl.p.endpoint(pl.cfg.Milter.Listen, chroot)
	if !ok {
		pl.unreachable("milter.listen", pl.cfg.Milter.Listen, "milter.sock", "ruapost-milter.socket")
		return
	}
	own := entry{text: "{ " + network + ":" + address + ", " + milterOptions + " }", network: network, address: address, ours: true}
	if pl.overridden(own) {
		return
	}
	const reason = "DMARC for mail that comes in. If the milter is down, mail flows on, unjudged"
	rawList, effectList := pl.withMilter(raw, effect, own)
	pl.setTo("smtpd_milters", join(rawList), join(effectList), reason)
	pl.localMilters()
}

// milter reads an item of smtpd_milters.
func (pl *planner) milter(text string) entry {
	e := pl.p.milterEntry(text)
	for _, l := range pl.cfg.Milter.Listen {
		seen := e.address
		if e.network == "unix" {
			seen = postconf.Reached(pl.p.Queue, e.address, len(pl.p.servers()) > 0 && pl.p.servers()[0].Chroot)
		}
		e.ours = e.ours || postconf.Reaches(e.network, seen, l)
	}
	if e.ours {
		e.tool = ""
	}
	return e
}

// withMilter puts the milter into smtpd_milters, and takes out those that it replaces.
func (pl *planner) withMilter(raw, effect []entry, own entry) (newRaw, newEffect []entry) {
	for _, e := range effect {
		if pl.replaces(e) && !slices.ContainsFunc(raw, func(r entry) bool { return r.address == e.address }) {
			pl.needs("", "%s comes into smtpd_milters by the name of another parameter: take it out there", e.tool)
		}
	}
	insert := func(list []entry) []entry {
		list = slices.DeleteFunc(slices.Clone(list), pl.replaces)
		at := slices.IndexFunc(list, func(e entry) bool { return e.ours })
		if at >= 0 {
			if !acceptsAll(list[at]) {
				list[at] = own
			}
			return list
		}
		return slices.Insert(list, pl.place(list), own)
	}
	if slices.ContainsFunc(effect, func(e entry) bool { return e.ours }) && !slices.ContainsFunc(raw, func(e entry) bool { return e.ours }) {
		return slices.DeleteFunc(slices.Clone(raw), pl.replaces), slices.DeleteFunc(slices.Clone(effect), pl.replaces) // by another parameter's name
	}
	said := len(pl.Findings)
	newRaw = insert(raw)
	pl.Findings = pl.Findings[:said] // it is said of what is in force
	return newRaw, insert(effect)
}

// place returns where the milter belongs in a list that does not have it. Those that write
// Authentication-Results come before it: behind it they would remove what it has written,
// as they have the same name by default. Others come behind it, as they may change what
// signatures are about.
func (pl *planner) place(list []entry) (at int) {
	for i, e := range list {
		switch writes := slices.Contains(writers, e.tool); {
		case writes && (at == i || pl.cfg.Milter.Trust): // all whose results it takes, see docs/inbound.md
			at = i + 1
		case writes:
			pl.note("Give it an AuthservID of its own, or place it before the others.",
				"%s comes behind ruapost-milter, and removes the results that it has written if both have the same name", e.tool)
		}
	}
	return at
}

// acceptsAll says whether mail flows on if a milter fails, by what its entry says.
func acceptsAll(e entry) bool {
	return slices.Contains(postconf.Words(strings.ReplaceAll(strings.Trim(e.means, "{}"), " = ", "=")), "default_action=accept")
}

// replaces says whether the milter is to take the place of another one. It tells if it is
// to, but cannot, because that does more.
func (pl *planner) replaces(e entry) bool {
	if e.ours || !pl.asked(e, milterTools) {
		return false
	}
	switch {
	case e.tool == openDMARC || e.tool == "":
		return true
	case e.tool == openDKIM && strings.EqualFold(pl.p.OpenDKIM["mode"], "v"): // opendkim.conf(5)
		return true
	}
	why := "it does more than ruapost-milter"
	if e.tool == openDKIM {
		why = "it signs your mail (Mode in opendkim.conf is not v), which ruapost does not"
	}
	if told := "kept " + e.tool; !pl.replaced[told] {
		pl.replaced[told] = true
		pl.needs("", "--replace %s: %s. It stays", e.tool, why)
	}
	return false
}

// tellMilters tells of the milters that are there.
func (pl *planner) tellMilters(effect []entry) {
	for _, e := range effect {
		switch {
		case e.ours:
			pl.found("ruapost-milter is in smtpd_milters")
		case pl.replaces(e):
			pl.found("%s is in smtpd_milters: %s, to be replaced", name(e), e.text)
			if e.tool == openDMARC {
				pl.tellReplacedOpenDMARC()
			}
		default:
			pl.found("%s is in smtpd_milters: %s, and stays", name(e), e.text)
			pl.tellKeptMilter(e)
		}
	}
}

// name returns what an entry is called.
func name(e entry) string {
	switch {
	case e.tool != "":
		return e.tool
	case strings.HasPrefix(e.text, "$"):
		return "another parameter"
	}
	return "software that is not known here"
}

// tellKeptMilter tells what two that do the same may do.
func (pl *planner) tellKeptMilter(e entry) {
	const replace = "To have ruapost take its place:\n    ruapost-reporter setup --replace opendmarc"
	switch e.tool {
	case openDMARC:
		pl.note(replace, "opendmarc judges mail, too: what it rejects ruapost-milter does not see, and reports do not tell of it")
		if file := pl.p.OpenDMARC["historyfile"]; file != "" {
			pl.note("Take HistoryFile out of opendmarc.conf, and opendmarc-reports out of cron, or domains get two reports.",
				"opendmarc records for reports, too: HistoryFile is %s", file)
		}
	case rspamd:
		if pl.p.RspamdReports {
			pl.needs(lines("In /etc/rspamd/local.d/dmarc.conf, then systemctl reload rspamd:", "reporting { enabled = false; }")+
				"\nTake \"rspamadm dmarc_report\" out of cron or its timer, too.",
				"rspamd is configured to send DMARC reports, too: domains would get two")
		} else {
			pl.note("", "rspamd may send DMARC reports, too: it must not (reporting in its dmarc.conf, off by default), or domains get two")
		}
		pl.note("", "if rspamd writes Authentication-Results (its module milter_headers), it removes those of ruapost-milter")
	}
}

// tellReplacedOpenDMARC tells what has to be done besides.
func (pl *planner) tellReplacedOpenDMARC() {
	if strings.EqualFold(pl.p.OpenDMARC["rejectfailures"], "true") && pl.cfg.Milter.Enforce == config.Default().Milter.Enforce {
		pl.needs(lines("See docs/inbound.md. If you want that, too, in ruapost.toml, section [milter]:", `enforce = "reject"`),
			"opendmarc rejects what fails (RejectFailures), and ruapost-milter does not unless milter.enforce says so")
	}
	pl.note(lines("When Postfix has been reloaded:", "systemctl disable --now opendmarc")+"\nTake opendmarc-reports out of cron, too.",
		"opendmarc has nothing to do any more")
}

// milterWorks says whether smtpd shows milters what they need, and tells if not.
func (pl *planner) milterWorks() bool {
	works := len(pl.p.servers()) == 0
	for _, s := range pl.p.servers() {
		switch {
		case pl.p.setting(s, "smtpd_proxy_filter") != "":
			pl.needs("Put ruapost-milter into the smtpd that takes mail back from the filter, which must pass on the client by XCLIENT.",
				"%s has smtpd_proxy_filter = %s: milters do not see the messages there, so DMARC cannot be judged; smtpd_milters is left as it is", s, pl.p.setting(s, "smtpd_proxy_filter"))
		case slices.Contains(postconf.Words(pl.p.setting(s, "receive_override_options")), "no_milters"):
			pl.needs("Take no_milters out of receive_override_options there.",
				"%s has receive_override_options with no_milters: ruapost-milter would not be asked; smtpd_milters is left as it is", s)
		default:
			works = true
		}
	}
	if maps := pl.p.Settings["smtpd_milter_maps"]; maps != "" {
		pl.note("", "smtpd_milter_maps = %s: clients that are in there get other milters, or none", maps)
	}
	const login = "{auth_authen}"
	if macros := pl.p.Settings["milter_mail_macros"]; macros != "" && !strings.Contains(macros, login) {
		pl.needs(lines("", postconf.Command("postconf", pl.p.Dir, "-e", "milter_mail_macros = "+pl.p.Main["milter_mail_macros"]+" "+login)),
			"milter_mail_macros has no %s: ruapost-milter would judge the mail of users who log in", login)
	}
	return works
}

// overridden says whether master.cf has the milters of all services that take mail from
// other hosts. It tells how to add the milter there.
func (pl *planner) overridden(own entry) bool {
	const parameter = "ruapost_milter"
	all := len(pl.p.servers()) > 0
	for _, s := range pl.p.servers() {
		value, ok := s.Override["smtpd_milters"]
		if !ok {
			all = false
			continue
		}
		if slices.ContainsFunc(postconf.Items(value), func(text string) bool { return pl.milter(text).ours }) {
			continue
		}
		list := []string{"$" + parameter}
		for _, item := range postconf.Items(value) {
			if strings.ContainsAny(item, " \t") { // postconf -P does not take them
				list = append(list, "...")
				continue
			}
			list = append(list, item)
		}
		pl.needs(lines("If that is where mail from outside comes in:",
			postconf.Command("postconf", pl.p.Dir, "-e", parameter+" = "+own.text),
			postconf.Command("postconf", pl.p.Dir, "-P", s.String()+"/smtpd_milters="+strings.Join(list, ",")),
			postconf.Command("postfix", pl.p.Dir, "reload")),
			"master.cf has milters of its own for %s, smtpd_milters = %q: what main.cf says does not count there", s, value)
	}
	return all
}

// localMilters takes those that are replaced out of non_smtpd_milters.
func (pl *planner) localMilters() {
	raw, effect := pl.entries("non_smtpd_milters", pl.milter)
	if slices.ContainsFunc(raw, pl.replaces) {
		pl.setTo("non_smtpd_milters", join(slices.DeleteFunc(raw, pl.replaces)), join(slices.DeleteFunc(effect, pl.replaces)), "ruapost-milter is not needed for mail from this host")
	}
}
