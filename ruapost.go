// Package ruapost holds the words the programs speak with one another: what
// DMARC made of an inbound message (Evaluation), how TLS went in an outbound
// SMTP connection (Session), the interval a report covers (Window) and the
// report itself on its way to its recipients (Report).
//
// cmd/milter makes Evaluations and cmd/tlspolicy makes Sessions; both put them
// into the shared store, which adds up equal ones as rows. cmd/reporter takes
// the rows of a window that is over and turns them into Reports.
//
// Nothing here knows about storage, DNS or mail; every other package imports
// this one and it imports none of them.
package ruapost

import "time"

// Version is what this build calls itself in the reports' generator element,
// the User-Agent of policy fetches and the programs' logs. The Makefile sets it.
var Version = "dev"

// Kind tells the two report families apart.
type Kind string

const (
	KindDMARC Kind = "dmarc" // DMARC aggregate report, RFC 9990 or RFC 7489 7.2
	KindTLS   Kind = "tls"   // SMTP TLS report, RFC 8460
)

// Window is the interval a report covers. It is half-open, [Start, End), in
// UTC; on the wire a report names its last second, End minus one.
type Window struct {
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
}

// Day returns the UTC day that t falls into (RFC 9990 3.1.1.4, RFC 8460 4.1).
func Day(t time.Time) Window { return Part(t, 24*time.Hour) }

// Part returns the part of a UTC day that t falls into, if the day is cut into parts
// of this length. The length divides 24 hours.
func Part(t time.Time, length time.Duration) Window {
	start := t.UTC().Truncate(length)
	return Window{Start: start, End: start.Add(length)}
}

// Last returns the last second of the window, as reports write it.
func (w Window) Last() time.Time { return w.End.Add(-time.Second) }
