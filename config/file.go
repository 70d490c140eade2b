package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"ruapost"
)

// Error is one thing that is wrong with the file.
type Error struct {
	File string
	Line int // from 1
	// Key is the key with its section, as in "store.path"; empty if the file is
	// not TOML.
	Key string
	// Err says what is wrong and what was expected.
	Err error
}

func (e *Error) Error() string {
	if e.Key == "" {
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Err)
	}
	return fmt.Sprintf("%s:%d: %s: %s", e.File, e.Line, ruapost.Clean(e.Key, 100), e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// entry is a key that a file sets.
type entry struct {
	key   string // with its section: "store.path"
	line  int
	value any // string, int64, float64, bool, time.Time, []any or a table
}

// readFile returns the entries of a file in the order of their lines.
func readFile(file, text string) ([]entry, error) {
	var top map[string]toml.Primitive
	meta, err := toml.Decode(text, &top)
	if err != nil {
		return nil, syntaxError(file, err)
	}
	r := reader{meta}
	var entries []entry
	for name, value := range top {
		e := r.entry(name, value, 1)
		keys := r.table(value)
		if keys == nil || !sections[name] {
			entries = append(entries, e)
			continue
		}
		for key, value := range keys {
			entries = append(entries, r.entry(name+"."+key, value, e.line))
		}
	}
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.line, b.line), strings.Compare(a.key, b.key))
	})
	return entries, nil
}

func syntaxError(file string, err error) error {
	var syntax toml.ParseError
	if !errors.As(err, &syntax) {
		return fmt.Errorf("%s: %w", file, err)
	}
	mend := ""
	switch {
	case strings.HasPrefix(syntax.Message, `expected value but found "`):
		mend = `; strings stand in quotes, as in report_domain = "example.org"`
	case strings.HasSuffix(syntax.Message, "has already been defined."):
		mend = " Each section and key stands in the file once; keys belong below the line of their section that is there already"
	}
	return &Error{
		File: file,
		Line: syntax.Position.Line,
		Err:  fmt.Errorf("no valid TOML: %s%s", ruapost.Clean(syntax.Message, 200), mend),
	}
}

// reader takes a parsed file to pieces.
type reader struct{ meta toml.MetaData }

// entry makes the entry of a value. Its line is the one given if its own is not
// known.
func (r *reader) entry(key string, value toml.Primitive, line int) entry {
	e := entry{key: key, line: cmp.Or(r.line(value), line)}
	// Any value can be decoded to an any.
	_ = r.meta.PrimitiveDecode(value, &e.value)
	return e
}

// table returns what is in a table, nil if value is something else.
func (r *reader) table(value toml.Primitive) map[string]toml.Primitive {
	// Decoding something else leaves the map nil, with or without an error.
	var keys map[string]toml.Primitive
	_ = r.meta.PrimitiveDecode(value, &keys)
	return keys
}

// line returns the line where a value begins, the last line of a string of
// several lines, or 0 if it is not known.
func (r *reader) line(value toml.Primitive) int {
	// The package tells positions in errors only: provoke one.
	var failed toml.ParseError
	if errors.As(r.meta.PrimitiveDecode(value, unwilling{}), &failed) && failed.Position.Line > 0 {
		return failed.Position.Line
	}
	// A table that only dotted keys make has no position of its own.
	first := 0
	for _, value := range r.table(value) {
		if l := r.line(value); first == 0 || 0 < l && l < first {
			first = l
		}
	}
	return first
}

// unwilling is a value that cannot be decoded to.
type unwilling struct{}

func (unwilling) UnmarshalTOML(any) error { return errors.New("unwilling") }
