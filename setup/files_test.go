package setup

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ruapost/config"
)

func TestTomlWith(t *testing.T) {
	networks := Change{Name: "milter.trusted_networks", New: `["192.0.2.0/24"]`}
	domain := Change{Name: "report_domain", New: `"example.org"`}
	for name, tt := range map[string]struct {
		text, want string // "" if keys cannot be added
		missing    bool
	}{
		"no file":       {missing: true, want: header + "report_domain = \"example.org\"\n\n[milter]\ntrusted_networks = [\"192.0.2.0/24\"]\n"},
		"an empty file": {want: "report_domain = \"example.org\"\n\n[milter]\ntrusted_networks = [\"192.0.2.0/24\"]\n"},
		"below the comment": {
			text: "# ours\n#report_domain = \"x\"\n[store]\n# trusted_networks = 1\n[milter] # of mail\n#mode = \"x\"\n  # trusted_networks = []\nmode = \"verify\"\n[dkim]\n",
			want: "# ours\n#report_domain = \"x\"\nreport_domain = \"example.org\"\n[store]\n# trusted_networks = 1\n[milter] # of mail\n#mode = \"x\"\n  # trusted_networks = []\ntrusted_networks = [\"192.0.2.0/24\"]\nmode = \"verify\"\n[dkim]\n",
		},
		"at the top of the section": {
			text: "# ours\n# of all\n\norg_name = \"x\"\n[milter]\nmode = \"verify\"\n",
			want: "# ours\n# of all\nreport_domain = \"example.org\"\n\norg_name = \"x\"\n[milter]\ntrusted_networks = [\"192.0.2.0/24\"]\nmode = \"verify\"\n",
		},
		"no newline at the end": {
			text: "[milter]",
			want: "report_domain = \"example.org\"\n[milter]\ntrusted_networks = [\"192.0.2.0/24\"]\n",
		},
		"sections behind": {
			text: "[[override]]\nsource = [\"192.0.2.0/24\"]",
			want: "report_domain = \"example.org\"\n[[override]]\nsource = [\"192.0.2.0/24\"]\n\n[milter]\ntrusted_networks = [\"192.0.2.0/24\"]\n",
		},
		"dotted keys": {
			text: "milter.mode = \"verify\"\n",
			want: "report_domain = \"example.org\"\nmilter.mode = \"verify\"\n\n[milter]\ntrusted_networks = [\"192.0.2.0/24\"]\n",
		},
		"an inline table":         {text: "milter = { mode = \"verify\" }\n"},
		"a section in a string":   {text: "org_name = '''\n[milter]\n'''\n"},
		"a comment in a string":   {text: "[reporter]\n[milter]\nmode = \"\"\"\n#trusted_networks = 1\n\"\"\"\n"},
		"a comment in a list":     {text: "[milter]\ntrusted_sealers = [\n# trusted_networks = 1\n]\n"},
		"the key in a list above": {text: "org_name = \"x\"\nx = [\n#report_domain = 1\n]\n[milter]\n"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &tomlFile{path: "x.toml", text: tt.text, exists: !tt.missing}
			if err := f.decode(); err != nil {
				t.Fatal(err)
			}
			got, err := f.with([]Change{domain, networks})
			if got != tt.want || (err != nil) != (tt.want == "") {
				t.Errorf("%v\n%s\nnot\n%s", err, got, tt.want)
			}
		})
	}
}

// All keys that setup proposes find their place in the file that comes with the programs.
func TestContribToml(t *testing.T) {
	text, err := os.ReadFile("../contrib/ruapost.toml")
	if err != nil {
		t.Fatal(err)
	}
	f := &tomlFile{path: "ruapost.toml", text: string(text), exists: true}
	if err := f.decode(); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"report_domain": `"a.example"`, "milter.authserv_id": `"mail.a.example"`, "milter.trusted_networks": `["192.0.2.0/24"]`, "tlspolicy.maillog": `["journal"]`,
	} {
		got, err := f.with([]Change{{Name: name, New: value}})
		if err != nil {
			t.Error(err)
			continue
		}
		_, key, ok := strings.Cut(name, ".")
		if !ok {
			key = name
		}
		before, _, _ := strings.Cut(got, "\n"+keyLine(key, value))
		if line := before[strings.LastIndexByte(before, '\n')+1:]; !strings.HasPrefix(line, "#"+key+" = ") {
			t.Errorf("%s stands behind %q", name, line)
		}
		if _, err := config.Parse("", got); err != nil {
			t.Error(err)
		}
	}
}

