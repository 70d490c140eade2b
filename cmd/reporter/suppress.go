package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"ruapost"
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
	operands, err := parse("suppress", args, 1, math.MaxInt, nil)
	if err != nil {
		return nil, err
	}
	return nil, cli.UnknownWord("suppress", operands[0], slices.Values([]string{"list", "add", "remove"}))
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
		before, err := t.store.Suppressions(ctx, strings.ToLower(pattern))
		if err != nil {
			return err
		}
		if err := t.reporter.Suppress(ctx, pattern, until, reason); err != nil {
			return err
		}
		for _, s := range before {
			fmt.Println("This replaces what was there: " + wasSuppressed(&s))
		}
		_, err = fmt.Printf("Nothing is sent to %s %s.\n", pattern, end)
		return err
	}), err
}

// wasSuppressed tells what a suppression says beside its pattern.
func wasSuppressed(s *ruapost.Suppression) string {
	text := "for good"
	if !s.Until.IsZero() {
		text = "until " + s.Until.UTC().Format(time.DateTime) + " UTC"
	}
	if s.Reason != "" {
		text += ", " + s.Reason
	}
	return text
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
			err = fmt.Errorf("%s is not suppressed; see: %s suppress list", pattern, program)
		}
		if err == nil {
			_, err = fmt.Printf("Reports are sent to %s again.\n", pattern)
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
