package setup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"ruapost"
	"ruapost/postconf"
)

// undoFile lies beside main.cf, where root alone can write: what it says is believed.
const undoFile = "ruapost-setup.undo"

// checkLimit is how long "postfix check" may take.
const checkLimit = time.Minute

// saved is what there was before changes were made. It is on disk before they are.
type saved struct {
	Time time.Time `json:"time"` // of the first change
	// MainCf and Toml are the whole files, for as long as nobody else changes them.
	MainCf savedFile `json:"main_cf"`
	Toml   savedFile `json:"ruapost_toml"`
	// Parameters are those of main.cf, Keys those of ruapost.toml.
	Parameters []savedValue `json:"parameters"`
	Keys       []savedValue `json:"keys"`
}

// savedFile is a file before and after a change.
type savedFile struct {
	Path    string  `json:"path"`
	Existed bool    `json:"existed"`
	Before  string  `json:"before"`
	After   *string `json:"after"` // nil if that is not known
	// Whole says that nobody else has changed the file between the changes.
	Whole bool `json:"whole"`
}

// savedValue is a parameter or a key before and after a change.
type savedValue struct {
	Name   string  `json:"name"`
	Before *string `json:"before"` // nil if it was not set
	After  string  `json:"after"`
}

// UndoFile is where what was there before is kept.
func (p *Postfix) UndoFile() string { return filepath.Join(p.Directory, undoFile) }

func (p *Postfix) mainCf() string { return filepath.Join(p.Directory, "main.cf") }

// Apply makes the changes that need not wait. It returns how many there were, and what
// "postfix check" says then.
func (plan *Plan) Apply(ctx context.Context) (made int, complaints string, err error) {
	p := plan.postfix
	parameters, keys := plan.ready(MainCf), plan.ready(Toml)
	if made = len(parameters) + len(keys); made == 0 {
		return 0, "", nil
	}
	unlock, err := p.lock()
	if err != nil {
		return 0, "", err
	}
	defer unlock()
	s, err := p.load()
	if err != nil {
		return 0, "", err
	}
	if err := s.note(p, plan.toml, parameters, keys); err != nil {
		return 0, "", err
	}
	if err := s.write(p.UndoFile()); err != nil {
		return 0, "", err
	}
	if err := plan.change(ctx, s, parameters, keys); err != nil {
		return 0, "", fmt.Errorf("not all was changed; to put back what was there: ruapost-reporter setup --undo: %w", err)
	}
	complaints, err = p.check(ctx)
	return made, complaints, err
}

// change makes changes whose files are saved in s, and saves what the files are then.
func (plan *Plan) change(ctx context.Context, s *saved, parameters, keys []Change) error {
	p := plan.postfix
	if len(keys) > 0 {
		text, err := plan.toml.with(keys)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(plan.toml.path), 0o755); err != nil {
			return err
		}
		if err := replaceFile(plan.toml.path, text, 0o644); err != nil {
			return err
		}
		s.Toml.After = &text
	}
	if len(parameters) > 0 {
		var settings []string
		for _, c := range parameters {
			settings = append(settings, c.Name+" = "+c.New)
		}
		if err := p.edit(ctx, "-e", settings); err != nil {
			return err
		}
		main, err := os.ReadFile(p.mainCf())
		if err != nil {
			return err
		}
		after := string(main)
		s.MainCf.After = &after
	}
	return s.write(p.UndoFile())
}

// check returns what "postfix check" complains of; an error says that Postfix does not like
// its configuration.
func (p *Postfix) check(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(p.program), "postfix"), postconf.Args(p.Dir, "check")...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	said := strings.TrimSpace(string(out[:min(len(out), 20*maxText)]))
	if err != nil {
		return said, fmt.Errorf("postfix check: %w", err)
	}
	return said, nil
}

// lock keeps other runs out until unlock is called: what they have written would be taken for
// what was there before.
func (p *Postfix) lock() (unlock func() error, err error) {
	dir, err := os.Open(p.Directory)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another run is changing %s: %w", p.Directory, err), dir.Close())
	}
	return dir.Close, nil
}

// notLink returns an error for a file that would no longer be a symbolic link after a change.
func notLink(file string) error {
	info, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && info.Mode().Type() == fs.ModeSymlink {
		err = fmt.Errorf("%s is a symbolic link, which would be replaced by a file: change the file where it comes from", file)
	}
	return err
}

// load reads what was saved before; it is empty if there is nothing.
func (p *Postfix) load() (*saved, error) {
	s := &saved{}
	text, err := os.ReadFile(p.UndoFile())
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("%s: %w", p.UndoFile(), err)
	}
	return s, nil
}

