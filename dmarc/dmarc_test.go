package dmarc

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"ruapost/internal/dnstest"
	"ruapost/resolver"
)

const servfail = 2 // RFC 1035 4.1.1

// startDNS serves records, given as "name text" lines of TXT records, and
// returns a resolver that asks there.
func startDNS(t testing.TB, records ...string) (*resolver.Resolver, *dnstest.Server) {
	t.Helper()
	srv, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	for _, record := range records {
		name, txt, _ := strings.Cut(record, " ")
		srv.Add(fmt.Sprintf("%s. 300 IN TXT %q", name, txt))
	}
	r, err := resolver.New(resolver.Config{Servers: []string{srv.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r, srv
}

// asked returns the names whose TXT records were asked for, without _dmarc and
// in order; "A" stands before names asked for in other ways.
func asked(srv *dnstest.Server) []string {
	var names []string
	for _, q := range srv.Queries() {
		name, qtype, _ := strings.Cut(q, ". ")
		if rest, ok := strings.CutPrefix(name, "_dmarc."); ok && qtype == "TXT" {
			names = append(names, rest)
		} else {
			names = append(names, qtype+" "+name)
		}
	}
	return names
}

func TestLookupRecord(t *testing.T) {
	r, srv := startDNS(t,
		"_dmarc.one.example v=DMARC1; p=reject",
		"_dmarc.mixed.example v=spf1 -all",
		"_dmarc.mixed.example v=DMARC1; p=quarantine",
		"_dmarc.mixed.example v=DMARC2; p=none",
		"_dmarc.two.example v=DMARC1; p=none",
		"_dmarc.two.example v=DMARC1; p=reject",
		"_dmarc.other.example v=spf1 -all",
	)
	srv.Add(`_dmarc.split.example. 300 IN TXT "v=DMARC1; p=rej" "ect; rua=mailto:a@split.exa" "mple"`)
	srv.SetRcode("_dmarc.broken.example", servfail)

	tests := []struct {
		domain string
		policy string // "" if there is no record
		why    string
	}{
		{"one.example", "reject", "the plain case"},
		{"split.example", "reject", "RFC 9989 4.5: strings are joined with nothing between"},
		{"mixed.example", "quarantine", "RFC 9989 4.10 step 2: other records do not count"},
		{"two.example", "", "RFC 9989 4.10 step 2: several records are none"},
		{"other.example", "", "no DMARC record among the answers"},
		{"sub.one.example", "", "only the name itself is asked"},
	}
	for _, tt := range tests {
		rec, err := LookupRecord(t.Context(), r, tt.domain)
		switch {
		case tt.policy == "" && !errors.Is(err, ErrNoRecord):
			t.Errorf("%s: got %v, %v, want ErrNoRecord: %s", tt.domain, rec, err, tt.why)
		case tt.policy != "" && (err != nil || string(rec.Policy) != tt.policy):
			t.Errorf("%s: got %v, %v, want p=%s: %s", tt.domain, rec, err, tt.policy, tt.why)
		}
	}
	if _, err := LookupRecord(t.Context(), r, "broken.example"); !resolver.IsTemporary(err) || errors.Is(err, ErrNoRecord) {
		t.Errorf("SERVFAIL: got %v, want a temporary error", err)
	}
}
