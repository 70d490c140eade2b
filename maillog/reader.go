package maillog

import (
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ruapost"
	"ruapost/bounce"
)

// Bounds on what a Reader remembers.
const (
	// maxProcesses is the number of processes. A Postfix has 100 of smtp and of tlsproxy
	// unless it is told otherwise (default_process_limit).
	maxProcesses = 4096
	// maxPending is the number of connections, and of problems, of one process for
	// which no result came yet. Postfix tries 5 servers (smtp_mx_session_limit).
	maxPending = 16
	maxDomains = 16     // of an Event
	maxOwn     = 10_000 // reports that are being delivered
	maxProxied = 1024   // connections of which tlsproxy told
	maxNames   = 256    // syslog names with lines about TLS

	// processAge is how long what a process said is waited upon: until the next line
	// of the same process, by their times. A process of the same number is another then.
	processAge = 10 * time.Minute
	// proxiedAge is the same for what tlsproxy said.
	proxiedAge = time.Minute
	// summaryAge is how long a syslog name is known to log a line for each handshake.
	summaryAge = 24 * time.Hour
)

// Reader makes Events of entries. It is not safe for use by several goroutines; each
// source of entries has a Reader of its own.
//
// Lines about TLS name neither message nor recipient. They are joined with the result
// by the process: smtp(8) has one delivery at a time. What it said before the result is
// kept in memory only, so that after a restart a session under way is not seen.
type Reader struct {
	ownLocal, ownDomain string // the sender of our reports

	processes *recent[processKey, *process]
	own       *recent[queueKey, struct{}]
	proxied   *recent[proxiedKey, proxied]
	summaries *recent[nameKey, time.Time]

	batch  int // counts calls of Read
	events []Event
}

type processKey struct {
	host, name string
	pid        int
}

type queueKey struct{ host, id string }

type nameKey struct{ host, name string }

type proxiedKey struct {
	host string
	relay
}

// proxied is what a tlsproxy said of a connection that some smtp has it make.
type proxied struct {
	at       time.Time
	detail   ruapost.TLSFailure
	verdict  *ruapost.TLSFailure
	datagram bool
}

// process is what is known of an smtp process.
type process struct {
	seen     time.Time
	attempts []*attempt
	problems []Event
	// secured is the server that the last line about TLS was for, and securedFor the
	// delivery that went there.
	secured    relay
	securedFor delivery
	last       answered
}

// delivery is one delivery request: a message is delivered again later, and one with
// many recipients several times.
type delivery struct{ id, waited string }

// answered is the delivery that the last result was about.
type answered struct {
	delivery
	relay     relay
	batch     int
	events    []int // of this batch
	plaintext bool
}

// attempt is a connection with TLS, or one that came to no TLS.
type attempt struct {
	relay relay
	id    string // the message, once that is known: then the handshake is over
	// What the lines said of it, in whatever order they came.
	peer     Peer
	resumed  bool
	broken   bool                // the handshake failed
	detail   ruapost.TLSFailure  // what was wrong with the certificate, whether it matters or not
	verdict  *ruapost.TLSFailure // in a line beginning with TLSRPT
	datagram bool
	unusable ruapost.TLSFailure // nothing of the policy was of use to verify it
	// failed is what the result says of it, if that is a failure of TLS.
	failed ruapost.TLSFailure
}

// New returns a Reader. Mail with sender as its envelope sender, such as reports, makes
// no events: a report on how the last report was delivered would be sent for ever. The
// domain's case does not matter. Without a sender all mail counts.
func New(sender string) *Reader {
	r := &Reader{
		processes: newRecent[processKey, *process](maxProcesses),
		own:       newRecent[queueKey, struct{}](maxOwn),
		proxied:   newRecent[proxiedKey, proxied](maxProxied),
		summaries: newRecent[nameKey, time.Time](maxNames),
	}
	if at := strings.LastIndexByte(sender, '@'); at > 0 {
		if domain, err := ruapost.ParseDomain(sender[at+1:]); err == nil {
			r.ownLocal, r.ownDomain = sender[:at], domain
		}
	}
	return r
}

