package inbound

import (
	"strings"

	"ruapost"
)

const authResField = "Authentication-Results"

// claimsToBe says whether an Authentication-Results field bears our authserv-id. One
// whose authserv-id cannot be read is taken for a forgery too (RFC 8601 5).
//
// go-msgauth's authres.Parse is not used: it splits at semicolons inside comments
// and quoted strings, so that a forger could hide from it.
func claimsToBe(value, authservID string) bool {
	id, ok := parseAuthservID(value)
	return !ok || sameID(id, authservID)
}

func sameID(a, b string) bool {
	if strings.EqualFold(a, b) {
		return true
	}
	da, err1 := ruapost.ParseDomain(a)
	db, err2 := ruapost.ParseDomain(b)
	return err1 == nil && err2 == nil && da == db
}

// parseAuthservID returns the authserv-id: the first token or quoted string behind
// comments and blanks (RFC 8601 2.2).
func parseAuthservID(value string) (id string, ok bool) {
	rest, ok := skipCFWS(value)
	if !ok || rest == "" {
		return "", false
	}
	if rest[0] == '"' {
		return unquote(rest[1:])
	}
	end := strings.IndexAny(rest, " \t\r\n;(\"")
	if end < 0 {
		end = len(rest)
	}
	return rest[:end], end > 0
}

func unquote(s string) (text string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), true
		case '\\':
			i++
			if i == len(s) {
				return "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", false
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
		case depth == 0 && !strings.ContainsRune(" \t\r\n", rune(c)):
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
	token := s != ""
	for _, r := range s {
		if r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?=`, r) {
			token = false
		}
	}
	if token {
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
