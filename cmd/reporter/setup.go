package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"ruapost/check"
	"ruapost/config"
	"ruapost/daemon"
	"ruapost/postconf"
	"ruapost/setup"
)

// setupOptions are those of the command setup.
type setupOptions struct {
	config              string // the configuration file, if it is not the default one
	apply, undo, asJSON bool
	dir                 string // of main.cf
	replace             []string
}

// takesBack says whether the arguments are those of setup --undo. That has all it needs in
// the file that --apply wrote, and is needed most when ruapost.toml has mistakes: the daemons
// do not start then, and mail waits.
func takesBack(args []string) bool {
	return len(args) > 0 && args[0] == "setup" && slices.ContainsFunc(args[1:], func(arg string) bool {
		return arg == "--undo" || arg == "-undo"
	})
}

func setupCommand(args []string) (action, error) {
	var o setupOptions
	_, err := parse("setup", args, 0, 0, func(flags *flag.FlagSet) {
		flags.BoolVar(&o.apply, "apply", false, "")
		flags.BoolVar(&o.undo, "undo", false, "")
		flags.BoolVar(&o.asJSON, "json", false, "")
		flags.StringVar(&o.dir, "postfix", "", "")
		flags.Func("replace", "", func(names string) error {
			o.replace = append(o.replace, postconf.Items(names)...) // an entry in braces has commas
			return nil
		})
	})
	if err == nil && o.undo && (o.apply || o.replace != nil) {
		err = fmt.Errorf("%w: setup: --undo goes with neither --apply nor --replace", daemon.ErrUsage)
	}
	return func(ctx context.Context, t *tools) error {
		if t.cfg.File != config.DefaultPath {
			o.config = t.cfg.File
		}
		return o.run(ctx, t.cfg, os.Stdout)
	}, err
}

// run proposes, makes or takes back what puts ruapost beside Postfix. Its error is
// daemon.ErrFound if it has told of something that somebody has to do.
func (o *setupOptions) run(ctx context.Context, cfg *config.Config, w io.Writer) error {
	p, err := setup.Read(ctx, "", o.dir)
	if err != nil {
		return err
	}
	if o.apply || o.undo {
		if err := p.Writable(); err != nil {
			return err
		}
	}
	if o.undo {
		return o.takeBack(ctx, p, w)
	}
	plan, err := setup.Propose(ctx, p, cfg, setup.Options{Replace: o.replace}, check.Host{Ask: check.AskServers})
	if err != nil {
		return err
	}
	if !o.asJSON {
		if err := plan.Write(w); err != nil {
			return err
		}
	}
	if o.apply {
		err = o.make(ctx, p, plan, w)
	} else if !o.asJSON && len(plan.Changes) > 0 {
		_, err = fmt.Fprintf(w, "\nNothing has been changed. To have it done:\n    %s\n", o.applyCommand())
	}
	if o.asJSON {
		err = errors.Join(err, writeJSON(w, plan))
	}
	if err == nil && plan.Waiting() {
		err = daemon.ErrFound
	}
	return err
}

// make makes the changes, and says what is left to do.
func (o *setupOptions) make(ctx context.Context, p *setup.Postfix, plan *setup.Plan, w io.Writer) error {
	made, complaints, err := plan.Apply(ctx)
	if o.asJSON {
		return err
	}
	var b strings.Builder
	if made > 0 {
		fmt.Fprintf(&b, "\nDone, %d of %d. What was there before is kept in %s;\nto put it back:\n    %s\n", made, len(plan.Changes), p.UndoFile(), o.command("--undo"))
	}
	if complaints != "" {
		fmt.Fprintf(&b, "\npostfix check says:\n%s\n", complaints)
	}
	if err == nil && len(plan.Changes) > 0 {
		fmt.Fprintf(&b, "\nThen:\n    %s\n", strings.Join(plan.Next(o.applyCommand()), "\n    "))
	}
	_, errWrite := io.WriteString(w, b.String())
	return errors.Join(err, errWrite)
}

// applyCommand is the command line of --apply.
func (o *setupOptions) applyCommand() string {
	options := []string{"--apply"}
	if o.replace != nil {
		options = append(options, "--replace", postconf.Quote(strings.Join(o.replace, ",")))
	}
	return o.command(options...)
}

func (o *setupOptions) takeBack(ctx context.Context, p *setup.Postfix, w io.Writer) error {
	undone, err := p.Undo(ctx)
	if errors.Is(err, setup.ErrNothingToUndo) {
		if o.asJSON {
			return writeJSON(w, setup.Undone{Restored: []string{}, Kept: []setup.Left{}, Left: []setup.Left{}})
		}
		_, err = fmt.Fprintf(w, "%v.\n", err)
		return err
	} else if undone == nil {
		return err
	}
	if o.asJSON {
		err = errors.Join(err, writeJSON(w, undone))
	} else {
		err = errors.Join(err, undone.Write(w))
		if len(undone.Restored)+len(undone.Kept) > 0 {
			then := "Then, as Postfix asks the daemons until then:"
			if undone.Asks() {
				then = "Postfix goes on asking ruapost: let its daemons run. When TO DO is done:"
			}
			_, errWrite := fmt.Fprintf(w, "\n%s\n    %s\n", then, p.Reload())
			err = errors.Join(err, errWrite)
		}
	}
	if err == nil && len(undone.Left) > 0 {
		err = daemon.ErrFound
	}
	return err
}

// command returns a line for a shell that runs setup for the same Postfix.
func (o *setupOptions) command(options ...string) string {
	if o.dir != "" {
		options = append(options, "-postfix", postconf.Quote(o.dir))
	}
	words := []string{program}
	if o.config != "" {
		words = append(words, "-config", postconf.Quote(o.config))
	}
	return strings.Join(slices.Concat(words, []string{"setup"}, options), " ")
}

// writeJSON writes a value as one line of JSON.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
