package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/textproto"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"ruapost/internal/lab"
)

// reportMail is a report as its recipient gets it, taken apart with nothing of
// the programs' own code.
type reportMail struct {
	to     string
	header mail.Header
	// What the subject and the file name say.
	domain, id string
	begin, end time.Time
	// text is what stands before the report for people, attachmentType the media
	// type of the report, and data the report itself.
	text           string
	attachmentType string
	data           []byte
}

// reportMails takes apart all reports among the mails and checks what any report
// mail must have.
func (w *world) reportMails(messages []lab.Message) []*reportMail {
	w.t.Helper()
	var reports []*reportMail
	for _, m := range messages {
		if m.From != reportFrom {
			continue
		}
		r, err := parseReportMail(m)
		if err != nil {
			w.t.Errorf("report to %v: %v\n%s", m.To, err, m.Data)
			continue
		}
		if err := checkSignature(m.Data); err != nil {
			w.t.Errorf("report to %v: %v\n%s", m.To, err, m.Data)
		}
		reports = append(reports, r)
	}
	return reports
}

// RFC 9990 3.5.2 and RFC 8460 5.3 have nearly the same subject; this is the form
// that fits both.
var subjectForm = regexp.MustCompile(`^Report Domain: (\S+) Submitter: (\S+) Report-ID: <(\S+)>$`)

func parseReportMail(m lab.Message) (*reportMail, error) {
	if len(m.To) != 1 {
		return nil, fmt.Errorf("%d recipients, not 1", len(m.To))
	}
	r := &reportMail{to: m.To[0]}
	msg, err := mail.ReadMessage(bytes.NewReader(m.Data))
	if err != nil {
		return nil, err
	}
	r.header = msg.Header
	if err := checkHeader(msg.Header, r.to); err != nil {
		return nil, err
	}
	subject := subjectForm.FindStringSubmatch(msg.Header.Get("Subject"))
	if subject == nil {
		return nil, fmt.Errorf("Subject: %q", msg.Header.Get("Subject"))
	}
	if subject[2] != reportDomain {
		return nil, fmt.Errorf("Subject: submitter %q", subject[2])
	}
	r.domain, r.id = subject[1], subject[3]
	filename, err := r.parseBody(msg)
	if err != nil {
		return nil, err
	}
	return r, r.parseFilename(filename)
}

func checkHeader(h mail.Header, to string) error {
	for name, want := range map[string]string{
		"Auto-Submitted": "auto-generated",
		"MIME-Version":   "1.0",
	} {
		if got := h[textproto.CanonicalMIMEHeaderKey(name)]; len(got) != 1 || got[0] != want {
			return fmt.Errorf("%s: %q, not %q", name, got, want)
		}
	}
	for name, want := range map[string]string{"From": reportFrom, "To": to} {
		addresses, err := h.AddressList(name)
		if err != nil || len(addresses) != 1 || addresses[0].Address != want {
			return fmt.Errorf("%s: %q, not %s", name, h.Get(name), want)
		}
	}
	if date, err := h.Date(); err != nil || time.Since(date).Abs() > 5*time.Minute {
		return fmt.Errorf("Date: %q", h.Get("Date"))
	}
	if id := h.Get("Message-ID"); !regexp.MustCompile(`^<[^<>@\s]+@` + regexp.QuoteMeta(reportDomain) + `>$`).MatchString(id) {
		return fmt.Errorf("Message-ID: %q", id)
	}
	return nil
}

// parseBody reads the two parts of the mail and returns the report's file name.
func (r *reportMail) parseBody(msg *mail.Message) (filename string, err error) {
	mediaType, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil {
		return "", fmt.Errorf("Content-Type: %w", err)
	}
	if !strings.HasPrefix(mediaType, "multipart/") {
		return "", fmt.Errorf("Content-Type: %s", mediaType)
	}
	parts := multipart.NewReader(msg.Body, params["boundary"])
	text, err := parts.NextPart() // undoes quoted-printable
	if err != nil {
		return "", fmt.Errorf("first part: %w", err)
	}
	if t, _, _ := mime.ParseMediaType(text.Header.Get("Content-Type")); t != "text/plain" {
		return "", fmt.Errorf("first part: type %q", t)
	}
	plain, err := io.ReadAll(text)
	if err != nil {
		return "", fmt.Errorf("first part: %w", err)
	}
	r.text = string(plain)

	report, err := parts.NextPart()
	if err != nil {
		return "", fmt.Errorf("second part: %w", err)
	}
	r.attachmentType, _, err = mime.ParseMediaType(report.Header.Get("Content-Type"))
	if err != nil {
		return "", fmt.Errorf("second part: Content-Type: %w", err)
	}
	disposition, params, err := mime.ParseMediaType(report.Header.Get("Content-Disposition"))
	if err != nil || disposition != "attachment" {
		return "", fmt.Errorf("second part: Content-Disposition: %q", report.Header.Get("Content-Disposition"))
	}
	if enc := report.Header.Get("Content-Transfer-Encoding"); !strings.EqualFold(enc, "base64") {
		return "", fmt.Errorf("second part: encoding %q", enc)
	}
	unzip, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, report))
	if err != nil {
		return "", fmt.Errorf("second part: %w", err)
	}
	if r.data, err = io.ReadAll(unzip); err != nil {
		return "", fmt.Errorf("second part: %w", err)
	}
	if _, err := parts.NextPart(); err != io.EOF {
		return "", fmt.Errorf("after the second part: %v", err)
	}
	return params["filename"], nil
}

