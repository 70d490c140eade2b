package reporting

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"ruapost"
)

// maxListedRows is the number of rows that List reads in all: about a second's work.
// What is past it has no results.
const maxListedRows = 200_000

// results is how the messages fared with DMARC that are listed in a report, or sessions
// with TLS.
type results struct {
	Passed int64 `json:"passed"`
	Failed int64 `json:"failed"`
	// Treated is what was done with messages that failed.
	Treated map[ruapost.Disposition]int64 `json:"treated,omitempty"`
}

// text is for a terminal. Nil is not known.
func (res *results) text(kind ruapost.Kind) string {
	switch {
	case res == nil, res.Passed+res.Failed == 0:
		return "-"
	case kind == ruapost.KindTLS:
		return fmt.Sprintf("failed %d of %d", res.Failed, res.Passed+res.Failed)
	case res.Failed == 0:
		return "all passed"
	}
	var treated []string
	for _, d := range slices.Sorted(maps.Keys(res.Treated)) {
		treated = append(treated, fmt.Sprintf("%s %d", d, res.Treated[d]))
	}
	return fmt.Sprintf("failed %d of %d: %s", res.Failed, res.Passed+res.Failed, strings.Join(treated, ", "))
}

// addResults finds out how what is listed fared.
func (r *Reporter) addResults(ctx context.Context, entries []listed) error {
	rows := int64(maxListedRows)
	for i := range entries {
		e := &entries[i]
		rep := e.report
		switch {
		case e.Kind == ruapost.KindTLS:
			e.results = tlsResults(e.groups)
		case rep != nil && rep.State != ruapost.ReportSealed:
			e.results = r.frozenResults(rep)
		case e.groups[0].Rows <= rows:
			rows -= e.groups[0].Rows
			res, err := r.recordedResults(ctx, e.groups[0].ID)
			if err != nil {
				return err
			}
			e.results = res
		}
	}
	return nil
}

func tlsResults(groups []ruapost.Group) *results {
	res := &results{}
	for _, g := range groups {
		res.Passed += g.Total - g.Failed
		res.Failed += g.Failed
	}
	return res
}

// recordedResults counts rows that are in the store.
func (r *Reporter) recordedResults(ctx context.Context, id ruapost.GroupID) (*results, error) {
	var s summary
	for row, err := range r.Store.Rows(ctx, id) {
		var res ruapost.DMARCResult
		if err == nil {
			err = json.Unmarshal(row.Data, &res)
		}
		if err != nil {
			return nil, err
		}
		s.addDMARC(row.Count, &res)
	}
	return &results{s.Passed, s.Failed, s.Treated}, nil
}

// frozenResults returns what was counted when the report was composed, nil if that is
// not known any more.
func (r *Reporter) frozenResults(rep *ruapost.Report) *results {
	var s summary
	if json.Unmarshal(rep.Summary, &s) != nil {
		return nil
	}
	return &results{s.Passed, s.Failed, s.Treated}
}
