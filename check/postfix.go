package check

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"ruapost/postconf"
)

// service is the one of master.cf that takes mail out.
const service = "smtp/unix"

// parameters are the settings that are looked at.
var parameters = []string{
	"compatibility_level",
	"daemon_directory",
	"default_transport",
	"ignore_mx_lookup_error",
	"mail_owner",
	"mail_version",
	"queue_directory",
	"receive_override_options",
	"relayhost",
	"smtp_dns_resolver_options",
	"smtp_dns_support_level",
	"smtp_host_lookup",
	"smtp_tls_CAfile",
	"smtp_tls_CApath",
	"smtp_tls_dane_insecure_mx_policy",
	"smtp_tls_enforce_sts_mx_patterns",
	"smtp_tls_loglevel",
	"smtp_tls_policy_maps",
	"smtp_tls_security_level",
	"smtp_tlsrpt_enable",
	"smtp_tlsrpt_socket_name",
	"smtpd_milters",
	"smtpd_proxy_filter",
	"tls_required_enable",
}

// postfix is what is known of Postfix: the settings that are in force for smtp(8).
type postfix struct {
	version  postconf.Version
	settings map[string]string // without those that this version does not have
	// override has the settings that come from the service's line in master.cf.
	override map[string]string
	dir      string // of main.cf and master.cf; empty if it is the default one
	queue    string // the queue directory
	chroot   bool   // smtp(8) is locked in there
	servers  []server
	user     *account
}

// readPostfix asks postconf(1).
func (c *checker) readPostfix(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, postconfLimit)
	defer cancel()
	program, err := postconf.Find(c.host.Postconf)
	if err != nil {
		c.fault("Run this where Postfix is: on the host, or in the container, that sends the mail.",
			"Postfix is not here: no program postconf is found: %v", err)
		return
	}
	main, complaints, err := postconf.Run(ctx, program, postconf.Args(c.host.Postfix, append([]string{"-x"}, parameters...)...)...)
	if err != nil {
		c.fault("See what Postfix itself says:\n    postfix check", "postconf fails: %v", err)
		return
	}
	override, _, errOverride := postconf.Run(ctx, program, postconf.Args(c.host.Postfix, "-x", "-P")...)
	columns, _, errColumns := postconf.Run(ctx, program, postconf.Args(c.host.Postfix, "-F")...)
	if err := errors.Join(errOverride, errColumns); err != nil {
		c.fault("See what Postfix itself says:\n    postfix check", "master.cf cannot be read: %v", err)
		return
	}
	c.complain(complaints)
	c.postfix = c.newPostfix(postconf.Assignments(main), postconf.Assignments(override), postconf.Assignments(columns))
}

func (c *checker) newPostfix(settings, override, columns map[string]string) *postfix {
	p := &postfix{settings: settings, override: map[string]string{}, dir: c.host.Postfix, queue: filepath.Clean(settings["queue_directory"])}
	var ok bool
	if p.version, ok = postconf.ParseVersion(settings["mail_version"]); !ok || !filepath.IsAbs(p.queue) {
		c.fault("", "this postconf is not Postfix's: mail_version = %q, queue_directory = %q",
			settings["mail_version"], settings["queue_directory"])
		return nil
	}
	maps.Copy(p.settings, c.host.Planned)
	for name, value := range override {
		if name, ok := strings.CutPrefix(name, service+"/"); ok {
			p.override[name] = value
		}
	}
	if chroot, ok := columns[service+"/chroot"]; ok {
		p.chroot = postconf.Chroot(chroot, settings["compatibility_level"])
	} else {
		c.warn("", "there is no service %s in master.cf: what is said here of smtp(8) is what main.cf says", service)
	}
	c.readServers(p, override, columns)
	maps.Copy(p.settings, p.override)
	var err error
	if p.user, err = lookupAccount(settings["mail_owner"]); err != nil {
		c.warn("", "whether Postfix may use the sockets cannot be told: %v", err)
	}
	return p
}

// complain tells what postconf says about main.cf and master.cf.
func (c *checker) complain(stderr string) {
	told := map[string]bool{}
	for line := range strings.Lines(stderr) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "postconf: warning: ")
		if strings.Contains(line, ".cf: ") && !told[line] && len(told) < 5 {
			told[line] = true
			c.warn("An unused parameter is misspelt, or this Postfix does not have it.", "postconf warns: %s", line)
		}
	}
}

// is says whether a setting has a value that Postfix reads in any case.
func (p *postfix) is(name, value string) bool { return strings.EqualFold(p.settings[name], value) }

// set returns how to give a setting a value, as Finding.Mend has it.
func (p *postfix) set(text, name, value string) string {
	command := postconf.Command("postconf", p.dir, "-e", name+" = "+value)
	if _, ok := p.override[name]; ok {
		// -P takes no blanks in a value.
		command = postconf.Command("postconf", p.dir, "-P", service+"/"+name+" = "+strings.ReplaceAll(value, ", ", ","))
	}
	return then(text, command, postconf.Command("postfix", p.dir, "reload"))
}

// reached returns the file that a process of Postfix reaches under a name.
func (p *postfix) reached(name string, chroot bool) string {
	return postconf.Reached(p.queue, name, chroot)
}

// spelling returns how main.cf should name a file, so that smtp(8) reaches it; ok is
// false if it cannot, because the file is outside its chroot.
func (p *postfix) spelling(file string) (name string, ok bool) {
	return postconf.Spelling(p.queue, file, p.chroot)
}

// clientJailed says whether smtp(8) is in a chroot.
func (p *postfix) clientJailed() bool { return p != nil && p.chroot }

// serverJailed says whether a smtpd(8) is in a chroot.
func (p *postfix) serverJailed() bool {
	return p != nil && slices.ContainsFunc(p.servers, func(s server) bool { return s.chroot })
}
