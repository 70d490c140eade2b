package reporting

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"ruapost"
)

// fill records so many different rows of a day, of which every tenth failed, the nth a
// number of times that depends on n.
func (r *rig) fill(at time.Time, domain string, rows int) {
	r.t.Helper()
	var recording sync.WaitGroup
	const writers = 100
	for i := range writers {
		recording.Go(func() {
			for n := i; n < rows; n += writers {
				e := &ruapost.Evaluation{
					Time:   at,
					Policy: ruapost.DMARCPolicy{Domain: domain, P: "reject", ADKIM: "r", ASPF: "r", FO: "0", Percent: 100, Discovery: "treewalk"},
					Result: ruapost.DMARCResult{
						SourceIP: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), Disposition: "pass", AlignedSPF: true,
						HeaderFrom: domain, SPF: ruapost.SPFResult{Domain: domain, Result: "pass"},
					},
				}
				if n%10 == 0 {
					e.Result.AlignedSPF, e.Result.Disposition = false, "reject"
				}
				for range 1 + n%3 {
					if err := r.store.RecordEvaluation(r.t.Context(), e); err != nil {
						r.t.Error(err)
						return
					}
				}
			}
		})
	}
	recording.Wait()
}

// page is some rows of a document.
type somePage func(first, most int) (*Document, error)

// wantRows goes through all pages: each row is on one, and, if they are sorted, what failed
// comes first, and then what counts more.
func wantRows(t *testing.T, name string, rows int, sorted bool, page somePage) {
	t.Helper()
	most := 70
	if rows > 1000 {
		most = 997
	}
	seen := map[string]bool{}
	wasFailed, was := true, int64(1<<60)
	for first := 0; first < rows+most; first += most {
		d, err := page(first, most)
		if err != nil {
			t.Fatalf("%s from %d: %v", name, first, err)
		}
		if d.Rows != rows || d.Sorted != sorted || d.First != first {
			t.Fatalf("%s from %d: %d rows, sorted %t, from %d", name, first, d.Rows, d.Sorted, d.First)
		}
		if want := max(0, min(most, rows-first)); len(d.Records) != want {
			t.Fatalf("%s from %d: %d rows, want %d", name, first, len(d.Records), want)
		}
		if len(d.Records) > 0 && d.DMARC.Policy.P != "reject" {
			t.Errorf("%s from %d: %+v", name, first, d.DMARC)
		}
		for _, r := range d.Records {
			if seen[r.SourceIP] {
				t.Fatalf("%s from %d: %s twice", name, first, r.SourceIP)
			}
			seen[r.SourceIP] = true
			if sorted && (r.Failed() && !wasFailed || r.Failed() == wasFailed && r.Count > was) {
				t.Fatalf("%s from %d: %t, %d behind %t, %d", name, first, r.Failed(), r.Count, wasFailed, was)
			}
			wasFailed, was = r.Failed(), r.Count
		}
	}
	if len(seen) != rows {
		t.Errorf("%s: %d rows", name, len(seen))
	}
}

// What is to be sent is read page by page as what was sent is, in both forms; very many rows
// are not sorted.
func TestDocuments(t *testing.T) {
	r := newRig(t)
	r.Legacy = only{"other.example"}
	r.dns.Add(`_dmarc.example.com. IN TXT "v=DMARC1; p=reject; rua=mailto:a@example.com,mailto:a@other.example"`)
	r.dns.Add(`example.com._report._dmarc.other.example. IN TXT "v=DMARC1"`)
	for _, c := range []struct {
		day    time.Time
		rows   int
		sorted bool
	}{{monday, 333, true}, {monday.AddDate(0, 0, 1), maxSorted + 150, false}} {
		r.clock = c.day.Add(24*time.Hour + Grace)
		r.fill(c.day, "example.com", c.rows)
		gs, err := r.store.Groups(t.Context(), r.clock)
		if err != nil || len(gs) != 1 {
			t.Fatal(gs, err)
		}
		wantRows(t, "upcoming", c.rows, c.sorted, func(first, most int) (*Document, error) {
			u, err := r.Upcoming(t.Context(), "example.com", nil, gs[0].ID, first, most)
			if err != nil {
				return nil, err
			}
			if u.Count != gs[0].Total || u.Failed == 0 || u.Passed+u.Failed != u.Count || u.State != StateDue || u.Policies[0].ID != gs[0].ID {
				t.Errorf("%+v %+v", u.Entry, u.Results)
			}
			return u.Document, nil
		})
		r.send()
		all, err := r.reports()
		if err != nil {
			t.Fatal(err)
		}
		rep := &all[len(all)-1]
		files, err := r.Files(rep)
		if err != nil || strings.Join(files, " ") != "report.xml.gz report-rfc7489.xml.gz" {
			t.Fatal(files, err)
		}
		for _, file := range files {
			wantRows(t, file, c.rows, c.sorted, func(first, most int) (*Document, error) { return r.Document(rep, file, first, most) })
			f, name, err := r.Open(rep, file)
			if err != nil || name != fmt.Sprintf("reporter.example!example.com!%d!%d!%s.xml.gz", c.day.Unix(), c.day.Unix()+86399, rep.ID) {
				t.Error(name, err)
			}
			f.Close()
		}
		if _, _, err := r.Open(rep, "../.lock"); !errors.Is(err, errNoContent) {
			t.Errorf("a file that is none of the report's: %v", err)
		}
		if _, err := r.Upcoming(t.Context(), "example.com", nil, gs[0].ID, 0, 10); !errors.Is(err, errNothingNew) {
			t.Errorf("sealed: %v", err)
		}
	}
}

