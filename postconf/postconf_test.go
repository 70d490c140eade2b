package postconf

import "testing"

func TestQuote(t *testing.T) {
	for s, want := range map[string]string{
		"":                 "''",
		"/run/x.sock":      "/run/x.sock",
		"a b":              "'a b'",
		"$(reboot)":        "'$(reboot)'",
		"it's":             `'it'\''s'`,
		"hash:/etc/x, a:b": "'hash:/etc/x, a:b'",
	} {
		if got := Quote(s); got != want {
			t.Errorf("Quote(%q) = %s; want %s", s, got, want)
		}
	}
}
