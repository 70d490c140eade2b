package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"ruapost/check"
	"ruapost/compose"
	"ruapost/config"
	"ruapost/daemon"
	"ruapost/resolver"
)

// checkCommand tells whether receivers take the reports of this host, and what the DNS
// should have for that. Its error is daemon.ErrFound if there are faults.
func checkCommand(ctx context.Context, cfg *config.Config, asJSON bool, w io.Writer) error {
	dns, err := resolver.New(resolver.Config{Servers: cfg.DNS.Servers})
	if err != nil {
		return err
	}
	defer dns.Close()
	findings, records := check.Reporter(ctx, cfg, check.Host{Resolver: dns})
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		err = enc.Encode(struct {
			Findings []check.Finding `json:"findings"`
			Records  []check.Record  `json:"records"`
		}{findings, records})
	} else {
		err = errors.Join(check.Write(w, findings), check.WriteRecords(w, records))
	}
	if err == nil && check.ExitStatus(findings) != 0 {
		err = daemon.ErrFound
	}
	return err
}

// keyGroup is the group that may read a key that root makes: the reporter's.
const keyGroup = "ruapost"

// keygenCommand makes a key for [dkim] in a new file, and tells what to do with it.
func keygenCommand(cfg *config.Config, args []string, w io.Writer) error {
	from := cfg.Reporter.From
	// Not the selector in use: that of the old key has to stay in the DNS for some days.
	domain, selector := from[strings.LastIndexByte(from, '@')+1:], "ruapost"+time.Now().UTC().Format("20060102")
	operands, err := parse("dkim-keygen", args, 1, 1, func(flags *flag.FlagSet) {
		flags.StringVar(&domain, "domain", domain, "")
		flags.StringVar(&selector, "selector", selector, "")
	})
	if err != nil {
		return err
	}
	file, err := filepath.Abs(operands[0])
	if err != nil {
		return err
	}
	key, err := compose.GenerateKey()
	if err != nil {
		return err
	}
	if err := writeKey(file, key); err != nil {
		return fmt.Errorf("dkim-keygen: %w", err)
	}
	signer, err := compose.LoadSigner(domain, selector, file)
	if err != nil {
		return errors.Join(err, os.Remove(file)) // it is of no use
	}
	_, err = fmt.Fprintf(w, "; %s has the new key. Publish:\n\n%s\n\n; When that is in the DNS, in ruapost.toml:\n\n"+
		"[dkim]\ndomain = %q\nselector = %q\nkey_file = %q\n", file, strings.Join(check.ZoneLines(signer.Name(), signer.Record()), "\n"), signer.Domain, signer.Selector, file)
	return err
}

// writeKey writes a key into a new file that its owner may read and, if that is root,
// the reporter.
func writeKey(file string, key []byte) (err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			os.Remove(file)
		}
	}()
	if os.Geteuid() == 0 {
		if err := giveToGroup(f); err != nil {
			return err
		}
	}
	if err := f.Chmod(0o640); err != nil { // whatever the umask
		return err
	}
	if _, err := f.Write(key); err != nil {
		return err
	}
	return f.Sync()
}

// giveToGroup gives a file to the reporter's group, if there is one.
func giveToGroup(f *os.File) error {
	group, err := user.LookupGroup(keyGroup)
	if err != nil {
		return nil // not installed yet: check tells if the reporter may not read the key
	}
	gid, err := strconv.Atoi(group.Gid)
	if err != nil {
		return err
	}
	return f.Chown(-1, gid)
}
