package main

import (
	"bytes"
	"strings"
	"testing"
)

// The load program runs against the real program, and gets answers.
func TestRun(t *testing.T) {
	for _, args := range [][]string{
		{"-trivial", "-domains", "100", "-connections", "2", "-duration", "50ms"},
		{"-domains", "100", "-duration", "50ms", "-suite", "-reps", "1"},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), args, &out); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, &out)
		}
		for line := range strings.Lines(out.String()) {
			if strings.HasPrefix(line, "| 1 ") || strings.HasPrefix(line, "| 50 ") || strings.HasPrefix(line, "| 2 ") {
				if rate := strings.Fields(line)[3]; rate == "0" || strings.Contains(line, "NaN") {
					t.Errorf("%v: %s", args, line)
				}
			}
		}
		if strings.Count(out.String(), "\n") < 3 {
			t.Errorf("%v: %s", args, &out)
		}
	}
}
