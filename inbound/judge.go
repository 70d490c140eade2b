package inbound

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"ruapost"
	"ruapost/dmarc"
)

// judgement is what was made of a message.
type judgement struct {
	msg    *message
	when   time.Time
	spf    ruapost.SPFResult
	dkim   []signature
	author string // the author domain, if there is exactly one
	// problem says why DMARC could not be applied, our own words.
	problem string
	result  dmarc.Result
	verdict *dmarc.Verdict // nil if DMARC could not be applied
	policy  *dmarc.Policy  // nil if there is none
}

// judge waits for what was started while the message arrived and decides.
func (m *message) judge() *judgement {
	began := time.Now()
	defer func() { judgeTime.Observe(time.Since(began).Seconds()) }()
	ctx, cancel := context.WithTimeout(m.ctx, Budget/2)
	defer cancel()

	j := &judgement{msg: m, when: m.service.now(), result: dmarc.ResultPermerror, author: m.author}
	select {
	case j.spf = <-m.spf:
	case <-ctx.Done():
		limits.WithLabelValues("budget").Inc()
		j.spf = m.spfResult(ruapost.AuthTemperror)
	}
	if m.dkim != nil {
		j.dkim = m.dkim.finish(ctx)
	}
	switch {
	case m.headerTooLarge():
		j.problem = "header too large"
		return j
	case j.author == "":
		j.problem = "no single author domain"
		return j
	}
	j.verdict = dmarc.Evaluate(ctx, m.service.Resolver, j.author, j.dkimResults(), j.spf)
	j.result, j.policy = j.verdict.Result, j.verdict.Policy
	slog.Debug("judged", "queue_id", m.queueID, "domain", j.author, "dmarc", j.result, "client", m.client)
	return j
}

func (j *judgement) dkimResults() []ruapost.DKIMResult {
	results := make([]ruapost.DKIMResult, len(j.dkim))
	for i, s := range j.dkim {
		results[i] = ruapost.DKIMResult{Domain: s.domain, Selector: s.selector, Result: s.result, Reason: s.reason}
	}
	return results
}

// evaluation returns what is to be recorded, nil if nobody asks for reports.
func (j *judgement) evaluation() *ruapost.Evaluation {
	if j.policy == nil || !wantsReports(j.policy.Record) {
		return nil
	}
	return &ruapost.Evaluation{
		Time:     j.when,
		Policy:   j.policy.Published,
		Optional: j.msg.aboutReports(),
		Result: ruapost.DMARCResult{
			SourceIP:     j.msg.client,
			Disposition:  j.disposition(),
			AlignedDKIM:  j.verdict.AlignedDKIM,
			AlignedSPF:   j.verdict.AlignedSPF,
			Overrides:    j.overrides(),
			HeaderFrom:   j.author,
			EnvelopeFrom: j.msg.fromDomain,
			EnvelopeTo:   j.msg.envelopeTo(),
			DKIM:         j.dkimResults(),
			SPF:          j.spf,
		},
	}
}

// wantsReports says whether a record names a destination that could be mailed to.
// Without one aggregate reports must not be made (RFC 9989 4.7).
func wantsReports(record *dmarc.Record) bool {
	return slices.ContainsFunc(record.RUA, func(u dmarc.URI) bool { return u.Address != "" })
}

// disposition is what was done with the message: nothing, since this program only
// observes. RFC 9990 calls it "pass" if the message passed under a policy that asks
// for more.
func (j *judgement) disposition() ruapost.Disposition {
	if j.result == dmarc.ResultPass && j.policy.Requested != ruapost.DispositionNone {
		return ruapost.DispositionPass
	}
	return ruapost.DispositionNone
}

// overrides says why a message that did not pass was not treated as the policy
// asks; RFC 9990 3.1.1.9 demands a reason then.
func (j *judgement) overrides() []ruapost.Override {
	if j.result == dmarc.ResultPass || j.policy.Requested == ruapost.DispositionNone {
		return nil
	}
	var reasons []ruapost.Override
	if j.policy.Published.Testing {
		reasons = append(reasons, ruapost.Override{Type: ruapost.OverridePolicyTestMode})
	}
	if j.policy.Effective != ruapost.DispositionNone {
		comment := "policy is not enforced here"
		if j.result != dmarc.ResultFail {
			comment = "no verdict: " + string(j.result)
		}
		reasons = append(reasons, ruapost.Override{Type: ruapost.OverrideLocalPolicy, Comment: comment})
	}
	return reasons
}
