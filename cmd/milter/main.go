// Command ruapost-milter is a milter for Postfix that records what DMARC made of
// every inbound message, so that ruapost-reporter can tell the domains' owners.
package main

import (
	"context"

	"ruapost/bboltstore"
	"ruapost/config"
	"ruapost/daemon"
	"ruapost/inbound"
	"ruapost/resolver"
)

// maxConnections is far above what Postfix has by default: default_process_limit
// is 100, and each smtpd has one connection.
const maxConnections = 1000

func main() { daemon.Main("ruapost-milter", run) }

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
	listeners, err := daemon.Listen("milter", cfg.Milter.Listen)
	if err != nil {
		return err
	}
	service := &inbound.Service{
		Config: inbound.Config{
			AuthservID:      cfg.Milter.AuthservID,
			TrustedNetworks: cfg.Milter.TrustedNetworks,
			ReportAddress:   cfg.Reporter.From,
			RecordTimeout:   cfg.Store.RecordTimeout,
		},
		Resolver: dns,
		Recorder: store,
	}
	go daemon.ServeMetrics(ctx, cfg.Metrics.Milter)
	daemon.Ready()
	server := &daemon.Server{Name: "milter", Handle: service.ServeConn, MaxConns: maxConnections}
	server.Serve(ctx, listeners...)
	return nil
}
