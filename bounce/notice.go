package bounce

import (
	"cmp"
	"mime"
	"regexp"
	"slices"
	"strings"

	"ruapost"
)

// Kind is what an answer to a mail means.
type Kind string

const (
	// Failed: the mail was not delivered, and its system has given up.
	Failed Kind = "failed"
	// Delayed: not delivered yet; it is still being tried.
	Delayed Kind = "delayed"
	// AutoReply: a program has answered, such as one that says who is on vacation.
	AutoReply Kind = "auto-reply"
	// Complaint: the recipient calls the mail abuse (RFC 5965).
	Complaint Kind = "complaint"
	// Other: anything else: that it was delivered or read, what a person wrote, spam,
	// and all that cannot be told for sure.
	Other Kind = "other"
)

// Bounds of a Notice.
const (
	maxTo         = 20  // addresses
	maxAddress    = 320 // octets
	maxDiagnostic = 300 // octets
	maxRecipients = 100 // of a delivery status
)

// Notice is what an answer says. Its texts are cleaned, so that they can be logged; they
// are still what a stranger wrote.
type Notice struct {
	Kind Kind
	// To are the addresses that it may have come to, the likeliest first.
	To []string
	// Recipient is whom it is about, Status the enhanced status code, such as "5.1.1",
	// and Diagnostic what the mail system said. Each is empty if it is not known. Of
	// several recipients they are those of the one that decided.
	Recipient  string
	Status     string
	Diagnostic string
}

// Parse reads a message, of which it looks at MaxSize octets. The addresses are those it
// is known to have come to; others are looked for in X-Original-To, Delivered-To and To.
// Whatever cannot be read makes it a Notice of kind Other.
func Parse(message []byte, to ...string) *Notice {
	m := readMail(message[:min(len(message), MaxSize)])
	n := m.notice()
	n.Recipient = clean(n.Recipient, maxAddress)
	n.Diagnostic = clean(n.Diagnostic, maxDiagnostic)
	for _, name := range []string{"x-original-to", "delivered-to", "to"} {
		to = append(to, addresses(m.header.get(name))...)
	}
	if n.Kind == Complaint {
		to = append(to, addresses(m.feedback.get("original-mail-from"))...)
	}
	for _, address := range to {
		address = clean(address, maxAddress+1)
		if len(n.To) < maxTo && address != "" && len(address) <= maxAddress && !slices.Contains(n.To, address) {
			n.To = append(n.To, address)
		}
	}
	return n
}

func (m *mail) notice() *Notice {
	// Only in a message that calls itself a report, or that a mail system sent: a report
	// may also be part of what a person forwards.
	if m.mediaType == "multipart/report" || m.fromSystem() {
		switch {
		case m.status != nil:
			return m.deliveryStatus()
		case m.feedback != nil:
			return m.complaint()
		case m.disposition: // RFC 8098
			return &Notice{Kind: Other}
		}
	}
	if n := m.qsbmf(); n != nil {
		return n
	}
	if n := m.textBounce(); n != nil {
		return n
	}
	if m.isAutomatic() {
		return &Notice{Kind: AutoReply}
	}
	return &Notice{Kind: Other}
}

// deliveryStatus reads a message/delivery-status (RFC 3464 2.1): fields about the
// message, and behind an empty line each fields about one recipient. The worst counts.
func (m *mail) deliveryStatus() *Notice {
	worst := &Notice{Kind: Other}
	for _, fields := range m.status {
		n := &Notice{
			Kind:       Other,
			Recipient:  afterType(fields.get("final-recipient")),
			Status:     statusCode(fields.get("status")),
			Diagnostic: afterType(fields.get("diagnostic-code")),
		}
		n.Status = cmp.Or(n.Status, statusCode(n.Diagnostic))
		// RFC 3464 2.3.3. What the status says decides nothing: systems that have tried
		// for days give up with 4.4.7. But success is no failure.
		switch action, _, _ := strings.Cut(strings.ToLower(fields.get("action")), " "); {
		case action == "failed" && !strings.HasPrefix(n.Status, "2"):
			n.Kind = Failed
			return n
		case action == "delayed" && worst.Kind != Delayed:
			n.Kind, worst = Delayed, n
		case worst.Kind == Other && worst.Recipient == "":
			worst = n
		}
	}
	return worst
}

