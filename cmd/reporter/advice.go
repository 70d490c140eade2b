package main

import (
	"errors"
	"fmt"

	"ruapost"
	"ruapost/config"
	"ruapost/reporting"
)

// advised returns the error of a command with what to do about it, where daemon.Advise
// does not know.
func advised(cfg *config.Config, err error) error {
	if errors.Is(err, reporting.ErrBusy) {
		return fmt.Errorf("%w: the timer's run is sending, which may take %s; \"systemctl stop ruapost-reporter\" ends it "+
			"between two mails and loses nothing, then repeat this", err, max(cfg.Reporter.Spread, 0))
	}
	if errors.Is(err, ruapost.ErrNoReport) {
		return fmt.Errorf("%w; '%s history' shows those that there are", err, program)
	}
	if errors.Is(err, reporting.ErrNothing) {
		return fmt.Errorf("%w; '%s list' shows about whom something is", err, program)
	}
	return err
}
