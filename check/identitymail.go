package check

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/smtp"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"ruapost"
	"ruapost/bounce"
	"ruapost/postconf"
)

// smtpLimit is how long the mail server of this host is waited for.
const smtpLimit = 5 * time.Second

// mailSettings asks postconf(1) for what matters to mail that goes out. It returns nil if
// Postfix is not here: what takes the reports may be another program.
func (s *sender) mailSettings(ctx context.Context) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, postconfLimit)
	defer cancel()
	program, err := postconf.Find(s.host.Postconf)
	if err != nil {
		return nil
	}
	text, _, err := postconf.Run(ctx, program, postconf.Args(s.host.Postfix, "-x", "myhostname", "recipient_delimiter", "relayhost", "transport_maps")...)
	if err != nil {
		return nil
	}
	return postconf.Assignments(text)
}

// checkSendmail looks for the program that takes the mails.
func (s *sender) checkSendmail() {
	program := s.cfg.Reporter.Sendmail[0]
	if _, err := exec.LookPath(program); err != nil {
		s.fault("See reporter.sendmail in ruapost.toml.", "no report can be sent: %v", err)
		return
	}
	s.ok("reporter.sendmail: %s is there", program)
}

// checkExists asks the mail server of this host, as a bounce does, whether the address that
// reports come from exists. Postfix takes mail from the host itself for all other domains.
func (s *sender) checkExists() {
	conn, err := net.DialTimeout("tcp", s.host.SMTP, smtpLimit)
	if err != nil {
		return // it listens elsewhere, or nowhere
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(smtpLimit))
	c, err := smtp.NewClient(conn, "localhost")
	if err != nil || c.Mail("") != nil { // bounces have no sender (RFC 5321 4.5.5)
		return
	}
	defer c.Quit()
	from := s.cfg.Reporter.From
	var answer *textproto.Error
	if errors.As(c.Rcpt(from), &answer) && answer.Code >= 500 {
		local, _, _ := strings.Cut(from, "@")
		s.warn(then("Give it to somebody, for example in /etc/aliases", local+": postmaster")+"\n"+then("and then:", "newaliases"),
			"reports come from %s, and mail to it is refused here: %d %s", from, answer.Code, ruapost.Clean(answer.Msg, maxText))
	}
}

// checkBounces looks whether bounces of reports are noticed and can be filed.
func (s *sender) checkBounces() {
	if s.host.SMTP != "" {
		s.checkExists()
	}
	maildir := s.cfg.Reporter.BounceMaildir
	if maildir == "" {
		s.warn("Set reporter.bounce_maildir in ruapost.toml.",
			"bounces go to %s: nobody notices that an address for reports is dead, and it is mailed for ever", s.cfg.Reporter.From)
		return
	}
	dir := maildir
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		dir = filepath.Dir(dir) // the first bounce makes it
	}
	s.checkFolder("the folder for bounces", dir, "dead addresses are not noticed",
		filepath.Join(maildir, "cur"), filepath.Join(maildir, "new"), filepath.Join(maildir, "tmp"))
	s.checkDelimiter()
}

// checkDelimiter looks whether Postfix takes mail to an address with a token.
func (s *sender) checkDelimiter() {
	delimiter := s.cfg.Reporter.BounceDelimiter
	settings := s.mail()
	known, ok := settings["recipient_delimiter"]
	address, err := bounce.Sender(nil, s.cfg.Reporter.From, delimiter, strings.Repeat("0", 32), s.cfg.Reporter.From)
	switch transport := s.transport(settings["transport_maps"], address); {
	case err != nil: // config has refused it
	case !ok:
		s.warn("", "whether the mail server knows reporter.bounce_delimiter, %s, cannot be told: Postfix is not here", delimiter)
	case transport != "":
		if !s.checkTransport(transport) {
			return
		}
		s.ok("bounces such as to %s go to the transport %s", address, transport)
	case !strings.Contains(known, delimiter): // postconf(5): each of its characters is one
		s.fault("See docs/bounces.md.",
			"bounces are refused: no table in transport_maps knows addresses such as %s, and recipient_delimiter is %q, without reporter.bounce_delimiter, %s",
			address, known, delimiter)
	default:
		s.warn("See docs/bounces.md.",
			"no table in transport_maps knows addresses such as %s: bounces are read only if an alias runs ruapost-reporter bounce", address)
	}
}

// transport returns what the first of Postfix's tables that knows the address has for it.
func (s *sender) transport(tables, address string) string {
	program, err := postconf.Find(s.host.Postconf)
	if err != nil {
		return ""
	}
	for _, table := range strings.FieldsFunc(tables, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }) {
		ctx, cancel := context.WithTimeout(context.Background(), postconfLimit)
		out, err := exec.CommandContext(ctx, filepath.Join(filepath.Dir(program), "postmap"), "-q", address, table).Output()
		cancel()
		if found := strings.TrimSpace(string(out)); err == nil && found != "" {
			return ruapost.Clean(found, maxText)
		}
	}
	return ""
}

// checkTransport looks whether master.cf has the service that a transport names, and this
// host the program that it runs. It tells if not, and says whether they are there.
func (s *sender) checkTransport(transport string) bool {
	const deferred = "bounces of reports wait in the queue"
	name, _, _ := strings.Cut(transport, ":")
	program, err := postconf.Find(s.host.Postconf)
	if err != nil || name == "" {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), postconfLimit)
	defer cancel()
	text, _, err := postconf.Run(ctx, program, postconf.Args(s.host.Postfix, "-F")...)
	if err != nil {
		s.warn("", "the service %s, to which bounces go, cannot be looked at: %v", name, err)
		return false
	}
	services := postconf.Assignments(text)
	command, ok := services[name+"/unix/command"]
	if _, network := services[name+"/inet/command"]; !ok && !network {
		s.fault("See docs/bounces.md.", "transport_maps has %s for bounces, and master.cf has no such service: %s", transport, deferred)
		return false
	}
	words := strings.Fields(command)
	for i, word := range words {
		argv, ok := strings.CutPrefix(word, "argv=")
		if !ok || words[0] != "pipe" {
			continue
		}
		if argv == "" && i+1 < len(words) {
			argv = words[i+1]
		}
		if _, err := exec.LookPath(argv); err != nil {
			s.fault("Correct argv in master.cf; see docs/bounces.md.", "the service %s in master.cf, to which bounces go, cannot run its program: %v: %s", name, err, deferred)
			return false
		}
		break // the rest are its arguments
	}
	return true
}
