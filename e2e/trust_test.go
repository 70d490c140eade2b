package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ruapost/internal/dnstest"
)

// What OpenDKIM calls itself, if it is not authservID, and the name server that it
// alone asks.
const (
	upstreamID         = "mx.receiver.example"
	upstreamNameServer = "127.0.0.2"
)

// openDKIMConf is the configuration that docs/inbound.md recommends, and what it takes
// to run in the tests.
const openDKIMConf = `
AlwaysAddARHeader yes
RemoveARAll yes
MaximumSignaturesToVerify 10
Mode v
Nameservers ` + upstreamNameServer + `
UserID opendkim
UMask 000
Socket local:/var/spool/postfix/run/opendkim/opendkim.sock
AuthservID `

// What makes Postfix remove the fields that senders write before any milter sees them.
const (
	headerChecks       = "/^Authentication-Results *:/ IGNORE\n"
	mainCfHeaderChecks = "header_checks = regexp:/etc/postfix/header_checks\nnested_header_checks =\n"
)

const openDKIMSocket = "run/opendkim/opendkim.sock"

// trusting is the configuration of the milter behind an OpenDKIM that has this
// authserv-id.
func trusting(id string) string {
	return reportAll + `mode = "trust"
		trusted_authserv_ids = ["` + id + `"]
		`
}

// judgedUpstream is what becomes of signatures if OpenDKIM is believed: it has other
// keys in its DNS than ruapost.
func judgedUpstream() []treated {
	spf := fails("unsigned, SPF checked here", "esp.example").under("esp.example", "pass", "")
	spf.dmarc, spf.row.spf = "pass", "pass"
	broken := fails("broken signature", "dkim.example").under("dkim.example", "none", "local_policy")
	broken.sign, broken.tamper, broken.row.authDKIM = []string{"dkim.example"}, true, "dkim.example/sel1=fail"
	unknown := fails("a key that only ruapost could find", "tree.example").under("tree.example", "none", "")
	unknown.sign, unknown.row.authDKIM = []string{"tree.example"}, "tree.example/sel1=fail"
	// Postfix applies header_checks to messages in a message, too, which would break
	// its signature.
	attached := alignedDKIM("a message with results in the message")
	attached.fields = []string{"MIME-Version: 1.0", "Content-Type: message/rfc822"}
	attached.body = "Authentication-Results: list.example; none\nFrom: a@dkim.example\nSubject: inner\n\nHello\n"
	many := alignedDKIM("the fourth signature is good")
	many.sign = []string{"dkim.example", "forged.example", "forged.example", "forged.example"}
	many.row.authDKIM = strings.Repeat("forged.example/sel1=fail ", 3) + many.row.authDKIM
	var mails []treated
	for _, m := range []sample{alignedDKIM("a key that only OpenDKIM finds"), broken, unknown, spf, attached, many} {
		mails = append(mails, treated{sample: m})
	}
	return mails
}

// forge is a mail with fields on top, and again below a Received field, that claim to
// be those of a milter here.
func forge(name string, fields ...string) treated {
	m := fails(name, "reject.example").under("reject.example", "none", "local_policy")
	received := "Received: from a.example by b.example; Wed, 25 Nov 2026 08:57:31 +0000"
	m.fields = slices.Concat(fields, []string{received}, fields)
	return treated{sample: m}
}

// forgeSPF is one for which SPF fails, though a field says that it passes.
func forgeSPF(name, id string) treated {
	m := forge(name, "Authentication-Results: "+id+"; spf=pass smtp.mailfrom=reject.example")
	m.mailFrom, m.row.envelopeFrom, m.row.authSPF = "ceo@reject.example", "reject.example", "reject.example=fail"
	return m
}

// forgeries are mails that claim to have been found good by a milter here that calls
// itself id.
func forgeries(id string) []treated {
	const good = "; dkim=pass header.d=reject.example header.s=sel1; spf=pass smtp.mailfrom=esp.example; dmarc=pass header.from=reject.example"
	upstream, own := "Authentication-Results: "+id+good, "Authentication-Results: "+authservID+good
	return []treated{
		forge("forged DKIM", "Authentication-Results: "+id+"; dkim=pass header.d=reject.example"),
		forge("forged field of ruapost", own),
		forge("forged fields of both", upstream, own),
		// CVE-2022-48521: of several, OpenDKIM once removed the wrong ones.
		forge("several forged fields", upstream, upstream, "authentication-results: "+strings.ToUpper(id)+" 1"+good),
		forgeSPF("forged SPF", id),
	}
}

// hidden are forgeries that OpenDKIM leaves where they are: a field with its own name
// in a spelling that it does not know, and any field in a message with a signature that
// it cannot read, of which it says nothing at all.
func hidden(id string) (spf, dkim treated) {
	return forgeSPF("forged SPF, hidden", id+"."),
		forge("forged DKIM, hidden", "Authentication-Results: "+id+"; dkim=pass header.d=reject.example header.s=sel1", "DKIM-Signature: v=1")
}

