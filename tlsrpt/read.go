package tlsrpt

import (
	"encoding/json"
	"fmt"
	"io"
)

// Published is a report as its receivers read it (RFC 8460 4.4).
type Published struct {
	OrganizationName string            `json:"organization-name"`
	DateRange        PublishedDates    `json:"date-range"`
	ContactInfo      string            `json:"contact-info"`
	ReportID         string            `json:"report-id"`
	Policies         []PublishedPolicy `json:"policies"`
}

// PublishedDates are the first and the last second that a report covers.
type PublishedDates = jsonDateRange

// PublishedPolicy is how the sessions went that were held to one policy.
type PublishedPolicy struct {
	Policy   jsonPolicy         `json:"policy"`
	Summary  jsonSummary        `json:"summary"`
	Failures []PublishedFailure `json:"failure-details"`
}

// PublishedFailure is a failure, and how many sessions had it.
type PublishedFailure = jsonFailure

// ReadReport reads a report, not compressed, all of it into memory.
func ReadReport(r io.Reader) (*Published, error) {
	p := &Published{}
	if err := json.NewDecoder(r).Decode(p); err != nil {
		return nil, fmt.Errorf("tlsrpt: read report: %w", err)
	}
	return p, nil
}
