package resolver

import (
	"testing"

	"github.com/miekg/dns"
)

func TestUnescape(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{``, ``},
		{`v=spf1 -all`, `v=spf1 -all`},
		{`a\\b`, `a\b`},
		{`\"quoted\"`, `"quoted"`},
		{`\000\009\127\255`, "\x00\t\x7f\xff"},
		{`\195\164`, "ä"},
		{`\1234`, "{4"},
		{`\\049`, `\049`},
		{`\;\.\x`, `;.x`},
		// Not escapes; the DNS library does not write these.
		{`\256`, `256`},
		{`\25`, `25`},
		{`\`, `\`},
		{`a\`, `a\`},
	} {
		if got := unescape(tt.in); got != tt.want {
			t.Errorf("unescape(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// FuzzUnescape checks that octets come out of the DNS library and unescape as
// they were on the wire.
func FuzzUnescape(f *testing.F) {
	f.Add([]byte("v=DMARC1; p=none"))
	f.Add([]byte("\\\"\x00\x7f\xff;\\000"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		unescape(string(raw)) // whatever it is: no panic

		raw = raw[:min(len(raw), 255)]
		wire := []byte{0, 0, byte(dns.TypeTXT), 0, dns.ClassINET, 0, 0, 0, 0, 0, byte(len(raw) + 1), byte(len(raw))}
		if len(raw) == 255 {
			wire[9], wire[10] = 1, 0
		}
		rr, _, err := dns.UnpackRR(append(wire, raw...), 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := unescape(rr.(*dns.TXT).Txt[0]); got != string(raw) {
			t.Errorf("%q became %q", raw, got)
		}
	})
}
