package reporting

import (
	"context"
	"time"

	"ruapost"
)

// dueReport is a report that could be made: one group of evaluations, or all groups
// of sessions of a window and domain.
type dueReport struct {
	kind   ruapost.Kind
	domain string
	window ruapost.Window
	groups []ruapost.Group
}

// noReport is the error that there is to be no report, and says why. Each has a
// counter of its own.
type noReport struct{ counter, why string }

func (n noReport) Error() string { return n.why }

var (
	errNobody       = noReport{"dropped_unwanted", "nobody wants the report any more"}
	errOptional     = noReport{"dropped_optional", "optional only"}
	errNoRows       = noReport{"dropped_no_rows", "none of its rows fits into a report"}
	errExcluded     = noReport{"dropped_excluded", "the domain is excluded by the configuration"}
	errSuccessOnly  = noReport{"dropped_success_only", "no failures, and tls_success_only is false"}
	errAllExcluded  = noReport{"dropped_no_recipient", "all its destinations are excluded by the configuration"}
	errSuppressed   = noReport{"dropped_suppressed", "all its destinations are suppressed"}
	errExpired      = noReport{"dropped_expired", "its recipients could not be looked up for too long"}
	errOwnAddresses = noReport{"dropped_own", "it would go to where our reports come from"}
)

// before is the time by which windows must be over to be reported.
func (r *Reporter) before(what Selection) time.Time {
	if what.Open {
		return r.now().Add(2 * 24 * time.Hour) // no window is longer than a day
	}
	return r.now().Add(-Grace)
}

// due returns what there is to report of windows that are over before a time, in the order
// of kind, window and domain; about one domain, if that is not empty.
func (r *Reporter) due(ctx context.Context, before time.Time, domain string) ([]dueReport, error) {
	groups, err := r.Store.Groups(ctx, before)
	if err != nil {
		return nil, err
	}
	var due []dueReport
	for _, g := range groups {
		if domain != "" && domain != g.Domain {
			continue
		}
		if n := len(due); n > 0 && g.Kind == ruapost.KindTLS && due[n-1].kind == g.Kind &&
			due[n-1].domain == g.Domain && due[n-1].window == g.Window {
			due[n-1].groups = append(due[n-1].groups, g)
			continue
		}
		due = append(due, dueReport{kind: g.Kind, domain: g.Domain, window: g.Window, groups: []ruapost.Group{g}})
	}
	return due, nil
}

// reportable returns nil, or why no report is made whoever wants it: a noReport.
func (r *Reporter) reportable(d *dueReport) error {
	switch g := d.groups[0]; {
	case has(r.ExcludedDomains, d.domain), r.OnlyDomains != nil && !r.OnlyDomains.Has(d.domain):
		return errExcluded
	case d.kind == ruapost.KindTLS:
		if r.TLSFailuresOnly && !d.hasFailure() {
			return errSuccessOnly
		}
	case g.Required == 0:
		return errOptional
	case g.Listed == 0:
		return errNoRows
	}
	return nil
}

// hasFailure tells whether any session failed, or was kept from being one.
func (d *dueReport) hasFailure() bool {
	for _, g := range d.groups {
		if g.Failed > 0 || g.Rows > 0 {
			return true
		}
	}
	return false
}

func has(n Names, name string) bool { return n != nil && n.Has(name) }

// subject is what a report is about.
type subject struct {
	kind   ruapost.Kind
	domain string
}

// coverage is what reports of the last days cover, by what they are about.
type coverage map[subject][]ruapost.Window

// add takes a report into account if another one about the same window may be made.
func (c coverage) add(rep *ruapost.Report, now time.Time) {
	if now.Sub(rep.Window.End) < 2*24*time.Hour {
		s := subject{rep.Kind, rep.Domain}
		c[s] = append(c[s], rep.Window)
	}
}

// reportWindow is the interval that a report made now covers. A report that is made
// before its window is over ends now, and begins where the last such one ended, so
// that reports do not overlap (RFC 9990 3.1.1.4).
func (r *Reporter) reportWindow(d *dueReport, covered coverage) ruapost.Window {
	w := d.window
	if now := r.now().Truncate(time.Second).Add(time.Second); now.Before(w.End) {
		w.End = now
	}
	for _, e := range covered[subject{d.kind, d.domain}] {
		if !e.Start.Before(d.window.Start) && e.End.Before(w.End) && e.End.After(w.Start) {
			w.Start = e.End
		}
	}
	return w
}
