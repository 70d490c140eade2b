package dmarc

import (
	"context"
	"errors"
	"fmt"

	"ruapost"
)

// Result is the outcome of DMARC for one author domain, in the words of the
// Authentication-Results field (RFC 9989 9.2).
type Result string

const (
	// ResultNone: the domain has no policy. Nothing is reported.
	ResultNone Result = "none"
	// ResultPass: an SPF or DKIM pass is aligned with the author domain.
	ResultPass Result = "pass"
	// ResultFail: there is a policy and nothing that passed is aligned.
	ResultFail Result = "fail"
	// ResultTemperror: the DNS did not tell enough to say pass or fail. The policy
	// must not be applied; the message is reported if the policy is known.
	ResultTemperror Result = "temperror"
	// ResultPermerror: the author domain or its record is useless. Nothing is
	// reported.
	ResultPermerror Result = "permerror"
)

// Verdict is what DMARC says about a message for one author domain.
type Verdict struct {
	Result       Result
	AuthorDomain string
	// OrganizationalDomain is that of AuthorDomain, empty if it was not needed:
	// Discover finds it, with all answers in the resolver's cache.
	OrganizationalDomain string
	// Policy is nil if none was found: always with none and permerror, sometimes
	// with temperror.
	Policy *Policy
	// AlignedDKIM and AlignedSPF tell whether the mechanism passed for a domain
	// aligned with AuthorDomain.
	AlignedDKIM, AlignedSPF bool
	// Err is why Result is temperror or permerror, else nil.
	Err error
}

// Evaluate judges a message for one author domain (RFC 9989 5.3) by all results
// of its DKIM signatures and the result of its SPF check. Override and local
// policy come after it.
//
// A temporary error is never a fail: the result is temperror if a lookup for the
// policy or an alignment failed, or an SPF or DKIM check ended in temperror,
// provided that its success would have made the message pass. Others do not
// matter, or any sender could escape a policy by a signature or return path of
// a domain with a broken name server (RFC 9989 5.3.6: needed for the evaluation).
func Evaluate(ctx context.Context, r Resolver, authorDomain string, dkim []ruapost.DKIMResult, spf ruapost.SPFResult) *Verdict {
	v := &Verdict{AuthorDomain: authorDomain}
	walk, err := newWalk(authorDomain)
	if err != nil {
		return v.end(ResultPermerror, err)
	}
	v.AuthorDomain = walk.start
	if v.Policy, err = findPolicy(ctx, r, walk); err != nil {
		switch {
		case errors.Is(err, ErrNoRecord):
			return v.end(ResultNone, nil)
		case errors.Is(err, ErrBrokenRecord):
			return v.end(ResultPermerror, err)
		}
		return v.end(ResultTemperror, err)
	}
	defer func() {
		if len(walk.left) == 0 {
			v.OrganizationalDomain = walk.OrganizationalDomain()
		}
	}()

	// An Authenticated Identifier is the domain of a check that passed (4.3); one
	// that might have passed matters only if nothing did.
	a := alignment{ctx: ctx, r: r, walk: walk, published: &v.Policy.Published}
	v.AlignedDKIM = a.anyDKIM(dkim, ruapost.AuthPass)
	v.AlignedSPF = a.spf(spf, ruapost.AuthPass)
	if v.AlignedDKIM || v.AlignedSPF {
		return v.end(ResultPass, nil)
	}
	if a.err != nil {
		return v.end(ResultTemperror, a.err)
	}
	if a.anyDKIM(dkim, ruapost.AuthTemperror) {
		return v.end(ResultTemperror, errors.New("dmarc: temporary error checking an aligned DKIM signature"))
	}
	if a.spf(spf, ruapost.AuthTemperror) {
		return v.end(ResultTemperror, fmt.Errorf("dmarc: temporary error checking SPF of %s", spf.Domain))
	}
	if a.err != nil {
		return v.end(ResultTemperror, a.err)
	}
	return v.end(ResultFail, nil)
}

func (v *Verdict) end(result Result, err error) *Verdict {
	v.Result, v.Err = result, err
	return v
}

// findPolicy walks only as far as the policy needs it: a record at the author
// domain is final (RFC 9989 4.10.1), whatever becomes of the rest of the walk.
func findPolicy(ctx context.Context, r Resolver, walk *Walk) (*Policy, error) {
	if err := walk.step(ctx, r); err != nil {
		return nil, err
	}
	if len(walk.records) == 0 {
		if err := walk.finish(ctx, r); err != nil {
			return nil, err
		}
	}
	return walk.Policy(ctx, r)
}

// alignment compares domains with the author domain (RFC 9989 4.4). err is set
// once a comparison needed an answer that the DNS did not give.
type alignment struct {
	ctx       context.Context
	r         Resolver
	walk      *Walk
	published *ruapost.DMARCPolicy
	err       error
}

// anyDKIM says whether a signature with that result is aligned.
func (a *alignment) anyDKIM(results []ruapost.DKIMResult, result ruapost.AuthResult) bool {
	for _, res := range results {
		if res.Result == result && a.aligned(res.Domain, a.published.ADKIM) {
			return true
		}
	}
	return false
}

// spf says whether the SPF check had that result and its domain is aligned.
func (a *alignment) spf(res ruapost.SPFResult, result ruapost.AuthResult) bool {
	return res.Result == result && a.aligned(res.Domain, a.published.ASPF)
}

func (a *alignment) aligned(domain string, mode ruapost.Alignment) bool {
	name, err := ruapost.ParseDomain(domain)
	if err != nil {
		return false
	}
	if mode == ruapost.Strict {
		return name == a.walk.start
	}
	same, err := a.walk.sameOrganization(a.ctx, a.r, name)
	if err != nil {
		a.err = err
	}
	return same
}
