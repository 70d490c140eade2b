package dmarc

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ruapost"
	"ruapost/resolver"
)

func dkimResult(domain string, result ruapost.AuthResult) ruapost.DKIMResult {
	return ruapost.DKIMResult{Domain: domain, Selector: "s", Result: result}
}

func TestEvaluate(t *testing.T) {
	type (
		dkim = []ruapost.DKIMResult
		spf  = ruapost.SPFResult
	)
	var (
		noSPF   = spf{Result: "none"}
		relaxed = []string{"_dmarc.example.com v=DMARC1; p=reject"}
		strict  = []string{"_dmarc.example.com v=DMARC1; p=reject; adkim=s; aspf=s"}
		bank    = []string{"_dmarc.bank.example v=DMARC1; p=none; psd=y", "_dmarc.giant.bank.example v=DMARC1; p=none"}
		signing = []string{"_dmarc.example.com v=DMARC1; p=none", "_dmarc.signing.example.com v=DMARC1; p=none"}
	)
	tests := []struct {
		name    string
		records []string
		broken  []string // names that get SERVFAIL
		author  string
		dkim    dkim
		spf     spf

		want        Result
		alignedDKIM bool
		alignedSPF  bool
		org         string
		asked       []string // nil: whatever
	}{
		{
			name: "no record", author: "mail.example.com", dkim: dkim{dkimResult("mail.example.com", "pass")}, spf: noSPF,
			want: ResultNone, asked: []string{"mail.example.com", "example.com", "com"},
		},
		{
			name: "RFC 9989 4.10 step 2: several records", records: []string{"_dmarc.example.com v=DMARC1; p=none", "_dmarc.example.com v=DMARC1; p=reject"},
			author: "example.com", spf: noSPF, want: ResultNone,
		},
		{
			name: "RFC 9989 4.10.1: broken record", records: []string{"_dmarc.example.com v=DMARC1; p=bogus"},
			author: "example.com", dkim: dkim{dkimResult("example.com", "pass")}, spf: noSPF, want: ResultPermerror,
		},
		{name: "author domain that is none", author: "a..b", spf: noSPF, want: ResultPermerror, asked: []string{}},

		{
			name: "RFC 9989 4.10.2: equal names need no walk of their own", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "pass")}, spf: spf{Domain: "example.com", Result: "pass"},
			want: ResultPass, alignedDKIM: true, alignedSPF: true, org: "example.com", asked: []string{"example.com", "com"},
		},
		{
			name: "RFC 9989 4.4: case does not matter", records: strict, author: "EXAMPLE.com",
			dkim: dkim{dkimResult("Example.COM.", "pass")}, spf: spf{Domain: "eXample.com", Result: "pass"},
			want: ResultPass, alignedDKIM: true, alignedSPF: true, org: "example.com",
		},
		{
			name: "RFC 9989 4.4: U-labels", records: []string{"_dmarc.xn--bcher-kva.example v=DMARC1; p=reject; adkim=s"},
			author: "bücher.example", dkim: dkim{dkimResult("xn--bcher-kva.example", "pass")}, spf: noSPF,
			want: ResultPass, alignedDKIM: true, org: "xn--bcher-kva.example",
		},
		{
			name: "nothing passed", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "fail")}, spf: spf{Domain: "example.com", Result: "softfail"},
			want: ResultFail, org: "example.com", asked: []string{"example.com", "com"},
		},
		{
			name: "strict mode needs no walk from the signer", records: strict, author: "example.com",
			dkim: dkim{dkimResult("mail.example.com", "pass")}, spf: spf{Domain: "bounce.example.com", Result: "pass"},
			want: ResultFail, org: "example.com", asked: []string{"example.com", "com"},
		},
		{
			name: "adkim and aspf are apart", records: []string{"_dmarc.example.com v=DMARC1; p=reject; adkim=s; aspf=r"}, author: "example.com",
			dkim: dkim{dkimResult("mail.example.com", "pass")}, spf: spf{Domain: "bounce.example.com", Result: "pass"},
			want: ResultPass, alignedSPF: true, org: "example.com",
		},
		{
			name: "policy, organizational domain and signer are above the author: one walk", records: relaxed, author: "news.example.com",
			dkim: dkim{dkimResult("example.com", "pass")}, spf: noSPF,
			want: ResultPass, alignedDKIM: true, org: "example.com", asked: []string{"news.example.com", "example.com", "com"},
		},
		{
			name: "a stranger's signature needs no walk of its own", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("esp.example.net", "pass"), dkimResult("notexample.com", "pass")}, spf: spf{Domain: "bounce.example.net", Result: "pass"},
			want: ResultFail, org: "example.com", asked: []string{"example.com", "com"},
		},
		{
			name: "one aligned signature is enough, wherever it stands", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.net", "pass"), dkimResult("example.com", "fail"), dkimResult("a.example.com", "pass")}, spf: noSPF,
			want: ResultPass, alignedDKIM: true, org: "example.com",
		},
		{
			name: "a signer that is its own organization", author: "example.com",
			records: append([]string{"_dmarc.own.example.com v=DMARC1; p=none; psd=n"}, relaxed...),
			dkim:    dkim{dkimResult("mail.own.example.com", "pass")}, spf: noSPF,
			want: ResultFail, org: "example.com", asked: []string{"example.com", "com", "mail.own.example.com", "own.example.com"},
		},
		{
			name: "a signer far below, where the walks do not ask the same names", records: relaxed, author: "news.example.com",
			dkim: dkim{dkimResult("a.b.c.d.e.f.g.h.example.com", "pass")}, spf: noSPF,
			want: ResultPass, alignedDKIM: true, org: "example.com",
			asked: []string{
				"news.example.com", "example.com", "com",
				"a.b.c.d.e.f.g.h.example.com", "d.e.f.g.h.example.com", "e.f.g.h.example.com", "f.g.h.example.com", "g.h.example.com", "h.example.com",
			},
		},
		{
			name: "RFC 9989 4.10.2: of a PSD's subdomains each is an organization", records: []string{"_dmarc.example v=DMARC1; p=reject; psd=y"},
			author: "a.one.example", dkim: dkim{dkimResult("two.example", "pass")}, spf: spf{Domain: "b.one.example", Result: "pass"},
			want: ResultPass, alignedSPF: true, org: "one.example", asked: []string{"a.one.example", "one.example", "example", "b.one.example"},
		},
		{
			name: "an organization of 8 labels, which a walk from below does not ask about", author: "b.c.d.e.f.g.h.example",
			records: []string{"_dmarc.b.c.d.e.f.g.h.example v=DMARC1; p=none; psd=n", "_dmarc.c.d.e.f.g.h.example v=DMARC1; p=none; psd=y"},
			dkim:    dkim{dkimResult("a.b.c.d.e.f.g.h.example", "pass")}, spf: noSPF,
			want: ResultPass, alignedDKIM: true, org: "b.c.d.e.f.g.h.example",
			asked: []string{"b.c.d.e.f.g.h.example", "a.b.c.d.e.f.g.h.example", "c.d.e.f.g.h.example"},
		},
		{
			name: "the public suffix domain itself signs", records: bank, author: "giant.bank.example",
			dkim: dkim{dkimResult("bank.example", "pass")}, spf: noSPF, want: ResultFail, org: "giant.bank.example",
		},
		{
			name: "RFC 9989 B.1.1 example 1", records: strict, author: "example.com", spf: spf{Domain: "example.com", Result: "pass"},
			want: ResultPass, alignedSPF: true, org: "example.com", asked: []string{"example.com", "com"},
		},
		{
			name: "RFC 9989 B.1.1 example 2", records: relaxed, author: "example.com", spf: spf{Domain: "child.example.com", Result: "pass"},
			want: ResultPass, alignedSPF: true, org: "example.com", asked: []string{"example.com", "com", "child.example.com"},
		},
		{
			name: "RFC 9989 B.1.1 example 3", records: relaxed, author: "child.example.com", spf: spf{Domain: "example.net", Result: "pass"},
			want: ResultFail, org: "example.com", asked: []string{"child.example.com", "example.com", "com"},
		},
		{
			name: "RFC 9989 B.1.2 example 1", records: strict, author: "example.com", dkim: dkim{dkimResult("example.com", "pass")}, spf: noSPF,
			want: ResultPass, alignedDKIM: true, org: "example.com", asked: []string{"example.com", "com"},
		},
		{
			name: "RFC 9989 B.1.2 example 2", records: relaxed, author: "child.example.com", dkim: dkim{dkimResult("example.com", "pass")}, spf: noSPF,
			want: ResultPass, alignedDKIM: true, org: "example.com", asked: []string{"child.example.com", "example.com", "com"},
		},
		{
			name: "RFC 9989 B.1.2 example 3", records: relaxed, author: "child.example.com", dkim: dkim{dkimResult("sample.net", "pass")}, spf: noSPF,
			want: ResultFail, org: "example.com", asked: []string{"child.example.com", "example.com", "com"},
		},
		{
			name: "RFC 9989 5.3.1: an author of a single label", author: "localhost", spf: spf{Domain: "localhost", Result: "pass"},
			want: ResultNone, asked: []string{"localhost"},
		},
		{
			name: "RFC 9989 4.10: the top level as author", records: []string{"_dmarc.example v=DMARC1; p=reject; sp=none; psd=y"}, author: "example",
			dkim: dkim{dkimResult("one.example", "pass")}, spf: spf{Domain: "a.one.example", Result: "pass"},
			want: ResultFail, org: "example", asked: []string{"example", "one.example", "a.one.example"},
		},
		{
			name: "RFC 9989 4.10.2: a public suffix domain as author", records: bank, author: "bank.example",
			dkim: dkim{dkimResult("giant.bank.example", "pass"), dkimResult("bank.example", "pass")}, spf: noSPF,
			want: ResultPass, alignedDKIM: true, org: "bank.example", asked: []string{"bank.example", "giant.bank.example"},
		},
		{
			name: "RFC 9989 4.10: a public suffix without a record as author", author: "co.example",
			dkim: dkim{dkimResult("co.example", "pass")}, spf: noSPF, want: ResultNone, asked: []string{"co.example", "example"},
		},
		{
			name: "RFC 9989 4.10.2: psd=n makes the author a stranger to what is above", author: "own.example.com",
			records: append([]string{"_dmarc.own.example.com v=DMARC1; p=reject; psd=n"}, relaxed...),
			dkim:    dkim{dkimResult("example.com", "pass")}, spf: spf{Domain: "other.example.com", Result: "pass"},
			want: ResultFail, org: "own.example.com", asked: []string{"own.example.com"},
		},
		{
			name: "RFC 9989 4.10 step 2: several records at the author, one above", author: "a.example.com",
			records: append([]string{"_dmarc.a.example.com v=DMARC1; p=none", "_dmarc.a.example.com v=DMARC1; p=none"}, relaxed...),
			dkim:    dkim{dkimResult("b.example.com", "pass")}, spf: noSPF,
			want: ResultPass, alignedDKIM: true, org: "example.com", asked: []string{"a.example.com", "example.com", "com", "b.example.com"},
		},
		{
			name: "RFC 9989 4.3: only a pass makes an identifier", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "none"), dkimResult("example.com", "policy"), dkimResult("example.com", "neutral")},
			spf:  spf{Domain: "example.com", Result: "neutral"}, want: ResultFail, org: "example.com",
		},
		{
			name: "RFC 9989 B.4.1", records: signing, author: "example.com",
			dkim: dkim{dkimResult("signing.example.com", "pass")}, spf: spf{Domain: "example.com", Result: "pass"},
			want: ResultPass, alignedDKIM: true, alignedSPF: true, org: "example.com",
			asked: []string{"example.com", "com", "signing.example.com"},
		},
		{
			name: "RFC 9989 B.4.2", records: signing, author: "a.b.c.d.e.f.g.h.i.j.k.example.com",
			dkim: dkim{dkimResult("signing.example.com", "pass")}, spf: spf{Domain: "example.com", Result: "pass"},
			want: ResultPass, alignedDKIM: true, alignedSPF: true, org: "example.com",
			asked: []string{
				"a.b.c.d.e.f.g.h.i.j.k.example.com", "g.h.i.j.k.example.com", "h.i.j.k.example.com", "i.j.k.example.com",
				"j.k.example.com", "k.example.com", "example.com", "com", "signing.example.com",
			},
		},
		{
			name: "RFC 9989 B.4.3", records: bank, author: "giant.bank.example",
			dkim: dkim{dkimResult("mail.mega.bank.example", "pass")}, spf: spf{Domain: "mail.giant.bank.example", Result: "pass"},
			want: ResultPass, alignedSPF: true, org: "giant.bank.example",
			asked: []string{"giant.bank.example", "bank.example", "mail.giant.bank.example"},
		},
		{
			name: "RFC 7208 2.4: the HELO name of a null reverse-path counts", records: relaxed, author: "example.com",
			spf:  spf{Domain: "mx.example.com", Helo: true, Result: "pass"},
			want: ResultPass, alignedSPF: true, org: "example.com",
		},
		{
			name: "SPF without a domain", records: strict, author: "example.com", spf: spf{Result: "pass"}, want: ResultFail, org: "example.com",
		},

		// A temporary error is never a fail.
		{
			name: "DNS: the author domain's record", broken: []string{"_dmarc.example.com"}, author: "example.com",
			dkim: dkim{dkimResult("example.com", "pass")}, spf: noSPF, want: ResultTemperror, asked: []string{"example.com"},
		},
		{
			name: "DNS: the walk for the policy", broken: []string{"_dmarc.com"}, records: []string{"_dmarc.example.com v=DMARC1; p=none"},
			author: "a.example.com", dkim: dkim{dkimResult("a.example.com", "pass")}, spf: noSPF, want: ResultTemperror,
		},
		{
			name: "DNS: above a record at the author domain, not needed", broken: []string{"_dmarc.com"}, records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "pass")}, spf: noSPF, want: ResultPass, alignedDKIM: true,
		},
		{
			name: "DNS: above a record at the author domain, not needed for a fail either", broken: []string{"_dmarc.com"}, records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "fail")}, spf: noSPF, want: ResultFail,
		},
		{
			name: "DNS: above a record at the author domain, needed", broken: []string{"_dmarc.com"}, records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("a.example.com", "pass")}, spf: noSPF, want: ResultTemperror,
		},
		{
			name: "DNS: needed for DKIM, but SPF passes", broken: []string{"_dmarc.com"}, records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("a.example.com", "pass")}, spf: spf{Domain: "example.com", Result: "pass"}, want: ResultPass, alignedSPF: true,
		},
		{
			name: "DNS: the signer's walk", broken: []string{"_dmarc.a.example.com"}, records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("a.example.com", "pass")}, spf: noSPF, want: ResultTemperror, org: "example.com",
		},
		{
			name: "DNS: the signer's walk, and strangers pass", broken: []string{"_dmarc.a.example.com"}, records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("a.example.com", "pass"), dkimResult("example.net", "pass")}, spf: spf{Domain: "example.net", Result: "pass"},
			want: ResultTemperror, org: "example.com",
		},
		{
			name: "DNS: a stranger's name server does not matter", broken: []string{"_dmarc.example.net"}, records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.net", "pass")}, spf: spf{Domain: "example.net", Result: "pass"}, want: ResultFail, org: "example.com",
		},
		{
			name: "DKIM temperror", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "temperror")}, spf: spf{Domain: "example.com", Result: "fail"}, want: ResultTemperror, org: "example.com",
		},
		{
			name: "SPF temperror", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "fail")}, spf: spf{Domain: "example.com", Result: "temperror"}, want: ResultTemperror, org: "example.com",
		},
		{
			name: "SPF temperror, but DKIM passes", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "pass")}, spf: spf{Domain: "example.com", Result: "temperror"}, want: ResultPass, alignedDKIM: true, org: "example.com",
		},
		{
			name: "RFC 9989 5.3.6: temperror of strangers is not needed", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.net", "temperror")}, spf: spf{Domain: "example.org", Result: "temperror"}, want: ResultFail, org: "example.com",
		},
		{
			name: "temperror of a subdomain in strict mode is not needed", records: strict, author: "example.com",
			dkim: dkim{dkimResult("a.example.com", "temperror")}, spf: noSPF, want: ResultFail, org: "example.com",
		},
		{
			name: "temperror of a signer of which the alignment is not known", broken: []string{"_dmarc.com"}, records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("a.example.com", "temperror")}, spf: noSPF, want: ResultTemperror,
		},
		{
			name: "DKIM temperror, but SPF passes", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "temperror")}, spf: spf{Domain: "a.example.com", Result: "pass"}, want: ResultPass, alignedSPF: true, org: "example.com",
		},
		{
			name: "DKIM temperror, SPF passes for a stranger", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("a.example.com", "temperror")}, spf: spf{Domain: "example.net", Result: "pass"}, want: ResultTemperror, org: "example.com",
		},
		{
			name: "DKIM temperror, another signature passes", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "temperror"), dkimResult("a.example.com", "pass")}, spf: noSPF, want: ResultPass, alignedDKIM: true, org: "example.com",
		},
		{
			name: "DKIM temperror in strict mode", records: strict, author: "example.com",
			dkim: dkim{dkimResult("example.com", "temperror")}, spf: spf{Domain: "a.example.com", Result: "pass"}, want: ResultTemperror, org: "example.com",
		},
		{
			name: "SPF temperror of a subdomain in strict mode is not needed", records: strict, author: "example.com",
			spf: spf{Domain: "a.example.com", Result: "temperror"}, want: ResultFail, org: "example.com",
		},
		{
			name: "SPF temperror of the HELO name", records: relaxed, author: "example.com",
			spf: spf{Domain: "mx.example.com", Helo: true, Result: "temperror"}, want: ResultTemperror, org: "example.com",
		},
		{
			name: "SPF permerror, but DKIM passes", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "pass")}, spf: spf{Domain: "example.com", Result: "permerror"}, want: ResultPass, alignedDKIM: true, org: "example.com",
		},
		{
			name: "SPF permerror, DKIM passes for a stranger", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.net", "pass")}, spf: spf{Domain: "example.com", Result: "permerror"}, want: ResultFail, org: "example.com",
		},
		{
			name: "permerror is a fail", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "permerror")}, spf: spf{Domain: "example.com", Result: "permerror"}, want: ResultFail, org: "example.com",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, srv := startDNS(t, tt.records...)
			for _, name := range tt.broken {
				srv.SetRcode(name, servfail)
			}
			v := (&Evaluator{Resolver: r}).Evaluate(t.Context(), tt.author, tt.dkim, tt.spf)
			if v.Result != tt.want || v.AlignedDKIM != tt.alignedDKIM || v.AlignedSPF != tt.alignedSPF {
				t.Errorf("got %s, DKIM aligned %v, SPF aligned %v, want %s, %v, %v; %v",
					v.Result, v.AlignedDKIM, v.AlignedSPF, tt.want, tt.alignedDKIM, tt.alignedSPF, v.Err)
			}
			if name, err := ruapost.ParseDomain(tt.author); v.AuthorDomain != name && err == nil { // RFC 9989 5.3.1: A-labels
				t.Errorf("author domain %s, want %s", v.AuthorDomain, name)
			}
			if v.OrganizationalDomain != tt.org {
				t.Errorf("organizational domain %q, want %q", v.OrganizationalDomain, tt.org)
			}
			if got := asked(srv); tt.asked != nil && !slices.Equal(got, tt.asked) {
				t.Errorf("asked %q, want %q", got, tt.asked)
			}
			switch v.Result {
			case ResultPass, ResultFail:
				if v.Policy == nil || v.Err != nil {
					t.Errorf("%s with policy %v, error %v", v.Result, v.Policy, v.Err)
				}
			case ResultNone:
				if v.Policy != nil || v.Err != nil {
					t.Errorf("none with policy %v, error %v", v.Policy, v.Err)
				}
			case ResultTemperror:
				if v.Err == nil {
					t.Error("temperror without an error")
				}
			case ResultPermerror:
				if v.Policy != nil || v.Err == nil || resolver.IsTemporary(v.Err) {
					t.Errorf("permerror with policy %v, error %v", v.Policy, v.Err)
				}
			}
		})
	}
}

