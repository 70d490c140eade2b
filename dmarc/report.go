package dmarc

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"

	"ruapost"
)

// Format is the form of an aggregate report.
type Format string

const (
	RFC9990 Format = "rfc9990"
	// RFC7489 is the older form: without a namespace, as nearly everybody writes
	// it, and with all that strict readers of it insist on.
	RFC7489 Format = "rfc7489"
)

const (
	// maxSignatures bounds the DKIM results of one record (RFC 9990 3.1.3).
	maxSignatures = 100
	// maxText bounds one text of a report, in octets.
	maxText = 1000
)

// ErrNoRows is the error of a report that would have no record element, which
// neither form allows.
var ErrNoRows = errors.New("dmarc: a report needs at least one row")

// Report is all of an aggregate report but its rows.
type Report struct {
	// OrgName and Email say who reports; ExtraContact may be empty.
	OrgName, Email, ExtraContact string
	// ReportID is made of letters and digits only, see Filename.
	ReportID string
	Window   ruapost.Window
	// Policy is the policy that all rows were judged by.
	Policy ruapost.DMARCPolicy
	// Errors are lines for the domain owner beside Policy.Error.
	Errors []string
	// Seen, unless nil, is called for each row that is written.
	Seen func(count int64, result *ruapost.DMARCResult)
}

// WriteReport writes a report as XML. The Data of the rows are DMARCResults in
// JSON; rows without a positive count are left out. Memory does not grow with
// the number of rows.
//
// Where a form lacks a word, the report says what comes nearest: in that of RFC 7489
// disposition none for pass; in both, override type other, or local_policy for
// forwarded, with the type as comment. Words outside the enumerations come out as
// neutral, other and none, so that the report stays valid.
//
// The error is ErrNoRows, with nothing written, or the first of w, of rows, or of
// a row that is no DMARCResult with an address, with a part of the report written.
func WriteReport(w io.Writer, f Format, r *Report, rows iter.Seq2[ruapost.Row, error]) error {
	if r.OrgName == "" || r.Email == "" || r.ReportID == "" {
		return errors.New("dmarc: report without an organization, address or identifier")
	}
	x := &reportWriter{w: bufio.NewWriterSize(w, 32<<10), format: f, policy: &r.Policy}
	x.head(r)
	written := 0
	for row, err := range rows {
		if err != nil {
			return fmt.Errorf("dmarc: rows of report %s: %w", r.ReportID, err)
		}
		if row.Count <= 0 {
			continue
		}
		var res ruapost.DMARCResult
		if err := json.Unmarshal(row.Data, &res); err != nil {
			return fmt.Errorf("dmarc: row of report %s: %w", r.ReportID, err)
		}
		if !res.SourceIP.IsValid() {
			return fmt.Errorf("dmarc: row of report %s: no source address", r.ReportID)
		}
		if err := x.record(row.Count, &res); err != nil {
			return fmt.Errorf("dmarc: write report %s: %w", r.ReportID, err)
		}
		if r.Seen != nil {
			r.Seen(row.Count, &res)
		}
		written++
	}
	if written == 0 {
		return ErrNoRows // the head is still in the buffer
	}
	x.close(0, "feedback")
	if err := x.w.Flush(); err != nil {
		return fmt.Errorf("dmarc: write report %s: %w", r.ReportID, err)
	}
	return nil
}

// Filename returns the name of the gzip-compressed attachment (RFC 9990 3.5.2).
// A report that is sent again has the same. The identifier consists of letters and
// digits, which is all that the name's grammar has room for.
func Filename(submitter, policyDomain string, w ruapost.Window, reportID string) string {
	return fmt.Sprintf("%s!%s!%d!%d!%s.xml.gz", submitter, policyDomain, w.Start.Unix(), w.Last().Unix(), reportID)
}

// Subject returns the Subject field of the report mail (RFC 9990 3.5.2), unfolded.
func Subject(policyDomain, submitter, reportID string) string {
	return fmt.Sprintf("Report Domain: %s Submitter: %s Report-ID: <%s>", policyDomain, submitter, reportID)
}

// reportWriter writes elements in an order that is right by the schemas of both
// forms; where they leave it open, in that of the tables of RFC 9990 3.1.1.
type reportWriter struct {
	w      *bufio.Writer // keeps the first error
	format Format
	policy *ruapost.DMARCPolicy
}

