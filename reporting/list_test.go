package reporting

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"ruapost"
)

// fixed is a store with just what is listed.
type fixed struct {
	Store
	groups  []ruapost.Group
	reports []ruapost.Report
	rows    int // that were read
}

func (f *fixed) Groups(context.Context, time.Time) ([]ruapost.Group, error) { return f.groups, nil }

func (f *fixed) Counts(context.Context) (map[string]uint64, error) { return nil, nil }

func (f *fixed) Reports(context.Context) iter.Seq2[ruapost.Report, error] {
	return func(yield func(ruapost.Report, error) bool) {
		for _, rep := range f.reports {
			if !yield(rep, nil) {
				return
			}
		}
	}
}

func (f *fixed) Rows(_ context.Context, id ruapost.GroupID) iter.Seq2[ruapost.Row, error] {
	return func(yield func(ruapost.Row, error) bool) {
		for _, g := range f.groups {
			for range g.Rows {
				if g.ID != id {
					break
				}
				f.rows++
				if !yield(ruapost.Row{Count: 1, Data: json.RawMessage(`{"ip":"192.0.2.1","disposition":"none"}`)}, nil) {
					return
				}
			}
		}
	}
}

func (f *fixed) reporter(t *testing.T) *Reporter {
	return &Reporter{Store: f, Outbox: t.TempDir(), Keep: keep, Now: func() time.Time { return monday.Add(30 * time.Hour) }}
}

// evaluated returns a group of so many messages.
func evaluated(id ruapost.GroupID, domain string, window ruapost.Window, n, rows int64) ruapost.Group {
	return ruapost.Group{
		ID: id, Kind: ruapost.KindDMARC, Domain: domain, Window: window, DMARC: &ruapost.DMARCPolicy{Domain: domain},
		Total: n, Listed: n, Required: n, Rows: rows,
	}
}

// about returns a report with recipients in these states.
func about(id, domain string, state ruapost.ReportState, recipients ...ruapost.Recipient) ruapost.Report {
	day := ruapost.Day(monday)
	for i := range recipients {
		recipients[i].Address = fmt.Sprintf("r%d@%s", i, domain)
	}
	return ruapost.Report{
		ID: id, Kind: ruapost.KindDMARC, Domain: domain, Window: day, State: state,
		Groups: []ruapost.Group{evaluated(1, domain, day, 5, 1)}, Recipients: recipients, Finished: monday.Add(25 * time.Hour),
	}
}

