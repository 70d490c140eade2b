package metrics

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The folders that an administrator takes things from.
const (
	prometheusDir = root + "/contrib/prometheus"
	dashboard     = root + "/contrib/grafana/ruapost.json"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// runPromtool runs promtool on a file and returns what it says; status is that of its end.
func runPromtool(t *testing.T, args ...string) (out string, status int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), promtool, args...)
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

// The rules are such, the lines for prometheus.yml are, and each alert fires when it should
// and not else.
func TestPrometheusFiles(t *testing.T) {
	if promtool == "" {
		return
	}
	for _, args := range [][]string{
		{"check", "rules", prometheusDir + "/ruapost.rules.yml"},
		{"check", "config", prometheusDir + "/prometheus.yml"},
		{"test", "rules", prometheusDir + "/ruapost.test.yml"},
	} {
		t.Run(strings.Join(args[:2], " "), func(t *testing.T) {
			t.Parallel()
			if out, status := runPromtool(t, args...); status != 0 {
				t.Error(out)
			}
		})
	}
}

// alert is a rule as it stands in the file.
type alert struct{ name, text, expr string }

var (
	alertStart = regexp.MustCompile(`(?m)^      - alert: `)
	alertExpr  = regexp.MustCompile(`(?m)^        expr: (?:>-\n((?:          .*\n)+)|(.*)\n)`)
)

// alerts returns the rules.
func alerts(t *testing.T) (all []alert) {
	t.Helper()
	for _, text := range alertStart.Split(read(t, prometheusDir+"/ruapost.rules.yml"), -1)[1:] {
		name, _, _ := strings.Cut(text, "\n")
		m := alertExpr.FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("%s has no expression that can be read", name)
		}
		all = append(all, alert{name, text, strings.Join(strings.Fields(m[1]+m[2]), " ")})
	}
	if len(all) < 20 {
		t.Fatalf("%d alerts", len(all))
	}
	return all
}

var (
	severity    = regexp.MustCompile(`(?m)^          severity: (critical|warning|info)$`)
	waits       = regexp.MustCompile(`(?m)^        for: \d+[mhd]$`)
	summary     = regexp.MustCompile(`(?m)^          summary: ['"].+['"]$`)
	next        = regexp.MustCompile(`(?s)description: .*\bRun: (.*)`)
	subcommand  = regexp.MustCompile(`(ruapost-(?:reporter|tlspolicy|milter)) ([a-z]+|-check)`)
	unitOption  = regexp.MustCompile(`(?:-u|systemctl status) (ruapost-[a-z]+)`)
	grepOption  = regexp.MustCompile(`-g (?:'([^']*)'|(\w+))`)
	logMessages = regexp.MustCompile(`(?:slog|log)\.(?:Error|Warn|Info)\(\s*"([^"]*)"`)
)

// Each alert says how bad it is and what to do next: a command that there is, and a word
// of the log that there is.
func TestAlertsSayWhatToDo(t *testing.T) {
	tests := read(t, prometheusDir+"/ruapost.test.yml")
	var log strings.Builder
	for _, m := range logMessages.FindAllStringSubmatch(sources(t), -1) {
		fmt.Fprintln(&log, m[1])
	}
	for _, a := range alerts(t) {
		if !severity.MatchString(a.text) || !waits.MatchString(a.text) || !summary.MatchString(a.text) {
			t.Errorf("%s lacks a severity, a time or a summary", a.name)
		}
		m := next.FindStringSubmatch(a.text)
		if m == nil {
			t.Errorf("%s does not say what to run", a.name)
			continue
		}
		if !strings.Contains(tests, `{alertname="`+a.name+`"`) {
			t.Errorf("%s is not tested", a.name)
		}
		for _, c := range subcommand.FindAllStringSubmatch(m[1], -1) {
			args := []string{c[2], "-help"} // which all commands know
			if c[2][0] == '-' {
				args = args[1:]
			}
			if out, err := exec.CommandContext(t.Context(), filepath.Join(programs.dir, c[1]), args...).CombinedOutput(); err != nil {
				t.Errorf("%s: there is no %q: %v: %s", a.name, c[0], err, out)
			}
		}
		for _, u := range unitOption.FindAllStringSubmatch(m[1], -1) {
			if _, err := os.Stat(filepath.Join(root, "contrib/systemd", u[1]+".service")); err != nil {
				t.Errorf("%s: %v", a.name, err)
			}
		}
		for _, g := range grepOption.FindAllStringSubmatch(m[1], -1) {
			if !regexp.MustCompile("(?i)" + g[1] + g[2]).MatchString(log.String()) {
				t.Errorf("%s: nothing is logged with %q in it", a.name, g[1]+g[2])
			}
		}
	}
}

// panel is what a dashboard shows; rows have none of it.
type panel struct {
	ID         int
	Type       string
	Title      string
	GridPos    struct{ H, W, X, Y int }
	Datasource struct{ UID string }
	Targets    []struct{ RefID, Expr string }
}

