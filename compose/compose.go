// Package compose builds the mails this project sends: a text for people, mostly an
// attachment for machines, and a DKIM signature.
//
// The mail is written field by field with no more than encoders of the standard
// library. emersion/go-message would change the case of field names
// ("Tls-Report-Domain") and reverse their order, mime/multipart sorts those of
// the parts; here both are exactly as written below. The attachment is streamed:
// memory does not grow with its size, not even for a signature.
//
// Values come from configuration and the DNS. One that holds a control
// character, a line end above all, is an error, and then nothing is written:
// no value can add a header field or end the header.
package compose

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"ruapost/internal/mailtouri"
)

// Message is a mail. From, To, Subject, Date and MessageID are required, and a Text or
// an Attachment.
type Message struct {
	// From and To are the addresses (RFC 5322 3.4.1 addr-spec). A domain beyond
	// ASCII is written in A-labels, a local part beyond ASCII as it is, see
	// NeedsSMTPUTF8.
	From, To string
	// FromName is the display name of From, or empty.
	FromName string
	// Subject may hold UTF-8 beyond ASCII, which becomes encoded words.
	Subject string
	// Date is written in UTC.
	Date time.Time
	// MessageID is without angle brackets, see NewMessageID.
	MessageID string
	// Header are further fields, written in this order after Message-ID.
	Header []Field
	// Text is the part for people: UTF-8 with LF or CRLF line ends.
	Text string
	// Attachment is the part for machines. Without one, that is if it is the zero
	// value, the mail is text/plain.
	Attachment Attachment
	// ReportType makes a mail with an attachment a multipart/report of that type
	// (RFC 6522); if it is empty the mail is multipart/mixed.
	ReportType string
	// Boundary separates the parts. If it is empty a random one is taken, which
	// makes each Write of the message different from the last.
	Boundary string
}

// Field is a header field. Its name is written as it is, its value may hold
// UTF-8 as the Subject may.
type Field struct {
	Name, Value string
}

// Attachment is a file.
type Attachment struct {
	// ContentType is the media type without parameters, for example
	// "application/gzip".
	ContentType string
	// Filename is printable ASCII without quotes, slashes and backslashes.
	Filename string
	// Open returns the content. A signed message reads it twice, and it must be
	// the same both times.
	Open func() (io.ReadCloser, error)
}

// NewMessageID returns a random Message-ID (RFC 5322 3.6.4) without the angle
// brackets. Domain is one that the sender controls.
func NewMessageID(domain string) string {
	return strings.ToLower(rand.Text()) + "@" + domain
}

// Write writes the message with CRLF line ends, the signature of s first unless
// s is nil. If the message cannot be written as it should be, because a value is
// missing, is not valid or cannot be folded into lines that SMTP allows, nothing
// has been written when Write returns. After an error in reading the attachment
// or in writing to w, what was written is not complete and must not be sent.
func (m *Message) Write(w io.Writer, s *Signer) error {
	if err := m.write(w, s); err != nil {
		return fmt.Errorf("compose: %w", err)
	}
	return nil
}

func (m *Message) write(w io.Writer, s *Signer) error {
	c, err := m.compose()
	if err != nil {
		return err
	}
	var signature string
	if s != nil {
		if signature, err = s.sign(c); err != nil {
			return fmt.Errorf("sign: %w", err)
		}
	}
	if _, err := io.WriteString(w, signature); err != nil {
		return err
	}
	return c.writeTo(w)
}

// NeedsSMTPUTF8 tells whether the mail can only be sent with SMTPUTF8 (RFC 6531),
// because the local part of an address is beyond ASCII. Postfix's sendmail(1) sees that
// by itself.
func (m *Message) NeedsSMTPUTF8() bool {
	for _, s := range []string{m.From, m.To} {
		if addr, err := mailtouri.ParseAddress(s); err == nil && mailtouri.NeedsSMTPUTF8(addr) {
			return true
		}
	}
	return false
}

// composed is a message of which all is encoded but the attachment.
type composed struct {
	header *header
	// before and after are what stands around the attachment's base64; without an
	// attachment before is the body.
	before, after string
	open          func() (io.ReadCloser, error)
}

func (m *Message) compose() (*composed, error) {
	h, err := m.header()
	if err != nil {
		return nil, err
	}
	c := &composed{header: h}
	if a := &m.Attachment; a.ContentType != "" || a.Filename != "" || a.Open != nil {
		err = m.multipart(c)
	} else {
		err = m.textOnly(c)
	}
	if err != nil {
		return nil, err
	}
	return c, h.err
}

