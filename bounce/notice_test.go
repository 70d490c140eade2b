package bounce

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

const tokenAddress = "reports+dcnk5qe4gm7f2v6zt3hw5xjy4pq2abrs7uoli6kd3ym2@example.org"

// notices are what the messages in testdata say.
var notices = map[string]Notice{
	"postfix": {
		Kind: Failed, Recipient: "dmarc@peer.example", Status: "5.1.1",
		Diagnostic: "550 5.1.1 <dmarc@peer.example>: Recipient address rejected: User unknown",
	},
	"exim":     {Kind: Failed, Recipient: "dmarc@peer.example", Status: "5.0.0"},
	"exim-old": {Kind: Failed, Recipient: "dmarc@peer.example"},
	// It quotes a reply with 550.
	"exim-delay":     {Kind: Delayed},
	"sendmail":       {Kind: Failed, Recipient: "dmarc@peer.example", Status: "5.7.1", Diagnostic: "550 5.7.1 Mailbox is closed"},
	"sendmail-delay": {Kind: Delayed},
	"exchange": {
		Kind: Failed, Recipient: "dmarc@peer.example", Status: "5.1.10",
		Diagnostic: "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup",
	},
	// RFC 3463 3.5: a temporary error that has lasted too long.
	"office365-expired": {
		Kind: Failed, Recipient: "dmarc@peer.example", Status: "4.4.7", Diagnostic: "550 4.4.7 QUEUE.Expired; message expired",
	},
	"gmail": {
		Kind: Failed, Recipient: "dmarc@peer.example", Status: "5.1.1",
		Diagnostic: "550-5.1.1 The account that you wrote to does not exist here. " +
			"550-5.1.1 Please look at the address for typing errors. 550 5.1.1 a640c23a62f3a-ab1234 - gsmtp",
	},
	"qmail": {
		Kind: Failed, Recipient: "dmarc@peer.example", Status: "5.1.1", Diagnostic: "Sorry, no mailbox here by that name. (#5.1.1)",
	},
	"qmail-expired": {
		Kind: Failed, Recipient: "dmarc@peer.example", Status: "4.4.3",
		Diagnostic: "CNAME lookup failed temporarily. (#4.4.3) I'm not going to try again; this message has been in the queue too long.",
	},
	"text":    {Kind: Failed, Status: "5.2.1", Diagnostic: "inner.peer.example said: 550 5.2.1 The mailbox is"},
	"delayed": {Kind: Delayed, Recipient: "dmarc@peer.example", Status: "4.4.1", Diagnostic: "connect to inner.peer.example[192.0.2.5]:25: Connection timed out"},
	"success": {Kind: Other, Recipient: "dmarc@peer.example", Status: "2.0.0", Diagnostic: "250 2.0.0 Ok: queued as 4cXk2J4w"},
	// One failed, which is told; others did not.
	"several": {Kind: Failed, Recipient: "carol@peer.example", Status: "5.1.1"},
	// It has an empty return path, and speaks of 5.1.1.
	"vacation":         {Kind: AutoReply},
	"vacation-outlook": {Kind: AutoReply},
	"vacation-old":     {Kind: AutoReply},
	"challenge":        {Kind: AutoReply},
	"arf":              {Kind: Complaint, Recipient: "dmarc@peer.example", Diagnostic: "abuse", To: []string{"abuse@example.org", tokenAddress}},
	"arf-not-spam":     {Kind: Other, Recipient: "dmarc@peer.example", To: []string{"abuse@example.org"}},
	"mdn":              {Kind: Other},
	// It calls itself MAILER-DAEMON, but has a return path.
	"spam": {Kind: Other},
	// A person sends the report about something else.
	"person": {Kind: Other},
	// The failure is part of the message that came back.
	"nested": {Kind: Delayed, Recipient: "dmarc@peer.example", Status: "4.2.0"},
	"utf8": {
		Kind: Failed, Recipient: "berichte-für@bücher.example", Status: "5.1.1", Diagnostic: "550 5.1.1 Empfänger unbekannt",
	},
	"base64": {Kind: Failed, Recipient: "dmarc@peer.example", Status: "5.7.1"},
	// Without a boundary nothing is found in it.
	"broken": {Kind: Other},
	"cut":    {Kind: Failed, Recipient: "dmarc@peer.example", Status: "5.1.1"},
	// RFC 3464 2.3.3: Action is required, so this one says nothing.
	"no-action": {Kind: Other},
	"8bit": {
		Kind: Failed, Recipient: "dmarc@peer.example", Status: "5.1.1",
		Diagnostic: "550 5.1.1 <dmarc@peer.example>: Recipient address rejected: Empf nger gibt es [2Jnicht",
	},
}

