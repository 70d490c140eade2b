package dmarc

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"ruapost"
	"ruapost/internal/mailtouri"
)

const (
	// maxURIs bounds the destinations taken from one rua or ruf tag.
	maxURIs = 20
	// maxURILength bounds one of them: enough for the longest address with every
	// octet percent-encoded, and header fields.
	maxURILength = 2048
	// maxFlaws bounds Record.Flaws, maxFlawValue the published text in one line.
	maxFlaws     = 8
	maxFlawValue = 40
	// maxReportFormat bounds the rf tag, in octets.
	maxReportFormat = 100
)

// ErrNotDMARC is the error of a TXT record that does not begin with v=DMARC1
// and so is none of ours (RFC 9989 4.7).
var ErrNotDMARC = errors.New("dmarc: not a DMARC record: it does not begin with v=DMARC1")

// Record is a DMARC policy record. Tags that are missing or that could not be
// read have their defaults.
type Record struct {
	// Policy (p), SubdomainPolicy (sp) and NonexistentPolicy (np) are empty if
	// they were not published or could not be read. What they come to for a
	// message is a Policy's matter.
	Policy            ruapost.Disposition
	SubdomainPolicy   ruapost.Disposition
	NonexistentPolicy ruapost.Disposition
	// ADKIM and ASPF are the alignment modes, relaxed by default.
	ADKIM, ASPF ruapost.Alignment
	// PSD is 'y' for a public suffix domain, 'n' for an organizational domain
	// that says so, and 'u', the default, if the tree walk has to find out.
	PSD byte
	// Testing is t=y.
	Testing bool
	// RUA and RUF are the destinations of aggregate and failure reports in the
	// order published, of any scheme, without those that could not be read.
	RUA, RUF []URI
	// FO is the failure reporting options in lower case, "0" by default.
	FO string
	// Percent (pct), Interval (ri) and ReportFormat (rf) are tags of RFC 7489
	// that RFC 9989 ignores; their defaults are 100, a day and "afrf".
	Percent      int
	Interval     time.Duration
	ReportFormat string
	// Flaws tells in short lines what could not be read, for the domain owner.
	Flaws []string

	// broken is true if sp could not be read, or p or v is there twice; brokenNP if
	// np could not be read.
	broken, brokenNP bool
}

// URI is a report destination.
type URI struct {
	// Raw is the URI as published, without the size limit.
	Raw string
	// Scheme is in lower case: "mailto" is the only one that DMARC defines.
	Scheme string
	// Address is the mail address of a mailto URI: decoded, ASCII, the domain as
	// ruapost.ParseDomain gives it. It is empty for other schemes.
	Address string
	// Host is the domain name that the URI points at: that of the address, or the
	// authority of other schemes, empty if that is no domain name.
	Host string
	// MaxSize is the largest report in octets that the destination takes, 0 if
	// there is no limit. RFC 9989 ignores it.
	MaxSize uint64
}

// ParseRecord reads a TXT record (RFC 9989 4.7, 4.8). The error is ErrNotDMARC
// if it does not begin with v=DMARC1. All other faults go into Flaws:
// a tag that cannot be read counts as not published, unknown tags are ignored.
// A tag that is there twice counts the first time; the record may then still be
// useless for policy, as it is if p is missing, see ErrBrokenRecord.
func ParseRecord(txt string) (*Record, error) {
	version, rest, _ := strings.Cut(txt, ";")
	name, value, err := parseTag(version)
	if err != nil || name != "v" || value != "DMARC1" || txt[0]|0x20 != 'v' { // no blank before it
		return nil, ErrNotDMARC
	}
	rec := &Record{
		ADKIM:        ruapost.Relaxed,
		ASPF:         ruapost.Relaxed,
		PSD:          'u',
		FO:           "0",
		Percent:      100,
		Interval:     24 * time.Hour,
		ReportFormat: "afrf",
	}
	seen := append(make([]string, 0, len(tags)), "v")
	for tag := range strings.SplitSeq(rest, ";") {
		if trimWSP(tag) == "" {
			continue
		}
		name, value, err := parseTag(tag)
		if err != nil {
			rec.flaw(trimWSP(tag), err)
			continue
		}
		set, known := tags[name]
		if !known {
			continue
		}
		if slices.Contains(seen, name) {
			// RFC 6376 3.2, whose tag lists these are, calls the whole list invalid.
			rec.broken = rec.broken || name == "v" || name == "p"
			rec.flaw(name+"="+value, errors.New("the tag is there twice"))
			continue
		}
		seen = append(seen, name)
		if err := set(rec, value); err != nil {
			rec.flaw(name+"="+value, err)
		}
	}
	return rec, nil
}