func printed(t *testing.T, write func(w io.Writer) error) string {
	t.Helper()
	var b strings.Builder
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (f *fixed) list(t *testing.T, v View) string {
	t.Helper()
	return printed(t, func(w io.Writer) error { return f.reporter(t).List(t.Context(), w, v) })
}

func TestListStates(t *testing.T) {
	last := monday.Add(26 * time.Hour)
	sent := ruapost.Recipient{State: ruapost.RecipientSent, Last: last, Attempts: 1}
	failed := ruapost.Recipient{State: ruapost.RecipientFailed, Error: "no such\x1b[31m user", Last: last, Attempts: 1}
	suppressed := ruapost.Recipient{State: ruapost.RecipientSuppressed, Error: "suppressed"}
	waiting := ruapost.Recipient{State: ruapost.RecipientWaiting, NotBefore: monday.Add(31 * time.Hour), Error: "busy", Attempts: 1}
	refused := ruapost.Recipient{State: ruapost.RecipientRefused, Error: errRefused.Error(), Last: last, Attempts: 1}
	old := about("0a", "old.example", ruapost.ReportDone, sent)
	old.Finished = monday.Add(5 * time.Hour)
	part := about("0b", "part.example", ruapost.ReportDone, sent)
	part.Part, part.Parts = 2, 3
	part.Window.End = part.Window.Start.Add(6 * time.Hour)
	success := evaluated(8, "success.example", ruapost.Day(monday), 3, 0)
	success.Kind, success.TLS = ruapost.KindTLS, &ruapost.TLSPolicy{}
	optional := evaluated(7, "optional.example", ruapost.Day(monday), 3, 1)
	optional.Required = 0
	f := &fixed{
		groups: []ruapost.Group{
			evaluated(1, "due.example", ruapost.Day(monday), 2, 2), evaluated(6, "now.example", ruapost.Day(last), 2, 2), optional, success,
		},
		reports: []ruapost.Report{
			old, part,
			about("01", "sent.example", ruapost.ReportDone, sent, suppressed),
			about("02", "failed.example", ruapost.ReportDone, sent, failed),
			about("03", "later.example", ruapost.ReportComposed, sent, waiting),
			about("04", "turn.example", ruapost.ReportComposed, ruapost.Recipient{State: ruapost.RecipientWaiting}),
			about("05", "sealed.example", ruapost.ReportSealed, ruapost.Recipient{State: ruapost.RecipientWaiting}),
			about("06", "bounced.example", ruapost.ReportDone, ruapost.Recipient{State: ruapost.RecipientBounced, Error: "5.1.1"}),
			about("07", "suppressed.example", ruapost.ReportDone, suppressed),
			about("08", "nobody.example", ruapost.ReportDone),
			about("09", "refused.example", ruapost.ReportDone, refused),
			about("10", "refused1.example", ruapost.ReportDone, sent, refused),
		},
	}
	r := f.reporter(t)
	r.TLSFailuresOnly = true
	got := printed(t, func(w io.Writer) error { return r.List(t.Context(), w, View{}) })
	want := []string{
		"KIND DOMAIN DAY (UTC) COUNT STATE RESULTS REPORT-ID",
		"dmarc bounced.example 2026-11-23 5 bounced - 06", "r0@bounced.example: bounced: 5.1.1",
		"dmarc due.example 2026-11-23 2 due failed 2 of 2: none 2 -",
		"dmarc failed.example 2026-11-23 5 failed: 1 of 2 recipients - 02", "r1@failed.example: failed: no such [31m user",
		"dmarc later.example 2026-11-23 5 waiting: until 2026-11-24 07:00 - 03", "r1@later.example: waiting until 2026-11-24 07:00: busy",
		"dmarc nobody.example 2026-11-23 5 failed: nobody is left to get it - 08",
		"dmarc now.example 2026-11-24 2 recording failed 2 of 2: none 2 -",
		"dmarc optional.example 2026-11-23 3 no report: optional only failed 1 of 1: none 1 -",
		"dmarc part.example 2026-11-23 00:00-06:00 5 sent: 2026-11-24 02:00, part 2 of 3 - 0b",
		"dmarc refused.example 2026-11-23 5 not agreed - 09", "r0@refused.example: not agreed",
		"dmarc refused1.example 2026-11-23 5 sent: 2026-11-24 02:00 - 10", "r1@refused1.example: not agreed",
		"dmarc sealed.example 2026-11-23 5 sealed: the next run composes it failed 2 of 2: none 2 05",
		"dmarc sent.example 2026-11-23 5 sent: 2026-11-24 02:00 - 01", "r1@sent.example: suppressed",
		"tls success.example 2026-11-23 3 no report: no failures, and tls_success_only is false failed 0 of 3 -",
		"dmarc suppressed.example 2026-11-23 5 suppressed - 07", "r0@suppressed.example: suppressed",
		"dmarc turn.example 2026-11-23 5 waiting: for its turn - 04",
	}
	if d := cmp.Diff(want, squeeze(got)); d != "" {
		t.Error(d)
	}
}

// squeeze returns lines with one blank where there are several.
func squeeze(s string) []string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i, line := range lines {
		lines[i] = strings.Join(strings.Fields(line), " ")
	}
	return lines
}

// Past the limit those are left out that nobody needs to look at.
func TestListLimit(t *testing.T) {
	f := &fixed{reports: []ruapost.Report{about("01", "z.example", ruapost.ReportDone, ruapost.Recipient{State: ruapost.RecipientFailed})}}
	for i := range 10 {
		f.groups = append(f.groups, evaluated(ruapost.GroupID(10+i), fmt.Sprintf("d%d.example", i), ruapost.Day(monday.Add(24*time.Hour)), int64(i+1), 1))
	}
	got := squeeze(f.list(t, View{Limit: 3}))
	domains := regexp.MustCompile(`[a-z0-9]+\.example`).FindAllString(strings.Join(got, "\n"), -1)
	if d := cmp.Diff([]string{"d8.example", "d9.example", "z.example"}, domains); d != "" {
		t.Error(d)
	}
	if last := got[len(got)-1]; last != "and 8 more; all of them: list -n 0" {
		t.Errorf("ends with %q", last)
	}
	if f.rows != 2 {
		t.Errorf("%d rows were read, want those of the two groups that are listed", f.rows)
	}
}

// A list must not read millions of rows.
func TestListReadsBoundedRows(t *testing.T) {
	f := &fixed{}
	for i := range 5 {
		f.groups = append(f.groups, evaluated(ruapost.GroupID(i+1), fmt.Sprintf("d%d.example", i), ruapost.Day(monday), 50_000, 50_000))
	}
	got := squeeze(f.list(t, View{}))
	if f.rows != maxListedRows || !strings.Contains(got[5], " 50000 due - -") {
		t.Errorf("read %d rows, last line %q", f.rows, got[5])
	}
}

