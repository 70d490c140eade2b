package dmarc

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ruapost"
)

// suffixText is a public suffix list with a rule of each kind.
const suffixText = `// A comment.
// ===BEGIN ICANN DOMAINS===

com
uk
co.uk	as said there
io
jp
*.kobe.jp
!city.kobe.jp
*.ck
!www.ck
  CN
公司.cn
// ===END ICANN DOMAINS===
// ===BEGIN PRIVATE DOMAINS===
github.io
amazonaws.com
*.compute.amazonaws.com
compute.amazonaws.com
*
`

func suffixes(t testing.TB) suffixList {
	t.Helper()
	list, err := parseSuffixes(strings.NewReader(suffixText))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// RFC 7489 3.2, by the list above and by the one that is built in.
func TestOrganizationalDomainByList(t *testing.T) {
	tests := []struct{ why, name, want string }{
		{"one label more than the suffix", "a.b.example.com", "example.com"},
		{"the organizational domain itself", "example.com", "example.com"},
		{"a suffix is its own", "com", "com"},
		{"a suffix of two labels is its own", "co.uk", "co.uk"},
		{"the longest suffix counts", "a.b.co.uk", "b.co.uk"},
		{"beside it the shorter one", "a.b.uk", "b.uk"},
		{"only whole labels", "xco.uk", "xco.uk"},
		{"a private suffix", "a.b.github.io", "b.github.io"},
		{"a private suffix is its own", "github.io", "github.io"},
		{"above a private suffix", "example.io", "example.io"},
		{"wildcard: below a name that it matches", "a.b.c.kobe.jp", "b.c.kobe.jp"},
		{"wildcard: a name that it matches", "c.kobe.jp", "c.kobe.jp"},
		{"wildcard: not the name above", "kobe.jp", "kobe.jp"},
		{"exception", "a.city.kobe.jp", "city.kobe.jp"},
		{"exception itself", "city.kobe.jp", "city.kobe.jp"},
		{"wildcard below a top level that has no rule", "a.b.ck", "a.b.ck"},
		{"that top level", "ck", "ck"},
		{"its exception", "a.b.www.ck", "www.ck"},
		{"no rule: the last label is the suffix", "a.b.nowhere-to-be-found", "b.nowhere-to-be-found"},
		{"no rule, one label", "nowhere-to-be-found", "nowhere-to-be-found"},
		{"IDN", "a.b.xn--55qx5d.cn", "b.xn--55qx5d.cn"},
		{"IDN, a suffix", "xn--55qx5d.cn", "xn--55qx5d.cn"},
		{"names with _", "_x.b.example.com", "example.com"},
		{"a wildcard and a rule about one name", "a.b.c.compute.amazonaws.com", "b.c.compute.amazonaws.com"},
	}
	for name, list := range map[string]Suffixes{"file": suffixes(t), "builtin": BuiltinSuffixes{}} {
		for _, tt := range tests {
			if got := list.OrganizationalDomain(tt.name); got != tt.want {
				t.Errorf("%s: %s: %s, want %s: %s", name, tt.name, got, tt.want, tt.why)
			}
		}
	}
}

func TestLoadSuffixes(t *testing.T) {
	dir := t.TempDir()
	tests := []struct {
		name, text string
		err        string // "" if it can be read
	}{
		{"list", suffixText, ""},
		{"line ends of CR LF", "// x\r\n\r\ncom\r\nco.uk\r\n", ""},
		{"no line end", "com", ""},
		{"empty", "", "no rules in it"},
		{"comments only", "// com\n\n*\n", "no rules in it"},
		{"a web page", "<!DOCTYPE html>\n", "line 1: not a domain name"},
		{"rule that is no name", "com\n\n// x\nco..uk\n", "line 4: not a domain name"},
		{"wildcard in the middle", "com\na.*.uk\n", "line 2: not a domain name"},
		{"wildcard without a name", "*.\n", "line 1: not a domain name"},
		{"exception of a top level", "com\n!uk\n", "line 2: exception with a single label"},
		{"control characters", "com\nb\x1b[2Jd.uk\n", "line 2: not a domain name"},
		{"too large", strings.Repeat("// "+strings.Repeat("x", 1021)+"\n", maxSuffixFile/1024), "larger than 4194304 octets"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, "list")
			if err := os.WriteFile(path, []byte(tt.text), 0o644); err != nil {
				t.Fatal(err)
			}
			list, err := LoadSuffixes(path)
			if tt.err == "" {
				if err != nil || list.OrganizationalDomain("a.b.com") != "b.com" {
					t.Errorf("%v, %v", list, err)
				}
				return
			}
			if err == nil || list != nil || !strings.Contains(err.Error(), "public suffix list "+path) || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %v, %v, want %q", list, err, tt.err)
			}
			if err != nil && ruapost.Clean(err.Error(), 1000) != err.Error() {
				t.Errorf("error not fit for a log: %q", err)
			}
		})
	}
	names := testutil.ToFloat64(suffixNames)
	before := testutil.ToFloat64(suffixLoads.WithLabelValues("failed"))
	for _, path := range []string{filepath.Join(dir, "missing"), dir} {
		if list, err := LoadSuffixes(path); err == nil || list != nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, %v", path, list, err)
		}
	}
	if n := testutil.ToFloat64(suffixLoads.WithLabelValues("failed")) - before; n != 2 || names != 1 || testutil.ToFloat64(suffixNames) != names {
		t.Errorf("%v failures counted; %v names, then %v", n, names, testutil.ToFloat64(suffixNames))
	}
}

