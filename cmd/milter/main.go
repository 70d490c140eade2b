// Command ruapost-milter is a milter for Postfix that records what DMARC made of
// every inbound message, so that ruapost-reporter can tell the domains' owners.
package main

import (
	"context"
	"log/slog"
	"runtime/debug"
	"sync"

	"ruapost/bboltstore"
	"ruapost/config"
	"ruapost/daemon"
	"ruapost/inbound"
	"ruapost/resolver"
	"ruapost/totals"
)

// maxConnections is far above what Postfix has by default: default_process_limit
// is 100, and each smtpd has one connection.
const maxConnections = 1000

// gcPercent lets the heap grow to three times of what is live. That is little, as each
// message is garbage when it is judged; with Go's default of twice, a tenth of
// the CPU time goes into collecting it.
const gcPercent = 200

const usage = `
The milter for mail that comes in: it finds out what DMARC says of each message,
writes that on top of it, and records it for the reports. systemd starts it
(ruapost-milter.service); by hand it runs until Ctrl-C. On SIGHUP it reads the
configuration again. "man ruapost-milter" says more.

Example: ruapost-milter -check`

func main() {
	debug.SetGCPercent(gcPercent)
	daemon.Main("ruapost-milter", usage, run)
}

func run(ctx context.Context, cfg *config.Config, reloads <-chan *config.Config) (err error) {
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
	judgement, err := inboundConfig(cfg)
	if err != nil {
		return err
	}
	counter := totals.New(store)
	service := &inbound.Service{Config: judgement, Resolver: dns, Recorder: store, Totals: counter}
	go func() {
		for cfg := range reloads {
			if judgement, err := inboundConfig(cfg); err != nil {
				slog.Error("configuration not reloaded, the old one stays in force", "err", err)
			} else {
				service.Reload(judgement)
				slog.Info("configuration reloaded; sockets, store, name servers and metrics are changed by a restart only",
					"enforce", judgement.Enforce, "overrides", len(judgement.Overrides),
					"trusted_authserv_ids", judgement.TrustedAuthservIDs, "trusted_sealers", judgement.TrustedSealers)
			}
		}
	}()
	go daemon.ServeMetrics(ctx, cfg.Metrics.Milter)
	daemon.Ready()
	server := &daemon.Server{Name: "milter", Handle: service.ServeConn, MaxConns: maxConnections}
	var counting sync.WaitGroup
	judged := make(chan struct{})
	counting.Go(func() { counter.Run(ctx, judged) })
	server.Serve(ctx, listeners...)
	close(judged)
	counting.Wait()
	return nil
}

// inboundConfig is what the configuration says about the judgement of messages.
func inboundConfig(cfg *config.Config) (c inbound.Config, err error) {
	m := &cfg.Milter
	c = inbound.Config{
		AuthservID:         m.AuthservID,
		TrustedNetworks:    m.TrustedNetworks,
		Enforce:            m.Enforce,
		MarkQuarantine:     m.Quarantine == "header",
		DeferTemperror:     m.DeferTemperror,
		ReportUnknown:      m.ReportUnknown,
		MinInterval:        cfg.Reporter.MinInterval,
		ReportAddress:      cfg.Reporter.From,
		ReportDelimiter:    cfg.Reporter.BounceDelimiter,
		Budget:             m.Budget,
		RecordTimeout:      cfg.Store.RecordTimeout,
		TrustedAuthservIDs: m.TrustedAuthservIDs,
		TrustedSealers:     m.TrustedSealers,
	}
	for _, o := range m.Overrides {
		c.Overrides = append(c.Overrides, inbound.Override(o))
	}
	c.Suffixes, err = m.Suffixes()
	return c, err
}
