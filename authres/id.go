package authres

import (
	"strings"
	"unicode/utf8"

	"ruapost"
)

// ClaimsToBe says whether a field's value bears this authserv-id. One whose
// authserv-id cannot be read is taken for a forgery too (RFC 8601 5): others may
// read it in ways that we do not.
//
// go-msgauth's authres.Parse is not used: it splits at semicolons inside comments
// and quoted strings, so that a forger could hide from it.
func ClaimsToBe(value, id string) bool {
	theirs, _, ok := cutID(value)
	if !ok || SameID(theirs, id) {
		return true
	}
	_, err := ruapost.ParseDomain(theirs)
	return err != nil && !isASCII(theirs) // an internationalized name that is none
}

// SameID says whether two authserv-ids are the same, whatever their case and whether
// in A-labels or U-labels (RFC 8601 5).
func SameID(a, b string) bool {
	if strings.EqualFold(a, b) {
		return true
	}
	nameA, errA := ruapost.ParseDomain(a)
	nameB, errB := ruapost.ParseDomain(b)
	return errA == nil && errB == nil && nameA == nameB
}

// cutID returns the authserv-id, which is the first token or quoted string behind
// comments and blanks (RFC 8601 2.2), and what follows. That is not looked at, but
// must not be more of the same word.
func cutID(value string) (id, rest string, ok bool) {
	rest, ok = skipCFWS(value)
	if !ok {
		return "", "", false
	}
	if strings.HasPrefix(rest, `"`) {
		id, rest, ok = unquote(rest[1:])
		id = withoutBlanks(id)
	} else {
		end := strings.IndexFunc(rest, func(r rune) bool { return !isToken(r) })
		if end < 0 {
			end = len(rest)
		}
		id, rest = rest[:end], rest[end:]
	}
	glued := strings.IndexFunc(rest, func(r rune) bool { return r == '"' || isToken(r) }) == 0
	return id, rest, ok && id != "" && !glued
}

// withoutBlanks takes away what a fold may have put into a quoted string.
func withoutBlanks(s string) string {
	return strings.Map(func(r rune) rune {
		if r < utf8.RuneSelf && isBlank(byte(r)) {
			return -1
		}
		return r
	}, s)
}

// isToken says whether r may stand in a token (RFC 2045 5.1, RFC 6532 3.2).
func isToken(r rune) bool {
	return r > ' ' && r != 0x7f && !strings.ContainsRune(`()<>@,;:\"/[]?=`, r)
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
}
