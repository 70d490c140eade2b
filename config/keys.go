package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"ruapost"
	"ruapost/authres"
	"ruapost/internal/mailtouri"
)

// Bounds of store.record_timeout. Postfix waits 30 s for the answer to most
// milter commands (milter_command_timeout).
const (
	minRecordTimeout = time.Millisecond
	maxRecordTimeout = 30 * time.Second
)

// Bounds of milter.budget. Half of it and record_timeout at the end of a message are
// inside the 60 s that contrib/postfix lets Postfix wait there (content_timeout).
const (
	minBudget = time.Second
	maxBudget = 40 * time.Second
)

// Bounds of the keys of [reporter].
const (
	minKeep       = 24 * time.Hour
	maxKeep       = 30 * 24 * time.Hour
	maxSpread     = 50 * time.Minute // the next run may begin after an hour
	maxRecipients = 64
	minReportSize = 1_000_000   // octets
	maxReportSize = 100_000_000 // octets
	maxMails      = 1_000_000_000
)

const (
	networks      = `networks such as "192.0.2.0/24" or "2001:db8::/32"`
	domainOrBelow = `domains such as "example.org", or ".example.org" for all names below it`
)

// setter puts a value from the file into a Config. Its error says what is wrong
// and what was expected.
type setter func(value any) error

