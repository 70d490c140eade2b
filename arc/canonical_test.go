package arc

import (
	"crypto/sha256"
	"slices"
	"strings"
	"testing"
	"time"

	"ruapost/internal/arctest"
)

// RFC 6376 3.4.5 and the traps of 3.4.3 and 3.4.4.
var bodies = []struct{ body, simple, relaxed string }{
	{" C \r\nD \t E\r\n\r\n\r\n", " C \r\nD \t E\r\n", " C\r\nD E\r\n"},
	{"", "\r\n", ""},
	{"\r\n\r\n", "\r\n", ""},
	{" \t\r\n \r\n", " \t\r\n \r\n", ""},
	{" ", " \r\n", ""},
	{"a", "a\r\n", "a\r\n"},
	{"a ", "a \r\n", "a\r\n"},
	{"\r\n\r\na\r\n", "\r\n\r\na\r\n", "\r\n\r\na\r\n"},
	{"a\r\n \r\n\r\nb", "a\r\n \r\n\r\nb\r\n", "a\r\n\r\n\r\nb\r\n"},
	{"a\nb\n", "a\r\nb\r\n", "a\r\nb\r\n"},
	{"a\rb\r", "a\rb\r\r\n", "a\rb\r\r\n"},
	{"a\r\r\n", "a\r\r\n", "a\r\r\n"},
	{"a \r\n\r", "a \r\n\r\r\n", "a\r\n\r\r\n"},
	{"ab  cd \t \t ef", "ab  cd \t \t ef\r\n", "ab cd ef\r\n"},
	{"\ta  b\t c", "\ta  b\t c\r\n", " a b c\r\n"},
}

func TestBodyHash(t *testing.T) {
	for _, c := range bodies {
		for relaxed, want := range map[bool]string{false: c.simple, true: c.relaxed} {
			for n := 1; n <= len(c.body)+1; n++ { // the parts in which it arrives
				b := newBodyHash(relaxed)
				for part := range slices.Chunk([]byte(c.body), n) {
					b.write(part)
				}
				if sum := sha256.Sum256([]byte(want)); !b.is(sum[:]) {
					t.Errorf("%q in parts of %d, relaxed %t: not %q", c.body, n, relaxed, want)
				}
			}
		}
	}
}

// Of a run of line ends or blanks nothing is kept, which would have to be looked at
// again at each write: 10 MB of it are a matter of milliseconds.
func TestEndlessRuns(t *testing.T) {
	for _, run := range []string{"\r\n", "\n", " ", "\t", " \r\n", "\r", "x", "x "} {
		part := []byte(strings.Repeat(run, outSize+1))
		for _, relaxed := range []bool{false, true} {
			b := newBodyHash(relaxed)
			allocs := testing.AllocsPerRun(10, func() { b.write(part) })
			if allocs != 0 || cap(b.out) != outSize {
				t.Errorf("%q, relaxed %t: %v allocations, %d bytes", run, relaxed, allocs, cap(b.out))
			}
		}
	}
	part := []byte(strings.Repeat("\r\n", 500))
	for _, relaxed := range []bool{false, true} {
		begin := time.Now()
		b := newBodyHash(relaxed)
		for range 10 << 20 / len(part) {
			b.write(part)
		}
		b.write([]byte("x"))
		b.is(nil)
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("relaxed %t: %s", relaxed, took)
		}
	}
}

// FuzzBodyHash compares with the canonicalization of a body as a whole.
func FuzzBodyHash(f *testing.F) {
	for _, c := range bodies {
		f.Add([]byte(c.body), uint8(0), true)
		f.Add([]byte(c.body), uint8(1), false)
	}
	f.Fuzz(func(t *testing.T, body []byte, chunk uint8, relaxed bool) {
		b := newBodyHash(relaxed)
		for part := range slices.Chunk(body, int(chunk)+1) {
			b.write(part)
		}
		want := arctest.Body(string(body), relaxed)
		if sum := sha256.Sum256([]byte(want)); !b.is(sum[:]) {
			t.Errorf("%q, relaxed %t, in parts of %d: not %q", body, relaxed, chunk+1, want)
		}
	})
}

// RFC 6376 3.4.5, and what a milter sees of folds.
func TestCanonicalFields(t *testing.T) {
	for _, c := range []struct {
		f               Field
		simple, relaxed string
	}{
		{Field{"A", " X"}, "A: X", "a:X"},
		{Field{"B ", " Y\t\r\n\tZ  "}, "B : Y\t\r\n\tZ  ", "b:Y Z"},
		{Field{"B ", " Y\t\n\tZ  "}, "B : Y\t\r\n\tZ  ", "b:Y Z"},
		{Field{"C", "\n x"}, "C:\r\n x", "c:x"},
		{Field{"D", ""}, "D:", "d:"},
		{Field{"E", " \n "}, "E: \r\n ", "e:"},
		{Field{"F", "a\rb"}, "F:a\rb", "f:a\rb"},
	} {
		if got := string(appendField(nil, false, c.f)); got != c.simple {
			t.Errorf("%q: simple %q, want %q", c.f, got, c.simple)
		}
		if got := string(appendField(nil, true, c.f)); got != c.relaxed {
			t.Errorf("%q: relaxed %q, want %q", c.f, got, c.relaxed)
		}
	}
}
