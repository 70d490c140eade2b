// Package metrics compares what the programs serve for Prometheus with what docs/metrics.md
// says of it, and with what the alert rules and the dashboard in contrib ask for.
//
// The programs really run, on sockets of their own. What needs Prometheus' own tool,
// promtool, which setup.sh of the folder above unpacks, is left out where there is none;
// with RUAPOST_E2E=require its absence is a fault.
package metrics

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ruapost/internal/testhost"
)

const root = "../.."

var (
	promtool string // empty if there is none
	programs *world
)

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	promtool = filepath.Join(testhost.CacheDir(), "promtool")
	if _, err := os.Stat(promtool); err != nil {
		if err := testhost.LeaveOut("e2e/metrics: tests with promtool", fmt.Errorf("%w; run e2e/setup.sh", err)); err != nil {
			fmt.Fprintln(os.Stderr, "e2e/metrics:", err)
			return 1
		}
		promtool = ""
	}
	var err error
	if programs, err = newWorld(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "e2e/metrics:", err)
		return 1
	}
	defer programs.close()
	return m.Run()
}

// served returns all metrics of ours by name, with those of all targets put together.
func (w *world) served() map[string]*family {
	all := map[string]*family{}
	for _, s := range w.scrapes {
		for name, f := range s.families {
			if !strings.HasPrefix(name, "ruapost_") {
				continue
			}
			if all[name] == nil {
				all[name] = &family{f.kind, map[string]map[string]bool{}}
			}
			for label, values := range f.labels {
				if all[name].labels[label] == nil {
					all[name].labels[label] = map[string]bool{}
				}
				maps.Copy(all[name].labels[label], values)
			}
		}
	}
	return all
}

// rows returns the cells of all rows of tables in a Markdown file whose head begins with a
// name.
func rows(t *testing.T, file, first string) (all [][]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case !strings.HasPrefix(line, "|"):
			inside = false
		case cells[0] == first:
			inside = true
		case inside && cells[0] != "---":
			all = append(all, cells)
		}
	}
	if len(all) == 0 {
		t.Fatalf("%s has no table that begins with %s", file, first)
	}
	return all
}

// documented returns the metrics that docs/metrics.md describes. A label that may have any
// value has none here.
func documented(t *testing.T) map[string]*family {
	t.Helper()
	all := map[string]*family{}
	for _, cells := range rows(t, "docs/metrics.md", "Name") {
		name := strings.Trim(cells[0], "`")
		f := &family{cells[1], map[string]map[string]bool{}}
		if all[name] != nil || len(cells) != 5 || cells[3] == "" {
			t.Errorf("%s: described twice, or not with five cells: %q", name, cells)
		}
		all[name] = f
		for label := range strings.SplitSeq(cells[2], ";") {
			key, values, ok := strings.Cut(label, ":")
			if !ok {
				continue
			}
			set := map[string]bool{}
			for v := range strings.SplitSeq(values, ",") {
				if v = strings.TrimSpace(v); v != "any" {
					set[v] = true
				}
			}
			f.labels[strings.Trim(strings.TrimSpace(key), "`")] = set
		}
	}
	return all
}

// Nothing is served that is not described, and nothing described that is not served: name,
// type, labels and their values.
func TestDescribed(t *testing.T) {
	want, got := documented(t), programs.served()
	for name, f := range got {
		for label := range f.labels {
			if d := want[name]; d != nil && d.labels[label] != nil && len(d.labels[label]) == 0 {
				f.labels[label] = map[string]bool{}
			}
		}
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(family{})); d != "" {
		t.Error("docs/metrics.md against what is served:", d)
	}
}

// What was done before the scrape shows in it: the numbers are live ones.
func TestCounted(t *testing.T) {
	for _, want := range []string{
		`ruapost_milter_messages_total{result="pass"} 1`,
		`ruapost_milter_dispositions_total{disposition="pass"} 1`,
		"ruapost_milter_judge_duration_seconds_count 1",
		`ruapost_policy_queries_total{answer="none"} 1`,
		`ruapost_tlsrpt_datagrams_total{result="bad"} 1`,
		`ruapost_reporter_sent_total{kind="dmarc"} 1`,
		"ruapost_reporter_last_run_success 1",
	} {
		found := false
		for _, s := range programs.scrapes {
			found = found || bytes.Contains(s.text, []byte("\n"+want+"\n"))
		}
		if !found {
			t.Errorf("no %q", want)
		}
	}
}