// TestTrust puts a real OpenDKIM before the milter, as docs/inbound.md says, and wants
// its results to be taken, and no others.
func TestTrust(t *testing.T) { eachVersion(t, versions, testTrust) }

func testTrust(t *testing.T, v version) {
	s := newSite(t, v)
	s.useOpenDKIM(mainCfHeaderChecks)
	s.p.write("etc/postfix/header_checks", headerChecks)
	spf, dkim := hidden(upstreamID)
	ourSPF, ourDKIM := hidden(authservID)
	phases := []phase{
		{
			name: "OpenDKIM has a name of its own", milter: trusting(upstreamID),
			mails: append(leaving(upstreamID, slices.Concat(judgedUpstream(), forgeries(upstreamID), []treated{spf})), dkim),
		},
		{
			// Its field gives way to ours.
			name: "OpenDKIM has our name", milter: trusting(authservID),
			mails: slices.Concat(judgedUpstream(), forgeries(authservID), []treated{ourSPF, ourDKIM}),
		},
	}
	for i, id := range []string{upstreamID, authservID} {
		stop := s.startOpenDKIM(id)
		s.run(phases[i])
		stop()
	}
	reports, when := s.report()
	checkRows(t, phases, reports, when)
}

// leaving says of mails that OpenDKIM leaves a field in each.
func leaving(id string, mails []treated) []treated {
	for i := range mails {
		mails[i].upstream = []string{id}
	}
	return mails
}

// Without header_checks, OpenDKIM removes most forgeries by itself, but not all. If
// the one that is hidden in a message with an unreadable signature fails some day,
// header_checks are no longer needed.
func TestTrustWithoutHeaderChecks(t *testing.T) {
	eachVersion(t, versions, testTrustWithoutHeaderChecks)
}

func testTrustWithoutHeaderChecks(t *testing.T, v version) {
	s := newSite(t, v)
	s.useOpenDKIM("")
	mails := leaving(upstreamID, append(judgedUpstream(), forgeries(upstreamID)...))
	spf, dkim := hidden(upstreamID)
	spf.upstream = []string{upstreamID, upstreamID + "."}
	dkim.dmarc, dkim.upstream = "pass", []string{upstreamID}
	dkim.row.dkim, dkim.row.authDKIM = "pass", "reject.example/sel1=pass"
	mails = append(mails, spf, treated{sample: dkim.under("reject.example", "pass", "")})
	ph := phase{name: "no header_checks", milter: trusting(upstreamID), mails: mails}
	defer s.startOpenDKIM(upstreamID)()
	s.run(ph)
	reports, when := s.report()
	checkRows(t, []phase{ph}, reports, when)
}

// useOpenDKIM makes Postfix pass mail to OpenDKIM first, and gives OpenDKIM a name
// server of its own: it alone has the key of dkim.example.
func (s *site) useOpenDKIM(mainCf string) {
	s.t.Helper()
	const milters = "smtpd_milters =\n"
	text := s.p.read("etc/postfix/main.cf")
	if !strings.Contains(text, milters) {
		s.t.Fatalf("main.cf has no line %q", milters)
	}
	s.p.configure(strings.Replace(text, milters, milters+"    unix:"+openDKIMSocket+",\n", 1) + mainCf)
	dir := filepath.Join(s.p.queue, filepath.Dir(openDKIMSocket))
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chown(dir, s.r.id("passwd", "opendkim"), s.r.id("group", "opendkim")); err != nil {
		s.t.Fatal(err)
	}

	dns, err := dnstest.Start(upstreamNameServer + ":53")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(dns.Close)
	key, err := s.keys["dkim.example"].ZoneLine()
	if err != nil {
		s.t.Fatal(err)
	}
	dns.Add(key)
	s.w.dns.Remove(selector + "._domainkey.dkim.example")
	s.w.dns.Add(enforceZone)
	s.w.receives("esp.example")
}

// startOpenDKIM starts OpenDKIM and returns what ends it. It takes five seconds to
// hear of SIGTERM, so it is killed.
func (s *site) startOpenDKIM(id string) (stop func()) {
	s.t.Helper()
	s.p.write("etc/opendkim.conf", openDKIMConf+id+"\n")
	socket := filepath.Join(s.p.queue, openDKIMSocket)
	d := startDaemon(s.t, "opendkim", s.p.command("opendkim", "-f"), "unix:"+socket)
	return func() {
		d.cmd.Process.Kill()
		<-d.exited
		d.cmd = nil
		if err := os.Remove(socket); err != nil {
			s.t.Error(err)
		}
	}
}
