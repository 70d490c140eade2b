// Command ruapost-tlspolicy answers Postfix's smtp_tls_policy_maps from what domains
// publish (MTA-STS and DANE) and records how TLS in outbound connections went, so
// that ruapost-reporter can tell the domains' owners.
package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"

	"ruapost/bboltstore"
	"ruapost/config"
	"ruapost/daemon"
	"ruapost/dmarc"
	"ruapost/mtasts"
	"ruapost/outbound"
	"ruapost/resolver"
	"ruapost/socketmap"
	"ruapost/totals"
)

const (
	// maxConnections is far above what Postfix has by default: default_process_limit
	// is 100 smtp processes per transport, each with one connection.
	maxConnections = 2000
	// dnsCacheBytes is less than the resolver has by default: answers are kept, too.
	dnsCacheBytes = 2 << 20
)

// gcPercent keeps the heap close to what is live: kept answers make no garbage, so that it
// costs next to nothing.
const gcPercent = 30

func main() {
	debug.SetGCPercent(gcPercent)
	// One more than there are processors: the thread that drains the TLSRPT socket seldom has
	// to wait then, when it comes back from the kernel, for a goroutine to give one up. The
	// price is that a CPU limit which changes later is not followed.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	daemon.MainOrCommand(program, usage, run, terminal)
}

func run(ctx context.Context, cfg *config.Config, reloads <-chan *config.Config) error {
	dns, err := resolver.New(resolver.Config{
		Servers: cfg.DNS.Servers, CacheBytes: dnsCacheBytes, WantDNSSEC: true,
	})
	if err != nil {
		return err
	}
	defer dns.Close()
	listeners, err := daemon.Listen("policy", cfg.TLSPolicy.Listen)
	if err != nil {
		return err
	}
	var events *net.UnixConn // nil if there are to be none
	if cfg.TLSPolicy.TLSRPT.Network != "" {
		if events, err = daemon.ListenPacket("tlsrpt", cfg.TLSPolicy.TLSRPT); err != nil {
			return err
		}
		defer events.Close()
	}
	store, err := bboltstore.Open(cfg.Store.Path)
	if err != nil {
		// Postfix's mail needs the policies all the same, and room in its socket.
		slog.Error("TLS sessions are not recorded, MTA-STS policies only kept in memory", "err", daemon.Advise(cfg, err))
	}
	o := newOutbound(cfg, dns, store)
	var recording sync.WaitGroup
	recording.Go(func() { o.record(ctx, events) })
	go o.reload(reloads)
	go daemon.ServeMetrics(ctx, cfg.Metrics.TLSPolicy)
	daemon.Ready()
	server := &daemon.Server{Name: "policy", MaxConns: maxConnections, Handle: o.serve}
	server.Serve(ctx, listeners...)
	o.policies.Close()
	recording.Wait()
	if store == nil {
		return nil
	}
	return store.Close()
}

// outboundParts are the parts of the daemon that there are for outbound mail.
type outboundParts struct {
	cfg      *config.Config
	dns      *resolver.Resolver
	store    *bboltstore.Store // nil if it cannot be used
	policies *outbound.Policies
}

func newOutbound(cfg *config.Config, dns *resolver.Resolver, store *bboltstore.Store) *outboundParts {
	o := &outboundParts{cfg: cfg, dns: dns, store: store}
	var kept outbound.PolicyStore
	if store != nil {
		kept = store
	}
	o.policies = outbound.NewPolicies(dns, fetcher(cfg, dns), kept, settings(cfg))
	if store == nil {
		return o
	}
	suffixes, err := cfg.Milter.Suffixes()
	if err != nil {
		slog.Error("organizational domains are found by the tree walk", "err", err)
	}
	o.policies.Destinations = outbound.NewDestinations(&dmarc.Evaluator{Resolver: dns, Suffixes: suffixes})
	o.policies.Problems = outbound.NewProblems(dns)
	o.policies.Problems.FromLog = len(cfg.TLSPolicy.Maillog) > 0
	return o
}

// record records what Postfix tells of, and what is found out beside it, until ctx ends.
func (o *outboundParts) record(ctx context.Context, events *net.UnixConn) {
	if o.store == nil {
		if events != nil {
			outbound.Receive(ctx, events, nil)
		}
		return
	}
	sessions := outbound.NewSessions(o.policies, o.dns, o.store)
	sessions.Totals = totals.New(o.store)
	counted := make(chan struct{})
	var counting sync.WaitGroup
	counting.Go(func() { sessions.Totals.Run(ctx, counted) })
	var parts sync.WaitGroup
	parts.Go(func() { o.policies.Run(ctx) })
	parts.Go(func() { o.policies.Destinations.Run(ctx, o.store) })
	parts.Go(func() { o.policies.Problems.Run(ctx, sessions) })
	if events != nil {
		parts.Go(func() { outbound.Receive(ctx, events, sessions) })
	}
	logs := &outbound.Logs{
		Policies: o.policies, Sessions: sessions, Store: o.store, Resolver: o.dns,
		Sources: o.cfg.TLSPolicy.Maillog, ReportFrom: o.cfg.Reporter.From,
	}
	parts.Go(func() { logs.Run(ctx) })
	hosts, recorded := context.WithCancel(context.WithoutCancel(ctx))
	var forHosts sync.WaitGroup
	forHosts.Go(func() { sessions.Run(hosts) })
	parts.Wait()
	close(counted)
	recorded()
	forHosts.Wait()
	counting.Wait()
}

// reload takes new configurations.
func (o *outboundParts) reload(reloads <-chan *config.Config) {
	for cfg := range reloads {
		s := settings(cfg)
		o.policies.Reload(fetcher(cfg, o.dns), s)
		slog.Info("configuration reloaded; sockets, maillog, store, name servers and metrics are changed by a restart only",
			"testing_mode_report", s.ReportTesting, "on_error_defer", s.DeferOnError, "tls_overrides", len(s.Overrides))
	}
}

// serve is the handler of a connection of Postfix.
func (o *outboundParts) serve(ctx context.Context, conn net.Conn) {
	if err := socketmap.Serve(ctx, conn, o.policies.Answer); err != nil {
		level := slog.LevelWarn
		if errors.Is(err, os.ErrDeadlineExceeded) { // a client that asks no more
			level = slog.LevelDebug
		}
		slog.Log(ctx, level, "policy: connection ended", "err", err)
	}
}

func fetcher(cfg *config.Config, dns *resolver.Resolver) *mtasts.Fetcher {
	return &mtasts.Fetcher{Resolver: dns, AllowNetworks: cfg.TLSPolicy.AllowNetworks}
}

// settings is what the configuration says about the policies.
func settings(cfg *config.Config) outbound.Settings {
	s := outbound.Settings{ReportTesting: cfg.TLSPolicy.ReportTesting, DeferOnError: cfg.TLSPolicy.DeferOnError}
	for _, o := range cfg.TLSPolicy.Overrides {
		s.Overrides = append(s.Overrides, outbound.Override{
			Domains: o.Domains, Level: outbound.Level(o.Level),
			IgnoreSTS: o.IgnoreSTS, IgnoreDANE: o.IgnoreDANE, NoReport: o.NoReport,
		})
	}
	return s
}
