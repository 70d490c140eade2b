package check

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"ruapost/compose"
	"ruapost/config"
	"ruapost/internal/dnstest"
	"ruapost/resolver"
)

// reporterWorld is a host that sends reports from reports.example.org, and its DNS, with
// all as it should be.
type reporterWorld struct {
	*world
	dns     *dnstest.Server
	records []Record // that the last check told of
}

// testKey makes the key of all worlds.
var testKey = sync.OnceValues(compose.GenerateKey)

const keyName = "r1._domainkey.reports.example.org"

func newReporterWorld(t *testing.T) *reporterWorld {
	t.Helper()
	dir := t.TempDir()
	w := &reporterWorld{world: &world{t: t, dir: dir, settings: map[string]string{
		"myhostname": "mail.example.org", "recipient_delimiter": "-+", "relayhost": "",
		"transport_maps": "hash:/etc/postfix/transport, regexp:/etc/postfix/ruapost_bounces",
	}}}
	w.masterCf = "ruapost-bounce/unix/command = pipe flags=ORX user=ruapost:ruapost argv=/bin/sh bounce -- ${recipient}"
	for _, d := range []string{"outbox", "bounces/new", "bounces/cur", "bounces/tmp"} {
		if err := os.MkdirAll(w.path(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	key, err := testKey()
	if err != nil {
		t.Fatal(err)
	}
	w.write("key.pem", string(key))
	w.mode(w.path("key.pem"), 0o600)
	w.write("postmap", "#!/bin/sh\n[ \"$3\" = regexp:/etc/postfix/ruapost_bounces ] && echo ruapost-bounce:\n")
	w.mode(w.path("postmap"), 0o755)
	w.write("sendmail", "#!/bin/sh\n")
	w.mode(w.path("sendmail"), 0o755)

	w.cfg = config.Default()
	w.cfg.ReportDomain = "reports.example.org"
	w.cfg.Reporter.From = "noreply@reports.example.org"
	w.cfg.Reporter.Sendmail = []string{w.path("sendmail"), "-i"}
	w.cfg.Reporter.Outbox = w.path("outbox")
	w.cfg.Reporter.BounceMaildir = w.path("bounces")
	w.cfg.DKIM = config.DKIM{Domain: "reports.example.org", Selector: "r1", KeyFile: w.path("key.pem")}
	w.cfg.Store.Path = w.path("ruapost.db")

	if w.dns, err = dnstest.Start("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.dns.Close)
	w.dns.Add(`
		_dmarc.example.org. 300 IN TXT "v=DMARC1; p=quarantine; rua=mailto:dmarc@example.org"
		mail.example.org. 300 IN A 198.51.100.1
		mail.example.org. 300 IN AAAA 2001:db8::1
		reports.example.org. 300 IN MX 10 mail.example.org.
		reports.example.org. 300 IN TXT "v=spf1 ip4:198.51.100.1 ip6:2001:db8::1 -all"
		reports.example.org. 300 IN TXT "not-spf"
		_dmarc.reports.example.org. 300 IN TXT "v=DMARC1; p=reject; adkim=s"
		_smtp._tls.reports.example.org. 300 IN TXT "v=TLSRPTv1; rua=mailto:tls@example.org"
		_smtp._tls.mail.example.org. 300 IN TXT "v=TLSRPTv1; rua=mailto:tls@example.org"`)
	w.publishKey(w.key())
	return w
}

// key returns the record of the world's key.
func (w *reporterWorld) key() string {
	w.t.Helper()
	signer, err := compose.LoadSigner("reports.example.org", "r1", w.path("key.pem"))
	if err != nil {
		w.t.Fatal(err)
	}
	return signer.Record()
}

// publishKey replaces the key records.
func (w *reporterWorld) publishKey(texts ...string) { w.replace(keyName, texts...) }

// replace replaces all records at a name by TXT records.
func (w *reporterWorld) replace(name string, texts ...string) {
	w.dns.Remove(name)
	for _, text := range texts {
		w.dns.Add(strings.Join(ZoneLines(name, text), " "))
	}
}

// look runs the checks and says what they found.
func (w *reporterWorld) look() []Finding {
	w.t.Helper()
	text := "#!/bin/sh\n[ \"$1\" = -F ] && exec echo '" + w.masterCf + "'\n[ \"$1\" = -x ] && cat <<'END'\n"
	for name, value := range w.settings {
		text += name + " = " + value + "\n"
	}
	if w.host.Postconf == "" {
		w.write("postconf", text+"END\n")
		w.mode(w.path("postconf"), 0o755)
		w.host.Postconf = w.path("postconf")
	}
	r, err := resolver.New(resolver.Config{Servers: []string{w.dns.Addr}})
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	w.host.Resolver = r
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	findings, records := Reporter(ctx, w.cfg, w.host)
	w.records = records
	return findings
}

func TestReporterIsWell(t *testing.T) {
	w := newReporterWorld(t)
	findings := w.look()
	w.expect(findings)
	if len(findings) < 12 {
		t.Errorf("%d findings; want every check to say something: %+v", len(findings), findings)
	}
	var names []string
	for _, r := range w.records {
		names = append(names, r.Name)
		if !r.OK || len(r.Published) != 1 || r.Published[0] != r.Want {
			t.Errorf("%+v: want it published", r)
		}
	}
	if want := []string{keyName, "_smtp._tls.reports.example.org", "_smtp._tls.mail.example.org", "_dmarc.reports.example.org"}; !slices.Equal(names, want) {
		t.Errorf("records %q; want %q", names, want)
	}
}

func TestReporterFaults(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(w *reporterWorld)
		want   []string
	}{
		// RFC 8460 3, RFC 9989 4.4
		"no [dkim]": {func(w *reporterWorld) { w.cfg.DKIM = config.DKIM{} }, []string{
			"warning: reports come from noreply@reports.example.org, and [dkim] is not set ... TLS reports ... => ... dkim-keygen",
			"warning: _dmarc.reports.example.org asks receivers to reject what fails, and reports are not signed",
		}},
		"signed by the domain above": {func(w *reporterWorld) {
			w.cfg.DKIM.Domain = "example.org"
			w.replace("_dmarc.reports.example.org", "v=DMARC1; p=reject")
			w.replace("r1._domainkey.example.org", w.key())
		}, []string{`warning: reports come from noreply@reports.example.org, but example.org signs them: aligned for DMARC, but TLS reports ... => ... domain = "reports.example.org"`}},
		"the same with adkim=s": {func(w *reporterWorld) {
			w.cfg.DKIM.Domain = "example.org"
			w.replace("r1._domainkey.example.org", w.key())
		}, []string{"fault: reports come from noreply@reports.example.org, but example.org signs them: not aligned, as the DMARC record has adkim=s"}},
		"signed by others": {func(w *reporterWorld) {
			w.cfg.DKIM.Domain = "example.net"
			w.replace("_dmarc.reports.example.org", "v=DMARC1; p=reject")
			w.replace("r1._domainkey.example.net", w.key())
		}, []string{"fault: ... example.net signs them: not aligned (RFC 9989 4.4)"}},
		"signed by others, without DMARC": {func(w *reporterWorld) {
			w.cfg.DKIM.Domain = "example.net"
			w.replace("_dmarc.reports.example.org")
			w.replace("_dmarc.example.org")
			w.replace("r1._domainkey.example.net", w.key())
		}, []string{"fault: ... example.net signs them: not aligned (RFC 9989 4.4)", "warning: reports.example.org has no DMARC record"}},
		"alignment is not known": {func(w *reporterWorld) {
			w.cfg.DKIM.Domain = "example.org"
			w.replace("r1._domainkey.example.org", w.key())
			w.dns.SetRcode("_dmarc.reports.example.org", dns.RcodeServerFailure)
		}, []string{
			"warning: ... example.org signs them: whether that is aligned cannot be told",
			"warning: _dmarc.reports.example.org cannot be looked up",
		}},
		"report_domain of others": {func(w *reporterWorld) { w.cfg.ReportDomain = "example.net" }, []string{
			"warning: report_domain is example.net, but reports come from reports.example.org",
		}},
		"report_domain above": {func(w *reporterWorld) { w.cfg.ReportDomain = "example.org" }, nil},

		// RFC 6376 3.6.1, 3.6.2.2
		"key file is missing": {func(w *reporterWorld) { w.cfg.DKIM.KeyFile = w.path("none") }, []string{"fault: dkim.key_file: reports cannot be signed, and are not sent: ... no such file ... => ... dkim-keygen"}},
		"key file is no key":  {func(w *reporterWorld) { w.write("key.pem", "x") }, []string{"fault: dkim.key_file: ... not in PEM form"}},
		"everybody reads it":  {func(w *reporterWorld) { w.mode(w.path("key.pem"), 0o644) }, []string{"warning: dkim.key_file DIR/key.pem ... everybody ... => ... chmod o-r DIR/key.pem"}},
		"key is not there":    {func(w *reporterWorld) { w.publishKey() }, []string{"fault: DKIM key " + keyName + ": ... there is none => Publish it:\n    " + keyName + `. IN TXT ( "v=DKIM1; k=rsa; p=`}},
		"key of another":      {func(w *reporterWorld) { w.publishKey(otherKey(w)) }, []string{"fault: DKIM key ... it is another key than that in DIR/key.pem"}},
		"revoked":             {func(w *reporterWorld) { w.publishKey("v=DKIM1; p=") }, []string{"fault: DKIM key ... revoked"}},
		"no key in it":        {func(w *reporterWorld) { w.publishKey("v=DKIM1; n=hello") }, []string{"fault: DKIM key ... revoked"}},
		"not base64":          {func(w *reporterWorld) { w.publishKey("v=DKIM1; p=!") }, []string{"fault: DKIM key ... not base64"}},
		"base64 of something": {func(w *reporterWorld) { w.publishKey("v=DKIM1; p=aGVsbG8=") }, []string{"fault: DKIM key ... no RSA key"}},
		"of another type":     {func(w *reporterWorld) { w.publishKey(strings.Replace(w.key(), "k=rsa", "k=ed25519", 1)) }, []string{"fault: DKIM key ... k= is not rsa"}},
		"not v=DKIM1":         {func(w *reporterWorld) { w.publishKey(strings.Replace(w.key(), "DKIM1", "DKIM2", 1)) }, []string{"fault: DKIM key ... v= is not DKIM1"}},
		"a tag twice":         {func(w *reporterWorld) { w.publishKey(w.key() + "; k=rsa") }, []string{"fault: DKIM key ... each there once"}},
		"no tags":             {func(w *reporterWorld) { w.publishKey("hello") }, []string{"fault: DKIM key ... each there once"}},
		"two keys":            {func(w *reporterWorld) { w.publishKey(w.key(), otherKey(w)) }, []string{"fault: DKIM key ... there are 2 records"}},
		"sha1 only":           {func(w *reporterWorld) { w.publishKey(w.key() + "; h=sha1") }, []string{"fault: DKIM key ... h= does not allow sha256"}},
		"sha1 and sha256":     {func(w *reporterWorld) { w.publishKey(w.key() + "; h=sha1 : SHA256;") }, nil},
		"tlsrpt only":         {func(w *reporterWorld) { w.publishKey(w.key() + "; s=tlsrpt") }, []string{"fault: DKIM key ... s= does not allow email"}},
		"email only":          {func(w *reporterWorld) { w.publishKey(w.key() + "; s=email") }, []string{"warning: DKIM key ... s= does not name tlsrpt"}},
		"email and tlsrpt":    {func(w *reporterWorld) { w.publishKey(w.key() + "; s=email:tlsrpt") }, nil},
		"testing":             {func(w *reporterWorld) { w.publishKey(w.key() + "; t=s:y") }, []string{"warning: DKIM key ... t=y"}},
		"no subdomains":       {func(w *reporterWorld) { w.publishKey(w.key() + "; t=s") }, nil},
		"k= left out":         {func(w *reporterWorld) { w.publishKey(strings.Replace(w.key(), "k=rsa; ", "", 1)) }, nil},
		"key does not come": {func(w *reporterWorld) { w.dns.SetRcode(keyName, dns.RcodeServerFailure) }, []string{
			"warning: the DKIM key " + keyName + " cannot be looked up",
		}},

		// RFC 5321 5.1, RFC 7505
		"no MX, no address": {func(w *reporterWorld) { w.mx() }, []string{"fault: reports.example.org has neither MX records nor an address ... => ... reports.example.org. IN MX 10 mail.example.org."}},
		"no MX, an address": {func(w *reporterWorld) { w.mx("A 198.51.100.1") }, nil},
		"null MX":           {func(w *reporterWorld) { w.mx("MX 0 .") }, []string{"fault: reports.example.org has a null MX"}},
		"MX is an address":  {func(w *reporterWorld) { w.mx("MX 10 198.51.100.1.") }, []string{"fault: the MX records of reports.example.org name no hosts"}},
		"MX without address": {func(w *reporterWorld) { w.mx("MX 10 gone.example.org.", "MX 20 mail.example.org.") }, []string{
			"warning: gone.example.org, a mail server of reports.example.org, has no address",
		}},
		"no MX with an address": {func(w *reporterWorld) { w.mx("MX 10 gone.example.org.") }, []string{
			"warning: gone.example.org", "fault: none of the mail servers of reports.example.org has an address",
		}},
		"MX of others":          {func(w *reporterWorld) { w.mx("MX 10 mx.example.net."); w.dns.Add("mx.example.net. IN A 198.51.100.9") }, nil},
		"MX host does not come": {func(w *reporterWorld) { w.dns.SetRcode("mail.example.org", dns.RcodeServerFailure) }, []string{"warning: the address of mail.example.org cannot be looked up"}},

		// RFC 7208
		"no SPF": {func(w *reporterWorld) { w.spf() }, []string{
			`warning: reports.example.org has no SPF record => DMARC passes by the signature ... reports.example.org. IN TXT "v=spf1 ip4:198.51.100.1 ip6:2001:db8::1 -all"`,
		}},
		"two SPF":    {func(w *reporterWorld) { w.spf("v=spf1 a", "V=SPF1") }, []string{"fault: reports.example.org has 2 SPF records"}},
		"broken SPF": {func(w *reporterWorld) { w.spf("v=spf1 ip4:banana -all") }, []string{"fault: the SPF record of reports.example.org has mistakes: v=spf1 ip4:banana -all"}},
		"SPF of IPv4": {func(w *reporterWorld) { w.spf("v=spf1 ip4:198.51.100.1 ~all") }, []string{
			"warning: SPF of reports.example.org is softfail for 2001:db8::1, an address of mail.example.org",
		}},
		"other addresses": {func(w *reporterWorld) { w.host.Addresses = []netip.Addr{netip.MustParseAddr("198.51.100.2")} }, []string{
			"warning: SPF of reports.example.org is fail for 198.51.100.2, an address of this host => ... ip4:198.51.100.2 -all",
		}},
		"by a relay":                      {func(w *reporterWorld) { w.settings["relayhost"] = "[smtp.example.net]" }, nil},
		"by a relay, SPF is broken":       {func(w *reporterWorld) { w.settings["relayhost"] = "x"; w.spf("v=spf1 bla") }, []string{"fault: the SPF record of reports.example.org has mistakes"}},
		"a name that the DNS knows not":   {func(w *reporterWorld) { w.settings["myhostname"] = "host.invalid" }, nil},
		"an address of a private network": {func(w *reporterWorld) { w.replace("mail.example.org"); w.dns.Add("mail.example.org. IN A 10.0.0.1") }, nil},

		// RFC 9989 4.7, 4.10; RFC 9990 3.5.2
		"no DMARC at all": {func(w *reporterWorld) {
			w.replace("_dmarc.reports.example.org")
			w.replace("_dmarc.example.org")
		}, []string{`warning: reports.example.org has no DMARC record, nor ... => Publish:` + "\n" + `    _dmarc.reports.example.org. IN TXT "v=DMARC1; p=reject"`}},
		"that of above asks for reports": {func(w *reporterWorld) { w.replace("_dmarc.reports.example.org") }, []string{
			`warning: _dmarc.example.org, which counts for reports.example.org, has rua: ... => ... "v=DMARC1; p=reject"`,
		}},
		"that of above does not": {func(w *reporterWorld) {
			w.replace("_dmarc.reports.example.org")
			w.replace("_dmarc.example.org", "v=DMARC1; p=none")
		}, nil},
		"its own asks for reports": {func(w *reporterWorld) {
			w.replace("_dmarc.reports.example.org", "v=DMARC1; p=none; RUA = mailto:x@example.org; adkim=r;")
		}, []string{`warning: _dmarc.reports.example.org has rua, which a subdomain for reports should not ... => ... IN TXT "v=DMARC1; p=none; adkim=r"`}},
		"two records": {func(w *reporterWorld) {
			w.replace("_dmarc.reports.example.org", "v=DMARC1; p=none", "v=DMARC1; p=reject")
		}, []string{
			"fault: _dmarc.reports.example.org has 2 DMARC records",
		}},
		"no policy in it": {func(w *reporterWorld) { w.replace("_dmarc.reports.example.org", "v=DMARC1; pp=none") }, []string{
			"fault: the DMARC record of reports.example.org is useless",
		}},
		"mistakes in it": {func(w *reporterWorld) { w.replace("_dmarc.reports.example.org", "v=DMARC1; p=none; fo=x") }, []string{
			"warning: _dmarc.reports.example.org has mistakes: fo=x",
		}},
		"other texts beside it": {func(w *reporterWorld) { w.dns.Add(`_dmarc.reports.example.org. IN TXT "hello"`) }, nil},

		// RFC 9990 4
		"reports to others who agree": {func(w *reporterWorld) {
			w.org("v=DMARC1; p=none; rua=mailto:x@example.net")
			w.dns.Add(`example.org._report._dmarc.example.net. IN TXT "v=DMARC1;"`)
		}, nil},
		"reports to others who do not": {func(w *reporterWorld) { w.org("v=DMARC1; p=none; rua=mailto:x@example.net") }, []string{
			`warning: rua of _dmarc.example.org names example.net, which does not agree to that ... => Ask example.net to publish:` + "\n" + `    example.org._report._dmarc.example.net. IN TXT "v=DMARC1"`,
		}},
		"reports to others who do not answer": {func(w *reporterWorld) {
			w.org("v=DMARC1; p=none; rua=mailto:x@example.net")
			w.dns.SetRcode("example.org._report._dmarc.example.net", dns.RcodeServerFailure)
		}, []string{"warning: whether example.net takes reports about example.org cannot be looked up"}},

		// RFC 8460 3
		"no TLSRPT": {func(w *reporterWorld) {
			w.replace("_smtp._tls.reports.example.org")
			w.replace("_smtp._tls.mail.example.org")
		}, nil},
		"two TLSRPT": {func(w *reporterWorld) {
			w.dns.Add(`_smtp._tls.mail.example.org. IN TXT "v=TLSRPTv1; rua=mailto:x@example.org"`)
		}, []string{"warning: _smtp._tls.mail.example.org: several TLSRPT records count as none"}},
		"TLSRPT without rua": {func(w *reporterWorld) { w.replace("_smtp._tls.reports.example.org", "v=TLSRPTv1; rua=ftp://x") }, []string{"warning: _smtp._tls.reports.example.org has no destination"}},
		"TLSRPT does not come": {func(w *reporterWorld) { w.dns.SetRcode("_smtp._tls.mail.example.org", dns.RcodeServerFailure) }, []string{
			"warning: _smtp._tls.mail.example.org cannot be looked up",
		}},

		// The host.
		"bounces go to From":       {func(w *reporterWorld) { w.cfg.Reporter.BounceMaildir = "" }, []string{"warning: bounces go to noreply@reports.example.org"}},
		"no Maildir yet":           {func(w *reporterWorld) { w.cfg.Reporter.BounceMaildir = w.path("none") }, nil},
		"no place for one":         {func(w *reporterWorld) { w.cfg.Reporter.BounceMaildir = w.path("none/none") }, []string{"fault: the folder for bounces DIR/none is not there: dead addresses"}},
		"half a Maildir":           {func(w *reporterWorld) { w.remove("bounces/cur") }, nil},
		"no transport for bounces": {func(w *reporterWorld) { w.settings["transport_maps"] = "hash:/etc/postfix/transport" }, []string{"warning: no table in transport_maps knows addresses such as noreply+"}},
		"bounces are refused": {func(w *reporterWorld) {
			w.settings["transport_maps"], w.settings["recipient_delimiter"] = "", "-"
		}, []string{`fault: bounces are refused: ... and recipient_delimiter is "-", without reporter.bounce_delimiter, + => See docs/bounces.md.`}},
		// They would wait in the queue for days.
		"no service for bounces": {func(w *reporterWorld) { w.masterCf = "smtp/unix/command = smtp" }, []string{
			"fault: transport_maps has ruapost-bounce: for bounces, and master.cf has no such service",
		}},
		"no program for bounces": {func(w *reporterWorld) {
			w.masterCf = "ruapost-bounce/unix/command = pipe flags=ORX argv=/nonexistent/reporter bounce argv=/bin/sh"
		}, []string{"fault: the service ruapost-bounce in master.cf, ... /nonexistent/reporter ... no such file"}},
		"bounces go to another host": {func(w *reporterWorld) {
			w.write("postmap", "#!/bin/sh\necho smtp:mx.example.org\n")
			w.masterCf = "smtp/unix/command = smtp"
		}, nil},
		"a delimiter is not needed": {func(w *reporterWorld) { w.settings["recipient_delimiter"] = "" }, nil},
		"no Postfix": {func(w *reporterWorld) {
			w.host.Postconf = w.path("none")
			w.host.Addresses = []netip.Addr{netip.MustParseAddr("198.51.100.1")}
		}, []string{"warning: whether the mail server knows reporter.bounce_delimiter"}},
		"no sendmail":            {func(w *reporterWorld) { w.remove("sendmail") }, []string{"fault: no report can be sent: ... DIR/sendmail"}},
		"sendmail is no program": {func(w *reporterWorld) { w.mode(w.path("sendmail"), 0o644) }, []string{"fault: no report can be sent"}},
		"no outbox":              {func(w *reporterWorld) { w.remove("outbox") }, []string{"fault: the outbox DIR/outbox is not there"}},
		"no store's folder":      {func(w *reporterWorld) { w.cfg.Store.Path = w.path("none/db") }, []string{"fault: the store's folder DIR/none is not there"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newReporterWorld(t)
			tt.change(w)
			w.expect(w.look(), tt.want...)
		})
	}
}

// otherKey is the record of a key that is not the world's.
func otherKey(w *reporterWorld) string {
	key, err := compose.GenerateKey()
	if err != nil {
		w.t.Fatal(err)
	}
	w.write("other.pem", string(key))
	signer, err := compose.LoadSigner("example.org", "x", w.path("other.pem"))
	if err != nil {
		w.t.Fatal(err)
	}
	return signer.Record()
}

// mx replaces the records at the reports' domain, but for SPF.
func (w *reporterWorld) mx(records ...string) {
	w.replace("reports.example.org", "v=spf1 ip4:198.51.100.1 ip6:2001:db8::1 -all")
	for _, r := range records {
		w.dns.Add("reports.example.org. IN " + r)
	}
}

// spf replaces the SPF records.
func (w *reporterWorld) spf(records ...string) {
	w.replace("reports.example.org", records...)
	w.dns.Add("reports.example.org. IN MX 10 mail.example.org.")
}

// org has reports come from the organizational domain, with a DMARC record.
func (w *reporterWorld) org(record string) {
	w.cfg.Reporter.From, w.cfg.ReportDomain, w.cfg.DKIM.Domain = "reports@example.org", "example.org", "example.org"
	w.replace("_dmarc.example.org", record)
	w.replace("r1._domainkey.example.org", w.key())
	w.dns.Add(`example.org. IN MX 10 mail.example.org.
		example.org. IN TXT "v=spf1 mx -all"`)
}

func (w *reporterWorld) remove(name string) {
	if err := os.RemoveAll(filepath.Join(w.dir, name)); err != nil {
		w.t.Fatal(err)
	}
}

// Where the DNS says nothing, nothing is known, and that within the time.
func TestReporterWithoutDNS(t *testing.T) {
	w := newReporterWorld(t)
	w.dns.Handle(func(dns.ResponseWriter, *dns.Msg) bool { return true }) // and says nothing
	r, err := resolver.New(resolver.Config{Servers: []string{w.dns.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.host = Host{Resolver: r, Postconf: w.path("none")}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	findings, records := Reporter(ctx, w.cfg, w.host)
	if took := time.Since(began); took > timeLimit/4 {
		t.Errorf("took %v", took)
	}
	w.expect(findings,
		"warning: the DKIM key "+keyName+" cannot be looked up",
		"warning: the mail servers of reports.example.org cannot be looked up",
		"warning: _smtp._tls.reports.example.org cannot be looked up",
		"warning: the SPF record of reports.example.org cannot be looked up",
		"warning: _dmarc.reports.example.org cannot be looked up",
		"warning: whether the mail server knows reporter.bounce_delimiter",
	)
	for _, r := range records {
		if r.OK || r.Published != nil {
			t.Errorf("%+v: is said to be known", r)
		}
	}
}

// What is to be published is such that it serves once it is.
func TestReporterRecords(t *testing.T) {
	w := newReporterWorld(t)
	w.publishKey("v=DKIM1; p=")
	w.replace("_smtp._tls.mail.example.org")
	w.replace("_smtp._tls.reports.example.org")
	w.replace("_dmarc.reports.example.org", "v=DMARC1; p=none; rua=mailto:x@example.org")
	w.look()
	if len(w.records) != 4 {
		t.Fatalf("records %+v", w.records)
	}
	for _, r := range w.records {
		if r.OK {
			t.Errorf("%+v: is not what is published", r)
		}
		w.dns.Remove(r.Name)
	}
	var b strings.Builder
	if err := WriteRecords(&b, w.records); err != nil {
		t.Fatal(err)
	}
	w.dns.Add(b.String()) // panics if it is no zone file
	w.expect(w.look())
	for _, r := range w.records {
		if !r.OK {
			t.Errorf("%+v: is not enough", r)
		}
	}
}

// Which records are told of, apart from the key and those that are fine.
func TestReporterRecordStates(t *testing.T) {
	const dmarc = "_dmarc.reports.example.org: "
	for name, tt := range map[string]struct {
		change func(w *reporterWorld)
		want   []string // name: text
	}{
		"the policy of above will do": {func(w *reporterWorld) {
			w.replace("_dmarc.reports.example.org")
			w.replace("_dmarc.example.org", "v=DMARC1; p=none")
		}, nil},
		"without a key reject loses reports": {func(w *reporterWorld) {
			w.cfg.DKIM = config.DKIM{}
			w.replace("_dmarc.reports.example.org")
		}, []string{dmarc + "v=DMARC1; p=none"}},
		"mistakes are not kept": {func(w *reporterWorld) { w.replace("_dmarc.reports.example.org", "v=DMARC1; p=quarantine; fo=x") }, []string{dmarc + "v=DMARC1; p=quarantine"}},
		"nor what says nothing": {func(w *reporterWorld) { w.replace("_dmarc.reports.example.org", "v=DMARC1; np=none") }, []string{dmarc + "v=DMARC1; p=reject"}},
		"rua within the organization": {func(w *reporterWorld) { w.org("v=DMARC1; p=none; rua=mailto:x@mail.example.org") }, []string{
			"_smtp._tls.example.org: v=TLSRPTv1; rua=mailto:postmaster@example.org",
		}},
		"others that rua shall not name": {func(w *reporterWorld) {
			w.replace("_dmarc.reports.example.org", "v=DMARC1; p=none; rua=mailto:x@example.net")
		}, []string{dmarc + "v=DMARC1; p=none"}},
		"others that rua may name": {func(w *reporterWorld) {
			w.org("v=DMARC1; p=none; rua=mailto:x@example.net")
			w.replace("_smtp._tls.example.org", "v=TLSRPTv1; rua=mailto:y@example.org")
		}, []string{"example.org._report._dmarc.example.net: v=DMARC1"}},
		"a text before the record": {func(w *reporterWorld) {
			w.replace("_smtp._tls.reports.example.org", "v=TLSRPTv12; x=y", "v=TLSRPTv1; rua=mailto:z@example.org")
			w.replace("_smtp._tls.mail.example.org")
		}, []string{"_smtp._tls.mail.example.org: v=TLSRPTv1; rua=mailto:z@example.org"}},
		"MX of others": {func(w *reporterWorld) { w.mx("MX 10 mx.example.net."); w.dns.Add("mx.example.net. IN A 198.51.100.9") }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newReporterWorld(t)
			tt.change(w)
			w.look()
			var got []string
			for _, r := range w.records {
				if (!r.OK || len(r.Published) == 0) && !strings.Contains(r.Name, "_domainkey") {
					got = append(got, r.Name+": "+r.Want)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("to be published:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

func TestWriteRecords(t *testing.T) {
	long := "v=DKIM1; p=" + strings.Repeat("A", 260)
	records := []Record{
		{Name: "_dmarc.example.org", Why: "the policy", Want: "v=DMARC1; p=none", Published: []string{"v=DMARC1; p=none"}, OK: true},
		{Name: "r1._domainkey.example.org", Why: "the key", Want: long, Published: []string{"v=DKIM1; p=", "x"}},
		{Name: "_smtp._tls.example.org", Why: "TLS", Want: `a"b\c é`, Published: []string{}},
		{Name: "_smtp._tls.mx.example.org", Why: "TLS", Want: "x"},
	}
	want := `
; DNS records to publish, as lines of a zone file

; the policy: is published
_dmarc.example.org. IN TXT "v=DMARC1; p=none"

; the key: PUBLISHED IN ANOTHER FORM
; now: v=DKIM1; p=
; now: x
r1._domainkey.example.org. IN TXT ( "v=DKIM1; p=` + strings.Repeat("A", 244) + `"
	"` + strings.Repeat("A", 16) + `" )

; TLS: NOT PUBLISHED
_smtp._tls.example.org. IN TXT "a\"b\\c \195\169"

; TLS: NOT KNOWN, the DNS does not answer
_smtp._tls.mx.example.org. IN TXT "x"
`
	var b strings.Builder
	if err := WriteRecords(&b, records); err != nil || b.String() != want {
		t.Errorf("%v:\n%s\nwant:\n%s", err, b.String(), want)
	}
}

// What the DNS has gets neither line ends nor control characters into a terminal.
func TestReporterHostileDNS(t *testing.T) {
	w := newReporterWorld(t)
	w.publishKey("v=DKIM1; p=;\n; x=\x1b[2J")
	w.replace("_smtp._tls.reports.example.org", "v=TLSRPTv1; rua=mailto:x@example.org; \x1b]0;x\a\nfoo. IN TXT bar")
	w.replace("_dmarc.reports.example.org", "v=DMARC1; p=none; rua=mailto:x@example.org; \x1b[31m=\r\n=x")
	w.spf("v=spf1 \x1b[31m\n")
	findings := w.look()
	var b strings.Builder
	if err := errors.Join(Write(&b, findings), WriteRecords(&b, w.records)); err != nil {
		t.Fatal(err)
	}
	if i := strings.IndexAny(b.String(), "\x1b\a\r"); i >= 0 {
		t.Errorf("%q", b.String()[max(i-100, 0):])
	}
	if strings.Contains(b.String(), "\nfoo.") {
		t.Error("a record has got a line of its own")
	}
}

func TestWithoutTag(t *testing.T) {
	for list, want := range map[string]string{
		"v=DMARC1; p=none; rua=mailto:x@example.org":         "v=DMARC1; p=none",
		"v=DMARC1;RUA = mailto:x@example.org ;; p=none;":     "v=DMARC1; p=none",
		"v=DMARC1; p=none; ruf=mailto:x?a=rua=b; rua=x;rua=": "v=DMARC1; p=none; ruf=mailto:x?a=rua=b",
	} {
		if got := withoutTag(list, "rua"); got != want {
			t.Errorf("%q: %q; want %q", list, got, want)
		}
	}
}

// The reporter's user has to read the key and write what root may, whoever checks.
func TestReporterUnprivileged(t *testing.T) {
	w := newReporterWorld(t)
	w.mode(w.dir, 0o755)
	w.mode(filepath.Dir(w.dir), 0o755)
	w.mode(w.path("bounces/new"), 0o500)
	w.look() // makes postconf
	r, err := resolver.New(resolver.Config{Servers: []string{w.dns.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.host.Resolver = r
	s := &sender{checker: &checker{cfg: w.cfg, host: w.host}, domain: "reports.example.org", mail: func() map[string]string { return w.settings }}
	unprivileged(func() {
		s.readKey()
		s.checkBounces()
		s.checkFolder("the outbox", w.cfg.Reporter.Outbox, "no report can be composed")
	})
	want := []string{
		"warning: dkim.key_file: user ... may not read DIR/key.pem => Run this as root.",
		"fault: the folder for bounces DIR/bounces: user ... may not write to it",
		"fault: the outbox DIR/outbox: user ... may not write to it",
	}
	if os.Geteuid() != 0 {
		want = want[1:2]
		want[0] = "fault: DIR/bounces/new: user ... may not write to it"
	}
	w.expect(s.findings, want...)
}
