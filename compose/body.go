package compose

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime/quotedprintable"
	"strings"
	"unicode/utf8"
)

// textPart returns a text/plain part, header and all. It is sent as it is where
// every MTA and reader would leave it so, else quoted-printable; 8bit is never
// used, as not every path takes it.
func textPart(text string) string {
	text = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(strings.ToValidUTF8(text, "\ufffd"))
	text = strings.TrimRight(text, "\n") + "\n"
	charset := "utf-8"
	if isASCII(text) {
		charset = "us-ascii"
	}
	if isPlain(text) {
		return textHeader(charset, "7bit") + strings.ReplaceAll(text, "\n", "\r\n")
	}
	var b strings.Builder
	qp := quotedprintable.NewWriter(&b) // writes CRLF for LF; a Builder takes all
	io.WriteString(qp, text)
	qp.Close()
	return textHeader(charset, "quoted-printable") + b.String()
}

func textHeader(charset, encoding string) string {
	return "Content-Type: text/plain; charset=" + charset + "\r\nContent-Transfer-Encoding: " + encoding + "\r\n\r\n"
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

// isPlain tells whether each line of text is printable ASCII, no longer than RFC
// 5322 2.1.1 recommends and without blanks at its end, which get lost on the way.
func isPlain(text string) bool {
	for line := range strings.SplitSeq(text, "\n") {
		if len(line) > 78 || !isPrintable(line) || strings.HasSuffix(line, " ") {
			return false
		}
	}
	return true
}

func (a *Attachment) header() (*header, error) {
	if a.Open == nil {
		return nil, errors.New("no attachment")
	}
	if kind, subtype, _ := strings.Cut(a.ContentType, "/"); !isToken(kind) || !isToken(subtype) {
		return nil, fmt.Errorf("%q is not a media type", a.ContentType)
	}
	if a.Filename == "" || !isPrintable(a.Filename) || strings.ContainsAny(a.Filename, `"\/`) {
		return nil, fmt.Errorf("%q cannot be a file name", a.Filename)
	}
	h := &header{}
	// A plain quoted string: RFC 2231 continuations are what many receivers of
	// reports do not read. Some look at name alone, others at filename alone.
	h.add("Content-Type", a.ContentType+`; name="`+a.Filename+`"`)
	h.add("Content-Transfer-Encoding", "base64")
	h.add("Content-Disposition", `attachment; filename="`+a.Filename+`"`)
	return h, h.err
}

func (c *composed) writeAttachment(w io.Writer) error {
	content, err := c.open()
	if err != nil {
		return err
	}
	defer content.Close()
	encoder := base64.NewEncoder(base64.StdEncoding, &lineWriter{w: w})
	if _, err := io.Copy(encoder, content); err != nil {
		return err
	}
	return encoder.Close()
}

// lineWriter breaks what is written into lines of 76 characters (RFC 2045 6.8),
// without a line end after the last.
type lineWriter struct {
	w      io.Writer
	column int
}

func (l *lineWriter) Write(p []byte) (int, error) {
	const lineLength = 76
	written := 0
	for len(p) > 0 {
		if l.column == lineLength {
			if _, err := io.WriteString(l.w, "\r\n"); err != nil {
				return written, err
			}
			l.column = 0
		}
		n, err := l.w.Write(p[:min(len(p), lineLength-l.column)])
		written += n
		l.column += n
		if err != nil {
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}
