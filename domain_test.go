package ruapost

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestParseDomain(t *testing.T) {
	long := strings.Repeat("a", 63)
	for in, want := range map[string]string{
		"example.com":            "example.com",
		"Example.COM.":           "example.com",
		"_dmarc.Example.com":     "_dmarc.example.com",
		"münchen.example":        "xn--mnchen-3ya.example",
		"MÜNCHEN.example":        "xn--mnchen-3ya.example",
		"xn--mnchen-3ya.example": "xn--mnchen-3ya.example",
		"公司.cn":                  "xn--55qx5d.cn",
		"ｅｘａｍｐｌｅ.com":            "example.com", // fullwidth
		"example。com":            "example.com", // ideographic full stop
		"localhost":              "localhost",
		"1.2.3.example":          "1.2.3.example",
		"a-.example":             "a-.example", // seen in the wild, and a name in the DNS
		long + ".example":        long + ".example",
	} {
		if got, err := ParseDomain(in); got != want || err != nil {
			t.Errorf("ParseDomain(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", ".", "..", "a..b", ".a", "a..", "a b.example", "a\x00b.example", "a\r\nb.example", "192.0.2.1", "1", "[192.0.2.1]",
		"a@b.example", "ex(ample.com", "example.net(.example.com", long + "a.example", strings.Repeat("abcdefg.", 32) + "com",
		"\xff.example", strings.Repeat("ü", 600), "a/b.example", `a\.b.example`, "\u202eexample.com",
	} {
		if got, err := ParseDomain(in); !errors.Is(err, ErrDomain) || got != "" {
			t.Errorf("ParseDomain(%q) = %q, %v; want ErrDomain", in, got, err)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain text":           "plain text",
		"a\r\nb\x00c\x1b[31md": "a  b c [31md",
		"\xff\xfeü":            "ü",
		"a\u202eb\u2028c":      "a b c",
		"  x  ":                "x",
		"\uffffx\ufdd0y":       "x y",
	} {
		if got := Clean(in, 100); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
	if got := Clean("äöü", 5); got != "äö" {
		t.Errorf("cut inside a character: %q", got)
	}
}

func FuzzParseDomain(f *testing.F) {
	for _, s := range []string{"example.com", "MÜNCHEN.example.", "xn--a.b", "a..b", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDomain(s)
		if err != nil {
			return
		}
		again, err := ParseDomain(d)
		if err != nil || again != d {
			t.Errorf("ParseDomain(%q) = %q, which gives %q, %v", s, d, again, err)
		}
		if len(d) > 253 || strings.ToLower(d) != d || !utf8.ValidString(d) {
			t.Errorf("ParseDomain(%q) = %q", s, d)
		}
	})
}

func TestDay(t *testing.T) {
	east := time.FixedZone("east", 5*3600+1800)
	w := Day(time.Date(2026, 11, 23, 3, 0, 0, 0, east)) // 21:30 UTC the day before
	if w.Start.Format(time.RFC3339) != "2026-11-22T00:00:00Z" || w.Last().Format(time.RFC3339) != "2026-11-22T23:59:59Z" {
		t.Errorf("window %v", w)
	}
}

func TestParseSelector(t *testing.T) {
	for s, want := range map[string]string{
		"Mail2026": "mail2026", "20230601": "20230601", "a.b": "a.b", // RFC 6376 3.1
		"": "", "a b": "", "a..b": "", strings.Repeat("a.", 130): "",
	} {
		got, err := ParseSelector(s)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
}

func TestWithin(t *testing.T) {
	for names, want := range map[[2]string]bool{
		{"example.com", "example.com"}: true, {"a.example.com", "example.com"}: true,
		{"xexample.com", "example.com"}: false, {"example.com", "a.example.com"}: false, {"example.org", "example.com"}: false,
	} {
		if got := Within(names[0], names[1]); got != want {
			t.Errorf("%s within %s: %v", names[0], names[1], got)
		}
	}
}
