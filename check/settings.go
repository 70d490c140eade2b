package check

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"ruapost/postconf"
)

func (c *checker) checkVersion() {
	p := c.postfix
	number := p.settings["mail_version"]
	jail := "not in a chroot"
	if p.chroot {
		jail = "in a chroot, " + p.queue
	}
	switch {
	case p.version.Before(3, 4, 0):
		c.fault("Postfix 3.4 or later is needed.",
			"Postfix %s does not know the attribute servername: mail to domains with an MTA-STS policy is deferred", number)
	case !p.version.Before(3, 10, 0) && p.version.Before(3, 10, 4):
		c.warn("Update Postfix to 3.10.4 or later.",
			"Postfix %s looks for policies for our own reports, too, and counts them in TLS reports, despite their TLS-Required: No", number)
	case !p.version.Before(3, 10, 4) && p.version.Before(3, 10, 6):
		c.ok("Postfix %s, smtp(8) %s; 3.10.6 mends a crash that answers without policy_string or mx_host_pattern cause: ruapost gives none, other tables might",
			number, jail)
	default:
		c.ok("Postfix %s, smtp(8) %s", number, jail)
	}
}

func (c *checker) checkSecurityLevel() {
	const name = "smtp_tls_security_level"
	p := c.postfix
	mend := p.set("", name, "dane")
	switch level := strings.ToLower(p.settings[name]); level {
	case "dane":
		c.ok("%s = dane", name)
	case "may":
		c.ok("%s = may: TLS without checking certificates, but where ruapost finds DANE or MTA-STS", name)
	case "encrypt", "dane-only", "fingerprint", "verify", "secure":
		c.warn(p.set("If that is not what you want:", name, "dane"),
			"%s = %s: mail is deferred to all domains that cannot do that and have no policy", name, level)
		if c.cfg.TLSPolicy.ReportTesting {
			c.warn(then("In ruapost.toml, section [tlspolicy]:", `testing_mode = "off"`),
				`tlspolicy.testing_mode = "report": domains whose MTA-STS policy is in mode testing get level may instead of %s`, level)
		}
	case "", "none":
		c.fault(mend, "%s is %q: domains without a policy get their mail in plain text, and Postfix tells nothing for TLS reports",
			name, level)
	default:
		c.fault(mend, "%s = %s: there is no such level, smtp(8) does not start", name, level)
	}
}

// checkDNSSupport looks at what makes Postfix reject the answer dane-only
// (dane_init in its smtp_tls_policy.c).
func (c *checker) checkDNSSupport() {
	p := c.postfix
	if c.relayed() {
		return
	}
	const deferred = "mail to domains with DANE is deferred"
	fine := true
	need := func(good bool, name, value string) {
		if !good {
			fine = false
			c.fault(p.set("", name, value), "%s is %q: Postfix cannot do DANE, %s", name, p.settings[name], deferred)
		}
	}
	need(p.is("smtp_dns_support_level", "dnssec"), "smtp_dns_support_level", "dnssec")
	need(slices.Contains(postconf.Words(p.settings["smtp_host_lookup"]), "dns"), "smtp_host_lookup", "dns")
	need(p.is("ignore_mx_lookup_error", "no"), "ignore_mx_lookup_error", "no")
	need(p.settings["smtp_dns_resolver_options"] == "", "smtp_dns_resolver_options", "")
	if fine {
		c.ok("smtp_dns_support_level = dnssec")
	}
}

// checkDANE looks at settings that take away from what policies ask for.
func (c *checker) checkDANE() {
	p := c.postfix
	if name := "smtp_tls_dane_insecure_mx_policy"; !p.is(name, "dane") {
		c.warn(p.set("", name, "dane"),
			"%s = %s: DANE is not enforced where the MX records are not signed but their hosts have TLSA records", name, p.settings[name])
	}
	// Versions that do not have these have no entry for them.
	if name := "smtp_tls_enforce_sts_mx_patterns"; p.is(name, "no") {
		c.warn(p.set("", name, "yes"), "%s = no: mail goes to hosts that are not in a domain's MTA-STS policy, if their certificate fits it", name)
	}
	if name := "tls_required_enable"; p.is(name, "no") {
		c.warn(p.set("", name, "yes"), "%s = no: TLS reports do not arrive where TLS is broken, which is what they tell of", name)
	}
}

