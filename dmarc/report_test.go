package dmarc

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"ruapost"
)

var update = flag.Bool("update", false, "write the golden reports anew")

var formats = []Format{RFC9990, RFC7489}

// counted is a row before it is put into JSON.
type counted struct {
	count int64
	ruapost.DMARCResult
}

func rowsOf(t testing.TB, results ...counted) iter.Seq2[ruapost.Row, error] {
	t.Helper()
	var rows []ruapost.Row
	for _, res := range results {
		data, err := json.Marshal(res.DMARCResult)
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, ruapost.Row{Count: res.count, Data: data})
	}
	return func(yield func(ruapost.Row, error) bool) {
		for _, row := range rows {
			if !yield(row, nil) {
				return
			}
		}
	}
}

func sampleReport() *Report {
	return &Report{
		OrgName:      "Receiver & Sons",
		Email:        "reports@receiver.example",
		ExtraContact: "https://receiver.example/dmarc?a=1&b=2",
		ReportID:     "6f1c0d7be0a94f2c8d1e5a7b9c3d2e10",
		Window:       ruapost.Day(time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)),
		Policy: ruapost.DMARCPolicy{
			Domain: "sender.example", P: "reject", SP: "quarantine", ADKIM: "r", ASPF: "s", FO: "1:d", Testing: true,
			Percent: 50, Discovery: "treewalk", Error: "ri=x: not a number of seconds",
		},
		Errors: []string{"12 messages beyond the limit of rows are not listed"},
	}
}

func sampleResults() []counted {
	return []counted{
		{17, ruapost.DMARCResult{
			SourceIP: netip.MustParseAddr("192.0.2.25"), Disposition: "pass", AlignedDKIM: true,
			HeaderFrom: "news.sender.example", EnvelopeFrom: "bounce.esp.example", EnvelopeTo: "receiver.example",
			DKIM: []ruapost.DKIMResult{
				{Domain: "sender.example", Selector: "s2026", Result: "pass"},
				{Domain: "esp.example", Selector: "k1", Result: "permerror", Reason: "key of 512 bits <too short>"},
			},
			SPF: ruapost.SPFResult{Domain: "bounce.esp.example", Result: "pass"},
		}},
		{1, ruapost.DMARCResult{ // a bounce, softened by t=y
			SourceIP: netip.MustParseAddr("::ffff:198.51.100.7"), Disposition: "quarantine", HeaderFrom: "sender.example",
			Overrides: []ruapost.Override{
				{Type: ruapost.OverridePolicyTestMode},
				{Type: ruapost.OverrideLocalPolicy, Comment: "arc=pass as[1].d=lists.example as[1].s=arc"},
			},
			SPF: ruapost.SPFResult{Domain: "mta.lists.example", Helo: true, Result: "softfail"},
		}},
		{3, ruapost.DMARCResult{ // a bounce from a client that greets with an address
			SourceIP: netip.MustParseAddr("203.0.113.9"), Disposition: "reject", HeaderFrom: "sender.example",
			SPF: ruapost.SPFResult{Result: "none"},
		}},
		{0, ruapost.DMARCResult{SourceIP: netip.MustParseAddr("203.0.113.10"), HeaderFrom: "never-shown.example"}},
	}
}

func TestWriteReportGolden(t *testing.T) {
	setVersion(t)
	for _, format := range formats {
		t.Run(string(format), func(t *testing.T) {
			got := writeReport(t, format, sampleReport(), sampleResults()...)
			golden := filepath.Join("testdata", string(format)+".xml")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
			validate(t, format, got)
		})
	}
}

func setVersion(t *testing.T) {
	old := ruapost.Version
	ruapost.Version = "1.2.3"
	t.Cleanup(func() { ruapost.Version = old })
}

