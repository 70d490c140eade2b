package reporting

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"ruapost"
	"ruapost/dmarc"
)

// hooked is a store that calls functions before, or after, its own.
type hooked struct {
	Store
	report            func(id string) error
	update            func()
	suppressions      func()
	updateSuppression func() error
	recordReported    func()
	put               func() error
}

func (h *hooked) Report(ctx context.Context, id string) (*ruapost.Report, error) {
	if h.report != nil {
		if err := h.report(id); err != nil {
			return nil, err
		}
	}
	return h.Store.Report(ctx, id)
}

func (h *hooked) UpdateReport(ctx context.Context, id string, f func(*ruapost.Report) error) error {
	if h.update != nil {
		h.update()
	}
	return h.Store.UpdateReport(ctx, id, f)
}

func (h *hooked) PutReports(ctx context.Context, reps ...*ruapost.Report) error {
	if h.put != nil {
		if err := h.put(); err != nil {
			return err
		}
	}
	return h.Store.PutReports(ctx, reps...)
}

func (h *hooked) Suppressions(ctx context.Context, patterns ...string) ([]ruapost.Suppression, error) {
	l, err := h.Store.Suppressions(ctx, patterns...)
	if h.suppressions != nil {
		h.suppressions()
	}
	return l, err
}

func (h *hooked) UpdateSuppression(ctx context.Context, p string, f func(*ruapost.Suppression) bool) error {
	if h.updateSuppression != nil {
		if err := h.updateSuppression(); err != nil {
			return err
		}
	}
	return h.Store.UpdateSuppression(ctx, p, f)
}

func (h *hooked) RecordReported(ctx context.Context, d []string, at time.Time) error {
	if h.recordReported != nil {
		h.recordReported()
	}
	return h.Store.RecordReported(ctx, d, at)
}

// one returns a rig with one report to make.
func one(t *testing.T, domain string) *rig {
	r := newRig(t)
	r.dns.Add(`_dmarc.` + domain + `. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@` + domain + `"`)
	r.record(domain, 1)
	return r
}

// A mark that a killed run has left is of the mail before.
func TestResendAfterAKill(t *testing.T) {
	r := one(t, "example.com")
	r.send()
	r.taken()
	rep := r.report()
	os.WriteFile(r.mailFile(rep, &rep.Recipients[0])+takenSuffix, nil, 0o660) // killed between UpdateReport and Remove
	if err := r.Resend(t.Context(), rep.ID, ""); err != nil {
		t.Fatal(err)
	}
	r.send()
	if n := len(r.taken()); n != 1 {
		t.Errorf("%d mails after resend; state %s", n, r.report().Recipients[0].State)
	}
}

// A mail that sendmail took is sent, even if nobody can note it in the outbox.
func TestMarkCannotBeMade(t *testing.T) {
	r := one(t, "example.com")
	took := filepath.Join(t.TempDir(), "took")
	r.Sendmail = []string{"/bin/sh", "-c", "cat >" + took + "; rm -rf " + r.Outbox + "/0* " + r.Outbox + "/[1-9a-f]*"}
	r.Send(t.Context(), Selection{})
	_, err := os.Stat(took)
	if err != nil {
		t.Fatal(err)
	}
	if rc := r.report().Recipients[0]; rc.State != ruapost.RecipientSent {
		t.Errorf("%s: %s", rc.State, rc.Error)
	}
}

// Who is suppressed while a run is under way gets no more of its mails.
func TestSuppressDuringRun(t *testing.T) {
	r := one(t, "example.com")
	r.Progress = func(what string, done, all int) {
		if what == "sending" {
			if err := r.Suppress(t.Context(), "a@example.com", time.Time{}, ""); err != nil {
				t.Error(err)
			}
		}
	}
	r.send()
	if n := len(r.taken()); n != 0 {
		t.Errorf("%d mails to a suppressed address", n)
	}
}

func TestSuppressedIsCounted(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com,mailto:b@example.com"`)
	r.record("example.com", 1)
	r.Suppress(t.Context(), "a@example.com", time.Time{}, "")
	r.send()
	if c := r.counted(); c["suppressed"] != 1 {
		t.Error(c)
	}
}

