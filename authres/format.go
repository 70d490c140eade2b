package authres

import (
	"strings"

	"ruapost"
)

// Format returns the value of a field of version 1, in lines that end in LF as
// milters give them. Whatever the strings of f hold, the field reads as what they
// say: those that are no token are quoted, without the characters that a header
// field cannot have. A result or property whose name is no keyword is left out, as is
// what goes beyond the bounds.
//
// The authserv-id must not be empty.
func (f *Field) Format() string {
	var b strings.Builder
	b.WriteString(quote(f.ID))
	n := 0
	for _, r := range f.Results {
		text, ok := r.format()
		if !ok {
			continue
		}
		if n == MaxResults || b.Len()+len(text) > MaxLength-16 {
			break
		}
		n++
		b.WriteString(";\n\t" + text)
	}
	if n == 0 {
		b.WriteString("; none")
	}
	return b.String()
}

func (r *Result) format() (text string, ok bool) {
	if !isKeyword(r.Method) || !isKeyword(r.Value) {
		return "", false
	}
	var b strings.Builder
	b.WriteString(r.Method + "=" + r.Value)
	if r.Reason != "" && len(r.Reason) <= MaxValue {
		b.WriteString(" reason=" + quote(r.Reason))
	}
	n := 0
	for _, p := range r.Properties {
		if !isKeyword(p.Type) || !isKeyword(p.Name) || len(p.Value) > MaxValue {
			continue
		}
		if n++; n > MaxProperties {
			break
		}
		b.WriteString(" " + p.Type + "." + p.Name + "=" + quote(p.Value))
	}
	return b.String(), true
}

// quote returns s as a token if it is one, else as a quoted string (RFC 2045 5.1).
// Only mail sent with SMTPUTF8 may have others than ASCII characters in its header.
func quote(s string) string {
	if s != "" && isASCII(s) && strings.IndexFunc(s, func(r rune) bool { return !isToken(r) }) < 0 {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range ruapost.Clean(s, MaxValue) {
		switch {
		case r >= 0x7f:
			r = '?'
		case r == '"' || r == '\\':
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	b.WriteByte('"')
	return b.String()
}

func isKeyword(s string) bool { return s != "" && keywordLength(s) == len(s) }
