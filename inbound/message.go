package inbound

import (
	"context"
	"io"
	"net/netip"
	"strings"

	"ruapost"
	"ruapost/dmarc"
)

// field is a header field as Postfix gave it: the value begins behind the colon,
// blanks included, folds are LF.
type field struct{ name, value string }

// message is a message under way.
type message struct {
	service *Service
	ctx     context.Context
	cancel  context.CancelFunc

	client   netip.Addr
	helo     string
	mailFrom string
	queueID  string

	// toDomain is the domain of the recipients so far; toMany that they have
	// different ones or that there are too many to tell.
	toDomain string
	toMany   bool
	rcpts    int

	header     []field
	headerSize int
	authRes    int   // Authentication-Results fields so far
	forged     []int // the indexes, from 1, of those that claim to be ours

	spf  chan ruapost.SPFResult // has room for one
	dkim *dkimCheck             // nil if there is nothing to verify
}

func newMessage(ctx context.Context, service *Service, client netip.Addr, helo, mailFrom string) *message {
	m := &message{
		service: service, client: client, helo: helo,
		mailFrom: mailFrom,
		spf:      make(chan ruapost.SPFResult, 1),
	}
	m.ctx, m.cancel = context.WithCancel(ctx)
	// DNS for SPF goes on while the rest of the message arrives.
	go func() { m.spf <- m.checkSPF() }()
	return m
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
		if !m.toMany {
			limits.WithLabelValues("recipients").Inc()
		}
		m.toMany = true
		return
	}
	domain, err := ruapost.ParseDomain(to[strings.LastIndexByte(to, '@')+1:])
	switch {
	case err != nil:
		m.toMany = true
	case m.rcpts == 1:
		m.toDomain = domain
	case m.toDomain != domain:
		m.toMany = true
	}
}

// envelopeTo is the recipients' domain if they have only one.
func (m *message) envelopeTo() string {
	if m.toMany {
		return ""
	}
	return m.toDomain
}

// envelopeFrom is the domain of MAIL FROM, empty for the null reverse-path and for
// one without a domain.
func (m *message) envelopeFrom() string {
	_, domain, ok := cutLast(m.mailFrom, "@")
	if !ok {
		return ""
	}
	d, err := ruapost.ParseDomain(domain)
	if err != nil {
		return ""
	}
	return d
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func (m *message) addHeader(name, value string) {
	if strings.EqualFold(name, authResField) {
		m.authRes++
		if claimsToBe(value, m.service.Config.AuthservID) {
			m.forged = append(m.forged, m.authRes)
		}
	}
	if m.headerSize > MaxHeader {
		return
	}
	if m.headerSize += len(name) + len(value) + 3; m.headerSize > MaxHeader {
		limits.WithLabelValues("header").Inc()
		m.header = nil
		return
	}
	m.header = append(m.header, field{name, value})
}

func (m *message) headerTooLarge() bool { return m.headerSize > MaxHeader }

// authors returns the author domains (RFC 9989 5.3.1).
func (m *message) authors() ([]string, error) {
	var from []string
	for _, f := range m.header {
		if strings.EqualFold(f.name, "From") {
			from = append(from, f.value)
		}
	}
	return dmarc.AuthorDomains(from)
}

// endOfHeader starts all that can go on while the body arrives.
func (m *message) endOfHeader() {
	if m.headerTooLarge() {
		return
	}
	authors, err := m.authors()
	var author string
	if err == nil && len(authors) == 1 {
		author = authors[0]
		// The walk's answers wait in the resolver's cache for the verdict.
		go dmarc.Discover(m.ctx, m.service.Resolver, author)
	}
	m.dkim = m.startDKIM(author)
}

func (m *message) body(chunk []byte) {
	if m.dkim != nil {
		m.dkim.write(chunk)
	}
}

// writeHeader writes the header as it came over the wire, without those
// DKIM-Signature fields that are not in keep.
func (m *message) writeHeader(w io.Writer, keep map[int]bool) error {
	var b strings.Builder
	for i, f := range m.header {
		if isSignature(f) && !keep[i] {
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