// keys are all keys that exist, with their sections, and where their values go.
func (c *Config) keys() map[string]setter {
	const (
		aDomain = `a domain name such as "example.org"`
		aFile   = `an absolute path`
		mails   = `a whole number from 1 to 1000000000, or 0 for no bound`
		sockets = `sockets such as "unix:/var/spool/postfix/run/ruapost/x.sock" or "tcp:127.0.0.1:8890"`
	)
	return map[string]setter{
		"org_name":      one(&c.OrgName, "a name of up to 200 octets", parseName),
		"report_domain": one(&c.ReportDomain, aDomain, ruapost.ParseDomain),

		"store.path":           one(&c.Store.Path, aFile, parsePath),
		"store.record_timeout": one(&c.Store.RecordTimeout, `a time from "1ms" to "30s"`, timeBetween(minRecordTimeout, maxRecordTimeout)),

		"dns.servers": list(&c.DNS.Servers, 0, `addresses of name servers such as "127.0.0.1:53"`, parseServer),

		"milter.listen":               list(&c.Milter.Listen, 1, sockets, ParseListen),
		"milter.authserv_id":          one(&c.Milter.AuthservID, `a host's name such as "mail.example.org"`, ruapost.ParseDomain),
		"milter.mode":                 one(&c.Milter.Trust, `"verify" or "trust"`, choice("verify", "trust")),
		"milter.trusted_authserv_ids": list(&c.Milter.TrustedAuthservIDs, 0, `authserv-ids such as "mail.example.org"`, parseAuthservID),
		"milter.trusted_sealers":      list(&c.Milter.TrustedSealers, 0, `domains such as "lists.example.org"`, ruapost.ParseDomain),
		"milter.enforce":              one(&c.Milter.Enforce, `"off", "quarantine" or "reject"`, parseEnforce),
		"milter.quarantine":           one(&c.Milter.Quarantine, `"hold" or "header"`, word("hold", "header")),
		"milter.temperror":            one(&c.Milter.DeferTemperror, `"accept" or "defer"`, choice("accept", "defer")),
		"milter.discovery":            one(&c.Milter.Discovery, `"treewalk" or "psl"`, word("treewalk", "psl")),
		"milter.public_suffix_list":   one(&c.Milter.SuffixList, aFile+`, or "" for the built-in list`, optional(parsePath)),
		"milter.report_on":            one(&c.Milter.ReportUnknown, `"known" or "all"`, choice("known", "all")),
		"milter.budget":               one(&c.Milter.Budget, `a time from "1s" to "40s"`, timeBetween(minBudget, maxBudget)),
		"milter.trusted_networks":     list(&c.Milter.TrustedNetworks, 0, networks, ParseNetwork),

		"override":     c.Milter.setOverrides,
		"tls_override": c.TLSPolicy.setOverrides,

		"tlspolicy.listen":         list(&c.TLSPolicy.Listen, 1, sockets, ParseListen),
		"tlspolicy.tlsrpt":         one(&c.TLSPolicy.TLSRPT, `a socket "unix:/PATH", or "" for none`, optional(parseUnix)),
		"tlspolicy.allow_networks": list(&c.TLSPolicy.AllowNetworks, 0, networks, ParseNetwork),
		"tlspolicy.testing_mode":   one(&c.TLSPolicy.ReportTesting, `"off" or "report"`, choice("off", "report")),
		"tlspolicy.on_error":       one(&c.TLSPolicy.DeferOnError, `"open" or "defer"`, choice("open", "defer")),
		"tlspolicy.maillog":        list(&c.TLSPolicy.Maillog, 0, `"journal", or absolute paths of log files`, parseMaillog),

		"reporter.from":     one(&c.Reporter.From, `a mail address such as "reports@example.org"`, parseAddress),
		"reporter.sendmail": command(&c.Reporter.Sendmail),
		"reporter.format":   one(&c.Reporter.Format, `"rfc9990" or "rfc7489"`, word("rfc9990", "rfc7489")),
		"reporter.outbox":   one(&c.Reporter.Outbox, aFile, parsePath),

		"reporter.legacy_domains":     list(&c.Reporter.LegacyDomains, 0, domainOrBelow, parseDomainOrBelow),
		"reporter.exclude_domains":    list(&c.Reporter.ExcludeDomains, 0, domainOrBelow, parseDomainOrBelow),
		"reporter.only_domains":       list(&c.Reporter.OnlyDomains, 0, domainOrBelow, parseDomainOrBelow),
		"reporter.exclude_recipients": list(&c.Reporter.ExcludeRecipients, 0, `mail addresses, or `+domainOrBelow, parseRecipient),

		"reporter.min_interval":     one(&c.Reporter.MinInterval, `"1h", "2h", "3h", "4h", "6h", "8h", "12h" or "24h"`, parseInterval),
		"reporter.keep":             one(&c.Reporter.Keep, `a time from "1d" to "30d"`, timeBetween(minKeep, maxKeep)),
		"reporter.spread":           one(&c.Reporter.Spread, `a time from "0s" to "50m"`, timeBetween(0, maxSpread)),
		"reporter.max_recipients":   number(&c.Reporter.MaxRecipients, "a whole number from 1 to 64", 1, maxRecipients),
		"reporter.max_report_size":  size(&c.Reporter.MaxReportSize, `a size from "1MB" to "100MB", or as many octets`, minReportSize, maxReportSize),
		"reporter.tls_success_only": boolean(&c.Reporter.TLSFailuresOnly, false),
		"reporter.https_verify":     boolean(&c.Reporter.HTTPSUnverified, false),
		"reporter.allow_networks":   list(&c.Reporter.AllowNetworks, 0, networks, ParseNetwork),

		"reporter.max_reports_per_run":        number(&c.Reporter.MaxReportsPerRun, mails, 0, maxMails),
		"reporter.max_reports_per_day":        number(&c.Reporter.MaxReportsPerDay, mails, 0, maxMails),
		"reporter.max_per_destination_domain": number(&c.Reporter.MaxPerDestinationDomain, mails, 0, maxMails),

		"reporter.bounce_maildir":   one(&c.Reporter.BounceMaildir, aFile+`, or "" for none`, optional(parsePath)),
		"reporter.bounce_delimiter": one(&c.Reporter.BounceDelimiter, `one character such as "+" or "="`, parseDelimiter),
		"reporter.textfile":         one(&c.Reporter.Textfile, aFile+`, or "" for none`, optional(parsePath)),

		"dkim.domain":   one(&c.DKIM.Domain, aDomain+`, or "" for none`, optional(ruapost.ParseDomain)),
		"dkim.selector": one(&c.DKIM.Selector, `a selector such as "mail2026", or "" for none`, optional(ruapost.ParseSelector)),
		"dkim.key_file": one(&c.DKIM.KeyFile, aFile+`, or "" for none`, optional(parsePath)),

		"web.listen":        one(&c.Web.Listen, `a socket such as "tcp:127.0.0.1:9186" or "unix:/run/ruapost-web/web.sock"`, ParseListen),
		"web.password_file": one(&c.Web.PasswordFile, aFile+`, or "" for none`, optional(parsePath)),
		"web.hosts":         list(&c.Web.Hosts, 0, `names of this host such as "mail.example.org"`, ruapost.ParseDomain),

		"metrics.listen": one(&c.Metrics, `a socket "tcp:HOST:PORT", or "" for none`, optional(parseMetrics)),
	}
}

