package mtasts

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"ruapost"
)

func TestParsePolicy(t *testing.T) {
	const end = "mode: enforce\nmx: mx.test\nmax_age: 86400\n"
	enforce := func(mx ...string) *Policy { return &Policy{Mode: ModeEnforce, MX: mx, MaxAge: 24 * time.Hour} }
	tests := []struct {
		name, file string
		want       *Policy // without Text; nil: invalid
	}{
		{
			"RFC 8461 3.2 example", "version: STSv1\nmode: enforce\nmx: mail.example.com\nmx: *.example.net\nmx: backupmx.example.com\nmax_age: 604800\n",
			&Policy{Mode: ModeEnforce, MX: []string{"mail.example.com", "*.example.net", "backupmx.example.com"}, MaxAge: 7 * 24 * time.Hour},
		},
		{"CRLF", "version: STSv1\r\nmode: enforce\r\nmx: mx.test\r\nmax_age: 86400\r\n", enforce("mx.test")},
		{"LF and CRLF mixed", "version: STSv1\r\nmode: enforce\nmx: mx.test\r\nmax_age: 86400", enforce("mx.test")},
		{"no end of the last line", "version: STSv1\n" + strings.TrimSpace(end), enforce("mx.test")},
		{"blank lines", "\n\r\nversion: STSv1\n\n  \t\n" + end + "\n\n", enforce("mx.test")},
		{"blanks at the end of lines", "version: STSv1 \nmode: enforce\t \r\nmx: mx.test  \nmax_age: 86400 \n", enforce("mx.test")},
		{"no blank after the colon", "version:STSv1\nmode:enforce\nmx:mx.test\nmax_age:86400\n", enforce("mx.test")},
		{"many blanks after the colon", "version: \t STSv1\n" + end, enforce("mx.test")},
		{"version last", end + "version: STSv1\n", enforce("mx.test")},
		{"testing", "version: STSv1\nmode: testing\nmx: mx.test\nmax_age: 1\n", &Policy{Mode: ModeTesting, MX: []string{"mx.test"}, MaxAge: time.Second}},
		{"none needs no mx", "version: STSv1\nmode: none\nmax_age: 86400\n", &Policy{Mode: ModeNone, MaxAge: 24 * time.Hour}},
		{"none with mx", "version: STSv1\nmode: none\nmx: mx.test\nmax_age: 0\n", &Policy{Mode: ModeNone, MX: []string{"mx.test"}}},
		{"3.2: unknown fields", "version: STSv1\nx-note_1.0: anything: \"at\" all é\nempty:\n" + end, enforce("mx.test")},
		{"3.2: of duplicates the first counts", "version: STSv1\nversion: STSv2\n" + end + "mode: none\nmax_age: x\n", enforce("mx.test")},
		{"repeated mx", "version: STSv1\nmx: MX.test\n" + end, enforce("mx.test")},
		{"mx in capitals", "version: STSv1\nmx: *.Example.COM\n" + end, enforce("*.example.com", "mx.test")},
		{"mx with a final dot", "version: STSv1\nmx: a.test.\nmx: *.b.test.\n" + end, enforce("a.test", "*.b.test", "mx.test")},
		{"mx in A-labels", "version: STSv1\nmx: mx.xn--mller-kva.test\n" + end, enforce("mx.xn--mller-kva.test", "mx.test")},
		{"mx with underscore", "version: STSv1\nmx: my_mx.test\n" + end, enforce("my_mx.test", "mx.test")},
		{"max_age at the limit", "version: STSv1\nmax_age: 31557600\n" + end, &Policy{Mode: ModeEnforce, MX: []string{"mx.test"}, MaxAge: MaxAge}},
		{"max_age above the limit", "version: STSv1\nmax_age: 31557601\n" + end, &Policy{Mode: ModeEnforce, MX: []string{"mx.test"}, MaxAge: MaxAge}},
		{"max_age of ten digits", "version: STSv1\nmax_age: 9999999999\n" + end, &Policy{Mode: ModeEnforce, MX: []string{"mx.test"}, MaxAge: MaxAge}},
		{"max_age beyond any integer", "version: STSv1\nmax_age: " + strings.Repeat("9", 100) + "\n" + end, &Policy{Mode: ModeEnforce, MX: []string{"mx.test"}, MaxAge: MaxAge}},
		{"max_age with zeros before", "version: STSv1\nmax_age: 0000000086400\n" + end, enforce("mx.test")},

		{"empty", "", nil},
		{"HTML", "<!DOCTYPE html>\n<html><head><title>404: not here</title></head></html>\n", nil},
		{"no version", end, nil},
		{"no mode", "version: STSv1\nmx: mx.test\nmax_age: 86400\n", nil},
		{"no max_age", "version: STSv1\nmode: enforce\nmx: mx.test\n", nil},
		{"no mx", "version: STSv1\nmode: enforce\nmax_age: 86400\n", nil},
		{"testing without mx", "version: STSv1\nmode: testing\nmax_age: 86400\n", nil},
		{"mode in capitals", "version: STSv1\nmode: Enforce\nmx: mx.test\nmax_age: 86400\n", nil},
		{"unknown mode", "version: STSv1\nmode: report\nmx: mx.test\nmax_age: 86400\n", nil},
		{"other version", "version: STSv2\n" + end, nil},
		{"version in another case", "version: stsv1\n" + end, nil},
		{"field in capitals", "Version: STSv1\n" + end, nil},
		{"byte order mark", "\ufeffversion: STSv1\n" + end, nil},
		{"blank before the field", " version: STSv1\n" + end, nil},
		{"blank before the colon", "version : STSv1\n" + end, nil},
		{"equals sign", "version= STSv1\n" + end, nil},
		{"comment", "# version 1\nversion: STSv1\n" + end, nil},
		{"CR only", strings.ReplaceAll("version: STSv1\n"+end, "\n", "\r"), nil},
		{"several mx on a line", "version: STSv1\nmx: a.test, b.test\n" + end, nil},
		{"empty mx", "version: STSv1\nmx:\n" + end, nil},
		{"mx *", "version: STSv1\nmx: *\n" + end, nil},
		{"mx *.", "version: STSv1\nmx: *.\n" + end, nil},
		{"mx with a dot before", "version: STSv1\nmx: .example.com\n" + end, nil},
		{"mx with the wildcard inside", "version: STSv1\nmx: mx.*.test\n" + end, nil},
		{"mx with part of a label as wildcard", "version: STSv1\nmx: mx*.test\n" + end, nil},
		{"mx with two wildcards", "version: STSv1\nmx: *.*.test\n" + end, nil},
		{"mx is an address", "version: STSv1\nmx: 192.0.2.1\n" + end, nil},
		{"mx in U-labels", "version: STSv1\nmx: müller.test\n" + end, nil},
		{"mx with NUL", "version: STSv1\nmx: mx.test\x00\n" + end, nil},
		{"empty max_age", "version: STSv1\nmode: none\nmax_age:\n", nil},
		{"negative max_age", "version: STSv1\nmode: none\nmax_age: -1\n", nil},
		{"max_age with a sign", "version: STSv1\nmode: none\nmax_age: +1\n", nil},
		{"max_age with a unit", "version: STSv1\nmode: none\nmax_age: 7d\n", nil},
		{"max_age with a fraction", "version: STSv1\nmode: none\nmax_age: 1.5\n", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParsePolicy([]byte(test.file))
			if test.want == nil {
				if !errors.Is(err, ErrPolicySyntax) || got != nil {
					t.Fatalf("policy %+v, error %v", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got.Text = nil
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParsePolicyBounds(t *testing.T) {
	var file strings.Builder
	file.WriteString("version: STSv1\nmode: enforce\nmax_age: 86400\n")
	for i := range MaxMX {
		fmt.Fprintf(&file, "mx: mx%d.test\nmx: mx%d.test\n", i, i)
	}
	p, err := ParsePolicy([]byte(file.String()))
	if err != nil || len(p.MX) != MaxMX {
		t.Fatalf("as many mx as may be: error %v", err)
	}
	if len(p.Text) != maxTextLines {
		t.Errorf("%d lines of text, want %d", len(p.Text), maxTextLines)
	}
	file.WriteString("mx: one.more.test\n")
	if _, err := ParsePolicy([]byte(file.String())); !errors.Is(err, ErrPolicySyntax) {
		t.Errorf("one mx too many: error %v", err)
	}
}

// A policy keeps what it has, not the file it was in.
func TestParsePolicyMemory(t *testing.T) {
	file := []byte("version: STSv1\nmode: enforce\nmx: mx.test\nmx: *.test\nmax_age: 1\nx: " + strings.Repeat("x", MaxPolicySize-100))
	heap := func() uint64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before := heap()
	policies := make([]*Policy, 100)
	for i := range policies {
		var err error
		if policies[i], err = ParsePolicy(file); err != nil {
			t.Fatal(err)
		}
	}
	if after := heap(); after > before+MaxPolicySize*uint64(len(policies))/4 {
		t.Errorf("%d octets for %d policies", after-before, len(policies))
	}
	runtime.KeepAlive(policies)
}

// RFC 8460 4.5: the lines as published, errors included.
func TestPolicyText(t *testing.T) {
	p, err := ParsePolicy([]byte("\nversion:  STSv1 \r\nmode: testing\n\nmx: MX.Test.\nmx: MX.Test.\nmode: none\nnote: a\x00b\x1b[31m\xffé " +
		strings.Repeat("x", 400) + "\nmax_age: 99999999999"))
	if err != nil {
		t.Fatal(err)
	}
	note := "note: a b [31m é "
	note += strings.Repeat("x", maxLineOctets-len(note))
	want := []string{"version:  STSv1", "mode: testing", "mx: MX.Test.", "mx: MX.Test.", "mode: none", note, "max_age: 99999999999"}
	if diff := cmp.Diff(want, p.Text); diff != "" {
		t.Error(diff)
	}
}

// RFC 8461 4.1.
func TestMatches(t *testing.T) {
	p := &Policy{MX: []string{"mail.example.com", "*.example.net", "*.a.example.org"}}
	for host, want := range map[string]bool{
		"mail.example.com":          true,
		"MAIL.example.COM.":         true,
		"mx.example.net":            true,
		"Mx.Example.Net.":           true,
		"b.a.example.org":           true,
		"example.net":               false, // "*." is one label, not none
		"a.b.example.net":           false, // nor two
		"a.example.org":             false,
		"example.com":               false,
		"xmail.example.com":         false,
		"mail.example.com.evil.org": false,
		"mxexample.net":             false,
		"*.example.net":             false,
		".example.net":              false,
		"net":                       false,
		"":                          false,
		".":                         false,
		"192.0.2.1":                 false,
	} {
		if got := p.Matches(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
	if new(Policy).Matches("mail.example.com") {
		t.Error("a policy without mx matches")
	}
}

func FuzzParsePolicy(f *testing.F) {
	for _, s := range []string{
		"version: STSv1\nmode: enforce\nmx: mail.example.com\nmx: *.example.net\nmax_age: 604800\n",
		"version: STSv1\r\nmode: none\r\nmax_age: 99999999999\r\n\r\n",
		"mode: testing\nversion:STSv1\nmx:a.\nmax_age:0\nx: \x00\xff",
		"version: STSv1\nmx: *.\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		p, err := ParsePolicy(file)
		if err != nil {
			if !errors.Is(err, ErrPolicySyntax) || !utf8.ValidString(err.Error()) || strings.ContainsAny(err.Error(), "\r\n\x00") || len(err.Error()) > 500 {
				t.Fatalf("error %q", err)
			}
			return
		}
		if p.MaxAge < 0 || p.MaxAge > MaxAge || len(p.MX) > MaxMX || len(p.MX) == 0 && p.Mode != ModeNone {
			t.Fatalf("policy %+v", p)
		}
		for _, pattern := range p.MX {
			name, wildcard := strings.CutPrefix(pattern, "*.")
			if again, err := ruapost.ParseDomain(name); err != nil || again != name {
				t.Fatalf("pattern %q", pattern)
			}
			if wildcard {
				name = "x." + name
			}
			if len(name) <= 253 && !p.Matches(name) {
				t.Fatalf("pattern %q does not match %q", pattern, name)
			}
		}
		if len(p.Text) > maxTextLines || len(p.Text) < 3 {
			t.Fatalf("text %q", p.Text)
		}
		for _, line := range p.Text {
			if line != ruapost.Clean(line, maxLineOctets) {
				t.Fatalf("line %q", line)
			}
		}
		// A policy made of what was understood is understood the same.
		again := fmt.Sprintf("version: STSv1\nmode: %s\nmax_age: %d\n", p.Mode, p.MaxAge/time.Second)
		for _, pattern := range p.MX {
			again += "mx: " + pattern + "\n"
		}
		p2, err := ParsePolicy([]byte(again))
		if err != nil || p2.Mode != p.Mode || p2.MaxAge != p.MaxAge || !slices.Equal(p2.MX, p.MX) {
			t.Fatalf("%q: %+v, error %v", again, p2, err)
		}
	})
}