// checkAuthorities looks for the authorities that MTA-STS certificates must come
// from. smtp(8) reads CAfile as root and before it enters its chroot, and files of
// CApath as it needs them.
func (c *checker) checkAuthorities() {
	p := c.postfix
	if c.relayed() {
		return
	}
	file, dir := p.settings["smtp_tls_CAfile"], p.settings["smtp_tls_CApath"]
	mend := p.set("With the package ca-certificates of Debian:", "smtp_tls_CAfile", "/etc/ssl/certs/ca-certificates.crt")
	if file == "" && dir == "" {
		c.fault(mend, `smtp_tls_CAfile is not set: mail to domains with an MTA-STS policy is deferred, "Server certificate not verified"`)
		return
	}
	if file != "" {
		switch n, err := certificates(p.reached(file, false)); {
		case errors.Is(err, fs.ErrPermission):
			c.warn("Run this as root.", "smtp_tls_CAfile cannot be read as this user: %v", err)
		case err != nil:
			c.fault(mend, "smtp_tls_CAfile cannot be read, without it Postfix has no TLS: %v", err)
		case n == 0:
			c.fault(mend, "smtp_tls_CAfile: there is no certificate in %s, without it Postfix has no TLS", file)
		default:
			c.ok("smtp_tls_CAfile = %s: %d certificates", file, n)
		}
		return // CApath is in addition
	}
	if seen := p.reached(dir, p.chroot); !hasHashed(seen) {
		c.fault(mend, `smtp_tls_CApath: there are no certificates with hashed names in %s, where smtp(8) looks for them: mail to domains with an MTA-STS policy is deferred`, seen)
	} else {
		c.ok("smtp_tls_CApath = %s", dir)
	}
}

// certificates counts the certificates in a PEM file.
func certificates(file string) (n int, err error) {
	text, err := postconf.ReadFile(file)
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if _, err := x509.ParseCertificate(block.Bytes); err == nil {
			n++
		}
	}
	return n, err
}

var hashedName = regexp.MustCompile(`^[0-9a-f]{8}\.[0-9]+$`)

// hasHashed says whether a directory has files with the names that OpenSSL looks for.
func hasHashed(dir string) bool {
	entries, _ := os.ReadDir(dir)
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool { return hashedName.MatchString(e.Name()) })
}

func (c *checker) checkLogLevel() {
	const name = "smtp_tls_loglevel"
	p := c.postfix
	level := strings.ToLower(p.settings[name])
	mend := p.set("", name, "1")
	if slices.Contains(postconf.Words(level), "untrusted") {
		c.fault(mend, `%s has "untrusted": sessions that need no trust are reported as failed`, name)
		return
	}
	summary := []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "routine", "debug", "ssl-expert", "ssl-developer", "summary"}
	if !slices.ContainsFunc(postconf.Words(level), func(w string) bool { return slices.Contains(summary, w) }) {
		if c.readsLog() {
			c.fault(mend, "%s = %s: Postfix logs nothing of the TLS sessions that succeed, and tlspolicy.maillog needs that", name, level)
		} else {
			c.warn(mend, "%s = %s: Postfix logs nothing of the TLS sessions that succeed", name, level)
		}
		return
	}
	c.ok("%s = %s", name, level)
}

