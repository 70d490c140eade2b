package resolver

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// message returns a resolver's response with the given records, as unpacked from
// the wire.
func message(t testing.TB, rcode int, answer, authority string) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.Response, m.RecursionAvailable, m.Rcode = true, true, rcode
	parse := func(text string) (rrs []dns.RR) {
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			rr, err := dns.NewRR(line)
			if err != nil {
				t.Fatal(err)
			}
			rrs = append(rrs, rr)
		}
		return rrs
	}
	m.Answer, m.Ns = parse(answer), parse(authority)
	m.Compress = true
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	m = new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestDecodeTXT(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		want         []string
	}{
		{"RFC 7208 3.3 strings are joined", `example.com. 60 IN TXT "v=spf1 .... first" "second string..."`, []string{"v=spf1 .... firstsecond string..."}},
		{"RFC 7208 3.2 records are not", "example.com. 60 IN TXT one\nexample.com. 60 IN TXT two", []string{"one", "two"}},
		{"escapes", `example.com. 60 IN TXT "a\"b\\c;\000\255" "\195" "\164"`, []string{"a\"b\\c;\x00\xff\xc3\xa4"}},
		{"escape cut in two by the strings", `example.com. 60 IN TXT "\\" "000"`, []string{`\000`}},
		{"empty", `example.com. 60 IN TXT ""`, []string{""}},
		{"owner in another case", `EXAMPLE.com. 60 IN TXT x`, []string{"x"}},
		{"other owners, types and classes", "example.com. 60 IN TXT x\nexample.net. 60 IN TXT y\nexample.com. 60 IN A 192.0.2.1\nexample.com. 60 CH TXT z", []string{"x"}},
		{"alias and its target in any order", "b.example. 60 IN TXT x\nexample.com. 60 IN CNAME A.example.\na.EXAMPLE. 60 IN CNAME B.example.", []string{"x"}},
		{"alias beside the records", "example.com. 60 IN CNAME b.example.\nb.example. 60 IN TXT y\nexample.com. 60 IN TXT x", []string{"x"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, err := decode(message(t, dns.RcodeSuccess, tt.answer, ""), key{"example.com", dns.TypeTXT})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, a.txts); diff != "" || a.err != nil {
				t.Errorf("error %v\n%s", a.err, diff)
			}
		})
	}
}

// aliases returns n aliases in a row from example.com to n.example, and the
// address of that.
func aliases(n int) string {
	var b strings.Builder
	owner := "example.com."
	for i := range n {
		target := fmt.Sprintf("%d.example.", i+1)
		fmt.Fprintf(&b, "%s 60 IN CNAME %s\n", owner, target)
		owner = target
	}
	fmt.Fprintf(&b, "%s 60 IN A 192.0.2.1\n", owner)
	return b.String()
}

func TestDecodeMalformed(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		change       func(*dns.Msg)
		qtype        uint16
		want         string
	}{
		{name: "SERVFAIL", change: func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }, want: "SERVFAIL"},
		{name: "unknown code", change: func(m *dns.Msg) { m.Rcode = 3841 }, want: "RCODE3841"},
		{name: "truncated", change: func(m *dns.Msg) { m.Truncated = true }, want: "truncated"},
		{name: "referral", change: func(m *dns.Msg) { m.RecursionAvailable = false }, want: "refers"},
		{name: "alias to itself", answer: "example.com. 60 IN CNAME example.com.", want: "loop"},
		{name: "loop of aliases", answer: "example.com. 60 IN CNAME a.example.\na.example. 60 IN CNAME b.example.\nb.example. 60 IN CNAME a.example.", want: "loop"},
		{name: "too many aliases", answer: aliases(maxAliases + 1), want: "too many"},
		{name: "alias to what is no domain name", answer: `example.com. 60 IN CNAME a\.b.example.`, want: "target of an alias"},
		{name: "alias to the root", answer: "example.com. 60 IN CNAME .", want: "target of an alias"},
		{name: "too many records", answer: strings.Repeat("example.net. 60 IN A 192.0.2.1\n", maxRecords+1), want: "records"},
		{name: "too much text", answer: strings.Repeat(fmt.Sprintf("example.com. 60 IN TXT %q\n", strings.Repeat("x", 255)), maxAnswerBytes/255+1), qtype: dns.TypeTXT, want: "octets"},
		{
			name: "no data", answer: "example.com. 60 IN A 192.0.2.1", want: "without data",
			change: func(m *dns.Msg) {
				m.Answer[0] = &dns.A{Hdr: dns.RR_Header{Name: "example.com.", Rrtype: dns.TypeA, Class: dns.ClassINET}}
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := message(t, dns.RcodeSuccess, tt.answer, "")
			if tt.change != nil {
				tt.change(m)
			}
			if tt.qtype == 0 {
				tt.qtype = dns.TypeA
			}
			a, err := decode(m, key{"example.com", tt.qtype})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("answer %+v, error %v, want one with %q", a, err, tt.want)
			}
		})
	}
	t.Run("as many as allowed", func(t *testing.T) {
		a, err := decode(message(t, dns.RcodeSuccess, aliases(maxAliases), ""), key{"example.com", dns.TypeA})
		if err != nil || len(a.chain) != maxAliases || len(a.addrs) != 1 {
			t.Errorf("answer %+v, error %v", a, err)
		}
		a, err = decode(message(t, dns.RcodeSuccess, strings.Repeat("example.com. 60 IN A 192.0.2.1\n", maxRecords), ""), key{"example.com", dns.TypeA})
		if err != nil || len(a.addrs) != maxRecords {
			t.Errorf("answer %+v, error %v", a, err)
		}
	})
}

