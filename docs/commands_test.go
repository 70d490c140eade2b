package docs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"ruapost"
	"ruapost/bboltstore"
	"ruapost/internal/dnstest"
)

// placeholders are what stands for something in the pages, and what it is here.
var placeholders = []struct{ in, out string }{
	{"DOMAIN", "example.com"},
	{"--domain D", "--domain example.com"},
	{"REPORT-ID", "$REPORT_ID"}, // of a report that was sent
	{"PATTERN", "dmarc@example.com"},
	{"ADDRESS", "dmarc@example.com"},
	{"COMMAND -help", "list -help"},
	{"/etc/ruapost/dkim.pem", "$DIR/dkim.pem"},
	{"/root/ruapost.export", "$DIR/export"},
	{"ruapost-reporter web", "timeout 2 ruapost-reporter web"},
}

// special are commands that do not end with 0, or need something before. All others must.
var special = map[string]struct {
	status int
	before string // a command
	why    string
}{
	"ruapost-reporter check":                               {status: 1, why: "faults: this test has no Postfix and no key"},
	"ruapost-tlspolicy check":                              {status: 1, why: "the same"},
	"ruapost-reporter web":                                 {status: 124, why: "it goes on until it is ended"},
	"ruapost-reporter web -hash USER":                      {status: 2, why: "there is no password on standard input"},
	"ruapost-reporter store import":                        {status: 1, why: "there is nothing on standard input"},
	"ruapost-reporter store import < /root/ruapost.export": {before: "ruapost-reporter store export > $DIR/export && rm $DIR/store.db", why: "the same"},
	"ruapost-reporter suppress remove ADDRESS":             {before: "ruapost-reporter suppress add ADDRESS", why: "the same"},
	"ruapost-reporter suppress remove dmarc@example.net":   {before: "ruapost-reporter suppress add dmarc@example.net", why: "the same"},
	"ruapost-tlspolicy purge example.org":                  {before: "ruapost-reporter forget example.com", why: "its policy is kept, whatever became of reports"},
}

// TestCommands runs each command of ours that stands in a page, in a block or in the text,
// with the real programs, a store that has something of everything, a DNS server, and a
// stand-in for sendmail.
func TestCommands(t *testing.T) {
	t.Parallel()
	w := newWorkshop(t)
	seen := map[string]bool{}
	for _, p := range pages(t) {
		var all []command
		for _, part := range piecesOf(t, p) {
			if part.kind == commands {
				all = append(all, commandsOf(t, part)...)
			}
		}
		for _, s := range p.spans {
			all = append(all, command{p.name, s.line, s.text})
		}
		for _, c := range all {
			text := strings.TrimPrefix(c.Text, "sudo -u ruapost ")
			if !regexp.MustCompile(`^ruapost-(milter|tlspolicy|reporter) `).MatchString(text) || !c.own() || seen[text] {
				continue
			}
			seen[text] = true
			t.Run(text, func(t *testing.T) {
				t.Parallel()
				if err := w.try(t, text); err != nil {
					t.Errorf("%s:%d: %v", c.Page, c.Line, err)
				}
			})
		}
	}
	for text := range special {
		if !seen[text] {
			t.Errorf("special has a command that is on no page: %s", text)
		}
	}
}

