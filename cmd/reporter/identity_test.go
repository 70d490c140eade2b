package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ruapost/check"
	"ruapost/compose"
	"ruapost/config"
	"ruapost/daemon"
	"ruapost/internal/dnstest"
)

func TestKeygen(t *testing.T) {
	cfg := config.Default()
	cfg.Reporter.From = "noreply@reports.example.org"
	file := filepath.Join(t.TempDir(), "dkim.pem")
	var out bytes.Buffer
	if err := keygen(cfg, file, "", "s1", &out); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v; want mode 0640", info.Mode(), err)
	}
	signer, err := compose.LoadSigner("reports.example.org", "s1", file)
	if err != nil || signer.Warning() != "" {
		t.Fatal(err, signer.Warning())
	}
	zone, settings, ok := strings.Cut(out.String(), "\n[dkim]\n")
	if want := strings.Join(check.ZoneLines(signer.Name(), signer.Record()), "\n"); !ok || !strings.Contains(zone, want) {
		t.Errorf("printed:\n%s\nwant in it:\n%s", out.String(), want)
	}
	// What it prints can be pasted.
	toml := filepath.Join(t.TempDir(), "ruapost.toml")
	if err := os.WriteFile(toml, []byte("[dkim]\n"+settings), 0o600); err != nil {
		t.Fatal(err)
	}
	read, err := config.Load(toml)
	if want := (config.DKIM{Domain: "reports.example.org", Selector: "s1", KeyFile: file}); err != nil || read.DKIM != want {
		t.Errorf("%+v, %v; want %+v", read, err, want)
	}

	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := keygen(cfg, file, "", "", &out); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a key is there already: %v", err)
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the key was overwritten, %v", err)
	}
}

func TestKeygenRefuses(t *testing.T) {
	cfg := config.Default()
	file := filepath.Join(t.TempDir(), "dkim.pem")
	for _, args := range [][]string{{}, {file, "x"}, {"-bts", "1", file}} {
		if _, err := dkimKeygenCommand(args); !errors.Is(err, daemon.ErrUsage) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if err := keygen(cfg, file, "a..b", "", &bytes.Buffer{}); err == nil {
		t.Error("a key for a..b was made")
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file is left: %v", err)
	}
}

func TestCheckCommand(t *testing.T) {
	dns, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dns.Close)
	cfg := config.Default()
	cfg.DNS.Servers = []string{dns.Addr}
	cfg.Reporter.From = "noreply@reports.example.org"
	var out bytes.Buffer
	if err := checkIdentity(t.Context(), cfg, false, &out); err != daemon.ErrFound {
		t.Errorf("%v; want that faults were found", err)
	}
	for _, want := range []string{"FAULT    reports.example.org has neither MX records nor an address", "\n_dmarc.reports.example.org. IN TXT \"v=DMARC1; p=none\"\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("not printed: %q\n%s", want, out.String())
		}
	}
	out.Reset()
	if err := checkIdentity(t.Context(), cfg, true, &out); err != daemon.ErrFound {
		t.Errorf("%v; want that faults were found", err)
	}
	var got struct {
		Findings []check.Finding
		Records  []check.Record
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got.Findings) < 5 || len(got.Records) != 2 || got.Records[0].Name == "" {
		t.Errorf("%v: %s", err, out.String())
	}
}