func TestParse(t *testing.T) {
	for name, message := range samples(t) {
		t.Run(name, func(t *testing.T) {
			want, ok := notices[name]
			if !ok {
				t.Fatal("no expectation")
			}
			if want.To == nil {
				want.To = []string{tokenAddress}
			}
			if diff := cmp.Diff(&want, Parse(message)); diff != "" {
				t.Error(diff)
			}
			crlf := bytes.ReplaceAll(message, []byte("\n"), []byte("\r\n"))
			if diff := cmp.Diff(&want, Parse(crlf)); diff != "" {
				t.Errorf("with CRLF: %s", diff)
			}
		})
	}
}

// samples returns the messages in testdata by name.
func samples(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.eml")
	if err != nil || len(paths) != len(notices) {
		t.Fatalf("%d messages, %d expectations, %v", len(paths), len(notices), err)
	}
	messages := make(map[string][]byte)
	for _, path := range paths {
		message, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		messages[strings.TrimSuffix(filepath.Base(path), ".eml")] = message
	}
	return messages
}

// What is no failure for sure is none.
func TestDoubt(t *testing.T) {
	const (
		empty  = "Return-Path: <>\n"
		daemon = "From: MAILER-DAEMON@peer.example\n"
		failed = "Subject: Undelivered mail\n\nYour message could not be delivered: "
	)
	for _, test := range []struct {
		name, message string
		want          Kind
	}{
		{"RFC 5321 4.5.5: empty return path", empty + failed + "550 5.1.1 user unknown", Failed},
		{"old way to show it", "Return-Path: <MAILER-DAEMON>\n" + failed + "550 5.1.1 user unknown", Failed},
		{"author only", daemon + failed + "550 5.1.1 user unknown", Failed},
		{"author, but a return path", "Return-Path: <a@peer.example>\n" + daemon + failed + "550 5.1.1 user unknown", Other},
		{"neither", failed + "550 5.1.1 user unknown", Other},
		{"reply code only", empty + failed + "host said: 550 user unknown", Failed},
		{"reply code in brackets", empty + failed + "(554 delivery error)", Failed},
		{"number in the text", empty + failed + "we have 550 users", Other},
		{"street", empty + failed + "they moved to 550 Main Street", Other},
		{"temporary error", empty + failed + "451 4.3.0 try later", Other},
		{"address", empty + failed + "[10.5.1.1] [5.1.1.7]", Other},
		{"version", empty + failed + "exim-4.5.1.1 v5.1.1", Other},
		{"code at the end of a sentence", empty + failed + "it said 5.1.1.", Failed},
		{"code without words", empty + "Subject: hello\n\n550 5.1.1 user", Other},
		{"words without a code", empty + failed, Other},
		{"still waiting", empty + failed + "550 5.1.1; it will be\nretried", Delayed},
		{"an automatic reply (RFC 3834 5)", empty + "Auto-Submitted: auto-replied\n" + failed + "550 5.1.1 no", AutoReply},
		{"no automatic reply", empty + "Auto-Submitted: no\n" + failed + "550 5.1.1 no", Failed},
		{"Exim's field alone", empty + "X-Failed-Recipients: a@peer.example\n\n", Other},
		{"code in the copy only", empty + failed + "gone\n\n------ This is a copy of it\n550 5.1.1 no", Other},
		{"qmail's words without its sender", "Return-Path: <a@peer.example>\n\nHi. This is the qmail\n\n<b@peer.example>:\nNo. (#5.1.1)\n", Other},
		{"qmail's recipient in the copy", empty + "\nHi. This is the qmail\n\n--- Below\n\n<b@peer.example>:\nNo. (#5.1.1)\n", Other},
		{"qmail's that waits", empty + "\nHi. This is the qmail\nI am still trying.\n\n<b@peer.example>:\nNo. (#5.1.1)\n", Delayed},
		{"list mail", "Precedence: list\nSubject: digest\n\nhello", Other},
		{"only fields", empty, Other},
		{"nothing", "", Other},
	} {
		t.Run(test.name, func(t *testing.T) {
			if n := Parse([]byte(test.message)); n.Kind != test.want {
				t.Errorf("%+v, want %s", n, test.want)
			}
		})
	}
}

