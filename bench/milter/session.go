package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/emersion/go-milter"
)

const (
	// chunkSize is how much of a body is in a packet, and bufferSize how much Postfix
	// writes at a time on a unix socket (milter8.c, vstream.h).
	chunkSize  = 65535
	bufferSize = 4096

	// Postfix offers version 6, with all actions and options.
	protocolVersion = 6
	allActions      = 0x1ff
	allOptions      = 0x1fffff

	// patience is how long an answer may take.
	patience = time.Minute
)

// session is a milter connection of Postfix, which is an SMTP session. What goes over
// it, and in what pieces, is what Postfix 3.10 was seen to write.
type session struct {
	conn net.Conn
	in   *bufio.Reader
	out  []byte             // not written yet
	want milter.OptProtocol // what the milter does not want to hear or to answer
}

// event is something that Postfix tells a milter.
type event struct {
	code milter.Code
	// skip and silent are the options by which a milter says that it does not want
	// the event, and that it does not answer it.
	skip, silent milter.OptProtocol
}

var (
	eventConnect = event{milter.CodeConn, milter.OptNoConnect, milter.OptNoConnReply}
	eventHelo    = event{milter.CodeHelo, milter.OptNoHelo, milter.OptNoHeloReply}
	eventMail    = event{milter.CodeMail, milter.OptNoMailFrom, milter.OptNoMailReply}
	eventRcpt    = event{milter.CodeRcpt, milter.OptNoRcptTo, milter.OptNoRcptReply}
	eventHeader  = event{milter.CodeHeader, milter.OptNoHeaders, milter.OptNoHeaderReply}
	eventEOH     = event{milter.CodeEOH, milter.OptNoEOH, milter.OptNoEOHReply}
	eventBody    = event{milter.CodeBody, milter.OptNoBody, milter.OptNoBodyReply}
)

// openSession connects to the milter at the unix socket and tells it of an SMTP client.
func openSession(ctx context.Context, socket string, client netip.Addr) (s *session, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	s = &session{conn: conn, in: bufio.NewReaderSize(conn, bufferSize), out: make([]byte, 0, bufferSize)}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	conn.SetDeadline(time.Now().Add(patience))
	if err := s.negotiate(); err != nil {
		return nil, err
	}
	macros := fmt.Appendf(nil, "j\x00%[1]s\x00{daemon_name}\x00%[1]s\x00{daemon_addr}\x00192.0.2.25\x00"+
		"v\x00Postfix 3.10.13\x00_\x00unknown [%[2]s]\x00", receiver, client)
	command := fmt.Appendf(nil, "[%[1]s]\x004\x9b\xf1%[1]s\x00", client)
	if err := s.tell(eventConnect, macros, command); err != nil {
		return nil, err
	}
	// Without TLS there are no macros for it.
	return s, s.tell(eventHelo, nil, []byte("out1.sender.example\x00"))
}

// negotiate learns what the milter wants.
func (s *session) negotiate() error {
	var offer [12]byte
	binary.BigEndian.PutUint32(offer[0:], protocolVersion)
	binary.BigEndian.PutUint32(offer[4:], allActions)
	binary.BigEndian.PutUint32(offer[8:], allOptions)
	s.put(milter.CodeOptNeg, offer[:])
	code, data, err := s.receive()
	if err != nil {
		return err
	}
	if milter.Code(code) != milter.CodeOptNeg || len(data) < len(offer) {
		return fmt.Errorf("answer %q to the offer", code)
	}
	version := binary.BigEndian.Uint32(data)
	s.want = milter.OptProtocol(binary.BigEndian.Uint32(data[8:]))
	if version > protocolVersion || version > 3 && s.want&milter.OptNoData == 0 {
		return errors.New("the milter wants more events than this program has")
	}
	return nil
}

// verdict is what a milter answers at the end of a message.
type verdict struct {
	// results are the values of the Authentication-Results fields that it adds.
	results [][]byte
	action  milter.ActionCode
}

// passed says whether the verdict is that of a message which passed everything.
func (v *verdict) passed() bool {
	return v.action == milter.ActContinue && len(v.results) == 1 &&
		bytes.Contains(v.results[0], []byte("spf=pass ")) &&
		bytes.Contains(v.results[0], []byte("dkim=pass ")) &&
		bytes.Contains(v.results[0], []byte("dmarc=pass "))
}

// times are how long a message took: from MAIL to the final answer, and from the end of
// the message to that.
type times struct{ whole, end time.Duration }

