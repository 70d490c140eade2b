package mtasts

import (
	"errors"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"ruapost/internal/dnstest"
	"ruapost/resolver"
)

func TestParseRecord(t *testing.T) {
	id32 := strings.Repeat("aB3x", 8)
	tests := []struct {
		name string
		txts []string
		id   string
		err  error
	}{
		{"RFC 8461 3.1 example", []string{"v=STSv1; id=20160831085700Z;"}, "20160831085700Z", nil},
		{"no delimiter at the end", []string{"v=STSv1; id=1"}, "1", nil},
		{"no blanks", []string{"v=STSv1;id=1;"}, "1", nil},
		{"tabs and many blanks", []string{"v=STSv1;\t  id=1 \t; \t"}, "1", nil},
		{"erratum 6285: blank before the delimiter", []string{"v=STSv1 ; id=1 ;"}, "1", nil},
		{"longest id", []string{"v=STSv1; id=" + id32}, id32, nil},
		{"extensions around the id", []string{"v=STSv1; a.b-c_d=x:/<>y; id=1; z=1"}, "1", nil},
		{"the first id counts", []string{"v=STSv1; id=1; id=2; id=not-an-id"}, "1", nil},
		{"other records beside", []string{"v=spf1 -all", "", "v=STSv2; id=2", "v=STSv1; id=1", "verification=x"}, "1", nil},

		{"no records", nil, "", ErrNoRecord},
		{"other records only", []string{"v=spf1 -all", ""}, "", ErrNoRecord},
		{"version in another case", []string{"v=stsv1; id=1"}, "", ErrNoRecord},
		{"tag in another case", []string{"V=STSv1; id=1"}, "", ErrNoRecord},
		{"longer version", []string{"v=STSv10; id=1"}, "", ErrNoRecord},
		{"blank before the version", []string{" v=STSv1; id=1"}, "", ErrNoRecord},
		{"version not first", []string{"id=1; v=STSv1;"}, "", ErrNoRecord},
		{"version alone", []string{"v=STSv1"}, "", ErrNoRecord},
		{"no delimiter after the version", []string{"v=STSv1 id=1;"}, "", ErrNoRecord},

		{"two records", []string{"v=STSv1; id=1", "v=STSv1; id=2"}, "", ErrMultipleRecords},
		{"twice the same record", []string{"v=STSv1; id=1", "v=STSv1; id=1"}, "", ErrMultipleRecords},
		{"a malformed record counts", []string{"v=STSv1; id=1", "v=STSv1;"}, "", ErrMultipleRecords},

		{"no id", []string{"v=STSv1; a=b"}, "", ErrRecordSyntax},
		{"nothing after the version", []string{"v=STSv1;"}, "", ErrRecordSyntax},
		{"empty id", []string{"v=STSv1; id="}, "", ErrRecordSyntax},
		{"id too long", []string{"v=STSv1; id=" + id32 + "1"}, "", ErrRecordSyntax},
		{"id with a hyphen", []string{"v=STSv1; id=2026-01-01"}, "", ErrRecordSyntax},
		{"id with a non-ASCII digit", []string{"v=STSv1; id=١"}, "", ErrRecordSyntax},
		{"id with NUL", []string{"v=STSv1; id=1\x00"}, "", ErrRecordSyntax},
		{"the first id counts even if it is bad", []string{"v=STSv1; id=a-b; id=1"}, "", ErrRecordSyntax},
		{"id in capitals", []string{"v=STSv1; ID=1"}, "", ErrRecordSyntax},
		{"blanks around the equals sign", []string{"v=STSv1; id = 1"}, "", ErrRecordSyntax},
		{"two delimiters", []string{"v=STSv1;; id=1"}, "", ErrRecordSyntax},
		{"field without a value", []string{"v=STSv1; id=1; a"}, "", ErrRecordSyntax},
		{"extension with an equals sign in the value", []string{"v=STSv1; id=1; a=b=c"}, "", ErrRecordSyntax},
		{"extension with a blank in the value", []string{"v=STSv1; id=1; a=b c"}, "", ErrRecordSyntax},
		{"extension with a bad name", []string{"v=STSv1; id=1; -a=b"}, "", ErrRecordSyntax},
		{"extension with a long name", []string{"v=STSv1; id=1; " + id32 + "x=b"}, "", ErrRecordSyntax},
		{"8 bit", []string{"v=STSv1; id=1; a=\xff"}, "", ErrRecordSyntax},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			record, err := ParseRecord(test.txts)
			if !errors.Is(err, test.err) {
				t.Fatalf("error %v, want %v", err, test.err)
			}
			if (record == nil) != (err != nil) {
				t.Fatalf("record %v with error %v", record, err)
			}
			if record != nil && record.ID != test.id {
				t.Errorf("id %q, want %q", record.ID, test.id)
			}
		})
	}
}

func startDNS(t *testing.T) (*dnstest.Server, *resolver.Resolver) {
	t.Helper()
	server, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	r, err := resolver.New(resolver.Config{Servers: []string{server.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return server, r
}

func TestLookupRecord(t *testing.T) {
	server, r := startDNS(t)
	server.Add(`
_mta-sts.strings.test. 300 IN TXT "v=STSv1; i" "d=1;"
_mta-sts.alias.test. 300 IN CNAME _mta-sts.strings.test.
_mta-sts.two.test. 300 IN TXT "v=STSv1; id=1"
_mta-sts.two.test. 300 IN TXT "v=STSv1; id=2"
_mta-sts.bad.test. 300 IN TXT "v=STSv1; id=?"
_mta-sts.insecure.test. 300 IN TXT "v=STSv1; id=1"
nodata.test. 300 IN A 192.0.2.1
`)
	server.SetInsecure("insecure.test") // RFC 8461 needs no DNSSEC
	server.SetRcode("_mta-sts.down.test", dns.RcodeServerFailure)
	for domain, want := range map[string]error{
		"strings.test": nil, "alias.test": nil, "insecure.test": nil,
		"two.test": ErrMultipleRecords, "bad.test": ErrRecordSyntax,
		"nodata.test": ErrNoRecord, "nowhere.test": ErrNoRecord, "no domain": ErrNoRecord,
	} {
		record, err := LookupRecord(t.Context(), r, domain)
		if !errors.Is(err, want) || err == nil && record.ID != "1" {
			t.Errorf("%s: record %v, error %v, want %v", domain, record, err, want)
		}
	}
	if _, err := LookupRecord(t.Context(), r, "down.test"); !resolver.IsTemporary(err) || errors.Is(err, ErrNoRecord) {
		t.Errorf("server failure: error %v", err)
	}
}

func FuzzParseRecord(f *testing.F) {
	for _, s := range []string{"v=STSv1; id=1;", "v=STSv1 ; a=b; id=Z9; id=", "v=STSv1;;", "v=STSv1; id=1; a=\xff", "v=STSv1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, txt string) {
		record, err := ParseRecord([]string{txt, "v=spf1 -all"})
		if err != nil {
			if !errors.Is(err, ErrNoRecord) && !errors.Is(err, ErrRecordSyntax) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if !isID(record.ID) || !strings.Contains(txt, "id="+record.ID) {
			t.Fatalf("id %q", record.ID)
		}
		if _, err := ParseRecord([]string{txt, txt}); !errors.Is(err, ErrMultipleRecords) {
			t.Fatalf("twice the record: error %v", err)
		}
	})
}