var (
	quoted   = regexp.MustCompile("`([^`]+)`")
	constant = regexp.MustCompile(`^[a-zA-Z]+$`)
	words    = regexp.MustCompile(`\w+`)
	key      = regexp.MustCompile(`^[a-z]+\.[a-z_]+$`)
)

// Every bound is one of the source or of the configuration, and is counted by a metric that
// there is.
func TestLimits(t *testing.T) {
	declared := map[string]bool{}
	for line := range strings.Lines(sources(t)) {
		if names, _, ok := strings.Cut(line, " = "); ok {
			for _, name := range words.FindAllString(names, -1) {
				declared[name] = true
			}
		}
	}
	toml, err := os.ReadFile(filepath.Join(root, "contrib/ruapost.toml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, cells := range rows(t, "docs/metrics.md", "Limit") {
		if len(cells) != 4 {
			t.Errorf("%q has not four cells", cells)
			continue
		}
		for _, m := range quoted.FindAllStringSubmatch(cells[0], -1) {
			name := m[1]
			switch {
			case key.MatchString(name) && !strings.Contains(string(toml), "#"+name[strings.Index(name, ".")+1:]+" ="):
				t.Errorf("there is no key %s", name)
			case constant.MatchString(name) && !declared[name]:
				t.Errorf("there is no constant %s", name)
			}
		}
		for _, m := range quoted.FindAllStringSubmatch(cells[3], -1) {
			if !programs.has(m[1]) {
				t.Errorf("%s: nothing serves %s", cells[0], m[1])
			}
		}
	}
}

// Every bound that another page names is counted where it says so.
func TestOtherPages(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(root, "docs/*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range quoted.FindAllStringSubmatch(string(text), -1) {
			selector := strings.ReplaceAll(m[1], "=...", `!=""`)
			if strings.HasPrefix(selector, "ruapost_") && !programs.has(selector) && !strings.HasPrefix(selector, "ruapost_bounces") {
				t.Errorf("%s: nothing serves %s", filepath.Base(page), m[1])
			}
		}
	}
	for _, cells := range rows(t, "docs/store.md", "Name") {
		parts := quoted.FindAllStringSubmatch(cells[2], -1)
		if len(parts) > 0 && !programs.has(`ruapost_store_dropped_total{limit="`+parts[len(parts)-1][1]+`"}`) {
			t.Errorf("docs/store.md: nothing counts %s", cells[0])
		}
	}
}

// sources are the programs' source files.
func sources(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		text.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return text.String()
}

var selectorParts = regexp.MustCompile(`^([a-z_]+)(?:\{(.*)\})?$`)

// has tells whether a name, or a name with one label, is that of a series.
func (w *world) has(selector string) bool {
	m := selectorParts.FindStringSubmatch(selector)
	if m == nil {
		return false
	}
	for _, s := range w.scrapes {
		if m[2] == "" && s.families[m[1]] != nil || slices.ContainsFunc(s.samples, func(s sample) bool { return s.matches(m[1], m[2]) }) {
			return true
		}
	}
	return false
}

var matcher = regexp.MustCompile(`([a-z_]+)(=~|!~|!=|=)"([^"]*)"`)

// matches tells whether a series is one that a selector selects.
func (s *sample) matches(name, matchers string) bool {
	if s.name != name {
		return false
	}
	for _, m := range matcher.FindAllStringSubmatch(matchers, -1) {
		value, equal := s.labels[m[1]], false
		if strings.HasSuffix(m[2], "~") {
			equal = regexp.MustCompile("^(?:" + m[3] + ")$").MatchString(value)
		} else {
			equal = value == m[3]
		}
		if equal == strings.HasPrefix(m[2], "!") {
			return false
		}
	}
	return true
}

// Names, types and units are as Prometheus wants them (https://prometheus.io/docs/practices/naming/).
func TestNames(t *testing.T) {
	if promtool == "" {
		return
	}
	for job, s := range programs.scrapes {
		cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
		cmd.Stdin = bytes.NewReader(s.text)
		out, err := cmd.CombinedOutput()
		for line := range strings.Lines(string(out)) {
			if strings.HasPrefix(line, "ruapost_") {
				t.Errorf("%s: %s", job, line)
			}
		}
		if err != nil && cmd.ProcessState.ExitCode() != 3 { // 3: it found something, be it about go_
			t.Errorf("%s: %v: %s", job, err, out)
		}
	}
}
