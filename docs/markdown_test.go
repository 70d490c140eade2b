package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// page is a page of the documentation.
type page struct {
	name   string // from the top of the project, such as docs/store.md
	blocks []block
	spans  []span
	// text is what is neither in blocks nor in spans.
	text     string
	headings []string
}

// block is an indented or fenced block of code without its indentation.
type block struct {
	line  int
	lines []string
}

// span is inline code.
type span struct {
	line int
	text string
}

// pages reads the README and all pages in this folder.
func pages(t *testing.T) []*page {
	t.Helper()
	files, err := filepath.Glob("*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	all := []*page{readPage(t, "../README.md", "README.md")}
	for _, file := range files {
		all = append(all, readPage(t, file, "docs/"+file))
	}
	return all
}

func readPage(t *testing.T, file, name string) *page {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p := parsePage(string(text))
	p.name = name
	return p
}

var (
	listItem = regexp.MustCompile(`^( *)([0-9]+\.|[-*]) +`)
	codeSpan = regexp.MustCompile("`([^`]+)`")
	fence    = regexp.MustCompile("^ *```")
)

// parsePage reads what of Markdown the pages use.
func parsePage(text string) *page {
	p := &page{}
	var paragraph []string
	began := 0
	endParagraph := func() {
		p.addText(strings.Join(paragraph, "\n"), began)
		paragraph = nil
	}
	content := 0 // the column where the text of the list item begins
	blank := true
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		indent := len(line) - len(strings.TrimLeft(line, " "))
		switch {
		case strings.TrimSpace(line) == "":
			endParagraph()
			blank = true
			continue
		case fence.MatchString(line):
			endParagraph()
			b := block{line: i + 2}
			for i++; i < len(lines) && !fence.MatchString(lines[i]); i++ {
				b.lines = append(b.lines, strings.TrimPrefix(lines[i], line[:indent]))
			}
			p.blocks = append(p.blocks, b)
		case blank && indent >= content+4:
			endParagraph()
			b := block{line: i + 1}
			for ; i < len(lines); i++ {
				if strings.TrimSpace(lines[i]) != "" && !strings.HasPrefix(lines[i], strings.Repeat(" ", indent)) {
					break
				}
				b.lines = append(b.lines, strings.TrimPrefix(lines[i], strings.Repeat(" ", indent)))
			}
			i--
			for b.lines[len(b.lines)-1] == "" {
				b.lines = b.lines[:len(b.lines)-1]
			}
			p.blocks = append(p.blocks, b)
			blank = true
			continue
		default:
			if m := listItem.FindString(line); m != "" {
				endParagraph()
				content = len(m)
			} else if indent == 0 && blank {
				content = 0
			}
			if strings.HasPrefix(line, "#") {
				endParagraph()
				p.headings = append(p.headings, strings.TrimLeft(line, "# "))
			}
			if strings.HasPrefix(line, "|") { // a cell's text has one line
				endParagraph()
			}
			if paragraph == nil {
				began = i + 1
			}
			paragraph = append(paragraph, line)
		}
		blank = false
	}
	endParagraph()
	return p
}

// addText takes a paragraph: a span of code may go over the end of a line.
func (p *page) addText(text string, line int) {
	for _, m := range codeSpan.FindAllStringSubmatchIndex(text, -1) {
		code := strings.Join(strings.Fields(text[m[2]:m[3]]), " ")
		p.spans = append(p.spans, span{line + strings.Count(text[:m[0]], "\n"), code})
	}
	p.text += codeSpan.ReplaceAllString(text, "``") + "\n\n"
}

// anchor returns what a link to the heading has behind "#".
func anchor(heading string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(heading) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '_':
			b.WriteRune(r)
		}
	}
	return b.String()
}

// The tests see no more than this finds.
func TestParsePage(t *testing.T) {
	p := parsePage("# A `b`, c\n\ntext\n\n    block one\n\n    goes on\n1. item\n\n       in the item\n\n   not code\n   * inner `a\n     b`\n\n" +
		"| `cell` | `two` |\n\n```\nfenced\n```\n\nlast\n")
	var blocks []string
	for _, b := range p.blocks {
		blocks = append(blocks, strings.Join(b.lines, "|"))
	}
	if got, want := strings.Join(blocks, " / "), "block one||goes on / in the item / fenced"; got != want {
		t.Errorf("blocks: %s, want %s", got, want)
	}
	var spans []string
	for _, s := range p.spans {
		spans = append(spans, s.text)
	}
	if got, want := strings.Join(spans, " / "), "b / a b / cell / two"; got != want {
		t.Errorf("spans: %s, want %s", got, want)
	}
	if len(p.headings) != 1 || anchor(p.headings[0]) != "a-b-c" {
		t.Errorf("headings: %q", p.headings)
	}
}
