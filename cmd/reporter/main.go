// Command ruapost-reporter turns what the daemons recorded into DMARC aggregate
// reports and TLS reports and mails them through sendmail.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"

	"ruapost"
	"ruapost/bboltstore"
	"ruapost/compose"
	"ruapost/config"
	"ruapost/daemon"
	"ruapost/dmarc"
	"ruapost/reporting"
	"ruapost/resolver"
)

const usage = `[COMMAND]

  send [--now] [--dry-run]   send the reports of all days that are over (the default)
                             --now: of the current day too
                             --dry-run: say what would be sent, send nothing
  list                       what is recorded, waiting and sent
  show DOMAIN                the reports about DOMAIN, decoded

Example: ruapost-reporter show example.com`

func main() { daemon.Command("ruapost-reporter", usage, run) }

func run(ctx context.Context, cfg *config.Config, args []string) (err error) {
	if len(args) == 0 {
		args = []string{"send"}
	}
	act, err := command(cfg, args)
	if err != nil {
		return err
	}
	r := &reporting.Reporter{
		OrgName:  cfg.OrgName,
		Domain:   cfg.ReportDomain,
		From:     cfg.Reporter.From,
		Format:   dmarc.Format(cfg.Reporter.Format),
		Sendmail: cfg.Reporter.Sendmail,
		Outbox:   cfg.Reporter.Outbox,
	}
	dns, err := resolver.New(resolver.Config{Servers: cfg.DNS.Servers})
	if err != nil {
		return err
	}
	defer dns.Close()
	r.Resolver = dns
	store, err := bboltstore.Open(cfg.Store.Path)
	if err != nil {
		return err
	}
	defer store.Close()
	r.Store = store
	return act(ctx, r)
}

// send loads the key that only it needs, and sends.
func send(ctx context.Context, cfg *config.Config, r *reporting.Reporter, now bool) (err error) {
	if cfg.DKIM.Domain == "" {
		slog.Warn("reports are not signed here: set [dkim], unless a milter signs what sendmail submits")
		return r.Send(ctx, now)
	}
	if r.Signer, err = compose.LoadSigner(cfg.DKIM.Domain, cfg.DKIM.Selector, cfg.DKIM.KeyFile); err != nil {
		return err
	}
	if warning := r.Signer.Warning(); warning != "" {
		slog.Warn("dkim: " + warning)
	}
	return r.Send(ctx, now)
}

// command returns what the arguments ask for.
func command(cfg *config.Config, args []string) (func(context.Context, *reporting.Reporter) error, error) {
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	now := flags.Bool("now", false, "")
	dryRun := flags.Bool("dry-run", false, "")
	err := flags.Parse(args[1:])
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", daemon.ErrUsage, args[0], err)
	}
	switch rest := flags.Args(); {
	case args[0] == "send" && len(rest) == 0 && *dryRun:
		return func(ctx context.Context, r *reporting.Reporter) error { return r.DryRun(ctx, os.Stdout, *now) }, nil
	case args[0] == "send" && len(rest) == 0:
		return func(ctx context.Context, r *reporting.Reporter) error { return send(ctx, cfg, r, *now) }, nil
	case args[0] == "list" && len(args) == 1:
		return func(ctx context.Context, r *reporting.Reporter) error { return r.List(ctx, os.Stdout) }, nil
	case args[0] == "show" && len(args) == 2:
		domain, err := ruapost.ParseDomain(args[1])
		if err != nil {
			return nil, fmt.Errorf("%w: show: %w", daemon.ErrUsage, err)
		}
		return func(ctx context.Context, r *reporting.Reporter) error { return r.Show(ctx, os.Stdout, domain) }, nil
	}
	return nil, fmt.Errorf("%w: %q is no command, see -help", daemon.ErrUsage, args)
}
