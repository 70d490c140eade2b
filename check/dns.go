package check

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ruapost/postconf"
	"ruapost/resolver"
)

const validateMend = "Use one that validates DNSSEC, best on this host:\n    nameserver 127.0.0.1"

// AskServers asks DNS servers as Host.Ask does.
func AskServers(ctx context.Context, servers []string) []Server {
	dns, err := resolver.New(resolver.Config{Servers: servers})
	if err != nil {
		return []Server{{Err: err}}
	}
	defer dns.Close()
	var all []Server
	for _, s := range dns.Probe(ctx) {
		all = append(all, Server{
			Address: s.Addr.String(), Answered: s.Err == nil, Authentic: s.AD, Trusted: s.Trusted, Err: s.Err,
		})
	}
	return all
}

// checkResolver asks the DNS servers of the daemon.
func (c *checker) checkResolver(ctx context.Context) {
	if c.host.Ask == nil {
		return
	}
	file := cmp.Or(c.host.ResolvConf, "/etc/resolv.conf")
	if _, err := os.Stat(file); len(c.cfg.DNS.Servers) == 0 && errors.Is(err, fs.ErrNotExist) {
		c.warn("Name the DNS servers there, or in dns.servers in ruapost.toml.", "there is no %s: the DNS server is looked for on this host", file)
	}
	servers := c.host.Ask(ctx, c.cfg.DNS.Servers)
	answered := slices.ContainsFunc(servers, func(s Server) bool { return s.Answered })
	if !answered {
		c.fault("See dns.servers in ruapost.toml, and /etc/resolv.conf.", "no DNS server answers")
	}
	for _, s := range servers {
		switch {
		case !s.Answered:
			c.warn("Mend or remove it: each lookup that tries it first waits for it.", "DNS server %s does not answer: %v", s.Address, s.Err)
		case !s.Authentic:
			c.fault(validateMend, "DNS server %s does not validate DNSSEC, its answer for a name that is signed has no AD bit: there is no DANE", s.Address)
		case !s.Trusted:
			c.warn(then("If the network to it is safe, vouch for it in ruapost.toml, section [dns]:", `servers = ["`+s.Address+`"]`),
				"DNS server %s validates DNSSEC, but is not on this host: ruapost does not believe it, there is no DANE", s.Address)
		default:
			c.ok("DNS server %s answers and validates DNSSEC", s.Address)
		}
	}
}

// checkPostfixResolver looks at the DNS servers of Postfix, where they may be others:
// if they do not validate, Postfix defers mail to domains for which the answer is
// dane-only.
func (c *checker) checkPostfixResolver(ctx context.Context) {
	if c.postfix == nil {
		return
	}
	file, text, copied := c.postfixResolvConf()
	c.checkTrustAD(file, text)
	if c.host.Ask == nil || len(c.cfg.DNS.Servers) == 0 && !copied {
		return // the daemon's servers are the same
	}
	for _, s := range c.host.Ask(ctx, nameservers(text)) {
		switch {
		case slices.Contains(c.cfg.DNS.Servers, s.Address):
		case !s.Answered:
			c.warn("Mend or remove it.", "DNS server %s of Postfix, in %s, does not answer: %v", s.Address, file, s.Err)
		case !s.Authentic:
			c.fault(validateMend, "DNS server %s of Postfix, in %s, does not validate DNSSEC: mail to domains with DANE is deferred", s.Address, file)
		default:
			c.ok("DNS server %s of Postfix, in %s, answers and validates DNSSEC", s.Address, file)
		}
	}
}

// postfixResolvConf returns the file that names the DNS servers of smtp(8), and its
// text. It is a copy in the chroot if that names others than the host's.
func (c *checker) postfixResolvConf() (file, text string, copied bool) {
	file = cmp.Or(c.host.ResolvConf, "/etc/resolv.conf")
	outside, _ := postconf.ReadFile(file) // without it the server is on this host
	jail := filepath.Join(c.postfix.queue, "etc/resolv.conf")
	inside, err := postconf.ReadFile(jail)
	if !c.postfix.chroot || err != nil || slices.Equal(nameservers(string(inside)), nameservers(string(outside))) {
		return file, string(outside), false
	}
	c.warn(then("Debian makes a new copy when Postfix is started:", "systemctl restart postfix"),
		"%s, which counts for smtp(8), names other DNS servers than %s", jail, file)
	return jail, string(inside), true
}

// checkTrustAD looks at what versions of Postfix need that do not ask glibc for the AD
// bit by themselves. glibc hides it since 2.31.
func (c *checker) checkTrustAD(file, text string) {
	v := c.postfix.version
	if !v.Before(3, 4, 11) && (v.Before(3, 5, 0) || !v.Before(3, 5, 1)) {
		return
	}
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) > 0 && words[0] == "options" && slices.Contains(words, "trust-ad") {
			return
		}
	}
	c.warn(then("In "+file+":", "options trust-ad"),
		"with glibc 2.31 or later this Postfix does not see that answers are validated: mail to domains with DANE is deferred")
}

// nameservers returns the servers of a resolv.conf(5) file with their ports, as far as
// glibc takes them.
func nameservers(text string) []string {
	var servers []string
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" || len(servers) == 3 {
			continue
		}
		if addr, err := netip.ParseAddr(words[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(addr, 53).String())
		}
	}
	if len(servers) == 0 {
		return []string{"127.0.0.1:53"}
	}
	return servers
}

// checkRoots looks for the authorities that the daemon itself trusts when it fetches
// MTA-STS policies.
func (c *checker) checkRoots() {
	roots := c.host.Roots
	if roots == nil {
		roots = x509.SystemCertPool
	}
	if pool, err := roots(); err != nil || pool.Equal(x509.NewCertPool()) {
		c.fault(then("", "apt install ca-certificates"), "this host has no certificates of authorities: no MTA-STS policy can be fetched")
		return
	}
	c.ok("this host has certificates of authorities, to fetch MTA-STS policies")
}
