package reporting

import (
	"context"
	"errors"
	"log/slog"
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

// suppressions are some of the store's, by pattern.
type suppressions map[string]ruapost.Suppression

func byPattern(list []ruapost.Suppression) suppressions {
	all := make(suppressions, len(list))
	for _, s := range list {
		all[s.Pattern] = s
	}
	return all
}

// suppressions returns all that there are.
func (r *Reporter) suppressions(ctx context.Context) (suppressions, error) {
	list, err := r.Store.Suppressions(ctx)
	return byPattern(list), err
}

// purge forgets what has ended long ago.
func (run *run) purge(ctx context.Context) error {
	old := func(s *ruapost.Suppression) bool {
		return !s.Until.IsZero() && run.now().Sub(s.Until) > maxSuppression
	}
	for pattern, s := range run.suppressed {
		if !old(&s) {
			continue
		}
		err := run.Store.UpdateSuppression(ctx, pattern, func(s *ruapost.Suppression) bool { return !s.Since.IsZero() && !old(s) })
		if err != nil {
			return err
		}
	}
	return nil
}

// patterns returns what a suppression of reports about a domain to rc can be stored under,
// the narrowest first.
func patterns(domain string, rc *ruapost.Recipient) []string {
	host := hostOf(rc)
	all := []string{patternAbout(rc.Address, domain), patternOf(rc.Address), host}
	for {
		_, parent, ok := strings.Cut(host, ".")
		if !ok {
			return all
		}
		all = append(all, "*."+parent)
		host = parent
	}
}

// patternOf returns the pattern of an address. Local parts in another case are taken for the
// same, as nearly everybody does: an address that is dead is so in any case.
func patternOf(address string) string { return strings.ToLower(address) }

// aboutWord stands between the two halves of what patternAbout returns.
const aboutWord = " about "

// patternAbout returns the pattern of an address for reports about a domain, and all with
// the same registered part.
func patternAbout(address, domain string) string {
	return patternOf(address) + aboutWord + registered(domain)
}

// suppress marks rc if no report about a domain is to be sent there, and tells whether it did.
func (r *Reporter) suppress(domain string, rc *ruapost.Recipient, all suppressions) bool {
	for _, pattern := range patterns(domain, rc) {
		s, ok := all[pattern]
		if !ok || !s.Active(r.now()) {
			continue
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
	return false
}

// strike suppresses what a pattern is about, since a report that was sent there at a time
// came back. It returns nil if that was so before, or there is no room for it.
func (r *Reporter) strike(ctx context.Context, pattern, reason string, sent time.Time) (struck *ruapost.Suppression, err error) {
	now := r.now()
	err = r.Store.UpdateSuppression(ctx, pattern, func(s *ruapost.Suppression) bool {
		struck = nil
		if s.Bounces == 0 && s.Since.After(now) {
			s.Since = now
			return true
		}
		known := !s.Since.IsZero() && !s.Since.After(now)    // else the clock was ahead
		if known && (s.Active(now) || s.Since.After(sent)) { // one fault, told several times
			return true
		}
		s.Bounces++
		s.Since = now
		s.Until = s.Since.Add(min(firstSuppression<<min(s.Bounces-1, 10), maxSuppression))
		s.Reason = ruapost.Clean(reason, 300)
		after := *s
		struck = &after
		return true
	})
	if errors.Is(err, ruapost.ErrNoRoom) {
		slog.Warn("nothing more can be suppressed: there is no room, see: ruapost-reporter suppress list", "address", pattern)
		return nil, nil
	}
	return struck, err
}

// clear forgets that mail to an address came back before, as a report about a domain that
// was sent to rc after that did not.
func (run *run) clear(ctx context.Context, domain string, rc *ruapost.Recipient) error {
	works := func(s *ruapost.Suppression) bool {
		return s.Bounces > 0 && !s.Until.IsZero() && !s.Active(run.now()) && rc.Last.After(s.Until)
	}
	if rc.State != ruapost.RecipientSent {
		return nil
	}
	for _, pattern := range []string{patternOf(rc.Address), patternAbout(rc.Address, domain)} {
		if s, ok := run.suppressed[pattern]; !ok || !works(&s) {
			continue
		}
		err := run.Store.UpdateSuppression(ctx, pattern, func(s *ruapost.Suppression) bool {
			return !s.Since.IsZero() && !works(s)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
