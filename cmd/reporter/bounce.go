package main

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
)

var errNoMaildir = errors.New("reporter.bounce_maildir is not set")

// bounceCommand takes a bounce. It never ends with a status that Postfix takes for final,
// see daemon.Command: a bounce has no sender who could be told.
func bounceCommand(args []string) (action, error) {
	addresses, err := parse("bounce", args, 0, math.MaxInt, nil)
	if err != nil {
		return nil, err
	}
	return needStore(func(ctx context.Context, t *tools) error {
		quiet()
		if t.cfg.Reporter.BounceMaildir == "" {
			return errNoMaildir
		}
		return t.reporter.Bounce(ctx, os.Stdin, addresses...)
	}), nil
}

// quiet lets only warnings and errors into the log: Postfix would quote the rest in its
// own.
func quiet() {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
}
