package inbound

import (
	"bytes"
	"context"
	"log/slog"
	"mime"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"ruapost"
	"ruapost/arc"
	"ruapost/authres"
	"ruapost/dmarc"
	"ruapost/internal/mailtouri"
)

// Names of header fields.
const (
	authResField   = "Authentication-Results"
	signatureField = "DKIM-Signature"
	// quarantineField marks what fails DMARC and is to be sorted out by a filter.
	quarantineField = "X-DMARC-Quarantine"
)

// fieldCost is what a field takes in memory besides its octets, in bytes.
const fieldCost = 64

// field is a header field as Postfix gave it: the value begins behind the colon,
// blanks included, folds are LF.
type field struct{ name, value string }

// is says whether the field has that name. Blanks before the colon are no part of
// it (RFC 5322 4.5).
func (f field) is(name string) bool { return strings.EqualFold(strings.TrimSpace(f.name), name) }

// message is a message under way.
type message struct {
	service *Service
	config  *Config
	ctx     context.Context
	cancel  context.CancelFunc
	judged  bool // false: only fields that claim to be ours are looked for

	client     netip.Addr
	helo       string
	mailFrom   string
	fromDomain string // of MAIL FROM, empty if it has none
	spfDomain  string // of the identity that SPF checks, empty if it has none
	queueID    string

	// rcptDomains are the domains of the recipients so far; rcptUnknown says that there
	// are others.
	rcptDomains map[string]bool
	rcptUnknown bool
	rcpts       int
	toReports   bool // a recipient is where our own reports come from

	header     []field
	headerSize int
	fromSize   int // of From fields of a header that is too large
	folds      int
	authRes    int      // Authentication-Results fields so far
	forged     []int    // the indexes, from 1, of those that claim to be ours; one more than MaxForged
	marked     int      // fields that say that the message is quarantined
	authors    []string // the author domains that are evaluated
	authorErr  error    // why they are not all there is to say, or none

	received bool                   // a Received field was there, what follows is older
	upstream upstream               // in trust mode
	spf      chan ruapost.SPFResult // has room for one
	dkim     *dkimCheck             // nil if there is nothing to verify
	arc      *arc.Verifier          // nil if there is nothing to validate
}

func newMessage(ctx context.Context, service *Service) *message {
	m := &message{
		service: service, config: service.config(),
		rcptDomains: map[string]bool{}, spf: make(chan ruapost.SPFResult, 1),
	}
	m.ctx, m.cancel = context.WithCancel(ctx)
	return m
}

// begin starts to judge the message. DNS for SPF goes on while the rest of it
// arrives.
func (m *message) begin(client netip.Addr, helo, mailFrom string) {
	m.judged, m.client = true, client
	m.identify(helo, mailFrom)
	if !m.trusts() {
		m.startSPF()
	}
}

// trusts says whether results of milters before this one are taken.
func (m *message) trusts() bool { return len(m.config.TrustedAuthservIDs) > 0 }

func (m *message) startSPF() {
	go func() { m.spf <- m.checkSPF() }()
}

// identify finds out who SPF is about: the MAIL FROM identity, or with a null
// reverse-path the HELO name (RFC 7208 2.4).
func (m *message) identify(helo, mailFrom string) {
	m.helo, m.mailFrom, m.fromDomain = helo, mailFrom, domainOf(mailFrom)
	m.spfDomain = m.fromDomain
	if mailFrom == "" {
		m.spfDomain = domainOf("@" + helo)
	}
	// RFC 7208 4.3: no multi-label domain name, result none. An address literal as
	// HELO is one such.
	if ruapost.Labels(m.spfDomain) < 2 {
		m.spfDomain = ""
	}
}

// domainOf returns the domain of a mail address, empty if it has none.
func domainOf(address string) string {
	at := strings.LastIndexByte(address, '@')
	if at < 0 {
		return ""
	}
	domain, err := ruapost.ParseDomain(address[at+1:])
	if err != nil {
		return ""
	}
	return domain
}

// abandon ends whatever still runs for the message.
func (m *message) abandon() {
	m.cancel()
	if m.dkim != nil {
		m.dkim.abandon()
	}
	m.arc.Abandon()
}

