package daemon

import (
	"errors"
	"flag"
	"strings"
	"testing"
)

var testCommands = Commands{Program: "toy", Help: map[string]struct{ Syntax, Text string }{
	"send":     {"send [--now] [--domain D]", "Send."},
	"suppress": {"suppress [-n N] PATTERN", "Suppress."},
	"history":  {"history", "Tell."},
}}

func TestUnknownCommand(t *testing.T) {
	for word, want := range map[string]string{
		"sned":                           `; did you mean "send"?; see`,
		"supress":                        `; did you mean "suppress"?; see`,
		"hist":                           `; did you mean "history"?; see`,
		"h":                              `no command; see`,
		"":                               `no command; see`,
		"restart":                        `no command; see`,
		strings.Repeat("suppress", 1000): `no command; see`,
	} {
		if err := testCommands.Unknown(word); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for args, want := range map[string]string{
		"--domian a.example": `not defined: -domian; did you mean "-domain"?; expected: toy send`,
		"-domian=a.example":  `did you mean "-domain"?`,
		"-x":                 `not defined: -x; expected: toy send`,
		"-check":             `-check belongs before the command: toy -check send`,
		"-config x":          `-config belongs before the command: toy -config FILE send`,
		"--domain":           `flag needs an argument: -domain; expected`,
		"a b":                `expected: toy send`,
	} {
		_, err := testCommands.Parse("send", strings.Fields(args), 0, 1, func(flags *flag.FlagSet) {
			flags.Bool("now", false, "")
			flags.String("domain", "", "")
		})
		if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", args, err, want)
		}
	}
}
