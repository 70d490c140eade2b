package setup

import (
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"ruapost/postconf"
)

// tool is other software that Postfix asks, or that sees its mail.
type tool struct {
	name    string
	aliases []string // that --replace takes, too
	parts   []string // of the paths of its sockets
	ports   []string // where it listens in its documentation
}

func (t *tool) called(name string) bool { return t.name == name || slices.Contains(t.aliases, name) }

// Names of tools.
const (
	openDKIM  = "opendkim"
	openDMARC = "opendmarc"
	rspamd    = "rspamd"
	tlspol    = "postfix-tlspol"
	resolver  = "mta-sts-resolver"
	tlsrptd   = "tlsrpt-reporter"
)

var milterTools = []tool{
	{name: openDKIM, parts: []string{"opendkim"}, ports: []string{"8891", "12301"}},
	{name: openDMARC, parts: []string{"opendmarc"}, ports: []string{"8893", "54321"}},
	{name: rspamd, parts: []string{"rspamd"}, ports: []string{"11332"}},
	{name: "dkimpy-milter", parts: []string{"dkimpy"}, ports: []string{"8892"}},
	{name: "openarc", parts: []string{"openarc"}, ports: []string{"8894"}},
	{name: "clamav-milter", parts: []string{"clamav", "clamsmtp"}},
	{name: "spamass-milter", parts: []string{"spamass"}},
}

var policyTools = []tool{
	{name: tlspol, aliases: []string{"tlspol"}, parts: []string{"tlspol"}, ports: []string{"8642"}},
	{name: resolver, aliases: []string{"postfix-mta-sts-resolver", "mta-sts-daemon"}, parts: []string{"mta-sts", "mta_sts", "mtasts"}, ports: []string{"8461"}},
}

// entry is one of smtpd_milters or smtp_tls_policy_maps.
type entry struct {
	text    string // as it stands there
	means   string // the same, or what it is the name of
	network string // "unix" or "inet", or empty if it is something else
	address string // path, or host:port
	tool    string // whose it is; empty if that is not known
	ours    bool
}

// writers are the milters that put Authentication-Results on top of messages, and may remove
// those that are there and have the name of this host, but change nothing else.
var writers = []string{openDKIM, openDMARC, "dkimpy-milter", "openarc"}

// parameterName is the name of another parameter as an item of a list.
var parameterName = regexp.MustCompile(`^\$[({]?([A-Za-z0-9_]+)[)}]?$`)

// milterEntry reads an item of smtpd_milters.
func (p *Postfix) milterEntry(text string) entry {
	e := entry{text: text, means: text}
	if name := parameterName.FindStringSubmatch(text); name != nil {
		if items := postconf.Items(p.Main[name[1]]); len(items) == 1 && !strings.HasPrefix(items[0], "$") {
			e = p.milterEntry(items[0])
			e.text = text
		}
		return e
	}
	endpoint := text
	if rest, ok := strings.CutPrefix(text, "{"); ok {
		endpoint = ""
		if words := postconf.Words(strings.TrimSuffix(rest, "}")); len(words) > 0 {
			endpoint = words[0]
		}
	}
	network, address, _ := strings.Cut(endpoint, ":")
	switch network {
	case "unix", "local":
		e.network, e.address = "unix", address
	case "inet":
		e.network, e.address = "inet", address
	default:
		if _, _, err := net.SplitHostPort(endpoint); err == nil && !strings.Contains(endpoint, "$") {
			e.network, e.address = "inet", endpoint
		}
	}
	switch {
	case p.listens(p.OpenDKIM, e):
		e.tool = openDKIM
	case p.listens(p.OpenDMARC, e):
		e.tool = openDMARC
	default:
		e.tool = recognize(milterTools, e)
	}
	return e
}

// tableEntry reads an item of smtp_tls_policy_maps.
func tableEntry(text string) entry {
	e := entry{text: text}
	if m, ok := postconf.ParseSocketmap(text); ok {
		e.network, e.address = m.Network, m.Address
		e.tool = recognize(policyTools, e)
	}
	return e
}

// recognize returns the name of the tool that an entry leads to.
func recognize(tools []tool, e entry) string {
	_, port, _ := net.SplitHostPort(e.address)
	for i := range tools {
		t := &tools[i]
		if e.network == "unix" && slices.ContainsFunc(t.parts, func(part string) bool { return strings.Contains(strings.ToLower(e.address), part) }) ||
			e.network == "inet" && slices.Contains(t.ports, port) {
			return t.name
		}
	}
	return ""
}

// listens says whether a milter, by the Socket in its configuration, listens where an entry
// leads: "local:/PATH", "/PATH", "inet:PORT@HOST" or "inet:PORT".
func (p *Postfix) listens(conf map[string]string, e entry) bool {
	network, address, ok := strings.Cut(conf["socket"], ":")
	if !ok {
		network, address = "local", conf["socket"]
	}
	switch {
	case address == "":
		return false
	case e.network == "unix" && (network == "local" || network == "unix"):
		return filepath.Clean(address) == filepath.Clean(e.address) || postconf.SameFile(address, postconf.Reached(p.Queue, e.address, !filepath.IsAbs(e.address)))
	case e.network == "inet" && network == "inet":
		host, port, err := net.SplitHostPort(e.address)
		ours, _, _ := strings.Cut(address, "@")
		return err == nil && port == ours && slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, strings.ToLower(host))
	}
	return false
}
