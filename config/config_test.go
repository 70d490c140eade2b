package config

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ruapost"
)

const testHost = "mail.example.org"

var byValue = cmpopts.EquateComparable(netip.Prefix{})

func TestEmptyFileIsValid(t *testing.T) {
	got, err := parse("ruapost.toml", "", testHost)
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		OrgName:      "example.org",
		ReportDomain: "example.org",
		Store:        Store{"/var/lib/ruapost/ruapost.db", 250 * time.Millisecond},
		Milter: Milter{
			Listen:          []Listen{{"unix", "/var/spool/postfix/run/ruapost/milter.sock"}},
			AuthservID:      "mail.example.org",
			TrustedNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
			Enforce:         ruapost.DispositionNone,
			Quarantine:      "hold",
			Discovery:       "treewalk",
			Budget:          20 * time.Second,
		},
		TLSPolicy: TLSPolicy{
			Listen: []Listen{{"unix", "/var/spool/postfix/run/ruapost/policy.sock"}},
			TLSRPT: Listen{"unix", "/var/spool/postfix/run/ruapost/tlsrpt.sock"},
		},
		Reporter: Reporter{
			From:     "reports@example.org",
			Sendmail: []string{"/usr/sbin/sendmail", "-i"},
			Format:   "rfc9990",
			Outbox:   "/var/lib/ruapost/outbox",

			MinInterval:             24 * time.Hour,
			Keep:                    7 * 24 * time.Hour,
			Spread:                  45 * time.Minute,
			MaxRecipients:           5,
			MaxReportSize:           10_000_000,
			MaxReportsPerDay:        10_000,
			MaxPerDestinationDomain: 50,
			BounceDelimiter:         "+",
		},
		Web: Web{Listen: Listen{"tcp", "127.0.0.1:9186"}},
	}
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestEveryKey(t *testing.T) {
	const text = `
org_name = "Exämple, Inc."
report_domain = "Bücher.example."
dns.servers = ["192.0.2.1", "::1", "192.0.2.2:5353", "[2001:db8::1]:53"]
tlspolicy = { listen = ["tcp:127.0.0.1:8891"], tlsrpt = "", allow_networks = ["10.0.0.0/8"], testing_mode = "report", on_error = "defer", maillog = ["journal", "/var/log/mail.log"] }

[store]
path = "/srv//ruapost.db"
record_timeout = "1s"

[milter]
listen = [
	"unix:/run/x.sock",
	"tcp:[::1]:8890",   # both
	"tcp:localhost:0",
]
authserv_id = "MX.example"
mode = "trust"
trusted_authserv_ids = ["MX.example", "Gateway_7"]
trusted_sealers = ["Lists.example"]
enforce = "reject"
quarantine = "header"
temperror = "defer"
discovery = "psl"
public_suffix_list = "/srv/list.dat"
report_on = "all"
budget = "30s"
trusted_networks = ["192.0.2.0/24", "2001:db8::1", "::ffff:192.0.2.1", "[::1]/128", "[::ffff:127.0.0.0]/104"]

[reporter]
from = "dmarc@Bücher.example"
sendmail = ["/usr/lib/sendmail"]
format = "rfc7489"
outbox = "/srv/outbox/"
legacy_domains = ["Old.example", ".bücher.example"]
exclude_domains = [".Quiet.example"]
only_domains = ["loud.example"]
exclude_recipients = ["Box@Rua.example", '"a b"@rua.example', ".big.example"]
min_interval = "6h"
keep = "48h"
spread = "0s"
max_recipients = 64
max_report_size = 1_000_000
tls_success_only = false
https_verify = false
allow_networks = ["10.0.0.0/8"]
max_reports_per_run = 1
max_reports_per_day = 0
max_per_destination_domain = 2
bounce_maildir = "/srv/bounces/"
bounce_delimiter = "="
textfile = "/srv/ruapost.prom"

[dkim]
domain = "example.org"
selector = "a.b"
key_file = "/etc/key.pem"

[web]
listen = "unix:/run/ruapost-web/web.sock"
password_file = "/etc/web"
hosts = ["mail.example.org"]

[metrics]
listen = "tcp:[::1]:9184"

[[override]]
source = "192.0.2.0/24"

[[override]]
source = ["192.0.2.0/24", "2001:db8::1"]
dkim = "Lists.example"
spf = ["a.example", "b.example"]
list_id = "Some.List.example"
recipient = "here.example"
type = "mailing_list"
comment = "known list"

[[tls_override]]
domain = "A.example"
level = "encrypt"

[[tls_override]]
domain = ["b.example", ".Bücher.example"]
ignore = ["sts", "dane"]
report = "no"
`
	got, err := parse("ruapost.toml", text, testHost)
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		OrgName:      "Exämple, Inc.",
		ReportDomain: "xn--bcher-kva.example",
		Store:        Store{"/srv/ruapost.db", time.Second},
		DNS:          DNS{[]string{"192.0.2.1:53", "[::1]:53", "192.0.2.2:5353", "[2001:db8::1]:53"}},
		Milter: Milter{
			Listen:          []Listen{{"unix", "/run/x.sock"}, {"tcp", "[::1]:8890"}, {"tcp", "localhost:0"}},
			AuthservID:      "mx.example",
			TrustedNetworks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::1/128"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.0/8")},
			Trust:           true, TrustedAuthservIDs: []string{"MX.example", "Gateway_7"}, TrustedSealers: []string{"lists.example"},
			Enforce:        ruapost.DispositionReject,
			Quarantine:     "header",
			DeferTemperror: true,
			Discovery:      "psl",
			SuffixList:     "/srv/list.dat",
			ReportUnknown:  true,
			Budget:         30 * time.Second,
			Overrides: []Override{
				{Sources: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Type: ruapost.OverrideLocalPolicy},
				{
					Sources:    []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::1/128")},
					DKIM:       []string{"lists.example"},
					SPF:        []string{"a.example", "b.example"},
					ListIDs:    []string{"some.list.example"},
					Recipients: []string{"here.example"},
					Type:       ruapost.OverrideMailingList,
					Comment:    "known list",
				},
			},
		},
		TLSPolicy: TLSPolicy{
			Listen:        []Listen{{"tcp", "127.0.0.1:8891"}},
			AllowNetworks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			ReportTesting: true, DeferOnError: true,
			Maillog: []string{"journal", "/var/log/mail.log"},
			Overrides: []TLSOverride{
				{Domains: []string{"a.example"}, Level: "encrypt"},
				{Domains: []string{"b.example", ".xn--bcher-kva.example"}, IgnoreSTS: true, IgnoreDANE: true, NoReport: true},
			},
		},
		Reporter: Reporter{
			From:              "dmarc@xn--bcher-kva.example",
			Sendmail:          []string{"/usr/lib/sendmail"},
			Format:            "rfc7489",
			LegacyDomains:     Domains{"old.example", ".xn--bcher-kva.example"},
			Outbox:            "/srv/outbox",
			MinInterval:       6 * time.Hour,
			Keep:              48 * time.Hour,
			MaxRecipients:     64,
			MaxReportSize:     1_000_000,
			TLSFailuresOnly:   true,
			HTTPSUnverified:   true,
			AllowNetworks:     []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			MaxReportsPerRun:  1,
			ExcludeDomains:    Domains{".quiet.example"},
			OnlyDomains:       Domains{"loud.example"},
			ExcludeRecipients: Domains{"Box@rua.example", `"a b"@rua.example`, ".big.example"},
			BounceMaildir:     "/srv/bounces",
			BounceDelimiter:   "=",
			Textfile:          "/srv/ruapost.prom",

			MaxPerDestinationDomain: 2,
		},
		DKIM:    DKIM{"example.org", "a.b", "/etc/key.pem"},
		Metrics: Metrics{Listen{"tcp", "[::1]:9184"}, Listen{"tcp", "[::1]:9185"}},
		Web:     Web{Listen{"unix", "/run/ruapost-web/web.sock"}, "/etc/web", []string{"mail.example.org"}},
	}
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A number is no domain name, but a selector (RFC 6376 3.1).
func TestNumericSelector(t *testing.T) {
	c, err := parse("f.toml", "[dkim]\ndomain = 'example.org'\nselector = '20261122'\nkey_file = '/k'\n", testHost)
	if err != nil || c.DKIM.Selector != "20261122" {
		t.Errorf("%+v, %v", c, err)
	}
}