// A message may be reported though its result is not known.
func TestEvaluateTemperrorKeepsPolicy(t *testing.T) {
	r, _ := startDNS(t, "_dmarc.example.com v=DMARC1; p=reject; rua=mailto:a@example.com")
	v := (&Evaluator{Resolver: r}).Evaluate(t.Context(), "example.com", nil, ruapost.SPFResult{Domain: "example.com", Result: "temperror"})
	if v.Result != ResultTemperror || v.Policy == nil || v.Policy.Published.Domain != "example.com" || len(v.Policy.Record.RUA) != 1 {
		t.Errorf("got %+v", v)
	}
}

// One silent server must not be waited for once for each signature. A resolver that
// remembers failures would hide it.
func TestEvaluateAsksOnceInVain(t *testing.T) {
	zone := &fakeZone{txts: map[string]string{"_dmarc.example.com": "v=DMARC1; p=reject"}, silent: "_dmarc.com"}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // for which the silent name waits
	var dkim []ruapost.DKIMResult
	for range 10 {
		dkim = append(dkim, dkimResult("a.example.com", "pass"))
	}
	v := (&Evaluator{Resolver: zone}).Evaluate(ctx, "example.com", dkim, ruapost.SPFResult{Domain: "b.example.com", Result: "pass"})
	if want := []string{"_dmarc.example.com", "_dmarc.com"}; v.Result != ResultTemperror || !slices.Equal(zone.asked, want) {
		t.Errorf("%s after asking %q", v.Result, zone.asked)
	}
}

