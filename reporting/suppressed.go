package reporting

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"ruapost"
	"ruapost/internal/mailtouri"
)

// ParsePattern returns a pattern of a ruapost.Suppression as a person types it in the
// form that is stored.
func ParsePattern(s string) (pattern string, err error) {
	if address, domain, ok := strings.Cut(s, aboutWord); ok {
		address, err1 := mailtouri.ParseAddress(address)
		domain, err2 := ruapost.ParseDomain(domain)
		return patternAbout(address, domain), errors.Join(err1, err2)
	}
	if strings.Contains(s, "@") {
		address, err := mailtouri.ParseAddress(s)
		return patternOf(address), err
	}
	domain, below := strings.CutPrefix(s, "*.")
	if domain, err = ruapost.ParseDomain(domain); err != nil {
		return "", fmt.Errorf("not a mail address, a domain, or \"*.\" and a domain: %w", err)
	}
	if below {
		domain = "*." + domain
	}
	return domain, nil
}

// ListSuppressions writes a table of what gets no reports, or a line of JSON for each.
func (r *Reporter) ListSuppressions(ctx context.Context, w io.Writer, asJSON bool) error {
	list, err := r.Store.Suppressions(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		for _, s := range list {
			if err := writeJSON(w, struct {
				ruapost.Suppression
				Active bool `json:"active"`
			}{s, s.Active(r.now())}); err != nil {
				return err
			}
		}
		return nil
	}
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "Nothing is suppressed.")
		return err
	}
	var t table
	t.add("PATTERN", "SINCE", "UNTIL", "ACTIVE", "BY", "REASON")
	for _, s := range list {
		until, active, by := "for good", "yes", "a person"
		if !s.Until.IsZero() {
			until = at(s.Until)
		}
		if !s.Active(r.now()) {
			active = "no"
		}
		switch {
		case s.Bounces == 1:
			by = "a bounce"
		case s.Bounces > 1:
			by = fmt.Sprintf("%d bounces", s.Bounces)
		}
		t.add(s.Pattern, at(s.Since), until, active, by, s.Reason)
	}
	return t.write(w)
}

// Suppressed returns how many suppressions are in force.
func (r *Reporter) Suppressed(ctx context.Context) (n int, err error) {
	list, err := r.Store.Suppressions(ctx)
	for _, s := range list {
		if s.Active(r.now()) {
			n++
		}
	}
	return n, err
}

// at is a time for a terminal.
func at(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") }