// A value may be written in several ways, and true says what is the default.
func TestReporterForms(t *testing.T) {
	for _, tt := range []struct {
		line string
		want func(r *Reporter)
	}{
		{`min_interval = "1h"`, func(r *Reporter) { r.MinInterval = time.Hour }},
		{`min_interval = "720m"`, func(r *Reporter) { r.MinInterval = 12 * time.Hour }},
		{`min_interval = "1d"`, func(*Reporter) {}},
		{`keep = "168h"`, func(*Reporter) {}},
		{`keep = "1d"`, func(r *Reporter) { r.Keep = 24 * time.Hour }},
		{`keep = "30d"`, func(r *Reporter) { r.Keep = 720 * time.Hour }},
		{`spread = "50m"`, func(r *Reporter) { r.Spread = 50 * time.Minute }},
		{`max_recipients = 1`, func(r *Reporter) { r.MaxRecipients = 1 }},
		{`max_report_size = "10MB"`, func(*Reporter) {}},
		{`max_report_size = "10000KB"`, func(*Reporter) {}},
		{`max_report_size = 100_000_000`, func(r *Reporter) { r.MaxReportSize = 100_000_000 }},
		{`tls_success_only = true`, func(*Reporter) {}},
		{`https_verify = true`, func(*Reporter) {}},
		{`max_reports_per_run = 1_000_000_000`, func(r *Reporter) { r.MaxReportsPerRun = 1_000_000_000 }},
		{`bounce_delimiter = "-"`, func(r *Reporter) { r.BounceDelimiter = "-" }},
		{`bounce_maildir = "/b"`, func(r *Reporter) { r.BounceMaildir = "/b" }}, // 64 octets with reports@
	} {
		t.Run(tt.line, func(t *testing.T) {
			c, err := parse("f.toml", "[reporter]\n"+tt.line+"\n", testHost)
			if err != nil {
				t.Fatal(err)
			}
			want := defaults()
			want.derive(testHost)
			tt.want(&want.Reporter)
			if diff := cmp.Diff(want, c, byValue); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestDomainsHas(t *testing.T) {
	list := Domains{"a.example", ".b.example", "Box@c.example", ".example.org"}
	for name, want := range map[string]bool{
		"a.example": true, "x@a.example": true, `"x@y"@a.example`: true,
		"sub.a.example": false, "xa.example": false,
		"b.example": false, "x.b.example": true, "x.y.b.example": true, "r@x.b.example": true, "xb.example": false,
		"Box@c.example": true, "box@c.example": true, "other@c.example": false, "c.example": false,
		`"x@a.example"@d.example`: false, "": false,
	} {
		if got := list.Has(name); got != want {
			t.Errorf("Has(%q) = %v", name, got)
		}
	}
	if Domains(nil).Has("a.example") {
		t.Error("an empty list has a domain")
	}
}

func TestDerivedDefaults(t *testing.T) {
	c, err := parse("ruapost.toml", `report_domain = "other.example"`, testHost)
	if err != nil {
		t.Fatal(err)
	}
	if c.OrgName != "other.example" || c.Reporter.From != "reports@other.example" || c.Milter.AuthservID != testHost {
		t.Errorf("got org_name %q, from %q, authserv_id %q", c.OrgName, c.Reporter.From, c.Milter.AuthservID)
	}
}

func TestErrors(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"syntax", "[store]\n\npath = \n", `f.toml:3: no valid TOML: expected value but found '\n' instead`},
		{"unfinished string", "\norg_name = \"x\n", `f.toml:2: no valid TOML: strings cannot contain newlines`},
		{"key twice", "org_name = \"a\"\norg_name = \"b\"\n", `f.toml:2: no valid TOML: Key 'org_name' has already been defined. Each section and key stands in the file once; keys belong below the line of their section that is there already`},
		{"section twice", "[dkim]\n[store]\n[dkim]\n", `f.toml:3: no valid TOML: Key 'dkim' has already been defined. Each section and key stands in the file once; keys belong below the line of their section that is there already`},
		{"not UTF-8", "org_name = \"\xff\"\n", `f.toml:1: no valid TOML: invalid UTF-8 byte: 0xff`},

		{
			"unknown key of the top level", "org = \"x\"\n",
			`f.toml:1: org: unknown key; expected one of [dkim], [dns], [metrics], [milter], [reporter], [store], [tlspolicy], [web], org_name, override, report_domain, tls_override`,
		},
		{
			"unknown section", "[milters]\nlisten = []\n",
			`f.toml:1: milters: unknown key; expected one of [dkim], [dns], [metrics], [milter], [reporter], [store], [tlspolicy], [web], org_name, override, report_domain, tls_override`,
		},
		{
			"unknown section of dotted keys", "org_name = \"x\"\nmilters.listen = []\n",
			`f.toml:2: milters: unknown key; expected one of [dkim], [dns], [metrics], [milter], [reporter], [store], [tlspolicy], [web], org_name, override, report_domain, tls_override`,
		},
		{"unknown key of a section", "\n[dkim]\n\nkey = \"x\"\n", `f.toml:4: dkim.key: unknown key; expected one of domain, key_file, selector`},
		{"keys match their case", "[dkim]\nDomain = \"x\"\n", `f.toml:2: dkim.Domain: unknown key; expected one of domain, key_file, selector`},
		{"key of another section", "[store]\nkeep = \"7d\"\n", `f.toml:2: store.keep: unknown key; expected one of path, record_timeout`},
		{"section that is none", "milter = \"x\"\n", `f.toml:1: milter: not a section; expected a line [milter] and its keys below`},
		{"section that is a list", "[[milter]]\n", `f.toml:1: milter: not a section; expected a line [milter] and its keys below`},
		{"table for a value", "[store.path]\nx = 1\n", `f.toml:1: store.path: a table; expected an absolute path`},

		{"number for a string", "org_name = 5\n", `f.toml:1: org_name: 5 is a number; expected a name of up to 200 octets`},
		{"boolean for a string", "report_domain = true\n", `f.toml:1: report_domain: true is a boolean; expected a domain name such as "example.org"`},
		{"date for a string", "report_domain = 2026-01-02\n", `f.toml:1: report_domain: a date or time; expected a domain name such as "example.org"`},
		{"list for a string", "[store]\npath = [\n\"/x\"]\n", `f.toml:2: store.path: a list; expected an absolute path`},
		{
			"string for a list", "[milter]\nlisten = \"unix:/x\"\n",
			`f.toml:2: milter.listen: "unix:/x" is a string; expected a list of sockets such as "unix:/var/spool/postfix/run/ruapost/x.sock" or "tcp:127.0.0.1:8890"`,
		},
		{
			"number in a list", "[dns]\nservers = [53]\n",
			`f.toml:2: dns.servers: 53 is a number; expected a list of addresses of name servers such as "127.0.0.1:53"`,
		},

		{"empty name", "org_name = \"\"\n", `f.toml:1: org_name: empty; expected a name of up to 200 octets`},
		{"control character in name", "org_name = \"a\\nb\"\n", `f.toml:1: org_name: "a b": has blanks around it or control characters; expected a name of up to 200 octets`},
		{"long name", "org_name = \"" + strings.Repeat("ä", 101) + "\"\n", `f.toml:1: org_name: "` + strings.Repeat("ä", 50) + `": 202 octets long; expected a name of up to 200 octets`},
		{"bad domain", "report_domain = \"a..b\"\n", `f.toml:1: report_domain: not a domain name: empty label: "a..b"; expected a domain name such as "example.org"`},
		{"empty domain", "report_domain = \"\"\n", `f.toml:1: report_domain: empty; expected a domain name such as "example.org"`},
		{"relative path", "[store]\npath = \"x.db\"\n", `f.toml:2: store.path: "x.db": not an absolute path; expected an absolute path`},
		{"duration as a number", "[store]\nrecord_timeout = 250\n", `f.toml:2: store.record_timeout: 250 is a number; expected a time from "1ms" to "30s"`},
		{"duration without unit", "[store]\nrecord_timeout = \"250\"\n", `f.toml:2: store.record_timeout: "250": not a time; expected a time from "1ms" to "30s"`},
		{"negative duration", "[store]\nrecord_timeout = \"-1s\"\n", `f.toml:2: store.record_timeout: "-1s": out of bounds; expected a time from "1ms" to "30s"`},
		{"no duration", "[store]\nrecord_timeout = \"0\"\n", `f.toml:2: store.record_timeout: "0": out of bounds; expected a time from "1ms" to "30s"`},
		{"long duration", "[store]\nrecord_timeout = \"31s\"\n", `f.toml:2: store.record_timeout: "31s": out of bounds; expected a time from "1ms" to "30s"`},
		{"server by name", "dns.servers = [\"ns.example:53\"]\n", `f.toml:1: dns.servers: "ns.example:53": not an address with a port; expected a list of addresses of name servers such as "127.0.0.1:53"`},

		{"empty list", "[milter]\nlisten = []\n", `f.toml:2: milter.listen: empty list; expected a list of sockets such as "unix:/var/spool/postfix/run/ruapost/x.sock" or "tcp:127.0.0.1:8890"`},
		{"mode", "[milter]\nmode = \"opendkim\"\n", `f.toml:2: milter.mode: "opendkim": not supported; expected "verify" or "trust"`},
		{"mode empty", "[milter]\nmode = \"\"\n", `f.toml:2: milter.mode: empty; expected "verify" or "trust"`},
		{"trust in nobody", "[milter]\nmode = \"trust\"\n", `f.toml:2: milter.mode: there is nobody to trust; expected trusted_authserv_ids to be set, too`},
		{"no trust", "[milter]\ntrusted_authserv_ids = [\"mx.example\"]\n", `f.toml:2: milter.trusted_authserv_ids: mode is not "trust"`},
		{"authserv-id", "[milter]\ntrusted_authserv_ids = [\"mx.example; spf=pass\"]\n", `f.toml:2: milter.trusted_authserv_ids: "mx.example; spf=pass": not an authserv-id; expected a list of authserv-ids such as "mail.example.org"`},
		{"sealer", "[milter]\ntrusted_sealers = \"lists.example\"\n", `f.toml:2: milter.trusted_sealers: "lists.example" is a string; expected a list of domains such as "lists.example.org"`},
		{"enforce", "[milter]\nenforce = \"none\"\n", `f.toml:2: milter.enforce: "none": not supported; expected "off", "quarantine" or "reject"`},
		{"temperror", "[milter]\ntemperror = \"reject\"\n", `f.toml:2: milter.temperror: "reject": not supported; expected "accept" or "defer"`},
		{"discovery", "[milter]\ndiscovery = \"list\"\n", `f.toml:2: milter.discovery: "list": not supported; expected "treewalk" or "psl"`},
		{"list not used", "[milter]\npublic_suffix_list = \"/x\"\n", `f.toml:2: milter.public_suffix_list: discovery is not "psl"`},
		{"budget", "[milter]\nbudget = \"5m\"\n", `f.toml:2: milter.budget: "5m": out of bounds; expected a time from "1s" to "40s"`},
		{"override no list", "override = 1\n", `f.toml:1: override: 1 is a number; expected sections [[override]] with the keys source, dkim, spf, list_id, recipient, type and comment`},
		{"override empty", "[[override]]\ntype = 'other'\n", `f.toml:1: override: section 1: it would match every message; expected at least one of source, dkim, spf, list_id, recipient`},
		{"override forgeable", "[[override]]\nlist_id = 'a.example'\nrecipient = 'b.example'\n", `f.toml:1: override: section 1: anybody can write a List-Id; expected source, dkim or spf beside list_id`},
		{"override key", "[[override]]\nfrom = 'other'\n", `f.toml:1: override: section 1: unknown key "from"; expected one of comment, dkim, list_id, recipient, source, spf, type`},
		{"override network", "[[override]]\ndkim = 'a.example'\n[[override]]\nsource = '192.0.2.1/24'\n", `f.toml:3: override: section 2: source: "192.0.2.1/24": address inside the network 192.0.2.0/24; expected a list of networks such as "192.0.2.0/24" or "2001:db8::/32"`},
		{"override type", "[[override]]\ndkim = 'a.example'\ntype = 'sampled_out'\n", `f.toml:1: override: section 1: type: "sampled_out": not supported; expected "local_policy", "trusted_forwarder", "mailing_list", "forwarded" or "other"`},
		{"override list address", "[[override]]\nlist_id = 'users@a.example'\n", `f.toml:1: override: section 1: list_id: "users@a.example": not a list identifier; expected a list of list identifiers such as "list.example.org", without angle brackets`},
		{"override list", "[[override]]\nlist_id = '<a.example>'\n", `f.toml:1: override: section 1: list_id: "<a.example>": not a list identifier; expected a list of list identifiers such as "list.example.org", without angle brackets`},
		{"maillog", "[tlspolicy]\nmaillog = ['syslog']\n", `f.toml:2: tlspolicy.maillog: "syslog": not an absolute path; expected a list of "journal", or absolute paths of log files`},
		{"tls_override for nothing", "[[tls_override]]\nlevel = 'may'\n", `f.toml:1: tls_override: section 1: it would be for no domain; expected domain`},
		{"tls_override without effect", "[[tls_override]]\ndomain = 'a.example'\nreport = 'yes'\n", `f.toml:1: tls_override: section 1: it would change nothing; expected level, ignore or report = "no"`},
		{"tls_override with both", "[[tls_override]]\ndomain = 'a.example'\nlevel = 'may'\nignore = ['sts']\n", `f.toml:1: tls_override: section 1: what a domain publishes has no say beside a level; expected either level or ignore`},
		{"tls_override twice", "[[tls_override]]\ndomain = 'a.example'\nlevel = 'may'\n[[tls_override]]\ndomain = ['b.example', 'a.example']\nreport = 'no'\n", `f.toml:4: tls_override: section 2: a.example stands in section 1, too; expected each name once`},
		{"tls_override level", "[[tls_override]]\ndomain = 'a.example'\nlevel = 'verify'\n", `f.toml:1: tls_override: section 1: level: "verify": not supported; expected "none", "may", "encrypt", "dane", "dane-only" or "secure"`},
		{"tls_override domain", "[[tls_override]]\ndomain = '[a.example]'\n", `f.toml:1: tls_override: section 1: domain: not a domain name: character '[': "[a.example]"; expected a list of domains such as "example.org", or ".example.org" for all names below it`},
		{
			"no network", "[milter]\ntrusted_networks = [\"10/8\"]\n",
			`f.toml:2: milter.trusted_networks: "10/8": not a network; expected a list of networks such as "192.0.2.0/24" or "2001:db8::/32"`,
		},
		{
			"address in network", "[milter]\ntrusted_networks = [\"10.0.0.1/8\"]\n",
			`f.toml:2: milter.trusted_networks: "10.0.0.1/8": address inside the network 10.0.0.0/8; expected a list of networks such as "192.0.2.0/24" or "2001:db8::/32"`,
		},
		{
			"mapped network", "[milter]\ntrusted_networks = [\"::ffff:10.0.0.0/95\"]\n",
			`f.toml:2: milter.trusted_networks: "::ffff:10.0.0.0/95": IPv4 network in IPv6 form with less than 96 bits; expected a list of networks such as "192.0.2.0/24" or "2001:db8::/32"`,
		},
		{"tlsrpt by tcp", "[tlspolicy]\ntlsrpt = \"tcp:127.0.0.1:1\"\n", `f.toml:2: tlspolicy.tlsrpt: "tcp:127.0.0.1:1": not a unix socket; expected a socket "unix:/PATH", or "" for none`},

		{
			"from with name", "[reporter]\nfrom = \"R <r@example.org>\"\n",
			`f.toml:2: reporter.from: "R <r@example.org>": not a mail address: no "@" after the local part; expected a mail address such as "reports@example.org"`,
		},
		{
			"from like an option", "[reporter]\nfrom = \"-r@example.org\"\n",
			`f.toml:2: reporter.from: "-r@example.org": not a plain mail address; expected a mail address such as "reports@example.org"`,
		},
		{
			"from quoted", "[reporter]\nfrom = '\"a b\"@example.org'\n",
			`f.toml:2: reporter.from: "\"a b\"@example.org": not a plain mail address; expected a mail address such as "reports@example.org"`,
		},
		{
			"from not ASCII", "[reporter]\nfrom = 'ä@example.org'\n",
			`f.toml:2: reporter.from: "ä@example.org": local part is not ASCII; expected a mail address such as "reports@example.org"`,
		},
		{
			"from at an address", "[reporter]\nfrom = 'r@[192.0.2.1]'\n",
			`f.toml:2: reporter.from: not a mail address: not a domain name: character '[': "[192.0.2.1]"; expected a mail address such as "reports@example.org"`,
		},
		{
			"from too long", "[reporter]\nfrom = '" + strings.Repeat("r", 65) + "@example.org'\n",
			`f.toml:2: reporter.from: "` + strings.Repeat("r", 65) + `@example.org": not a mail address: local part is longer than 64 octets; expected a mail address such as "reports@example.org"`,
		},
		{
			"selector", "[dkim]\nselector = 'a b'\n",
			`f.toml:2: dkim.selector: "a b": not a selector; expected a selector such as "mail2026", or "" for none`,
		},
		{
			"sendmail by name", "[reporter]\nsendmail = [\"sendmail\", \"-i\"]\n",
			`f.toml:2: reporter.sendmail: "sendmail": not an absolute path; expected a list of strings: the absolute path of a program, and its arguments`,
		},
		{
			"sendmail empty", "[reporter]\nsendmail = [\"\"]\n",
			`f.toml:2: reporter.sendmail: empty; expected a list of strings: the absolute path of a program, and its arguments`,
		},
		{"format", "[reporter]\nformat = \"rfc9989\"\n", `f.toml:2: reporter.format: "rfc9989": not supported; expected "rfc9990" or "rfc7489"`},

		{"interval that does not divide a day", "[reporter]\nmin_interval = \"5h\"\n", `f.toml:2: reporter.min_interval: "5h": not supported; expected "1h", "2h", "3h", "4h", "6h", "8h", "12h" or "24h"`},
		{"interval of minutes", "[reporter]\nmin_interval = \"30m\"\n", `f.toml:2: reporter.min_interval: "30m": not supported; expected "1h", "2h", "3h", "4h", "6h", "8h", "12h" or "24h"`},
		{"interval of hours and minutes", "[reporter]\nmin_interval = \"90m\"\n", `f.toml:2: reporter.min_interval: "90m": not supported; expected "1h", "2h", "3h", "4h", "6h", "8h", "12h" or "24h"`},
		{"interval of days", "[reporter]\nmin_interval = \"2d\"\n", `f.toml:2: reporter.min_interval: "2d": not supported; expected "1h", "2h", "3h", "4h", "6h", "8h", "12h" or "24h"`},
		{"no interval", "[reporter]\nmin_interval = \"0\"\n", `f.toml:2: reporter.min_interval: "0": not supported; expected "1h", "2h", "3h", "4h", "6h", "8h", "12h" or "24h"`},
		{"interval as a number", "[reporter]\nmin_interval = 86400\n", `f.toml:2: reporter.min_interval: 86400 is a number; expected "1h", "2h", "3h", "4h", "6h", "8h", "12h" or "24h"`},
		{"keep too short", "[reporter]\nkeep = \"12h\"\n", `f.toml:2: reporter.keep: "12h": out of bounds; expected a time from "1d" to "30d"`},
		{"keep too long", "[reporter]\nkeep = \"31d\"\n", `f.toml:2: reporter.keep: "31d": out of bounds; expected a time from "1d" to "30d"`},
		{"keep beyond all bounds", "[reporter]\nkeep = \"99999999999999999999d\"\n", `f.toml:2: reporter.keep: "99999999999999999999d": not a time; expected a time from "1d" to "30d"`},
		{"keep for half days", "[reporter]\nkeep = \"1.5d\"\n", `f.toml:2: reporter.keep: "1.5d": not a time; expected a time from "1d" to "30d"`},
		{"keep negative", "[reporter]\nkeep = \"-7d\"\n", `f.toml:2: reporter.keep: "-7d": not a time; expected a time from "1d" to "30d"`},
		{"spread over the next run", "[reporter]\nspread = \"1h\"\n", `f.toml:2: reporter.spread: "1h": out of bounds; expected a time from "0s" to "50m"`},
		{"no recipients", "[reporter]\nmax_recipients = 0\n", `f.toml:2: reporter.max_recipients: 0: out of bounds; expected a whole number from 1 to 64`},
		{"many recipients", "[reporter]\nmax_recipients = 65\n", `f.toml:2: reporter.max_recipients: 65: out of bounds; expected a whole number from 1 to 64`},
		{"number in quotes", "[reporter]\nmax_recipients = \"5\"\n", `f.toml:2: reporter.max_recipients: "5" is a string; expected a whole number from 1 to 64`},
		{"number with a fraction", "[reporter]\nmax_recipients = 5.5\n", `f.toml:2: reporter.max_recipients: 5.5 is a number; expected a whole number from 1 to 64`},
		{"negative number", "[reporter]\nmax_reports_per_day = -1\n", `f.toml:2: reporter.max_reports_per_day: -1: out of bounds; expected a whole number from 1 to 1000000000, or 0 for no bound`},
		{"number that no int of 32 bits holds", "[reporter]\nmax_per_destination_domain = 4294967297\n", `f.toml:2: reporter.max_per_destination_domain: 4294967297: out of bounds; expected a whole number from 1 to 1000000000, or 0 for no bound`},
		{"boolean for a number", "[reporter]\nmax_reports_per_run = false\n", `f.toml:2: reporter.max_reports_per_run: false is a boolean; expected a whole number from 1 to 1000000000, or 0 for no bound`},
		{"boolean in quotes", "[reporter]\ntls_success_only = \"true\"\n", `f.toml:2: reporter.tls_success_only: "true" is a string; expected true or false, without quotes`},
		{"number for a boolean", "[reporter]\nhttps_verify = 0\n", `f.toml:2: reporter.https_verify: 0 is a number; expected true or false, without quotes`},
		{"size too small", "[reporter]\nmax_report_size = \"999KB\"\n", `f.toml:2: reporter.max_report_size: "999KB": out of bounds; expected a size from "1MB" to "100MB", or as many octets`},
		{"size too large", "[reporter]\nmax_report_size = 100_000_001\n", `f.toml:2: reporter.max_report_size: 100000001: out of bounds; expected a size from "1MB" to "100MB", or as many octets`},
		{"size beyond all bounds", "[reporter]\nmax_report_size = \"18446744073709551615MB\"\n", `f.toml:2: reporter.max_report_size: "18446744073709551615MB": not a number with KB or MB behind it; expected a size from "1MB" to "100MB", or as many octets`},
		{"size with another unit", "[reporter]\nmax_report_size = \"10MiB\"\n", `f.toml:2: reporter.max_report_size: "10MiB": not a number with KB or MB behind it; expected a size from "1MB" to "100MB", or as many octets`},
		{"size as a boolean", "[reporter]\nmax_report_size = true\n", `f.toml:2: reporter.max_report_size: true is a boolean; expected a size from "1MB" to "100MB", or as many octets`},
		{"recipient as a URI", "[reporter]\nexclude_recipients = [\"mailto:a@b.example\"]\n", `f.toml:2: reporter.exclude_recipients: "mailto:a@b.example": not a mail address: no "@" after the local part; expected a list of mail addresses, or domains such as "example.org", or ".example.org" for all names below it`},
		{"recipients below a dot", "[reporter]\nonly_domains = [\".\"]\n", `f.toml:2: reporter.only_domains: not a domain name: empty: ""; expected a list of domains such as "example.org", or ".example.org" for all names below it`},
		{"one domain without a list", "[reporter]\nlegacy_domains = \"a.example\"\n", `f.toml:2: reporter.legacy_domains: "a.example" is a string; expected a list of domains such as "example.org", or ".example.org" for all names below it`},
		{"delimiter of letters", "[reporter]\nbounce_delimiter = \"+x\"\n", `f.toml:2: reporter.bounce_delimiter: "+x": not a delimiter; expected one character such as "+" or "="`},
		{"delimiter that is no atext", "[reporter]\nbounce_delimiter = \".\"\n", `f.toml:2: reporter.bounce_delimiter: ".": not a delimiter; expected one character such as "+" or "="`},
		{"no delimiter", "[reporter]\nbounce_delimiter = \"\"\n", `f.toml:2: reporter.bounce_delimiter: empty; expected one character such as "+" or "="`},
		{
			"no room for bounces", "[reporter]\nbounce_maildir = \"/b\"\nfrom = \"dmarc-aggregate-reports@example.org\"\n",
			`f.toml:2: reporter.bounce_maildir: bounce: "dmarc-aggregate-reports@example.org" has no room for "+" and the 44 characters of a token; expected another from, or a shorter one`,
		},
		{
			"no room for bounces to a long domain", "[reporter]\nbounce_maildir = \"/b\"\nfrom = \"r@" + strings.Repeat("a2345678.", 24) + "example\"\n",
			`f.toml:2: reporter.bounce_maildir: bounce: "r@` + strings.Repeat("a2345678.", 24) + `example" has no room for "+" and the 44 characters of a token; expected another from, or a shorter one`,
		},
		{"bounces to a relative path", "[reporter]\nbounce_maildir = \"Maildir\"\n", `f.toml:2: reporter.bounce_maildir: "Maildir": not an absolute path; expected an absolute path, or "" for none`},

		{
			"half of dkim", "[dkim]\ndomain = \"\"\nselector = \"s\"\nkey_file = \"/k\"\n",
			`f.toml:3: dkim.selector: dkim.domain is not set; expected all of domain, selector and key_file, or none`,
		},
		{"web beyond loopback", "[web]\nlisten = \"tcp:0.0.0.0:9186\"\n", `f.toml:2: web.listen: "tcp:0.0.0.0:9186" is no loopback address: everybody could see the page; expected password_file to be set, too`},
		{"web at a name", "[web]\nlisten = \"tcp:mail.example.org:9186\"\n", `f.toml:2: web.listen: "tcp:mail.example.org:9186" is no loopback address: everybody could see the page; expected password_file to be set, too`},
		{"metrics by unix", "[metrics]\nlisten = \"unix:/x\"\n", `f.toml:2: metrics.listen: "unix:/x": not a tcp socket; expected a socket "tcp:HOST:PORT", or "" for none`},
		{
			"metrics at the last port", "[metrics]\nlisten = \"tcp:127.0.0.1:65535\"\n",
			`f.toml:2: metrics.listen: "tcp:127.0.0.1:65535": no port after it for the second daemon; expected a socket "tcp:HOST:PORT", or "" for none`,
		},

		{
			"all errors, in the order of their lines",
			"[reporter]\noutbox = 1\n[dkim]\nbad = 1\n[store]\npath = true\n",
			"f.toml:2: reporter.outbox: 1 is a number; expected an absolute path\n" +
				"f.toml:4: dkim.bad: unknown key; expected one of domain, key_file, selector\n" +
				"f.toml:6: store.path: true is a boolean; expected an absolute path",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parse("f.toml", tt.text, testHost)
			if err == nil {
				t.Fatal("no error")
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestParseListen(t *testing.T) {
	tests := []struct {
		in   string
		want Listen
		err  string
	}{
		{in: "unix:/run/x.sock", want: Listen{"unix", "/run/x.sock"}},
		{in: "tcp:127.0.0.1:8890", want: Listen{"tcp", "127.0.0.1:8890"}},
		{in: "tcp:[::1]:8890", want: Listen{"tcp", "[::1]:8890"}},
		{in: "tcp:mail.example.org:8890", want: Listen{"tcp", "mail.example.org:8890"}},
		{in: "unix:" + strings.Repeat("/abcdefghi", 11)[:112-5], want: Listen{"unix", strings.Repeat("/abcdefghi", 11)[:107]}},
		{in: "unix:" + strings.Repeat("/abcdefghi", 11)[:108], err: "path of 108 octets is longer than the 107 that a socket can have"},
		{in: "unix:run/x.sock", err: "not an absolute path"},
		{in: "unix:", err: "not an absolute path"},
		{in: "unix:/x\x00", err: "path with a NUL"},
		{in: "/run/x.sock", err: "neither a unix nor a tcp socket"},
		{in: "inet:8890@localhost", err: "neither a unix nor a tcp socket"},
		{in: "tcp", err: "not of the form HOST:PORT"},
		{in: "tcp:8890", err: "not of the form HOST:PORT"},
		{in: "tcp:::1:8890", err: "not of the form HOST:PORT"},
		{in: "tcp::8890", err: "no host"},
		{in: "tcp:127.0.0.1:", err: `port "" is not a number up to 65535`},
		{in: "tcp:127.0.0.1:smtp", err: `port "smtp" is not a number up to 65535`},
		{in: "tcp:127.0.0.1:65536", err: `port "65536" is not a number up to 65535`},
		{in: "tcp:a b:1", err: `host "a b" is neither an address nor a name`},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			got, err := ParseListen(tt.in)
			msg := ""
			if err != nil {
				msg = err.Error()
			}
			if got != tt.want || msg != tt.err {
				t.Errorf("got %v, %q; want %v, %q", got, msg, tt.want, tt.err)
			}
			if err == nil && got.String() != tt.in {
				t.Errorf("String() = %q", got.String())
			}
		})
	}
}

func TestHostNames(t *testing.T) {
	hosts := "127.0.0.1 localhost\n# 192.0.2.9 mx.comment.example\n127.0.1.1\tmail.example.org mail # mx.late\n192.0.2.7 mailer.example.com mail2.example.com\n"
	for short, want := range map[string]string{"mail": "mail.example.org", "mail2": "mail2.example.com", "mx": "mx", "localhost": "localhost"} {
		if got := fullName(short, hosts); got != want {
			t.Errorf("fullName(%q) = %q, want %q", short, got, want)
		}
	}
	for host, want := range map[string]string{
		"mail.example.org":    "example.org",
		"mx.eu.example.org":   "eu.example.org",
		"example.org":         "example.org", // above it, there is only org
		"example.co.uk":       "example.co.uk",
		"mail.example.co.uk":  "example.co.uk",
		"mail":                "mail",
		"out.lab.test":        "lab.test",
		"ip-10-0-0-1.invalid": "ip-10-0-0-1.invalid",
	} {
		if got := DomainOf(host); got != want {
			t.Errorf("DomainOf(%q) = %q, want %q", host, got, want)
		}
	}
}

func TestLoad(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ruapost.toml")
	if _, err := Load(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: got %v", err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("[store]\npath = 1\n")
	_, err := Load(file)
	if want := file + ":2: store.path: 1 is a number; expected an absolute path"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	var e *Error
	if !errors.As(err, &e) || e.Line != 2 || e.Key != "store.path" {
		t.Errorf("got %#v", e)
	}
	write("")
	c, err := Load(file)
	want := Default()
	want.File = file
	if diff := cmp.Diff(want, c, byValue); err != nil || diff != "" {
		t.Errorf("empty file is not the default: %v\n%s", err, diff)
	}
}

// The example file has every key, with its default.
func TestExample(t *testing.T) {
	file, err := os.ReadFile("../contrib/ruapost.toml")
	if err != nil {
		t.Fatal(err)
	}
	want, err := parse("", "", testHost)
	if err != nil {
		t.Fatal(err)
	}
	text := string(file)
	active := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(text, "$1")
	for name, text := range map[string]string{"as it is": text, "uncommented": active} {
		got, err := parse("ruapost.toml", text, testHost)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, byValue, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s, it does not equal the defaults: -want +got:\n%s", name, diff)
		}
	}
	entries, err := readFile("ruapost.toml", active)
	if err != nil {
		t.Fatal(err)
	}
	left := new(Config).keys()
	for _, e := range entries {
		delete(left, e.key)
	}
	for _, several := range []string{"override", "tls_override"} {
		if strings.Contains(text, "\n#[["+several+"]]\n") {
			delete(left, several)
		}
	}
	for key := range left {
		t.Errorf("%s is not in the example", key)
	}
}

// What systemd and Postfix are told of the sockets agrees with the defaults.
func TestContribAgreesWithDefaults(t *testing.T) {
	c := defaults()
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join("../contrib", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	queue := func(l Listen) string { return strings.TrimPrefix(l.Address, "/var/spool/postfix/") }
	for _, tt := range []struct{ file, line string }{
		{"systemd/ruapost-milter.socket", "ListenStream=" + c.Milter.Listen[0].Address},
		{"systemd/ruapost-policy.socket", "ListenStream=" + c.TLSPolicy.Listen[0].Address},
		{"systemd/ruapost-tlsrpt.socket", "ListenDatagram=" + c.TLSPolicy.TLSRPT.Address},
		{"systemd/tmpfiles.d/ruapost.conf", "d " + filepath.Dir(c.Milter.Listen[0].Address) + "  2750 ruapost postfix -"},
		{"systemd/tmpfiles.d/ruapost.conf", "d " + filepath.Dir(c.Store.Path) + "                2770 ruapost ruapost -"},
		{"systemd/tmpfiles.d/ruapost.conf", "d " + c.Reporter.Outbox + "         2770 ruapost ruapost -"},
		{"systemd/ruapost-milter.service", "ReadWritePaths=-" + filepath.Dir(c.Store.Path)},
		{"systemd/ruapost-tlspolicy.service", "ReadWritePaths=-" + filepath.Dir(c.Store.Path)},
		{"systemd/ruapost-reporter.service", "ReadWritePaths=-" + filepath.Dir(c.Store.Path) + " -/var/spool/postfix/maildrop -/var/lib/prometheus/node-exporter"},
		{"postfix/main.cf-3.10", "    { unix:" + queue(c.Milter.Listen[0]) + ","},
		{"postfix/main.cf-3.10", "smtp_tls_policy_maps = socketmap:unix:" + queue(c.TLSPolicy.Listen[0]) + ":QUERYwithTLSRPT"},
		{"postfix/main.cf-3.10", "smtp_tlsrpt_socket_name = " + queue(c.TLSPolicy.TLSRPT)},
		{"postfix/main.cf-3.4-to-3.9", "    { unix:" + queue(c.Milter.Listen[0]) + ","},
		{"postfix/main.cf-3.4-to-3.9", "smtp_tls_policy_maps = socketmap:unix:" + queue(c.TLSPolicy.Listen[0]) + ":QUERY"},
	} {
		if !strings.Contains(read(tt.file), "\n"+tt.line+"\n") {
			t.Errorf("contrib/%s has no line %q", tt.file, tt.line)
		}
	}
}

// Every field of Config has a key that sets it.
func TestEveryFieldHasAKey(t *testing.T) {
	c, err := parse("", "", testHost)
	if err != nil {
		t.Fatal(err)
	}
	keys := c.keys()
	v := reflect.ValueOf(*c)
	fields := -1 // File
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() == reflect.Struct && f.Type() != reflect.TypeFor[Metrics]() { // Metrics has one key
			fields += f.NumField()
		} else {
			fields++
		}
	}
	if n := len(keys); fields != n {
		t.Errorf("%d fields, but %d keys that set one", fields, n)
	}
}

func FuzzParse(f *testing.F) {
	example, err := os.ReadFile("../contrib/ruapost.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(strings.ReplaceAll(string(example), "\n#", "\n"))
	f.Add("[milter]\nlisten = [\n\"tcp:[::1]:1\"]\nx.y = {z = 1979-05-27}\n[[dkim]]\n[a.b]\n")
	f.Add("reporter.from = '''\na@b'''\nreporter.\"\" = 1e5\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse("f", text, testHost)
		if (c == nil) == (err == nil) {
			t.Fatalf("got %v and %v", c, err)
		}
		var e *Error
		if err != nil && (!errors.As(err, &e) || e.Line < 1 || e.Line > strings.Count(text, "\n")+1) {
			t.Errorf("error without a line: %v", err)
		}
	})
}
