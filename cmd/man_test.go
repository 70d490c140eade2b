package cmd

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ruapost/internal/testhost"
)

const manDir = "../contrib/man"

var (
	manCommand = regexp.MustCompile(`^\.It Cm ([a-z-]+)(?: ([a-z]+))?`)
	manFlag    = regexp.MustCompile(`\bFl -?([a-z][a-z-]*)`)
	manXref    = regexp.MustCompile(`(?m)^\.Xr (ruapost[a-z.-]*) ([0-9])`)
	manDiag    = regexp.MustCompile(`(?m)^\.It "?([^"\n]*)"?$`)
)

// flagsInPage returns the flags that a manual page tells of, by command; "" has those of the
// program. A subcommand is one as "suppress add".
func flagsInPage(page string) map[string][]string {
	options, rest, _ := strings.Cut(page, "\n.Ss ")
	_, options, _ = strings.Cut(options, "\n.Sh DESCRIPTION")
	rest, _, _ = strings.Cut(rest, "\n.Sh ")
	flags := map[string][]string{"": flagsIn(options), "help": nil}
	command := "" // of the item we are in
	for line := range strings.Lines(rest) {
		if strings.HasPrefix(line, ".Ss ") {
			break
		}
		if m := manCommand.FindStringSubmatch(line); m != nil {
			if command = m[1]; m[2] != "" {
				flags[command+" "+m[2]] = nil
			}
			flags[command] = append(flags[command], flagsIn(line)...)
			continue
		}
		if command != "" && command != "help" && !strings.HasPrefix(line, ".Cm ") { // what stands behind is another's
			flags[command] = append(flags[command], flagsIn(line)...)
		}
	}
	return flags
}

func flagsIn(text string) (names []string) {
	for _, m := range manFlag.FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return names
}

// The manual pages of the programs tell of every command and option there is, and of no
// other.
func TestManPages(t *testing.T) {
	for _, program := range programs {
		page, err := os.ReadFile(filepath.Join(manDir, program+".8"))
		if err != nil {
			t.Fatal(err)
		}
		told := flagsInPage(string(page))
		commands := append(commandsOf(t, program), "")
		for _, command := range commands {
			if _, ok := told[command]; !ok {
				t.Errorf("%s.8: command %s is missing", program, command)
			}
			there := optionsOf(t, program, command)
			for _, name := range there {
				if !slices.Contains(told[command], name) {
					t.Errorf("%s.8: %s: option %s is missing", program, command, name)
				}
				if command == "" && !strings.Contains(string(page), "\n.It Fl "+name) {
					t.Errorf("%s.8: option %s is not explained", program, name)
				}
			}
			for _, name := range told[command] {
				if name != "help" && !slices.Contains(there, name) {
					t.Errorf("%s.8: %s has no option %s", program, command, name)
				}
			}
			if command == "" {
				continue
			}
			for _, word := range subcommandsOf(t, program, command) {
				commands = append(commands, command+" "+word)
				if _, ok := told[command+" "+word]; !ok {
					t.Errorf("%s.8: command %s %s is missing", program, command, word)
				}
			}
		}
		for command := range told {
			if command != "help" && !slices.Contains(commands, command) {
				t.Errorf("%s.8: %s is no command", program, command)
			}
		}
	}
}

// What the pages quote of the log stands in the programs.
func TestManPagesQuoteTheLog(t *testing.T) {
	source := goSource(t)
	placeholder := regexp.MustCompile(`[A-Z]{4,}|\.\.\.`)
	for _, name := range manPages(t) {
		page, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, diagnostics, _ := strings.Cut(string(page), "\n.Sh DIAGNOSTICS\n")
		diagnostics, _, _ = strings.Cut(diagnostics, "\n.Sh ")
		for _, m := range manDiag.FindAllStringSubmatch(diagnostics, -1) {
			for _, part := range placeholder.Split(m[1], -1) {
				if part = strings.TrimSpace(part); !strings.Contains(source, part) {
					t.Errorf("%s: no program says %q", filepath.Base(name), part)
				}
			}
		}
	}
}

// goSource returns the source of the programs without their tests.
func goSource(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		all.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(all.String(), `\"`, `"`)
}

func manPages(t *testing.T) []string {
	t.Helper()
	pages, err := filepath.Glob(filepath.Join(manDir, "*.[1-8]"))
	if err != nil || len(pages) < 4 {
		t.Fatal(pages, err)
	}
	return pages
}

// A page that mandoc(1) finds fault with is shown wrong by one reader or another.
func TestManPagesAreClean(t *testing.T) {
	if _, err := exec.LookPath("mandoc"); err != nil {
		if err := testhost.LeaveOut("cmd: mandoc's look at the manual pages", err); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, page := range manPages(t) {
		for _, line := range lint(t, page) {
			// Those of other packages are there or not; ours are looked up below.
			if !strings.Contains(line, "referenced manual not found") {
				t.Error(line)
			}
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range manXref.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(manDir, ref[1]+"."+ref[2])); err != nil {
				t.Errorf("%s refers to %s(%s): %v", page, ref[1], ref[2], err)
			}
		}
	}
}

// lint returns what mandoc says is wrong with a page.
func lint(t *testing.T, page string) (lines []string) {
	t.Helper()
	out, err := exec.Command("mandoc", "-Tlint", page).Output()
	if _, found := errors.AsType[*exec.ExitError](err); err != nil && !found {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}
