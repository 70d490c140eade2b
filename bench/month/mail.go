package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/emersion/go-milter"
	"golang.org/x/sync/errgroup"

	"ruapost"
	"ruapost/inbound"
	"ruapost/internal/lab"
)

// sort is what a message is in truth, whatever it looks like.
type sort int

const (
	genuine sort = iota
	forged
	// aboutReport messages are reports of others, or answers to ours.
	aboutReport
)

// message is a message that comes in.
type message struct {
	sort             sort
	client, helo     string
	mailFrom, rcptTo string
	data             []byte
}

// Clients: where the domains' mail comes from, and where that of forgers does.
const (
	honest = "192.0.2.%d"
	forger = "198.51.100.%d"
)

// incoming are the messages of this hour.
func (w *world) incoming() (all []*message) {
	day, hour := w.today(), w.now.Hour()
	each := func(d *domain, what string, n int, make func(*domain, int) *message) {
		for i := range n {
			if w.draw(24, what, d.name, day, i) == hour {
				all = append(all, make(d, i))
			}
		}
	}
	for _, d := range w.domains {
		each(d, "real", d.real, w.genuine)
		each(d, "forged", d.forged, w.forged)
		if d.peer != "" {
			if day == 1 && hour == 9 {
				all = append(all, w.genuine(d, 0))
			}
			each(d, "report", w.got[d.name][0], w.reportOf)
		}
	}
	return all
}

func (w *world) genuine(d *domain, i int) *message {
	n := 1 + w.draw(3, "client", d.name, i)
	m := lab.Mail{From: "alice@" + d.name, To: "bob@" + us, Subject: "Hello", Body: "Hello.\n"}
	return w.from(d, genuine, fmt.Sprintf(honest, n), "alice@"+d.name, m)
}

// from signs mail of d if it does so.
func (w *world) from(d *domain, s sort, client, mailFrom string, mail lab.Mail) *message {
	msg := &message{sort: s, client: client, helo: "mail." + d.name, mailFrom: mailFrom, rcptTo: "bob@" + us, data: mail.Bytes()}
	if d.key != nil {
		if signed, err := d.key.Sign(msg.data); err == nil { // else it goes without
			msg.data = signed
		}
	}
	return msg
}

// forged is mail in the name of d, or of a name below it.
func (w *world) forged(d *domain, i int) *message {
	author := "ceo@" + d.name
	if i%3 == 2 {
		author = "ceo@pay." + d.name
	}
	m := lab.Mail{From: author, To: "bob@" + us, Subject: "Invoice", Body: "Pay.\n"}
	return &message{
		sort: forged, client: fmt.Sprintf(forger, w.draw(20, "bot", d.name, i)), helo: "bot.spam.example",
		mailFrom: "x@spam.example", rcptTo: "bob@" + us, data: m.Bytes(),
	}
}

// reportOf is a report that a peer makes because it got a mail of ours.
func (w *world) reportOf(d *domain, i int) *message {
	for _, form := range reportForms {
		if form.name == d.peer {
			m := lab.Mail{From: "noreply@" + d.name, To: "dmarc@" + us, Subject: form.subject(us, d.name), Fields: form.fields(us, d.name), Body: "H4sIAAAA\n"}
			msg := w.from(d, aboutReport, fmt.Sprintf(honest, 7), "noreply@"+d.name, m)
			msg.rcptTo = "dmarc@" + us
			return msg
		}
	}
	panic("no form " + d.peer)
}

// smtpds is the number of messages that come in at a time.
const smtpds = 8

