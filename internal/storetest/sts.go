package storetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ruapost"
)

// policy returns the nth of many different policies of domain.
func policy(domain string, n int) ruapost.STSPolicy {
	id := fmt.Sprint(n)
	return ruapost.STSPolicy{
		Domain: domain, ID: id, Mode: "enforce", MX: []string{"mx" + id + "." + domain},
		Text:    []string{"version: STSv1", "mode: enforce", "mx: mx" + id + "." + domain, "max_age: 604800"},
		Fetched: noon.Add(time.Duration(n) * time.Second), Expires: noon.Add(7 * 24 * time.Hour), Used: ruapost.Day(noon).Start,
	}
}

func put(t *testing.T, s Store, policies ...ruapost.STSPolicy) {
	t.Helper()
	for _, p := range policies {
		if err := s.PutSTSPolicy(t.Context(), p); err != nil {
			t.Fatalf("PutSTSPolicy: %v", err)
		}
	}
}

func deletePolicies(t *testing.T, s Store, want int, domains ...string) {
	t.Helper()
	n, err := s.DeleteSTSPolicies(t.Context(), domains)
	if err != nil || n != want {
		t.Errorf("DeleteSTSPolicies: %d, %v, want %d", n, err, want)
	}
}

func version(t *testing.T, s Store) uint64 {
	t.Helper()
	n, err := s.STSVersion(t.Context())
	if err != nil {
		t.Fatalf("STSVersion: %v", err)
	}
	return n
}

// pages reads all policies, most of them at a time.
func pages(ctx context.Context, s Store, most int) (all []ruapost.STSPolicy, err error) {
	for after := ""; ; after = all[len(all)-1].Domain {
		page, err := s.STSPolicies(ctx, after, most)
		if err != nil {
			return nil, err
		}
		if len(page) > most {
			return nil, fmt.Errorf("%d policies, not %d", len(page), most)
		}
		if len(page) == 0 {
			return all, nil
		}
		if page[0].Domain <= after {
			return nil, fmt.Errorf("%q comes behind %q", page[0].Domain, after)
		}
		all = append(all, page...)
	}
}

// wantPolicies compares all policies, which are in the order of their domains.
func wantPolicies(t *testing.T, s Store, want ...ruapost.STSPolicy) {
	t.Helper()
	got, err := pages(t.Context(), s, 100)
	if err != nil {
		t.Fatalf("STSPolicies: %v", err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("policies (-want +got):\n%s", d)
	}
	for _, p := range want {
		got, err := s.STSPolicy(t.Context(), p.Domain)
		if d := cmp.Diff(&p, got, cmpopts.EquateEmpty()); err != nil || d != "" {
			t.Errorf("STSPolicy of %s: %v (-want +got):\n%s", p.Domain, err, d)
		}
	}
}

func testSTSNone(t *testing.T, d *data) {
	s := d.store(t)
	was := version(t, s)
	for _, domain := range []string{"example.com", "", longDomain, "\xff"} {
		if p, err := s.STSPolicy(t.Context(), domain); p != nil || err != nil {
			t.Errorf("STSPolicy of %.20q: %+v, %v", domain, p, err)
		}
	}
	wantPolicies(t, s)
	deletePolicies(t, s, 0)
	deletePolicies(t, s, 0, "example.com", "", longDomain)
	if is := version(t, s); is != was {
		t.Errorf("version was %d, is %d", was, is)
	}
}

func testSTSEveryField(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	full := filled[ruapost.STSPolicy]("text")
	full.Domain = "full.example"
	bare := ruapost.STSPolicy{Domain: "bare.example"}
	put(t, s, full, bare)
	wantPolicies(t, other, bare, full)
	mustClose(t, s)
	wantPolicies(t, d.store(t), bare, full)
	wantGroups(t, groups(t, other))
}

// A policy takes the place of the one before as a whole, whenever it was fetched.
func testSTSReplaced(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	first, second := policy("example.com", 2), policy("example.com", 1)
	second.Mode, second.MX = "none", nil
	neighbour := policy("example.net", 1)
	put(t, s, first, neighbour)
	wantPolicies(t, other, first, neighbour)
	put(t, other, second)
	wantPolicies(t, s, second, neighbour)
	mustClose(t, s)
	wantPolicies(t, d.store(t), second, neighbour)
}

// Policies are read in pieces, in the order of their domains; none is lost or doubled
// where the pieces meet.
func testSTSPages(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	var want []ruapost.STSPolicy
	for i, domain := range []string{"b", "a", "example.com", "example.co", "example.com-x", "example.com.au", "a.example.com", longDomain[:253]} {
		want = append(want, policy(domain, i))
	}
	put(t, s, want...)
	inOrder := func(a, b ruapost.STSPolicy) int { return strings.Compare(a.Domain, b.Domain) }
	slices.SortFunc(want, inOrder)
	for most := 1; most <= len(want)+1; most++ {
		got, err := pages(t.Context(), other, most)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%d at a time: %v (-want +got):\n%s", most, err, d)
		}
	}
	for after, first := range map[string]int{"a": 1, "aa": 2, "example.com-w": slices.IndexFunc(want, func(p ruapost.STSPolicy) bool { return p.Domain == "example.com-x" }), "zz": len(want)} {
		got, err := s.STSPolicies(t.Context(), after, 1000)
		if d := cmp.Diff(want[first:], got, cmpopts.EquateEmpty()); err != nil || d != "" {
			t.Errorf("behind %s: %v (-want +got):\n%s", after, err, d)
		}
	}
	if got, err := s.STSPolicies(t.Context(), "", 0); len(got) > 0 || err != nil {
		t.Errorf("none: %d, %v", len(got), err)
	}
}

