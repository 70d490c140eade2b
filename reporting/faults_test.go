package reporting

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"

	"ruapost"
	"ruapost/dmarc"
)

// report returns the one report that there is.
func (r *rig) report() *ruapost.Report {
	r.t.Helper()
	reports, err := r.reports()
	if err != nil || len(reports) != 1 {
		r.t.Fatalf("reports %+v, %v; want one", reports, err)
	}
	return &reports[0]
}

// states returns address, state and error of the one report's recipients.
func (r *rig) states() []string {
	r.t.Helper()
	var states []string
	for _, rc := range r.report().Recipients {
		states = append(states, strings.TrimSpace(fmt.Sprintf("%s %s %s", rc.Address, rc.State, rc.Error)))
	}
	return states
}

func (r *rig) recipientsOfMails() []string {
	r.t.Helper()
	var got []string
	for _, m := range r.taken() {
		got = append(got, strings.TrimPrefix(m.args, args("")))
	}
	return got
}

// recordSession records a TLS session with domain.
func (r *rig) recordSession(domain string) {
	r.t.Helper()
	err := r.store.RecordSessions(r.t.Context(), []ruapost.Session{{
		Time: monday.Add(time.Hour), Domain: domain, Policy: ruapost.TLSPolicy{Type: "no-policy-found", Domain: domain},
	}})
	if err != nil {
		r.t.Fatal(err)
	}
}

// sendmailSays makes sendmail end with a status for mail to an address.
func (r *rig) sendmailSays(who, status string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.mails, "status "+who), []byte(status), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// Those who were served stay what they are, whoever names them instead of himself.
func TestOverrideNamesTheServed(t *testing.T) {
	r := newRig(t)
	sent := ruapost.Recipient{Address: "b@third.example", Accepted: true, State: ruapost.RecipientSent}
	asked := ruapost.Recipient{Address: "a@third.example", State: ruapost.RecipientWaiting}
	kept := ruapost.Recipient{Address: "c@third.example", State: ruapost.RecipientFailed}
	waiting := func(address string) ruapost.Recipient {
		return ruapost.Recipient{Address: address, Accepted: true, State: ruapost.RecipientWaiting}
	}
	rep := &ruapost.Report{Recipients: []ruapost.Recipient{asked, sent, asked, kept}}
	rep.Recipients[2].Address = "d@third.example"
	run, err := r.newRun(t.Context(), Selection{})
	if err != nil {
		t.Fatal(err)
	}
	run.noteAnswers(rep, []answer{
		{asked: true, instead: []ruapost.Recipient{waiting("b@third.example"), waiting("c@third.example"), waiting("e1@x.example"), waiting("e2@x.example"), waiting("e3@x.example")}},
		{},
		{asked: true},
		{},
	})
	agreed := waiting("d@third.example")
	agreed.NotBefore = r.clock
	want := []ruapost.Recipient{sent, agreed, kept, waiting("e1@x.example"), waiting("e2@x.example")}
	if d := cmp.Diff(want, rep.Recipients); d != "" {
		t.Error(d)
	}
}

