package dmarc

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"ruapost"
	"ruapost/resolver"
)

func TestTreeWalk(t *testing.T) {
	// The walks of RFC 9989 4.10 and 5.1.8 in full, longest name first.
	longWalk := []string{
		"a.b.c.d.e.f.g.h.i.j.mail.example.com", "g.h.i.j.mail.example.com", "h.i.j.mail.example.com", "i.j.mail.example.com",
		"j.mail.example.com", "mail.example.com", "example.com", "com",
	}
	unseenWalk := []string{
		"mail.a.b.c.d.e.f.g.example.com", "c.d.e.f.g.example.com", "d.e.f.g.example.com", "e.f.g.example.com",
		"f.g.example.com", "g.example.com", "example.com", "com",
	}
	tests := []struct {
		name    string
		records []string
		start   string
		org     string
		policy  string // the name whose record decides; "" if none does
		queries []string
	}{
		{
			"RFC 9989 4.10: 8 queries for a long name", nil,
			"a.b.c.d.e.f.g.h.i.j.mail.example.com", "a.b.c.d.e.f.g.h.i.j.mail.example.com", "", longWalk,
		},
		{
			"RFC 9989 5.1.8: a record between the names asked is not seen",
			[]string{"_dmarc.b.c.d.e.f.g.example.com v=DMARC1; p=reject"},
			"mail.a.b.c.d.e.f.g.example.com", "mail.a.b.c.d.e.f.g.example.com", "", unseenWalk,
		},
		{
			"RFC 9989 4.10 step 4: 8 labels go to 7", nil,
			"a.b.c.d.e.f.g.com", "a.b.c.d.e.f.g.com", "",
			[]string{"a.b.c.d.e.f.g.com", "b.c.d.e.f.g.com", "c.d.e.f.g.com", "d.e.f.g.com", "e.f.g.com", "f.g.com", "g.com", "com"},
		},
		{
			"RFC 9989 4.10 step 4: 9 labels go to 7, too", nil,
			"z.a.b.c.d.e.f.g.com", "z.a.b.c.d.e.f.g.com", "",
			[]string{"z.a.b.c.d.e.f.g.com", "b.c.d.e.f.g.com", "c.d.e.f.g.com", "d.e.f.g.com", "e.f.g.com", "f.g.com", "g.com", "com"},
		},
		{
			"RFC 9989 4.10: down to the single label",
			[]string{"_dmarc.com v=DMARC1; p=none"},
			"com", "com", "com",
			[]string{"com"},
		},
		{
			"RFC 9989 4.10.2: the name with the fewest labels",
			[]string{"_dmarc.mail.example.com v=DMARC1; p=none", "_dmarc.example.com v=DMARC1; p=none"},
			"a.mail.example.com", "example.com", "example.com",
			[]string{"a.mail.example.com", "mail.example.com", "example.com", "com"},
		},
		{
			"RFC 9989 4.10.2: psd=n ends the walk",
			[]string{"_dmarc.mail.example.com v=DMARC1; p=none; psd=n", "_dmarc.example.com v=DMARC1; p=none"},
			"a.mail.example.com", "mail.example.com", "mail.example.com",
			[]string{"a.mail.example.com", "mail.example.com"},
		},
		{
			"RFC 9989 4.10.2: only com, with psd=y",
			[]string{"_dmarc.com v=DMARC1; p=none; psd=y"},
			"a.mail.example.com", "example.com", "com",
			[]string{"a.mail.example.com", "mail.example.com", "example.com", "com"},
		},
		{
			"RFC 9989 4.10.1: the organizational domain's record, not that of the PSD above",
			[]string{"_dmarc.example.com v=DMARC1; p=none", "_dmarc.com v=DMARC1; p=none; psd=y"},
			"a.mail.example.com", "example.com", "example.com",
			[]string{"a.mail.example.com", "mail.example.com", "example.com", "com"},
		},
		{
			"RFC 9989 4.10.1: a record between the name and its organizational domain does not count",
			[]string{"_dmarc.mail.example.com v=DMARC1; p=none", "_dmarc.com v=DMARC1; p=none; psd=y"},
			"a.mail.example.com", "example.com", "com",
			[]string{"a.mail.example.com", "mail.example.com", "example.com", "com"},
		},
		{
			"RFC 9989 4.10.1: the name's own record decides, the organizational domain is above",
			[]string{"_dmarc.mail.example.com v=DMARC1; p=none", "_dmarc.example.com v=DMARC1; p=none"},
			"mail.example.com", "example.com", "mail.example.com",
			[]string{"mail.example.com", "example.com", "com"},
		},
		{
			"RFC 9989 4.10.2: psd=y at the name itself",
			[]string{"_dmarc.co.example v=DMARC1; p=none; psd=y"},
			"co.example", "co.example", "co.example",
			[]string{"co.example"},
		},
		{
			"RFC 9989 4.10.2: a PSD right above the name",
			[]string{"_dmarc.co.example v=DMARC1; p=none; psd=y"},
			"firm.co.example", "firm.co.example", "co.example",
			[]string{"firm.co.example", "co.example"},
		},
		{
			"RFC 9989 4.10.2: one label below a PSD of 7 labels, where the walk had jumped",
			[]string{"_dmarc.c.d.e.f.g.h.example v=DMARC1; p=none; psd=y"},
			"y.z.a.b.c.d.e.f.g.h.example", "b.c.d.e.f.g.h.example", "c.d.e.f.g.h.example",
			[]string{"y.z.a.b.c.d.e.f.g.h.example", "c.d.e.f.g.h.example"},
		},
		{
			"RFC 9989 4.10 step 2: several records are none and the walk goes on",
			[]string{
				"_dmarc.mail.example.com v=DMARC1; p=none; psd=n", "_dmarc.mail.example.com v=DMARC1; p=none; psd=y",
				"_dmarc.example.com v=DMARC1; p=none",
			},
			"mail.example.com", "example.com", "example.com",
			[]string{"mail.example.com", "example.com", "com"},
		},
		{
			"RFC 9989 B.4.1: author",
			[]string{"_dmarc.example.com v=DMARC1; p=none", "_dmarc.signing.example.com v=DMARC1; p=none"},
			"example.com", "example.com", "example.com",
			[]string{"example.com", "com"},
		},
		{
			"RFC 9989 B.4.1: signer",
			[]string{"_dmarc.example.com v=DMARC1; p=none", "_dmarc.signing.example.com v=DMARC1; p=none"},
			"signing.example.com", "example.com", "signing.example.com",
			[]string{"signing.example.com", "example.com", "com"},
		},
		{
			"RFC 9989 B.4.2",
			[]string{"_dmarc.example.com v=DMARC1; p=none", "_dmarc.signing.example.com v=DMARC1; p=none"},
			"a.b.c.d.e.f.g.h.i.j.k.example.com", "example.com", "example.com",
			[]string{
				"a.b.c.d.e.f.g.h.i.j.k.example.com", "g.h.i.j.k.example.com", "h.i.j.k.example.com", "i.j.k.example.com",
				"j.k.example.com", "k.example.com", "example.com", "com",
			},
		},
		{
			"RFC 9989 B.4.3: author",
			[]string{"_dmarc.bank.example v=DMARC1; p=none; psd=y", "_dmarc.giant.bank.example v=DMARC1; p=none"},
			"giant.bank.example", "giant.bank.example", "giant.bank.example",
			[]string{"giant.bank.example", "bank.example"},
		},
		{
			"RFC 9989 B.4.3: return path",
			[]string{"_dmarc.bank.example v=DMARC1; p=none; psd=y", "_dmarc.giant.bank.example v=DMARC1; p=none"},
			"mail.giant.bank.example", "giant.bank.example", "giant.bank.example",
			[]string{"mail.giant.bank.example", "giant.bank.example", "bank.example"},
		},
		{
			"RFC 9989 B.4.3: signer",
			[]string{"_dmarc.bank.example v=DMARC1; p=none; psd=y", "_dmarc.giant.bank.example v=DMARC1; p=none"},
			"mail.mega.bank.example", "mega.bank.example", "bank.example",
			[]string{"mail.mega.bank.example", "mega.bank.example", "bank.example"},
		},
		{
			"names in any case, with a final dot",
			[]string{"_dmarc.example.com v=DMARC1; p=none"},
			"Mail.EXAMPLE.com.", "example.com", "example.com",
			[]string{"mail.example.com", "example.com", "com"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, srv := startDNS(t, tt.records...)
			w, err := Discover(t.Context(), r, tt.start)
			if err != nil {
				t.Fatal(err)
			}
			if got := asked(srv); !slices.Equal(got, tt.queries) {
				t.Errorf("asked %q, want %q", got, tt.queries)
			}
			if got := w.OrganizationalDomain(); got != tt.org {
				t.Errorf("organizational domain %s, want %s", got, tt.org)
			}
			p, err := w.Policy(t.Context(), r)
			switch {
			case tt.policy == "" && !errors.Is(err, ErrNoRecord):
				t.Errorf("policy %+v, %v, want ErrNoRecord", p, err)
			case tt.policy != "" && (err != nil || p.Published.Domain != tt.policy):
				t.Errorf("policy %+v, %v, want that of %s", p, err, tt.policy)
			}
			if more := asked(srv); len(more) != 0 {
				t.Errorf("asked again: %q", more)
			}
		})
	}
}

