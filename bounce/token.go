package bounce

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"strings"

	"ruapost/internal/mailtouri"
)

const (
	idSize  = 16 // octets of a report's ID, which are written as 32 hexadecimal digits
	macSize = 11 // octets of the MAC that are kept: 88 bits, each guess at which is a mail

	// TokenSize is the length of a token, which is made of letters and digits.
	TokenSize = (8*(idSize+macSize) + 4) / 5

	maxLocal  = 64  // octets, RFC 5321 4.5.3.1.1
	maxSender = 254 // octets, RFC 5321 4.5.3.1.3 less the angle brackets
)

// tokenEncoding has letters of one case only, and digits that look like none of them:
// local parts get their case changed on the way.
var tokenEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Token names one mail: the one that brought a report to a recipient. Which recipient
// that is cannot be read from it, and until Verify has said yes it may be anybody's
// invention.
type Token struct {
	// Report is the report's ID, 32 hexadecimal digits in lower case.
	Report string
	mac    [macSize]byte
}

// Sender returns the envelope sender of the mail that brings a report to a recipient: a
// token between from's local part with the delimiter and from's domain. The recipient
// must be given as it will be given to Verify, octet by octet.
//
// It is an error if from is no address with a local part of atoms (RFC 5322 3.2.3), if the
// delimiter is not made of what atoms are made of, letters and digits apart, if the local
// part would have more than 64 octets or the address more than 254, or if the report's ID
// is not 32 hexadecimal digits in lower case.
func Sender(secret []byte, from, delimiter, reportID, recipient string) (string, error) {
	local, domain, err := split(from, delimiter)
	if err != nil {
		return "", fmt.Errorf("bounce: %w", err)
	}
	id, err := hex.DecodeString(reportID)
	if err != nil || len(id) != idSize || hex.EncodeToString(id) != reportID {
		return "", fmt.Errorf("bounce: report ID %q is not %d hexadecimal digits", reportID, 2*idSize)
	}
	mac := authenticate(secret, id, recipient)
	return local + delimiter + tokenEncoding.EncodeToString(append(id, mac[:]...)) + "@" + domain, nil
}

// ParseToken returns the token of the first address that has one in the form that
// Sender gives it, in any case.
func ParseToken(from, delimiter string, addresses ...string) (Token, bool) {
	local, domain, err := split(from, delimiter)
	if err != nil {
		return Token{}, false
	}
	prefix, suffix := local+delimiter, "@"+domain
	for _, address := range addresses {
		if len(address) != len(prefix)+TokenSize+len(suffix) {
			continue
		}
		text := address[len(prefix) : len(prefix)+TokenSize]
		if !strings.EqualFold(address[:len(prefix)], prefix) || !strings.EqualFold(address[len(prefix)+TokenSize:], suffix) {
			continue
		}
		if t, ok := decode(strings.ToLower(text)); ok {
			return t, true
		}
	}
	return Token{}, false
}

// Verify says whether the token is that of the mail to this recipient. It takes the same
// time whatever differs.
func (t Token) Verify(secret []byte, recipient string) bool {
	id, err := hex.DecodeString(t.Report)
	if err != nil || len(id) != idSize {
		return false
	}
	mac := authenticate(secret, id, recipient)
	return hmac.Equal(mac[:], t.mac[:])
}

func decode(text string) (Token, bool) {
	raw, err := tokenEncoding.DecodeString(text)
	// The last character has bits to spare; a token has one form only.
	if err != nil || len(raw) != idSize+macSize || tokenEncoding.EncodeToString(raw) != text {
		return Token{}, false
	}
	return Token{hex.EncodeToString(raw[:idSize]), [macSize]byte(raw[idSize:])}, true
}

// authenticate returns what only a holder of the secret can say of a report's ID and
// a recipient. The ID has a fixed length, so no other pair reads the same.
func authenticate(secret, id []byte, recipient string) [macSize]byte {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte("ruapost envelope sender 1\x00")) // the secret may serve other ends
	h.Write(id)
	h.Write([]byte(recipient))
	return [macSize]byte(h.Sum(nil)[:macSize])
}

// delimiters are the characters of an atom that are no letters and digits (RFC 5322 3.2.3).
const delimiters = "!#$%&'*+-/=?^_`{|}~"

// split returns the two sides of an address that tokens can be put into.
func split(from, delimiter string) (local, domain string, err error) {
	_, err = mailtouri.ParseAddress(from)
	switch {
	case err != nil || strings.HasPrefix(from, `"`) || mailtouri.NeedsSMTPUTF8(from):
		err = fmt.Errorf("%q is not an address that a token can be put into", from)
	case delimiter == "" || strings.Trim(delimiter, delimiters) != "":
		err = fmt.Errorf("%q cannot delimit a token", delimiter)
	case strings.IndexByte(from, '@')+len(delimiter)+TokenSize > maxLocal || len(from)+len(delimiter)+TokenSize > maxSender:
		err = fmt.Errorf("%q has no room for %q and the %d characters of a token", from, delimiter, TokenSize)
	}
	local, domain, _ = strings.Cut(from, "@")
	return local, domain, err
}