func (x *reportWriter) head(r *Report) {
	x.w.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n")
	if x.format == RFC7489 {
		x.open(0, "feedback")
	} else {
		x.w.WriteString(`<feedback xmlns="urn:ietf:params:xml:ns:dmarc-2.0">` + "\n")
	}
	x.element(1, "version", "1.0")

	x.open(1, "report_metadata")
	x.element(2, "org_name", r.OrgName)
	x.element(2, "email", r.Email)
	if r.ExtraContact != "" {
		x.element(2, "extra_contact_info", r.ExtraContact)
	}
	x.element(2, "report_id", r.ReportID)
	x.open(2, "date_range")
	x.element(3, "begin", strconv.FormatInt(r.Window.Start.Unix(), 10))
	x.element(3, "end", strconv.FormatInt(r.Window.Last().Unix(), 10))
	x.close(2, "date_range")
	errs := r.Errors
	if r.Policy.Error != "" {
		errs = append([]string{r.Policy.Error}, errs...)
	}
	if len(errs) > 0 {
		x.element(2, "error", strings.Join(errs, "; ")) // RFC 9990 has room for one
	}
	if x.format != RFC7489 {
		x.element(2, "generator", "ruapost "+ruapost.Version)
	}
	x.close(1, "report_metadata")

	x.policyPublished(&r.Policy)
}

// policyPublished writes the policy, in which tags not published have the value
// that holds without them (RFC 9990 3.1.1.5).
func (x *reportWriter) policyPublished(p *ruapost.DMARCPolicy) {
	published := policyWord(p.P)
	sub := published
	if p.SP != "" {
		sub = policyWord(p.SP)
	}
	nonexistent := sub
	if p.NP != "" {
		nonexistent = policyWord(p.NP)
	}
	x.open(1, "policy_published")
	x.element(2, "domain", p.Domain)
	if x.format != RFC7489 {
		x.element(2, "discovery_method", oneWord(p.Discovery, discoveryTreeWalk, discoveryPSL))
	}
	x.element(2, "p", published)
	x.element(2, "sp", sub)
	if x.format != RFC7489 {
		x.element(2, "np", nonexistent)
	}
	if x.format == RFC7489 {
		x.element(2, "pct", strconv.Itoa(p.Percent))
	}
	x.element(2, "fo", p.FO)
	x.element(2, "adkim", oneWord(string(p.ADKIM), "r", "s"))
	x.element(2, "aspf", oneWord(string(p.ASPF), "r", "s"))
	if x.format != RFC7489 {
		x.element(2, "testing", yesNo(p.Testing, "y", "n"))
	}
	x.close(1, "policy_published")
}

func (x *reportWriter) record(count int64, res *ruapost.DMARCResult) error {
	x.open(1, "record")
	x.open(2, "row")
	x.element(3, "source_ip", res.SourceIP.Unmap().WithZone("").String())
	x.element(3, "count", strconv.FormatInt(count, 10))
	x.open(3, "policy_evaluated")
	x.element(4, "disposition", x.disposition(res.Disposition))
	x.element(4, "dkim", yesNo(res.AlignedDKIM, "pass", "fail"))
	x.element(4, "spf", yesNo(res.AlignedSPF, "pass", "fail"))
	for _, o := range res.Overrides {
		x.reason(o)
	}
	x.close(3, "policy_evaluated")
	x.close(2, "row")

	x.open(2, "identifiers")
	if res.EnvelopeTo != "" {
		x.element(3, "envelope_to", res.EnvelopeTo)
	}
	x.element(3, "envelope_from", res.EnvelopeFrom) // RFC 7489 requires it; empty for the null path
	x.element(3, "header_from", res.HeaderFrom)
	x.close(2, "identifiers")

	x.open(2, "auth_results")
	for _, d := range selectSignatures(res.DKIM, res.HeaderFrom, x.policy.Domain) {
		x.dkim(&d)
	}
	x.spf(&res.SPF)
	x.close(2, "auth_results")
	return x.close(1, "record")
}

func (x *reportWriter) disposition(d ruapost.Disposition) string {
	if d == ruapost.DispositionPass && x.format != RFC7489 {
		return string(d)
	}
	return policyWord(d)
}

func (x *reportWriter) reason(o ruapost.Override) {
	kind, comment := x.overrideType(o.Type), o.Comment
	if kind != o.Type {
		comment = string(o.Type)
		if o.Comment != "" {
			comment += ": " + o.Comment
		}
	}
	x.open(4, "reason")
	x.element(5, "type", string(kind))
	if comment != "" {
		x.element(5, "comment", comment)
	}
	x.close(4, "reason")
}

