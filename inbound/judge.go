package inbound

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"ruapost"
	"ruapost/arc"
	"ruapost/dmarc"
)

// judgement is what was made of a message.
type judgement struct {
	msg  *message
	when time.Time
	spf  ruapost.SPFResult
	dkim []signature
	arc  *arc.Result // nil if there is no chain
	// author is the author domain that the rest is about, empty if there is none.
	author string
	// problem says why DMARC could not be applied, our own words.
	problem string
	result  dmarc.Result
	verdict *dmarc.Verdict // nil if DMARC could not be applied
	policy  *dmarc.Policy  // nil if there is none
	decision
}

// judge waits for what was started while the message arrived and decides.
func (m *message) judge() *judgement {
	began := time.Now()
	defer func() { judgeTime.Observe(time.Since(began).Seconds()) }()
	ctx, cancel := context.WithTimeout(m.ctx, m.config.halfBudget())
	defer cancel()

	j := &judgement{msg: m, when: m.service.now(), result: dmarc.ResultPermerror}
	// The policy, which is the author's, must not be in want of time because of names
	// that the sender chose.
	verifying, cancelVerifying := context.WithTimeout(ctx, m.config.halfBudget()*3/4)
	j.verify(verifying)
	cancelVerifying()
	j.evaluate(ctx)
	j.decision = j.decide()
	j.log()
	return j
}

// log tells whoever asks why a message was rejected, quarantined or deferred, or what
// would have been, and what an exception could go by.
func (j *judgement) log() {
	level := slog.LevelDebug
	if j.deferred || j.result != dmarc.ResultPass && j.policy != nil && j.policy.Effective != ruapost.DispositionNone {
		level = slog.LevelInfo
	}
	if !slog.Default().Enabled(context.Background(), level) {
		return
	}
	args := []any{"queue_id", j.msg.queueID, "client", j.msg.client, "domain", j.author, "dmarc", j.result}
	if j.problem != "" {
		args = append(args, "problem", j.problem)
	}
	if j.policy != nil {
		args = append(args, "policy", j.policy.Effective, "done", j.outcome())
	}
	if len(j.overrides) > 0 {
		args = append(args, "why", j.reasons())
	}
	args = append(args, "spf", fmt.Sprintf("%s:%s", j.spf.Result, j.spf.Domain))
	for i := range j.dkim {
		args = append(args, "dkim", fmt.Sprintf("%s:%s", j.dkim[i].result, j.dkim[i].domain))
	}
	if j.arc != nil {
		args = append(args, "arc", j.arc.Comment())
	}
	for _, id := range j.msg.listIDs() {
		args = append(args, "list_id", ruapost.Clean(id, 100))
	}
	slog.Log(context.Background(), level, "judged", args...)
}

// verify takes the results of SPF, DKIM and ARC, ours or those of upstream.
func (j *judgement) verify(ctx context.Context) {
	m := j.msg
	// DKIM has work to do once the body is complete, while all that the others need is
	// the DNS. What is there when the time is over counts, however long one of them took.
	j.dkim = m.upstream.dkim
	if m.dkim != nil {
		j.dkim = m.dkim.finish(ctx)
	}
	j.arc = m.finishARC(ctx)
	j.spf = m.finishSPF(ctx)
}

func (m *message) finishSPF(ctx context.Context) ruapost.SPFResult {
	if m.upstream.spf != nil {
		return *m.upstream.spf
	}
	select {
	case result := <-m.spf:
		return result
	case <-ctx.Done():
	}
	select {
	case result := <-m.spf: // both were there
		return result
	default:
		limits.WithLabelValues("budget").Inc()
		return m.spfResult(ruapost.AuthTemperror)
	}
}

// evaluate applies DMARC for each author domain. What is done and reported is about
// the one whose policy is the strictest of those that fail (RFC 9989 11.5).
func (j *judgement) evaluate(ctx context.Context) {
	verdicts, dkim := make([]*dmarc.Verdict, len(j.msg.authors)), j.dkimResults()
	var evaluations sync.WaitGroup
	for i, author := range j.msg.authors {
		evaluations.Go(func() {
			// Instead of a verdict that a fault keeps from being found.
			verdicts[i] = &dmarc.Verdict{Result: dmarc.ResultTemperror, AuthorDomain: author}
			defer caught(func() {})
			verdicts[i] = j.msg.evaluator().Evaluate(ctx, author, dkim, j.spf)
		})
	}
	evaluations.Wait()
	if len(verdicts) == 0 {
		j.problem = "no author domain"
		return
	}
	v := dmarc.Strictest(verdicts)
	j.author = v.AuthorDomain
	if j.msg.authorErr != nil && v.Result != dmarc.ResultFail && v.Result != dmarc.ResultTemperror {
		// The author that a reader is shown may be none of those evaluated.
		j.problem = "several From fields, too many author domains, or one that cannot be read"
		return
	}
	j.verdict, j.result, j.policy = v, v.Result, v.Policy
}

func (j *judgement) dkimResults() []ruapost.DKIMResult {
	results := make([]ruapost.DKIMResult, len(j.dkim))
	for i, s := range j.dkim {
		results[i] = ruapost.DKIMResult{Domain: s.domain, Selector: s.selector, Result: s.result, Reason: s.reason}
	}
	return results
}

// evaluation returns what is to be recorded, nil if nobody asks for reports or if the
// message will come again.
func (j *judgement) evaluation() *ruapost.Evaluation {
	if j.policy == nil || j.deferred || !wantsReports(j.policy.Record) {
		return nil
	}
	return &ruapost.Evaluation{
		Time:                 j.when,
		Interval:             j.msg.config.window(j.policy.Record),
		Policy:               j.policy.Published,
		Optional:             j.msg.aboutReports(),
		OrganizationalDomain: j.verdict.OrganizationalDomain,
		OptionalIfUnknown:    j.result != dmarc.ResultPass && !j.msg.config.ReportUnknown,
		Result: ruapost.DMARCResult{
			SourceIP:     j.msg.client,
			Disposition:  j.disposition,
			AlignedDKIM:  j.verdict.AlignedDKIM,
			AlignedSPF:   j.verdict.AlignedSPF,
			Overrides:    j.overrides,
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
