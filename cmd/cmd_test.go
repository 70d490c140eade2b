// Package cmd tests the three programs as they are used at a terminal.
package cmd

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"ruapost"
	"ruapost/bboltstore"
	"ruapost/internal/dnstest"
)

// programs are the names of the programs, which TestMain builds in the folder bin.
var programs = []string{"ruapost-milter", "ruapost-tlspolicy", "ruapost-reporter"}

var bin string

func TestMain(m *testing.M) {
	status, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cmd:", err)
		status = 1
	}
	os.Exit(status)
}

func buildAndRun(m *testing.M) (status int, err error) {
	if bin, err = os.MkdirTemp("", "ruapost-cmd-*"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(bin)
	for _, p := range programs {
		out, err := exec.Command("go", "build", "-o", filepath.Join(bin, p), "./"+strings.TrimPrefix(p, "ruapost-")).CombinedOutput()
		if err != nil {
			return 0, fmt.Errorf("%w\n%s", err, out)
		}
	}
	return m.Run(), nil
}

// TestScripts runs the scripts in testdata, which read like a session at a terminal,
// with the real programs. $DNS is a DNS server, which has the records that the command
// zone gives it; the commands messages and sessions record some in a store.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			dns, err := dnstest.Start("127.0.0.1:0")
			if err != nil {
				return err
			}
			env.Defer(dns.Close)
			env.Values[dnsKey{}] = dns
			env.Setenv("DNS", dns.Addr)
			env.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"zone":     zone,
			"messages": messages,
			"sessions": sessions,
		},
		RequireExplicitExec: true,
	})
}

type dnsKey struct{}

// zone FILE adds the lines of a zone file to the DNS server.
func zone(ts *testscript.TestScript, _ bool, args []string) {
	ts.Value(dnsKey{}).(*dnstest.Server).Add(ts.ReadFile(args[0]))
}

// record opens the store that is the first argument, and returns the others: a domain,
// two numbers, and a time that many days ago, 12:00 UTC.
func record(ts *testscript.TestScript, args []string) (store *bboltstore.Store, domain string, good, bad int, at time.Time) {
	var err error
	var n [3]int
	for i := range n {
		n[i], err = strconv.Atoi(args[2+i])
		ts.Check(err)
	}
	store, err = bboltstore.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	return store, args[1], n[0], n[1], ruapost.Day(time.Now().AddDate(0, 0, -n[2])).Start.Add(12 * time.Hour)
}

// messages STORE DOMAIN PASSED REJECTED DAYS-AGO records messages.
func messages(ts *testscript.TestScript, _ bool, args []string) {
	store, domain, passed, rejected, at := record(ts, args)
	for i := range passed + rejected {
		e := &ruapost.Evaluation{
			Time: at,
			Policy: ruapost.DMARCPolicy{
				Domain: domain, P: ruapost.DispositionReject, ADKIM: ruapost.Relaxed, ASPF: ruapost.Relaxed,
				FO: "0", Percent: 100, Discovery: "treewalk",
			},
			Result: ruapost.DMARCResult{
				SourceIP: netip.MustParseAddr("192.0.2.1"), Disposition: ruapost.DispositionReject,
				HeaderFrom: domain, SPF: ruapost.SPFResult{Domain: domain, Result: ruapost.AuthFail},
			},
		}
		if i < passed {
			e.Result.Disposition, e.Result.AlignedSPF, e.Result.SPF.Result = ruapost.DispositionPass, true, ruapost.AuthPass
		}
		ts.Check(store.RecordEvaluation(context.Background(), e))
	}
	ts.Check(store.Close())
}

// sessions STORE DOMAIN GOOD FAILED DAYS-AGO records TLS sessions.
func sessions(ts *testscript.TestScript, _ bool, args []string) {
	store, domain, good, failed, at := record(ts, args)
	var all []ruapost.Session
	for i := range good + failed {
		s := ruapost.Session{
			Time: at, Domain: domain, Policy: ruapost.TLSPolicy{Type: ruapost.PolicyNone, Domain: domain},
		}
		if i >= good {
			s.Failed = true
			s.Failures = []ruapost.TLSFailure{{Result: ruapost.ResultStartTLSNotSupported, ReceivingMX: fmt.Sprintf("mx%d.%s", i, domain)}}
		}
		all = append(all, s)
	}
	ts.Check(store.RecordSessions(context.Background(), all))
	ts.Check(store.Close())
}
