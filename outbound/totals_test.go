package outbound

import (
	"context"
	"testing"
	"time"

	"ruapost"
	"ruapost/totals"
)

// tallies is a store of daily totals.
type tallies struct{ counts ruapost.OutcomeCounts }

func (s *tallies) AddTallies(_ context.Context, all ...ruapost.Tally) error {
	for _, t := range all {
		s.counts.Add(&t.Counts)
	}
	return nil
}

// Each session counts once, also one that is recorded again for its MX host, or not at all;
// what is no session of its own does not count.
func TestTotals(t *testing.T) {
	r := newRig(t)
	rec := &recorder{}
	s := NewSessions(r.Policies, records{"_smtp._tls.mx.example.net": "v=TLSRPTv1; rua=mailto:a@example.net"}, rec)
	store := &tallies{}
	s.Totals = totals.New(store)
	session := func(kind ruapost.TLSPolicyType, failed, uncounted bool) ruapost.Session {
		return ruapost.Session{
			Time: time.Now(), Domain: "a.example", Policy: ruapost.TLSPolicy{Type: kind, Domain: "mx.example.net"}, Failed: failed, Uncounted: uncounted,
		}
	}
	s.RecordSessions(t.Context(), []ruapost.Session{
		session(ruapost.PolicyTLSA, false, false), session(ruapost.PolicyTLSA, true, false), session(ruapost.PolicySTS, true, false),
		session(ruapost.PolicyNone, false, false), session(ruapost.PolicyNone, false, true),
	})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	s.Run(ended)
	s.Totals.Run(ended, nil)
	if len(rec.sessions) != 5+2 {
		t.Errorf("%d sessions are recorded", len(rec.sessions))
	}
	var want ruapost.OutcomeCounts
	want[ruapost.OutcomeTLSA], want[ruapost.OutcomeTLSAFailed], want[ruapost.OutcomeSTSFailed], want[ruapost.OutcomeNoTLSPolicy] = 1, 1, 1, 1
	if store.counts != want {
		t.Errorf("%v, want %v", store.counts, want)
	}
}
