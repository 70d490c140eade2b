package outbound

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ruapost/internal/lab"
	"ruapost/mtasts"
	"ruapost/resolver"
)

// stsRig is a stsCache whose fetches reach the policy host by its proxy.
func stsRig(t *testing.T) *rig {
	proxyTo(t)
	r := newRig(t)
	proxyTarget.Store(&r.host.Addr)
	return r
}

// The environment's proxy is read once in a process: it stays, and where it leads is
// changed.
var (
	proxyOnce   sync.Once
	proxyTarget atomic.Pointer[string]
)

func proxyTo(t *testing.T) {
	t.Helper()
	proxyOnce.Do(func() {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		os.Setenv("HTTPS_PROXY", "http://"+ln.Addr().String())
		os.Setenv("NO_PROXY", "")
		go lab.ServeConnect(ln, func(string) string { return *proxyTarget.Load() })
	})
}

func TestSTS(t *testing.T) {
	r := stsRig(t)
	r.dns.Add(zone + `
_mta-sts.plain.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.testing.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.none.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.nopolicy.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.badpolicy.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.all.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.some.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.insecure.example. 300 IN TXT "v=STSv1; id=1"
insecure.example. 300 IN MX 10 mx1.all.example.
_mta-sts.broken.example. 300 IN TXT "v=STSv1; id=1"
_mta-sts.unusable.example. 300 IN TXT "v=STSv1; id=1"
unusable.example. 300 IN MX 10 mx.unusable.example.
mx.unusable.example. 300 IN A 192.0.2.5
_25._tcp.mx.unusable.example. 300 IN TLSA 1 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
_mta-sts.down.example. 300 IN TXT "v=STSv1; id=1"
`)
	r.dns.SetRcode("_25._tcp.mx.broken.example", mdns.RcodeServerFailure)
	r.dns.SetRcode("down.example", mdns.RcodeServerFailure)
	r.dns.SetInsecure("insecure.example")
	enforce := []string{"version: STSv1", "mode: enforce", "mx: *.plain.example", "max_age: 86400"}
	for _, d := range []string{"plain.example", "all.example", "some.example", "insecure.example", "norecord.example", "broken.example", "unusable.example", "down.example"} {
		r.host.SetPolicy(d, enforce...)
	}
	r.host.SetPolicy("testing.example", "version: STSv1", "mode: testing", "mx: x.example", "max_age: 86400")
	r.host.SetPolicy("none.example", "version: STSv1", "mode: none", "max_age: 86400")
	r.host.SetPolicy("badpolicy.example", "version: STSv1", "mode: enforce")
	secure := "OK secure match=.plain.example servername=hostname"
	for key, want := range map[string]string{
		"plain.example":     secure,
		"testing.example":   "NOTFOUND ",
		"none.example":      "NOTFOUND ",
		"nopolicy.example":  "NOTFOUND ",
		"badpolicy.example": "NOTFOUND ",
		"norecord.example":  "NOTFOUND ",
		// RFC 8461 2: DANE wins, where the MX answer is secure.
		"all.example":      "OK dane-only",
		"some.example":     "OK dane",
		"insecure.example": secure,
		// RFC 7672 2.1.2, RFC 8461 2: neither is bypassed while it is not known whether
		// there are TLSA records.
		"broken.example": "OK dane-only",
		// RFC 7672 2.2 wants TLS, which the policy makes mandatory.
		"unusable.example": secure,
		"down.example":     secure,
	} {
		if got := r.ask(TableQuery, key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	r.host.Requests()
	before := len(r.host.Requests())
	for range 10 {
		r.ask(TableQuery, "plain.example")
		r.ask(TableQuery, "nopolicy.example") // RFC 8461 3.3: not again within five minutes
	}
	if n := len(r.host.Requests()) - before; n != 0 {
		t.Errorf("%d fetches more", n)
	}
}

// RFC 8461 3.1, 3.3: a policy that has not expired holds without a record and when a
// fetch fails; a new ID replaces it.
func TestSTSCache(t *testing.T) {
	r := stsRig(t)
	now := time.Now()
	c := r.Policies.sts
	c.now = func() time.Time { return now }
	record := func(id string) {
		r.dns.Remove("_mta-sts.example.com")
		if id != "" {
			r.dns.Add(`_mta-sts.example.com. 300 IN TXT "v=STSv1; id=` + id + `"`)
		}
		res, err := resolver.New(resolver.Config{Servers: []string{r.dns.Addr}}) // with an empty cache
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(res.Close)
		c.resolver = res
	}
	mode := func() string {
		p := c.find(t.Context(), "example.com").policy
		if p == nil {
			return "no policy"
		}
		return string(p.Mode)
	}
	expect := func(step, want string) {
		t.Helper()
		if got := mode(); got != want {
			t.Errorf("%s: %s, want %s", step, got, want)
		}
	}
	publish := func(mode string) {
		r.host.SetPolicy("example.com", "version: STSv1", "mode: "+mode, "mx: mx.example.com", "max_age: 3600")
	}
	record("1")
	publish("enforce")
	expect("first", "enforce")
	publish("testing")
	expect("new policy under the same id", "enforce")
	record("")
	expect("record gone", "enforce")
	record("2")
	r.host.SetPolicy("example.com")
	expect("new id, but the fetch fails", "enforce")
	c.running.Wait()
	publish("testing")
	expect("within five minutes of that", "enforce")
	c.running.Wait()
	expect("still within five minutes", "enforce")
	now = now.Add(fetchRetry)
	expect("after five minutes, which begins a fetch", "enforce")
	c.running.Wait()
	expect("after that", "testing")
	record("")
	now = now.Add(time.Hour)
	expect("record gone and policy expired", "no policy")
}

// RFC 8461 3.3: a policy in use is fetched again before it expires, without anyone
// waiting for that, and no more than every five minutes if it fails.
func TestSTSRefresh(t *testing.T) {
	r := stsRig(t)
	now := time.Now()
	c := r.Policies.sts
	c.now = func() time.Time { return now }
	r.dns.Add(`_mta-sts.example.com. 300 IN TXT "v=STSv1; id=1"`)
	publish := func(mode string) {
		r.host.SetPolicy("example.com", "version: STSv1", "mode: "+mode, "mx: mx.example.com", "max_age: 604800")
	}
	publish("enforce")
	for _, step := range []struct {
		name    string
		pass    time.Duration
		publish string
		want    mtasts.Mode
		fetches int
	}{
		{"first", 0, "enforce", "enforce", 1},
		{"fresh", refreshAfter - time.Second, "", "enforce", 0},
		{"a day old, and the host has nothing", time.Second, "", "enforce", 1},
		{"too soon after that", fetchRetry - time.Second, "", "enforce", 0},
		{"again", time.Second, "testing", "enforce", 1},
		{"what that fetched", 0, "testing", "testing", 0},
		{"which is fresh", refreshAfter - time.Second, "none", "testing", 0},
		{"until a day has passed", time.Second, "none", "testing", 1},
		{"what that fetched", 0, "none", "none", 0},
	} {
		now = now.Add(step.pass)
		r.host.SetPolicy("example.com")
		if step.publish != "" {
			publish(step.publish)
		}
		before := len(r.host.Requests())
		if p := c.find(t.Context(), "example.com").policy; p == nil || p.Mode != step.want {
			t.Errorf("%s: %+v, want mode %s", step.name, p, step.want)
		}
		c.running.Wait()
		if n := len(r.host.Requests()) - before; n != step.fetches {
			t.Errorf("%s: %d fetches, want %d", step.name, n, step.fetches)
		}
	}
}

// A fetch that fails does not take away what another one got while it was under way.
func TestSTSFetchesInTurn(t *testing.T) {
	r := stsRig(t)
	c := r.Policies.sts
	r.host.SetPolicy("example.com", "version: STSv1", "mode: enforce", "mx: mx.example.com", "max_age: 3600")
	<-c.start("example.com", "1")
	r.host.SetPolicy("example.com")
	<-c.start("example.com", "2")
	if e := c.known("example.com"); e.current(c.now()) == nil || e.id != "1" || !e.tooSoon("2", c.now()) || e.tooSoon("3", c.now()) {
		t.Errorf("%+v", e)
	}
}

func TestSTSClose(t *testing.T) {
	c := newRig(t).Policies.sts
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() { <-c.start(fmt.Sprint(i, ".example"), "1") })
	}
	c.close()
	<-c.start("late.example", "1")
	wg.Wait()
	if len(c.fetching) != 0 {
		t.Errorf("%d fetches after the end", len(c.fetching))
	}
}

