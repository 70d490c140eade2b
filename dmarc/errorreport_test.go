package dmarc

import (
	"bufio"
	netmail "net/mail"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func errorReport() *ErrorReport {
	return &ErrorReport{
		Date:      time.Date(2026, 4, 2, 3, 4, 5, 0, time.FixedZone("", 3600)),
		Domain:    "example.com",
		Submitter: "mail.example.org",
		ReportID:  "0123456789abcdef",
		Size:      12_582_912,
		URIs:      []string{"mailto:dmarc@example.com", "mailto:a%2Cb%21c@example.net?subject=x"},
	}
}

// RFC 7489 7.2.2: six fields, as in a DSN (RFC 3464 2), each once and read back by a
// reader of header fields. No line end is doubled, and the URIs have their scheme.
func TestErrorReport(t *testing.T) {
	text, err := errorReport().Text()
	if err != nil {
		t.Fatal(err)
	}
	fields, err := textproto.NewReader(bufio.NewReader(strings.NewReader(text))).ReadMIMEHeader()
	if err != nil {
		t.Fatal(err)
	}
	want := textproto.MIMEHeader{
		"Report-Date":    {"Thu, 02 Apr 2026 02:04:05 +0000"},
		"Report-Domain":  {"example.com"},
		"Report-Id":      {"0123456789abcdef"},
		"Report-Size":    {"12582912"},
		"Submitter":      {"mail.example.org"},
		"Submitting-Uri": {"mailto:dmarc@example.com, mailto:a%2Cb%21c@example.net?subject=x"},
	}
	if diff := cmp.Diff(want, fields); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, err := netmail.ParseDate(fields.Get("Report-Date")); err != nil {
		t.Error(err)
	}
	if strings.Contains(text, "\r") || strings.Count(text, "\n\n") != 1 || !strings.HasSuffix(text, ".\n") {
		t.Errorf("line ends of %q", text)
	}
	for line := range strings.Lines(text) {
		if len(line) > 77 || strings.HasSuffix(line, " \n") {
			t.Errorf("line %q would have to be encoded", line)
		}
	}
	// Readers of reports look for one behind this.
	if subject := errorReport().Subject(); strings.HasPrefix(subject, "Report Domain:") || !strings.Contains(subject, "example.com") {
		t.Errorf("subject %q", subject)
	}
}

// What cannot stand in a field makes no report instead of a wrong one.
func TestErrorReportRefuses(t *testing.T) {
	for name, change := range map[string]func(*ErrorReport){
		"no date":             func(e *ErrorReport) { e.Date = time.Time{} },
		"no size":             func(e *ErrorReport) { e.Size = 0 },
		"no domain":           func(e *ErrorReport) { e.Domain = "" },
		"U-label":             func(e *ErrorReport) { e.Domain = "bücher.example" },
		"line in domain":      func(e *ErrorReport) { e.Domain = "example.com\nReport-Size: 1" },
		"no submitter":        func(e *ErrorReport) { e.Submitter = "" },
		"line in submitter":   func(e *ErrorReport) { e.Submitter = "example.org\r\nX: y" },
		"no identifier":       func(e *ErrorReport) { e.ReportID = "" },
		"identifier":          func(e *ErrorReport) { e.ReportID = "a b" },
		"identifier is 7 bit": func(e *ErrorReport) { e.ReportID = "\u0161" }, // its last octet is an a
		"no destinations":     func(e *ErrorReport) { e.URIs = nil },
		"bare address":        func(e *ErrorReport) { e.URIs = []string{"dmarc@example.com"} },
		"line in URI":         func(e *ErrorReport) { e.URIs[1] += "\nX: y" },
		"blank in URI":        func(e *ErrorReport) { e.URIs[1] += " " },
		"comma in URI":        func(e *ErrorReport) { e.URIs[1] = "mailto:a@example.com,b@example.com" },
		"size limit in URI":   func(e *ErrorReport) { e.URIs[1] += "!10m" },
	} {
		e := errorReport()
		change(e)
		if text, err := e.Text(); err == nil || text != "" {
			t.Errorf("%s: error %v, text %q", name, err, text)
		} else if strings.ContainsAny(err.Error(), "\r\n") {
			t.Errorf("%s: error %q", name, err)
		}
	}
}
