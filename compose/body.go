package compose

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime/quotedprintable"
	"slices"
	"strings"
	"unicode/utf8"
)

// addText adds the fields of a text/plain part and returns its body. It is sent as it
// is where every MTA and reader would leave it so, else quoted-printable; 8bit is never
// used, as not every path takes it.
func (h *header) addText(text string) (body string) {
	text = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(strings.ToValidUTF8(text, "\ufffd"))
	text = strings.TrimRight(text, "\n") + "\n"
	charset := "utf-8"
	if isASCII(text) {
		charset = "us-ascii"
	}
	h.add("Content-Type", "text/plain; charset="+charset)
	if isPlain(text) {
		h.add("Content-Transfer-Encoding", "7bit")
		return strings.ReplaceAll(text, "\n", "\r\n")
	}
	h.add("Content-Transfer-Encoding", "quoted-printable")
	var b strings.Builder
	qp := quotedprintable.NewWriter(&b) // writes CRLF for LF; a Builder takes all
	io.WriteString(qp, text)
	qp.Close()
	return b.String()
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
		return nil, errors.New("no content")
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

// writeAttachment writes the attachment in base64, in lines of 76 characters
// (RFC 2045 6.8), each with its line end.
func (c *composed) writeAttachment(w io.Writer) error {
	content, err := c.open()
	if err != nil {
		return err
	}
	defer content.Close()
	const (
		lineOctets = 76 / 4 * 3
		lines      = 128 // that are written at a time
	)
	octets := make([]byte, lines*lineOctets)
	encoded := make([]byte, 0, lines*(76+len("\r\n")))
	for {
		n, errRead := io.ReadFull(content, octets)
		encoded = encoded[:0]
		for line := range slices.Chunk(octets[:n], lineOctets) {
			encoded = append(base64.StdEncoding.AppendEncode(encoded, line), "\r\n"...)
		}
		if _, err := w.Write(encoded); err != nil {
			return err
		}
		if errRead == io.EOF || errRead == io.ErrUnexpectedEOF {
			return nil
		}
		if errRead != nil {
			return errRead
		}
	}
}
