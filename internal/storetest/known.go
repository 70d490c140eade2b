package storetest

import (
	"context"
	"strings"
	"testing"
	"time"

	"ruapost"
)

// passed returns an evaluation of a message from the organizational domain org that
// passed DMARC; its policy is about another domain.
func passed(org string, at time.Time) *ruapost.Evaluation {
	e := evaluation("passed.example", 1)
	e.Time, e.OrganizationalDomain = at, org
	return e
}

// failed returns one, with a policy of its own, of a message that did not pass, and
// that is required only if org is known.
func failed(domain, org string) *ruapost.Evaluation {
	e := evaluation(domain, 1)
	e.OrganizationalDomain, e.OptionalIfUnknown = org, true
	e.Result.AlignedDKIM, e.Result.Disposition = false, ruapost.DispositionReject
	return e
}

// wantRequired records a failed message from org, and checks whether it was required.
func wantRequired(t *testing.T, s Store, why, org string, want int64) {
	t.Helper()
	domain := strings.ReplaceAll(why, " ", "-") + ".failed.example"
	e := failed(domain, org)
	record(t, s, e)
	t.Log(why)
	wantGroups(t, groupsOf(t, s, domain), evaluations(e, 1, 1, 1, want))
}

func sentTo(t *testing.T, s Store, at time.Time, domains ...string) {
	t.Helper()
	if err := s.RecordDestinations(t.Context(), domains, at); err != nil {
		t.Fatalf("RecordDestinations: %v", err)
	}
}

// What passed DMARC by either way makes its organizational domain known, and nothing
// else does.
func testKnownByPass(t *testing.T, d *data) {
	s := d.store(t)
	wantRequired(t, s, "unknown", "dkim.example.com", 0)
	dkim, spf, both, optional, neither := passed("dkim.example.com", noon), passed("spf.example.com", noon),
		passed("both.example.com", noon), passed("optional.example.com", noon), passed("neither.example.com", noon)
	spf.Result.AlignedDKIM, spf.Result.AlignedSPF = false, true
	both.Result.AlignedSPF = true
	optional.Optional = true
	neither.Result.AlignedDKIM = false
	record(t, s, dkim, spf, both, optional, neither)
	wantRequired(t, s, "by DKIM", "dkim.example.com", 1)
	wantRequired(t, s, "by SPF", "spf.example.com", 1)
	wantRequired(t, s, "by both", "both.example.com", 1)
	wantRequired(t, s, "by an optional one", "optional.example.com", 1)
	wantRequired(t, s, "by neither", "neither.example.com", 0)
	// A name is known for itself.
	wantRequired(t, s, "a name above", "example.com", 0)
	wantRequired(t, s, "a name below", "a.dkim.example.com", 0)
	wantRequired(t, s, "a name that ends alike", "xdkim.example.com", 0)
	wantRequired(t, s, "a name that begins alike", "dkim.example.co", 0)
}

func testKnownByDestination(t *testing.T, d *data) {
	s := d.store(t)
	sentTo(t, s, noon)
	wantRequired(t, s, "before", "example.com", 0)
	sentTo(t, s, noon, "example.com", "example.net", "example.com")
	wantRequired(t, s, "first", "example.com", 1)
	wantRequired(t, s, "second", "example.net", 1)
	wantRequired(t, s, "other", "example.org", 0)
	sentTo(t, s, noon, "example.net")
	wantRequired(t, s, "again", "example.net", 1)
	// A destination is no evaluation and no session.
	if len(groups(t, s)) != 5 {
		t.Errorf("groups %+v", groups(t, s))
	}
}

// What was sent where a report was mailed shortly before may be that report.
func testKnownReports(t *testing.T, d *data) {
	s := d.store(t)
	reported := func(at time.Time, domains ...string) {
		t.Helper()
		if err := s.RecordReported(t.Context(), domains, at); err != nil {
			t.Fatalf("RecordReported: %v", err)
		}
	}
	reported(noon, "example.com")
	wantRequired(t, s, "a report", "example.com", 0)
	sentTo(t, s, noon, "example.com", "example.net")
	wantRequired(t, s, "with the report", "example.com", 0)
	wantRequired(t, s, "no report", "example.net", 1)
	reported(noon, "example.net")
	wantRequired(t, s, "before the report", "example.net", 1)
	reported(noon.AddDate(0, 0, -6), "six.example.com")
	sentTo(t, s, noon, "six.example.com")
	wantRequired(t, s, "six days later", "six.example.com", 0)
	record(t, s, passed("example.com", noon))
	wantRequired(t, s, "a pass", "example.com", 1)

	reported(noon.AddDate(0, 0, -7), "example.org")
	sentTo(t, s, noon, "example.org")
	wantRequired(t, s, "seven days later", "example.org", 1)
}

