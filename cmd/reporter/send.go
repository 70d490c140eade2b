package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"time"

	"ruapost"
	"ruapost/compose"
	"ruapost/daemon"
	"ruapost/reporting"
)

func sendCommand(args []string) (action, error) {
	var what reporting.Selection
	var domain string
	var dryRun, atOnce bool
	_, err := parse("send", args, 0, 0, func(flags *flag.FlagSet) {
		flags.BoolVar(&what.Open, "now", false, "")
		flags.StringVar(&domain, "domain", "", "")
		flags.BoolVar(&atOnce, "no-spread", false, "")
		flags.BoolVar(&dryRun, "dry-run", false, "")
	})
	if err != nil {
		return nil, err
	}
	if domain != "" {
		if what.Domain, err = ruapost.ParseDomain(domain); err != nil {
			return nil, fmt.Errorf("%w: send --domain: %w", daemon.ErrUsage, err)
		}
	}
	if dryRun {
		return needStore(func(ctx context.Context, t *tools) error {
			// What would keep a run from sending keeps its rehearsal from passing.
			return errors.Join(t.loadKey(), t.reporter.DryRun(ctx, os.Stdout, what))
		}), nil
	}
	return needStore(func(ctx context.Context, t *tools) error {
		if atOnce || what.Open || what.Domain != "" {
			t.reporter.Spread = 0
		}
		return send(ctx, t, what)
	}), nil
}

// send loads the key, sends, and tidies up.
func send(ctx context.Context, t *tools, what reporting.Selection) error {
	began := time.Now()
	before, err := t.store.Counts(ctx)
	if err != nil {
		return err
	}
	if daemon.IsTerminal(os.Stderr) {
		p := showProgress(os.Stderr, t.reporter.Spread)
		t.reporter.Progress = p.show
		defer p.end()
	}
	if err = t.loadKey(); err == nil {
		err = t.reporter.Send(ctx, what)
	}
	if !errors.Is(err, reporting.ErrBusy) {
		err = errors.Join(err, t.ended(context.WithoutCancel(ctx), began, before, what, err))
	}
	return errors.Join(err, t.store.Tidy(ctx))
}

// ended says so if a run found nothing to do, and writes the counters where the
// configuration wants them, unless the run was about one domain only: that does not show
// that the timer works. A stop alone is no fault of the run that ended with it.
func (t *tools) ended(ctx context.Context, began time.Time, before map[string]uint64, what reporting.Selection, fault error) error {
	counts, err := t.store.Counts(ctx)
	if err != nil {
		return err
	}
	if fault == nil && maps.Equal(before, counts) {
		slog.Info("nothing is due")
	}
	if t.cfg.Reporter.Textfile == "" || what.Domain != "" {
		return nil
	}
	e := &reporting.Ended{Began: began, Ended: time.Now(), OK: fault == nil || daemon.IsStop(fault), Counts: counts}
	if e.Suppressions, err = t.reporter.Suppressed(ctx); err != nil {
		return err
	}
	if e.Backlog, err = t.reporter.Backlog(ctx); err != nil {
		return err
	}
	stats, err := t.store.Stats(ctx)
	if err != nil {
		return err
	}
	e.StoreUsed = stats.Used()
	return reporting.WriteTextfile(t.cfg.Reporter.Textfile, e)
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
