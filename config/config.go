// Package config reads the one TOML file that all programs share and checks all
// of it: what a Config holds can be used as it is.
//
// Every key has a default that suits a fresh install, so that an empty file, or
// none, is a valid configuration; contrib/ruapost.toml lists them. A key that
// does not exist and a value that this version does not support are errors, as
// an administrator must never believe in a protection that is not there.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"ruapost"
	"ruapost/bounce"
	"ruapost/compose"
	"ruapost/dmarc"
)

// DefaultPath is the file the programs read if not told otherwise.
const DefaultPath = "/etc/ruapost/ruapost.toml"

// Config is a checked configuration. Domain names in it are as
// ruapost.ParseDomain gives them, file names are absolute.
type Config struct {
	// File is where it was read; empty if it was read nowhere.
	File string

	// OrgName is the reporting organization's name in reports, ReportDomain its
	// domain: the submitter of reports.
	OrgName      string
	ReportDomain string

	Store     Store
	DNS       DNS
	Milter    Milter
	TLSPolicy TLSPolicy
	Reporter  Reporter
	DKIM      DKIM
	Metrics   Metrics
	Web       Web
}

// Store is the file that the programs share.
type Store struct {
	Path string
	// RecordTimeout is how long an answer to Postfix waits for its record to be
	// on disk, from 1 ms to 30 s.
	RecordTimeout time.Duration
}

// DNS tells where to look up names.
type DNS struct {
	// Servers are the recursive servers as "address:port"; if empty, those of
	// resolv.conf are used.
	Servers []string
}

// Milter is what the milter needs to know.
type Milter struct {
	// Listen are the sockets, at least one.
	Listen []Listen
	// AuthservID is what the milter calls itself in Authentication-Results
	// (RFC 8601 2.5).
	AuthservID string
	// TrustedNetworks are those whose mail is not judged.
	TrustedNetworks []netip.Prefix
	// Trust says that results of milters before this one are taken: those in
	// Authentication-Results fields with one of TrustedAuthservIDs, which are empty
	// otherwise.
	Trust              bool
	TrustedAuthservIDs []string
	// TrustedSealers are the domains, with all below them, that are believed what
	// their ARC seals vouch for.
	TrustedSealers []string
	// Enforce is the most that is done with a message that fails: none, quarantine
	// or reject.
	Enforce ruapost.Disposition
	// Quarantine is how: "hold" puts a message into Postfix's hold queue, "header"
	// marks it.
	Quarantine string
	// DeferTemperror defers a message that DMARC could not judge because of a
	// temporary error, if its domain asks for quarantine or reject, or may do so.
	DeferTemperror bool
	// Discovery is how policies are found: "treewalk" (RFC 9989) or "psl" (RFC 7489),
	// with the list in the file SuffixList, or with a built-in one if that is empty.
	Discovery  string
	SuffixList string
	// ReportUnknown makes forged mail of domains that never exchange mail with this
	// system cause reports, too.
	ReportUnknown bool
	// Budget is how long a message may wait for DNS, from 1 s to 40 s.
	Budget time.Duration
	// Overrides are exceptions from the policies, the first that matches counts.
	Overrides []Override
}

// Suffixes returns the public suffix list of Discovery, nil if it needs none. An error
// is that of reading SuffixList.
func (m *Milter) Suffixes() (dmarc.Suffixes, error) {
	switch {
	case m.SuffixList != "":
		return dmarc.LoadSuffixes(m.SuffixList)
	case m.Discovery == "psl":
		return dmarc.BuiltinSuffixes{}, nil
	}
	return nil, nil
}

// Override is an exception: a message that fails DMARC and matches is not treated as
// the policy asks, and the report gives Type and Comment as the reason. It matches if
// of each list that is not empty something matches. A domain in DKIM, SPF or
// Recipients stands for all names below it, too.
type Override struct {
	Sources    []netip.Prefix
	DKIM       []string // domains of signatures that passed
	SPF        []string // domains that SPF passed for
	ListIDs    []string // of List-Id, without the angle brackets, in lower case
	Recipients []string // domains that all recipients are in
	Type       ruapost.OverrideType
	Comment    string
}

// TLSPolicy is what the TLS policy daemon needs to know.
type TLSPolicy struct {
	// Listen are the sockets for policy queries, at least one.
	Listen []Listen
	// TLSRPT is the unix datagram socket for Postfix's TLSRPT events; the zero
	// Listen if there is to be none.
	TLSRPT Listen
	// AllowNetworks are those where MTA-STS policy hosts may be although they are not
	// on the Internet.
	AllowNetworks []netip.Prefix
	// ReportTesting makes sessions with domains whose MTA-STS policy is in mode testing
	// be reported under that policy.
	ReportTesting bool
	// DeferOnError makes mail wait if DNS or HTTPS trouble keeps a policy from being
	// known; else smtp_tls_security_level decides.
	DeferOnError bool
	// Maillog are the sources of Postfix's log: "journal", or absolute paths.
	Maillog []string
	// Overrides are exceptions from what domains publish.
	Overrides []TLSOverride
}

