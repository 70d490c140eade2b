package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"ruapost"
	"ruapost/dmarc"
	"ruapost/internal/lab"
	"ruapost/tlsrpt"
)

// sendmail puts a mail behind its arguments into the spool, unless it is busy. One run
// of the reporter has less processes than there are numbers for.
const sendmail = `#!/bin/sh
dir=${0%/*}
[ ! -e "$dir/busy" ] || exit 75
{ printf '%s\n' "$*"; cat; } >"$dir/spool/$$" || exit 75
`

func (w *world) sendmail() string { return filepath.Join(w.dir, "sendmail") }
func (w *world) spool() string    { return filepath.Join(w.dir, "spool") }

// reportMail is one of our report mails on its way.
type reportMail struct {
	sender, to string
	kind       ruapost.Kind
	domain     string
	id         string
	window     ruapost.Window
	count      int64 // of messages or sessions
	header     string
}

// post delivers what sendmail has taken.
func (w *world) post(ctx context.Context) error {
	entries, err := os.ReadDir(w.spool())
	if err != nil {
		return err
	}
	for _, e := range entries {
		file := filepath.Join(w.spool(), e.Name())
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		m, err := readReport(data)
		if err != nil {
			return fmt.Errorf("%s: %w", data[:min(len(data), 300)], err)
		}
		w.ledger.mailed(m)
		if err := w.arrive(ctx, m); err != nil {
			return err
		}
		if err := os.Remove(file); err != nil {
			return err
		}
	}
	return nil
}

// commandLine is what sendmail is called with.
var commandLine = regexp.MustCompile(`^-i -f (\S+) -- (\S+)$`)

// readReport reads a mail of the spool.
func readReport(data []byte) (*reportMail, error) {
	line, raw, _ := bytes.Cut(data, []byte("\n"))
	args := commandLine.FindSubmatch(line)
	if args == nil {
		return nil, fmt.Errorf("sendmail was called with %q", line)
	}
	mail, err := lab.ReadReportMail(raw)
	if err != nil {
		return nil, err
	}
	header, _, _ := bytes.Cut(raw, []byte("\n\n"))
	m := &reportMail{sender: string(args[1]), to: string(args[2]), header: string(header)}
	if mail.ContentType == "application/gzip" {
		return m, m.readDMARC(mail.Content)
	}
	return m, m.readTLS(mail.Content)
}

func (m *reportMail) readDMARC(content []byte) error {
	rep, err := dmarc.ParseReport(bytes.NewReader(content))
	if err != nil {
		return err
	}
	m.kind, m.domain, m.id = ruapost.KindDMARC, rep.Policy.Domain, rep.Metadata.ReportID
	m.window = ruapost.Window{Start: time.Unix(rep.Metadata.Begin, 0).UTC(), End: time.Unix(rep.Metadata.End+1, 0).UTC()}
	for _, r := range rep.Records {
		m.count += r.Count
	}
	return nil
}

func (m *reportMail) readTLS(content []byte) error {
	rep, err := tlsrpt.ParseReport(bytes.NewReader(content))
	if err != nil {
		return err
	}
	m.kind, m.id, m.window = ruapost.KindTLS, rep.ReportID, ruapost.Window{Start: rep.DateRange.Start, End: rep.DateRange.End}
	for _, p := range rep.Policies {
		m.domain = p.Policy.Domain
		m.count += p.Summary.Successful + p.Summary.Failed
	}
	return nil
}

// answer is a message on its way to the envelope sender of a report.
type answer struct {
	at   time.Time
	to   string
	data []byte
	// from is the domain whose own program wrote it, empty if Postfix here did.
	from *domain
}