// sections are the sections of the file.
var sections = func() map[string]bool {
	names := make(map[string]bool)
	for key := range new(Config).keys() {
		if section, _, ok := strings.Cut(key, "."); ok {
			names[section] = true
		}
	}
	return names
}()

// unknownKey returns the error of a key that does not exist: it lists those that
// do exist in its section, or at the top level with the sections.
func unknownKey(key string, keys map[string]setter) error {
	if sections[key] {
		return fmt.Errorf("not a section; expected a line [%s] and its keys below", key)
	}
	section, _, _ := strings.Cut(key, ".")
	var expected []string
	for k := range keys {
		s, name, ok := strings.Cut(k, ".")
		switch {
		case sections[section]:
			if ok && s == section {
				expected = append(expected, name)
			}
		case ok:
			expected = append(expected, "["+s+"]")
		default:
			expected = append(expected, k)
		}
	}
	slices.Sort(expected)
	return fmt.Errorf("unknown key; expected one of %s", strings.Join(slices.Compact(expected), ", "))
}

// one is the setter of a key that takes one string.
func one[T any](to *T, expected string, parse func(string) (T, error)) setter {
	return func(value any) error {
		v, err := parseString(value, parse)
		if err != nil {
			return fmt.Errorf("%w; expected %s", err, expected)
		}
		*to = v
		return nil
	}
}

// list is the setter of a key that takes a list of strings, at least so many.
func list[S ~[]T, T any](to *S, atLeast int, expected string, parse func(string) (T, error)) setter {
	expected = "a list of " + expected
	return func(value any) error {
		values, ok := value.([]any)
		if !ok {
			return fmt.Errorf("%s; expected %s", describe(value), expected)
		}
		if len(values) < atLeast {
			return fmt.Errorf("empty list; expected %s", expected)
		}
		var vs S
		for _, value := range values {
			v, err := parseString(value, parse)
			if err != nil {
				return fmt.Errorf("%w; expected %s", err, expected)
			}
			vs = append(vs, v)
		}
		*to = vs
		return nil
	}
}

// number is the setter of a key that takes an integer within these bounds.
func number[T ~int | ~int64](to *T, expected string, least, most T) setter {
	return func(value any) error {
		n, ok := value.(int64)
		if !ok {
			return fmt.Errorf("%s; expected %s", describe(value), expected)
		}
		if n < int64(least) || int64(most) < n {
			return fmt.Errorf("%d: out of bounds; expected %s", n, expected)
		}
		*to = T(n)
		return nil
	}
}

// size is the setter of a key that takes octets: a number, or a string with a unit.
func size(to *int64, expected string, least, most int64) setter {
	octets := number(to, expected, least, most)
	return func(value any) error {
		if _, ok := value.(string); !ok {
			return octets(value)
		}
		n, err := parseString(value, sizeBetween(least, most))
		if err != nil {
			return fmt.Errorf("%w; expected %s", err, expected)
		}
		*to = n
		return nil
	}
}

// boolean is the setter of a key that takes true or false. It sets to if the value is
// the one given here.
func boolean(to *bool, set bool) setter {
	return func(value any) error {
		v, ok := value.(bool)
		if !ok {
			return fmt.Errorf("%s; expected true or false, without quotes", describe(value))
		}
		*to = v == set
		return nil
	}
}

