package web

import (
	"cmp"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"ruapost"
	"ruapost/check"
	"ruapost/reporting"
)

// overview is the first page.
type overview struct {
	At                    time.Time
	Messages, TLS         *plot
	Reports               []tile
	Sources, Failures     *ranking
	Domains, Destinations []domainLine
	Suppressed            int
	Oldest                time.Time // the first window of the reports that are kept
	// Counted is the first day that figures of domains are of.
	Counted  time.Time
	Counters []counter
}

type counter struct {
	Name string
	N    uint64
}

// tile is a number that leads to a list.
type tile struct {
	Name, State, Class string
	N                  int
}

type ranking struct {
	reporting.Ranking
	Max int64
}

const shownLines = 10

func (h *Handler) overview(r *http.Request) (*answer, error) {
	s, err := h.surveys.get(r.Context())
	if err != nil {
		return nil, err
	}
	o := &overview{
		At:       s.At,
		Messages: messagePlot(s.Days), TLS: tlsPlot(s.Days),
		Sources: newRanking(&s.Sources, shownLines), Failures: newRanking(&s.Failures, shownLines),
		Counted: s.Counted,
	}
	n := map[string]int{}
	for i := range s.Entries {
		e := &s.Entries[i]
		n[e.State]++
		if e.ReportID != "" && (o.Oldest.IsZero() || e.Window.Start.Before(o.Oldest)) {
			o.Oldest = e.Window.Start
		}
	}
	for _, st := range states {
		if st.tile {
			o.Reports = append(o.Reports, tile{st.title, st.name, st.class, n[st.name]})
		}
	}
	for i := range s.Suppressions {
		if s.Suppressions[i].Active(s.At) {
			o.Suppressed++
		}
	}
	lines := domainLines(s)
	o.Domains = worstDomains(lines, func(l domainLine) int64 { return l.Failed })
	o.Destinations = worstDomains(lines, func(l domainLine) int64 { return l.TLSFailed })
	for _, name := range slices.Sorted(maps.Keys(s.Counters)) {
		o.Counters = append(o.Counters, counter{strings.ReplaceAll(name, "_", " "), s.Counters[name]})
	}
	return &answer{page: "overview", title: "Overview", data: o}, nil
}

func newRanking(k *reporting.Ranking, most int) *ranking {
	v := &ranking{Ranking: *k}
	v.Lines = k.Lines[:min(len(k.Lines), most)]
	if len(v.Lines) > 0 {
		v.Max = v.Lines[0].Count
	}
	return v
}

// domainLine is a domain in a list.
type domainLine struct {
	Domain              string
	Passed, Failed      int64 // messages
	Unknown             int64 // messages of which that is not known
	Sessions, TLSFailed int64
	// State is that of what needs an eye most, of what is recorded and the reports kept.
	State string
}

func domainLines(s *reporting.Survey) []domainLine {
	byName := map[string]*domainLine{}
	line := func(domain string) *domainLine {
		if byName[domain] == nil {
			byName[domain] = &domainLine{Domain: domain}
		}
		return byName[domain]
	}
	for domain, c := range s.Domains {
		l := line(domain)
		l.Passed, l.Failed, l.Unknown = c[ruapost.OutcomePass], c.FailedMessages(), c[ruapost.OutcomeUnknown]
		l.TLSFailed = c.FailedSessions()
		l.Sessions = l.TLSFailed + c[ruapost.OutcomeSTS] + c[ruapost.OutcomeTLSA] + c[ruapost.OutcomeNoTLSPolicy]
	}
	for i := range s.Entries {
		l := line(s.Entries[i].Domain)
		if l.State == "" || rankOf(s.Entries[i].State) < rankOf(l.State) {
			l.State = s.Entries[i].State
		}
	}
	lines := make([]domainLine, 0, len(byName))
	for _, l := range byName {
		lines = append(lines, *l)
	}
	return lines
}

// worstDomains returns those of which most has failed.
func worstDomains(lines []domainLine, failed func(domainLine) int64) []domainLine {
	var worst []domainLine
	for _, l := range lines {
		if failed(l) > 0 {
			worst = append(worst, l)
		}
	}
	slices.SortFunc(worst, func(a, b domainLine) int {
		return cmp.Or(cmp.Compare(failed(b), failed(a)), cmp.Compare(a.Domain, b.Domain))
	})
	return worst[:min(len(worst), shownLines)]
}

// pages is which part of a list is shown, and the way to the others.
type pages struct {
	First, Last, All int // numbers from 1
	Previous, Next   string
}

// pageOf returns the number, from 0, of the first line of the page that is asked for.
func pageOf(r *http.Request) int {
	n, err := strconv.Atoi(r.URL.Query().Get("page"))
	if err != nil || n < 1 || n > 1_000_000 {
		return 0
	}
	return (n - 1) * pageRows
}

