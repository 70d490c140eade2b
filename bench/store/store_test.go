package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ruapost"
	"ruapost/bboltstore"
)

// The test program is its own writer, reporter and compactor.
func TestMain(m *testing.M) {
	if encoded := os.Getenv(jobVariable); encoded != "" {
		os.Exit(runJob(encoded))
	}
	os.Exit(m.Run())
}

// BenchmarkRecordEvaluation measures record calls of one process, from call to disk:
// with rows that are all the same, and with rows that are all new.
func BenchmarkRecordEvaluation(b *testing.B) {
	for _, rows := range []string{"equal", "distinct"} {
		for _, callers := range []int{1, 10, 100, 1000} {
			b.Run(fmt.Sprintf("rows=%s/callers=%d", rows, callers), func(b *testing.B) {
				s, err := bboltstore.Open(filepath.Join(b.TempDir(), "db"))
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				var next atomic.Int64
				var all sync.WaitGroup
				b.ReportAllocs()
				b.ResetTimer()
				for range callers {
					all.Go(func() {
						e := evaluation(today, "example.com", 0)
						for {
							n := int(next.Add(1)) - 1
							if n >= b.N {
								return
							}
							if rows == "distinct" {
								distinguish(e, n)
							}
							if err := s.RecordEvaluation(context.Background(), e); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				all.Wait()
			})
		}
	}
}

// distinguish makes e the n-th of different rows, in groups that do not get too large.
func distinguish(e *ruapost.Evaluation, n int) {
	e.Result.SourceIP = address(n)
	e.Policy.Domain = "d" + strconv.Itoa(n/preloadedRows) + ".example"
}

// TestKills is a short form of "-kill 1000".
func TestKills(t *testing.T) {
	var out strings.Builder
	err := kill(t.Context(), filepath.Join(t.TempDir(), "db"), load{writers: 2, batch: 16, rows: 500}, 50, &out)
	if err != nil {
		t.Errorf("%v\n%s", err, &out)
	}
	t.Log(out.String())
}

// TestComparisonSeesFaults: a check that finds nothing has to be able to.
func TestComparisonSeesFaults(t *testing.T) {
	var recorded tally
	fmt.Fprint(&recorded, "\x03\x83\x03\x83\x03") // three attempts, two of them acknowledged
	for _, c := range []struct {
		name   string
		ledger string
		wrong  bool
	}{
		{"the acknowledged", "r1 d03-writer0.example 2 2\n", false},
		{"all attempts, in two reports", "r1 d03-writer0.example 2 2\nr2 d03-writer0.example 1 1\n", false},
		{"a line written again after a kill", "r1 d03-writer0.example 2 2\nr1 d03-writer0.example 2 2\n", false},
		{"one is missing", "r1 d03-writer0.example 1 1\n", true},
		{"one counted twice", "r1 d03-writer0.example 2 2\nr2 d03-writer0.example 2 2\n", true},
		{"nobody recorded this", "r1 d03-writer0.example 2 2\nr2 d04-writer0.example 1 1\n", true},
		{"rows and total differ", "r1 d03-writer0.example 2 1\n", true},
		{"a report that changed", "r1 d03-writer0.example 2 2\nr1 d03-writer0.example 1 1\n", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger")
			if err := os.WriteFile(path, []byte(c.ledger), 0o600); err != nil {
				t.Fatal(err)
			}
			reports, err := readLedger(path)
			if err == nil {
				err = compare([]tally{recorded}, reports, t.Output())
			}
			if (err != nil) != c.wrong {
				t.Errorf("error %v, want one: %v", err, c.wrong)
			}
		})
	}
}

// TestRun: what the processes say they recorded is what is in the file.
func TestRun(t *testing.T) {
	for name, l := range map[string]load{
		"saturated": {writers: 2, batch: 10},
		"at a rate": {writers: 2, batch: 5, rate: 500, rows: 1500, reporter: true, compactor: true},
		"single":    {single: true, writers: 2, batch: 10},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			if err := preload(t.Context(), path, l.rows); err != nil {
				t.Fatal(err)
			}
			l.time = 300 * time.Millisecond
			o, err := l.run(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			s, err := bboltstore.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			groups, err := s.Groups(t.Context(), ruapost.Day(today).End)
			if err != nil {
				t.Fatal(err)
			}
			var found int
			for _, g := range groups {
				found += int(g.Total)
			}
			for _, r := range o.others {
				if r.Role == roleReporter {
					found += r.Records
				}
			}
			if all := o.all(); all.Records == 0 || all.Records != found {
				t.Errorf("%d records in the file and in reports, %d were written", found, all.Records)
			}
		})
	}
}

func TestCommand(t *testing.T) {
	dir := t.TempDir()
	args := []string{"-rows", "100", "-spread", "-writers", "1", "-time", "100ms", "-dir", dir}
	var out strings.Builder
	if err := run(t.Context(), args, &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "writer 0") {
		t.Errorf("no line of the writer:\n%s", &out)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for _, wrong := range []string{"-mode other", "-spread", "-mode single -rate 1", "-suite -reps 1", "-batch 0", "10"} {
		if err := run(t.Context(), strings.Fields(wrong), &out); err == nil {
			t.Errorf("%s: no error", wrong)
		}
	}
}

// A flood that is far above the bound on groups: honest domains are counted exactly.
func TestFlood(t *testing.T) {
	var out bytes.Buffer
	if err := flood(t.Context(), filepath.Join(t.TempDir(), "db"), 20_000, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	t.Log(&out)
}

// Whoever makes the batches ends with the one who commits them.
func TestBaselineEndsWithAFault(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	synctest.Test(t, func(t *testing.T) {
		b, err := openBaseline(path)
		if err != nil {
			t.Fatal(err)
		}
		b.db.Close()
		if err := b.write(context.Background(), 1, 10, &result{}); err == nil {
			t.Error("no error")
		}
	})
}
