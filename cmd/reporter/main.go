// Command ruapost-reporter turns what the daemons recorded into DMARC aggregate
// reports and TLS reports and mails them through sendmail.
package main

import (
	"context"
	"errors"
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
  store stats                how much the store holds
  store check                look for faults in it; exit status 1 if there are any
  store compact              give back the space of what was deleted
  store export               write all it holds as JSON lines
  store import               read that into a store that is empty

Example: ruapost-reporter show example.com`

func main() { daemon.Command("ruapost-reporter", usage, run) }

// tools is what the commands work with.
type tools struct {
	cfg      *config.Config
	store    *bboltstore.Store
	reporter *reporting.Reporter
}

type action func(ctx context.Context, t *tools) error

func run(ctx context.Context, cfg *config.Config, args []string) error {
	if len(args) == 0 {
		args = []string{"send"}
	}
	act, err := command(args)
	if err != nil {
		return err
	}
	dns, err := resolver.New(resolver.Config{Servers: cfg.DNS.Servers})
	if err != nil {
		return err
	}
	defer dns.Close()
	suffixes, err := cfg.Milter.Suffixes()
	if err != nil {
		return err
	}
	store, err := bboltstore.Open(cfg.Store.Path)
	if err != nil {
		return err
	}
	defer store.Close()
	return act(ctx, &tools{cfg, store, &reporting.Reporter{
		Store:    store,
		Resolver: dns,
		Suffixes: suffixes,
		OrgName:  cfg.OrgName,
		Domain:   cfg.ReportDomain,
		From:     cfg.Reporter.From,
		Format:   dmarc.Format(cfg.Reporter.Format),
		Sendmail: cfg.Reporter.Sendmail,
		Outbox:   cfg.Reporter.Outbox,
	}})
}

// command returns what the arguments ask for.
func command(args []string) (action, error) {
	switch args[0] {
	case "send":
		return sendCommand(args[1:])
	case "list":
		if len(args) == 1 {
			return func(ctx context.Context, t *tools) error { return t.reporter.List(ctx, os.Stdout) }, nil
		}
	case "show":
		if len(args) == 2 {
			return showCommand(args[1])
		}
	case "store":
		if len(args) == 2 && storeCommands[args[1]] != nil {
			return storeCommands[args[1]], nil
		}
	}
	return nil, fmt.Errorf("%w: %q is no command, see -help", daemon.ErrUsage, args)
}

func sendCommand(args []string) (action, error) {
	flags := flag.NewFlagSet("send", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	now := flags.Bool("now", false, "")
	dryRun := flags.Bool("dry-run", false, "")
	if err := flags.Parse(args); err != nil {
		return nil, fmt.Errorf("%w: send: %w", daemon.ErrUsage, err)
	}
	switch {
	case flags.NArg() > 0:
		return nil, fmt.Errorf("%w: send: unexpected argument %q", daemon.ErrUsage, flags.Arg(0))
	case *dryRun:
		return func(ctx context.Context, t *tools) error {
			// What would keep a run from sending keeps its rehearsal from passing.
			return errors.Join(t.loadKey(), t.reporter.DryRun(ctx, os.Stdout, *now))
		}, nil
	}
	return func(ctx context.Context, t *tools) error { return send(ctx, t, *now) }, nil
}

// send loads the key, sends, and tidies up.
func send(ctx context.Context, t *tools, now bool) error {
	if err := t.loadKey(); err != nil {
		return err
	}
	return errors.Join(t.reporter.Send(ctx, now), t.store.Tidy(ctx))
}

// loadKey loads the key that reports are signed with, if there is one.
func (t *tools) loadKey() (err error) {
	dkim := t.cfg.DKIM
	if dkim.Domain == "" {
		return nil
	}
	if t.reporter.Signer, err = compose.LoadSigner(dkim.Domain, dkim.Selector, dkim.KeyFile); err != nil {
		return err
	}
	if warning := t.reporter.Signer.Warning(); warning != "" {
		slog.Warn("dkim: " + warning)
	}
	return nil
}

func showCommand(name string) (action, error) {
	domain, err := ruapost.ParseDomain(name)
	if err != nil {
		return nil, fmt.Errorf("%w: show: %w", daemon.ErrUsage, err)
	}
	return func(ctx context.Context, t *tools) error { return t.reporter.Show(ctx, os.Stdout, domain) }, nil
}