// overrideType returns the type that the format has for t. To have taken a message
// for a forwarded one is the receiver's own decision; that the owner exempted it, by
// t=y or pct, is not.
func (x *reportWriter) overrideType(t ruapost.OverrideType) ruapost.OverrideType {
	old := x.format == RFC7489
	switch t {
	case ruapost.OverrideLocalPolicy, ruapost.OverrideMailingList, ruapost.OverrideTrustedForwarder:
		return t
	case ruapost.OverridePolicyTestMode:
		if !old {
			return t
		}
	case ruapost.OverrideSampledOut:
		if old {
			return t
		}
	case ruapost.OverrideForwarded:
		if old {
			return t
		}
		return ruapost.OverrideLocalPolicy
	}
	return ruapost.OverrideOther
}

func (x *reportWriter) dkim(d *ruapost.DKIMResult) {
	x.open(3, "dkim")
	x.element(4, "domain", d.Domain)
	x.element(4, "selector", d.Selector)
	x.element(4, "result", oneWord(string(d.Result), "neutral", "none", "pass", "fail", "policy", "temperror", "permerror"))
	if d.Reason != "" {
		x.element(4, "human_result", d.Reason)
	}
	x.close(3, "dkim")
}

// spf writes the SPF result. Without a domain to check there is nothing to say in
// RFC 9990; RFC 7489 requires the element and in it a scope, but has no policy.
func (x *reportWriter) spf(s *ruapost.SPFResult) {
	if s.Domain == "" && x.format != RFC7489 {
		return
	}
	words := []string{"none", "pass", "fail", "softfail", "temperror", "permerror", "policy"}
	if x.format == RFC7489 {
		words = words[:6]
	}
	x.open(3, "spf")
	x.element(4, "domain", s.Domain)
	switch {
	case !s.Helo && s.Domain != "":
		x.element(4, "scope", "mfrom")
	case x.format == RFC7489: // RFC 9990 has no word for the HELO name
		x.element(4, "scope", "helo")
	}
	x.element(4, "result", oneWord(string(s.Result), "neutral", words...))
	x.close(3, "spf")
}

// selectSignatures returns at most maxSignatures results, if there are more those
// that tell most: passes that are strictly aligned, then relaxed, then other
// passes, then the rest (RFC 9990 3.1.3). Of alignment a row knows no more than
// the names; that is enough for this choice.
func selectSignatures(dkim []ruapost.DKIMResult, author, policyDomain string) []ruapost.DKIMResult {
	if len(dkim) <= maxSignatures {
		return dkim
	}
	rank := func(d ruapost.DKIMResult) int {
		switch {
		case d.Result != ruapost.AuthPass:
			return 3
		case d.Domain == author:
			return 0
		case ruapost.Within(d.Domain, policyDomain) || ruapost.Within(author, d.Domain):
			return 1
		}
		return 2
	}
	chosen := slices.Clone(dkim)
	slices.SortStableFunc(chosen, func(a, b ruapost.DKIMResult) int { return rank(a) - rank(b) })
	return chosen[:maxSignatures]
}

// policyWord returns d as p, sp, np and, but for pass, dispositions have it.
func policyWord(d ruapost.Disposition) string {
	return oneWord(string(d), "none", "quarantine", "reject")
}

// oneWord returns word if it is fallback or one of words, else fallback.
func oneWord(word, fallback string, words ...string) string {
	if slices.Contains(words, word) {
		return word
	}
	return fallback
}

func yesNo(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

func (x *reportWriter) indent(depth int) {
	const blanks = "          "
	x.w.WriteString(blanks[:2*depth])
}

func (x *reportWriter) open(depth int, name string) {
	x.indent(depth)
	x.tag("<", name)
	x.w.WriteByte('\n')
}

// close also returns the first error of all writing so far.
func (x *reportWriter) close(depth int, name string) error {
	x.indent(depth)
	x.tag("</", name)
	return x.w.WriteByte('\n')
}

func (x *reportWriter) element(depth int, name, text string) {
	x.indent(depth)
	x.tag("<", name)
	x.text(text)
	x.tag("</", name)
	x.w.WriteByte('\n')
}

func (x *reportWriter) tag(bracket, name string) {
	x.w.WriteString(bracket)
	x.w.WriteString(name)
	x.w.WriteByte('>')
}

var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// text writes s cleaned (ruapost.Clean) and escaped. Nearly all texts are domain
// names and words, which need neither.
func (x *reportWriter) text(s string) {
	if isPlain(s) {
		x.w.WriteString(s)
		return
	}
	escaper.WriteString(x.w, ruapost.Clean(s, maxText))
}

func isPlain(s string) bool {
	if len(s) > maxText {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '&' || c == '<' || c == '>' {
			return false
		}
	}
	return true
}
