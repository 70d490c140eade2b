package mailtouri

import (
	"net/mail"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name, raw, want string
	}{
		{"plain", "mailto:reports@example.com", "reports@example.com"},
		{"scheme in any case", "MailTo:reports@example.com", "reports@example.com"},
		{"domain in any case, final dot", "mailto:Reports@EXAMPLE.com.", "Reports@example.com"},
		{"percent-encoded sub-delims", "mailto:a%21b%2Bc@example.com", "a!b+c@example.com"},
		{"plus is not a blank", "mailto:a+b@example.com", "a+b@example.com"},
		{"decoded once", "mailto:a%2521b@example.com", "a%21b@example.com"},
		{"encoded at sign", "mailto:a%40example.com", "a@example.com"},
		{"encoded question mark and number sign", "mailto:a%3Fb%23c@example.com", "a?b#c@example.com"},
		{"encoded slash", "mailto:a%2Fb@example.com", "a/b@example.com"},
		{"header fields dropped", "mailto:a@example.com?subject=x&to=b@example.net", "a@example.com"},
		{"header fields that would inject", "mailto:a@example.com?bcc=b@example.net%0d%0aX: y", "a@example.com"},
		{"fragment dropped", "mailto:a@example.com#part", "a@example.com"},
		{"first of several addresses", "mailto:a@example.com,b@example.net", "a@example.com"},
		{"first of several, comma encoded", "mailto:a@example.com%2Cb@example.net", "a@example.com"},
		{"first of several, encoded blanks", "mailto:a@example.com%20%2C%20b@example.net", "a@example.com"},
		{"RFC 6068 6.1 quoted", "mailto:%22not%40me%22@example.org", `"not@me"@example.org`},
		{"RFC 6068 6.1 quoted pairs", "mailto:%22oh%5C%5Cno%22@example.org", `"oh\\no"@example.org`},
		{"RFC 6068 6.1 quoted quotes", "mailto:%22%5C%5C%5C%22it's%5C%20ugly%5C%5C%5C%22%22@example.org", `"\\\"it's ugly\\\""@example.org`},
		{"quotes that are not needed", "mailto:%22reports%22@example.com", "reports@example.com"},
		{"comma in quotes", "mailto:%22a%2Cb%22@example.com,c@example.com", `"a,b"@example.com`},
		{"blanks at the ends of quotes", "mailto:%22%20a%20%22@example.com", `" a "@example.com`},
		{"RFC 6068 6.3 UTF-8 domain", "mailto:user@%E7%B4%8D%E8%B1%86.example.org", "user@xn--99zt52a.example.org"},
		{"UTF-8 local part", "mailto:%C3%B1@example.com", "ñ@example.com"},
		{"longest local part", "mailto:" + strings.Repeat("a", 64) + "@example.com", strings.Repeat("a", 64) + "@example.com"},

		{"empty", "", ""},
		{"no scheme", "reports@example.com", ""},
		{"other scheme", "https://example.com/", ""},
		{"no address", "mailto:", ""},
		{"only header fields", "mailto:?to=a@example.com", ""},
		{"no at sign", "mailto:reports", ""},
		{"no local part", "mailto:@example.com", ""},
		{"empty quotes", "mailto:%22%22@example.com", ""},
		{"no domain", "mailto:a@", ""},
		{"slashes as in http", "mailto://reports@example.com", ""},
		{"address literal", "mailto:a@%5B192.0.2.1%5D", ""},
		{"IPv4 address", "mailto:a@192.0.2.1", ""},
		{"display name", "mailto:Reports%20<a@example.com>", ""},
		{"comment", "mailto:a(comment)@example.com", ""},
		{"CR LF", "mailto:a%0D%0ABcc:b@example.com", ""},
		{"CR LF in quotes", "mailto:%22a%0D%0Ab%22@example.com", ""},
		{"CR LF in the domain", "mailto:a@example.com%0D%0ABcc:%20b@example.net", ""},
		{"NUL", "mailto:a%00@example.com", ""},
		{"CR LF in what is dropped", "mailto:a@example.com?x=\r\ny", ""},
		{"not UTF-8 in what is dropped", "mailto:a@example.com?x=\xff", ""},
		{"endless", "mailto:a@example.com?x=" + strings.Repeat("y", maxURI), ""},
		{"NUL in quotes", "mailto:%22a%00%22@example.com", ""},
		{"bidirectional override", "mailto:a%E2%80%AE@example.com", ""},
		{"not UTF-8", "mailto:a%FF@example.com", ""},
		{"not UTF-8 in quotes", "mailto:%22a%FF%22@example.com", ""},
		{"broken percent-encoding", "mailto:a%4@example.com", ""},
		{"two dots", "mailto:a..b@example.com", ""},
		{"dot at the end", "mailto:a.@example.com", ""},
		{"unquoted comma", "mailto:a%2Cb@example.com", ""},
		{"second at sign", "mailto:a@b@example.com", ""},
		{"quotes not closed", "mailto:%22a@example.com", ""},
		{"quotes end in a backslash", "mailto:%22a%5C", ""},
		{"local part too long", "mailto:" + strings.Repeat("a", 65) + "@example.com", ""},
		{"address too long", "mailto:" + strings.Repeat("a", 64) + "@" + strings.Repeat("b.", 95) + "example.com", "" /* 266 octets */},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.raw)
			if got != tt.want || (err != nil) != (tt.want == "") {
				t.Errorf("Parse(%q) = %q, %v; want %q", tt.raw, got, err, tt.want)
			}
		})
	}
}

