package main

import (
	"bytes"
	"errors"
	"flag"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ruapost/daemon"
)

// Each command has a help, which tells of all its options.
func TestHelp(t *testing.T) {
	for name, h := range help {
		if !strings.Contains(usage, "\n  "+name+" ") || !strings.HasPrefix(h.Syntax, name+" ") {
			t.Errorf("%s is missing in the usage, or its syntax is another's", name)
		}
		words := []string{""}
		if name == "suppress" { // whose words have options of their own
			words = []string{"", "list", "add", "remove"}
		}
		for _, word := range words {
			_, err := command(append([]string{name}, strings.Fields(word+" -help")...))
			asked, ok := errors.AsType[*daemon.HelpError](err)
			if !ok || asked.Command != name {
				t.Errorf("%s %s -help: %v", name, word, err)
				continue
			}
			asked.Flags.VisitAll(func(f *flag.Flag) {
				option := regexp.MustCompile(`(?m)^ +--?` + f.Name + ` .*  ?[a-z]`)
				if !option.MatchString(h.Text) || !regexp.MustCompile(`[ [(]--?`+f.Name+`\b`).MatchString(h.Syntax) {
					t.Errorf("%s -help does not tell of -%s", name, f.Name)
				}
			})
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
	p := showProgress(&out, 0)
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
	want := "sending: 0 of 9" + blank + "level=INFO msg=one k=v\nsending: 0 of 9" + blank + "level=INFO msg=two\nsending: 0 of 9" +
		blank + "sending: 2 of 9" + blank + "done: 3 of 9" + blank[:1] + strings.Repeat(" ", len("done: 3 of 9")) + "\r"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
	if slog.Default().Handler() != log.Handler() {
		t.Error("the log is not what it was")
	}
}

// A run that waits for minutes says until when, however soon after the line before.
func TestProgressWaits(t *testing.T) {
	defer slog.SetDefault(slog.Default())
	var out bytes.Buffer
	slog.SetDefault(slog.New(slog.NewTextHandler(&out, nil)))
	p := showProgress(&out, 40*time.Minute)
	clock := time.Date(2026, 11, 25, 17, 5, 0, 0, time.UTC)
	p.now = func() time.Time { return clock }
	line := func(what string, done, all int) string {
		out.Reset()
		p.show(what, done, all)
		return out.String()[strings.LastIndexByte(out.String(), '\r')+1:]
	}
	for _, want := range []struct {
		what      string
		done, all int
		line      string
	}{
		{"reports", 3, 4, "reports: 3 of 4"},
		{"sending", 1, 10, "sending: 1 of 10, the next at 17:09; send --no-spread does not wait"},
		{"sending", 2, 10, "sending: 2 of 10, the next at 17:13; send --no-spread does not wait"},
		{"posting", 1, 2, "sending: 2 of 10, the next at 17:13; posting: 1 of 2, the next at 17:10"}, // reporting.MaxGap
	} {
		if got := line(want.what, want.done, want.all); got != want.line {
			t.Errorf("%q, want %q", got, want.line)
		}
	}
	var several sync.WaitGroup // for -race
	several.Go(func() { p.show("sending", 3, 10) })
	several.Go(func() { p.show("posting", 2, 2) })
	slog.Info("meanwhile")
	several.Wait()
	if got := line("sending", 999_999_999, 1_000_000_000); len(got) > progressWidth {
		t.Errorf("%d columns", len(got))
	}
	p.end()
}

// What can take minutes says so at a terminal, and leaves nothing behind.
func TestWorking(t *testing.T) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // around that of package log it would wait for itself
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		end := showWork(&out, "checking")
		time.Sleep(2500 * time.Millisecond)
		end()
		const blank = "\r            \r"
		if got, want := out.String(), "checking: 1s"+blank+"checking: 2s"+blank; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
}
