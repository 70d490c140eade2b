package dmarc

import (
	"slices"
	"testing"

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
			name: "several records", records: []string{"_dmarc.example.com v=DMARC1; p=none", "_dmarc.example.com v=DMARC1; p=reject"},
			author: "example.com", spf: noSPF, want: ResultNone,
		},
		{
			name: "RFC 9989 4.10.1: broken record", records: []string{"_dmarc.example.com v=DMARC1; p=bogus"},
			author: "example.com", dkim: dkim{dkimResult("example.com", "pass")}, spf: noSPF, want: ResultPermerror,
		},
		{name: "author domain that is none", author: "a..b", spf: noSPF, want: ResultPermerror, asked: []string{}},

		{
			name: "RFC 9989 4.10.2: equal names need no walk", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "pass")}, spf: spf{Domain: "example.com", Result: "pass"},
			want: ResultPass, alignedDKIM: true, alignedSPF: true, asked: []string{"example.com"},
		},
		{
			name: "RFC 9989 4.4: case does not matter", records: strict, author: "EXAMPLE.com",
			dkim: dkim{dkimResult("Example.COM.", "pass")}, spf: spf{Domain: "eXample.com", Result: "pass"},
			want: ResultPass, alignedDKIM: true, alignedSPF: true,
		},
		{
			name: "RFC 9989 4.4: U-labels", records: []string{"_dmarc.xn--bcher-kva.example v=DMARC1; p=reject; adkim=s"},
			author: "bücher.example", dkim: dkim{dkimResult("xn--bcher-kva.example", "pass")}, spf: noSPF,
			want: ResultPass, alignedDKIM: true,
		},
		{
			name: "nothing passed: no walk", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "fail")}, spf: spf{Domain: "example.com", Result: "softfail"},
			want: ResultFail, asked: []string{"example.com"},
		},
		{
			name: "strict mode needs no walk", records: strict, author: "example.com",
			dkim: dkim{dkimResult("mail.example.com", "pass")}, spf: spf{Domain: "bounce.example.com", Result: "pass"},
			want: ResultFail, asked: []string{"example.com"},
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
			name: "the public suffix domain itself signs", records: bank, author: "giant.bank.example",
			dkim: dkim{dkimResult("bank.example", "pass")}, spf: noSPF, want: ResultFail, org: "giant.bank.example",
		},
		{
			name: "RFC 9989 B.4.1", records: signing, author: "example.com",
			dkim: dkim{dkimResult("signing.example.com", "pass")}, spf: spf{Domain: "example.com", Result: "pass"},
			want: ResultPass, alignedDKIM: true, alignedSPF: true, org: "example.com",
		},
		{
			name: "RFC 9989 B.4.2", records: signing, author: "a.b.c.d.e.f.g.h.i.j.k.example.com",
			dkim: dkim{dkimResult("signing.example.com", "pass")}, spf: spf{Domain: "example.com", Result: "pass"},
			want: ResultPass, alignedDKIM: true, alignedSPF: true, org: "example.com",
		},
		{
			name: "RFC 9989 B.4.3", records: bank, author: "giant.bank.example",
			dkim: dkim{dkimResult("mail.mega.bank.example", "pass")}, spf: spf{Domain: "mail.giant.bank.example", Result: "pass"},
			want: ResultPass, alignedSPF: true, org: "giant.bank.example",
		},
		{
			name: "RFC 7208 2.4: the HELO name of a null reverse-path counts", records: relaxed, author: "example.com",
			spf:  spf{Domain: "mx.example.com", Helo: true, Result: "pass"},
			want: ResultPass, alignedSPF: true, org: "example.com",
		},
		{
			name: "SPF without a domain", records: strict, author: "example.com", spf: spf{Result: "pass"}, want: ResultFail,
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
			name: "DNS: a stranger's name server does not matter", broken: []string{"_dmarc.example.net"}, records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.net", "pass")}, spf: spf{Domain: "example.net", Result: "pass"}, want: ResultFail, org: "example.com",
		},
		{
			name: "DKIM temperror", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "temperror")}, spf: spf{Domain: "example.com", Result: "fail"}, want: ResultTemperror,
		},
		{
			name: "SPF temperror", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "fail")}, spf: spf{Domain: "example.com", Result: "temperror"}, want: ResultTemperror,
		},
		{
			name: "SPF temperror, but DKIM passes", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "pass")}, spf: spf{Domain: "example.com", Result: "temperror"}, want: ResultPass, alignedDKIM: true,
		},
		{
			name: "RFC 9989 5.3.6: temperror of strangers is not needed", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.net", "temperror")}, spf: spf{Domain: "example.org", Result: "temperror"}, want: ResultFail, org: "example.com",
		},
		{
			name: "temperror of a subdomain in strict mode is not needed", records: strict, author: "example.com",
			dkim: dkim{dkimResult("a.example.com", "temperror")}, spf: noSPF, want: ResultFail,
		},
		{
			name: "temperror of a signer of which the alignment is not known", broken: []string{"_dmarc.com"}, records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("a.example.com", "temperror")}, spf: noSPF, want: ResultTemperror,
		},
		{
			name: "permerror is a fail", records: relaxed, author: "example.com",
			dkim: dkim{dkimResult("example.com", "permerror")}, spf: spf{Domain: "example.com", Result: "permerror"}, want: ResultFail,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, srv := startDNS(t, tt.records...)
			for _, name := range tt.broken {
				srv.SetRcode(name, servfail)
			}
			v := Evaluate(t.Context(), r, tt.author, tt.dkim, tt.spf)
			if v.Result != tt.want || v.AlignedDKIM != tt.alignedDKIM || v.AlignedSPF != tt.alignedSPF {
				t.Errorf("got %s, DKIM aligned %v, SPF aligned %v, want %s, %v, %v; %v",
					v.Result, v.AlignedDKIM, v.AlignedSPF, tt.want, tt.alignedDKIM, tt.alignedSPF, v.Err)
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
	v := Evaluate(t.Context(), r, "example.com", nil, ruapost.SPFResult{Domain: "example.com", Result: "temperror"})
	if v.Result != ResultTemperror || v.Policy == nil || v.Policy.Published.Domain != "example.com" || len(v.Policy.Record.RUA) != 1 {
		t.Errorf("got %+v", v)
	}
}

// One silent server must not be waited for once for each signature.
func TestEvaluateAsksOnceInVain(t *testing.T) {
	r, srv := startDNS(t, "_dmarc.example.com v=DMARC1; p=reject")
	srv.SetRcode("_dmarc.com", servfail)
	var dkim []ruapost.DKIMResult
	for range 10 {
		dkim = append(dkim, dkimResult("a.example.com", "pass"))
	}
	v := Evaluate(t.Context(), r, "example.com", dkim, ruapost.SPFResult{Domain: "b.example.com", Result: "pass"})
	if got := asked(srv); v.Result != ResultTemperror || len(got) != 2 {
		t.Errorf("%s after asking %q", v.Result, got)
	}
}
