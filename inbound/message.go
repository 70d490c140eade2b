package inbound

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"strings"

	"ruapost"
	"ruapost/dmarc"
)

// Names of header fields.
const (
	authResField   = "Authentication-Results"
	signatureField = "DKIM-Signature"
)

// field is a header field as Postfix gave it: the value begins behind the colon,
// blanks included, folds are LF.
type field struct{ name, value string }

// is says whether the field has that name. Blanks before the colon are no part of
// it (RFC 5322 4.5).
func (f field) is(name string) bool { return strings.EqualFold(strings.TrimSpace(f.name), name) }

// message is a message under way.
type message struct {
	service *Service
	ctx     context.Context
	cancel  context.CancelFunc
	judged  bool // false: only fields that claim to be ours are looked for

	client     netip.Addr
	helo       string
	mailFrom   string
	fromDomain string // of MAIL FROM, empty if it has none
	spfDomain  string // of the identity that SPF checks, empty if it has none
	queueID    string

	// rcptDomain is the domain of the recipients so far; rcptMany that they have
	// different ones or that there are too many to tell.
	rcptDomain string
	rcptMany   bool
	rcpts      int
	firstRcpt  string

	header     []field
	headerSize int
	folds      int
	authRes    int    // Authentication-Results fields so far
	forged     []int  // the indexes, from 1, of those that claim to be ours; one more than MaxForged
	author     string // the author domain, empty if there is not exactly one

	spf  chan ruapost.SPFResult // has room for one
	dkim *dkimCheck             // nil if there is nothing to verify
}

func newMessage(ctx context.Context, service *Service) *message {
	m := &message{service: service, spf: make(chan ruapost.SPFResult, 1)}
	m.ctx, m.cancel = context.WithCancel(ctx)
	return m
}

// begin starts to judge the message. DNS for SPF goes on while the rest of it
// arrives.
func (m *message) begin(client netip.Addr, helo, mailFrom string) {
	m.judged, m.client = true, client
	m.identify(helo, mailFrom)
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
}

func (m *message) addRecipient(to string) {
	if m.rcpts++; m.rcpts > maxRecipients {
		if m.rcpts == maxRecipients+1 {
			limits.WithLabelValues("recipients").Inc()
		}
		m.rcptMany = true
		return
	}
	domain := domainOf(to)
	switch {
	case domain == "":
		m.rcptMany = true
	case m.rcpts == 1:
		m.rcptDomain = domain
	case m.rcptDomain != domain:
		m.rcptMany = true
	}
	if m.rcpts == 1 {
		m.firstRcpt = to
	}
}

// envelopeTo is the recipients' domain if they have only one.
func (m *message) envelopeTo() string {
	if m.rcptMany {
		return ""
	}
	return m.rcptDomain
}

// aboutReports says whether the message is a report or goes to where reports come
// from. If such a message caused a report, the answer to it could cause the next.
func (m *message) aboutReports() bool {
	if m.rcpts == 1 && strings.EqualFold(m.firstRcpt, m.service.Config.ReportAddress) {
		return true
	}
	const prefix = "Report Domain:" // RFC 9990 3.5.2, RFC 8460 5.3
	for _, f := range m.header {
		if !f.is("Subject") {
			continue
		}
		subject := strings.Join(strings.Fields(f.value), " ")
		if len(subject) >= len(prefix) && strings.EqualFold(subject[:len(prefix)], prefix) {
			return true
		}
	}
	return false
}

func (m *message) addHeader(f field) {
	if f.is(authResField) {
		m.authRes++
		if len(m.forged) <= MaxForged && claimsToBe(f.value, m.service.Config.AuthservID) {
			m.forged = append(m.forged, m.authRes)
		}
	}
	if !m.judged || m.headerTooLarge() {
		return
	}
	if m.headerSize += len(f.name) + len(f.value) + 3; m.headerTooLarge() {
		limits.WithLabelValues("header").Inc()
		m.header = nil
		return
	}
	m.folds += strings.Count(f.value, "\n")
	m.header = append(m.header, f)
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

// endOfHeader starts all that can go on while the body arrives.
func (m *message) endOfHeader(queueID string) {
	m.queueID = queueID
	if !m.judged || m.headerTooLarge() {
		return
	}
	var from []string
	for _, f := range m.header {
		if f.is("From") {
			from = append(from, f.value)
		}
	}
	authors, err := dmarc.AuthorDomains(from)
	if err == nil && len(authors) == 1 {
		m.author = authors[0]
		go func() {
			defer caught(func() {})
			// The walk's answers wait in the resolver's cache for the verdict.
			dmarc.Discover(m.ctx, m.service.Resolver, m.author)
		}()
	} else {
		// RFC 9989 5.3.1: with several author domains a receiver may stop here.
		slog.Debug("no single author domain", "queue_id", m.queueID, "domains", authors, "err", err)
	}
	m.dkim = m.startDKIM(m.author)
}

func (m *message) body(chunk []byte) {
	if m.dkim != nil {
		m.dkim.write(chunk)
	}
}

// writeHeader writes the header as it came over the wire, without the DKIM-Signature
// fields that are not to be verified: go-msgauth verifies the topmost ones, which
// need not be those chosen, and would spend on the others what they were left out
// to save. A signature that covers one of them fails.
func (m *message) writeHeader(w io.Writer, verify map[int]bool) error {
	var b strings.Builder
	for i, f := range m.header {
		if f.is(signatureField) && !verify[i] {
			continue
		}
		b.WriteString(f.name)
		b.WriteByte(':')
		b.WriteString(crlf(f.value))
		b.WriteString("\r\n")
	}
	b.WriteString("\r\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// crlf turns the folds of a header value, which Postfix gives as LF, into what the
// signer saw.
func crlf(value string) string {
	if !strings.Contains(value, "\n") {
		return value
	}
	return strings.ReplaceAll(strings.ReplaceAll(value, "\r\n", "\n"), "\n", "\r\n")
}
