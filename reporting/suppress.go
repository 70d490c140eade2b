package reporting

import (
	"context"
	"strings"
	"time"

	"ruapost"
)

// The first bounce suppresses an address for firstSuppression, each that follows for
// twice as long as the one before, up to maxSuppression. What has ended so long ago is
// forgotten.
const (
	firstSuppression = 7 * 24 * time.Hour
	maxSuppression   = 365 * 24 * time.Hour
)

// suppressions are the store's, by pattern.
type suppressions map[string]ruapost.Suppression

func (r *Reporter) suppressions(ctx context.Context) (suppressions, error) {
	list, err := r.Store.Suppressions(ctx)
	if err != nil {
		return nil, err
	}
	all := make(suppressions, len(list))
	for _, s := range list {
		if !s.Until.IsZero() && r.now().Sub(s.Until) > maxSuppression {
			err := r.Store.UpdateSuppression(ctx, s.Pattern, func(*ruapost.Suppression) bool { return false })
			if err != nil {
				return nil, err
			}
			continue
		}
		all[s.Pattern] = s
	}
	return all, nil
}

// find returns the suppression in force for a recipient.
func (all suppressions) find(rc *ruapost.Recipient, now time.Time) (found ruapost.Suppression, ok bool) {
	host := hostOf(rc)
	for _, pattern := range append([]string{patternOf(rc.Address), host}, above(host)...) {
		if s, ok := all[pattern]; ok && s.Active(now) {
			return s, true
		}
	}
	return found, false
}

// patternOf returns the pattern of an address. Local parts in another case are taken for the
// same, as nearly everybody does: an address that is dead is so in any case.
func patternOf(address string) string { return strings.ToLower(address) }

// above returns the wildcards that match a domain.
func above(domain string) (wildcards []string) {
	for {
		_, parent, ok := strings.Cut(domain, ".")
		if !ok {
			return wildcards
		}
		wildcards = append(wildcards, "*."+parent)
		domain = parent
	}
}

// suppress marks rc if nothing is to be sent there, and tells whether it did.
func (r *Reporter) suppress(rc *ruapost.Recipient, all suppressions) bool {
	s, ok := all.find(rc, r.now())
	if !ok {
		return false
	}
	rc.State, rc.NotBefore = ruapost.RecipientSuppressed, time.Time{}
	rc.Error = "suppressed"
	if !s.Until.IsZero() {
		rc.Error += " until " + s.Until.UTC().Format(time.DateTime)
	}
	if s.Reason != "" {
		rc.Error = ruapost.Clean(rc.Error+": "+s.Reason, 500)
	}
	return true
}

// strike suppresses an address since a report that was sent there at a time came back.
func (r *Reporter) strike(ctx context.Context, address, reason string, sent time.Time) error {
	return r.Store.UpdateSuppression(ctx, patternOf(address), func(s *ruapost.Suppression) bool {
		known := !s.Since.IsZero()
		if known && (s.Active(r.now()) || s.Since.After(sent)) { // one fault, told several times
			return true
		}
		s.Bounces++
		s.Since = r.now()
		s.Until = s.Since.Add(min(firstSuppression<<min(s.Bounces-1, 10), maxSuppression))
		s.Reason = ruapost.Clean(reason, 300)
		return true
	})
}

// clear forgets that mail to an address came back before, as what was sent to rc after
// that did not.
func (run *run) clear(ctx context.Context, rc *ruapost.Recipient) error {
	works := func(s *ruapost.Suppression) bool {
		return s.Bounces > 0 && !s.Until.IsZero() && rc.Last.After(s.Until)
	}
	if s, ok := run.suppressed[patternOf(rc.Address)]; rc.State != ruapost.RecipientSent || !ok || !works(&s) {
		return nil
	}
	return run.Store.UpdateSuppression(ctx, patternOf(rc.Address), func(s *ruapost.Suppression) bool {
		return !s.Since.IsZero() && !works(s)
	})
}
