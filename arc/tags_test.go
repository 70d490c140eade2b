package arc

import (
	"maps"
	"strings"
	"testing"
)

func TestTags(t *testing.T) {
	for _, c := range []struct {
		list     string
		values   map[string]string // nil: refused
		unsigned string
	}{
		{"", map[string]string{}, ""},
		{" i=1; b=abc\r\n def; d=x ", map[string]string{"i": "1", "b": "abc\r\n def", "d": "x"}, " i=1; b=; d=x "},
		{"b = \r\n abc \r\n ;bh=b=x; ", map[string]string{"b": "abc", "bh": "b=x"}, "b =;bh=b=x; "},
		{"a=;", map[string]string{"a": ""}, "a=;"},
		{"a=1;\r\n ", map[string]string{"a": "1"}, "a=1;\r\n "},
		{"B=1;b=2", map[string]string{"B": "1", "b": "2"}, "B=1;b="},
		{"a=xy;b=xy", map[string]string{"a": "xy", "b": "xy"}, "a=xy;b="},
		{"a1_=x y", map[string]string{"a1_": "x y"}, "a1_=x y"},
		{";", nil, ""},
		{" ", nil, ""},
		{"a=1;;", nil, ""},
		{"a=1; ;b=1", nil, ""},
		{"a=1;a=1", nil, ""},
		{"a", nil, ""},
		{"=1", nil, ""},
		{"1a=1", nil, ""},
		{"a b=1", nil, ""},
		{"ä=1", nil, ""},
		{"a=\x01", nil, ""},
		{"a=\x7f", nil, ""},
		{"a=\xff", nil, ""},
	} {
		tags, err := parseTags(c.list)
		if (err == nil) != (c.values != nil) {
			t.Errorf("%q: %v", c.list, err)
		} else if err == nil && (!maps.Equal(tags.values, c.values) || tags.unsigned != c.unsigned) {
			t.Errorf("%q: %+v", c.list, tags)
		}
	}
}

func TestRemoteIP(t *testing.T) {
	for results, want := range map[string]string{
		"a.example; arc=none smtp.remote-ip=192.0.2.1":                                            "192.0.2.1",
		"a.example; arc=none smtp.remote-ip=2001:DB8::1A; spf=pass":                               "2001:db8::1a",
		`a.example; arc=none smtp.remote-ip="2001:db8::1a"`:                                       "2001:db8::1a",
		"a.example; arc=none (c) SMTP.Remote-IP (x) = \r\n (y) ::ffff:192.0.2.1;":                 "192.0.2.1",
		"a.example; arc=none smtp.remote-ip=192.0.2.1; spf=pass smtp.remote-ip=192.0.2.1":         "192.0.2.1",
		"a.example; arc=none smtp.remote-ip=192.0.2.1; spf=pass smtp.remote-ip=192.0.2.2":         "",
		"a.example; arc=none smtp.remote-ip=192.0.2.1; spf=pass smtp.remote-ip=junk":              "",
		"a.example; spf=pass (smtp.remote-ip=192.0.2.66)":                                         "",
		"a.example; spf=pass (a (b) smtp.remote-ip=192.0.2.66":                                    "",
		"a.example; spf=pass (\\) smtp.remote-ip=192.0.2.66)":                                     "",
		`a.example; spf=pass reason="( smtp.remote-ip=192.0.2.66 " smtp.remote-ip=192.0.2.1`:      "192.0.2.1",
		`a.example; spf=pass reason="a \" smtp.remote-ip=192.0.2.66 " smtp.remote-ip="192.0.2.1"`: "192.0.2.1",
		`a.example; spf=pass reason="a \" (b" smtp.remote-ip=192.0.2.1`:                           "192.0.2.1",
		`a.example; spf=pass (") ( smtp.remote-ip=192.0.2.66 )`:                                   "",
		`a.example; spf=pass "smtp.remote-ip"=192.0.2.66`:                                         "",
		`a.example; spf=pass reason="unfinished smtp.remote-ip=192.0.2.66`:                        "",
		"a.example; spf=pass x.smtp.remote-ip=192.0.2.66":                                         "",
		"a.example; smtp.remote-ip=fe80::1%eth0":                                                  "",
		"a.example; smtp.remote-ip=":                                                              "",
		"a.example; smtp.remote-ip":                                                               "",
		"":                                                                                        "",
	} {
		got := remoteIP(results)
		if want == "" && got.IsValid() || want != "" && got.String() != want {
			t.Errorf("%q: %s, want %q", results, got, want)
		}
	}
}

// FuzzParseChain looks for a header that the parser makes something impossible of.
func FuzzParseChain(f *testing.F) {
	s := newSealer(ed25519Key())
	m := s.seal(s.seal(sample()))
	for _, sealed := range []message{m, m.lf()} {
		var b strings.Builder
		for _, field := range sealed.header {
			b.WriteString(field.Name + ":" + field.Value + "\x00")
		}
		f.Add(b.String())
	}
	f.Add("ARC-Authentication-Results: i=1 (;) ; x; smtp.remote-ip=\"::1\"\x00ARC-Seal: i=1; a=b\x00ARC-Message-Signature: i=50;")
	f.Fuzz(func(t *testing.T, raw string) {
		var fields []Field
		for line := range strings.SplitSeq(raw, "\x00") {
			name, value, _ := strings.Cut(line, ":")
			fields = append(fields, Field{name, value})
		}
		chain, err := parseChain(fields)
		if len(chain) > MaxSets || err != nil && chain != nil {
			t.Fatalf("%d sets, %v", len(chain), err)
		}
		for i, s := range chain {
			for kind, index := range s.fields {
				if !fields[index-1].is(fieldNames[kind]) {
					t.Errorf("instance %d: field %d is no %s", i+1, index, fieldNames[kind])
				}
			}
			if len(s.seal.unsigned) >= len(fields[s.fields[as]-1].Value) {
				t.Errorf("b= is still in %q", s.seal.unsigned)
			}
			if s.seal.domain == "" || s.seal.selector+"._domainkey."+s.seal.domain != s.seal.keyName {
				t.Errorf("%+v", s.seal)
			}
			remoteIP(s.aar)
			if m, err := parseMessageSignature(s.ams); err == nil && len(m.names) > MaxSignedFields {
				t.Errorf("%d names", len(m.names))
			}
		}
	})
}