func (m *message) addRecipient(to string) {
	m.toReports = m.toReports || m.config.isReportAddress(to)
	if m.rcpts++; m.rcpts > maxRecipients {
		if m.rcpts == maxRecipients+1 {
			limits.WithLabelValues("recipients").Inc()
		}
		m.rcptUnknown = true
		return
	}
	if domain := domainOf(to); domain != "" {
		m.rcptDomains[domain] = true
	} else {
		m.rcptUnknown = true
	}
}

// envelopeTo is the recipients' domain if they have only one.
func (m *message) envelopeTo() string {
	if len(m.rcptDomains) == 1 && !m.rcptUnknown {
		for domain := range m.rcptDomains {
			return domain
		}
	}
	return ""
}

// allRecipientsIn says whether all recipients are in these domains or below.
func (m *message) allRecipientsIn(domains []string) bool {
	for domain := range m.rcptDomains {
		if !anyWithin(domain, domains) {
			return false
		}
	}
	return len(m.rcptDomains) > 0 && !m.rcptUnknown
}

// isReportAddress says whether our own reports come from the address: bounces and
// auto-replies go there, possibly with an extension.
func (c *Config) isReportAddress(address string) bool {
	return mailtouri.IsMailbox(address, c.ReportAddress, "+"+c.ReportDelimiter)
}

// aboutReports says whether the message is a report or goes to where reports come
// from. If such a message caused a report, the answer to it could cause the next.
func (m *message) aboutReports() bool {
	if m.toReports {
		return true
	}
	for _, f := range m.header {
		switch {
		case f.is("TLS-Report-Domain"): // RFC 8460 5.3
			return true
		case f.is("Subject") && reportSubject.MatchString(decoded(f.value)):
			return true
		}
	}
	return false
}

// reportSubject is how the subjects of DMARC and TLS reports begin (RFC 9990 3.5.2,
// RFC 8460 5.3), and what others write: Microsoft "[Preview] Report Domain:", Amazon SES
// "Dmarc Aggregate Report Domain:", and some just "DMARC report".
var reportSubject = regexp.MustCompile(`(?i)^\s*(\[[^\]]*\]\s*)?(report\s+domain\s*:|dmarc\s+((aggregate|failure|forensic)\s+)?report\b)`)

// maxSubject is how much of a subject is looked at, in octets: decoding takes time that
// grows with the square of it.
const maxSubject = 500

// decoded returns the beginning of a header value with its encoded words (RFC 2047) put
// into UTF-8, or as it is if they cannot be.
func decoded(value string) string {
	value = value[:min(len(value), maxSubject)]
	text, err := new(mime.WordDecoder).DecodeHeader(value)
	if err != nil {
		return value
	}
	return text
}

// listIDs returns the list identifiers of the message in lower case, without what
// describes them (RFC 2919 3).
func (m *message) listIDs() []string {
	var ids []string
	for _, f := range m.header {
		if !f.is("List-Id") {
			continue
		}
		id := f.value[strings.LastIndexByte(f.value, '<')+1:]
		id, _, _ = strings.Cut(id, ">")
		ids = append(ids, strings.ToLower(strings.Join(strings.Fields(id), "")))
	}
	return ids
}

func (m *message) addHeader(f field) {
	m.received = m.received || f.is("Received")
	if f.is(quarantineField) {
		m.marked++
	}
	if f.is(authResField) {
		m.authRes++
		if len(m.forged) <= MaxForged && m.isForged(f.value) {
			m.forged = append(m.forged, m.authRes)
		}
	}
	if !m.judged {
		return
	}
	if m.headerTooLarge() {
		m.addAuthor(f)
		return
	}
	if m.headerSize += len(f.name) + len(f.value) + fieldCost; m.headerTooLarge() {
		limits.WithLabelValues("header").Inc()
		header := m.header
		m.header = nil
		for _, f := range append(header, f) {
			m.addAuthor(f)
		}
		return
	}
	m.folds += strings.Count(f.value, "\n")
	m.header = append(m.header, f)
}

// addAuthor keeps a field of a header that is too large if the policy depends on it.
func (m *message) addAuthor(f field) {
	if !f.is("From") {
		return
	}
	if m.fromSize += len(f.value) + fieldCost; m.fromSize <= MaxFromFields {
		m.header = append(m.header, f)
	}
}