func TestParseAddress(t *testing.T) {
	tests := []struct{ s, want string }{
		{"a@example.com", "a@example.com"},
		{"a%b@Example.com", "a%b@example.com"},
		{`"a\b c"@example.com`, `"ab c"@example.com`},
		{`"a@b"@example.com`, `"a@b"@example.com`},
		{"a@bücher.example", "a@xn--bcher-kva.example"},
		{"", ""},
		{"a", ""},
		{"a@", ""},
		{"<a@example.com>", ""},
		{"a@example.com,b@example.com", ""},
		{"a@example.com ", ""},
		{" a@example.com", ""},
		{"a@example.com\r\nBcc: b@example.com", ""},
		{"a\r\n@example.com", ""},
	}
	for _, tt := range tests {
		got, err := ParseAddress(tt.s)
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("ParseAddress(%q) = %q, %v; want %q", tt.s, got, err, tt.want)
		}
	}
}

// FuzzParse checks that an accepted address is one line of printable UTF-8,
// stays what it is when read again, and is an address to net/mail too.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"mailto:a@example.com", "mailto:%22a%5C%22%40b%22@example.com?x=y", "MAILTO:a%21@x.example,b@y.example",
		"mailto:ñ@bücher.example", "mailto:a%0d%0a@example.com", "mailto:%22", "mailto:a.b.c@xn--", "mailto:\"a b\"@c",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		address, err := Parse(raw)
		if err != nil {
			if !utf8.ValidString(err.Error()) || strings.ContainsAny(err.Error(), "\r\n\x00") {
				t.Fatalf("error %q", err)
			}
			return
		}
		if !utf8.ValidString(address) || strings.ContainsAny(address, "\r\n\x00") || len(address) > maxAddress {
			t.Fatalf("Parse(%q) = %q", raw, address)
		}
		again, err := ParseAddress(address)
		if err != nil || again != address {
			t.Fatalf("ParseAddress(%q) = %q, %v", address, again, err)
		}
		if parsed, err := mail.ParseAddress("<" + address + ">"); err != nil {
			t.Fatalf("net/mail does not take %q: %v", address, err)
		} else if at := strings.LastIndexByte(address, '@'); !strings.HasSuffix(parsed.Address, address[at:]) {
			t.Fatalf("net/mail reads %q as %q", address, parsed.Address)
		}
	})
}

func TestIsMailbox(t *testing.T) {
	for address, want := range map[string]bool{
		"reports@example.org":     true,
		"Reports@Example.ORG.":    true,
		"reports+x@example.org":   true,
		"REPORTS=x@example.org":   true,
		"reports-x@example.org":   false,
		"reportsx@example.org":    false,
		"report@example.org":      false,
		"x+reports@example.org":   false,
		"reports@a.example.org":   false,
		"reports":                 false,
		"@example.org":            false,
		"reports@x@example.org":   false,
		"\"reports\"@example.org": false,
	} {
		if got := IsMailbox(address, "reports@example.org", "+="); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
	if IsMailbox("reports+x@example.org", "reports@example.org", "") || IsMailbox("reports@example.org", "", "+") {
		t.Error("without delimiters, or an address of ours")
	}
}