func panels(t *testing.T) []panel {
	t.Helper()
	var d struct{ Panels []panel }
	if err := json.Unmarshal([]byte(read(t, dashboard)), &d); err != nil {
		t.Fatal(err)
	}
	return d.Panels
}

// The dashboard is one that Grafana shows as it is meant: no two panels in one place, each
// asking the data source that was chosen.
func TestDashboard(t *testing.T) {
	ids, places := map[int]bool{}, map[[2]int]string{}
	shown := ""
	for _, p := range panels(t) {
		if ids[p.ID] {
			t.Errorf("%s: number %d is another's", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := places[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s lies over %s", p.Title, other)
				}
				places[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("%s: data source %q, %d expressions", p.Title, p.Datasource.UID, len(p.Targets))
		}
		for _, target := range p.Targets {
			shown += target.Expr + "\n"
		}
	}
	for name := range documented(t) {
		if !strings.Contains(shown, name) {
			t.Errorf("%s is not on the dashboard", name)
		}
	}
}

// selector is a metric of ours, of the process, or whether a target is there, with what
// follows in braces.
var selector = regexp.MustCompile(`\b((?:ruapost|process|go)_[a-z_]+|up)\b(\{[^}]*\})?`)

// Every selector of an alert or on the dashboard has series in what is served, every
// expression of the dashboard has a value then, and no alert fires while all is well:
// Prometheus itself evaluates them, over what was scraped.
func TestExpressions(t *testing.T) {
	if promtool == "" {
		return
	}
	something, nothing := map[string]string{}, map[string]string{} // who asks, by expression
	add := func(who, expr string) {
		for _, m := range selector.FindAllString(expr, -1) {
			something[m] = who
		}
	}
	for _, p := range panels(t) {
		for _, target := range p.Targets {
			expr := strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
			add(p.Title, expr)
			something[expr] = p.Title
		}
	}
	for _, a := range alerts(t) {
		add(a.name, a.expr)
		nothing[a.expr] = a.name
	}
	exprs := slices.Concat(slices.Collect(maps.Keys(something)), slices.Collect(maps.Keys(nothing)))
	got := programs.evaluate(t, exprs)
	for expr, who := range something {
		if got[expr] == "" {
			t.Errorf("%s: nothing is served for %s", who, expr)
		}
	}
	for expr, who := range nothing {
		if got[expr] != "" {
			t.Errorf("%s fires: %s is %s", who, expr, got[expr])
		}
	}
}

// failedCase is how promtool says what an expression is.
var failedCase = regexp.MustCompile(`(?m)^\s+expr: ("(?:[^"\\]|\\.)*"), time: [^,]*,(?: err: (.*)|\s+exp: nil\s+got: (.*))$`)

// evaluate has Prometheus evaluate expressions, over what was scraped as if it had been so
// for hours. It returns what each is, "" if that is nothing.
func (w *world) evaluate(t *testing.T, exprs []string) map[string]string {
	t.Helper()
	type series struct {
		Series string `json:"series"`
		Values string `json:"values"`
	}
	type test struct { // nothing is expected of any: it is told then what there is
		Expr     string   `json:"expr"`
		EvalTime string   `json:"eval_time"`
		Samples  []string `json:"exp_samples"`
	}
	var in []series
	for job, s := range w.scrapes {
		target := fmt.Sprintf(`job=%q, instance="host"`, job)
		in = append(in, series{"up{" + target + "}", "1+0x180"})
		for _, sample := range s.samples {
			labels := target
			for name, value := range sample.labels {
				labels += fmt.Sprintf(", %s=%q", name, value)
			}
			value := strconv.FormatFloat(sample.value, 'f', -1, 64)
			in = append(in, series{sample.name + "{" + labels + "}", value + "+0x180"})
		}
	}
	tests := make([]test, len(exprs))
	for i, expr := range exprs {
		tests[i] = test{expr, "2h", []string{}}
	}
	file := filepath.Join(t.TempDir(), "test.json") // which is YAML, too
	data, err := json.Marshal(map[string]any{
		"rule_files": []string{}, "evaluation_interval": "1m",
		"tests": []any{map[string]any{"interval": "1m", "input_series": in, "promql_expr_test": tests}},
	})
	if err == nil {
		err = os.WriteFile(file, data, fs.FileMode(0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	out, _ := runPromtool(t, "test", "rules", file)
	got := map[string]string{}
	for _, m := range failedCase.FindAllStringSubmatch(out, -1) {
		expr, err := strconv.Unquote(m[1])
		if err != nil || m[2] != "" {
			t.Errorf("%s: %s", m[1], m[2])
		}
		got[expr] = m[3]
	}
	if len(got) == 0 {
		t.Fatalf("promtool says nothing that is understood: %s", out)
	}
	return got
}
