package check

import (
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"ruapost/config"
	"ruapost/outbound"
)

// maxSocketPath is how long the path of a unix socket can be: sun_path of unix(7).
const maxSocketPath = 107

// policyMap is a socketmap table of smtp_tls_policy_maps, such as
// socketmap:unix:run/ruapost/policy.sock:QUERY.
type policyMap struct {
	text    string
	proxied bool // asked by proxymap(8)
	network string
	address string // path, or host:port
	table   string
}

// policyMaps returns the tables of a list that are socketmap tables.
func policyMaps(list string) []policyMap {
	var found []policyMap
	for _, text := range tables(list) {
		m := policyMap{text: text}
		rest, proxied := strings.CutPrefix(text, "proxy:")
		m.proxied = proxied
		rest, ok := strings.CutPrefix(rest, "socketmap:")
		last := strings.LastIndexByte(rest, ':')
		if !ok || last < 0 {
			continue
		}
		m.table = rest[last+1:]
		m.network, m.address, _ = strings.Cut(rest[:last], ":")
		found = append(found, m)
	}
	return found
}

// tables splits a list of tables, in which braces hold together what has blanks.
func tables(list string) []string {
	depth := 0
	return strings.FieldsFunc(list, func(r rune) bool {
		switch r {
		case '{':
			depth++
		case '}':
			depth--
		}
		return depth <= 0 && strings.ContainsRune(", \t\r\n", r)
	})
}

// checkPolicyMaps looks whether Postfix asks the daemon, and by the right name.
func (c *checker) checkPolicyMaps() {
	p := c.postfix
	value := p.settings["smtp_tls_policy_maps"]
	asked := false
	for _, m := range policyMaps(value) {
		seen := m
		if m.network == "unix" {
			seen.address = p.reached(m.address, p.chroot && !m.proxied)
		}
		switch {
		case len(m.address) > maxSocketPath:
			c.fault(c.tableMend(m.text), "smtp_tls_policy_maps: the path in %s has more than the %d octets that a socket can have", m.text, maxSocketPath)
		case c.listensAt(seen):
			asked = true
			c.checkTable(m)
		case filepath.IsAbs(m.address) && c.listensAt(m):
			asked = true
			c.fault(c.tableMend(m.text), "smtp_tls_policy_maps: %s is an absolute path, which smtp(8) takes for %s since it is in a chroot: all mail is deferred",
				m.address, seen.address)
		}
	}
	if !asked {
		c.fault(c.tableMend(""), "smtp_tls_policy_maps is %q: Postfix does not ask ruapost-tlspolicy, there is no MTA-STS", value)
	}
}

// checkTable checks a table that the daemon answers for.
func (c *checker) checkTable(m policyMap) {
	old := c.postfix.version.before(3, 10, 0)
	mend := c.tableMend(m.text)
	switch {
	case m.table != outbound.TableQuery && m.table != outbound.TableQueryTLSRPT:
		c.fault(mend, "smtp_tls_policy_maps: the daemon knows no table %s, its answer is always that there is no policy", m.table)
	case m.table == outbound.TableQueryTLSRPT && old:
		c.fault(mend, "smtp_tls_policy_maps: this Postfix does not know the attributes that the answers of %s have: mail to domains with an MTA-STS policy is deferred", m.table)
	case m.table == outbound.TableQuery && !old && c.cfg.TLSPolicy.TLSRPT.Network != "":
		c.warn(mend, "smtp_tls_policy_maps: answers of %s do not tell Postfix the MTA-STS policy: TLS reports say that there was none", m.table)
	case m.proxied:
		c.warn(mend, "smtp_tls_policy_maps: with proxy: all queries share few processes, and a slow answer holds up other tables")
	case m.network == "unix" && c.postfix.chroot && filepath.IsAbs(m.address):
		c.warn(mend, "smtp_tls_policy_maps: the path in %s is right only as long as smtp(8) is in a chroot", m.text)
	default:
		c.ok("smtp_tls_policy_maps has %s", m.text)
	}
}

// tableMend returns how to have the right table in the place of a wrong one, or after
// all others if that is empty.
func (c *checker) tableMend(wrong string) string {
	const name = "smtp_tls_policy_maps"
	p := c.postfix
	table, move := c.rightTable()
	list := tables(p.settings[name])
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
	if p.version.before(3, 10, 0) {
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
func (c *checker) listensAt(m policyMap) bool {
	for _, l := range c.cfg.TLSPolicy.Listen {
		if m.network == "unix" && l.Network == "unix" && sameFile(m.address, l.Address) ||
			m.network == "inet" && l.Network == "tcp" && reachesTCP(m.address, l) {
			return true
		}
	}
	return false
}

// reachesTCP says whether a connection to an address comes to a socket, as far as that
// can be told from the two.
func reachesTCP(address string, l config.Listen) bool {
	host, port, err := net.SplitHostPort(address)
	listenHost, listenPort, _ := net.SplitHostPort(l.Address)
	if err != nil || port != listenPort {
		return false
	}
	if strings.EqualFold(host, "localhost") {
		host = "127.0.0.1"
	}
	if strings.EqualFold(listenHost, "localhost") {
		listenHost = "127.0.0.1"
	}
	at, err := netip.ParseAddr(listenHost)
	return err == nil && at.IsUnspecified() || strings.EqualFold(host, listenHost)
}
