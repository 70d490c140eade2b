package outbound

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ruapost/dane"
	"ruapost/mtasts"
	"ruapost/resolver"
	"ruapost/socketmap"
)

// Level is what Postfix is to do about TLS to a domain.
type Level string

const (
	// LevelNone leaves it to smtp_tls_security_level.
	LevelNone Level = ""
	// LevelSTS enforces the domain's MTA-STS policy.
	LevelSTS Level = "sts"
	// LevelTesting reports on the domain's MTA-STS policy of mode testing, without
	// enforcing anything (RFC 8461 5).
	LevelTesting Level = "testing"

	// The others are security levels of Postfix.
	LevelDANE     Level = "dane"
	LevelDANEOnly Level = "dane-only"
	LevelMay      Level = "may"
	LevelEncrypt  Level = "encrypt"
	LevelSecure   Level = "secure" // with the domain itself, or a name below it, in the certificate
	LevelNoTLS    Level = "none"
)

// Settings are what the configuration says about policies.
type Settings struct {
	// ReportTesting is whether sessions with domains in mode testing are reported under
	// their policy.
	ReportTesting bool
	// DeferOnError is whether mail waits if DNS or HTTPS trouble keeps a policy from
	// being known.
	DeferOnError bool
	// Overrides are exceptions.
	Overrides []Override

	nothing answer // for all domains that have always had this one
}

// Override is an exception for domains: a name is that domain alone, one with a dot
// before it all names below it. The longest name that fits counts.
type Override struct {
	Domains []string
	// Level, unless it is empty, is given whatever the domain publishes; it is none of
	// LevelSTS and LevelTesting.
	Level Level
	// IgnoreSTS and IgnoreDANE say that the domain counts as one without.
	IgnoreSTS, IgnoreDANE bool
	// NoReport says that sessions with the domain are not reported to it.
	NoReport bool
}

// override returns the exception for domain, one without any effect if there is none.
func (s *Settings) override(domain string) Override {
	for name := domain; ; {
		for _, o := range s.Overrides {
			if slices.Contains(o.Domains, name) {
				return o
			}
		}
		_, parent, ok := strings.Cut(strings.TrimPrefix(name, "."), ".")
		if !ok {
			return Override{}
		}
		name = "." + parent
	}
}

// finding is all that was found about a domain.
type finding struct {
	domain   string
	override Override
	hosts    *dane.Result // empty if hostsErr is set
	hostsErr error
	sts      stsFinding
}

// find looks everything up that has a say, for a delivery to domain.
func (p *Policies) find(ctx context.Context, domain string, s *Settings) *finding {
	f := &finding{domain: domain, override: s.override(domain), hosts: &dane.Result{}, sts: stsFinding{recordErr: mtasts.ErrNoRecord}}
	if f.override.Level != "" && f.override.Level != LevelDANEOnly {
		return f // nothing has
	}
	p.look(ctx, f)
	return f
}

// look looks up what there is.
func (p *Policies) look(ctx context.Context, f *finding) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	domain := f.domain
	// Both at once: most domains have neither, and then both have to be waited for.
	sts := make(chan stsFinding, 1)
	go func() {
		found := stsFinding{recordErr: mtasts.ErrNoRecord}
		if !f.override.IgnoreSTS && f.override.Level == "" {
			if err := resolver.Safely(domain, func() { found = p.sts.find(ctx, domain) }); err != nil {
				found = stsFinding{recordErr: err}
			}
		}
		sts <- found
	}()
	if hosts, err := dane.Lookup(ctx, p.resolver, domain); err == nil {
		f.hosts = hosts
	} else {
		f.hostsErr = err
	}
	f.sts = <-sts
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		limits.WithLabelValues("time").Inc()
	}
	if f.hosts.Skipped > 0 {
		limits.WithLabelValues("hosts").Inc()
	}
}