func writeReport(t testing.TB, f Format, r *Report, results ...counted) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteReport(&b, f, r, rowsOf(t, results...)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// validate checks a report against the published schemas, if DMARC_SCHEMA_DIR
// names a directory that has them as dmarc-rfc9990.xsd and dmarc-rfc7489.xsd;
// they are not part of this project. Without it the test has still compared all
// that it names with what the parser reads.
func validate(t testing.TB, f Format, reports ...[]byte) {
	t.Helper()
	dir := os.Getenv("DMARC_SCHEMA_DIR")
	if dir == "" {
		return
	}
	args := []string{"--noout", "--schema", filepath.Join(dir, "dmarc-"+string(f)+".xsd")}
	tmp := t.TempDir()
	for i, report := range reports {
		name := filepath.Join(tmp, fmt.Sprintf("%d.xml", i))
		if err := os.WriteFile(name, report, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, name)
	}
	out, err := exec.CommandContext(t.Context(), "xmllint", args...).CombinedOutput()
	if n := strings.Count(string(out), ".xml validates\n"); err != nil || n != len(reports) {
		t.Errorf("xmllint: %v, %d of %d valid\n%s", err, n, len(reports), out)
	}
}

func TestWriteReportPolicyDefaults(t *testing.T) {
	// RFC 9990 3.1.1.5: what is not published is reported with what it stands for.
	tests := []struct {
		p, sp, np      ruapost.Disposition
		wantSP, wantNP string
	}{
		{"reject", "", "", "reject", "reject"},
		{"reject", "none", "", "none", "none"},
		{"none", "", "quarantine", "none", "quarantine"},
		{"none", "reject", "quarantine", "reject", "quarantine"},
	}
	for _, tt := range tests {
		r := sampleReport()
		r.Policy.P, r.Policy.SP, r.Policy.NP = tt.p, tt.sp, tt.np
		got := parse(t, writeReport(t, RFC9990, r, sampleResults()...)).Policy
		if got.P != string(tt.p) || got.SP != tt.wantSP || got.NP != tt.wantNP {
			t.Errorf("%+v: got %s, %s, %s", tt, got.P, got.SP, got.NP)
		}
		old := parse(t, writeReport(t, RFC7489, r, sampleResults()...)).Policy
		if old.SP != tt.wantSP || old.NP != "" {
			t.Errorf("%+v: got %s, %s by RFC 7489", tt, old.SP, old.NP)
		}
	}
}

func parse(t testing.TB, report []byte) *Feedback {
	t.Helper()
	f, err := ParseReport(bytes.NewReader(report))
	if err != nil {
		t.Fatalf("%v\n%s", err, report)
	}
	return f
}

// Words that a form does not know must not make the report invalid.
func TestWriteReportWords(t *testing.T) {
	res := counted{1, ruapost.DMARCResult{SourceIP: netip.MustParseAddr("192.0.2.1"), HeaderFrom: "sender.example"}}
	tests := []struct {
		name      string
		set       func(r *counted)
		get       func(f *FeedbackRecord) string
		want, old string // by RFC 9990, RFC 7489
	}{
		{"disposition pass", func(r *counted) { r.Disposition = "pass" }, func(f *FeedbackRecord) string { return f.Disposition }, "pass", "none"},
		{"disposition unknown", func(r *counted) { r.Disposition = "" }, func(f *FeedbackRecord) string { return f.Disposition }, "none", "none"},
		{"SPF policy", func(r *counted) { r.SPF = ruapost.SPFResult{Domain: "a.example", Result: "policy"} }, func(f *FeedbackRecord) string { return f.SPFResults[0].Result }, "policy", "neutral"},
		{"SPF unknown", func(r *counted) { r.SPF = ruapost.SPFResult{Domain: "a.example", Result: "hardfail"} }, func(f *FeedbackRecord) string { return f.SPFResults[0].Result }, "neutral", "neutral"},
		{"SPF of HELO", func(r *counted) { r.SPF = ruapost.SPFResult{Domain: "a.example", Helo: true, Result: "pass"} }, func(f *FeedbackRecord) string { return f.SPFResults[0].Scope }, "", "helo"},
		{"SPF of MAIL FROM", func(r *counted) { r.SPF = ruapost.SPFResult{Domain: "a.example", Result: "pass"} }, func(f *FeedbackRecord) string { return f.SPFResults[0].Scope }, "mfrom", "mfrom"},
		{"no SPF domain", func(r *counted) { r.SPF = ruapost.SPFResult{Result: "none"} }, func(f *FeedbackRecord) string { return fmt.Sprintf("%+v", f.SPFResults) }, "[]", "[{Domain: Selector: Scope:helo Result:none HumanResult:}]"},
		{"DKIM softfail", func(r *counted) { r.DKIM = []ruapost.DKIMResult{{Domain: "a.example", Result: "softfail"}} }, func(f *FeedbackRecord) string { return f.DKIMResults[0].Result }, "neutral", "neutral"},
		{"test mode", func(r *counted) { r.Overrides = []ruapost.Override{{Type: "policy_test_mode", Comment: "c"}} }, func(f *FeedbackRecord) string { return fmt.Sprint(f.Reasons) }, "[{policy_test_mode c}]", "[{other policy_test_mode: c}]"},
		{"sampled out", func(r *counted) { r.Overrides = []ruapost.Override{{Type: "sampled_out"}} }, func(f *FeedbackRecord) string { return fmt.Sprint(f.Reasons) }, "[{other sampled_out}]", "[{sampled_out }]"},
		{"forwarded", func(r *counted) { r.Overrides = []ruapost.Override{{Type: "forwarded", Comment: "c"}} }, func(f *FeedbackRecord) string { return fmt.Sprint(f.Reasons) }, "[{local_policy forwarded: c}]", "[{forwarded c}]"},
		{"trusted forwarder", func(r *counted) { r.Overrides = []ruapost.Override{{Type: "trusted_forwarder", Comment: "c"}} }, func(f *FeedbackRecord) string { return fmt.Sprint(f.Reasons) }, "[{trusted_forwarder c}]", "[{trusted_forwarder c}]"},
		{"override unknown", func(r *counted) { r.Overrides = []ruapost.Override{{Type: "whim", Comment: "c"}} }, func(f *FeedbackRecord) string { return fmt.Sprint(f.Reasons) }, "[{other whim: c}]", "[{other whim: c}]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res := res
			tt.set(&res)
			for i, want := range []string{tt.want, tt.old} {
				report := writeReport(t, formats[i], sampleReport(), res)
				if got := tt.get(&parse(t, report).Records[0]); got != want {
					t.Errorf("%s: got %s, want %s", formats[i], got, want)
				}
				validate(t, formats[i], report)
			}
		})
	}
}

