package lab

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
)

// ReportMail is a report mail as its recipient reads it, with the standard library
// alone.
type ReportMail struct {
	Header mail.Header
	// MediaType and Params are those of the mail.
	MediaType string
	Params    map[string]string
	// Text is the part for people.
	Text string
	// ContentType and Filename are those of the attachment, Content is the report
	// in it, uncompressed.
	ContentType, Filename string
	Content               []byte
}

// ReadReportMail takes a report mail apart: a text, then a gzip attachment.
func ReadReportMail(raw []byte) (*ReportMail, error) {
	m, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	r := &ReportMail{Header: m.Header}
	if r.MediaType, r.Params, err = mime.ParseMediaType(m.Header.Get("Content-Type")); err != nil {
		return nil, err
	}
	parts := multipart.NewReader(m.Body, r.Params["boundary"])
	text, err := parts.NextPart()
	if err != nil {
		return nil, fmt.Errorf("text: %w", err)
	}
	body, err := io.ReadAll(text)
	if err != nil {
		return nil, fmt.Errorf("text: %w", err)
	}
	r.Text = string(body)
	attachment, err := parts.NextRawPart()
	if err != nil {
		return nil, fmt.Errorf("attachment: %w", err)
	}
	r.Filename = attachment.FileName()
	if r.ContentType, _, err = mime.ParseMediaType(attachment.Header.Get("Content-Type")); err != nil {
		return nil, fmt.Errorf("attachment: %w", err)
	}
	zr, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, attachment))
	if err != nil {
		return nil, fmt.Errorf("attachment: %w", err)
	}
	if r.Content, err = io.ReadAll(zr); err != nil {
		return nil, fmt.Errorf("attachment: %w", err)
	}
	if _, err := parts.NextPart(); err != io.EOF {
		return nil, fmt.Errorf("a third part: %v", err)
	}
	return r, nil
}
