// Package socketmap speaks the table protocol by which Postfix asks a server
// for a value (socketmap_table(5)): netstrings both ways, strictly one reply
// for each request on a connection that stays open while it is in use.
//
//	C: 17:QUERY example.com,
//	S: 12:OK dane-only,
//
// It is written for a table that Postfix uses for smtp_tls_policy_maps. There
// every error reply, like a server that cannot be reached, makes Postfix defer
// the mail; hence the zero Reply is NOTFOUND, which leaves the decision to the
// settings of main.cf.
package socketmap

import (
	"strconv"
	"strings"

	"ruapost"
)

const (
	// MaxQuery is how many octets of payload a request may have; Postfix sends
	// no longer ones (socketmap_max_query_size).
	MaxQuery = 10000
	// MaxReply is how many octets of payload a reply may have. Postfix takes
	// 100000 (socketmap_max_reply_size); this is less than that.
	MaxReply = 99999
	// maxReason is how much of an error reply's reason Postfix logs.
	maxReason = 200
)

// Status is the first word of a reply.
type Status string

const (
	StatusOK       Status = "OK"       // found, the value follows
	StatusNotFound Status = "NOTFOUND" // not found, which is no error
	StatusTemp     Status = "TEMP"     // error that may go away
	StatusTimeout  Status = "TIMEOUT"  // error because something took too long
	StatusPerm     Status = "PERM"     // error in the configuration
)

// Reply is the answer to a query. The zero value is NOTFOUND. A Reply made by
// the functions of this package is always one that Postfix can read.
type Reply struct {
	status Status
	data   string
}

// OK is the reply that the key was found and has this value. Postfix treats a
// value that is empty, or too long, as a failed lookup, and a control or
// non-ASCII character in a TLS policy as a configuration error; instead of such
// a value the reply is NOTFOUND.
func OK(value string) Reply {
	if strings.Trim(value, " ") == "" || len(StatusOK)+1+len(value) > MaxReply || !isPrintable(value) {
		return NotFound()
	}
	return Reply{StatusOK, value}
}

// NotFound is the reply that there is no value for the key.
func NotFound() Reply { return Reply{} }

// Temp, Timeout and Perm are error replies. Postfix treats them alike, also
// Perm: it logs the reason and defers the mail. Of the reason at most 200
// octets are sent, with "?" for what is not printable ASCII.
func Temp(reason string) Reply    { return Reply{StatusTemp, cleanReason(reason)} }
func Timeout(reason string) Reply { return Reply{StatusTimeout, cleanReason(reason)} }
func Perm(reason string) Reply    { return Reply{StatusPerm, cleanReason(reason)} }

// Status returns the reply's first word.
func (r Reply) Status() Status {
	if r.status == "" {
		return StatusNotFound
	}
	return r.status
}

// Data returns the value of an OK reply or the reason of an error.
func (r Reply) Data() string { return r.data }

// String returns the reply's payload, for example "OK dane-only".
func (r Reply) String() string { return string(r.Status()) + " " + r.data }

// appendTo appends the reply as it goes over the wire. NOTFOUND too has a blank
// after the status word: that is the documented form.
func (r Reply) appendTo(buf []byte) []byte {
	status := r.Status()
	buf = strconv.AppendInt(buf, int64(len(status)+1+len(r.data)), 10)
	buf = append(buf, ':')
	buf = append(buf, status...)
	buf = append(buf, ' ')
	buf = append(buf, r.data...)
	return append(buf, ',')
}

func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func cleanReason(s string) string {
	ascii := func(r rune) rune {
		if r > '~' {
			return '?'
		}
		return r
	}
	// Clean leaves no control characters.
	return strings.Map(ascii, ruapost.Clean(s, maxReason))
}
