package main

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"ruapost"
)

// TestMonth plays a few days with everything that happens in a month. Nothing that must
// not be may be, and there must have been something to get wrong.
func TestMonth(t *testing.T) {
	defer slog.SetLogLoggerLevel(slog.SetLogLoggerLevel(quiet))
	w, err := newWorld(settings{
		domains: 40, days: 6, after: 8, seed: 1,
		off: days{3, 3}, timerOff: days{5, 5}, busy: 4, ended: 6,
	}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if err := w.play(t.Context()); err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	if err := w.ledger.print(&table); err != nil {
		t.Errorf("%v\n%s", err, &table)
	}
	counts := w.ledger.counts
	for _, name := range []string{"bounces_failed", "bounces_ignored", "bounces_without_token", "dropped_optional", "dropped_suppressed", "put_off_dmarc", "sent_dmarc", "sent_tls"} {
		if counts[name] == 0 {
			t.Errorf("no %s\n%s", name, &table)
		}
	}
	if n := counts["sent_dmarc"] + counts["sent_tls"]; n != uint64(w.ledger.mails) {
		t.Errorf("the reporter has counted %d mails, there were %d", n, w.ledger.mails)
	}
}

// TestLedger: the books tell each of the faults.
func TestLedger(t *testing.T) {
	const rua = "dmarc@d.example"
	d := &domain{name: "d.example", rua: []*mailbox{{address: rua}}}
	for name, c := range map[string]struct {
		recorded [3]int64
		reported int64
		want     faults
	}{
		"all is well":             {[3]int64{genuine: 2, forged: 1}, 3, faults{}},
		"nothing is owed":         {[3]int64{forged: 1, aboutReport: 1}, 0, faults{}},
		"a window is lost":        {[3]int64{genuine: 1}, 0, faults{lost: []string{""}}},
		"messages are missing":    {[3]int64{genuine: 2, aboutReport: 1}, 2, faults{short: []string{""}}},
		"messages are told twice": {[3]int64{genuine: 1}, 2, faults{double: []string{""}}},
		"a loop":                  {[3]int64{aboutReport: 1}, 1, faults{loops: []string{""}}},
		"about a stranger":        {[3]int64{forged: 1}, 1, faults{strangers: []string{""}}},
	} {
		w := &world{byName: map[string]*domain{d.name: d}, boxes: map[string]*mailbox{rua: d.rua[0]}}
		w.ledger = newLedger(w)
		for s, n := range c.recorded {
			if n > 0 {
				w.ledger.recorded(ruapost.KindDMARC, d.name, w.start.Add(time.Hour), sort(s), n)
			}
		}
		if c.reported > 0 {
			w.ledger.mailed(&reportMail{to: rua, kind: ruapost.KindDMARC, domain: d.name, id: "1", window: ruapost.Day(w.start), count: c.reported})
		}
		got, _ := w.ledger.faults()
		for i, lists := range [][2][]string{
			{got.lost, c.want.lost},
			{got.short, c.want.short},
			{got.double, c.want.double},
			{got.loops, c.want.loops},
			{got.strangers, c.want.strangers},
		} {
			if len(lists[0]) != len(lists[1]) {
				t.Errorf("%s: list %d: %q", name, i, lists[0])
			}
		}
	}
	w := &world{byName: map[string]*domain{d.name: d}, boxes: map[string]*mailbox{rua: {address: rua, refused: true}}}
	w.ledger = newLedger(w)
	for range 2 {
		w.ledger.mailed(&reportMail{to: rua, kind: ruapost.KindDMARC, domain: d.name, id: "1", window: ruapost.Day(w.start)})
	}
	if len(w.ledger.repeated) != 1 || len(w.ledger.unasked) != 1 {
		t.Errorf("repeated %q, unasked %q", w.ledger.repeated, w.ledger.unasked)
	}
}
