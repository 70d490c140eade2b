package outbound

import (
	"slices"
	"strings"

	"ruapost/mtasts"
	"ruapost/socketmap"
)

// maxValue is the longest value of an OK reply.
const maxValue = socketmap.MaxReply - len("OK ")

// reply returns what Postfix is told about domain, with the attributes for TLS reports
// if tlsrpt is set, which only Postfix 3.10 and later understands. Whatever level and
// policy are, it is nothing that Postfix would refuse, as that defers the mail: what
// cannot be told is NOTFOUND.
func reply(domain string, level Level, policy *mtasts.Policy, tlsrpt bool) socketmap.Reply {
	switch level {
	case LevelNone:
		return socketmap.NotFound()
	case LevelSTS:
		return socketmap.OK(secureValue(domain, policy, tlsrpt))
	case LevelTesting:
		// At level may nothing is enforced, and Postfix 3.10.0 to 3.10.5 do not crash, as
		// they would without an mx_host_pattern; with one, at level dane, Postfix enforces
		// the policy's MX hosts.
		if attributes := stsAttributes(domain, policy, maxValue-len("may")); tlsrpt && attributes != "" {
			return socketmap.OK("may" + attributes)
		}
		return socketmap.NotFound()
	case LevelSecure:
		return socketmap.OK("secure match=nexthop:dot-nexthop servername=hostname")
	}
	return socketmap.OK(string(level))
}

// secureValue returns the value that makes Postfix enforce policy, or "" if there
// is none that Postfix would understand.
//
// match is always there: without it Postfix takes the next-hop domain for the name
// to expect. servername is there because the policy's hosts choose their
// certificate by SNI (RFC 8461 4.2).
func secureValue(domain string, policy *mtasts.Policy, tlsrpt bool) string {
	if len(policy.MX) == 0 {
		return ""
	}
	var names []string
	for _, mx := range policy.MX {
		// Postfix writes any name below example.com as .example.com.
		names = append(names, strings.TrimPrefix(mx, "*"))
	}
	value := "secure match=" + strings.Join(names, ":") + " servername=hostname"
	if len(value) > maxValue {
		return ""
	}
	if tlsrpt {
		value += stsAttributes(domain, policy, maxValue-len(value))
	}
	return value
}

// stsAttributes returns what Postfix is to tell in its TLSRPT datagrams, in up to most
// octets, or "" if that cannot be told: Postfix 3.10.0 to 3.10.5 crash when a
// policy_type comes without a policy_string or an mx_host_pattern.
func stsAttributes(domain string, policy *mtasts.Policy, most int) string {
	var patterns strings.Builder
	for _, mx := range policy.MX {
		// Here a wildcard is written as in the policy.
		patterns.WriteString(" mx_host_pattern=")
		patterns.WriteString(mx)
	}
	attributes := " policy_type=sts policy_domain=" + domain
	room := most - len(attributes) - patterns.Len()
	var lines strings.Builder
	for _, line := range policy.Text {
		line = " { policy_string = " + line + " }"
		if fitsAttribute(line) && lines.Len()+len(line) <= room {
			lines.WriteString(line)
		}
	}
	if lines.Len() == 0 || patterns.Len() == 0 {
		return ""
	}
	return attributes + lines.String() + patterns.String()
}

// fitsAttribute says whether attribute, which is { name = value }, is what Postfix can
// read: it has no way to escape a brace, and one that does not match its like makes it
// defer mail.
func fitsAttribute(attribute string) bool {
	inner := attribute[len(" {") : len(attribute)-len("}")]
	_, value, _ := strings.Cut(inner, "=")
	return strings.TrimSpace(value) != "" && !slices.ContainsFunc([]byte(inner), func(c byte) bool {
		return c < ' ' || c > '~' || c == '{' || c == '}'
	})
}
