package reporting

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"ruapost"
	"ruapost/dmarc"
)

// names is a set of names for the tests.
type names []string

func (n names) Has(name string) bool {
	_, domain, _ := strings.Cut(name, "@")
	return slices.Contains(n, name) || slices.Contains(n, domain)
}

// recordRows records n messages that differ.
func (r *rig) recordRows(domain string, n int) {
	r.t.Helper()
	var recording errgroup.Group
	recording.SetLimit(64) // they share commits
	for i := range n {
		e := &ruapost.Evaluation{
			Time:   monday.Add(time.Hour),
			Policy: ruapost.DMARCPolicy{Domain: domain, P: "reject", ADKIM: "r", ASPF: "r", FO: "0", Percent: 100, Discovery: "treewalk"},
			Result: ruapost.DMARCResult{
				SourceIP: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), Disposition: "none", AlignedSPF: true,
				HeaderFrom: fmt.Sprintf("x%x.%s", i*7919, domain), SPF: ruapost.SPFResult{Domain: domain, Result: "pass"},
			},
		}
		recording.Go(func() error { return r.store.RecordEvaluation(r.t.Context(), e) })
	}
	if err := recording.Wait(); err != nil {
		r.t.Fatal(err)
	}
}

// counted returns the counters that are not zero.
func (r *rig) counted() map[string]uint64 {
	r.t.Helper()
	counts, err := r.store.Counts(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return counts
}

func readDMARC(t *testing.T, m sent) *dmarc.Feedback {
	t.Helper()
	rep, err := dmarc.ParseReport(bytes.NewReader(m.Content))
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// What does not fit into one mail goes into several, each a whole report of its own: no
// row is lost or there twice.
func TestLargeReportIsSplit(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:new@example.com,mailto:old@example.com"`)
	r.Legacy = names{"old@example.com"}
	r.MaxReportSize = compressorHolds + 20_000
	r.recordRows("example.com", 6_000)
	r.send()
	got := r.taken()
	if len(got) < 4 {
		t.Fatalf("%d mails", len(got))
	}
	rows := map[string]map[string]int64{}
	ids := map[string]map[string]bool{}
	for _, m := range got {
		to := m.Header.Get("To")
		if rows[to] == nil {
			rows[to], ids[to] = map[string]int64{}, map[string]bool{}
		}
		rep := readDMARC(t, m)
		ids[to][rep.Metadata.ReportID] = true
		var n int64
		for _, rec := range rep.Records {
			rows[to][rec.HeaderFrom] += rec.Count
			n += rec.Count
		}
		if !strings.Contains(m.Text, fmt.Sprintf("Messages:   %d\n", n)) || !strings.Contains(m.Text, "Part:") {
			t.Errorf("%d messages, text\n%s", n, m.Text)
		}
		if legacy := !bytes.Contains(m.Content, []byte("dmarc-2.0")); legacy != (to == "old@example.com") {
			t.Errorf("legacy %v to %s", legacy, to)
		}
	}
	for to, seen := range rows {
		if len(seen) != 6_000 || len(ids[to]) != len(got)/2 {
			t.Errorf("%s: %d rows in %d reports, %d mails in all", to, len(seen), len(ids[to]), len(got))
		}
		for from, n := range seen {
			if n != 1 {
				t.Fatalf("%s is there %d times", from, n)
			}
		}
	}
	if d := cmp.Diff(ids["new@example.com"], ids["old@example.com"]); d != "" {
		t.Error(d)
	}
	r.send()
	if n := len(r.taken()); n != 0 {
		t.Errorf("%d mails more", n)
	}
	var total int64
	reports, err := r.reports()
	if err != nil {
		t.Fatal(err)
	}
	for _, rep := range reports {
		total += rep.Groups[0].Total
	}
	if total != 6_000 {
		t.Errorf("%d messages in all parts", total)
	}
}

// RFC 7489 6.2 and 7.2.2; RFC 9990 knows no limits.
func TestSizeLimits(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.one.example. 300 IN TXT "v=DMARC1; p=none; rua=mailto:small@one.example!100,mailto:large@one.example!10m"
		_dmarc.none.example. 300 IN TXT "v=DMARC1; p=none; rua=mailto:small@none.example!100"
		_dmarc.new.example. 300 IN TXT "v=DMARC1; p=none; rua=mailto:small@new.example!100"`)
	r.Legacy = names{"one.example", "none.example"}
	for _, d := range []string{"one.example", "none.example", "new.example"} {
		r.record(d, 1)
	}
	if err := r.Send(t.Context(), Selection{}); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(r.mails, "*.mail"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		args, raw, _ := strings.Cut(string(b), "\n")
		to := args[strings.LastIndex(args, " ")+1:]
		if strings.Contains(raw, "Report-Size: ") {
			to += " error report"
			if !strings.Contains(raw, "Submitting-URI: mailto:small@none.example\n") {
				t.Error(raw)
			}
		}
		got = append(got, to)
	}
	slices.Sort(got)
	if d := cmp.Diff([]string{"large@one.example", "small@new.example", "small@none.example error report"}, got); d != "" {
		t.Error(d)
	}
	reports, err := r.reports()
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, rep := range reports {
		for _, rc := range rep.Recipients {
			states = append(states, rc.Address+" "+string(rc.State))
		}
	}
	slices.Sort(states)
	want := []string{"large@one.example sent", "small@new.example sent", "small@none.example failed", "small@one.example failed"}
	if d := cmp.Diff(want, states); d != "" {
		t.Error(d)
	}
}

func TestExclusions(t *testing.T) {
	r := newRig(t)
	for _, d := range []string{"excluded.example", "ok.example", "rcpt.example", "self.example", "other.example"} {
		r.record(d, 1)
	}
	r.recordSession("self.example")
	r.recordSession("ok.example")
	r.dns.Add(`_dmarc.excluded.example. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@excluded.example"
		_dmarc.ok.example. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@ok.example,mailto:b@ok.example"
		_dmarc.rcpt.example. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@rcpt.example"
		_dmarc.self.example. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@self.example"
		_dmarc.other.example. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@other.example"
		_smtp._tls.self.example. 300 IN TXT "v=TLSRPTv1; rua=mailto:Reports@reporter.example,mailto:reports+x@reporter.example"
		_smtp._tls.ok.example. 300 IN TXT "v=TLSRPTv1; rua=mailto:tls@ok.example"`)
	r.ExcludedDomains = names{"excluded.example"}
	r.OnlyDomains = names{"excluded.example", "ok.example", "rcpt.example", "self.example"}
	r.ExcludedRecipients = names{"rcpt.example", "b@ok.example"}
	r.TLSFailuresOnly = true
	r.send()
	if d := cmp.Diff([]string{"a@ok.example", "a@self.example"}, r.recipientsOfMails()); d != "" {
		t.Error(d)
	}
	want := map[string]uint64{
		"reports_dmarc": 2, "sent_dmarc": 2, "dropped_excluded": 2, "dropped_no_recipient": 1, "dropped_success_only": 2,
	}
	if d := cmp.Diff(want, r.counted()); d != "" {
		t.Error(d)
	}
	// Our own address never gets reports: each would cause the next.
	r.TLSFailuresOnly = false
	r.recordSession("self.example")
	r.send()
	if got := r.recipientsOfMails(); len(got) != 0 {
		t.Errorf("mails to %s", got)
	}
	if r.counted()["dropped_own"] != 1 {
		t.Error(r.counted())
	}
}

// What is past a bound goes out later, and is told of.
func TestHeldBack(t *testing.T) {
	r := newRig(t)
	for i := range 6 {
		d := fmt.Sprintf("d%d.example", i)
		r.dns.Add(fmt.Sprintf(`_dmarc.%s. 300 IN TXT "v=DMARC1; p=none; rua=mailto:r@%[1]s,mailto:%[1]s@service.example"
			%[1]s._report._dmarc.service.example. 300 IN TXT "v=DMARC1"`, d))
		r.record(d, 1)
	}
	r.MaxPerDestination, r.MaxPerRun, r.MaxPerDay = 2, 5, 11
	var perRun []int
	for range 4 {
		r.send()
		toService := 0
		got := r.recipientsOfMails()
		for _, to := range got {
			if strings.HasSuffix(to, "@service.example") {
				toService++
			}
		}
		if toService > 2 {
			t.Errorf("%d mails to one domain in a run", toService)
		}
		perRun = append(perRun, len(got))
		r.clock = r.clock.Add(time.Hour)
	}
	total := 0
	for _, n := range perRun {
		total += n
		if n > 5 {
			t.Errorf("%d mails in a run", n)
		}
	}
	if total != 11 {
		t.Errorf("%d mails in a day: %v", total, perRun)
	}
	r.clock = r.clock.Add(24 * time.Hour)
	r.send()
	if got := r.recipientsOfMails(); len(got) != 1 {
		t.Errorf("the next day %v", got)
	}
	counts := r.counted()
	if counts["sent_dmarc"] != 12 || counts["held_back_max_reports_per_run"] == 0 && counts["held_back_max_per_destination_domain"] == 0 {
		t.Error(counts)
	}
	// What is held back for as long as things are kept is given up.
	r.record("d0.example", 1)
	r.MaxPerDay = 1
	r.send()
	r.taken()
	r.clock = r.clock.Add(keep)
	r.MaxPerDay = 10
	r.send()
	if got := r.recipientsOfMails(); len(got) != 0 {
		t.Errorf("after %s: %v", keep, got)
	}
}

// The mails of a run are spread over the time there is, in random order, but no two are
// further apart than MaxGap; a stop ends that between two of them.
func TestSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		run := &run{Reporter: &Reporter{Spread: 45 * time.Minute, Outbox: t.TempDir()}, counts: map[string]uint64{}}
		for i := range 9 {
			run.offers = append(run.offers, offer{id: fmt.Sprint(i)})
		}
		run.Store = timedStore{t: t, at: make(chan time.Duration, 20), began: time.Now()}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		if err := run.offerAll(ctx); err != nil {
			t.Fatal(err)
		}
		for i := range 9 {
			if got, want := <-run.Store.(timedStore).at, time.Duration(i)*5*time.Minute; got != want {
				t.Errorf("mail %d after %s, want %s", i, got, want)
			}
		}
		for range 18 {
			run.offers = append(run.offers, offer{})
		}
		run.Store = timedStore{t: t, at: make(chan time.Duration, 30), began: time.Now()}
		time.AfterFunc(16*time.Minute, stop)
		if err := run.offerAll(ctx); err != nil {
			t.Fatal(err)
		}
		if at := run.Store.(timedStore).at; len(at) != 10 { // every 100 s
			t.Errorf("%d mails before the stop", len(at))
		}
	})
}

// timedStore notes when reports are asked for; it has none.
type timedStore struct {
	Store
	t     *testing.T
	began time.Time
	at    chan time.Duration
}

func (s timedStore) Report(context.Context, string) (*ruapost.Report, error) {
	s.at <- time.Since(s.began)
	return nil, ruapost.ErrNoReport
}

// A run that is stopped lets sendmail finish, notes that it did, and begins nothing more.
func TestStop(t *testing.T) {
	r := newRig(t)
	for i := range 30 {
		d := fmt.Sprintf("d%d.example", i)
		r.dns.Add(fmt.Sprintf(`_dmarc.%s. 300 IN TXT "v=DMARC1; p=none; rua=mailto:r@%[1]s"`, d))
		r.record(d, 1)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	r.Spread = time.Second
	r.Progress = func(what string, done, all int) {
		if what == "sending" && done == 10 {
			stop()
		}
	}
	if err := r.Send(ctx, Selection{}); err == nil || ctx.Err() == nil {
		t.Errorf("Send: %v", err)
	}
	first := r.recipientsOfMails()
	if len(first) > 11 {
		t.Errorf("%d mails after the stop", len(first))
	}
	r.Progress, r.Spread = nil, 0
	r.send()
	all := append(first, r.recipientsOfMails()...)
	slices.Sort(all)
	if len(slices.Compact(all)) != 30 || len(all) != 30 {
		t.Errorf("%d mails: %v", len(all), all)
	}
}

func TestResendAndForget(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@example.com,mailto:b@example.com"`)
	r.record("example.com", 2)
	r.send()
	first := r.taken()
	id := r.report().ID
	if err := r.Resend(t.Context(), id, "b@example.com"); err != nil {
		t.Fatal(err)
	}
	r.clock = r.clock.Add(3 * 24 * time.Hour)
	r.send()
	again := r.taken()
	if len(first) != 2 || len(again) != 1 || again[0].Filename != first[1].Filename || !bytes.Equal(again[0].Content, first[1].Content) ||
		again[0].Header.Get("Subject") != first[1].Header.Get("Subject") { // RFC 9990 3.5.4
		t.Errorf("again %+v", again)
	}
	for id, address := range map[string]string{id: "c@example.com", strings.Repeat("0", 32): ""} {
		if err := r.Resend(t.Context(), id, address); err == nil {
			t.Errorf("resend %s to %q: no error", id, address)
		}
	}
	r.record("example.com", 5)
	r.record("example.net", 1)
	recorded, reports, err := r.Forget(t.Context(), "example.com")
	if err != nil || recorded != 5 || reports != 1 {
		t.Errorf("forgot %d, %d, %v", recorded, reports, err)
	}
	if left, err := r.due(t.Context(), r.before(Selection{Open: true}), ""); err != nil || len(left) != 1 || left[0].domain != "example.net" {
		t.Errorf("left %+v, %v", left, err)
	}
	if left, err := filepath.Glob(filepath.Join(r.Outbox, "[^.]*")); err != nil || len(left) != 0 {
		t.Errorf("outbox keeps %v, %v", left, err)
	}
}

// One domain alone.
func TestSendSelected(t *testing.T) {
	r := newRig(t)
	for _, d := range []string{"a.example", "b.example"} {
		r.dns.Add(fmt.Sprintf(`_dmarc.%s. 300 IN TXT "v=DMARC1; p=none; rua=mailto:r@%[1]s"`, d))
		r.record(d, 1)
	}
	if err := r.Send(t.Context(), Selection{Domain: "b.example"}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"r@b.example"}, r.recipientsOfMails()); d != "" {
		t.Error(d)
	}
}