// receive has the messages judged and recorded.
func (w *world) receive(ctx context.Context, messages []*message) error {
	var group errgroup.Group
	next := make(chan *message, len(messages))
	for _, m := range messages {
		next <- m
	}
	close(next)
	for range smtpds {
		group.Go(func() error {
			r := w.newReceiver(ctx)
			for m := range next {
				if err := r.deliver(m); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// receiver is an smtpd of Postfix with its milter.
type receiver struct {
	w       *world
	ctx     context.Context
	service *inbound.Service
	client  *milter.Client
	msg     *message // under way
}

func (w *world) newReceiver(ctx context.Context) *receiver {
	r := &receiver{w: w, ctx: ctx}
	now := w.now
	r.service = &inbound.Service{
		Config: inbound.Config{
			AuthservID: "mx." + us, ReportAddress: reportFrom, RecordTimeout: time.Minute,
			TrustedNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		},
		Resolver: w.res, Recorder: r, Now: func() time.Time { return now },
	}
	r.client = milter.NewClientWithOptions("", "", milter.ClientOptions{
		Dialer: r, ActionMask: milter.OptAddHeader | milter.OptChangeHeader | milter.OptQuarantine,
		ReadTimeout: time.Minute, WriteTimeout: time.Minute,
	})
	return r
}

// Dial connects the client to the service.
func (r *receiver) Dial(string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go r.service.ServeConn(r.ctx, theirs)
	return ours, nil
}

// RecordEvaluation puts it into the books, too.
func (r *receiver) RecordEvaluation(ctx context.Context, e *ruapost.Evaluation) error {
	err := r.w.store.RecordEvaluation(ctx, e)
	if err != nil {
		return err
	}
	s := r.msg.sort
	if s == genuine && !e.Result.AlignedDKIM && !e.Result.AlignedSPF {
		s = forged // the DNS failed, and nobody can tell
	}
	r.w.ledger.recorded(ruapost.KindDMARC, e.Policy.Domain, e.Time, s, 1)
	return nil
}

func (r *receiver) deliver(m *message) error {
	r.msg = m
	s, err := r.client.Session()
	if err != nil {
		return err
	}
	defer s.Close()
	head, body, _ := bytes.Cut(m.data, []byte("\r\n\r\n"))
	tell := func(do func() (*milter.Action, error)) {
		if err != nil {
			return
		}
		var a *milter.Action
		if a, err = do(); err == nil && a.Code != milter.ActContinue {
			err = fmt.Errorf("answer %q", a.Code)
		}
	}
	tell(func() (*milter.Action, error) { return s.Conn("["+m.client+"]", milter.FamilyInet, 40000, m.client) })
	tell(func() (*milter.Action, error) { return s.Helo(m.helo) })
	tell(func() (*milter.Action, error) { return s.Mail(m.mailFrom, nil) })
	tell(func() (*milter.Action, error) { return s.Rcpt(m.rcptTo, nil) })
	for _, field := range fields(string(head)) {
		name, value, _ := strings.Cut(field, ":")
		tell(func() (*milter.Action, error) { return s.HeaderField(name, value) })
	}
	tell(s.HeaderEnd)
	tell(func() (*milter.Action, error) { return s.BodyChunk(body) })
	tell(func() (*milter.Action, error) { _, a, err := s.End(); return a, err })
	return err
}

// fields are the fields of a header, their folds LF as Postfix gives them.
func fields(head string) (all []string) {
	for line := range strings.SplitSeq(head, "\r\n") {
		if n := len(all); n > 0 && strings.IndexAny(line, " \t") == 0 {
			all[n-1] += "\n" + line
			continue
		}
		all = append(all, line)
	}
	return all
}

// sendOwn is the mail of our own people, as ruapost-tlspolicy sees it.
func (w *world) sendOwn(ctx context.Context) error {
	if w.now.Hour() != 10 {
		return nil
	}
	for _, d := range w.domains {
		answers := d.real > 0 && d.tls
		keepsInTouch := d.peer != "" && d.weWrite > 0
		if d.weWrite != w.today() && !answers && !keepsInTouch {
			continue
		}
		if d.peer != "" {
			w.got[d.name] = [2]int{w.got[d.name][0], w.got[d.name][1] + 1}
		}
		if err := w.sentTo(ctx, d.name, true); err != nil {
			return err
		}
	}
	return nil
}

// sentTo notes that Postfix has sent mail to a domain. Only ours is ordinary.
func (w *world) sentTo(ctx context.Context, name string, ordinary bool) error {
	d := w.byName[organization(name)]
	if d == nil {
		return nil
	}
	if ordinary {
		w.ledger.wroteTo(d.name, w.today())
	}
	if err := w.store.RecordDestinations(ctx, []string{d.name}, w.now); err != nil || !d.tls || name != d.name {
		return err
	}
	s := ruapost.Session{Time: w.now, Domain: d.name, Policy: ruapost.TLSPolicy{Type: ruapost.PolicyNone, Domain: d.name}}
	if w.draw(10, "tls", d.name, w.hour.Load()) == 0 {
		s.Failed, s.Failures = true, []ruapost.TLSFailure{{Result: ruapost.ResultStartTLSNotSupported, ReceivingMX: "mail." + d.name}}
	}
	if err := w.store.RecordSessions(ctx, []ruapost.Session{s}); err != nil {
		return err
	}
	w.ledger.recorded(ruapost.KindTLS, d.name, w.now, genuine, 1)
	return nil
}

// organization is the last two labels.
func organization(name string) string {
	labels := strings.Split(name, ".")
	return strings.Join(labels[max(len(labels)-2, 0):], ".")
}
