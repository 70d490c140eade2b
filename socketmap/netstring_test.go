package socketmap

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestReadNetstring(t *testing.T) {
	long := strings.Repeat("k", MaxQuery)
	tests := []struct {
		name, in string
		want     string
		err      error
	}{
		{"query", "14:QUERY good.lab,", "QUERY good.lab", nil},
		{"empty payload", "0:,", "", nil},
		{"payload with colon and comma", "5:a,2:b,", "a,2:b", nil},
		{"payload with NUL and 8 bit", "3:\x00\n\xff,", "\x00\n\xff", nil},
		{"longest", "10000:" + long + ",", long, nil},
		{"too long", "10001:" + long + "k,", "", ErrMalformed},
		{"length beyond any int", strings.Repeat("9", 100) + ":", "", ErrMalformed},
		{"sign", "+3:abc,", "", ErrMalformed},
		{"negative", "-1:", "", ErrMalformed},
		{"blank before the length", " 3:abc,", "", ErrMalformed},
		{"blank after the length", "3 :abc,", "", ErrMalformed},
		{"superfluous zero", "03:abc,", "", ErrMalformed},
		{"two zeros", "00:,", "", ErrMalformed},
		{"hexadecimal", "0x3:abc,", "", ErrMalformed},
		{"no length", ":abc,", "", ErrMalformed},
		{"no comma", "3:abcd", "", ErrMalformed},
		{"line ending", "3:abc\n", "", ErrMalformed},
		{"HTTP", "GET /metrics HTTP/1.1\r\n", "", ErrMalformed},
		{"nothing", "", "", io.EOF},
		{"end in the length", "1", "", io.ErrUnexpectedEOF},
		{"end after the colon", "3:", "", io.ErrUnexpectedEOF},
		{"end in the payload", "3:ab", "", io.ErrUnexpectedEOF},
		{"end before the comma", "3:abc", "", io.ErrUnexpectedEOF},
		{"end in a long payload", "10000:k", "", io.ErrUnexpectedEOF},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := bufio.NewReaderSize(strings.NewReader(test.in), readBuffer)
			got, err := readNetstring(r, MaxQuery)
			if string(got) != test.want || !errors.Is(err, test.err) {
				t.Errorf("got %.100q, error %v; want %.100q, error %v", got, err, test.want, test.err)
			}
			if test.err != io.EOF && err == io.EOF {
				t.Error("an end inside a netstring is taken for an orderly one")
			}
		})
	}
}

// FuzzReadNetstring checks that what is read from any input, written again, is
// the input as far as it was read.
func FuzzReadNetstring(f *testing.F) {
	for _, s := range []string{
		"14:QUERY good.lab,", "0:,0:,", "3:abc,-1:", "600:" + strings.Repeat("a", 600) + ",", "00:,", "3:abcd", "99999999999999999999:",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(in), 64)
		var again []byte
		for {
			b, err := readNetstring(r, MaxQuery)
			if err != nil {
				if err == io.EOF && len(again) != len(in) {
					t.Fatalf("orderly end after %d of %d octets", len(again), len(in))
				}
				break
			}
			if len(b) > MaxQuery {
				t.Fatalf("payload of %d octets", len(b))
			}
			again = fmt.Appendf(again, "%d:%s,", len(b), b)
		}
		if !bytes.HasPrefix(in, again) {
			t.Fatalf("read %q from %q", again, in)
		}
	})
}

func FuzzParseReply(f *testing.F) {
	for _, s := range []string{"OK dane", "OK", "OK ", "NOTFOUND ", "NOTFOUND", "TEMP x", "PERM", "ok dane"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		r, err := parseReply(payload)
		if err != nil {
			return
		}
		again, err := parseReply(r.String())
		if err != nil || again != r {
			t.Fatalf("%q: %v, then %v, %v", payload, r, again, err)
		}
	})
}