// Readers insist on elements that are empty.
func TestWriteReportEmptyElements(t *testing.T) {
	res := counted{1, ruapost.DMARCResult{
		SourceIP: netip.MustParseAddr("192.0.2.1"), HeaderFrom: "sender.example",
		DKIM: []ruapost.DKIMResult{{Domain: "a.example", Result: "permerror"}},
	}}
	for _, format := range formats {
		report := string(writeReport(t, format, sampleReport(), res))
		for _, element := range []string{"<envelope_from></envelope_from>", "<selector></selector>"} {
			if !strings.Contains(report, element) {
				t.Errorf("%s: no %s in\n%s", format, element, report)
			}
		}
	}
}

func TestWriteReportIPv6(t *testing.T) {
	res := counted{1, ruapost.DMARCResult{SourceIP: netip.MustParseAddr("2001:db8::25%eth0"), HeaderFrom: "sender.example"}}
	for _, format := range formats {
		if got := parse(t, writeReport(t, format, sampleReport(), res)).Records[0].SourceIP; got != "2001:db8::25" {
			t.Errorf("%s: source_ip %s", format, got)
		}
	}
	// The pattern of the RFC 7489 schema refuses this address (RFC errata 5221,
	// 7865), so only the other one is asked.
	validate(t, RFC9990, writeReport(t, RFC9990, sampleReport(), res))
}

