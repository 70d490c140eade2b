package dmarc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

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
	// OrganizationalDomain is that of AuthorDomain. It is empty without a policy, and
	// if the DNS did not tell in time what stands above a policy.
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

// orgPatience bounds the wait for records that tell the organizational domain
// alone: the result does not depend on them.
const orgPatience = 2 * time.Second

// Evaluator finds out what DMARC says about messages.
type Evaluator struct {
	Resolver Resolver
	// Suffixes, if not nil, is a public suffix list, to find policies and
	// organizational domains as RFC 7489 did: there is a second lookup at the
	// organizational domain only, several records at a name end the search, np, psd
	// and t count for nothing, and pct does, see Policy.Sample. If it is nil, there
	// is the DNS tree walk of RFC 9989.
	Suffixes Suffixes
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
func (e *Evaluator) Evaluate(ctx context.Context, authorDomain string, dkim []ruapost.DKIMResult, spf ruapost.SPFResult) *Verdict {
	v := &Verdict{AuthorDomain: authorDomain}
	d, author, err := e.discover(authorDomain)
	if err != nil {
		return v.end(ResultPermerror, err)
	}
	v.AuthorDomain = author
	v.Policy, err = e.policy(ctx, author, d)
	switch {
	case errors.Is(err, ErrBrokenRecord):
		return v.end(ResultPermerror, err)
	case err != nil:
		return v.end(ResultTemperror, err)
	case v.Policy == nil:
		return v.end(ResultNone, nil)
	}
	a := alignment{ctx: ctx, discovery: d, author: author, published: &v.Policy.Published}
	v.align(&a, dkim, spf)

	ctx, cancel := context.WithTimeout(ctx, orgPatience)
	defer cancel()
	v.OrganizationalDomain, _ = d.organizationalDomain(ctx)
	return v
}

// Prefetch asks for all that Evaluate will ask about an author domain, so that the
// answers wait in the resolver's cache while the message still arrives.
func (e *Evaluator) Prefetch(ctx context.Context, authorDomain string) {
	d, author, err := e.discover(authorDomain)
	if err != nil {
		return
	}
	if p, err := e.policy(ctx, author, d); p != nil && err == nil {
		d.organizationalDomain(ctx)
	}
}

// OrganizationalDomain returns the organizational domain of any domain (RFC 9989
// 4.10.2). The error wraps ruapost.ErrDomain or is the DNS's.
func (e *Evaluator) OrganizationalDomain(ctx context.Context, domain string) (string, error) {
	d, _, err := e.discover(domain)
	if err != nil {
		return "", err
	}
	return d.organizationalDomain(ctx)
}

// discovery finds records for an author domain.
type discovery interface {
	// policyRecord returns the one that has the policy, nil if there is none. It
	// is called once and first.
	policyRecord(ctx context.Context) (*foundRecord, error)
	organizationalDomain(ctx context.Context) (string, error)
	// sameOrganization says whether domain's organizational domain is that of the
	// author domain.
	sameOrganization(ctx context.Context, domain string) (bool, error)
}

// discover also returns the author domain as ruapost.ParseDomain gives it; the
// error wraps ruapost.ErrDomain.
func (e *Evaluator) discover(authorDomain string) (d discovery, author string, err error) {
	author, err = ruapost.ParseDomain(authorDomain)
	if err != nil {
		return nil, "", fmt.Errorf("dmarc: %w", err)
	}
	if e.Suffixes != nil {
		return &listed{e.Resolver, e.Suffixes, author, e.Suffixes.OrganizationalDomain(author)}, author, nil
	}
	return newWalk(e.Resolver, author), author, nil
}

// align says pass or fail. An Authenticated Identifier is the domain of a check
// that passed (RFC 9989 4.3); one that might have passed matters only if nothing
// did.
func (v *Verdict) align(a *alignment, dkim []ruapost.DKIMResult, spf ruapost.SPFResult) *Verdict {
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

// Strictest returns the verdict that holds for a message with several author
// domains, of the verdicts for each of them; nil if there are none.
//
// It is, of those that fail, the one with the strictest Effective policy (RFC 9989
// 11.5, RFC 7489 6.6.1). What is not known about one domain is not known about the
// message, unless another asks for quarantine or reject: a temperror comes before a
// fail under a policy of none, then a permerror, then none. The message passes only
// if all of them pass. If AuthorDomains left domains out, nothing but a fail is
// certain.
func Strictest(verdicts []*Verdict) *Verdict {
	var strictest *Verdict
	for _, v := range verdicts {
		if strictest == nil || v.severity() > strictest.severity() {
			strictest = v
		}
	}
	return strictest
}

func (v *Verdict) severity() int {
	order := []string{
		string(ResultPass), string(ResultNone), string(ResultPermerror), "fail none", string(ResultTemperror),
		"fail quarantine", "fail reject",
	}
	word := string(v.Result)
	if v.Result == ResultFail {
		word += " " + string(v.Policy.Effective)
	}
	return slices.Index(order, word)
}

func (v *Verdict) end(result Result, err error) *Verdict {
	v.Result, v.Err = result, err
	return v
}

// alignment compares domains with the author domain (RFC 9989 4.4). err is set
// once a comparison needed an answer that the DNS did not give.
type alignment struct {
	ctx       context.Context
	discovery discovery
	author    string
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
		return name == a.author
	}
	same, err := a.discovery.sameOrganization(a.ctx, name)
	if err != nil {
		a.err = err
	}
	return same
}
