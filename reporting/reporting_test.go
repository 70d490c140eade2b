package reporting

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"

	"ruapost"
	"ruapost/bboltstore"
	"ruapost/compose"
	"ruapost/dmarc"
	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
	"ruapost/resolver"
	"ruapost/tlsrpt"
)

// The test program is also the sendmail of its tests: it puts its arguments and the
// mail into a file, or exits with the status that a file of the recipient's name
// asks for.
func TestMain(m *testing.M) {
	if dir := os.Getenv("REPORTING_TEST_MAILS"); dir != "" && len(os.Args) > 1 && os.Args[1] == "-i" {
		os.Exit(takeMail(dir, os.Args[1:]))
	}
	os.Exit(m.Run())
}

func takeMail(dir string, args []string) int {
	var status int
	if b, err := os.ReadFile(filepath.Join(dir, "status "+args[len(args)-1])); err == nil {
		fmt.Sscan(string(b), &status)
		fmt.Fprintln(os.Stderr, "no thanks\x1b[31m")
		return status
	}
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 1
	}
	f, err := os.CreateTemp(dir, "*.mail")
	if err != nil {
		return 1
	}
	fmt.Fprintf(f, "%s\n%s", strings.Join(args, " "), data)
	if f.Close() != nil {
		return 1
	}
	return 0
}

type rig struct {
	*Reporter
	t     *testing.T
	dns   *dnstest.Server
	store *bboltstore.Store
	mails string
	key   *lab.Key
	clock time.Time
}

// monday is the day that the tests report on.
var monday = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)

// rsaKey returns the one key of the tests: making it takes long.
var rsaKey = sync.OnceValues(func() (*lab.Key, error) { return lab.NewRSAKey("reporter.example", "s1") })

func newRig(t *testing.T) *rig {
	t.Helper()
	dns, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	res, err := resolver.New(resolver.Config{Servers: []string{dns.Addr}})
	if err != nil {
		t.Fatal(err)
	}
	store, err := bboltstore.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		store.Close()
		res.Close()
		dns.Close()
	})
	r := &rig{t: t, dns: dns, store: store, mails: t.TempDir(), clock: monday.Add(24*time.Hour + Grace)}
	t.Setenv("REPORTING_TEST_MAILS", r.mails)
	t.Setenv("GORACE", "atexit_sleep_ms=0") // for our sendmail
	r.key, err = rsaKey()
	if err != nil {
		t.Fatal(err)
	}
	line, err := r.key.ZoneLine()
	if err != nil {
		t.Fatal(err)
	}
	dns.Add(line)
	pem, err := r.key.PEM()
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(keyFile, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	signer, err := compose.LoadSigner("reporter.example", "s1", keyFile)
	if err != nil {
		t.Fatal(err)
	}
	r.Reporter = &Reporter{
		Store: store, Resolver: res,
		OrgName: "Reporter & Söhne", Domain: "reporter.example", From: "reports@reporter.example",
		Format: dmarc.RFC9990, Sendmail: []string{os.Args[0], "-i"}, Outbox: t.TempDir(),
		Signer: signer, Now: func() time.Time { return r.clock },
		Keep: keep, MaxRecipients: 5, MaxReportSize: 10_000_000, MaxPerDay: 10_000, MaxPerDestination: 50, BounceDelimiter: "+",
	}
	return r
}

const keep = 7 * 24 * time.Hour

// reports returns all reports of the store.
func (r *rig) reports() (all []ruapost.Report, err error) {
	for rep, err := range r.store.Reports(r.t.Context()) {
		if err != nil {
			return nil, err
		}
		all = append(all, rep)
	}
	return all, nil
}

// mailName is the name of the file with the mail to an address.
func mailName(address string) string {
	return filepath.Base((&Reporter{}).mailFile(&ruapost.Report{}, &ruapost.Recipient{Address: address}))
}

func (r *rig) record(domain string, n int) {
	r.t.Helper()
	for i := range n {
		e := &ruapost.Evaluation{
			Time:   monday.Add(time.Hour),
			Policy: ruapost.DMARCPolicy{Domain: domain, P: "reject", ADKIM: "r", ASPF: "r", FO: "0", Percent: 100, Discovery: "treewalk"},
			Result: ruapost.DMARCResult{
				SourceIP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 3)}), Disposition: "none",
				HeaderFrom: domain, SPF: ruapost.SPFResult{Domain: domain, Result: "fail"},
				Overrides: []ruapost.Override{{Type: "local_policy"}},
			},
		}
		if err := r.store.RecordEvaluation(r.t.Context(), e); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) send() {
	r.t.Helper()
	if err := r.Send(r.t.Context(), Selection{}); err != nil {
		r.t.Fatal(err)
	}
}