// What RFC 7489 does differently from RFC 9989 in finding a policy and comparing
// domains. The author's and the signer's organizational domains are by suffixText.
func TestEvaluateByList(t *testing.T) {
	pass := func(domain string) ruapost.SPFResult { return ruapost.SPFResult{Domain: domain, Result: "pass"} }
	tests := []struct {
		name    string
		records []string
		broken  string // a name that gets SERVFAIL
		author  string
		spf     ruapost.SPFResult

		want      Result
		policy    string // where it was found
		effective ruapost.Disposition
		asked     []string
	}{
		{
			"6.6.3: the author domain's record",
			[]string{"_dmarc.a.example.com v=DMARC1; p=reject; sp=none", "_dmarc.example.com v=DMARC1; p=none"},
			"",
			"a.example.com", pass("a.example.com"), ResultPass, "a.example.com", "reject",
			[]string{"a.example.com"},
		},
		{
			"6.6.3 step 3: else the organizational domain's, and none between",
			[]string{"_dmarc.b.example.co.uk v=DMARC1; p=none", "_dmarc.example.co.uk v=DMARC1; p=reject; sp=quarantine"},
			"",
			"a.b.example.co.uk", pass("example.net"), ResultFail, "example.co.uk", "quarantine",
			[]string{"a.b.example.co.uk", "example.co.uk"},
		},
		{
			"6.6.3: the suffix's record counts for nobody but itself",
			[]string{"_dmarc.co.uk v=DMARC1; p=reject; psd=y"},
			"",
			"a.example.co.uk", pass("a.example.co.uk"), ResultNone, "", "",
			[]string{"a.example.co.uk", "example.co.uk"},
		},
		{
			"3.2: an author domain that is a suffix",
			[]string{"_dmarc.co.uk v=DMARC1; p=reject"},
			"",
			"co.uk", pass("example.co.uk"), ResultFail, "co.uk", "reject",
			[]string{"co.uk"},
		},
		{
			"6.6.3 step 5: several records end the search",
			[]string{"_dmarc.a.example.com v=DMARC1; p=none", "_dmarc.a.example.com v=DMARC1; p=none", "_dmarc.example.com v=DMARC1; p=reject"},
			"",
			"a.example.com", pass("a.example.com"), ResultNone, "", "",
			[]string{"a.example.com"},
		},
		{
			"6.6.3 step 5: several records at the organizational domain",
			[]string{"_dmarc.example.com v=DMARC1; p=none", "_dmarc.example.com v=DMARC1; p=reject"},
			"",
			"a.example.com", pass("a.example.com"), ResultNone, "", "",
			[]string{"a.example.com", "example.com"},
		},
		{
			"6.6.3 steps 2 and 4: other records do not count",
			[]string{"_dmarc.a.example.com v=spf1 -all", "_dmarc.example.com v=spf1 -all", "_dmarc.example.com v=DMARC1; p=reject"},
			"",
			"a.example.com", pass("a.example.com"), ResultPass, "example.com", "reject", nil,
		},
		{
			"no record", nil, "", "example.com", pass("example.com"), ResultNone, "", "", []string{"example.com"},
		},
		{
			"6.6.3 step 6: bad sp without rua",
			[]string{"_dmarc.example.com v=DMARC1; p=reject; sp=x"},
			"",
			"example.com", pass("example.com"), ResultPermerror, "", "", nil,
		},
		{
			"6.6.3 step 6: bad sp with rua",
			[]string{"_dmarc.example.com v=DMARC1; p=reject; sp=x; rua=mailto:a@example.com"},
			"",
			"example.com", pass("example.net"), ResultFail, "example.com", "none", nil,
		},
		{
			"6.3: np is an unknown tag, also for a name that does not exist",
			[]string{"_dmarc.example.com v=DMARC1; p=reject; np=none"},
			"",
			"ghost.example.com", pass("example.net"), ResultFail, "example.com", "reject",
			[]string{"ghost.example.com", "example.com"},
		},
		{
			"6.3: np is an unknown tag, also if it is bad",
			[]string{"_dmarc.example.com v=DMARC1; p=reject; np=x"},
			"",
			"example.com", pass("example.net"), ResultFail, "example.com", "reject", nil,
		},
		{
			"6.3: t is an unknown tag",
			[]string{"_dmarc.example.com v=DMARC1; p=reject; t=y"},
			"",
			"example.com", pass("example.net"), ResultFail, "example.com", "reject", nil,
		},
		{
			"6.3: psd is an unknown tag",
			[]string{"_dmarc.example.com v=DMARC1; p=reject", "_dmarc.own.example.com v=DMARC1; p=none; psd=n"},
			"",
			"example.com", pass("a.own.example.com"), ResultPass, "example.com", "reject",
			[]string{"example.com"},
		},
		{
			"6.6.3 step 6: p somewhere in the record",
			[]string{"_dmarc.example.com v=DMARC1; pct=100; p=reject"},
			"",
			"example.com", pass("example.net"), ResultFail, "example.com", "reject", nil,
		},
		{
			"3.1: neighbours below a private suffix are strangers",
			[]string{"_dmarc.one.github.io v=DMARC1; p=reject"},
			"",
			"one.github.io", pass("two.github.io"), ResultFail, "one.github.io", "reject", nil,
		},
		{
			"3.1: a suffix is a stranger to those below",
			[]string{"_dmarc.one.github.io v=DMARC1; p=reject"},
			"",
			"one.github.io", pass("github.io"), ResultFail, "one.github.io", "reject", nil,
		},
		{
			"3.1: relaxed alignment",
			[]string{"_dmarc.example.co.uk v=DMARC1; p=reject"},
			"",
			"a.example.co.uk", pass("b.c.example.co.uk"), ResultPass, "example.co.uk", "reject", nil,
		},
		{
			"3.1: strict alignment",
			[]string{"_dmarc.example.co.uk v=DMARC1; p=reject; aspf=s"},
			"",
			"example.co.uk", pass("c.example.co.uk"), ResultFail, "example.co.uk", "reject", nil,
		},
		{
			"alignment asks nothing",
			[]string{"_dmarc.example.com v=DMARC1; p=reject"},
			"_dmarc.a.example.com",
			"example.com", pass("a.example.com"), ResultPass, "example.com", "reject",
			[]string{"example.com"},
		},
		{
			"DNS: the author domain's record",
			[]string{"_dmarc.example.com v=DMARC1; p=reject"},
			"_dmarc.a.example.com",
			"a.example.com", pass("a.example.com"), ResultTemperror, "", "",
			[]string{"a.example.com"},
		},
		{
			"DNS: the organizational domain's record", nil, "_dmarc.example.com",
			"a.example.com", pass("a.example.com"), ResultTemperror, "", "", nil,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, srv := startDNS(t, tt.records...)
			if tt.broken != "" {
				srv.SetRcode(tt.broken, servfail)
			}
			list := suffixes(t)
			v := (&Evaluator{Resolver: r, Suffixes: list}).Evaluate(t.Context(), tt.author, nil, tt.spf)
			if v.Result != tt.want || v.AlignedSPF != (tt.want == ResultPass) {
				t.Errorf("got %s, aligned %v, %v, want %s", v.Result, v.AlignedSPF, v.Err, tt.want)
			}
			if got := asked(srv); tt.asked != nil && !slices.Equal(got, tt.asked) {
				t.Errorf("asked %q, want %q", got, tt.asked)
			}
			if tt.policy == "" {
				if v.Policy != nil || v.OrganizationalDomain != "" {
					t.Errorf("policy %+v of %q", v.Policy, v.OrganizationalDomain)
				}
				return
			}
			if v.Policy == nil || v.Policy.Published.Domain != tt.policy || v.Policy.Effective != tt.effective {
				t.Fatalf("policy %+v, want %s of %s", v.Policy, tt.effective, tt.policy)
			}
			if org := list.OrganizationalDomain(tt.author); v.OrganizationalDomain != org {
				t.Errorf("organizational domain %s, want %s", v.OrganizationalDomain, org)
			}
		})
	}
}

