package tlsrpt

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"ruapost"
	"ruapost/internal/mailtouri"
)

// destinations are the addresses and URLs of a record, in order.
func destinations(r *Record) []string {
	var list []string
	for _, uri := range r.RUA {
		if uri.URL != nil {
			list = append(list, uri.URL.String())
		} else {
			list = append(list, uri.Address)
		}
	}
	return list
}

func TestParseRecord(t *testing.T) {
	const good = "v=TLSRPTv1; rua=mailto:a@example.com"
	tests := []struct {
		name string
		txts []string
		want []string
		err  error
	}{
		{"plain", []string{good}, []string{"a@example.com"}, nil},
		{"delimiter at the end", []string{good + " ; "}, []string{"a@example.com"}, nil},
		{"no blanks", []string{"v=TLSRPTv1;rua=mailto:a@example.com"}, []string{"a@example.com"}, nil},
		{"RFC 8460 3 blank before the semicolon", []string{"v=TLSRPTv1 \t; rua=mailto:a@example.com"}, []string{"a@example.com"}, nil},
		{"https", []string{"v=TLSRPTv1; rua=https://example.com/v1/tlsrpt"}, []string{"https://example.com/v1/tlsrpt"}, nil},
		{"https with port and query", []string{"v=TLSRPTv1; rua=HTTPS://Example.COM:8443/a%2Cb?k=v%3B#x"}, []string{"https://example.com:8443/a%2Cb?k=v%3B"}, nil},
		{"https on an internationalized host", []string{"v=TLSRPTv1; rua=https://bücher.example/"}, []string{"https://xn--bcher-kva.example/"}, nil},
		{"several URIs, blanks at the comma", []string{"v=TLSRPTv1; rua=mailto:a@example.com , https://example.com/,\tmailto:b@example.com"}, []string{"a@example.com", "https://example.com/", "b@example.com"}, nil},
		{"extension before rua", []string{"v=TLSRPTv1; ext.1=on; rua=mailto:a@example.com"}, []string{"a@example.com"}, nil},
		{"extension without value", []string{"v=TLSRPTv1; ext; rua=mailto:a@example.com;;"}, []string{"a@example.com"}, nil},
		{"several rua fields", []string{"v=TLSRPTv1; rua=mailto:a@example.com; x=y; rua=mailto:b@example.com"}, []string{"a@example.com", "b@example.com"}, nil},
		{"unknown scheme is skipped", []string{"v=TLSRPTv1; rua=ftp://example.com/,mailto:a@example.com"}, []string{"a@example.com"}, nil},
		{"http is no https", []string{"v=TLSRPTv1; rua=http://example.com/,mailto:a@example.com"}, []string{"a@example.com"}, nil},
		{"no scheme is skipped", []string{"v=TLSRPTv1; rua=a@example.com,mailto:b@example.com"}, []string{"b@example.com"}, nil},
		{"DMARC's size limit is skipped", []string{"v=TLSRPTv1; rua=mailto:a@example.com!10m,mailto:b@example.com"}, []string{"b@example.com"}, nil},
		{"empty list elements", []string{"v=TLSRPTv1; rua=,mailto:a@example.com,"}, []string{"a@example.com"}, nil},
		{"address is decoded", []string{"v=TLSRPTv1; rua=mailto:a%21b%2Cc@example.com,mailto:a%21b@example.com?subject=x"}, []string{"a!b@example.com"}, nil},
		{"https at an address", []string{"v=TLSRPTv1; rua=https://192.0.2.1/,https://[2001:db8::1]/,https://localhost:0/,https://u:p@example.com/,https:///x,https:x,https://example.com:65536/"}, nil, nil},
		{"https too long or not clean", []string{"v=TLSRPTv1; rua=https://example.com/" + strings.Repeat("x", maxURL) + ",https://example.com/\xff,https://example.com/\u2028"}, nil, nil},
		{"no rua", []string{"v=TLSRPTv1;"}, nil, nil},
		{"octets beyond ASCII", []string{"v=TLSRPTv1; \xff=\xfe; rua=mailto:\xff@example.com,mailto:a@example.com"}, []string{"a@example.com"}, nil},
		{"other TXT records beside it", []string{"v=spf1 -all", good, "v=TLSRPTv2; rua=mailto:b@example.com", ""}, []string{"a@example.com"}, nil},

		{"none", nil, nil, ErrNoRecord},
		{"other records only", []string{"v=spf1 -all", "", "TLSRPTv1"}, nil, ErrNoRecord},
		{"longer version", []string{"v=TLSRPTv10; rua=mailto:a@example.com"}, nil, ErrNoRecord},
		{"version without delimiter", []string{"v=TLSRPTv1", "v=TLSRPTv1 rua=mailto:a@example.com"}, nil, ErrNoRecord},
		{"version in other case", []string{"v=tlsrptv1; rua=mailto:a@example.com"}, nil, ErrNoRecord},
		{"blank before the version", []string{" " + good}, nil, ErrNoRecord},
		{"two", []string{good, good}, nil, ErrMultipleRecords},
		{"two, one without rua", []string{good, "v=TLSRPTv1;"}, nil, ErrMultipleRecords},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rec, err := ParseRecord(tt.txts)
			if !errors.Is(err, tt.err) || (rec == nil) != (tt.err != nil) {
				t.Fatalf("ParseRecord = %v, %v; want error %v", rec, err, tt.err)
			}
			if err != nil {
				return
			}
			if got := destinations(rec); !slices.Equal(got, tt.want) {
				t.Errorf("destinations %q, want %q", got, tt.want)
			}
		})
	}
}

