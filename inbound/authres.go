package inbound

import (
	"strings"
	"unicode/utf8"

	"ruapost"
)

// claimsToBe says whether an Authentication-Results field bears our authserv-id. One
// whose authserv-id cannot be read is taken for a forgery too (RFC 8601 5): others
// may read it in ways that we do not.
//
// go-msgauth's authres.Parse is not used: it splits at semicolons inside comments
// and quoted strings, so that a forger could hide from it.
func claimsToBe(value, authservID string) bool {
	id, ok := parseAuthservID(value)
	if !ok || strings.EqualFold(id, authservID) {
		return true
	}
	theirs, err := ruapost.ParseDomain(id)
	if err != nil {
		return !isASCII(id) // an internationalized name that is none
	}
	ours, err := ruapost.ParseDomain(authservID)
	return err == nil && theirs == ours
}

// parseAuthservID returns the authserv-id: the first token or quoted string behind
// comments and blanks (RFC 8601 2.2). What follows is not looked at, but must not be
// more of the same word.
func parseAuthservID(value string) (id string, ok bool) {
	rest, ok := skipCFWS(value)
	if !ok {
		return "", false
	}
	if strings.HasPrefix(rest, `"`) {
		id, rest, ok = unquote(rest[1:])
	} else {
		end := strings.IndexFunc(rest, func(r rune) bool { return !isToken(r) })
		if end < 0 {
			end = len(rest)
		}
		id, rest = rest[:end], rest[end:]
	}
	glued := strings.IndexFunc(rest, func(r rune) bool { return r == '"' || isToken(r) }) == 0
	return id, ok && id != "" && !glued
}

// isToken says whether r may stand in a token (RFC 2045 5.1, RFC 6532 3.2).
func isToken(r rune) bool {
	return r > ' ' && r != 0x7f && !strings.ContainsRune(`()<>@,;:\"/[]?=`, r)
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
}

// isBlank says whether readers may take an octet for white space: all control
// characters are.
func isBlank(c byte) bool { return c <= ' ' || c == 0x7f }

// unquote returns the text of a quoted string without the blanks in it, which a fold
// may have put there, and what follows it.
func unquote(s string) (text, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:], true
		case s[i] == '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		if !isBlank(s[i]) {
			b.WriteByte(s[i])
		}
	}
	return "", "", false
}

// skipCFWS returns s without leading blanks and comments, false if a comment does
// not end.
func skipCFWS(s string) (rest string, ok bool) {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case c == '\\' && depth > 0:
			i++
		case depth == 0 && !isBlank(c):
			return s[i:], true
		}
	}
	return "", depth == 0
}

// authenticationResults returns the parts of the Authentication-Results field's
// value, to be joined by semicolons (RFC 8601 2.2). All values in it are our own
// words, domain names or quoted.
func (j *judgement) authenticationResults(authservID string) []string {
	parts := []string{value(authservID)}
	property := "smtp.mailfrom"
	if j.spf.Helo {
		property = "smtp.helo"
	}
	spf := "spf=" + string(j.spf.Result)
	if j.spf.Domain != "" {
		spf += " " + property + "=" + value(j.spf.Domain)
	}
	parts = append(parts, spf)
	for _, s := range j.dkim {
		part := "dkim=" + string(s.result)
		if s.reason != "" {
			part += " reason=" + value(s.reason)
		}
		part += " header.d=" + value(s.domain) + " header.s=" + value(s.selector)
		if s.algorithm != "" {
			part += " header.a=" + value(s.algorithm)
		}
		if s.b != "" {
			part += " header.b=" + value(s.b)
		}
		parts = append(parts, part)
	}
	if len(j.dkim) == 0 {
		parts = append(parts, "dkim=none")
	}
	return append(parts, j.dmarcResult())
}

func (j *judgement) dmarcResult() string {
	part := "dmarc=" + string(j.result)
	if j.problem != "" {
		part += " reason=" + value(j.problem)
	}
	if j.author != "" {
		part += " header.from=" + value(j.author)
	}
	if j.policy != nil {
		part += " policy.dmarc=" + string(j.policy.Effective) // RFC 9989 9.1
	}
	return part
}

// value returns s as a token if it is one, else as a quoted string (RFC 2045 5.1).
func value(s string) string {
	if s != "" && isASCII(s) && strings.IndexFunc(s, func(r rune) bool { return !isToken(r) }) < 0 {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range ruapost.Clean(s, 256) {
		switch {
		case r >= 0x7f:
			b.WriteByte('?')
			continue
		case r == '"' || r == '\\':
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	b.WriteByte('"')
	return b.String()
}