// RFC 7489 6.6.3 step 3: the organizational domain is asked "if different".
func TestEvaluateByListAsksOnce(t *testing.T) {
	zone := new(fakeZone)
	v := (&Evaluator{Resolver: zone, Suffixes: suffixes(t)}).Evaluate(t.Context(), "example.com", nil, ruapost.SPFResult{})
	if v.Result != ResultNone || len(zone.asked) != 1 {
		t.Errorf("%s after asking %q", v.Result, zone.asked)
	}
}

func TestPolicyPublishedByList(t *testing.T) {
	r, _ := startDNS(t, "_dmarc.example.com v=DMARC1; p=reject; sp=quarantine; np=none; t=y; psd=y; pct=40; ri=3600; rua=mailto:a@example.com")
	p, err := policyOf(t, &Evaluator{Resolver: r, Suffixes: suffixes(t)}, "a.example.com")
	if err != nil {
		t.Fatal(err)
	}
	want := ruapost.DMARCPolicy{
		Domain: "example.com", P: "reject", SP: "quarantine", ADKIM: "r", ASPF: "r", FO: "0", Percent: 40, Discovery: "psl",
	}
	if diff := cmp.Diff(want, p.Published); diff != "" {
		t.Errorf("published (-want +got):\n%s", diff)
	}
	if rec := p.Record; rec.Interval.Hours() != 1 || rec.NonexistentPolicy != "none" || !rec.Testing || rec.PSD != 'y' || len(rec.RUA) != 1 {
		t.Errorf("the record is not as read: %+v", rec)
	}
	if got, out := p.Sample(40); got != "none" || !out {
		t.Errorf("outside of the sample: %s, %v", got, out)
	}
}

