package maillog

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ruapost/bounce"
)

// noon is the time of the tests' log lines.
var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

const tls13 = "TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits) key-exchange X25519 server-signature ECDSA (prime256v1) server-digest SHA256"

// parse takes lines apart that are written without time and host, and without
// "postfix/" for programs of the default syslog_name.
func parse(t *testing.T, log string) []Entry {
	t.Helper()
	var entries []Entry
	for line := range strings.Lines(log) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if tag, _, _ := strings.Cut(line, "["); !strings.Contains(tag, "/") {
			line = "postfix/" + line
		}
		e, ok := ParseLine("Nov 25 12:00:00 host "+line, noon)
		if !ok {
			t.Fatalf("not a line for a Reader: %s", line)
		}
		entries = append(entries, e)
	}
	return entries
}

// describe writes an event in a line. What is not said there is compared elsewhere.
func describe(e Event) string {
	s := fmt.Sprintf("%s %s", e.Kind, strings.Join(e.Domains, " "))
	if e.MX != "" {
		s += " via " + e.MX
	}
	if e.IP.IsValid() {
		s += fmt.Sprintf("[%s]", e.IP)
	}
	if e.Port != 0 {
		s += fmt.Sprintf(":%d", e.Port)
	}
	if e.Peer != "" {
		s += " " + string(e.Peer)
	}
	if f := e.Failure; f.Result != "" {
		s += " " + strings.TrimSpace(string(f.Result)+" "+f.Reason)
	}
	if e.Datagram {
		s += " datagram"
	}
	return s
}

func describeAll(events []Event) []string {
	var all []string
	for _, e := range events {
		all = append(all, describe(e))
	}
	return all
}