// command is the setter of a key that takes a program and its arguments.
func command(to *[]string) setter {
	const expected = `strings: the absolute path of a program, and its arguments`
	set := list(to, 1, expected, parseArgument)
	return func(value any) error {
		if err := set(value); err != nil {
			return err
		}
		if program := (*to)[0]; program[0] != '/' {
			return fmt.Errorf("%q: not an absolute path; expected a list of %s", ruapost.Clean(program, 100), expected)
		}
		return nil
	}
}

// optional makes the empty string stand for the zero value.
func optional[T any](parse func(string) (T, error)) func(string) (T, error) {
	return func(s string) (v T, err error) {
		if s == "" {
			return v, nil
		}
		return parse(s)
	}
}

func parseString[T any](value any, parse func(string) (T, error)) (v T, err error) {
	s, ok := value.(string)
	if !ok {
		return v, errors.New(describe(value))
	}
	v, err = parse(s)
	switch {
	case s == "" && err != nil:
		return v, errors.New("empty")
	case errors.Is(err, ruapost.ErrDomain): // shows the value itself
		return v, err
	case err != nil:
		return v, fmt.Errorf("%q: %w", ruapost.Clean(s, 100), err)
	}
	return v, nil
}

// describe tells what a value is that should be something else.
func describe(value any) string {
	switch value := value.(type) {
	case string:
		return fmt.Sprintf("%q is a string", ruapost.Clean(value, 100))
	case int64, float64:
		return fmt.Sprintf("%v is a number", value)
	case bool:
		return fmt.Sprintf("%v is a boolean", value)
	case time.Time:
		return "a date or time"
	case []any:
		return "a list"
	}
	return "a table"
}

// parseName accepts text that can stand in a report and a mail header.
func parseName(s string) (string, error) {
	switch {
	case s == "":
		return "", errors.New("empty")
	case len(s) > 200:
		return "", fmt.Errorf("%d octets long", len(s))
	case ruapost.Clean(s, len(s)) != s:
		return "", errors.New("has blanks around it or control characters")
	}
	return s, nil
}

// timeBetween accepts a time within these bounds.
func timeBetween(least, most time.Duration) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		d, err := ParseTime(s)
		if err != nil {
			return 0, err
		}
		if d < least || most < d {
			return 0, errors.New("out of bounds")
		}
		return d, nil
	}
}

// ParseTime accepts a time such as "1h30m", or whole days such as "7d".
func ParseTime(s string) (time.Duration, error) {
	if n, ok := strings.CutSuffix(s, "d"); ok {
		// 16 bits are 179 years.
		days, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return 0, errors.New("not a time")
		}
		return time.Duration(days) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errors.New("not a time")
	}
	return d, nil
}

// parseInterval accepts a number of hours that divides a day.
func parseInterval(s string) (time.Duration, error) {
	d, err := ParseTime(s)
	if err == nil && (d < time.Hour || d%time.Hour != 0 || (24*time.Hour)%d != 0) {
		err = errors.New("not supported")
	}
	return d, err
}

// sizeBetween accepts a size such as "10MB" within these bounds; the units are powers
// of 1000.
func sizeBetween(least, most int64) func(string) (int64, error) {
	return func(s string) (int64, error) {
		unit := int64(1_000)
		digits, ok := strings.CutSuffix(s, "KB")
		if !ok {
			unit = 1_000_000
			digits, ok = strings.CutSuffix(s, "MB")
		}
		n, err := strconv.ParseUint(digits, 10, 32)
		if !ok || err != nil {
			return 0, errors.New("not a number with KB or MB behind it")
		}
		if size := int64(n) * unit; least <= size && size <= most {
			return size, nil
		}
		return 0, errors.New("out of bounds")
	}
}

// word accepts one of these words.
func word(words ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !slices.Contains(words, s) {
			return "", errors.New("not supported")
		}
		return s, nil
	}
}

// choice accepts one of two words and says whether it is the second.
func choice(no, yes string) func(string) (bool, error) {
	return func(s string) (bool, error) {
		s, err := word(no, yes)(s)
		return s == yes, err
	}
}

func parseEnforce(s string) (ruapost.Disposition, error) {
	if s == "off" {
		return ruapost.DispositionNone, nil
	}
	s, err := word("quarantine", "reject")(s)
	return ruapost.Disposition(s), err
}