// Deliver returns a Deliver for one source, that has record keep the events and the
// position after them. When record fails it gets the same events again: lines that are
// read twice mean something else.
func (r *Reader) Deliver(record func(events []Event, position string) error) Deliver {
	var events []Event
	again := false
	return func(entries []Entry, position string) error {
		if !again {
			events = r.Read(entries)
		}
		err := record(events, position)
		again = err != nil
		return err
	}
}

// Read returns what the entries tell, in the order of the results. Recipients of one
// delivery are in one Event as far as they are in one call. Entries are read once.
func (r *Reader) Read(entries []Entry) []Event {
	r.batch++
	r.events = nil
	for _, e := range entries {
		r.entry(e).Inc()
	}
	for _, e := range r.events {
		events.WithLabelValues(string(e.Kind)).Inc()
	}
	return r.events
}

// entry reads an entry and returns what to count it as.
func (r *Reader) entry(e Entry) prometheus.Counter {
	var used, readable bool
	switch name := program(e.Name); {
	case name == "":
		return linesForeign
	case len(e.Host)+len(e.Name)+len(e.Text) > MaxLine:
		return linesLong
	case name == programQmgr:
		used, readable = r.qmgr(e), true
	case name == programTLSProxy:
		used, readable = r.tlsproxy(e), true
	default:
		used, readable = r.smtp(e)
	}
	switch {
	case !readable:
		return linesUnreadable
	case used:
		return linesUsed
	}
	return linesIdle
}

// qmgr notes which messages are ours, from when they enter the active queue until they
// leave the system:
//
//	QID: from=<reports+token@example.org>, size=1234, nrcpt=1 (queue active)
//	QID: removed
func (r *Reader) qmgr(e Entry) bool {
	id, rest, ok := cutQueueID(e.Text)
	if !ok || r.ownDomain == "" {
		return false
	}
	key := queueKey{e.Host, id}
	if rest == "removed" {
		_, ok := r.own.get(key)
		r.own.remove(key)
		return ok
	}
	rest, ok = strings.CutPrefix(rest, "from=<"+r.ownLocal)
	if !ok {
		return false
	}
	token, rest, _ := strings.Cut(rest, "@")
	domain, rest, _ := strings.Cut(rest, ">")
	if token != "" {
		// It names the mail, for bounces, behind a delimiter.
		sender := r.ownLocal + "@" + r.ownDomain
		if _, ok := bounce.ParseToken(sender, token[:1], r.ownLocal+token+"@"+r.ownDomain); !ok {
			return false
		}
	}
	if domain, err := ruapost.ParseDomain(domain); err != nil || domain != r.ownDomain || !strings.HasPrefix(rest, ", size=") {
		return false
	}
	r.own.put(queueKey{strings.Clone(e.Host), strings.Clone(id)}, struct{}{})
	return true
}

func (r *Reader) isOwn(host, id string) bool {
	_, own := r.own.get(queueKey{host, id})
	return own
}

// tlsproxy(8) makes the handshakes if smtp_tls_connection_reuse is on, and tells why
// one failed. smtp(8) logs the rest.
func (r *Reader) tlsproxy(e Entry) bool {
	if server, detail, ok := parseVerifyError(e.Text); ok {
		p := r.proxy(e, server)
		p.detail = detail
		r.proxied.put(proxiedKey{strings.Clone(e.Host), server.portless()}, p)
		return true
	}
	if t, ok := parseTold(e.Text); ok {
		p := r.proxy(e, t.relay)
		p.datagram = true
		if !t.unfinished {
			p.verdict = &t.failure
		}
		r.proxied.put(proxiedKey{strings.Clone(e.Host), t.relay.portless()}, p)
		return true
	}
	return false
}

func (r relay) portless() relay {
	r.port = 0
	return r
}

// proxy returns what tlsproxy said of a connection to server just before e.
func (r *Reader) proxy(e Entry, server relay) proxied {
	p, ok := r.proxied.get(proxiedKey{e.Host, server.portless()})
	if !ok || e.Time.Sub(p.at) > proxiedAge {
		p = proxied{}
	}
	p.at = e.Time
	return p
}

// process returns what is known of the process that wrote e.
func (r *Reader) process(e Entry) *process {
	key := processKey{e.Host, e.Name, e.PID}
	p, ok := r.processes.get(key)
	if ok && e.Time.Sub(p.seen) > processAge {
		p.forget()
		*p = process{}
	}
	if !ok {
		p = &process{}
		key.host, key.name = strings.Clone(key.host), strings.Clone(key.name)
	}
	p.seen = e.Time
	if gone, full := r.processes.put(key, p); full {
		gone.forget()
	}
	return p
}

