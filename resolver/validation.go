package resolver

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

const (
	// probeAgain is when servers are probed again of which none validates, as one may
	// when it has just started, or none answers.
	probeAgain = time.Minute
	// probeValidating is the same for servers of which one validates.
	probeValidating = time.Hour
)

// validating is a vector so that it is not there in programs that do not want DNSSEC,
// nor before something is known.
var validating = promauto.NewGaugeVec(prometheus.GaugeOpts{
	Name: "ruapost_dns_validating",
	Help: "1 if a trusted DNS server validates with DNSSEC, 0 if none does, so that DANE is not seen.",
}, nil)

// signed is a question whose answer is signed, and which every resolver answers: the
// root's name servers.
var signed = key{"", dns.TypeNS}

// ServerState is what became of a question to a DNS server whose answer is signed.
type ServerState struct {
	Addr netip.AddrPort
	// Trusted tells whether its AD bit is believed: it is on loopback or was named in
	// Config.Servers.
	Trusted bool
	// AD tells whether it set the AD bit: it validates, or asks a server that does.
	AD bool
	// RoundTrip is how long it took to answer.
	RoundTrip time.Duration
	// Err is why there is no answer, nil if there is one.
	Err error
}

// String describes the state on one line.
func (s ServerState) String() string {
	if s.Err != nil {
		return fmt.Sprintf("%s: %v", s.Addr, s.Err)
	}
	text := s.Addr.String() + ": no AD bit"
	if s.AD {
		text = s.Addr.String() + ": AD bit"
	}
	if !s.Trusted {
		text += ", not trusted"
	}
	return text
}

// Probe asks every server, at the same time, a question whose answer is signed. The
// states are in the order of the configuration.
func (r *Resolver) Probe(ctx context.Context) []ServerState {
	r.mu.Lock()
	servers := r.servers
	r.mu.Unlock()
	return r.probe(ctx, servers)
}

func (r *Resolver) probe(ctx context.Context, servers []server) []ServerState {
	states := make([]ServerState, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() {
			state := ServerState{Addr: s.addr, Trusted: s.trusted}
			if err := Safely(".", func() { r.probeOne(ctx, s, &state) }); err != nil {
				state.Err = err
			}
			states[i] = state
		})
	}
	wg.Wait()
	return states
}

// probeOne fills in what the state of s does not have yet.
func (r *Resolver) probeOne(ctx context.Context, s server, state *ServerState) {
	s.trusted = true // to be told of the bit, whatever it is worth
	for range rounds {
		begin := time.Now()
		a, heard, err := r.ask(ctx, s, signed)
		if err == nil {
			state.AD, state.RoundTrip, state.Err = a.authentic, time.Since(begin), nil
			return
		}
		failed := temporary(".", err)
		failed.Server = s.addr.String()
		state.Err = failed
		if heard || ctx.Err() != nil {
			return
		}
	}
}

// probeIfDue has the servers probed if that is wanted and due. r.mu is held.
func (r *Resolver) probeIfDue() {
	if !r.wantDNSSEC {
		return
	}
	now := r.now()
	if now.Before(r.probeAt) {
		return
	}
	r.probeAt = now.Add(probeAgain)
	servers := r.servers
	r.running.Go(func() {
		ctx, cancel := context.WithTimeout(r.ctx, lookupBudget)
		defer cancel()
		r.judge(servers, r.probe(ctx, servers))
	})
}

// judge notes whether any of the trusted servers validates, and logs if that is new.
// If none of them answers, nothing is known.
func (r *Resolver) judge(servers []server, states []ServerState) {
	isTrusted := func(s ServerState) bool { return s.Trusted }
	hasAnswered := func(s ServerState) bool { return s.Trusted && s.Err == nil }
	validates := slices.ContainsFunc(states, func(s ServerState) bool { return s.Trusted && s.AD })
	if slices.ContainsFunc(states, isTrusted) && !slices.ContainsFunc(states, hasAnswered) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(servers, r.servers) {
		return // others are being probed
	}
	if validates {
		r.probeAt = r.now().Add(probeValidating)
		validating.WithLabelValues().Set(1)
	} else {
		validating.WithLabelValues().Set(0)
	}
	switch {
	case !validates && (!r.judged || r.validates):
		slog.Warn("no trusted DNS server validates with DNSSEC, DANE is not seen: run a validating resolver on this host, or name one in dns.servers",
			"servers", fmt.Sprint(states))
	case validates && r.judged && !r.validates:
		slog.Info("a trusted DNS server validates with DNSSEC now", "servers", fmt.Sprint(states))
	}
	r.judged, r.validates = true, validates
}
