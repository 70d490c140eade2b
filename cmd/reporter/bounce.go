package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"time"
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
		suppressed, err := t.reporter.Bounce(ctx, os.Stdin, addresses...)
		if suppressed != nil {
			// Postfix logs it. If it cannot be written, that is no reason to take the bounce again.
			fmt.Printf("%s is suppressed until %s\n", suppressed.Pattern, suppressed.Until.UTC().Format(time.DateOnly))
		}
		return err
	}), nil
}

// quiet lets only warnings and errors into the log: Postfix would quote the rest in its
// own.
func quiet() {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
}
