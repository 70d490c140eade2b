package reporting

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"ruapost"
	"ruapost/compose"
	"ruapost/dmarc"
	"ruapost/internal/mailtouri"
	"ruapost/tlsrpt"
)

// mailName is the name of the file with the mail to an address, which comes from the
// network and so does not stand in it.
func mailName(address string) string {
	h := sha256.Sum256([]byte(address))
	return hex.EncodeToString(h[:8]) + ".eml"
}

// composeMail writes the mail with the report to rc into the file at path.
func (r *Reporter) composeMail(path string, rep *ruapost.Report, rc *ruapost.Recipient) error {
	if r.Signer == nil {
		r.unsigned.Do(func() {
			slog.Warn("reports are not signed here: set [dkim], unless a milter signs what sendmail submits")
		})
	}
	msg := &compose.Message{
		From:      r.From,
		FromName:  r.OrgName,
		To:        rc.Address,
		Date:      r.now(),
		MessageID: compose.NewMessageID(r.Domain),
		Text:      r.text(rep),
		Attachment: compose.Attachment{
			Open: func() (io.ReadCloser, error) { return os.Open(r.contentFile(rep)) },
		},
	}
	submitter := r.submitter(rep.Kind)
	switch rep.Kind {
	case ruapost.KindDMARC:
		msg.Subject = dmarc.Subject(rep.Domain, submitter, rep.ID)
		msg.Attachment.ContentType = "application/gzip" // RFC 9990 3.5.2
		msg.Attachment.Filename = dmarc.Filename(submitter, rep.Domain, rep.Window, rep.ID)
	case ruapost.KindTLS:
		msg.Subject = tlsrpt.Subject(rep.Domain, submitter, rep.ID)
		msg.ReportType = "tlsrpt"
		msg.Header = []compose.Field{
			{Name: "TLS-Report-Domain", Value: rep.Domain},
			{Name: "TLS-Report-Submitter", Value: submitter},
			// RFC 8460 3: the report about failing TLS must not fail for it.
			{Name: "TLS-Required", Value: "No"},
		}
		msg.Attachment.ContentType = "application/tlsrpt+gzip"
		msg.Attachment.Filename = tlsrpt.Filename(submitter, rep.Domain, rep.Window, rep.ID)
	}
	return writeFile(path, func(w io.Writer) error { return msg.Write(compose.UnixLines(w), r.Signer) })
}

// submitter is the domain that reports of a kind come from.
func (r *Reporter) submitter(kind ruapost.Kind) string {
	if kind == ruapost.KindTLS {
		return mailtouri.Domain(r.From) // RFC 8460 3: that of the contact address
	}
	return r.Domain
}

// text is what a person reads who opens the mail.
func (r *Reporter) text(rep *ruapost.Report) string {
	var b strings.Builder
	var total, failed int64
	for _, g := range rep.Groups {
		total += g.Total
		failed += g.Failed
	}
	if rep.Kind == ruapost.KindDMARC {
		fmt.Fprintf(&b, "This is a DMARC aggregate report about mail that claimed to come from\n%s.\n\n", rep.Domain)
	} else {
		fmt.Fprintf(&b, "This is an SMTP TLS report about connections to the mail servers of\n%s.\n\n", rep.Domain)
	}
	fmt.Fprintf(&b, "Submitter:  %s\nReport-ID:  %s\nPeriod:     %s to %s UTC\n",
		r.submitter(rep.Kind), rep.ID, rep.Window.Start.Format(time.DateTime), rep.Window.Last().Format(time.DateTime))
	if rep.Kind == ruapost.KindDMARC {
		fmt.Fprintf(&b, "Messages:   %d\n", total)
	} else {
		fmt.Fprintf(&b, "Sessions:   %d, of which %d failed\n", total, failed)
	}
	b.WriteString("\nThe report is attached. It was made by a program; nobody reads answers.\n")
	return b.String()
}
