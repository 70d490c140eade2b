package dmarc

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"ruapost"
	"ruapost/resolver"
)

func TestExternalDestination(t *testing.T) {
	const query = "TXT blue.example.com._report._dmarc.red.example.net"
	record := func(txt string) string { return "blue.example.com._report._dmarc.red.example.net " + txt }
	tests := []struct {
		name     string
		records  []string
		uri      string
		accepted bool
		override []string // addresses
		asked    string   // a query that must have been made; "-": none
	}{
		{"RFC 9990 4: the plain case", []string{record("v=DMARC1")}, "mailto:reports@red.example.net", true, nil, query},
		{"a semicolon behind it", []string{record("v=DMARC1;")}, "mailto:reports@red.example.net", true, nil, query},
		{"a policy beside it", []string{record("v=DMARC1; p=reject")}, "mailto:reports@red.example.net", true, nil, query},
		{"step 7: no record", nil, "mailto:reports@red.example.net", false, nil, query},
		{"step 6: v must be first", []string{record("p=none; v=DMARC1")}, "mailto:reports@red.example.net", false, nil, query},
		{"step 6: other records do not count", []string{record("v=spf1 -all"), record("hello")}, "mailto:reports@red.example.net", false, nil, query},
		{"step 8: one good record among others", []string{record("v=spf1 -all"), record("v=DMARC1")}, "mailto:reports@red.example.net", true, nil, query},
		{"step 9: override at the same host", []string{record("v=DMARC1; rua=mailto:other@red.example.net")}, "mailto:reports@red.example.net", true, []string{"other@red.example.net"}, query},
		{"step 9: host in any case", []string{record("v=DMARC1; rua=mailto:other@RED.example.net!1m")}, "mailto:reports@Red.Example.NET", true, []string{"other@red.example.net"}, query},
		{"step 9: override at another host, neither is used", []string{record("v=DMARC1; rua=mailto:other@example.org")}, "mailto:reports@red.example.net", false, nil, query},
		{"step 9: even at a host above", []string{record("v=DMARC1; rua=mailto:other@example.net")}, "mailto:reports@red.example.net", false, nil, query},
		{"step 9: of two, the one that keeps the host", []string{record("v=DMARC1; rua=mailto:a@example.org,mailto:b@red.example.net")}, "mailto:reports@red.example.net", true, []string{"b@red.example.net"}, query},
		{"step 9: overrides of several records", []string{record("v=DMARC1; rua=mailto:a@red.example.net"), record("v=DMARC1; rua=mailto:b@red.example.net")}, "mailto:reports@red.example.net", true, []string{"a@red.example.net", "b@red.example.net"}, query},
		{"step 9: plain consent beside an override elsewhere", []string{record("v=DMARC1"), record("v=DMARC1; rua=mailto:b@example.org")}, "mailto:reports@red.example.net", false, nil, query},
		{"step 9: an override that cannot be read is none", []string{record("v=DMARC1; rua=garbage")}, "mailto:reports@red.example.net", true, nil, query},
		{"step 9: an override of another scheme is none", []string{record("v=DMARC1; rua=https://example.org/")}, "mailto:reports@red.example.net", true, nil, query},
		{"the domain itself", nil, "mailto:a@blue.example.com", true, nil, "-"},
		{"the same organization, above", nil, "mailto:a@example.com", true, nil, "-"},
		{"the same organization, beside", nil, "mailto:a@green.example.com", true, nil, "-"},
		{"below, but its own organization", []string{"_dmarc.own.example.com v=DMARC1; p=none; psd=n"}, "mailto:a@own.example.com", false, nil, "TXT blue.example.com._report._dmarc.own.example.com"},
		{"a similar name", nil, "mailto:a@notexample.com", false, nil, "TXT blue.example.com._report._dmarc.notexample.com"},
		{"the top level", nil, "mailto:a@com", false, nil, "TXT blue.example.com._report._dmarc.com"},
		{"step 4: name too long", nil, "mailto:a@" + strings.Repeat("a123456789.", 21) + "net", false, nil, "-"},
		{"no domain name at all", nil, "https://192.0.2.1/", false, nil, "-"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, srv := startDNS(t, append(tt.records, "_dmarc.blue.example.com v=DMARC1; p=none", "_dmarc.example.com v=DMARC1; p=none")...)
			u, err := parseURI(tt.uri)
			if err != nil {
				t.Fatal(err)
			}
			accepted, override, err := ExternalDestination(t.Context(), r, "blue.example.com", u)
			if err != nil {
				t.Fatal(err)
			}
			var addresses []string
			for _, o := range override {
				addresses = append(addresses, o.Address)
			}
			if accepted != tt.accepted || accepted && !slices.Equal(addresses, tt.override) {
				t.Errorf("accepted %v, override %q, want %v, %q", accepted, addresses, tt.accepted, tt.override)
			}
			queries := asked(srv)
			if tt.asked != "-" && !slices.Contains(queries, tt.asked) {
				t.Errorf("asked %q, want %q among them", queries, tt.asked)
			}
			if tt.asked == "-" && slices.ContainsFunc(queries, func(q string) bool { return strings.Contains(q, "_report") }) {
				t.Errorf("asked %q", queries)
			}
		})
	}
}

func TestExternalDestinationTemporaryError(t *testing.T) {
	for _, name := range []string{
		"_dmarc.com", // the policy domain's walk
		"blue.example.com._report._dmarc.red.example.net",
		"_dmarc.green.example.com", // the destination's walk
	} {
		t.Run(name, func(t *testing.T) {
			r, srv := startDNS(t, "_dmarc.blue.example.com v=DMARC1; p=none", "_dmarc.example.com v=DMARC1; p=none")
			srv.SetRcode(name, servfail)
			destination := mail("a@red.example.net")
			if name == "_dmarc.green.example.com" {
				destination = mail("a@green.example.com")
			}
			accepted, override, err := ExternalDestination(t.Context(), r, "blue.example.com", destination)
			if !resolver.IsTemporary(err) || accepted || override != nil {
				t.Errorf("got %v, %v, %v, want a temporary error", accepted, override, err)
			}
		})
	}
}

func TestExternalDestinationBadDomain(t *testing.T) {
	r, _ := startDNS(t)
	if _, _, err := ExternalDestination(t.Context(), r, "a..b", mail("a@example.com")); !errors.Is(err, ruapost.ErrDomain) {
		t.Errorf("got %v, want ErrDomain", err)
	}
}
