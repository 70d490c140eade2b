package reporting

import (
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"ruapost"
	"ruapost/dmarc"
	"ruapost/tlsrpt"
)

const (
	// maxSorted is the number of rows of a report that are sorted to be looked at.
	maxSorted = 10_000
	// maxDocument is the size of a TLS report, not compressed, that is read to be looked at.
	maxDocument = 32 << 20
)

// ErrTooLarge is returned, wrapped, for a TLS report that is too large to be looked at.
var ErrTooLarge = errors.New("too large to be shown")

// Document is a report as its receivers read it, with some of its rows.
type Document struct {
	// DMARC and Records are what a DMARC report says, TLS what a TLS report does, of whose
	// rows, the failures of all its policies, the others are left out.
	DMARC   *dmarc.Published
	Records []dmarc.PublishedRecord
	TLS     *tlsrpt.Published
	// First is the number of the first of these rows, from 0, Shown how many they are, and
	// Rows how many there are.
	First, Shown, Rows int
	// Sorted says that what failed comes first, then what counts more. A report with very
	// many rows is shown as it is.
	Sorted bool
}

// Files returns the names of the files that have the content of a report, in its forms;
// none if it is not composed, or if that is not kept.
func (r *Reporter) Files(rep *ruapost.Report) (names []string, err error) {
	files, err := r.frozenForms(rep)
	for _, file := range files {
		names = append(names, filepath.Base(file))
	}
	return names, err
}

// Open opens one of the files that Files returns, compressed, and says what receivers
// get it as.
func (r *Reporter) Open(rep *ruapost.Report, name string) (f *os.File, filename string, err error) {
	files, err := r.frozenForms(rep)
	if err != nil {
		return nil, "", err
	}
	i := slices.IndexFunc(files, func(file string) bool { return filepath.Base(file) == name })
	if i < 0 {
		return nil, "", fmt.Errorf("report %s: %w", rep.ID, errNoContent)
	}
	f, err = os.Open(files[i])
	if err != nil {
		return nil, "", fmt.Errorf("reporting: outbox: %w", err)
	}
	return f, r.filename(rep), nil
}

// Document reads one of the files that Files returns, and so many of its rows from a
// number on.
func (r *Reporter) Document(rep *ruapost.Report, name string, first, most int) (*Document, error) {
	open := func() (io.ReadCloser, error) {
		f, _, err := r.Open(rep, name)
		if err != nil {
			return nil, err
		}
		zr, err := gzip.NewReader(f)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("reporting: %s: %w", f.Name(), err), f.Close())
		}
		return struct {
			io.Reader
			io.Closer
		}{zr, f}, nil
	}
	if rep.Kind == ruapost.KindTLS {
		return tlsDocument(open, first, most)
	}
	total := int64(0)
	for _, g := range rep.Groups {
		total += g.Rows
	}
	return dmarcDocument(open, int(total), first, most)
}

// tlsDocument reads all of a report, and leaves some of the failures.
func tlsDocument(open func() (io.ReadCloser, error), first, most int) (*Document, error) {
	f, err := open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	limited := &io.LimitedReader{R: f, N: maxDocument}
	p, err := tlsrpt.ReadReport(limited)
	if limited.N <= 0 {
		return nil, ErrTooLarge
	}
	if err != nil {
		return nil, err
	}
	d := &Document{TLS: p, First: first, Sorted: true}
	for i := range p.Policies {
		all := p.Policies[i].Failures
		slices.SortStableFunc(all, func(a, b tlsrpt.PublishedFailure) int { return cmp.Compare(b.Count, a.Count) })
		from := min(max(first-d.Rows, 0), len(all))
		some := all[from:max(from, min(first+most-d.Rows, len(all)))]
		d.Rows += len(all)
		d.Shown += len(some)
		p.Policies[i].Failures = some
	}
	return d, nil
}

// dmarcDocument reads a report of so many rows twice, if these are to be sorted: first how
// they are to be, then those that are asked for.
func dmarcDocument(open func() (io.ReadCloser, error), rows, first, most int) (*Document, error) {
	d := &Document{First: first, Rows: rows, Sorted: rows <= maxSorted}
	var places []int // of those that are asked for, in the report
	if d.Sorted {
		var all []rank
		_, err := readRecords(open, func(n int, x *dmarc.ReportReader) (bool, error) {
			failed, count := x.Rank()
			all = append(all, rank{n, failed, count})
			return n < 2*maxSorted, nil // its groups say so, but the file is another thing
		})
		if err != nil {
			return nil, err
		}
		d.Rows = len(all)
		places = placesOf(all, first, most)
	} else {
		for i := first; i < min(rows, first+most); i++ {
			places = append(places, i)
		}
	}
	byPlace := map[int]int{}
	for i, place := range places {
		byPlace[place] = i
	}
	d.Shown = len(places)
	d.Records = make([]dmarc.PublishedRecord, len(places))
	left := len(places)
	published, err := readRecords(open, func(n int, x *dmarc.ReportReader) (bool, error) {
		i, ok := byPlace[n]
		if !ok {
			return left > 0, nil
		}
		record, err := x.Record()
		d.Records[i] = record
		left--
		return left > 0, err
	})
	d.DMARC = published
	return d, err
}

