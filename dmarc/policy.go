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

// The ways to find a policy, as reports name them (RFC 9990 Appendix A).
const (
	discoveryTreeWalk = "treewalk"
	discoveryPSL      = "psl"
)

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
	// Record is the record itself, with the tags that are not used in its discovery.
	Record *Record
}

// Sample returns what the domain owner asks for a message that failed: Effective,
// but one step milder if draw, a random number from 0 to 99, falls outside the
// record's pct. That is then to be reported as ruapost.OverrideSampledOut
// (RFC 7489 6.6.4). Nobody is sampled out where RFC 9989 was followed, which does
// not know pct, nor under a policy of none.
func (p *Policy) Sample(draw int) (disposition ruapost.Disposition, sampledOut bool) {
	if p.Published.Discovery != discoveryPSL || draw < p.Published.Percent || p.Effective == ruapost.DispositionNone {
		return p.Effective, false
	}
	return milder(p.Effective), true
}

// policy returns the policy for author, nil if there is none. An error that wraps
// ErrBrokenRecord is final, others are temporary.
func (e *Evaluator) policy(ctx context.Context, author string, d discovery) (*Policy, error) {
	found, err := d.policyRecord(ctx)
	if found == nil || err != nil {
		return nil, err
	}
	rec, method := found.Record, discoveryTreeWalk
	if e.Suffixes != nil {
		rec, method = rec.asRFC7489(), discoveryPSL
	}
	asked, flaws, ok := rec.dispositions()
	if !ok {
		return nil, fmt.Errorf("dmarc: %s: %w", found.domain, ErrBrokenRecord)
	}
	requested := asked.p
	if found.domain != author { // RFC 9989 4.10.1: sp and np are for names below
		requested = asked.below(ctx, e.Resolver, author)
	}
	effective := requested
	if rec.Testing { // RFC 9989 4.7
		effective = milder(requested)
	}
	return &Policy{
		Published: ruapost.DMARCPolicy{
			Domain:    found.domain,
			P:         asked.p,
			SP:        asked.sp,
			NP:        asked.np,
			ADKIM:     rec.ADKIM,
			ASPF:      rec.ASPF,
			FO:        rec.FO,
			Testing:   rec.Testing,
			Percent:   rec.Percent,
			Discovery: method,
			Error:     ruapost.Clean(strings.Join(flaws, "; "), maxError),
		},
		Requested: requested,
		Effective: effective,
		Record:    found.Record,
	}, nil
}

// asRFC7489 returns the record as that RFC reads it: np, psd and t are unknown tags,
// which it ignores (6.3). That p be the second tag, as its grammar has it, is not
// insisted on: policy discovery asks only that it be there (6.6.3 step 6).
func (r *Record) asRFC7489() *Record {
	old := *r
	old.NonexistentPolicy, old.brokenNP, old.PSD, old.Testing = "", false, 'u', false
	return &old
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
	if r.Policy != "" && !r.broken && !r.brokenNP {
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

// milder returns the disposition one step below d.
func milder(d ruapost.Disposition) ruapost.Disposition {
	if d == ruapost.DispositionReject {
		return ruapost.DispositionQuarantine
	}
	return ruapost.DispositionNone
}
