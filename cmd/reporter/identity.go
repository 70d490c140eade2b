package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
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

// checkIdentity tells whether receivers take the reports of this host, and what the DNS
// should have for that. Its error is daemon.ErrFound if there are faults.
func checkIdentity(ctx context.Context, cfg *config.Config, asJSON bool, w io.Writer) error {
	dns, err := resolver.New(resolver.Config{Servers: cfg.DNS.Servers})
	if err != nil {
		return err
	}
	defer dns.Close()
	findings, records := check.Reporter(ctx, cfg, check.Host{Resolver: dns, SMTP: "localhost:25"})
	if asJSON {
		err = writeJSON(w, struct {
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

func dkimKeygenCommand(args []string) (action, error) {
	var domain, selector string
	operands, err := parse("dkim-keygen", args, 1, 1, func(flags *flag.FlagSet) {
		flags.StringVar(&domain, "domain", "", "")
		flags.StringVar(&selector, "selector", "", "")
	})
	return func(_ context.Context, t *tools) error {
		return keygen(t.cfg, operands[0], domain, selector, os.Stdout)
	}, err
}

// keygen makes a key for [dkim] in a new file, and tells what to do with it. An empty domain
// is that of reporter.from, an empty selector a new one.
func keygen(cfg *config.Config, file, domain, selector string, w io.Writer) error {
	from := cfg.Reporter.From
	domain = cmp.Or(domain, from[strings.LastIndexByte(from, '@')+1:])
	// Not the selector in use: that of the old key has to stay in the DNS for some days.
	selector = cmp.Or(selector, "ruapost"+time.Now().UTC().Format("20060102"))
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	key, err := compose.GenerateKey()
	if err != nil {
		return err
	}
	switch err := writeKey(file, key); {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("dkim-keygen: %w, and is never overwritten; name a new one", err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("dkim-keygen: %w; make the folder first: mkdir -p %s", err, filepath.Dir(file))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("dkim-keygen: %w; run it as root", err)
	case err != nil:
		return fmt.Errorf("dkim-keygen: %w", err)
	}
	signer, err := compose.LoadSigner(domain, selector, file)
	if err != nil {
		return errors.Join(err, os.Remove(file)) // it is of no use
	}
	_, err = fmt.Fprintf(w, "; %s has the new key. Publish:\n\n%s\n\n; When that is in the DNS, in ruapost.toml, where [dkim] stands already:\n\n"+
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
