package cmd

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// complete returns what bash offers at the end of a line.
func complete(t *testing.T, line string) []string {
	t.Helper()
	const script = `
set -u
. ../contrib/completion/ruapost.bash
read -ra COMP_WORDS <<<"$1"
[[ $1 == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$1 COMP_POINT=${#1}
function=$(complete -p "${COMP_WORDS[0]}")
function=${function#* -F }
COMPREPLY=()
"${function%% *}" "${COMP_WORDS[0]}" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' ${COMPREPLY[@]+"${COMPREPLY[@]}"}`
	out, err := exec.Command("bash", "-c", script, "bash", line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return strings.Fields(string(out))
}

// Each command and option is offered where it belongs, and nothing else is.
func TestCompletion(t *testing.T) {
	for _, program := range programs {
		commands := commandsOf(t, program)
		want := slices.Clone(commands)
		if len(commands) > 0 {
			want = append(want, "help", "version")
		}
		for _, name := range optionsOf(t, program, "") {
			want = append(want, "-"+name)
		}
		expectOffers(t, program+" ", want)
		if len(commands) > 0 {
			expectOffers(t, program+" help ", commands)
		}
		for _, command := range commands {
			words := subcommandsOf(t, program, command)
			options := append(optionsOf(t, program, command), "help")
			switch {
			case command == "suppress": // whose words have options of their own
				want = append(words, "-help")
				options = []string{"help"}
				for _, word := range words {
					for _, option := range complete(t, program+" suppress "+word+" -") {
						options = append(options, strings.TrimLeft(option, "-"))
					}
				}
				expectSame(t, program+" suppress WORD -", options, append(optionsOf(t, program, command), "help"))
			case len(words) > 0:
				want = append(words, "-help")
			default:
				want = nil
				for _, option := range options {
					want = append(want, "-"+option)
				}
			}
			at := program + " -config x " + command + " "
			if command == "dkim-keygen" { // which takes a file, too
				at += "-"
			}
			expectOffers(t, at, want)
		}
	}
}

func expectOffers(t *testing.T, line string, want []string) {
	t.Helper()
	var got []string
	for _, word := range complete(t, line) {
		if strings.HasPrefix(word, "--") {
			word = word[1:]
		}
		got = append(got, word)
	}
	expectSame(t, line, got, want)
}

// expectSame compares what is offered without regard to order and repetition.
func expectSame(t *testing.T, line string, got, want []string) {
	t.Helper()
	got, want = slices.Compact(slices.Sorted(slices.Values(got))), slices.Compact(slices.Sorted(slices.Values(want)))
	if !slices.Equal(got, want) {
		t.Errorf("%s: offers %q, want %q", line, got, want)
	}
}

func TestCompletionOfBeginnings(t *testing.T) {
	dir := t.TempDir()
	for line, want := range map[string]string{
		"ruapost-reporter sen":                    "send",
		"ruapost-reporter -config x s":            "send show suppress setup store",
		"ruapost-reporter --config x send --no":   "--now --no-spread",
		"ruapost-reporter send --domain --n":      "", // its value
		"ruapost-reporter send --domain a --dr":   "--dry-run",
		"ruapost-reporter -config = x send --no":  "--now --no-spread", // as readline splits it
		"ruapost-reporter -check l":               "list",
		"ruapost-reporter suppress add -for 30d ": "-for -reason -help",
		"ruapost-reporter suppress add -for ":     "",
		"ruapost-reporter store check ":           "",
		"ruapost-reporter setup --replace tls":    "tlsrpt-reporter",
		"ruapost-reporter setup -postfix testd":   "testdata",
		"ruapost-reporter web -hash ":             "",
		"ruapost-reporter no-command ":            "",
		"ruapost-tlspolicy query example.com -j":  "-json",
		"ruapost-tlspolicy version ":              "",
		"ruapost-milter -config testdata/conf":    "testdata/configuration.txtar",
		"ruapost-milter -config " + dir + "/":     "",
		"ruapost-milter -v":                       "-version",
	} {
		if got := strings.Join(complete(t, line), " "); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	files, err := filepath.Glob("testdata/*")
	if err != nil {
		t.Fatal(err)
	}
	expectOffers(t, "ruapost-reporter dkim-keygen testdata/", files)
}
