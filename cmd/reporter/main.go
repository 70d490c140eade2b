// Command ruapost-reporter turns what the daemons recorded into DMARC aggregate
// reports and TLS reports and mails them through sendmail.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	"ruapost/bboltstore"
	"ruapost/config"
	"ruapost/daemon"
	"ruapost/dmarc"
	"ruapost/reporting"
	"ruapost/resolver"
)

func main() { daemon.Command(program, usage, "bounce", takesBack, run) }

// tools is what the commands work with. Store and reporter are there in what needStore
// returns.
type tools struct {
	cfg      *config.Config
	store    *bboltstore.Store
	reporter *reporting.Reporter
}

type action func(ctx context.Context, t *tools) error

func run(ctx context.Context, cfg *config.Config, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("%w: no command", daemon.ErrUsage)
	}
	act, err := command(args)
	asked, isHelp := errors.AsType[*daemon.HelpError](err)
	switch {
	case isHelp:
		return cli.Print(os.Stdout, asked.Command)
	case err != nil && help[args[0]].Syntax != "":
		return fmt.Errorf("%w\nsee: %s %s -help", err, program, args[0])
	case err != nil:
		return err
	}
	return advised(cfg, act(ctx, &tools{cfg: cfg}))
}

// command returns what the arguments ask for. The error wraps daemon.ErrUsage, or is a
// daemon.HelpError if they ask for help.
func command(args []string) (action, error) {
	commands := map[string]func(args []string) (action, error){
		"send":        sendCommand,
		"list":        listCommand,
		"show":        showCommand,
		"preview":     previewCommand,
		"history":     historyCommand,
		"resend":      resendCommand,
		"forget":      forgetCommand,
		"suppress":    suppressCommand,
		"bounce":      bounceCommand,
		"setup":       setupCommand,
		"check":       checkCommand,
		"dkim-keygen": dkimKeygenCommand,
		"store":       storeCommand,
		"web":         webCommand,
	}
	parseArgs, ok := commands[args[0]]
	if !ok {
		return nil, cli.Unknown(args[0])
	}
	return parseArgs(args[1:])
}

// parse reads the arguments of a command, see daemon.Commands.
func parse(name string, args []string, least, most int, define func(*flag.FlagSet)) (operands []string, err error) {
	return cli.Parse(name, args, least, most, define)
}

// needStore returns an action that has the store and the reporter.
func needStore(act action) action {
	return func(ctx context.Context, t *tools) (err error) {
		if err := daemon.BecomeOwner(t.cfg.Store.Path); err != nil {
			return err
		}
		dns, err := resolver.New(resolver.Config{Servers: t.cfg.DNS.Servers})
		if err != nil {
			return err
		}
		defer dns.Close()
		suffixes, err := t.cfg.Milter.Suffixes()
		if err != nil {
			return err
		}
		store, err := bboltstore.Open(t.cfg.Store.Path)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Close()) }()
		t.store, t.reporter = store, newReporter(t.cfg)
		t.reporter.Store, t.reporter.Resolver, t.reporter.Suffixes = store, dns, suffixes
		t.reporter.HTTPS = &reporting.Poster{
			Resolver: dns, Unverified: t.cfg.Reporter.HTTPSUnverified, AllowNetworks: t.cfg.Reporter.AllowNetworks,
		}
		return act(ctx, t)
	}
}

// newReporter returns a reporter as it is configured.
func newReporter(cfg *config.Config) *reporting.Reporter {
	r := &cfg.Reporter
	return &reporting.Reporter{
		OrgName: cfg.OrgName, Domain: cfg.ReportDomain, From: r.From,
		Format: dmarc.Format(r.Format), Legacy: names(r.LegacyDomains),
		Sendmail: r.Sendmail, Outbox: r.Outbox,
		Keep: r.Keep, Spread: r.Spread,
		MaxRecipients: r.MaxRecipients, MaxReportSize: r.MaxReportSize,
		TLSFailuresOnly:   r.TLSFailuresOnly,
		MaxPerRun:         r.MaxReportsPerRun,
		MaxPerDay:         r.MaxReportsPerDay,
		MaxPerDestination: r.MaxPerDestinationDomain,
		ExcludedDomains:   names(r.ExcludeDomains), OnlyDomains: names(r.OnlyDomains), ExcludedRecipients: names(r.ExcludeRecipients),
		BounceMaildir: r.BounceMaildir, BounceDelimiter: r.BounceDelimiter,
	}
}

// names returns nil for an empty list: reporting tells that from one that has no name.
func names(list config.Domains) reporting.Names {
	if len(list) == 0 {
		return nil
	}
	return list
}
