package dmarc

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ruapost"
)

// defaults returns the record of v=DMARC1 alone, changed.
func defaults(change func(r *Record)) *Record {
	r := &Record{
		ADKIM: "r", ASPF: "r", PSD: 'u', FO: "0",
		Percent: 100, Interval: 24 * time.Hour, ReportFormat: "afrf",
	}
	if change != nil {
		change(r)
	}
	return r
}

func mail(address string) URI {
	_, host, _ := strings.Cut(address, "@")
	return URI{Raw: "mailto:" + address, Scheme: "mailto", Address: address, Host: host}
}

func TestParseRecord(t *testing.T) {
	tests := []struct {
		name string
		txt  string
		want *Record // without Flaws
		// flaws are parts of the lines of Flaws, in order.
		flaws []string
	}{
		{"RFC 9990 4: the version alone authorizes", "v=DMARC1", defaults(nil), nil},
		{"trailing separator", "v=DMARC1;", defaults(nil), nil},
		{"RFC 9989 B.2.1", "v=DMARC1; p=none; rua=mailto:dmarc-feedback@example.com", defaults(func(r *Record) {
			r.Policy, r.RUA = "none", []URI{mail("dmarc-feedback@example.com")}
		}), nil},
		{"all tags", "v=DMARC1; p=quarantine; sp=reject; np=none; adkim=s; aspf=s; psd=n; t=y; fo=1:d:s; " +
			"rua=mailto:a@example.com,mailto:b@example.net; ruf=mailto:c@example.com; pct=20; ri=3600; rf=iodef", defaults(func(r *Record) {
			r.Policy, r.SubdomainPolicy, r.NonexistentPolicy = "quarantine", "reject", "none"
			r.ADKIM, r.ASPF, r.PSD, r.Testing, r.FO = "s", "s", 'n', true, "1:d:s"
			r.RUA = []URI{mail("a@example.com"), mail("b@example.net")}
			r.RUF = []URI{mail("c@example.com")}
			r.Percent, r.Interval, r.ReportFormat = 20, time.Hour, "iodef"
		}), nil},
		{"RFC 9989 4.8: names and words match in any case", "V=DMARC1;P=Reject;SP=NONE;adkim=S;ASPF=R;PSD=Y;T=N;FO=D", defaults(func(r *Record) {
			r.Policy, r.SubdomainPolicy, r.ADKIM, r.PSD, r.FO = "reject", "none", "s", 'y', "d"
		}), nil},
		{"blanks around separators", "v = DMARC1\t;  p =\treject ;rua = mailto:a@example.com\t,\tmailto:b@example.com ; ", defaults(func(r *Record) {
			r.Policy, r.RUA = "reject", []URI{mail("a@example.com"), mail("b@example.com")}
		}), nil},
		{"p need not be second, unlike RFC 7489 6.4", "v=DMARC1; t=n; pct=50; p=reject", defaults(func(r *Record) {
			r.Policy, r.Percent = "reject", 50
		}), nil},
		{"RFC 9989 4.7: unknown tags are ignored", "v=DMARC1; p=none; x=1; foo==;=; bar=;;", defaults(func(r *Record) {
			r.Policy = "none"
		}), []string{"=: not of the form tag=value"}},
		{"RFC 9989 4.8: what is bad falls to its default", "v=DMARC1; p=none; adkim=strict; aspf=; psd=x; t=1; fo=0:1; pct=101; ri=-1; stray; b\x01d=1; t2=y", defaults(func(r *Record) {
			r.Policy = "none"
		}), []string{
			"adkim=strict: not one of r, s", "aspf=: not one of r, s", "psd=x: not one of u, y, n", "t=1: not one of n, y",
			"fo=0:1: both 0 and 1", "pct=101: not a number from 0 to 100", "ri=-1: not a number of seconds", "stray: not of the form",
		}},
		{"characters beyond printable ASCII", "v=DMARC1; p=none; fo=\xc3\xa9; t=y\x00; rua=mailto:\xff@example.com; rf=\x1b[0m", defaults(func(r *Record) {
			r.Policy = "none"
		}), []string{"fo=", "t=y", "rua=mailto:", "rf="}},
		{"RFC 9989 4.10.1: sp beyond printable ASCII", "v=DMARC1; p=reject; sp=none\xff", defaults(func(r *Record) {
			r.Policy, r.broken = "reject", true
		}), []string{"sp=none"}},
		{"RFC 9989 4.8 dmarc-fo: options once each", "v=DMARC1; p=none; fo=d:d", defaults(func(r *Record) {
			r.Policy = "none"
		}), []string{"fo=d:d"}},
		{"RFC 9989 4.8 dmarc-fo: options of one letter", "v=DMARC1; p=none; fo=1s", defaults(func(r *Record) {
			r.Policy = "none"
		}), []string{"fo=1s"}},
		{"blanks between failure options", "v=DMARC1; p=none; fo=1 : D", defaults(func(r *Record) {
			r.Policy, r.FO = "none", "1:d"
		}), nil},
		{"RFC 9989 4.8 dmarc-tag: names are letters", "v=DMARC1; p=none; @=a; [=b; p1=c; é=d; z=e; A=f", defaults(func(r *Record) {
			r.Policy = "none"
		}), []string{"@=a: not a tag name", "[=b: not a tag name", "p1=c: not a tag name", "é=d: not a tag name"}},
		{"pct=100", "v=DMARC1; p=none; pct=100", defaults(func(r *Record) {
			r.Policy = "none"
		}), nil},
		{"RFC 9989 4.10.1: bad p", "v=DMARC1; p=bogus", defaults(nil), []string{"p=bogus: not one of none, quarantine, reject"}},
		{"RFC 9989 4.10.1: bad sp", "v=DMARC1; p=reject; sp=bogus", defaults(func(r *Record) {
			r.Policy, r.broken = "reject", true
		}), []string{"sp=bogus"}},
		{"RFC 9989 4.10.1: bad np", "v=DMARC1; p=reject; np=", defaults(func(r *Record) {
			r.Policy, r.brokenNP = "reject", true
		}), []string{"np=: not one of"}},
		{"RFC 6376 3.2: p twice", "v=DMARC1; p=reject; P=none", defaults(func(r *Record) {
			r.Policy, r.broken = "reject", true
		}), []string{"p=none: the tag is there twice"}},
		{"RFC 6376 3.2: v twice", "v=DMARC1; p=reject; v=DMARC1", defaults(func(r *Record) {
			r.Policy, r.broken = "reject", true
		}), []string{"v=DMARC1: the tag is there twice"}},
		{"RFC 6376 3.2: the first of other tags counts", "v=DMARC1; p=reject; t=y; t=n", defaults(func(r *Record) {
			r.Policy, r.Testing = "reject", true
		}), []string{"t=n: the tag is there twice"}},
		{"bad URIs go one by one", "v=DMARC1; p=none; rua=a@example.com, mailto:b@example.com,,mailto: c@example.com", defaults(func(r *Record) {
			r.Policy, r.RUA = "none", []URI{mail("b@example.com")}
		}), []string{"rua=a@example.com: not a URI: no scheme", "rua=: not a URI", "rua=mailto: c@example.com: a URI cannot"}},
		{"RFC 9989 9.3: historic tags at their ends", "v=DMARC1; p=none; pct=0; ri=4294967295", defaults(func(r *Record) {
			r.Policy, r.Percent, r.Interval = "none", 0, math.MaxUint32*time.Second
		}), nil},
		{"ri past 32 bits", "v=DMARC1; p=none; ri=4294967296; pct=256", defaults(func(r *Record) {
			r.Policy = "none"
		}), []string{"ri=", "pct="}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseRecord(tt.txt)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(Record{}), cmpopts.IgnoreFields(Record{}, "Flaws")); diff != "" {
				t.Errorf("record (-want +got):\n%s", diff)
			}
			if len(got.Flaws) != len(tt.flaws) {
				t.Fatalf("flaws %q, want %q", got.Flaws, tt.flaws)
			}
			for i, part := range tt.flaws {
				if !strings.Contains(got.Flaws[i], part) {
					t.Errorf("flaw %q, want %q", got.Flaws[i], part)
				}
			}
		})
	}
}

