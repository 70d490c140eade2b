package outbound

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ruapost"
	"ruapost/bboltstore"
)

// logRig has a log file, and a store for what it tells.
type logRig struct {
	*rig
	store *bboltstore.Store
	path  string
}

func newLogRig(t *testing.T) *logRig {
	r := &logRig{rig: stsRig(t), path: filepath.Join(t.TempDir(), "mail.log")}
	r.store = openStore(t, t.TempDir())
	r.dns.Add(zone + `
		_mta-sts.plain.example. 300 IN TXT "v=STSv1; id=1"
		_mta-sts.testing.example. 300 IN TXT "v=STSv1; id=1"
		plain.example. 300 IN MX 20 mx9.plain.example.
		testing.example. 300 IN MX 10 mx.plain.example.
		testing.example. 300 IN MX 20 mx.other.example.
		mx.other.example. 300 IN A 192.0.2.3
		nobody.example. 300 IN MX 10 mx.plain.example.`)
	for _, domain := range []string{"plain.example", "testing.example", "all.example", "some.example", "mx1.all.example", "absent.example"} {
		r.dns.Add(fmt.Sprintf(`_smtp._tls.%s. 300 IN TXT "v=TLSRPTv1; rua=mailto:a@%[1]s"`, domain))
	}
	r.host.SetPolicy("plain.example", "version: STSv1", "mode: enforce", "mx: mx.plain.example", "max_age: 86400")
	r.host.SetPolicy("testing.example", "version: STSv1", "mode: testing", "mx: mx.plain.example", "max_age: 86400")
	r.Reload(r.sts.fetcher.Load(), Settings{ReportTesting: true})
	return r
}