// level returns what follows from what was found.
func (f *finding) level(s *Settings) Level {
	if f.override.Level != "" {
		return f.override.Level
	}
	enforce := f.sts.policy != nil && f.sts.policy.Mode == mtasts.ModeEnforce
	level := dane.LevelNone
	if !f.override.IgnoreDANE {
		level = f.hosts.Level(enforce)
	}
	switch {
	case level != dane.LevelNone:
		return Level(level) // RFC 8461 2: DANE wins
	case enforce:
		return LevelSTS
	case f.override.IgnoreDANE:
		return LevelMay // with nothing smtp_tls_security_level = dane would look for DANE
	case s.ReportTesting && f.sts.policy != nil && f.sts.policy.Mode == mtasts.ModeTesting:
		return LevelTesting
	}
	return LevelNone
}

// trouble says that a policy may be missing from what was found for a reason that may go
// away.
func (f *finding) trouble() bool {
	return f.hostsErr != nil && !f.override.IgnoreDANE || f.sts.trouble()
}

// verdict is what is answered about a domain, and what follows from it for sessions.
type verdict struct {
	level   Level
	policy  *mtasts.Policy // of LevelSTS and LevelTesting
	trouble bool
	expires time.Time // when the policy does, zero without one
	// hostOutside says that no MX host is one that the policy names.
	hostOutside bool

	plain, tlsrpt socketmap.Reply
	counter       prometheus.Counter // of queries that get it
}

// nothing is the verdict on most domains.
var nothing = &verdict{plain: socketmap.NotFound(), tlsrpt: socketmap.NotFound(), counter: queries.WithLabelValues("none")}

// verdict returns the verdict that follows from what was found.
func (f *finding) verdict(s *Settings) *verdict {
	level, trouble := f.level(s), f.trouble() && f.override.Level == ""
	if level == LevelNone && !trouble {
		return nothing
	}
	v := &verdict{level: level, trouble: trouble, counter: queries.WithLabelValues(cmp.Or(string(level), "unknown"))}
	if level == LevelSTS || level == LevelTesting {
		v.policy, v.expires, v.hostOutside = f.sts.policy, f.sts.expires, f.hostsOutside()
	}
	v.plain, v.tlsrpt = reply(f.domain, level, v.policy, false), reply(f.domain, level, v.policy, true)
	switch {
	case f.override.Level != "":
		v.counter = queries.WithLabelValues("override")
	case level == LevelNone && s.DeferOnError:
		v.counter = queries.WithLabelValues("error")
		v.plain = socketmap.Temp("the TLS policy of " + f.domain + " cannot be found out at this time")
		v.tlsrpt = v.plain
	}
	return v
}

// hostsOutside says whether mail can only go to hosts that the domain's MTA-STS policy
// does not name.
func (f *finding) hostsOutside() bool {
	if f.sts.policy == nil || f.hosts.Skipped > 0 || len(f.hosts.Hosts) == 0 {
		return false
	}
	return !slices.ContainsFunc(f.hosts.Hosts, func(h dane.Host) bool { return f.sts.policy.Matches(h.Name) })
}

// sameAs says whether the verdicts have the same effect.
func (v *verdict) sameAs(other *verdict) bool {
	return v.level == other.level && v.trouble == other.trouble && v.hostOutside == other.hostOutside &&
		v.plain == other.plain && v.tlsrpt == other.tlsrpt
}

// log tells of trouble and of a change, as it happens to a delivery.
func (f *finding) log(v, before *verdict) {
	if v.trouble {
		slog.Debug("policy: not all could be found out", "domain", f.domain, "level", v.level.words(),
			"mx", f.hostsErr, "record", f.sts.recordErr, "policy", f.sts.fetchErr, "store", f.sts.storeErr)
	}
	if before != nil && before.level != v.level && !v.trouble && !before.trouble {
		slog.Info("TLS policy changed", "domain", f.domain, "from", before.level.words(), "to", v.level.words())
	}
}

// words names the level for people, in Postfix's words.
func (l Level) words() string {
	switch l {
	case LevelNone:
		return "no level"
	case LevelSTS:
		return "secure (MTA-STS)"
	case LevelTesting:
		return "may (MTA-STS in mode testing)"
	}
	return string(l)
}
