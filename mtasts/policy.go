package mtasts

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"ruapost"
)

const (
	// MaxAge is the longest time that a policy may be kept; longer ones are
	// shortened to it (RFC 8461 3.2).
	MaxAge = 31557600 * time.Second
	// MaxMX is how many different mx patterns a policy may have; one with more is
	// invalid. Policies in use have a handful.
	MaxMX = 128

	// What is kept of the file for reports.
	maxTextLines  = 2 * MaxMX
	maxLineOctets = 300 // "mx: *." and a name
)

// ErrPolicySyntax is the error, wrapped, of a policy file that is not valid.
var ErrPolicySyntax = errors.New("invalid MTA-STS policy")

// Mode says what is to be done about an MX host that the policy does not fit
// (RFC 8461 5).
type Mode string

const (
	ModeEnforce Mode = "enforce" // do not deliver to it
	ModeTesting Mode = "testing" // deliver, but report it
	ModeNone    Mode = "none"    // as if the domain had no policy
)

// Policy is an MTA-STS policy (RFC 8461 3.2).
type Policy struct {
	Mode Mode
	// MX are the patterns of the MX hosts that may be delivered to: domain names
	// as ruapost.ParseDomain gives them, some with "*." before them. Only a policy
	// of ModeNone may have none.
	MX []string
	// MaxAge is how long the policy may be kept after it was fetched, up to the
	// constant MaxAge. Zero: it is for this use only.
	MaxAge time.Duration
	// Text are the lines of the file as published, without blank ones, for the
	// policy-string of reports (RFC 8460 4.5): cleaned by ruapost.Clean and, if
	// they are many or long, cut off.
	Text []string
}

// ParsePolicy reads a policy file. Its error wraps ErrPolicySyntax.
//
// It is more lenient than RFC 8461 3.2 where deployed files need it and nothing
// becomes ambiguous: lines may be empty, may end in blanks and in LF, CRLF or the
// end of the file; an mx pattern may end in a dot; a max_age of any length is
// shortened to MaxAge. All else that the grammar excludes makes the policy
// invalid: words in another case, blanks before a field or its colon, and
// mx patterns that are no names.
func ParsePolicy(data []byte) (*Policy, error) {
	p := &Policy{}
	seen := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\r\n"+blanks)
		if line == "" {
			continue
		}
		if len(p.Text) < maxTextLines {
			p.Text = append(p.Text, ruapost.Clean(line, maxLineOctets))
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !isFieldName(name) {
			return nil, fmt.Errorf("%w: line %q is no field", ErrPolicySyntax, ruapost.Clean(line, 64))
		}
		if seen[name] {
			continue // of all but mx, the first counts
		}
		known, err := p.set(name, strings.TrimLeft(value, blanks))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrPolicySyntax, err)
		}
		if known && name != "mx" {
			seen[name] = true
		}
	}
	for _, name := range []string{"version", "mode", "max_age"} {
		if !seen[name] {
			return nil, fmt.Errorf("%w: no %s", ErrPolicySyntax, name)
		}
	}
	if len(p.MX) == 0 && p.Mode != ModeNone {
		return nil, fmt.Errorf("%w: no mx", ErrPolicySyntax)
	}
	return p, nil
}

// set takes the value of a field. Unknown fields are ignored (RFC 8461 3.2).
func (p *Policy) set(name, value string) (known bool, err error) {
	switch name {
	case "version":
		if value != "STSv1" {
			err = fmt.Errorf("version %q", ruapost.Clean(value, 64))
		}
	case "mode":
		p.Mode = Mode(strings.Clone(value)) // a part would keep the whole file in memory
		if p.Mode != ModeEnforce && p.Mode != ModeTesting && p.Mode != ModeNone {
			err = fmt.Errorf("mode %q", ruapost.Clean(value, 64))
		}
	case "max_age":
		p.MaxAge, err = parseMaxAge(value)
	case "mx":
		err = p.addMX(value)
	default:
		return false, nil
	}
	return true, err
}

func parseMaxAge(s string) (time.Duration, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, fmt.Errorf("max_age %q", ruapost.Clean(s, 64))
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil { // digits only: out of range
		return MaxAge, nil
	}
	return min(time.Duration(n)*time.Second, MaxAge), nil
}

// addMX adds a pattern. Patterns must be A-labels (RFC 8461 3.2). A final dot is
// accepted: it cannot mean anything else, and to reject it would leave the domain
// without protection.
func (p *Policy) addMX(s string) error {
	name, wildcard := strings.CutPrefix(strings.Clone(s), "*.")
	isASCII := strings.IndexFunc(s, func(r rune) bool { return r > '~' }) < 0
	name, err := ruapost.ParseDomain(name)
	if err != nil || !isASCII || !wildcard && ruapost.Labels(name) < 2 { // a word alone could be a keyword of Postfix
		return fmt.Errorf("mx %q", ruapost.Clean(s, 64))
	}
	if wildcard {
		name = "*." + name
	}
	if slices.Contains(p.MX, name) {
		return nil
	}
	if len(p.MX) == MaxMX {
		return fmt.Errorf("more than %d mx", MaxMX)
	}
	p.MX = append(p.MX, name)
	return nil
}

// Matches reports whether the MX host is one that the policy names: it is equal
// to a pattern, or a pattern's "*." stands for exactly its left-most label
// (RFC 8461 4.1).
func (p *Policy) Matches(mx string) bool {
	host, err := ruapost.ParseDomain(mx)
	if err != nil {
		return false
	}
	_, parent, _ := strings.Cut(host, ".")
	for _, pattern := range p.MX {
		if name, ok := strings.CutPrefix(pattern, "*."); ok {
			if name == parent {
				return true
			}
		} else if pattern == host {
			return true
		}
	}
	return false
}
