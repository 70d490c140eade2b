package outbound

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ruapost/mtasts"
	"ruapost/socketmap"
)

func policy(mx []string, text ...string) *mtasts.Policy {
	return &mtasts.Policy{Mode: mtasts.ModeEnforce, MX: mx, MaxAge: time.Hour, Text: text}
}

func TestReply(t *testing.T) {
	good := policy([]string{"mx.example.com", "*.example.net"}, "version: STSv1", "mode: enforce")
	const (
		plain      = "OK secure match=mx.example.com:.example.net servername=hostname"
		attributes = " policy_type=sts policy_domain=example.com { policy_string = version: STSv1 } { policy_string = mode: enforce }" +
			" mx_host_pattern=mx.example.com mx_host_pattern=*.example.net"
		one = "OK secure match=mx.example.com servername=hostname"
	)
	for name, tc := range map[string]struct {
		level  Level
		policy *mtasts.Policy
		plain  string
		tlsrpt string // the same as plain if empty
	}{
		// Rule 2: an empty value would be a failed lookup.
		"none": {LevelNone, nil, "NOTFOUND ", ""},
		// Rules 3, 4, 5, 6, and 2.6.
		"sts": {LevelSTS, good, plain, plain + attributes},
		// 2.6: at level may the patterns are not enforced, and none is missing.
		"testing": {LevelTesting, good, "NOTFOUND ", "OK may" + attributes},
		// Rule 6: no mx_host_pattern in DANE answers, nor anything else (2.3).
		"dane":      {LevelDANE, good, "OK dane", ""},
		"dane-only": {LevelDANEOnly, nil, "OK dane-only", ""},
		"may":       {LevelMay, nil, "OK may", ""},
		"encrypt":   {LevelEncrypt, nil, "OK encrypt", ""},
		"no TLS":    {LevelNoTLS, nil, "OK none", ""},
		"secure":    {LevelSecure, nil, "OK secure match=nexthop:dot-nexthop servername=hostname", ""},
		// Rule 7: there is no escape for braces.
		"braces": {
			LevelSTS, policy([]string{"mx.example.com"}, "version: STSv1", "x: {", "y: }", "z: {}"), one,
			one + " policy_type=sts policy_domain=example.com { policy_string = version: STSv1 } mx_host_pattern=mx.example.com",
		},
		// Rule 5: all attributes or none.
		"no line that could be told": {LevelSTS, policy([]string{"mx.example.com"}, "x: {", "ü: y", " ", "a\tb"), one, ""},
		"the same in testing":        {LevelTesting, policy([]string{"mx.example.com"}, "x: {"), "NOTFOUND ", ""},
		"no MX":                      {LevelSTS, policy(nil, "version: STSv1"), "NOTFOUND ", ""},
		"no MX in testing":           {LevelTesting, policy(nil, "version: STSv1"), "NOTFOUND ", ""},
		// 1.2: what makes the reply too long is left out.
		"a line too long": {
			LevelSTS, policy([]string{"mx.example.com"}, strings.Repeat("x", socketmap.MaxReply), "mode: enforce"), one,
			one + " policy_type=sts policy_domain=example.com { policy_string = mode: enforce } mx_host_pattern=mx.example.com",
		},
	} {
		for tlsrpt, want := range map[bool]string{false: tc.plain, true: cmp.Or(tc.tlsrpt, tc.plain)} {
			if got := reply("example.com", tc.level, tc.policy, tlsrpt).String(); got != want {
				t.Errorf("%s, TLSRPT %v:\n%s\nwant\n%s", name, tlsrpt, got, want)
			}
		}
	}
}

