package setup

import (
	"slices"
	"strings"

	"ruapost/config"
	"ruapost/outbound"
	"ruapost/postconf"
)

const policyMaps = "smtp_tls_policy_maps"

// outbound proposes the policy daemon, and what it takes that its answers can be followed.
func (pl *planner) outbound() {
	p := pl.p
	raw, effect := pl.entries(policyMaps, pl.table)
	pl.tellTables(effect)
	pl.direct = pl.sendsItself()
	if !pl.direct || pl.keepsPolicies(effect) {
		return
	}
	if level, ok := p.client().Override[policyMaps]; ok {
		pl.needs("Take that out of master.cf, or add the table there, see contrib/postfix.",
			"master.cf has %s = %q for smtp/unix: what main.cf says does not count there, and is left as it is", policyMaps, level)
		return
	}
	network, address, ok := p.endpoint(pl.cfg.TLSPolicy.Listen, p.clientInChroot())
	if !ok {
		pl.unreachable("tlspolicy.listen", pl.cfg.TLSPolicy.Listen, "policy.sock", "ruapost-policy.socket")
		return
	}
	pl.policies = true
	pl.securityLevel()
	if !strings.EqualFold(p.Settings["smtp_dns_support_level"], "dnssec") {
		pl.set("smtp_dns_support_level", "dnssec", "DANE takes DNS answers that the resolver has validated")
	}
	if p.CAFile != "" && p.Settings["smtp_tls_CAfile"] == "" && !p.CApathWorks {
		pl.set("smtp_tls_CAfile", p.CAFile, "the authorities that MTA-STS certificates come from; without them that mail would be deferred")
	}
	query := outbound.TableQueryTLSRPT
	if p.Version.Before(3, 10, 0) {
		query = outbound.TableQuery
	}
	own := tableEntry("socketmap:" + network + ":" + address + ":" + query)
	own.ours = true
	rawList, effectList := pl.withTable(raw, own), pl.withTable(effect, own)
	if !slices.ContainsFunc(raw, func(e entry) bool { return e.ours }) && slices.ContainsFunc(effect, func(e entry) bool { return e.ours }) {
		return // by another parameter's name
	}
	pl.setTo(policyMaps, join(rawList), join(effectList), "DANE and MTA-STS for mail that goes out, behind tables of your own")
}

// table reads an item of smtp_tls_policy_maps.
func (pl *planner) table(text string) entry {
	e := tableEntry(text)
	for _, l := range pl.cfg.TLSPolicy.Listen {
		seen := e.address
		if e.network == "unix" {
			proxied := strings.HasPrefix(text, "proxy:")
			seen = postconf.Reached(pl.p.Queue, e.address, pl.p.client().Chroot && !proxied)
		}
		e.ours = e.ours || postconf.Reaches(e.network, seen, l)
	}
	return e
}

// withTable puts the daemon's table behind all others, and takes out those that it replaces.
func (pl *planner) withTable(list []entry, own entry) []entry {
	list = slices.DeleteFunc(slices.Clone(list), func(e entry) bool { return !e.ours && pl.asked(e, policyTools) })
	if at := slices.IndexFunc(list, func(e entry) bool { return e.ours }); at >= 0 {
		list[at] = own
		return list
	}
	return append(list, own)
}

// tellTables tells of the tables that are there.
func (pl *planner) tellTables(effect []entry) {
	asked := false // ours, before
	for _, e := range effect {
		asked = asked || e.ours
		switch {
		case e.ours:
			pl.found("ruapost-tlspolicy is in %s", policyMaps)
		case !asked && strings.HasPrefix(strings.TrimPrefix(e.text, "proxy:"), "static:"): // DATABASE_README
			pl.note("Take it out, or behind ruapost's table.",
				"%s has %s, which answers for all domains: what stands behind it, as ruapost-tlspolicy, is never asked", policyMaps, e.text)
		case e.network == "":
			pl.found("%s has %s, which is asked first and stays", policyMaps, e.text)
		case pl.asked(e, policyTools):
			pl.found("%s is in %s: %s, to be replaced", name(e), policyMaps, e.text)
			unit := map[string]string{tlspol: "postfix-tlspol", resolver: "postfix-mta-sts-resolver"}[e.tool]
			if unit != "" {
				pl.note(lines("When Postfix has been reloaded:", "systemctl disable --now "+unit), "%s has nothing to do any more", e.tool)
			}
		default:
			pl.found("%s is in %s: %s", name(e), policyMaps, e.text)
		}
	}
}

// sendsItself says whether Postfix looks for the mail servers of domains, and tells if it
// does not.
func (pl *planner) sendsItself() bool {
	p := pl.p
	transport, nexthop, _ := strings.Cut(p.Settings["default_transport"], ":")
	sender := slices.IndexFunc(p.Services, func(s Service) bool { return s.Name == transport && s.Program == "smtp" })
	var why string
	switch {
	case p.Settings["relayhost"] != "":
		why = "relayhost = " + p.Settings["relayhost"]
	case nexthop != "" || transport != "smtp" && sender < 0:
		why = "default_transport = " + p.Settings["default_transport"]
	case strings.EqualFold(p.Settings["smtp_dns_support_level"], "disabled"), strings.EqualFold(p.Settings["disable_dns_lookups"], "yes"):
		why = "smtp does not ask the DNS (smtp_dns_support_level, disable_dns_lookups)"
	default:
		return true
	}
	pl.found("%s: mail goes out by way of others, who look for TLS policies. ruapost-tlspolicy is of no use here, and nothing is proposed for mail that goes out", why)
	return false
}

