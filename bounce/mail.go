package bounce

import (
	"bytes"
	"encoding/base64"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"strings"
)

// Bounds of a message beside MaxSize. What is past one is not looked at.
const (
	maxFields = 500      // of a header
	maxName   = 100      // octets
	maxValue  = 8 << 10  // octets of a field's value
	maxDepth  = 5        // of multiparts in multiparts
	maxParts  = 50       // of all multiparts together
	maxText   = 64 << 10 // octets
)

// mail is what matters of a message.
type mail struct {
	header    header
	mediaType string
	// status are the recipients of the first message/delivery-status, nil if there is
	// none.
	status []header
	// feedback is the first message/feedback-report (RFC 5965), nil if there is none.
	feedback header
	// disposition says that there is a message/disposition-notification (RFC 8098).
	disposition bool
	// text is the first plain text up to where it quotes the message it is about, with
	// LF at the ends of lines.
	text string

	hasText bool
	parts   int
}

// header is a list of fields, names in lower case, values unfolded.
type header []struct{ name, value string }

func (h header) lookup(name string) (value string, ok bool) {
	for _, f := range h {
		if f.name == name {
			return f.value, true
		}
	}
	return "", false
}

// get returns the value of the first field of a name. Postfix adds its own on top.
func (h header) get(name string) string {
	value, _ := h.lookup(name)
	return value
}

// readHeader reads fields up to an empty line. Lines that belong to no field are left out.
func readHeader(data []byte) (h header, rest []byte) {
	h = header{}
	var name string // of the field that is being read, empty if there is none
	var value []byte
	add := func() {
		if name != "" && len(h) < maxFields {
			h = append(h, struct{ name, value string }{name, string(value)})
		}
		name = ""
	}
	for len(data) > 0 {
		var line []byte
		line, data = cutLine(data)
		if len(line) == 0 {
			break
		}
		if line[0] == ' ' || line[0] == '\t' {
			value = appendLimited(value, line)
			continue
		}
		add()
		before, after, ok := bytes.Cut(line, []byte(":"))
		before = bytes.TrimRight(before, " \t")
		if ok && len(before) <= maxName && !bytes.ContainsAny(before, " \t") {
			name, value = strings.ToLower(string(before)), appendLimited(value[:0], after)
		}
	}
	add()
	return h, data
}

// appendLimited appends what there is room for of a part of a field's value.
func appendLimited(value, part []byte) []byte {
	part = bytes.Trim(part, " \t")
	if len(value) > 0 && len(value) < maxValue {
		value = append(value, ' ')
	}
	return append(value, part[:min(len(part), max(0, maxValue-len(value)))]...)
}

func cutLine(data []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(data, []byte("\n"))
	return bytes.TrimSuffix(line, []byte("\r")), rest
}

func readMail(message []byte) *mail {
	h, body := readHeader(message)
	m := &mail{header: h}
	m.mediaType = m.walk(h.get("content-type"), h.get("content-transfer-encoding"), body, 1)
	return m
}

// walk looks at a part and those in it, and returns its media type. A message in a part
// is not looked into: it is the one that came back, or somebody else's.
func (m *mail) walk(contentType, encoding string, body []byte, depth int) string {
	mediaType, params, _ := mime.ParseMediaType(contentType)
	switch mediaType {
	case "", "text/plain":
		if !m.hasText {
			m.hasText, m.text = true, readText(decodeBody(encoding, body))
		}
	case "message/delivery-status", "message/global-delivery-status": // RFC 3464 2, RFC 6533 4
		if m.status == nil {
			m.status = readStatus(decodeBody(encoding, body))
		}
	case "message/feedback-report":
		if m.feedback == nil {
			m.feedback, _ = readHeader(decodeBody(encoding, body))
		}
	case "message/disposition-notification", "message/global-disposition-notification":
		m.disposition = true
	}
	if strings.HasPrefix(mediaType, "multipart/") && params["boundary"] != "" && depth <= maxDepth {
		m.walkParts(multipart.NewReader(bytes.NewReader(body), params["boundary"]), depth)
	}
	return mediaType
}

func (m *mail) walkParts(parts *multipart.Reader, depth int) {
	for m.parts < maxParts {
		part, err := parts.NextRawPart()
		if err != nil {
			return
		}
		m.parts++
		body, _ := io.ReadAll(part) // what is there of it, if its end is missing
		m.walk(part.Header.Get("Content-Type"), part.Header.Get("Content-Transfer-Encoding"), body, depth+1)
	}
}

// decodeBody returns what can be decoded of a body.
func decodeBody(encoding string, body []byte) []byte {
	switch strings.ToLower(encoding) {
	case "base64":
		body, _ = io.ReadAll(base64.NewDecoder(base64.StdEncoding, bytes.NewReader(body)))
	case "quoted-printable":
		body, _ = io.ReadAll(quotedprintable.NewReader(bytes.NewReader(body)))
	}
	return body
}

// readStatus returns the fields about each recipient, which stand behind those about the
// message.
func readStatus(body []byte) []header {
	recipients := []header{}
	for len(body) > 0 && len(recipients) < maxRecipients {
		var h header
		h, body = readHeader(body)
		if _, ok := h.lookup("action"); ok {
			recipients = append(recipients, h)
		}
	}
	return recipients
}

// quoteMarks are the beginnings of lines that a quoted message follows.
var quoteMarks = []string{
	"--- Below this line is a copy", "------ This is a copy of", "----- Original message", "-----Original Message",
	"   ----- Original message", "   ----- Message header follows", "   ----- Unsent message follows",
	"Original message headers:", "Received: from ", "Return-Path: ",
}

func readText(body []byte) string {
	text := strings.ReplaceAll(string(body[:min(len(body), maxText)]), "\r\n", "\n")
	end := len(text)
	for _, mark := range quoteMarks {
		if strings.HasPrefix(text, mark) {
			return ""
		}
		if i := strings.Index(text, "\n"+mark); i >= 0 {
			end = min(end, i+1)
		}
	}
	return text[:end]
}
