// Package mailtouri reads the mailto URIs that DMARC and TLSRPT records name as
// destinations (RFC 6068), and the addresses in them (RFC 5322 3.4.1).
//
// An address as this package returns it has its domain in the form of
// ruapost.ParseDomain and its local part quoted only where it must be, so that
// equal addresses are equal strings. The domain follows the last "@": a quoted
// local part may contain others.
package mailtouri

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	"ruapost"
)

const (
	maxLocal   = 64  // octets, RFC 5321 4.5.3.1.1
	maxAddress = 254 // octets, RFC 5321 4.5.3.1.3 less the angle brackets

	maxURI = 2048 // octets; an address percent-encoded throughout has 769
)

// Parse returns the first address of a mailto URI. Further addresses, header
// fields such as subject, and a fragment are ignored: a DNS record does not get
// to write our mails. It is an error if the scheme is another one, if there is
// no address, or if what percent-decoding yields is no addr-spec: control
// characters, comments, blanks outside of quotes and address literals are not
// accepted. It is also an error if raw is longer than 2048 octets, or has control
// characters or invalid UTF-8 anywhere, so that what was accepted can be logged.
//
// The local part may hold UTF-8 beyond ASCII (RFC 6068 2 item 5); whether such
// an address can be served is the caller's to know.
func Parse(raw string) (address string, err error) {
	scheme, rest, ok := strings.Cut(raw, ":")
	if !ok || !strings.EqualFold(scheme, "mailto") {
		return "", fmt.Errorf("not a mailto URI: %q", ruapost.Clean(raw, 128))
	}
	if ruapost.Clean(raw, maxURI) != raw {
		err = errors.New("too long, or has control characters")
	} else {
		address, err = parseTo(rest)
	}
	if err != nil {
		return "", fmt.Errorf("mailto URI %q: %w", ruapost.Clean(raw, 128), err)
	}
	return address, nil
}

func parseTo(rest string) (string, error) {
	// Both are delimiters only where they are not encoded, hence before decoding.
	if i := strings.IndexAny(rest, "?#"); i >= 0 {
		rest = rest[:i]
	}
	// RFC 6068 2 item 1 demands %2F, which also keeps out the frequent
	// mailto://user@domain, where "//user" would be a valid local part.
	if strings.Contains(rest, "/") {
		return "", errors.New(`"/" is not encoded`)
	}
	to, err := url.PathUnescape(rest)
	if err != nil {
		return "", err
	}
	// Records must encode the comma that separates addresses (RFC 9989 4.8, RFC
	// 8460 3), so it is looked for after decoding; a comma of a local part stands
	// in quotes.
	local, rest, err := cutLocalPart(to)
	if err != nil {
		return "", err
	}
	domain, _, _ := strings.Cut(rest, ",")
	return join(local, strings.TrimRight(domain, " "))
}

// ParseAddress returns the addr-spec s in the form of this package. It is an
// error if s is anything else, has an address literal, or is longer than SMTP
// allows.
func ParseAddress(s string) (string, error) {
	local, domain, err := cutLocalPart(s)
	if err == nil {
		s, err = join(local, domain)
	}
	if err != nil {
		return "", fmt.Errorf("not a mail address: %w", err)
	}
	return s, nil
}

// Domain returns the domain of an address as this package returns it.
func Domain(address string) string { return address[strings.LastIndexByte(address, '@')+1:] }

// IsMailbox tells whether mail to address, in whatever form, comes to own, an address of
// ours: it is that, or that with an extension behind one of the delimiters. Local parts in
// another case are the same.
func IsMailbox(address, own, delimiters string) bool {
	local, domain, ok := strings.Cut(own, "@")
	at := strings.LastIndexByte(address, '@')
	if !ok || at < 0 {
		return false
	}
	if theirs, err := ruapost.ParseDomain(address[at+1:]); err != nil || theirs != domain {
		return false
	}
	theirs := address[:at]
	if len(theirs) > len(local) && strings.ContainsAny(theirs[len(local):len(local)+1], delimiters) {
		theirs = theirs[:len(local)]
	}
	return strings.EqualFold(theirs, local)
}

// NeedsSMTPUTF8 tells whether an address as this package returns it can only be
// written to with SMTPUTF8 (RFC 6531), because its local part is beyond ASCII.
func NeedsSMTPUTF8(address string) bool {
	return strings.ContainsFunc(address, func(r rune) bool { return r >= utf8.RuneSelf })
}

// cutLocalPart splits s behind the first local-part, which it returns without
// quotes, and the "@" that has to follow.
func cutLocalPart(s string) (local, rest string, err error) {
	if strings.HasPrefix(s, `"`) {
		local, rest, err = cutQuoted(s[1:])
	} else {
		end := strings.IndexFunc(s, func(r rune) bool { return !isAtext(r) && r != '.' })
		if end < 0 {
			end = len(s)
		}
		local, rest = s[:end], s[end:]
		if !isDotAtom(local) {
			err = errors.New("no local part")
		}
	}
	if err != nil {
		return "", "", err
	}
	rest, ok := strings.CutPrefix(rest, "@")
	if !ok {
		return "", "", errors.New(`no "@" after the local part`)
	}
	return local, rest, nil
}

// cutQuoted undoes the quoted-string that begins before s.
func cutQuoted(s string) (content, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '"':
			return b.String(), s[i+1:], nil
		case '\\':
			if i++; i == len(s) {
				return "", "", errors.New("quotes are not closed")
			}
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", errors.New("quotes are not closed")
}

func join(local, domain string) (string, error) {
	if local == "" {
		return "", errors.New("no local part")
	}
	// Clean changes invalid UTF-8, controls and what else must not reach a
	// header; the bars keep it from trimming blanks.
	if marked := "|" + local + "|"; ruapost.Clean(marked, len(marked)) != marked {
		return "", errors.New("local part has control characters or is not UTF-8")
	}
	if !isDotAtom(local) {
		local = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(local) + `"`
	}
	if len(local) > maxLocal {
		return "", fmt.Errorf("local part is longer than %d octets", maxLocal)
	}
	domain, err := ruapost.ParseDomain(domain)
	if err != nil {
		return "", err
	}
	address := local + "@" + domain
	if len(address) > maxAddress {
		return "", fmt.Errorf("longer than %d octets", maxAddress)
	}
	return address, nil
}

func isDotAtom(s string) bool {
	for atom := range strings.SplitSeq(s, ".") {
		if atom == "" || strings.ContainsFunc(atom, func(r rune) bool { return !isAtext(r) }) {
			return false
		}
	}
	return true
}

// isAtext tells whether r is atext of RFC 5322 3.2.3 as extended by RFC 6532
// 3.2.
func isAtext(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		return true
	case r < utf8.RuneSelf:
		return r > ' ' && strings.ContainsRune("!#$%&'*+-/=?^_`{|}~", r)
	}
	return r != utf8.RuneError
}
