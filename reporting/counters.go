package reporting

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ruapost"
)

// family is a family of the store's counters. A counter's name is that of the family,
// and, if that has a label, "_" and one of its values.
type family struct {
	name, title string
	label       string
	values      []string
	help        string
}

var (
	kinds    = []string{string(ruapost.KindDMARC), string(ruapost.KindTLS)}
	families = []family{
		{"reports", "made", "kind", kinds, "Reports that were made."},
		{"sent", "sent", "kind", kinds, "Reports that sendmail or an https destination has taken, for each recipient."},
		{"put_off", "put off", "kind", kinds, "Attempts at a recipient that have to be repeated."},
		{"failed", "failed", "kind", kinds, "Reports that were given up, for each recipient."},
		{"refused", "not agreed", "", nil, "Reports that a recipient has not agreed to."},
		{"suppressed", "suppressed", "", nil, "Reports that were not sent to a recipient that is suppressed."},
		{
			"held_back", "held back", "by",
			[]string{"max_reports_per_run", "max_reports_per_day", "max_per_destination_domain"},
			"Reports that a run has left for later ones because of a bound of the configuration.",
		},
		{
			"limit_hits", "limits hit", "limit",
			[]string{"max_recipients", "max_report_size", "lookups"},
			"Reports that not all who want them got (max_recipients), or that were sent in parts (max_report_size); runs " +
				"in which the DNS was so slow that some reports were left for the next one (lookups).",
		},
		{"dropped", "dropped", "reason", dropReasons(), "Windows that no report was made about."},
		{
			"bounces", "bounces", "outcome",
			[]string{bounceFailed, bounceIgnored, bounceUnknown, bounceForged},
			"Messages to the envelope senders of reports.",
		},
	}
)

func dropReasons() (reasons []string) {
	for _, why := range []noReport{
		errNobody, errOptional, errNoRows, errExcluded, errSuccessOnly, errAllExcluded, errSuppressed, errOwnAddresses, errExpired,
	} {
		reasons = append(reasons, strings.TrimPrefix(why.counter, "dropped_"))
	}
	return reasons
}

// labelled is one counter of a family.
type labelled struct {
	value string // of the label, "" without one
	n     uint64
}

func (f *family) counters(counts map[string]uint64) (all []labelled) {
	if f.label == "" {
		return []labelled{{"", counts[f.name]}}
	}
	for _, v := range f.values {
		all = append(all, labelled{v, counts[f.name+"_"+v]})
	}
	return all
}

// writeCounters writes those counters for a terminal that are not zero.
func writeCounters(w io.Writer, counts map[string]uint64) error {
	var t table
	for _, f := range families {
		var values []string
		for _, c := range f.counters(counts) {
			if c.n > 0 {
				values = append(values, strings.TrimLeft(fmt.Sprintf("%s %d", c.value, c.n), " "))
			}
		}
		if len(values) > 0 {
			t.add(f.title, strings.Join(values, ", "))
		}
	}
	if len(t.lines) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(w, "\nSince the store began:"); err != nil {
		return err
	}
	return t.write(w)
}

// Ended is what WriteTextfile tells of a run that is over.
type Ended struct {
	Began, Ended time.Time
	// OK says that it ended without a fault.
	OK bool
	// Counts are the store's counters.
	Counts map[string]uint64
	// Suppressions is how many are in force.
	Suppressions int
	Backlog      *Backlog
	// StoreUsed is how much of each of the store's bounds is used, 1 if it is reached.
	StoreUsed map[string]float64
}

// WriteTextfile writes what there is to know of a run into the file at path, for
// node_exporter's textfile collector. Whoever reads the file meanwhile gets the old one or
// the new one.
func WriteTextfile(path string, e *Ended) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("reporting: textfile: %w", err)
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it is not there any more if all went well
	w := bufio.NewWriter(f)
	writeMetrics(w, e, lastSuccess(path, e))
	// node_exporter is another user; CreateTemp has made the file for ours alone.
	if err := errors.Join(w.Flush(), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// prefix is what the names of all metrics in the textfile begin with.
const prefix = "ruapost_reporter_"

// successMetric is the one that outlives the runs that fail.
const successMetric = prefix + "last_success_timestamp_seconds"

// lastSuccess returns when a run last ended without a fault, Unix time, by the textfile that
// is there; 0 if that is not known.
func lastSuccess(path string, e *Ended) float64 {
	if e.OK {
		return float64(e.Ended.Unix())
	}
	text, _ := os.ReadFile(path) // that of the first run is not there
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, successMetric+" "); ok {
			at, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return at
		}
	}
	return 0
}

// writeMetrics writes the text format of Prometheus. All counters are there from the
// beginning, so that the first step of each is seen.
func writeMetrics(w *bufio.Writer, e *Ended, success float64) {
	for _, f := range families {
		name := prefix + f.name + "_total"
		writeHead(w, name, "counter", f.help)
		for _, c := range f.counters(e.Counts) {
			writeSample(w, name, f.label, c.value, float64(c.n))
		}
	}
	for _, gauge := range []struct {
		name, help string
		value      float64
	}{
		{prefix + "suppressions", "Suppressions that are in force.", float64(e.Suppressions)},
		{prefix + "outbox_bytes", "Size of the outbox: what waits, and what was sent and is kept.", float64(e.Backlog.OutboxBytes)},
		{prefix + "oldest_waiting_timestamp_seconds", "When the oldest report was made that some recipient waits for; 0 if there is none.", unixTime(e.Backlog.Oldest)},
		{prefix + "last_run_timestamp_seconds", "When the last run ended.", unixTime(e.Ended)},
		{prefix + "last_run_duration_seconds", "How long it took, with the pauses between the mails.", e.Ended.Sub(e.Began).Seconds()},
		{prefix + "last_run_success", "Whether the last run ended without a fault.", map[bool]float64{true: 1}[e.OK]},
		{successMetric, "When a run last ended without a fault; 0 if none has.", success},
	} {
		writeHead(w, gauge.name, "gauge", gauge.help)
		writeSample(w, gauge.name, "", "", gauge.value)
	}
	for _, gauge := range []struct {
		name, help string
		values     map[ruapost.Kind]int
	}{
		{prefix + "reports_due", "Reports that could be made and are not yet: the DNS did not say who wants them, or a bound has left them for a later run.", e.Backlog.Due},
		{prefix + "reports_waiting", "Reports that are made and that some recipient waits for.", e.Backlog.Waiting},
	} {
		writeHead(w, gauge.name, "gauge", gauge.help)
		for _, kind := range kinds {
			writeSample(w, gauge.name, "kind", kind, float64(gauge.values[ruapost.Kind(kind)]))
		}
	}
	writeHead(w, prefix+"store_used_ratio", "gauge", "How much of each of the store's bounds is used; 1: it is reached.")
	for _, limit := range slices.Sorted(maps.Keys(e.StoreUsed)) {
		writeSample(w, prefix+"store_used_ratio", "limit", limit, e.StoreUsed[limit])
	}
}

func unixTime(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}

func writeHead(w *bufio.Writer, name, kind, help string) {
	fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// writeSample writes one value; label is empty if there is none.
func writeSample(w *bufio.Writer, name, label, of string, value float64) {
	if label != "" {
		name += fmt.Sprintf("{%s=%q}", label, of)
	}
	fmt.Fprintf(w, "%s %s\n", name, strconv.FormatFloat(value, 'f', -1, 64))
}
