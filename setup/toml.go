package setup

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"ruapost/config"
)

// tomlFile is ruapost.toml as it is.
type tomlFile struct {
	path   string
	text   string
	exists bool
	values map[string]any
}

// readToml reads the file, or the default one if path is empty. It may be missing.
func readToml(path string) (*tomlFile, error) {
	f := &tomlFile{path: cmp.Or(path, config.DefaultPath)}
	text, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f.text, f.exists = string(text), err == nil
	return f, f.decode()
}

func (f *tomlFile) decode() error {
	if _, err := toml.Decode(f.text, &f.values); err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	return nil
}

// has says whether the file sets a key, given with its section.
func (f *tomlFile) has(key string) bool {
	section, name, ok := strings.Cut(key, ".")
	if !ok {
		_, ok = f.values[key]
		return ok
	}
	table, _ := f.values[section].(map[string]any)
	_, ok = table[name]
	return ok
}

// quoteToml writes a string for TOML. It must be printable, as all are that come here.
func quoteToml(s string) string { return strconv.Quote(s) }

// header is what a new file begins with.
const header = "# ruapost: made by \"ruapost-reporter setup\". All keys and their defaults are in\n# contrib/ruapost.toml.\n"

// with returns the text of the file with changes: a key stands below the line where it is
// commented out, else at the top of its section. The error says that this file does not
// allow it.
func (f *tomlFile) with(changes []Change) (string, error) {
	text := f.text
	if !f.exists {
		text = header
	}
	for _, c := range changes {
		text = insertKey(text, c.Name, c.New)
	}
	var values map[string]any
	if _, err := toml.Decode(text, &values); err != nil {
		return "", fmt.Errorf("%s is written in a way that keys cannot be added to; add them by hand: %w", f.path, err)
	}
	want := maps.Clone(f.values)
	if want == nil {
		want = map[string]any{}
	}
	for _, c := range changes {
		if !setValue(want, c.Name, c.New) {
			return "", fmt.Errorf("%s has no room for %s; add it by hand", f.path, c.Name)
		}
	}
	if !reflect.DeepEqual(want, values) {
		return "", fmt.Errorf("%s is written in a way that keys cannot be added to; add them by hand", f.path)
	}
	return text, nil
}

// setValue sets a key in a decoded file to a value as it is written.
func setValue(values map[string]any, key, value string) bool {
	var v struct{ Value any }
	if _, err := toml.Decode("value = "+value, &v); err != nil {
		return false
	}
	section, name, ok := strings.Cut(key, ".")
	if !ok {
		values[key] = v.Value
		return true
	}
	table, ok := values[section].(map[string]any)
	if values[section] != nil && !ok {
		return false
	}
	table = maps.Clone(table)
	if table == nil {
		table = map[string]any{}
	}
	table[name] = v.Value
	values[section] = table
	return true
}

var sectionLine = regexp.MustCompile(`^\s*\[\[?\s*([A-Za-z_]+)\s*\]`)

// insertKey returns a text with one more key.
func insertKey(text, key, value string) string {
	section, name, ok := strings.Cut(key, ".")
	if !ok {
		section, name = "", key
	}
	line := keyLine(name, value)
	commented := regexp.MustCompile(`^\s*#\s*` + regexp.QuoteMeta(name) + `\s*=`)
	all := strings.SplitAfter(text, "\n")
	inside, at := section == "", -1 // where it goes, behind so many lines
	if inside {                     // behind the comment that the file begins with
		at = max(slices.IndexFunc(all, func(l string) bool { return !strings.HasPrefix(l, "#") }), 0)
	}
	for i, l := range all {
		if m := sectionLine.FindStringSubmatch(l); m != nil {
			if inside = m[1] == section && !strings.Contains(l, "[["); inside && at < 0 {
				at = i + 1
			}
		} else if inside && commented.MatchString(l) {
			at = i + 1
			break
		}
	}
	if at < 0 {
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		return text + "\n[" + section + "]\n" + line
	}
	before := strings.Join(all[:at], "")
	if before != "" && !strings.HasSuffix(before, "\n") {
		before += "\n"
	}
	return before + line + strings.Join(all[at:], "")
}

// keyLine is the line that sets a key.
func keyLine(name, value string) string { return name + " = " + value + "\n" }

// reconfigure makes the configuration of the plan what ruapost.toml will say. If the file
// cannot be changed the changes wait.
func (plan *Plan) reconfigure() error {
	changes := plan.ready(Toml)
	if len(changes) == 0 {
		return nil
	}
	text, err := plan.toml.with(changes)
	if err != nil {
		(&planner{Plan: plan}).needs("", "%v", err)
		for i := range plan.Changes {
			plan.Changes[i].Waits = plan.Changes[i].Waits || plan.Changes[i].File == Toml
		}
		return nil
	}
	cfg, err := config.Parse(plan.toml.path, text)
	if err != nil {
		return fmt.Errorf("%s would have a mistake with what is proposed: %w", plan.toml.path, err)
	}
	plan.cfg = cfg
	return nil
}
