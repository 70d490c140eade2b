package resolver

import "strings"

// unescape undoes the escapes of RFC 1035 5.1, which the DNS library puts into
// the text of TXT records: \DDD is the octet with that decimal value, and a
// backslash before any other octet stands for that octet.
func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b = append(b, s[i])
			continue
		}
		if octet, ok := decimalOctet(s[i+1:]); ok {
			b = append(b, octet)
			i += 3
			continue
		}
		i++
		b = append(b, s[i])
	}
	return string(b)
}

// decimalOctet returns the octet whose value the first three digits of s give.
func decimalOctet(s string) (octet byte, ok bool) {
	if len(s) < 3 {
		return 0, false
	}
	n := 0
	for i := range 3 {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = 10*n + int(s[i]-'0')
	}
	return byte(n), n <= 255
}
