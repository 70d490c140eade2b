package outbound

import (
	"strings"

	"ruapost/mtasts"
	"ruapost/socketmap"
)

// secureReply returns the value that makes Postfix enforce policy, or "" if there
// is none that Postfix would understand.
//
// match is always there: without it Postfix takes the next-hop domain for the name
// to expect. servername is there because the policy's hosts choose their
// certificate by SNI (RFC 8461 4.2).
func secureReply(domain string, policy *mtasts.Policy, tlsrpt bool) string {
	if len(policy.MX) == 0 {
		return ""
	}
	var names []string
	for _, mx := range policy.MX {
		// Postfix writes any name below example.com as .example.com.
		names = append(names, strings.TrimPrefix(mx, "*"))
	}
	plain := "secure match=" + strings.Join(names, ":") + " servername=hostname"
	if len(plain) >= socketmap.MaxReply-len("OK ") {
		return ""
	}
	if tlsrpt {
		if full := plain + stsAttributes(domain, policy); full != plain && len(full) < socketmap.MaxReply-len("OK ") {
			return full
		}
	}
	return plain
}

// stsAttributes returns what Postfix is to tell in its TLSRPT datagrams, or "" if the
// policy's lines cannot be told: Postfix 3.10.0 to 3.10.5 crash when a policy_type
// comes without a policy_string or an mx_host_pattern.
func stsAttributes(domain string, policy *mtasts.Policy) string {
	var b strings.Builder
	b.WriteString(" policy_type=sts policy_domain=")
	b.WriteString(domain)
	lines := 0
	for _, line := range policy.Text {
		if !fitsAttribute(line) {
			continue
		}
		b.WriteString(" { policy_string = ")
		b.WriteString(line)
		b.WriteString(" }")
		lines++
	}
	if lines == 0 {
		return ""
	}
	for _, mx := range policy.MX {
		// Here a wildcard is written as in the policy.
		b.WriteString(" mx_host_pattern=")
		b.WriteString(mx)
	}
	return b.String()
}

// fitsAttribute says whether line can stand inside { name = value }: Postfix has no
// way to escape a brace, and one that does not match its like makes it defer mail.
func fitsAttribute(line string) bool {
	if strings.TrimSpace(line) == "" {
		return false
	}
	for i := range len(line) {
		if c := line[i]; c < ' ' || c > '~' || c == '{' || c == '}' {
			return false
		}
	}
	return true
}
