// Package setup puts ruapost beside a Postfix that is there: it reads what there is (Read),
// proposes what main.cf and ruapost.toml should have (Propose), makes those changes after it
// has saved what was there (Apply), and puts that back (Undo).
//
// It adds to what works, and takes out what somebody else has put there only if it is told
// so. Nothing that it does makes Postfix defer mail: main.cf names a socket only when
// somebody answers there, and Postfix may use it.
package setup

import (
	"context"
	"slices"
	"time"

	"ruapost/check"
	"ruapost/config"
)

// Files that are changed, as Change.File has them.
const (
	MainCf = "main.cf"
	Toml   = "ruapost.toml"
)

// Plan is what is proposed.
type Plan struct {
	// Findings tell what there is; a check.Warning tells what to know, and a check.Fault
	// what somebody has to do who knows this host.
	Findings []check.Finding `json:"findings"`
	Changes  []Change        `json:"changes"`

	postfix *Postfix
	cfg     *config.Config // as it is with the changes
	toml    *tomlFile
}

// Change is a line that a file should have.
type Change struct {
	File string `json:"file"` // MainCf or Toml
	// Name is a parameter of Postfix, or a key with its section, such as "milter.listen".
	Name string `json:"name"`
	// Old is what is there, as it is written there; nil if there is nothing.
	Old    *string `json:"old"`
	New    string  `json:"new"`
	Reason string  `json:"reason"`
	// Waits says that it must not be made yet; a finding says why.
	Waits bool `json:"waits,omitempty"`

	effect string // New with what its names stand for
}

// Options is what an administrator wants.
type Options struct {
	// Replace has those whose place ruapost is to take: names of tools, or entries as they
	// stand in main.cf.
	Replace []string
}

// Propose returns what main.cf and ruapost.toml should have beside what p says they have.
// cfg is what ruapost.toml says now. It asks whether the daemons answer.
func Propose(ctx context.Context, p *Postfix, cfg *config.Config, opts Options, host check.Host) (*Plan, error) {
	toml, err := readToml(cfg.File)
	if err != nil {
		return nil, err
	}
	plan := propose(p, cfg, opts, toml)
	if err := plan.reconfigure(); err != nil {
		return nil, err
	}
	host.Postfix = p.Dir
	plan.probe(ctx, host)
	plan.askResolver(ctx, host)
	return plan, nil
}

// askLimit is how long DNS servers may take to show whether they validate.
const askLimit = 5 * time.Second

// askResolver tells if what is proposed for mail that goes out gives no DANE, as no DNS server
// validates.
func (plan *Plan) askResolver(ctx context.Context, host check.Host) {
	proposed := slices.ContainsFunc(plan.Changes, func(c Change) bool { return c.Name == policyMaps || c.Name == "smtp_tls_security_level" })
	if host.Ask == nil || !proposed {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	servers := host.Ask(ctx, plan.cfg.DNS.Servers)
	answered := slices.ContainsFunc(servers, func(s check.Server) bool { return s.Answered })
	validates := slices.ContainsFunc(servers, func(s check.Server) bool { return s.Answered && s.Authentic })
	if validates {
		return
	}
	what := "no DNS server of this host validates DNSSEC: there is no DANE, and dane means may"
	if !answered {
		what = "no DNS server of this host answers: whether one validates DNSSEC, as DANE needs it, is not known"
	}
	plan.Findings = append(plan.Findings, check.Finding{
		Level: check.Warning, What: what, Mend: lines("Use one that validates, best on this host, in /etc/resolv.conf:", "nameserver 127.0.0.1"),
	})
}

// propose is Propose without asking anybody.
func propose(p *Postfix, cfg *config.Config, opts Options, toml *tomlFile) *Plan {
	plan := &planner{
		Plan: &Plan{Findings: []check.Finding{}, Changes: []Change{}, postfix: p, cfg: cfg, toml: toml}, p: p, cfg: cfg, toml: toml,
		replace: opts.Replace, replaced: map[string]bool{},
	}
	plan.describe()
	if p.Version.Before(3, 4, 0) {
		plan.needs("Update Postfix.", "Postfix %s is too old: 3.4 or later is needed. Nothing is proposed", p.VersionText)
		return plan.Plan
	}
	plan.inbound()
	plan.outbound()
	plan.events()
	plan.configuration()
	plan.unknownReplacements()
	return plan.Plan
}

// Waiting says whether there is something that must not be done yet, or that somebody has
// to do who knows this host.
func (plan *Plan) Waiting() bool {
	return slices.ContainsFunc(plan.Changes, func(c Change) bool { return c.Waits }) ||
		slices.ContainsFunc(plan.Findings, func(f check.Finding) bool { return f.Level == check.Fault })
}

// ready returns the changes to a file that can be made.
func (plan *Plan) ready(file string) []Change {
	return slices.DeleteFunc(slices.Clone(plan.Changes), func(c Change) bool { return c.File != file || c.Waits })
}

// probe finds out which changes must wait: those that would make Postfix ask somebody who
// does not answer.
func (plan *Plan) probe(ctx context.Context, host check.Host) {
	host.Planned = map[string]string{}
	for _, c := range plan.Changes {
		if c.File == MainCf {
			host.Planned[c.Name] = c.effect
		}
	}
	for _, probe := range []struct {
		names  []string
		faults func(context.Context, *config.Config, check.Host) []check.Finding
	}{
		{[]string{"smtpd_milters"}, check.Milter},
		{[]string{"smtp_tls_policy_maps"}, check.Deferrals},
		{[]string{"smtp_tlsrpt_enable", "smtp_tlsrpt_socket_name"}, check.Events},
	} {
		var waiting []*Change
		for i := range plan.Changes {
			if c := &plan.Changes[i]; c.File == MainCf && slices.Contains(probe.names, c.Name) {
				waiting = append(waiting, c)
			}
		}
		if len(waiting) == 0 {
			continue
		}
		faults := probe.faults(ctx, plan.cfg, host)
		for _, c := range waiting {
			c.Waits = len(faults) > 0
		}
		for _, f := range faults {
			f.What = probe.names[0] + " has to wait: " + f.What
			plan.Findings = append(plan.Findings, f)
		}
	}
}