// A pass counts for 30 days, a destination for 90, the last of each.
func testKnownDays(t *testing.T, d *data) {
	for _, c := range []struct {
		name                string
		passes, destination []int // days before
		want                int64
	}{
		{"pass today", []int{0}, nil, 1},
		{"pass 29 days ago", []int{29}, nil, 1},
		{"pass 30 days ago", []int{30}, nil, 1},
		{"pass 31 days ago", []int{31}, nil, 0},
		{"pass a year ago", []int{365}, nil, 0},
		{"destination 31 days ago", nil, []int{31}, 1},
		{"destination 89 days ago", nil, []int{89}, 1},
		{"destination 90 days ago", nil, []int{90}, 1},
		{"destination 91 days ago", nil, []int{91}, 0},
		{"both too long ago", []int{31}, []int{91}, 0},
		{"pass in time", []int{30}, []int{91}, 1},
		{"destination in time", []int{31}, []int{90}, 1},
		{"pass again", []int{31, 30}, nil, 1},
		{"pass recorded late", []int{30, 31}, nil, 1},
		{"destination again", nil, []int{91, 90}, 1},
		{"destination recorded late", nil, []int{90, 91}, 1},
		{"pass known tomorrow", []int{-1}, nil, 1},
		// A clock was ahead.
		{"pass in two days", []int{-2}, nil, 0},
		{"destination in two days", nil, []int{-2}, 0},
		{"both in a year", []int{-365}, []int{-365}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &data{open: d.open, dir: t.TempDir()}
			s := d.store(t)
			for _, days := range c.passes {
				record(t, s, passed("example.com", noon.AddDate(0, 0, -days)))
			}
			for _, days := range c.destination {
				sentTo(t, s, noon.AddDate(0, 0, -days), "example.com")
			}
			wantRequired(t, s, "failed", "example.com", c.want)
		})
	}
}

// It is decided when a message is recorded, whoever recorded the pass, and a pass that
// comes later changes nothing.
func testKnownInOrder(t *testing.T, d *data) {
	a, b := d.store(t), d.store(t)
	e := failed("example.com", "example.com")
	record(t, a, e)
	record(t, b, passed("example.com", noon))
	wantGroups(t, groupsOf(t, a, "example.com"), evaluations(e, 1, 1, 1, 0))
	record(t, a, e, e)
	sentTo(t, a, noon, "example.net")
	other := failed("example.net", "example.net")
	record(t, b, other)
	// Whether the domain is known is no part of what a report says: one row.
	wantGroups(t, groupsOf(t, b, "example.com"), evaluations(e, 3, 1, 3, 2))
	wantGroups(t, groupsOf(t, a, "example.net"), evaluations(other, 1, 1, 1, 1))
}

func testKnownOverRestart(t *testing.T, d *data) {
	s := d.store(t)
	record(t, s, passed("passed.example.com", noon))
	sentTo(t, s, noon, "sent.example.com")
	mustClose(t, s)
	s = d.store(t)
	wantRequired(t, s, "passed", "passed.example.com", 1)
	wantRequired(t, s, "sent", "sent.example.com", 1)
	wantRequired(t, s, "unknown", "example.com", 0)
}

// Being known makes nothing required that is optional by itself, and being unknown
// nothing optional that did not ask.
func testKnownAndOptional(t *testing.T, d *data) {
	s := d.store(t)
	optional, required := failed("optional.example", "example.com"), failed("required.example", "example.net")
	optional.Optional = true
	required.OptionalIfUnknown = false
	asks := passed("example.org", noon) // passes, and so is known
	asks.OptionalIfUnknown = true
	sentTo(t, s, noon, "example.com")
	record(t, s, optional, required, asks)
	wantGroups(t, groups(t, s), evaluations(optional, 1, 1, 1, 0), evaluations(required, 1, 1, 1, 1), evaluations(asks, 1, 1, 1, 1))
}

// A domain that is not told is never known, and what is no domain costs nobody else
// theirs.
func testKnownHostile(t *testing.T, d *data) {
	s := d.store(t)
	record(t, s, passed("", noon))
	sentTo(t, s, noon, "", "example.com", "")
	wantRequired(t, s, "empty", "", 0)
	wantRequired(t, s, "not empty", "example.com", 1)

	huge := strings.Repeat("x.", 1<<19) + "example"
	for _, text := range hostile {
		record(t, s, passed(text, noon))
	}
	for _, name := range []string{huge, ".", "..", longDomain, "\xff"} {
		record(t, s, passed(name, noon), failed("hostile.example", name))
		sentTo(t, s, noon, name)
	}
	sentTo(t, s, noon, huge, longDomain[:253])
	wantRequired(t, s, "beside them", longDomain[:253], 1)
	wantRequired(t, s, "like none of them", "example.org", 0)
}

// A call whose context has ended comes back, and one on a closed store fails.
func testKnownEnded(t *testing.T, d *data) {
	s := d.store(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	done := s.RecordDestinations(ended, []string{"example.com"}, noon) == nil
	mustClose(t, s)
	if s.RecordDestinations(t.Context(), []string{"example.net"}, noon) == nil {
		t.Error("RecordDestinations on a closed store: no error")
	}
	s = d.store(t)
	if done {
		wantRequired(t, s, "said to be recorded", "example.com", 1)
	}
	wantRequired(t, s, "refused", "example.net", 0)
}