func TestHistoryLimit(t *testing.T) {
	f := &fixed{}
	for i := range 12 {
		f.reports = append(f.reports, about(fmt.Sprintf("%02d", i), "a.example", ruapost.ReportDone, ruapost.Recipient{State: ruapost.RecipientSent, Last: monday}))
	}
	f.reports = append(f.reports, about("12", "a.example", ruapost.ReportComposed, ruapost.Recipient{State: ruapost.RecipientWaiting}))
	got := squeeze(printed(t, func(w io.Writer) error { return f.reporter(t).History(t.Context(), w, View{Limit: 2}) }))
	if len(got) != 4 || got[0] != "10 older ones are left out; all of them: history -n 0" || !strings.HasSuffix(got[2], " 10") || !strings.HasSuffix(got[3], " 11") {
		t.Errorf("%q", got)
	}
}

// What is shown as the time is what the lines are sorted by, not when the report was made.
func TestHistoryOrder(t *testing.T) {
	tried := func(hours time.Duration) ruapost.Recipient {
		return ruapost.Recipient{State: ruapost.RecipientSent, Last: monday.Add(hours * time.Hour)}
	}
	f := &fixed{reports: []ruapost.Report{
		about("6b07061b1bbd1a2810525540287dee94", "z.example", ruapost.ReportDone, tried(9), tried(3)),
		about("02", "b.example", ruapost.ReportDone, tried(2)),
		about("03", "a.example", ruapost.ReportDone, tried(2)),
		about("04", "c.example", ruapost.ReportDone, tried(1)),
	}}
	history := func(v View) (recipients []string) {
		text := printed(t, func(w io.Writer) error { return f.reporter(t).History(t.Context(), w, v) })
		return regexp.MustCompile(`[a-z0-9]+@\S+ +\S+`).FindAllString(text, -1)
	}
	for _, c := range []struct {
		v    View
		want []string
	}{
		{View{}, []string{"r0@c.example  04", "r0@a.example  03", "r0@b.example  02", "r1@z.example  6b07061b1bbd", "r0@z.example  6b07061b1bbd"}},
		{View{Limit: 1}, []string{"r1@z.example  6b07061b1bbd", "r0@z.example  6b07061b1bbd"}},
		{View{ReportID: "6b07061b"}, []string{"r1@z.example  6b07061b1bbd", "r0@z.example  6b07061b1bbd"}},
	} {
		if d := cmp.Diff(c.want, history(c.v)); d != "" {
			t.Errorf("%+v: %s", c.v, d)
		}
	}
}

