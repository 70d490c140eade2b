// Package bounce tells what has become of a mail that this project sent, from the mail
// that came back because of it: delivery status notifications (RFC 3464), the other
// forms that bounces have, automatic replies, complaints.
//
// Which mail it is about stands in the address that the answer came to: each mail is
// sent with an envelope sender of its own, which carries a token that nobody else can
// make (see Sender). What the answer itself says of its recipient proves nothing.
//
// Everybody can write to such an address once he has seen it, so the text of an answer
// is hostile: what is read of it is bounded, and where there is a doubt a mail has not
// failed.
package bounce

import (
	"fmt"
	"io"
)

// MaxSize is how much of a message is looked at and kept, in octets.
const MaxSize = 1 << 20

// Read returns a message's first MaxSize octets. It reads the rest as well, so that
// whoever writes it can finish.
func Read(r io.Reader) ([]byte, error) {
	message, err := io.ReadAll(io.LimitReader(r, MaxSize))
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	if err != nil {
		return nil, fmt.Errorf("bounce: read the message: %w", err)
	}
	return message, nil
}
