package inbound

import (
	"context"
	"sync"
	"testing"

	"ruapost"
	"ruapost/totals"
)

// tallies is a store of daily totals.
type tallies struct {
	mu     sync.Mutex
	counts ruapost.OutcomeCounts
}

func (s *tallies) AddTallies(_ context.Context, all ...ruapost.Tally) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range all {
		s.counts.Add(&t.Counts)
	}
	return nil
}

// All messages that are judged are counted, by what became of them, also those that nobody
// wants reports about, but not those that are not judged.
func TestTotals(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`
		_dmarc.reject.example. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@reject.example"
		_dmarc.quiet.example.  300 IN TXT "v=DMARC1; p=quarantine"
		pass.example.          300 IN TXT "v=spf1 ip4:192.0.2.1 -all"
		_dmarc.pass.example.   300 IN TXT "v=DMARC1; p=reject"
	`)
	s := &tallies{}
	r.svc.Totals = totals.New(s)
	cfg := r.svc.Config
	cfg.Enforce = ruapost.DispositionQuarantine
	client := r.connect("192.0.2.1", "mail.example.com")
	to := []string{"bob@receiver.example"}
	client.send("a@reject.example", to, sample("a@reject.example"))
	client.send("a@pass.example", to, sample("a@pass.example"))
	client.send("a@none.example", to, sample("a@none.example"))
	r.svc.Reload(cfg)
	client.send("a@quiet.example", to, sample("a@quiet.example"))
	if err := client.Macros('M', "{auth_authen}", "alice"); err != nil {
		t.Fatal(err)
	}
	client.send("a@reject.example", to, sample("a@reject.example"))

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	r.svc.Totals.Run(ended, nil)
	var want ruapost.OutcomeCounts
	want[ruapost.OutcomeFail], want[ruapost.OutcomePass], want[ruapost.OutcomeNoPolicy], want[ruapost.OutcomeQuarantine] = 1, 1, 1, 1
	if s.counts != want {
		t.Errorf("%v, want %v", s.counts, want)
	}
}