// forget drops what the process said of connections that had no result.
func (p *process) forget() {
	droppedUnanswered.Add(float64(len(p.attempts) + len(p.problems)))
	p.attempts, p.problems = nil, nil
}

// smtp says whether the line meant anything, and whether it could be read.
func (r *Reader) smtp(e Entry) (used, readable bool) {
	if id, rest, ok := cutQueueID(e.Text); ok {
		p := r.process(e)
		if !strings.HasPrefix(rest, "to=<") {
			p.skipped(strings.Clone(id), rest)
			return true, true
		}
		res, ok := parseResult(rest)
		if !ok {
			p.forget() // or it would be taken for the next delivery's
			return false, false
		}
		r.result(e, p, strings.Clone(id), res)
		return true, true
	}
	if s, ok := parseSummary(e.Text); ok {
		r.summary(e, r.process(e), s)
		return true, true
	}
	if server, detail, ok := parseVerifyError(e.Text); ok {
		a := r.process(e).attempt(server, func(a *attempt) bool {
			return a.fresh() && a.detail.Result == ""
		})
		a.detail = detail
		return true, true
	}
	if server, ok := parseHandshakeError(e.Text); ok {
		a := r.process(e).attempt(server, (*attempt).fresh)
		a.broken = true
		return true, true
	}
	if t, ok := parseTold(e.Text); ok {
		a := r.process(e).attempt(t.relay, func(a *attempt) bool { return !a.datagram })
		a.datagram = true
		if !t.unfinished {
			a.verdict = &t.failure
		}
		return true, true
	}
	return r.warning(e), true
}

// warning reads what begins with "warning: ".
func (r *Reader) warning(e Entry) bool {
	if strings.HasPrefix(e.Text, "warning: Could not report TLS handshake result to tlsrpt library") {
		// It follows the line beginning with TLSRPT at once.
		if p := r.process(e); len(p.attempts) > 0 {
			p.attempts[len(p.attempts)-1].datagram = false
		}
		return true
	}
	if server, unusable, ok := parseUnusable(e.Text); ok {
		a := r.process(e).attempt(server, (*attempt).fresh)
		a.unusable = unusable
		return true
	}
	domain, failure, ok := parseProblem(e.Text)
	if !ok {
		return false
	}
	p := r.process(e)
	if len(p.problems) == maxPending {
		droppedLimit.Inc()
		return true
	}
	p.problems = append(p.problems, Event{
		Kind: KindProblem, Domains: []string{domain}, MX: failure.ReceivingMX, Failure: failure,
	})
	return true
}

// summary notes a connection with TLS. The line comes after one about the certificate.
func (r *Reader) summary(e Entry, p *process, s summary) {
	r.summaries.put(nameKey{strings.Clone(e.Host), strings.Clone(e.Name)}, e.Time)
	p.secured, p.securedFor = s.relay, delivery{}
	if s.reused {
		return // its handshake was in another delivery
	}
	a := p.attempt(s.relay, (*attempt).fresh)
	a.peer, a.resumed = s.peer, s.resumed
}

// fresh says that no line told yet how the handshake ended.
func (a *attempt) fresh() bool { return a.peer == "" && !a.broken }

// attempt returns the connection to server that is under way and that fits, a new one
// if there is none.
func (p *process) attempt(server relay, fits func(*attempt) bool) *attempt {
	if n := len(p.attempts); n > 0 && p.attempts[n-1].id == "" {
		a := p.attempts[n-1]
		if a.relay.is(server) && fits(a) {
			a.relay.port = max(a.relay.port, server.port)
			return a
		}
		// Postfix says how a connection ended before it makes the next. This one was of
		// another process with the same number, which came to a bad end.
		p.attempts = p.attempts[:n-1]
		droppedUnanswered.Inc()
	}
	a := &attempt{relay: server}
	if len(p.attempts) == maxPending {
		droppedLimit.Inc()
		return a
	}
	p.attempts = append(p.attempts, a)
	return a
}