// isForged says whether an Authentication-Results field is to be removed (RFC 8601 5):
// it claims to be ours, or to be of a milter of ours where that cannot have put it. If
// such a milter has our own authserv-id, what it found stands in our field.
func (m *message) isForged(value string) bool {
	return authres.ClaimsToBe(value, m.config.AuthservID) ||
		m.received && slices.ContainsFunc(m.config.TrustedAuthservIDs, func(id string) bool { return authres.ClaimsToBe(value, id) })
}

func (m *message) headerTooLarge() bool { return m.headerSize > MaxHeader }

// forgeries returns the indexes of the fields to remove. If they are too many those
// further down stay, where no reader should look behind ours.
func (m *message) forgeries() []int {
	if len(m.forged) > MaxForged {
		limits.WithLabelValues("forged").Inc()
		return m.forged[:MaxForged]
	}
	return m.forged
}

// marks returns the indexes of the fields that say that the message is quarantined,
// which here only we do. As of forgeries, the topmost are removed.
func (m *message) marks() (indexes []int) {
	for i := range min(m.marked, MaxForged) {
		indexes = append(indexes, i+1)
	}
	return indexes
}

// endOfHeader starts all that can go on while the body arrives.
func (m *message) endOfHeader(queueID string) {
	m.queueID = queueID
	if !m.judged {
		return
	}
	m.findAuthors()
	signatures := m.signatures()
	if m.trusts() {
		m.upstream = readUpstream(m.header, m.config.TrustedAuthservIDs, m.spfResult(""), signatures)
		m.service.countUpstream(&m.upstream, m.queueID)
		if m.upstream.spf == nil {
			m.startSPF()
		}
	}
	if m.headerTooLarge() {
		return
	}
	if !m.upstream.foundDKIM {
		m.dkim = m.startDKIM(signatures)
	}
	if m.upstream.arc == "" {
		m.arc = m.startARC()
	}
}

// findAuthors asks for the policies of the author domains. The answers wait in the
// resolver's cache for the verdict.
func (m *message) findAuthors() {
	var from []string
	for _, f := range m.header {
		if f.is("From") {
			from = append(from, f.value)
		}
	}
	m.authors, m.authorErr = dmarc.AuthorDomains(from)
	if m.authorErr != nil {
		slog.Debug("author domains", "queue_id", m.queueID, "domains", m.authors, "err", m.authorErr)
	}
	evaluator := m.evaluator()
	for _, author := range m.authors {
		go func() {
			defer caught(func() {})
			evaluator.Prefetch(m.ctx, author)
		}()
	}
}

func (m *message) evaluator() *dmarc.Evaluator {
	return &dmarc.Evaluator{Resolver: m.service.Resolver, Suffixes: m.config.Suffixes}
}

func (m *message) body(chunk []byte) {
	if m.dkim != nil {
		m.dkim.write(chunk)
	}
	m.arc.Write(chunk)
}

// signedHeader returns the header as it came over the wire as far as a signature has to
// do with it: its own field and those that it names. Signatures above its own are left
// out: they came later, and go-msgauth verifies the topmost.
func (m *message) signedHeader(sig *signature) []byte {
	signed := map[string]bool{}
	for _, name := range sig.names {
		signed[name] = true
	}
	var b bytes.Buffer
	for i, f := range m.header {
		covered := signed[strings.ToLower(strings.TrimSpace(f.name))] && (i > sig.index || !f.is(signatureField))
		if i != sig.index && !covered {
			continue
		}
		b.WriteString(f.name)
		b.WriteByte(':')
		if sig.relaxed && i != sig.index {
			// go-msgauth copies a field at each fold, which relaxed canonicalization takes
			// away (RFC 6376 3.4.2).
			b.WriteString(unfolded(f.value))
		} else {
			b.WriteString(crlf(f.value))
		}
		b.WriteString("\r\n")
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// unfolded returns a value without the line ends of its folds; the blanks behind them stay.
func unfolded(value string) string {
	if !strings.Contains(value, "\n") {
		return value
	}
	return strings.ReplaceAll(strings.ReplaceAll(value, "\r\n", ""), "\n", "")
}

// crlf turns the folds of a header value, which Postfix gives as LF, into what the
// signer saw.
func crlf(value string) string {
	if !strings.Contains(value, "\n") {
		return value
	}
	return strings.ReplaceAll(strings.ReplaceAll(value, "\r\n", "\n"), "\n", "\r\n")
}
