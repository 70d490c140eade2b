package inbound

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/textproto"
	"runtime/debug"
	"slices"
	"sync/atomic"

	"github.com/emersion/go-milter"

	"ruapost"
)

// maxRecipients is the number of recipients whose domains are looked at.
const maxRecipients = 1000

// session is one milter connection, which is one SMTP session: Postfix tells the
// client's address and HELO once and then any number of messages.
type session struct {
	service *Service
	ctx     context.Context

	client netip.Addr
	helo   string
	// msg is the message under way, nil between messages.
	msg    *message
	inside atomic.Bool // a message is under way
}

func (s *session) idle() bool { return !s.inside.Load() }

// reset forgets the message under way and ends what runs for it.
func (s *session) reset() {
	if s.msg != nil {
		s.msg.abandon()
		s.msg = nil
	}
	s.inside.Store(false)
}

// caught is deferred wherever a fault of ours must not end the program, and does
// then. Every callback of a session turns one into a message that goes on unjudged:
// Postfix would take a closed connection for a failed milter.
func caught(then func()) {
	if p := recover(); p != nil {
		panics.Inc()
		slog.Error("milter: fault", "panic", ruapost.Clean(fmt.Sprint(p), 500), "stack", string(debug.Stack()))
		then()
	}
}

func (s *session) Connect(_, _ string, _ uint16, ip net.IP, _ *milter.Modifier) (resp milter.Response, err error) {
	resp = milter.RespContinue
	defer caught(s.reset)
	s.reset() // a front-end may name another client in the same session (XCLIENT)
	s.client = netip.Addr{}
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return resp, nil // a unix-domain client or one whose address Postfix does not know
	}
	s.client = addr.Unmap()
	if s.isTrusted() {
		return milter.RespAccept, nil // Postfix will not ask about this client again
	}
	return resp, nil
}

func (s *session) isTrusted() bool {
	return slices.ContainsFunc(s.service.config().TrustedNetworks, func(p netip.Prefix) bool { return p.Contains(s.client) })
}

func (s *session) Helo(name string, _ *milter.Modifier) (milter.Response, error) {
	s.helo = ruapost.Clean(name, 255)
	return nil, nil
}

func (s *session) MailFrom(from string, m *milter.Modifier) (resp milter.Response, err error) {
	resp = milter.RespContinue
	defer caught(s.reset)
	s.reset()
	s.inside.Store(true)
	s.msg = newMessage(s.ctx, s.service)
	// What our own users send is no news to the domain's owner.
	if m.Macros["{auth_authen}"] == "" && s.client.IsValid() && !s.isTrusted() {
		s.msg.begin(s.client, s.helo, from)
	}
	return resp, nil
}

func (s *session) RcptTo(to string, _ *milter.Modifier) (milter.Response, error) {
	defer caught(s.reset)
	if s.msg != nil {
		s.msg.addRecipient(to)
	}
	return nil, nil
}

func (s *session) Header(name, value string, m *milter.Modifier) (milter.Response, error) {
	defer caught(s.reset)
	// This is go-milter's own map, in which it would keep the whole header for Headers
	// once more, whatever its size.
	clear(m.Headers)
	if s.msg != nil {
		s.msg.addHeader(field{name, value})
	}
	return nil, nil
}

func (s *session) Headers(_ textproto.MIMEHeader, m *milter.Modifier) (milter.Response, error) {
	defer caught(s.reset)
	if s.msg != nil {
		s.msg.endOfHeader(ruapost.Clean(m.Macros["i"], 64))
	}
	return nil, nil
}

func (s *session) BodyChunk(chunk []byte, _ *milter.Modifier) (milter.Response, error) {
	defer caught(s.reset)
	if s.msg != nil {
		s.msg.body(chunk)
	}
	return nil, nil
}

// Body is the end of the message. Fields can only be added and removed here.
func (s *session) Body(m *milter.Modifier) (resp milter.Response, err error) {
	resp = milter.RespContinue
	defer caught(s.reset)
	defer s.reset()
	if s.msg == nil {
		return resp, nil
	}
	// First, so that no fault in judging keeps a forgery alive. An error means that
	// the connection is broken; go-milter notices when it sends the answer.
	broken := removeFields(m, authResField, s.msg.forgeries())
	if s.msg.config.MarkQuarantine {
		broken = errors.Join(broken, removeFields(m, quarantineField, s.msg.marks()))
	}
	if !s.msg.judged {
		messages.WithLabelValues("skipped").Inc()
		return resp, nil
	}
	j := s.msg.judge()
	if broken == nil {
		broken = j.mark(m)
	}
	if broken != nil {
		slog.Warn("milter: cannot change the message", "queue_id", s.msg.queueID, "err", broken)
	}
	messages.WithLabelValues(string(j.result)).Inc()
	dispositions.WithLabelValues(j.outcome()).Inc()
	// On a broken connection Postfix decides what becomes of the message.
	if broken == nil {
		s.service.tally(j)
		if e := j.evaluation(); e != nil {
			s.service.record(e)
		}
	}
	if code, text, ok := j.reply(); ok {
		return milter.NewResponseStr(byte(milter.ActReplyCode), code+" "+text), nil
	}
	return resp, nil
}

// mark tells who reads the message what was found, and Postfix to hold it if that is
// how it is to be quarantined.
func (j *judgement) mark(m *milter.Modifier) error {
	if j.disposition == ruapost.DispositionQuarantine {
		if err := j.quarantine(m); err != nil {
			return err
		}
	}
	// RFC 8601 4: on top.
	return m.InsertHeader(0, authResField, " "+j.authResValue())
}

func (j *judgement) quarantine(m *milter.Modifier) error {
	if j.msg.config.MarkQuarantine {
		return m.InsertHeader(0, quarantineField, " yes")
	}
	return m.Quarantine("DMARC policy of " + j.author)
}

func (s *session) Abort(*milter.Modifier) error {
	defer caught(s.reset)
	s.reset()
	return nil
}

// removeFields removes the fields of that name with these indexes.
func removeFields(m *milter.Modifier, name string, indexes []int) error {
	// From the last to the first, so that the indexes of those yet to go stay right.
	for _, index := range slices.Backward(indexes) {
		if err := m.ChangeHeader(index, name, ""); err != nil {
			return err
		}
	}
	return nil
}
