package ruapost

import (
	"fmt"
	"slices"
	"time"
)

// Outcome is how a message fared with DMARC, or a session with TLS, as daily totals tell
// them apart.
type Outcome uint8

// The numbers are those of the store: new ones go to the end.
const (
	// OutcomePass: the message passed DMARC.
	OutcomePass Outcome = iota
	// OutcomeFail, OutcomeQuarantine and OutcomeReject: it failed, and that was done with
	// it; nothing in the first case.
	OutcomeFail
	OutcomeQuarantine
	OutcomeReject
	// OutcomeNoPolicy: its domain has none.
	OutcomeNoPolicy
	// OutcomeTemperror and OutcomePermerror: DMARC could not judge it.
	OutcomeTemperror
	OutcomePermerror
	// OutcomeUnknown: it was recorded by a version that did not count this.
	OutcomeUnknown
	// The session succeeded, or failed, under a policy of that type.
	OutcomeSTS
	OutcomeSTSFailed
	OutcomeTLSA
	OutcomeTLSAFailed
	OutcomeNoTLSPolicy
	OutcomeNoTLSPolicyFailed

	// Outcomes is the number of outcomes.
	Outcomes
)

var outcomeNames = [Outcomes]string{
	"pass", "fail", "quarantine", "reject", "none", "temperror", "permerror", "unknown",
	"sts", "sts_failed", "tlsa", "tlsa_failed", "no_policy_found", "no_policy_found_failed",
}

func (o Outcome) String() string {
	if o < Outcomes {
		return outcomeNames[o]
	}
	return fmt.Sprintf("outcome %d", uint8(o))
}

// ParseOutcome is the inverse of String.
func ParseOutcome(s string) (Outcome, error) {
	if i := slices.Index(outcomeNames[:], s); i >= 0 {
		return Outcome(i), nil
	}
	return 0, fmt.Errorf("%q is no outcome", Clean(s, 30))
}

// SessionOutcome returns that of a session under a policy of that type.
func SessionOutcome(t TLSPolicyType, failed bool) Outcome {
	o := OutcomeNoTLSPolicy
	switch t {
	case PolicySTS:
		o = OutcomeSTS
	case PolicyTLSA:
		o = OutcomeTLSA
	}
	if failed {
		o++
	}
	return o
}

// OutcomeCounts are numbers of messages or sessions by outcome.
type OutcomeCounts [Outcomes]int64

// Add adds other to c.
func (c *OutcomeCounts) Add(other *OutcomeCounts) {
	for o, n := range other {
		c[o] += n
	}
}

// Total is the sum of all.
func (c *OutcomeCounts) Total() (n int64) {
	for _, m := range c {
		n += m
	}
	return n
}

// FailedMessages counts those that failed DMARC, whatever was done with them.
func (c *OutcomeCounts) FailedMessages() int64 {
	return c[OutcomeFail] + c[OutcomeQuarantine] + c[OutcomeReject]
}

// FailedSessions counts those under any policy.
func (c *OutcomeCounts) FailedSessions() int64 {
	return c[OutcomeSTSFailed] + c[OutcomeTLSAFailed] + c[OutcomeNoTLSPolicyFailed]
}

// Tally.Domain of what is not about one domain.
const (
	// WholeDay is all that was judged, or delivered, on a day, also what nobody wants
	// reports about.
	WholeDay = ""
	// OtherDomains are those for which there was no room.
	OtherDomains = "*"
)

// Tally is how the messages or sessions of a UTC day fared: those that a domain has, or
// had, reports about, or as Domain says.
type Tally struct {
	// Day is when the day begins.
	Day    time.Time
	Kind   Kind
	Domain string
	Counts OutcomeCounts
}

// Outcomes returns how what is counted in the group fared.
func (g *Group) Outcomes() (c OutcomeCounts) {
	if g.TLS != nil {
		c[SessionOutcome(g.TLS.Type, false)] = g.Total - g.Failed
		c[SessionOutcome(g.TLS.Type, true)] = g.Failed
		return c
	}
	c[OutcomePass] = g.Passed
	c[OutcomeQuarantine] = g.Quarantined
	c[OutcomeReject] = g.Rejected
	c[OutcomeFail] = max(0, g.Failed-g.Quarantined-g.Rejected)
	c[OutcomeUnknown] = max(0, g.Total-g.Passed-g.Failed)
	return c
}
