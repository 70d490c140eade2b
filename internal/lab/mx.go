package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
)

// MXConfig describes a destination mail server.
type MXConfig struct {
	// Name is the server's host name, which starts its EHLO answer.
	Name string
	// Addr is the host:port to listen on.
	Addr string
	// Certificate is what STARTTLS shows; nil means that STARTTLS is not offered.
	Certificate *tls.Certificate
	// RefuseTLS makes the server offer STARTTLS but answer it with 454.
	RefuseTLS bool
	// BreakTLS makes the server take STARTTLS and then send what is no TLS.
	BreakTLS bool
	// Busy makes the server greet every client with 421.
	Busy bool
	// Mailbox takes the mails that arrive; nil gives the server one of its own.
	// Several servers may share one.
	Mailbox *Mailbox
}

// MX is a destination mail server that accepts every mail and remembers every
// connection.
type MX struct {
	Name    string
	Addr    netip.AddrPort
	Mailbox *Mailbox

	server *smtp.Server
	ln     net.Listener

	mu       sync.Mutex
	sessions []*Session
}

// Session is what a server saw of one TCP connection.
type Session struct {
	Remote netip.AddrPort
	// Hello is the last EHLO or HELO argument.
	Hello string
	// StartTLS tells that the client asked for TLS, whatever came of it.
	StartTLS bool
	// TLS tells that a handshake was completed, with the SNI name ServerName.
	TLS        bool
	ServerName string
	// Mails counts the mails that were accepted.
	Mails int
}

// Message is a mail that a server accepted.
type Message struct {
	// MX is the name of the server and Remote its client.
	MX     string
	Remote netip.AddrPort
	TLS    bool
	From   string
	To     []string
	// Data is the mail with CRLF line endings.
	Data []byte
}

// StartMX starts a server.
func StartMX(cfg MXConfig) (*MX, error) {
	ln, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("lab: MX %s: %w", cfg.Name, err)
	}
	m := &MX{
		Name:    cfg.Name,
		Addr:    ln.Addr().(*net.TCPAddr).AddrPort(),
		Mailbox: cfg.Mailbox,
		ln:      ln,
	}
	if m.Mailbox == nil {
		m.Mailbox = NewMailbox()
	}
	m.server = smtp.NewServer(smtp.BackendFunc(m.newSession))
	m.server.Domain = cfg.Name
	m.server.ErrorLog = log.New(io.Discard, "", 0) // aborted handshakes are what some tests are about
	m.server.ReadTimeout, m.server.WriteTimeout = time.Minute, time.Minute
	if cfg.Certificate != nil && !cfg.RefuseTLS {
		m.server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*cfg.Certificate}}
	}
	go m.server.Serve(&listener{Listener: ln, mx: m, cfg: cfg})
	return m, nil
}

// Close stops the server and cuts its connections.
func (m *MX) Close() {
	m.server.Close()
	m.ln.Close() // which Serve may not have told the server of yet
}

// Sessions returns what is known of the connections so far, in the order in
// which they came.
func (m *MX) Sessions() []Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	sessions := make([]Session, len(m.sessions))
	for i, s := range m.sessions {
		sessions[i] = *s
	}
	return sessions
}

func (m *MX) newSession(c *smtp.Conn) (smtp.Session, error) {
	remote := addrPort(c.Conn().RemoteAddr())
	m.mu.Lock()
	defer m.mu.Unlock()
	// The latest connection from this address and port is the one: ports are not
	// used twice at the same time.
	i := len(m.sessions) - 1
	for m.sessions[i].Remote != remote {
		i--
	}
	s := m.sessions[i]
	s.Hello = c.Hostname()
	if state, ok := c.TLSConnectionState(); ok {
		s.TLS, s.ServerName = true, state.ServerName
	}
	return &mxSession{mx: m, session: s}, nil
}

// mxSession is the envelope of the mail under way.
type mxSession struct {
	mx      *MX
	session *Session
	from    string
	to      []string
}