func openStore(t *testing.T, dir string) *bboltstore.Store {
	t.Helper()
	store, err := bboltstore.Open(filepath.Join(dir, "ruapost.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

// write appends lines of smtp(8).
func (r *logRig) write(lines ...string) {
	r.t.Helper()
	f, err := os.OpenFile(r.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	for _, line := range lines {
		fmt.Fprintf(f, "%s mail postfix/smtp[77]: %s\n", time.Now().Format(time.RFC3339Nano), line)
	}
}

// read reads the log until everything in it is recorded, and returns what the store has.
func (r *logRig) read() []string {
	r.t.Helper()
	l := &Logs{
		Policies: r.Policies, Store: r.store, Resolver: r.Policies.resolver, Sources: []string{r.path},
		Sessions: NewSessions(r.Policies, r.Policies.resolver, r.store),
	}
	size := func() string {
		info, err := os.Stat(r.path)
		if err != nil {
			r.t.Fatal(err)
		}
		return fmt.Sprintf(":%d:", info.Size())
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.Run(ctx)
	}()
	for { // another process's work would be no easier to wait for
		at, err := r.store.Position(ctx, r.path)
		if err != nil {
			r.t.Fatal(err)
		}
		if strings.Contains(at, size()) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-ended
	for len(l.Sessions.waiting) > 0 {
		l.Sessions.recordForHost(r.t.Context(), <-l.Sessions.waiting)
	}
	return r.recorded()
}

func (r *logRig) recorded() []string {
	r.t.Helper()
	groups, err := r.store.Groups(r.t.Context(), time.Now().Add(48*time.Hour))
	if err != nil {
		r.t.Fatal(err)
	}
	var all []string
	for _, g := range groups {
		all = append(all, fmt.Sprintf("%s: %s %s %d of %d failed", g.Domain, g.TLS.Type, g.TLS.Domain, g.Failed, g.Total))
		for row, err := range r.store.Rows(r.t.Context(), g.ID) {
			if err != nil {
				r.t.Fatal(err)
			}
			all = append(all, fmt.Sprintf("%s: %d times %s", g.Domain, row.Count, row.Data))
		}
	}
	slices.Sort(all)
	return all
}

const (
	established = "TLS connection established to %s:25: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits) key-exchange X25519 server-signature ECDSA (prime256v1) server-digest SHA256"
	to          = "%X: to=<user@%s>, relay=%s, delay=0.1, delays=0/0/0.06/0.04, dsn=%s"
)

// queueID is that of the last message.
var queueID = 0x45BA69A00A4

// result is the line by which a delivery ends.
func result(domain, mx, status string) string {
	queueID++
	if mx == "" {
		return fmt.Sprintf(to, queueID, domain, "none", status)
	}
	return fmt.Sprintf(to, queueID, domain, at(mx)+":25", status)
}

// at returns a host with its address, as Postfix writes it.
func at(mx string) string {
	if mx == "mx1.all.example" {
		return mx + "[192.0.2.1]"
	}
	return mx + "[192.0.2.3]"
}

func sent(word, domain, mx string) []string {
	return []string{fmt.Sprintf(word+" "+established, at(mx)), result(domain, mx, "2.0.0, status=sent (250 2.0.0 Ok)")}
}

// The policy of a session is that of the answer, as Postfix 3.10 would tell it.
func TestLogs(t *testing.T) {
	r := newLogRig(t)
	for _, domain := range []string{"plain.example", "testing.example", "all.example", "some.example", "nobody.example"} {
		r.ask(TableQuery, domain)
	}
	r.write("begin")
	if got := r.read(); got != nil { // without a position it begins at the end
		t.Errorf("%q", got)
	}
	r.write(slices.Concat(
		sent("Verified", "plain.example", "mx.plain.example"),
		[]string{
			"certificate verification failed for mx.plain.example[192.0.2.3]:25: self-signed certificate",
			fmt.Sprintf("Untrusted "+established, at("mx.plain.example")),
			result("plain.example", "mx.plain.example", "4.7.5, status=deferred (Server certificate not verified)"),
		},
		sent("Trusted", "plain.example", "relay.example.net"),  // no MX of it: routed to a relay host
		sent("Verified", "all.example", "mx1.all.example"),     // whose owner wants reports, too
		sent("Untrusted", "plain.example", "mx.plain.example"), // TLS-Required: No
		sent("Trusted", "plain.example", "mx.plain.example"),
		sent("Untrusted", "all.example", "mx1.all.example"),
		sent("Untrusted", "some.example", "mx.plain.example"), // one without DANE
		sent("Trusted", "testing.example", "mx.plain.example"),
		sent("Untrusted", "testing.example", "mx.plain.example"),
		sent("Trusted", "testing.example", "mx.other.example"), // outside the policy
		sent("Trusted", "nobody.example", "mx.plain.example"),
		sent("Trusted", "absent.example", "absent.example"), // no MX: itself, but with no address
		[]string{ // the records have changed since, or somebody wants others to get a bad report
			strings.ReplaceAll(fmt.Sprintf("Verified "+established, at("mx.plain.example")), "192.0.2.3", "192.0.2.66"),
			strings.ReplaceAll(result("plain.example", "mx.plain.example", "2.0.0, status=sent (250 2.0.0 Ok)"), "192.0.2.3", "192.0.2.66"),
		},
		[]string{
			"warning: MX name 'mx9.plain.example' does not match STS MX pattern for 'plain.example'",
			result("plain.example", "", "4.3.0, status=deferred (server unavailable or unable to receive mail)"),
			"warning: TLS policy lookup for all.example/mx1.all.example: TLSA lookup error for mx1.all.example:25",
			result("all.example", "", "4.7.5, status=deferred (TLSA lookup error for mx1.all.example:25)"),
			result("nobody.example", "mx.plain.example", "2.0.0, status=sent (250 2.0.0 Ok)"), // in plain text
		},
	)...)
	want := []string{
		`all.example: 1 times {"result":"dnssec-invalid","mx":"mx1.all.example","reason":"TLSA-lookup-error"}`,
		"all.example: tlsa mx1.all.example 0 of 1 failed",
		`mx1.all.example: 1 times {"result":"dnssec-invalid","mx":"mx1.all.example","reason":"TLSA-lookup-error"}`,
		"mx1.all.example: tlsa mx1.all.example 0 of 1 failed",
		`plain.example: 1 times {"result":"validation-failure","mx":"mx.plain.example","mx_ip":"192.0.2.3","reason":"self-signed_certificate"}`,
		`plain.example: 1 times {"result":"validation-failure","mx":"mx9.plain.example","reason":"mx-mismatch"}`,
		"plain.example: sts plain.example 1 of 2 failed",
		"some.example: no-policy-found some.example 0 of 1 failed",
		`testing.example: 1 times {"result":"certificate-not-trusted","mx":"mx.plain.example","mx_ip":"192.0.2.3"}`,
		`testing.example: 1 times {"result":"validation-failure","mx":"mx.other.example","mx_ip":"192.0.2.3","reason":"mx-mismatch"}`,
		"testing.example: sts testing.example 2 of 3 failed",
	}
	if diff := cmp.Diff(want, r.read()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, r.read()); diff != "" { // after a restart it goes on where it was
		t.Errorf("read again: %s", diff)
	}
}

// A store that cannot be written costs nothing: the same events are recorded later.
func TestLogsWithoutStore(t *testing.T) {
	r := newLogRig(t)
	r.write("begin")
	r.read()
	r.write(sent("Verified", "plain.example", "mx.plain.example")...)
	broken := &brokenStore{Store: r.store, failures: 2}
	l := &Logs{
		Policies: r.Policies, Store: broken, Resolver: r.Policies.resolver, Sources: []string{r.path},
		Sessions: NewSessions(r.Policies, r.Policies.resolver, r.store),
	}
	ctx, cancel := context.WithCancel(t.Context())
	broken.recorded = cancel
	l.Run(ctx)
	if got := r.recorded(); len(got) != 1 || got[0] != "plain.example: sts plain.example 0 of 1 failed" {
		t.Errorf("%q", got)
	}
}

// brokenStore fails some times, then records, and says so.
type brokenStore struct {
	*bboltstore.Store
	failures int
	recorded func()
}

func (b *brokenStore) RecordSessionsAt(ctx context.Context, s []ruapost.Session, at ruapost.Position) error {
	if len(s) == 0 {
		return nil
	}
	if b.failures--; b.failures >= 0 {
		return context.DeadlineExceeded
	}
	defer b.recorded()
	return b.Store.RecordSessionsAt(ctx, s, at)
}
