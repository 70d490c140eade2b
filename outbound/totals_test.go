package outbound

import (
	"context"
	"testing"
	"time"

	"ruapost"
	"ruapost/maillog"
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

// What the log tells of counts once, however often the DNS has to be asked about one of the
// domains; so does a session with an MX host that may want reports of its own.
func TestTotalsOfLogs(t *testing.T) {
	r := newLogRig(t)
	store := &tallies{}
	l := &Logs{
		Policies: r.Policies, Store: r.store,
		Resolver: records{"_smtp._tls.all.example": "v=TLSRPTv1; rua=mailto:a@all.example", "_smtp._tls.down.example": "broken"},
		Sessions: NewSessions(r.Policies, r.Policies.resolver, r.store),
	}
	l.Sessions.Totals = totals.New(store)
	record := l.recorder(t.Context(), "log")
	events := []maillog.Event{{
		Time: time.Now(), Kind: maillog.KindSession, Peer: maillog.PeerVerified, MX: "mx1.all.example",
		Domains: []string{"all.example", "down.example"},
	}}
	tries := 1
	for err := record(events, "1"); err != nil && tries < 2*logTries; tries++ {
		err = record(events, "1")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	l.Sessions.Totals.Run(ended, nil)
	if n := store.counts.Total(); tries != logTries || n != 1 || len(l.Sessions.waiting) != 1 {
		t.Errorf("after %d tries %d sessions are counted, and %d wait for their MX host", tries, n, len(l.Sessions.waiting))
	}
}
