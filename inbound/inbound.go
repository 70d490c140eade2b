// Package inbound turns what Postfix tells a milter about a message into an
// Evaluation: it verifies SPF and DKIM, finds the DMARC policy, decides alignment,
// does what the policy and the administrator ask, adds an Authentication-Results field
// and records the result.
//
// No fault here may cost mail: whatever goes wrong inside, the answer to Postfix is
// Continue. A message waits for DNS at most Config.Budget and for the
// record at most Config.RecordTimeout.
package inbound

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emersion/go-milter"

	"ruapost"
	"ruapost/dmarc"
	"ruapost/resolver"
	"ruapost/totals"
)

// Bounds of a connection and a message.
const (
	// DefaultBudget is Config.Budget if that is not set.
	DefaultBudget = 20 * time.Second
	// MaxHeader is the size in bytes of a message's header, of which each field counts
	// as fieldCost more. Of a larger one only From is looked at, up to MaxFromFields: no
	// DKIM and no ARC.
	MaxHeader     = 1 << 20
	MaxFromFields = 64 << 10
	// MaxFields and MaxFolds are the numbers of a message's header fields and of
	// their lines beyond the first. Signatures of a message with more get the result
	// "policy": go-msgauth goes over all fields for each name in a signature's h=, and
	// copies a field at each of its folds.
	MaxFields = 2000
	MaxFolds  = 5000
	// MaxForged is the number of Authentication-Results fields that are removed, the
	// topmost ones. Removing takes Postfix time that grows with the square of the
	// number, and thousands make its cleanup(8) crash.
	MaxForged = 200
	// MaxSignatures is the number of DKIM signatures of a message that are
	// verified.
	MaxSignatures = 10
	// MaxSignedFields is the number of names in a signature's h=. One with more gets
	// the result "policy".
	MaxSignedFields = 200
	// MaxSignedHeader is the size in bytes of the header fields that the signatures of a
	// message cover, each counted once for each signature: so much of the header is
	// copied. Signatures beyond get the result "policy".
	MaxSignedHeader = MaxHeader
	// MaxBlankLines is the size in bytes of a run of blank lines, or of any
	// whitespace, inside a body, and MaxBlankCopies the size of all copies of one, which
	// are as many as signatures. Signatures of a message with a longer one get the
	// result "policy": hashing it costs time that grows with the square of its length.
	MaxBlankLines  = 64 << 10
	MaxBlankCopies = 96 << 10
	// MaxKeyRecord is the size in bytes of a DKIM key record. A larger one cannot
	// hold a key of 8192 bits or less.
	MaxKeyRecord = 2 << 10

	// idleTimeout is how long Postfix may be silent. It says nothing from the last
	// recipient to the end of a message, which a slow client may take hours to send.
	idleTimeout  = 24 * time.Hour
	writeTimeout = 30 * time.Second
	readBuffer   = 16 << 10
)

// Resolver is what this package asks of DNS.
type Resolver interface {
	dmarc.Resolver
	SPF(client netip.Addr) resolver.SPF
}

// Recorder is what this package asks of the store. RecordEvaluation returns when e
// is on disk or ctx ends; in the latter case e may still be recorded later.
type Recorder interface {
	RecordEvaluation(ctx context.Context, e *ruapost.Evaluation) error
}

// Config is what the administrator decides.
type Config struct {
	// AuthservID names this system in Authentication-Results (RFC 8601 2.5).
	AuthservID string
	// TrustedNetworks are the clients whose mail is their own affair: they are not
	// judged, and no reports are made about them.
	TrustedNetworks []netip.Prefix
	// Suffixes find organizational domains as RFC 7489 does; nil is the tree walk of
	// RFC 9989.
	Suffixes dmarc.Suffixes
	// Enforce is the most that is done with a message that fails: none, also if it is
	// empty, quarantine or reject.
	Enforce ruapost.Disposition
	// MarkQuarantine marks a message with a header field instead of having Postfix
	// hold it.
	MarkQuarantine bool
	// DeferTemperror defers a message that a temporary error keeps from being judged,
	// if its domain asks for quarantine or reject, or may do so.
	DeferTemperror bool
	// TrustedAuthservIDs are those of milters before this one (RFC 8601 2.5), whose
	// results of SPF, DKIM and ARC are taken. What they have no result of is verified
	// here, as is everything if there are none.
	TrustedAuthservIDs []string
	// TrustedSealers are domains. A message that fails has an exception from the policy
	// if its ARC chain passes and one of them, or one below, says that it passed there.
	TrustedSealers []string
	// Overrides are exceptions from the policies, the first that matches counts.
	Overrides []Override
	// ReportUnknown makes failing mail of domains that are not known to exchange mail
	// with this system cause reports, too.
	ReportUnknown bool
	// MinInterval is the shortest window of a domain's reports; domains may ask for one
	// from there to a day (RFC 7489 6.3, ri). 0 is a day.
	MinInterval time.Duration
	// ReportAddress is where our own reports come from. Mail to it causes no report.
	// Empty if there is none.
	ReportAddress string
	// ReportDelimiter is what may stand before an extension in its local part, beside "+".
	ReportDelimiter string
	// Budget is how long a message may wait for DNS in all: half of it while its body
	// arrives, for DKIM keys, and half at its end, for everything else. It does not
	// begin at the header, because a body may take minutes by itself. What is not
	// known then counts as a temporary error. Postfix itself waits 300 s
	// (milter_content_timeout).
	Budget time.Duration
	// RecordTimeout is how long the answer at the end of a message waits for the
	// evaluation to be on disk.
	RecordTimeout time.Duration
}

// halfBudget is what a message may wait for DNS at a time.
func (c *Config) halfBudget() time.Duration { return cmp.Or(c.Budget, DefaultBudget) / 2 }

