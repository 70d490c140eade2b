package setup

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"ruapost"
	"ruapost/config"
	"ruapost/outbound"
	"ruapost/postconf"
)

// configuration proposes what ruapost.toml should have that does not follow from the name
// of the host.
func (pl *planner) configuration() {
	pl.names()
	pl.trustedNetworks()
	pl.maillog()
	pl.signing()
}

// names proposes who the reports come from.
func (pl *planner) names() {
	host, err := ruapost.ParseDomain(pl.p.Settings["myhostname"])
	if err != nil || ruapost.Labels(host) == 1 || strings.HasSuffix(host, ".localdomain") {
		if ruapost.Labels(pl.cfg.ReportDomain) == 1 {
			pl.needs(lines("In ruapost.toml, before the first section:", `report_domain = "example.org"`),
				"neither this host (%s) nor Postfix (myhostname = %s) has a name with a domain: reports from %s are hardly accepted",
				pl.cfg.Milter.AuthservID, pl.p.Settings["myhostname"], pl.cfg.ReportDomain)
		}
		return
	}
	domain := config.DomainOf(host)
	if set, err := ruapost.ParseDomain(pl.p.Settings["mydomain"]); err == nil && pl.p.Main["mydomain"] != "" && ruapost.Labels(set) > 1 {
		domain = set
	}
	if domain != pl.cfg.ReportDomain {
		pl.key("report_domain", quoteToml(domain), "the domain that reports come from, of Postfix's myhostname = "+host)
	}
	if ruapost.Labels(pl.cfg.Milter.AuthservID) == 1 {
		pl.key("milter.authserv_id", quoteToml(host), "what Postfix calls this host")
	}
}

// trustedNetworks proposes those of mynetworks.
func (pl *planner) trustedNetworks() {
	if pl.toml.has("milter.trusted_networks") {
		return
	}
	networks, not, others := splitNetworks(pl.p.Settings["mynetworks"])
	var take, left []string
	for _, n := range networks {
		switch {
		case n.Addr().IsLoopback() || slices.Contains(pl.cfg.Milter.TrustedNetworks, n):
		case slices.ContainsFunc(not, n.Overlaps):
			left = append(left, n.String())
		default:
			take = append(take, quoteToml(n.String()))
		}
	}
	if left = append(left, others...); len(left) > 0 {
		pl.needs("Write the networks that these stand for into milter.trusted_networks in ruapost.toml.",
			"mynetworks has what cannot be taken over: %s. Mail of users who do not log in and come from there is judged as mail from outside", strings.Join(left, ", "))
	}
	if len(take) == 0 {
		return
	}
	var all []string
	for _, n := range pl.cfg.Milter.TrustedNetworks { // the defaults
		all = append(all, quoteToml(n.String()))
	}
	pl.key("milter.trusted_networks", "["+strings.Join(append(all, take...), ", ")+"]",
		"who may send through this host (mynetworks): such mail is yours, and not judged")
}

// splitNetworks reads mynetworks: networks, those that are taken out by a "!", and what is
// neither, such as tables and names of files. postconf(5), mynetworks
func splitNetworks(list string) (networks, not []netip.Prefix, others []string) {
	for _, text := range postconf.Words(list) {
		pattern, negated := strings.CutPrefix(text, "!")
		n, err := config.ParseNetwork(pattern)
		switch {
		case err != nil:
			others = append(others, text)
		case negated:
			not = append(not, n)
		case !slices.Contains(networks, n):
			networks = append(networks, n)
		}
	}
	return networks, not, others
}

// maillog proposes to read Postfix's log if it does not tell otherwise how TLS went.
func (pl *planner) maillog() {
	p := pl.p
	if !pl.policies || !p.Version.Before(3, 10, 0) && (p.TLSRPT || p.TLSRPTErr != nil) {
		return
	}
	const reason = "this Postfix tells only there how TLS went"
	switch file := p.Settings["maillog_file"]; {
	case filepath.IsAbs(file):
		pl.key("tlspolicy.maillog", "["+quoteToml(file)+"]", reason)
		if !pl.toml.has("tlspolicy.maillog") {
			pl.note("See docs/outbound.md.", "Postfix writes its log %s itself, readable by root alone: let the user ruapost read it", file)
		}
	case p.Systemd:
		pl.key("tlspolicy.maillog", "["+quoteToml(outbound.Journal)+"]", reason)
	case p.Syslog != "":
		pl.key("tlspolicy.maillog", "["+quoteToml(p.Syslog)+"]", reason)
	case !pl.toml.has("tlspolicy.maillog"):
		pl.needs(lines("In ruapost.toml, section [tlspolicy], the file it is in:", `maillog = ["/var/log/mail.log"]`),
			"this Postfix tells only in its log how TLS went, and where that is cannot be told")
	}
}

// signing tells whether somebody signs the reports.
func (pl *planner) signing() {
	if pl.cfg.DKIM.Domain != "" {
		return
	}
	_, effect := pl.entries("non_smtpd_milters", pl.milter)
	for _, e := range effect {
		if e.tool == openDKIM || e.tool == rspamd || e.tool == "dkimpy-milter" {
			pl.found("%s sees what sendmail submits (non_smtpd_milters): it can sign the reports, [dkim] is not needed if it does so for %s", e.tool, pl.cfg.Reporter.From)
			return
		}
	}
	pl.note(lines("", "ruapost-reporter dkim-keygen "+filepath.Join(filepath.Dir(pl.toml.path), "dkim.pem")),
		"nobody signs the reports: [dkim] is not set, and no milter that signs is in non_smtpd_milters. TLS reports that are not signed are not read (RFC 8460 3)")
}
