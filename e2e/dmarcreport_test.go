package e2e

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// unknown catches elements that the schema does not have.
type unknown struct {
	Rest []struct{ XMLName xml.Name } `xml:",any"`
}

// dmarcReport is a report by the schema of RFC 9990 Appendix A.
type dmarcReport struct {
	XMLName  xml.Name `xml:"urn:ietf:params:xml:ns:dmarc-2.0 feedback"`
	Version  string   `xml:"version"`
	Metadata struct {
		OrgName   string `xml:"org_name"`
		Email     string `xml:"email"`
		Contact   string `xml:"extra_contact_info"`
		ReportID  string `xml:"report_id"`
		Begin     int64  `xml:"date_range>begin"`
		End       int64  `xml:"date_range>end"`
		Error     string `xml:"error"`
		Generator string `xml:"generator"`
		unknown
	} `xml:"report_metadata"`
	Policy  dmarcPolicy   `xml:"policy_published"`
	Records []dmarcRecord `xml:"record"`
	unknown
}

type dmarcPolicy struct {
	Domain    string `xml:"domain"`
	Discovery string `xml:"discovery_method"`
	P         string `xml:"p"`
	SP        string `xml:"sp"`
	NP        string `xml:"np"`
	FO        string `xml:"fo"`
	ADKIM     string `xml:"adkim"`
	ASPF      string `xml:"aspf"`
	Testing   string `xml:"testing"`
	unknown
}

type dmarcRecord struct {
	Row struct {
		SourceIP  string         `xml:"source_ip"`
		Count     int            `xml:"count"`
		Evaluated dmarcEvaluated `xml:"policy_evaluated"`
		unknown
	} `xml:"row"`
	Identifiers dmarcIdentifiers `xml:"identifiers"`
	Auth        dmarcAuth        `xml:"auth_results"`
	unknown
}

type dmarcEvaluated struct {
	Disposition string `xml:"disposition"`
	DKIM        string `xml:"dkim"`
	SPF         string `xml:"spf"`
	Reasons     []struct {
		Type    string `xml:"type"`
		Comment string `xml:"comment"`
		unknown
	} `xml:"reason"`
	unknown
}

type dmarcIdentifiers struct {
	HeaderFrom   string `xml:"header_from"`
	EnvelopeFrom string `xml:"envelope_from"`
	EnvelopeTo   string `xml:"envelope_to"`
	unknown
}

type dmarcAuth struct {
	DKIM []struct {
		Domain   string `xml:"domain"`
		Selector string `xml:"selector"`
		Result   string `xml:"result"`
		Human    string `xml:"human_result"`
		unknown
	} `xml:"dkim"`
	SPF []struct {
		Domain string `xml:"domain"`
		Scope  string `xml:"scope"`
		Result string `xml:"result"`
		Human  string `xml:"human_result"`
		unknown
	} `xml:"spf"`
	unknown
}

// row is what a record says, free text left out: two records with equal rows
// would have to be one.
type row struct {
	sourceIP    string
	disposition string
	dkim, spf   string // aligned results
	reason      string // override types with blanks between

	headerFrom, envelopeFrom, envelopeTo string

	authDKIM string // "domain/selector=result" with blanks between
	authSPF  string // "domain=result"
}

func (rec *dmarcRecord) row() row {
	r := row{
		sourceIP:     rec.Row.SourceIP,
		disposition:  rec.Row.Evaluated.Disposition,
		dkim:         rec.Row.Evaluated.DKIM,
		spf:          rec.Row.Evaluated.SPF,
		headerFrom:   rec.Identifiers.HeaderFrom,
		envelopeFrom: rec.Identifiers.EnvelopeFrom,
		envelopeTo:   rec.Identifiers.EnvelopeTo,
	}
	for _, o := range rec.Row.Evaluated.Reasons {
		r.reason = join(r.reason, o.Type)
	}
	for _, d := range rec.Auth.DKIM {
		r.authDKIM = join(r.authDKIM, fmt.Sprintf("%s/%s=%s", d.Domain, d.Selector, d.Result))
	}
	for _, s := range rec.Auth.SPF {
		r.authSPF = join(r.authSPF, fmt.Sprintf("%s=%s", s.Domain, s.Result))
	}
	return r
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + " " + b
}

// dmarcContent is what reports about one policy domain say, counts added up if
// there are two because midnight passed.
type dmarcContent struct {
	policy dmarcPolicy
	rows   map[row]int
}