func FuzzParseSuffixes(f *testing.F) {
	f.Add(suffixText, "a.b.city.kobe.jp")
	f.Add("*.a\n!b.a\nc.b.a\n*.c.b.a x\r\n*\n", "e.d.c.b.a")
	f.Fuzz(func(t *testing.T, text, domain string) {
		list, err := parseSuffixes(strings.NewReader(text))
		if err != nil {
			if list != nil || ruapost.Clean(err.Error(), 1000) != err.Error() {
				t.Fatalf("%v, %q", list, err)
			}
			return
		}
		name, err := ruapost.ParseDomain(domain)
		if err != nil {
			return
		}
		org := list.OrganizationalDomain(name)
		if !ruapost.Within(name, org) || list.OrganizationalDomain(org) != org {
			t.Fatalf("%s is of %s, that of %s", name, org, list.OrganizationalDomain(org))
		}
		if suffix := list.suffix(name); suffix == "" || !ruapost.Within(org, suffix) || org != name && ruapost.Labels(org) != ruapost.Labels(suffix)+1 {
			t.Fatalf("%s has suffix %q, organization %s", name, suffix, org)
		}
	})
}

func BenchmarkOrganizationalDomain(b *testing.B) {
	b.ReportAllocs()
	for name, list := range map[string]Suffixes{"file": suffixes(b), "builtin": BuiltinSuffixes{}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				list.OrganizationalDomain("bounce.example.co.uk")
			}
		})
	}
}
