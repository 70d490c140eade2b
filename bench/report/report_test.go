package main

import (
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"ruapost"
	"ruapost/bboltstore"
)

// newBench returns a bench with the programs.
func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{scratch: t.TempDir(), out: t.Output()}
	if err := b.prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRun: all reports come, and it shows what they cost.
func TestRun(t *testing.T) {
	b := newBench(t)
	for _, l := range []load{{reports: 1, rows: 1}, {reports: 20, rows: 5}, {reports: 1, rows: 3000}} {
		store, err := b.filled(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		o, err := b.run(t.Context(), l, store)
		if err != nil {
			t.Fatal(err)
		}
		if l.rows >= 3000 && o.used.CPU == 0 || o.elapsed == 0 || o.used.Peak < 1<<20 || o.used.Anon < 1<<20 || o.used.Anon > o.used.Peak {
			t.Errorf("%+v", o)
		}
		if o.got.number < l.reports || o.got.largest < 1000 {
			t.Errorf("%d mails, the largest of %d octets", o.got.number, o.got.largest)
		}
	}
}

// TestImport: what is imported is what would have been recorded.
func TestImport(t *testing.T) {
	l := load{reports: 1, rows: 2500}
	at := time.Now().Add(-36 * time.Hour)
	groups := map[string][]ruapost.Group{}
	for name, fill := range map[string]func(*bboltstore.Store) error{
		"recorded": func(s *bboltstore.Store) error { return l.record(t.Context(), s, at) },
		"imported": func(s *bboltstore.Store) error {
			return l.importRows(t.Context(), s, filepath.Join(t.TempDir(), "template"), at)
		},
	} {
		s, err := bboltstore.Open(filepath.Join(t.TempDir(), "db"))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := fill(s); err != nil {
			t.Fatal(err)
		}
		if faults, err := s.Check(t.Context()); err != nil || len(faults) > 0 {
			t.Errorf("%s: %q, %v", name, faults, err)
		}
		if groups[name], err = s.Groups(t.Context(), time.Now()); err != nil || len(groups[name]) != 1 {
			t.Fatalf("%s: %+v, %v", name, groups[name], err)
		}
	}
	if !reflect.DeepEqual(groups["recorded"], groups["imported"]) {
		t.Errorf("recorded %+v\nimported %+v", groups["recorded"], groups["imported"])
	}
}

// TestMailsSeeFaults: a check that finds nothing has to be able to.
func TestMailsSeeFaults(t *testing.T) {
	l := load{reports: 2, rows: 2} // of three messages
	for _, c := range []struct {
		name  string
		mails []string
		wrong bool
	}{
		{"as it should be", []string{mailOf(0, "a", 1, 2), mailOf(1, "b", 1, 2)}, false},
		{"in parts", []string{mailOf(0, "a", 1), mailOf(0, "c", 2), mailOf(1, "b", 1, 2)}, false},
		{"one is missing", []string{mailOf(0, "a", 1, 2)}, true},
		{"one came twice", []string{mailOf(0, "a", 1, 2), mailOf(1, "b", 1, 2), mailOf(1, "b", 1, 2)}, true},
		{"two of the same", []string{mailOf(0, "a", 1, 2), mailOf(1, "b", 1, 2), mailOf(1, "c", 1, 2)}, true},
		{"a row is missing", []string{mailOf(0, "a", 1), mailOf(1, "b", 1, 2)}, true},
		{"rows were added up", []string{mailOf(0, "a", 3), mailOf(1, "b", 1, 2)}, true},
		{"somebody else's", []string{mailOf(0, "a", 1, 2), strings.Replace(mailOf(1, "b", 1, 2), "dmarc@", "other@", 1)}, true},
		{"not signed", []string{mailOf(0, "a", 1, 2), strings.Replace(mailOf(1, "b", 1, 2), "DKIM", "No", 1)}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for i, text := range c.mails {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := readMails(dir)
			if err == nil {
				err = (&outcome{load: l, got: got}).wrong()
			}
			if (err != nil) != c.wrong {
				t.Errorf("error %v, want one: %v", err, c.wrong)
			}
		})
	}
}

// mailOf returns the report about a domain with these counts, as sendmail leaves it.
func mailOf(n int, id string, counts ...int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nDKIM-Signature: v=1\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\ntext\n"+
		"--b\nContent-Transfer-Encoding: base64\n\n", recipient(n))
	encoded := base64.NewEncoder(base64.StdEncoding, &b)
	zw := gzip.NewWriter(encoded)
	fmt.Fprintf(zw, "<report_id>%s</report_id>\n<domain>%s</domain>\n", id, domain(n))
	for _, n := range counts {
		fmt.Fprintf(zw, "  <count>%d</count>\n<domain>other.example</domain>\n", n)
	}
	zw.Close()
	encoded.Close()
	b.WriteString("\n--b--\n")
	return b.String()
}

func TestSuite(t *testing.T) {
	b := newBench(t)
	var out strings.Builder
	b.out = &out
	cases := []suiteCase{{reports: 2, rows: 2, seconds: 60, peak: 1000}, {reports: 1, rows: 2, seconds: 1e-9, times: 1e9}}
	if err := b.suite(t.Context(), cases, 3); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); strings.Count(s, "| yes |") != 3 || strings.Count(s, "| **no** |") != 1 || !strings.Contains(s, "| 2 | 2 | 2 |") {
		t.Errorf("output:\n%s", s)
	}
}

func TestCommand(t *testing.T) {
	dir := t.TempDir()
	var out strings.Builder
	args := "-reports 2 -rows 3 -dir " + dir + " -reporter " + newBench(t).reporter
	if err := run(t.Context(), strings.Fields(args), &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "anonymous MB") {
		t.Errorf("output:\n%s", &out)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for _, wrong := range []string{"-reports 0", "-rows 0", "-reports 1000000", "-reports 2 -rows 50001", "-suite -reps 2", "10"} {
		if err := run(t.Context(), strings.Fields(wrong), &out); err == nil {
			t.Errorf("%s: no error", wrong)
		}
	}
}