// parseDMARC reads a report and checks what does not depend on the mails that it
// is about.
func parseDMARC(t *testing.T, mail *reportMail, when span) *dmarcReport {
	t.Helper()
	if mail.attachmentType != "application/gzip" {
		t.Errorf("DMARC report about %s: attachment type %s", mail.domain, mail.attachmentType)
	}
	var r dmarcReport
	dec := xml.NewDecoder(bytes.NewReader(mail.data))
	if err := dec.Decode(&r); err != nil {
		t.Fatalf("DMARC report about %s: %v\n%s", mail.domain, err, mail.data)
	}
	if rest := r.foreign(); len(rest) > 0 {
		t.Errorf("DMARC report about %s: elements %v", mail.domain, rest)
	}
	m := r.Metadata
	begin, end := time.Unix(m.Begin, 0).UTC(), time.Unix(m.End, 0).UTC()
	when.checkWindow(t, begin, end)
	if !begin.Equal(mail.begin) || !end.Equal(mail.end) {
		t.Errorf("DMARC report about %s: from %v to %v, but its file name has %v to %v", mail.domain, begin, end, mail.begin, mail.end)
	}
	type metadata struct{ Version, OrgName, Email, ReportID, Domain, Error string }
	got := metadata{r.Version, m.OrgName, m.Email, m.ReportID, r.Policy.Domain, m.Error}
	want := metadata{"1.0", orgName, reportFrom, mail.id, mail.domain, ""}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("DMARC report about %s (-want +got):\n%s", mail.domain, diff)
	}
	if m.Generator == "" {
		t.Errorf("DMARC report about %s: no generator", mail.domain)
	}
	for _, rec := range r.Records {
		for _, s := range rec.Auth.SPF {
			if s.Scope != "mfrom" && s.Scope != "" { // RFC 9990 has no other
				t.Errorf("DMARC report about %s: SPF scope %q", mail.domain, s.Scope)
			}
		}
	}
	return &r
}

// foreign lists all elements that are not in the schema.
func (r *dmarcReport) foreign() []string {
	all := [][]struct{ XMLName xml.Name }{r.Rest, r.Metadata.Rest, r.Policy.Rest}
	for _, rec := range r.Records {
		all = append(all, rec.Rest, rec.Row.Rest, rec.Row.Evaluated.Rest, rec.Identifiers.Rest, rec.Auth.Rest)
		for _, o := range rec.Row.Evaluated.Reasons {
			all = append(all, o.Rest)
		}
		for _, d := range rec.Auth.DKIM {
			all = append(all, d.Rest)
		}
		for _, s := range rec.Auth.SPF {
			all = append(all, s.Rest)
		}
	}
	var names []string
	for _, elements := range all {
		for _, e := range elements {
			names = append(names, e.XMLName.Local)
		}
	}
	return names
}

// dmarcContents adds up the reports by policy domain. Every recipient of a report
// must have got the same one.
func dmarcContents(t *testing.T, mails []*reportMail, when span) map[string]*dmarcContent {
	t.Helper()
	contents := map[string]*dmarcContent{}
	seen := map[string]*reportMail{} // by report identifier
	for _, mail := range mails {
		if first := seen[mail.id]; first != nil {
			if !bytes.Equal(first.data, mail.data) {
				t.Errorf("report %s differs between %s and %s", mail.id, first.to, mail.to)
			}
			continue
		}
		seen[mail.id] = mail
		r := parseDMARC(t, mail, when)
		c := contents[mail.domain]
		if c == nil {
			c = &dmarcContent{policy: r.Policy, rows: map[row]int{}}
			contents[mail.domain] = c
		}
		inReport := map[row]bool{}
		for _, rec := range r.Records {
			if inReport[rec.row()] {
				t.Errorf("report about %s has two records that say the same: %+v", mail.domain, rec.row())
			}
			inReport[rec.row()] = true
			c.rows[rec.row()] += rec.Row.Count
		}
	}
	return contents
}

// recipients returns who got a report about which domain, as "address domain",
// sorted and without repetition.
func recipients(mails []*reportMail) []string {
	var got []string
	for _, m := range mails {
		got = append(got, m.to+" "+m.domain)
	}
	slices.SortFunc(got, cmp.Compare)
	return slices.Compact(got)
}