// RFC 9990 3.1.3: at most 100 signatures, those that tell most.
func TestWriteReportSignatures(t *testing.T) {
	sig := func(domain string, result ruapost.AuthResult) ruapost.DKIMResult {
		return ruapost.DKIMResult{Domain: domain, Selector: "s", Result: result}
	}
	var dkim []ruapost.DKIMResult
	for range 60 {
		dkim = append(dkim, sig("a.sender.example", "fail"), sig("other.example", "pass"))
	}
	dkim = append(dkim, sig("notsender.example", "pass"), sig("sender.example", "pass"), sig("a.sender.example", "pass"), sig("b.sender.example", "pass"))
	res := counted{1, ruapost.DMARCResult{SourceIP: netip.MustParseAddr("192.0.2.1"), HeaderFrom: "a.sender.example", DKIM: dkim}}

	got := parse(t, writeReport(t, RFC9990, sampleReport(), res)).Records[0].DKIMResults
	if len(got) != maxSignatures {
		t.Fatalf("%d signatures", len(got))
	}
	for i, want := range []string{"a.sender.example pass", "sender.example pass", "b.sender.example pass", "other.example pass"} {
		if has := got[i].Domain + " " + got[i].Result; has != want {
			t.Errorf("signature %d: %s, want %s", i, has, want)
		}
	}
	if last := got[maxSignatures-1]; last.Result != "fail" {
		t.Errorf("last signature %+v", last)
	}

	// A hundred stay in the order of the header.
	res.DKIM = dkim[:maxSignatures]
	got = parse(t, writeReport(t, RFC9990, sampleReport(), res)).Records[0].DKIMResults
	if len(got) != maxSignatures || got[0].Result != "fail" || got[1].Result != "pass" || got[2].Result != "fail" {
		t.Errorf("%d signatures, beginning %+v", len(got), got[:3])
	}
}

func TestWriteReportErrors(t *testing.T) {
	boom := errors.New("boom")
	good := sampleResults()[:1]
	failing := func(yield func(ruapost.Row, error) bool) {
		for row := range rowsOf(t, good...) {
			if !yield(row, nil) {
				return
			}
		}
		yield(ruapost.Row{}, boom)
	}
	raw := func(data string) iter.Seq2[ruapost.Row, error] {
		return func(yield func(ruapost.Row, error) bool) {
			yield(ruapost.Row{Count: 1, Data: json.RawMessage(data)}, nil)
		}
	}
	tests := []struct {
		name   string
		w      io.Writer
		change func(r *Report)
		rows   iter.Seq2[ruapost.Row, error]
		is     error
		text   string
	}{
		{name: "no rows", rows: rowsOf(t), is: ErrNoRows},
		{name: "only rows without a count", rows: rowsOf(t, counted{0, good[0].DMARCResult}, counted{-3, good[0].DMARCResult}), is: ErrNoRows},
		{name: "rows fail", rows: failing, is: boom},
		{name: "no JSON", rows: raw(`{"ip":`), text: "row of report"},
		{name: "JSON of something else", rows: raw(`{"ip":7}`), text: "row of report"},
		{name: "no address", rows: raw(`{}`), text: "no source address"},
		{name: "writer fails", w: failingWriter{boom}, rows: rowsOf(t, good...), is: boom},
		{name: "no organization", change: func(r *Report) { r.OrgName = "" }, rows: rowsOf(t, good...), text: "without an organization"},
		{name: "no address of the organization", change: func(r *Report) { r.Email = "" }, rows: rowsOf(t, good...), text: "without an organization"},
		{name: "no identifier", change: func(r *Report) { r.ReportID = "" }, rows: rowsOf(t, good...), text: "without an organization"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := sampleReport()
			if tt.change != nil {
				tt.change(r)
			}
			var b bytes.Buffer
			w := io.Writer(&b)
			if tt.w != nil {
				w = tt.w
			}
			err := WriteReport(w, RFC9990, r, tt.rows)
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v %s", err, tt.is, tt.text)
			}
			if errors.Is(err, ErrNoRows) && b.Len() > 0 {
				t.Errorf("written for no rows: %s", &b)
			}
		})
	}

	t.Run("stops reading rows when the writer fails", func(t *testing.T) {
		row := firstRow(t, good[0])
		read := 0
		endless := func(yield func(ruapost.Row, error) bool) {
			for read = 0; read < 1_000_000 && yield(row, nil); read++ {
			}
		}
		if err := WriteReport(failingWriter{boom}, RFC9990, sampleReport(), endless); !errors.Is(err, boom) || read > 1000 {
			t.Errorf("%v after %d rows", err, read)
		}
	})
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func firstRow(t testing.TB, res counted) ruapost.Row {
	for row := range rowsOf(t, res) {
		return row
	}
	return ruapost.Row{}
}

