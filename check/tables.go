package check

import (
	"path/filepath"
	"slices"
	"strings"

	"ruapost/outbound"
	"ruapost/postconf"
)

// maxSocketPath is how long the path of a unix socket can be: sun_path of unix(7).
const maxSocketPath = 107

// checkPolicyMaps looks whether Postfix asks the daemon, and by the right name.
func (c *checker) checkPolicyMaps() {
	p := c.postfix
	value := p.settings["smtp_tls_policy_maps"]
	asked := false
	for _, text := range postconf.Items(value) {
		m, ok := postconf.ParseSocketmap(text)
		if !ok {
			continue
		}
		seen := m
		if m.Network == "unix" {
			seen.Address = p.reached(m.Address, p.chroot && !m.Proxied)
		}
		switch {
		case len(m.Address) > maxSocketPath:
			c.fault(c.tableMend(m.Text), "smtp_tls_policy_maps: the path in %s has more than the %d octets that a socket can have", m.Text, maxSocketPath)
		case c.listensAt(seen):
			asked = true
			c.checkTable(m)
		case filepath.IsAbs(m.Address) && c.listensAt(m):
			asked = true
			c.fault(c.tableMend(m.Text), "smtp_tls_policy_maps: %s is an absolute path, which smtp(8) takes for %s since it is in a chroot: all mail is deferred",
				m.Address, seen.Address)
		}
	}
	if !asked && p.settings["relayhost"] == "" {
		c.fault(c.tableMend(""), "smtp_tls_policy_maps is %q: Postfix does not ask ruapost-tlspolicy, there is no MTA-STS", value)
	}
}

// checkTable checks a table that the daemon answers for.
func (c *checker) checkTable(m postconf.Socketmap) {
	old := c.postfix.version.Before(3, 10, 0)
	mend := c.tableMend(m.Text)
	switch {
	case m.Table != outbound.TableQuery && m.Table != outbound.TableQueryTLSRPT:
		c.fault(mend, "smtp_tls_policy_maps: the daemon knows no table %s, its answer is always that there is no policy", m.Table)
	case m.Table == outbound.TableQueryTLSRPT && old:
		c.fault(mend, "smtp_tls_policy_maps: this Postfix does not know the attributes that the answers of %s have: mail to domains with an MTA-STS policy is deferred", m.Table)
	case m.Table == outbound.TableQuery && !old && c.cfg.TLSPolicy.TLSRPT.Network != "":
		c.warn(mend, "smtp_tls_policy_maps: answers of %s do not tell Postfix the MTA-STS policy: TLS reports say that there was none", m.Table)
	case m.Proxied:
		c.warn(mend, "smtp_tls_policy_maps: with proxy: all queries share few processes, and a slow answer holds up other tables")
	case m.Network == "unix" && c.postfix.chroot && filepath.IsAbs(m.Address):
		c.warn(mend, "smtp_tls_policy_maps: the path in %s is right only as long as smtp(8) is in a chroot", m.Text)
	default:
		c.ok("smtp_tls_policy_maps has %s", m.Text)
	}
}

// tableLater is what to do with the tables as long as nobody answers: mail would be deferred.
const tableLater = "When the daemon answers at its socket:\n    ruapost-reporter setup --apply"

// tableMend returns how to have the right table in the place of a wrong one, or after
// all others if that is empty.
func (c *checker) tableMend(wrong string) string {
	const name = "smtp_tls_policy_maps"
	if !c.answered {
		return tableLater
	}
	p := c.postfix
	table, move := c.rightTable()
	list := postconf.Items(p.settings[name])
	if i := slices.Index(list, wrong); i >= 0 {
		list[i] = table
	} else {
		list = append(list, table)
	}
	mend := p.set("", name, strings.Join(list, ", "))
	if move != "" {
		mend = move + "\n" + mend
	}
	return mend
}

// rightTable returns the table that main.cf should have, and what must be done to the
// socket before, if smtp(8) cannot reach it where it is.
func (c *checker) rightTable() (table, move string) {
	p := c.postfix
	query := outbound.TableQueryTLSRPT
	if p.version.Before(3, 10, 0) {
		query = outbound.TableQuery
	}
	for _, l := range c.cfg.TLSPolicy.Listen {
		if l.Network != "unix" {
			return "socketmap:inet:" + l.Address + ":" + query, ""
		}
		if name, ok := p.spelling(l.Address); ok {
			return "socketmap:unix:" + name + ":" + query, ""
		}
	}
	return "socketmap:unix:run/ruapost/policy.sock:" + query, p.moveMend("listen", `["unix:%s"]`, "policy.sock")
}

// listensAt says whether the daemon listens where a table is.
func (c *checker) listensAt(m postconf.Socketmap) bool {
	for _, l := range c.cfg.TLSPolicy.Listen {
		if postconf.Reaches(m.Network, m.Address, l) {
			return true
		}
	}
	return false
}
