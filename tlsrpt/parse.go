package tlsrpt

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
	"unicode/utf8"

	"ruapost"
)

// MaxReport is the longest report that ParseReport reads, in octets after
// decompression.
const MaxReport = 64 << 20

// ParsedReport is a report as its receiver sees it.
type ParsedReport struct {
	OrganizationName string `json:"organization-name"`
	DateRange        struct {
		Start time.Time `json:"start-datetime"`
		End   time.Time `json:"end-datetime"`
	} `json:"date-range"`
	ContactInfo string         `json:"contact-info"`
	ReportID    string         `json:"report-id"`
	Policies    []ParsedPolicy `json:"policies"`
}

// ParsedPolicy is one element of a report's policies.
type ParsedPolicy struct {
	Policy struct {
		Type    ruapost.TLSPolicyType `json:"policy-type"`
		Strings []string              `json:"policy-string"`
		Domain  string                `json:"policy-domain"`
		MXHosts ParsedList            `json:"mx-host"`
	} `json:"policy"`
	Summary struct {
		Successful int64 `json:"total-successful-session-count"`
		Failed     int64 `json:"total-failure-session-count"`
	} `json:"summary"`
	Failures []ParsedFailure `json:"failure-details"`
}

// ParsedFailure is one element of a policy's failure-details. Addresses that
// are left out are the zero netip.Addr.
type ParsedFailure struct {
	Result        ruapost.TLSResultType `json:"result-type"`
	SendingIP     netip.Addr            `json:"sending-mta-ip"`
	ReceivingMX   string                `json:"receiving-mx-hostname"`
	ReceivingHelo string                `json:"receiving-mx-helo"`
	ReceivingIP   netip.Addr            `json:"receiving-ip"`
	Count         int64                 `json:"failed-session-count"`
	Additional    string                `json:"additional-information"`
	Reason        string                `json:"failure-reason-code"`
}

// ParsedList is a list of strings that may be written as the bare string if
// there is but one, as the example in RFC 8460 Appendix B does (erratum 6241).
type ParsedList []string

// UnmarshalJSON reads an array of strings, or a string as an array of one.
func (l *ParsedList) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		*l = ParsedList{""}
		return json.Unmarshal(data, &(*l)[0])
	}
	return json.Unmarshal(data, (*[]string)(l))
}

// ParseReport reads a report, not compressed, to its end. It is an error if the
// report is longer than MaxReport, is not UTF-8 or JSON of the right types, if a
// member that RFC 8460 4.4 requires is missing, or if a type, date, address or
// count is not valid.
func ParseReport(r io.Reader) (*ParsedReport, error) {
	p, err := parseReport(r)
	if err != nil {
		return nil, fmt.Errorf("tlsrpt: parse report: %w", err)
	}
	return p, nil
}

func parseReport(r io.Reader) (*ParsedReport, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxReport+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxReport {
		return nil, fmt.Errorf("longer than %d octets", MaxReport)
	}
	if !utf8.Valid(data) { // RFC 7493 2.1; encoding/json would take it
		return nil, errors.New("not UTF-8")
	}
	var p ParsedReport
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, err
	}
	return &p, p.check()
}

func (p *ParsedReport) check() error {
	switch {
	case p.DateRange.Start.IsZero() || p.DateRange.End.Before(p.DateRange.Start):
		return errors.New("no valid date-range")
	case p.ReportID == "":
		return errors.New("no report-id")
	case p.Policies == nil:
		return errors.New("no policies")
	}
	for i := range p.Policies {
		if err := p.Policies[i].check(); err != nil {
			return fmt.Errorf("policy %d: %w", i+1, err)
		}
	}
	return nil
}

func (p *ParsedPolicy) check() error {
	if !hasValue(policyTypes, p.Policy.Type) {
		return fmt.Errorf("policy-type %q", ruapost.Clean(string(p.Policy.Type), 64))
	}
	if _, err := ruapost.ParseDomain(p.Policy.Domain); err != nil {
		return fmt.Errorf("policy-domain: %w", err)
	}
	if p.Summary.Successful < 0 || p.Summary.Failed < 0 {
		return errors.New("negative count")
	}
	for _, f := range p.Failures {
		if !hasValue(resultTypes, f.Result) {
			return fmt.Errorf("result-type %q", ruapost.Clean(string(f.Result), 64))
		}
		if f.Count < 0 {
			return errors.New("negative count")
		}
	}
	return nil
}

func hasValue[K, V comparable](m map[K]V, want V) bool {
	for _, v := range m {
		if v == want {
			return true
		}
	}
	return false
}