// TestRealLogs reads what a real Postfix 3.7 and 3.10 logged of mail to the same good
// and bad servers. Both tell the same, and 3.10's log the same as its datagrams.
func TestRealLogs(t *testing.T) {
	const untrusted = "certificate-not-trusted"
	want := map[string][]string{ // by domain: what the servers say, the most preferred first
		"dane":                      {"success", "success"},
		"dane-expired":              {"success"},
		"dane-mismatch":             {untrusted},
		"dane-authority":            {"success"},
		"dane-authority-wrong-name": {"certificate-host-mismatch"},
		"dane-no-starttls":          {"starttls-not-supported"},
		"dane-refused":              {"starttls-not-supported"},
		"dane-garbled":              {"validation-failure tls-handshake-failure"},
		"dane-first-wrong":          {untrusted, untrusted, "success", "success"},
		"dane-partial":              {untrusted, "success"},
		"dane-unusable":             {"success"},
		"dane-unusable-no-starttls": {"starttls-not-supported"},
		"dane-malformed":            {"tlsa-invalid all-TLSA-records-unusable"},
		"dane-mixed":                {"success"},
		"sts":                       {"success", "success", "success"},
		"sts-wildcard":              {"success"},
		"sts-wrong-name":            {"certificate-host-mismatch"},
		"sts-expired":               {"certificate-expired"},
		"sts-self-signed":           {"validation-failure self-signed_certificate", "validation-failure self-signed_certificate"},
		"sts-future":                {"validation-failure certificate_is_not_yet_valid"},
		"sts-unknown-issuer":        {"validation-failure unable_to_get_local_issuer_certificate"},
		"sts-for-clients":           {"validation-failure unsuitable_certificate_purpose"},
		"sts-long-chain":            {"validation-failure certificate_chain_too_long"},
		"sts-no-starttls":           {"starttls-not-supported"},
		"sts-refused":               {"starttls-not-supported"},
		"sts-garbled":               {"validation-failure tls-handshake-failure"},
		"sts-first-expired":         {"certificate-expired", "certificate-expired", "success", "success"},
		"sts-first-away":            {"success"},
		"sts-testing":               {"success"},
		"sts-not-required":          {"validation-failure self-signed_certificate"},
		"sts-no-record":             {"success"},
		"sts-two-records":           {"success"},
		"sts-other-host":            {"certificate-host-mismatch"},
		"dane-and-sts":              {"success"},
		"dane-unusable-and-sts":     {"success"},
		"no-policy":                 {"success"},
		"reused":                    {"success"}, // three mails
		"plain":                     {"plaintext"},
		"refused":                   {"plaintext"},
		"garbled":                   {"validation-failure tls-handshake-failure", "validation-failure tls-handshake-failure", "plaintext"},
	}
	for _, version := range []string{"3.7", "3.10"} {
		t.Run(version, func(t *testing.T) {
			data, err := os.ReadFile("testdata/postfix-" + version + ".log")
			if err != nil {
				t.Fatal(err)
			}
			var entries []Entry
			for line := range strings.Lines(string(data)) {
				if e, ok := ParseLine(strings.TrimSuffix(line, "\n"), noon); ok {
					entries = append(entries, e)
				}
			}
			if version == "3.10" {
				want["sts-other-host"] = []string{"problem validation-failure mx-mismatch"}
				want["sts-not-required"] = []string{"success"} // TLS-Required: No is heeded
			}
			events := New("reports@receiver.example").Read(entries)
			slices.SortStableFunc(events, func(a, b Event) int { return strings.Compare(a.MX, b.MX) })
			got := map[string][]string{}
			for _, e := range events {
				if len(e.Domains) != 1 || e.QueueID == "" || e.Time.IsZero() || e.Host != "mail" {
					t.Errorf("%+v", e)
					continue
				}
				domain := strings.TrimSuffix(e.Domains[0], ".example")
				got[domain] = append(got[domain], outcome(e))
				unreported := domain == "sts-no-record" || domain == "sts-two-records" || domain == "sts-not-required"
				if datagram := version == "3.10" && e.Kind == KindSession && !unreported; e.Datagram != datagram {
					t.Errorf("%s: Datagram = %v", domain, e.Datagram)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// outcome is what an event says happened.
func outcome(e Event) string {
	failure := strings.TrimSpace(string(e.Failure.Result) + " " + e.Failure.Reason)
	switch {
	case e.Kind == KindSession && failure == "":
		return "success"
	case e.Kind == KindSession:
		return failure
	}
	return strings.TrimSpace(string(e.Kind) + " " + failure)
}

const (
	delays = "delay=0.1, delays=0.01/0/0.06/0.04"
	sentTo = "dsn=2.0.0, status=sent (250 2.0.0 Ok)"
)

func TestRead(t *testing.T) {
	tests := []struct {
		name string
		log  string
		want []string
	}{
		{
			"success", `
smtp[1]: Verified TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 Verified"},
		},
		{
			// TLS lines have the host in lower case, results as it is in the DNS.
			"case of host names and long queue ID", `
smtp[1]: Trusted TLS connection established to mx.a.example[2001:db8::1]:25: ` + tls13 + `
smtp[1]: 4bQz1y3zTbzD1v: to=<U@A.Example>, relay=MX.A.example[2001:db8::1]:25, ` + delays + `, ` + sentTo,
			[]string{"session a.example via mx.a.example[2001:db8::1]:25 Trusted"},
		},
		{
			"no TLS 1.3, no certificate", `
smtp[1]: Anonymous TLS connection established to mx.a.example[192.0.2.1]:25: TLSv1.2 with cipher ADH-AES256-GCM-SHA384 (256/256 bits)
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 Anonymous"},
		},
		{
			// The detail is there because of the logging level; nobody asked for it.
			"untrusted where that does not matter", `
smtp[1]: certificate verification failed for mx.a.example[192.0.2.1]:25: self-signed certificate
smtp[1]: Untrusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 Untrusted"},
		},
		{
			"refused after the handshake is a success all the same", `
smtp[1]: Untrusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=5.1.1, status=bounced (host mx.a.example[192.0.2.1] said: 550 5.1.1 No such user (in reply to RCPT TO command))`,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 Untrusted"},
		},
		{
			"without detail, Postfix 3.5", `
smtp[1]: Untrusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=4.7.5, status=deferred (Server certificate not trusted)`,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 Untrusted certificate-not-trusted"},
		},
		{
			"trusted, but not verified, without detail", `
smtp[1]: Trusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=4.7.5, status=deferred (Server certificate not verified)`,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 Trusted certificate-host-mismatch"},
		},
		{
			"smtp_tls_loglevel = 0", `
smtp[1]: server certificate verification failed for mx.a.example[192.0.2.1]:25: certificate has expired
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=4.7.5, status=deferred (Server certificate not verified)
smtp[1]: 45BA69A00A5: to=<u@b.example>, relay=mx.b.example[192.0.2.2]:25, ` + delays + `, ` + sentTo,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 certificate-expired"},
		},
		{
			"not the last server", `
smtp[1]: server certificate verification failed for mx1.a.example[192.0.2.1]:25: num=65:no matching DANE TLSA records
smtp[1]: Untrusted TLS connection established to mx1.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: Server certificate not verified
smtp[1]: 45BA69A00A4: TLS is required, but was not offered by host mx2.a.example[192.0.2.2]
smtp[1]: SSL_connect error to mx3.a.example[192.0.2.3]:25: lost connection
smtp[1]: 45BA69A00A4: Cannot start TLS: handshake failure
smtp[1]: Verified TLS connection established to mx4.a.example[192.0.2.4]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: host mx4.a.example[192.0.2.4] said: 451 4.7.1 Later (in reply to MAIL FROM command)
smtp[1]: connect to mx5.a.example[192.0.2.5]:25: Connection timed out
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=none, ` + delays + `, dsn=4.4.1, status=deferred (connect to mx5.a.example[192.0.2.5]:25: Connection timed out)`,
			[]string{
				"session a.example via mx1.a.example[192.0.2.1]:25 Untrusted certificate-not-trusted",
				"session a.example via mx2.a.example[192.0.2.2] starttls-not-supported",
				"session a.example via mx3.a.example[192.0.2.3]:25 validation-failure tls-handshake-failure",
				"session a.example via mx4.a.example[192.0.2.4]:25 Verified",
			},
		},
		{
			"several recipients and domains", `
smtp[1]: Untrusted TLS connection established to relay.example[192.0.2.1]:587: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=relay.example[192.0.2.1]:587, delay=0.1, delays=0.01/0/0.06/0.04, ` + sentTo + `
smtp[1]: 45BA69A00A4: to=<v@a.example>, relay=relay.example[192.0.2.1]:587, delay=0.1, delays=0.01/0/0.06/0.04, ` + sentTo + `
smtp[1]: 45BA69A00A4: to=<w@b.example>, orig_to=<w>, relay=relay.example[192.0.2.1]:587, delay=0.2, delays=0.01/0/0.06/0.14, dsn=5.1.1, status=bounced (host relay.example[192.0.2.1] said: 550 5.1.1 No (in reply to RCPT TO command))`,
			[]string{"session a.example b.example via relay.example[192.0.2.1]:587 Untrusted"},
		},
		{
			"several recipients, a failure without a line about TLS", `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, delay=0.1, delays=0.01/0/0.06/0, dsn=4.7.4, status=deferred (TLS is required, but was not offered by host mx.a.example[192.0.2.1])
smtp[1]: 45BA69A00A4: to=<v@a.example>, relay=mx.a.example[192.0.2.1]:25, delay=0.1, delays=0.01/0/0.06/0, dsn=4.7.4, status=deferred (TLS is required, but was not offered by host mx.a.example[192.0.2.1])
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, delay=300, delays=300/0/0.06/0, dsn=4.7.4, status=deferred (TLS is required, but was not offered by host mx.a.example[192.0.2.1])`,
			[]string{ // the last is a retry
				"session a.example via mx.a.example[192.0.2.1]:25 starttls-not-supported",
				"session a.example via mx.a.example[192.0.2.1]:25 starttls-not-supported",
			},
		},
		{
			"refused, with a server that imitates", `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=4.7.0, status=deferred (TLS is required, but host mx.a.example[192.0.2.1] refused to start TLS: 454 4.7.0 TLS is required, but was not offered by host mx.b.example[192.0.2.2])`,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 starttls-not-supported"},
		},
		{
			"handshake fails, plaintext later", `
smtp[1]: Untrusted TLS connection established to mx.other.example[192.0.2.9]:25: ` + tls13 + `
smtp[1]: 45BA69A00A0: to=<u@other.example>, relay=mx.other.example[192.0.2.9]:25, ` + delays + `, ` + sentTo + `
smtp[1]: SSL_connect error to mx.a.example[192.0.2.1]:25: -1
smtp[1]: warning: TLS library problem: error:0A00010B:SSL routines::wrong version number:../ssl/record/ssl3_record.c:350:
smtp[1]: 45BA69A00A4: Cannot start TLS: handshake failure
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo,
			[]string{
				"session other.example via mx.other.example[192.0.2.9]:25 Untrusted",
				"session a.example via mx.a.example[192.0.2.1]:25 validation-failure tls-handshake-failure",
				"plaintext a.example via mx.a.example[192.0.2.1]:25",
			},
		},
		{
			"TLS session breaks, plaintext to the same server", `
smtp[1]: Untrusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: lost connection with mx.a.example[192.0.2.1] while performing the EHLO handshake
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo,
			[]string{
				"session a.example via mx.a.example[192.0.2.1]:25 Untrusted",
				"plaintext a.example via mx.a.example[192.0.2.1]:25",
			},
		},
		{
			"some recipients refused for now in a TLS session", `
smtp[1]: Untrusted TLS connection established to mx1.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: host mx1.a.example[192.0.2.1] said: 450 4.2.0 Greylisted (in reply to RCPT TO command)
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx1.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo + `
smtp[1]: 45BA69A00A4: to=<v@b.example>, relay=mx2.a.example[192.0.2.2]:25, ` + delays + `, ` + sentTo,
			[]string{
				"session a.example via mx1.a.example[192.0.2.1]:25 Untrusted",
				"plaintext b.example via mx2.a.example[192.0.2.2]:25",
			},
		},
		{
			"the next mail without TLS, to the same server and again", `
smtp[1]: Untrusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo + `
smtp[1]: 45BA69A00A5: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo + `
smtp[1]: 45BA69A00A5: to=<v@b.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo,
			[]string{
				"session a.example via mx.a.example[192.0.2.1]:25 Untrusted",
				"plaintext a.example b.example via mx.a.example[192.0.2.1]:25",
			},
		},
		{
			// smtp_tls_loglevel is 0, or only tlsproxy's lines are there.
			"nothing known about plaintext", `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo,
			nil,
		},
		{
			"another transport's logging says nothing of this one's", `
postfix/relay/smtp[1]: Untrusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
postfix/relay/smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo + `
smtp[2]: 45BA69A00A5: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 Untrusted"},
		},
		{
			"tls= of Postfix 3.11", `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, tls=may:none, ` + sentTo + `
smtp[1]: 45BA69A00A5: to=<u@b.example>, relay=mx.b.example[192.0.2.1]:25, ` + delays + `, tls=none/(requiretls), ` + sentTo + `
smtp[1]: 45BA69A00A6: to=<u@c.example>, relay=mx.c.example[192.0.2.1]:25, ` + delays + `, tls=may, ` + sentTo + `
smtp[1]: 45BA69A00A7: to=<u@d.example>, relay=mx.d.example[192.0.2.1]:25, ` + delays + `, tls=!secure, dsn=4.7.4, status=deferred (TLS is required, but was not offered by host mx.d.example[192.0.2.1])`,
			[]string{
				"plaintext a.example via mx.a.example[192.0.2.1]:25",
				"plaintext b.example via mx.b.example[192.0.2.1]:25",
				"session d.example via mx.d.example[192.0.2.1]:25 starttls-not-supported",
			},
		},
		{
			"reused connection", `
smtp[1]: Trusted TLS connection reused to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, conn_use=2, ` + delays + `, ` + sentTo,
			nil,
		},
		{
			"resumed TLS session", `
smtp[1]: mx.a.example[192.0.2.1]:25: re-using session with untrusted certificate, look for details earlier in the log
smtp[1]: Untrusted TLS connection established to mx.a.example[192.0.2.1]:25: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo,
			nil,
		},
		{
			"tlsproxy makes the handshake", `
tlsproxy[9]: Untrusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: Untrusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 Untrusted"},
		},
		{
			"tlsproxy tells why it failed", `
tlsproxy[9]: server certificate verification failed for mx.a.example[192.0.2.1]:25: certificate has expired
smtp[1]: Untrusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=4.7.5, status=deferred (Server certificate not verified)`,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 Untrusted certificate-expired"},
		},
		{
			"tlsproxy told by datagram", `
tlsproxy[9]: TLSRPT: status=failure, domain=a.example, receiving_mx=mx.a.example[192.0.2.1], failure_type=validation_failure, failure_reason=tls-handshake-failure
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=4.7.5, status=deferred (Cannot start TLS: handshake failure)`,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 validation-failure tls-handshake-failure datagram"},
		},
		{
			"tlsproxy's line is not about what smtp told by itself", `
tlsproxy[9]: TLSRPT: status=failure, domain=a.example, receiving_mx=mx.a.example[192.0.2.1], failure_type=certificate_expired
smtp[1]: TLSRPT: status=failure, domain=a.example, receiving_mx=mx.a.example[192.0.2.1], failure_type=starttls_not_supported
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=4.7.4, status=deferred (TLS is required, but was not offered by host mx.a.example[192.0.2.1])`,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 starttls-not-supported datagram"},
		},
		{
			"told by datagrams, which come before the connection's line or after it", `
smtp[1]: server certificate verification failed for mx.a.example[192.0.2.1]:25: certificate has expired
smtp[1]: TLSRPT: status=failure, domain=a.example, receiving_mx=mx.a.example[192.0.2.1], failure_type=certificate_expired
smtp[1]: Untrusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, tls=!secure, dsn=4.7.5, status=deferred (Server certificate not verified)
smtp[1]: Verified TLS connection established to mx.b.example[192.0.2.2]:25: ` + tls13 + `
smtp[1]: TLSRPT: status=success, domain=b.example, receiving_mx=mx.b.example[192.0.2.2]
smtp[1]: 45BA69A00A5: to=<u@b.example>, relay=mx.b.example[192.0.2.2]:25, ` + delays + `, ` + sentTo + `
smtp[1]: TLSRPT: status=failure, domain=c.example, receiving_mx=mx.c.example[192.0.2.3], failure_type=starttls_not_supported
smtp[1]: 45BA69A00A6: to=<u@c.example>, relay=mx.c.example[192.0.2.3]:25, ` + delays + `, dsn=4.7.4, status=deferred (TLS is required, but was not offered by host mx.c.example[192.0.2.3])`,
			[]string{
				"session a.example via mx.a.example[192.0.2.1]:25 Untrusted certificate-expired datagram",
				"session b.example via mx.b.example[192.0.2.2]:25 Verified datagram",
				"session c.example via mx.c.example[192.0.2.3]:25 starttls-not-supported datagram",
			},
		},
		{
			"the datagram could not be sent", `
smtp[1]: Verified TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: TLSRPT: status=success, domain=a.example, receiving_mx=mx.a.example[192.0.2.1]
smtp[1]: warning: Could not report TLS handshake result to tlsrpt library: Connection refused (errno 111)
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo + `
smtp[1]: SSL_connect error to mx.b.example[192.0.2.2]:25: -1
smtp[1]: TLSRPT: status=failure, domain=b.example, receiving_mx=mx.b.example[192.0.2.2], failure_type=validation_failure, failure_reason=tls-handshake-failure
smtp[1]: warning: Could not report TLS handshake result to tlsrpt library: no such thing (error 3)
smtp[1]: 45BA69A00A5: to=<u@b.example>, relay=mx.b.example[192.0.2.2]:25, ` + delays + `, dsn=4.7.5, status=deferred (Cannot start TLS: handshake failure)`,
			[]string{
				"session a.example via mx.a.example[192.0.2.1]:25 Verified",
				"session b.example via mx.b.example[192.0.2.2]:25 validation-failure tls-handshake-failure",
			},
		},
		{
			"Postfix's verdict counts: the chain has a self-signed certificate", `
smtp[1]: certificate verification failed for mx.a.example[192.0.2.1]:25: untrusted issuer /CN=A
smtp[1]: TLSRPT: status=failure, domain=a.example, receiving_mx=mx.a.example[192.0.2.1], failure_type=validation_failure, failure_reason=self-signed_certificate_in_certificate_chain
smtp[1]: Untrusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=4.7.5, status=deferred (Server certificate not verified)`,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 Untrusted validation-failure self-signed_certificate_in_certificate_chain datagram"},
		},
		{
			"external policy", `
smtp[1]: certificate verification failed for mx.a.example[192.0.2.1]:25: external policy failure (sts-webpki-invalid)
smtp[1]: TLSRPT: status=failure, domain=a.example, receiving_mx=mx.a.example[192.0.2.1], failure_type=sts_webpki_invalid
smtp[1]: Untrusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=4.7.5, status=deferred (Server certificate not verified)`,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 Untrusted sts-webpki-invalid datagram"},
		},
		{
			"an unfinished policy is no verdict", `
smtp[1]: TLSRPT: status=failure, domain=a.example, receiving_mx=mx.a.example[192.0.2.1], failure_type=unfinished_policY
smtp[1]: Untrusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo,
			[]string{"session a.example via mx.a.example[192.0.2.1]:25 Untrusted datagram"},
		},
		{
			"MX name not in the policy", `
smtp[1]: warning: MX name 'mx.b.example' does not match STS MX pattern for 'a.example'
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=none, ` + delays + `, tls=secure?, dsn=4.3.0, status=deferred (server unavailable or unable to receive mail)`,
			[]string{"problem a.example via mx.b.example validation-failure mx-mismatch"},
		},
		{
			"DANE problems", `
smtp[1]: warning: TLS policy lookup for a.example/mx1.a.example: non DNSSEC destination
smtp[1]: warning: TLS policy lookup for a.example/mx2.a.example: no TLSA records found
smtp[1]: warning: TLS policy lookup for a.example/mx3.a.example: TLSA records unusable
smtp[1]: warning: TLS policy lookup for a.example/mx4.a.example: TLSA lookup error for mx4.a.example:25
smtp[1]: warning: TLS policy lookup for a.example/mx5.a.example: client TLS configuration problem
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=none, ` + delays + `, dsn=4.7.5, status=deferred (TLSA lookup error for mx4.a.example:25)`,
			[]string{
				"problem a.example via mx1.a.example dane-required non-DNSSEC-destination",
				"problem a.example via mx2.a.example dane-required no-TLSA-records-found",
				"problem a.example via mx3.a.example tlsa-invalid TLSA-records-unusable",
				"problem a.example via mx4.a.example dnssec-invalid TLSA-lookup-error",
			},
		},
		{
			"the last server fails, another had a problem", `
smtp[1]: warning: TLS policy lookup for a.example/mx1.a.example: no TLSA records found
smtp[1]: Verified TLS connection established to mx2.a.example[192.0.2.2]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx2.a.example[192.0.2.2]:25, ` + delays + `, ` + sentTo,
			[]string{
				"problem a.example via mx1.a.example dane-required no-TLSA-records-found",
				"session a.example via mx2.a.example[192.0.2.2]:25 Verified",
			},
		},
		{
			"processes do not mix", `
smtp[1]: Verified TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
postfix-out/smtp[1]: Trusted TLS connection established to mx.a.example[192.0.2.1]:25: ` + tls13 + `
smtp[2]: 45BA69A00A5: to=<u@b.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, tls=may, ` + sentTo + `
postfix-out/smtp[1]: 45BA69A00A6: to=<u@c.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo,
			[]string{
				"session c.example via mx.a.example[192.0.2.1]:25 Trusted",
				"session a.example via mx.a.example[192.0.2.1]:25 Verified",
			},
		},
		{
			// The first process died before it logged a result.
			"process number used again", `
smtp[1]: Verified TLS connection established to mx.shared.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: Untrusted TLS connection established to mx.shared.example[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.shared.example[192.0.2.1]:25, ` + delays + `, ` + sentTo + `
smtp[1]: Verified TLS connection established to mx.b.example[192.0.2.2]:25: ` + tls13 + `
smtp[1]: 45BA69A00A5: to=<u@c.example>, relay=mx.c.example[192.0.2.3]:25, ` + delays + `, tls=may, ` + sentTo + `
smtp[1]: Verified TLS connection established to mx.b.example[192.0.2.2]:25: ` + tls13 + `
smtp[1]: 45BA69A00A6: host mx.b.example[192.0.2.2] said: 450 Later (in reply to MAIL FROM command)
smtp[1]: 45BA69A00A7: to=<u@b.example>, relay=mx.b.example[192.0.2.2]:25, ` + delays + `, tls=may, ` + sentTo,
			[]string{"session a.example via mx.shared.example[192.0.2.1]:25 Untrusted"},
		},
		{
			"recipient at an address literal", `
smtp[1]: Untrusted TLS connection established to 192.0.2.1[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@[192.0.2.1]>, relay=192.0.2.1[192.0.2.1]:25, ` + delays + `, ` + sentTo,
			nil,
		},
		{
			"route by address", `
smtp[1]: Untrusted TLS connection established to 192.0.2.1[192.0.2.1]:25: ` + tls13 + `
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=192.0.2.1[192.0.2.1]:25, ` + delays + `, ` + sentTo,
			[]string{"session a.example[192.0.2.1]:25 Untrusted"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			events := New("").Read(parse(t, test.log))
			if diff := cmp.Diff(test.want, describeAll(events)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			for _, e := range events {
				if !e.Time.Equal(noon) || e.Host != "host" || !strings.HasPrefix(e.QueueID, "4") {
					t.Errorf("%+v", e)
				}
				if failed := e.Kind == KindSession && e.Failure.Result != ""; failed &&
					(e.Failure.ReceivingMX != e.MX || e.Failure.ReceivingIP != e.IP.String()) {
					t.Errorf("failure %+v is not about %s[%s]", e.Failure, e.MX, e.IP)
				}
			}
		})
	}
}

// TestHostileText has recipients, senders of mail and servers write what looks like
// the fields of a result.
func TestHostileText(t *testing.T) {
	const (
		real   = "relay=mx.a.example[192.0.2.1]:25, " + delays + ", " + sentTo
		forged = `>, relay=mx.b.example[192.0.2.2]:25, delay=1, delays=1/1/1/1, dsn=2.0.0, status=sent (250 Ok)`
	)
	tests := []struct {
		name, result string
		want         []string
	}{
		{"quoted local part", `to=<"u` + forged + `"@a.example>, ` + real, []string{"session a.example via mx.a.example[192.0.2.1]:25 Verified"}},
		{"quoted local part with quotes", `to=<"u\"` + forged + `"@a.example>, ` + real, []string{"session a.example via mx.a.example[192.0.2.1]:25 Verified"}},
		{"quoted local part with another domain", `to=<"u@b.example"@a.example>, ` + real, []string{"session a.example via mx.a.example[192.0.2.1]:25 Verified"}},
		{"original recipient", `to=<u@a.example>, orig_to=<"` + forged + `"@c.example>, ` + real, []string{"session a.example via mx.a.example[192.0.2.1]:25 Verified"}},
		{"reply", `to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=2.0.0, status=sent (250 Ok, relay=mx.b.example[192.0.2.2]:25, dsn=4.7.5, status=deferred (Server certificate not verified))`, []string{"session a.example via mx.a.example[192.0.2.1]:25 Verified"}},
		{"reply like a failure", `to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=2.0.0, status=sent (Server certificate not verified)`, []string{"session a.example via mx.a.example[192.0.2.1]:25 Verified"}},
		{"refusal like a failure", `to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=5.0.0, status=bounced (host mx.a.example[192.0.2.1] said: 550 Server certificate not verified)`, []string{"session a.example via mx.a.example[192.0.2.1]:25 Verified"}},
		// In doubt there is no event at all.
		{"local part that Postfix 3.4 does not quote", `to=<u@b.example` + forged + `@a.example>, ` + real, nil},
		{"part of a result", `to=<u@b.example>, relay=mx.b.example[192.0.2.2]:25, x@a.example>, ` + real, nil},
		{"original recipient unquoted", `to=<u@a.example>, orig_to=<u` + forged + `>, ` + real, nil},
		{"open quotation mark", `to=<"u@a.example>, ` + real, nil},
		{"reply with a recipient's field", `to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=2.0.0, status=sent (250 Ok to=<u@b.example` + forged + `)`, nil},
		{"as long as Postfix cuts it", `to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=2.0.0, status=sent (250 ` + strings.Repeat("x", 2000) + `)`, nil},
		{"cut off", `to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, dsn=2.0.0, status=sent (250 Ok`, nil},
		{"no delays", `to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, delay=1, dsn=2.0.0, status=sent (250 Ok)`, nil},
		{"delays of another number", `to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, delay=1, delays=1/1, dsn=2.0.0, status=sent (250 Ok)`, nil},
		{"very many fields", `to=<u@a.example>, ` + strings.Repeat("x=y, ", 20) + real, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := New("")
			events := r.Read(parse(t, `
smtp[1]: Verified TLS connection established to mx.a.example[192.0.2.1]:25: `+tls13+`
smtp[1]: 45BA69A00A4: `+test.result))
			if diff := cmp.Diff(test.want, describeAll(events)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			// Nor may the session go to the process's next delivery.
			events = r.Read(parse(t, `smtp[1]: 45BA69A00A9: to=<u@next.example>, tls=may, `+real))
			if len(events) > 0 {
				t.Errorf("told of the next delivery: %v", describeAll(events))
			}
		})
	}
}

// TestHostileLines has lines that begin like others.
func TestHostileLines(t *testing.T) {
	for _, line := range []string{
		`smtp[1]: < mx.a.example[192.0.2.1]:25: 250 Verified TLS connection established to mx.b.example[192.0.2.2]:25: x`,
		`smtp[1]: Verified TLS connection established to x y <mx.b.example[192.0.2.2]:25: ` + tls13,
		`smtp[1]: Verified TLS connection established to mx.b.example[private/x]: ` + tls13,
		`smtp[1]: Verified TLS connection established from mx.b.example[192.0.2.2]:25: ` + tls13,
		`smtp[1]: Forged TLS connection established to mx.b.example[192.0.2.2]:25: ` + tls13,
		`smtp[1]: warning: MX name '../etc' does not match STS MX pattern for 'b.example'`,
		`smtp[1]: warning: MX name 'mx.b.example' does not match STS MX pattern for '<script>'`,
		`smtp[1]: warning: TLS policy lookup for [mx.b.example]/mx.b.example: no TLSA records found`,
		`smtp[1]: warning: TLS policy lookup for b.example: no TLSA records found`,
		`smtp[1]: TLSRPT: status=odd, domain=b.example, receiving_mx=mx.b.example[192.0.2.2], failure_type=x`,
		`smtp[1]: TLSRPT: status=failure, domain=b.example, receiving_mx=mx.b.example, failure_type=certificate_expired`,
		`smtp[1]: certificate verification failed for mx.b.example[192.0.2.2]`,
		`smtp[1]: warning: : to=<u@b.example>, relay=mx.b.example[192.0.2.2]:25, ` + delays + `, ` + sentTo,
	} {
		r := New("")
		events := r.Read(parse(t, line+`
smtp[1]: 45BA69A00A4: to=<u@b.example>, relay=mx.b.example[192.0.2.2]:25, `+delays+`, dsn=4.0.0, status=deferred (host mx.b.example[192.0.2.2] said: 400)`))
		if len(events) > 0 {
			t.Errorf("%s: %v", line, describeAll(events))
		}
	}
}

// Sessions of mails with reports would be reported, in mails with reports.
func TestOwnMail(t *testing.T) {
	session := func(pid int, id, domain string) string {
		return fmt.Sprintf(`
smtp[%d]: Verified TLS connection established to mx.a.example[192.0.2.1]:25: %s
smtp[%d]: warning: TLS policy lookup for %s/mx.b.example: no TLSA records found
smtp[%d]: %s: to=<u@%s>, relay=mx.a.example[192.0.2.1]:25, %s, %s
`, pid, tls13, pid, domain, pid, id, domain, delays, sentTo)
	}
	token, err := bounce.Sender([]byte("secret"), "reports@example.org", "+", strings.Repeat("0a", 16), "u@own.example")
	if err != nil {
		t.Fatal(err)
	}
	log := `
qmgr[9]: 45BA69A00B1: from=<` + token + `>, size=1234, nrcpt=1 (queue active)
qmgr[9]: 45BA69A00B2: from=<reports+us@example.org>, size=1234, nrcpt=1 (queue active)
qmgr[9]: 45BA69A00A1: from=<reports@Example.ORG>, size=1234, nrcpt=1 (queue active)
qmgr[9]: 45BA69A00A2: from=<reports@example.org.b.example>, size=1234, nrcpt=1 (queue active)
qmgr[9]: 45BA69A00A3: from=<xreports@example.org>, size=1234, nrcpt=1 (queue active)
qmgr[9]: 45BA69A00A4: from=<"reports@example.org>, size=1, nrcpt=1 (queue active)"@b.example>, size=1234, nrcpt=1 (queue active)
qmgr[9]: 45BA69A00A5: from=<reports@example.org>x@b.example>, size=1234, nrcpt=1 (queue active)
qmgr[9]: 45BA69A00A6: from=<>, size=1234, nrcpt=1 (queue active)
` + session(1, "45BA69A00A1", "own.example") + session(2, "45BA69A00A2", "a2.example") + session(3, "45BA69A00A3", "a3.example") +
		session(4, "45BA69A00A4", "a4.example") + session(5, "45BA69A00A5", "a5.example") + session(6, "45BA69A00A6", "a6.example") +
		session(10, "45BA69A00B1", "token.example") + session(11, "45BA69A00B2", "b2.example") + `
smtp[7]: 45BA69A00A1: to=<u@own.example>, relay=mx.a.example[192.0.2.1]:25, ` + delays + `, ` + sentTo + `
qmgr[9]: 45BA69A00A1: removed
` + session(8, "45BA69A00A1", "later.example")
	count := testutil.ToFloat64(droppedOwn)
	var got []string
	for _, e := range New("reports@example.org").Read(parse(t, log)) {
		got = append(got, string(e.Kind)+" "+e.Domains[0])
	}
	var want []string
	for _, domain := range []string{"a2", "a3", "a4", "a5", "a6", "b2", "later"} {
		want = append(want, "problem "+domain+".example", "session "+domain+".example")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if n := testutil.ToFloat64(droppedOwn) - count; n != 5 { // two sessions, two problems, a plaintext delivery
		t.Errorf("%v dropped as our own", n)
	}
}

// TestBatches has a delivery's recipients come in several calls.
func TestBatches(t *testing.T) {
	r := New("")
	to := func(user string) []Entry {
		return parse(t, `smtp[1]: 45BA69A00A4: to=<`+user+`>, relay=mx.a.example[192.0.2.1]:25, `+delays+`, `+sentTo)
	}
	if events := r.Read(parse(t, `smtp[1]: Verified TLS connection established to mx.a.example[192.0.2.1]:25: `+tls13)); events != nil {
		t.Errorf("told without a result: %v", describeAll(events))
	}
	first := r.Read(to("u@a.example"))
	if second := r.Read(to("u@b.example")); second != nil {
		t.Errorf("told again: %v", describeAll(second))
	}
	want := []string{"session a.example via mx.a.example[192.0.2.1]:25 Verified"}
	if diff := cmp.Diff(want, describeAll(first)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Lines that come again because the events could not be kept are not read again.
func TestDeliver(t *testing.T) {
	var kept [][]string
	fail := false
	deliver := New("").Deliver(func(events []Event, position string) error {
		kept = append(kept, append(describeAll(events), position))
		if fail {
			return errors.New("disk full")
		}
		return nil
	})
	first := parse(t, `smtp[1]: Verified TLS connection established to mx.a.example[192.0.2.1]:25: `+tls13)
	if err := deliver(first, "0"); err != nil {
		t.Error(err)
	}
	entries := parse(t, `smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, `+delays+`, `+sentTo)
	for _, fail = range []bool{true, true, false} {
		if err := deliver(entries, "1"); (err != nil) != fail {
			t.Errorf("error %v", err)
		}
	}
	next := parse(t, `smtp[1]: 45BA69A00A5: to=<u@b.example>, relay=mx.a.example[192.0.2.1]:25, `+delays+`, `+sentTo)
	if err := deliver(next, "2"); err != nil {
		t.Error(err)
	}
	session := []string{"session a.example via mx.a.example[192.0.2.1]:25 Verified", "1"}
	want := [][]string{{"0"}, session, session, session, {"plaintext b.example via mx.a.example[192.0.2.1]:25", "2"}}
	if diff := cmp.Diff(want, kept); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// What a process said counts for ten minutes by the times of its lines.
func TestExpiry(t *testing.T) {
	for _, test := range []struct {
		after time.Duration
		want  int
	}{{processAge, 1}, {processAge + time.Second, 0}, {-time.Hour, 1}} {
		r := New("")
		entries := parse(t, `
smtp[1]: Verified TLS connection established to mx.a.example[192.0.2.1]:25: `+tls13+`
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, tls=may, `+delays+`, `+sentTo)
		entries[1].Time = noon.Add(test.after)
		count := testutil.ToFloat64(droppedUnanswered)
		if got := r.Read(entries); len(got) != test.want {
			t.Errorf("after %v: %v", test.after, describeAll(got))
		}
		if n := testutil.ToFloat64(droppedUnanswered) - count; n != float64(1-test.want) {
			t.Errorf("after %v: %v dropped", test.after, n)
		}
	}
}

// Plaintext is known from lines that are missing, which were there within a day.
func TestSummaryAge(t *testing.T) {
	for _, test := range []struct {
		after time.Duration
		want  int
	}{{summaryAge, 1}, {summaryAge + time.Second, 0}} {
		r := New("")
		r.Read(parse(t, `
smtp[1]: Verified TLS connection established to mx.a.example[192.0.2.1]:25: `+tls13+`
smtp[1]: 45BA69A00A4: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, `+delays+`, `+sentTo))
		entries := parse(t, `smtp[2]: 45BA69A00A5: to=<u@a.example>, relay=mx.a.example[192.0.2.1]:25, `+delays+`, `+sentTo)
		entries[0].Time = noon.Add(test.after)
		if got := r.Read(entries); len(got) != test.want {
			t.Errorf("after %v: %v", test.after, describeAll(got))
		}
	}
}

func TestBounds(t *testing.T) {
	r := New("reports@example.org")
	counted := func(c prometheus.Counter, what func()) float64 {
		before := testutil.ToFloat64(c)
		what()
		return testutil.ToFloat64(c) - before
	}
	many := func(format string, n int) (all []Entry) {
		for i := range n {
			all = append(all, parse(t, fmt.Sprintf(format, i))...)
		}
		return all
	}
	const extra = 3
	if n := counted(droppedUnanswered, func() {
		r.Read(many("smtp[%d]: SSL_connect error to mx.a.example[192.0.2.1]:25: -1", maxProcesses+extra))
	}); n != extra || len(r.processes.items) != maxProcesses {
		t.Errorf("%d processes, %v dropped", len(r.processes.items), n)
	}
	if n := counted(droppedLimit, func() {
		r.Read(many("smtp[50005]: 45BA69A00A4: TLS is required, but was not offered by host mx%d.a.example[192.0.2.1]", maxPending+extra))
		r.Read(many("smtp[50006]: warning: TLS policy lookup for a.example/mx%d.a.example: no TLSA records found", maxPending+extra))
	}); n != 2*extra {
		t.Errorf("%v of a process dropped", n)
	}
	r.Read(many("qmgr[1]: 45BA6%05d: from=<reports@example.org>, size=1, nrcpt=1 (queue active)", maxOwn+extra))
	if len(r.own.items) != maxOwn || r.isOwn("host", "45BA600000") || !r.isOwn("host", "45BA610000") {
		t.Errorf("%d messages of our own", len(r.own.items))
	}
	r.Read(many("tlsproxy[1]: certificate verification failed for mx%d.a.example[192.0.2.1]:25: self-signed certificate", maxProxied+extra))
	if len(r.proxied.items) != maxProxied {
		t.Errorf("%d connections of tlsproxy", len(r.proxied.items))
	}
	r.Read(many("x%d/smtp[1]: Verified TLS connection established to mx.a.example[192.0.2.1]:25: x", maxNames+extra))
	if len(r.summaries.items) != maxNames {
		t.Errorf("%d syslog names", len(r.summaries.items))
	}
	events := r.Read(slices.Concat(
		parse(t, "smtp[7]: Verified TLS connection established to mx.a.example[192.0.2.1]:25: "+tls13),
		many("smtp[7]: 45BA69A00A4: to=<u@a%d.example>, relay=mx.a.example[192.0.2.1]:25, "+delays+", "+sentTo, maxDomains+extra)))
	if len(events) != 1 || len(events[0].Domains) != maxDomains {
		t.Errorf("%v", describeAll(events))
	}
	if n := counted(linesLong, func() {
		r.Read([]Entry{{Time: noon, Host: strings.Repeat("h", MaxLine), Name: "postfix/smtp", PID: 1, Text: "x"}})
	}); n != 1 {
		t.Errorf("%v long lines", n)
	}
}

// FuzzRead checks that whatever the lines are, events are within their bounds, and
// that memory is.
func FuzzRead(f *testing.F) {
	for _, version := range []string{"3.7", "3.10"} {
		data, err := os.ReadFile("testdata/postfix-" + version + ".log")
		if err != nil {
			f.Fatal(err)
		}
		all := strings.SplitAfter(string(data), "\n")
		for i := 0; i < len(all); i += 20 {
			f.Add(strings.Join(all[i:min(i+20, len(all))], ""))
		}
	}
	f.Fuzz(func(t *testing.T, log string) {
		r := New("reports@receiver.example")
		var entries []Entry
		for line := range strings.Lines(log) {
			if e, ok := ParseLine(strings.TrimSuffix(line, "\n"), noon); ok {
				entries = append(entries, e)
			}
		}
		for _, e := range r.Read(entries) {
			if len(e.Domains) == 0 || len(e.Domains) > maxDomains || slices.Contains(e.Domains, "") || e.QueueID == "" ||
				len(e.MX) > 253 || len(e.Failure.Reason) > maxReason || len(e.Host) > maxReason || strings.ContainsAny(e.Failure.Reason, "\x00\n\x7f") {
				t.Errorf("%+v", e)
			}
		}
		for _, p := range r.processes.items {
			if p := p.Value.(item[processKey, *process]).value; len(p.attempts) > maxPending || len(p.problems) > maxPending {
				t.Errorf("%+v", p)
			}
		}
	})
}

func BenchmarkReader(b *testing.B) {
	data, err := os.ReadFile("testdata/postfix-3.7.log")
	if err != nil {
		b.Fatal(err)
	}
	outbound := strings.Split(strings.TrimSpace(string(data)), "\n")
	inbound := []string{
		"Nov 25 12:54:01 mail postfix/smtpd[1234]: connect from mail.client.example[192.0.2.77]",
		"Nov 25 12:54:01 mail postfix/smtpd[1234]: E0C036C: client=mail.client.example[192.0.2.77]",
		"Nov 25 12:54:01 mail postfix/cleanup[188]: E0C036C: message-id=<GWHTN755IY4GZKP6DWSLCOA2MW@client.example>",
		"2026-11-25T12:54:01.123456+01:00 mail postfix/lmtp[188]: E0C036C: to=<u@receiver.example>, relay=mail[private/dovecot-lmtp], delay=0.2, delays=0.1/0/0/0.1, dsn=2.0.0, status=sent (250 2.0.0 Ok)",
		"2026-11-25T12:54:01.123456+01:00 mail dovecot: lmtp(u@receiver.example)<77><x>: msgid=<GWHTN755@client.example>: saved mail to INBOX",
	}
	for _, bench := range []struct {
		name  string
		lines []string
	}{{"outbound", outbound}, {"foreign", inbound}} {
		b.Run(bench.name, func(b *testing.B) {
			r := New("reports@receiver.example")
			now := noon
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				var entries []Entry
				for _, line := range bench.lines {
					if e, ok := ParseLine(line, now); ok {
						entries = append(entries, e)
					}
				}
				r.Read(entries)
				n += len(bench.lines)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "lines/s")
		})
	}
}