// note adds what there is now to what was saved before. What Apply itself has written is
// not what was there before.
func (s *saved) note(p *Postfix, toml *tomlFile, parameters, keys []Change) error {
	if s.Time.IsZero() {
		s.Time = time.Now().UTC().Truncate(time.Second)
	}
	if len(parameters) > 0 {
		if err := notLink(p.mainCf()); err != nil {
			return err
		}
		main, err := os.ReadFile(p.mainCf())
		if err != nil {
			return err
		}
		s.MainCf.note(p.mainCf(), string(main), true)
	}
	if len(keys) > 0 {
		if err := notLink(toml.path); err != nil {
			return err
		}
		now, err := readToml(toml.path)
		if err != nil {
			return err
		}
		if now.exists != toml.exists || now.text != toml.text {
			return fmt.Errorf("%s has been changed since this run read it: run it again", toml.path)
		}
		s.Toml.note(toml.path, toml.text, toml.exists)
	}
	for _, c := range parameters {
		p.note(&s.Parameters, c)
	}
	for _, c := range keys {
		s.Keys = append(slices.DeleteFunc(s.Keys, func(k savedValue) bool { return k.Name == c.Name }), savedValue{Name: c.Name, After: c.New})
	}
	return nil
}

// note is saved.note for a file.
func (f *savedFile) note(path, text string, exists bool) {
	if f.Path == "" {
		*f = savedFile{Path: path, Existed: exists, Before: text, Whole: true}
		return
	}
	unchanged := exists == f.Existed && text == f.Before // since before the first change
	f.Whole = f.Whole && f.Path == path && (unchanged || f.is(text))
	f.Path, f.After = path, nil
	if f.Whole {
		f.After = &text
	}
}

// is says whether the file's content is what it was after the change.
func (f *savedFile) is(text string) bool { return f.After != nil && *f.After == text }

// restore makes the whole file what it was.
func (f *savedFile) restore() error {
	if !f.Existed {
		return os.Remove(f.Path)
	}
	return replaceFile(f.Path, f.Before, 0o644)
}

// note is saved.note for a parameter.
func (p *Postfix) note(all *[]savedValue, c Change) {
	var before *string
	if value, ok := p.Main[c.Name]; ok {
		before = &value
	}
	i := slices.IndexFunc(*all, func(v savedValue) bool { return v.Name == c.Name })
	if i < 0 {
		*all = append(*all, savedValue{Name: c.Name, Before: before, After: c.New})
		return
	}
	v := &(*all)[i]
	if !same(before, &v.After) && !same(before, v.Before) {
		v.Before = p.withoutAdded(before, v) // somebody else has changed it since
	}
	v.After = c.New
}

// withoutAdded returns the value without what an earlier setup has put into it, which must
// not come back with an undo.
func (p *Postfix) withoutAdded(value *string, v *savedValue) *string {
	if value == nil {
		return nil
	}
	rest := p.without(*value, p.added([]savedValue{*v}, p.leadsTo))
	if rest == "" && v.Before == nil {
		return nil
	}
	return &rest
}

// same says whether two values, of which nil is none, are the same to Postfix.
func same(a, b *string) bool {
	if a == nil || b == nil {
		return a == b
	}
	return sameText(*a, *b)
}

// write writes the file so that it is on disk, whole, or as it was.
func (s *saved) write(file string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(file, string(text)+"\n", 0o600)
}