// sent is a mail as sendmail got it.
type sent struct {
	*lab.ReportMail
	args string
	raw  []byte
}

// taken returns the mails that were sent since the last call, by recipient.
func (r *rig) taken() []sent {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.mails, "*.mail"))
	if err != nil {
		r.t.Fatal(err)
	}
	var all []sent
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			r.t.Fatal(err)
		}
		os.Remove(f)
		args, raw, _ := bytes.Cut(b, []byte("\n"))
		all = append(all, r.parse(string(args), raw))
	}
	slices.SortFunc(all, func(a, b sent) int { return strings.Compare(a.args, b.args) })
	return all
}

// parse reads a mail and verifies its signature.
func (r *rig) parse(args string, raw []byte) sent {
	r.t.Helper()
	m, err := lab.ReadReportMail(raw)
	if err != nil {
		r.t.Fatal(err)
	}
	verified, err := dkim.VerifyWithOptions(bytes.NewReader(raw), &dkim.VerifyOptions{LookupTXT: func(name string) ([]string, error) {
		txts, _, err := r.Resolver.LookupTXT(context.Background(), name)
		return txts, err
	}})
	if err != nil || len(verified) != 1 || verified[0].Err != nil || verified[0].Domain != "reporter.example" {
		r.t.Errorf("DKIM: %v, %+v", err, verified)
	}
	return sent{m, args, raw}
}

func args(recipient string) string { return "-i -f reports@reporter.example -- " + recipient }

func TestDMARCReport(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com,https://example.com/,mailto:dmarc%40example.com"`)
	r.record("example.com", 7)
	r.clock = monday.Add(24*time.Hour + Grace - time.Second)
	r.send()
	if got := r.taken(); len(got) != 0 {
		t.Fatalf("%d reports before the grace is over", len(got))
	}
	r.clock = monday.Add(24*time.Hour + Grace)
	r.send()
	got := r.taken()
	if len(got) != 1 {
		t.Fatalf("%d mails, want 1", len(got))
	}
	m := got[0]
	if m.args != args("dmarc@example.com") {
		t.Errorf("sendmail %s", m.args)
	}
	rep, err := dmarc.ParseReport(bytes.NewReader(m.Content))
	if err != nil {
		t.Fatal(err)
	}
	id := rep.Metadata.ReportID
	if d := cmp.Diff([]string{
		"Report Domain: example.com Submitter: reporter.example Report-ID: <" + id + ">",
		"multipart/mixed", "application/gzip",
		"reporter.example!example.com!1795392000!1795478399!" + id + ".xml.gz",
		"auto-generated", "dmarc@example.com",
	}, []string{m.Header.Get("Subject"), m.MediaType, m.ContentType, m.Filename, m.Header.Get("Auto-Submitted"), m.Header.Get("To")}); d != "" {
		t.Error(d)
	}
	var n int64
	for _, row := range rep.Records {
		n += row.Count
	}
	if len(rep.Records) != 3 || n != 7 || rep.Metadata.OrgName != "Reporter & Söhne" || rep.Policy.Domain != "example.com" {
		t.Errorf("report %+v", rep)
	}
	if !strings.Contains(m.Text, "Messages:   7") || !strings.Contains(m.Text, "2026-11-23 00:00:00 to 2026-11-23 23:59:59 UTC") {
		t.Errorf("text %s", m.Text)
	}
	// A second run finds nothing to do.
	r.send()
	if got := r.taken(); len(got) != 0 {
		t.Errorf("sent %d times more", len(got))
	}
	if left, err := os.ReadDir(filepath.Join(r.Outbox, id)); err != nil || len(left) != 1 {
		t.Errorf("outbox has %v, %v; want the report alone", left, err)
	}
	r.clock = r.clock.Add(keep)
	r.send()
	if left, err := filepath.Glob(filepath.Join(r.Outbox, "[^.]*")); err != nil || len(left) != 0 {
		t.Errorf("outbox keeps %v, %v", left, err)
	}
	if reports, err := r.reports(); err != nil || len(reports) != 0 {
		t.Errorf("store keeps %v, %v", reports, err)
	}
}