// checkTLSRPT looks whether Postfix tells how TLS went, and tells it to the daemon.
func (c *checker) checkTLSRPT() {
	p := c.postfix
	if c.relayed() {
		return
	}
	socket := c.cfg.TLSPolicy.TLSRPT.Address
	enabled := p.is("smtp_tlsrpt_enable", "yes")
	switch {
	case c.readsLog() && (p.version.Before(3, 10, 0) || !enabled):
		c.ok("Postfix does not tell how TLS went, but in its log: TLS reports are made from that")
		return
	case socket == "" && !enabled:
		c.ok("no TLS reports: neither tlspolicy.tlsrpt nor smtp_tlsrpt_enable is set")
		return
	case socket == "":
		c.warn(then("If ruapost is to make TLS reports, in ruapost.toml, section [tlspolicy]:", `tlsrpt = "unix:`+p.reached("run/ruapost/tlsrpt.sock", false)+`"`),
			"smtp_tlsrpt_enable = yes, but tlspolicy.tlsrpt is not set: ruapost makes no TLS reports")
		return
	case p.version.Before(3, 10, 0):
		c.warn(maillogMend, "Postfix %s tells how TLS went in its log only, which is not read: there are no TLS reports", p.settings["mail_version"])
		return
	case !enabled:
		c.fault(p.set("", "smtp_tlsrpt_enable", "yes"), "smtp_tlsrpt_enable is not set: there are no TLS reports")
	}
	c.checkTLSRPTSocketName(socket)
	c.checkTLSRPTSupport()
}

func (c *checker) checkTLSRPTSocketName(socket string) {
	const name = "smtp_tlsrpt_socket_name"
	p := c.postfix
	value := p.settings[name]
	wanted, possible := p.spelling(socket)
	mend := p.set("", name, wanted)
	if !possible {
		mend = p.moveMend("tlsrpt", `"unix:%s"`, "tlsrpt.sock") + "\n" + p.set("", name, "run/ruapost/tlsrpt.sock")
	}
	switch {
	case value == "":
		c.fault(mend, "%s is not set: there are no TLS reports", name)
	case len(value) > maxSocketPath:
		c.fault(mend, "%s has %d octets, a socket's path has no more than %d", name, len(value), maxSocketPath)
	case postconf.SameFile(p.reached(value, p.chroot), socket):
		if p.chroot && filepath.IsAbs(value) {
			c.warn(mend, "%s = %s is right only as long as smtp(8) is in a chroot", name, value)
			return
		}
		c.ok("%s = %s", name, value)
	default:
		c.fault(mend, "%s = %s: smtp(8) takes that for %s, the daemon listens on %s", name, value, p.reached(value, p.chroot), socket)
	}
}

// moveMend returns how to have a socket where a smtp(8) in a chroot reaches it.
func (p *postfix) moveMend(key, format, name string) string {
	return then("smtp(8) cannot leave its chroot. In ruapost.toml, section [tlspolicy], and in the systemd socket unit, if there is one, use:",
		key+" = "+fmt.Sprintf(format, filepath.Join(p.queue, "run/ruapost", name)))
}

func (c *checker) checkTLSRPTSupport() {
	switch built, err := postconf.TLSRPT(c.postfix.settings["daemon_directory"]); {
	case err == nil && !built && c.readsLog():
		c.ok("Postfix is built without TLSRPT: TLS reports are made from its log")
	case err == nil && !built:
		c.fault(maillogMend, "Postfix is built without TLSRPT, and its log is not read: there are no TLS reports")
	case err == nil:
		c.ok("Postfix is built with TLSRPT")
	default:
		c.warn(`If not, Postfix logs "TLSRPT is selected, but TLSRPT is not compiled in".`,
			"whether Postfix is built with TLSRPT cannot be told: %v", err)
	}
}

func (c *checker) checkRelay() {
	p := c.postfix
	if relay := p.settings["relayhost"]; relay != "" {
		c.warn("", "relayhost = %s: Postfix asks for the policy of the relay host, not of the domains that mail goes to; for mail through it ruapost-tlspolicy is of no use", relay)
	}
	if transport := p.settings["default_transport"]; transport != "smtp" {
		c.warn("", "default_transport = %s: what is said here is about the service %s, mail may go out by another way", transport, service)
	}
}
