package tlsrpt

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"ruapost"
)

// What is read is what was written.
func TestReadReport(t *testing.T) {
	failure, err := json.Marshal(ruapost.TLSFailure{Result: ruapost.ResultCertificateExpired, ReceivingMX: "mx.example.com", Reason: "<x> & \u2028"})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	err = WriteReport(&b, &Report{
		OrganizationName: "Reporter", ContactInfo: "r@example.net", ReportID: "id1", Window: ruapost.Day(time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)),
	}, func(yield func(PolicyEntry, error) bool) {
		yield(PolicyEntry{
			Policy:     ruapost.TLSPolicy{Type: ruapost.PolicySTS, Domain: "example.com", Strings: []string{"version: STSv1"}, MXHosts: []string{"*.example.com"}},
			Successful: 7, Failed: 2,
			Failures: func(yield func(ruapost.Row, error) bool) { yield(ruapost.Row{Count: 2, Data: failure}, nil) },
		}, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := ReadReport(&b)
	if err != nil || p.OrganizationName != "Reporter" || p.ReportID != "id1@example.net" || p.DateRange.End != "2026-11-22T23:59:59Z" || len(p.Policies) != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	policy := p.Policies[0]
	if policy.Policy.Type != "sts" || policy.Policy.MXHosts[0] != "*.example.com" || policy.Summary != (jsonSummary{7, 2}) ||
		policy.Failures[0].Result != "certificate-expired" || policy.Failures[0].Count != 2 || !strings.HasPrefix(policy.Failures[0].Reason, "<x> &") {
		t.Errorf("%+v", policy)
	}
	for _, text := range []string{"", "{", `{"policies": 1}`, "[]"} {
		if p, err := ReadReport(strings.NewReader(text)); err == nil {
			t.Errorf("%q was read: %+v", text, p)
		}
	}
}