func TestTLSReport(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_smtp._tls.example.net. 300 IN TXT "v=TLSRPTv1; rua=mailto:tls@example.net, mailto:tls@elsewhere.example"`)
	sts := ruapost.TLSPolicy{Type: "sts", Domain: "example.net", Strings: []string{"version: STSv1", "mode: enforce"}, MXHosts: []string{"*.example.net"}}
	failure := ruapost.TLSFailure{Result: "certificate-expired", ReceivingMX: "mx.example.net", ReceivingIP: "192.0.2.9"}
	at := monday.Add(23 * time.Hour)
	err := r.store.RecordSessions(t.Context(), []ruapost.Session{
		{Time: at, Domain: "example.net", Policy: sts},
		{Time: at, Domain: "example.net", Policy: sts, Failed: true, Failures: []ruapost.TLSFailure{failure}},
		{Time: at, Domain: "example.net", Policy: sts, Failed: true, Failures: []ruapost.TLSFailure{failure}},
		{Time: at, Domain: "example.net", Policy: ruapost.TLSPolicy{Type: "tlsa", Domain: "mx.example.net", Strings: []string{"3 1 1 AB"}}},
		{Time: at, Domain: "example.net", Policy: ruapost.TLSPolicy{Type: "no-policy-found", Domain: "example.net"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.send()
	got := r.taken()
	if len(got) != 2 || got[0].args != args("tls@elsewhere.example") || got[1].args != args("tls@example.net") {
		t.Fatalf("mails %+v", got)
	}
	if !bytes.Equal(got[0].Content, got[1].Content) {
		t.Error("the recipients got different reports")
	}
	m := got[1]
	rep, err := tlsrpt.ParseReport(bytes.NewReader(m.Content))
	if err != nil {
		t.Fatal(err)
	}
	id, _, _ := strings.Cut(rep.ReportID, "@")
	if d := cmp.Diff([]string{
		"Report Domain: example.net Submitter: reporter.example Report-ID: <" + id + "@reporter.example>",
		"multipart/report", "tlsrpt", "application/tlsrpt+gzip",
		"reporter.example!example.net!1795392000!1795478399!" + id + ".json.gz",
		"example.net", "reporter.example", "No",
	}, []string{
		m.Header.Get("Subject"), m.MediaType, m.Params["report-type"], m.ContentType, m.Filename,
		m.Header.Get("TLS-Report-Domain"), m.Header.Get("TLS-Report-Submitter"), m.Header.Get("TLS-Required"),
	}); d != "" {
		t.Error(d)
	}
	var policies []string
	for _, p := range rep.Policies {
		policies = append(policies, fmt.Sprintf("%s %s +%d -%d %d", p.Policy.Type, p.Policy.Domain, p.Summary.Successful, p.Summary.Failed, len(p.Failures)))
	}
	slices.Sort(policies)
	if d := cmp.Diff([]string{"no-policy-found example.net +1 -0 0", "sts example.net +1 -2 1", "tlsa mx.example.net +1 -0 0"}, policies); d != "" {
		t.Error(d)
	}
	r.send()
	if got := r.taken(); len(got) != 0 {
		t.Errorf("sent %d times more", len(got))
	}
}

// RFC 9990 4.
func TestExternalDestinations(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@refuses.example,mailto:b@agrees.example,mailto:c@moved.example,mailto:d@slow.example"
		example.com._report._dmarc.agrees.example. 300 IN TXT "v=DMARC1"
		example.com._report._dmarc.moved.example. 300 IN TXT "v=DMARC1; rua=mailto:new@moved.example,mailto:too@moved.example"`)
	slow := "example.com._report._dmarc.slow.example"
	r.dns.SetRcode(slow, mdns.RcodeServerFailure)
	r.record("example.com", 1)
	r.send()
	var got []string
	for _, m := range r.taken() {
		got = append(got, m.args)
	}
	if d := cmp.Diff([]string{args("b@agrees.example"), args("new@moved.example"), args("too@moved.example")}, got); d != "" {
		t.Error(d)
	}
	// The one whose consent could not be asked for gets the report later, the others
	// not again.
	r.dns.SetRcode(slow, mdns.RcodeSuccess)
	r.dns.Add(slow + `. 300 IN TXT "v=DMARC1"`)
	r.freshResolver()
	r.clock = r.clock.Add(time.Hour)
	r.send()
	got = nil
	for _, m := range r.taken() {
		got = append(got, m.args)
	}
	if d := cmp.Diff([]string{args("d@slow.example")}, got); d != "" {
		t.Error(d)
	}
	var out bytes.Buffer
	if err := r.List(t.Context(), &out, View{}); err != nil || !strings.Contains(out.String(), "a@refuses.example") ||
		!strings.Contains(out.String(), ": "+StateRefused) {
		t.Errorf("list: %v\n%s", err, &out)
	}
}

