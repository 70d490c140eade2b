package dmarc

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ruapost"
)

func policyOf(t *testing.T, e *Evaluator, author string) (*Policy, error) {
	t.Helper()
	d, name, err := e.discover(author)
	if err != nil {
		t.Fatal(err)
	}
	return e.policy(t.Context(), name, d)
}

func TestPolicy(t *testing.T) {
	const exists = "there.example.com"
	tests := []struct {
		name      string
		record    string // at example.com
		author    string
		requested ruapost.Disposition // "" if DMARC does not apply
		effective ruapost.Disposition
		asksA     bool // whether the author domain's existence was asked for
	}{
		{"p for the domain itself", "p=reject; sp=none; np=none", "example.com", "reject", "reject", false},
		{"sp for a name that exists", "p=reject; sp=quarantine; np=none", exists, "quarantine", "quarantine", true},
		{"p where sp is missing", "p=reject; np=none", exists, "reject", "reject", true},
		{"np for a name that does not exist", "p=reject; sp=quarantine; np=none", "ghost.example.com", "none", "none", true},
		{"sp where np is missing", "p=reject; sp=quarantine", "ghost.example.com", "quarantine", "quarantine", false},
		{"p where both are missing", "p=reject", "ghost.example.com", "reject", "reject", false},
		{"np that makes no difference", "p=reject; np=reject", "ghost.example.com", "reject", "reject", false},
		{"RFC 9989 3.2.13: without records but with names below, a name exists", "p=none; np=reject", "empty.example.com", "none", "none", true},
		{"np unknown: the name may exist", "p=none; np=reject", "broken.example.com", "none", "none", true},
		{"t lowers reject", "p=reject; t=y", "example.com", "reject", "quarantine", false},
		{"t lowers quarantine", "p=quarantine; t=y", "example.com", "quarantine", "none", false},
		{"t leaves none", "p=none; t=y", "example.com", "none", "none", false},
		{"t lowers sp", "p=none; sp=reject; t=y", exists, "reject", "quarantine", false},
		{"t lowers np", "p=none; np=quarantine; t=y", "ghost.example.com", "quarantine", "none", true},

		{"RFC 9989 4.10.1: no p, with rua", "rua=mailto:a@example.com", "example.com", "none", "none", false},
		{"RFC 9989 4.10.1: bad p, with rua", "p=bogus; rua=mailto:a@example.com", "example.com", "none", "none", false},
		{"RFC 9989 4.10.1: bad sp, with rua, also for the domain itself", "p=reject; sp=bogus; rua=mailto:a@example.com", "example.com", "none", "none", false},
		{"RFC 9989 4.10.1: bad np, with rua, also for subdomains that exist", "p=reject; sp=reject; np=bogus; rua=mailto:a@example.com", exists, "none", "none", false},
		{"RFC 9989 4.10.1: rua of any scheme", "p=bogus; rua=https://example.com/", "example.com", "none", "none", false},
		{"RFC 9989 4.10.1: one good URI", "p=bogus; rua=x,mailto:a@example.com", "example.com", "none", "none", false},
		{"RFC 9989 4.10.1: no good URI", "p=bogus; rua=x", "example.com", "", "", false},
		{"RFC 9989 4.10.1: no p, no rua", "adkim=s", "example.com", "", "", false},
		{"RFC 9989 4.10.1: bad sp, no rua", "p=reject; sp=bogus", "example.com", "", "", false},
		{"RFC 6376 3.2: p twice, with rua", "p=reject; p=reject; rua=mailto:a@example.com", "example.com", "none", "none", false},
		{"RFC 6376 3.2: p twice, no rua", "p=reject; p=none", "example.com", "", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, srv := startDNS(t, "_dmarc.example.com v=DMARC1; "+tt.record, "a.empty.example.com x", exists+" x")
			srv.SetRcode("broken.example.com", servfail)
			p, err := policyOf(t, &Evaluator{Resolver: r}, tt.author)
			if tt.requested == "" {
				if !errors.Is(err, ErrBrokenRecord) {
					t.Fatalf("got %+v, %v, want ErrBrokenRecord", p, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p.Requested != tt.requested || p.Effective != tt.effective {
				t.Errorf("requested %s, effective %s, want %s, %s", p.Requested, p.Effective, tt.requested, tt.effective)
			}
			if got := slices.Contains(asked(srv), "A "+tt.author); got != tt.asksA {
				t.Errorf("asked whether the name exists: %v, want %v", got, tt.asksA)
			}
		})
	}
}

// RFC 9989 4.10.1: which record, and which of its values. Of several each name is
// "name record".
func TestPolicyOfWhom(t *testing.T) {
	const psd = "bank.example p=reject; sp=quarantine; np=none; psd=y"
	tests := []struct {
		name      string
		records   []string
		author    string
		domain    string // "" if DMARC does not apply
		requested ruapost.Disposition
		effective ruapost.Disposition
		asked     []string
	}{
		{"PSD itself: p", []string{psd}, "bank.example", "bank.example", "reject", "reject", []string{"bank.example"}},
		{
			"PSD, organization that exists: sp",
			[]string{psd},
			"there.bank.example", "bank.example", "quarantine", "quarantine",
			[]string{"there.bank.example", "bank.example", "A there.bank.example"},
		},
		{
			"PSD, organization that does not: np",
			[]string{psd},
			"ghost.bank.example", "bank.example", "none", "none",
			[]string{"ghost.bank.example", "bank.example", "A ghost.bank.example"},
		},
		{
			"PSD, below an organization that exists: the author's own name counts",
			[]string{psd},
			"ghost.there.bank.example", "bank.example", "none", "none",
			[]string{"ghost.there.bank.example", "there.bank.example", "bank.example", "A ghost.there.bank.example"},
		},
		{
			"PSD in testing",
			[]string{"bank.example p=none; sp=reject; psd=y; t=y"},
			"there.bank.example", "bank.example", "reject", "quarantine",
			[]string{"there.bank.example", "bank.example"},
		},
		{
			"PSD, organization with a record: nothing of the PSD's",
			[]string{psd, "giant.bank.example p=none"},
			"ghost.giant.bank.example", "giant.bank.example", "none", "none",
			[]string{"ghost.giant.bank.example", "giant.bank.example", "bank.example"},
		},
		{
			"PSD, organization with a broken record: none, and not the PSD's",
			[]string{psd, "giant.bank.example p=bogus"},
			"a.giant.bank.example", "", "", "",
			[]string{"a.giant.bank.example", "giant.bank.example", "bank.example"},
		},
		{
			"broken record at the author: none, and not that above",
			[]string{"example.com p=reject", "a.example.com p=bogus"},
			"a.example.com", "", "", "",
			[]string{"a.example.com"},
		},
		{
			"sp below the organization does not count",
			[]string{"example.com p=reject; sp=quarantine", "mail.example.com p=none; sp=none; np=none"},
			"there.mail.example.com", "example.com", "quarantine", "quarantine",
			[]string{"there.mail.example.com", "mail.example.com", "example.com", "com"},
		},
		{
			"sp at the author itself does not count",
			[]string{"example.com p=reject", "mail.example.com p=quarantine; sp=none; np=none"},
			"mail.example.com", "mail.example.com", "quarantine", "quarantine",
			[]string{"mail.example.com"},
		},
		{
			"4.10 step 4: an author of 8 labels, its name does not exist",
			[]string{"example.com p=reject; np=none"},
			"a.b.c.d.e.f.example.com", "example.com", "none", "none",
			[]string{
				"a.b.c.d.e.f.example.com", "b.c.d.e.f.example.com", "c.d.e.f.example.com", "d.e.f.example.com", "e.f.example.com",
				"f.example.com", "example.com", "com", "A a.b.c.d.e.f.example.com",
			},
		},
		{
			"3.2.13: an alias that leads nowhere exists",
			[]string{"example.com p=none; np=reject"},
			"alias.example.com", "example.com", "none", "none",
			[]string{"alias.example.com", "example.com", "com", "A alias.example.com"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, srv := startDNS(t, "there.bank.example x", "there.mail.example.com x")
			srv.Add("alias.example.com. 300 IN CNAME nowhere.example.net.")
			for _, record := range tt.records {
				domain, text, _ := strings.Cut(record, " ")
				srv.Add(`_dmarc.` + domain + `. 300 IN TXT "v=DMARC1; ` + text + `"`)
			}
			p, err := policyOf(t, &Evaluator{Resolver: r}, tt.author)
			if tt.domain == "" {
				if !errors.Is(err, ErrBrokenRecord) {
					t.Errorf("got %+v, %v, want ErrBrokenRecord", p, err)
				}
			} else if err != nil || p.Published.Domain != tt.domain || p.Requested != tt.requested || p.Effective != tt.effective {
				t.Errorf("got %+v, %v, want %s of %s, %s in effect", p, err, tt.requested, tt.domain, tt.effective)
			}
			if got := asked(srv); !slices.Equal(got, tt.asked) {
				t.Errorf("asked %q, want %q", got, tt.asked)
			}
		})
	}
}

func TestPolicyPublished(t *testing.T) {
	tests := []struct {
		name, record string
		want         ruapost.DMARCPolicy
	}{
		{"defaults", "p=reject", ruapost.DMARCPolicy{
			Domain: "example.com", P: "reject", ADKIM: "r", ASPF: "r", FO: "0", Percent: 100, Discovery: "treewalk",
		}},
		{"as published", "p=reject; sp=quarantine; np=none; adkim=s; aspf=s; fo=1; t=y; pct=7", ruapost.DMARCPolicy{
			Domain: "example.com", P: "reject", SP: "quarantine", NP: "none", ADKIM: "s", ASPF: "s", FO: "1", Testing: true,
			Percent: 7, Discovery: "treewalk",
		}},
		{"flaws", "p=reject; adkim=x; t=z", ruapost.DMARCPolicy{
			Domain: "example.com", P: "reject", ADKIM: "r", ASPF: "r", FO: "0", Percent: 100, Discovery: "treewalk",
			Error: "adkim=x: not one of r, s; t=z: not one of n, y",
		}},
		{"RFC 9989 4.10.1: broken, but reported", "p=reject; sp=x; np=none; adkim=s; rua=mailto:a@example.com", ruapost.DMARCPolicy{
			Domain: "example.com", P: "none", ADKIM: "s", ASPF: "r", FO: "0", Percent: 100, Discovery: "treewalk",
			Error: "no valid policy, taken as p=none; sp=x: not one of none, quarantine, reject",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, _ := startDNS(t, "_dmarc.example.com v=DMARC1; "+tt.record)
			// Whoever the author is, the policy is published the same.
			for _, author := range []string{"example.com", "a.example.com", "b.c.example.com"} {
				p, err := policyOf(t, &Evaluator{Resolver: r}, author)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, p.Published); diff != "" {
					t.Errorf("%s (-want +got):\n%s", author, diff)
				}
			}
		})
	}

	t.Run("the error text is bounded", func(t *testing.T) {
		rec, err := ParseRecord("v=DMARC1; p=none" + strings.Repeat("; "+strings.Repeat("x", 60), 60))
		if err != nil {
			t.Fatal(err)
		}
		w := &walk{start: "example.com", over: true, records: []foundRecord{{"example.com", rec}}}
		p, err := new(Evaluator).policy(t.Context(), "example.com", w)
		if err != nil || len(p.Published.Error) > maxError || len(p.Published.Error) < maxError/2 {
			t.Errorf("%d octets, %v", len(p.Published.Error), err)
		}
	})
}

func TestSample(t *testing.T) {
	tests := []struct {
		name      string
		discovery string
		effective ruapost.Disposition
		percent   int
		draw      int
		want      ruapost.Disposition
		out       bool
	}{
		{"RFC 7489 6.6.4: reject outside of the sample", "psl", "reject", 30, 30, "quarantine", true},
		{"RFC 7489 6.6.4: quarantine outside of the sample", "psl", "quarantine", 30, 99, "none", true},
		{"inside", "psl", "reject", 30, 29, "reject", false},
		{"none has nothing to be exempted from", "psl", "none", 0, 50, "none", false},
		{"pct=0: nobody is inside", "psl", "reject", 0, 0, "quarantine", true},
		{"pct=1", "psl", "reject", 1, 0, "reject", false},
		{"pct=99", "psl", "reject", 99, 99, "quarantine", true},
		{"pct=100, the default: everybody is", "psl", "reject", 100, 99, "reject", false},
		{"RFC 9989 9.3: no pct", "treewalk", "reject", 0, 99, "reject", false},
	}
	for _, tt := range tests {
		p := &Policy{Effective: tt.effective, Published: ruapost.DMARCPolicy{Discovery: tt.discovery, Percent: tt.percent}}
		if got, out := p.Sample(tt.draw); got != tt.want || out != tt.out {
			t.Errorf("%s: got %s, %v, want %s, %v", tt.name, got, out, tt.want, tt.out)
		}
	}
}
