package reporting

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"

	"ruapost"
)

// What the DNS does not tell of is due, what sendmail does not take waits, and nothing is
// left when both have.
func TestBacklog(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"
		_dmarc.example.net. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.net"`)
	want := func(due, waiting int, oldest time.Time) {
		t.Helper()
		got, err := r.Backlog(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w := &Backlog{Due: map[ruapost.Kind]int{}, Waiting: map[ruapost.Kind]int{}, Oldest: oldest, OutboxBytes: r.outboxBytes()}
		if due > 0 {
			w.Due[ruapost.KindDMARC] = due
		}
		if waiting > 0 {
			w.Waiting[ruapost.KindDMARC] = waiting
		}
		if d := cmp.Diff(w, got); d != "" {
			t.Error(d)
		}
	}
	want(0, 0, time.Time{})
	r.record("example.com", 1)
	r.record("example.net", 1)
	want(2, 0, time.Time{})

	sendmail := r.Sendmail
	r.Sendmail = []string{"/bin/sh", "-c", "exit 75"}
	r.dns.SetRcode("_dmarc.example.net", mdns.RcodeServerFailure)
	sealed := r.clock
	r.send()
	want(1, 1, sealed)

	r.Sendmail = sendmail
	r.dns.SetRcode("_dmarc.example.net", mdns.RcodeSuccess)
	r.freshResolver()
	r.clock = r.clock.Add(2 * time.Hour)
	r.send()
	want(0, 0, time.Time{})
	if n := len(r.taken()); n != 2 {
		t.Errorf("%d mails", n)
	}
	if r.outboxBytes() == 0 {
		t.Error("nothing is kept in the outbox: its size is not tested")
	}
}

// outboxBytes counts the outbox's files two folders deep, where all are.
func (r *rig) outboxBytes() (size int64) {
	for _, pattern := range []string{"*", "*/*"} {
		files, err := filepath.Glob(filepath.Join(r.Outbox, pattern))
		if err != nil {
			r.t.Fatal(err)
		}
		for _, f := range files {
			if info, err := os.Stat(f); err == nil && info.Mode().IsRegular() {
				size += info.Size()
			}
		}
	}
	return size
}

// Whom max_recipients leaves out, and what max_report_size splits, is counted.
func TestLimitHits(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.many.example. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@many.example,mailto:b@many.example,mailto:c@many.example"
		_dmarc.two.example. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@two.example,mailto:b@two.example,mailto:b@two.example"
		_dmarc.large.example. 300 IN TXT "v=DMARC1; p=none; rua=mailto:a@large.example"`)
	r.MaxRecipients = 2
	r.MaxReportSize = compressorHolds + 20_000
	r.record("many.example", 1)
	r.record("two.example", 1)
	r.recordRows("large.example", 4_000)
	r.send()
	counts, err := r.store.Counts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint64{"limit_hits_max_recipients": 1, "limit_hits_max_report_size": 1, "limit_hits_lookups": 0} {
		if counts[name] != want {
			t.Errorf("%s is %d, want %d", name, counts[name], want)
		}
	}
}
