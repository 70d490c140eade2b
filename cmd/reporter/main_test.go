package main

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"ruapost/bboltstore"
	"ruapost/config"
	"ruapost/reporting"
)

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
