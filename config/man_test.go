package config

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	manSection = regexp.MustCompile(`(?m)^\.Ss (\[+)([a-z_]+)\]+\\&$`)
	manKey     = regexp.MustCompile(`(?m)^\.It Ic ([a-z0-9_]+)(?: No = (.*))?$`)
)

// ruapost.toml(5) has every key, with the default that it has.
func TestManPage(t *testing.T) {
	page, err := os.ReadFile("../contrib/man/ruapost.toml.5")
	if err != nil {
		t.Fatal(err)
	}
	var file strings.Builder // the defaults as the page has them
	told := map[string]bool{}
	section, several := "", false
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSuffix(line, "\n")
		if s := manSection.FindStringSubmatch(line); s != nil {
			section, several = s[2]+".", s[1] == "[["
			if told[s[2]] = true; !several {
				file.WriteString("[" + s[2] + "]\n")
			}
		}
		if k := manKey.FindStringSubmatch(line); k != nil {
			told[section+k[1]] = true
			if value := strings.ReplaceAll(k[2], `\(dq`, `"`); !several {
				file.WriteString(k[1] + " = " + value + "\n")
			} else if value != "" {
				t.Errorf("%s%s: there is no default of a section that may stand several times", section, k[1])
			}
		}
	}
	want, err := parse("", "", testHost)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parse("man page", file.String(), testHost)
	if err != nil {
		t.Fatalf("%v\n%s", err, file.String())
	}
	if diff := cmp.Diff(want, got, byValue, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("its defaults are not those of the configuration: -want +got:\n%s", diff)
	}
	known := maps.Collect(func(yield func(string, bool) bool) {
		for key := range new(Config).keys() {
			section, _, ok := strings.Cut(key, ".")
			if !yield(key, true) || ok && !yield(section, true) {
				return
			}
		}
	})
	for section, key := range map[string]string{"override": "[[override]]\nx = 1\n", "tls_override": "[[tls_override]]\nx = 1\n"} {
		_, err := parse("", key, testHost) // names the keys that there are
		_, expected, _ := strings.Cut(err.Error(), "expected one of ")
		for key := range strings.SplitSeq(expected, ", ") {
			known[section+"."+key] = true
		}
	}
	for _, key := range slices.Sorted(maps.Keys(known)) {
		if !told[key] {
			t.Errorf("%s is missing", key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(told)) {
		if !known[key] {
			t.Errorf("%s is no key", key)
		}
	}
}
