package dmarc

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

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
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, srv := startDNS(t, tt.records...)
			w := newWalk(r, tt.start)
			switch found, err := w.policyRecord(t.Context()); {
			case err != nil:
				t.Fatal(err)
			case tt.policy == "" && found != nil:
				t.Errorf("policy at %s, want none", found.domain)
			case tt.policy != "" && (found == nil || found.domain != tt.policy):
				t.Errorf("policy %+v, want that of %s", found, tt.policy)
			}
			if got, err := w.organizationalDomain(t.Context()); got != tt.org || err != nil {
				t.Errorf("organizational domain %s, %v, want %s", got, err, tt.org)
			}
			if got := asked(srv); !slices.Equal(got, tt.queries) {
				t.Errorf("asked %q, want %q", got, tt.queries)
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
		if org, err := newWalk(r, start).organizationalDomain(t.Context()); !resolver.IsTemporary(err) {
			t.Errorf("%s: got %s, %v, want a temporary error", start, org, err)
		}
	}
	// An answer before it had ended these.
	for _, start := range []string{"end.example.com", "a.end.example.com", "a.psd.example.com"} {
		if _, err := newWalk(r, start).organizationalDomain(t.Context()); err != nil {
			t.Errorf("%s: %v", start, err)
		}
	}
}

// With _dmarc before it the name is too long for the DNS: there cannot be a record.
func TestTreeWalkLongName(t *testing.T) {
	r, srv := startDNS(t)
	long := strings.Repeat("a123456789.", 22) + "example.org"
	if _, err := newWalk(r, long).organizationalDomain(t.Context()); err != nil {
		t.Error(err)
	}
	if got := asked(srv); len(got) != 7 || got[0] == long {
		t.Errorf("asked %q", got)
	}
}

// A walk beside another one comes to the same end as one alone, whatever is
// published on their ways, and asks nothing that the other has asked.
func TestTreeWalkBeside(t *testing.T) {
	labels := []string{"a", "b", "c", "d", "e", "f", "g", "h", "example"}
	rapid.Check(t, func(t *rapid.T) {
		zone := &fakeZone{txts: map[string]string{}}
		name := ""
		for i := len(labels) - 1; i >= 0; i-- {
			name = strings.TrimSuffix(labels[i]+"."+name, ".")
			for _, n := range []string{name, "x." + name} {
				if psd := rapid.SampledFrom([]string{"", "", "", "u", "y", "n"}).Draw(t, n); psd != "" {
					zone.txts["_dmarc."+n] = "v=DMARC1; p=none; psd=" + psd
				}
			}
		}
		draw := func(what string) string {
			from := rapid.IntRange(0, len(labels)-1).Draw(t, what)
			return rapid.SampledFrom([]string{"", "x.", "y.x."}).Draw(t, what) + strings.Join(labels[from:], ".")
		}
		one, two := draw("one"), draw("two")
		orgOne, _ := newWalk(zone, one).organizationalDomain(t.Context())
		orgTwo, _ := newWalk(zone, two).organizationalDomain(t.Context())
		zone.asked = nil
		same, err := newWalk(zone, one).sameOrganization(t.Context(), two)
		if err != nil || same != (one == two || orgOne == orgTwo) {
			t.Errorf("%s of %s and %s of %s: same organization %v, %v", one, orgOne, two, orgTwo, same, err)
		}
		slices.Sort(zone.asked)
		if once := slices.Compact(slices.Clone(zone.asked)); len(once) != len(zone.asked) {
			t.Errorf("asked %q", zone.asked)
		}
	})
}

// fakeZone answers from memory, for thousands of cases or where time stands still.
type fakeZone struct {
	txts   map[string]string
	silent string // a name without an answer
	asked  []string
}

func (z *fakeZone) LookupTXT(ctx context.Context, name string) ([]string, bool, error) {
	z.asked = append(z.asked, name)
	if name == z.silent {
		<-ctx.Done()
		return nil, false, &net.DNSError{IsTimeout: true}
	}
	if txt := z.txts[name]; txt != "" {
		return []string{txt}, false, nil
	}
	return nil, false, &net.DNSError{IsNotFound: true}
}

func (z *fakeZone) Exists(context.Context, string) (bool, error) { return true, nil }