// The name of the organization is not worth a delay of mail.
func TestEvaluateOrganizationTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		zone := &fakeZone{txts: map[string]string{"_dmarc.example.com": "v=DMARC1; p=reject"}, silent: "_dmarc.com"}
		began := time.Now()
		v := (&Evaluator{Resolver: zone}).Evaluate(t.Context(), "example.com", nil, ruapost.SPFResult{Domain: "example.com", Result: "pass"})
		if v.Result != ResultPass || v.OrganizationalDomain != "" || v.Err != nil {
			t.Errorf("got %+v", v)
		}
		if took := time.Since(began); took != orgPatience {
			t.Errorf("took %v", took)
		}
	})
}

// No answer about the author's own record is an error, however it does not come.
func TestEvaluateDeadDNS(t *testing.T) {
	r, srv := startDNS(t, "_dmarc.example.com v=DMARC1; p=reject")
	srv.SetRcode("_dmarc.example.com", servfail)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for _, suffixes := range []Suffixes{nil, BuiltinSuffixes{}} {
		for _, author := range []string{"example.com", "a.example.com"} {
			e := &Evaluator{Resolver: r, Suffixes: suffixes}
			pass := ruapost.SPFResult{Domain: author, Result: "pass"}
			if v := e.Evaluate(t.Context(), author, nil, pass); v.Result != ResultTemperror || !resolver.IsTemporary(v.Err) {
				t.Errorf("SERVFAIL, %s, %T: %s, %v", author, suffixes, v.Result, v.Err)
			}
			if v := e.Evaluate(over, "not."+author, nil, pass); v.Result != ResultTemperror || !resolver.IsTemporary(v.Err) {
				t.Errorf("context over, %s, %T: %s, %v", author, suffixes, v.Result, v.Err)
			}
		}
	}
}