func TestParseRecordNotDMARC(t *testing.T) {
	for _, txt := range []string{
		"", "v", "v=", "v=spf1 -all", "v=DMARC2; p=none", "v=DMARC1.0; p=none", "v=dmarc1; p=none",
		"v=DMARC1 p=none", "p=none; v=DMARC1", "; v=DMARC1", " v=DMARC1; p=none", "\tv=DMARC1",
		"v==DMARC1; p=none", "v=DMARC1\x00; p=none", "\"v=DMARC1; p=none\"", "DMARC1; p=none",
	} {
		if rec, err := ParseRecord(txt); !errors.Is(err, ErrNotDMARC) {
			t.Errorf("%q: got %+v, %v, want ErrNotDMARC", txt, rec, err)
		}
	}
}

func TestParseRecordBounds(t *testing.T) {
	t.Run("URIs", func(t *testing.T) {
		list := strings.TrimSuffix(strings.Repeat("mailto:a@example.com,", maxURIs+5), ",")
		rec, err := ParseRecord("v=DMARC1; p=none; rua=" + list)
		if err != nil || len(rec.RUA) != maxURIs || len(rec.Flaws) != 1 {
			t.Errorf("got %d URIs, flaws %q, %v", len(rec.RUA), rec.Flaws, err)
		}
	})
	t.Run("flaws", func(t *testing.T) {
		rec, err := ParseRecord("v=DMARC1; p=none" + strings.Repeat("; "+strings.Repeat("x", 100), 1000))
		if err != nil || len(rec.Flaws) != maxFlaws {
			t.Fatalf("got %d flaws, %v", len(rec.Flaws), err)
		}
		if len(rec.Flaws[0]) > maxFlawValue+40 {
			t.Errorf("flaw of %d octets", len(rec.Flaws[0]))
		}
	})
}