// The memory is bounded whatever policies are like.
func TestSTSWeight(t *testing.T) {
	c := newRig(t).Policies.sts
	big := policy(make([]string, mtasts.MaxMX), strings.Repeat("x", mtasts.MaxPolicySize))
	most := maxPolicyBytes / mtasts.MaxPolicySize
	before := testutil.ToFloat64(limitPolicies)
	for i := range 2 * most {
		c.entries.Set(fmt.Sprint(i), &stsEntry{policy: big})
	}
	c.entries.CleanUp()
	if n := c.entries.EstimatedSize(); n > most || n < most/2 {
		t.Errorf("%d policies kept, want no more than %d", n, most)
	} else if gone := testutil.ToFloat64(limitPolicies) - before; gone != float64(2*most-n) {
		t.Errorf("%v made room, %d of %d are there", gone, n, 2*most)
	}
}

// A query does not wait for a policy host that does not answer, and the fetch goes on
// for those that ask later.
func TestSlowPolicyHost(t *testing.T) {
	r := stsRig(t)
	r.dns.Add(`_mta-sts.example.com. 300 IN TXT "v=STSv1; id=1"`)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	addr := silent.Addr().String()
	proxyTarget.Store(&addr)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	c := r.Policies.sts
	if f := c.find(ctx, "example.com"); f.policy != nil || !f.trouble() {
		t.Errorf("found %+v", f)
	}
	// What is known is returned at once, whatever is being fetched.
	c.entries.Set("example.com", &stsEntry{policy: policy(nil), id: "0", expires: c.now().Add(time.Hour)})
	p := c.find(t.Context(), "example.com").policy
	c.mu.Lock()
	defer c.mu.Unlock()
	if p == nil || len(c.fetching) != 1 {
		t.Errorf("policy %+v, %d fetches", p, len(c.fetching))
	}
}