// TLSOverride is an exception for outbound mail to domains: a name is that domain alone,
// one with a dot before it all names below it.
type TLSOverride struct {
	Domains []string
	// Level, unless it is empty, is the level that Postfix gets whatever the domain
	// publishes: none, may, encrypt, dane, dane-only or secure.
	Level string
	// IgnoreSTS and IgnoreDANE say that the domain counts as one without.
	IgnoreSTS, IgnoreDANE bool
	// NoReport says that sessions with the domain are not reported to it.
	NoReport bool
}

// Reporter is what the reporter needs to know.
type Reporter struct {
	// From is the mail address reports come from, in header and envelope.
	From string
	// Sendmail is the program that takes mails, and its first arguments.
	Sendmail []string
	// Format is the form of DMARC reports, "rfc9990" or "rfc7489".
	Format string
	// LegacyDomains are those that get DMARC reports in the form rfc7489 whatever
	// Format is: policy domains, or domains of recipients.
	LegacyDomains Domains
	// Outbox is the directory where composed reports wait.
	Outbox string
	// MinInterval is the shortest window of DMARC reports; it divides a day.
	MinInterval time.Duration
	// Keep is how long what was recorded and what was reported is kept.
	Keep time.Duration
	// Spread is the time over which a run spreads its mails.
	Spread time.Duration
	// MaxRecipients is the number of destinations of a report that are served.
	MaxRecipients int
	// MaxReportSize is the size of a compressed report in octets above which it is
	// split.
	MaxReportSize int64
	// TLSFailuresOnly says that TLS reports without failures are not sent.
	TLSFailuresOnly bool
	// HTTPSUnverified says that the certificates of https destinations are not checked.
	// AllowNetworks are those where such destinations may be although they are not on the
	// Internet.
	HTTPSUnverified bool
	AllowNetworks   []netip.Prefix
	// MaxReportsPerRun, MaxReportsPerDay and MaxPerDestinationDomain hold mails back;
	// 0 is no bound.
	MaxReportsPerRun        int
	MaxReportsPerDay        int
	MaxPerDestinationDomain int
	// BounceMaildir is where bounces are filed; if it is empty they go to From. Else
	// the envelope sender is From with BounceDelimiter and a token behind its local part.
	BounceMaildir   string
	BounceDelimiter string
	// ExcludeDomains get no reports about themselves; if OnlyDomains is not empty, only
	// those do. ExcludeRecipients are mail addresses or domains that nothing is sent to.
	ExcludeDomains, OnlyDomains, ExcludeRecipients Domains
	// Textfile is where the reporter's numbers are written for node_exporter, empty for
	// nowhere.
	Textfile string
}

// DKIM tells how to sign reports. Either all of it is set or nothing.
type DKIM struct {
	Domain   string
	Selector string
	// KeyFile is the file that has the private key in PEM form.
	KeyFile string
}

// Web is the page for administrators.
type Web struct {
	// Listen is where it is.
	Listen Listen
	// PasswordFile has who may see it, empty if everybody may who gets there.
	PasswordFile string
	// Hosts are the names that it is reached by, beside localhost and addresses.
	Hosts []string
}

// Metrics are the TCP sockets that serve Prometheus metrics, one per daemon. The
// file has one address for both: the milter's; the TLS policy daemon takes the
// port after it. Both are the zero Listen if there are to be no metrics.
type Metrics struct {
	Milter    Listen
	TLSPolicy Listen
}

// Load reads the file at path. The error has all that is wrong with the file,
// one Error a line; or it is the one that came with opening it.
func Load(path string) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c, err := Parse(path, string(text))
	if err == nil {
		c.File = path
	}
	return c, err
}

// Parse is Load for a text, where file is only told in errors.
func Parse(file, text string) (*Config, error) { return parse(file, text, hostname()) }

// Default returns the configuration of an empty file.
func Default() *Config {
	c := defaults()
	c.derive(hostname())
	return c
}

