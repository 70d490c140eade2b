// Command ruapost-tlspolicy answers Postfix's smtp_tls_policy_maps from what domains
// publish (MTA-STS and DANE) and records how TLS in outbound connections went, so
// that ruapost-reporter can tell the domains' owners.
package main

import (
	"context"
	"log/slog"
	"net"
	"sync"

	"ruapost/bboltstore"
	"ruapost/config"
	"ruapost/daemon"
	"ruapost/mtasts"
	"ruapost/outbound"
	"ruapost/resolver"
	"ruapost/socketmap"
)

// maxConnections is far above what Postfix has by default: default_process_limit
// is 100 smtp processes per transport, each with one connection.
const maxConnections = 1000

func main() { daemon.Main("ruapost-tlspolicy", run) }

func run(ctx context.Context, cfg *config.Config) (err error) {
	store, err := bboltstore.Open(cfg.Store.Path)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := store.Close(); err == nil {
			err = cerr
		}
	}()
	dns, err := resolver.New(resolver.Config{Servers: cfg.DNS.Servers})
	if err != nil {
		return err
	}
	defer dns.Close()
	listeners, err := daemon.Listen("policy", cfg.TLSPolicy.Listen)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait() // before the store is closed
	if cfg.TLSPolicy.TLSRPT.Network != "" {
		events, err := daemon.ListenPacket("tlsrpt", cfg.TLSPolicy.TLSRPT)
		if err != nil {
			return err
		}
		defer events.Close()
		wg.Go(func() { outbound.Receive(ctx, events, store) })
	}
	policies := outbound.NewPolicies(dns, &mtasts.Fetcher{Resolver: dns})
	defer policies.Close()
	go daemon.ServeMetrics(ctx, cfg.Metrics.TLSPolicy)
	daemon.Ready()
	server := &daemon.Server{Name: "policy", MaxConns: maxConnections, Handle: func(ctx context.Context, conn net.Conn) {
		if err := socketmap.Serve(ctx, conn, policies.Answer); err != nil {
			slog.Warn("policy: connection ended", "err", err)
		}
	}}
	server.Serve(ctx, listeners...)
	return nil
}
