package check

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// width is how many columns a text for a terminal has.
const width = 80

var labels = map[Level]string{OK: "ok", Warning: "warning", Fault: "FAULT"}

// Write writes findings for a terminal, one after the other:
//
//	FAULT    smtp_tlsrpt_enable is not set: there are no TLS reports
//	         mend:
//	             postconf -e 'smtp_tlsrpt_enable = yes'
//	             postfix reload
//
// Commands are not wrapped, so that they can be copied.
func Write(w io.Writer, findings []Finding) error {
	const indent = "         "
	var b strings.Builder
	for _, f := range findings {
		wrap(&b, fmt.Sprintf("%-9s", labels[f.Level]), indent, f.What)
		if f.Mend == "" {
			continue
		}
		lead := indent + "mend: "
		for line := range strings.Lines(f.Mend) {
			line = strings.TrimSuffix(line, "\n")
			if !strings.HasPrefix(line, " ") {
				wrap(&b, lead, indent, line)
			} else {
				if lead != indent {
					b.WriteString(strings.TrimRight(lead, " ") + "\n")
				}
				b.WriteString(indent + line + "\n")
			}
			lead = indent
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// wrap writes the words of text in lines that begin with indent, the first with first.
// A word that is longer than a line has one to itself.
func wrap(b *strings.Builder, first, indent, text string) {
	b.WriteString(first)
	column := utf8.RuneCountInString(first)
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case column+1+n > width:
			b.WriteString("\n" + indent)
			column = len(indent)
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += n
	}
	b.WriteByte('\n')
}
