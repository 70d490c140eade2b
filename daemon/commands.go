package daemon

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
)

// Commands are what a program can be told to do at a terminal.
type Commands struct {
	Program string
	// Help tells by the names of the commands how each is called, and what "-help" says of
	// it. What stands behind " | " in a syntax is another way to go on behind the name.
	Help map[string]struct{ Syntax, Text string }
}

// HelpError is the error of arguments that ask for help with a command.
type HelpError struct {
	Command string
	Flags   *flag.FlagSet // those that the command has
}

func (e *HelpError) Error() string { return e.Command + ": help is asked for" }

// Print prints what there is to know about a command.
func (c *Commands) Print(w io.Writer, name string) error {
	h := c.Help[name]
	usage := "usage: " + c.Program + " " + strings.ReplaceAll(h.Syntax, " | ", "\n       "+c.Program+" "+name+" ")
	_, err := fmt.Fprintf(w, "%s\n\n%s\n", usage, h.Text)
	return err
}

// Unknown returns the error of a word that is no command.
func (c *Commands) Unknown(word string) error {
	return fmt.Errorf("%w: %q is no command%s; see: %s -help", ErrUsage, word, didYouMean("", word, maps.Keys(c.Help)), c.Program)
}

// UnknownWord returns the error of a word behind a command that is none of the words that
// may stand there.
func (c *Commands) UnknownWord(name, word string, words iter.Seq[string]) error {
	return fmt.Errorf("%w: %s: %q is no command%s; expected: %s %s",
		ErrUsage, name, word, didYouMean("", word, words), c.Program, c.Help[name].Syntax)
}

// Parse reads the arguments of a command, whose options may stand before and behind its
// operands, and returns the latter: as many as from least to most. The error is a HelpError
// or wraps ErrUsage.
func (c *Commands) Parse(name string, args []string, least, most int, define func(*flag.FlagSet)) (operands []string, err error) {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	if define != nil {
		define(flags)
	}
	for rest := args; ; rest = flags.Args()[1:] {
		if err := flags.Parse(rest); err != nil {
			return nil, c.optionError(name, flags, err)
		}
		parsed := len(rest) - flags.NArg()
		if parsed > 0 && rest[parsed-1] == "--" || flags.NArg() == 0 { // the rest are operands
			operands = append(operands, flags.Args()...)
			break
		}
		operands = append(operands, flags.Arg(0))
	}
	if len(operands) < least || len(operands) > most {
		return nil, fmt.Errorf("%w: expected: %s %s", ErrUsage, c.Program, c.Help[name].Syntax)
	}
	return operands, nil
}

// optionError says what is wrong with an option of a command.
func (c *Commands) optionError(name string, flags *flag.FlagSet, err error) error {
	if errors.Is(err, flag.ErrHelp) {
		return &HelpError{Command: name, Flags: flags}
	}
	for _, general := range []string{"-config FILE", "-check", "-version"} {
		if option, _, _ := strings.Cut(general, " "); unknownOption(err) == option {
			return fmt.Errorf("%w: %s belongs before the command: %s %s %s", ErrUsage, option, c.Program, general, name)
		}
	}
	return fmt.Errorf("%w: %s: %w%s; expected: %s %s", ErrUsage, name, err, didYouMeanOption(err, flags), c.Program, c.Help[name].Syntax)
}

// unknownOption returns the option that an error of package flag says is not defined, with
// one "-" before it; or "".
func unknownOption(err error) string {
	_, option, _ := strings.Cut(err.Error(), "not defined: ")
	return option
}

func didYouMeanOption(err error, flags *flag.FlagSet) string {
	option, _, _ := strings.Cut(strings.TrimPrefix(unknownOption(err), "-"), "=")
	return didYouMean("-", option, func(yield func(string) bool) {
		more := true
		flags.VisitAll(func(f *flag.Flag) { more = more && yield(f.Name) })
	})
}

// didYouMean returns a question for the one of the names, with prefix before it, that is most
// like word; or "" if none is.
func didYouMean(prefix, word string, names iter.Seq[string]) string {
	best, least := "", 3
	for _, name := range slices.Sorted(names) {
		d := distance(word, name)
		if len(word) > 1 && strings.HasPrefix(name, word) {
			d = 1
		}
		if d < least && 2*d <= len(word) {
			best, least = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", prefix+best)
}

// distance is the number of letters to insert, delete or replace to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
