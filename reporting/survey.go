package reporting

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"slices"
	"strings"
	"time"

	"ruapost"
)

const (
	// SurveyDays is for how many days, the current one among them, a Survey has totals.
	SurveyDays = 30
	// maxSurveyRows is the number of recorded rows that a Survey looks through for sources
	// and failures: a few hundredths of a second's work.
	maxSurveyRows = 5_000
	// maxRanked is the number of sources, or failures, that a Ranking has.
	maxRanked = 20
)

// Survey is what there is to look at, as of a moment.
type Survey struct {
	At time.Time
	// Entries are what is recorded or due, then all reports that are kept, oldest first.
	Entries []Entry
	// Days are the last SurveyDays days, the oldest first; Counts is nil of one of which
	// nothing was counted.
	Days []DayCounts
	// Domains are the totals of these days by domain, ruapost.OtherDomains among them;
	// what is not sealed yet is counted in.
	Domains map[string]*ruapost.OutcomeCounts
	// Counted is the first day that these have something of, zero if none.
	Counted time.Time
	// Sources are those of messages that failed DMARC, Failures those of TLS.
	Sources, Failures Ranking
	Suppressions      []ruapost.Suppression
	Counters          map[string]uint64
}

// DayCounts are the totals of a UTC day.
type DayCounts struct {
	Day    time.Time
	Counts *ruapost.OutcomeCounts
}

// Ranking is what failed most, of what is recorded and of the reports that are kept.
type Ranking struct {
	// Lines are the largest counts, the largest first.
	Lines []Ranked
	// AtLeast says that counts are lower bounds, and that others may be as large: a report
	// that is sent names only its ten largest, and of what is recorded not every row was
	// looked at.
	AtLeast bool
	// Since is when the first window of these begins.
	Since time.Time
}

// Ranked is one line of a Ranking.
type Ranked struct {
	Count int64
	// Words are, of a source, its address, what was done and the domain in From; of a
	// failure its type, the mail server and the reason.
	Words [3]string
}

// Survey looks at everything. What is recorded meanwhile may be counted or not.
func (r *Reporter) Survey(ctx context.Context) (*Survey, error) {
	return r.survey(ctx, "", r.Store.Reports(ctx))
}

// SurveyDomain is Survey for what is about one domain, without Suppressions and Counters.
// The reports are those with these identifiers; if ids is nil, they are looked for among
// all.
func (r *Reporter) SurveyDomain(ctx context.Context, domain string, ids []string) (*Survey, error) {
	return r.survey(ctx, domain, r.reportsAbout(ctx, domain, ids))
}

// reportsAbout are the reports about a domain: those with these identifiers, or, if ids is
// nil, those that are found among all.
func (r *Reporter) reportsAbout(ctx context.Context, domain string, ids []string) iter.Seq2[ruapost.Report, error] {
	return func(yield func(ruapost.Report, error) bool) {
		if ids == nil {
			for rep, err := range r.Store.Reports(ctx) {
				if (err != nil || rep.Domain == domain) && !yield(rep, err) {
					return
				}
			}
			return
		}
		for _, id := range ids {
			rep, err := r.Store.Report(ctx, id)
			switch {
			case errors.Is(err, ruapost.ErrNoReport): // forgotten meanwhile
				continue
			case err != nil:
				yield(ruapost.Report{}, err)
				return
			case !yield(*rep, nil):
				return
			}
		}
	}
}

func (r *Reporter) survey(ctx context.Context, domain string, reports iter.Seq2[ruapost.Report, error]) (*Survey, error) {
	s := &Survey{At: r.now(), Domains: map[string]*ruapost.OutcomeCounts{}}
	today := ruapost.Day(s.At).Start
	for ago := SurveyDays - 1; ago >= 0; ago-- {
		s.Days = append(s.Days, DayCounts{Day: today.AddDate(0, 0, -ago)})
	}
	// First the totals: what is sealed meanwhile is in neither rather than in both.
	for t, err := range r.Store.Tallies(ctx, s.Days[0].Day, domain) {
		if err != nil {
			return nil, err
		}
		s.addTally(&t, domain)
	}
	due, err := r.due(ctx, r.before(Selection{Open: true}), domain)
	if err != nil {
		return nil, err
	}
	k := &ranker{}
	for i := range due {
		e := r.dueEntry(&due[i])
		e.Results = groupResults(e.groups)
		for _, g := range e.groups {
			t := ruapost.Tally{Day: ruapost.Day(g.Window.Start).Start, Kind: g.Kind, Domain: g.Domain, Counts: g.Outcomes()}
			s.addTally(&t, domain)
		}
		e.groups = nil
		s.Entries = append(s.Entries, e)
	}
	if err := k.recorded(ctx, r, due); err != nil {
		return nil, err
	}
	if err := r.surveyReports(s, k, reports); err != nil {
		return nil, err
	}
	s.Sources, s.Failures = k.sources.ranking(), k.failures.ranking()
	if domain == "" {
		if s.Counters, err = r.Store.Counts(ctx); err == nil {
			s.Suppressions, err = r.Store.Suppressions(ctx)
		}
	}
	return s, err
}

