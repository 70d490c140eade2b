package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ruapost/bboltstore"
	"ruapost/config"
	"ruapost/reporting"
)

// A run that systemd stops is no fault that anybody must look at.
func TestStopIsNoFault(t *testing.T) {
	for _, c := range []struct {
		fault error
		want  string
	}{
		{errors.Join(fmt.Errorf("reports: %w", context.Canceled), context.Canceled), "ruapost_reporter_last_run_success 1\n"},
		{errors.Join(errors.New("the disk is full"), context.Canceled), "ruapost_reporter_last_run_success 0\n"},
	} {
		dir := t.TempDir()
		store, err := bboltstore.Open(filepath.Join(dir, "db"))
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		cfg := config.Default()
		cfg.Reporter.Textfile = filepath.Join(dir, "prom")
		err = (&tools{cfg, store, &reporting.Reporter{Store: store}}).ended(t.Context(), time.Now(), nil, reporting.Selection{}, c.fault)
		text, errRead := os.ReadFile(cfg.Reporter.Textfile)
		if err != nil || errRead != nil || !strings.Contains(string(text), c.want) {
			t.Errorf("%v: %v, %v, want %q in\n%s", c.fault, err, errRead, c.want, text)
		}
	}
}

// What could not be sent must not keep the store from being tidied up: it would grow for
// as long as one report fails.
func TestSendTidiesUpAfterAFault(t *testing.T) {
	dir := t.TempDir()
	store, err := bboltstore.Open(filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	long := time.Now().AddDate(-1, 0, 0)
	if err := store.RecordDestinations(t.Context(), []string{"example.com"}, long); err != nil {
		t.Fatal(err)
	}
	r := &reporting.Reporter{Store: store, Outbox: dir, Sendmail: []string{filepath.Join(dir, "no-sendmail")}}
	if err := send(context.Background(), &tools{&config.Config{}, store, r}, reporting.Selection{}); err == nil {
		t.Error("no error")
	}
	if st, err := store.Stats(t.Context()); err != nil || st.KnownDomains != 0 {
		t.Errorf("a domain that is not known any more is still there: %+v, %v", st, err)
	}
}
