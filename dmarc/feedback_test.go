package dmarc

import (
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseReport(t *testing.T) {
	const body = `<report_metadata><email>a@b.example</email><org_name> O &amp; Co </org_name><report_id>1</report_id>
		<date_range><end> 86399 </end><begin>0</begin></date_range><error>one</error><error lang="en">two</error></report_metadata>
		<policy_published><p>none</p><domain>example.com</domain><unknown/></policy_published>
		<record><row><count>2</count><source_ip>2001:db8::1</source_ip>
		<policy_evaluated><disposition>unheard of</disposition><dkim>pass</dkim><spf>fail</spf>
		<reason><comment>c</comment><type>forwarded</type></reason></policy_evaluated></row>
		<identifiers><header_from>example.com</header_from></identifiers>
		<auth_results><spf><domain>x.example</domain><result>hardfail</result></spf></auth_results></record>`
	want := &Feedback{
		Metadata: FeedbackMetadata{OrgName: " O & Co ", Email: "a@b.example", ReportID: "1", End: 86399, Errors: []string{"one", "two"}},
		Policy:   FeedbackPolicy{Domain: "example.com", P: "none"},
		Records: []FeedbackRecord{{
			SourceIP: "2001:db8::1", Count: 2, Disposition: "unheard of", DKIM: "pass", SPF: "fail",
			Reasons: []FeedbackReason{{"forwarded", "c"}}, HeaderFrom: "example.com",
			SPFResults: []FeedbackAuth{{Domain: "x.example", Result: "hardfail"}},
		}},
	}
	tests := []struct{ name, open, end string }{
		{"no namespace", "<feedback>", "</feedback>"},
		{"RFC 9990", `<?xml version="1.0"?><feedback xmlns="urn:ietf:params:xml:ns:dmarc-2.0">`, "</feedback>"},
		{"RFC 7489", `<feedback xmlns="http://dmarc.org/dmarc-xml/0.1">`, "</feedback>\n<!-- end -->\n"},
		{"prefix", `<d:feedback xmlns:d="urn:ietf:params:xml:ns:dmarc-2.0">`, "</d:feedback>"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseReport(strings.NewReader(tt.open + body + tt.end))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Feedback{}, "XMLName")); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseReportBad(t *testing.T) {
	tests := []struct {
		name, xml, err string
	}{
		{"empty", "", "EOF"},
		{"no XML", "hello", "EOF"},
		{"another document", "<html></html>", "expected element type <feedback>"},
		{"cut off", "<feedback><record>", "unexpected EOF"},
		{"not a number", "<feedback><record><row><count>x</count></row></record></feedback>", "invalid syntax"},
		{"two documents", "<feedback></feedback><feedback></feedback>", "content behind"},
		{"text behind", "<feedback></feedback>x", "content behind"},
		{"entity", `<!DOCTYPE f [<!ENTITY a "aaa">]><feedback><version>&a;</version></feedback>`, "invalid character entity"},
		{"other encoding", `<?xml version="1.0" encoding="utf-7"?><feedback></feedback>`, "encoding"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := ParseReport(strings.NewReader(tt.xml))
			if err == nil || f != nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %+v, %v, want %q", f, err, tt.err)
			}
		})
	}
}

func TestParseReportBound(t *testing.T) {
	const document = "<feedback><version>1.0</version></feedback>"
	if _, err := parseReport(strings.NewReader(document), int64(len(document))); err != nil {
		t.Error(err)
	}
	for _, r := range []io.Reader{
		strings.NewReader(document + " "),
		io.MultiReader(strings.NewReader("<feedback>"), blanks{}),
		io.MultiReader(strings.NewReader(document), blanks{}),
	} {
		if f, err := parseReport(r, int64(len(document))); err == nil || !strings.Contains(err.Error(), "larger than 43 octets") {
			t.Errorf("got %+v, %v", f, err)
		}
	}
}

// blanks is XML text without an end.
type blanks struct{}

func (blanks) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func FuzzParseReport(f *testing.F) {
	f.Add(string(writeReport(f, RFC9990, sampleReport(), sampleResults()...)))
	f.Add(string(writeReport(f, RFC7489, sampleReport(), sampleResults()...)))
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseReport(strings.NewReader(s))
		if (got == nil) != (err != nil) {
			t.Fatalf("%v, %v", got, err)
		}
		if err == nil && got.XMLName.Local != "feedback" {
			t.Fatalf("%+v", got.XMLName)
		}
	})
}
