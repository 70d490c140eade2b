package container

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree is the checkout, from here.
const tree = "../.."

// page is docs/container.md: its commands, and which of them the tests have run.
var page = struct{ commands, run []string }{}

// pageCommands returns the commands of the page.
func pageCommands(t *testing.T) []string {
	t.Helper()
	if page.commands == nil {
		text, err := os.ReadFile(tree + "/docs/container.md")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if command, ok := strings.CutPrefix(line, "    "); ok {
				page.commands = append(page.commands, strings.TrimSpace(command))
			}
		}
	}
	return page.commands
}

// do runs a command of the page in the given folder, and returns what it prints. The page
// has it word for word, with a domain of the Internet for one of ours.
func do(t *testing.T, dir, command string) string {
	t.Helper()
	if !slices.Contains(pageCommands(t), command) {
		t.Fatalf("docs/container.md has no %q", command)
	}
	page.run = append(page.run, command)
	return runIn(t, dir, "sh", "-c", strings.ReplaceAll(command, "gmail.com", "sts.example"))
}

// checkPage wants all commands of the page to have been run.
func checkPage(t *testing.T) {
	t.Helper()
	for _, command := range pageCommands(t) {
		if !slices.Contains(page.run, command) {
			t.Errorf("docs/container.md: %q was not run", command)
		}
	}
}

// run runs a command and returns what it prints.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	return runIn(t, tree, name, args...)
}

func runIn(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	shims, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+shims+":"+os.Getenv("PATH"), "MAKEFLAGS="+makeFlags,
		"BUILDAH_ISOLATION=chroot") // the way of "RUN" that raises no limits
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, &stdout, &stderr)
	}
	return stdout.String()
}