// A survey tells of all that was counted, once, before a report is made and after it, and of
// one domain the same.
func TestSurvey(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`_dmarc.example.com. IN TXT "v=DMARC1; p=reject; rua=mailto:a@example.com"`)
	r.clock = monday.Add(12 * time.Hour)
	r.fill(monday, "example.com", 100)
	r.fill(monday, "unwanted.example", 50)
	const failed, passed = 4*1 + 3*2 + 3*3, 199 - (4*1 + 3*2 + 3*3)
	check := func(when string, reports int) {
		t.Helper()
		s, err := r.Survey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		d, err := r.SurveyDomain(t.Context(), "example.com", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []*Survey{s, d} {
			c := s.Domains["example.com"]
			if c == nil || c[ruapost.OutcomePass] != passed || c[ruapost.OutcomeReject] != failed || c.Total() != passed+failed {
				t.Errorf("%s: %v, want %d and %d", when, c, passed, failed)
			}
			if !s.Counted.Equal(monday) || !s.Sources.Since.Equal(monday) || s == d && (len(s.Sources.Lines) != 10 || s.Sources.Lines[0].Count != 3) {
				t.Errorf("%s: since %v, sources %+v", when, s.Counted, s.Sources)
			}
			n := 0
			for _, e := range s.Entries {
				if e.ReportID != "" {
					n++
				}
				if e.Domain == "example.com" && (e.Results == nil || e.Passed != passed || e.Failed != failed) {
					t.Errorf("%s: %+v %+v", when, e, e.Results)
				}
			}
			if n != reports {
				t.Errorf("%s: %d reports", when, n)
			}
		}
		if c := s.Domains["unwanted.example"]; c == nil || c.Total() != 99 {
			t.Errorf("%s: what nobody wants: %v", when, c)
		}
		if c := d.Days[len(d.Days)-1-int(r.clock.Sub(monday).Hours()/24)].Counts; c == nil || c.Total() != passed+failed {
			t.Errorf("%s: the day: %v", when, c)
		}
		if c := s.Days[SurveyDays-1].Counts; c != nil {
			t.Errorf("%s: of all messages none was counted, but %v", when, c)
		}
		if d.Domains["unwanted.example"] != nil {
			t.Errorf("%s: another domain's totals", when)
		}
	}
	check("recorded", 0)
	r.clock = monday.Add(24*time.Hour + Grace)
	r.send()
	if len(r.taken()) != 1 {
		t.Error("nothing was sent")
	}
	check("reported", 1)
	// And nothing is left of what is to be forgotten.
	if _, _, err := r.Forget(t.Context(), "example.com"); err != nil {
		t.Fatal(err)
	}
	if s, err := r.Survey(t.Context()); err != nil || s.Domains["example.com"] != nil || len(s.Sources.Lines) != 0 {
		t.Errorf("forgotten: %+v, %v", s, err)
	}
}

// only is a set of one name.
type only []string

func (o only) Has(name string) bool { return strings.HasSuffix(name, o[0]) }

// What was recorded before outcomes were counted is told of as not known.
func TestResultsNotKnown(t *testing.T) {
	g := ruapost.Group{Kind: ruapost.KindDMARC, Total: 5, Passed: 2}
	if res := groupResults([]ruapost.Group{g}); res != nil {
		t.Errorf("%+v", res)
	}
	g.Failed = 3
	g.Rejected = 1
	if res := groupResults([]ruapost.Group{g}); res == nil || res.Passed != 2 || res.Failed != 3 || res.Treated[ruapost.DispositionReject] != 1 ||
		res.Treated[ruapost.DispositionNone] != 2 {
		t.Errorf("%+v", res)
	}
}

// The rows of a TLS report are those of all its policies, the ones that count more first
// under each.
func TestTLSDocument(t *testing.T) {
	const policy = `{"failure-details":[{"failed-session-count":1,"failure-reason-code":"a"},` +
		`{"failed-session-count":3,"failure-reason-code":"b"},{"failed-session-count":2,"failure-reason-code":"c"}]}`
	open := func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(`{"policies":[` + policy + `,{},` + policy + `]}`)), nil
	}
	for first, want := range []string{"bc|", "ca|", "a|b", "|bc", "|ca", "|a", "|", "|"} {
		d, err := tlsDocument(open, first, 2)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for i, p := range d.TLS.Policies {
			for _, f := range p.Failures {
				got += f.Reason
			}
			if i == 1 {
				got += "|"
			}
		}
		if got != want || d.First != first || d.Rows != 6 || d.Shown != len(want)-1 {
			t.Errorf("from %d: %q, %d of %d", first, got, d.Shown, d.Rows)
		}
	}
}
