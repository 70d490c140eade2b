package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"ruapost/config"
	"ruapost/daemon"
	"ruapost/reporting"
)

func suppressCommand(args []string) (action, error) {
	word := ""
	if len(args) > 0 {
		word = args[0]
	}
	switch word {
	case "list":
		var asJSON bool
		_, err := parse("suppress", args[1:], 0, 0, func(flags *flag.FlagSet) { flags.BoolVar(&asJSON, "json", false, "") })
		return needStore(func(ctx context.Context, t *tools) error {
			return t.reporter.ListSuppressions(ctx, os.Stdout, asJSON)
		}), err
	case "add":
		return suppressAdd(args[1:])
	case "remove":
		return suppressRemove(args[1:])
	}
	_, err := parse("suppress", args, 1, 0, nil) // whatever it is, the error says what is expected
	return nil, err
}

func suppressAdd(args []string) (action, error) {
	var period time.Duration
	var reason string
	operands, err := parse("suppress", args, 1, 1, func(flags *flag.FlagSet) {
		flags.Func("for", "", func(s string) (err error) {
			if period, err = config.ParseTime(s); err == nil && period <= 0 {
				err = errors.New("not a time that lies ahead")
			}
			return err
		})
		flags.StringVar(&reason, "reason", "", "")
	})
	if err != nil {
		return nil, err
	}
	pattern, err := patternOf(operands[0])
	return needStore(func(ctx context.Context, t *tools) error {
		var until time.Time
		end := "until it is removed"
		if period > 0 {
			until = time.Now().UTC().Add(period).Truncate(time.Second)
			end = "until " + until.Format(time.DateTime) + " UTC"
		}
		if err := t.reporter.Suppress(ctx, pattern, until, reason); err != nil {
			return err
		}
		_, err := fmt.Printf("Nothing is sent to %s %s.\n", pattern, end)
		return err
	}), err
}

func suppressRemove(args []string) (action, error) {
	operands, err := parse("suppress", args, 1, 1, nil)
	if err != nil {
		return nil, err
	}
	pattern, err := patternOf(operands[0])
	return needStore(func(ctx context.Context, t *tools) error {
		was, err := t.reporter.Unsuppress(ctx, pattern)
		if err == nil && !was {
			err = fmt.Errorf("%s is not suppressed; see %q", pattern, program+" suppress list")
		}
		return err
	}), err
}

func patternOf(operand string) (string, error) {
	pattern, err := reporting.ParsePattern(operand)
	if err != nil {
		return "", fmt.Errorf("%w: suppress: %w", daemon.ErrUsage, err)
	}
	return pattern, nil
}
