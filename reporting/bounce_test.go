package reporting

import (
	"compress/gzip"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ruapost"
	"ruapost/tlsrpt"
)

// newBounceRig returns a rig whose mails carry tokens, with a domain whose reports go to
// dead@ and live@.
func newBounceRig(t *testing.T) *rig {
	r := newRig(t)
	r.BounceMaildir = filepath.Join(t.TempDir(), "bounces")
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dead@example.com,mailto:live@example.com"`)
	return r
}

// senders sends, and returns the envelope senders by recipient.
func (r *rig) senders() map[string]string {
	r.t.Helper()
	r.send()
	all := map[string]string{}
	for _, m := range r.taken() {
		words := strings.Fields(m.args)
		all[words[len(words)-1]] = words[2]
	}
	return all
}

// dsn is a delivery status notification (RFC 3464) to an address.
func dsn(to, about, action string) string {
	return strings.ReplaceAll(fmt.Sprintf(`Return-Path: <>
From: MAILER-DAEMON@mx.example.com
To: <%s>
Subject: Delivery Status Notification
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: text/plain

Sorry.
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.com

Final-Recipient: rfc822; %s
Action: %s
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such user
--b--
`, to, about, action), "\n", "\r\n")
}

func (r *rig) bounce(message string) {
	r.t.Helper()
	if _, err := r.Bounce(r.t.Context(), strings.NewReader(message)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) suppressed() (all []string) {
	r.t.Helper()
	list, err := r.store.Suppressions(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range list {
		if s.Active(r.clock) {
			all = append(all, fmt.Sprintf("%s %d %s", s.Pattern, s.Bounces, s.Until.Sub(s.Since)))
		}
	}
	return all
}

// An address that bounces is left alone for a week, then for two, and so on up to a year.
func TestBouncesSuppress(t *testing.T) {
	r := newBounceRig(t)
	for strike := 1; strike <= 8; strike++ {
		r.record("example.com", 1)
		senders := r.senders()
		if len(senders) != 2 || senders["dead@example.com"] == senders["live@example.com"] {
			t.Fatalf("strike %d: senders %v", strike, senders)
		}
		r.clock = r.clock.Add(time.Hour)
		r.bounce(dsn(senders["dead@example.com"], "dead@example.com", "failed"))
		r.bounce(dsn(senders["dead@example.com"], "dead@example.com", "failed")) // told twice
		length := min(7*24*time.Hour<<(strike-1), 365*24*time.Hour)
		if d := cmp.Diff([]string{fmt.Sprintf("dead@example.com %d %s", strike, length)}, r.suppressed()); d != "" {
			t.Fatal(d)
		}
		r.record("example.com", 1)
		if senders := r.senders(); len(senders) != 1 || senders["live@example.com"] == "" {
			t.Errorf("suppressed, senders %v", senders)
		}
		r.clock = r.clock.Add(length - time.Second)
		r.record("example.com", 1)
		if senders := r.senders(); len(senders) != 1 {
			t.Errorf("still suppressed, senders %v", senders)
		}
		r.clock = r.clock.Add(time.Second)
	}
	files, err := filepath.Glob(filepath.Join(r.BounceMaildir, "cur", "*"))
	if err != nil || len(files) != 16 {
		t.Errorf("%d messages filed, %v", len(files), err)
	}
	if n := r.counted()["bounces_failed"]; n != 16 {
		t.Error(r.counted())
	}
}

// A mail that has not come back for as long as reports are kept clears the address.
func TestAcceptedAgain(t *testing.T) {
	r := newBounceRig(t)
	r.record("example.com", 1)
	r.bounce(dsn(r.senders()["dead@example.com"], "dead@example.com", "failed"))
	var states []ruapost.RecipientState
	for _, rc := range r.report().Recipients {
		states = append(states, rc.State)
	}
	if d := cmp.Diff([]ruapost.RecipientState{"bounced", "sent"}, states); d != "" {
		t.Error(d)
	}
	r.clock = r.clock.Add(8 * 24 * time.Hour)
	r.record("example.com", 1)
	if len(r.senders()) != 2 {
		t.Fatal("not tried again")
	}
	r.clock = r.clock.Add(keep)
	r.send()
	if list, err := r.store.Suppressions(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

// Nobody can suppress an address that is not his own, and only failures suppress.
func TestBouncesThatDoNothing(t *testing.T) {
	r := newBounceRig(t)
	r.record("example.com", 1)
	senders := r.senders()
	dead, live := senders["dead@example.com"], senders["live@example.com"]
	forged := dead[:len(dead)-len("xx@reporter.example")] + "aa@reporter.example"
	for name, message := range map[string]string{
		"delayed":            dsn(live, "live@example.com", "delayed"),
		"without a token":    dsn("reports@reporter.example", "live@example.com", "failed"),
		"another's token":    dsn(forged, "live@example.com", "failed"),
		"automatic reply":    "From: live@example.com\r\nTo: " + live + "\r\nAuto-Submitted: auto-replied\r\n\r\n550 5.1.1 I am on vacation\r\n",
		"no mail at all":     "\x00\xff",
		"mail about others":  "Return-Path: <x@example.com>\r\nFrom: x@example.com\r\nTo: " + live + "\r\n\r\n550 5.1.1 live@example.com does not exist\r\n",
		"an older report's":  dsn("reports+"+strings.Repeat("a", 44)+"@reporter.example", "live@example.com", "failed"),
		"two tokens in one ": dsn(strings.Replace(live, "+", "+x", 1), "live@example.com", "failed"),
	} {
		r.bounce(message)
		if got := r.suppressed(); len(got) != 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
	// A bounce marks the recipient of the token, whomever it names.
	r.bounce(dsn(dead, "live@example.com", "failed"))
	if got := r.suppressed(); len(got) != 1 || !strings.HasPrefix(got[0], "dead@example.com ") {
		t.Error(got)
	}
	// Case is changed on the way.
	r.bounce(dsn(strings.ToUpper(live), "live@example.com", "failed"))
	if got := r.suppressed(); len(got) != 2 {
		t.Error(got)
	}
}

// A Maildir or store that cannot be used is the caller's to know: the mail comes again.
func TestBounceThatCannotBeFiled(t *testing.T) {
	r := newBounceRig(t)
	r.BounceMaildir = "/nonexistent/a/b"
	if _, err := r.Bounce(t.Context(), strings.NewReader(dsn("x@reporter.example", "x@example.com", "failed"))); err == nil {
		t.Error("no error")
	}
}

// What is suppressed while a mail waits is not sent.
func TestSuppressedWhileWaiting(t *testing.T) {
	r := newBounceRig(t)
	r.sendmailSays("dead@example.com", "75")
	r.record("example.com", 1)
	r.send()
	if err := r.Suppress(t.Context(), "*.com", time.Time{}, "no com"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(r.mails, "status dead@example.com")); err != nil {
		t.Fatal(err)
	}
	r.taken()
	r.clock = r.clock.Add(time.Hour)
	r.send()
	if got := r.taken(); len(got) != 0 {
		t.Errorf("%d mails", len(got))
	}
	if d := cmp.Diff([]string{"dead@example.com suppressed suppressed: no com", "live@example.com sent"}, r.states()); d != "" {
		t.Error(d)
	}
	r.record("example.com", 1)
	r.send()
	if left, err := r.due(t.Context(), r.before(Selection{Open: true}), ""); err != nil || len(left) != 0 || r.counted()["dropped_suppressed"] != 1 {
		t.Errorf("left %+v, %v, %v", left, err, r.counted())
	}
	if was, err := r.Unsuppress(t.Context(), "*.com"); err != nil || !was {
		t.Error(was, err)
	}
	if was, err := r.Unsuppress(t.Context(), "*.com"); err != nil || was {
		t.Error(was, err)
	}
}

func TestSuppressionPatterns(t *testing.T) {
	r := &Reporter{Now: func() time.Time { return monday }}
	all := byPattern([]ruapost.Suppression{
		{Pattern: "a@x.example"},
		{Pattern: "y.example"},
		{Pattern: "*.z.example"},
		{Pattern: "b@v.example about about.example"},
		{Pattern: "old.example", Until: monday},
		{Pattern: "new.example", Since: monday.Add(time.Second), Until: monday.Add(time.Hour)},
	})
	for address, want := range map[string]bool{
		"a@x.example": true, "A@x.example": true, "b@x.example": false, "a@y.example": true, "a@s.y.example": false,
		"a@z.example": false, "a@s.z.example": true, "a@t.s.z.example": true, "a@old.example": false, "a@new.example": false,
		"https://y.example/r": true, "https://h.z.example:8443/": true, "https://x.example/a@x.example": false,
		"b@v.example": true, "a@v.example": false,
	} {
		rc := &ruapost.Recipient{Address: address, HTTPS: strings.HasPrefix(address, "https:")}
		if got := r.suppress("sub.about.example", rc, all); got != want {
			t.Errorf("%s: %v", address, got)
		}
	}
	if r.suppress("other.example", &ruapost.Recipient{Address: "b@v.example"}, all) {
		t.Error("suppressed for reports about other domains, too")
	}
}

// A service that refuses a report about a domain which is none of its customers' does not
// cost its customers theirs.
func TestRefusedReportSuppressesThePair(t *testing.T) {
	r := newBounceRig(t)
	r.record("example.com", 1)
	live := r.senders()["live@example.com"]
	r.bounce(strings.Replace(strings.Replace(dsn(live, "live@example.com", "failed"), "Status: 5.1.1", "Status: 5.7.1", 1),
		"550 5.1.1 no such user", "554 5.7.1 no customer of ours", 1))
	if got := r.suppressed(); len(got) != 1 || !strings.HasPrefix(got[0], "live@example.com about example.com 1 ") {
		t.Error(got)
	}
}

// EX_NOUSER is as good as a bounce.
func TestSendmailKnowsNoSuchUser(t *testing.T) {
	r := newBounceRig(t)
	r.sendmailSays("dead@example.com", "67")
	r.sendmailSays("live@example.com", "64")
	r.record("example.com", 1)
	r.send()
	if got := r.suppressed(); len(got) != 1 || !strings.HasPrefix(got[0], "dead@example.com 1 ") {
		t.Error(got)
	}
}

// RFC 8460 3 and 5.4: mail and HTTPS side by side, each with a fate of its own.
func TestHTTPSDestination(t *testing.T) {
	r := newRig(t)
	var got []*tlsrpt.ParsedReport
	status := http.StatusServiceUnavailable
	d := newDestination(t, "127.0.0.1:0", nil, func(w http.ResponseWriter, req *http.Request) {
		content, err := gzip.NewReader(req.Body)
		if err != nil {
			t.Error(err)
			return
		}
		rep, err := tlsrpt.ParseReport(content)
		if err != nil || req.Header.Get("Content-Type") != "application/tlsrpt+gzip" {
			t.Errorf("%v, %v", req.Header, err)
		}
		got = append(got, rep)
		w.WriteHeader(status)
	})
	r.HTTPS = d.Poster
	r.dns.Add(`_smtp._tls.example.com. 300 IN TXT "v=TLSRPTv1; rua=` + d.url + `,mailto:a@example.com"`)
	r.recordSession("example.com")
	r.send()
	if d := cmp.Diff([]string{"a@example.com"}, r.recipientsOfMails()); d != "" {
		t.Error(d)
	}
	if rep := r.report(); rep.State != ruapost.ReportComposed || rep.Recipients[0].State != ruapost.RecipientWaiting {
		t.Errorf("%+v", rep)
	}
	status = http.StatusCreated
	r.clock = r.clock.Add(time.Hour)
	r.send()
	if rep := r.report(); rep.State != ruapost.ReportDone || rep.Recipients[0].State != ruapost.RecipientSent {
		t.Errorf("%+v", rep)
	}
	if len(got) != 2 || got[0].ReportID != got[1].ReportID || len(r.taken()) != 0 {
		t.Errorf("posted %+v", got)
	}
	r.send()
	if len(got) != 2 {
		t.Error("posted again")
	}
}