// rank is what a row is sorted by.
type rank struct {
	place  int
	failed bool
	count  int64
}

// placesOf returns the places of some rows in the order that they are shown in.
func placesOf(all []rank, first, most int) (places []int) {
	slices.SortFunc(all, func(a, b rank) int {
		if a.failed != b.failed {
			if a.failed {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.count, a.count), cmp.Compare(a.place, b.place))
	})
	for i := max(first, 0); i < min(len(all), first+most); i++ {
		places = append(places, all[i].place)
	}
	return places
}

// readRecords goes through a report until visit, which gets the number of each record,
// returns false.
func readRecords(open func() (io.ReadCloser, error), visit func(n int, x *dmarc.ReportReader) (more bool, err error)) (*dmarc.Published, error) {
	f, err := open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	x, err := dmarc.NewReportReader(f)
	if err != nil {
		return nil, err
	}
	for n := 0; x.Next(); n++ {
		if more, err := visit(n, x); err != nil || !more {
			return &x.Published, err
		}
	}
	return &x.Published, x.Err()
}

// Upcoming is a report that could be made now.
type Upcoming struct {
	Entry
	// Policies are those that messages, or sessions, were held to.
	Policies []ruapost.Group
	// Document is what the report would say, nil if none would be made.
	Document *Document
}

// Upcoming returns the report that would be made of what is recorded about a domain, as
// Preview writes it, with so many of its rows from a number on: the one that Entry.Group is
// of. ids are the reports about the domain as SurveyDomain takes them. The error wraps
// ErrNothing if that is not recorded any more.
func (r *Reporter) Upcoming(ctx context.Context, domain string, ids []string, group ruapost.GroupID, first, most int) (*Upcoming, error) {
	due, covered, err := r.previews(ctx, domain, ids)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(due, func(d dueReport) bool { return d.groups[0].ID == group })
	if i < 0 {
		return nil, fmt.Errorf("%s, group %d: %w", domain, group, ErrNothing)
	}
	u := &Upcoming{Entry: r.dueEntry(&due[i]), Policies: due[i].groups}
	u.Results = groupResults(due[i].groups)
	if r.reportable(&due[i]) == nil {
		u.Document, err = r.upcoming(ctx, &due[i], covered, first, most)
	}
	return u, err
}

func (r *Reporter) upcoming(ctx context.Context, d *dueReport, covered coverage, first, most int) (*Document, error) {
	rep, legacy := r.previewOf(d, covered)
	write := func(rows iter.Seq2[ruapost.Row, error]) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) {
			pr, pw := io.Pipe()
			go func() {
				var err error
				if rep.Kind == ruapost.KindTLS {
					err = r.writeRecorded(ctx, pw, rep, legacy)
				} else {
					err = r.writeDMARC(pw, rep, legacy, rows, nil)
				}
				pw.CloseWithError(err)
			}()
			return pr, nil
		}
	}
	if rep.Kind == ruapost.KindTLS {
		return tlsDocument(write(nil), first, most)
	}
	total := int(rep.Groups[0].Rows)
	rows, sorted, err := r.someRows(ctx, rep.Groups[0].ID, total, first, most)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return &Document{First: first, Rows: total, Sorted: sorted}, nil
	}
	doc, err := dmarcDocument(write(rowsOf(rows)), len(rows), 0, most)
	if doc != nil {
		doc.First, doc.Rows, doc.Sorted = first, total, sorted
	}
	return doc, err
}

func rowsOf(rows []ruapost.Row) iter.Seq2[ruapost.Row, error] {
	return func(yield func(ruapost.Row, error) bool) {
		for _, row := range rows {
			if !yield(row, nil) {
				return
			}
		}
	}
}

// someRows returns the rows of a group that are shown together, of so many that it has.
func (r *Reporter) someRows(ctx context.Context, id ruapost.GroupID, rows, first, most int) (some []ruapost.Row, sorted bool, err error) {
	var all []ruapost.Row
	var ranks []rank
	sorted = rows <= maxSorted
	n := 0
	for row, err := range r.Store.Rows(ctx, id) {
		if err != nil {
			return nil, sorted, err
		}
		if !sorted {
			if n++; n > first {
				some = append(some, row)
			}
			if len(some) == most {
				break
			}
			continue
		}
		var aligned struct {
			DKIM bool `json:"dkim_aligned"`
			SPF  bool `json:"spf_aligned"`
		}
		if err := json.Unmarshal(row.Data, &aligned); err != nil {
			return nil, sorted, err
		}
		ranks = append(ranks, rank{len(all), !aligned.DKIM && !aligned.SPF, row.Count})
		all = append(all, row)
	}
	for _, place := range placesOf(ranks, first, most) {
		some = append(some, all[place])
	}
	return some, sorted, nil
}
