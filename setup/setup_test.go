package setup

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"ruapost/check"
	"ruapost/config"
	"ruapost/postconf"
)

const (
	ourMilter = "{ unix:run/ruapost/milter.sock, " + milterOptions + " }"
	ourTable  = "socketmap:unix:run/ruapost/policy.sock:QUERYwithTLSRPT"
)

// newPostfix is Debian's Postfix 3.10 on a host that has all that it takes, with main.cf as
// it is on top of that.
func newPostfix(mainCf map[string]string) *Postfix {
	settings := map[string]string{
		"default_transport": "smtp", "mydomain": "example.org", "myhostname": "mail.example.org", "mynetworks": "127.0.0.0/8 [::ffff:127.0.0.0]/104 [::1]/128",
		"milter_mail_macros": "i {auth_type} {auth_authen} {auth_author} {mail_addr}", "smtp_tls_loglevel": "0", "smtp_enforce_tls": "no", "smtp_tlsrpt_enable": "no",
	}
	maps.Copy(settings, mainCf)
	return &Postfix{
		Directory: "/etc/postfix", Version: postconf.Version{3, 10, 4}, VersionText: "3.10.4", Queue: "/var/spool/postfix",
		Main: maps.Clone(mainCf), Settings: settings, TLSRPT: true, CAFile: "/etc/ssl/certs/ca-certificates.crt", Systemd: true,
		Services: []Service{
			{Name: "smtp", Type: "inet", Program: "smtpd", Chroot: true, Override: map[string]string{}},
			{Name: "smtp", Type: "unix", Program: "smtp", Chroot: true, Override: map[string]string{}},
			{Name: "submission", Type: "inet", Program: "smtpd", Chroot: true, Override: map[string]string{"smtpd_milters": "inet:localhost:8891"}},
		},
	}
}

// proposed is what propose makes of main.cf: the lines of both files, and the levels and
// texts of the findings.
func proposed(t *testing.T, p *Postfix, toml string, replace ...string) (lines map[string]string, findings []string) {
	t.Helper()
	cfg, err := config.Parse("ruapost.toml", "report_domain = \"example.org\"\n"+toml)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Milter.AuthservID = "mail.example.org" // whatever the name of this host
	file := &tomlFile{path: "/etc/ruapost/ruapost.toml", text: "report_domain = \"example.org\"\n" + toml, exists: true}
	if err := file.decode(); err != nil {
		t.Fatal(err)
	}
	plan := propose(p, cfg, Options{Replace: replace}, file)
	lines = map[string]string{}
	for _, c := range plan.Changes {
		lines[c.Name] = c.New
	}
	for _, f := range plan.Findings {
		findings = append(findings, string(f.Level)+": "+f.What+" => "+f.Mend)
	}
	return lines, findings
}

// fresh is what a fresh Postfix 3.10 is to have.
func fresh() map[string]string {
	return map[string]string{
		"smtpd_milters": ourMilter, "smtp_tls_policy_maps": ourTable, "smtp_tls_security_level": "dane",
		"smtp_dns_support_level": "dnssec", "smtp_tls_CAfile": "/etc/ssl/certs/ca-certificates.crt", "smtp_tls_loglevel": "1",
		"smtp_tlsrpt_enable": "yes", "smtp_tlsrpt_socket_name": "run/ruapost/tlsrpt.sock",
	}
}

