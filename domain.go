package ruapost

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// ErrDomain is the error, possibly wrapped, of a string that is no domain name.
var ErrDomain = errors.New("not a domain name")

// mailProfile maps case, width and U-labels as for a lookup, but lets labels
// such as _dmarc pass, which idna.Lookup refuses.
var mailProfile = idna.New(
	idna.MapForLookup(),
	idna.Transitional(false),
	idna.StrictDomainName(false),
)

// ParseDomain returns s as all of this project compares, stores and reports
// domain names: A-labels in lower case without a final dot. Everything from the
// network that claims to be a domain name goes through it.
//
// It returns an error wrapping ErrDomain if s is empty, longer than 253 octets,
// has an empty label, one of more than 63 octets or one with characters other
// than letters, digits, "-" and "_", or if its last label is all digits, as in
// an IPv4 address.
func ParseDomain(s string) (string, error) {
	if len(s) > 4*253 { // no U-label form of a valid name is longer
		return "", fmt.Errorf("%w: %d octets long", ErrDomain, len(s))
	}
	if !utf8.ValidString(s) { // idna would make a name of it
		return "", fmt.Errorf("%w: invalid UTF-8: %q", ErrDomain, Clean(s, 64))
	}
	name := strings.TrimSuffix(s, ".")
	if !isLowerASCII(name) || strings.Contains(name, "xn--") {
		mapped, err := mailProfile.ToASCII(name)
		if err != nil {
			// A label that calls itself an A-label but decodes to nothing is still
			// a name in the DNS.
			mapped = strings.ToLower(name)
		}
		name = strings.TrimSuffix(mapped, ".")
	}
	if err := checkLDH(name); err != nil {
		return "", fmt.Errorf("%w: %s: %q", ErrDomain, err, Clean(s, 64))
	}
	return name, nil
}

// ParseSelector returns a DKIM selector as ParseDomain returns a domain name. It may end
// in a number (RFC 6376 3.1).
func ParseSelector(s string) (string, error) {
	const suffix = "._domainkey"
	name, err := ParseDomain(s + suffix)
	if err != nil {
		return "", errors.New("not a selector")
	}
	return strings.TrimSuffix(name, suffix), nil
}

// Within says whether domain is above or a name below it.
func Within(domain, above string) bool {
	if len(domain) <= len(above) {
		return domain == above
	}
	return strings.HasSuffix(domain, above) && domain[len(domain)-len(above)-1] == '.'
}

func isLowerASCII(s string) bool {
	for i := range len(s) {
		if c := s[i]; c >= utf8.RuneSelf || 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return true
}

func checkLDH(name string) error {
	if name == "" {
		return errors.New("empty")
	}
	if len(name) > 253 {
		return errors.New("longer than 253 octets")
	}
	label := 0 // length of the label so far
	digits := true
	for i := range len(name) {
		c := name[i]
		if c == '.' {
			if label == 0 {
				return errors.New("empty label")
			}
			label, digits = 0, true
			continue
		}
		isDigit := '0' <= c && c <= '9'
		if !isDigit && !('a' <= c && c <= 'z') && c != '-' && c != '_' {
			return fmt.Errorf("character %q", c)
		}
		digits = digits && isDigit
		if label++; label > 63 {
			return errors.New("label longer than 63 octets")
		}
	}
	if label == 0 {
		return errors.New("empty label")
	}
	if digits {
		return errors.New("last label is a number")
	}
	return nil
}

// Labels returns the number of labels of a domain name as ParseDomain gives it.
func Labels(domain string) int { return strings.Count(domain, ".") + 1 }

// Clean returns s fit for a log line, a report or a terminal: valid UTF-8 of at
// most limit octets without control characters or characters that XML forbids,
// each of which becomes a blank.
func Clean(s string, limit int) string {
	var b strings.Builder
	for _, r := range s {
		if !printable(r) {
			r = ' '
		}
		if b.Len()+utf8.RuneLen(r) > limit {
			break
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}

func printable(r rune) bool {
	switch {
	case r == utf8.RuneError, r < 0x20, 0x7f <= r && r < 0xa0:
		return false
	case r&0xfffe == 0xfffe, 0xfdd0 <= r && r <= 0xfdef: // noncharacters
		return false
	case r == 0x2028, r == 0x2029: // line and paragraph separators
		return false
	case 0x202a <= r && r <= 0x202e, 0x2066 <= r && r <= 0x2069: // bidirectional overrides
		return false
	}
	return true
}
