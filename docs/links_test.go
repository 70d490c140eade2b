package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var link = regexp.MustCompile(`\[[^]]*\]\(([^)#]*)(#[^)]*)?\)`)

// TestLinks follows each link between pages, and to a heading, and finds each page that
// is named in code.
func TestLinks(t *testing.T) {
	anchors := map[string][]string{}
	all := pages(t)
	for _, p := range all {
		for _, h := range p.headings {
			anchors[p.name] = append(anchors[p.name], anchor(h))
		}
	}
	for _, p := range all {
		for _, m := range link.FindAllStringSubmatch(p.text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			to := p.name
			if m[1] != "" {
				to = path.Join(path.Dir(p.name), m[1])
			}
			if _, err := os.Stat(filepath.Join("..", to)); err != nil {
				t.Errorf("%s: link to %s: %v", p.name, m[1], err)
				continue
			}
			if a := strings.TrimPrefix(m[2], "#"); a != "" && !slices.Contains(anchors[to], a) {
				t.Errorf("%s: %s has no heading #%s", p.name, to, a)
			}
		}
		for _, s := range p.spans {
			if !regexp.MustCompile(`^(docs|contrib)/[^ *]*$`).MatchString(s.text) {
				continue
			}
			if _, err := os.Stat(filepath.Join("..", s.text)); err != nil {
				t.Errorf("%s:%d: %v", p.name, s.line, err)
			}
		}
	}
}

// TestIndex looks whether the index has every page.
func TestIndex(t *testing.T) {
	index, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages(t) {
		if name := path.Base(p.name); name != "README.md" && !strings.Contains(string(index), "("+name+")") {
			t.Errorf("docs/README.md does not have %s", name)
		}
	}
}

// TestQuotedMessages looks whether what trouble.md says that one sees can be seen: the
// code in the first cell of its tables, between the dots, must stand in a text of the
// programs or of Postfix.
func TestQuotedMessages(t *testing.T) {
	texts := goTexts(t)
	first := regexp.MustCompile(`(?m)^\| ([^|]*) \|`)
	raw, err := os.ReadFile("trouble.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, cell := range first.FindAllStringSubmatch(string(raw), -1) {
		for _, m := range codeSpan.FindAllStringSubmatch(cell[1], -1) {
			n++
			for piece := range strings.SplitSeq(m[1], "...") {
				if !said(strings.TrimSpace(piece), texts) {
					t.Errorf("trouble.md: nothing says %q", piece)
				}
			}
		}
	}
	if n < 25 {
		t.Errorf("trouble.md has %d messages", n)
	}
}

// postfixSays are texts of Postfix 3.7 to 3.10, with the file they come from;
// TestPostfixSays looks for them in its programs.
var postfixSays = []string{
	"connect to Milter service ",   // milter/milter8.c
	"milter-reject", "milter-hold", // cleanup/cleanup_milter.c
	"client TLS configuration problem",                 // smtp/smtp_tls_policy.c
	"Server certificate not verified",                  // smtp/smtp_proto.c
	"TLSA lookup error for ", "non DNSSEC destination", // smtp/smtp_tls_policy.c
	"MX name '%s' does not match STS MX pattern for '%s'", // smtp/smtp_addr.c
	"server unavailable or unable to receive mail",        // smtp/smtp_connect.c
	"TLS is required, but was not offered by host ",       // smtp/smtp_proto.c
}

func said(piece string, texts []string) bool {
	has := func(text string) bool { return strings.Contains(text, piece) }
	return slices.ContainsFunc(texts, has) || slices.ContainsFunc(postfixSays, has)
}

// goTexts returns all string constants of the programs. What is put together of several
// is one.
func goTexts(t *testing.T) []string {
	t.Helper()
	var texts []string
	err := filepath.WalkDir("..", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{"e2e", "bench", "demo", ".git", "testdata", "docs"}, d.Name()):
			return fs.SkipDir
		case filepath.Ext(file) != ".go" || strings.HasSuffix(file, "_test.go"):
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			return nil // somebody is at work on it
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if text, ok := constant(n); ok {
				texts = append(texts, text)
				return false
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

// constant returns the text of a string literal, or of several with "+" between.
func constant(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.BasicLit:
		if n.Kind != token.STRING {
			return "", false
		}
		text, err := strconv.Unquote(n.Value)
		return text, err == nil
	case *ast.BinaryExpr:
		x, ok := constant(n.X)
		y, also := constant(n.Y)
		return x + y, ok && also && n.Op == token.ADD
	}
	return "", false
}