// freshResolver forgets the resolver's cache.
func (r *rig) freshResolver() {
	res, err := resolver.New(resolver.Config{Servers: []string{r.dns.Addr}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(res.Close)
	r.Resolver = res
}

func TestNobodyWantsIt(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.norua.example. 300 IN TXT "v=DMARC1; p=none"`)
	r.dns.SetRcode("_dmarc.down.example", mdns.RcodeServerFailure)
	for _, d := range []string{"gone.example", "norua.example", "down.example"} {
		r.record(d, 1)
	}
	r.send()
	left, err := r.due(t.Context(), r.before(Selection{Open: true}), "")
	if err != nil || len(left) != 1 || left[0].domain != "down.example" {
		t.Errorf("left %+v, %v; want only the domain whose DNS is down", left, err)
	}
	r.clock = r.clock.Add(keep)
	r.freshResolver()
	r.send()
	if left, err := r.due(t.Context(), r.before(Selection{Open: true}), ""); err != nil || len(left) != 0 {
		t.Errorf("left %+v, %v after %s", left, err, keep)
	}
	if got := r.taken(); len(got) != 0 {
		t.Errorf("%d mails", len(got))
	}
}

func TestOptionalAloneCausesNoReport(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@example.com"`)
	e := &ruapost.Evaluation{Time: monday, Optional: true, Policy: ruapost.DMARCPolicy{Domain: "example.com", P: "none", ADKIM: "r", ASPF: "r", FO: "0"}}
	if err := r.store.RecordEvaluation(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	r.send()
	if got := r.taken(); len(got) != 0 {
		t.Errorf("%d mails", len(got))
	}
}

// A report is no mail that anybody here wrote: where it goes does not become known by
// it, or one report would cause the next.
func TestReportsMakeNobodyKnown(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@reports.example.com"`)
	r.record("example.com", 1)
	r.send()
	if got := r.taken(); len(got) != 1 {
		t.Fatalf("%d mails, want 1", len(got))
	}
	sendTo := func(domain string) (required int64) {
		t.Helper()
		if err := r.store.RecordDestinations(t.Context(), []string{domain}, r.clock); err != nil {
			t.Fatal(err)
		}
		err := r.store.RecordEvaluation(t.Context(), &ruapost.Evaluation{
			Time: r.clock, OrganizationalDomain: domain, OptionalIfUnknown: true,
			Policy: ruapost.DMARCPolicy{Domain: "failed." + domain}, Result: ruapost.DMARCResult{HeaderFrom: domain},
		})
		if err != nil {
			t.Fatal(err)
		}
		groups, err := r.store.Groups(t.Context(), r.clock.Add(48*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range groups {
			if g.Domain == "failed."+domain {
				required += g.Required
			}
		}
		return required
	}
	if sendTo("example.com") != 0 || sendTo("example.net") != 1 {
		t.Error("example.com is known because a report was mailed there, or example.net is not by mail")
	}
}

func TestSendmailStatus(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:later@example.com,mailto:never@example.com"`)
	r.record("example.com", 1)
	status := func(who, code string) {
		if err := os.WriteFile(filepath.Join(r.mails, "status "+who), []byte(code), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	status("later@example.com", "75")
	status("never@example.com", "67")
	r.send()
	reports, err := r.reports()
	if err != nil || len(reports) != 1 {
		t.Fatal(reports, err)
	}
	for _, rc := range reports[0].Recipients {
		want := ruapost.RecipientWaiting
		if rc.Address == "never@example.com" {
			want = ruapost.RecipientFailed
		}
		if rc.State != want || !strings.Contains(rc.Error, "no thanks") || strings.Contains(rc.Error, "\x1b") {
			t.Errorf("%+v", rc)
		}
	}
	mailBefore, err := os.ReadFile(filepath.Join(r.Outbox, reports[0].ID, mailName("later@example.com")))
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(r.mails, "status later@example.com"))
	r.send()
	if got := r.taken(); len(got) != 0 {
		t.Errorf("%d mails before the pause is over", len(got))
	}
	r.clock = r.clock.Add(firstRetry)
	r.send()
	got := r.taken()
	if len(got) != 1 || got[0].args != args("later@example.com") || !bytes.Equal(got[0].raw, mailBefore) {
		t.Errorf("the retry is another mail: %+v", got)
	}
	reports, err = r.reports()
	if err != nil || reports[0].State != ruapost.ReportDone {
		t.Errorf("%+v, %v", reports, err)
	}
}

func TestGivenUpAfterADay(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:later@example.com"`)
	r.record("example.com", 1)
	if err := os.WriteFile(filepath.Join(r.mails, "status later@example.com"), []byte("75"), 0o600); err != nil {
		t.Fatal(err)
	}
	tries := 0
	for range 30 {
		r.send()
		r.clock = r.clock.Add(time.Hour)
	}
	reports, err := r.reports()
	if err != nil || len(reports) != 1 || reports[0].State != ruapost.ReportDone {
		t.Fatal(reports, err)
	}
	tries = reports[0].Recipients[0].Attempts
	if tries < 4 || tries > 10 || !strings.Contains(reports[0].Recipients[0].Error, "given up after 24h") {
		t.Errorf("%+v", reports[0].Recipients[0])
	}
}

// A sendmail that is not there is our fault, not the recipient's: all wait.
func TestNoSendmail(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com"`)
	r.record("example.com", 1)
	good := r.Sendmail
	r.Sendmail = []string{"/nonexistent/sendmail"}
	if err := r.Send(t.Context(), Selection{}); !errors.Is(err, errSendmail) {
		t.Errorf("Send: %v", err)
	}
	r.Sendmail = good
	r.send()
	if got := r.taken(); len(got) != 1 {
		t.Errorf("%d mails", len(got))
	}
}

// Whatever an earlier run left, the next one goes on from there.
func TestResume(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com"`)
	r.record("example.com", 3)
	due, err := r.due(t.Context(), r.before(Selection{}), "")
	if err != nil || len(due) != 1 {
		t.Fatal(due, err)
	}
	rep := &ruapost.Report{
		ID: "0123456789abcdef", Kind: "dmarc", Domain: "example.com", Window: due[0].window, Sealed: r.clock,
		State: ruapost.ReportSealed, Groups: due[0].groups,
		Recipients: []ruapost.Recipient{{URI: "mailto:a@example.com", Address: "a@example.com", State: ruapost.RecipientWaiting}},
	}
	if err := r.store.Seal(t.Context(), rep); err != nil {
		t.Fatal(err)
	}
	// Ended while the folder was being written, then after it was but before the note.
	if err := os.MkdirAll(filepath.Join(r.Outbox, ".new-"+rep.ID), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := r.writeParts(t.Context(), rep); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(r.contentFile(rep, false))
	if err != nil {
		t.Fatal(err)
	}
	r.record("example.com", 1) // for a later report
	r.clock = r.clock.Add(time.Second)
	r.send()
	got := r.taken()
	if len(got) != 2 {
		t.Fatalf("%d mails", len(got))
	}
	var totals []int64
	for _, m := range got {
		rep2, err := dmarc.ParseReport(bytes.NewReader(m.Content))
		if err != nil {
			t.Fatal(err)
		}
		n := int64(0)
		for _, row := range rep2.Records {
			n += row.Count
		}
		totals = append(totals, n)
	}
	slices.Sort(totals)
	if d := cmp.Diff([]int64{1, 3}, totals); d != "" {
		t.Error(d)
	}
	after, err := os.ReadFile(r.contentFile(rep, false))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the frozen report was written again: %v", err)
	}
}

// A run that was killed while sendmail worked finds out what became of the mail.
func TestTakenMailIsNotSentAgain(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com"`)
	r.record("example.com", 1)
	if err := os.WriteFile(filepath.Join(r.mails, "status a@example.com"), []byte("75"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.send()
	reports, err := r.reports()
	if err != nil || len(reports) != 1 {
		t.Fatal(reports, err)
	}
	file := filepath.Join(r.dir(&reports[0]), mailName("a@example.com"))
	if err := os.Rename(file, file+takenSuffix); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(r.mails, "status a@example.com"))
	r.clock = r.clock.Add(firstRetry)
	r.send()
	if got := r.taken(); len(got) != 0 {
		t.Errorf("%d mails", len(got))
	}
	reports, err = r.reports()
	if err != nil || reports[0].State != ruapost.ReportDone || !reports[0].Recipients[0].Last.Equal(r.clock) {
		t.Errorf("%+v, %v", reports, err)
	}
	if left, err := filepath.Glob(file + "*"); err != nil || len(left) != 0 {
		t.Errorf("outbox keeps %v, %v", left, err)
	}
}

// The lock is held for as long as a sendmail of ours works.
func TestSendmailHoldsTheLock(t *testing.T) {
	r := newRig(t)
	if err := r.lock(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	mailFile, started, release := filepath.Join(dir, "mail"), filepath.Join(dir, "started"), filepath.Join(dir, "release")
	for _, fifo := range []string{started, release} {
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(mailFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.Sendmail = []string{"/bin/sh", "-c", `echo >"$0"; cat "$1"`, started, release}
	cmd := r.sendmailCommand(t.Context(), mailFile, r.From, "a@example.com")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(started); err != nil {
		t.Fatal(err)
	}
	r.locked.Close() // as if we had been killed
	if err := (&Reporter{Outbox: r.Outbox}).lock(); !errors.Is(err, ErrBusy) {
		t.Errorf("lock while sendmail works: %v", err)
	}
	if err := os.WriteFile(release, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if err := (&Reporter{Outbox: r.Outbox}).lock(); err != nil {
		t.Errorf("lock when sendmail is done: %v", err)
	}
	if _, err := os.Stat(mailFile + takenSuffix); err != nil {
		t.Error(err)
	}
}

func TestOneRunAtATime(t *testing.T) {
	r := newRig(t)
	if err := r.lock(); err != nil {
		t.Fatal(err)
	}
	held := r.locked
	if err := r.Send(t.Context(), Selection{}); !errors.Is(err, ErrBusy) {
		t.Errorf("second run: %v", err)
	}
	held.Close()
	r.send()
}

// A report made before its window is over ends now, and the next one begins there
// (RFC 9990 3.1.1.4: periods should not overlap).
func TestSendNowDoesNotOverlap(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com"`)
	var got []string
	for _, hour := range []int{8, 14, 25} {
		r.record("example.com", 1)
		r.clock = monday.Add(time.Duration(hour) * time.Hour)
		if err := r.Send(t.Context(), Selection{Open: true}); err != nil {
			t.Fatal(err)
		}
		for _, m := range r.taken() {
			rep, err := dmarc.ParseReport(bytes.NewReader(m.Content))
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprint(rep.Metadata.Begin-monday.Unix(), " ", rep.Metadata.End-monday.Unix()))
		}
	}
	if d := cmp.Diff([]string{"0 28800", "28801 50400", "50401 86399"}, got); d != "" {
		t.Error(d)
	}
}

func TestShowAndDryRun(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com,mailto:b@refuses.example"`)
	r.record("example.com", 2)
	var out bytes.Buffer
	if err := r.DryRun(t.Context(), &out, Selection{}); err != nil {
		t.Fatal(err)
	}
	want := "dmarc example.com 2026-11-23: 2 counted: would be sent\n    to a@example.com\n    not to b@refuses.example: " + errRefused.Error() + "\n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
	out.Reset()
	if err := r.Preview(t.Context(), &out, "example.com"); err != nil || !strings.Contains(out.String(), "<count>1</count>") {
		t.Errorf("preview: %v\n%s", err, &out)
	}
	r.send()
	if n := len(r.taken()); n != 1 {
		t.Fatalf("%d mails", n)
	}
	out.Reset()
	if err := r.Show(t.Context(), &out, "example.com", Contents{}); err != nil || !strings.Contains(out.String(), "<count>1</count>") ||
		!strings.Contains(out.String(), "a@example.com: sent") {
		t.Errorf("show after: %v\n%s", err, &out)
	}
	if err := r.Show(t.Context(), &out, "other.example", Contents{}); !errors.Is(err, ErrNothing) {
		t.Errorf("show of another domain: %v", err)
	}
}