// So are many, and large ones; a reader whose context ends gets its error, or
// everything, but not a part.
func testSTSMany(t *testing.T, d *data) {
	s := d.store(t)
	var want []ruapost.STSPolicy
	for i := range 1100 {
		p := policy(fmt.Sprintf("d%04d.example", i), i)
		if i%25 == 0 {
			p.Text = append(p.Text, strings.Repeat("x", 8<<10))
		}
		want = append(want, p)
	}
	for i := range want {
		put(t, s, want[i*7%len(want)])
	}
	for _, most := range []int{999, 1000, 1 << 30} {
		got, err := pages(t.Context(), s, most)
		if err != nil || !cmp.Equal(want, got) {
			t.Errorf("%d at a time: %d policies, %v", most, len(got), err)
		}
	}
	for looks, blown := 1, true; blown; looks++ {
		ctx := newFuse(t, looks)
		got, err := s.STSPolicies(ctx, "", 1<<30)
		wantDone(t, "STSPolicies", err, len(got) == len(want))
		blown = ctx.blown()
	}
	var domains []string
	for _, p := range want[50:] {
		domains = append(domains, p.Domain)
	}
	deletePolicies(t, s, len(domains), domains...)
	wantPolicies(t, s, want[:50]...)
}

func testSTSDelete(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	a, b, c := policy("a.example", 1), policy("b.example", 1), policy("c.example", 1)
	put(t, s, a, b, c)
	deletePolicies(t, other, 2, "c.example", "d.example", "a.example", "c.example")
	wantPolicies(t, s, b)
	for _, domain := range []string{"a.example", "c.example"} {
		if p, err := s.STSPolicy(t.Context(), domain); p != nil || err != nil {
			t.Errorf("STSPolicy of %s: %+v, %v", domain, p, err)
		}
	}
	deletePolicies(t, s, 0, "c.example")
	put(t, s, c)
	mustClose(t, s)
	s = d.store(t)
	wantPolicies(t, s, b, c)
	deletePolicies(t, s, 2, "b.example", "c.example")
	wantPolicies(t, other)
}

// Whoever changes a policy raises the version by one, for all to see; nothing else does.
func testSTSVersion(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	was := version(t, s)
	step := func(what string, by uint64) {
		t.Helper()
		is := version(t, other)
		if is != was+by {
			t.Errorf("%s: version was %d, is %d, want %d more", what, was, is, by)
		}
		was = is
	}
	put(t, s, policy("a.example", 1), policy("b.example", 1), policy("c.example", 1))
	step("three are put", 3)
	put(t, s, policy("a.example", 1))
	step("the same is put", 1)
	deletePolicies(t, s, 2, "a.example", "b.example")
	step("two are deleted", 1)
	deletePolicies(t, s, 0, "a.example", "d.example")
	step("none is deleted", 0)
	wantPolicies(t, s, policy("c.example", 1))
	record(t, s, evaluation("example.com", 1))
	recordSessions(t, s, session("example.com", failure(1)))
	seal(t, s, report("r1", groups(t, s)[0]))
	step("other things are done", 0)
	if err := s.PutSTSPolicy(t.Context(), ruapost.STSPolicy{}); err == nil {
		t.Error("a policy of no domain was put")
	}
	step("a policy is refused", 0)
	mustClose(t, s)
	mustClose(t, other)
	other = d.store(t)
	step("the store is opened again", 0)
}