// Window returns the length of the record's report windows if none is to be shorter than
// least: the interval it asks for (RFC 7489 6.3, ri), rounded up to hours that divide a
// day. A day is the longest, and what a record gets that asks for none, or for 0.
func (r *Record) Window(least time.Duration) time.Duration {
	const day = 24 * time.Hour
	if r.Interval == 0 {
		return day
	}
	for _, hours := range []time.Duration{1, 2, 3, 4, 6, 8, 12} {
		if length := hours * time.Hour; length >= max(r.Interval, least) {
			return length
		}
	}
	return day
}

// parseTag takes a "name = value" apart (RFC 9989 4.8, dmarc-tag) and returns
// the name in lower case. The value is the tag's own matter.
func parseTag(tag string) (name, value string, err error) {
	name, value, ok := strings.Cut(tag, "=")
	name, value = trimWSP(name), trimWSP(value)
	if !ok || name == "" {
		return "", "", errors.New("not of the form tag=value")
	}
	for i := range len(name) {
		if c := name[i] | 0x20; c < 'a' || c > 'z' {
			return "", "", errors.New("not a tag name")
		}
	}
	return strings.ToLower(name), value, nil
}

func trimWSP(s string) string { return strings.Trim(s, " \t") }

func (r *Record) flaw(text string, err error) {
	if len(r.Flaws) < maxFlaws {
		r.Flaws = append(r.Flaws, fmt.Sprintf("%s: %v", ruapost.Clean(text, maxFlawValue), err))
	}
}

// tags has, for every tag but v, what puts its value into the record or tells
// why it cannot. Values of enumerations match in any case, as ABNF has it.
var tags = map[string]func(r *Record, value string) error{
	"v": nil, // first and only first
	"p": func(r *Record, value string) error { return setDisposition(&r.Policy, value) },
	"sp": func(r *Record, value string) error {
		err := setDisposition(&r.SubdomainPolicy, value)
		r.broken = r.broken || err != nil // RFC 9989 4.10.1
		return err
	},
	"np": func(r *Record, value string) error {
		err := setDisposition(&r.NonexistentPolicy, value)
		r.brokenNP = err != nil // RFC 9989 4.10.1
		return err
	},
	"adkim": func(r *Record, value string) error { return setAlignment(&r.ADKIM, value) },
	"aspf":  func(r *Record, value string) error { return setAlignment(&r.ASPF, value) },
	"psd": func(r *Record, value string) error {
		word, err := oneOf(value, "u", "y", "n")
		if err == nil {
			r.PSD = word[0]
		}
		return err
	},
	"t": func(r *Record, value string) error {
		word, err := oneOf(value, "n", "y")
		r.Testing = word == "y"
		return err
	},
	"rua": func(r *Record, value string) error {
		r.RUA = r.parseURIs("rua", value)
		return nil
	},
	"ruf": func(r *Record, value string) error {
		r.RUF = r.parseURIs("ruf", value)
		return nil
	},
	"fo": func(r *Record, value string) error { return setFailureOptions(&r.FO, value) },
	"pct": func(r *Record, value string) error {
		n, err := strconv.ParseUint(value, 10, 8)
		if err != nil || n > 100 {
			return errors.New("not a number from 0 to 100")
		}
		r.Percent = int(n)
		return nil
	},
	"ri": func(r *Record, value string) error {
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return errors.New("not a number of seconds")
		}
		r.Interval = time.Duration(n) * time.Second
		return nil
	},
	"rf": func(r *Record, value string) error {
		if value == "" || ruapost.Clean(value, maxReportFormat) != value {
			return errors.New("not a list of report formats")
		}
		r.ReportFormat = strings.ToLower(value)
		return nil
	},
}

func oneOf(value string, words ...string) (string, error) {
	if word := strings.ToLower(value); slices.Contains(words, word) {
		return word, nil
	}
	return "", fmt.Errorf("not one of %s", strings.Join(words, ", "))
}

func setDisposition(d *ruapost.Disposition, value string) error {
	word, err := oneOf(value, "none", "quarantine", "reject")
	*d = ruapost.Disposition(word)
	return err
}

