package setup

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"ruapost"
	"ruapost/check"
	"ruapost/postconf"
)

var labels = map[check.Level]string{check.OK: "found", check.Warning: "note", check.Fault: "TO DO"}

// Write writes what there is and what is proposed for a terminal. Lines of files are not
// wrapped, so that they can be copied.
func (plan *Plan) Write(w io.Writer) error {
	var b strings.Builder
	for _, level := range []check.Level{check.OK, check.Warning, check.Fault} {
		for _, f := range plan.Findings {
			if f.Level == level {
				f.Write(&b, labels[level], "do")
			}
		}
	}
	plan.writeChanges(&b, MainCf, plan.postfix.mainCf())
	plan.writeChanges(&b, Toml, plan.toml.path)
	if len(plan.Changes) == 0 {
		b.WriteString("\nNothing is to be changed.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeChanges writes the lines that a file should have.
func (plan *Plan) writeChanges(b *strings.Builder, file, path string) {
	title, section := "\n"+path+":\n", ""
	for _, c := range plan.Changes {
		if c.File != file {
			continue
		}
		b.WriteString(title)
		title = ""
		name := c.Name
		if s, key, ok := strings.Cut(name, "."); ok && file == Toml {
			if name = key; s != section {
				fmt.Fprintf(b, "\n[%s]", s)
				section = s
			}
		}
		fmt.Fprintf(b, "\n# %s\n", c.Reason)
		if c.Waits {
			b.WriteString("# not yet, see TO DO above\n")
		}
		fmt.Fprintf(b, "%s = %s\n", name, ruapost.Clean(c.New, 10*maxText))
		if c.Old != nil {
			fmt.Fprintf(b, "# was: %s\n", ruapost.Clean(*c.Old, 10*maxText))
		}
	}
}

// Next returns what is to be done when the changes have been made. again is the command that
// makes those that had to wait.
func (plan *Plan) Next(again string) []string {
	var next []string
	if keys := plan.ready(Toml); len(keys) > 0 {
		for _, c := range keys {
			if c.Name == "tlspolicy.maillog" {
				next = append(next, "systemctl edit ruapost-tlspolicy     # [Service] SupplementaryGroups=systemd-journal adm")
			}
		}
		next = append(next, "systemctl restart ruapost-milter ruapost-tlspolicy")
	}
	if len(plan.ready(MainCf)) > 0 {
		next = append(next, plan.postfix.Reload())
	}
	if slices.ContainsFunc(plan.Changes, func(c Change) bool { return c.Waits }) {
		next = append(next, again+"     # again, when what TO DO says is done: something had to wait")
	}
	return append(next, "ruapost-tlspolicy check", "ruapost-reporter check")
}

// Reload is the command that has Postfix read main.cf again.
func (p *Postfix) Reload() string { return postconf.Command("postfix", p.Dir, "reload") }

// Write writes what was put back for a terminal.
func (u *Undone) Write(w io.Writer) error {
	var b strings.Builder
	for _, name := range u.Restored {
		fmt.Fprintf(&b, "put back: %s\n", name)
	}
	for _, l := range u.Kept {
		fmt.Fprintf(&b, "%s was changed since: what setup put in is not there any more, and the rest stays. It is %s\n", l.Name, l.What)
	}
	for _, l := range u.Left {
		what, do := l.Name+" was changed since and stays: it is "+l.What, "to have it as it was"
		if l.Asks {
			what, do = "Postfix still asks ruapost, and mail waits when its daemons stop: "+l.Name+" = "+l.What, "do"
		}
		f := check.Finding{What: what, Mend: lines("", l.Mend)}
		f.Write(&b, "TO DO", do)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