func TestPrefetch(t *testing.T) {
	records := []string{"_dmarc.example.com v=DMARC1; p=reject; np=none", "_dmarc.flawed.example v=DMARC1; p=x"}
	tests := []struct {
		name     string
		suffixes Suffixes
		author   string
		asked    []string
	}{
		{"tree walk", nil, "example.com", []string{"example.com", "com"}},
		{"tree walk, np", nil, "ghost.example.com", []string{"ghost.example.com", "example.com", "com", "A ghost.example.com"}},
		{"tree walk, no policy", nil, "example.net", []string{"example.net", "net"}},
		{"list", BuiltinSuffixes{}, "a.b.example.com", []string{"a.b.example.com", "example.com"}},
		{"tree walk, no valid policy", nil, "flawed.example", []string{"flawed.example"}},
		{"no domain name", nil, "a..b", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, srv := startDNS(t, records...)
			e := &Evaluator{Resolver: r, Suffixes: tt.suffixes}
			e.Prefetch(t.Context(), tt.author)
			if got := asked(srv); !slices.Equal(got, tt.asked) {
				t.Errorf("asked %q, want %q", got, tt.asked)
			}
			e.Evaluate(t.Context(), tt.author, []ruapost.DKIMResult{dkimResult("example.com", "pass")}, ruapost.SPFResult{Domain: tt.author, Result: "pass"})
			if got := asked(srv); len(got) > 0 {
				t.Errorf("asked %q after it", got)
			}
		})
	}
}

