package tlsrpt

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"ruapost"
)

// TestParseDatagramPostfix reads datagrams of a Postfix 3.11.6, the last of a
// 3.10.3, recorded at a test server whose domains all end in .lab.
func TestParseDatagramPostfix(t *testing.T) {
	data, err := os.ReadFile("testdata/postfix-3.11-datagrams.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	sts := func(domain string, strings, mxHosts []string) ruapost.TLSPolicy {
		return ruapost.TLSPolicy{Type: ruapost.PolicySTS, Domain: domain, Strings: strings, MXHosts: mxHosts}
	}
	failure := func(result ruapost.TLSResultType, mx, helo, ip, reason string) []ruapost.TLSFailure {
		return []ruapost.TLSFailure{{Result: result, SendingIP: "127.0.0.1", ReceivingMX: mx, ReceivingHelo: helo, ReceivingIP: ip, Reason: reason}}
	}
	want := []ruapost.Session{
		{
			Domain: "good.lab",
			Policy: sts("good.lab", []string{"version: STSv1", "mode: enforce", "mx: mx1.good.lab", "mx: *.good.lab", "max_age: 604800"}, []string{"mx1.good.lab", "*.good.lab"}),
		},
		{
			Domain: "self.lab", Failed: true,
			Policy:   sts("self.lab", []string{"version: STSv1", "mode: enforce", "mx: mx.self.lab", "max_age: 604800"}, []string{"mx.self.lab"}),
			Failures: failure(ruapost.ResultValidationFailure, "mx.self.lab", "mx-selfsigned.lab", "127.0.0.22", "self-signed_certificate"),
		},
		{
			Domain: "other.lab", Failed: true,
			Policy:   sts("other.lab", nil, []string{"mx.other.lab"}),
			Failures: failure(ruapost.ResultCertificateHostMismatch, "mx.other.lab", "mx-othername.lab", "127.0.0.27", ""),
		},
		{
			Domain: "expired.lab", Failed: true,
			Policy:   sts("expired.lab", []string{"version: STSv1"}, []string{"mx.expired.lab"}),
			Failures: failure(ruapost.ResultCertificateExpired, "mx.expired.lab", "mx-expired.lab", "127.0.0.23", ""),
		},
		{
			Domain: "nostarttls.lab", Failed: true,
			Policy:   sts("nostarttls.lab", nil, []string{"mx.nostarttls.lab"}),
			Failures: failure(ruapost.ResultStartTLSNotSupported, "mx.nostarttls.lab", "mx-nostarttls.lab", "127.0.0.24", ""),
		},
		{
			Domain: "refuse.lab", Failed: true,
			Policy:   sts("refuse.lab", nil, []string{"mx.refuse.lab"}),
			Failures: failure(ruapost.ResultStartTLSNotSupported, "mx.refuse.lab", "mx-refuse.lab", "127.0.0.25", ""),
		},
		{
			Domain: "broken.lab", Failed: true,
			Policy:   sts("broken.lab", nil, []string{"mx.broken.lab"}),
			Failures: failure(ruapost.ResultValidationFailure, "mx.broken.lab", "mx-breaktls.lab", "127.0.0.26", "tls-handshake-failure"),
		},
		{
			Domain: "danebad.lab", Failed: true,
			Policy:   ruapost.TLSPolicy{Type: ruapost.PolicyTLSA, Domain: "mx.danebad.lab", Strings: []string{"3 1 1 " + strings.Repeat("AB", 32)}},
			Failures: failure(ruapost.ResultCertificateNotTrusted, "mx.danebad.lab", "mx-good.lab", "127.0.0.21", ""),
		},
		{
			Domain: "dane.lab",
			Policy: ruapost.TLSPolicy{Type: ruapost.PolicyTLSA, Domain: "mx.dane.lab", Strings: []string{"3 1 1 07A73D2A36AEA38E6BF9DEBDAA9466E0F44C311A2DB73F5B4BD98DCC627E46B6"}},
		},
		{Domain: "nopol.lab", Policy: ruapost.TLSPolicy{Type: ruapost.PolicyNone, Domain: "nopol.lab"}},
		{Domain: "nopol.lab", Policy: ruapost.TLSPolicy{Type: ruapost.PolicyNone, Domain: "nopol.lab"}},
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	if len(lines) != len(want) {
		t.Fatalf("%d datagrams, want %d", len(lines), len(want))
	}
	for i, line := range lines {
		got, err := ParseDatagram(line)
		if err != nil {
			t.Errorf("datagram %d: %v", i+1, err)
			continue
		}
		if diff := cmp.Diff([]ruapost.Session{want[i]}, got); diff != "" {
			t.Errorf("datagram %d (-want +got):\n%s", i+1, diff)
		}
	}
}

// The quirks that datagrams may have, each as one session or, with no want, as
// an error.
func TestParseDatagramQuirks(t *testing.T) {
	none := ruapost.TLSPolicy{Type: ruapost.PolicyNone, Domain: "d.example"}
	failed := func(f ...ruapost.TLSFailure) *ruapost.Session {
		return &ruapost.Session{Domain: "d.example", Policy: none, Failed: true, Failures: f}
	}
	with := func(details string) string {
		return `{"dpv":"1","d":"d.example","policies":[{"policy-type":9,"failure-details":[` + details + `],"t":1,"f":1}]}`
	}
	tests := []struct {
		name, data string
		want       *ruapost.Session
	}{
		{"no dpv, no pr, no t", `{"d":"d.example","policies":[{"policy-type":9,"f":0}]}`, &ruapost.Session{Domain: "d.example", Policy: none}},
		{"unknown keys", `{"dpv":"1","x":[1],"d":"d.example","policies":[{"policy-type":9,"f":0,"y":{"z":null}}]}`, &ruapost.Session{Domain: "d.example", Policy: none}},
		{
			"domains are normalised", `{"d":"D.Example.","policies":[{"policy-type":9,"policy-domain":"BÜCHER.example","f":0}]}`,
			&ruapost.Session{Domain: "d.example", Policy: ruapost.TLSPolicy{Type: ruapost.PolicyNone, Domain: "xn--bcher-kva.example"}},
		},
		{"no-policy-found has no strings", `{"d":"d.example","policies":[{"policy-type":9,"policy-string":["x"],"mx-host":["mx.example"],"f":0}]}`, &ruapost.Session{Domain: "d.example", Policy: none}},
		{
			"TLSA records in any order are one policy", `{"d":"d.example","policies":[{"policy-type":1,"policy-domain":"mx.d.example","policy-string":["3 1 1 BB","2 1 1 CC","3 1 1 AA"],"mx-host":["x.example"],"f":0}]}`,
			&ruapost.Session{Domain: "d.example", Policy: ruapost.TLSPolicy{Type: ruapost.PolicyTLSA, Domain: "mx.d.example", Strings: []string{"2 1 1 CC", "3 1 1 AA", "3 1 1 BB"}}},
		},
		{
			"policy strings are cleaned, not sorted", `{"d":"d.example","policies":[{"policy-type":2,"policy-string":["z: \u0000\r\n","","a: b"],"f":0}]}`,
			&ruapost.Session{Domain: "d.example", Policy: ruapost.TLSPolicy{Type: ruapost.PolicySTS, Domain: "d.example", Strings: []string{"z:", "a: b"}}},
		},
		{
			"MX patterns", `{"d":"d.example","policies":[{"policy-type":2,"mx-host":["MX.Example","*.Example.NET","*.","a b","*.*.example",".example"],"f":0}]}`,
			&ruapost.Session{Domain: "d.example", Policy: ruapost.TLSPolicy{Type: ruapost.PolicySTS, Domain: "d.example", MXHosts: []string{"mx.example", "*.example.net"}}},
		},
		{"t is not the number of details", strings.Replace(with(`{"c":201}`), `"t":1`, `"t":"many"`, 1), failed(ruapost.TLSFailure{Result: ruapost.ResultStartTLSNotSupported})},
		{"failed without details", with(``), failed()},
		{"failure-details null", strings.Replace(with(``), `[],"t"`, `null,"t"`, 1), failed()},
		{
			"success with details", strings.Replace(with(`{"c":304}`), `"f":1`, `"f":0`, 1),
			&ruapost.Session{Domain: "d.example", Policy: none, Failures: []ruapost.TLSFailure{{Result: ruapost.ResultTLSAInvalid}}},
		},
		{
			"every key of a failure", with(`{"c":203,"s":"::ffff:192.0.2.1","n":"MX.example.","h":"250 mx.example","r":"2001:DB8:0::1","a":"https://example.com/","f":"why"}`),
			failed(ruapost.TLSFailure{Result: ruapost.ResultCertificateNotTrusted, SendingIP: "192.0.2.1", ReceivingMX: "mx.example", ReceivingHelo: "mx.example", ReceivingIP: "2001:db8::1", Additional: "https://example.com/", Reason: "why"}),
		},
		{"invalid names and addresses left out", with(`{"c":201,"s":"300.1.1.1","n":"mx_example!","r":"mx.example"}`), failed(ruapost.TLSFailure{Result: ruapost.ResultStartTLSNotSupported})},
		{"address zone left out", with(`{"c":201,"r":"fe80::1%eth0"}`), failed(ruapost.TLSFailure{Result: ruapost.ResultStartTLSNotSupported, ReceivingIP: "fe80::1"})},
		{"invalid UTF-8", with("{\"c\":205,\"f\":\"a\xff\xfeb\",\"h\":\"250-\xff.example\"}"), failed(ruapost.TLSFailure{Result: ruapost.ResultValidationFailure, Reason: "a  b", ReceivingHelo: ".example"})},
		{"code 901 is not reported", with(`{"c":901},{"c":202}`), failed(ruapost.TLSFailure{Result: ruapost.ResultCertificateHostMismatch})},
		{"unknown code", with(`{"c":777}`), failed(ruapost.TLSFailure{Result: ruapost.ResultValidationFailure, Reason: "unknown-code-777"})},
		{"unknown code with a reason", with(`{"c":-1,"f":"why"}`), failed(ruapost.TLSFailure{Result: ruapost.ResultValidationFailure, Reason: "unknown-code--1 why"})},
		{"code 999", with(`{"c":999}`), failed(ruapost.TLSFailure{Result: ruapost.ResultValidationFailure, Reason: "unknown-code-999"})},
		{"no code", with(`{}`), failed(ruapost.TLSFailure{Result: ruapost.ResultValidationFailure, Reason: "unknown-code-0"})},
		{"one failure twice counts once", with(`{"c":201,"n":"mx.example"},{"c":201,"n":"MX.example"}`), failed(ruapost.TLSFailure{Result: ruapost.ResultStartTLSNotSupported, ReceivingMX: "mx.example"})},

		{
			"200 kB, the most that Linux passes on", with(`{"c":203,"n":"mx.example","h":"250-mx.example\r\n250-` + strings.Repeat("X", 200_000) + `"}`),
			failed(ruapost.TLSFailure{Result: ruapost.ResultCertificateNotTrusted, ReceivingMX: "mx.example", ReceivingHelo: "mx.example"}),
		},
		{"number that fits nowhere, of no use", strings.Replace(with(`{"c":201}`), `"t":1`, `"t":1e999999999`, 1), failed(ruapost.TLSFailure{Result: ruapost.ResultStartTLSNotSupported})},

		{"empty", ``, nil},
		{"not JSON", `hello`, nil},
		{"cut off", `{"dpv":"1","d":"d.example","policies":[{"policy-type":9,"f":0}]`, nil},
		{"text after it", with(``) + "x", nil},
		{"no object", `[]`, nil},
		{"null", `null`, nil},
		{"other protocol version", `{"dpv":"2","d":"d.example","policies":[{"policy-type":9,"f":0}]}`, nil},
		{"no domain", `{"dpv":"1","policies":[{"policy-type":9,"f":0}]}`, nil},
		{"invalid domain", `{"dpv":"1","d":"d example","policies":[{"policy-type":9,"f":0}]}`, nil},
		{"invalid policy domain", `{"dpv":"1","d":"d.example","policies":[{"policy-type":9,"policy-domain":"a..b","f":0}]}`, nil},
		{"no policies", `{"dpv":"1","d":"d.example"}`, nil},
		{"empty policies", `{"dpv":"1","d":"d.example","policies":[]}`, nil},
		{"policy of another type of value", `{"dpv":"1","d":"d.example","policies":[[]]}`, nil},
		{"failure of another type of value", with(`"x"`), nil},
		{"unknown policy type", `{"dpv":"1","d":"d.example","policies":[{"policy-type":3,"f":0}]}`, nil},
		{"no policy type", `{"dpv":"1","d":"d.example","policies":[{"f":0}]}`, nil},
		{"no final result", `{"dpv":"1","d":"d.example","policies":[{"policy-type":9}]}`, nil},
		{"final result 2", `{"dpv":"1","d":"d.example","policies":[{"policy-type":9,"f":2}]}`, nil},
		{"final result -1", `{"dpv":"1","d":"d.example","policies":[{"policy-type":9,"f":-1}]}`, nil},
		{"final result 0.5", `{"dpv":"1","d":"d.example","policies":[{"policy-type":9,"f":0.5}]}`, nil},
		{"number too large for a code", with(`{"c":99999999999999999999}`), nil},
		{"number with an exponent for a code", with(`{"c":1e400}`), nil},
		{"depth bomb", `{"d":"d.example","x":` + strings.Repeat("[", 250_000), nil},
		{"closed depth bomb", `{"d":"d.example","x":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `,"policies":[{"policy-type":9,"f":0}]}`, nil},
		{"depth bomb in a failure", with(`{"c":` + strings.Repeat(`{"c":`, 40_000)), nil},
		{"thousands of policies", `{"d":"d.example","policies":[` + strings.Repeat("{},", 80_000) + `{}]}`, nil},
		{"final result true", `{"dpv":"1","d":"d.example","policies":[{"policy-type":9,"f":true}]}`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseDatagram([]byte(tt.data))
			if tt.want == nil {
				if err == nil {
					t.Errorf("no error, sessions %+v", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]ruapost.Session{*tt.want}, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestParseDatagramCodes(t *testing.T) {
	want := map[int]ruapost.TLSResultType{
		201: "starttls-not-supported", 202: "certificate-host-mismatch", 203: "certificate-not-trusted", 204: "certificate-expired",
		205: "validation-failure", 301: "sts-policy-fetch-error", 302: "sts-policy-invalid", 303: "sts-webpki-invalid",
		304: "tlsa-invalid", 305: "dnssec-invalid", 306: "dane-required",
	}
	for code, result := range want {
		data := fmt.Sprintf(`{"d":"d.example","policies":[{"policy-type":9,"failure-details":[{"c":%d}],"f":1}]}`, code)
		sessions, err := ParseDatagram([]byte(data))
		if err != nil || len(sessions) != 1 || !cmp.Equal(sessions[0].Failures, []ruapost.TLSFailure{{Result: result}}) {
			t.Errorf("code %d: %+v, %v", code, sessions, err)
		}
	}
}

func TestParseDatagramSeveralPolicies(t *testing.T) {
	got, err := ParseDatagram([]byte(`{"d":"d.example","policies":[{"policy-type":2,"f":1},{"policy-type":1,"policy-domain":"mx.d.example","f":0}]}`))
	want := []ruapost.Session{
		{Domain: "d.example", Policy: ruapost.TLSPolicy{Type: ruapost.PolicySTS, Domain: "d.example"}, Failed: true},
		{Domain: "d.example", Policy: ruapost.TLSPolicy{Type: ruapost.PolicyTLSA, Domain: "mx.d.example"}},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("error %v, -want +got:\n%s", err, diff)
	}
}

func TestEHLOName(t *testing.T) {
	tests := []struct{ reply, want string }{
		{"250-MX.example.net\r\n250-SIZE 1\r\n250 8BITMIME", "mx.example.net"},
		{"250 mx.example.net Hello client [192.0.2.1], pleased to meet you", "mx.example.net"},
		{"250-mx.example.net\n250 X", "mx.example.net"},
		{"250 [192.0.2.1]", "[192.0.2.1]"},
		{"mx.example.net", "mx.example.net"},
		{"250.example.net", "250.example.net"},
		{"250", ""},
		{"250-", ""},
		{"250 \t ", ""},
		{"250-\r\nmx.example.net", ""},
		{"", ""},
		{"250 <script>\u202e\x00x", "<script>"},
		{"250 " + strings.Repeat("a", 5000), strings.Repeat("a", maxReason)},
	}
	for _, tt := range tests {
		if got := ehloName(tt.reply); got != tt.want {
			t.Errorf("ehloName(%q) = %q, want %q", tt.reply, got, tt.want)
		}
	}
}

func TestParseDatagramBounds(t *testing.T) {
	list := func(n int, element string) string {
		return "[" + strings.TrimSuffix(strings.Repeat(element+",", n), ",") + "]"
	}
	failures := make([]string, maxFailures+10)
	for i := range failures {
		failures[i] = fmt.Sprintf(`{"c":205,"f":"%d %s"}`, i, strings.Repeat("é", 300))
	}
	line := `"` + strings.Repeat("x", 300) + `"`
	got, err := ParseDatagram([]byte(`{"d":"d.example","policies":[{"policy-type":2,"policy-string":` + list(maxPolicyLines+10, `"a"`) +
		`,"mx-host":` + list(maxPolicyLines+10, `"mx.example"`) + `,"failure-details":[` + strings.Join(failures, ",") + `],"f":1}]}`))
	if err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	if s := got[0]; len(s.Policy.Strings) != maxPolicyLines || len(s.Policy.MXHosts) != maxPolicyLines || len(s.Failures) != maxFailures || !s.Failed {
		t.Errorf("%d strings, %d hosts, %d failures, failed %v", len(s.Policy.Strings), len(s.Policy.MXHosts), len(s.Failures), s.Failed)
	}
	for _, f := range got[0].Failures {
		if len(f.Reason) > maxReason || !utf8.ValidString(f.Reason) {
			t.Errorf("reason of %d octets: %q", len(f.Reason), f.Reason)
		}
	}
	for name, data := range map[string]string{
		"policies": `{"d":"d.example","policies":` + list(maxPolicies+1, `{"policy-type":9,"f":0}`) + `}`,
		"length":   `{"d":"d.example","policies":[{"policy-type":9,"f":0}],"x":` + list(MaxDatagram/len(line)+1, line) + `}`,
		"number":   `{"d":"d.example","policies":[{"policy-type":` + strings.Repeat("9", 10000) + `,"f":0}]}`,
	} {
		if _, err := ParseDatagram([]byte(data)); err == nil || len(err.Error()) > 400 {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func FuzzParseDatagram(f *testing.F) {
	data, err := os.ReadFile("testdata/postfix-3.11-datagrams.jsonl")
	if err != nil {
		f.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		f.Add(line)
	}
	f.Add([]byte("{\"d\":\"\xff.d\",\"policies\":[{\"policy-type\":2,\"policy-string\":[null,\"\xff\"],\"mx-host\":[\"*.\"],\"failure-details\":[{\"h\":\"250-\",\"r\":\"::1%x\",\"c\":901},null],\"f\":1},null]}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		sessions, err := ParseDatagram(data)
		if err != nil {
			if msg := err.Error(); msg != ruapost.Clean(msg, 400) {
				t.Fatalf("error %q", msg)
			}
			return
		}
		if len(sessions) == 0 || len(sessions) > maxPolicies {
			t.Fatalf("%d sessions", len(sessions))
		}
		for _, s := range sessions {
			checkSession(t, s)
		}
	})
}

// checkSession checks what all later code relies on.
func checkSession(t *testing.T, s ruapost.Session) {
	t.Helper()
	domain := func(what, name string) {
		if parsed, err := ruapost.ParseDomain(name); err != nil || parsed != name {
			t.Errorf("%s %q: %v", what, name, err)
		}
	}
	text := func(what, s string, limit int) {
		if s != ruapost.Clean(s, limit) {
			t.Errorf("%s %q", what, s)
		}
	}
	ip := func(what, s string) {
		if addr, err := netip.ParseAddr(s); s != "" && (err != nil || addr.String() != s || addr.Zone() != "" || addr.Is4In6()) {
			t.Errorf("%s %q", what, s)
		}
	}
	if !s.Time.IsZero() {
		t.Error("time is set")
	}
	domain("domain", s.Domain)
	domain("policy domain", s.Policy.Domain)
	for _, line := range s.Policy.Strings {
		text("policy string", line, maxPolicyString)
	}
	for _, pattern := range s.Policy.MXHosts {
		domain("MX pattern", strings.TrimPrefix(pattern, "*."))
	}
	for _, f := range s.Failures {
		if !hasValue(resultTypes, f.Result) {
			t.Errorf("result %q", f.Result)
		}
		if f.ReceivingMX != "" {
			domain("receiving MX", f.ReceivingMX)
		}
		ip("sending IP", f.SendingIP)
		ip("receiving IP", f.ReceivingIP)
		text("EHLO name", f.ReceivingHelo, maxReason)
		text("reason", f.Reason, maxReason)
		text("additional information", f.Additional, maxAdditional)
	}
	if _, err := json.Marshal(s); err != nil {
		t.Error(err)
	}
}

func BenchmarkParseDatagram(b *testing.B) {
	data, err := os.ReadFile("testdata/postfix-3.11-datagrams.jsonl")
	if err != nil {
		b.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	for i := 0; b.Loop(); i++ {
		if _, err := ParseDatagram(lines[i%len(lines)]); err != nil {
			b.Fatal(err)
		}
	}
}