// skipped reads why one server was not the last one tried, or what became of a
// recipient there, without a result yet:
//
//	QID: Cannot start TLS: handshake failure
//	QID: lost connection with mx.example[192.0.2.1] while sending MAIL FROM
//	QID: host mx.example[192.0.2.1] said: 450 4.7.1 Try later (in reply to RCPT TO command)
func (p *process) skipped(id, text string) {
	p.bind(id)
	p.judge(id, relay{}, text)
	for _, end := range []string{textHandshake, "lost connection with ", "conversation with "} {
		if strings.HasPrefix(text, end) {
			p.secured = relay{} // the next connection may be to the same server, without TLS
		}
	}
}

// bind notes that all so far is about message id, and over.
func (p *process) bind(id string) {
	for _, a := range p.attempts {
		if a.id == "" {
			a.id = id
		}
	}
	for i := range p.problems {
		if p.problems[i].QueueID == "" {
			p.problems[i].QueueID = id
		}
	}
}

// The ends of a connection for want of TLS.
const (
	textNotVerified = "Server certificate not verified"
	textNotTrusted  = "Server certificate not trusted" // Postfix 3.5 and before
	textHandshake   = "Cannot start TLS: handshake failure"
	textNotOffered  = "TLS is required, but was not offered by host "
	textRefused     = "TLS is required, but host "
	textRefusedEnd  = " refused to start TLS: "
)

// judge takes the reason for a connection's end to the last of message id's. Lines
// about it may be missing, and even the server's name if it is not in the result.
func (p *process) judge(id string, server relay, text string) {
	switch {
	case text == textNotVerified, text == textNotTrusted:
		a := p.ended(id, server, func(a *attempt) bool { return a.peer != "" || a.detail.Result != "" })
		a.failed = a.detail
		if a.detail.Result == "" {
			a.failed.Result = ruapost.ResultCertificateNotTrusted
			if a.peer == PeerTrusted {
				a.failed.Result = ruapost.ResultCertificateHostMismatch
			}
		}
	case text == textHandshake:
		a := p.ended(id, server, func(a *attempt) bool { return a.broken || a.unusable.Result != "" })
		a.failed = handshakeFailure
	case strings.HasPrefix(text, textNotOffered):
		p.noStartTLS(id, text[len(textNotOffered):], "")
	case strings.HasPrefix(text, textRefused):
		p.noStartTLS(id, text[len(textRefused):], textRefusedEnd)
	}
}

var handshakeFailure = ruapost.TLSFailure{Result: ruapost.ResultValidationFailure, Reason: "tls-handshake-failure"}

func (p *process) noStartTLS(id, text, end string) {
	server, rest, ok := cutRelay(text)
	if !ok || !strings.HasPrefix(rest, end) || end == "" && rest != "" {
		return
	}
	a := p.ended(id, server, (*attempt).fresh)
	a.failed = ruapost.TLSFailure{Result: ruapost.ResultStartTLSNotSupported}
}

// ended returns the last connection for message id if it fits, a new one if it does not.
func (p *process) ended(id string, server relay, fits func(*attempt) bool) *attempt {
	if n := len(p.attempts); n > 0 {
		a := p.attempts[n-1]
		if a.id == id && a.failed.Result == "" && fits(a) && (server == relay{} || a.relay.is(server)) {
			return a
		}
	}
	a := p.attempt(server, func(*attempt) bool { return false })
	a.id = id
	return a
}

// result reads what became of a recipient.
func (r *Reader) result(e Entry, p *process, id string, res result) {
	now := delivery{id, strings.Clone(res.waited)}
	if p.last.delivery != now || p.last.relay != res.relay || len(p.attempts)+len(p.problems) > 0 {
		p.last = answered{delivery: now, relay: res.relay, batch: r.batch}
		p.settle(id, res)
		r.answer(e, p, res)
	} else {
		r.another(p, res.domain)
	}
	if r.unprotected(e, p, res) {
		r.tell(e, p, res, Event{Kind: KindPlaintext, MX: res.relay.host, IP: res.relay.ip, Port: res.relay.port})
		p.last.plaintext = true
	}
}