// What counts as there before is what was there before the first change that nobody else
// has touched.
func TestSavedFile(t *testing.T) {
	const before, after, more, foreign = "a", "ab", "abc", "x"
	var f savedFile
	f.note("/f", before, true)
	f.After = ptr(after)
	f.note("/f", after, true) // a second change
	f.After = ptr(more)
	if !f.Whole || f.Before != before || !f.is(more) {
		t.Errorf("after two changes: %+v", f)
	}
	f.note("/f", before, true) // somebody has put it back, or the change never happened
	if !f.Whole || f.Before != before {
		t.Errorf("put back by hand: %+v", f)
	}
	f.After = ptr(after)
	f.note("/f", foreign, true)
	if f.Whole || f.is(foreign) {
		t.Errorf("changed by somebody: %+v", f)
	}
	f.note("/f", foreign, true)
	if f.Whole {
		t.Errorf("changed by somebody, and again by us: %+v", f)
	}
	var crashed savedFile // after saving, before it was told what the file had become
	crashed.note("/f", before, true)
	crashed.note("/f", after, true)
	if crashed.Whole {
		t.Errorf("what a crash left: %+v", crashed)
	}
}

func TestSavedValue(t *testing.T) {
	var all []savedValue
	c := Change{Name: "smtp_tls_loglevel", New: "1"}
	note := func(all *[]savedValue, c Change, now map[string]string) { newPostfix(now).note(all, c) }
	note(&all, c, map[string]string{})
	note(&all, c, map[string]string{"smtp_tls_loglevel": "1"}) // by us
	if all[0].Before != nil {
		t.Errorf("before us it was not set: %+v", all)
	}
	note(&all, c, map[string]string{"smtp_tls_loglevel": "0"}) // by somebody
	if all[0].Before == nil || *all[0].Before != "0" || len(all) != 1 {
		t.Errorf("before us it was 0: %+v", all)
	}

	// Our table, beside which somebody has put another, is not his for that.
	all = nil
	note(&all, Change{Name: policyMaps, New: ourTable}, map[string]string{})
	note(&all, Change{Name: policyMaps, New: ourTable + "withTLSRPT, hash:/etc/tls"}, map[string]string{policyMaps: "hash:/etc/tls, " + ourTable})
	if all[0].Before == nil || *all[0].Before != "hash:/etc/tls" {
		t.Errorf("an undo would put our own table back: %+v", all)
	}
	all = nil
	note(&all, Change{Name: "smtpd_milters", New: ourMilter}, map[string]string{})
	note(&all, Change{Name: "smtpd_milters", New: ourMilter}, map[string]string{"smtpd_milters": "unix:run/ruapost/milter.sock"})
	if all[0].Before != nil {
		t.Errorf("an undo would put our own milter back: %+v", all)
	}
}

// While Postfix asks for policies in another way than setup's, it needs what they are
// followed by: it would defer mail to domains with DANE or MTA-STS (smtp_tls_policy.c).
func TestUndoWhileAsked(t *testing.T) {
	const support = "smtp_dns_support_level"
	saved := []savedValue{{Name: policyMaps, After: ourTable}, {Name: support, After: "dnssec"}}
	for name, tt := range map[string]struct {
		main        map[string]string
		unset, kept []string
	}{
		"as setup left it":   {map[string]string{policyMaps: ourTable}, []string{policyMaps, support}, nil},
		"beside another":     {map[string]string{policyMaps: "hash:/etc/tls, " + ourTable}, []string{support}, []string{policyMaps}},
		"through a variable": {map[string]string{policyMaps: "$tables", "tables": ourTable}, nil, []string{policyMaps}},
	} {
		tt.main[support] = "dnssec"
		u := &Undone{}
		_, unset := newPostfix(tt.main).undoParameters(saved, u)
		var kept []string
		for _, l := range u.Kept {
			kept = append(kept, l.Name)
		}
		if !slices.Equal(unset, tt.unset) || !slices.Equal(kept, tt.kept) {
			t.Errorf("%s: unset %q, kept %q", name, unset, kept)
		}
	}
}