// Two processes that put and delete the same domains: each call has done it or not, and
// the version counts those that have.
func testSTSConcurrent(t *testing.T, d *data) {
	processes := []Store{d.store(t), d.store(t)}
	was := version(t, processes[0])
	domains := []string{"a.example", "b.example", "c.example"}
	var puts, deletes, deleted atomic.Int64
	var wg sync.WaitGroup
	for p, s := range processes {
		for w := range 4 {
			wg.Go(func() {
				for i := range 25 {
					domain := domains[(w+i)%len(domains)]
					if err := s.PutSTSPolicy(t.Context(), policy(domain, 1000*p+100*w+i)); err != nil {
						t.Errorf("PutSTSPolicy: %v", err)
					}
					puts.Add(1)
					got, err := s.STSPolicy(t.Context(), domain)
					if err != nil || got != nil && got.MX[0] != "mx"+got.ID+"."+domain {
						t.Errorf("STSPolicy: %+v, %v", got, err)
					}
					if i%3 == 0 {
						continue
					}
					n, err := s.DeleteSTSPolicies(t.Context(), []string{domain})
					if err != nil {
						t.Errorf("DeleteSTSPolicies: %v", err)
					}
					if n > 0 {
						deletes.Add(1)
					}
					deleted.Add(int64(n))
				}
			})
		}
	}
	wg.Wait()
	if is := version(t, processes[0]); is != was+uint64(puts.Load()+deletes.Load()) {
		t.Errorf("version was %d, is %d, after %d and %d calls", was, is, puts.Load(), deletes.Load())
	}
	left, err := pages(t.Context(), processes[1], 10)
	if err != nil || deleted.Load() > puts.Load() {
		t.Errorf("%d deleted of %d, %v", deleted.Load(), puts.Load(), err)
	}
	wantPolicies(t, processes[0], left...)
}

func testSTSEnded(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	there := func() bool {
		p, err := other.STSPolicy(t.Context(), "example.com")
		if err != nil {
			t.Fatal(err)
		}
		return p != nil
	}
	for range 5 {
		err := s.PutSTSPolicy(ended, policy("example.com", 1))
		wantDone(t, "PutSTSPolicy", err, there())
		put(t, s, policy("example.com", 1))
		p, err := s.STSPolicy(ended, "example.com")
		wantDone(t, "STSPolicy", err, p != nil)
		was := version(t, s)
		n, err := s.STSVersion(ended)
		wantDone(t, "STSVersion", err, n == was)
		deleted, err := s.DeleteSTSPolicies(ended, []string{"example.com"})
		wantDone(t, "DeleteSTSPolicies", err, !there())
		if gone := !there(); gone != (deleted == 1) {
			t.Errorf("%d deleted, gone: %t", deleted, gone)
		}
		deletePolicies(t, s, 1-deleted, "example.com")
	}
}

// What is kept is kept as it is, and what is not gets in nobody's way.
func testSTSHostile(t *testing.T, d *data) {
	s := d.store(t)
	var want []ruapost.STSPolicy
	i := 0
	for _, text := range hostile {
		i++
		p := filled[ruapost.STSPolicy](text)
		p.Domain = fmt.Sprintf("d%02d.example", i)
		put(t, s, p)
		want = append(want, p)
	}
	wantPolicies(t, s, want...)

	bad := policy("invalid.example", 1)
	bad.Mode, bad.Text = "\xff", []string{"a\xc3"}
	put(t, s, bad)
	names := []string{"", "\xff", "a\xc3", ".", "..", longDomain, strings.Repeat("x.", 1<<19) + "example"}
	for _, text := range hostile {
		names = append(names, text)
	}
	for _, name := range names {
		err := s.PutSTSPolicy(t.Context(), policy(name, 1)) // it may be refused
		p, rerr := s.STSPolicy(t.Context(), name)
		if rerr != nil || (p != nil) != (err == nil) || p != nil && p.Domain != name {
			t.Errorf("%.20q: put: %v, read: %v, %v", name, err, p != nil, rerr)
		}
	}
	large := policy("large.example", 1)
	large.Text = []string{strings.Repeat("x", 1<<20)}
	if err := s.PutSTSPolicy(t.Context(), large); err == nil {
		t.Error("a policy of 1 MiB was put")
	}
	put(t, s, policy("zz.example", 1))
	got, err := pages(t.Context(), s, 1)
	if err != nil || len(got) < len(want)+2 || got[len(got)-1].Domain < "zz.example" {
		t.Errorf("%d policies, %v", len(got), err)
	}
}