// parseAuthservID accepts what milters call themselves in Authentication-Results, which
// need not be a domain name (RFC 8601 2.5).
func parseAuthservID(s string) (string, error) {
	f, err := authres.Parse(s)
	if err != nil || f.ID == "" || f.ID != s {
		return "", errors.New("not an authserv-id")
	}
	return s, nil
}

// parseServer accepts an address with or without a port.
func parseServer(s string) (string, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(addr, 53).String(), nil
	}
	server, err := netip.ParseAddrPort(s)
	if err != nil || server.Port() == 0 {
		// A name would have to be looked up first.
		return "", errors.New("not an address with a port")
	}
	return server.String(), nil
}

// ParseNetwork accepts a network, or an address as the network of itself. Postfix puts
// brackets around IPv6 addresses.
func ParseNetwork(s string) (netip.Prefix, error) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		s = strings.Replace(rest, "]", "", 1)
	}
	if addr, err := netip.ParseAddr(s); err == nil {
		addr = addr.Unmap()
		return addr.Prefix(addr.BitLen())
	}
	network, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, errors.New("not a network")
	}
	if network.Addr().Is4In6() {
		if network.Bits() < 96 {
			return netip.Prefix{}, errors.New("IPv4 network in IPv6 form with less than 96 bits")
		}
		network = netip.PrefixFrom(network.Addr().Unmap(), network.Bits()-96)
	}
	if network != network.Masked() {
		return netip.Prefix{}, fmt.Errorf("address inside the network %s", network.Masked())
	}
	return network, nil
}

// parseMaillog accepts a source of Postfix's log.
func parseMaillog(s string) (string, error) {
	if s == "journal" {
		return s, nil
	}
	return parsePath(s)
}

func parseUnix(s string) (Listen, error) {
	l, err := ParseListen(s)
	if err == nil && l.Network != "unix" {
		err = errors.New("not a unix socket")
	}
	return l, err
}

// parseAddress accepts a mail address without a display name. The local part is
// unquoted, as it has to pass through a command line and logs.
func parseAddress(s string) (string, error) {
	address, err := mailtouri.ParseAddress(s)
	switch {
	case err != nil:
		return "", err
	case strings.HasPrefix(s, "-"), strings.HasPrefix(s, `"`):
		return "", errors.New("not a plain mail address")
	case mailtouri.NeedsSMTPUTF8(address):
		return "", errors.New("local part is not ASCII")
	}
	return address, nil
}

// parseRecipient accepts a mail address, or a domain as parseDomainOrBelow does.
func parseRecipient(s string) (string, error) {
	if strings.Contains(s, "@") {
		return mailtouri.ParseAddress(s)
	}
	return parseDomainOrBelow(s)
}

// parseDelimiter accepts what can stand unquoted in a local part (RFC 5322 3.2.3, atext)
// and is no letter or digit, as the token behind it is made of those.
func parseDelimiter(s string) (string, error) {
	if len(s) != 1 || strings.Trim(s, "!#$%&'*+-/=?^_`{|}~") != "" {
		return "", errors.New("not a delimiter")
	}
	return s, nil
}

// parseArgument accepts what can be an argument of a program.
func parseArgument(s string) (string, error) {
	if s == "" || strings.ContainsRune(s, 0) {
		return "", errors.New("not an argument")
	}
	return s, nil
}

func parseMetrics(s string) (Metrics, error) {
	first, err := ParseListen(s)
	if err != nil {
		return Metrics{}, err
	}
	if first.Network != "tcp" {
		return Metrics{}, errors.New("not a tcp socket")
	}
	// parseHostPort has made sure of the form and of the port being a number.
	host, p, _ := net.SplitHostPort(first.Address)
	port, _ := strconv.Atoi(p)
	if port == 65535 {
		return Metrics{}, errors.New("no port after it for the second daemon")
	}
	if port > 0 {
		port++
	}
	return Metrics{
		Milter:    first,
		TLSPolicy: Listen{first.Network, net.JoinHostPort(host, strconv.Itoa(port))},
	}, nil
}