// window is the length of the windows that messages under a record are reported in.
func (c *Config) window(record *dmarc.Record) time.Duration {
	return record.Window(cmp.Or(c.MinInterval, 24*time.Hour))
}

// Service judges the messages of any number of milter connections.
type Service struct {
	Config   Config
	Resolver Resolver
	Recorder Recorder
	// Totals, unless nil, counts all messages that are judged, also those that nobody wants
	// reports about.
	Totals *totals.Counter
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Draw returns a number from 0 to 99, for the sampling of RFC 7489 6.6.4; nil means
	// a random one.
	Draw func() int

	reloaded   atomic.Pointer[Config] // nil: Config
	complained atomic.Int64           // when upstream was last found silent, Unix time
}

// Reload makes messages that begin from now on be judged by cfg.
func (s *Service) Reload(cfg Config) { s.reloaded.Store(&cfg) }

func (s *Service) config() *Config {
	if cfg := s.reloaded.Load(); cfg != nil {
		return cfg
	}
	return &s.Config
}

func (s *Service) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Service) draw() int {
	if s.Draw != nil {
		return s.Draw()
	}
	return rand.IntN(100)
}

// ServeConn speaks the milter protocol on conn until Postfix ends it, ctx ends
// while no message is under way, or an error makes it useless. It closes conn.
func (s *Service) ServeConn(ctx context.Context, conn net.Conn) {
	// A message under way is judged to its end even if we are to stop: what is cut
	// off would look like a temporary error of its sender's DNS.
	sessionCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()

	session := &session{service: s, ctx: sessionCtx}
	c := &milterConn{Conn: conn, r: bufio.NewReaderSize(conn, readBuffer), gone: make(chan struct{})}
	c.over = func() bool { return ctx.Err() != nil && session.idle() }
	server := &milter.Server{
		// Always the same object: go-milter asks for a new one after every answer
		// other than Continue, and would forget the client's address with the old
		// one.
		NewMilter: func() milter.Milter { return session },
		Actions:   milter.OptAddHeader | milter.OptChangeHeader | milter.OptQuarantine,
		Protocol: milter.OptNoUnknown | milter.OptNoData |
			milter.OptNoHeloReply | milter.OptNoRcptReply | milter.OptNoHeaderReply |
			milter.OptNoEOHReply | milter.OptNoBodyReply |
			// Without it Postfix takes away a blank that DKIM's simple
			// canonicalization needs.
			milter.OptHeaderLeadingSpace,
	}
	stop := context.AfterFunc(ctx, func() {
		// Otherwise c ends when the message does. Closing conn could cut off the answer
		// to the last one.
		if session.idle() {
			conn.SetReadDeadline(time.Now()) // go-milter then ends the session and closes c
		}
	})
	defer stop()
	server.Serve(&oneConn{conn: c}) // returns at once; the connection lives on
	<-c.gone
	session.reset()
}

// oneConn is a listener with a single connection: one milter.Server per connection
// keeps state, limits and the end of a connection in our hands.
type oneConn struct {
	conn net.Conn
}

func (l *oneConn) Accept() (net.Conn, error) {
	if l.conn == nil {
		return nil, net.ErrClosed
	}
	conn := l.conn
	l.conn = nil
	return conn, nil
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return nil }

// milterConn adds timeouts, a buffer and an end to a connection. It is closed by
// go-milter alone, when it is done with the session.
type milterConn struct {
	net.Conn
	r    *bufio.Reader
	once sync.Once
	gone chan struct{} // closed with the connection
	over func() bool   // nothing more is to be read
}

func (c *milterConn) Read(p []byte) (int, error) {
	if c.r.Buffered() == 0 {
		// In this order: what makes it over sets a deadline, too.
		c.SetReadDeadline(time.Now().Add(idleTimeout))
		if c.over() {
			return 0, io.EOF
		}
	}
	n, err := c.r.Read(p)
	// go-milter logs every error but io.EOF; a connection that was silent for too
	// long or that we closed ourselves is no news.
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		err = io.EOF
	}
	return n, err
}

func (c *milterConn) Write(p []byte) (int, error) {
	c.SetWriteDeadline(time.Now().Add(writeTimeout))
	return c.Conn.Write(p)
}

func (c *milterConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.gone) })
	return err
}

// tally counts a message that does not come again.
func (s *Service) tally(j *judgement) {
	if j.deferred {
		return
	}
	o := ruapost.OutcomeNoPolicy
	switch j.result {
	case dmarc.ResultPass:
		o = ruapost.OutcomePass
	case dmarc.ResultTemperror:
		o = ruapost.OutcomeTemperror
	case dmarc.ResultPermerror:
		o = ruapost.OutcomePermerror
	case dmarc.ResultFail:
		switch j.disposition {
		case ruapost.DispositionQuarantine:
			o = ruapost.OutcomeQuarantine
		case ruapost.DispositionReject:
			o = ruapost.OutcomeReject
		default:
			o = ruapost.OutcomeFail
		}
	}
	s.Totals.Add(j.when, ruapost.KindDMARC, o)
}

// record waits for the evaluation to be on disk, but no longer than mail may wait.
func (s *Service) record(e *ruapost.Evaluation) {
	ctx, cancel := context.WithTimeout(context.Background(), s.config().RecordTimeout)
	defer cancel()
	began := time.Now()
	err := s.Recorder.RecordEvaluation(ctx, e)
	recordTime.Observe(time.Since(began).Seconds())
	if err != nil {
		recordLate.Inc()
		slog.Debug("evaluation not on disk in time", "policy_domain", e.Policy.Domain, "err", err)
	}
}
