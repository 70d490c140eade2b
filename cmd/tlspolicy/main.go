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
	"sync"

	"ruapost/bboltstore"
	"ruapost/config"
	"ruapost/daemon"
	"ruapost/dmarc"
	"ruapost/mtasts"
	"ruapost/outbound"
	"ruapost/resolver"
	"ruapost/socketmap"
)

// maxConnections is far above what Postfix has by default: default_process_limit
// is 100 smtp processes per transport, each with one connection.
const maxConnections = 1000

func main() { daemon.Main("ruapost-tlspolicy", run) }

func run(ctx context.Context, cfg *config.Config, reloads <-chan *config.Config) (err error) {
	dns, err := resolver.New(resolver.Config{Servers: cfg.DNS.Servers})
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
	}
	suffixes, err := cfg.Milter.Suffixes()
	if err != nil {
		slog.Error("organizational domains are found by the tree walk", "err", err)
	}
	destinations := outbound.NewDestinations(&dmarc.Evaluator{Resolver: dns, Suffixes: suffixes})
	recorded := make(chan error, 1)
	go func() { recorded <- record(ctx, events, destinations, cfg.Store.Path) }()
	defer func() { err = errors.Join(err, <-recorded) }()
	policies := outbound.NewPolicies(dns, &mtasts.Fetcher{Resolver: dns, AllowNetworks: cfg.TLSPolicy.AllowNetworks})
	policies.Destinations = destinations
	defer policies.Close()
	go func() {
		for range reloads {
			slog.Warn("this daemon takes a new configuration by a restart only")
		}
	}()
	go daemon.ServeMetrics(ctx, cfg.Metrics.TLSPolicy)
	daemon.Ready()
	server := &daemon.Server{Name: "policy", MaxConns: maxConnections, Handle: func(ctx context.Context, conn net.Conn) {
		if err := socketmap.Serve(ctx, conn, policies.Answer); err != nil {
			level := slog.LevelWarn
			if errors.Is(err, os.ErrDeadlineExceeded) { // a client that asks no more
				level = slog.LevelDebug
			}
			slog.Log(ctx, level, "policy: connection ended", "err", err)
		}
	}}
	server.Serve(ctx, listeners...)
	return nil
}

// record records what events tells of, and the destinations, until ctx ends. Without a
// store it goes on all the same: Postfix's mail needs the policies, and room in the
// socket.
func record(ctx context.Context, events *net.UnixConn, destinations *outbound.Destinations, path string) error {
	if events != nil {
		defer events.Close()
	}
	store, err := bboltstore.Open(path)
	if err != nil {
		slog.Error("TLS sessions are not recorded", "err", err)
		if events != nil {
			outbound.Receive(ctx, events, nil)
		}
		return nil
	}
	var recording sync.WaitGroup
	recording.Go(func() { destinations.Run(ctx, store) })
	if events != nil {
		outbound.Receive(ctx, events, store)
	}
	recording.Wait()
	return store.Close()
}
