package reporting

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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

// WriteTextfile writes the store's counters, how many suppressions are in force, when the
// last run ended and whether it was without fault into the file at path, for
// node_exporter's textfile collector. Whoever reads the file meanwhile gets the old one or
// the new one.
func WriteTextfile(path string, counts map[string]uint64, suppressed int, ended time.Time, ok bool) (err error) {
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
	writeMetrics(w, counts, suppressed, ended, ok)
	// node_exporter is another user; CreateTemp has made the file for ours alone.
	if err := errors.Join(w.Flush(), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// writeMetrics writes the text format of Prometheus. All counters are there from the
// beginning, so that the first step of each is seen.
func writeMetrics(w *bufio.Writer, counts map[string]uint64, suppressed int, ended time.Time, ok bool) {
	const prefix = "ruapost_reporter_"
	for _, f := range families {
		name := prefix + f.name + "_total"
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s counter\n", name, f.help, name)
		for _, c := range f.counters(counts) {
			labels := ""
			if f.label != "" {
				labels = fmt.Sprintf("{%s=%q}", f.label, c.value)
			}
			fmt.Fprintf(w, "%s%s %d\n", name, labels, c.n)
		}
	}
	success := 0
	if ok {
		success = 1
	}
	for _, gauge := range []struct {
		name, help string
		value      int64
	}{
		{prefix + "suppressions", "Suppressions that are in force.", int64(suppressed)},
		{prefix + "last_run_timestamp_seconds", "When the last run ended.", ended.Unix()},
		{prefix + "last_run_success", "Whether the last run ended without a fault.", int64(success)},
	} {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s gauge\n%s %d\n", gauge.name, gauge.help, gauge.name, gauge.name, gauge.value)
	}
}
