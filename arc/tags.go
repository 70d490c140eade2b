package arc

import (
	"encoding/base64"
	"errors"
	"net/netip"
	"strings"
	"unicode/utf8"

	"ruapost/authres"
)

// fws is folding white space.
const fws = " \t\r\n"

// tagList is a tag list (RFC 6376 3.2).
type tagList struct {
	values map[string]string // by name, without the blanks around them
	// unsigned is the list with the value of b= removed, and all blanks around it
	// (RFC 6376 3.7). Only a tag named b is meant, not a "b=" inside another value.
	unsigned string
}

// parseTags reads a tag list. Unlike others it lets nothing pass that the grammar does
// not have: whoever signs such a list would be read differently by different validators.
func parseTags(list string) (*tagList, error) {
	if !utf8.ValidString(list) { // RFC 8616 allows UTF-8
		return nil, errors.New("the tags are not UTF-8")
	}
	tags := &tagList{values: map[string]string{}, unsigned: list}
	for start := 0; start < len(list); {
		spec, _, _ := strings.Cut(list[start:], ";")
		end := start + len(spec)
		if end == len(list) && start > 0 && strings.Trim(spec, fws) == "" {
			break // behind the last semicolon
		}
		name, value, found := strings.Cut(spec, "=")
		name = strings.Trim(name, fws)
		if !found || !isTagName(name) || !isTagValue(value) {
			return nil, errors.New("the tags are malformed")
		}
		if _, twice := tags.values[name]; twice {
			return nil, errors.New("a tag is there twice")
		}
		if len(tags.values) == MaxTags {
			return nil, limitError("too many tags")
		}
		if name == "b" {
			tags.unsigned = list[:end-len(value)] + list[end:]
		}
		tags.values[name] = strings.Trim(value, fws)
		start = end + 1
	}
	return tags, nil
}

func isTagName(s string) bool {
	for i := range len(s) {
		c := s[i] | 0x20
		isLetter := 'a' <= c && c <= 'z'
		if !isLetter && (i == 0 || s[i] != '_' && (s[i] < '0' || s[i] > '9')) {
			return false
		}
	}
	return s != ""
}

func isTagValue(s string) bool {
	for i := range len(s) {
		if (s[i] < ' ' || s[i] == 0x7f) && !strings.Contains(fws, s[i:i+1]) {
			return false
		}
	}
	return true
}

// decodeBase64 decodes a value that may have folding white space anywhere in it
// (RFC 6376 3.5).
func decodeBase64(s string) ([]byte, error) {
	return base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
}

// parseResults splits the value of an AAR field into the instance and what is behind
// it. The latter is the sealer's own affair: it may be anything (RFC 8617 3.4).
func parseResults(value string) (instance int, results string, err error) {
	tag, _, found := strings.Cut(uncomment(value), ";")
	name, position, isTag := strings.Cut(tag, "=")
	if !found || !isTag || strings.Trim(name, fws) != "i" {
		return 0, "", errors.New("it does not begin with an instance (i=)")
	}
	instance, err = parseInstance(strings.Trim(position, fws))
	return instance, value[len(tag)+1:], err
}

// uncomment returns s with each octet of its comments, which may be nested
// (RFC 5322 3.2.2), replaced by a blank. Parentheses in quoted strings begin none.
func uncomment(s string) string {
	out := []byte(s)
	depth, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && depth > 0:
			out[i] = ' '
			i++
		case c == '\\' && quoted:
			i++
			continue
		case c == '"' && depth == 0:
			quoted = !quoted
		case c == '(' && !quoted:
			depth++
		case c == ')' && depth > 0:
			out[i] = ' '
			depth--
		}
		if depth > 0 && i < len(s) {
			out[i] = ' '
		}
	}
	return string(out)
}

// remoteIP returns the smtp.remote-ip property of the results, the zero value if there
// is none or more than one to choose from.
func remoteIP(results string) (ip netip.Addr) {
	f, err := authres.Parse(results)
	if err != nil {
		return ip
	}
	for _, r := range f.Results {
		for _, value := range r.Values("smtp", "remote-ip") {
			addr, err := netip.ParseAddr(value)
			if err != nil || addr.Zone() != "" || ip.IsValid() && ip != addr.Unmap() {
				return netip.Addr{}
			}
			ip = addr.Unmap()
		}
	}
	return ip
}