// Whatever stands in a row or the configuration, the report is well-formed, valid
// and reads back as the cleaned texts.
func TestWriteReportHostile(t *testing.T) {
	setVersion(t)
	written := map[Format][][]byte{}
	rapid.Check(t, func(t *rapid.T) {
		r, results := drawReport(t)
		format := rapid.SampledFrom(formats).Draw(t, "format")
		var b bytes.Buffer
		if err := WriteReport(&b, format, r, drawnRows(t, results)); err != nil {
			t.Fatal(err)
		}
		got, err := ParseReport(bytes.NewReader(b.Bytes()))
		if err != nil {
			t.Fatalf("%v\n%s", err, &b)
		}
		if diff := cmp.Diff(expected(format, r, results), got, cmpopts.IgnoreFields(Feedback{}, "XMLName"), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("report (-want +got):\n%s\n%s", diff, &b)
		}
		wantSpace := ""
		if format == RFC9990 {
			wantSpace = "urn:ietf:params:xml:ns:dmarc-2.0"
		}
		if got.XMLName != (xml.Name{Space: wantSpace, Local: "feedback"}) {
			t.Fatalf("root %v", got.XMLName)
		}
		if len(written[format]) < 100 {
			written[format] = append(written[format], bytes.Clone(b.Bytes()))
		}
	})
	for _, format := range formats {
		validate(t, format, written[format]...)
	}
}

func drawnRows(t *rapid.T, results []counted) iter.Seq2[ruapost.Row, error] {
	return func(yield func(ruapost.Row, error) bool) {
		for _, res := range results {
			data, err := json.Marshal(res.DMARCResult)
			if err != nil {
				t.Fatal(err)
			}
			if !yield(ruapost.Row{Count: res.count, Data: data}, nil) {
				return
			}
		}
	}
}

// hostile are texts that break naive XML, with others between.
func hostile() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.SampledFrom([]string{
			"example.com", "", "</domain><x>", "]]>", "<![CDATA[", "&amp;", "&#0;", "\x00", "a\x1b[2J", "\ufffe\uffff", "\xff\xfe",
			"\ud7ff\ue000", "\r\n", " a ", "<!--", "--><!DOCTYPE x>", "\u2028\u202e", `"'`, strings.Repeat("<", 2*maxText), strings.Repeat("ü", maxText),
		}),
		rapid.String(),
		rapid.StringOf(rapid.RuneFrom([]rune("<>&;]\"'\x00\x01\x0b\t\n\r\ufffd\U0010ffff a.é"))),
		rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }),
	)
}