func TestParseRecordURI(t *testing.T) {
	rec, err := ParseRecord([]string{"v=TLSRPTv1; rua= MailTo:Reports@Example.com , https://example.com/x"})
	if err != nil || len(rec.RUA) != 2 {
		t.Fatal(rec, err)
	}
	if got, want := rec.RUA[0], (URI{Raw: "MailTo:Reports@Example.com", Scheme: "mailto", Address: "Reports@example.com"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := rec.RUA[1]; got.Raw != "https://example.com/x" || got.Scheme != "https" || got.Address != "" || got.URL.Host != "example.com" {
		t.Errorf("got %+v", got)
	}
}

func TestParseRecordBound(t *testing.T) {
	rec, err := ParseRecord([]string{"v=TLSRPTv1;" + strings.Repeat("rua=mailto:a@b.example,mailto:c@d.example;", 2000)})
	if err != nil || len(rec.RUA) != maxURIs {
		t.Errorf("%d URIs, error %v; want %d", len(rec.RUA), err, maxURIs)
	}
}

type resolverFunc func(name string) ([]string, bool, error)

func (f resolverFunc) LookupTXT(_ context.Context, name string) ([]string, bool, error) {
	return f(name)
}

func TestLookupRecord(t *testing.T) {
	r := resolverFunc(func(name string) ([]string, bool, error) {
		switch name {
		case "_smtp._tls.good.example":
			return []string{"v=TLSRPTv1; rua=mailto:a@good.example"}, false, nil
		case "_smtp._tls.two.example":
			return []string{"v=TLSRPTv1; a=b", "v=TLSRPTv1; a=b"}, true, nil
		case "_smtp._tls.broken.example":
			return nil, false, &net.DNSError{Err: "SERVFAIL", Name: name, IsTemporary: true}
		}
		return nil, false, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	})
	ctx := t.Context()
	rec, err := LookupRecord(ctx, r, "good.example")
	if err != nil || !slices.Equal(destinations(rec), []string{"a@good.example"}) {
		t.Errorf("good: %v, %v", rec, err)
	}
	if _, err := LookupRecord(ctx, r, "none.example"); !errors.Is(err, ErrNoRecord) || !strings.Contains(err.Error(), "none.example") {
		t.Errorf("none: %v", err)
	}
	if _, err := LookupRecord(ctx, r, "two.example"); !errors.Is(err, ErrMultipleRecords) || !strings.Contains(err.Error(), "two.example") {
		t.Errorf("two: %v", err)
	}
	// A temporary error must not look like a domain without a record: its
	// sessions would be thrown away.
	_, err = LookupRecord(ctx, r, "broken.example")
	if dnsErr := (*net.DNSError)(nil); errors.Is(err, ErrNoRecord) || !errors.As(err, &dnsErr) || !dnsErr.IsTemporary {
		t.Errorf("broken: %v", err)
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add("v=TLSRPTv1; rua=mailto:a@example.com,https://example.com/x;y=z; rua=x:y")
	f.Add("v=TLSRPTv1 ; rua=https://[::1]:25/,https://a:b@c:99999?d#e, mailto:%22a%22@b.example")
	f.Fuzz(func(t *testing.T, txt string) {
		rec, err := ParseRecord([]string{txt})
		if err != nil {
			return
		}
		if len(rec.RUA) > maxURIs {
			t.Fatalf("%d URIs", len(rec.RUA))
		}
		for _, uri := range rec.RUA {
			if uri.Raw != ruapost.Clean(uri.Raw, len(uri.Raw)) {
				t.Fatalf("raw URI %q", uri.Raw)
			}
			switch uri.Scheme {
			case "mailto":
				if again, err := mailtouri.ParseAddress(uri.Address); err != nil || again != uri.Address || uri.URL != nil {
					t.Fatalf("%+v: %q, %v", uri, again, err)
				}
			case "https":
				host, err := ruapost.ParseDomain(uri.URL.Hostname())
				if err != nil || host != uri.URL.Hostname() || uri.URL.User != nil || uri.Address != "" {
					t.Fatalf("%+v: %q, %v", uri, host, err)
				}
				if s := uri.URL.String(); !utf8.ValidString(s) || strings.ContainsAny(s, "\r\n\x00 ") {
					t.Fatalf("URL %q", s)
				}
			default:
				t.Fatalf("%+v", uri)
			}
		}
	})
}