// complaint reads a message/feedback-report (RFC 5965 3).
func (m *mail) complaint() *Notice {
	n := &Notice{Kind: Other, Recipient: strings.Trim(m.feedback.get("original-rcpt-to"), "<>")}
	switch kind := strings.ToLower(m.feedback.get("feedback-type")); kind {
	case "abuse", "fraud", "virus": // RFC 5965 7.3; the others do not say that it is unwanted
		n.Kind, n.Diagnostic = Complaint, kind
	}
	return n
}

// qsbmf reads a bounce as qmail writes it: a paragraph with a greeting, one for each
// recipient that begins with his address in angle brackets, and one that begins with "-"
// before the message.
func (m *mail) qsbmf() *Notice {
	if !m.fromSystem() || !strings.HasPrefix(m.text, "Hi. This is the ") {
		return nil
	}
	n := &Notice{Kind: Other}
	for paragraph := range strings.SplitSeq(m.text, "\n\n") {
		paragraph = strings.TrimLeft(paragraph, "\n")
		if strings.HasPrefix(paragraph, "-") {
			break
		}
		if contains(paragraph, waitingWords) {
			return &Notice{Kind: Delayed}
		}
		address, rest, ok := strings.Cut(paragraph, ">:")
		if !ok || !strings.HasPrefix(address, "<") || n.Kind == Failed {
			continue
		}
		*n = Notice{Kind: Failed, Recipient: address[1:], Status: statusCode(rest), Diagnostic: rest}
	}
	return n
}

// textBounce reads a bounce that only people were meant to read. It is one if it comes
// from a mail system, says in one of the usual ways that the mail was not delivered, and
// gives the code of a permanent error.
func (m *mail) textBounce() *Notice {
	if !m.fromSystem() || m.isAutomatic() && !m.fromDaemon() {
		return nil
	}
	text := m.header.get("subject") + "\n" + m.text
	if contains(text, waitingWords) {
		return &Notice{Kind: Delayed}
	}
	if !contains(text, failureWords) {
		return nil
	}
	n := &Notice{Kind: Failed}
	n.Recipient, _, _ = strings.Cut(m.header.get("x-failed-recipients"), ",") // Exim's
	for line := range strings.Lines(text) {
		if permanentReply.MatchString(line) {
			n.Status, n.Diagnostic = statusCode(line), line
			return n
		}
	}
	if n.Recipient != "" {
		return n
	}
	return nil
}

// fromSystem says whether the message was sent by a mail system: its envelope sender is
// empty (RFC 5321 4.5.5) or, where that is not known, its author is the system's.
func (m *mail) fromSystem() bool {
	path, ok := m.header.lookup("return-path")
	if !ok {
		return m.fromDaemon()
	}
	path = strings.ToLower(strings.Trim(path, "<>"))
	return path == "" || path == "mailer-daemon" // pipe(8) without null_sender=
}

func (m *mail) fromDaemon() bool {
	for _, address := range addresses(m.header.get("from")) {
		switch local, _, _ := strings.Cut(strings.ToLower(address), "@"); local {
		case "mailer-daemon", "postmaster":
			return true
		}
	}
	return false
}

// isAutomatic says whether a program wrote the message.
func (m *mail) isAutomatic() bool {
	submitted, _, _ := strings.Cut(m.header.get("auto-submitted"), ";")
	if submitted = strings.TrimSpace(submitted); submitted != "" && !strings.EqualFold(submitted, "no") { // RFC 3834 5
		return true
	}
	for _, name := range []string{
		"x-autoreply", "x-auto-reply", "x-autorespond", "x-autoresponder", "x-mail-autoreply",
		"x-auto-response-suppress",
	} {
		if value, ok := m.header.lookup(name); ok && !strings.EqualFold(value, "no") {
			return true
		}
	}
	switch strings.ToLower(m.header.get("precedence")) {
	case "auto_reply", "auto-reply":
		return true
	case "bulk", "junk", "list":
		return contains(decodeWords(m.header.get("subject")), vacationWords)
	}
	return false
}