func TestOrganizationalDomain(t *testing.T) {
	r, srv := startDNS(t, "_dmarc.bank.example v=DMARC1; p=none; psd=y", "_dmarc.example.com v=DMARC1; p=none")
	srv.SetRcode("_dmarc.broken.example", servfail)
	for _, tt := range []struct {
		suffixes     Suffixes
		domain, want string
	}{
		{nil, "a.b.Bank.example", "b.bank.example"},
		{nil, "a.b.example.com.", "example.com"},
		{nil, "a.b.example.net", "a.b.example.net"},
		{BuiltinSuffixes{}, "a.b.Bank.example", "bank.example"},
		{BuiltinSuffixes{}, "a.b.example.co.uk", "example.co.uk"},
	} {
		e := &Evaluator{Resolver: r, Suffixes: tt.suffixes}
		if got, err := e.OrganizationalDomain(t.Context(), tt.domain); got != tt.want || err != nil {
			t.Errorf("%s, %T: %s, %v, want %s", tt.domain, tt.suffixes, got, err, tt.want)
		}
	}
	e := &Evaluator{Resolver: r}
	if got, err := e.OrganizationalDomain(t.Context(), "a..b"); got != "" || !errors.Is(err, ruapost.ErrDomain) {
		t.Errorf("no domain name: %q, %v", got, err)
	}
	if got, err := e.OrganizationalDomain(t.Context(), "a.broken.example"); got != "" || !resolver.IsTemporary(err) {
		t.Errorf("SERVFAIL: %q, %v", got, err)
	}
}

