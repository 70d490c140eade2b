package outbound

import (
	"context"
	"errors"
	"testing"
	"time"

	"ruapost"
	"ruapost/bboltstore"
	"ruapost/mtasts"
	"ruapost/resolver"
)

// keptRig is a rig whose policies are kept in a store.
type keptRig struct {
	*rig
	store *bboltstore.Store
	ca    *mtasts.Fetcher
}

func newKeptRig(t *testing.T) *keptRig {
	r := &keptRig{rig: stsRig(t), store: openStore(t, t.TempDir())}
	r.ca = r.sts.fetcher.Load()
	r.restart()
	r.dns.Add(`_mta-sts.example.com. 300 IN TXT "v=STSv1; id=1"`)
	r.publish("enforce")
	return r
}

func (r *keptRig) publish(mode string) {
	r.rig.host.SetPolicy("example.com", "version: STSv1", "mode: "+mode, "mx: mx.example.com", "max_age: 604800")
}

// restart replaces the policies by those of another process on the same store.
func (r *keptRig) restart() { r.Policies = r.another() }

func (r *keptRig) another() *Policies {
	p := NewPolicies(r.Policies.resolver, r.ca, r.store, Settings{})
	r.t.Cleanup(p.Close)
	return p
}

// settle waits until what was fetched is kept.
func (r *keptRig) settle() { r.sts.running.Wait() }