// The longest policy that mtasts reads is still told, in full as far as Postfix needs it.
func TestLongReply(t *testing.T) {
	var mx, text []string
	for i := range mtasts.MaxMX {
		name := fmt.Sprintf("mx%03d.", i) + strings.Repeat(strings.Repeat("a", 61)+".", 3) + strings.Repeat("b", 50)
		mx, text = append(mx, "*."+name), append(text, "mx: *."+name)
	}
	got := reply("example.com", LevelSTS, policy(mx, text...), true).String()
	if len(got) > socketmap.MaxReply || strings.Count(got, "mx_host_pattern=*.") != mtasts.MaxMX || !strings.Contains(got, "policy_string") {
		t.Errorf("a reply of %d octets: %.300s", len(got), got)
	}
	var far []string
	for range 4 {
		far = append(far, mx...)
	}
	if got := reply("example.com", LevelSTS, policy(far, "version: STSv1"), false); got != socketmap.NotFound() {
		t.Errorf("a reply of %d octets", len(got.String()))
	}
}

// FuzzReply reads replies as Postfix 3.10 does, for any policy.
func FuzzReply(f *testing.F) {
	f.Add("mx.example.com", "*.example.net", "version: STSv1", "x: {a")
	f.Add("mx.example.com", "mx.example.com", " = ", "{}")
	f.Add("a", "b", "mx: a, b", "policy_type=sts")
	f.Fuzz(func(t *testing.T, mx1, mx2, line1, line2 string) {
		if strings.ContainsAny(mx1+mx2, " \t\r\n,{}:=|") || mx1 == "" || mx2 == "" {
			return // mtasts gives domain names only
		}
		p := policy([]string{mx1, mx2}, line1, line2)
		for _, level := range []Level{LevelSTS, LevelTesting} {
			for _, tlsrpt := range []bool{false, true} {
				r := reply("example.com", level, p, tlsrpt)
				if r.Status() == socketmap.StatusNotFound {
					continue
				}
				attributes, err := readValue(r.Data())
				if err != nil {
					t.Fatalf("%q: %v", r, err)
				}
				if level == LevelSTS && (len(attributes["match"]) != 1 || len(attributes["servername"]) != 1) {
					t.Errorf("%q: match or servername", r)
				}
				want := 0
				if tlsrpt && len(attributes["policy_type"]) > 0 {
					want = 1
				}
				if len(attributes["policy_type"]) != want || len(attributes["policy_domain"]) != want ||
					(len(attributes["policy_string"]) > 0) != (want > 0) || len(attributes["mx_host_pattern"]) != 2*want {
					t.Errorf("%q: attributes %v", r, attributes)
				}
			}
		}
	})
}

// readValue reads a table value by the grammar of Postfix 3.10.
func readValue(value string) (map[string][]string, error) {
	known := []string{"match", "servername", "policy_type", "policy_domain", "policy_string", "mx_host_pattern"}
	attributes := map[string][]string{}
	tokens, err := tokens(value)
	if err != nil || len(tokens) == 0 || tokens[0] != "secure" && tokens[0] != "may" {
		return nil, fmt.Errorf("no level in %q: %w", tokens, err)
	}
	for _, token := range tokens[1:] {
		name, v, ok := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(token, "{"), "}"), "=")
		name, v = strings.TrimSpace(name), strings.TrimSpace(v)
		if !ok || v == "" || !slices.Contains(known, name) {
			return nil, fmt.Errorf("attribute %q", token)
		}
		attributes[name] = append(attributes[name], v)
	}
	return attributes, nil
}

// tokens splits at blanks and commas outside of braces.
func tokens(value string) ([]string, error) {
	var all []string
	depth, start := 0, -1
	for i, c := range value {
		switch {
		case c == '{':
			depth++
		case c == '}':
			depth--
		case depth == 0 && strings.ContainsRune(", \t\r\n", c):
			if start >= 0 {
				all = append(all, value[start:i])
			}
			start = -1
			continue
		}
		if depth < 0 {
			return nil, fmt.Errorf("brace at %d", i)
		}
		if start < 0 {
			start = i
		}
	}
	if depth != 0 {
		return nil, fmt.Errorf("brace left open")
	}
	if start >= 0 {
		all = append(all, value[start:])
	}
	return all, nil
}