func TestAction(t *testing.T) {
	for _, test := range []struct {
		fields string
		want   Kind
	}{
		{"Action: failed\nStatus: 5.1.1", Failed},
		{"action:FAILED\nstatus:5.1.1", Failed},
		{"Action: failed", Failed},
		{"Action: failed\nStatus: 4.4.7", Failed},
		{"Action: failed\nStatus: 2.0.0", Other}, // contradicts itself
		{"Action: failing\nStatus: 5.1.1", Other},
		{"Action: delayed\nStatus: 5.1.1", Delayed},
		{"Action: delivered\nStatus: 5.1.1", Other},
		{"Action: relayed\n\nAction: delayed", Delayed},
		{"Action: delayed\n\nAction: failed", Failed},
		{"\n\n\nAction: failed", Failed},
		{"Status: 5.1.1", Other},
		{"", Other},
	} {
		message := "Return-Path: <>\nContent-Type: multipart/report; boundary=b\n\n--b\nContent-Type: message/delivery-status\n\n" +
			"Reporting-MTA: dns; mx.peer.example\n\n" + test.fields + "\n--b--\n"
		if n := Parse([]byte(message)); n.Kind != test.want {
			t.Errorf("%q: %+v, want %s", test.fields, n, test.want)
		}
	}
}

// The addresses that the caller knows of come first, whatever the message claims.
func TestTo(t *testing.T) {
	message := "To: \"A, b\" <c@x.example>,\n d@x.example (home), e@x.example; undisclosed\nX-Original-To: b@x.example\n" +
		"Delivered-To: a@x.example\nDelivered-To: z@x.example\nTo: y@x.example\n\n"
	got := Parse([]byte(message), "a@x.example", "bad\n@x.example", "").To
	want := []string{"a@x.example", "bad @x.example", "b@x.example", "c@x.example", "d@x.example", "e@x.example"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	many := "To: " + strings.Repeat("x", maxAddress) + "@x.example," + strings.Repeat("x@y.example,", 500) + "a@b"
	for i := range 100 {
		many += fmt.Sprintf(",%d@x.example", i)
	}
	if got := Parse([]byte(many)).To; len(got) != maxTo || got[0] != "x@y.example" {
		t.Errorf("%d: %q", len(got), got)
	}
}

// Nobody's message takes long or much memory to read.
func TestHostile(t *testing.T) {
	report := "Return-Path: <>\nContent-Type: multipart/report; boundary=b\n\n"
	status := "--b\nContent-Type: message/delivery-status\n\n"
	var nested strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&nested, "Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n", i, i)
	}
	fill := func(prefix, piece string) string {
		return (prefix + strings.Repeat(piece, MaxSize/len(piece)+1))[:MaxSize]
	}
	for name, message := range map[string]string{
		"one line":              fill("", "x"),
		"one field":             fill("Subject: ", "x"),
		"one name":              fill("", "x") + ":",
		"folds":                 fill("Subject: x\n", " x\n"),
		"fields":                fill("", "a:\n"),
		"empty lines":           fill("Subject: x\n", "\n"),
		"addresses":             fill("To: ", "a@b,"),
		"blanks":                fill("Return-Path: <>\n\n", " "),
		"text":                  fill("Return-Path: <>\n\nnot delivered ", "5.1."),
		"lines of text":         fill("Return-Path: <>\n\nnot delivered ", "5\n"),
		"qmail's":               fill("Return-Path: <>\n\nHi. This is the ", "\n\n<a>:"),
		"parts":                 fill(report, "--b\n\n"),
		"parts with types":      fill(report, "--b\nContent-Type: text/plain\n\nx\n"),
		"multiparts":            fill(report, "--b\nContent-Type: multipart/mixed; boundary=b\n\n"),
		"nested":                fill(nested.String(), "x"),
		"recipients":            fill(report+status, "Action: delayed\n\n"),
		"fields of a recipient": fill(report+status, "Action: delayed\n"),
		"groups":                fill(report+status, "a:\n\n"),
		"boundary":              fill("Content-Type: multipart/report; boundary=\"", "b"),
		"parameters":            fill("Content-Type: multipart/report; boundary=b", "; a=b"),
		"base64":                fill("Content-Transfer-Encoding: base64\n\n", "QUFB"),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			n := Parse([]byte(message))
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			if n.Kind == Failed && name != "qmail's" {
				t.Errorf("%+v", n)
			}
			if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 64<<20 || took > 10*time.Second {
				t.Errorf("took %v and %d octets", took, allocated)
			}
		})
	}
}

