package tlsrpt

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"

	"ruapost"
	"ruapost/internal/mailtouri"
)

// MediaType is the type of a gzip-compressed report, by mail and by HTTPS
// (RFC 8460 5.3, 5.4).
const MediaType = "application/tlsrpt+gzip"

// Report is what a TLS report says of itself (RFC 8460 4.4).
type Report struct {
	// OrganizationName is who reports, for people.
	OrganizationName string
	// ContactInfo is a mail address. Its domain is the submitter.
	ContactInfo string
	// ReportID is the identifier of letters and digits that also stands in
	// Filename and Subject.
	ReportID string
	// Window is the interval reported on.
	Window ruapost.Window
}

// PolicyEntry is one element of a report's policies: how the sessions went that
// were held to one policy.
type PolicyEntry struct {
	Policy ruapost.TLSPolicy
	// Successful and Failed count sessions.
	Successful, Failed int64
	// Failures are the rows whose Data is a ruapost.TLSFailure. It may be nil.
	Failures iter.Seq2[ruapost.Row, error]
}

// WriteReport writes the report as I-JSON (RFC 7493), not compressed. It holds
// one row in memory at a time. What is empty is left out, because "" is no valid
// IP address or host name. It is an error if ContactInfo is no mail address, if
// ReportID has other characters than letters and digits, or if a row cannot be
// read; what was written until then is no report.
func WriteReport(w io.Writer, r *Report, policies iter.Seq2[PolicyEntry, error]) error {
	if err := writeReport(w, r, policies); err != nil {
		return fmt.Errorf("tlsrpt: write report: %w", err)
	}
	return nil
}

func writeReport(w io.Writer, r *Report, policies iter.Seq2[PolicyEntry, error]) error {
	contact, err := mailtouri.ParseAddress(r.ContactInfo)
	if err != nil {
		return fmt.Errorf("contact address: %w", err)
	}
	if !isAlphanumeric(r.ReportID) {
		return fmt.Errorf("report identifier %q is not of letters and digits", r.ReportID)
	}
	jw := newJSONWriter(w)
	jw.raw("{\n")
	if name := clean(r.OrganizationName); name != "" {
		jw.member("  ", "organization-name", name)
		jw.raw(",\n")
	}
	jw.member("  ", "date-range", jsonDateRange{
		Start: r.Window.Start.UTC().Format(time.RFC3339),
		End:   r.Window.Last().UTC().Format(time.RFC3339), // RFC 8460 Appendix B: 23:59:59
	})
	jw.raw(",\n")
	jw.member("  ", "contact-info", contact)
	jw.raw(",\n")
	submitter := mailtouri.Domain(contact)
	jw.member("  ", "report-id", fullID(r.ReportID, submitter))
	jw.raw(",\n  \"policies\": [")
	separator := "\n"
	for entry, err := range policies {
		if err != nil {
			return err
		}
		jw.raw(separator)
		separator = ",\n"
		if err := jw.policy(&entry); err != nil {
			return err
		}
	}
	jw.raw("\n  ]\n}\n")
	return jw.out.Flush()
}

// The members of a report, in the order of RFC 8460 4.4.
type (
	jsonDateRange struct {
		Start string `json:"start-datetime"`
		End   string `json:"end-datetime"`
	}
	jsonPolicy struct {
		Type    string   `json:"policy-type"`
		Strings []string `json:"policy-string,omitempty"`
		Domain  string   `json:"policy-domain,omitempty"`
		MXHosts []string `json:"mx-host,omitempty"` // an array, whatever Appendix B shows (erratum 6241)
	}
	jsonSummary struct {
		Successful int64 `json:"total-successful-session-count"`
		Failed     int64 `json:"total-failure-session-count"`
	}
	jsonFailure struct {
		Result        string `json:"result-type"`
		SendingIP     string `json:"sending-mta-ip,omitempty"`
		ReceivingMX   string `json:"receiving-mx-hostname,omitempty"`
		ReceivingHelo string `json:"receiving-mx-helo,omitempty"`
		ReceivingIP   string `json:"receiving-ip,omitempty"`
		Count         int64  `json:"failed-session-count"`
		Additional    string `json:"additional-information,omitempty"`
		Reason        string `json:"failure-reason-code,omitempty"`
	}
)