// arrive is what becomes of a report mail outside.
func (w *world) arrive(ctx context.Context, m *reportMail) error {
	host := hostOf(m.to)
	// What the TLS daemon sees of it; sessions of TLS reports are not reported.
	if m.kind == ruapost.KindDMARC {
		if err := w.sentTo(ctx, host, false); err != nil {
			return err
		}
	} else if d := w.byName[organization(host)]; d != nil {
		if err := w.store.RecordDestinations(ctx, []string{d.name}, w.now); err != nil {
			return err
		}
	}
	if d := w.byName[host]; d != nil && d.peer != "" {
		w.got[host] = [2]int{w.got[host][0], w.got[host][1] + 1}
	}
	b := w.boxes[m.to]
	if b == nil {
		return nil // the ledger has it
	}
	after := func(d time.Duration, data string) {
		w.answers = append(w.answers, answer{at: w.now.Add(d), to: m.sender, data: []byte(data)})
	}
	hours := time.Duration(w.draw(4, "bounce", m.to, w.hour.Load())) * time.Hour
	switch b.fate {
	case slow:
		if w.draw(4, "slow", m.to, w.hour.Load()) == 0 {
			after(4*time.Hour, dsn(m, "delayed", "4.4.1", "connect to mail."+host+": Connection timed out", m.to))
		}
	case away:
		after(hours, autoReply(m))
		w.answers[len(w.answers)-1].from = w.byName[organization(host)]
	case unknown:
		after(hours, dsn(m, "failed", "5.1.1", "smtp; 550 5.1.1 User unknown", m.to))
	case forwarded:
		after(hours, dsn(m, "failed", "5.1.1", "smtp; 550 5.1.1 User unknown", "gone@moved.example"))
	case full:
		after(4*time.Hour, dsn(m, "delayed", "4.2.2", "smtp; 452 4.2.2 Mailbox full", m.to))
		after(5*24*time.Hour, dsn(m, "failed", "4.2.2", "smtp; 452 4.2.2 Mailbox full", m.to))
	case hostless:
		after(0, dsn(m, "failed", "5.4.4", "Host or domain name not found. Name service error for name="+host, m.to))
	case refusing:
		after(hours, dsn(m, "failed", "5.7.1", "smtp; 550 5.7.1 Message rejected", m.to))
	case wordy:
		after(hours, words(m))
	}
	if !b.fate.dead() && w.draw(20, "forged bounce", m.to, w.hour.Load()) == 0 {
		// Somebody who wants us to leave the address alone, and knows all but the token.
		guess := *m
		guess.sender = guessed(m.sender)
		after(hours, dsn(&guess, "failed", "5.1.1", "smtp; 550 5.1.1 User unknown", m.to))
		w.answers[len(w.answers)-1].to = guess.sender
	}
	return nil
}

// guessed changes a character near the end of an address's local part.
func guessed(address string) string {
	at := strings.IndexByte(address, '@') - 5
	other := "a"
	if address[at] == 'a' {
		other = "b"
	}
	return address[:at] + other + address[at+1:]
}

// takeAnswers gives the reporter what has come for it.
func (w *world) takeAnswers(ctx context.Context) error {
	var later, now []answer
	for _, a := range w.answers {
		if a.at.After(w.now) {
			later = append(later, a)
		} else {
			now = append(now, a)
		}
	}
	w.answers = later
	slices.SortStableFunc(now, func(a, b answer) int { return a.at.Compare(b.at) })
	for _, a := range now {
		w.ledger.answered(w.today())
		if a.from != nil {
			if err := w.receive(ctx, []*message{w.answerOf(a)}); err != nil {
				return err
			}
		}
		if err := w.bounce(ctx, a.to, a.data); err != nil {
			return err
		}
	}
	return nil
}

// answerOf is the answer as it comes in by SMTP.
func (w *world) answerOf(a answer) *message {
	d := a.from
	m := &message{
		sort: aboutReport, client: fmt.Sprintf(honest, 1), helo: "mail." + d.name, rcptTo: a.to,
		data: bytes.ReplaceAll(a.data, []byte("\n"), []byte("\r\n")),
	}
	if d.key != nil {
		if signed, err := d.key.Sign(m.data); err == nil {
			m.data = signed
		}
	}
	return m
}