func drawReport(t *rapid.T) (*Report, []counted) {
	text := func(name string) string { return hostile().Draw(t, name) }
	word := func(name string, words ...string) string {
		return rapid.OneOf(rapid.SampledFrom(words), hostile()).Draw(t, name)
	}
	disposition := func(name string) ruapost.Disposition {
		return ruapost.Disposition(word(name, "none", "quarantine", "reject", "pass"))
	}
	authResult := func(name string) ruapost.AuthResult {
		return ruapost.AuthResult(word(name, "none", "pass", "fail", "softfail", "policy", "neutral", "temperror", "permerror"))
	}
	r := &Report{
		OrgName: "o" + text("org"), Email: "e" + text("email"), ExtraContact: text("extra"), ReportID: "1" + text("id"),
		Window: ruapost.Day(time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "day"), 0)),
		Policy: ruapost.DMARCPolicy{
			Domain: text("domain"), P: disposition("p"), SP: disposition("sp"), NP: disposition("np"),
			ADKIM: ruapost.Alignment(word("adkim", "r", "s")), ASPF: ruapost.Alignment(word("aspf", "r", "s")),
			FO: text("fo"), Testing: rapid.Bool().Draw(t, "t"), Percent: rapid.IntRange(0, 100).Draw(t, "pct"),
			Discovery: word("discovery", "treewalk", "psl"), Error: text("error"),
		},
		Errors: rapid.SliceOfN(hostile(), 0, 2).Draw(t, "errors"),
	}
	results := make([]counted, rapid.IntRange(1, 3).Draw(t, "rows"))
	for i := range results {
		var ip [4]byte // IPv4, for the RFC 7489 schema's sake
		copy(ip[:], rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "ip"))
		res := &results[i]
		res.count = rapid.Int64Range(1, 1<<40).Draw(t, "count")
		res.DMARCResult = ruapost.DMARCResult{
			SourceIP: netip.AddrFrom4(ip), Disposition: disposition("disposition"),
			AlignedDKIM: rapid.Bool().Draw(t, "dkim"), AlignedSPF: rapid.Bool().Draw(t, "spf"),
			HeaderFrom: text("from"), EnvelopeFrom: text("mail_from"), EnvelopeTo: text("rcpt_to"),
			SPF: ruapost.SPFResult{Domain: text("spf domain"), Helo: rapid.Bool().Draw(t, "helo"), Result: authResult("spf result")},
		}
		for range rapid.IntRange(0, 2).Draw(t, "overrides") {
			kind := word("type", "local_policy", "mailing_list", "other", "policy_test_mode", "trusted_forwarder", "forwarded", "sampled_out")
			res.Overrides = append(res.Overrides, ruapost.Override{Type: ruapost.OverrideType(kind), Comment: text("comment")})
		}
		for range rapid.IntRange(0, 2).Draw(t, "signatures") {
			res.DKIM = append(res.DKIM, ruapost.DKIMResult{Domain: text("d"), Selector: text("s"), Result: authResult("result"), Reason: text("reason")})
		}
	}
	return r, results
}

// expected is what the report must say, worked out in another way than the
// writer does.
func expected(f Format, r *Report, results []counted) *Feedback {
	plain := func(s string) string { return ruapost.Clean(s, maxText) }
	clean := func(s string) string { // of rows, whose invalid UTF-8 JSON has replaced
		data, _ := json.Marshal(s)
		json.Unmarshal(data, &s)
		return plain(s)
	}
	among := func(word, words, other string) string {
		if word != "" && regexp.MustCompile(`^(`+words+`)$`).MatchString(word) && !strings.Contains(word, "\n") {
			return word
		}
		return other
	}
	policy := func(d ruapost.Disposition) string { return among(string(d), "quarantine|reject", "none") }
	p := r.Policy
	want := &Feedback{
		Version: "1.0",
		Metadata: FeedbackMetadata{
			OrgName: plain(r.OrgName), Email: plain(r.Email), ExtraContact: plain(r.ExtraContact), ReportID: plain(r.ReportID),
			Begin: r.Window.Start.Unix(), End: r.Window.Start.Unix() + 86399,
		},
		Policy: FeedbackPolicy{
			Domain: plain(p.Domain), P: policy(p.P), SP: policy(p.SP),
			ADKIM: among(string(p.ADKIM), "s", "r"), ASPF: among(string(p.ASPF), "s", "r"), FO: plain(p.FO),
		},
	}
	if p.SP == "" {
		want.Policy.SP = want.Policy.P
	}
	errs := r.Errors
	if p.Error != "" {
		errs = append([]string{p.Error}, errs...)
	}
	if len(errs) > 0 {
		want.Metadata.Errors = []string{plain(strings.Join(errs, "; "))}
	}
	dispositions, spfResults, overrides := "quarantine|reject", "none|pass|fail|softfail|temperror|permerror", "local_policy|mailing_list|trusted_forwarder"
	if f == RFC9990 {
		want.Metadata.Generator = "ruapost 1.2.3"
		want.Policy.Testing = map[bool]string{true: "y", false: "n"}[p.Testing]
		want.Policy.Discovery = among(p.Discovery, "psl", "treewalk")
		want.Policy.NP = policy(p.NP)
		if p.NP == "" {
			want.Policy.NP = want.Policy.SP
		}
		dispositions += "|pass"
		spfResults += "|policy"
		overrides += "|policy_test_mode"
	} else {
		want.Policy.Percent = fmt.Sprint(p.Percent)
		overrides += "|forwarded|sampled_out"
	}
	for _, res := range results {
		rec := FeedbackRecord{
			SourceIP: res.SourceIP.String(), Count: res.count,
			Disposition: among(string(res.Disposition), dispositions, "none"),
			DKIM:        map[bool]string{true: "pass", false: "fail"}[res.AlignedDKIM],
			SPF:         map[bool]string{true: "pass", false: "fail"}[res.AlignedSPF],
			EnvelopeTo:  clean(res.EnvelopeTo), EnvelopeFrom: clean(res.EnvelopeFrom), HeaderFrom: clean(res.HeaderFrom),
		}
		for _, o := range res.Overrides {
			reason := FeedbackReason{Type: among(string(o.Type), overrides, "other"), Comment: clean(o.Comment)}
			if f == RFC9990 && o.Type == "forwarded" {
				reason.Type = "local_policy"
			}
			if reason.Type != string(o.Type) {
				reason.Comment = clean(string(o.Type))
				if o.Comment != "" {
					reason.Comment = clean(string(o.Type) + ": " + o.Comment)
				}
			}
			rec.Reasons = append(rec.Reasons, reason)
		}
		for _, d := range res.DKIM {
			rec.DKIMResults = append(rec.DKIMResults, FeedbackAuth{
				Domain: clean(d.Domain), Selector: clean(d.Selector), HumanResult: clean(d.Reason),
				Result: among(string(d.Result), "none|pass|fail|policy|temperror|permerror", "neutral"),
			})
		}
		if f == RFC7489 || res.SPF.Domain != "" {
			spf := FeedbackAuth{Domain: clean(res.SPF.Domain), Result: among(string(res.SPF.Result), spfResults, "neutral")}
			switch {
			case res.SPF.Domain != "" && !res.SPF.Helo:
				spf.Scope = "mfrom"
			case f == RFC7489:
				spf.Scope = "helo"
			}
			rec.SPFResults = []FeedbackAuth{spf}
		}
		want.Records = append(want.Records, rec)
	}
	return want
}

