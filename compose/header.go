package compose

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// foldAt is the length beyond which lines are folded where they can be. RFC
	// 5322 2.1.1 recommends 78, RFC 2047 2 demands 76 with encoded words.
	foldAt = 76
	// maxLine is the longest line that SMTP takes (RFC 5322 2.1.1).
	maxLine = 998
)

// header collects the fields of a message or part. The first error stays.
type header struct {
	fields []string // folded, with their line ends
	err    error
}

func (h *header) String() string { return strings.Join(h.fields, "") }

// field returns the field with that name, or "".
func (h *header) field(name string) string {
	for _, f := range h.fields {
		if found, _, _ := strings.Cut(f, ":"); strings.EqualFold(found, name) {
			return f
		}
	}
	return ""
}

// add writes a field whose value is ASCII. A name can be used only once: of all
// fields that this project writes RFC 5322 3.6 allows but one.
func (h *header) add(name, value string) {
	if h.err == nil && !isPrintable(value) {
		h.err = fmt.Errorf("field %q: value has control characters or invalid UTF-8", name)
	}
	h.addChecked(name, value)
}

// addChecked writes a field whose value is known to be free of control characters: one
// with an address may be beyond ASCII (RFC 6532 3.2).
func (h *header) addChecked(name, value string) {
	if h.err != nil {
		return
	}
	if err := h.check(name, value); err != nil {
		h.err = fmt.Errorf("field %q: %w", name, err)
		return
	}
	var field strings.Builder
	for _, line := range fold(name+":", strings.Trim(value, " ")) {
		if len(line) > maxLine {
			h.err = fmt.Errorf("field %q: a line of %d characters cannot be folded", name, len(line))
		}
		field.WriteString(line)
		field.WriteString("\r\n")
	}
	h.fields = append(h.fields, field.String())
}

func (h *header) check(name, value string) error {
	switch {
	case name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }):
		return errors.New("not a field name") // RFC 5322 3.6.8 ftext
	case h.field(name) != "":
		return errors.New("set twice")
	case strings.Trim(value, " ") == "":
		return errors.New("empty")
	}
	return nil
}

// isPrintable tells whether s is ASCII without control characters.
func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// fold breaks a field into lines before some of its blanks. Nothing is added or
// lost, so that unfolding (RFC 5322 2.2.3) gives back the value exactly. The
// line with the name is never left without a word: some readers take the value
// for empty then.
func fold(line, value string) []string {
	var lines []string
	for i, word := range words(value) {
		if i > 0 && len(line)+len(word) > foldAt {
			lines = append(lines, line)
			line = ""
		}
		line += word
	}
	return append(lines, line)
}

// words splits value, which has no blanks at its ends, into words that each
// begin with the blanks before them. The first gets the one after the colon.
func words(value string) []string {
	var words []string
	rest := " " + value
	for rest != "" {
		end := len(rest)
		start := len(rest) - len(strings.TrimLeft(rest, " "))
		if i := strings.IndexByte(rest[start:], ' '); i >= 0 {
			end = start + i
		}
		words = append(words, rest[:end])
		rest = rest[end:]
	}
	return words
}

// encodeText returns text as it is if it is ASCII, else as encoded words. What
// neither can express is left for header.add to refuse.
func encodeText(text string) string {
	if isPrintable(text) || !isEncodable(text) {
		return text
	}
	return encodeWords(text)
}

// displayName returns name as a phrase (RFC 5322 3.2.5).
func displayName(name string) (string, error) {
	switch {
	case isPrintable(name):
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name) + `"`, nil
	case isEncodable(name):
		return encodeWords(name), nil
	}
	return "", errors.New("sender name has control characters or invalid UTF-8")
}

func isEncodable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, unicode.IsControl)
}

// encodeWords returns text in encoded words (RFC 2047 2), all of it, because the
// blank between two encoded words is not part of the text. Base64 is allowed
// everywhere, in phrases too; the words are short enough to stand behind the
// name of a field.
func encodeWords(text string) string {
	const maxChunk = 36 // octets, 60 when encoded; the limit is 75
	var encoded []string
	for text != "" {
		end := min(len(text), maxChunk)
		for end < len(text) && !utf8.RuneStart(text[end]) { // RFC 2047 5: whole characters
			end--
		}
		encoded = append(encoded, "=?utf-8?b?"+base64.StdEncoding.EncodeToString([]byte(text[:end]))+"?=")
		text = text[end:]
	}
	return strings.Join(encoded, " ")
}

// isToken tells whether s is a token of RFC 2045 5.1.
func isToken(s string) bool {
	return s != "" && isPrintable(s) && !strings.ContainsAny(s, ` ()<>@,;:\"/[]?=`)
}

// isBoundary tells whether s can be a boundary without blanks (RFC 2046 5.1.1).
func isBoundary(s string) bool {
	return 0 < len(s) && len(s) <= 70 && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r))) && !strings.ContainsRune("'()+_,-./:=?", r)
	})
}