// keepsPolicies says whether other software decides about TLS, and is to go on with that.
func (pl *planner) keepsPolicies(effect []entry) bool {
	at := slices.IndexFunc(effect, func(e entry) bool { return e.network != "" && !e.ours && !pl.asked(e, policyTools) })
	if at < 0 {
		return false
	}
	if slices.ContainsFunc(effect[:at], func(e entry) bool { return e.ours }) {
		pl.note("", "%s is asked after ruapost-tlspolicy, about domains for which that finds no policy", effect[at].text)
		return false
	}
	e, who := effect[at], effect[at].tool
	if who == "" {
		who = e.text
	}
	missing := "ruapost-tlspolicy is not asked then: which domains this system sends mail to is not known to ruapost-milter (milter.report_on), and TLS reports do not tell of policies that could not be fetched"
	if pl.p.Version.Before(3, 10, 0) {
		missing += ", nor of sessions at all, as the log does not say what the policy was"
	} else if !strings.HasSuffix(e.text, ":"+outbound.TableQueryTLSRPT) {
		missing += ", and say that there was no MTA-STS policy, unless the other one is asked " + outbound.TableQueryTLSRPT
	}
	pl.needs(lines("Choose, as the first that answers counts. To have ruapost take its place:",
		"ruapost-reporter setup --replace "+postconf.Quote(who)),
		"%s says which TLS policy a domain has, and is left to do so. %s", name(e), missing)
	return true
}

// securityLevel proposes what counts for domains without a policy. It makes nothing weaker.
func (pl *planner) securityLevel() {
	const name = "smtp_tls_security_level"
	p := pl.p
	if level, ok := p.client().Override[name]; ok {
		pl.note("", "master.cf has %s = %q for smtp/unix, which stays", name, level)
		return
	}
	level := strings.ToLower(p.Settings[name])
	switch {
	case level == "dane":
	case level == "may", (level == "" || level == "none") && !strings.EqualFold(p.Settings["smtp_enforce_tls"], "yes"):
		pl.set(name, "dane", "DANE where a domain has it, elsewhere TLS without checking certificates")
	default:
		if level == "" || level == "none" {
			level = "smtp_enforce_tls = yes"
		} else {
			level = name + " = " + level
		}
		pl.note("", "%s is stricter than dane, and stays: mail to domains that cannot do that and have no policy is deferred", level)
	}
}

// events proposes to have Postfix tell how TLS went.
func (pl *planner) events() {
	p := pl.p
	const enable, socketName = "smtp_tlsrpt_enable", "smtp_tlsrpt_socket_name"
	if !pl.direct {
		return
	}
	pl.logLevel()
	switch {
	case p.Version.Before(3, 10, 0):
		return
	case p.TLSRPTErr != nil:
		pl.note("", "whether Postfix is built with TLSRPT cannot be told: %v", p.TLSRPTErr)
	case !p.TLSRPT:
		pl.found("Postfix is built without TLSRPT: TLS reports are made from its log")
		return
	default:
		pl.found("Postfix is built with TLSRPT")
	}
	if pl.cfg.TLSPolicy.TLSRPT == (config.Listen{}) {
		return // tlspolicy.tlsrpt = ""
	}
	network, address, ok := p.endpoint([]config.Listen{pl.cfg.TLSPolicy.TLSRPT}, p.clientInChroot())
	if !ok || network != "unix" {
		pl.unreachable("tlspolicy.tlsrpt", nil, "tlsrpt.sock", "ruapost-tlsrpt.socket")
		return
	}
	if at := p.Settings[socketName]; at != "" {
		switch {
		case postconf.SameFile(postconf.Reached(p.Queue, at, p.client().Chroot), pl.cfg.TLSPolicy.TLSRPT.Address):
			address = p.Main[socketName] // it leads there
		case !slices.ContainsFunc(pl.replace, func(name string) bool { return name == tlsrptd || name == at }):
			pl.needs(lines("To have ruapost take its place:", "ruapost-reporter setup --replace "+tlsrptd),
				"%s = %s: Postfix tells another program how TLS went, which stays; ruapost makes no TLS reports then", socketName, at)
			return
		}
	}
	for _, name := range []string{tlsrptd, p.Settings[socketName]} {
		pl.replaced[name] = true
	}
	const reason = "tell ruapost-tlspolicy how each TLS session went, for TLS reports"
	if !strings.EqualFold(p.Settings[enable], "yes") {
		pl.set(enable, "yes", reason)
	}
	pl.set(socketName, address, "where it is told that")
}

// logLevel proposes that sessions are logged.
func (pl *planner) logLevel() {
	const name = "smtp_tls_loglevel"
	words := postconf.Words(strings.ToLower(pl.p.Settings[name]))
	switch {
	case len(words) == 0 || len(words) == 1 && words[0] == "0" || slices.Contains(words, "none"):
		pl.set(name, "1", "one line in the log for each TLS session")
	case slices.Contains(words, "untrusted"):
		pl.set(name, "1", `without "untrusted", with which sessions that need no trust are reported as failed`)
	}
}
