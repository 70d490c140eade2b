package main

import (
	"bytes"
	"errors"
	"flag"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"ruapost/daemon"
)

// The help must fit a terminal of 80 by 24, with the line before it and the three flags that
// daemon.Command prints with two lines each.
func TestUsageFitsAScreen(t *testing.T) {
	lines := strings.Split(usage, "\n")
	if len(lines)+6 > 24 {
		t.Errorf("%d lines and 6 for flags", len(lines))
	}
	for _, line := range lines[1:] {
		if utf8.RuneCountInString(line) > 80 {
			t.Errorf("%d columns: %s", utf8.RuneCountInString(line), line)
		}
	}
	for name, h := range help {
		if !strings.Contains(usage, "\n  "+name+" ") || !strings.HasPrefix(h.syntax, name+" ") {
			t.Errorf("%s is missing in the usage, or its syntax is another's", name)
		}
		if _, err := command([]string{name, "-help"}); !errors.Is(err, flag.ErrHelp) {
			t.Errorf("%s -help: %v", name, err)
		}
	}
}

func TestParseArguments(t *testing.T) {
	for args, want := range map[string]string{
		"a -x b":       "x=true [a b]",
		"-x a b":       "x=true [a b]",
		"a b -x":       "x=true [a b]",
		"a -- -x":      "x=false [a -x]",
		"-- -x -y":     "x=false [-x -y]",
		"a b --x":      "x=true [a b]",
		"a - b":        "error",
		"a":            "error",
		"a b c":        "error",
		"a b -z":       "error",
		"-x=maybe a b": "error",
	} {
		var x bool
		operands, err := parse("resend", strings.Fields(args), 2, 2, func(flags *flag.FlagSet) { flags.BoolVar(&x, "x", false, "") })
		got := "x=false "
		if x {
			got = "x=true "
		}
		got += "[" + strings.Join(operands, " ") + "]"
		if err != nil {
			got = "error"
			if !errors.Is(err, daemon.ErrUsage) {
				t.Errorf("%s: %v", args, err)
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s (%v)", args, got, want, err)
		}
	}
}

// A line that is rewritten must not come more often than a person reads, nor stand in the
// way of the log.
func TestProgress(t *testing.T) {
	before := slog.Default()
	defer slog.SetDefault(before)
	var out bytes.Buffer
	slog.SetDefault(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})))
	log := slog.Default()
	p := showProgress(&out)
	clock := time.Unix(1, 0)
	p.now = func() time.Time { return clock }
	p.show("sending", 0, 9)
	clock = clock.Add(progressInterval - 1)
	p.show("sending", 1, 9)
	slog.With("k", "v").Info("one")
	slog.Info("two")
	clock = clock.Add(1)
	p.show("sending", 2, 9)
	clock = clock.Add(progressInterval)
	p.show("done", 3, 9)
	p.end()
	p.end()
	const blank = "\r               \r"
	want := "sending: 0 of 9" + blank + "level=INFO msg=one k=v\nlevel=INFO msg=two\n" +
		"sending: 2 of 9" + blank + "done: 3 of 9" + blank[:1] + strings.Repeat(" ", len("done: 3 of 9")) + "\r"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
	if slog.Default().Handler() != log.Handler() {
		t.Error("the log is not what it was")
	}
	if f, err := os.Open(os.DevNull); err != nil || isTerminal(f) {
		t.Errorf("%v, or /dev/null is a terminal", err)
	}
}
