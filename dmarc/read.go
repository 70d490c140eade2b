package dmarc

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// maxRecord bounds one record of a report, and what is before the first, in octets: more
// than WriteReport makes of a hundred signatures.
const maxRecord = 1 << 20

// Published is what a report says beside its records.
type Published struct {
	OrgName   string `xml:"report_metadata>org_name"`
	Email     string `xml:"report_metadata>email"`
	ReportID  string `xml:"report_metadata>report_id"`
	Begin     int64  `xml:"report_metadata>date_range>begin"` // Unix times, both in the interval
	End       int64  `xml:"report_metadata>date_range>end"`
	Error     string `xml:"report_metadata>error"`
	Generator string `xml:"report_metadata>generator"`
	Policy    struct {
		Domain    string `xml:"domain"`
		Discovery string `xml:"discovery_method"`
		P         string `xml:"p"`
		SP        string `xml:"sp"`
		NP        string `xml:"np"`
		Percent   string `xml:"pct"`
		FO        string `xml:"fo"`
		ADKIM     string `xml:"adkim"`
		ASPF      string `xml:"aspf"`
		Testing   string `xml:"testing"`
	} `xml:"policy_published"`
}

// PublishedRecord is one record of a report, in the report's words.
type PublishedRecord struct {
	SourceIP    string `xml:"row>source_ip"`
	Count       int64  `xml:"row>count"`
	Disposition string `xml:"row>policy_evaluated>disposition"`
	DKIM        string `xml:"row>policy_evaluated>dkim"`
	SPF         string `xml:"row>policy_evaluated>spf"`
	Reasons     []struct {
		Type    string `xml:"type"`
		Comment string `xml:"comment"`
	} `xml:"row>policy_evaluated>reason"`
	EnvelopeTo   string `xml:"identifiers>envelope_to"`
	EnvelopeFrom string `xml:"identifiers>envelope_from"`
	HeaderFrom   string `xml:"identifiers>header_from"`
	AuthDKIM     []struct {
		Domain   string `xml:"domain"`
		Selector string `xml:"selector"`
		Result   string `xml:"result"`
		Human    string `xml:"human_result"`
	} `xml:"auth_results>dkim"`
	AuthSPF []struct {
		Domain string `xml:"domain"`
		Scope  string `xml:"scope"`
		Result string `xml:"result"`
	} `xml:"auth_results>spf"`
}

// Failed tells whether neither mechanism passed and was aligned.
func (r *PublishedRecord) Failed() bool { return r.DKIM != "pass" && r.SPF != "pass" }

// ReportReader reads a report that WriteReport has written, in either form. Records that
// nobody asks for are passed over, which takes a hundredth of the time.
type ReportReader struct {
	Published Published

	scanner *bufio.Scanner
	first   []byte // the first record, until Next is called
	record  []byte
}

// NewReportReader reads what is before the first record.
func NewReportReader(r io.Reader) (*ReportReader, error) {
	x := &ReportReader{scanner: bufio.NewScanner(r)}
	x.scanner.Buffer(make([]byte, 0, 64<<10), maxRecord)
	x.scanner.Split(splitRecords)
	if !x.scanner.Scan() {
		return nil, x.fault(errors.New("it has no record"))
	}
	head, first, ok := bytes.Cut(x.scanner.Bytes(), []byte("<record>"))
	if !ok {
		return nil, x.fault(errors.New("it has no record"))
	}
	if err := xml.Unmarshal(append(bytes.Clone(head), "</feedback>"...), &x.Published); err != nil {
		return nil, x.fault(err)
	}
	x.first = append([]byte("<record>"), first...)
	return x, nil
}

func (x *ReportReader) fault(err error) error {
	if scan := x.scanner.Err(); scan != nil {
		err = scan
	}
	return fmt.Errorf("dmarc: read report: %w", err)
}

// splitRecords cuts behind each record. What is behind the last one is no token.
func splitRecords(data []byte, atEOF bool) (advance int, token []byte, err error) {
	end := []byte("</record>")
	if i := bytes.Index(data, end); i >= 0 {
		return i + len(end), data[:i+len(end)], nil
	}
	if atEOF {
		return len(data), nil, nil
	}
	return 0, nil, nil
}

// Next goes to the next record, the first time to the first one. It returns false behind
// the last one.
func (x *ReportReader) Next() bool {
	if x.first != nil {
		x.record, x.first = x.first, nil
		return true
	}
	if !x.scanner.Scan() {
		return false
	}
	x.record = x.scanner.Bytes()
	return true
}

// Err returns what has ended Next, nil if that was the report's end.
func (x *ReportReader) Err() error {
	if x.scanner.Err() == nil {
		return nil
	}
	return x.fault(nil)
}

// Rank returns what the record would be sorted by. No text of a report has a tag in it.
func (x *ReportReader) Rank() (failed bool, count int64) {
	evaluated, _, _ := bytes.Cut(x.record, []byte("</policy_evaluated>"))
	failed = !bytes.Contains(evaluated, []byte("<dkim>pass</dkim>")) && !bytes.Contains(evaluated, []byte("<spf>pass</spf>"))
	_, digits, _ := bytes.Cut(evaluated, []byte("<count>"))
	digits, _, _ = bytes.Cut(digits, []byte("</count>"))
	count, _ = strconv.ParseInt(string(digits), 10, 64)
	return failed, count
}

// Record takes the record apart.
func (x *ReportReader) Record() (r PublishedRecord, err error) {
	if err := xml.Unmarshal(x.record, &r); err != nil {
		return r, x.fault(err)
	}
	return r, nil
}