// settle leaves those attempts and problems that are about message id, and judges.
func (p *process) settle(id string, res result) {
	for _, a := range p.attempts {
		if a.id == "" && a.relay.is(res.relay) {
			a.id = id
		}
	}
	before := len(p.attempts) + len(p.problems)
	p.attempts = slices.DeleteFunc(p.attempts, func(a *attempt) bool { return a.id != id })
	p.problems = slices.DeleteFunc(p.problems, func(e Event) bool { return e.QueueID != "" && e.QueueID != id })
	droppedUnanswered.Add(float64(before - len(p.attempts) - len(p.problems)))
	if !res.sent() {
		p.judge(id, res.relay, res.text)
	}
}

// sent says that the text is the server's.
func (r *result) sent() bool { return r.status == "sent" || r.status == "deliverable" }

// answer tells what the process said before the result.
func (r *Reader) answer(e Entry, p *process, res result) {
	for _, event := range p.problems {
		r.tell(e, p, res, event)
	}
	for _, a := range p.attempts {
		if a.resumed {
			droppedResumed.Inc()
			continue
		}
		if a.relay.is(res.relay) {
			a.relay.port = res.relay.port // which the lines about STARTTLS lack
		}
		r.takeProxied(e, a)
		event := Event{
			Kind: KindSession, MX: a.relay.host, IP: a.relay.ip, Port: a.relay.port,
			Peer: a.peer, Failure: a.failure(), Datagram: a.datagram,
		}
		if event.Failure.Result != "" {
			event.Failure.ReceivingMX = a.relay.host
			if a.relay.ip.IsValid() {
				event.Failure.ReceivingIP = a.relay.ip.String()
			}
		}
		r.tell(e, p, res, event)
	}
	p.attempts, p.problems = nil, nil
}

// failure is the verdict. Postfix's own comes first.
func (a *attempt) failure() ruapost.TLSFailure {
	switch {
	case a.verdict != nil:
		return *a.verdict
	case a.unusable.Result != "":
		return a.unusable
	case a.failed.Result != "":
		return a.failed
	case a.broken:
		return handshakeFailure
	}
	return ruapost.TLSFailure{} // whatever the certificate was: nobody asked for it
}

// takeProxied joins a failure with what tlsproxy said of it.
func (r *Reader) takeProxied(e Entry, a *attempt) {
	key := proxiedKey{e.Host, a.relay.portless()}
	p, ok := r.proxied.get(key)
	if !ok || a.failed.Result == "" || a.datagram || e.Time.Sub(p.at) > proxiedAge {
		return
	}
	r.proxied.remove(key)
	a.datagram = p.datagram
	if a.verdict = p.verdict; a.verdict == nil && a.detail.Result == "" && p.detail.Result != "" {
		a.failed = p.detail
	}
}

// tell makes an event of the delivery that was answered last.
func (r *Reader) tell(e Entry, p *process, res result, event Event) {
	switch {
	case r.isOwn(e.Host, p.last.id):
		droppedOwn.Inc()
		return
	case event.Domains == nil && res.domain == "":
		droppedNoDomain.Inc()
		return
	case event.Domains == nil:
		event.Domains = []string{res.domain}
		p.last.events = append(p.last.events, len(r.events))
	}
	event.Time, event.QueueID = e.Time, p.last.id
	event.Host = ruapost.Clean(e.Host, maxReason)
	r.events = append(r.events, event)
}

// another adds a further recipient's domain to the delivery's events.
func (r *Reader) another(p *process, domain string) {
	if p.last.batch != r.batch || domain == "" {
		return // they are the caller's already
	}
	for _, i := range p.last.events {
		event := &r.events[i]
		if len(event.Domains) < maxDomains && !slices.Contains(event.Domains, domain) {
			event.Domains = append(event.Domains, domain)
		}
	}
}

// unprotected says whether this is a delivery without TLS that is not told yet. That no
// line about TLS came means something only where such lines are logged.
func (r *Reader) unprotected(e Entry, p *process, res result) bool {
	if p.securedFor == (delivery{}) {
		p.securedFor = p.last.delivery
	}
	secured := p.secured.is(res.relay) && p.securedFor == p.last.delivery
	switch {
	case p.last.plaintext || res.status != "sent" || !res.relay.ip.IsValid():
		return false
	case res.tls != "":
		return plaintext(res.tls)
	}
	at, ok := r.summaries.get(nameKey{e.Host, e.Name})
	return !secured && ok && e.Time.Sub(at) <= summaryAge
}
