package dmarc

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"ruapost"
)

// ErrorReport says that a report could be delivered to none of the destinations, because
// it was too large for them (RFC 7489 7.2.2). RFC 9990 has none.
type ErrorReport struct {
	// Date is when the delivery failed.
	Date time.Time
	// Domain, Submitter and ReportID are those of the report.
	Domain, Submitter, ReportID string
	// Size is the number of octets that were to be sent.
	Size int64
	// URIs are the destinations that were tried, as URI.Raw has them.
	URIs []string
}

// Subject returns the Subject field of the mail. It has another beginning than that of a
// report: there is none in the mail.
func (e *ErrorReport) Subject() string {
	return fmt.Sprintf("DMARC error report: no report about %s from %s could be sent", e.Domain, e.Submitter)
}

// Text returns the text of the mail: the fields, an empty line, and what they mean. Lines
// end with LF. It is an error if a field would be empty or could not be read.
func (e *ErrorReport) Text() (string, error) {
	if err := e.check(); err != nil {
		return "", fmt.Errorf("dmarc: error report: %w", err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Report-Date: %s\n", e.Date.UTC().Format(time.RFC1123Z)) // RFC 5322 3.3
	fmt.Fprintf(&b, "Report-Domain: %s\n", e.Domain)
	fmt.Fprintf(&b, "Report-ID: %s\n", e.ReportID)
	fmt.Fprintf(&b, "Report-Size: %d\n", e.Size)
	fmt.Fprintf(&b, "Submitter: %s\n", e.Submitter)
	// No comma stands in a URI of a record (RFC 7489 6.4).
	fmt.Fprintf(&b, "Submitting-URI: %s\n", strings.Join(e.URIs, ",\n "))
	b.WriteString(`
A DMARC aggregate report was made but not sent: it is larger than any of
these addresses takes. The limit is what follows "!" in the rua tag of the
domain's DMARC record; to get reports again, raise it or leave it out.
This mail was made by a program; nobody reads answers.
`)
	return b.String(), nil
}

func (e *ErrorReport) check() error {
	for _, name := range []string{e.Domain, e.Submitter} {
		if parsed, err := ruapost.ParseDomain(name); err != nil || parsed != name {
			return fmt.Errorf("%q is no domain name", ruapost.Clean(name, maxText))
		}
	}
	if e.ReportID == "" || strings.ContainsFunc(e.ReportID, func(r rune) bool { return r > '~' || !isAlphanumeric(byte(r)) }) {
		return fmt.Errorf("%q is no report identifier", ruapost.Clean(e.ReportID, maxText))
	}
	if e.Date.IsZero() || e.Size <= 0 || len(e.URIs) == 0 {
		return errors.New("date, size or destinations are missing")
	}
	for _, uri := range e.URIs {
		if _, err := uriScheme(uri); err != nil || strings.ContainsAny(uri, ",!") {
			return fmt.Errorf("%q is no URI as a record has it", ruapost.Clean(uri, maxText))
		}
	}
	return nil
}
