package dmarc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"ruapost"
)

// ErrBrokenRecord is the error, possibly wrapped, of a domain whose record says
// neither what to do with mail nor where to send reports: DMARC does not apply
// to its mail (RFC 9989 4.10.1).
var ErrBrokenRecord = errors.New("DMARC record without a valid policy")

// maxError bounds the error text of a policy, in octets.
const maxError = 300

// Policy is what the domain owner asks for the mail of one author domain.
type Policy struct {
	// Published is the record as reports state it. It depends on the record and
	// its domain alone, not on the author domain: what differs in it is reported
	// apart, and a domain with a wildcard record must not get a report for each
	// name that somebody invents below it.
	Published ruapost.DMARCPolicy
	// Requested is p, sp or np, whichever applies to the author domain.
	Requested ruapost.Disposition
	// Effective is Requested, lowered by one step if the record says t=y.
	Effective ruapost.Disposition
	// Record is the record itself.
	Record *Record
}

// Policy returns the policy for the name the walk began at. The error wraps
// ErrNoRecord or ErrBrokenRecord.
func (w *Walk) Policy(ctx context.Context, r Resolver) (*Policy, error) {
	rec := w.policyRecord()
	if rec == nil {
		return nil, fmt.Errorf("dmarc: %s: %w", w.start, ErrNoRecord)
	}
	asked, flaws, ok := rec.dispositions()
	if !ok {
		return nil, fmt.Errorf("dmarc: %s: %w", rec.domain, ErrBrokenRecord)
	}
	requested := asked.p
	if rec.domain != w.start { // RFC 9989 4.10.1: sp and np are for names below
		requested = asked.below(ctx, r, w.start)
	}
	return &Policy{
		Published: ruapost.DMARCPolicy{
			Domain:    rec.domain,
			P:         asked.p,
			SP:        asked.sp,
			NP:        asked.np,
			ADKIM:     rec.ADKIM,
			ASPF:      rec.ASPF,
			FO:        rec.FO,
			Testing:   rec.Testing,
			Percent:   rec.Percent,
			Discovery: "treewalk",
			Error:     ruapost.Clean(strings.Join(flaws, "; "), maxError),
		},
		Requested: requested,
		Effective: applyTesting(requested, rec.Testing),
		Record:    rec.Record,
	}, nil
}

// dispositions are p, sp and np of a record; sp and np are empty if they were
// not published.
type dispositions struct{ p, sp, np ruapost.Disposition }

// dispositions returns the record's and its flaws. A record whose p is missing,
// or whose p, sp or np cannot be read, or that has p twice, is broken: if it names
// a valid destination for reports it stands for p=none and nothing else, so that
// its owner gets to hear of it; otherwise ok is false and there is no DMARC
// (RFC 9989 4.10.1).
func (r *Record) dispositions() (d dispositions, flaws []string, ok bool) {
	if r.Policy != "" && !r.broken {
		return dispositions{r.Policy, r.SubdomainPolicy, r.NonexistentPolicy}, r.Flaws, true
	}
	if len(r.RUA) == 0 {
		return dispositions{}, nil, false
	}
	flaws = append([]string{"no valid policy, taken as p=none"}, r.Flaws...)
	return dispositions{p: ruapost.DispositionNone}, flaws, true
}

// below returns the disposition for author, a name below the record's: np if
// there is no such name in the DNS, else sp, else p.
func (d dispositions) below(ctx context.Context, r Resolver, author string) ruapost.Disposition {
	existing := d.p
	if d.sp != "" {
		existing = d.sp
	}
	if d.np == "" || d.np == existing {
		return existing
	}
	// The author domain itself is asked for: that _dmarc below it does not exist
	// says nothing. If the DNS does not answer, the name may exist.
	exists, err := r.Exists(ctx, author)
	if err != nil || exists {
		return existing
	}
	return d.np
}

// applyTesting lowers a disposition by one step for t=y (RFC 9989 4.7).
func applyTesting(d ruapost.Disposition, testing bool) ruapost.Disposition {
	switch {
	case testing && d == ruapost.DispositionReject:
		return ruapost.DispositionQuarantine
	case testing && d == ruapost.DispositionQuarantine:
		return ruapost.DispositionNone
	}
	return d
}