// jsonWriter writes a report piece by piece. err is that of the last write; a
// bufio.Writer returns its first error ever after.
type jsonWriter struct {
	out     *bufio.Writer
	err     error
	scratch bytes.Buffer
	encoder *json.Encoder // into scratch
}

func newJSONWriter(w io.Writer) *jsonWriter {
	jw := &jsonWriter{out: bufio.NewWriter(w)}
	jw.encoder = json.NewEncoder(&jw.scratch)
	jw.encoder.SetEscapeHTML(false) // "<" in a reason is a "<"
	return jw
}

func (jw *jsonWriter) raw(s string) { _, jw.err = jw.out.WriteString(s) }

func (jw *jsonWriter) member(indent, name string, v any) {
	jw.raw(indent + `"` + name + `": `)
	jw.value(v)
}

// value writes v, a string or one of the types above. These always encode.
func (jw *jsonWriter) value(v any) {
	jw.scratch.Reset()
	if err := jw.encoder.Encode(v); err != nil {
		panic(err)
	}
	_, jw.err = jw.out.Write(bytes.TrimSuffix(jw.scratch.Bytes(), []byte("\n")))
}

func (jw *jsonWriter) policy(entry *PolicyEntry) error {
	p := jsonPolicy{Type: clean(string(entry.Policy.Type)), Domain: clean(entry.Policy.Domain)}
	if entry.Policy.Type != ruapost.PolicyNone { // there is nothing to show then
		p.Strings = cleanAll(entry.Policy.Strings)
		p.MXHosts = cleanAll(entry.Policy.MXHosts)
	}
	jw.raw("    {\n")
	jw.member("      ", "policy", p)
	jw.raw(",\n")
	jw.member("      ", "summary", jsonSummary{entry.Successful, entry.Failed})
	if entry.Failures != nil {
		if err := jw.failures(entry.Failures); err != nil {
			return err
		}
	}
	jw.raw("\n    }")
	return nil
}

func (jw *jsonWriter) failures(rows iter.Seq2[ruapost.Row, error]) error {
	before, after := ",\n      \"failure-details\": [\n        ", ""
	for row, err := range rows {
		if err != nil {
			return err
		}
		var f ruapost.TLSFailure
		if err := json.Unmarshal(row.Data, &f); err != nil {
			return fmt.Errorf("row: %w", err)
		}
		jw.raw(before)
		before, after = ",\n        ", "\n      ]"
		jw.value(jsonFailure{
			Result:        clean(string(f.Result)),
			SendingIP:     clean(f.SendingIP),
			ReceivingMX:   clean(f.ReceivingMX),
			ReceivingHelo: clean(f.ReceivingHelo),
			ReceivingIP:   clean(f.ReceivingIP),
			Count:         row.Count,
			Additional:    clean(f.Additional),
			Reason:        clean(f.Reason),
		})
		if jw.err != nil { // do not read a million rows for nothing
			return jw.err
		}
	}
	jw.raw(after)
	return nil
}

// clean returns s fit for I-JSON, which forbids noncharacters (RFC 7493 2.1), and for
// a terminal.
func clean(s string) string { return ruapost.Clean(s, len(s)) }

func cleanAll(list []string) []string {
	var kept []string
	for _, s := range list {
		if s = clean(s); s != "" {
			kept = append(kept, s)
		}
	}
	return kept
}

// Filename returns the name of the compressed report (RFC 8460 5.1). The domains
// are as ruapost.ParseDomain gives them, reportID is Report.ReportID.
func Filename(submitter, policyDomain string, w ruapost.Window, reportID string) string {
	return strings.Join([]string{
		submitter,
		policyDomain,
		strconv.FormatInt(w.Start.Unix(), 10),
		strconv.FormatInt(w.Last().Unix(), 10),
		reportID,
	}, "!") + ".json.gz"
}

// Subject returns the subject of the report's mail (RFC 8460 5.3). The
// identifier in it is the report-id of the report itself, in angle brackets.
func Subject(policyDomain, submitter, reportID string) string {
	return "Report Domain: " + policyDomain + " Submitter: " + submitter + " Report-ID: <" + fullID(reportID, submitter) + ">"
}

// fullID has the form that the subject's grammar wants of a report-id.
func fullID(reportID, submitter string) string { return reportID + "@" + submitter }

func isAlphanumeric(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}