func TestNoMailIsRepeatedForAnOverride(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@slow.example,mailto:b@third.example"
		example.com._report._dmarc.third.example. 300 IN TXT "v=DMARC1"`)
	slow := "example.com._report._dmarc.slow.example"
	r.dns.SetRcode(slow, mdns.RcodeServerFailure)
	r.record("example.com", 1)
	r.send()
	if d := cmp.Diff([]string{"b@third.example"}, r.recipientsOfMails()); d != "" {
		t.Fatal(d)
	}
	// The first one is of the other's host after all.
	rep := r.report()
	rep.Recipients[0].Address = "a@third.example"
	if err := r.store.PutReports(t.Context(), rep); err != nil {
		t.Fatal(err)
	}
	r.dns.Add(`example.com._report._dmarc.third.example. 300 IN TXT "v=DMARC1; rua=mailto:b@third.example"`)
	r.freshResolver()
	r.clock = r.clock.Add(time.Hour)
	r.send()
	if got := r.recipientsOfMails(); len(got) != 0 {
		t.Errorf("sent again to %s", got)
	}
	if r.report().State != ruapost.ReportDone {
		t.Errorf("%+v", r.report())
	}
}

// One address that we cannot write to must not keep the others from their report.
func TestUnusableDestinations(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_smtp._tls.evil.example. 300 IN TXT "v=TLSRPTv1; rua=mailto:%C3%BC@evil.example,mailto:root@localhost,https://evil.example/,mailto:ok@evil.example"
		_smtp._tls.https.example. 300 IN TXT "v=TLSRPTv1; rua=https://https.example/report"`)
	r.recordSession("evil.example")
	r.recordSession("https.example")
	var out bytes.Buffer
	if err := r.DryRun(t.Context(), &out, Selection{}); err != nil || !strings.Contains(out.String(), "https://https.example/report: nothing is sent to https destinations, would be dropped") {
		t.Errorf("%v\n%s", err, &out)
	}
	r.send()
	if d := cmp.Diff([]string{"ok@evil.example", "ü@evil.example"}, r.recipientsOfMails()); d != "" {
		t.Error(d)
	}
	if left, err := r.due(t.Context(), r.before(Selection{Open: true}), ""); err != nil || len(left) != 0 {
		t.Errorf("left %+v, %v", left, err)
	}
	if d := cmp.Diff([]string{"ü@evil.example sent", "ok@evil.example sent"}, r.states()); d != "" {
		t.Error(d)
	}
}

// An address in the store that compose refuses, as from an older version, is a matter
// of its recipient alone, and comes to an end.
func TestMailThatCannotBeComposed(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_smtp._tls.example.com. 300 IN TXT "v=TLSRPTv1; rua=mailto:a@example.com,mailto:b@example.com"`)
	r.sendmailSays("a@example.com", "75")
	r.sendmailSays("b@example.com", "75")
	r.recordSession("example.com")
	r.send()
	rep := r.report()
	rep.Recipients[0].Address = "a b@example.com"
	if err := r.store.PutReports(t.Context(), rep); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(r.mails, "status b@example.com")); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		r.clock = r.clock.Add(time.Hour)
		r.send()
	}
	if d := cmp.Diff([]string{"b@example.com"}, r.recipientsOfMails()); d != "" {
		t.Error(d)
	}
	if got := r.states(); !strings.HasPrefix(got[0], "a b@example.com failed given up after 24h") || r.report().State != ruapost.ReportDone {
		t.Errorf("%q", got)
	}
}

func TestEmptiedOutbox(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com"`)
	r.sendmailSays("a@example.com", "75")
	r.record("example.com", 1)
	r.send()
	if err := os.RemoveAll(r.dir(r.report())); err != nil {
		t.Fatal(err)
	}
	r.clock = r.clock.Add(time.Hour)
	r.send()
	if d := cmp.Diff([]string{"a@example.com failed " + errNoContent.Error()}, r.states()); d != "" {
		t.Error(d)
	}
	var out bytes.Buffer
	if err := r.Show(t.Context(), &out, "example.com", Contents{}); err != nil || !strings.Contains(out.String(), errNoContent.Error()) {
		t.Errorf("show: %v\n%s", err, &out)
	}
}

// noRows is a store whose rows cannot be read.
type noRows struct{ Store }

func (noRows) Rows(context.Context, ruapost.GroupID) iter.Seq2[ruapost.Row, error] {
	return func(yield func(ruapost.Row, error) bool) { yield(ruapost.Row{}, errors.New("rows cannot be read")) }
}

func TestReportThatCannotBeComposed(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com"`)
	r.record("example.com", 1)
	r.Store = noRows{r.store}
	for _, after := range []time.Duration{0, keep - time.Hour} {
		r.clock = r.clock.Add(after)
		if err := r.Send(t.Context(), Selection{}); err == nil || r.report().State != ruapost.ReportSealed {
			t.Fatalf("%v, %+v", err, r.report())
		}
	}
	r.clock = r.clock.Add(time.Hour)
	if err := r.Send(t.Context(), Selection{}); err == nil || !strings.Contains(err.Error(), "given up after 168h") {
		t.Errorf("given up in silence: %v", err)
	}
	rep := r.report()
	if rep.State != ruapost.ReportDone || rep.Recipients[0].State != ruapost.RecipientFailed {
		t.Errorf("%+v", rep)
	}
	for range r.store.Rows(t.Context(), rep.Groups[0].ID) {
		t.Error("its rows are still there")
	}
	if left, err := filepath.Glob(filepath.Join(r.Outbox, ".*")); err != nil || !slices.Equal(left, []string{filepath.Join(r.Outbox, ".lock")}) {
		t.Errorf("outbox has %v, %v", left, err)
	}
	r.send()
	if _, err := os.Stat(r.dir(rep)); err == nil {
		t.Error("there is a folder")
	}
}

