// Package authres reads and writes the value of the Authentication-Results header
// field (RFC 8601).
//
// Such a field says what some host found out about a message, and everybody can
// write one. Parse is strict about which host that claims to be, and lenient about
// what follows, where much of the software in use deviates from the grammar.
package authres

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Bounds of a field. Results and properties beyond theirs are left out.
const (
	MaxLength     = 32 << 10 // octets
	MaxResults    = 100
	MaxProperties = 20 // of a result
	// MaxValue is the length in octets of an authserv-id, of a reason or of the value
	// of a property. A longer value is left out as a whole: the end of a domain name
	// decides whose it is.
	MaxValue = 512
)

var errBehindID = errors.New("authres: text behind the authserv-id")

// Field is the value of an Authentication-Results field.
type Field struct {
	// ID is the authserv-id: the host whose results these are. It is empty in fields
	// of software that writes none.
	ID string
	// Version is that of the field's grammar, 1 if it names none. Of a field with
	// another one nothing else is known (RFC 8601 2.6).
	Version int
	// Results are in the order of the field. There are none if it says "none".
	Results []Result
}

// Result is what one method found out. Method and Value are in lower case; results
// of another method version than 1 are left out.
type Result struct {
	Method     string // such as "dkim"
	Value      string // such as "pass"; the field's own word, of which there are many
	Reason     string
	Properties []Property
}

// Property is something that a result is about, "header.d=example.com" for example.
// Type and Name are in lower case. Value is the text of a quoted string as well, and
// anything may be in it.
type Property struct {
	Type, Name, Value string
}

// Values returns the different values that the result has for a property. If they
// are more than one, it cannot be told which of them was meant.
func (r *Result) Values(ptype, name string) []string {
	var values []string
	for _, p := range r.Properties {
		if p.Type == ptype && p.Name == name && !slices.Contains(values, p.Value) {
			values = append(values, p.Value)
		}
	}
	return values
}

// Parse reads a field's value, folded or not. An error means that different readers
// could take it for the results of different hosts or for different results: no
// authserv-id that is clearly one, text behind it, a comment or a quoted string that
// does not end, or more than MaxLength octets.
//
// Beyond the grammar of RFC 8601 2.2 it accepts a field without an authserv-id, as
// Microsoft writes them, reason and properties in any order, values such as
// "header.b=cuhHmj/h" that would have to be quoted, and empty results. What is no
// result, and in a result what is no property, is skipped.
func Parse(value string) (*Field, error) {
	if len(value) > MaxLength {
		return nil, fmt.Errorf("authres: field of %d octets", len(value))
	}
	f := &Field{Version: 1}
	r := reader{rest: value}
	more, err := r.head(f)
	if err != nil {
		return nil, err
	}
	for more && len(f.Results) < MaxResults {
		if res, ok := r.result(); ok {
			f.Results = append(f.Results, res)
		}
		more = r.take(';')
	}
	if r.unclosed {
		return nil, errors.New("authres: comment or quoted string without an end")
	}
	return f, nil
}

// reader takes a field apart from its beginning.
type reader struct {
	rest     string
	unclosed bool // a comment or quoted string did not end; rest is empty then
}

// head reads what comes before the results, and says whether there are any.
func (r *reader) head(f *Field) (more bool, err error) {
	id, rest, ok := cutID(r.rest)
	if !ok || len(id) > MaxValue {
		return false, errors.New("authres: no authserv-id")
	}
	r.rest, rest = rest, r.rest
	if version := r.keyword(); version != "" {
		if f.Version, ok = number(version); !ok {
			return false, errBehindID
		}
	}
	if more = r.take(';'); more || r.rest == "" {
		f.ID = id
		return more && f.Version == 1, nil
	}
	// Or it was the first result's method, and there is no authserv-id.
	r.rest = rest
	first := *r
	if _, _, ok := first.method(); !ok {
		return false, errBehindID
	}
	return true, nil
}

// result reads up to the next semicolon.
func (r *reader) result() (res Result, ok bool) {
	res.Method, res.Value, ok = r.method()
	for !r.end() {
		name := r.keyword()
		switch {
		case name == "reason" && r.take('='):
			if text := r.text(); res.Reason == "" && len(text) <= MaxValue {
				res.Reason = text
			}
		case name != "" && r.take('.'):
			property := Property{Type: name, Name: r.keyword()}
			if property.Name == "" || !r.take('=') {
				continue
			}
			property.Value = r.text()
			if len(property.Value) <= MaxValue && len(res.Properties) < MaxProperties {
				res.Properties = append(res.Properties, property)
			}
		case name == "" || r.take('='): // no property, as "action=none" is none
			r.text()
		}
	}
	return res, ok && res.Method != ""
}

// method reads "method=result". If the method has a version that is not known it is
// empty, but ok.
func (r *reader) method() (name, result string, ok bool) {
	name = r.keyword()
	if name != "" && r.take('/') {
		version, ok := number(r.keyword())
		if !ok {
			return "", "", false
		}
		if version != 1 {
			name = ""
		}
	} else if name == "" {
		return "", "", false
	}
	if !r.take('=') {
		return "", "", false
	}
	result = r.keyword()
	return name, result, result != ""
}

// number reads a version, which is digits.
func number(s string) (n int, ok bool) {
	u, err := strconv.ParseUint(s, 10, 16)
	return int(u), err == nil
}

func (r *reader) skip() {
	rest, ok := skipCFWS(r.rest)
	r.rest, r.unclosed = rest, r.unclosed || !ok
}

// end says whether the result ends here.
func (r *reader) end() bool {
	r.skip()
	return r.rest == "" || r.rest[0] == ';'
}

func (r *reader) take(c byte) bool {
	r.skip()
	if r.rest == "" || r.rest[0] != c {
		return false
	}
	r.rest = r.rest[1:]
	return true
}

// keyword reads a Keyword (RFC 5321 4.1.2), in lower case, or nothing.
func (r *reader) keyword() string {
	r.skip()
	n := keywordLength(r.rest)
	word := r.rest[:n]
	r.rest = r.rest[n:]
	return strings.ToLower(word)
}

// text reads a value: everything up to a blank or semicolon, with the quotes of
// quoted strings taken away. A parenthesis right behind other text belongs to it,
// though it begins a comment: a host that looked up the name "a.example(.b.example"
// has not found out anything about a.example.
func (r *reader) text() string {
	r.skip()
	var b strings.Builder
	for r.rest != "" {
		switch c := r.rest[0]; {
		case c == ';' || isBlank(c):
			return b.String()
		case c == '(':
			b.WriteByte(c)
			r.skip()
			return b.String()
		case c == '"':
			text, rest, ok := unquote(r.rest[1:])
			b.WriteString(text)
			r.rest, r.unclosed = rest, r.unclosed || !ok
		default:
			b.WriteByte(c)
			r.rest = r.rest[1:]
		}
	}
	return b.String()
}

// keywordLength is the length of the Keyword that s begins with. Some software has
// underscores in it.
func keywordLength(s string) int {
	for i := range len(s) {
		c := s[i] | 0x20
		if !('a' <= c && c <= 'z') && !('0' <= s[i] && s[i] <= '9') && s[i] != '-' && s[i] != '_' {
			return i
		}
	}
	return len(s)
}

// isBlank says whether readers may take an octet for white space: all control
// characters are.
func isBlank(c byte) bool { return c <= ' ' || c == 0x7f }

// unquote returns the text of a quoted string and what follows it.
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
		b.WriteByte(s[i])
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
