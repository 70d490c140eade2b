package inbound

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ruapost"
	"ruapost/dmarc"
)

// Override is an exception: a message that fails DMARC and matches is not treated as
// the policy asks, and the report gives Type and Comment as the reason. It matches if
// of each list that is not empty something matches. A domain stands for all names
// below it, too.
type Override struct {
	Sources    []netip.Prefix
	DKIM       []string // domains of signatures that passed
	SPF        []string // domains that SPF passed for
	ListIDs    []string // of List-Id, without the angle brackets, in lower case
	Recipients []string // domains that all recipients are in
	Type       ruapost.OverrideType
	Comment    string
}

// decision is what is done with a message because of DMARC; the zero decision is to
// pass it on.
type decision struct {
	// deferred messages are to come again; nothing is reported of them until then.
	deferred bool
	// disposition is what the report says of the message.
	disposition ruapost.Disposition
	// overrides say why it is not what the policy asks (RFC 9990 3.1.1.9).
	overrides []ruapost.Override
}

// decide applies the policy as far as the administrator has it applied. Nothing is
// done with a message under a policy of none (RFC 9989 5.4).
func (j *judgement) decide() decision {
	switch {
	case j.policy != nil && j.policy.Requested == ruapost.DispositionNone, j.policy == nil && j.result != dmarc.ResultTemperror:
		return decision{disposition: ruapost.DispositionNone}
	case j.result == dmarc.ResultPass:
		return decision{disposition: ruapost.DispositionPass} // RFC 9990 Appendix A
	case j.result != dmarc.ResultFail: // RFC 9989 5.3.6: the policy cannot be applied
		_, _, excepted := j.exception()
		canWait := excepted != certain && (j.policy == nil || j.policy.Effective != ruapost.DispositionNone)
		return j.undecided(decision{}, canWait, "no verdict: "+string(j.result))
	}
	var d decision
	wanted, sampledOut := j.policy.Sample(j.msg.service.draw())
	if j.policy.Effective != j.policy.Requested {
		d.because(ruapost.OverridePolicyTestMode, "")
	}
	if sampledOut {
		d.because(ruapost.OverrideSampledOut, "")
	}
	if wanted == ruapost.DispositionNone {
		d.disposition = ruapost.DispositionNone
		return d
	}
	override, by, excepted := j.exception()
	switch {
	case excepted == certain:
		overridden.WithLabelValues(by).Inc()
		d.disposition = ruapost.DispositionNone
		d.overrides = append(d.overrides, override)
	case excepted == perhaps && j.enforces():
		return j.undecided(d, true, "temporary error, an exception may apply")
	default:
		d.enforce(wanted, j.msg.config.Enforce)
	}
	return d
}

// enforces says whether anything at all is done with messages.
func (j *judgement) enforces() bool {
	return j.msg.config.Enforce == ruapost.DispositionQuarantine || j.msg.config.Enforce == ruapost.DispositionReject
}

// undecided passes on a message of which a temporary error leaves open what is to be
// done, or defers it if that is asked for and something can come of it.
func (j *judgement) undecided(d decision, canWait bool, why string) decision {
	if canWait && j.enforces() && j.msg.config.DeferTemperror {
		return decision{deferred: true}
	}
	d.disposition = ruapost.DispositionNone
	d.because(ruapost.OverrideLocalPolicy, why)
	return d
}

func (d *decision) because(why ruapost.OverrideType, comment string) {
	d.overrides = append(d.overrides, ruapost.Override{Type: why, Comment: comment})
}

// enforce does what the policy wants, but no more than most.
func (d *decision) enforce(wanted, most ruapost.Disposition) {
	switch {
	case most == ruapost.DispositionReject, most == wanted:
		d.disposition = wanted
	case most == ruapost.DispositionQuarantine:
		d.disposition = most
		d.because(ruapost.OverrideLocalPolicy, "quarantined instead of rejected")
	default:
		d.disposition = ruapost.DispositionNone
		d.because(ruapost.OverrideLocalPolicy, "policy is not enforced here")
	}
}

// certainty says whether an exception applies.
type certainty int

const (
	never certainty = iota
	// perhaps: a temporary error keeps us from knowing.
	perhaps
	certain
)

// certaintyOf is that of a condition which asks for a pass.
func certaintyOf(result ruapost.AuthResult) certainty {
	switch result {
	case ruapost.AuthPass:
		return certain
	case ruapost.AuthTemperror:
		return perhaps
	}
	return never
}

// exception returns why a message that failed is nevertheless not treated as the
// policy asks, and by what, for the metrics.
func (j *judgement) exception() (o ruapost.Override, by string, c certainty) {
	most := never
	for i := range j.msg.config.Overrides {
		rule := &j.msg.config.Overrides[i]
		c := j.matches(rule)
		if c == certain {
			return ruapost.Override{Type: rule.Type, Comment: rule.Comment}, "override", c
		}
		most = max(most, c)
	}
	if c := j.sealedPass(); c != certain {
		return o, "", max(most, c)
	}
	return ruapost.Override{Type: ruapost.OverrideLocalPolicy, Comment: j.arc.Comment()}, "arc", certain // RFC 8617 7.2.2
}

// matches says whether all conditions of the rule are met.
func (j *judgement) matches(rule *Override) certainty {
	if len(rule.Sources) > 0 && !slices.ContainsFunc(rule.Sources, func(p netip.Prefix) bool { return p.Contains(j.msg.client) }) ||
		len(rule.ListIDs) > 0 && !slices.ContainsFunc(j.msg.listIDs(), func(id string) bool { return slices.Contains(rule.ListIDs, id) }) ||
		len(rule.Recipients) > 0 && !j.msg.allRecipientsIn(rule.Recipients) {
		return never
	}
	c := certain
	if len(rule.SPF) > 0 {
		if !anyWithin(j.spf.Domain, rule.SPF) {
			return never
		}
		c = certaintyOf(j.spf.Result)
	}
	if len(rule.DKIM) > 0 {
		best := never
		for i := range j.dkim {
			if anyWithin(j.dkim[i].domain, rule.DKIM) {
				best = max(best, certaintyOf(j.dkim[i].result))
			}
		}
		c = min(c, best)
	}
	return c
}

// anyWithin says whether name is one of the domains or below one.
func anyWithin(name string, domains []string) bool {
	return slices.ContainsFunc(domains, func(d string) bool { return ruapost.Within(name, d) })
}

// reasons are the overrides as a text.
func (d *decision) reasons() string {
	var reasons []string
	for _, o := range d.overrides {
		reason := string(o.Type)
		if o.Comment != "" {
			reason += " (" + o.Comment + ")"
		}
		reasons = append(reasons, reason)
	}
	return strings.Join(reasons, ", ")
}

// outcome is the decision in a word, for the metrics.
func (d *decision) outcome() string {
	if d.deferred {
		return "defer"
	}
	return string(cmp.Or(d.disposition, ruapost.DispositionNone))
}

// reply is the answer to Postfix that rejects or defers a message. The word DMARC in it
// helps whoever has to find out (RFC 9989 5.4, RFC 7489 10.3).
func (j *judgement) reply() (code, text string, ok bool) {
	switch {
	case j.disposition == ruapost.DispositionReject:
		return "550", fmt.Sprintf("5.7.1 rejected by the DMARC policy of %s", j.author), true
	case j.deferred:
		return "451", fmt.Sprintf("4.7.1 DMARC of %s could not be checked now, try again later", j.author), true
	}
	return "", "", false
}