func TestParseURI(t *testing.T) {
	tests := []struct {
		name string
		uri  string
		want URI // zero if it must be refused
	}{
		{"plain", "mailto:a@example.com", mail("a@example.com")},
		{"scheme in any case", "MailTo:a@example.com", URI{Raw: "MailTo:a@example.com", Scheme: "mailto", Address: "a@example.com", Host: "example.com"}},
		{"domain in any case, local part as it is", "mailto:Ab@EXAMPLE.com", URI{Raw: "mailto:Ab@EXAMPLE.com", Scheme: "mailto", Address: "Ab@example.com", Host: "example.com"}},
		{"size", "mailto:a@example.com!10m", URI{Raw: "mailto:a@example.com", Scheme: "mailto", Address: "a@example.com", Host: "example.com", MaxSize: 10 << 20}},
		{"size in octets", "mailto:a@example.com!5000", URI{Raw: "mailto:a@example.com", Scheme: "mailto", Address: "a@example.com", Host: "example.com", MaxSize: 5000}},
		{"size in K and T", "mailto:a@example.com!2T", URI{Raw: "mailto:a@example.com", Scheme: "mailto", Address: "a@example.com", Host: "example.com", MaxSize: 2 << 40}},
		{"size beyond numbers is no limit", "mailto:a@example.com!99999999999999999999g", mail("a@example.com")},
		{"size beyond numbers by its unit", "mailto:a@example.com!99999999999t", mail("a@example.com")},
		{"size without digits", "mailto:a@example.com!m", URI{}},
		{"size empty", "mailto:a@example.com!", URI{}},
		{"size of an unknown unit", "mailto:a@example.com!1p", URI{}},
		{"size negative", "mailto:a@example.com!-1", URI{}},
		{`RFC 9989 4.8: "!" has to be encoded`, "mailto:a!b@example.com", URI{}},
		{`RFC 9989 4.8: "!" encoded`, "mailto:a%21b@example.com!1k", URI{Raw: "mailto:a%21b@example.com", Scheme: "mailto", Address: "a!b@example.com", Host: "example.com", MaxSize: 1024}},
		{"RFC 6068: the first address", "mailto:a@example.com%2Cb@example.net", URI{Raw: "mailto:a@example.com%2Cb@example.net", Scheme: "mailto", Address: "a@example.com", Host: "example.com"}},
		{"RFC 6068: header fields are dropped", "mailto:a@example.com?subject=x&bcc=b@example.net", URI{Raw: "mailto:a@example.com?subject=x&bcc=b@example.net", Scheme: "mailto", Address: "a@example.com", Host: "example.com"}},
		{"RFC 6068: no address", "mailto:?to=a@example.com", URI{}},
		{"encoded @", "mailto:a%40example.com", URI{Raw: "mailto:a%40example.com", Scheme: "mailto", Address: "a@example.com", Host: "example.com"}},
		{"two @", "mailto:a@b@example.com", URI{}},
		{"IDN as UTF-8", "mailto:a@b%C3%BCcher.example", URI{Raw: "mailto:a@b%C3%BCcher.example", Scheme: "mailto", Address: "a@xn--bcher-kva.example", Host: "xn--bcher-kva.example"}},
		{"RFC 8616 6: local part beyond ASCII", "mailto:%C3%BC@example.com", URI{}},
		{"line end", "mailto:a%0D%0ABcc:b@example.com", URI{}},
		{"NUL", "mailto:a%00@example.com", URI{}},
		{"blank", "mailto:a%20b@example.com", URI{}},
		{"quoted local part", "mailto:%22a%20,@%5C%22%22@example.com", URI{Raw: "mailto:%22a%20,@%5C%22%22@example.com", Scheme: "mailto", Address: `"a ,@\""@example.com`, Host: "example.com"}},
		{"quoted local part with a control character", "mailto:%22%0A%22@example.com", URI{}},
		{"quoted local part without an end", "mailto:%22a@example.com", URI{}},
		{"quoted local part ending in a backslash", "mailto:%22%5C", URI{}},
		{"text behind a quoted local part", "mailto:%22a%22b@example.com", URI{}},
		{"display name", "mailto:A%20%3Ca@example.com%3E", URI{}},
		{"misplaced dots", "mailto:.a@example.com", URI{}},
		{"local part of 65 octets", "mailto:" + strings.Repeat("a", 65) + "@example.com", URI{}},
		{"no local part", "mailto:@example.com", URI{}},
		{"no domain", "mailto:a@", URI{}},
		{"local part alone", "mailto:0", URI{}},
		{"address literal", "mailto:a@[192.0.2.1]", URI{}},
		{"address as domain", "mailto:a@192.0.2.1", URI{}},
		{"no scheme", "a@example.com", URI{}},
		{"empty scheme", ":a@example.com", URI{}},
		{"scheme that begins with a digit", "1x:a@example.com", URI{}},
		{"scheme with a slash", "a/b:c", URI{}},
		{"blank after the colon", "mailto: a@example.com", URI{}},
		{"bad percent-encoding", "mailto:a%4@example.com", URI{}},
		{"percent at the end", "mailto:a@example.com%", URI{}},
		{"other schemes are URIs, too", "https://Reports.example.com/dmarc!10m", URI{Raw: "https://Reports.example.com/dmarc", Scheme: "https", Host: "reports.example.com", MaxSize: 10 << 20}},
		{"other schemes at an address", "http://192.0.2.1:8080/", URI{Raw: "http://192.0.2.1:8080/", Scheme: "http"}},
		{"other schemes with signs", "A0+b.c-d:x", URI{Raw: "A0+b.c-d:x", Scheme: "a0+b.c-d"}},
		{"scheme that begins with a sign", "+a:x", URI{}},
		{"scheme that begins with the last digit", "9a:x", URI{}},
		{"percent-encoding in any case, up to the end", "x:%00%9F%aA%f9", URI{Raw: "x:%00%9F%aA%f9", Scheme: "x"}},
		{"percent-encoding beyond digits", "x:%0g", URI{}},
		{"percent-encoding beyond digits first", "x:%G0", URI{}},
		{"percent-encoding that lacks a digit at the end", "x:%0", URI{}},
		{"octets beyond ASCII", "x:\xc3\xb6", URI{}},
		{"as long as may be", "x:" + strings.Repeat("y", maxURILength-2), URI{Raw: "x:" + strings.Repeat("y", maxURILength-2), Scheme: "x"}},
		{"other schemes, too long", "x:" + strings.Repeat("y", maxURILength-1), URI{}},
		{"other schemes with a bad port", "http://example.com:x/", URI{}},
		{"too long", "mailto:a@example.com?" + strings.Repeat("x", maxURILength), URI{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseURI(tt.uri)
			if refused := tt.want == (URI{}); refused != (err != nil) {
				t.Fatalf("got %+v, %v", got, err)
			}
			if err == nil && got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add("v=DMARC1; p=reject; sp=none; np=quarantine; rua=mailto:a%21b@example.com!10m,https://x.example/; fo=1:d; pct=5; ri=1; t=y; psd=y")
	f.Add("v=DMARC1;rua=mailto:%22a%5C%22%20b%22@b%C3%BCcher.example?x=y#z,,!k;p=p;p=none;v=1")
	f.Fuzz(func(t *testing.T, txt string) {
		rec, err := ParseRecord(txt)
		if err != nil {
			if rec != nil || !errors.Is(err, ErrNotDMARC) {
				t.Fatalf("%+v, %v", rec, err)
			}
			return
		}
		if !strings.Contains(txt, "DMARC1") {
			t.Fatal("not a DMARC record")
		}
		for _, d := range []ruapost.Disposition{rec.Policy, rec.SubdomainPolicy, rec.NonexistentPolicy} {
			switch d {
			case "", "none", "quarantine", "reject":
			default:
				t.Fatalf("policy %q", d)
			}
		}
		if rec.Percent < 0 || rec.Percent > 100 || rec.Interval < 0 || len(rec.Flaws) > maxFlaws {
			t.Fatalf("%+v", rec)
		}
		for _, u := range append(rec.RUA, rec.RUF...) {
			checkURI(t, u)
		}
	})
}

// checkURI checks what the sender of a report relies on.
func checkURI(t *testing.T, u URI) {
	t.Helper()
	if u.Scheme == "mailto" {
		local, ok := strings.CutSuffix(u.Address, "@"+u.Host)
		if !ok || local == "" || u.Host == "" {
			t.Fatalf("%+v", u)
		}
		for _, c := range u.Address {
			if c < 0x20 || c > 0x7e || c == ' ' && local[0] != '"' {
				t.Fatalf("%q in %+v", c, u)
			}
		}
	} else if u.Address != "" {
		t.Fatalf("%+v", u)
	}
	if u.Host != "" {
		if name, err := ruapost.ParseDomain(u.Host); err != nil || name != u.Host {
			t.Fatalf("%+v: %v", u, err)
		}
	}
	again, err := parseURI(u.Raw)
	u.MaxSize = 0
	if err != nil || again != u {
		t.Fatalf("%+v reads as %+v, %v", u, again, err)
	}
}

func BenchmarkParseRecord(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseRecord("v=DMARC1; p=reject; sp=quarantine; adkim=s; rua=mailto:dmarc@example.com,mailto:x@example.net!10m; fo=1"); err != nil {
			b.Fatal(err)
		}
	}
}

// RFC 7489 6.3: ri is in seconds, a day by default, and what is between is for the
// reporter to choose: windows here are hours that divide a day.
func TestRecordWindow(t *testing.T) {
	const hour, day = time.Hour, 24 * time.Hour
	for _, tt := range []struct {
		tag         string
		least, want time.Duration
	}{
		{"", hour, day},
		{"ri=86400", hour, day},
		{"ri=3600", hour, hour},
		{"ri=3601", hour, 2 * hour},
		{"ri=7200", hour, 2 * hour},
		{"ri=10800", hour, 3 * hour},
		{"ri=14400", hour, 4 * hour},
		{"ri=18000", hour, 6 * hour}, // 5 hours divide no day
		{"ri=21600", hour, 6 * hour},
		{"ri=25200", hour, 8 * hour},
		{"ri=28800", hour, 8 * hour},
		{"ri=28801", hour, 12 * hour},
		{"ri=43200", hour, 12 * hour},
		{"ri=43201", hour, day},
		{"ri=60", hour, hour},
		{"ri=1", 4 * hour, 4 * hour},
		{"ri=3600", 6 * hour, 6 * hour},
		{"ri=43200", 6 * hour, 12 * hour},
		{"ri=3600", day, day},
		{"", 6 * hour, day},
		{"ri=86401", hour, day},
		{"ri=604800", hour, day},
		{"ri=4294967295", hour, day},
		{"ri=4294967296", hour, day}, // no number of 32 bits
		{"ri=0", hour, day},
		{"ri=-3600", hour, day},
		{"ri=1h", hour, day},
		{"ri=", hour, day},
		{"ri=3600; ri=7200", hour, hour},
	} {
		rec, err := ParseRecord("v=DMARC1; p=none; " + tt.tag)
		if err != nil {
			t.Fatal(err)
		}
		if got := rec.Window(tt.least); got != tt.want {
			t.Errorf("%q, at least %v: %v, want %v", tt.tag, tt.least, got, tt.want)
		}
	}
}
