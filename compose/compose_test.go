package compose

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/emersion/go-message"
	"github.com/emersion/go-msgauth/dkim"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files anew")

func content(s string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }
}

// tlsMessage is a TLS report mail (RFC 8460 5.3).
func tlsMessage() *Message {
	return &Message{
		From:      "tls-reports@example.org",
		FromName:  "Example reports",
		To:        "reports@example.com",
		Subject:   "Report Domain: example.com Submitter: example.org Report-ID: <5065427c23d34ff2a5a2e13c2b1c6c9d@example.org>",
		Date:      time.Date(2026, 4, 2, 3, 4, 5, 0, time.FixedZone("", 3600)),
		MessageID: "5065427c23d34ff2a5a2e13c2b1c6c9d@example.org",
		Header: []Field{
			{"TLS-Report-Domain", "example.com"},
			{"TLS-Report-Submitter", "example.org"},
			{"TLS-Required", "No"},
		},
		Text: "This is a TLS report.\n\nPeriod: 2026-04-01 (UTC)\n",
		Attachment: Attachment{
			ContentType: "application/tlsrpt+gzip",
			Filename:    "example.org!example.com!1775001600!1775087999!5065427c23d34ff2a5a2e13c2b1c6c9d.json.gz",
			Open:        content("\x1f\x8b not really a gzip file, but more than one line of base64 all the same"),
		},
		ReportType: "tlsrpt",
		Boundary:   "=_boundary",
	}
}

func write(t testing.TB, m *Message, s *Signer) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := m.Write(&buf, s); err != nil {
		t.Fatal(err)
	}
	checkLines(t, buf.Bytes())
	return buf.Bytes()
}

// checkLines checks that all line ends are CRLF, that no line is longer than
// SMTP allows, and that all is ASCII but the lines with addresses.
func checkLines(t testing.TB, data []byte) {
	t.Helper()
	for line := range bytes.Lines(data) {
		text, ok := bytes.CutSuffix(line, []byte("\r\n"))
		ok = ok && !bytes.ContainsAny(text, "\r\n\x00") && len(text) <= 998 && utf8.Valid(text)
		if !ok || !isASCII(string(text)) && !bytes.Contains(text, []byte("@")) {
			t.Fatalf("line %q", line)
		}
	}
}