// parseFilename reads submitter "!" domain "!" begin "!" end "!" id "." extension
// (RFC 9990 3.5.2, RFC 8460 5.1).
func (r *reportMail) parseFilename(filename string) error {
	name, extension, _ := strings.Cut(filename, "!")
	if name != reportDomain {
		return fmt.Errorf("file name %q: not of %s", filename, reportDomain)
	}
	fields := strings.Split(extension, "!")
	if len(fields) != 4 {
		return fmt.Errorf("file name %q", filename)
	}
	var seconds [2]int64
	for i := range seconds {
		var err error
		if seconds[i], err = strconv.ParseInt(fields[1+i], 10, 64); err != nil {
			return fmt.Errorf("file name %q: %w", filename, err)
		}
	}
	r.begin, r.end = time.Unix(seconds[0], 0).UTC(), time.Unix(seconds[1], 0).UTC()
	id, extension, _ := strings.Cut(fields[3], ".")
	left, _, _ := strings.Cut(r.id, "@") // the file name's is letters and digits only
	want := map[string]string{"application/gzip": "xml.gz", "application/tlsrpt+gzip": "json.gz"}[r.attachmentType]
	if fields[0] != r.domain || id != left || extension != want {
		return fmt.Errorf("file name %q does not fit domain %s, report id %s, type %s", filename, r.domain, r.id, r.attachmentType)
	}
	return nil
}

// checkSignature wants a valid DKIM signature of the report's domain over the
// fields that matter (RFC 8460 3).
func checkSignature(data []byte) error {
	results, err := dkim.Verify(bytes.NewReader(data)) // asks the world's name server
	if err != nil {
		return fmt.Errorf("DKIM: %w", err)
	}
	if len(results) != 1 {
		return fmt.Errorf("DKIM: %d signatures", len(results))
	}
	sig := results[0]
	if sig.Err != nil || sig.Domain != reportDomain {
		return fmt.Errorf("DKIM: d=%s: %v", sig.Domain, sig.Err)
	}
	msg, err := mail.ReadMessage(bytes.NewReader(data))
	if err != nil {
		return err
	}
	must := []string{"From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type"}
	for _, name := range []string{"TLS-Report-Domain", "TLS-Report-Submitter"} {
		if msg.Header.Get(name) != "" {
			must = append(must, name)
		}
	}
	for _, name := range must {
		if !slices.ContainsFunc(sig.HeaderKeys, func(k string) bool { return strings.EqualFold(k, name) }) {
			return fmt.Errorf("DKIM: %s is not signed, only %v", name, sig.HeaderKeys)
		}
	}
	return nil
}

// span is when the things happened that a report is about, and when the reporter
// had run.
type span struct{ first, last, reported time.Time }

// checkWindow wants begin and end, its last second, to be a UTC day with some of
// the span in it (RFC 9990 3.1.1.4, RFC 8460 4.1), or what there was of the day
// when the reporter ran. In a report sent because of --now, that is all it can say.
func (s span) checkWindow(t *testing.T, begin, end time.Time) {
	t.Helper()
	const day = 24 * time.Hour
	inSpan := begin.Equal(s.first.Truncate(day)) || begin.Equal(s.last.Truncate(day))
	wholeDay := end.Equal(begin.Add(day - time.Second))
	untilNow := !end.Before(s.last.Truncate(time.Second)) && !end.After(s.reported)
	if !inSpan || !wholeDay && !untilNow {
		t.Errorf("window from %v to %v, but it was from %v to %v, and reported before %v", begin, end, s.first, s.last, s.reported)
	}
}