func TestFindReport(t *testing.T) {
	const a, b = "6b07061b1bbd1a2810525540287dee94", "6b07061be545443e8d09aafd12bcc606"
	f := &fixed{reports: []ruapost.Report{about(a, "a.example", ruapost.ReportDone), about(b, "b.example", ruapost.ReportDone)}}
	r := f.reporter(t)
	if rep, err := r.FindReport(t.Context(), b[:9]); err != nil || rep.ID != b {
		t.Errorf("%v, %v", rep, err)
	}
	if _, err := r.FindReport(t.Context(), a[:8]); err == nil || errors.Is(err, ruapost.ErrNoReport) || !strings.Contains(err.Error(), "2 reports begin with") {
		t.Errorf("a beginning that two have: %v", err)
	}
	for _, id := range []string{"6b0706f", "6b070", "xyzxyz", a + "0", "", "6B07061b1"} {
		if _, err := r.FindReport(t.Context(), id); !errors.Is(err, ruapost.ErrNoReport) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// A sealed report has no content on disk, or only some of it; its rows are there.
func TestShowSealed(t *testing.T) {
	f := &fixed{groups: []ruapost.Group{evaluated(1, "a.example", ruapost.Day(monday), 5, 2)}}
	f.reports = []ruapost.Report{about("01", "a.example", ruapost.ReportSealed, ruapost.Recipient{State: ruapost.RecipientWaiting, Legacy: true})}
	r := f.reporter(t)
	r.OrgName, r.From = "Reporter", "reports@reporter.example"
	half := r.contentFile(&f.reports[0], true)
	if err := errors.Join(os.Mkdir(filepath.Dir(half), 0o700), os.WriteFile(half, []byte("half"), 0o600)); err != nil {
		t.Fatal(err)
	}
	got := printed(t, func(w io.Writer) error { return r.Show(t.Context(), w, "a.example", Contents{}) })
	if strings.Count(got, "<record>") != 2 || strings.Contains(got, "urn:ietf:params:xml:ns:dmarc-2.0") {
		t.Errorf("%s", got)
	}
}

func TestParsePattern(t *testing.T) {
	for in, want := range map[string]string{
		"Bob@Example.COM": "bob@example.com", "Example.COM.": "example.com", "*.Example.com": "*.example.com",
		"*": "", "*.": "", "a@": "", "@example.com": "", "*.a@example.com": "*.a@example.com", "a.*.example": "", "": "", "a b": "", "a\x1b.example": "",
	} {
		got, err := ParsePattern(in)
		if (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

// Every counter that is counted anywhere has its metric, and the file is one that
// Prometheus reads.
func TestTextfile(t *testing.T) {
	counts := map[string]uint64{}
	for name := range countedNames(t) {
		counts[name] = uint64(100 + len(counts))
	}
	path := filepath.Join(t.TempDir(), "ruapost.prom")
	ended := Ended{
		Began: time.Unix(1795391990, 0), Ended: time.Unix(1795392000, 0), OK: true, Counts: counts, Suppressions: 7,
		Backlog: &Backlog{
			Due: map[ruapost.Kind]int{ruapost.KindTLS: 3}, Waiting: map[ruapost.Kind]int{ruapost.KindDMARC: 2},
			Oldest: time.Unix(1795300000, 0), OutboxBytes: 5000,
		},
		StoreUsed: map[string]float64{"rows": 0.25},
	}
	failed := ended
	failed.Ended, failed.OK = ended.Ended.Add(time.Hour), false
	for _, e := range []*Ended{&failed, &ended, &failed} { // the next replaces the one before
		if err := WriteTextfile(path, e); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("%v, %v", files, err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	metrics, err := parser.TextToMetricFamilies(file)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for name, family := range metrics {
		for _, m := range family.Metric {
			parts := []string{strings.TrimSuffix(strings.TrimPrefix(name, "ruapost_reporter_"), "_total")}
			for _, l := range m.Label {
				parts = append(parts, l.GetValue())
			}
			if m.Counter != nil {
				got[strings.Join(parts, "_")] = uint64(m.Counter.GetValue())
			}
		}
	}
	if d := cmp.Diff(counts, got); d != "" {
		t.Error(d)
	}
	for name, want := range map[string][]float64{ // by label, if there is one
		"suppressions": {7}, "outbox_bytes": {5000}, "oldest_waiting_timestamp_seconds": {1795300000},
		"last_run_success": {0}, "last_run_timestamp_seconds": {1795395600}, "last_run_duration_seconds": {3610},
		"last_success_timestamp_seconds": {1795392000},
		"reports_due":                    {0, 3}, "reports_waiting": {2, 0}, "store_used_ratio": {0.25},
	} {
		var got []float64
		for _, m := range metrics["ruapost_reporter_"+name].GetMetric() {
			got = append(got, m.GetGauge().GetValue())
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if err := WriteTextfile(filepath.Join(t.TempDir(), "none", "x.prom"), &ended); err == nil {
		t.Error("no error although the folder is missing")
	}
}

// countedNames returns the names of counters, as the source has them.
func countedNames(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	counting := regexp.MustCompile(`(?:\.count\(|noReport\{)"([a-z_]+)"`)
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range counting.FindAllStringSubmatch(string(source), -1) {
			if !strings.HasSuffix(file, "_test.go") {
				names[found[1]] = true
			}
		}
	}
	for prefix, values := range map[string][]string{
		"reports_": kinds, "sent_": kinds, "failed_": kinds, "put_off_": kinds,
		"held_back_": {"max_reports_per_run", "max_reports_per_day", "max_per_destination_domain"},
		"bounces_":   {bounceForged, bounceUnknown, bounceFailed, bounceIgnored},
	} {
		delete(names, prefix)
		for _, v := range values {
			names[prefix+v] = true
		}
	}
	for name := range names {
		if strings.HasSuffix(name, "_") {
			t.Errorf("counters that begin with %q: the test must know their names", name)
		}
	}
	return names
}

// Values come from the network: no line end, no escape sequence gets to the terminal.
func TestTableCleansValues(t *testing.T) {
	var tab table
	tab.add("a\nb", "\x1b]0;x\x07")
	tab.note("c\r\nd\u202e")
	tab.add("aaaaaa", "b")
	got := printed(t, tab.write)
	if strings.Count(got, "\n") != 3 || strings.ContainsFunc(got, func(c rune) bool {
		return c != '\n' && (c < ' ' || slices.Contains([]rune{0x7f, 0x202e}, c))
	}) {
		t.Errorf("%q", got)
	}
}
