package socketmap

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// ErrMalformed is the error, wrapped, of input that is no netstring, exceeds
// the limit or is no request or reply of this protocol.
var ErrMalformed = errors.New("malformed netstring")

// readNetstring reads "<length>:<payload>," with a payload of at most limit
// octets. The result may lie in r's buffer: it is valid until the next read.
//
// The error is io.EOF only if the input ended before the first octet.
func readNetstring(r *bufio.Reader, limit int) ([]byte, error) {
	n, err := readLength(r, limit)
	if err != nil {
		return nil, err
	}
	var b []byte
	if n+1 <= r.Size() {
		if b, err = r.Peek(n + 1); err == nil {
			r.Discard(n + 1) // only moves on: b stays as it is
		}
	} else {
		b = make([]byte, n+1)
		_, err = io.ReadFull(r, b)
	}
	if err != nil {
		return nil, noEOF(err)
	}
	if b[n] != ',' {
		return nil, fmt.Errorf("%w: no comma after the payload", ErrMalformed)
	}
	return b[:n], nil
}

// readLength reads the decimal number and the colon. No sign, no blank and no
// superfluous zero, so that every length has one form.
func readLength(r *bufio.Reader, limit int) (int, error) {
	n := 0
	for i := 0; ; i++ {
		c, err := r.ReadByte()
		if err != nil {
			if i > 0 {
				err = noEOF(err)
			}
			return 0, err
		}
		switch {
		case c == ':' && i > 0:
			return n, nil
		case c < '0' || c > '9':
			return 0, fmt.Errorf("%w: length has %q", ErrMalformed, c)
		case n == 0 && i > 0:
			return 0, fmt.Errorf("%w: length begins with 0", ErrMalformed)
		}
		if n = 10*n + int(c-'0'); n > limit {
			return 0, fmt.Errorf("%w: longer than %d octets", ErrMalformed, limit)
		}
	}
}

// noEOF makes the end of input inside a netstring an error that nobody takes
// for an orderly end.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
