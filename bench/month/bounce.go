package main

import (
	"fmt"
	"strings"
)

// dsn is a delivery status notification (RFC 3464) about a mail to finalRecipient.
func dsn(m *reportMail, action, status, diagnostic, finalRecipient string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `From: MAILER-DAEMON@mail.%[1]s (Mail Delivery System)
To: %[2]s
Subject: Mail delivery: %[3]s
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b/1"

--b/1
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

This is about your message to <%[4]s>: %[5]s

--b/1
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; mail.%[1]s
X-Postfix-Queue-ID: 4cX0
Arrival-Date: Mon, 23 Nov 2026 00:40:00 +0000 (UTC)

`, us, m.sender, action, m.to, diagnostic)
	fmt.Fprintf(&b, "Final-Recipient: rfc822; %s\n", finalRecipient)
	if finalRecipient == m.to {
		fmt.Fprintf(&b, "Original-Recipient: rfc822;%s\n", m.to)
	}
	fmt.Fprintf(&b, "Action: %s\nStatus: %s\nDiagnostic-Code: %s\n", action, status, diagnostic)
	fmt.Fprintf(&b, "\n--b/1\nContent-Description: Undelivered Message Headers\nContent-Type: text/rfc822-headers\n\n%s\n\n--b/1--\n", m.header)
	return b.String()
}

// words is a bounce that no program is meant to read.
func words(m *reportMail) string {
	return fmt.Sprintf(`From: Postmaster <postmaster@%s>
To: %s
Subject: Undeliverable mail
Content-Type: text/plain

Your message to %s could not be delivered. The user has left us long ago.
`, hostOf(m.to), m.sender, m.to)
}

// autoReply is what an address says whose owner is on holiday (RFC 3834).
func autoReply(m *reportMail) string {
	return fmt.Sprintf(`From: <%s>
To: <%s>
Subject: Auto: away
Auto-Submitted: auto-replied (vacation)
Date: Mon, 23 Nov 2026 08:00:00 +0000
Message-ID: <away.%s@%s>
Content-Type: text/plain

I am away. Your message could not be read and will be deleted.
`, m.to, m.sender, m.id[:8], hostOf(m.to))
}