func TestPropose(t *testing.T) {
	const old = "was there" // in place of a line: it is not proposed
	outbound := func(value string) map[string]string {
		return map[string]string{
			"smtp_tls_policy_maps": value, "smtp_tls_security_level": value, "smtp_dns_support_level": value, "smtp_tls_CAfile": value,
			"smtp_tls_loglevel": value, "smtp_tlsrpt_enable": value, "smtp_tlsrpt_socket_name": value,
		}
	}
	for name, tt := range map[string]struct {
		mainCf  map[string]string
		settle  func(p *Postfix)
		toml    string
		replace []string
		// differs is what is not as with a fresh Postfix.
		differs map[string]string
		says    []string // parts of findings
	}{
		"fresh": {},
		"all as it should be": {
			mainCf: map[string]string{
				"smtpd_milters": ourMilter, "smtp_tls_policy_maps": "hash:/etc/postfix/tls, " + ourTable, "smtp_tls_security_level": "dane",
				"smtp_dns_support_level": "dnssec", "smtp_tls_CAfile": "/x.pem", "smtp_tls_loglevel": "1",
				"smtp_tlsrpt_enable": "yes", "smtp_tlsrpt_socket_name": "run/ruapost/tlsrpt.sock",
			},
			differs: map[string]string{
				"smtpd_milters": old, "smtp_tls_policy_maps": old, "smtp_tls_security_level": old, "smtp_dns_support_level": old, "smtp_tls_CAfile": old,
				"smtp_tls_loglevel": old, "smtp_tlsrpt_enable": old, "smtp_tlsrpt_socket_name": old,
			},
		},
		"blanks differ": {
			mainCf:  map[string]string{"smtpd_milters": strings.ReplaceAll(ourMilter, ", ", ",   ")},
			differs: map[string]string{"smtpd_milters": old},
		},
		"our milter without default_action": {
			mainCf:  map[string]string{"smtpd_milters": "inet:a:1, unix:run/ruapost/milter.sock"},
			differs: map[string]string{"smtpd_milters": "inet:a:1, " + ourMilter},
		},
		"names stay names": {
			mainCf: map[string]string{"smtpd_milters": "$mine, inet:x:1", "smtp_tls_policy_maps": "$tables"},
			settle: func(p *Postfix) {
				p.Settings["smtpd_milters"] = "inet:localhost:8891, inet:x:1"
				p.Settings["smtp_tls_policy_maps"] = "hash:/x"
			},
			differs: map[string]string{"smtpd_milters": ourMilter + ", $mine, inet:x:1", "smtp_tls_policy_maps": "$tables, " + ourTable},
			says:    []string{"ok: opendkim is in smtpd_milters"},
		},
		"ours comes by a name": {
			mainCf:  map[string]string{"smtpd_milters": "$mine", "mine": ourMilter},
			settle:  func(p *Postfix) { p.Settings["smtpd_milters"] = ourMilter },
			differs: map[string]string{"smtpd_milters": old},
		},
		"ours comes by a name with others": {
			mainCf:  map[string]string{"smtpd_milters": "$mine", "mine": ourMilter + ", inet:x:1"},
			settle:  func(p *Postfix) { p.Settings["smtpd_milters"] = ourMilter + ", inet:x:1" },
			differs: map[string]string{"smtpd_milters": old},
		},
		"results of OpenDKIM are taken": {
			mainCf:  map[string]string{"smtpd_milters": "inet:localhost:8891, inet:localhost:11332"},
			toml:    "[milter]\nmode = \"trust\"\ntrusted_authserv_ids = [\"a.example\"]\n",
			differs: map[string]string{"smtpd_milters": "inet:localhost:8891, " + ourMilter + ", inet:localhost:11332"},
		},
		"opendkim.conf says where it listens": {
			mainCf: map[string]string{"smtpd_milters": "inet:127.0.0.1:9999, unix:dk/x.sock"},
			settle: func(p *Postfix) {
				p.OpenDKIM = map[string]string{"socket": "inet:9999@localhost"}
				p.OpenDMARC = map[string]string{"socket": "/var/spool/postfix/dk/x.sock", "historyfile": "/x"}
			},
			differs: map[string]string{"smtpd_milters": "inet:127.0.0.1:9999, unix:dk/x.sock, " + ourMilter},
			says:    []string{"ok: opendkim is in smtpd_milters: inet:127.0.0.1:9999", "ok: opendmarc is in", "warning: opendmarc records for reports, too"},
		},
		"OpenDKIM behind others": {
			mainCf:  map[string]string{"smtpd_milters": "inet:localhost:8894, unix:clamav/c.sock, inet:localhost:8891"},
			differs: map[string]string{"smtpd_milters": "inet:localhost:8894, " + ourMilter + ", unix:clamav/c.sock, inet:localhost:8891"},
			says:    []string{"warning: opendkim comes behind ruapost-milter"},
		},
		"a name of one milter": {
			mainCf:  map[string]string{"smtpd_milters": "${dkim} $dmarc", "dkim": "inet:localhost:8891", "dmarc": "inet:localhost:8893"},
			settle:  func(p *Postfix) { p.Settings["smtpd_milters"] = "inet:localhost:8891 inet:localhost:8893" },
			replace: []string{"opendmarc"},
			differs: map[string]string{"smtpd_milters": "${dkim}, " + ourMilter},
		},
		"opendmarc that rejects is replaced": {
			mainCf:  map[string]string{"smtpd_milters": "unix:opendkim/o.sock, unix:opendmarc/o.sock", "non_smtpd_milters": "unix:opendkim/o.sock, unix:opendmarc/o.sock"},
			settle:  func(p *Postfix) { p.OpenDMARC = map[string]string{"rejectfailures": "true"} },
			replace: []string{"opendmarc"},
			differs: map[string]string{"smtpd_milters": "unix:opendkim/o.sock, " + ourMilter, "non_smtpd_milters": "unix:opendkim/o.sock"},
			says:    []string{"fault: opendmarc rejects what fails"},
		},
		"opendmarc comes by a name": {
			mainCf:  map[string]string{"smtpd_milters": "$mine"},
			settle:  func(p *Postfix) { p.Settings["smtpd_milters"] = "inet:localhost:8893" },
			replace: []string{"opendmarc"},
			differs: map[string]string{"smtpd_milters": ourMilter + ", $mine"},
			says:    []string{"fault: opendmarc comes into smtpd_milters by the name of another parameter"},
		},
		"opendkim that only verifies is replaced": {
			mainCf:  map[string]string{"smtpd_milters": "inet:localhost:8891"},
			settle:  func(p *Postfix) { p.OpenDKIM = map[string]string{"mode": "v"} },
			replace: []string{"opendkim"},
		},
		"rspamd sends reports": {
			mainCf:  map[string]string{"smtpd_milters": "inet:localhost:11332"},
			settle:  func(p *Postfix) { p.RspamdReports = true },
			replace: []string{"rspamd"},
			differs: map[string]string{"smtpd_milters": ourMilter + ", inet:localhost:11332"},
			says:    []string{"fault: --replace rspamd: it does more", "enabled = false"},
		},
		"milters in master.cf": {
			settle:  func(p *Postfix) { p.Services[0].Override["smtpd_milters"] = "inet:x:1" },
			differs: map[string]string{"smtpd_milters": old},
			says:    []string{"fault: master.cf has milters of its own for smtp/inet", "postconf -e 'ruapost_milter = { unix:run", "postconf -P 'smtp/inet/smtpd_milters=$ruapost_milter,inet:x:1'"},
		},
		"a proxy filter": {
			settle:  func(p *Postfix) { p.Services[0].Override["smtpd_proxy_filter"] = "127.0.0.1:10024" },
			differs: map[string]string{"smtpd_milters": old},
			says:    []string{"fault: smtp/inet has smtpd_proxy_filter"},
		},
		"no milters": {
			settle: func(p *Postfix) {
				p.Services[0].Override["receive_override_options"] = "no_address_mappings, no_milters"
			},
			differs: map[string]string{"smtpd_milters": old},
			says:    []string{"fault: smtp/inet has receive_override_options with no_milters"},
		},
		"macros": {
			mainCf: map[string]string{"milter_mail_macros": "i {mail_addr}"},
			says:   []string{"fault: milter_mail_macros has no {auth_authen}", "'milter_mail_macros = i {mail_addr} {auth_authen}'"},
		},
		"a socket outside the chroot": {
			toml:    "[milter]\nlisten = [\"unix:/run/m.sock\"]\n",
			differs: map[string]string{"smtpd_milters": old},
			says:    []string{`fault: milter.listen: Postfix is in a chroot`, `listen = ["unix:/run/m.sock", "unix:/var/spool/postfix/run/ruapost/milter.sock"]`},
		},
		"the socket for events outside the chroot": {
			toml:    "[tlspolicy]\ntlsrpt = \"unix:/run/t.sock\"\n",
			differs: map[string]string{"smtp_tlsrpt_enable": old, "smtp_tlsrpt_socket_name": old},
			says:    []string{`fault: tlspolicy.tlsrpt: Postfix is in a chroot`, `tlsrpt = "unix:/var/spool/postfix/run/ruapost/tlsrpt.sock"`, "ListenDatagram=/var"},
		},
		"no chroot": {
			toml:    "[milter]\nlisten = [\"unix:/run/m.sock\"]\n",
			settle:  func(p *Postfix) { p.Services[0].Chroot = false },
			differs: map[string]string{"smtpd_milters": strings.Replace(ourMilter, "unix:run/ruapost/milter.sock", "unix:/run/m.sock", 1)},
		},
		"relay is in a chroot, smtp is not": {
			toml: "[tlspolicy]\nlisten = [\"unix:/run/p.sock\"]\n",
			settle: func(p *Postfix) {
				p.Services[1].Chroot = false
				p.Services = append(p.Services, Service{Name: "relay", Type: "unix", Program: "smtp", Chroot: true, Override: map[string]string{}})
			},
			differs: map[string]string{"smtp_tls_policy_maps": old, "smtp_tls_security_level": old, "smtp_dns_support_level": old, "smtp_tls_CAfile": old},
			says:    []string{"fault: tlspolicy.listen: Postfix is in a chroot"},
		},
		"TCP": {
			toml:    "[tlspolicy]\nlisten = [\"tcp:127.0.0.1:8891\"]\n",
			differs: map[string]string{"smtp_tls_policy_maps": "socketmap:inet:127.0.0.1:8891:QUERYwithTLSRPT"},
		},
		"Postfix 3.7": {
			settle:  func(p *Postfix) { p.Version = postconf.Version{3, 7, 11} },
			differs: map[string]string{"smtp_tls_policy_maps": "socketmap:unix:run/ruapost/policy.sock:QUERY", "smtp_tlsrpt_enable": old, "smtp_tlsrpt_socket_name": old, "tlspolicy.maillog": `["journal"]`},
		},
		"Postfix 3.7 logs itself": {
			mainCf:  map[string]string{"maillog_file": "/var/log/pf.log"},
			settle:  func(p *Postfix) { p.Version = postconf.Version{3, 7, 11} },
			differs: map[string]string{"smtp_tls_policy_maps": "socketmap:unix:run/ruapost/policy.sock:QUERY", "smtp_tlsrpt_enable": old, "smtp_tlsrpt_socket_name": old, "tlspolicy.maillog": `["/var/log/pf.log"]`},
		},
		"built without TLSRPT": {
			settle:  func(p *Postfix) { p.TLSRPT, p.Systemd, p.Syslog = false, false, "/var/log/mail.log" },
			differs: map[string]string{"smtp_tlsrpt_enable": old, "smtp_tlsrpt_socket_name": old, "tlspolicy.maillog": `["/var/log/mail.log"]`},
		},
		"Postfix 3.3": {
			settle:  func(p *Postfix) { p.Version = postconf.Version{3, 3, 0} },
			differs: map[string]string{"smtpd_milters": old, "smtp_tls_policy_maps": old, "smtp_tls_security_level": old, "smtp_dns_support_level": old, "smtp_tls_CAfile": old, "smtp_tls_loglevel": old, "smtp_tlsrpt_enable": old, "smtp_tlsrpt_socket_name": old},
			says:    []string{"fault: Postfix 3.10.4 is too old"},
		},
		"a relay host": {
			mainCf:  map[string]string{"relayhost": "[relay.example.net]:587"},
			differs: outbound(old),
			says:    []string{"ok: relayhost = [relay.example.net]:587"},
		},
		"a relay host by transport": {
			mainCf:  map[string]string{"default_transport": "smtp:[relay.example.net]"},
			differs: outbound(old),
		},
		"tables in master.cf": {
			settle:  func(p *Postfix) { p.Services[1].Override["smtp_tls_policy_maps"] = "hash:/x" },
			differs: map[string]string{"smtp_tls_policy_maps": old, "smtp_tls_security_level": old, "smtp_dns_support_level": old, "smtp_tls_CAfile": old},
			says:    []string{"fault: master.cf has smtp_tls_policy_maps"},
		},
		"tlspol is kept": {
			mainCf:  map[string]string{"smtp_tls_policy_maps": "socketmap:inet:127.0.0.1:8642:QUERYwithTLSRPT"},
			differs: map[string]string{"smtp_tls_policy_maps": old, "smtp_tls_security_level": old, "smtp_dns_support_level": old, "smtp_tls_CAfile": old},
			says:    []string{"fault: postfix-tlspol says which TLS policy a domain has", "--replace postfix-tlspol"},
		},
		"tlspol is replaced by another name, tables of their own stay": {
			mainCf:  map[string]string{"smtp_tls_policy_maps": "hash:/a socketmap:unix:/run/postfix-tlspol/tlspol.sock:QUERY, lmdb:/b"},
			replace: []string{"tlspol"},
			differs: map[string]string{"smtp_tls_policy_maps": "hash:/a, lmdb:/b, " + ourTable},
		},
		"a table that nobody knows": {
			mainCf:  map[string]string{"smtp_tls_policy_maps": "socketmap:inet:x:1:T"},
			replace: []string{"socketmap:inet:x:1:T"},
		},
		"ours has the wrong name": {
			mainCf:  map[string]string{"smtp_tls_policy_maps": "hash:/a, socketmap:unix:run/ruapost/policy.sock:QUERY, hash:/b"},
			differs: map[string]string{"smtp_tls_policy_maps": "hash:/a, " + ourTable + ", hash:/b"},
		},
		"stricter levels stay": {
			mainCf:  map[string]string{"smtp_tls_security_level": "Verify"},
			differs: map[string]string{"smtp_tls_security_level": old},
			says:    []string{"warning: smtp_tls_security_level = verify is stricter"},
		},
		"smtp_enforce_tls is stricter": {
			mainCf:  map[string]string{"smtp_enforce_tls": "yes"},
			differs: map[string]string{"smtp_tls_security_level": old},
			says:    []string{"warning: smtp_enforce_tls = yes is stricter"},
		},
		"the level in master.cf": {
			settle:  func(p *Postfix) { p.Services[1].Override["smtp_tls_security_level"] = "none" },
			differs: map[string]string{"smtp_tls_security_level": old},
			says:    []string{"warning: master.cf has smtp_tls_security_level"},
		},
		"CApath works":   {mainCf: map[string]string{"smtp_tls_CApath": "/x"}, settle: func(p *Postfix) { p.CApathWorks = true }, differs: map[string]string{"smtp_tls_CAfile": old}},
		"CApath is bare": {mainCf: map[string]string{"smtp_tls_CApath": "/x"}},
		"untrusted":      {mainCf: map[string]string{"smtp_tls_loglevel": "summary, untrusted"}},
		"another TLSRPT": {
			mainCf:  map[string]string{"smtp_tlsrpt_enable": "yes", "smtp_tlsrpt_socket_name": "run/tlsrpt/t.sock"},
			differs: map[string]string{"smtp_tlsrpt_enable": old, "smtp_tlsrpt_socket_name": old},
			says:    []string{"fault: smtp_tlsrpt_socket_name = run/tlsrpt/t.sock: Postfix tells another program"},
		},
		"another TLSRPT is replaced": {
			mainCf:  map[string]string{"smtp_tlsrpt_enable": "yes", "smtp_tlsrpt_socket_name": "run/tlsrpt/t.sock"},
			replace: []string{"tlsrpt-reporter"},
			differs: map[string]string{"smtp_tlsrpt_enable": old},
		},
		"a table that answers everything": {
			mainCf:  map[string]string{"smtp_tls_policy_maps": "static:may, " + ourTable},
			differs: map[string]string{"smtp_tls_policy_maps": old},
			says:    []string{"warning: smtp_tls_policy_maps has static:may, which answers for all domains"},
		},
		"nothing to replace": {
			replace: []string{"opendmarc", "tlspol"},
			says:    []string{"fault: --replace opendmarc: there is no such thing", "fault: --replace tlspol: there is no such thing"},
		},
		"networks": {
			mainCf:  map[string]string{"mynetworks": "127.0.0.0/8 192.0.2.0/24, [2001:db8::]/32 !203.0.113.7 203.0.113.0/24 hash:/etc/nets"},
			differs: map[string]string{"milter.trusted_networks": `["127.0.0.0/8", "::1/128", "192.0.2.0/24", "2001:db8::/32"]`},
			says:    []string{"fault: mynetworks has what cannot be taken over: 203.0.113.0/24, hash:/etc/nets"},
		},
		"networks are chosen": {
			mainCf: map[string]string{"mynetworks": "192.0.2.0/24 hash:/etc/nets"},
			toml:   "[milter]\ntrusted_networks = []\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPostfix(tt.mainCf)
			if tt.settle != nil {
				tt.settle(p)
			}
			want := fresh()
			for name, value := range tt.differs {
				if want[name] = value; value == old {
					delete(want, name)
				}
			}
			lines, findings := proposed(t, p, tt.toml, tt.replace...)
			for _, name := range slices.Sorted(maps.Keys(lines)) {
				if lines[name] != want[name] {
					t.Errorf("proposes %s = %s, not %q", name, lines[name], want[name])
				}
			}
			for name, value := range want {
				if lines[name] == "" {
					t.Errorf("does not propose %s = %s", name, value)
				}
			}
			for _, part := range tt.says {
				if !slices.ContainsFunc(findings, func(f string) bool { return strings.Contains(f, part) }) {
					t.Errorf("does not say %q", part)
				}
			}
			for _, f := range findings {
				if strings.HasPrefix(f, "fault: ") && !slices.ContainsFunc(tt.says, func(part string) bool { return strings.Contains(f, part) }) {
					t.Errorf("says %q", f)
				}
			}
			if t.Failed() {
				t.Logf("%s", strings.Join(findings, "\n"))
			}
		})
	}
}

