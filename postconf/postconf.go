// Package postconf asks postconf(1) for Postfix's settings, and knows what Postfix makes of
// the versions, tables and names of files in them.
package postconf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxOutput = 256 << 10 // octets that are read of what postconf says
	maxFile   = 16 << 20  // octets that are read of a program
)

// Find looks for postconf(1), also where the PATH of users does not lead. If program is not
// empty it looks for that instead.
func Find(program string) (path string, err error) {
	names := []string{"postconf", "/usr/sbin/postconf", "/usr/local/sbin/postconf"}
	if program != "" {
		names = []string{program}
	}
	for _, name := range names {
		if path, err = exec.LookPath(name); err == nil {
			break
		}
	}
	return path, err
}

// Args returns the arguments of a command of Postfix's with those that say that it is about
// the Postfix whose main.cf is in a directory; if that is empty, the default one.
func Args(dir string, args ...string) []string {
	if dir != "" {
		args = append([]string{"-c", dir}, args...)
	}
	return args
}

// Command returns a line for a shell that runs a command of Postfix's.
func Command(name, dir string, args ...string) string {
	words := []string{name}
	for _, arg := range Args(dir, args...) {
		words = append(words, Quote(arg))
	}
	return strings.Join(words, " ")
}

// Run runs the program. An error has the last line of what it complained of.
func Run(ctx context.Context, program string, args ...string) (stdout, stderr string, err error) {
	var out, complaints bounded
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = &out, &complaints
	cmd.WaitDelay = time.Second // if what it started outlives it
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		err = errors.New("no answer in time")
	case out.full || complaints.full:
		err = errTooMuch
	case err != nil:
		// Warnings come first, what made it fail comes last.
		said := bytes.TrimSpace(complaints.text.Bytes())
		err = fmt.Errorf("%w: %s", err, said[bytes.LastIndexByte(said, '\n')+1:])
	}
	return out.text.String(), complaints.text.String(), err
}

var errTooMuch = errors.New("too much output")

// bounded takes only so much.
type bounded struct {
	text bytes.Buffer // not embedded: its ReadFrom takes all
	full bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.text.Len()+len(p) > maxOutput {
		b.full = true
		return 0, errTooMuch
	}
	return b.text.Write(p)
}

// Assignments reads lines "name = value".
func Assignments(text string) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, "="); ok {
			values[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return values
}

// Version is a version of Postfix.
type Version [3]int

var versionNumbers = regexp.MustCompile(`^(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?:$|-)`)

// ParseVersion reads mail_version, such as 3.10.4 or 3.12-20260821.
func ParseVersion(s string) (v Version, ok bool) {
	numbers := versionNumbers.FindStringSubmatch(s)
	if numbers == nil {
		return v, false
	}
	for i, n := range numbers[1:] {
		v[i], _ = strconv.Atoi(n) // digits, or nothing
	}
	return v, true
}

// Before says whether v is older than another version.
func (v Version) Before(major, minor, patch int) bool {
	return slices.Compare(v[:], []int{major, minor, patch}) < 0
}

// Chroot says whether a service is locked in the queue directory: column is what its line
// in master.cf has, and level compatibility_level.
func Chroot(column, level string) bool {
	if column != "-" {
		return column == "y"
	}
	first, _, _ := strings.Cut(level, ".") // postconf(5), compatibility_level
	n, err := strconv.Atoi(first)
	return err == nil && n < 1
}

// Reached returns the file that a process of Postfix reaches under a name. Its working
// directory is the queue directory, where chroot says that it is locked in.
func Reached(queue, name string, chroot bool) string {
	if chroot || !filepath.IsAbs(name) {
		return filepath.Join(queue, name)
	}
	return filepath.Clean(name)
}

// Spelling returns how main.cf should name a file, so that a process of Postfix reaches it;
// ok is false if it cannot, because the file is outside its chroot.
func Spelling(queue, file string, chroot bool) (name string, ok bool) {
	if rel, ok := Below(queue, file); ok {
		return rel, true
	}
	return file, !chroot
}

// Below returns the name of a file relative to a directory that it is below.
func Below(dir, file string) (rel string, ok bool) {
	rel, err := filepath.Rel(dir, file)
	return rel, err == nil && rel != "." && filepath.IsLocal(rel)
}

// Of these texts one is in smtp(8), by whether it was built with TLSRPT: the warning
// of its smtp.c that it was not, or one of its smtp_tlsrpt.c, which is empty then.
var (
	withoutTLSRPT = []byte("TLSRPT is not compiled in")
	withTLSRPT    = []byte("Too many TLSRPT policies")
)

// TLSRPT says whether smtp(8) in Postfix's daemon_directory, of version 3.10 or later, is
// built with TLSRPT. An error says why that cannot be told.
func TLSRPT(daemons string) (bool, error) {
	program := filepath.Join(daemons, "smtp")
	code, err := ReadFile(program)
	switch {
	case err != nil:
		return false, err
	case bytes.Contains(code, withoutTLSRPT):
		return false, nil
	case bytes.Contains(code, withTLSRPT):
		return true, nil
	}
	return false, fmt.Errorf("%s does not tell", program)
}

// ReadFile reads a file of up to 16 MiB.
func ReadFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s is larger than %d octets", file, maxFile)
	}
	return text, err
}

// Quote returns s as a word for a shell.
func Quote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:=,@", r)
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
