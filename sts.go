package ruapost

import (
	"errors"
	"time"
)

// ErrNoRoom is the error, wrapped, of a store that keeps no more of something because of a
// bound: of MTA-STS policies, positions in logs, suppressions, or counters.
var ErrNoRoom = errors.New("no room")

// STSPolicy is an MTA-STS policy as it was fetched, kept until it expires, so that it
// holds whatever becomes of the domain's record or policy host (RFC 8461 3.3, 5.1).
type STSPolicy struct {
	// Domain is the policy domain, ID that of its record when it was fetched.
	Domain string `json:"domain"`
	ID     string `json:"id"`
	// Mode, MX and Text are those of mtasts.Policy.
	Mode string   `json:"mode"`
	MX   []string `json:"mx,omitempty"`
	Text []string `json:"text"`
	// Fetched and Expires are when it was fetched and how long it may be used.
	Fetched time.Time `json:"fetched"`
	Expires time.Time `json:"expires"`
	// Used is the day, UTC, of the last delivery that it was for.
	Used time.Time `json:"used"`
}

// Position is how far a source of log lines was read.
type Position struct {
	// Source names the source, such as the path of a log file.
	Source string `json:"source"`
	// At is what the reader needs to go on from there; it alone understands it.
	At string `json:"at"`
}
