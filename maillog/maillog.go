// Package maillog reads from Postfix's log how TLS went in outbound SMTP connections:
// for Postfix 3.4 to 3.9, and for later ones built without TLSRPT, which tell it
// nowhere else.
//
// Follow and Journal get the lines, from a file and from the systemd journal, and say
// how far they are. A Reader makes Events of them:
//
//	reader := maillog.New("reports@example.org")
//	maillog.Follow(ctx, "/var/log/mail.log", position, reader.Deliver(record))
//
// Postfix must log a line for each TLS handshake (smtp_tls_loglevel = 1). Without it
// successful sessions are not seen, and of the others a part.
//
// The log does not say which policy applied, nor the next-hop domain: an Event has the
// recipients' domains, which are not it if mail is routed to a relay host. Whoever may
// write to the log can make up what he likes; who only gets or sends mail can not.
package maillog

import (
	"net/netip"
	"time"

	"ruapost"
)

// Kind is what an Event tells of.
type Kind string

const (
	// KindSession is one TLS handshake, or a connection that did not come to one
	// although TLS was required. They are those that Postfix 3.10 tells by datagrams.
	KindSession Kind = "session"
	// KindPlaintext is a delivery that went on without TLS.
	KindPlaintext Kind = "plaintext"
	// KindProblem is a policy that kept a mail server from being used at all. Postfix
	// tells it again for each server, message and retry.
	KindProblem Kind = "problem"
)

// Peer is Postfix's word for what the server's certificate was worth. At security
// levels that do not ask for it Untrusted is as good as Verified.
type Peer string

const (
	PeerAnonymous Peer = "Anonymous" // no certificate
	PeerUntrusted Peer = "Untrusted" // no chain to a trusted root; in Postfix 3.7 also another name
	PeerTrusted   Peer = "Trusted"   // such a chain, but the name was not asked for or is another
	PeerVerified  Peer = "Verified"  // both as the policy wants them
)

// Event is what the log told. Its names and addresses are valid and normalised, its
// text is clean.
type Event struct {
	Kind Kind
	// Time is that of the line with the delivery's result.
	Time time.Time
	// Host is the machine that wrote the line, QueueID the message.
	Host    string
	QueueID string
	// Domains are those of the recipients, at least one. More than one means that they
	// share a next hop, such as a relay host. Of a problem it is the next-hop domain.
	Domains []string
	// MX, IP and Port are the server's; each is zero if it is not known.
	MX   string
	IP   netip.Addr
	Port uint16
	// Peer is empty if the handshake failed or its line was not logged.
	Peer Peer
	// Failure says what went wrong with a session or is the problem. It is zero for a
	// session that succeeded: judged as Postfix 3.10 judges it for TLSRPT.
	Failure ruapost.TLSFailure
	// Datagram says that Postfix told the session by a TLSRPT datagram as well.
	Datagram bool
}