func setAlignment(a *ruapost.Alignment, value string) error {
	word, err := oneOf(value, "r", "s")
	if err == nil {
		*a = ruapost.Alignment(word)
	}
	return err
}

// setFailureOptions accepts a list of 0, 1, d and s, each at most once and not
// both 0 and 1 (RFC 9989 4.8, dmarc-fo).
func setFailureOptions(fo *string, value string) error {
	var options []string
	for option := range strings.SplitSeq(strings.ToLower(value), ":") {
		option = trimWSP(option)
		if len(option) != 1 || !strings.Contains("01ds", option) || slices.Contains(options, option) {
			return errors.New("not a list of 0 or 1, d, s")
		}
		options = append(options, option)
	}
	if slices.Contains(options, "0") && slices.Contains(options, "1") {
		return errors.New("both 0 and 1")
	}
	*fo = strings.Join(options, ":")
	return nil
}

// parseURIs reads a list of URIs one by one (RFC 9989 4.8, dmarc-urilist).
func (r *Record) parseURIs(tag, list string) []URI {
	var uris []URI
	for s := range strings.SplitSeq(list, ",") {
		if len(uris) == maxURIs {
			r.flaw(tag, fmt.Errorf("more than %d URIs", maxURIs))
			break
		}
		s = trimWSP(s)
		uri, err := parseURI(s)
		if err != nil {
			r.flaw(tag+"="+s, err)
			continue
		}
		uris = append(uris, uri)
	}
	return uris
}

// parseURI reads one URI with the obsolete size limit behind it
// (RFC 9989 4.8, obs-dmarc-uri). In the URI itself "!" has to be encoded.
func parseURI(s string) (URI, error) {
	if len(s) > maxURILength {
		return URI{}, fmt.Errorf("longer than %d octets", maxURILength)
	}
	raw, size, limited := strings.Cut(s, "!")
	uri := URI{Raw: raw}
	if limited {
		n, err := parseSize(size)
		if err != nil {
			return URI{}, err
		}
		uri.MaxSize = n
	}
	scheme, err := uriScheme(raw)
	if err != nil {
		return URI{}, err
	}
	uri.Scheme = scheme
	if scheme == "mailto" {
		address, err := mailtouri.Parse(raw)
		if err != nil || !isASCII(address) { // RFC 8616 6
			return URI{}, errors.New("no mail address in it")
		}
		uri.Address, uri.Host = address, mailtouri.Domain(address)
		return uri, nil
	}
	u, err := url.Parse(raw)
	if err != nil {
		return URI{}, errors.New("not a URI")
	}
	uri.Host, _ = ruapost.ParseDomain(u.Hostname()) // an address or none is no host to ask
	return uri, nil
}

// parseSize reads a size limit such as 10m; the units are powers of 1024
// (RFC 7489 6.4). One beyond any report is none.
func parseSize(s string) (uint64, error) {
	digits := s
	shift := 0
	if s != "" {
		if i := strings.IndexByte("kmgt", s[len(s)-1]|0x20); i >= 0 {
			digits, shift = s[:len(s)-1], 10*(i+1)
		}
	}
	for i := range len(digits) {
		if digits[i] < '0' || digits[i] > '9' {
			return 0, errors.New(`"!" is not followed by a size`)
		}
	}
	if digits == "" {
		return 0, errors.New(`"!" is not followed by a size`)
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n<<shift>>shift != n {
		return 0, nil
	}
	return n << shift, nil
}

// uriScheme checks the characters of a URI (RFC 3986 2) and returns its scheme in
// lower case.
func uriScheme(s string) (string, error) {
	for i := range len(s) {
		switch c := s[i]; {
		case isAlphanumeric(c), strings.IndexByte("-._~:/?#[]@$&'()*+,;=", c) >= 0:
		case c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
		default:
			return "", fmt.Errorf("a URI cannot have %q there", c)
		}
	}
	scheme, _, ok := strings.Cut(s, ":")
	valid := ok && scheme != "" && scheme[0] > '9' // a letter, by the next lines
	for i := range len(scheme) {
		valid = valid && (isAlphanumeric(scheme[i]) || i > 0 && strings.IndexByte("+-.", scheme[i]) >= 0)
	}
	if !valid {
		return "", errors.New("not a URI: no scheme such as mailto")
	}
	return strings.ToLower(scheme), nil
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

func isAlphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f'
}
