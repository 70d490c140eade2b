package tlsrpt

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"ruapost"
)

var update = flag.Bool("update", false, "write the golden files anew")

// entry is a PolicyEntry with its rows at hand.
type entry struct {
	policy             ruapost.TLSPolicy
	successful, failed int64
	failures           []ruapost.TLSFailure
	counts             []int64
}

func (e *entry) rows() iter.Seq2[ruapost.Row, error] {
	return func(yield func(ruapost.Row, error) bool) {
		for i, f := range e.failures {
			data, err := json.Marshal(f)
			if !yield(ruapost.Row{Count: e.counts[i], Data: data}, err) {
				return
			}
		}
	}
}

func entries(list ...entry) iter.Seq2[PolicyEntry, error] {
	return func(yield func(PolicyEntry, error) bool) {
		for i := range list {
			e := &list[i]
			if !yield(PolicyEntry{Policy: e.policy, Successful: e.successful, Failed: e.failed, Failures: e.rows()}, nil) {
				return
			}
		}
	}
}

func testReport() *Report {
	return &Report{
		OrganizationName: "Company-X <ops>",
		ContactInfo:      "tls-reports@mail.company-x.example",
		ReportID:         "5065427c23d34ff2a5a2e13c2b1c6c9d",
		Window:           ruapost.Day(time.Date(2026, 4, 1, 15, 0, 0, 0, time.UTC)),
	}
}

func testEntries() []entry {
	return []entry{
		{
			policy: ruapost.TLSPolicy{
				Type: ruapost.PolicySTS, Domain: "company-y.example",
				Strings: []string{"version: STSv1", "mode: testing", "mx: *.mail.company-y.example", "max_age: 86400"},
				MXHosts: []string{"*.mail.company-y.example"},
			},
			successful: 5326, failed: 303,
			failures: []ruapost.TLSFailure{
				{Result: ruapost.ResultCertificateExpired, SendingIP: "2001:db8:abcd:12::1", ReceivingMX: "mx1.mail.company-y.example", ReceivingIP: "203.0.113.5"},
				{Result: ruapost.ResultStartTLSNotSupported, SendingIP: "2001:db8:abcd:13::1", ReceivingMX: "mx2.mail.company-y.example", ReceivingHelo: "mx2.company-y.example", ReceivingIP: "203.0.113.56", Additional: "https://reports.company-x.example/report_info?id=5065427c-23d3#StarttlsNotSupported"},
				{Result: ruapost.ResultValidationFailure, SendingIP: "198.51.100.62", ReceivingIP: "203.0.113.58", ReceivingMX: "mx-backup.mail.company-y.example", Reason: `X509_V_ERR_PROXY_PATH_LENGTH_EXCEEDED "é" & <b>`},
			},
			counts: []int64{100, 200, 3},
		},
		{
			policy: ruapost.TLSPolicy{
				Type: ruapost.PolicyTLSA, Domain: "mx1.mail.company-y.example",
				Strings: []string{"2 0 1 1F850A337E6DB9C609C522D136A475638CC43E1ED424F8EEC8513D747D1D085D", "3 1 1 12350A337E6DB9C6123522D136A475638CC43E1ED424F8EEC8513D747D1D1234"},
			},
			successful: 12,
		},
		{
			policy: ruapost.TLSPolicy{Type: ruapost.PolicyNone, Domain: "company-y.example", Strings: []string{"none"}, MXHosts: []string{"mx.example"}},
			failed: 1,
		},
	}
}