// A run by root must not lock out the user of the others, whatever root's umask.
func TestModes(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com"`)
	r.sendmailSays("a@example.com", "75")
	r.record("example.com", 1)
	if err := os.Chmod(r.Outbox, 0o770|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	r.Outbox = filepath.Join(r.Outbox, "outbox")
	defer syscall.Umask(syscall.Umask(0o077))
	r.send()
	dir := r.dir(r.report())
	got := map[string]os.FileMode{}
	for _, path := range []string{r.Outbox, filepath.Join(r.Outbox, ".lock"), dir, r.contentFile(r.report(), false), filepath.Join(dir, mailName("a@example.com"))} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		got[filepath.Base(path)] = st.Mode()
	}
	const folder = os.ModeDir | os.ModeSetgid | folderMode
	want := map[string]os.FileMode{
		"outbox": folder, ".lock": fileMode, filepath.Base(dir): folder,
		"report.xml.gz": fileMode, mailName("a@example.com"): fileMode,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// A sendmail that was killed, or a mail that cannot be read, says nothing about the
// recipient.
func TestKilledSendmailIsTemporary(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com"`)
	r.record("example.com", 1)
	r.Sendmail = []string{"/bin/sh", "-c", "kill -KILL $$"}
	r.send()
	if got := r.states(); !strings.HasPrefix(got[0], "a@example.com waiting sendmail: exit status 137") {
		t.Errorf("%q", got)
	}
	err := r.sendmail(t.Context(), filepath.Join(r.Outbox, "missing"), r.From, "a@example.com")
	if err == nil || isFinal(err) || errors.Is(err, errSendmail) {
		t.Errorf("mail that is not there: %v", err)
	}
}

// The day of retries begins with the first attempt, however late that is.
func TestFirstAttemptAfterDowntime(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com"`)
	r.record("example.com", 1)
	r.sendmailSays("a@example.com", "75")
	good := r.Sendmail
	r.Sendmail = []string{"/bin/sh", "-c", "exit 127"} // it cannot be run: no attempt
	if err := r.Send(t.Context(), Selection{}); !errors.Is(err, errSendmail) {
		t.Fatal(err)
	}
	r.Sendmail = good
	r.clock = r.clock.Add(2 * RetryFor)
	first := r.clock
	r.send()
	if rc := r.report().Recipients[0]; rc.State != ruapost.RecipientWaiting || !rc.First.Equal(first) {
		t.Errorf("%+v", rc)
	}
	r.clock = first.Add(RetryFor)
	r.send()
	if rc := r.report().Recipients[0]; rc.State != ruapost.RecipientFailed || !rc.First.Equal(first) {
		t.Errorf("%+v", rc)
	}
}

func TestClockThatWasAhead(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com"`)
	r.record("example.com", 1)
	r.sendmailSays("a@example.com", "75")
	now := r.clock
	r.clock = now.AddDate(5, 0, 0)
	r.send()
	r.clock = now
	r.send()
	rep := r.report()
	if rc := rep.Recipients[0]; rc.Attempts != 2 || !rc.First.Equal(now) || rc.NotBefore.After(now.Add(RetryFor)) || rep.Sealed.After(now) {
		t.Errorf("%+v", rep)
	}
	r.clock = now.AddDate(5, 0, 0)
	r.send()
	r.clock = now.Add(time.Hour)
	r.send()
	r.clock = r.clock.Add(keep)
	r.send()
	if reports, err := r.reports(); err != nil || len(reports) != 0 {
		t.Errorf("kept: %+v, %v", reports, err)
	}
}

// crowd is a DNS where the lookups below a name are only answered when so many of
// them are under way at once.
type crowd struct {
	dmarc.Resolver
	below string
	mu    sync.Mutex
	want  int
	full  chan struct{}
}

func (c *crowd) LookupTXT(ctx context.Context, name string) ([]string, bool, error) {
	if strings.HasSuffix(name, c.below) {
		c.mu.Lock()
		if c.want--; c.want == 0 {
			close(c.full)
		}
		c.mu.Unlock()
		select {
		case <-c.full:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
	return c.Resolver.LookupTXT(ctx, name)
}

func TestRecipientsAreAskedAtOnce(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:r@a.third.example,mailto:r@b.third.example,mailto:r@c.third.example"
		example.com._report._dmarc.a.third.example. 300 IN TXT "v=DMARC1"
		example.com._report._dmarc.b.third.example. 300 IN TXT "v=DMARC1"
		example.com._report._dmarc.c.third.example. 300 IN TXT "v=DMARC1"`)
	r.record("example.com", 1)
	r.Resolver = &crowd{Resolver: r.Resolver, below: ".third.example", want: 3, full: make(chan struct{})}
	r.send()
	if got := r.taken(); len(got) != 3 {
		t.Errorf("%d mails", len(got))
	}
}

func TestReportsAreMadeAtOnce(t *testing.T) {
	r := newRig(t)
	for i := range preparing {
		d := fmt.Sprintf("d%d-crowd.example", i)
		r.dns.Add(fmt.Sprintf(`_dmarc.%s. 300 IN TXT "v=DMARC1; p=none; rua=mailto:r@%[1]s"`, d))
		r.record(d, 1)
	}
	r.Resolver = &crowd{Resolver: r.Resolver, below: "-crowd.example", want: preparing, full: make(chan struct{})}
	r.send()
	if got := r.taken(); len(got) != preparing {
		t.Errorf("%d mails", len(got))
	}
}

// A fault stays one when the run is stopped, and the stop is none.
func TestFaultsAndStops(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	fault := errors.New("fault")
	items := make([]int, 100)
	for i := range items {
		items[i] = i
	}
	err := each(ctx, 8, slices.Values(items), func(ctx context.Context, i int) error {
		switch i {
		case 3:
			return fault
		case 50:
			stop()
		}
		return ctx.Err()
	})
	if !errors.Is(err, fault) || errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := each(ctx, 8, slices.Values(items), func(ctx context.Context, i int) error { return fault }); err != nil {
		t.Errorf("after the stop: %v", err)
	}
	err = each(t.Context(), 8, slices.Values(items), func(ctx context.Context, i int) error {
		if i == 0 {
			return errSendmail
		}
		<-ctx.Done()
		return fmt.Errorf("store: %w", ctx.Err())
	})
	if !errors.Is(err, errSendmail) || errors.Is(err, context.Canceled) {
		t.Errorf("without sendmail: %v", err)
	}
}

// The store keeps totals of messages whose rows did not fit.
func TestNothingListed(t *testing.T) {
	r := newRig(t)
	r.record("example.com", 1)
	r.Store = unlisted{r.store}
	var out bytes.Buffer
	if err := r.Preview(t.Context(), &out, "example.com"); err != nil || !strings.Contains(out.String(), "1 counted: none of its rows fits into a report") {
		t.Errorf("show: %v\n%s", err, &out)
	}
	r.send()
	if left, err := r.due(t.Context(), r.before(Selection{Open: true}), ""); err != nil || len(left) != 0 {
		t.Errorf("left %+v, %v", left, err)
	}
}

type unlisted struct{ Store }

func (s unlisted) Groups(ctx context.Context, before time.Time) ([]ruapost.Group, error) {
	groups, err := s.Store.Groups(ctx, before)
	for i := range groups {
		groups[i].Listed = 0
	}
	return groups, err
}

// The text for people names the same submitter as the fields for programs
// (RFC 8460 3: the domain of the contact address).
func TestSubmitter(t *testing.T) {
	r := newRig(t)
	r.From = "reports@mail.reporter.example"
	r.dns.Add(`_smtp._tls.example.com. 300 IN TXT "v=TLSRPTv1; rua=mailto:a@example.com"`)
	r.recordSession("example.com")
	r.send()
	got := r.taken()
	if len(got) != 1 {
		t.Fatalf("%d mails", len(got))
	}
	if s := got[0].Header.Get("TLS-Report-Submitter"); s != "mail.reporter.example" || !strings.Contains(got[0].Text, "Submitter:  "+s+"\n") {
		t.Errorf("header %s, text\n%s", s, got[0].Text)
	}
}