// freshDNS makes changes to the zone seen at once.
func (r *keptRig) freshDNS() {
	res, err := resolver.New(resolver.Config{Servers: []string{r.dns.Addr}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(res.Close)
	r.sts.resolver = res
}

func (r *keptRig) at(d time.Duration) { r.sts.now = func() time.Time { return time.Now().Add(d) } }

func (r *keptRig) stored() *ruapost.STSPolicy {
	r.t.Helper()
	p, err := r.store.STSPolicy(r.t.Context(), "example.com")
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

const enforced = "OK secure match=mx.example.com servername=hostname"

// RFC 8461 5.1: a policy survives a restart, though its record and its host are gone.
func TestPolicySurvivesRestart(t *testing.T) {
	r := newKeptRig(t)
	if got := r.ask(TableQuery, "example.com"); got != enforced {
		t.Fatal(got)
	}
	r.settle()
	first := r.stored()
	r.dns.Remove("_mta-sts.example.com")
	r.rig.host.SetPolicy("example.com")
	r.restart()
	r.freshDNS()
	if got := r.ask(TableQuery, "example.com"); got != enforced {
		t.Error(got)
	}
	if first == nil || first.ID != "1" || first.Mode != "enforce" || len(first.Text) != 4 || !first.Used.Equal(day(time.Now())) {
		t.Errorf("kept: %+v", first)
	}
	// It serves other processes as well, and not longer than it says.
	r.restart()
	r.freshDNS()
	r.at(time.Until(first.Expires) + time.Second)
	if got := r.ask(TableQuery, "example.com"); got != "NOTFOUND " {
		t.Errorf("expired: %s", got)
	}
}

// A purge by another process is noticed, own changes are not taken for one.
func TestPurge(t *testing.T) {
	r := newKeptRig(t)
	r.watch(t.Context())
	r.ask(TableQuery, "example.com")
	r.settle()
	r.watch(t.Context())
	if r.sts.known("example.com") == nil {
		t.Error("forgotten because of what was kept just now")
	}
	r.dns.Remove("_mta-sts.example.com")
	r.freshDNS()
	if _, err := r.store.DeleteSTSPolicies(t.Context(), []string{"example.com"}); err != nil {
		t.Fatal(err)
	}
	r.watch(t.Context())
	if got := r.ask(TableQuery, "example.com"); got != "NOTFOUND " {
		t.Errorf("after a purge: %s", got)
	}
	// What another process has fetched meanwhile is seen, too.
	r.dns.Add(`_mta-sts.example.com. 300 IN TXT "v=STSv1; id=1"`)
	other := r.another()
	<-other.sts.start("example.com", "1")
	other.sts.running.Wait()
	r.rig.host.SetPolicy("example.com")
	r.watch(t.Context())
	if got := r.ask(TableQuery, "example.com"); got != enforced {
		t.Errorf("fetched by another process: %s", got)
	}
}

// RFC 8461 3.3, 8.3: what is due about each kept policy once an hour.
func TestRefreshAll(t *testing.T) {
	const day = 24 * time.Hour
	for _, tc := range []struct {
		name    string
		mode    string        // of the kept policy
		after   time.Duration // how much later it is
		unused  time.Duration // how long it was not used
		publish string        // then, "" for nothing
		record  string        // its ID then, "" for none
		want    string        // the mode of what is kept
		fetches int
	}{
		{"fresh", "enforce", day - time.Minute, 0, "testing", "1", "enforce", 0},
		{"fresh, but the record is new: the next delivery sees that", "enforce", time.Hour, 0, "testing", "2", "enforce", 0},
		{"a day old", "enforce", day, 0, "testing", "1", "testing", 1},
		{"a day old, and the host has nothing", "enforce", day, 0, "", "1", "enforce", 1},
		{"a day old, without a record", "enforce", day, 0, "testing", "", "enforce", 0},
		{"mode none replaces at once", "enforce", day, 0, "none", "2", "none", 1},
		{"mode none without a record", "none", time.Hour, 0, "", "", "", 0},
		{"mode none, still announced", "none", time.Hour, 0, "none", "1", "none", 0},
		{"mode none, announced anew", "none", time.Hour, 0, "enforce", "2", "enforce", 1},
		{"expired", "enforce", 8 * day, 0, "enforce", "1", "", 0},
		{"not used for 180 days", "enforce", time.Hour, unusedAfter, "enforce", "1", "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newKeptRig(t)
			r.publish(tc.mode)
			<-r.sts.start("example.com", "1")
			r.settle()
			p := r.stored()
			p.Used = p.Used.Add(-tc.unused)
			if err := r.store.PutSTSPolicy(t.Context(), *p); err != nil {
				t.Fatal(err)
			}
			r.rig.host.SetPolicy("example.com")
			if tc.publish != "" {
				r.publish(tc.publish)
			}
			r.dns.Remove("_mta-sts.example.com")
			if tc.record != "" {
				r.dns.Add(`_mta-sts.example.com. 300 IN TXT "v=STSv1; id=` + tc.record + `"`)
			}
			r.restart()
			r.at(tc.after)
			before := len(r.rig.host.Requests())
			r.sts.refreshAll(t.Context())
			r.settle()
			mode := ""
			if p := r.stored(); p != nil {
				mode = p.Mode
			}
			if n := len(r.rig.host.Requests()) - before; mode != tc.want || n != tc.fetches {
				t.Errorf("mode %q, %d fetches; want %q, %d", mode, n, tc.want, tc.fetches)
			}
		})
	}
}

// A store that does not answer takes nothing away but what is only there, and no more
// time than there is.
func TestPolicyWithoutStore(t *testing.T) {
	r := newKeptRig(t)
	r.sts.store = lockedStore{}
	began := time.Now()
	if got := r.ask(TableQuery, "example.com"); got != enforced {
		t.Error(got)
	}
	if waited := time.Since(began); waited > queryTimeout {
		t.Errorf("waited %v", waited)
	}
	r.Policies.Close() // ends what waits for the store
}

// lockedStore is as long busy as one waits.
type lockedStore struct{ PolicyStore }

func (lockedStore) STSPolicy(ctx context.Context, _ string) (*ruapost.STSPolicy, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (lockedStore) PutSTSPolicy(ctx context.Context, _ ruapost.STSPolicy) error {
	<-ctx.Done()
	return errors.New("locked")
}

// A resolver that is dead for an hour: what is known goes on to be answered, what is not
// takes no longer than five seconds and is main.cf's matter, or waits if that is wanted.
func TestDeadResolver(t *testing.T) {
	r := newKeptRig(t)
	r.dns.Add(zone)
	warm := map[string]string{"example.com": enforced, "all.example": "OK dane-only", "plain.example": "NOTFOUND "}
	for domain, want := range warm {
		if got := r.ask(TableQuery, domain); got != want {
			t.Fatalf("%s: %s", domain, got)
		}
	}
	r.settle()
	r.dns.Close()
	dead, err := resolver.New(resolver.Config{Servers: []string{r.dns.Addr}, Timeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dead.Close)
	ask := func(domain, want string) {
		t.Helper()
		began := time.Now()
		if got := r.ask(TableQuery, domain); got != want || time.Since(began) > queryTimeout+time.Second {
			t.Errorf("%s: %q after %v, want %q", domain, got, time.Since(began), want)
		}
	}
	for domain, want := range warm { // answers that are kept
		ask(domain, want)
	}
	// All answers forgotten, as after fifteen minutes, and the process begun anew: only the
	// store is left.
	for name, s := range map[string]Settings{"open": {}, "defer": {DeferOnError: true}} {
		r.Policies = NewPolicies(dead, r.ca, r.store, s)
		t.Cleanup(r.Policies.Close)
		unknown := "NOTFOUND "
		if s.DeferOnError {
			unknown = "TEMP the TLS policy of all.example cannot be found out at this time"
		}
		t.Log(name)
		ask("example.com", enforced)
		ask("all.example", unknown)
	}
}

// A store that was set aside as damaged, or removed, takes no policy away.
func TestStoreReplaced(t *testing.T) {
	r := newKeptRig(t)
	r.watch(t.Context())
	r.ask(TableQuery, "example.com")
	r.settle()
	r.store = openStore(t, t.TempDir())
	r.sts.store = r.store
	r.dns.Remove("_mta-sts.example.com")
	r.freshDNS()
	r.answers.InvalidateAll()
	r.watch(t.Context())
	r.settle()
	if got := r.ask(TableQuery, "example.com"); got != enforced || r.stored() == nil {
		t.Errorf("%s, kept: %+v", got, r.stored())
	}
}

// busyStore does not tell of policies for as long as it is busy.
type busyStore struct {
	PolicyStore
	busy bool
}

func (b *busyStore) STSPolicy(ctx context.Context, domain string) (*ruapost.STSPolicy, error) {
	if b.busy {
		return nil, errors.New("busy")
	}
	return b.PolicyStore.STSPolicy(ctx, domain)
}

// A policy that is only in the store is seen as soon as the store tells, whatever failed
// meanwhile; until then it is not known whether there is one.
func TestBusyStore(t *testing.T) {
	r := newKeptRig(t)
	<-r.sts.start("example.com", "1")
	r.settle()
	r.rig.host.SetPolicy("example.com")
	for _, record := range []bool{true, false} {
		if !record {
			r.dns.Remove("_mta-sts.example.com")
		}
		r.restart()
		r.freshDNS()
		busy := &busyStore{PolicyStore: r.store, busy: true}
		r.sts.store = busy
		r.Reload(r.ca, Settings{DeferOnError: true})
		// The policy host answers that it has none, so only the store's silence is trouble.
		if got := r.ask(TableQuery, "example.com"); got != "TEMP the TLS policy of example.com cannot be found out at this time" {
			t.Errorf("record %v, busy: %s", record, got)
		}
		busy.busy = false
		r.answers.InvalidateAll()
		if got := r.ask(TableQuery, "example.com"); got != enforced {
			t.Errorf("record %v: %s", record, got)
		}
	}
}

// What could not be kept is kept with the next use.
func TestKeptLater(t *testing.T) {
	r := newKeptRig(t)
	r.sts.store = &fullStore{r.store}
	r.ask(TableQuery, "example.com")
	r.settle()
	if r.stored() != nil {
		t.Fatal("kept")
	}
	r.sts.store = r.store
	r.answers.InvalidateAll()
	r.ask(TableQuery, "example.com")
	r.settle()
	if r.stored() == nil {
		t.Error("not kept")
	}
}

type fullStore struct{ PolicyStore }

func (fullStore) PutSTSPolicy(context.Context, ruapost.STSPolicy) error { return ruapost.ErrNoRoom }

// A level of our own needs nothing from the DNS.
func TestOverrideLooksNothingUp(t *testing.T) {
	r := newKeptRig(t)
	r.Reload(r.ca, Settings{Overrides: []Override{{Domains: []string{"example.com"}, Level: LevelEncrypt}}})
	before := len(r.dns.Queries())
	if got := r.ask(TableQuery, "example.com"); got != "OK encrypt" {
		t.Error(got)
	}
	if n := len(r.dns.Queries()) - before; n != 0 {
		t.Errorf("%d queries", n)
	}
}
