package dmarc

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
)

// maxReportSize bounds the XML that ParseReport reads, in octets.
const maxReportSize = 64 << 20

// Feedback is an aggregate report as read, of either form and with or without a
// namespace. Texts are as written: nothing is checked but the XML itself.
type Feedback struct {
	XMLName  xml.Name         `xml:"feedback"`
	Version  string           `xml:"version"`
	Metadata FeedbackMetadata `xml:"report_metadata"`
	Policy   FeedbackPolicy   `xml:"policy_published"`
	Records  []FeedbackRecord `xml:"record"`
}

// FeedbackMetadata says who reports about which period. Begin and End are Unix
// times; End is the last second covered.
type FeedbackMetadata struct {
	OrgName      string   `xml:"org_name"`
	Email        string   `xml:"email"`
	ExtraContact string   `xml:"extra_contact_info"`
	ReportID     string   `xml:"report_id"`
	Begin        int64    `xml:"date_range>begin"`
	End          int64    `xml:"date_range>end"`
	Errors       []string `xml:"error"`
	Generator    string   `xml:"generator"`
}

// FeedbackPolicy is the policy found. Percent stands only in the form of RFC 7489,
// NP, Testing and Discovery only in that of RFC 9990.
type FeedbackPolicy struct {
	Domain    string `xml:"domain"`
	P         string `xml:"p"`
	SP        string `xml:"sp"`
	NP        string `xml:"np"`
	ADKIM     string `xml:"adkim"`
	ASPF      string `xml:"aspf"`
	FO        string `xml:"fo"`
	Testing   string `xml:"testing"`
	Percent   string `xml:"pct"`
	Discovery string `xml:"discovery_method"`
}

// FeedbackRecord is one row: Count messages alike in all the rest. DKIM and SPF
// are the aligned results.
type FeedbackRecord struct {
	SourceIP     string           `xml:"row>source_ip"`
	Count        int64            `xml:"row>count"`
	Disposition  string           `xml:"row>policy_evaluated>disposition"`
	DKIM         string           `xml:"row>policy_evaluated>dkim"`
	SPF          string           `xml:"row>policy_evaluated>spf"`
	Reasons      []FeedbackReason `xml:"row>policy_evaluated>reason"`
	EnvelopeTo   string           `xml:"identifiers>envelope_to"`
	EnvelopeFrom string           `xml:"identifiers>envelope_from"`
	HeaderFrom   string           `xml:"identifiers>header_from"`
	DKIMResults  []FeedbackAuth   `xml:"auth_results>dkim"`
	SPFResults   []FeedbackAuth   `xml:"auth_results>spf"`
}

// FeedbackReason is why the disposition is not the policy's.
type FeedbackReason struct {
	Type    string `xml:"type"`
	Comment string `xml:"comment"`
}

// FeedbackAuth is the outcome of a DKIM signature or, with a scope and no
// selector, of the SPF check.
type FeedbackAuth struct {
	Domain      string `xml:"domain"`
	Selector    string `xml:"selector"`
	Scope       string `xml:"scope"`
	Result      string `xml:"result"`
	HumanResult string `xml:"human_result"`
}

// ParseReport reads an aggregate report. More than 64 MiB of XML is an error.
func ParseReport(r io.Reader) (*Feedback, error) { return parseReport(r, maxReportSize) }

func parseReport(r io.Reader, limit int64) (*Feedback, error) {
	limited := &io.LimitedReader{R: r, N: limit + 1}
	dec := xml.NewDecoder(limited)
	var f Feedback
	err := dec.Decode(&f)
	if err == nil {
		err = nothingLeft(dec)
	}
	if limited.N <= 0 {
		return nil, fmt.Errorf("dmarc: report larger than %d octets", limit)
	}
	if err != nil {
		return nil, fmt.Errorf("dmarc: read report: %w", err)
	}
	return &f, nil
}

// nothingLeft accepts blanks, comments and processing instructions.
func nothingLeft(dec *xml.Decoder) error {
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		text, isText := tok.(xml.CharData)
		_, isElement := tok.(xml.StartElement)
		if isElement || isText && len(bytes.TrimSpace(text)) > 0 {
			return errors.New("content behind the feedback element")
		}
	}
}