func TestStrictest(t *testing.T) {
	verdict := func(result Result, effective ruapost.Disposition) *Verdict {
		v := &Verdict{Result: result}
		if effective != "" {
			v.Policy = &Policy{Effective: effective}
		}
		return v
	}
	// From the one that all others stand before to the one that stands before all.
	order := []*Verdict{
		verdict(ResultPass, "reject"),
		verdict(ResultNone, ""),
		verdict(ResultPermerror, ""),
		verdict(ResultFail, "none"),
		verdict(ResultTemperror, "reject"),
		verdict(ResultFail, "quarantine"),
		verdict(ResultFail, "reject"),
	}
	for i, strict := range order {
		for _, mild := range order[:i+1] {
			for _, verdicts := range [][]*Verdict{{strict, mild}, {mild, strict}, {mild, strict, mild}, {strict}} {
				if got := Strictest(verdicts); got != strict {
					t.Errorf("of %s and %s: %+v", strict.Result, mild.Result, got)
				}
			}
		}
	}
	first, second := verdict(ResultFail, "reject"), verdict(ResultFail, "reject")
	if got := Strictest([]*Verdict{first, second}); got != first {
		t.Error("of two alike not the first")
	}
	if got := Strictest(nil); got != nil {
		t.Errorf("of none: %+v", got)
	}
}

func BenchmarkEvaluate(b *testing.B) {
	r, _ := startDNS(b, "_dmarc.example.com v=DMARC1; p=reject; sp=quarantine; rua=mailto:dmarc@example.com,mailto:x@example.net!10m; fo=1")
	for _, bb := range []struct {
		name                string
		suffixes            Suffixes
		author, signer, spf string
	}{
		{"own", nil, "example.com", "example.com", "bounce.example.com"},
		{"below", nil, "news.example.com", "example.com", "news.example.com"},
		{"stranger", nil, "example.com", "esp.example.net", "esp.example.net"},
		{"nopolicy", nil, "news.example.org", "example.com", "news.example.com"},
		{"list", BuiltinSuffixes{}, "example.com", "example.com", "bounce.example.com"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			e := &Evaluator{Resolver: r, Suffixes: bb.suffixes}
			dkim := []ruapost.DKIMResult{dkimResult(bb.signer, "pass")}
			spf := ruapost.SPFResult{Domain: bb.spf, Result: "pass"}
			b.ReportAllocs()
			for b.Loop() {
				e.Evaluate(b.Context(), bb.author, dkim, spf)
			}
		})
	}
}