func (m *Message) textOnly(c *composed) error {
	if m.ReportType != "" || strings.TrimSpace(m.Text) == "" {
		return errors.New("no attachment")
	}
	c.before = c.header.addText(m.Text)
	return nil
}

func (m *Message) multipart(c *composed) error {
	boundary := m.Boundary
	if boundary == "" {
		// "=_" occurs in neither base64 nor quoted-printable.
		boundary = "=_" + rand.Text()
	}
	if !isBoundary(boundary) {
		return fmt.Errorf("%q cannot be a boundary", boundary)
	}
	kind := "multipart/mixed"
	if m.ReportType != "" {
		if !isToken(m.ReportType) {
			return fmt.Errorf("%q cannot be a report type", m.ReportType)
		}
		kind = `multipart/report; report-type="` + m.ReportType + `"`
	}
	c.header.add("Content-Type", kind+`; boundary="`+boundary+`"`)
	var text header
	body := text.addText(m.Text)
	if strings.Contains(body, boundary) {
		return errors.New("the text contains the boundary")
	}
	attachment, err := m.Attachment.header()
	if err != nil {
		return fmt.Errorf("attachment: %w", err)
	}
	c.before = "--" + boundary + "\r\n" + text.String() + "\r\n" + body +
		"\r\n--" + boundary + "\r\n" + attachment.String() + "\r\n"
	c.open = m.Attachment.Open
	c.after = "--" + boundary + "--\r\n"
	return nil
}

// header returns the header up to Content-Type.
func (m *Message) header() (*header, error) {
	from, err := mailtouri.ParseAddress(m.From)
	if err != nil {
		return nil, fmt.Errorf("sender address: %w", err)
	}
	to, err := mailtouri.ParseAddress(m.To)
	if err != nil {
		return nil, fmt.Errorf("recipient address: %w", err)
	}
	id, err := mailtouri.ParseAddress(m.MessageID)
	if err != nil || strings.HasPrefix(id, `"`) { // RFC 5322 3.6.4: no quotes in it
		return nil, fmt.Errorf("%q cannot be a Message-ID", m.MessageID)
	}
	if m.Date.IsZero() {
		return nil, errors.New("no Date")
	}
	h := &header{}
	h.add("Date", m.Date.UTC().Format(time.RFC1123Z))
	if m.FromName != "" {
		name, err := displayName(m.FromName)
		if err != nil {
			return nil, err
		}
		from = name + " <" + from + ">"
	}
	h.addChecked("From", from)
	h.addChecked("To", to)
	h.add("Subject", encodeText(m.Subject))
	h.add("Message-ID", "<"+id+">")
	for _, f := range m.Header {
		h.add(f.Name, encodeText(f.Value))
	}
	h.add("Auto-Submitted", "auto-generated") // RFC 3834 5
	h.add("MIME-Version", "1.0")
	return h, h.err
}

// writeTo writes the message without a signature.
func (c *composed) writeTo(w io.Writer) error {
	if _, err := io.WriteString(w, c.header.String()+"\r\n"+c.before); err != nil {
		return err
	}
	if c.open == nil {
		return nil
	}
	if err := c.writeAttachment(w); err != nil {
		return fmt.Errorf("attachment: %w", err)
	}
	_, err := io.WriteString(w, c.after)
	return err
}

// UnixLines returns a writer that turns the CRLF line ends of a message into LF
// on the way to w. That is how sendmail(1) expects mail on its standard input;
// Postfix's takes CRLF as well, others take the CR for text. A signature is not
// hurt: the MTA puts the CR back before the message leaves.
func UnixLines(w io.Writer) io.Writer { return &unixLines{w: w} }

type unixLines struct {
	w       io.Writer
	scratch []byte
}

func (u *unixLines) Write(p []byte) (int, error) {
	u.scratch = u.scratch[:0]
	// A message has no CR but at line ends, so it does not matter where p ends.
	for rest := p; len(rest) > 0; {
		before, after, _ := bytes.Cut(rest, []byte("\r"))
		u.scratch = append(u.scratch, before...)
		rest = after
	}
	if _, err := u.w.Write(u.scratch); err != nil {
		return 0, err
	}
	return len(p), nil
}
