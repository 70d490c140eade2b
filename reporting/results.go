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

// Results is how the messages fared with DMARC that are listed in a report, or sessions
// with TLS.
type Results struct {
	Passed int64 `json:"passed"`
	Failed int64 `json:"failed"`
	// Treated is what was done with messages that failed.
	Treated map[ruapost.Disposition]int64 `json:"treated,omitempty"`
}

// text is for a terminal. Nil is not known.
func (res *Results) text(kind ruapost.Kind) string {
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
func (r *Reporter) addResults(ctx context.Context, entries []Entry) error {
	rows := int64(maxListedRows)
	for i := range entries {
		e := &entries[i]
		rep := e.report
		switch {
		case rep != nil && rep.State != ruapost.ReportSealed:
			e.Results = reportResults(rep, frozenSummary(rep))
		case groupResults(e.groups) != nil:
			e.Results = groupResults(e.groups)
		case e.groups[0].Rows <= rows:
			rows -= e.groups[0].Rows
			res, err := r.recordedResults(ctx, e.groups[0].ID)
			if err != nil {
				return err
			}
			e.Results = res
		}
	}
	return nil
}

// groupResults returns how what is counted in groups fared, nil if that is not known of all
// of it.
func groupResults(groups []ruapost.Group) *Results {
	var c ruapost.OutcomeCounts
	for i := range groups {
		of := groups[i].Outcomes()
		c.Add(&of)
	}
	if c[ruapost.OutcomeUnknown] > 0 {
		return nil
	}
	res := &Results{Failed: c.FailedMessages() + c.FailedSessions()}
	res.Passed = c.Total() - res.Failed
	for d, n := range map[ruapost.Disposition]int64{
		ruapost.DispositionNone:       c[ruapost.OutcomeFail],
		ruapost.DispositionQuarantine: c[ruapost.OutcomeQuarantine],
		ruapost.DispositionReject:     c[ruapost.OutcomeReject],
	} {
		if n > 0 {
			if res.Treated == nil {
				res.Treated = map[ruapost.Disposition]int64{}
			}
			res.Treated[d] = n
		}
	}
	return res
}

// recordedResults counts rows that are in the store.
func (r *Reporter) recordedResults(ctx context.Context, id ruapost.GroupID) (*Results, error) {
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
	return &Results{s.Passed, s.Failed, s.Treated}, nil
}

// frozenSummary returns what was counted when the report was composed, nil if that is not
// known any more.
func frozenSummary(rep *ruapost.Report) *summary {
	var s summary
	if rep.State == ruapost.ReportSealed || json.Unmarshal(rep.Summary, &s) != nil {
		return nil
	}
	return &s
}

// reportResults returns how what a report is about fared, nil if that is not known: what its
// summary says of the messages that are listed, else what its groups count.
func reportResults(rep *ruapost.Report, s *summary) *Results {
	if rep.Kind == ruapost.KindDMARC && s != nil && s.Passed+s.Failed > 0 {
		return &Results{s.Passed, s.Failed, s.Treated}
	}
	return groupResults(rep.Groups)
}