// Of the names that reports are about, those that the host does not know come from Postfix.
func TestNames(t *testing.T) {
	for name, tt := range map[string]struct {
		host, myhostname, mydomain string // mydomain as main.cf sets it
		domain, id                 string
		told                       bool
	}{
		"the host knows":    {"mail.example.org", "mail.example.org", "", "", "", false},
		"a short name":      {"mail", "mail.example.org", "", `"example.org"`, `"mail.example.org"`, false},
		"no name at all":    {"vm", "vm", "", "", "", true},
		"localdomain":       {"vm", "vm.localdomain", "", "", "", true},
		"the domain itself": {"mail", "example.org", "", `"example.org"`, `"example.org"`, false}, // mydomain is org
		"mydomain is set":   {"mail", "mx1.out.example.org", "example.org", `"example.org"`, `"mx1.out.example.org"`, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPostfix(map[string]string{"myhostname": tt.myhostname})
			if tt.mydomain != "" {
				p.Main["mydomain"], p.Settings["mydomain"] = tt.mydomain, tt.mydomain
			}
			cfg := config.Default()
			cfg.ReportDomain, cfg.Milter.AuthservID = config.DomainOf(tt.host), tt.host
			plan := propose(p, cfg, Options{}, &tomlFile{path: "/x"})
			lines := map[string]string{}
			for _, c := range plan.Changes {
				lines[c.Name] = c.New
			}
			if lines["report_domain"] != tt.domain || lines["milter.authserv_id"] != tt.id || plan.Waiting() != tt.told {
				t.Errorf("report_domain = %s, authserv_id = %s, something to do: %v", lines["report_domain"], lines["milter.authserv_id"], plan.Waiting())
			}
		})
	}
}