var (
	failureWords = []string{
		"undeliverable", "undelivered", "not be delivered", "couldn't be delivered", "not delivered", "wasn't delivered",
		"unable to deliver", "wasn't able to deliver", "delivery failed", "delivery has failed", "delivery to the following recipient failed",
		"delivery failure", "failure notice", "delivery status notification (failure)", "returned mail",
		"permanent error", "permanent fatal error", "permanently failed", "has been rejected", "was rejected",
	}
	waitingWords = []string{
		"delayed", "not yet been", "will be retried", "will keep trying", "will continue to", "will try again",
		"still trying", "still being tried", "warning message only", "warning: could not send", "need to resend", "need not resend",
	}
	vacationWords = []string{
		"out of office", "out of the office", "vacation", "on holiday", "auto-reply", "autoreply", "auto reply",
		"automatic reply", "automated reply", "auto:", "abwesen", "automatische antwort", "automatisch antwoord",
		"réponse automatique", "absence du bureau", "respuesta automática", "fuera de la oficina", "risposta automatica",
		"frånvaro", "autosvar",
	}
)

// contains says whether a text has one of some phrases, however it is wrapped.
func contains(text string, phrases []string) bool {
	text = strings.Join(strings.Fields(strings.ToLower(text)), " ")
	return slices.ContainsFunc(phrases, func(p string) bool { return strings.Contains(text, p) })
}

var (
	// enhancedStatus finds a code of RFC 3463 2, but no piece of an address or a version.
	enhancedStatus = regexp.MustCompile(`(?:^|[^0-9A-Za-z.])([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:\.?[^0-9A-Za-z.]|\.?$)`)
	// permanentReply finds the code of a permanent error, or such a reply (RFC 5321
	// 4.2.1) where a line begins, behind a colon, in brackets or after words like "said".
	permanentReply = regexp.MustCompile(`(?:^|[^0-9A-Za-z.])5\.[0-9]{1,3}\.[0-9]{1,3}(?:\.?[^0-9A-Za-z.]|\.?$)` +
		`|(?i)(?:^[ \t<>.*]*|[:("'] ?|\b(?:said|error|code|reply|response|status) )5[05][0-9][ -][<"'A-Za-z(#]`)
)

// statusCode returns the first enhanced status code in a text, "" if it has none.
func statusCode(s string) string {
	if found := enhancedStatus.FindStringSubmatch(s); found != nil {
		return found[1]
	}
	return ""
}

// afterType returns the value of a field that begins with the type of what follows:
// "rfc822; bob@example.org" (RFC 3464 2.1.2).
func afterType(value string) string {
	kind, rest, ok := strings.Cut(value, ";")
	if kind = strings.TrimSpace(kind); !ok || kind == "" || strings.ContainsAny(kind, " @<>") {
		rest = value
	}
	rest = strings.TrimSpace(rest)
	if strings.HasPrefix(rest, "<") && strings.HasSuffix(rest, ">") {
		rest = rest[1 : len(rest)-1]
	}
	return rest
}

// addresses returns what could be addresses in a field.
func addresses(value string) []string {
	words := strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(" \t,;:<>()\"", r) })
	return slices.DeleteFunc(words, func(w string) bool { return !strings.Contains(w, "@") })
}

func decodeWords(s string) string {
	if decoded, err := new(mime.WordDecoder).DecodeHeader(s); err == nil {
		return decoded
	}
	return s
}

// clean is ruapost.Clean with one blank where there are several.
func clean(s string, limit int) string {
	const slack = 4 // blanks may become fewer; more than that is not worth reading
	return ruapost.Clean(strings.Join(strings.Fields(ruapost.Clean(s, slack*limit)), " "), limit)
}