func TestWriteGolden(t *testing.T) {
	got := write(t, tlsMessage(), nil)
	const golden = "testdata/tlsrpt.eml"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// part is a decoded part.
type part struct {
	mediaType, filename, body string
}

// readStd reads a mail with the standard library.
func readStd(t testing.TB, data []byte) (mail.Header, string, map[string]string, []part) {
	t.Helper()
	msg, err := mail.ReadMessage(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	mediaType, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	var parts []part
	for mr := multipart.NewReader(msg.Body, params["boundary"]); ; {
		p, err := mr.NextRawPart()
		if err == io.EOF {
			return msg.Header, mediaType, params, parts
		}
		if err != nil {
			t.Fatal(err)
		}
		var r io.Reader = p
		switch encoding := p.Header.Get("Content-Transfer-Encoding"); encoding {
		case "base64":
			r = base64.NewDecoder(base64.StdEncoding, r)
		case "quoted-printable":
			r = quotedprintable.NewReader(r)
		case "7bit":
		default:
			t.Fatalf("encoding %q", encoding)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		kind, params, err := mime.ParseMediaType(p.Header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		if params["name"] != p.FileName() {
			t.Errorf("name %q, filename %q", params["name"], p.FileName())
		}
		parts = append(parts, part{kind, p.FileName(), string(body)})
	}
}

func TestWriteReadByStandardLibrary(t *testing.T) {
	m := tlsMessage()
	header, mediaType, params, parts := readStd(t, write(t, m, nil))
	for name, want := range map[string]string{
		"Date":                 "Thu, 02 Apr 2026 02:04:05 +0000",
		"From":                 `"Example reports" <tls-reports@example.org>`,
		"To":                   "reports@example.com",
		"Subject":              m.Subject,
		"Message-Id":           "<" + m.MessageID + ">",
		"Auto-Submitted":       "auto-generated",
		"Mime-Version":         "1.0",
		"Tls-Report-Domain":    "example.com",
		"Tls-Report-Submitter": "example.org",
		"Tls-Required":         "No",
	} {
		if got := header[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if mediaType != "multipart/report" || params["report-type"] != "tlsrpt" {
		t.Errorf("type %s %v", mediaType, params)
	}
	want := []part{
		{"text/plain", "", "This is a TLS report.\r\n\r\nPeriod: 2026-04-01 (UTC)\r\n"},
		{"application/tlsrpt+gzip", m.Attachment.Filename, "\x1f\x8b not really a gzip file, but more than one line of base64 all the same"},
	}
	if diff := cmp.Diff(want, parts, cmp.AllowUnexported(part{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestWriteReadByGoMessage(t *testing.T) {
	m := tlsMessage()
	m.ReportType = ""
	m.Text = "Grüße\n" + strings.Repeat("x", 2000)
	entity, err := message.Read(bytes.NewReader(write(t, m, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if subject, err := entity.Header.Text("Subject"); err != nil || subject != m.Subject {
		t.Errorf("subject %q, %v", subject, err)
	}
	if kind, _, err := entity.Header.ContentType(); err != nil || kind != "multipart/mixed" {
		t.Errorf("type %q, %v", kind, err)
	}
	mr := entity.MultipartReader()
	text, err := mr.NextPart()
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(text.Body); err != nil || string(body) != "Grüße\r\n"+strings.Repeat("x", 2000)+"\r\n" {
		t.Errorf("text %q, %v", body, err)
	}
	report, err := mr.NextPart()
	if err != nil {
		t.Fatal(err)
	}
	if disposition, params, err := report.Header.ContentDisposition(); err != nil || disposition != "attachment" || params["filename"] != m.Attachment.Filename {
		t.Errorf("disposition %q %v, %v", disposition, params, err)
	}
	if body, err := io.ReadAll(report.Body); err != nil || !strings.HasPrefix(string(body), "\x1f\x8b not") {
		t.Errorf("attachment %q, %v", body, err)
	}
	if _, err := mr.NextPart(); err != io.EOF {
		t.Errorf("after the last part: %v", err)
	}
}

func TestWriteText(t *testing.T) {
	long := strings.Repeat("a", 79)
	tests := []struct {
		name, text, charset, encoding, want string
	}{
		{"plain", "one\n\ntwo\n", "us-ascii", "7bit", "one\r\n\r\ntwo\r\n"},
		{"no line end", "one", "us-ascii", "7bit", "one\r\n"},
		{"empty", "", "us-ascii", "7bit", "\r\n"},
		{"CRLF and CR", "one\r\ntwo\rthree", "us-ascii", "7bit", "one\r\ntwo\r\nthree\r\n"},
		{"78 characters", long[1:], "us-ascii", "7bit", long[1:] + "\r\n"},
		{"79 characters", long, "us-ascii", "quoted-printable", long + "\r\n"},
		{"blank at the end of a line", "one \ntwo\n", "us-ascii", "quoted-printable", "one \r\ntwo\r\n"},
		{"UTF-8", "Grüße, 世界\n", "utf-8", "quoted-printable", "Grüße, 世界\r\n"},
		{"invalid UTF-8", "a\xffb\n", "utf-8", "quoted-printable", "a\ufffdb\r\n"},
		{"NUL", "a\x00b\n", "us-ascii", "quoted-printable", "a\x00b\r\n"},
		{"lines as in a header", "Bcc: x@example.com\n\n--x\n.\n", "us-ascii", "7bit", "Bcc: x@example.com\r\n\r\n--x\r\n.\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := tlsMessage()
			m.Text = tt.text
			data := write(t, m, nil)
			_, _, _, parts := readStd(t, data)
			if len(parts) != 2 || parts[0].body != tt.want {
				t.Errorf("%d parts, text %q, want %q", len(parts), parts[0].body, tt.want)
			}
			want := "Content-Type: text/plain; charset=" + tt.charset + "\r\nContent-Transfer-Encoding: " + tt.encoding + "\r\n"
			if !bytes.Contains(data, []byte(want)) {
				t.Errorf("header %q is not in %s", want, data)
			}
		})
	}
}

// A mail without an attachment is one part, text as the other tests have it.
func TestWriteTextOnly(t *testing.T) {
	s := &Signer{Domain: "example.org", Selector: "2026", Key: rsaKey}
	for _, tt := range []struct{ name, text, charset, encoding, want string }{
		{"plain", "Report-Size: 5\n\n\n", "us-ascii", "7bit", "Report-Size: 5\r\n"},
		{"CRLF is not doubled", "a: b\r\nc: d\r\n", "us-ascii", "7bit", "a: b\r\nc: d\r\n"},
		{"UTF-8", "Grüße\n", "utf-8", "quoted-printable", "Grüße\r\n"},
		{"blanks and long lines", " a  b \n\n" + strings.Repeat("c", 2000), "us-ascii", "quoted-printable", " a  b \r\n\r\n" + strings.Repeat("c", 2000) + "\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := tlsMessage()
			m.Attachment, m.ReportType, m.Text = Attachment{}, "", tt.text
			data := write(t, m, s)
			if _, err := verify(t, bytes.NewReader(data), s); err != nil {
				t.Errorf("%v\n%s", err, data)
			}
			msg, err := mail.ReadMessage(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			var body io.Reader = msg.Body
			if tt.encoding == "quoted-printable" {
				body = quotedprintable.NewReader(body)
			}
			kind, encoding := msg.Header.Get("Content-Type"), msg.Header.Get("Content-Transfer-Encoding")
			if got := string(must(io.ReadAll(body))); got != tt.want || kind != "text/plain; charset="+tt.charset || encoding != tt.encoding {
				t.Errorf("%s, %s: %q, want %q", kind, encoding, got, tt.want)
			}
			if signed := msg.Header.Get("DKIM-Signature"); !strings.Contains(signed, ":Content-Transfer-Encoding:") {
				t.Errorf("the encoding is not signed: %s", signed)
			}
		})
	}
}

// RFC 6532: an address that is not ASCII is written as it is, and nothing else is.
func TestWriteSMTPUTF8(t *testing.T) {
	s := &Signer{Domain: "example.org", Selector: "2026", Key: rsaKey}
	for _, tt := range []struct {
		from, to, wantFrom, wantTo string
		needed                     bool
	}{
		{"a@example.org", "ñandú@bücher.example", "a@example.org", "ñandú@xn--bcher-kva.example", true},
		{"ñ@example.org", "b@example.com", "ñ@example.org", "b@example.com", true},
		{"a@bücher.example", "b@bücher.example", "a@xn--bcher-kva.example", "b@xn--bcher-kva.example", false},
		// U+3000 is a blank to Unicode but not to DKIM.
		{"a@example.org", "\"世 \u3000  界\"@example.com", "a@example.org", "世 \u3000  界@example.com", true},
		{"a@example.org", strings.Repeat("界", 21) + "@example.com", "a@example.org", strings.Repeat("界", 21) + "@example.com", true},
	} {
		m := tlsMessage()
		m.From, m.To, m.FromName, m.Subject = tt.from, tt.to, "Bücher", "Grüße"
		if got := m.NeedsSMTPUTF8(); got != tt.needed {
			t.Errorf("%s to %s: SMTPUTF8 %t", tt.from, tt.to, got)
		}
		data := write(t, m, s)
		if _, err := verify(t, bytes.NewReader(data), s); err != nil {
			t.Errorf("%v\n%s", err, data)
		}
		if isPrintable(strings.ReplaceAll(string(data), "\r\n", "")) == tt.needed {
			t.Errorf("SMTPUTF8 is needed: %t\n%s", tt.needed, data)
		}
		header, _, _, _ := readStd(t, data)
		from, errFrom := header.AddressList("From")
		to, errTo := header.AddressList("To")
		if errFrom != nil || errTo != nil || len(from) != 1 || len(to) != 1 || from[0].Address != tt.wantFrom || to[0].Address != tt.wantTo {
			t.Errorf("from %v, %v, to %v, %v", from, errFrom, to, errTo)
		}
		if !strings.Contains(string(data), "\r\nSubject: =?utf-8?") || from[0].Name != "Bücher" {
			t.Errorf("subject or name not in encoded words: %s", data)
		}
	}
	if m := tlsMessage(); m.NeedsSMTPUTF8() {
		t.Error("SMTPUTF8 is not needed")
	}
	m := tlsMessage()
	m.To = "no address"
	if m.NeedsSMTPUTF8() {
		t.Error("no address needs SMTPUTF8")
	}
	for _, control := range []string{"\r\nBcc: x@example.com\r\n", "\u0085", "\u2028", "\u202e", "\xff", "\x00"} {
		m.To = "ñ" + control + "@example.com"
		if err := m.Write(io.Discard, nil); err == nil {
			t.Errorf("%q was written", m.To)
		}
	}
}

func TestWriteFrom(t *testing.T) {
	tests := []struct {
		name, address      string
		wantName, wantAddr string
	}{
		{"", "a@example.com", "", "a@example.com"},
		{"Reports", "a@EXAMPLE.com", "Reports", "a@example.com"},
		{`a "quoted" \ name, Inc. <x@y>`, "a@example.com", `a "quoted" \ name, Inc. <x@y>`, "a@example.com"},
		{"Bücher & Söhne", "a@bücher.example", "Bücher & Söhne", "a@xn--bcher-kva.example"},
		{strings.Repeat("世界 ", 40) + "x", "a@example.com", strings.Repeat("世界 ", 40) + "x", "a@example.com"},
		{strings.Repeat("name ", 40) + "x", "a@example.com", strings.Repeat("name ", 40) + "x", "a@example.com"},
		{"", `"a b"@example.com`, "", "a b@example.com"},
	}
	for _, tt := range tests {
		m := tlsMessage()
		m.From, m.FromName = tt.address, tt.name
		header, _, _, _ := readStd(t, write(t, m, nil))
		list, err := header.AddressList("From")
		if err != nil || len(list) != 1 || list[0].Name != tt.wantName || list[0].Address != tt.wantAddr {
			t.Errorf("%q <%s>: read as %v, %v", tt.name, tt.address, list, err)
		}
	}
}

// Folding must keep the grammars of RFC 9990 3.5.2 and RFC 8460 5.3, and lines
// short where there is a blank to fold at.
func TestFoldSubject(t *testing.T) {
	longDomain := strings.Repeat("abcdefghi.", 24) + "example.com" // 251 octets
	for _, domain := range []string{"example.com", longDomain} {
		m := tlsMessage()
		m.Subject = "Report Domain: " + domain + " Submitter: " + domain + " Report-ID: <5065427c23d34ff2a5a2e13c2b1c6c9d@" + domain + ">"
		data := write(t, m, nil)
		header, _, _, _ := readStd(t, data)
		if got := header.Get("Subject"); got != m.Subject {
			t.Errorf("unfolded to %q, want %q", got, m.Subject)
		}
		grammar := regexp.MustCompile(`(?m)^Subject: Report(\r\n)? Domain:(\r\n)? \S+(\r\n)? Submitter:(\r\n)? \S+(\r\n)? Report-ID:(\r\n)? <\S+@\S+>\r$`)
		if !grammar.Match(data) {
			t.Errorf("subject is not as the grammar wants it: %s", data)
		}
		for line := range strings.SplitSeq(string(data), "\r\n") {
			if len(line) > 78 && strings.Contains(strings.TrimLeft(line, " "), " ") {
				t.Errorf("line of %d characters could be folded: %q", len(line), line)
			}
		}
	}
}

func TestFold(t *testing.T) {
	long := strings.Repeat("x", 100)
	tests := []struct {
		value string
		want  []string
	}{
		{"a", []string{"N: a"}},
		{"a  b", []string{"N: a  b"}},
		{long, []string{"N: " + long}},
		{"a " + long + " b", []string{"N: a", " " + long, " b"}},
		{"a   " + long, []string{"N: a", "   " + long}},
		{strings.Repeat("y ", 40) + "z", []string{"N:" + strings.Repeat(" y", 37), strings.Repeat(" y", 3) + " z"}},
	}
	for _, tt := range tests {
		got := fold("N:", tt.value)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%q: -want +got:\n%s", tt.value, diff)
		}
		if joined := strings.Join(got, ""); joined != "N: "+tt.value {
			t.Errorf("%q: unfolds to %q", tt.value, joined)
		}
	}
}

func TestWriteEncodedSubject(t *testing.T) {
	for _, subject := range []string{"Grüße", strings.Repeat("ü", 300), "a  ü  b", "世" + strings.Repeat(" ", 100) + "界", "😀" + strings.Repeat("a😀", 60)} {
		m := tlsMessage()
		m.Subject = subject
		m.Header = append(m.Header, Field{"X-Note", subject})
		data := write(t, m, nil)
		header, _, _, _ := readStd(t, data)
		for _, name := range []string{"Subject", "X-Note"} {
			if got, err := new(mime.WordDecoder).DecodeHeader(header.Get(name)); err != nil || got != subject {
				t.Errorf("%s: decoded to %q, %v; want %q", name, got, err, subject)
			}
		}
		for line := range strings.SplitSeq(string(data), "\r\n") {
			if strings.Contains(line, "=?utf-8?") && len(line) > 76 { // RFC 2047 2
				t.Errorf("line of %d characters: %q", len(line), line)
			}
		}
	}
}

// Whatever could end a field or a line is refused, and nothing is written.
func TestWriteRefuses(t *testing.T) {
	changes := map[string]func(*Message){
		"no From":                   func(m *Message) { m.From = "" },
		"two From":                  func(m *Message) { m.From = "a@example.org, b@example.org" },
		"non-ASCII Message-ID":      func(m *Message) { m.MessageID = "ñ@example.com" },
		"address literal":           func(m *Message) { m.To = "a@[192.0.2.1]" },
		"no Date":                   func(m *Message) { m.Date = time.Time{} },
		"no Message-ID":             func(m *Message) { m.MessageID = "" },
		"Message-ID with brackets":  func(m *Message) { m.MessageID = "<a@example.org>" },
		"quoted Message-ID":         func(m *Message) { m.MessageID = `"a b"@example.org` },
		"empty Subject":             func(m *Message) { m.Subject = " " },
		"Subject not UTF-8":         func(m *Message) { m.Subject = "a\xff" },
		"Subject that cannot fold":  func(m *Message) { m.Subject = strings.Repeat("x", 1000) },
		"empty field":               func(m *Message) { m.Header[0].Value = "" },
		"no field name":             func(m *Message) { m.Header[0].Name = "" },
		"field name with a colon":   func(m *Message) { m.Header[0].Name = "X:" },
		"field name with a blank":   func(m *Message) { m.Header[0].Name = "X y" },
		"field name beyond ASCII":   func(m *Message) { m.Header[0].Name = "Ü" },
		"field twice":               func(m *Message) { m.Header[1].Name = "tls-report-domain" },
		"second From":               func(m *Message) { m.Header[0].Name = "FROM" },
		"second MIME-Version":       func(m *Message) { m.Header[0].Name = "Mime-Version" },
		"no attachment content":     func(m *Message) { m.Attachment.Open = nil },
		"report without attachment": func(m *Message) { m.Attachment = Attachment{} },
		"nothing in it":             func(m *Message) { m.Attachment, m.ReportType, m.Text = Attachment{}, "", " \n" },
		"no media type":             func(m *Message) { m.Attachment.ContentType = "gzip" },
		"media type with parameter": func(m *Message) { m.Attachment.ContentType = "text/xml; name=x" },
		"no file name":              func(m *Message) { m.Attachment.Filename = "" },
		"file name with quotes":     func(m *Message) { m.Attachment.Filename = `a".exe` },
		"file name with a slash":    func(m *Message) { m.Attachment.Filename = "../a" },
		"file name beyond ASCII":    func(m *Message) { m.Attachment.Filename = "ü.gz" },
		"report type":               func(m *Message) { m.ReportType = `x"; y="` },
		"boundary too long":         func(m *Message) { m.Boundary = strings.Repeat("b", 71) },
		"boundary with quotes":      func(m *Message) { m.Boundary = `b"` },
		"boundary in the text":      func(m *Message) { m.Text = "a\n--=_boundary--\nb" },
	}
	for _, control := range []string{"\r\nBcc: x@example.com", "\n", "\r", "\x00", "\x7f", "\t", "\u0085"} {
		for name, set := range map[string]func(*Message, string){
			"From":        func(m *Message, s string) { m.From = "a" + s + "@example.org" },
			"From domain": func(m *Message, s string) { m.From = "a@example.org" + s },
			"FromName":    func(m *Message, s string) { m.FromName = "a" + s },
			"FromName ü":  func(m *Message, s string) { m.FromName = "ü" + s },
			"To":          func(m *Message, s string) { m.To = "a@example.com" + s },
			"Subject":     func(m *Message, s string) { m.Subject = s + "a" },
			"Subject ü":   func(m *Message, s string) { m.Subject = "ü" + s },
			"MessageID":   func(m *Message, s string) { m.MessageID = "a@example.org" + s },
			"field":       func(m *Message, s string) { m.Header[0].Value += s },
			"field name":  func(m *Message, s string) { m.Header[0].Name += s },
			"filename":    func(m *Message, s string) { m.Attachment.Filename += s },
			"type":        func(m *Message, s string) { m.Attachment.ContentType += s },
			"report type": func(m *Message, s string) { m.ReportType += s },
			"boundary":    func(m *Message, s string) { m.Boundary += s },
		} {
			changes[fmt.Sprintf("%s with %q", name, control)] = func(m *Message) { set(m, control) }
		}
	}
	for name, change := range changes {
		m := tlsMessage()
		change(m)
		var buf bytes.Buffer
		if err := m.Write(&buf, nil); err == nil || buf.Len() > 0 || !strings.HasPrefix(err.Error(), "compose: ") || strings.ContainsAny(err.Error(), "\r\n\x00") {
			t.Errorf("%s: error %v, %d octets written", name, err, buf.Len())
		}
	}
}

// Nothing in a message can add a header field, whatever is put into it.
func FuzzWrite(f *testing.F) {
	f.Add("Example", "Report Domain: example.com", "X-Field", "value", "text\n", "file.gz", "a@example.com")
	f.Add("Ünïcode \\\"", "世界 =?utf-8?q?a?=", "Bcc", "a\r\nb", "\r\n.\r\n--=_boundary", "a\"b", "\"ñ  \"@example.com")
	f.Add("a", " b  c\td", "X-Field", " d  e ", " a  b \t c\n \n\n", "file.gz", "世界@example.com")
	s := &Signer{Domain: "example.org", Selector: "2026", Key: edKey}
	f.Fuzz(func(t *testing.T, fromName, subject, fieldName, fieldValue, text, filename, to string) {
		m := tlsMessage()
		m.FromName, m.Subject, m.Text, m.Attachment.Filename, m.To = fromName, subject, text, filename, to
		m.Header = []Field{{fieldName, fieldValue}}
		var buf bytes.Buffer
		if err := m.Write(&buf, s); err != nil {
			if buf.Len() > 0 {
				t.Fatalf("%v after %d octets", err, buf.Len())
			}
			return
		}
		checkLines(t, buf.Bytes())
		if _, err := verify(t, bytes.NewReader(buf.Bytes()), s); err != nil && !strings.EqualFold(fieldName, "DKIM-Signature") {
			t.Fatalf("%v\n%s", err, buf.Bytes())
		}
		head, _, _ := bytes.Cut(buf.Bytes(), []byte("\r\n\r\n"))
		var names []string
		for line := range strings.SplitSeq(string(head), "\r\n") {
			if !strings.HasPrefix(line, " ") {
				name, _, _ := strings.Cut(line, ":")
				names = append(names, name)
			}
		}
		want := []string{"DKIM-Signature", "Date", "From", "To", "Subject", "Message-ID", fieldName, "Auto-Submitted", "MIME-Version", "Content-Type"}
		if diff := cmp.Diff(want, names); diff != "" {
			t.Fatalf("-want +got:\n%s", diff)
		}
		header, _, _, parts := readStd(t, buf.Bytes())
		if len(parts) != 2 || parts[1].filename != strings.Trim(filename, " ") && parts[1].filename != filename {
			t.Fatalf("parts %+v", parts)
		}
		for _, name := range []string{"From", "To"} {
			if list, err := header.AddressList(name); err != nil || len(list) != 1 {
				t.Fatalf("%s %q: %v, %v", name, header.Get(name), list, err)
			}
		}
	})
}

func TestWriteProperty(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ -~]{0,200}`), rapid.StringMatching(`[a-z ü世]{0,200}`))
	rapid.Check(t, func(rt *rapid.T) {
		m := tlsMessage()
		m.FromName = text.Draw(rt, "name")
		m.Subject = text.Draw(rt, "subject")
		var buf bytes.Buffer
		if err := m.Write(&buf, nil); err != nil {
			return // TestWriteRefuses
		}
		header, _, _, _ := readStd(t, buf.Bytes())
		if strings.Contains(m.Subject, "=?") { // read as an encoded word, as the writer meant or not
			return
		}
		if got, err := new(mime.WordDecoder).DecodeHeader(header.Get("Subject")); err != nil || strings.Trim(got, " ") != strings.Trim(m.Subject, " ") {
			rt.Errorf("subject %q read as %q, %v", m.Subject, got, err)
		}
	})
}

// Two writes with the same boundary are the same octets; without one they differ in the
// boundary alone.
func TestWriteReproducible(t *testing.T) {
	m := tlsMessage()
	if !bytes.Equal(write(t, m, nil), write(t, m, nil)) {
		t.Error("two writes differ")
	}
	m.Boundary = ""
	a, b := write(t, m, nil), write(t, m, nil)
	_, _, paramsA, partsA := readStd(t, a)
	_, _, paramsB, partsB := readStd(t, b)
	if paramsA["boundary"] == paramsB["boundary"] || len(paramsA["boundary"]) < 20 {
		t.Errorf("boundaries %q and %q", paramsA["boundary"], paramsB["boundary"])
	}
	if diff := cmp.Diff(partsA, partsB, cmp.AllowUnexported(part{})); diff != "" {
		t.Error(diff)
	}
}

// rsaKey and edKey are made once; RSA keys take a while.
var (
	rsaKey   = must(rsa.GenerateKey(rand.Reader, 2048))
	_, edKey = mustEd25519()
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func mustEd25519() (ed25519.PublicKey, ed25519.PrivateKey) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	return public, must(private, err)
}

// verify checks the one signature of a mail with the public key of s.
func verify(t testing.TB, r io.Reader, s *Signer) (*dkim.Verification, error) {
	t.Helper()
	verifications, err := dkim.VerifyWithOptions(r, &dkim.VerifyOptions{LookupTXT: func(name string) ([]string, error) {
		if name != s.Selector+"._domainkey."+s.Domain {
			t.Errorf("key looked up at %s", name)
		}
		return []string{s.Record()}, nil
	}})
	if err != nil || len(verifications) != 1 {
		return nil, fmt.Errorf("%d signatures, error %w", len(verifications), err)
	}
	return verifications[0], verifications[0].Err
}

func TestSign(t *testing.T) {
	for name, key := range map[string]crypto.Signer{"RSA": rsaKey, "Ed25519": edKey} {
		t.Run(name, func(t *testing.T) {
			s := &Signer{Domain: "example.org", Selector: "2026", Key: key}
			for _, change := range []func(*Message){
				func(*Message) {},
				func(m *Message) { m.Text = "Grüße \n\n\n" + strings.Repeat("long ", 100) },
				func(m *Message) { m.FromName, m.Subject = "Bücher", strings.Repeat("ü", 200) },
				func(m *Message) { m.Header, m.ReportType, m.Attachment.Open = nil, "", content("") },
			} {
				m := tlsMessage()
				change(m)
				data := write(t, m, s)
				v, err := verify(t, bytes.NewReader(data), s)
				if err != nil {
					t.Fatalf("%v\n%s", err, data)
				}
				want := []string{"From", "From", "To", "Date", "Subject", "Message-ID", "MIME-Version", "Content-Type", "Auto-Submitted"}
				if _, _, _, parts := readStd(t, data); len(parts) != 2 {
					t.Errorf("%d parts", len(parts))
				}
				if m.Header != nil {
					want = append(want, "TLS-Report-Domain", "TLS-Report-Submitter")
				}
				if diff := cmp.Diff(want, v.HeaderKeys); diff != "" {
					t.Errorf("signed fields: -want +got:\n%s", diff)
				}
				field, rest, _ := bytes.Cut(data, []byte("\r\nDate:"))
				if !bytes.HasPrefix(field, []byte("DKIM-Signature: ")) || !bytes.Contains(field, []byte("c=relaxed/relaxed;")) || bytes.Contains(field, []byte(" l=")) {
					t.Errorf("signature %s", field)
				}
				if unsigned := write(t, m, nil); string(unsigned) != "Date:"+string(rest) {
					t.Errorf("signing changed the message")
				}
			}
		})
	}
}

// A signature must break when the message is changed in a way that matters, and
// only then.
func TestSignProtects(t *testing.T) {
	s := &Signer{Domain: "example.org", Selector: "2026", Key: rsaKey}
	data := string(write(t, tlsMessage(), s))
	for name, change := range map[string]func(string) string{
		"second From":    func(m string) string { return strings.Replace(m, "\r\nDate:", "\r\nFrom: x@example.net\r\nDate:", 1) },
		"Subject":        func(m string) string { return strings.Replace(m, "Report Domain", "Report domain", 1) },
		"TLS-Report":     func(m string) string { return strings.Replace(m, "TLS-Report-Domain: e", "TLS-Report-Domain: x", 1) },
		"text":           func(m string) string { return strings.Replace(m, "This is", "This was", 1) },
		"longer body":    func(m string) string { return m + "more\r\n" },
		"Auto-Submitted": func(m string) string { return strings.Replace(m, "auto-generated", "no", 1) },
	} {
		if changed := change(data); changed == data {
			t.Errorf("%s: not changed", name)
		} else if _, err := verify(t, strings.NewReader(changed), s); err == nil {
			t.Errorf("%s: the signature still verifies", name)
		}
	}
	for name, change := range map[string]func(string) string{
		"trace fields":     func(m string) string { return "Received: from x by y; Thu, 2 Apr 2026 02:04:05 +0000\r\n" + m },
		"folded otherwise": func(m string) string { return strings.Replace(m, "Report Domain:", "Report\r\n\tDomain:", 1) },
		"LF line ends": func(m string) string {
			var buf bytes.Buffer
			if _, err := io.WriteString(UnixLines(&buf), m); err != nil {
				t.Error(err)
			}
			if strings.Contains(buf.String(), "\r") || strings.ReplaceAll(buf.String(), "\n", "\r\n") != m {
				t.Error("UnixLines changed more than line ends")
			}
			return buf.String()
		},
	} {
		if _, err := verify(t, strings.NewReader(change(data)), s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnixLinesSplitWrites(t *testing.T) {
	const mail = "A: b\r\n\r\nc\r\n\r\n\r\nd\r\n"
	for size := 1; size < len(mail); size++ {
		var buf bytes.Buffer
		w := UnixLines(&buf)
		for rest := mail; rest != ""; {
			n := min(size, len(rest))
			if written, err := io.WriteString(w, rest[:n]); written != n || err != nil {
				t.Fatal(written, err)
			}
			rest = rest[n:]
		}
		if want := strings.ReplaceAll(mail, "\r", ""); buf.String() != want {
			t.Errorf("writes of %d octets: %q, want %q", size, buf.String(), want)
		}
	}
}

// heapWatcher passes everything on and notes how much memory is in use, once in
// a while.
type heapWatcher struct {
	w            io.Writer
	since        int
	count        int
	highest      uint64
	measurements int
}

func (h *heapWatcher) Write(p []byte) (int, error) {
	h.count += len(p)
	if h.since += len(p); h.since > 1<<20 {
		h.since = 0
		h.highest = max(h.highest, heapInUse())
		h.measurements++
	}
	return h.w.Write(p)
}

func heapInUse() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

type countingCloser struct {
	io.ReadCloser
	closed *int
}

func (c *countingCloser) Close() error {
	*c.closed++
	return c.ReadCloser.Close()
}

// A report of ten megabytes arrives whole, its signature verifies, and it does
// not pass through memory as a whole (RFC 7489 8 asks for that size).
func TestWriteLargeAttachment(t *testing.T) {
	var report bytes.Buffer
	zw := must(gzip.NewWriterLevel(&report, gzip.NoCompression))
	must(io.CopyN(zw, mathrand.NewChaCha8([32]byte{}), 10<<20))
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	s := &Signer{Domain: "example.org", Selector: "2026", Key: rsaKey}
	m := tlsMessage()
	opened, closed := 0, 0
	m.Attachment.Open = func() (io.ReadCloser, error) {
		opened++
		return &countingCloser{io.NopCloser(bytes.NewReader(report.Bytes())), &closed}, nil
	}

	// Two receivers read the mail while it is written.
	contentReader, contentWriter := io.Pipe()
	signatureReader, signatureWriter := io.Pipe()
	var receivers sync.WaitGroup
	receivers.Go(func() {
		defer io.Copy(io.Discard, contentReader)
		if err := compareAttachment(contentReader, report.Bytes()); err != nil {
			t.Error(err)
		}
	})
	receivers.Go(func() {
		defer io.Copy(io.Discard, signatureReader)
		if _, err := verify(t, signatureReader, s); err != nil {
			t.Error(err)
		}
	})
	before := heapInUse()
	watcher := &heapWatcher{w: io.MultiWriter(contentWriter, signatureWriter)}
	err := m.Write(watcher, s)
	contentWriter.CloseWithError(err)
	signatureWriter.CloseWithError(err)
	receivers.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if opened != 2 || closed != 2 {
		t.Errorf("attachment opened %d times, closed %d times", opened, closed)
	}
	if watcher.count < report.Len()*4/3 || watcher.measurements < 10 {
		t.Errorf("%d octets, %d measurements", watcher.count, watcher.measurements)
	}
	if grown := int64(watcher.highest) - int64(before); grown > 2<<20 {
		t.Errorf("memory grew by %d octets", grown)
	}
}

// compareAttachment reads a mail and compares its second part with want.
func compareAttachment(r io.Reader, want []byte) error {
	entity, err := message.Read(r)
	if err != nil {
		return err
	}
	mr := entity.MultipartReader()
	if _, err := mr.NextPart(); err != nil {
		return err
	}
	report, err := mr.NextPart()
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for {
		n, err := report.Body.Read(buf)
		if !bytes.HasPrefix(want, buf[:n]) {
			return fmt.Errorf("attachment differs %d octets before its end", len(want))
		}
		want = want[n:]
		if err == io.EOF && len(want) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("attachment ends %d octets too early: %w", len(want), err)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{4 << 10, 10 << 20} {
		report := make([]byte, size)
		mathrand.NewChaCha8([32]byte{}).Read(report)
		m := tlsMessage()
		m.Attachment.Open = func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(report))), nil // as a file: Read alone
		}
		for name, s := range map[string]*Signer{"unsigned": nil, "signed": {Domain: "example.org", Selector: "2026", Key: rsaKey}} {
			b.Run(fmt.Sprintf("%dk/%s", size>>10, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := m.Write(io.Discard, s); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func TestWriteErrors(t *testing.T) {
	broken := errors.New("broken")
	s := &Signer{Domain: "example.org", Selector: "2026", Key: rsaKey}
	for _, signer := range []*Signer{nil, s} {
		m := tlsMessage()
		m.Attachment.Open = func() (io.ReadCloser, error) { return nil, broken }
		if err := m.Write(io.Discard, signer); !errors.Is(err, broken) {
			t.Errorf("open: error %v", err)
		}
		closed := 0
		m.Attachment.Open = func() (io.ReadCloser, error) {
			r := io.MultiReader(strings.NewReader(strings.Repeat("x", 100_000)), iotestErr{broken})
			return &countingCloser{io.NopCloser(r), &closed}, nil
		}
		if err := m.Write(io.Discard, signer); !errors.Is(err, broken) || closed != 1 {
			t.Errorf("read: error %v, closed %d times", err, closed)
		}
		pr, pw := io.Pipe()
		pr.CloseWithError(broken)
		if err := tlsMessage().Write(pw, signer); !errors.Is(err, broken) {
			t.Errorf("write: error %v", err)
		}
	}
	if err := tlsMessage().Write(io.Discard, &Signer{Domain: "example.org", Selector: "x", Key: failingKey{rsaKey}}); err == nil || !strings.Contains(err.Error(), "no entropy") {
		t.Errorf("sign: error %v", err)
	}
}

type iotestErr struct{ err error }

func (r iotestErr) Read([]byte) (int, error) { return 0, r.err }

type failingKey struct{ crypto.Signer }

func (failingKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("no entropy")
}

func TestNewMessageID(t *testing.T) {
	a, b := NewMessageID("example.org"), NewMessageID("example.org")
	if a == b || !regexp.MustCompile(`^[a-z0-9]{26}@example\.org$`).MatchString(a) {
		t.Errorf("%q, %q", a, b)
	}
	m := tlsMessage()
	m.MessageID = a
	header, _, _, _ := readStd(t, write(t, m, nil))
	if got := header.Get("Message-Id"); got != "<"+a+">" {
		t.Errorf("Message-ID: %s", got)
	}
}