// defaults returns the defaults that do not depend on the host or on other keys.
func defaults() *Config {
	return &Config{
		Store: Store{
			Path:          "/var/lib/ruapost/ruapost.db",
			RecordTimeout: 250 * time.Millisecond,
		},
		Milter: Milter{
			Listen: []Listen{{"unix", "/var/spool/postfix/run/ruapost/milter.sock"}},
			// Not the private networks: a mail gateway in front may well use one.
			TrustedNetworks: []netip.Prefix{
				netip.MustParsePrefix("127.0.0.0/8"),
				netip.MustParsePrefix("::1/128"),
			},
			Enforce:    ruapost.DispositionNone,
			Quarantine: "hold",
			Discovery:  "treewalk",
			Budget:     20 * time.Second,
		},
		TLSPolicy: TLSPolicy{
			Listen: []Listen{{"unix", "/var/spool/postfix/run/ruapost/policy.sock"}},
			TLSRPT: Listen{"unix", "/var/spool/postfix/run/ruapost/tlsrpt.sock"},
		},
		Reporter: Reporter{
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
}

// derive fills what the file left out with what follows from the host's name and
// from what the file says.
func (c *Config) derive(host string) {
	if c.ReportDomain == "" {
		c.ReportDomain = DomainOf(host)
	}
	if c.OrgName == "" {
		c.OrgName = c.ReportDomain
	}
	if c.Milter.AuthservID == "" {
		c.Milter.AuthservID = host
	}
	if c.Reporter.From == "" {
		c.Reporter.From = "reports@" + c.ReportDomain
	}
}

// parse makes a Config of a file's text. The file's name is only told in errors.
func parse(file, text, host string) (*Config, error) {
	entries, err := readFile(file, text)
	if err != nil {
		return nil, err
	}
	c := defaults()
	lines := make(map[string]int) // of the keys that the file sets
	var errs []error
	fail := func(line int, key string, err error) {
		errs = append(errs, &Error{File: file, Line: line, Key: key, Err: err})
	}
	keys := c.keys()
	for _, e := range entries {
		set, ok := keys[e.key]
		if !ok {
			fail(e.line, e.key, unknownKey(e.key, keys))
			continue
		}
		lines[e.key] = e.line
		if err := set(e.value); err != nil {
			fail(e.line, e.key, err)
		}
	}
	c.derive(host)
	if len(errs) == 0 {
		for _, check := range []func() (key string, err error){c.DKIM.check, c.Milter.check, c.Reporter.check, c.Web.check} {
			if key, err := check(); err != nil {
				fail(lines[key], key, err)
			}
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return c, nil
}

// CheckFiles returns what is wrong with the files that the programs read later: the
// public suffix list and the DKIM key.
func (c *Config) CheckFiles() error {
	_, errSuffixes := c.Milter.Suffixes()
	var errKey error
	if c.DKIM.KeyFile != "" {
		_, errKey = compose.LoadSigner(c.DKIM.Domain, c.DKIM.Selector, c.DKIM.KeyFile)
	}
	return errors.Join(errSuffixes, errKey)
}

// check returns an error, and the key to tell it of, if only some of the keys
// are set.
func (d *DKIM) check() (key string, err error) {
	var set, missing []string
	for _, k := range []struct{ name, value string }{
		{"dkim.domain", d.Domain}, {"dkim.selector", d.Selector}, {"dkim.key_file", d.KeyFile},
	} {
		if k.value == "" {
			missing = append(missing, k.name)
		} else {
			set = append(set, k.name)
		}
	}
	if len(set) == 0 || len(missing) == 0 {
		return "", nil
	}
	return set[0], fmt.Errorf("%s is not set; expected all of domain, selector and key_file, or none", missing[0])
}

// check returns an error, and the key to tell it of, if a key is set that needs
// another one.
func (m *Milter) check() (key string, err error) {
	if m.SuffixList != "" && m.Discovery != "psl" {
		return "milter.public_suffix_list", errors.New(`discovery is not "psl"`)
	}
	if m.Trust && len(m.TrustedAuthservIDs) == 0 {
		return "milter.mode", errors.New(`there is nobody to trust; expected trusted_authserv_ids to be set, too`)
	}
	if !m.Trust && len(m.TrustedAuthservIDs) > 0 {
		return "milter.trusted_authserv_ids", errors.New(`mode is not "trust"`)
	}
	return "", nil
}

// check returns an error, and the key to tell it of, if there is no room for what makes
// a bounce known by its address (RFC 5321 4.5.3.1).
func (r *Reporter) check() (key string, err error) {
	if r.BounceMaildir == "" {
		return "", nil
	}
	if _, err := bounce.Sender(nil, r.From, r.BounceDelimiter, strings.Repeat("0", 32), r.From); err != nil {
		return "reporter.bounce_maildir", fmt.Errorf("%w; expected another from, or a shorter one", err)
	}
	return "", nil
}

// check returns an error, and the key to tell it of, if others than the users of this host
// could see the page without a password.
func (w *Web) check() (key string, err error) {
	if w.Listen.Network == "unix" || w.PasswordFile != "" {
		return "", nil
	}
	host, _, _ := net.SplitHostPort(w.Listen.Address) // as parseHostPort has made it
	if addr, err := netip.ParseAddr(host); err == nil && addr.IsLoopback() || host == "localhost" {
		return "", nil
	}
	return "web.listen", fmt.Errorf("%q is no loopback address: everybody could see the page; expected password_file to be set, too", w.Listen)
}