// Without a resolver that validates, what setup proposes gives no DANE.
func TestAskResolver(t *testing.T) {
	for name, tt := range map[string]struct {
		servers []check.Server
		says    string
	}{
		"validates":       {[]check.Server{{Address: "192.0.2.1:53"}, {Address: "127.0.0.1:53", Answered: true, Authentic: true}}, ""},
		"does not":        {[]check.Server{{Address: "127.0.0.1:53", Answered: true}}, "validates DNSSEC: there is no DANE"},
		"nobody is there": {[]check.Server{{Address: "127.0.0.1:53"}}, "answers"},
	} {
		t.Run(name, func(t *testing.T) {
			plan := &Plan{cfg: config.Default(), Changes: []Change{{File: MainCf, Name: policyMaps}}}
			plan.askResolver(t.Context(), check.Host{Ask: func(context.Context, []string) []check.Server { return tt.servers }})
			if tt.says == "" && len(plan.Findings) > 0 || tt.says != "" && (len(plan.Findings) != 1 || !strings.Contains(plan.Findings[0].What, tt.says)) {
				t.Errorf("%+v", plan.Findings)
			}
		})
	}
}

// What is not ours stays in a list, as it is written there.
func TestWithout(t *testing.T) {
	p := newPostfix(nil)
	before := "inet:localhost:8891"
	ours := p.added([]savedValue{
		{Name: policyMaps, After: ourTable}, {Name: "smtpd_milters", Before: &before, After: before + ", " + ourMilter},
	}, p.leadsTo)
	for list, want := range map[string]string{
		ourTable:                    "",
		"hash:/etc/tls " + ourTable: "hash:/etc/tls",
		"inline:{{a.example=none, x=y}}, proxy:socketmap:unix:/var/spool/postfix/run/ruapost/policy.sock:QUERY, static:may": "inline:{{a.example=none, x=y}}, static:may",
		before + " unix:run/ruapost/milter.sock, $mine":                                                                     before + ", $mine",
		before + "   inet:localhost:8892":                                                                                   before + "   inet:localhost:8892",
		"socketmap:unix:run/mta-sts/policy.sock:postfix":                                                                    "socketmap:unix:run/mta-sts/policy.sock:postfix",
	} {
		if got := p.without(list, ours); got != want {
			t.Errorf("%q has become %q, not %q", list, got, want)
		}
	}
}

func TestSplitNetworks(t *testing.T) {
	networks, not, others := splitNetworks("192.0.2.1 [::ffff:192.0.2.0]/120,!10.0.0.1\n/etc/nets cidr:/x 192.0.2.1 !/etc/not 10.1.2.3/8")
	prefixes := func(list ...string) (all []netip.Prefix) {
		for _, s := range list {
			all = append(all, netip.MustParsePrefix(s))
		}
		return all
	}
	if !slices.Equal(networks, prefixes("192.0.2.1/32", "192.0.2.0/24")) || !slices.Equal(not, prefixes("10.0.0.1/32")) ||
		!slices.Equal(others, []string{"/etc/nets", "cidr:/x", "!/etc/not", "10.1.2.3/8"}) {
		t.Errorf("%v %v %q", networks, not, others)
	}
}

func TestSendsReports(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                                 false,
		"actions = { reject = \"reject\"; }":               false,
		"reporting {\n  enabled = true;\n}":                true,
		"reporting {\n  enabled = false;\n}":               false,
		"reporting {\n  # enabled = true;\n}":              false,
		"reporting = { email = 'a@b'; \"enabled\" : yes }": true,
		"reporting = true;":                                false,
	} {
		if got := sendsReports(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
