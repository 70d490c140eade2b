package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"ruapost"
	"ruapost/bboltstore"
	"ruapost/check"
	"ruapost/config"
	"ruapost/daemon"
	"ruapost/outbound"
	"ruapost/resolver"
)

const program = "ruapost-tlspolicy"

const usage = `[COMMAND]

  (no command)           serve Postfix, as systemd starts it
  query [-json] DOMAIN   what Postfix is told about DOMAIN, and why
  dump [-json]           the MTA-STS policies that are kept
  purge DOMAIN           forget the MTA-STS policy of DOMAIN
  check                  look for faults in the setup of this host

Example: ruapost-tlspolicy query example.com      COMMAND -help says more.`

// cli reads the arguments of the commands.
var cli = daemon.Commands{Program: program, Help: help}

// help is what COMMAND -help says. It fits a screen, tells of every option and has an
// example.
var help = map[string]struct{ Syntax, Text string }{
	"query": {"query [-json] DOMAIN", `Tell what Postfix is told about a domain by the configuration as it is in the
file, and all that leads to it: the DNS, the MTA-STS policy, the store. The
daemon may give an older answer for up to fifteen minutes.

  -json  a JSON object

Example: ruapost-tlspolicy query example.com`},
	"dump": {"dump [-json]", `List the MTA-STS policies that are kept, with the time they were fetched and
when they expire.

  -json  a JSON object for each

Example: ruapost-tlspolicy dump`},
	"purge": {"purge DOMAIN", `Forget the MTA-STS policy of a domain, as when its owner has mended it and
cannot wait. A running daemon notices that within ` + purgeTime + `, and fetches
the policy again when mail goes there.

Example: ruapost-tlspolicy purge example.com`},
	"check": {"check", `Look at Postfix's configuration, the milter, the sockets, the resolver and the
certificates on this host, and say how to mend what is not as it should be.
Nothing is changed. The exit status is 1 if there are faults.

Example: ruapost-tlspolicy check`},
}

// purgeTime is how long a running daemon takes to notice a purge.
const purgeTime = "ten seconds"

// terminal carries out a command.
func terminal(ctx context.Context, cfg *config.Config, args []string) error {
	name := args[0]
	if help[name].Syntax == "" {
		return cli.Unknown(name)
	}
	n := strings.Count(help[name].Syntax, "DOMAIN")
	var asJSON bool
	operands, err := cli.Parse(name, args[1:], n, n, func(flags *flag.FlagSet) {
		if name == "query" || name == "dump" {
			flags.BoolVar(&asJSON, "json", false, "")
		}
	})
	if asked, ok := errors.AsType[*daemon.HelpError](err); ok {
		return cli.Print(os.Stdout, asked.Command)
	} else if err != nil {
		return err
	}
	switch name {
	case "query":
		return query(ctx, cfg, operands[0], asJSON)
	case "dump":
		return dump(ctx, cfg, asJSON)
	case "purge":
		return purge(ctx, cfg, operands[0])
	default:
		return checkSetup(ctx, cfg)
	}
}

// query explains the answer about a domain as this process finds it: from the DNS, the
// policy host, and the policies that are kept if it may read them.
func query(ctx context.Context, cfg *config.Config, domain string, asJSON bool) error {
	dns, err := resolver.New(resolver.Config{Servers: cfg.DNS.Servers})
	if err != nil {
		return err
	}
	defer dns.Close()
	var kept outbound.PolicyStore
	if store, err := openStore(cfg); err != nil {
		fmt.Fprintf(os.Stderr, "The policies that are kept cannot be read, so this may not be what the daemon answers: %v\n", daemon.Advise(cfg, err))
	} else {
		defer store.Close()
		kept = outbound.ReadOnly{PolicyStore: store}
	}
	policies := outbound.NewPolicies(dns, fetcher(cfg, dns), kept, settings(cfg))
	defer policies.Close()
	e, err := policies.Explain(ctx, domain, dns)
	if errors.Is(err, ruapost.ErrDomain) {
		fmt.Printf("Postfix gets NOTFOUND, and smtp_tls_security_level decides, as this is %v.\n", err)
		return nil
	} else if err != nil {
		return err
	}
	if asJSON {
		return printJSON(e)
	}
	_, err = e.WriteTo(os.Stdout)
	return err
}

// openStore opens the store only if it is there: a command for the terminal makes none.
func openStore(cfg *config.Config) (*bboltstore.Store, error) {
	if err := daemon.BecomeOwner(cfg.Store.Path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(cfg.Store.Path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no store at %s; ruapost-tlspolicy makes it when it is started; if it runs, it has another configuration (-config)", cfg.Store.Path)
	} else if err != nil {
		return nil, err
	}
	f.Close()
	return bboltstore.Open(cfg.Store.Path)
}

// dump lists the policies that are kept, with a store that is missing as an error.
func dump(ctx context.Context, cfg *config.Config, asJSON bool) error {
	const chunk = 200
	store, err := openStore(cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	for after := ""; ; {
		policies, err := store.STSPolicies(ctx, after, chunk)
		if err != nil || len(policies) == 0 {
			return err
		}
		for i := range policies {
			p := &policies[i]
			if after = p.Domain; asJSON {
				err = printJSON(p)
			} else {
				_, err = fmt.Printf("%s mode=%s mx=%v id=%s fetched=%s expires=%s used=%s\n", p.Domain, p.Mode, p.MX, p.ID,
					p.Fetched.UTC().Format(time.RFC3339), p.Expires.UTC().Format(time.RFC3339), p.Used.UTC().Format(time.DateOnly))
			}
			if err != nil {
				return err
			}
		}
	}
}

func purge(ctx context.Context, cfg *config.Config, name string) error {
	domain, err := ruapost.ParseDomain(name)
	if err != nil {
		return fmt.Errorf("%w: purge: %w", daemon.ErrUsage, err)
	}
	store, err := openStore(cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	n, err := store.DeleteSTSPolicies(ctx, []string{domain})
	switch {
	case err != nil:
		return err
	case n == 0:
		return fmt.Errorf("no MTA-STS policy of %s is kept; see \"ruapost-tlspolicy dump\"", domain)
	}
	fmt.Printf("The MTA-STS policy of %s is forgotten. A running daemon notices that within %s,\n"+
		"and fetches the policy again when mail goes there.\n", domain, purgeTime)
	return nil
}

func checkSetup(ctx context.Context, cfg *config.Config) error {
	findings := check.TLSPolicy(ctx, cfg, check.Host{Ask: check.AskServers})
	if err := check.Write(os.Stdout, findings); err != nil {
		return err
	}
	if check.ExitStatus(findings) != 0 {
		return daemon.ErrFound
	}
	return nil
}

func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
