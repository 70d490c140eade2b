package e2e

import (
	"errors"
	"net"
	"net/netip"
	"net/textproto"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
)

// client is an SMTP client somewhere on the Internet, in a session with Postfix.
type client struct {
	smtp *smtp.Client
	// options are those of MAIL FROM, nil for none.
	options *smtp.MailOptions

	t *testing.T
}

// connect opens an SMTP session from the given address. If login is not empty the
// client comes through a front-end where it has logged in.
func connect(t *testing.T, from netip.Addr, hello, login string) *client {
	t.Helper()
	to := postfixIPv4
	if from.Is6() {
		to = postfixIPv6
	}
	dialer := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)),
		Timeout:   deadline,
	}
	conn, err := dialer.Dial("tcp", net.JoinHostPort(to, "25"))
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(2 * deadline))
	if login != "" {
		frontEnd := textproto.NewConn(conn)
		_, _, err1 := frontEnd.ReadResponse(220)
		err2 := frontEnd.PrintfLine("EHLO front-end.receiver.example")
		_, _, err3 := frontEnd.ReadResponse(250)
		// XCLIENT is answered with a new greeting, which the client reads.
		err4 := frontEnd.PrintfLine("XCLIENT LOGIN=%s", login)
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			t.Fatalf("XCLIENT: %v", err)
		}
	}
	c := &client{smtp: smtp.NewClient(conn), t: t}
	t.Cleanup(func() { c.smtp.Close() })
	if err := c.smtp.Hello(hello); err != nil {
		t.Fatalf("EHLO %s: %v", hello, err)
	}
	return c
}

// send sends a mail to the recipients, of which refused must be refused and all
// others accepted. It returns the error of the end of data, nil or an
// *smtp.SMTPError.
func (c *client) send(from string, to []string, refused map[string]bool, mail []byte) error {
	c.t.Helper()
	if err := c.smtp.Mail(from, c.options); err != nil {
		c.t.Fatalf("MAIL FROM:<%s>: %v", from, err)
	}
	for _, rcpt := range to {
		err := c.smtp.Rcpt(rcpt, nil)
		if refused[rcpt] != (err != nil) {
			c.t.Fatalf("RCPT TO:<%s>: %v, refused = %v was expected", rcpt, err, refused[rcpt])
		}
	}
	w, err := c.smtp.Data()
	if err != nil {
		c.t.Fatalf("DATA: %v", err)
	}
	if _, err := w.Write(mail); err != nil {
		c.t.Fatalf("mail data: %v", err)
	}
	err = w.Close()
	var smtpErr *smtp.SMTPError
	if err != nil && !errors.As(err, &smtpErr) {
		c.t.Fatalf("end of data: %v", err)
	}
	return err
}

// quit ends the session.
func (c *client) quit() {
	c.t.Helper()
	if err := c.smtp.Quit(); err != nil {
		c.t.Errorf("QUIT: %v", err)
	}
}
