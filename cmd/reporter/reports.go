package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"

	"ruapost"
	"ruapost/daemon"
	"ruapost/internal/mailtouri"
	"ruapost/reporting"
)

// defaultEntries is how many entries are listed if nobody asks for another number.
const defaultEntries = 200

// viewOf reads the arguments of a command that lists entries.
func viewOf(name string, args []string) (v reporting.View, err error) {
	operands, err := parse(name, args, 0, 1, func(flags *flag.FlagSet) {
		flags.BoolVar(&v.JSON, "json", false, "")
		flags.IntVar(&v.Limit, "n", defaultEntries, "")
	})
	if err != nil {
		return v, err
	}
	if v.Limit < 0 {
		return v, fmt.Errorf("%w: %s -n: %d is no number of entries", daemon.ErrUsage, name, v.Limit)
	}
	if len(operands) == 0 {
		return v, nil
	}
	if id := strings.ToLower(operands[0]); reporting.IsReportID(id) {
		v.ReportID = id
		return v, nil
	}
	v.Domain, err = domainOf(name, operands[0])
	return v, err
}

func domainOf(name, operand string) (string, error) {
	domain, err := ruapost.ParseDomain(operand)
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w", daemon.ErrUsage, name, err)
	}
	return domain, nil
}

func listCommand(args []string) (action, error) {
	v, err := viewOf("list", args)
	return needStore(func(ctx context.Context, t *tools) error { return t.reporter.List(ctx, os.Stdout, v) }), err
}

func historyCommand(args []string) (action, error) {
	v, err := viewOf("history", args)
	return needStore(func(ctx context.Context, t *tools) error { return t.reporter.History(ctx, os.Stdout, v) }), err
}

func showCommand(args []string) (action, error) {
	var how reporting.Contents
	operands, err := parse("show", args, 1, 1, func(flags *flag.FlagSet) {
		flags.BoolVar(&how.Mails, "mail", false, "")
		flags.BoolVar(&how.JSON, "json", false, "")
	})
	if err != nil {
		return nil, err
	}
	what := strings.ToLower(operands[0])
	if !reporting.IsReportID(what) {
		if what, err = domainOf("show", operands[0]); err != nil {
			return nil, err
		}
	}
	return needStore(func(ctx context.Context, t *tools) error { return t.reporter.Show(ctx, os.Stdout, what, how) }), nil
}

// aboutDomain returns the domain that is the only operand of a command.
func aboutDomain(name string, args []string) (string, error) {
	operands, err := parse(name, args, 1, 1, nil)
	if err != nil {
		return "", err
	}
	return domainOf(name, operands[0])
}

func previewCommand(args []string) (action, error) {
	domain, err := aboutDomain("preview", args)
	return needStore(func(ctx context.Context, t *tools) error { return t.reporter.Preview(ctx, os.Stdout, domain) }), err
}

func forgetCommand(args []string) (action, error) {
	domain, err := aboutDomain("forget", args)
	return needStore(func(ctx context.Context, t *tools) error { return forget(ctx, t, domain) }), err
}

func forget(ctx context.Context, t *tools, domain string) error {
	recorded, reports, err := t.reporter.Forget(ctx, domain)
	if recorded > 0 || reports > 0 {
		fmt.Printf("Forgotten about %s: %d recorded messages and sessions, %d reports.\n", domain, recorded, reports)
		return err
	}
	if err == nil {
		err = fmt.Errorf("%s: %w", domain, reporting.ErrNothing)
	}
	return err
}

func resendCommand(args []string) (action, error) {
	operands, err := parse("resend", args, 1, 2, nil)
	if err != nil {
		return nil, err
	}
	id := strings.ToLower(operands[0])
	if !reporting.IsReportID(id) {
		return nil, fmt.Errorf("%w: resend: %q is no report ID; list and history have them", daemon.ErrUsage, ruapost.Clean(id, 64))
	}
	address := ""
	if len(operands) > 1 {
		if address, err = recipientOf(operands[1]); err != nil {
			return nil, err
		}
	}
	return needStore(func(ctx context.Context, t *tools) error { return resend(ctx, t, id, address) }), nil
}

// recipientOf returns a recipient as reports have them.
func recipientOf(operand string) (string, error) {
	if strings.HasPrefix(operand, "https://") {
		return operand, nil
	}
	address, err := mailtouri.ParseAddress(operand)
	if err != nil {
		return "", fmt.Errorf("%w: resend: %w", daemon.ErrUsage, err)
	}
	return address, nil
}

func resend(ctx context.Context, t *tools, id, address string) error {
	rep, err := t.reporter.FindReport(ctx, id)
	if err != nil {
		return err
	}
	if err := t.reporter.Resend(ctx, rep.ID, address); err != nil {
		return err
	}
	_, err = fmt.Printf("Report %s goes out once more with the next run; at once:\n    %s send --domain %s\n", rep.ID, program, rep.Domain)
	return err
}

// checkCommand is check.
func checkCommand(args []string) (action, error) {
	var asJSON bool
	_, err := parse("check", args, 0, 0, func(flags *flag.FlagSet) { flags.BoolVar(&asJSON, "json", false, "") })
	return func(ctx context.Context, t *tools) error { return checkIdentity(ctx, t.cfg, asJSON, os.Stdout) }, err
}
