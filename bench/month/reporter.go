package main

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ruapost/bboltstore"
	"ruapost/config"
	"ruapost/dmarc"
	"ruapost/reporting"
)

// newReporter is the reporter as its program makes it, with the defaults of the
// configuration file and the store that it shares. It does not spread what it sends.
func (w *world) newReporter() (*reporting.Reporter, *bboltstore.Store, error) {
	store, err := bboltstore.Open(filepath.Join(w.dir, "db"))
	if err != nil {
		return nil, nil, err
	}
	now := w.now
	defaults := config.Default().Reporter
	return &reporting.Reporter{
		Store: store, Resolver: w.res,
		OrgName: us, Domain: us, From: reportFrom,
		Format: dmarc.RFC9990, Sendmail: []string{w.sendmail(), "-i"}, Outbox: filepath.Join(w.dir, "outbox"),
		Signer:        w.signer,
		Keep:          defaults.Keep,
		MaxRecipients: defaults.MaxRecipients, MaxReportSize: defaults.MaxReportSize,
		MaxPerRun: defaults.MaxReportsPerRun, MaxPerDay: defaults.MaxReportsPerDay, MaxPerDestination: defaults.MaxPerDestinationDomain,
		BounceMaildir: filepath.Join(w.dir, "bounces"), BounceDelimiter: defaults.BounceDelimiter,
		Now: func() time.Time { return now },
	}, store, nil
}

// report is what the timer does.
func (w *world) report(ctx context.Context) error {
	r, store, err := w.newReporter()
	if err != nil {
		return err
	}
	defer store.Close()
	busy := filepath.Join(w.dir, "busy")
	if w.today() == w.busy && w.now.Hour() < 5 {
		if err := os.WriteFile(busy, nil, 0o600); err != nil {
			return err
		}
		defer os.Remove(busy)
	}
	run, end := context.WithCancel(ctx)
	defer end()
	r.Progress = func(what string, done, all int) {
		if w.today() == w.ended && what == "sending" && done > all/2 {
			end()
		}
	}
	err = r.Send(run, reporting.Selection{})
	if ctx.Err() == nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, store.Tidy(ctx))
}

// audit notes which addresses are suppressed, and what the reporter has counted.
func (w *world) audit(ctx context.Context) error {
	list, err := w.store.Suppressions(ctx)
	if err != nil {
		return err
	}
	active := 0
	for _, s := range list {
		address, _, _ := strings.Cut(s.Pattern, " about ")
		if b := w.boxes[address]; b == nil || !b.fate.dead() {
			w.ledger.wrongly[s.Pattern] = true
		}
		if s.Active(w.now) {
			active++
		}
	}
	w.ledger.suppressed[w.today()] = active
	counts, err := w.store.Counts(ctx)
	maps.Copy(w.ledger.counts, counts)
	return err
}

// bounce gives the reporter a message that came to an envelope sender of its own, as the
// command that Postfix runs for these does.
func (w *world) bounce(ctx context.Context, to string, message []byte) error {
	r, store, err := w.newReporter()
	if err != nil {
		return err
	}
	_, err = r.Bounce(ctx, bytes.NewReader(message), to)
	return errors.Join(err, store.Close())
}