func (s *mxSession) Reset()        { s.from, s.to = "", nil }
func (s *mxSession) Logout() error { return nil }

func (s *mxSession) Mail(from string, _ *smtp.MailOptions) error {
	s.from = from
	return nil
}

func (s *mxSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.to = append(s.to, to)
	return nil
}

func (s *mxSession) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s.mx.mu.Lock()
	s.session.Mails++
	msg := Message{
		MX:     s.mx.Name,
		Remote: s.session.Remote,
		TLS:    s.session.TLS,
		From:   s.from,
		To:     slices.Clone(s.to),
		Data:   data,
	}
	s.mx.mu.Unlock()
	s.mx.Mailbox.add(msg)
	return nil
}

// listener notes every connection, also those that never say EHLO, and makes the
// server's answers those of a mail server on the Internet.
type listener struct {
	net.Listener
	mx  *MX
	cfg MXConfig
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	session := &Session{Remote: addrPort(c.RemoteAddr())}
	l.mx.mu.Lock()
	l.mx.sessions = append(l.mx.sessions, session)
	l.mx.mu.Unlock()
	return &conn{Conn: c, listener: l, session: session}, nil
}

// conn rewrites what go-smtp says: its EHLO answer, which does not start with the
// server's name as RFC 5321 4.1.1.1 wants it and as TLS reports quote it, and what
// the server is to do worse.
type conn struct {
	net.Conn
	listener *listener
	session  *Session
	spoil    bool // what is written from now on
}

func (c *conn) Write(p []byte) (int, error) {
	out := p
	says := func(start string) bool { return bytes.HasPrefix(p, []byte(start)) }
	switch cfg := c.listener.cfg; {
	case says("250-Hello "):
		out = c.hello(p)
	case says("220 2.0.0 Ready to start TLS"):
		c.startTLS()
		c.spoil = cfg.BreakTLS
	case says("502 5.5.1 TLS ") && cfg.RefuseTLS:
		c.startTLS()
		out = []byte("454 4.7.0 TLS not available due to temporary reason\r\n")
	case says("220 ") && cfg.Busy:
		out = []byte("421 4.3.2 Come back later\r\n")
	case c.spoil:
		out = []byte("500 5.5.1 This is no TLS\r\n")
	}
	if _, err := c.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// hello returns the EHLO answer that stands for go-smtp's.
func (c *conn) hello(answer []byte) []byte {
	client, rest, _ := bytes.Cut(bytes.TrimPrefix(answer, []byte("250-Hello ")), []byte("\r\n"))
	out := fmt.Appendf(nil, "250-%s greets %s\r\n", c.listener.mx.Name, client)
	if c.listener.cfg.RefuseTLS {
		out = append(out, "250-STARTTLS\r\n"...)
	}
	return append(out, rest...)
}

// startTLS notes that the client asked for TLS.
func (c *conn) startTLS() {
	c.listener.mx.mu.Lock()
	defer c.listener.mx.mu.Unlock()
	c.session.StartTLS = true
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Mailbox collects mails.
type Mailbox struct {
	mu       sync.Mutex
	messages []Message
	changed  chan struct{} // closed and replaced when a mail arrives
}

// NewMailbox returns an empty mailbox.
func NewMailbox() *Mailbox { return &Mailbox{changed: make(chan struct{})} }

func (b *Mailbox) add(m Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.messages = append(b.messages, m)
	close(b.changed)
	b.changed = make(chan struct{})
}

// Messages returns the mails that have arrived so far, in order.
func (b *Mailbox) Messages() []Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.messages)
}

// Wait returns the mails as soon as there are at least n. If ctx ends before, it
// returns those that have arrived and an error that says how many are missing.
func (b *Mailbox) Wait(ctx context.Context, n int) ([]Message, error) {
	for {
		b.mu.Lock()
		messages, changed := slices.Clone(b.messages), b.changed
		b.mu.Unlock()
		if len(messages) >= n {
			return messages, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return messages, fmt.Errorf("lab: %d of %d mails arrived: %w", len(messages), n, context.Cause(ctx))
		}
	}
}