// sendmail may deliver at once, so a bounce may come before the run notes what it sent.
func TestBounceBeforeTheNote(t *testing.T) {
	r := one(t, "example.com")
	r.BounceMaildir = filepath.Join(t.TempDir(), "bounces")
	other := &Reporter{Store: r.store, From: r.From, BounceMaildir: r.BounceMaildir, BounceDelimiter: r.BounceDelimiter, Now: r.Now}
	r.Store = &hooked{Store: r.store, update: func() {
		for _, m := range r.taken() {
			if _, err := other.Bounce(context.Background(), strings.NewReader(dsn(strings.Fields(m.args)[2], "a@example.com", "failed"))); err != nil {
				t.Error(err)
			}
		}
	}}
	r.send()
	if rc := r.report().Recipients[0]; rc.State != ruapost.RecipientBounced || rc.Last.IsZero() || rc.Attempts != 1 {
		t.Errorf("%+v", rc)
	}
	run, err := r.newRun(t.Context(), Selection{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := run.scan(t.Context()); err != nil || run.sentToday != 1 {
		t.Errorf("%d sent today, %v", run.sentToday, err)
	}
}

// What somebody suppresses while old suppressions are removed stays.
func TestPurgeAndSuppress(t *testing.T) {
	r := one(t, "example.com")
	r.Suppress(t.Context(), "x@example.com", r.clock.Add(time.Hour), "old")
	r.clock = r.clock.Add(maxSuppression + 2*time.Hour)
	other := &Reporter{Store: r.store, Now: r.Now}
	r.Store = &hooked{Store: r.store, suppressions: func() {
		other.Suppress(t.Context(), "x@example.com", time.Time{}, "asked us to stop")
	}}
	r.send()
	if s := r.suppressed(); len(s) != 1 {
		t.Errorf("suppressed %v", s)
	}
}

func TestBouncesAfterTheClockWasAhead(t *testing.T) {
	r := newBounceRig(t)
	right := r.clock
	r.record("example.com", 1)
	r.clock = right.AddDate(0, 6, 0)
	senders := r.senders()
	r.bounce(dsn(senders["dead@example.com"], "dead@example.com", "failed"))
	r.clock = right.Add(time.Hour)
	for range 3 {
		r.record("example.com", 1)
		senders = r.senders()
		if senders["dead@example.com"] != "" {
			r.bounce(dsn(senders["dead@example.com"], "dead@example.com", "failed"))
		}
		r.clock = r.clock.Add(24 * time.Hour)
	}
	if s := r.suppressed(); len(s) != 1 {
		t.Errorf("suppressed %v after 3 bounces", s)
	}
}

func TestBoundOfADayAfterTheClockWasAhead(t *testing.T) {
	r := one(t, "example.com")
	right := r.clock
	r.MaxPerDay = 1
	r.clock = right.Add(100 * time.Hour)
	r.send()
	r.taken()
	r.clock = right
	for i := range 3 {
		r.record("example.com", 1)
		r.send()
		if n := len(r.taken()); n == 0 {
			t.Errorf("day %d: no mail, sentToday counts a mail of the future", i)
		}
		r.clock = r.clock.Add(24 * time.Hour)
	}
}

// A bounce is filed and marks its report, though nothing more can be suppressed.
func TestBounceWithoutRoom(t *testing.T) {
	r := newBounceRig(t)
	r.record("example.com", 1)
	s := r.senders()["dead@example.com"]
	r.Store = &hooked{Store: r.store, updateSuppression: func() error { return fmt.Errorf("x: %w", ruapost.ErrNoRoom) }}
	_, err := r.Bounce(t.Context(), strings.NewReader(dsn(s, "dead@example.com", "failed")))
	files, _ := filepath.Glob(filepath.Join(r.BounceMaildir, "cur", "*"))
	if err != nil || len(files) != 1 {
		t.Errorf("%v; %d filed; %s", err, len(files), r.report().Recipients[0].State)
	}
}

// A fault with one report does not keep the others from being sent.
func TestOneFaultIsOneReports(t *testing.T) {
	r := one(t, "example.com")
	r.dns.Add(`_dmarc.example.net. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.net"`)
	r.record("example.net", 1)
	r.Store = &hooked{Store: r.store, report: func(id string) error {
		if rep, err := r.store.Report(t.Context(), id); err == nil && rep.Domain == "example.net" {
			return errors.New("fault")
		}
		return nil
	}}
	if err := r.Send(t.Context(), Selection{}); err == nil {
		t.Error("no error")
	}
	if n := len(r.taken()); n != 1 {
		t.Errorf("%d mails", n)
	}
}

// A report tells of no message after its period (RFC 9990 3.1.1.4).
func TestPeriodEndsWhenRowsAreSealed(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@elsewhere.example"`)
	r.dns.Add(`example.com._report._dmarc.elsewhere.example. 300 IN TXT "v=DMARC1"`)
	r.clock = monday.Add(12 * time.Hour)
	r.record("example.com", 1)
	res := r.Resolver
	r.Resolver = txtHook{res, func(name string) {
		if strings.Contains(name, "_report") { // the DNS of others is slow: meanwhile a message comes
			r.clock = r.clock.Add(20 * time.Second)
			r.record("example.com", 1)
		}
	}}
	if err := r.Send(t.Context(), Selection{Open: true}); err != nil {
		t.Fatal(err)
	}
	rep := r.report()
	if rep.Groups[0].Total != 1 && rep.Window.End.Before(r.clock) {
		t.Errorf("report of %d messages until %s has one of %s", rep.Groups[0].Total, rep.Window.End, r.clock)
	}
}

// Folders of parts that are not there any more go.
func TestPartsThatBecameFewer(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com"`)
	r.recordRows("example.com", 40)
	r.MaxReportSize = 1 // parts of one row
	h := &hooked{Store: r.store, put: func() error { return errors.New("disk full") }}
	r.Store = h
	r.Send(t.Context(), Selection{})
	h.put = nil
	r.MaxReportSize = 10_000_000
	r.send()
	r.clock = r.clock.Add(keep)
	r.send()
	left, _ := filepath.Glob(filepath.Join(r.Outbox, "[^.]*"))
	if len(left) != 0 {
		t.Errorf("%d folders stay for ever", len(left))
	}
}

// Where reports go to is noted before the first of them is out.
func TestNotedBeforeMailed(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com,mailto:b@example.com"`)
	r.record("example.com", 1)
	r.Store = &hooked{Store: r.store, recordReported: func() {
		if m, err := filepath.Glob(filepath.Join(r.mails, "*.mail")); len(m) > 0 || err != nil {
			t.Errorf("%d mails to the domain are out before it is noted, %v", len(m), err)
		}
	}}
	r.send()
}

func TestKeptForADay(t *testing.T) {
	r := one(t, "example.com")
	r.Keep = 24 * time.Hour
	r.sendmailSays("a@example.com", "75")
	for range 30 {
		r.Send(t.Context(), Selection{})
		r.clock = r.clock.Add(time.Hour)
	}
	if rc := r.report().Recipients[0]; strings.Contains(rc.Error, "held back") {
		t.Error(rc.Error)
	}
}

// txtHook calls a function before each lookup.
type txtHook struct {
	dmarc.Resolver
	hook func(string)
}

func (h txtHook) LookupTXT(ctx context.Context, name string) ([]string, bool, error) {
	h.hook(name)
	return h.Resolver.LookupTXT(ctx, name)
}

// A report that is being POSTed when the run is stopped is not the recipient's fault.
func TestStopDuringPost(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	d := newDestination(t, "127.0.0.1:0", nil, func(w http.ResponseWriter, req *http.Request) {
		io.Copy(io.Discard, req.Body)
		cancel() // SIGTERM while the destination works on the report
	})
	r.HTTPS = d.Poster
	r.dns.Add(`_smtp._tls.example.com. 300 IN TXT "v=TLSRPTv1; rua=` + d.url + `"`)
	r.recordSession("example.com")
	r.Send(ctx, Selection{})
	if rc := r.report().Recipients[0]; rc.Attempts != 0 && rc.State != ruapost.RecipientSent {
		t.Errorf("%s, %d attempts, not before %s: %s; %v", rc.State, rc.Attempts, rc.NotBefore, rc.Error, r.counted())
	}
}

// Who has refused reports does not keep others from hearing of their limit (RFC 7489 7.2.2).
func TestLimitAndRefusal(t *testing.T) {
	r := newRig(t)
	r.Legacy = names{"example.com"}
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com!1,mailto:x@refuses.example"`)
	r.record("example.com", 3)
	r.send()
	mails, err := filepath.Glob(filepath.Join(r.mails, "*.mail"))
	if err != nil || len(mails) != 1 {
		t.Fatalf("%v, %v", mails, err)
	}
	if text, err := os.ReadFile(mails[0]); err != nil || !strings.Contains(string(text), "Report-Size: ") {
		t.Errorf("%s, %v", text, err)
	}
}

func TestUnknownUserIsTriedOnce(t *testing.T) {
	r := newRig(t)
	for _, d := range []string{"example.com", "example.net", "example.org"} {
		r.dns.Add(`_dmarc.` + d + `. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dead@hub.example"`)
		r.dns.Add(d + `._report._dmarc.hub.example. 300 IN TXT "v=DMARC1"`)
		r.record(d, 1)
	}
	r.Spread = 3 * time.Second
	r.sendmailSays("dead@hub.example", "67")
	r.send()
	all, _ := r.reports()
	n := 0
	for _, rep := range all {
		n += rep.Recipients[0].Attempts
	}
	if n > 1 {
		t.Errorf("%d attempts at an address that sendmail has said is nobody's", n)
	}
}

func TestKilledWhileGivingUp(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@elsewhere.example"`)
	r.record("example.com", 1)
	h := &hooked{Store: r.store, put: func() error { return errors.New("killed here") }}
	r.Store = h
	r.Send(t.Context(), Selection{}) // refused: rows dropped, report still sealed
	h.put = nil
	r.send()
	if rep := r.report(); rep.State != ruapost.ReportDone || rep.Recipients[0].State != ruapost.RecipientRefused {
		t.Errorf("%+v", rep)
	}
}

func TestNowKeepsWhatIsNotReportedYet(t *testing.T) {
	r := newRig(t)
	r.TLSFailuresOnly = true
	r.dns.Add(`_smtp._tls.example.com. 300 IN TXT "v=TLSRPTv1; rua=mailto:a@example.com"`)
	for range 5 {
		r.recordSession("example.com")
	}
	r.clock = monday.Add(12 * time.Hour)
	if err := r.Send(t.Context(), Selection{Open: true}); err != nil {
		t.Fatal(err)
	}
	policy := ruapost.TLSPolicy{Type: "no-policy-found", Domain: "example.com"}
	if err := r.store.RecordSessions(t.Context(), []ruapost.Session{{
		Time: monday.Add(13 * time.Hour), Domain: "example.com", Policy: policy, Failed: true,
		Failures: []ruapost.TLSFailure{{Result: "validation-failure"}},
	}}); err != nil {
		t.Fatal(err)
	}
	r.clock = monday.Add(25 * time.Hour)
	r.send()
	rep := r.report()
	if rep.Groups[0].Total != 6 {
		t.Errorf("report from %s counts %d of 6 sessions", rep.Window.Start, rep.Groups[0].Total)
	}
}

// What sendmail took in a run that was killed was sent.
func TestTakenThenSuppressed(t *testing.T) {
	r := one(t, "example.com")
	r.sendmailSays("a@example.com", "75")
	r.send()
	rep := r.report()
	os.WriteFile(r.mailFile(rep, &rep.Recipients[0])+takenSuffix, nil, 0o660) // the run was killed when sendmail had taken it
	r.Suppress(t.Context(), "a@example.com", time.Time{}, "")                 // its bounce
	r.clock = r.clock.Add(time.Hour)
	r.send()
	if s := r.states()[0]; !strings.Contains(s, " sent") && !strings.Contains(s, " bounced") {
		t.Error(s)
	}
}

// A fault of the store does not make reports count twice.
func TestCountedOnce(t *testing.T) {
	r := one(t, "example.com")
	h := &hooked{Store: r.store, put: func() error { return errors.New("disk full") }}
	r.Store = h
	for range 3 {
		r.Send(t.Context(), Selection{})
	}
	h.put = nil
	r.send()
	if c := r.counted(); c["reports_dmarc"] != 1 {
		t.Error(c)
	}
}

func TestForgetWhatIsAhead(t *testing.T) {
	r := one(t, "example.com")
	r.clock = monday.AddDate(0, 0, -30) // recorded while the clock was ahead
	n, _, err := r.Forget(t.Context(), "example.com")
	left, _ := r.store.Groups(t.Context(), monday.AddDate(1, 0, 0))
	if len(left) != 0 {
		t.Errorf("forgot %d, %v; %d groups are still there", n, err, len(left))
	}
}

// A run notes what became of a mail before it hands over many others.
func TestNotedAtOnce(t *testing.T) {
	r := newRig(t)
	for i := range 20 {
		d := fmt.Sprintf("d%d.example", i)
		r.dns.Add(fmt.Sprintf(`_dmarc.%s. 300 IN TXT "v=DMARC1; p=none; rua=mailto:r@%[1]s"`, d))
		r.record(d, 1)
	}
	var once sync.Once
	r.Store = &hooked{Store: r.store, update: func() {
		once.Do(func() {
			m, _ := filepath.Glob(filepath.Join(r.mails, "*.mail"))
			if len(m) > 8 {
				t.Errorf("%d mails are out before the first is noted", len(m))
			}
		})
	}}
	r.send()
}

// Who has agreed to reports gets them, also in the domain that reports come from.
func TestReportsOfCustomersToOurselves(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.customer.example. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@reporter.example"
		customer.example._report._dmarc.reporter.example. 300 IN TXT "v=DMARC1"`)
	r.record("customer.example", 1)
	r.send()
	if n := len(r.taken()); n != 1 {
		t.Errorf("%d mails; %v", n, r.counted())
	}
}

func TestHeldBackComesToAnEnd(t *testing.T) {
	r := newRig(t)
	r.MaxPerRun = 1
	for i := range 12 {
		d := fmt.Sprintf("d%d.example", i)
		r.dns.Add(fmt.Sprintf(`_dmarc.%s. 300 IN TXT "v=DMARC1; p=none; rua=mailto:r@%[1]s"`, d))
		r.record(d, 1)
	}
	r.send()
	r.clock = r.clock.Add(keep + time.Hour)
	r.Send(t.Context(), Selection{})
	w := 0
	all, _ := r.reports()
	for _, rep := range all {
		if rep.Recipients[0].State == ruapost.RecipientWaiting {
			w++
		}
	}
	if w > 0 {
		t.Errorf("%d reports older than keep wait on; %v", w, r.counted())
	}
}

// What answers is not silent: others at the same host are tried.
func TestFailingPostsHoldNobodyUp(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	posted := map[string]int{}
	d := newDestination(t, "127.0.0.1:0", nil, func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		posted[req.URL.Path]++
		mu.Unlock()
		if strings.HasPrefix(req.URL.Path, "/bad") {
			w.WriteHeader(503) // it answers at once
			return
		}
		w.WriteHeader(200)
	})
	r.HTTPS = d.Poster
	base := strings.TrimSuffix(d.url, "/")
	if i := strings.Index(base[8:], "/"); i >= 0 {
		base = base[:8+i]
	}
	r.MaxPerDestination = 0
	for i := range 60 {
		dom := fmt.Sprintf("a%d.evil.example", i)
		r.dns.Add(`_smtp._tls.` + dom + `. 300 IN TXT "v=TLSRPTv1; rua=` + base + fmt.Sprintf("/bad%d", i) + `"`)
		r.recordSession(dom)
	}
	for i := range 5 {
		dom := fmt.Sprintf("honest%d.example", i)
		r.dns.Add(`_smtp._tls.` + dom + `. 300 IN TXT "v=TLSRPTv1; rua=` + base + `/` + dom + `"`)
		r.recordSession(dom)
	}
	for range 30 {
		r.Send(t.Context(), Selection{})
		r.clock = r.clock.Add(time.Hour)
	}
	all, _ := r.reports()
	for _, rep := range all {
		if strings.HasPrefix(rep.Domain, "honest") {
			rc := rep.Recipients[0]
			if rc.State != ruapost.RecipientSent {
				t.Errorf("%s: posted %d times; %s after %d attempts: %s", rep.Domain, posted["/"+rep.Domain], rc.State, rc.Attempts, rc.Error)
			}
		}
	}
}

func TestOverrideAfterComposing(t *testing.T) {
	r := newRig(t)
	r.Legacy = names{"old@third.example"}
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@third.example"`)
	r.dns.SetRcode("example.com._report._dmarc.third.example", mdns.RcodeServerFailure)
	r.record("example.com", 1)
	r.send()
	r.dns.SetRcode("example.com._report._dmarc.third.example", mdns.RcodeSuccess)
	r.dns.Add(`example.com._report._dmarc.third.example. 300 IN TXT "v=DMARC1; rua=mailto:old@third.example"`)
	r.freshResolver()
	r.clock = r.clock.Add(time.Hour)
	r.Send(t.Context(), Selection{})
	if n := len(r.taken()); n != 1 {
		t.Errorf("%d mails; %q", n, r.states())
	}
}

func TestSuppressedForGoodWhileTheClockWasAhead(t *testing.T) {
	r := newBounceRig(t)
	now := r.clock
	r.clock = now.Add(30 * 24 * time.Hour)
	r.Suppress(t.Context(), "dead@example.com", time.Time{}, "never")
	r.clock = now
	r.record("example.com", 1)
	s := r.senders()
	if s["dead@example.com"] != "" {
		t.Errorf("mailed although suppressed for good")
		r.bounce(dsn(s["dead@example.com"], "dead@example.com", "failed"))
	}
	list, _ := r.store.Suppressions(t.Context())
	if len(list) != 1 || !list[0].Until.IsZero() {
		t.Errorf("%+v", list)
	}
}

// RFC 8460 7 asks for nobody's consent.
func TestTLSReportsOfOthersToOurselves(t *testing.T) {
	r := newRig(t)
	r.From = "reports@operator.example"
	r.dns.Add(`_smtp._tls.evil.example. 300 IN TXT "v=TLSRPTv1; rua=mailto:all-staff@operator.example"`)
	r.recordSession("evil.example")
	r.Send(t.Context(), Selection{})
	if m, _ := filepath.Glob(filepath.Join(r.mails, "*.mail")); len(m) > 0 {
		t.Errorf("%d mails to the domain reports come from", len(m))
	}
}

func TestSuppressedOverrideIsCounted(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@third.example"`)
	r.dns.SetRcode("example.com._report._dmarc.third.example", mdns.RcodeServerFailure)
	r.record("example.com", 1)
	r.send()
	r.dns.SetRcode("example.com._report._dmarc.third.example", mdns.RcodeSuccess)
	r.dns.Add(`example.com._report._dmarc.third.example. 300 IN TXT "v=DMARC1; rua=mailto:old@third.example"`)
	r.freshResolver()
	r.Suppress(t.Context(), "old@third.example", time.Time{}, "")
	r.clock = r.clock.Add(time.Hour)
	r.Send(t.Context(), Selection{})
	if r.counted()["suppressed"] != 1 {
		t.Errorf("%v %q", r.counted(), r.states())
	}
}

func TestBouncesAboutTheMail(t *testing.T) {
	r := newBounceRig(t)
	r.record("example.com", 1)
	live := r.senders()["live@example.com"]
	for _, st := range []string{"5.2.3", "5.1.8"} {
		r.bounce(strings.ReplaceAll(dsn(live, "live@example.com", "failed"), "5.1.1", st))
		if s := r.suppressed(); !strings.Contains(s[0], " about ") {
			t.Errorf("%s suppresses the address for all domains: %v", st, s)
		}
		if _, err := r.Unsuppress(t.Context(), "live@example.com about example.com"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestActiveSuppressionIsNotCleared(t *testing.T) {
	r := one(t, "example.com")
	r.send()
	rep := r.report()
	rep.Recipients[0].Last = r.clock.Add(30 * 24 * time.Hour) // sent while the clock was ahead
	r.store.PutReports(t.Context(), rep)
	r.clock = r.clock.Add(keep - time.Hour)
	_, _ = r.strike(t.Context(), "a@example.com", "x", r.clock) // a later report came back
	r.clock = r.clock.Add(time.Hour)
	r.send()
	if len(r.suppressed()) != 1 {
		t.Errorf("active suppression was cleared")
	}
}

func TestResendAndTheBoundOfADay(t *testing.T) {
	r := one(t, "example.com")
	r.MaxPerDay = 1
	r.send()
	r.Resend(t.Context(), r.report().ID, "")
	r.send()
	if n := len(r.taken()); n > 1 {
		t.Errorf("%d mails today with max_reports_per_day = 1", n)
	}
}

func TestProgressIsOneAtATime(t *testing.T) {
	r := newRig(t)
	d := newDestination(t, "127.0.0.1:0", nil, func(w http.ResponseWriter, req *http.Request) {})
	r.HTTPS = d.Poster
	for i := range 30 {
		dom := fmt.Sprintf("a%d.example", i)
		r.dns.Add(`_smtp._tls.` + dom + `. 300 IN TXT "v=TLSRPTv1; rua=mailto:a@` + dom + `,` + d.url + `"`)
		r.recordSession(dom)
	}
	r.Spread = time.Second
	in := 0
	r.Progress = func(what string, done, all int) {
		in++
		in--
	}
	r.Send(t.Context(), Selection{})
}

func TestConsentOnTheLastDay(t *testing.T) {
	r := newRig(t)
	r.Keep = 24 * time.Hour
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@third.example"`)
	r.dns.SetRcode("example.com._report._dmarc.third.example", mdns.RcodeServerFailure)
	r.record("example.com", 1)
	for range 24 {
		r.Send(t.Context(), Selection{})
		r.clock = r.clock.Add(time.Hour)
	}
	r.dns.SetRcode("example.com._report._dmarc.third.example", mdns.RcodeSuccess)
	r.dns.Add(`example.com._report._dmarc.third.example. 300 IN TXT "v=DMARC1"`)
	r.freshResolver()
	r.Send(t.Context(), Selection{})
	if n := len(r.taken()); n != 1 {
		t.Errorf("%d mails %q", n, r.states())
	}
}

func TestUnknownUserInABatch(t *testing.T) {
	r := newRig(t)
	for i := range 40 {
		d := fmt.Sprintf("d%d.example", i)
		r.dns.Add(`_dmarc.` + d + `. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dead@hub.example"
			` + d + `._report._dmarc.hub.example. 300 IN TXT "v=DMARC1"`)
		r.record(d, 1)
	}
	r.sendmailSays("dead@hub.example", "67")
	r.send()
	all, _ := r.reports()
	n := 0
	for _, rep := range all {
		n += rep.Recipients[0].Attempts
	}
	if n > 8 {
		t.Errorf("%d attempts", n)
	}
}

func TestTooLargeForAllButOneNotAsked(t *testing.T) {
	r := newRig(t)
	r.Legacy = names{"example.com"}
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com!1,mailto:b@third.example"`)
	r.dns.SetRcode("example.com._report._dmarc.third.example", mdns.RcodeServerFailure)
	r.record("example.com", 3)
	r.send()
	m, _ := filepath.Glob(filepath.Join(r.mails, "*.mail"))
	if len(m) != 0 {
		t.Errorf("%d: told that the report is too large for all, b is not known yet", len(m))
	}
}

// panicRows panics while rows are read.
type panicRows struct{ Store }

func (s panicRows) Rows(ctx context.Context, id ruapost.GroupID) iter.Seq2[ruapost.Row, error] {
	return func(yield func(ruapost.Row, error) bool) {
		for row, err := range s.Store.Rows(ctx, id) {
			if !yield(row, err) {
				return
			}
		}
		panic("rows")
	}
}

// A panic is a fault with one report, wherever it comes from.
func TestPanic(t *testing.T) {
	r := one(t, "example.com")
	r.Store = panicRows{r.store}
	if err := r.Send(t.Context(), Selection{}); err == nil || !strings.Contains(err.Error(), "panic: rows") {
		t.Errorf("%v", err)
	}
}