func TestWriteReportConstantMemory(t *testing.T) {
	row := firstRow(t, sampleResults()[0])
	var most uint64
	many := func(yield func(ruapost.Row, error) bool) {
		for i := range 20_000 {
			if i%2_000 == 0 {
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
			if !yield(row, nil) {
				return
			}
		}
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	if err := WriteReport(io.Discard, RFC9990, sampleReport(), many); err != nil {
		t.Fatal(err)
	}
	if grown := int64(most) - int64(m.HeapAlloc); grown > 1<<20 {
		t.Errorf("the heap grew by %d octets", grown)
	}
}

func BenchmarkWriteReport(b *testing.B) {
	row := firstRow(b, sampleResults()[0])
	b.ReportAllocs()
	rows := func(yield func(ruapost.Row, error) bool) {
		for b.Loop() {
			if !yield(row, nil) {
				return
			}
		}
	}
	if err := WriteReport(io.Discard, RFC9990, sampleReport(), rows); err != nil {
		b.Fatal(err)
	}
}

func TestFilenameAndSubject(t *testing.T) {
	w := ruapost.Window{Start: time.Unix(1013662812, 0), End: time.Unix(1013749131, 0)}
	name := Filename("mail.receiver.example", "example.com", w, "1a2B")
	if want := "mail.receiver.example!example.com!1013662812!1013749130!1a2B.xml.gz"; name != want {
		t.Errorf("file name %s, want %s", name, want)
	}
	// RFC 9990 3.5.2
	if !regexp.MustCompile(`^[a-z0-9.-]+![a-z0-9.-]+!\d+!\d+![A-Za-z0-9]+\.xml\.gz$`).MatchString(name) {
		t.Errorf("file name %s is against the grammar", name)
	}
	subject := Subject("example.com", "mail.receiver.example", "1a2B")
	if want := "Report Domain: example.com Submitter: mail.receiver.example Report-ID: <1a2B>"; subject != want {
		t.Errorf("subject %s, want %s", subject, want)
	}
}
