package reporting

import (
	"bufio"
	"encoding/json"
	"io"
	"strings"
	"unicode/utf8"

	"ruapost"
)

// maxCell is the longest text of a table, in octets.
const maxCell = 600

// table is a table for a terminal: columns are aligned, and a line may have notes below
// it, which are as long as they are.
type table struct {
	lines []tableLine
}

type tableLine struct{ cells, notes []string }

// add adds a line. The values may come from anywhere.
func (t *table) add(cells ...string) {
	for i := range cells {
		cells[i] = ruapost.Clean(cells[i], maxCell)
	}
	t.lines = append(t.lines, tableLine{cells: cells})
}

// note adds a note below the last line.
func (t *table) note(text string) {
	last := &t.lines[len(t.lines)-1]
	last.notes = append(last.notes, ruapost.Clean(text, maxCell))
}

func (t *table) write(to io.Writer) error {
	var widths []int
	for _, line := range t.lines {
		for i, cell := range line.cells {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	w := bufio.NewWriter(to)
	for _, line := range t.lines {
		var b strings.Builder
		for i, cell := range line.cells {
			b.WriteString(cell)
			b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
		}
		w.WriteString(strings.TrimRight(b.String(), " "))
		w.WriteByte('\n')
		for _, note := range line.notes {
			w.WriteString("    " + note + "\n")
		}
	}
	return w.Flush()
}

// writeJSON writes a value as one line.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
