package reporting

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"ruapost"
	"ruapost/bounce"
	"ruapost/compose"
	"ruapost/dmarc"
	"ruapost/internal/mailtouri"
	"ruapost/tlsrpt"
)

// mailFile is the file with the mail to rc, whose address comes from the network and
// so does not stand in the name.
func (r *Reporter) mailFile(rep *ruapost.Report, rc *ruapost.Recipient) string {
	h := sha256.Sum256([]byte(rc.Address))
	return filepath.Join(r.dir(rep), hex.EncodeToString(h[:8])+".eml")
}

// errTooLarge means that the destination says that it takes no report of this size.
var errTooLarge = errors.New("the report is larger than the destination takes")

// composeMail writes the mail to rc into the file at path: the report, or, if that is too
// large for all who want it, what RFC 7489 7.2.2 has for this. The error wraps
// errTooLarge if it is too large for rc alone.
func (r *Reporter) composeMail(path string, rep *ruapost.Report, rc *ruapost.Recipient) error {
	if r.Signer == nil {
		r.unsigned.Do(func() {
			slog.Warn("reports are not signed here: set [dkim], unless a milter signs what sendmail submits")
		})
	}
	composing <- struct{}{}
	defer func() { <-composing }()
	msg := r.reportMail(rep, rc)
	if r.isTooLarge(rep, rc) {
		if r.fitsAnybody(rep) {
			return errTooLarge
		}
		var err error
		if msg, err = r.errorMail(rep, rc); err != nil {
			return err
		}
	}
	return writeFile(path, func(w io.Writer) error { return msg.Write(compose.UnixLines(w), r.Signer) })
}

// isTooLarge tells whether the report is larger than rc takes. Only RFC 7489 knows such a
// limit (6.2), for the report after compression and encoding.
func (r *Reporter) isTooLarge(rep *ruapost.Report, rc *ruapost.Recipient) bool {
	return rc.Legacy && rc.MaxSize > 0 && uint64(r.encodedSize(rep)) > rc.MaxSize
}

// encodedSize is the size of the report in the form of RFC 7489 as it stands in a mail:
// base64 in lines of 76.
func (r *Reporter) encodedSize(rep *ruapost.Report) int64 {
	size := rep.Size
	if st, err := os.Stat(r.contentFile(rep, true)); err == nil {
		size = st.Size()
	}
	return (size + 56) / 57 * 78
}

// fitsAnybody tells whether any recipient who agreed, or may do so yet, takes a report of
// this size.
func (r *Reporter) fitsAnybody(rep *ruapost.Report) bool {
	return slices.ContainsFunc(rep.Recipients, func(rc ruapost.Recipient) bool {
		agrees := rc.Accepted && rc.State != ruapost.RecipientSuppressed || rc.State == ruapost.RecipientWaiting
		return agrees && !r.isTooLarge(rep, &rc)
	})
}

// newMail returns a mail to rc that is to be filled.
func (r *Reporter) newMail(rc *ruapost.Recipient) *compose.Message {
	return &compose.Message{
		From:      r.From,
		FromName:  r.OrgName,
		To:        rc.Address,
		Date:      r.now(),
		MessageID: compose.NewMessageID(mailtouri.Domain(r.From)),
	}
}

func (r *Reporter) reportMail(rep *ruapost.Report, rc *ruapost.Recipient) *compose.Message {
	submitter := r.submitter(rep.Kind)
	msg := r.newMail(rc)
	msg.Text = r.text(rep)
	msg.Attachment.Open = func() (io.ReadCloser, error) { return os.Open(r.contentFile(rep, rc.Legacy)) }
	switch rep.Kind {
	case ruapost.KindDMARC:
		msg.Subject = dmarc.Subject(rep.Domain, submitter, rep.ID)
		msg.Attachment.ContentType = "application/gzip" // RFC 9990 3.5.2
	case ruapost.KindTLS:
		msg.Subject = tlsrpt.Subject(rep.Domain, submitter, rep.ID)
		msg.ReportType = "tlsrpt"
		msg.Header = []compose.Field{
			{Name: "TLS-Report-Domain", Value: rep.Domain},
			{Name: "TLS-Report-Submitter", Value: submitter},
			// RFC 8460 3: the report about failing TLS must not fail for it.
			{Name: "TLS-Required", Value: "No"},
		}
		msg.Attachment.ContentType = tlsrpt.MediaType
	}
	msg.Attachment.Filename = r.filename(rep)
	return msg
}

// filename is what a report is called where it arrives.
func (r *Reporter) filename(rep *ruapost.Report) string {
	if rep.Kind == ruapost.KindTLS {
		return tlsrpt.Filename(r.submitter(rep.Kind), rep.Domain, rep.Window, rep.ID)
	}
	return dmarc.Filename(r.submitter(rep.Kind), rep.Domain, rep.Window, rep.ID)
}

// errorMail returns the mail that says that the report was too large.
func (r *Reporter) errorMail(rep *ruapost.Report, rc *ruapost.Recipient) (*compose.Message, error) {
	e := &dmarc.ErrorReport{
		Date: r.now(), Domain: rep.Domain, Submitter: r.submitter(rep.Kind), ReportID: rep.ID, Size: r.encodedSize(rep),
	}
	for _, other := range rep.Recipients {
		e.URIs = append(e.URIs, other.URI)
	}
	msg := r.newMail(rc)
	msg.Subject = e.Subject()
	var err error
	msg.Text, err = e.Text()
	return msg, err
}

// submitter is the domain that reports of a kind come from.
func (r *Reporter) submitter(kind ruapost.Kind) string {
	if kind == ruapost.KindTLS {
		return mailtouri.Domain(r.From) // RFC 8460 3: that of the contact address
	}
	return r.Domain
}

// text is what a person reads who opens the mail. Without the summary it has the totals.
func (r *Reporter) text(rep *ruapost.Report) string {
	var s summary
	if err := json.Unmarshal(rep.Summary, &s); err != nil { // one of an older version
		s = summary{}
		for _, g := range rep.Groups {
			s.addGroup(&g)
		}
	}
	return s.text(rep, r.submitter(rep.Kind))
}

// envelopeSender returns the address that bounces of the mail to rc come to.
func (run *run) envelopeSender(rep *ruapost.Report, rc *ruapost.Recipient) (string, error) {
	if run.BounceMaildir == "" {
		return run.From, nil
	}
	return bounce.Sender(run.secret, run.From, run.BounceDelimiter, rep.ID, rc.Address)
}

// maxSilent is how often the https destinations of a registered domain may come to nothing
// in a run before the others of it are left for the next: each can take a minute.
const maxSilent = 2

var errSilent = errors.New("other destinations of this domain did not answer in this run")

// post sends a TLS report to an https destination.
func (run *run) post(ctx context.Context, rep *ruapost.Report, rc *ruapost.Recipient) error {
	file := run.contentFile(rep, false)
	if there, err := exists(file); err != nil {
		return err
	} else if !there {
		return errNoContent
	}
	domain := registered(hostOf(rc))
	run.mu.Lock()
	silent := run.silent[domain] >= maxSilent
	run.mu.Unlock()
	if silent {
		return errSilent
	}
	open := func() (io.ReadCloser, error) { return os.Open(file) }
	err := run.HTTPS.post(ctx, rc.Address, tlsrpt.MediaType, open, rep.Size)
	if errors.Is(err, context.DeadlineExceeded) {
		run.mu.Lock()
		run.silent[domain]++
		run.mu.Unlock()
	}
	return err
}