func TestTreeWalkTemporaryError(t *testing.T) {
	records := []string{
		"_dmarc.mail.example.com v=DMARC1; p=none",
		"_dmarc.end.example.com v=DMARC1; p=none; psd=n",
		"_dmarc.psd.example.com v=DMARC1; p=none; psd=y",
	}
	r, srv := startDNS(t, records...)
	srv.SetRcode("_dmarc.example.com", servfail)

	for _, start := range []string{"example.com", "other.example.com", "mail.example.com", "a.mail.example.com"} {
		if w, err := Discover(t.Context(), r, start); !resolver.IsTemporary(err) {
			t.Errorf("%s: got %+v, %v, want a temporary error", start, w, err)
		}
	}
	// An answer before it had ended these.
	for _, start := range []string{"end.example.com", "a.end.example.com", "a.psd.example.com"} {
		if _, err := Discover(t.Context(), r, start); err != nil {
			t.Errorf("%s: %v", start, err)
		}
	}
}

func TestDiscoverBadName(t *testing.T) {
	r, srv := startDNS(t)
	for _, start := range []string{"", ".", "a..b", "192.0.2.1", "a b.example", strings.Repeat("a", 64) + ".example"} {
		if w, err := Discover(t.Context(), r, start); !errors.Is(err, ruapost.ErrDomain) {
			t.Errorf("%q: got %+v, %v, want ErrDomain", start, w, err)
		}
	}
	// _dmarc before it is too long for a name: there cannot be a record.
	long := strings.Repeat("a123456789.", 22) + "example.org"
	if _, err := Discover(t.Context(), r, long); err != nil {
		t.Error(err)
	}
	if got := asked(srv); len(got) != 7 || got[0] == long {
		t.Errorf("asked %q", got)
	}
}