func newPages(r *http.Request, first, shown, all int) pages {
	p := pages{First: min(first+1, all), Last: first + shown, All: all}
	link := func(first int) string {
		query := r.URL.Query()
		query.Del("done")
		query.Set("page", strconv.Itoa(first/pageRows+1))
		return "?" + query.Encode()
	}
	if first > 0 {
		p.Previous = link(max(0, min(first, all+pageRows-1)-pageRows))
	}
	if first+shown < all {
		p.Next = link(first + pageRows)
	}
	return p
}

// part returns the part of a list that a page shows.
func part[T any](r *http.Request, all []T) ([]T, pages) {
	first := min(pageOf(r), len(all))
	some := all[first:min(len(all), first+pageRows)]
	return some, newPages(r, first, len(some), len(all))
}

func (h *Handler) domains(r *http.Request) (*answer, error) {
	s, err := h.surveys.get(r.Context())
	if err != nil {
		return nil, err
	}
	query := strings.ToLower(strings.TrimSpace(r.URL.Query().Get("q")))
	lines := slices.DeleteFunc(domainLines(s), func(l domainLine) bool { return !strings.Contains(l.Domain, query) })
	sort := r.URL.Query().Get("sort")
	order := map[string]func(a, b domainLine) int{
		"messages": func(a, b domainLine) int {
			return cmp.Compare(b.Passed+b.Failed+b.Unknown, a.Passed+a.Failed+a.Unknown)
		},
		"sessions": func(a, b domainLine) int { return cmp.Compare(b.Sessions, a.Sessions) },
		"name":     func(domainLine, domainLine) int { return 0 },
	}[sort]
	if order == nil {
		sort = "failed"
		order = func(a, b domainLine) int { return cmp.Compare(b.Failed+b.TLSFailed, a.Failed+a.TLSFailed) }
	}
	slices.SortFunc(lines, func(a, b domainLine) int { return cmp.Or(order(a, b), cmp.Compare(a.Domain, b.Domain)) })
	data := struct {
		At, Counted time.Time
		Query, Sort string
		Lines       []domainLine
		Pages       pages
	}{At: s.At, Counted: s.Counted, Query: query, Sort: sort}
	data.Lines, data.Pages = part(r, lines)
	return &answer{page: "domains", title: "Domains", data: data}, nil
}

func (h *Handler) domain(r *http.Request) (*answer, error) {
	domain, err := domainOf(r)
	if err != nil {
		return nil, err
	}
	s, err := h.Reporter.SurveyDomain(r.Context(), domain, h.surveys.reportsAbout(domain))
	if err != nil {
		return nil, err
	}
	if len(s.Entries) == 0 && s.Domains[domain] == nil {
		return nil, fmt.Errorf("%s: %w", domain, reporting.ErrNothing)
	}
	data := struct {
		Domain            string
		At                time.Time
		Messages, TLS     *plot
		Recorded, Reports []reporting.Entry
		Sources, Failures *ranking
		Next              *reporting.Upcoming
	}{
		Domain: domain, At: s.At, Messages: messagePlot(s.Days), TLS: tlsPlot(s.Days),
		Sources: newRanking(&s.Sources, 2*shownLines), Failures: newRanking(&s.Failures, 2*shownLines),
	}
	for _, e := range s.Entries {
		if e.ReportID == "" {
			data.Recorded = append(data.Recorded, e)
		} else {
			data.Reports = append(data.Reports, e)
		}
	}
	newestFirst(data.Reports)
	if len(data.Recorded) > 0 {
		ids := []string{} // not nil: all were looked for
		for _, e := range data.Reports {
			ids = append(ids, e.ReportID)
		}
		data.Next, err = h.Reporter.Upcoming(r.Context(), domain, ids, data.Recorded[0].Group, 0, previewRows)
	}
	return &answer{page: "domain", title: domain, data: data}, ignoreNothing(err)
}

// ignoreNothing leaves out that a report was sealed meanwhile.
func ignoreNothing(err error) error {
	if err != nil && isNothing(err) {
		return nil
	}
	return err
}

func newestFirst(entries []reporting.Entry) {
	slices.SortStableFunc(entries, func(a, b reporting.Entry) int {
		return cmp.Or(b.Window.Start.Compare(a.Window.Start), cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.Kind, b.Kind))
	})
}

// next is the page of a report that is not made yet.
func (h *Handler) next(r *http.Request) (*answer, error) {
	domain, err := domainOf(r)
	if err != nil {
		return nil, err
	}
	group, err := strconv.ParseUint(r.PathValue("group"), 10, 64)
	if err != nil {
		return nil, errNotFound
	}
	first := pageOf(r)
	u, err := h.Reporter.Upcoming(r.Context(), domain, h.surveys.reportsAbout(domain), ruapost.GroupID(group), first, pageRows)
	if err != nil {
		return nil, err
	}
	data := struct {
		*reporting.Upcoming
		Pages pages
	}{Upcoming: u}
	if d := u.Document; d != nil {
		data.Pages = newPages(r, d.First, d.Shown, d.Rows)
	}
	return &answer{page: "next", title: domain + ", next report", data: data}, nil
}

// findReport returns the report that a path names.
func (h *Handler) findReport(r *http.Request) (*ruapost.Report, error) {
	id := r.PathValue("id")
	if !isPlain(id) {
		return nil, errNotFound
	}
	return h.Reporter.FindReport(r.Context(), id)
}