func TestWriteReportGolden(t *testing.T) {
	var buf bytes.Buffer
	if err := WriteReport(&buf, testReport(), entries(testEntries()...)); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/report.json"
	if *update {
		if err := os.WriteFile(golden, buf.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), buf.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestWriteReportRoundTrip(t *testing.T) {
	var buf bytes.Buffer
	if err := WriteReport(&buf, testReport(), entries(testEntries()...)); err != nil {
		t.Fatal(err)
	}
	got, err := ParseReport(&buf)
	if err != nil {
		t.Fatal(err)
	}
	if got.OrganizationName != "Company-X <ops>" || got.ContactInfo != "tls-reports@mail.company-x.example" ||
		got.ReportID != "5065427c23d34ff2a5a2e13c2b1c6c9d@mail.company-x.example" {
		t.Errorf("metadata %+v", got)
	}
	if start, end := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 4, 1, 23, 59, 59, 0, time.UTC); !got.DateRange.Start.Equal(start) || !got.DateRange.End.Equal(end) {
		t.Errorf("date range %v", got.DateRange)
	}
	comparePolicies(t, testEntries(), got.Policies)
}

// comparePolicies compares what was written with what was read, where text may
// have been cleaned.
func comparePolicies(t interface{ Errorf(string, ...any) }, want []entry, got []ParsedPolicy) {
	if len(got) != len(want) {
		t.Errorf("%d policies, want %d", len(got), len(want))
		return
	}
	for i, w := range want {
		g := got[i]
		if g.Policy.Type != w.policy.Type || g.Policy.Domain != w.policy.Domain || g.Summary.Successful != w.successful || g.Summary.Failed != w.failed {
			t.Errorf("policy %d: got %+v, want %+v", i, g, w)
		}
		if w.policy.Type == ruapost.PolicyNone {
			w.policy.Strings, w.policy.MXHosts = nil, nil
		}
		if diff := cmp.Diff(cleanAll(w.policy.Strings), g.Policy.Strings) + cmp.Diff(cleanAll(w.policy.MXHosts), []string(g.Policy.MXHosts)); diff != "" {
			t.Errorf("policy %d: -want +got:\n%s", i, diff)
		}
		if len(g.Failures) != len(w.failures) {
			t.Errorf("policy %d: %d failures, want %d", i, len(g.Failures), len(w.failures))
			continue
		}
		for j, f := range w.failures {
			wantFailure := ParsedFailure{
				Result: f.Result, ReceivingMX: clean(f.ReceivingMX), ReceivingHelo: clean(f.ReceivingHelo),
				Count: w.counts[j], Additional: clean(f.Additional), Reason: clean(f.Reason),
			}
			wantFailure.SendingIP, _ = netip.ParseAddr(f.SendingIP)
			wantFailure.ReceivingIP, _ = netip.ParseAddr(f.ReceivingIP)
			if g.Failures[j] != wantFailure {
				t.Errorf("policy %d failure %d: got %+v, want %+v", i, j, g.Failures[j], wantFailure)
			}
		}
	}
}

// Hostile text must never make a report that cannot be read, nor move into
// another member.
func TestWriteReportProperty(t *testing.T) {
	hostile := rapid.OneOf(
		rapid.String(),
		rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }),
		rapid.SampledFrom([]string{"", `"`, `\`, `"},{"`, "\x00", "\u2028", "\ufffd", "\uffff", "\xed\xa0\x80", "\r\n", "</script>", "\u202e", "\ufdd0", "\U0010ffff"}),
	)
	domain := rapid.StringMatching(`[a-z]{1,9}(\.[a-z]{1,9}){1,3}`)
	ip := rapid.SampledFrom([]string{"", "192.0.2.1", "2001:db8::1"})
	var results []ruapost.TLSResultType
	for _, r := range resultTypes {
		results = append(results, r)
	}
	anEntry := rapid.Custom(func(t *rapid.T) entry {
		e := entry{
			policy: ruapost.TLSPolicy{
				Type:    rapid.SampledFrom([]ruapost.TLSPolicyType{ruapost.PolicySTS, ruapost.PolicyTLSA, ruapost.PolicyNone}).Draw(t, "type"),
				Domain:  domain.Draw(t, "domain"),
				Strings: rapid.SliceOfN(hostile, 0, 5).Draw(t, "strings"),
				MXHosts: rapid.SliceOfN(hostile, 0, 5).Draw(t, "mx"),
			},
			successful: rapid.Int64Range(0, 1<<53).Draw(t, "successful"),
			failed:     rapid.Int64Range(0, 1<<53).Draw(t, "failed"),
		}
		for range rapid.IntRange(0, 5).Draw(t, "failures") {
			e.counts = append(e.counts, rapid.Int64Range(1, 1<<53).Draw(t, "count"))
			e.failures = append(e.failures, ruapost.TLSFailure{
				Result:        rapid.SampledFrom(results).Draw(t, "result"),
				SendingIP:     ip.Draw(t, "sending"),
				ReceivingIP:   ip.Draw(t, "receiving"),
				ReceivingMX:   hostile.Draw(t, "mx"),
				ReceivingHelo: hostile.Draw(t, "helo"),
				Additional:    hostile.Draw(t, "additional"),
				Reason:        hostile.Draw(t, "reason"),
			})
		}
		return e
	})
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(anEntry, 0, 4).Draw(t, "entries")
		r := testReport()
		r.OrganizationName = hostile.Draw(t, "organization")
		var buf bytes.Buffer
		if err := WriteReport(&buf, r, entries(list...)); err != nil {
			t.Fatal(err)
		}
		text := buf.String()
		if !utf8.ValidString(text) || strings.ContainsAny(text, "\x00\r\u2028\u2029\ufffd\ufdd0\U0010ffff") {
			t.Errorf("report holds what no report should: %q", text)
		}
		var members map[string]any
		if err := json.Unmarshal(buf.Bytes(), &members); err != nil {
			t.Fatal(err)
		}
		if hasEmpty(members["policies"].([]any)...) || members["organization-name"] == "" {
			t.Errorf("report has empty members: %s", text)
		}
		got, err := ParseReport(strings.NewReader(text))
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if got.OrganizationName != clean(r.OrganizationName) {
			t.Errorf("organization %q, want %q", got.OrganizationName, clean(r.OrganizationName))
		}
		comparePolicies(t, list, got.Policies)
	})
}

// hasEmpty tells whether a string, array or object anywhere in values is empty.
func hasEmpty(values ...any) bool {
	for _, v := range values {
		switch v := v.(type) {
		case string:
			if v == "" {
				return true
			}
		case []any:
			if len(v) == 0 || hasEmpty(v...) {
				return true
			}
		case map[string]any:
			if len(v) == 0 || hasEmpty(slices.Collect(maps.Values(v))...) {
				return true
			}
		}
	}
	return false
}

func TestWriteReportErrors(t *testing.T) {
	broken := errors.New("broken")
	failing := func(entry PolicyEntry, err error) iter.Seq2[PolicyEntry, error] {
		return func(yield func(PolicyEntry, error) bool) { yield(entry, err) }
	}
	rows := func(row ruapost.Row, err error) iter.Seq2[ruapost.Row, error] {
		return func(yield func(ruapost.Row, error) bool) { yield(row, err) }
	}
	for name, policies := range map[string]iter.Seq2[PolicyEntry, error]{
		"policies": failing(PolicyEntry{}, broken),
		"rows":     failing(PolicyEntry{Failures: rows(ruapost.Row{}, broken)}, nil),
	} {
		if err := WriteReport(io.Discard, testReport(), policies); !errors.Is(err, broken) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if err := WriteReport(io.Discard, testReport(), failing(PolicyEntry{Failures: rows(ruapost.Row{Data: []byte("{")}, nil)}, nil)); err == nil {
		t.Error("row that is not JSON: no error")
	}
	for name, change := range map[string]func(*Report){
		"contact with CR LF":     func(r *Report) { r.ContactInfo = "a\r\n@example.com" },
		"contact without domain": func(r *Report) { r.ContactInfo = "postmaster" },
		"no identifier":          func(r *Report) { r.ReportID = "" },
		"identifier with !":      func(r *Report) { r.ReportID = "a!b" },
		"identifier with >":      func(r *Report) { r.ReportID = "a>" },
	} {
		r := testReport()
		change(r)
		var buf bytes.Buffer
		if err := WriteReport(&buf, r, entries()); err == nil || buf.Len() > 0 {
			t.Errorf("%s: error %v, %d octets written", name, err, buf.Len())
		}
	}
}

// failingWriter fails after some octets.
type failingWriter struct{ left int }

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

func TestWriteReportStopsAtWriteError(t *testing.T) {
	read := 0
	rows := func(yield func(ruapost.Row, error) bool) {
		for yield(ruapost.Row{Count: 1, Data: []byte(`{"result":"tlsa-invalid"}`)}, nil) && read < 1_000_000 {
			read++
		}
	}
	policies := func(yield func(PolicyEntry, error) bool) { yield(PolicyEntry{Failures: rows}, nil) }
	if err := WriteReport(&failingWriter{left: 10000}, testReport(), policies); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("error %v", err)
	}
	if read > 1000 {
		t.Errorf("%d rows were read", read)
	}
	// A report that fits into the buffer fails when it is flushed.
	if err := WriteReport(&failingWriter{}, testReport(), entries()); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("error %v", err)
	}
}

func TestFilename(t *testing.T) {
	got := Filename("mail.company-x.example", "company-y.example", testReport().Window, "5065427c23d3")
	if want := "mail.company-x.example!company-y.example!1775001600!1775087999!5065427c23d3.json.gz"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSubject(t *testing.T) {
	got := Subject("company-y.example", "mail.company-x.example", "5065427c23d3")
	if want := "Report Domain: company-y.example Submitter: mail.company-x.example Report-ID: <5065427c23d3@mail.company-x.example>"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// parseable is a report with a hole for policies.
const parseable = `{"date-range":{"start-datetime":"2026-04-01T00:00:00Z","end-datetime":"2026-04-01T23:59:59Z"},"report-id":"x","policies":[%s]}`

func TestParseReport(t *testing.T) {
	policy := func(rest string) string {
		return fmt.Sprintf(parseable, `{"policy":{"policy-type":"sts","policy-domain":"d.example"`+rest)
	}
	t.Run("erratum 6241: mx-host as a string", func(t *testing.T) {
		p, err := ParseReport(strings.NewReader(policy(`,"mx-host":"*.d.example"}}`)))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(ParsedList{"*.d.example"}, p.Policies[0].Policy.MXHosts); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("unknown members", func(t *testing.T) {
		if _, err := ParseReport(strings.NewReader(policy(`,"x":1},"y":[{}]}`))); err != nil {
			t.Error(err)
		}
	})
	for name, text := range map[string]string{
		"empty":                     ``,
		"null":                      `null`,
		"array":                     `[]`,
		"text after it":             fmt.Sprintf(parseable, ``) + "x",
		"not UTF-8":                 policy(`},"x":"` + "\xff" + `"}`),
		"no policies":               strings.Replace(fmt.Sprintf(parseable, ``), "policies", "policy", 1),
		"no report-id":              strings.Replace(fmt.Sprintf(parseable, ``), "report-id", "id", 1),
		"no date-range":             strings.Replace(fmt.Sprintf(parseable, ``), "date-range", "dates", 1),
		"date not RFC 3339":         strings.Replace(fmt.Sprintf(parseable, ``), "T00:00:00Z", " 00:00:00", 1),
		"end before start":          strings.Replace(fmt.Sprintf(parseable, ``), "04-01T23", "03-01T23", 1),
		"unknown policy-type":       strings.Replace(policy(`}}`), "sts", "dane", 1),
		"policy-domain":             strings.Replace(policy(`}}`), "d.example", "d example", 1),
		"mx-host as a number":       policy(`,"mx-host":1}}`),
		"negative count":            policy(`},"summary":{"total-failure-session-count":-1}}`),
		"count with an exponent":    policy(`},"summary":{"total-failure-session-count":1e3}}`),
		"unknown result-type":       policy(`},"failure-details":[{"result-type":"x"}]}`),
		"negative failure count":    policy(`},"failure-details":[{"result-type":"tlsa-invalid","failed-session-count":-1}]}`),
		"address that is none":      policy(`},"failure-details":[{"result-type":"tlsa-invalid","receiving-ip":"mx"}]}`),
		"failures that are no list": policy(`},"failure-details":{}}`),
	} {
		t.Run(name, func(t *testing.T) {
			if p, err := ParseReport(strings.NewReader(text)); err == nil {
				t.Errorf("no error: %+v", p)
			}
		})
	}
}

// endless never ends, as what a gzip bomb holds.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestParseReportBound(t *testing.T) {
	if _, err := ParseReport(endless{}); err == nil || !strings.Contains(err.Error(), "longer") {
		t.Errorf("error %v", err)
	}
}

func FuzzParseReport(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(parseable, `{"policy":{"policy-type":"sts","policy-domain":"d.example","mx-host":"x"},"failure-details":[{"result-type":"tlsa-invalid","receiving-ip":"::1"}]}`)))
	if data, err := os.ReadFile("testdata/report.json"); err == nil {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseReport(bytes.NewReader(data))
		if err != nil {
			return
		}
		// What was read can be written, and reads the same.
		again, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		q, err := ParseReport(bytes.NewReader(again))
		if err != nil {
			t.Fatalf("%v\n%s", err, again)
		}
		if diff := cmp.Diff(p, q, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Fatal(diff)
		}
	})
}
