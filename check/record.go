package check

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"ruapost"
)

// Record is a TXT record that a domain should have.
type Record struct {
	Name string `json:"name"`
	// Why says what it is for.
	Why string `json:"why"`
	// Want is the text to publish: where what is published serves, that.
	Want string `json:"want"`
	// Published are the texts that the DNS has at Name, fit for a terminal; nil if it
	// does not answer.
	Published []string `json:"published"`
	// OK says that nothing has to be changed.
	OK bool `json:"ok"`
}

// publish notes a record, what is published instead, as texts returns it, and whether
// that serves.
func (s *sender) publish(r Record, published []string, ok bool) {
	if published != nil {
		r.Published = []string{}
	}
	for _, txt := range published[:min(len(published), maxPublished)] {
		r.Published = append(r.Published, ruapost.Clean(txt, maxText))
	}
	r.OK = ok
	s.records = append(s.records, r)
}

// WriteRecords writes the records as lines of a zone file, and as comments what is
// published instead of them.
func WriteRecords(w io.Writer, records []Record) error {
	var b strings.Builder
	b.WriteString("\n; DNS records to publish, as lines of a zone file\n")
	for _, r := range records {
		state := "is published"
		switch {
		case r.Published == nil:
			state = "NOT KNOWN, the DNS does not answer"
		case len(r.Published) == 0:
			state = "NOT PUBLISHED"
		case !r.OK:
			state = "PUBLISHED IN ANOTHER FORM"
		}
		fmt.Fprintf(&b, "\n; %s: %s\n", r.Why, state)
		if !r.OK {
			for _, txt := range r.Published {
				fmt.Fprintf(&b, "; now: %s\n", txt)
			}
		}
		for _, line := range ZoneLines(r.Name, r.Want) {
			b.WriteString(line + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// ZoneLines returns a TXT record as it stands in a zone file (RFC 1035 5.1), each of its
// character-strings of 255 octets in a line.
func ZoneLines(name, text string) []string {
	var lines []string
	for part := range slices.Chunk([]byte(text), 255) {
		lines = append(lines, "\t"+characterString(part))
	}
	switch len(lines) {
	case 0:
		return nil
	case 1:
		return []string{name + ". IN TXT " + strings.TrimPrefix(lines[0], "\t")}
	}
	lines[0] = name + ". IN TXT ( " + strings.TrimPrefix(lines[0], "\t")
	lines[len(lines)-1] += " )"
	return lines
}

func characterString(octets []byte) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range octets {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, "\\%03d", c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
