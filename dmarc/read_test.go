package dmarc

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ruapost"
)

// What is read is what was written, in both forms, whatever the texts in it are; what a
// record is sorted by is found without taking it apart.
func TestReportReader(t *testing.T) {
	const hostile = `</dkim></record><dkim>pass</dkim> ]]> & "x`
	window := ruapost.Day(time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC))
	results := []ruapost.DMARCResult{
		{
			SourceIP: netip.MustParseAddr("192.0.2.1"), Disposition: ruapost.DispositionReject, HeaderFrom: hostile, EnvelopeFrom: "a.example", EnvelopeTo: "b.example",
			DKIM:      []ruapost.DKIMResult{{Domain: "d.example", Selector: "s", Result: ruapost.AuthPass, Reason: hostile}},
			SPF:       ruapost.SPFResult{Domain: "s.example", Result: ruapost.AuthPass},
			Overrides: []ruapost.Override{{Type: ruapost.OverrideLocalPolicy, Comment: hostile}},
		},
		{SourceIP: netip.MustParseAddr("2001:db8::1"), Disposition: ruapost.DispositionPass, HeaderFrom: "a.example", AlignedDKIM: true},
		{SourceIP: netip.MustParseAddr("192.0.2.3"), Disposition: ruapost.DispositionPass, HeaderFrom: "a.example", AlignedSPF: true},
	}
	for _, format := range []Format{RFC9990, RFC7489} {
		var b bytes.Buffer
		err := WriteReport(&b, format, &Report{
			OrgName: hostile, Email: "r@example.net", ReportID: "id1", Window: window, Errors: []string{hostile},
			Policy: ruapost.DMARCPolicy{Domain: "example.com", P: "reject", ADKIM: "r", ASPF: "s", FO: "0", Percent: 100, Discovery: "treewalk"},
		}, rowsOf(t, counted{1, results[0]}, counted{2, results[1]}, counted{3, results[2]}))
		if err != nil {
			t.Fatal(err)
		}
		x, err := NewReportReader(&b)
		if err != nil {
			t.Fatal(err)
		}
		p := x.Published
		if p.OrgName != hostile || p.ReportID != "id1" || p.Begin != window.Start.Unix() || p.End != window.Last().Unix() || p.Error != hostile ||
			p.Policy.Domain != "example.com" || p.Policy.P != "reject" || p.Policy.ASPF != "s" {
			t.Errorf("%s: %+v", format, p)
		}
		n := 0
		for ; x.Next(); n++ {
			failed, count := x.Rank()
			r, err := x.Record()
			if err != nil {
				t.Fatal(err)
			}
			want := results[n]
			if failed != (n == 0) || failed != r.Failed() || count != int64(n+1) || count != r.Count || r.SourceIP != want.SourceIP.String() || r.HeaderFrom != want.HeaderFrom {
				t.Errorf("%s: %t, %d, %+v", format, failed, count, r)
			}
			if n == 0 && (r.AuthDKIM[0].Human != hostile || r.Reasons[0].Comment != hostile || r.AuthSPF[0].Domain != "s.example" || r.EnvelopeTo != "b.example") {
				t.Errorf("%s: %+v", format, r)
			}
		}
		if n != len(results) || x.Err() != nil {
			t.Errorf("%s: %d records, %v", format, n, x.Err())
		}
	}
}

// What is none of our reports is an error, not a fault.
func TestReportReaderRefuses(t *testing.T) {
	for _, text := range []string{
		"", "<feedback>", "no XML", "<feedback></feedback>", "<record></record>", "<a><record></record>",
		"<feedback><record></b></record>", strings.Repeat("x", 2*maxRecord),
	} {
		x, err := NewReportReader(strings.NewReader(text))
		if err != nil {
			continue
		}
		for x.Next() && err == nil {
			_, err = x.Record()
		}
		if err == nil && x.Err() == nil {
			t.Errorf("%.30q was read", text)
		}
	}
	good := "<feedback><record><row><count>1</count></row></record>"
	x, err := NewReportReader(io.MultiReader(strings.NewReader(good), strings.NewReader(strings.Repeat("x", 2*maxRecord))))
	if err != nil {
		t.Fatal(err)
	}
	for x.Next() {
	}
	if x.Err() == nil {
		t.Error("an overlong record was passed over")
	}
}

func FuzzReportReader(f *testing.F) {
	f.Add([]byte("<feedback><record><row><count>1</count></row></record></feedback>"))
	f.Add([]byte("<feedback><record></record><record>"))
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := NewReportReader(bytes.NewReader(data))
		if err != nil {
			return
		}
		for n := 0; x.Next(); n++ {
			x.Rank()
			_, _ = x.Record()
			if n > len(data) {
				t.Fatal("more records than octets")
			}
		}
		_ = fmt.Sprint(x.Err())
	})
}
