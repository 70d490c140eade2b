package inbound

import (
	"context"
	"net"
	"slices"
	"strings"

	"ruapost"
	"ruapost/arc"
	"ruapost/authres"
)

// arcFields returns the header for package arc, nil if it has no ARC field.
func (m *message) arcFields() []arc.Field {
	const prefix = "ARC-"
	if !slices.ContainsFunc(m.header, func(f field) bool {
		return len(f.name) > len(prefix) && strings.EqualFold(f.name[:len(prefix)], prefix)
	}) {
		return nil
	}
	fields := make([]arc.Field, len(m.header))
	for i, f := range m.header {
		fields[i] = arc.Field{Name: f.name, Value: f.value}
	}
	return fields
}

// startARC begins to validate the message's ARC chain. It returns nil if there is none.
func (m *message) startARC() *arc.Verifier {
	fields := m.arcFields()
	if fields == nil {
		return nil
	}
	return arc.New(m.ctx, fields, func(ctx context.Context, name string) (txts []string, err error) {
		defer caught(func() { err = &net.DNSError{Err: "fault in the resolver", Name: name, IsTemporary: true} })
		txts, _, err = m.service.Resolver.LookupTXT(ctx, name)
		return txts, err
	})
}

// finishARC returns the state of the chain, nil if there is none.
func (m *message) finishARC(ctx context.Context) *arc.Result {
	switch {
	case m.upstream.arc == ruapost.AuthPass:
		return &arc.Result{Status: m.upstream.arc, Sets: arc.Sets(m.arcFields())}
	case m.upstream.arc == ruapost.AuthFail:
		return &arc.Result{Status: m.upstream.arc}
	case m.arc == nil:
		return nil
	}
	result := m.arc.Finish(ctx)
	if result.Limited {
		limits.WithLabelValues("arc").Inc()
	}
	if result.Status == ruapost.AuthFail && ctx.Err() != nil {
		limits.WithLabelValues("budget").Inc()
	}
	return result
}

// sealedPass says whether a sealer that is trusted has seen the message pass DMARC. A
// seal says that the chain below it was valid and what its sealer found; it can only be
// believed if all who sealed after that are trusted, too: they could have changed the
// message and what it says (RFC 8617 9.3).
//
// That is about one author. A From field that is put on top of the message need not break
// the chain, and the policy that is the strictest may then be that of the forger's own
// domain, which did pass.
func (j *judgement) sealedPass() certainty {
	if j.arc == nil || len(j.msg.authors) != 1 || j.msg.authorErr != nil {
		return never
	}
	c := certaintyOf(j.arc.Status)
	if j.arc.Temporary {
		c = perhaps
	}
	for _, set := range slices.Backward(j.arc.Sets) {
		if !anyWithin(set.Domain, j.msg.config.TrustedSealers) {
			return never
		}
		if j.passedAt(&set) {
			return c
		}
	}
	return never
}

// passedAt says whether the sealer of the set found that DMARC passes for the author,
// and nothing else about it.
func (j *judgement) passedAt(set *arc.Set) bool {
	f, err := authres.Parse(set.AuthResults)
	if err != nil {
		return false
	}
	passed := false
	for _, r := range f.Results {
		from, err := ruapost.ParseDomain(only(r.Values("header", "from")))
		if r.Method != "dmarc" || err != nil || from != j.author {
			continue
		}
		if r.Value != "pass" {
			return false
		}
		passed = true
	}
	return passed
}
