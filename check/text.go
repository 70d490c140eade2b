package check

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// width is how many columns a text for a terminal has.
const width = 80

var labels = map[Level]string{OK: "ok", Warning: "warning", Fault: "FAULT"}

// Write writes findings for a terminal, the faults first, and how many of them there are:
//
//	FAULT    smtp_tlsrpt_enable is not set: there are no TLS reports
//	         mend:
//	             postconf -e 'smtp_tlsrpt_enable = yes'
//	             postfix reload
//
// Commands are not wrapped, so that they can be copied.
func Write(w io.Writer, findings []Finding) error {
	var b strings.Builder
	n := map[Level]int{}
	for _, f := range slices.SortedStableFunc(slices.Values(findings), func(a, b Finding) int { return b.Level.rank() - a.Level.rank() }) {
		n[f.Level]++
		f.Write(&b, labels[f.Level], "mend")
	}
	fmt.Fprintf(&b, "%s, %s\n", count(n[Fault], "fault"), count(n[Warning], "warning"))
	_, err := io.WriteString(w, b.String())
	return err
}

// Write writes a finding behind a label of up to eight characters, and what to do behind a
// word for that.
func (f *Finding) Write(b *strings.Builder, label, do string) {
	const indent = "         "
	wrap(b, fmt.Sprintf("%-9s", label), indent, f.What)
	if f.Mend == "" {
		return
	}
	lead := indent + do + ": "
	for line := range strings.Lines(f.Mend) {
		line = strings.TrimSuffix(line, "\n")
		if !strings.HasPrefix(line, " ") {
			wrap(b, lead, indent, line)
		} else {
			if lead != indent {
				b.WriteString(strings.TrimRight(lead, " ") + "\n")
			}
			b.WriteString(indent + line + "\n")
		}
		lead = indent
	}
}

// rank is greater the worse a finding is.
func (l Level) rank() int { return slices.Index([]Level{OK, Warning, Fault}, l) }

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
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