// TestSwitchOver does what coming-from.md says, so that nobody gets two reports: days that
// are over are thrown away without a mail, today's rows stay.
func TestSwitchOver(t *testing.T) {
	w := newWorkshop(t)
	dir := w.copy(t)
	var line string
	for _, part := range piecesOf(t, readPage(t, "coming-from.md", "docs/coming-from.md")) {
		if strings.Contains(part.text, "switching-over") {
			line = strings.TrimPrefix(part.text, "[reporter]\n")
		}
	}
	file := filepath.Join(dir, "ruapost.toml")
	text, err := os.ReadFile(file)
	if err != nil || line == "" {
		t.Fatalf("%v, or the page has no such lines", err)
	}
	mails := "sendmail = [\"/bin/sh\", \"-c\", \"touch " + dir + "/mailed\"]"
	with := strings.Replace(string(text), "sendmail = [\"/bin/true\"]", mails+"\n"+line, 1)
	for _, step := range []struct{ config, command, want string }{
		{with, "ruapost-reporter send", "no report is made, its rows are dropped"},
		{string(text), "ruapost-reporter send --dry-run", "Nothing is due"},
		{string(text), "ruapost-reporter preview example.com", "192.0.2.1"},
	} {
		if err := os.WriteFile(file, []byte(step.config), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := w.run(t, dir, step.command); err != nil || !strings.Contains(out, step.want) {
			t.Errorf("%s: %v\n%s", step.command, err, out)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "mailed")); err == nil {
		t.Error("a mail was sent")
	}
}

// workshop is where the commands run: each in a copy of its own.
type workshop struct {
	bin, state string
	reportID   string
	dns        string
}

func newWorkshop(t *testing.T) *workshop {
	t.Helper()
	w := &workshop{bin: t.TempDir(), state: t.TempDir()}
	for _, name := range programs {
		wrapper := fmt.Sprintf("#!/bin/sh\nexec %s/%s -config \"$DIR/ruapost.toml\" \"$@\"\n", bin(t), name)
		if err := os.WriteFile(filepath.Join(w.bin, name), []byte(wrapper), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dns, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dns.Close)
	dns.Add(zones)
	w.dns = dns.Addr
	w.record(t)
	return w
}

// zones are domains that ask for reports.
const zones = `
	_dmarc.example.com.     300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"
	_smtp._tls.example.com. 300 IN TXT "v=TLSRPTv1; rua=mailto:dmarc@example.com"
`

var programs = []string{"ruapost-milter", "ruapost-tlspolicy", "ruapost-reporter"}

// binDir is where the programs are built, which TestMain makes and removes.
var binDir string

// buildAll builds the programs so that they run anywhere.
var buildAll = sync.OnceValue(func() error {
	for _, name := range programs {
		cmd := exec.Command("go", "build", "-o", filepath.Join(binDir, name), "../cmd/"+strings.TrimPrefix(name, "ruapost-"))
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
	}
	return nil
})

// bin returns the folder of the programs.
func bin(t *testing.T) string {
	t.Helper()
	if err := buildAll(); err != nil {
		t.Fatal(err)
	}
	return binDir
}

// record fills a store: a report that was sent, one that is due, one of today, and an
// MTA-STS policy.
func (w *workshop) record(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	open := func() *bboltstore.Store {
		store, err := bboltstore.Open(filepath.Join(w.state, "store.db"))
		if err != nil {
			t.Fatal(err)
		}
		return store
	}
	message := func(store *bboltstore.Store, daysAgo int) error {
		return store.RecordEvaluation(ctx, &ruapost.Evaluation{
			Time: time.Now().AddDate(0, 0, -daysAgo),
			Policy: ruapost.DMARCPolicy{
				Domain: "example.com", P: ruapost.DispositionReject, ADKIM: ruapost.Relaxed, ASPF: ruapost.Relaxed,
				FO: "0", Percent: 100, Discovery: "treewalk",
			},
			Result: ruapost.DMARCResult{
				SourceIP: netip.MustParseAddr("192.0.2.1"), Disposition: ruapost.DispositionPass, AlignedSPF: true,
				HeaderFrom: "example.com", SPF: ruapost.SPFResult{Domain: "example.com", Result: ruapost.AuthPass},
			},
		})
	}
	store := open()
	if err := errors.Join(message(store, 2), store.Close()); err != nil {
		t.Fatal(err)
	}
	dir := w.copy(t)
	if out, err := w.run(t, dir, "ruapost-reporter send"); err != nil {
		t.Fatalf("send: %v\n%s", err, out)
	}
	out, err := w.run(t, dir, "ruapost-reporter history -json")
	id := regexp.MustCompile(`"id":"([0-9a-f]{32})"`).FindStringSubmatch(out)
	if id == nil {
		id = regexp.MustCompile(`"report_id":"([0-9a-f]{32})"`).FindStringSubmatch(out)
	}
	if err != nil || id == nil {
		t.Fatalf("history: %v\n%s", err, out)
	}
	w.state, w.reportID = dir, id[1]
	store = open()
	err = errors.Join(message(store, 1), message(store, 0),
		store.RecordSessions(ctx, []ruapost.Session{{
			Time: time.Now().AddDate(0, 0, -1), Domain: "example.com",
			Policy: ruapost.TLSPolicy{Type: ruapost.PolicyNone, Domain: "example.com"},
		}}))
	for _, domain := range []string{"example.com", "example.org"} {
		err = errors.Join(err, store.PutSTSPolicy(ctx, ruapost.STSPolicy{
			Domain: domain, ID: "1", Mode: "enforce", MX: []string{"mx." + domain},
			Text:    []string{"version: STSv1", "mode: enforce", "mx: mx." + domain, "max_age: 86400"},
			Fetched: time.Now(), Expires: time.Now().Add(time.Hour), Used: ruapost.Day(time.Now()).Start,
		}))
	}
	if err := errors.Join(err, store.Close()); err != nil {
		t.Fatal(err)
	}
}

// copy returns a copy of the state, with a configuration for it.
func (w *workshop) copy(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(w.state)); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	text := fmt.Sprintf("report_domain = \"receiver.example\"\n[store]\npath = %q\n[dns]\nservers = [%q]\n[reporter]\noutbox = %q\n"+
		"sendmail = [\"/bin/true\"]\nspread = \"0s\"\nbounce_maildir = %q\n",
		dir+"/store.db", w.dns, dir+"/outbox", dir+"/bounces")
	if err := os.WriteFile(filepath.Join(dir, "ruapost.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// run runs a command as it stands in the page, once its placeholders are filled in.
func (w *workshop) run(t *testing.T, dir, text string) (output string, err error) {
	t.Helper()
	for _, p := range placeholders {
		text = strings.ReplaceAll(text, p.in, p.out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", text)
	cmd.Env = append(os.Environ(), "PATH="+w.bin+":"+os.Getenv("PATH"), "DIR="+dir, "REPORT_ID="+w.reportID)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	return out.String(), err
}

// try returns an error if a command does not end as it should.
func (w *workshop) try(t *testing.T, text string) error {
	t.Helper()
	dir := w.copy(t)
	want := special[text]
	if want.before != "" {
		if out, err := w.run(t, dir, want.before); err != nil {
			return fmt.Errorf("%s: %w\n%s", want.before, err, out)
		}
	}
	out, err := w.run(t, dir, text)
	status := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		status = exit.ExitCode()
	} else if err != nil {
		return err
	}
	if status != want.status {
		return fmt.Errorf("exit status %d, want %d\n%s", status, want.status, out)
	}
	return nil
}