// send sends a message. As with Postfix, smtpd has the connection up to RCPT and then
// hands it to cleanup, so that what has gathered is written there.
func (s *session) send(m *message, queueID string) (v verdict, t times, err error) {
	s.conn.SetDeadline(time.Now().Add(patience))
	began := time.Now()
	err = s.tell(eventMail,
		fmt.Appendf(nil, "{mail_addr}\x00%s\x00{mail_host}\x00%s\x00{mail_mailer}\x00smtp\x00", m.sender(), m.domain),
		fmt.Appendf(nil, "<%s>\x00size=%d\x00", m.sender(), m.size))
	if err != nil {
		return v, t, err
	}
	err = s.tell(eventRcpt,
		[]byte("{rcpt_addr}\x00"+recipient+"\x00{rcpt_host}\x00receiver.example\x00{rcpt_mailer}\x00local\x00"),
		[]byte("<"+recipient+">\x00"))
	if err := errors.Join(err, s.flush()); err != nil {
		return v, t, err
	}
	macros := []byte("i\x00" + queueID + "\x00")
	if err := s.content(m, macros); err != nil {
		return v, t, err
	}
	s.put(milter.CodeMacro, []byte{byte(milter.CodeEOB)}, macros)
	s.put(milter.CodeEOB)
	ended := time.Now()
	v, err = s.verdict()
	t = times{time.Since(began), time.Since(ended)}
	s.put(milter.CodeAbort) // goes along with what comes next
	return v, t, err
}

// content sends header and body.
func (s *session) content(m *message, macros []byte) error {
	for _, f := range m.fields {
		if s.want&milter.OptHeaderLeadingSpace == 0 {
			f = bytes.Replace(f, []byte("\x00 "), []byte("\x00"), 1)
		}
		if err := s.tell(eventHeader, macros, f); err != nil {
			return err
		}
	}
	if err := s.tell(eventEOH, macros, nil); err != nil {
		return err
	}
	for rest := m.body; len(rest) > 0; {
		n := min(len(rest), chunkSize)
		if err := s.tell(eventBody, macros, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

// quit ends the session and waits until the milter has ended it, too.
func (s *session) quit() error {
	s.put(milter.CodeAbort)
	s.put(milter.CodeQuit)
	err := s.flush()
	if _, rerr := s.in.ReadByte(); err == nil && rerr == nil {
		err = errors.New("an answer to QUIT")
	}
	return errors.Join(err, s.conn.Close())
}

// tell sends an event with its macros, and gets the answer if there is one.
func (s *session) tell(e event, macros, data []byte) error {
	s.put(milter.CodeMacro, []byte{byte(e.code)}, macros)
	if s.want&e.skip != 0 {
		return nil
	}
	s.put(e.code, data)
	if s.want&e.silent != 0 {
		return nil
	}
	switch code, data, err := s.receive(); {
	case err != nil:
		return err
	case milter.ActionCode(code) != milter.ActContinue:
		return fmt.Errorf("answer %q %q to %q", code, data, e.code)
	}
	return nil
}

// verdict reads the answer to the end of a message.
func (s *session) verdict() (v verdict, err error) {
	for {
		code, data, err := s.receive()
		if err != nil {
			return v, err
		}
		switch milter.ModifyActCode(code) {
		case milter.ActInsertHeader:
			value, ok := bytes.CutPrefix(data, []byte("\x00\x00\x00\x00Authentication-Results\x00"))
			if !ok {
				return v, fmt.Errorf("the milter inserts %q", data)
			}
			v.results = append(v.results, bytes.TrimSuffix(value, []byte{0}))
		case milter.ActChangeHeader, milter.ActAddHeader:
			return v, fmt.Errorf("the milter changes %q", data)
		default:
			v.action = milter.ActionCode(code)
			return v, nil
		}
	}
}

// put adds a packet to what is to be written. Errors of writing show when something is
// read.
func (s *session) put(code milter.Code, data ...[]byte) {
	length := 1
	for _, d := range data {
		length += len(d)
	}
	var head [5]byte
	binary.BigEndian.PutUint32(head[:], uint32(length))
	head[4] = byte(code)
	s.write(head[:])
	for _, d := range data {
		s.write(d)
	}
}

func (s *session) write(p []byte) {
	for len(p) > 0 {
		if len(s.out) == bufferSize {
			s.flush()
		}
		n := min(len(p), bufferSize-len(s.out))
		s.out = append(s.out, p[:n]...)
		p = p[n:]
	}
}

func (s *session) flush() error {
	_, err := s.conn.Write(s.out)
	s.out = s.out[:0]
	return err
}

// receive writes what has gathered and reads a packet.
func (s *session) receive() (code byte, data []byte, err error) {
	if err := s.flush(); err != nil {
		return 0, nil, err
	}
	var length [4]byte
	if _, err := io.ReadFull(s.in, length[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n == 0 || n > chunkSize {
		return 0, nil, fmt.Errorf("packet of %d bytes", n)
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(s.in, data); err != nil {
		return 0, nil, err
	}
	return data[0], data[1:], nil
}
