package inbound

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"net/textproto"
	"runtime/debug"
	"strings"
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
	// msg is the message under way, nil between messages and for one that is not
	// judged.
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

// guard is deferred by every callback: a fault of ours becomes a message that goes
// on unjudged. Postfix would take a closed connection for a failed milter.
func (s *session) guard() {
	if p := recover(); p != nil {
		panics.Inc()
		slog.Error("milter: fault, message goes on unjudged", "panic", p, "stack", string(debug.Stack()))
		s.reset()
	}
}

func (s *session) Connect(_, _ string, _ uint16, ip net.IP, _ *milter.Modifier) (resp milter.Response, err error) {
	resp = milter.RespContinue
	defer s.guard()
	s.reset() // a front-end may name another client in the same session (XCLIENT)
	s.client = netip.Addr{}
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		// A unix-domain client or one whose address Postfix does not know.
		return milter.RespAccept, nil
	}
	s.client = addr.Unmap()
	for _, p := range s.service.Config.TrustedNetworks {
		if p.Contains(s.client) {
			return milter.RespAccept, nil // Postfix will not ask about this client again
		}
	}
	return resp, nil
}

func (s *session) Helo(name string, _ *milter.Modifier) (milter.Response, error) {
	s.helo = ruapost.Clean(name, 255)
	return nil, nil
}

func (s *session) MailFrom(from string, m *milter.Modifier) (resp milter.Response, err error) {
	resp = milter.RespContinue
	defer s.guard()
	s.reset()
	if m.Macros["{auth_authen}"] != "" {
		// The sender is one of our own users; what they send is no news to the
		// domain's owner.
		messages.WithLabelValues("skipped").Inc()
		return milter.RespAccept, nil
	}
	if !s.client.IsValid() {
		return resp, nil
	}
	s.inside.Store(true)
	s.msg = newMessage(s.ctx, s.service, s.client, s.helo, from)
	return resp, nil
}

func (s *session) RcptTo(to string, _ *milter.Modifier) (milter.Response, error) {
	defer s.guard()
	if s.msg != nil {
		s.msg.addRecipient(to)
	}
	return nil, nil
}

func (s *session) Header(name, value string, _ *milter.Modifier) (milter.Response, error) {
	defer s.guard()
	if s.msg != nil {
		s.msg.addHeader(name, value)
	}
	return nil, nil
}

func (s *session) Headers(_ textproto.MIMEHeader, m *milter.Modifier) (milter.Response, error) {
	defer s.guard()
	if s.msg != nil {
		s.msg.queueID = ruapost.Clean(m.Macros["i"], 64)
		s.msg.endOfHeader()
	}
	return nil, nil
}

func (s *session) BodyChunk(chunk []byte, _ *milter.Modifier) (milter.Response, error) {
	defer s.guard()
	if s.msg != nil {
		s.msg.body(chunk)
	}
	return nil, nil
}

// Body is the end of the message. Fields can only be added and removed here.
func (s *session) Body(m *milter.Modifier) (resp milter.Response, err error) {
	resp = milter.RespContinue
	defer s.guard()
	defer s.reset()
	if s.msg == nil {
		return resp, nil
	}
	j := s.msg.judge()
	if err := s.changeHeader(m, s.msg, j); err != nil {
		// The connection is broken; go-milter notices when it sends the answer.
		slog.Warn("milter: cannot change header", "queue_id", s.msg.queueID, "err", err)
	}
	messages.WithLabelValues(string(j.result)).Inc()
	if e := j.evaluation(); e != nil {
		s.service.record(e)
	}
	return resp, nil
}

func (s *session) Abort(*milter.Modifier) error {
	defer s.guard()
	s.reset()
	return nil
}

// changeHeader removes the Authentication-Results fields that claim to be ours and
// puts the real one on top (RFC 8601 4, 5).
func (s *session) changeHeader(m *milter.Modifier, msg *message, j *judgement) error {
	// From the last to the first, so that the indexes of those yet to go stay right.
	for i := len(msg.forged) - 1; i >= 0; i-- {
		if err := m.ChangeHeader(msg.forged[i], authResField, ""); err != nil {
			return err
		}
	}
	return m.InsertHeader(0, authResField, " "+strings.Join(j.authenticationResults(s.service.Config.AuthservID), ";\n\t"))
}