func (h *Handler) report(r *http.Request) (*answer, error) {
	rep, err := h.findReport(r)
	if err != nil {
		return nil, err
	}
	data := struct {
		Report      *ruapost.Report
		Entry       reporting.Entry
		Files       []string
		File        string
		Document    *reporting.Document
		Unreadable  string
		Pages       pages
		CanBeResent bool
	}{Report: rep, Entry: h.Reporter.EntryOf(rep)}
	if data.Files, err = h.Reporter.Files(rep); err != nil {
		return nil, err
	}
	if len(data.Files) > 0 {
		data.File = data.Files[0]
		if file := r.URL.Query().Get("form"); slices.Contains(data.Files, file) {
			data.File = file
		}
		first := pageOf(r)
		if data.Document, err = h.Reporter.Document(rep, data.File, first, pageRows); err != nil {
			data.Document, data.Unreadable = nil, ruapost.Clean(err.Error(), 500)
		} else {
			data.Pages = newPages(r, first, data.Document.Shown, data.Document.Rows)
		}
	}
	data.CanBeResent = rep.State != ruapost.ReportSealed && len(data.Files) > 0
	return &answer{page: "report", title: "Report about " + rep.Domain, data: data}, nil
}

// download sends the file of a report, as its receivers get it.
func (h *Handler) download(r *http.Request) (*answer, error) {
	rep, err := h.findReport(r)
	if err != nil {
		return nil, err
	}
	f, name, err := h.Reporter.Open(rep, r.PathValue("file"))
	if err != nil {
		return nil, httpError{http.StatusNotFound, "That is not kept any more."}
	}
	return &answer{write: func(w http.ResponseWriter, r *http.Request) {
		defer f.Close()
		w.Header().Set("Content-Type", "application/gzip")
		// The name has the domain in it, which is no more than letters, digits, "-", "_" and
		// dots; whatever else it were, this makes a value of it.
		w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
		http.ServeContent(w, r, "", time.Time{}, f)
	}}, nil
}

func (h *Handler) reports(r *http.Request) (*answer, error) {
	s, err := h.surveys.get(r.Context())
	if err != nil {
		return nil, err
	}
	query := r.URL.Query()
	state, kind := query.Get("state"), query.Get("kind")
	q := strings.ToLower(strings.TrimSpace(query.Get("q")))
	n := map[string]int{}
	var entries []reporting.Entry
	all := 0
	for _, e := range s.Entries {
		if kind != "" && string(e.Kind) != kind || !strings.Contains(e.Domain, q) && !strings.HasPrefix(e.ReportID, cmp.Or(q, "-")) {
			continue
		}
		all++
		n[e.State]++
		if state == "" || e.State == state {
			entries = append(entries, e)
		}
	}
	newestFirst(entries)
	tabs := []tile{{Name: "All", N: all}}
	for _, st := range states {
		if n[st.name] > 0 || st.name == state {
			tabs = append(tabs, tile{st.title, st.name, st.class, n[st.name]})
		}
	}
	data := struct {
		At                 time.Time
		Query, State, Kind string
		Tabs               []tile
		Entries            []reporting.Entry
		Pages              pages
	}{At: s.At, Query: q, State: state, Kind: kind, Tabs: tabs}
	data.Entries, data.Pages = part(r, entries)
	return &answer{page: "reports", title: "Reports", data: data}, nil
}

func (h *Handler) suppressions(r *http.Request) (*answer, error) {
	s, err := h.surveys.get(r.Context())
	if err != nil {
		return nil, err
	}
	q := strings.ToLower(strings.TrimSpace(r.URL.Query().Get("q")))
	var list []ruapost.Suppression
	for _, sup := range s.Suppressions {
		if strings.Contains(sup.Pattern, q) {
			list = append(list, sup)
		}
	}
	data := struct {
		At           time.Time
		Query        string
		Suppressions []ruapost.Suppression
		Pages        pages
	}{At: s.At, Query: q}
	data.Suppressions, data.Pages = part(r, list)
	return &answer{page: "suppressions", title: "Suppressions", data: data}, nil
}

func (h *Handler) dns(r *http.Request) (*answer, error) {
	data := struct {
		Ran      bool
		At       time.Time
		Findings []check.Finding
		Records  []check.Record
	}{At: time.Now().UTC()}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "cross-site", "same-site": // a page of somebody else does not have the DNS asked
	default:
		data.Ran = r.URL.Query().Has("run")
	}
	if data.Ran {
		ctx, cancel := contextWithTimeout(r, checkTimeout)
		defer cancel()
		data.Findings, data.Records = h.Check(ctx)
		slices.SortStableFunc(data.Findings, func(a, b check.Finding) int { return levelRank(a.Level) - levelRank(b.Level) })
	}
	return &answer{page: "dns", title: "DNS", data: data}, nil
}

// query returns a query of the page of reports.
func query(pairs ...string) string {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	return "?" + v.Encode()
}