// A table that was there before setup asks again after it.
func TestAskingByHand(t *testing.T) {
	byHand := "socketmap:unix:run/ruapost/policy.sock:QUERY"
	saved := []savedValue{{Name: policyMaps, Before: &byHand, After: ourTable}}
	for value, asks := range map[string]bool{byHand: true, "hash:/etc/tls": false} {
		if got := newPostfix(map[string]string{policyMaps: value}).asking(saved); (len(got) == 1) != asks {
			t.Errorf("%s: %+v", value, got)
		}
	}
}

func TestUndoToml(t *testing.T) {
	const domain, networks = "report_domain = \"example.org\"\n", "trusted_networks = [\"192.0.2.0/24\"]\n"
	keys := []savedValue{{Name: "report_domain", After: `"example.org"`}, {Name: "milter.trusted_networks", After: `["192.0.2.0/24"]`}}
	after := domain + "[milter]\n" + networks
	for name, tt := range map[string]struct {
		file    savedFile
		now     string
		want    string // "" if the file must be gone
		left    int
		nothing bool // the file is not there
	}{
		"as it was left":          {savedFile{Existed: true, Before: "[milter]\n", After: &after, Whole: true}, after, "[milter]\n", 0, false},
		"made by setup":           {savedFile{After: &after, Whole: true}, after, "", 0, false},
		"made, and then extended": {savedFile{After: &after, Whole: true}, after + "mode = \"verify\"\n", "[milter]\nmode = \"verify\"\n", 0, false},
		"a line changed":          {savedFile{Existed: true, After: &after, Whole: true}, domain + "[milter]\ntrusted_networks = []\n", "[milter]\ntrusted_networks = []\n", 1, false},
		"gone":                    {savedFile{After: &after, Whole: true}, "", "", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "ruapost.toml")
			if !tt.nothing {
				if err := os.WriteFile(file, []byte(tt.now), 0o640); err != nil {
					t.Fatal(err)
				}
			}
			tt.file.Path = file
			u := &Undone{}
			if err := undoToml(&saved{Toml: tt.file, Keys: keys}, u); err != nil {
				t.Fatal(err)
			}
			got, _ := os.ReadFile(file)
			if string(got) != tt.want || len(u.Left) != tt.left {
				t.Errorf("%q, left %+v; want %q", got, u.Left, tt.want)
			}
			if info, err := os.Stat(file); err == nil && info.Mode().Perm() != 0o640 {
				t.Errorf("mode %v", info.Mode())
			} else if tt.want != "" && err != nil {
				t.Error(err)
			}
		})
	}
}

func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := replaceFile(file, "new", 0o600); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if err := replaceFile(filepath.Join(dir, "none/f"), "", 0o600); err == nil {
		t.Error("a folder that is not there")
	}
	if err := os.Chmod(file, 0o604); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(file, "newer", 0o600); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o604 {
		t.Errorf("the mode is not what it was: %v %v", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

// Nothing is made of a plan that no longer fits, or while another run is at work.
func TestApplyRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		settle func(t *testing.T, p *Postfix, file string)
		says   string
	}{
		"a link": {
			func(t *testing.T, _ *Postfix, file string) {
				if err := errors.Join(os.Rename(file, file+".real"), os.Symlink(file+".real", file)); err != nil {
					t.Fatal(err)
				}
			}, "symbolic link",
		},
		"edited since": {
			func(t *testing.T, _ *Postfix, file string) {
				if err := os.WriteFile(file, []byte("[store]\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}, "changed since",
		},
		"another run": {
			func(t *testing.T, p *Postfix, _ string) {
				unlock, err := p.lock()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unlock() })
			}, "another run",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "ruapost.toml")
			if err := os.WriteFile(file, []byte("[milter]\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			read, err := readToml(file)
			if err != nil {
				t.Fatal(err)
			}
			p := &Postfix{Directory: dir}
			plan := &Plan{postfix: p, toml: read, Changes: []Change{{File: Toml, Name: "report_domain", New: `"example.org"`}}}
			tt.settle(t, p, file)
			before, _ := os.ReadFile(file)
			if made, _, err := plan.Apply(t.Context()); made != 0 || err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%d changes, %v", made, err)
			}
			if after, _ := os.ReadFile(file); string(after) != string(before) {
				t.Errorf("the file has become %q", after)
			}
			if _, err := os.Stat(p.UndoFile()); err == nil {
				t.Error("something is kept to be put back")
			}
		})
	}
}

func ptr(s string) *string { return &s }
