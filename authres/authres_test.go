package authres

import (
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ruapost"
)

// result makes a Result out of "method", "value", "reason" and properties such as
// "header.d", "example.com".
func result(method, value, reason string, properties ...string) Result {
	r := Result{Method: method, Value: value, Reason: reason}
	for i := 0; i < len(properties); i += 2 {
		ptype, name, _ := strings.Cut(properties[i], ".")
		r.Properties = append(r.Properties, Property{ptype, name, properties[i+1]})
	}
	return r
}

func TestParse(t *testing.T) {
	for name, tc := range map[string]struct {
		value string
		want  Field
	}{
		"RFC 8601 B.2, no results": {" example.org 1; none", Field{ID: "example.org"}},
		"RFC 8601 B.3": {
			" example.com;\n          spf=pass smtp.mailfrom=example.net",
			Field{ID: "example.com", Results: []Result{result("spf", "pass", "", "smtp.mailfrom", "example.net")}},
		},
		"RFC 8601 B.4, comments": {
			" example.com;\n\tauth=pass (cleartext) smtp.auth=sender@example.net;\n\tspf=pass smtp.mailfrom=example.net",
			Field{ID: "example.com", Results: []Result{
				result("auth", "pass", "", "smtp.auth", "sender@example.net"),
				result("spf", "pass", "", "smtp.mailfrom", "example.net"),
			}},
		},
		"RFC 8601 B.6, reason": {
			" example.com;\n dkim=pass reason=\"good signature\"\n  header.i=@mail-router.example.net;\n dkim=fail reason=\"bad signature\"\n  header.i=@newyork.example.com",
			Field{ID: "example.com", Results: []Result{
				result("dkim", "pass", "good signature", "header.i", "@mail-router.example.net"),
				result("dkim", "fail", "bad signature", "header.i", "@newyork.example.com"),
			}},
		},
		"RFC 8601 B.7, comments everywhere": {
			" foo.example.net (foobar) 1 (baz);\n dkim (Because I like it) / 1 (One yay) = (wait for it) fail\n" +
				"  policy (A dot can go here) . (like that) expired\n  (this surprised me) = (as I wasn't expecting it) 1362471462",
			Field{ID: "foo.example.net", Results: []Result{result("dkim", "fail", "", "policy.expired", "1362471462")}},
		},
		"RFC 8601 2.6, another version":         {" example.org 2; dkim=pass header.d=example.com", Field{ID: "example.org", Version: 2}},
		"RFC 8601 2.6, another method version":  {" example.org; dkim/2=pass header.d=a.example; spf/1=fail", Field{ID: "example.org", Results: []Result{result("spf", "fail", "")}}},
		"quoted authserv-id":                    {` "example.org" 1; spf=none`, Field{ID: "example.org", Results: []Result{result("spf", "none", "")}}},
		"semicolon in a comment":                {" example.org; spf=pass (a; dkim=pass (b;) \\) ;) smtp.helo=c.example", Field{ID: "example.org", Results: []Result{result("spf", "pass", "", "smtp.helo", "c.example")}}},
		"semicolon in a quoted string":          {` example.org; spf=pass smtp.mailfrom="a; dkim=pass header.d=x (\""@b.example`, Field{ID: "example.org", Results: []Result{result("spf", "pass", "", "smtp.mailfrom", `a; dkim=pass header.d=x ("@b.example`)}}},
		"any case":                              {" Example.ORG; DKIM=Pass Header.D=Example.COM", Field{ID: "Example.ORG", Results: []Result{result("dkim", "pass", "", "header.d", "Example.COM")}}},
		"nothing behind the authserv-id":        {" example.org", Field{ID: "example.org"}},
		"empty results":                         {" example.org;; spf=pass ; ;", Field{ID: "example.org", Results: []Result{result("spf", "pass", "")}}},
		"no result of its method":               {" example.org; dkim=; spf=(c); arc=pass", Field{ID: "example.org", Results: []Result{result("arc", "pass", "")}}},
		"properties that are none":              {" example.org; dkim=pass header.=x .d=x header.d header.d=example.com", Field{ID: "example.org", Results: []Result{result("dkim", "pass", "", "header.d", "example.com")}}},
		"folded inside a reason":                {" example.org; dkim=fail reason=\"body\n\thash\"", Field{ID: "example.org", Results: []Result{result("dkim", "fail", "body\n\thash")}}},
		"the same property twice":               {" example.org; dkim=pass header.d=a.example header.d=b.example", Field{ID: "example.org", Results: []Result{result("dkim", "pass", "", "header.d", "a.example", "header.d", "b.example")}}},
		"CVE-2020-12272, comment inside a name": {" example.org; dkim=pass header.d=legit.example(.attack.example) header.s=x", Field{ID: "example.org", Results: []Result{result("dkim", "pass", "", "header.d", "legit.example(", "header.s", "x")}}},
		"U-labels":                              {" bücher.example; spf=pass smtp.mailfrom=bücher.example", Field{ID: "bücher.example", Results: []Result{result("spf", "pass", "", "smtp.mailfrom", "bücher.example")}}},
	} {
		if tc.want.Version == 0 {
			tc.want.Version = 1
		}
		got, err := Parse(tc.value)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if d := cmp.Diff(&tc.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// What software writes, with other names.
func TestParseFieldsOfSoftware(t *testing.T) {
	for name, tc := range map[string]struct {
		value string
		want  Field
	}{
		"OpenDKIM": {
			" mx.example;\n\tdkim=pass (2048-bit key; unprotected) header.d=example.com header.i=@example.com header.a=rsa-sha256 header.s=k20201202 header.b=cuhHmj/h;\n" +
				"\tdkim=fail reason=\"signature verification failed\" (1024-bit key) header.d=example.net header.i=a@example.net header.b=\"g+dkNDxI\";\n\tdkim-atps=neutral",
			Field{ID: "mx.example", Results: []Result{
				result("dkim", "pass", "", "header.d", "example.com", "header.i", "@example.com", "header.a", "rsa-sha256", "header.s", "k20201202", "header.b", "cuhHmj/h"),
				result("dkim", "fail", "signature verification failed", "header.d", "example.net", "header.i", "a@example.net", "header.b", "g+dkNDxI"),
				result("dkim-atps", "neutral", ""),
			}},
		},
		"OpenDMARC": {
			" mx.example; dmarc=pass (p=quarantine dis=none) header.from=example.com",
			Field{ID: "mx.example", Results: []Result{result("dmarc", "pass", "", "header.from", "example.com")}},
		},
		"OpenARC": {
			` mx.example; arc=pass smtp.remote-ip="2001:db8:f403::3" arc.chain=example.com`,
			Field{ID: "mx.example", Results: []Result{result("arc", "pass", "", "smtp.remote-ip", "2001:db8:f403::3", "arc.chain", "example.com")}},
		},
		"pypolicyd-spf": {
			" mx.example; spf=pass (sender SPF authorized) smtp.mailfrom=example.com (client-ip=2001:db8::1; helo=out.example.com; envelope-from=bob@example.com; receiver=<UNKNOWN>)",
			Field{ID: "mx.example", Results: []Result{result("spf", "pass", "", "smtp.mailfrom", "example.com")}},
		},
		"rspamd": {
			" mx.example;\n\tdkim=pass header.d=example.com header.s=selector2 header.b=HwaEyBZx;\n" +
				"\tspf=pass (mx.example: domain of \"list+bounces-1-bob=mx.example@example.net\" designates 192.0.2.10 as permitted sender) smtp.mailfrom=\"list+bounces-1-bob=mx.example@example.net\";\n" +
				"\tdmarc=fail reason=\"SPF not aligned (relaxed), DKIM not aligned (relaxed)\" header.from=example.org (policy=none);\n\tarc=reject (\"cv is fail on i=2\")",
			Field{ID: "mx.example", Results: []Result{
				result("dkim", "pass", "", "header.d", "example.com", "header.s", "selector2", "header.b", "HwaEyBZx"),
				result("spf", "pass", "", "smtp.mailfrom", "list+bounces-1-bob=mx.example@example.net"),
				result("dmarc", "fail", "SPF not aligned (relaxed), DKIM not aligned (relaxed)", "header.from", "example.org"),
				result("arc", "reject", ""),
			}},
		},
		"amavis": {
			" mx.example (amavis); dkim=pass (2048-bit key)\n reason=\"pass (just generated, assumed good)\" header.d=example.com",
			Field{ID: "mx.example", Results: []Result{result("dkim", "pass", "pass (just generated, assumed good)", "header.d", "example.com")}},
		},
		"amavisd-new": {
			" mx.example (amavisd-new); dkim=softfail\n\t(fail, message has been altered) header.i=@example.com",
			Field{ID: "mx.example", Results: []Result{result("dkim", "softfail", "", "header.i", "@example.com")}},
		},
		"authentication_milter": {
			" mx.example;\n    dkim=pass (2048-bit rsa key sha256) header.d=example.com\n    header.i=@example.com header.b=ABCD0123 header.a=rsa-sha256 header.s=fm1 x-bits=2048;\n" +
				"    dmarc=pass policy.published-domain-policy=none\n    policy.evaluated-disposition=none (p=none,d=none) header.from=example.com;\n    iprev=pass smtp.remote-ip=192.0.2.10 (out.example.com)",
			Field{ID: "mx.example", Results: []Result{
				result("dkim", "pass", "", "header.d", "example.com", "header.i", "@example.com", "header.b", "ABCD0123", "header.a", "rsa-sha256", "header.s", "fm1"),
				result("dmarc", "pass", "", "policy.published-domain-policy", "none", "policy.evaluated-disposition", "none", "header.from", "example.com"),
				result("iprev", "pass", "", "smtp.remote-ip", "192.0.2.10"),
			}},
		},
		"Google": {
			" mx.google.com;\n       dkim=pass header.i=@example.com header.s=selector2 header.b=ksOGfQcS;\n       arc=pass (i=1);\n" +
				"       spf=pass (google.com: domain of bob@example.com designates 192.0.2.10 as permitted sender) smtp.mailfrom=bob@example.com",
			Field{ID: "mx.google.com", Results: []Result{
				result("dkim", "pass", "", "header.i", "@example.com", "header.s", "selector2", "header.b", "ksOGfQcS"),
				result("arc", "pass", ""),
				result("spf", "pass", "", "smtp.mailfrom", "bob@example.com"),
			}},
		},
		"Microsoft, no authserv-id": {
			" spf=none (sender IP is 192.0.2.10)\n smtp.mailfrom=example.com; lists.example.net; dkim=none (message not signed)\n" +
				" header.d=none;lists.example.net; dmarc=permerror action=none\n header.from=example.com;compauth=fail reason=001",
			Field{Results: []Result{
				result("spf", "none", "", "smtp.mailfrom", "example.com"),
				result("dkim", "none", "", "header.d", "none"),
				result("dmarc", "permerror", "", "header.from", "example.com"),
				result("compauth", "fail", "001"),
			}},
		},
		"null sender": {
			" mx.example; iprev=pass (out.example.com) smtp.remote-ip=2001:db8::2; spf=none smtp.mailfrom=<>; dmarc=skipped",
			Field{ID: "mx.example", Results: []Result{
				result("iprev", "pass", "", "smtp.remote-ip", "2001:db8::2"),
				result("spf", "none", "", "smtp.mailfrom", "<>"),
				result("dmarc", "skipped", ""),
			}},
		},
	} {
		tc.want.Version = 1
		got, err := Parse(tc.value)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if d := cmp.Diff(&tc.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// Where readers may differ about whose results these are, or what they are, nobody is
// trusted.
func TestParseErrors(t *testing.T) {
	for name, value := range map[string]string{
		"empty":                              "",
		"no authserv-id":                     " ; dkim=pass header.d=example.com",
		"empty authserv-id":                  ` ""; none`,
		"comment without an end":             " mx.example (a; dkim=pass",
		"comment without an end in a result": " mx.example; dkim=pass (a (b); spf=fail",
		"quoted authserv-id without an end":  ` "mx.example; dkim=pass`,
		"quoted string without an end":       ` mx.example; spf=pass smtp.mailfrom="a; dkim=pass header.d=example.com`,
		"quoted string that ends in \\":      ` mx.example; spf=pass smtp.mailfrom="a\`,
		"glued quotes before":                ` "mx".example; dkim=pass`,
		"glued quotes behind":                ` mx."example"; dkim=pass`,
		"queue ID":                           " mx.example/4cX0fy3FrjzySk; dkim=pass header.d=example.com",
		"comma":                              " mx.example, dkim=pass",
		"colon":                              " mx.example: dkim=pass",
		"a second word":                      " mx.example other.example; dkim=pass",
		"a negative version":                 " mx.example -1; dkim=pass",
		"two versions":                       " mx.example 1 1; dkim=pass",
		"a quoted method":                    ` "dkim"=pass`,
		"a result behind a version":          " dkim 1=pass",
		"host as a method":                   " mx.example=pass",
		"long authserv-id":                   " " + strings.Repeat("x", MaxValue+1) + "; dkim=pass",
		"too long":                           " mx.example; " + strings.Repeat("x", MaxLength),
	} {
		if f, err := Parse(value); err == nil {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestBounds(t *testing.T) {
	f, err := Parse("mx.example" + strings.Repeat("; dkim=pass", MaxResults+1))
	if err != nil || len(f.Results) != MaxResults {
		t.Errorf("%d results, %v", len(f.Results), err)
	}
	f, err = Parse("mx.example; dkim=pass" + strings.Repeat(" header.d=x", MaxProperties+1))
	if err != nil || len(f.Results[0].Properties) != MaxProperties {
		t.Errorf("%+v, %v", f, err)
	}
	// Cut off anywhere, the name would be another one's.
	long := strings.Repeat("x", MaxValue-len("@legit.example")) + "@legit.example"
	f, err = Parse("mx.example; spf=pass reason=" + long + "x smtp.mailfrom=" + long + ".attack.example smtp.helo=" + long)
	want := []Result{result("spf", "pass", "", "smtp.helo", long)}
	if err != nil || !reflect.DeepEqual(f.Results, want) {
		t.Errorf("%+v, %v", f, err)
	}

	var many Field
	many.ID = "mx.example"
	for range MaxResults + 1 {
		r := result("dkim", "pass", strings.Repeat("x", MaxValue+1), "header.d", strings.Repeat("x", MaxValue+1))
		for range MaxProperties + 1 {
			r.Properties = append(r.Properties, Property{"header", "d", strings.Repeat(`"`, MaxValue)})
		}
		many.Results = append(many.Results, r)
	}
	if n := strings.Count((&Field{ID: "a", Results: many.Results[:1]}).Format(), "header.d"); n != MaxProperties {
		t.Errorf("%d properties written", n)
	}
	if f, err = Parse(many.Format()); err != nil || len(f.Results) == 0 || len(f.Results[0].Properties) != MaxProperties {
		t.Errorf("%+v, %v", f, err)
	}
}

// Reading takes time that grows with the length of the field only.
func BenchmarkParse(b *testing.B) {
	for name, value := range map[string]string{
		"OpenDKIM": " mx.example;\n\tdkim=pass (2048-bit key; unprotected) header.d=example.com header.i=@example.com header.a=rsa-sha256 header.s=k20201202 header.b=cuhHmj/h;\n\tdkim-atps=neutral",
		"comments": "mx.example; a=b " + strings.Repeat("(", MaxLength/2-20) + strings.Repeat(")", MaxLength/2-20),
		"quotes":   "mx.example; a=b " + strings.Repeat(`"`, MaxLength-20),
		"words":    "mx.example; a=b " + strings.Repeat("a.b=c ", MaxLength/6-20),
		"results":  "mx.example" + strings.Repeat(";a=b", MaxLength/4-20),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(value)))
			for b.Loop() {
				if _, err := Parse(value); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestFormat(t *testing.T) {
	for name, tc := range map[string]struct {
		f    Field
		want string
	}{
		"no results": {Field{ID: "mx.example"}, "mx.example; none"},
		"results": {
			Field{ID: "mx.example", Results: []Result{
				result("spf", "pass", "", "smtp.mailfrom", "example.com"),
				result("dkim", "policy", "too many", "header.d", "example.com", "header.b", "a/b"),
			}},
			"mx.example;\n\tspf=pass smtp.mailfrom=example.com;\n\tdkim=policy reason=\"too many\" header.d=example.com header.b=\"a/b\"",
		},
		"empty value":            {Field{ID: "a", Results: []Result{result("spf", "none", "", "smtp.mailfrom", "")}}, "a;\n\tspf=none smtp.mailfrom=\"\""},
		"line ends":              {Field{ID: "a", Results: []Result{result("spf", "none", "x\r\nBcc: y", "smtp.helo", "a\r\n\r\nb")}}, "a;\n\tspf=none reason=\"x  Bcc: y\" smtp.helo=\"a    b\""},
		"quotes":                 {Field{ID: `a"b`, Results: []Result{result("spf", "none", "", "smtp.helo", `\"; dkim=pass`)}}, `"a\"b"` + ";\n\t" + `spf=none smtp.helo="\\\"; dkim=pass"`},
		"others than ASCII":      {Field{ID: "a", Results: []Result{result("spf", "none", "", "smtp.helo", "bü\x7f\xff.example")}}, "a;\n\tspf=none smtp.helo=\"b?  .example\""},
		"words that are none":    {Field{ID: "a", Results: []Result{result("spf;", "pass", ""), result("spf", "pass\n", ""), result("", "pass", ""), result("spf", "", "")}}, "a; none"},
		"property that is none":  {Field{ID: "a", Results: []Result{{"spf", "pass", "", []Property{{"smtp; x", "helo", "a"}, {"smtp", "", "a"}, {"", "helo", "a"}}}}}, "a;\n\tspf=pass"},
		"a reason is no keyword": {Field{ID: "a", Results: []Result{result("spf", "pass", "ok")}}, "a;\n\tspf=pass reason=ok"},
	} {
		if got := tc.f.Format(); got != tc.want {
			t.Errorf("%s:\n%q, want\n%q", name, got, tc.want)
		}
	}
}

func TestValues(t *testing.T) {
	r := result("dkim", "pass", "", "header.d", "a", "smtp.d", "b", "header.d", "a", "header.d", "c", "header.s", "d")
	if d := cmp.Diff([]string{"a", "c"}, r.Values("header", "d")); d != "" {
		t.Error(d)
	}
	if v := r.Values("header", "i"); v != nil {
		t.Error(v)
	}
}

const us = "mx.receiver.example"

func TestClaimsToBe(t *testing.T) {
	for value, forged := range map[string]bool{
		" mx.receiver.example; none":                  true,
		" mx.receiver.example 1; none":                true,
		" mx.receiver.example/1; none":                true,
		" mx.receiver.example, none":                  true,
		" mx.receiver.example: none":                  true,
		" mx.receiver.example=x":                      true,
		" mx.receiver.example.":                       true,
		"\fmx.receiver.example; none":                 true,
		"\v\x00\x7f MX.receiver.example\f1; x":        true,
		" mx.receiver.example(c); none":               true,
		" (a (b) \\) c)\n\t mx.receiver.example;":     true,
		" \"mx.receiver.example\"; none":              true,
		" \"mx.receiver\n .example\"; none":           true,
		" \"mx.\\receiver.example\"; none":            true,
		" \"mx.receiver.exam\x0cple\"":                true,
		" \"mx\".receiver.example; none":              true, // no authserv-id at all
		" mx.\"receiver\".example; none":              true,
		" mx.receiver.example\xa0; none":              true,
		" mx.receiver.example\u00a0; none":            true,
		" \uff4dx.receiver.example; none":             true, // full width
		" ;":                                          true,
		"":                                            true,
		" (":                                          true,
		" \"mx":                                       true,
		" =?utf-8?Q?mx.receiver.example?=":            true,
		" mx.receiver.example.org; dmarc=pass":        false,
		" xmx.receiver.example; dmarc=pass":           false,
		" other.example/1; x=\"mx.receiver.example\"": false,
		" other.example (mx.receiver.example); none":  false,
		" \"other.example\" 1; none":                  false,
		" bücher.example; none":                       false,
		" gateway_7; none":                            false,
	} {
		if got := ClaimsToBe(value, us); got != forged {
			t.Errorf("%q: %v", value, got)
		}
	}
	if !ClaimsToBe(" bücher.example; none", "xn--bcher-kva.example") {
		t.Error("RFC 8601 5: U-labels are not compared as A-labels")
	}
}

// written is s as Format writes it.
func written(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 0x7f {
			return '?'
		}
		return r
	}, ruapost.Clean(s, MaxValue))
}

// check fails if Parse does not read from what Format writes of f what f says.
func check(t *testing.T, f *Field) {
	t.Helper()
	want := &Field{ID: withoutBlanks(written(f.ID)), Version: 1}
	if want.ID == "" || len(f.ID) > MaxValue {
		return
	}
	for _, r := range f.Results {
		if !isKeyword(r.Method) || !isKeyword(r.Value) {
			continue
		}
		w := Result{Method: strings.ToLower(r.Method), Value: strings.ToLower(r.Value)}
		if len(r.Reason) <= MaxValue {
			w.Reason = written(r.Reason)
		}
		for _, p := range r.Properties {
			if isKeyword(p.Type) && isKeyword(p.Name) && len(p.Value) <= MaxValue {
				w.Properties = append(w.Properties, Property{strings.ToLower(p.Type), strings.ToLower(p.Name), written(p.Value)})
			}
		}
		want.Results = append(want.Results, w)
	}
	text := f.Format()
	if strings.Trim(strings.ReplaceAll(text, "\n\t", " "), " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~") != "" {
		t.Fatalf("not for a header field: %q", text)
	}
	got, err := Parse(text)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("%q: %s", text, d)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		" mx.example; none", "(c) mx 1;", `"a\"b"; x`, "(", "", " spf=pass (a) smtp.mailfrom=b; c",
		" mx; dkim/1=pass (2048-bit; key) reason=\"a b\" header.d=a(b) header.b=\"c/d\" x=y; spf=fail",
		" mx.receiver.example; arc=none =; dkim=pass header.i=\"a;b\"@c.example",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		claims := ClaimsToBe(s, us)
		field, err := Parse(s)
		if err != nil {
			return
		}
		// Parse never trusts more than ClaimsToBe suspects.
		if SameID(field.ID, us) && !claims {
			t.Fatalf("%q has our authserv-id but does not claim it", s)
		}
		if len(field.Results) > MaxResults {
			t.Fatalf("%d results", len(field.Results))
		}
		if len(s) < MaxLength/4 {
			check(t, field)
		}
	})
}

func FuzzFormat(f *testing.F) {
	f.Add("mx.example", "dkim", "pass", "too good", "header", "d", "example.com")
	f.Add("a b", "dkim=", "pass;", "\r\n", "reason", "none", "\"\\;(")
	f.Fuzz(func(t *testing.T, id, method, value, reason, ptype, name, text string) {
		r := Result{method, value, reason, []Property{{ptype, name, text}, {"header", "d", text}}}
		check(t, &Field{ID: id, Results: []Result{r, {Method: "spf", Value: "pass"}, r}})
	})
}
