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
	if j.policy == nil {
		// With a temporary error there may be any policy.
		return decision{deferred: j.result == dmarc.ResultTemperror && j.msg.config.DeferTemperror}
	}
	if j.policy.Requested == ruapost.DispositionNone {
		return decision{disposition: ruapost.DispositionNone}
	}
	if j.result == dmarc.ResultPass {
		return decision{disposition: ruapost.DispositionPass} // RFC 9990 Appendix A
	}
	var d decision
	if j.result != dmarc.ResultFail {
		// RFC 9989 5.3.6: neither pass nor fail, the policy cannot be applied.
		if j.msg.config.DeferTemperror && j.policy.Effective != ruapost.DispositionNone {
			return decision{deferred: true}
		}
		d.disposition = ruapost.DispositionNone
		d.because(ruapost.OverrideLocalPolicy, "no verdict: "+string(j.result))
		return d
	}
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
	if exception, ok := j.exception(); ok {
		d.disposition = ruapost.DispositionNone
		d.overrides = append(d.overrides, exception)
		return d
	}
	d.enforce(wanted, j.msg.config.Enforce)
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

// exception returns why a message that failed is nevertheless not treated as the
// policy asks.
func (j *judgement) exception() (o ruapost.Override, ok bool) {
	for i := range j.msg.config.Overrides {
		if rule := &j.msg.config.Overrides[i]; j.matches(rule) {
			overridden.WithLabelValues("override").Inc()
			return ruapost.Override{Type: rule.Type, Comment: rule.Comment}, true
		}
	}
	if j.sealedPass() {
		overridden.WithLabelValues("arc").Inc()
		return ruapost.Override{Type: ruapost.OverrideLocalPolicy, Comment: j.arc.Comment()}, true // RFC 8617 7.2.2
	}
	return o, false
}

// matches says whether all conditions of the rule are met.
func (j *judgement) matches(rule *Override) bool {
	return (len(rule.Sources) == 0 || slices.ContainsFunc(rule.Sources, func(p netip.Prefix) bool { return p.Contains(j.msg.client) })) &&
		(len(rule.DKIM) == 0 || slices.ContainsFunc(j.dkim, func(s signature) bool {
			return s.result == ruapost.AuthPass && anyWithin(s.domain, rule.DKIM)
		})) &&
		(len(rule.SPF) == 0 || j.spf.Result == ruapost.AuthPass && anyWithin(j.spf.Domain, rule.SPF)) &&
		(len(rule.ListIDs) == 0 || slices.ContainsFunc(j.msg.listIDs(), func(id string) bool { return slices.Contains(rule.ListIDs, id) })) &&
		(len(rule.Recipients) == 0 || j.msg.allRecipientsIn(rule.Recipients))
}

// anyWithin says whether name is one of the domains or below one.
func anyWithin(name string, domains []string) bool {
	return slices.ContainsFunc(domains, func(d string) bool { return name == d || strings.HasSuffix(name, "."+d) })
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
