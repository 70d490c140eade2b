package cmd

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// helpOf returns what a program says to these arguments and "-help".
func helpOf(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(bin, program), append(args, "-help")...).Output()
	if err != nil {
		t.Fatalf("%s %q -help: %v", program, args, err)
	}
	return string(out)
}

var (
	commandLine   = regexp.MustCompile(`(?m)^  ([a-z][a-z-]*) `)
	generalOption = regexp.MustCompile(`(?m)^  --?([a-z][a-z-]*)`)
	option        = regexp.MustCompile(`(?:^|[\s[(|])--?([a-z][a-z-]*)`)
)

// commandsOf returns the commands of a program.
func commandsOf(t *testing.T, program string) (names []string) {
	for _, m := range commandLine.FindAllStringSubmatch(helpOf(t, program), -1) {
		names = append(names, m[1])
	}
	return names
}

// optionsOf returns the options of a command, and those of the program if it is "".
func optionsOf(t *testing.T, program, command string) (names []string) {
	text := helpOf(t, program, strings.Fields(command)...)
	if command == "" {
		for _, m := range generalOption.FindAllStringSubmatch(text, -1) {
			names = append(names, m[1])
		}
		return append(names, "help")
	}
	text, _, _ = strings.Cut(text, "\n\n") // the tests of the programs see that all stand there
	for _, m := range option.FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// subcommandsOf returns the words that a command has commands of its own for, such as
// "add" of "suppress" and "check" of "store".
func subcommandsOf(t *testing.T, program, command string) (names []string) {
	usage, _, _ := strings.Cut(helpOf(t, program, command), "\n\n")
	for _, m := range regexp.MustCompile(program+" "+command+" ([a-z|]+)").FindAllStringSubmatch(usage, -1) {
		names = append(names, strings.Split(m[1], "|")...)
	}
	return names
}

// A terminal of 80 by 24 shows the help of each command, which ends with an example.
func TestHelpFitsAScreen(t *testing.T) {
	for _, program := range programs {
		commands := commandsOf(t, program)
		if program != "ruapost-milter" && len(commands) < 4 {
			t.Errorf("%s has the commands %q", program, commands)
		}
		for _, command := range append(commands, "") {
			text := helpOf(t, program, strings.Fields(command)...)
			lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
			if len(lines) > 24 {
				t.Errorf("%s %s: %d lines", program, command, len(lines))
			}
			for _, line := range lines {
				if n := utf8.RuneCountInString(line); n > 80 {
					t.Errorf("%s %s: %d columns: %s", program, command, n, line)
				}
			}
			if last := lines[len(lines)-1]; !strings.HasPrefix(last, "Example") || !strings.Contains(last, program) {
				t.Errorf("%s %s: there is no example at the end", program, command)
			}
		}
	}
}
