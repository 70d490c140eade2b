package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
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

const usage = `[COMMAND]

  (no command)           serve Postfix
  query [-json] DOMAIN   what Postfix is told about DOMAIN, and why
  dump [-json]           the MTA-STS policies that are kept
  purge DOMAIN           forget the MTA-STS policy of DOMAIN
  check                  look for faults in the setup of this host, and say how to mend
                         them; exit status 1 if there are any

Example: ruapost-tlspolicy query example.com`

// operands are the commands with what follows them, options first.
var operands = map[string]string{
	"query": "query [-json] DOMAIN",
	"dump":  "dump [-json]",
	"purge": "purge DOMAIN",
	"check": "check",
}

// purgeTime is how long a running daemon takes to notice a purge.
const purgeTime = "ten seconds"

// terminal carries out a command.
func terminal(ctx context.Context, cfg *config.Config, args []string) error {
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var asJSON bool
	if args[0] == "query" || args[0] == "dump" {
		flags.BoolVar(&asJSON, "json", false, "")
	}
	if err := flags.Parse(args[1:]); errors.Is(err, flag.ErrHelp) {
		fmt.Printf("usage: ruapost-tlspolicy [-config FILE] %s\n", usage)
		return nil
	} else if err != nil {
		return fmt.Errorf("%w: %s: %w", daemon.ErrUsage, args[0], err)
	}
	if want, ok := operands[args[0]]; ok && flags.NArg() != strings.Count(want, "DOMAIN") {
		return fmt.Errorf("%w: expected: ruapost-tlspolicy %s", daemon.ErrUsage, want)
	}
	switch args[0] {
	case "query":
		return query(ctx, cfg, flags.Arg(0), asJSON)
	case "dump":
		return dump(ctx, cfg, asJSON)
	case "purge":
		return purge(ctx, cfg, flags.Arg(0))
	case "check":
		return checkSetup(ctx, cfg)
	}
	return fmt.Errorf("%w: %q is no command, see -help", daemon.ErrUsage, args)
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
		fmt.Fprintf(os.Stderr, "The policies that are kept cannot be read, so this may not be what the daemon answers: %v\n", err)
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
	f, err := os.OpenFile(cfg.Store.Path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no store at %s: has ruapost-tlspolicy ever run with this configuration?", cfg.Store.Path)
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
	findings := check.TLSPolicy(ctx, cfg, check.Host{Ask: askServers})
	if err := check.Write(os.Stdout, findings); err != nil {
		return err
	}
	if check.ExitStatus(findings) != 0 {
		return daemon.ErrFound
	}
	return nil
}

// askServers tells of each DNS server whether it answers, and validates.
func askServers(ctx context.Context, servers []string) []check.Server {
	dns, err := resolver.New(resolver.Config{Servers: servers})
	if err != nil {
		return []check.Server{{Err: err}}
	}
	defer dns.Close()
	var all []check.Server
	for _, s := range dns.Probe(ctx) {
		all = append(all, check.Server{
			Address: s.Addr.String(), Answered: s.Err == nil, Authentic: s.AD, Trusted: s.Trusted, Err: s.Err,
		})
	}
	return all
}

func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