// addTally counts t in. Of everything, days have what is counted of all messages; of one
// domain, those of that.
func (s *Survey) addTally(t *ruapost.Tally, domain string) {
	i := int(t.Day.Sub(s.Days[0].Day) / (24 * time.Hour))
	if i < 0 || i >= len(s.Days) {
		return
	}
	if t.Domain != ruapost.WholeDay {
		if s.Domains[t.Domain] == nil {
			s.Domains[t.Domain] = &ruapost.OutcomeCounts{}
		}
		s.Domains[t.Domain].Add(&t.Counts)
		if s.Counted.IsZero() || t.Day.Before(s.Counted) {
			s.Counted = t.Day
		}
	}
	if t.Domain != domain {
		return
	}
	if s.Days[i].Counts == nil {
		s.Days[i].Counts = &ruapost.OutcomeCounts{}
	}
	s.Days[i].Counts.Add(&t.Counts)
}

func (r *Reporter) surveyReports(s *Survey, k *ranker, reports iter.Seq2[ruapost.Report, error]) error {
	for rep, err := range reports {
		if err != nil {
			return err
		}
		e := r.reportEntry(&rep)
		sum := frozenSummary(&rep)
		if sum != nil {
			k.reported(&rep, sum)
		}
		e.Results = reportResults(&rep, sum)
		e.groups, e.report = nil, nil // nobody asks for these, and there may be many
		s.Entries = append(s.Entries, e)
	}
	return nil
}

// ranker finds out what failed most.
type ranker struct {
	sources, failures ranked
}

// ranked is a Ranking that is not sorted yet: sources by address, failures by all words.
type ranked struct {
	Ranking
	lines map[[3]string]*Ranked
}

func (k *ranker) of(kind ruapost.Kind) *ranked {
	if kind == ruapost.KindTLS {
		return &k.failures
	}
	return &k.sources
}

func (rk *ranked) window(w ruapost.Window) {
	if rk.Since.IsZero() || w.Start.Before(rk.Since) {
		rk.Since = w.Start
	}
}

func (rk *ranked) add(kind ruapost.Kind, words []string, n int64) {
	var all, key [3]string
	copy(all[:], words)
	if key = all; kind == ruapost.KindDMARC {
		key = [3]string{all[0]}
	}
	l := rk.lines[key]
	switch {
	case l != nil:
		for i := range all {
			if l.Words[i] != all[i] {
				l.Words[i] = orMore(strings.TrimSuffix(l.Words[i], orMore("", true)), true)
			}
		}
		l.Count += n
		return
	case len(rk.lines) >= maxSources:
		rk.AtLeast = true
		return
	case rk.lines == nil:
		rk.lines = map[[3]string]*Ranked{}
	}
	rk.lines[key] = &Ranked{n, all}
}

// reported adds what the summary of a report has: those that failed most in it.
func (k *ranker) reported(rep *ruapost.Report, sum *summary) {
	rk := k.of(rep.Kind)
	rk.window(rep.Window)
	for _, w := range sum.Worst {
		rk.add(rep.Kind, w.Words, w.Count)
		rk.AtLeast = rk.AtLeast || w.AtLeast
	}
	rk.AtLeast = rk.AtLeast || sum.Unlisted > 0 || len(sum.Worst) >= maxWorst
}

// recorded looks through rows that are not in a report yet, first those of the groups that
// have most failures.
func (k *ranker) recorded(ctx context.Context, r *Reporter, due []dueReport) error {
	var groups []ruapost.Group
	for i := range due {
		k.of(due[i].kind).window(due[i].window)
		for _, g := range due[i].groups {
			if g.Kind == ruapost.KindTLS && g.Rows > 0 || g.Kind == ruapost.KindDMARC && g.Passed < g.Total {
				groups = append(groups, g)
			}
		}
	}
	slices.SortStableFunc(groups, func(a, b ruapost.Group) int { return cmp.Compare(b.Failed, a.Failed) })
	left := int64(maxSurveyRows)
	for i := range groups {
		n, err := k.rows(ctx, r, &groups[i], left)
		if err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// rows looks through at most so many rows of a group.
func (k *ranker) rows(ctx context.Context, r *Reporter, g *ruapost.Group, most int64) (read int64, err error) {
	var sum summary
	if most > 0 {
		for row, err := range r.Store.Rows(ctx, g.ID) {
			if err == nil {
				err = sum.addRow(g.Kind, &row)
			}
			if err != nil {
				return read, err
			}
			if read++; read == most {
				break
			}
		}
	}
	rk := k.of(g.Kind)
	rk.AtLeast = rk.AtLeast || read < g.Rows || g.Listed < g.Total && g.Kind == ruapost.KindDMARC
	for _, c := range sum.sources.counters {
		rk.add(g.Kind, sourceWords(c), c.lower())
	}
	for _, c := range sum.failures.counters {
		rk.add(g.Kind, c.key.words(), c.lower())
	}
	return read, nil
}

// addRow adds a row as the store has it.
func (s *summary) addRow(kind ruapost.Kind, row *ruapost.Row) error {
	if kind == ruapost.KindTLS {
		var f ruapost.TLSFailure
		if err := json.Unmarshal(row.Data, &f); err != nil {
			return err
		}
		s.addTLS(row.Count, &f)
		return nil
	}
	var res ruapost.DMARCResult
	if err := json.Unmarshal(row.Data, &res); err != nil {
		return err
	}
	s.addDMARC(row.Count, &res)
	return nil
}

func (rk *ranked) ranking() Ranking {
	for _, l := range rk.lines {
		rk.Lines = append(rk.Lines, *l)
	}
	slices.SortFunc(rk.Lines, func(a, b Ranked) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), slices.Compare(a.Words[:], b.Words[:]))
	})
	rk.Lines = slices.Clone(rk.Lines[:min(len(rk.Lines), maxRanked)])
	return rk.Ranking
}