// replaceFile gives a file a new content that is on disk when it returns. Owner and mode
// stay; mode is that of a new file.
func replaceFile(file, text string, mode fs.FileMode) (err error) {
	dir := filepath.Dir(file)
	f, err := os.CreateTemp(dir, "."+filepath.Base(file)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	info, err := os.Stat(file)
	switch {
	case err == nil:
		mode = info.Mode().Perm()
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
				return err
			}
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Undone is what Undo did.
type Undone struct {
	// Restored are the parameters and keys that are again what they were.
	Restored []string `json:"restored"`
	// Kept are lists that somebody has changed since: what setup put in is not there any
	// more, and the rest stays.
	Kept []Left `json:"kept"`
	// Left are those that somebody has changed since, with what to do to have them as they
	// were, and lines that still ask ruapost. They stay as they are.
	Left []Left `json:"left"`
}

// Asks says whether Postfix still asks ruapost for a reason that Undo could not mend.
func (u *Undone) Asks() bool {
	return slices.ContainsFunc(u.Left, func(l Left) bool { return l.Asks })
}

// Left is a parameter or key that Undo has left as it is.
type Left struct {
	Name string `json:"name"`
	What string `json:"what"` // what it is now
	Mend string `json:"mend"` // how to have it as it was, or without ruapost
	// Asks says that Postfix asks ruapost by it.
	Asks bool `json:"asks,omitempty"`
}

// ErrNothingToUndo says that nothing was saved, or that it has been put back.
var ErrNothingToUndo = errors.New("there is nothing to put back")

// Undo puts back what was there before Apply, but for what was changed since, and forgets
// it. While Postfix still asks ruapost, it does not forget what it knows of main.cf.
func (p *Postfix) Undo(ctx context.Context) (*Undone, error) {
	unlock, err := p.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	s, err := p.load()
	if err != nil {
		return nil, err
	}
	if s.Time.IsZero() {
		return nil, fmt.Errorf("%w: there is no %s", ErrNothingToUndo, p.UndoFile())
	}
	u := &Undone{Restored: []string{}, Kept: []Left{}, Left: []Left{}}
	if err := errors.Join(p.undoMain(ctx, s, u), undoToml(s, u), p.look(ctx, s, u)); err != nil {
		return u, err
	}
	if u.Asks() { // what is kept says which entries are ours
		s.Keys, s.Toml = nil, savedFile{}
		return u, s.write(p.UndoFile())
	}
	return u, os.Remove(p.UndoFile())
}

// undoMain puts main.cf back: as a whole if nobody else has changed it.
func (p *Postfix) undoMain(ctx context.Context, s *saved, u *Undone) error {
	if len(s.Parameters) == 0 {
		return nil
	}
	now, err := os.ReadFile(p.mainCf())
	if err != nil {
		return err
	}
	if s.MainCf.Path == p.mainCf() && s.MainCf.Whole && s.MainCf.is(string(now)) {
		for _, v := range s.Parameters {
			u.Restored = append(u.Restored, v.Name)
		}
		return s.MainCf.restore()
	}
	set, unset := p.undoParameters(s.Parameters, u)
	if err := p.edit(ctx, "-X", unset); err != nil {
		return err
	}
	return p.edit(ctx, "-e", set)
}

// undoParameters returns what postconf is to set and to unset. If Postfix goes on asking for
// policies, by a line that is not setup's, all but the lists waits: without DNSSEC, say,
// Postfix would defer the mail for which an answer is "dane".
func (p *Postfix) undoParameters(parameters []savedValue, u *Undone) (set, unset []string) {
	ours := p.added(parameters, p.leadsTo)
	asks := slices.ContainsFunc(p.asking(parameters), func(l Left) bool { return !slices.Contains(lists, l.Name) })
	for _, v := range parameters {
		var value *string
		if text, ok := p.Main[v.Name]; ok {
			value = &text
		}
		command := []string{"-X", v.Name}
		if v.Before != nil {
			command = []string{"-e", v.Name + " = " + *v.Before}
		}
		switch {
		case same(value, v.Before):
			continue // it is already, or was never changed
		case asks && !slices.Contains(lists, v.Name):
			continue
		case !same(value, &v.After) && value != nil && slices.Contains(lists, v.Name):
			rest := p.without(*value, ours)
			u.Kept = append(u.Kept, Left{Name: v.Name, What: describeValue(&rest) + "; before setup it was " + describeValue(v.Before)})
			if rest == "" && v.Before == nil {
				unset = append(unset, v.Name)
			} else if rest != *value {
				set = append(set, v.Name+" = "+rest)
			}
			continue
		case !same(value, &v.After):
			u.Left = append(u.Left, Left{Name: v.Name, What: describeValue(value), Mend: postconf.Command("postconf", p.Dir, command...)})
			continue
		case v.Before == nil:
			unset = append(unset, v.Name)
		default:
			set = append(set, command[1])
		}
		u.Restored = append(u.Restored, v.Name)
	}
	return set, unset
}

// look tells what of main.cf and master.cf still asks ruapost after undoMain.
func (p *Postfix) look(ctx context.Context, s *saved, u *Undone) error {
	now, err := Read(ctx, p.program, p.Dir)
	if err == nil {
		u.Left = append(u.Left, now.asking(s.Parameters)...)
	}
	return err
}

// lists are the parameters in which setup puts an entry beside those of others.
var lists = []string{policyMaps, "smtpd_milters"}

// item reads an entry of one of the lists.
func (p *Postfix) item(text string) entry {
	if e := tableEntry(text); e.network != "" {
		return e
	}
	return p.milterEntry(text)
}

// leadsTo says whether two entries lead to the same socket.
func (p *Postfix) leadsTo(a, b entry) bool {
	return a.network != "" && a.network == b.network && (a.address == b.address ||
		a.network == "unix" && postconf.Reached(p.Queue, a.address, false) == postconf.Reached(p.Queue, b.address, false))
}

// sameEntry says whether two entries are written alike.
func sameEntry(a, b entry) bool { return a.text == b.text }

// added returns the entries that setup has put into the lists, but for those that were there
// before by known: sameEntry, or leadsTo if one that setup has only changed does not count.
func (p *Postfix) added(parameters []savedValue, known func(before, e entry) bool) (all []entry) {
	for _, v := range parameters {
		if !slices.Contains(lists, v.Name) {
			continue
		}
		var before []string
		if v.Before != nil {
			before = postconf.Items(*v.Before)
		}
		for _, text := range postconf.Items(v.After) {
			e := p.item(text)
			if e.network != "" && !slices.ContainsFunc(before, func(b string) bool { return known(p.item(b), e) }) {
				all = append(all, e)
			}
		}
	}
	return all
}

// without returns a list without those entries that lead where one of ours does.
func (p *Postfix) without(list string, ours []entry) string {
	var rest []string
	for _, text := range postconf.Items(list) {
		if e := p.item(text); !slices.ContainsFunc(ours, func(o entry) bool { return p.leadsTo(e, o) }) {
			rest = append(rest, text)
		}
	}
	if len(rest) == len(postconf.Items(list)) {
		return list
	}
	return strings.Join(rest, ", ")
}

// asking returns the lines of main.cf and master.cf by which Postfix asks for TLS policies
// where one of ours leads, or one that setup has changed. Without an answer mail waits;
// without a milter it does not.
func (p *Postfix) asking(parameters []savedValue) (all []Left) {
	ours := slices.DeleteFunc(p.added(parameters, sameEntry), func(e entry) bool { return tableEntry(e.text).network == "" })
	for _, name := range slices.Sorted(maps.Keys(p.Main)) {
		value := p.Main[name]
		if rest := p.without(value, ours); rest != value {
			all = append(all, Left{Name: name, What: describeValue(&value), Mend: postconf.Command("postconf", p.Dir, "-e", name+" = "+rest), Asks: true})
		}
	}
	for _, s := range p.Services {
		value := s.Override[policyMaps]
		if rest := p.without(value, ours); rest != value {
			name := s.String() + "/" + policyMaps
			all = append(all, Left{Name: name, What: describeValue(&value), Mend: postconf.Command("postconf", p.Dir, "-P", name+"="+strings.ReplaceAll(rest, ", ", ",")), Asks: true})
		}
	}
	return all
}

// Writable returns an error if this process may not change main.cf.
func (p *Postfix) Writable() error {
	const write = 2
	if err := syscall.Access(p.Directory, write); err != nil {
		return fmt.Errorf("run this as root: %s: %w", p.Directory, err)
	}
	return nil
}

// edit has postconf change main.cf, all or nothing.
func (p *Postfix) edit(ctx context.Context, option string, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if _, _, err := postconf.Run(ctx, p.program, postconf.Args(p.Dir, append([]string{option}, args...)...)...); err != nil {
		return fmt.Errorf("postconf: %w", err)
	}
	return nil
}

func describeValue(value *string) string {
	if value == nil {
		return "not set"
	}
	return ruapost.Clean(*value, maxText)
}

// undoToml puts ruapost.toml back: as a whole if nobody else has changed it, else by taking
// out the lines that were put in.
func undoToml(s *saved, u *Undone) error {
	if len(s.Keys) == 0 {
		return nil
	}
	file := s.Toml.Path
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // and with it all keys
	} else if err != nil {
		return err
	}
	if s.Toml.Whole && s.Toml.is(string(text)) {
		for _, k := range s.Keys {
			u.Restored = append(u.Restored, k.Name)
		}
		return s.Toml.restore()
	}
	rest := string(text)
	for _, k := range s.Keys {
		_, name, ok := strings.Cut(k.Name, ".")
		if !ok {
			name = k.Name
		}
		line := keyLine(name, k.After)
		if strings.Count("\n"+rest, "\n"+line) != 1 {
			u.Left = append(u.Left, Left{Name: k.Name, What: "no longer the line " + strings.TrimSpace(line), Mend: "Look for it in " + file + "."})
			continue
		}
		rest = strings.Replace("\n"+rest, "\n"+line, "\n", 1)[1:]
		u.Restored = append(u.Restored, k.Name)
	}
	return replaceFile(file, rest, 0o644)
}