// RFC 2181 5.2, RFC 2308 5.
func TestDecodeTTL(t *testing.T) {
	const soa = "example.com. %d IN SOA ns.example.com. host.example.com. 1 3600 600 86400 %d"
	for _, tt := range []struct {
		name              string
		rcode             int
		answer, authority string
		want              time.Duration
	}{
		{"record", 0, "example.com. 600 IN A 192.0.2.1", "", 600 * time.Second},
		{"least of the records", 0, "example.com. 600 IN A 192.0.2.1\nexample.com. 60 IN A 192.0.2.2", "", 60 * time.Second},
		{"least of the chain", 0, "example.com. 60 IN CNAME a.example.\na.example. 600 IN A 192.0.2.1", "", 60 * time.Second},
		{"other records do not count", 0, "example.com. 600 IN A 192.0.2.1\nother.example. 60 IN A 192.0.2.1", "", 600 * time.Second},
		{"lower bound", 0, "example.com. 0 IN A 192.0.2.1", "", minTTL},
		{"upper bound", 0, "example.com. 4294967295 IN A 192.0.2.1", "", maxTTL},
		{"denial, SOA's TTL", 0, "", fmt.Sprintf(soa, 60, 300), 60 * time.Second},
		{"denial, SOA's minimum", 3, "", fmt.Sprintf(soa, 300, 60), 60 * time.Second},
		{"denial, alias", 3, "example.com. 30 IN CNAME a.example.", fmt.Sprintf(soa, 300, 60), 30 * time.Second},
		{"denial, lower bound", 3, "", fmt.Sprintf(soa, 300, 0), minTTL},
		{"denial, upper bound", 3, "", fmt.Sprintf(soa, 86400, 86400), maxNegativeTTL},
		{"denial without SOA", 3, "", "", minTTL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, err := decode(message(t, tt.rcode, tt.answer, tt.authority), key{"example.com", dns.TypeA})
			if err != nil {
				t.Fatal(err)
			}
			if a.ttl != tt.want {
				t.Errorf("ttl %v, want %v", a.ttl, tt.want)
			}
		})
	}
}

// FuzzDecode feeds packets from the network to everything that reads them.
func FuzzDecode(f *testing.F) {
	for _, answer := range []string{
		"example.com. 60 IN TXT \"a\\\"\\000\"", aliases(3), "example.com. 60 IN MX 10 mx.example.com.", "example.com. 60 IN AAAA 2001:db8::1",
		"example.com. 60 IN TLSA 3 1 1 00ff", "example.com. 60 IN CNAME example.com.", "example.com. 60 IN PTR mx.example.com.", "",
	} {
		wire, err := message(f, dns.RcodeSuccess, answer, "example.com. 60 IN SOA . . 1 2 3 4 5").Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	types := []uint16{dns.TypeTXT, dns.TypeMX, dns.TypeA, dns.TypeAAAA, dns.TypeTLSA, dns.TypePTR, dns.TypeCNAME}
	f.Fuzz(func(t *testing.T, packet []byte) {
		m := new(dns.Msg)
		if m.Unpack(packet) != nil {
			return
		}
		for _, qtype := range types {
			a, err := decode(m, key{"example.com", qtype})
			if err != nil {
				continue
			}
			records := len(a.txts) + len(a.mxs) + len(a.addrs) + len(a.tlsa) + len(a.names)
			if records > maxRecords || a.size > maxAnswerBytes || len(a.chain) > maxAliases {
				t.Errorf("%d records of %d octets after %d aliases", records, a.size, len(a.chain))
			}
			if a.ttl < minTTL || a.ttl > maxTTL || a.err != nil && (a.ttl > maxNegativeTTL || records > 0) {
				t.Errorf("ttl %v, error %v", a.ttl, a.err)
			}
			for _, addr := range a.addrs {
				if addr == (netip.Addr{}) {
					t.Error("zero address")
				}
			}
		}
	})
}
