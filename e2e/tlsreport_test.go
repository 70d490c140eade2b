package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// tlsReport is a report in the form of RFC 8460 4.4.
type tlsReport struct {
	Organization string `json:"organization-name"`
	Range        struct {
		Start time.Time `json:"start-datetime"`
		End   time.Time `json:"end-datetime"`
	} `json:"date-range"`
	Contact  string      `json:"contact-info"`
	ReportID string      `json:"report-id"`
	Policies []tlsPolicy `json:"policies"`
}

type tlsPolicy struct {
	Policy struct {
		Type    string   `json:"policy-type"`
		Strings []string `json:"policy-string,omitempty"`
		Domain  string   `json:"policy-domain"`
		MXHosts []string `json:"mx-host,omitempty"`
	} `json:"policy"`
	Summary struct {
		Successful int `json:"total-successful-session-count"`
		Failed     int `json:"total-failure-session-count"`
	} `json:"summary"`
	Failures []tlsFailure `json:"failure-details,omitempty"`
}

type tlsFailure struct {
	Result        string `json:"result-type"`
	SendingIP     string `json:"sending-mta-ip"`
	ReceivingMX   string `json:"receiving-mx-hostname"`
	ReceivingHelo string `json:"receiving-mx-helo"`
	ReceivingIP   string `json:"receiving-ip"`
	Sessions      int    `json:"failed-session-count"`
	Additional    string `json:"additional-information"`
	Reason        string `json:"failure-reason-code"`
}

// parseTLS reads a report and checks what does not depend on the sessions that it
// is about.
func parseTLS(t *testing.T, mail *reportMail, when span) *tlsReport {
	t.Helper()
	if mail.attachmentType != "application/tlsrpt+gzip" {
		t.Errorf("TLS report about %s: attachment type %s", mail.domain, mail.attachmentType)
	}
	var r tlsReport
	dec := json.NewDecoder(bytes.NewReader(mail.data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		t.Fatalf("TLS report about %s: %v\n%s", mail.domain, err, mail.data)
	}
	when.checkWindow(t, r.Range.Start, r.Range.End)
	if !r.Range.Start.Equal(mail.begin) || !r.Range.End.Equal(mail.end) {
		t.Errorf("TLS report about %s: %v, but its file name has %v to %v", mail.domain, r.Range, mail.begin, mail.end)
	}
	type metadata struct{ Organization, Contact, ReportID, Domain, Submitter, TLSRequired string }
	got := metadata{
		r.Organization, r.Contact, r.ReportID,
		mail.header.Get("TLS-Report-Domain"), mail.header.Get("TLS-Report-Submitter"), mail.header.Get("TLS-Required"),
	}
	want := metadata{orgName, reportFrom, mail.id, mail.domain, reportDomain, "No"}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("TLS report about %s (-want +got):\n%s", mail.domain, diff)
	}
	if mediaType := mail.header.Get("Content-Type"); !strings.HasPrefix(mediaType, "multipart/report;") ||
		!strings.Contains(mediaType, `report-type="tlsrpt"`) {
		t.Errorf("TLS report about %s: Content-Type: %q", mail.domain, mediaType)
	}
	if !strings.Contains(mail.text, mail.domain) {
		t.Errorf("TLS report about %s: the text for people does not name the domain: %q", mail.domain, mail.text)
	}
	return &r
}

// tlsContents returns the policies of the reports by the domain they are about,
// merged if there are two reports because midnight passed.
func tlsContents(t *testing.T, mails []*reportMail, when span) map[string][]tlsPolicy {
	t.Helper()
	contents := map[string][]tlsPolicy{}
	for _, mail := range mails {
		r := parseTLS(t, mail, when)
		if n := len(merge(r.Policies)); n == 0 || n != len(r.Policies) {
			t.Errorf("TLS report about %s has %d policies, %d different: %s", mail.domain, len(r.Policies), n, mail.data)
		}
		contents[mail.domain] = merge(append(contents[mail.domain], r.Policies...))
	}
	return contents
}

// merge adds up the counts of like policies and, within them, of like failures, and
// puts them in order.
func merge(policies []tlsPolicy) []tlsPolicy {
	var merged []tlsPolicy
	for _, p := range policies {
		i := slices.IndexFunc(merged, func(m tlsPolicy) bool { return gocmp.Equal(m.Policy, p.Policy) })
		if i < 0 {
			i = len(merged)
			merged = append(merged, tlsPolicy{Policy: p.Policy})
		}
		m := &merged[i]
		m.Summary.Successful += p.Summary.Successful
		m.Summary.Failed += p.Summary.Failed
		for _, f := range p.Failures {
			like := func(g tlsFailure) bool { g.Sessions = f.Sessions; return f == g }
			if i := slices.IndexFunc(m.Failures, like); i >= 0 {
				m.Failures[i].Sessions += f.Sessions
			} else {
				m.Failures = append(m.Failures, f)
			}
		}
		slices.SortFunc(m.Failures, func(a, b tlsFailure) int { return cmp.Compare(a.ReceivingMX+a.Result, b.ReceivingMX+b.Result) })
	}
	slices.SortFunc(merged, func(a, b tlsPolicy) int {
		return cmp.Compare(a.Policy.Type+a.Policy.Domain, b.Policy.Type+b.Policy.Domain)
	})
	return merged
}