func TestBounds(t *testing.T) {
	const head = "Return-Path: <>\nContent-Type: multipart/report; boundary=b\n\n"
	const failure = "not delivered: 550 5.1.1"
	const status = "--b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; x\n\nAction: failed\n"
	for _, test := range []struct {
		name, message string
		want          Kind
	}{
		{"last part", head + strings.Repeat("--b\n\nx\n", maxParts-1) + status + "\n--b--\n", Failed},
		{"a part too many", head + strings.Repeat("--b\n\nx\n", maxParts) + status + "\n--b--\n", Other},
		{"deep", deep(maxDepth), Failed},
		{"too deep", deep(maxDepth + 1), Other},
		{"last field", strings.Repeat("A: b\n", maxFields-2) + head + status + "\n--b--\n", Failed},
		{"a field too many", strings.Repeat("A: b\n", maxFields-1) + head + status + "\n--b--\n", Other},
		{"first status counts", head + strings.Replace(status, "failed", "delayed", 1) + status + "\n--b--\n", Delayed},
		{"last recipient", head + recipients(maxRecipients-1) + "\nAction: failed\n--b--\n", Failed},
		{"a recipient too many", head + recipients(maxRecipients) + "\nAction: failed\n--b--\n", Delayed},
		{"end of a text", "Return-Path: <>\n\n" + strings.Repeat(" ", maxText-len(failure)) + failure, Failed},
		{"past the end of a text", "Return-Path: <>\n\n" + strings.Repeat(" ", maxText-len(failure)+2) + failure, Other},
		{"end of a value", "Return-Path: <>\nSubject: " + strings.Repeat("x\n ", maxValue/2-len(failure)) + failure + "\n\n", Failed},
		{"past the end of a value", "Return-Path: <>\nSubject: " + strings.Repeat("x\n ", maxValue/2-5) + failure + "\n\n", Other},
		{"qmail's greeting is no recipient", "Return-Path: <>\n\nHi. This is the qmail\n<b@peer.example>:\n", Other},
		{"past the end", head + strings.Repeat("x", MaxSize) + "\n" + status + "\n--b--\n", Other},
	} {
		t.Run(test.name, func(t *testing.T) {
			if n := Parse([]byte(test.message)); n.Kind != test.want {
				t.Errorf("%+v", n)
			}
		})
	}
}

// recipients returns a delivery status about so many.
func recipients(n int) string {
	return "--b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; x\n" + strings.Repeat("\nAction: delayed\n", n)
}

// deep returns a delivery status in so many multiparts.
func deep(multiparts int) string {
	var b strings.Builder
	b.WriteString("Return-Path: <>\n")
	for i := range multiparts {
		fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=b%dx\n\n--b%dx\n", i, i)
	}
	b.WriteString("Content-Type: message/delivery-status\n\nReporting-MTA: dns; x\n\nAction: failed\n")
	for i := range multiparts {
		fmt.Fprintf(&b, "\n--b%dx--\n", multiparts-1-i)
	}
	return b.String()
}

// FuzzParse checks that whatever a message is, its Notice is within the bounds and can
// be logged.
func FuzzParse(f *testing.F) {
	for _, message := range samples(f) {
		f.Add(message, tokenAddress)
	}
	kinds := []Kind{Failed, Delayed, AutoReply, Complaint, Other}
	f.Fuzz(func(t *testing.T, message []byte, to string) {
		n := Parse(message, to)
		if !slices.Contains(kinds, n.Kind) || n.Status != "" && statusCode(n.Status) != n.Status || len(n.To) > maxTo {
			t.Errorf("%+v", n)
		}
		for i, s := range append(n.To, n.Recipient, n.Status, n.Diagnostic) {
			control := strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
			if limit := max(maxAddress, maxDiagnostic); len(s) > limit || control || !utf8.ValidString(s) {
				t.Errorf("text %d: %q", i, s)
			}
		}
		if len(n.Diagnostic) > maxDiagnostic {
			t.Errorf("diagnostic of %d octets", len(n.Diagnostic))
		}
	})
}
