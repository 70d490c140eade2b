package dmarc

import (
	"slices"
	"strings"
	"testing"

	"ruapost"
)

func TestAuthorDomains(t *testing.T) {
	tests := []struct {
		name  string
		field string
		want  []string
		err   string // part of the error
	}{
		{"address alone", "a@example.com", []string{"example.com"}, ""},
		{"angle brackets", "<a@example.com>", []string{"example.com"}, ""},
		{"display name", "Ann Author <a@example.com>", []string{"example.com"}, ""},
		{"quoted display name", `"Author, Ann" <a@example.com>`, []string{"example.com"}, ""},
		{"any case, final dot", "A@Example.COM.", []string{"example.com"}, ""},
		{"RFC 5322 folded", "Ann\r\n Author\r\n\t<a@example.com>\r\n", []string{"example.com"}, ""},
		{"RFC 5322 A.5: comments everywhere", "Pete(A nice \\) chap) <pete(his account)@(host)silly.test(his host)>(end)", []string{"silly.test"}, ""},
		{"RFC 5322 A.6.3: blanks around dots", "Joe Q. Public <john . q . public @ example . com>", []string{"example.com"}, ""},
		{"comment after the address", "a@example.com (Ann (the author))", []string{"example.com"}, ""},
		{"several of one domain", "a@example.com, B <b@EXAMPLE.com>", []string{"example.com"}, ""},
		{"several domains", "a@example.com, b@example.net", []string{"example.com", "example.net"}, ""},
		{"group", "Team: a@example.com, B <b@example.net>;", []string{"example.com", "example.net"}, ""},
		{"group among others", "Team: a@example.com;, c@example.org", []string{"example.com", "example.org"}, ""},
		{"group behind an address", "a@example.com, Team: b@example.net;", []string{"example.com", "example.net"}, ""},
		{"two groups", "Team: a@example.com;, Others: b@example.net;", []string{"example.com", "example.net"}, ""},
		{"group without an end", "Re: Ann <a@example.com>", []string{"example.com"}, ""},
		{"empty list entries", ", a@example.com,,", []string{"example.com"}, ""},
		{"semicolons between addresses", "a@example.com; b@example.net", []string{"example.com", "example.net"}, ""},

		{"quoted display name with an address", `"a@b.com" <c@d.com>`, []string{"d.com"}, ""},
		{"unquoted display name with an address", "a@b.com <c@d.com>", []string{"d.com"}, ""},
		{"brackets in a quoted display name", `"<a@b.com>" <c@d.com>`, []string{"d.com"}, ""},
		{"address in a comment", "c@d.com (<a@b.com>)", []string{"d.com"}, ""},
		{"comment that hides an address", "(<a@b.com>,) c@d.com", []string{"d.com"}, ""},
		{"@ in a quoted local part", `"a@b.com"@d.com`, []string{"d.com"}, ""},
		{"quote escaped in a quoted string", `"x\" <a@b.com>" <c@d.com>`, []string{"d.com"}, ""},
		{"comma in an unquoted display name", "Author, Ann <a@example.com>", []string{"example.com"}, ""},
		{"dots and brackets in a display name", "Dr. A. [home] <a@example.com>", []string{"example.com"}, ""},
		{"closing parenthesis in a display name", "Foo :) <a@b.example>", []string{"b.example"}, ""},
		{"closing brackets in a display name", "Foo> ] <a@b.example>", []string{"b.example"}, ""},
		{"comment closed twice before the address", "Foo (x)) <a@b.example>", []string{"b.example"}, ""},
		{"closing parenthesis before a comma", "Foo :), Bar <a@b.example>", []string{"b.example"}, ""},
		{"encoded word", "=?utf-8?Q?J=C3=B6rg_=3Ca=40b.com=3E?= <c@d.com>", []string{"d.com"}, ""},
		{"encoded word with @ and blank, as some write it", "=?utf-8?Q?a@b.com?= =?utf-8?B?eA==?= <c@d.com>", []string{"d.com"}, ""},
		{"UTF-8 display name", "Jörg <a@example.com>", []string{"example.com"}, ""},
		{"Latin-1 display name", "J\xf6rg <a@example.com>", []string{"example.com"}, ""},
		{"RFC 6532: UTF-8 local part and domain", "jörg@bücher.example", []string{"xn--bcher-kva.example"}, ""},
		{"A-labels", "a@xn--bcher-kva.example", []string{"xn--bcher-kva.example"}, ""},
		{"ideographic full stop", "a@bücher。example", []string{"xn--bcher-kva.example"}, ""},
		{"underscore", "a@_x.example.com", []string{"_x.example.com"}, ""},
		{"dots as some providers allow them", "a..b.@example.com", []string{"example.com"}, ""},
		{"RFC 9989 5.3.1: U-label and A-label of one domain", "a@bücher.example, b@XN--BCHER-KVA.example", []string{"xn--bcher-kva.example"}, ""},
		{"U-labels and A-labels in one domain", "a@xn--bcher-kva.BÜCHER.example", []string{"xn--bcher-kva.xn--bcher-kva.example"}, ""},
		{"U-label in two code points", "a@bu\u0308cher.example", []string{"xn--bcher-kva.example"}, ""},
		{"IDNA 2008: sharp s is not ss", "a@faß.example, b@fass.example", []string{"xn--fa-hia.example", "fass.example"}, ""},
		{"A-label that decodes to nothing is a name all the same", "a@xn--a.example", []string{"xn--a.example"}, ""},
		{"invisible characters in a domain", "a@exam\u00adp\u200ble.com", []string{"example.com"}, ""},
		{"fullwidth characters", "a@ｅｘａｍｐｌｅ．com", []string{"example.com"}, ""},
		{"8-bit local part", "j\xf6rg@example.com", []string{"example.com"}, ""},
		{"single label", "root@localhost", []string{"localhost"}, ""},
		{"top level", "a@com", []string{"com"}, ""},
		{"final dot in angle brackets", "<a@example.com.>", []string{"example.com"}, ""},
		{"RFC 5322 4.4: folded domain", "a@example\r\n .com", []string{"example.com"}, ""},
		{"RFC 5322 4.4: domain folded in a comment", "a@example.(x\r\n )\r\n\tcom", []string{"example.com"}, ""},
		{"RFC 5322 4.5: a line of blanks alone", "a@example.com,\r\n\t\r\n b@example.net", []string{"example.com", "example.net"}, ""},
		{"routes of other times in the local part", "example.org!a%example.net@example.com", []string{"example.com"}, ""},
		{"RFC 5322 4.4: dots and quoted strings in a local part", `a."b@c.org".d@example.com`, []string{"example.com"}, ""},
		{"address in brackets as local part", `"<a@b.com>"@d.com`, []string{"d.com"}, ""},
		{"empty group beside an address", "undisclosed: ;, a@example.com", []string{"example.com"}, ""},
		{"null address beside another", "<>, a@example.com", []string{"example.com"}, ""},
		{"label of 63 octets", "a@" + strings.Repeat("b", 63) + ".example", []string{strings.Repeat("b", 63) + ".example"}, ""},
		{"address literal beside a domain", "a@[192.0.2.1], b@example.com", []string{"example.com"}, ""},

		{"empty", "", nil, "no address with a domain name"},
		{"blank", " \r\n\t", nil, "no address with a domain name"},
		{"name alone", "postmaster", nil, "no address with a domain name"},
		{"null address", "<>", nil, "no address with a domain name"},
		{"local part alone", "MAILER-DAEMON <MAILER-DAEMON>", nil, "no address with a domain name"},
		{"empty group", "undisclosed: ;", nil, "no address with a domain name"},
		{"IPv4 literal", "a@[192.0.2.1]", nil, "no address with a domain name"},
		{"IPv6 literal", "A <a@[IPv6:2001:db8::1]>", nil, "no address with a domain name"},
		{"name in brackets", "a@[example.com]", nil, "no address with a domain name"},
		{"address in quotes", `"a@example.com"`, nil, "no address with a domain name"},
		{"fullwidth @", "a＠example.com", nil, "no address with a domain name"},
		{"address as the name of nobody", "a@example.com <>", nil, "no address with a domain name"},
		{"encoded address", "=?utf-8?B?YUBleGFtcGxlLmNvbQ==?=", nil, "no address with a domain name"},

		{"unbalanced comment behind a domain", "a@example.net(.example.com", []string{"example.net"}, "comment without an end"},
		{"unbalanced comment inside", "((a) <b@example.com>", []string{"example.com"}, "comment without an end"},
		{"comment that ends with a backslash", `a@example.com (x\`, []string{"example.com"}, "comment without an end"},
		{"comment closed twice", "a@example.net).example.com", []string{"example.net"}, `misplaced ")"`},
		{"open quote", `"a <b@example.com>`, []string{"example.com"}, `'"' without '"'`},
		{"open quote after a backslash", `"a\" <b@example.com>`, []string{"example.com"}, `'"' without '"'`},
		{"open angle bracket", "A <a@example.com", []string{"example.com"}, `"<" without ">"`},
		{"angle bracket without a start", "a@example.com>", []string{"example.com"}, `misplaced ">"`},
		{"closing parenthesis behind a domain", "a@b.com) , <c@d.com>", []string{"b.com", "d.com"}, `misplaced ")"`},
		{"closing parenthesis in angle brackets", "<a@b.com)>", []string{"b.com"}, `misplaced ")"`},
		{"closing parenthesis behind angle brackets", "<a@b.com> )", []string{"b.com"}, "text behind the address"},
		{"angle bracket closed twice", "<a@b.com>>", []string{"b.com"}, `misplaced ">"`},
		{"angle bracket closed before a comma", "a@b.com>, <c@d.com>", []string{"b.com", "d.com"}, `misplaced ">"`},
		{"bracket behind a literal", "a@[192.0.2.1]]", nil, `misplaced`},
		{"two angle brackets", "<a@b.com> <c@d.com>", []string{"b.com", "d.com"}, `misplaced "<"`},
		{"nested angle brackets", "<<a@b.com>>", []string{"b.com"}, `misplaced "<"`},
		{"text behind the address", "<a@b.com> c@d.com", []string{"b.com", "d.com"}, "text behind the address"},
		{"list inside angle brackets", "<a@b.com,c@d.com>", []string{"b.com", "d.com"}, `misplaced ","`},
		{"RFC 5322 4.4: source route", "<@b.com:a@d.com>", []string{"b.com", "d.com"}, `no local part before "@"`},
		{"RFC 5322 4.4: source route without brackets", "@b.com:a@d.com", []string{"b.com", "d.com"}, "misplaced colon"},
		{"RFC 5322 4.4: source route of several", "<@b.com,@c.com:a@d.com>", []string{"b.com", "c.com", "d.com"}, `no local part before "@"`},
		{"two @", "a@b.com@d.com", []string{"b.com", "d.com"}, `misplaced "@"`},
		{"blank in the domain", "a@b.com d.com", []string{"b.com"}, "without a dot"},
		{"name before a bare address", "Ann a@b.com", []string{"b.com"}, "without a dot"},
		{"quoted string in the domain", `a@"b.com"`, nil, "misplaced"},
		{"literal behind a domain", "a@b.com[192.0.2.1]", []string{"b.com"}, "misplaced"},
		{"open literal", "a@[192.0.2.1", nil, `'[' without ']'`},
		{"no domain", "a@", nil, "empty"},
		{"empty label", "a@b..com", nil, "empty label"},
		{"two final dots", "a@example.com..", []string{"example.com"}, "empty label"},
		{"address as domain", "a@192.0.2.1", nil, "last label is a number"},
		{"address in fullwidth digits as domain", "a@１９２.0.2.１", nil, "last label is a number"},
		{"U-label that calls itself an A-label", "a@xn--bücher.example", nil, "not a domain name"},
		{"bidirectional override in the domain", "a@\u202eexample.com", nil, "not a domain name"},
		{"no-break space behind the domain", "a@example.com\u00a0", []string{"example.com"}, "not a domain name"},
		{"folded in the middle of a label", "a@exam\r\n ple.com", nil, "without a dot"},
		{"label of 64 octets", "a@" + strings.Repeat("b", 64) + ".example", nil, "63 octets"},
		{"domain of 260 octets", "a@" + strings.Repeat("bcd.", 64) + "com", nil, "253 octets"},
		{"encoded word as domain", "a@=?utf-8?Q?b=2Ecom?=", nil, "not a domain name"},
		{"invalid UTF-8 in the domain", "a@b\xff.com", nil, "not a domain name"},
		{"NUL", "a@b.com\x00@d.com", []string{"b.com", "d.com"}, `misplaced '\x00'`},
		{"NUL in the display name", "a@b.com\x00 <c@d.com>", []string{"b.com", "d.com"}, `misplaced '\x00'`},
		{"control character in the domain", "a@b.com\x01", []string{"b.com"}, "not a domain name"},
		{"address as group name", "a@b.com: c@d.com;", []string{"b.com", "d.com"}, "misplaced colon"},
		{"address in brackets as group name", "<a@b.com>: c@d.com;", []string{"b.com", "d.com"}, "misplaced colon"},
		{"group in a group behind an address", "a: b@c.com, d: e@f.com;;", []string{"c.com", "f.com"}, "misplaced colon"},
		{"group in a group", "a: b: c@d.com;;", []string{"d.com"}, "misplaced colon"},
		{"one bad address behind good ones", "a@example.com, b@example.net, b@c@d.com, e@example.org", []string{"example.com", "example.net", "d.com", "example.org"}, `misplaced "@"`},
		{"one bad address before good ones", "b@c@d.com, a@example.com", []string{"d.com", "example.com"}, `misplaced "@"`},
		{"as long as may be", strings.Repeat("a", maxFromLength-len("@example.com")) + "@example.com", []string{"example.com"}, ""},
		{"overlong", strings.Repeat("a", maxFromLength) + "@example.com", []string{"example.com"}, "octets long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := AuthorDomains([]string{tt.field})
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
			switch {
			case tt.err == "" && err != nil:
				t.Error(err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("error %v, want %q", err, tt.err)
			case err != nil && len(err.Error()) > 400:
				t.Errorf("error of %d octets", len(err.Error()))
			}
		})
	}
}

func TestAuthorDomainsFields(t *testing.T) {
	many := make([]string, 0, 40)
	for c := 'a'; c <= 'z'; c++ {
		many = append(many, "x@"+string(c)+".example")
	}
	tests := []struct {
		name   string
		fields []string
		want   []string
		err    string
	}{
		{"no field", nil, nil, "no From field"},
		{"two fields", []string{"a@example.com", "b@example.net"}, []string{"example.com", "example.net"}, "2 From fields"},
		{"two fields of one domain", []string{"a@example.com", "b@example.com"}, []string{"example.com"}, "2 From fields"},
		{"two fields, the second bad", []string{"a@example.com", "b@c@d"}, []string{"example.com"}, "misplaced"},
		{"two fields, the first bad", []string{"b@c@d", "a@example.com"}, []string{"example.com"}, "misplaced"},
		{"two fields, the first overlong", []string{strings.Repeat("a", maxFromLength+1), "a@example.com"}, []string{"example.com"}, "octets long"},
		{"three fields, two of them bad", []string{"<a", "a@example.com", "b@c@d"}, []string{"example.com"}, `"<" without ">"`},
		{"two fields, one of them empty", []string{"", "a@example.com"}, []string{"example.com"}, "2 From fields"},
		{"two fields without domains", []string{"a", "<>"}, nil, "no address"},
		{"too many domains in a field", []string{strings.Join(many, ", ")}, []string{"a.example", "b.example", "c.example", "d.example", "e.example"}, "more than 5"},
		{"too many domains in fields", many, []string{"a.example", "b.example", "c.example", "d.example", "e.example"}, "more than 5"},
		{"too many domains and a bad field", append([]string{"b@c@d"}, many...), []string{"a.example", "b.example", "c.example", "d.example", "e.example"}, "misplaced"},
		{"as many as are looked at", []string{strings.Join(many[:5], ", ")}, []string{"a.example", "b.example", "c.example", "d.example", "e.example"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := AuthorDomains(tt.fields)
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
}

// The work is linear in the length of the field, whatever it nests or opens.
func TestAuthorDomainsNesting(t *testing.T) {
	half := maxFromLength/2 - 20
	for _, field := range []string{
		strings.Repeat("(", half) + strings.Repeat(")", half) + "a@example.com",
		strings.Repeat("()", half) + "a@example.com",
		strings.Repeat(".,", half) + "a@example.com",
		strings.Repeat("x ", half) + "<a@example.com>",
	} {
		if got, err := AuthorDomains([]string{field}); err != nil || len(got) != 1 {
			t.Errorf("%.20q...: %q, %v", field, got, err)
		}
	}
}

func FuzzAuthorDomains(f *testing.F) {
	f.Add(`"a@b.com" <c@d.com>, Team: (x) e@[1.2.3.4], f@g.h;`, "")
	f.Add("a@example.net(.example.com", "=?utf-8?Q?a@b?= <\"c\\\"\"@bücher.example>")
	f.Fuzz(func(t *testing.T, one, two string) {
		fields := []string{one}
		if two != "" {
			fields = append(fields, two)
		}
		got, err := AuthorDomains(fields)
		if err == nil && len(got) == 0 || len(got) > maxAuthorDomains {
			t.Fatalf("%q, %v", got, err)
		}
		for i, domain := range got {
			if name, err := ruapost.ParseDomain(domain); err != nil || name != domain {
				t.Fatalf("%q: %v", domain, err)
			}
			if slices.Contains(got[:i], domain) {
				t.Fatalf("twice in %q", got)
			}
		}
		// No field takes away what another has.
		if alone, _ := AuthorDomains(fields[:1]); len(got) < len(alone) || !slices.Equal(got[:len(alone)], alone) {
			t.Fatalf("%q alone, %q with the second", alone, got)
		}
		// Nor does what stands before an address in angle brackets.
		if len(one) < maxFromLength-20 {
			named, namedErr := AuthorDomains([]string{"Foo) a@x> ] <" + one + ">"})
			plain, plainErr := AuthorDomains([]string{"<" + one + ">"})
			if !slices.Equal(named, plain) || (namedErr == nil) != (plainErr == nil) {
				t.Fatalf("named %q, %v, else %q, %v", named, namedErr, plain, plainErr)
			}
		}
		// How the field is folded makes no difference.
		if !strings.ContainsAny(one, `"\[`) {
			folded, foldedErr := AuthorDomains([]string{strings.ReplaceAll(one, " ", "\r\n\t")})
			plain, plainErr := AuthorDomains([]string{one})
			if len(one) < maxFromLength/3 && (!slices.Equal(folded, plain) || (foldedErr == nil) != (plainErr == nil)) {
				t.Fatalf("folded %q, %v, else %q, %v", folded, foldedErr, plain, plainErr)
			}
		}
	})
}

func BenchmarkAuthorDomains(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := AuthorDomains([]string{` "Author, Ann" <ann@mail.example.com>` + "\r\n"}); err != nil {
			b.Fatal(err)
		}
	}
}
