package ruapost

import (
	"encoding/json"
	"errors"
	"time"
)

// ErrNoReport is the error, wrapped, of a call about a report that is not stored.
var ErrNoReport = errors.New("no such report")

// GroupID names the rows of one window, domain and policy in the store.
type GroupID uint64

// Group is what the store knows of the rows of one kind, window, domain and
// policy: the policy and the totals. A DMARC report is made of one group, a TLS
// report of all groups of its window and domain.
type Group struct {
	ID     GroupID `json:"id"`
	Kind   Kind    `json:"kind"`
	Window Window  `json:"window"`
	// Domain is the policy domain of a DMARC report, or the domain whose TLSRPT
	// record asks for the report.
	Domain string `json:"domain"`
	// DMARC is the policy of a group of evaluations, else nil.
	DMARC *DMARCPolicy `json:"dmarc,omitempty"`
	// TLS is the policy of a group of sessions, else nil.
	TLS *TLSPolicy `json:"tls,omitempty"`
	// Total counts all messages or sessions; a Session that is Uncounted is not in it.
	Total int64 `json:"total"`
	// Rows is the number of distinct rows, Listed the sum of their counts. Past the
	// store's bounds on rows a message is counted in Total alone.
	Rows   int64 `json:"rows"`
	Listed int64 `json:"listed"`
	// Required counts the evaluations that are not Optional, Failed the sessions that
	// failed, or the messages that failed DMARC.
	Required int64 `json:"required,omitempty"`
	Failed   int64 `json:"failed,omitempty"`
	// Passed counts the messages that passed DMARC, Quarantined and Rejected what was done
	// with those that failed. Messages that are neither passed nor failed were recorded
	// before this was counted.
	Passed      int64 `json:"passed,omitempty"`
	Quarantined int64 `json:"quarantined,omitempty"`
	Rejected    int64 `json:"rejected,omitempty"`
}

// Row is a distinct DMARCResult or TLSFailure with the number of times it was
// recorded in its group.
type Row struct {
	Count int64
	// Data is the JSON form of the DMARCResult or TLSFailure.
	Data json.RawMessage
}

// ReportState is how far a report has come.
type ReportState string

const (
	// ReportSealed: the groups were taken out of what is being recorded, so that
	// their rows no longer change. The report's content is not on disk yet.
	ReportSealed ReportState = "sealed"
	// ReportComposed: the content is frozen in the outbox; its rows are no longer
	// needed. Recipients are being served.
	ReportComposed ReportState = "composed"
	// ReportDone: every recipient was served or given up.
	ReportDone ReportState = "done"
)

// RecipientState is how far the delivery of a report to one recipient has come.
type RecipientState string

const (
	// RecipientWaiting: to be tried at NotBefore.
	RecipientWaiting RecipientState = "waiting"
	// RecipientSent: sendmail took the mail.
	RecipientSent RecipientState = "sent"
	// RecipientFailed: given up; Error says why.
	RecipientFailed RecipientState = "failed"
	// RecipientRefused: the destination does not agree to reports about the domain
	// (RFC 9990 4).
	RecipientRefused RecipientState = "refused"
	// RecipientBounced: sendmail took the mail, and it came back; Error says why.
	RecipientBounced RecipientState = "bounced"
	// RecipientSuppressed: nothing is sent there, see Suppression.
	RecipientSuppressed RecipientState = "suppressed"
)

// Report is one report from the moment its rows are taken until every recipient
// was served. Its identifier, window and content never change.
type Report struct {
	// ID is unique and made of letters and digits only, so that it can stand in
	// a file name (RFC 9990 3.5.1).
	ID     string      `json:"id"`
	Kind   Kind        `json:"kind"`
	Domain string      `json:"domain"`
	Window Window      `json:"window"`
	Sealed time.Time   `json:"sealed"`
	State  ReportState `json:"state"`
	// Groups are the groups the report is made of, with their totals as sealed.
	Groups []Group `json:"groups"`
	// Part and Parts are set if the report was too large for one mail: this one is the
	// part of so many, each a valid report with an ID of its own. The totals of Groups
	// are those of the part.
	Part  int `json:"part,omitempty"`
	Parts int `json:"parts,omitempty"`
	// Size is the number of octets of the compressed content, once it is composed.
	Size int64 `json:"size,omitempty"`
	// Summary is what package reporting says of the content to people, in JSON.
	Summary json.RawMessage `json:"summary,omitempty"`
	// Recipients are the destinations in the order in which the domain's record
	// names them.
	Recipients []Recipient `json:"recipients"`
	// Finished is when State became ReportDone.
	Finished time.Time `json:"finished,omitzero"`
}

// Recipient is one destination of a report.
type Recipient struct {
	// URI is the destination as published.
	URI string `json:"uri"`
	// Address is the mail address to send to, or the https URL to POST to.
	Address string `json:"address"`
	// HTTPS says that Address is a URL.
	HTTPS bool `json:"https,omitempty"`
	// MaxSize is the largest report in octets that the destination takes (RFC 7489 6.2),
	// 0 if there is no limit.
	MaxSize uint64 `json:"max_size,omitempty"`
	// Legacy says that it gets a DMARC report in the form of RFC 7489.
	Legacy bool `json:"rfc7489,omitempty"`
	// Accepted says that it is known to accept reports about the domain (RFC 9990 4).
	Accepted bool           `json:"accepted,omitempty"`
	State    RecipientState `json:"state"`
	// Attempts counts the times the report was offered, or the destination's consent
	// was asked for in vain.
	Attempts  int       `json:"attempts,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"`
	// First and Last are the times of the first and the last of these attempts.
	First time.Time `json:"first,omitzero"`
	Last  time.Time `json:"last,omitzero"`
	Error string    `json:"error,omitempty"`
}
