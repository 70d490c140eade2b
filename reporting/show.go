package reporting

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"text/tabwriter"
	"time"

	"ruapost"
)

// List writes a table of what is being recorded, what waits to be sent and what was
// sent during the last days.
func (r *Reporter) List(ctx context.Context, w io.Writer) error {
	recording, err := r.due(ctx, true)
	if err != nil {
		return err
	}
	reports, err := r.Store.Reports(ctx)
	if err != nil {
		return err
	}
	if len(recording)+len(reports) == 0 {
		_, err := fmt.Fprintln(w, "Nothing is recorded, nothing was reported yet.")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "KIND\tDOMAIN\tDAY (UTC)\tCOUNT\tSTATE\tREPORT-ID")
	for _, d := range recording {
		state := "recording"
		switch err := d.reportable(); {
		case err != nil:
			state = err.Error() + ", will not be sent"
		case !d.window.End.Add(Grace).After(r.now()):
			state = "due"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%s\t-\n", d.kind, d.domain, d.window.Start.Format(time.DateOnly), total(d.groups), state)
	}
	for _, rep := range reports {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%s\t%s\n", rep.Kind, rep.Domain, rep.Window.Start.Format(time.DateOnly), total(rep.Groups), rep.State, rep.ID)
		for _, rc := range rep.Recipients {
			fmt.Fprintf(tw, "\t  %s\t\t\t%s\t\n", rc.Address, recipientState(rc))
		}
	}
	return tw.Flush()
}

func total(groups []ruapost.Group) (n int64) {
	for _, g := range groups {
		n += g.Total
	}
	return n
}

func recipientState(rc ruapost.Recipient) string {
	switch rc.State {
	case ruapost.RecipientSent:
		return "sent " + rc.Last.UTC().Format(time.DateTime)
	case ruapost.RecipientWaiting:
		if rc.Error != "" {
			return fmt.Sprintf("waiting until %s: %s", rc.NotBefore.UTC().Format(time.DateTime), rc.Error)
		}
	}
	if rc.Error != "" {
		return string(rc.State) + ": " + rc.Error
	}
	return string(rc.State)
}

// ErrNothing is returned by Show if there is nothing about the domain.
var ErrNothing = errors.New("nothing is recorded or reported about it")

// Show writes the reports about domain as their receivers see them: those made in the
// last days, and what is being recorded as the report it would be now.
func (r *Reporter) Show(ctx context.Context, w io.Writer, domain string) error {
	reports, err := r.Store.Reports(ctx)
	if err != nil {
		return err
	}
	recording, err := r.due(ctx, true)
	if err != nil {
		return err
	}
	found := false
	for i := range reports {
		rep := &reports[i]
		if rep.Domain != domain {
			continue
		}
		found = true
		fmt.Fprintf(w, "=== %s report %s, %s\n", rep.Kind, rep.ID, rep.State)
		for _, rc := range rep.Recipients {
			fmt.Fprintf(w, "    %s: %s\n", rc.Address, recipientState(rc))
		}
		if err := r.copyContent(ctx, w, rep); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	covered := coverage(reports)
	for _, d := range recording {
		if d.domain != domain {
			continue
		}
		found = true
		if err := r.preview(ctx, w, &d, covered); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("%s: %w", domain, ErrNothing)
	}
	return nil
}

// preview writes what is being recorded as the report it would be now.
func (r *Reporter) preview(ctx context.Context, w io.Writer, d *dueReport, covered map[subject][]ruapost.Window) error {
	if err := d.reportable(); err != nil {
		_, err = fmt.Fprintf(w, "=== no %s report of %d counted: %v\n\n", d.kind, total(d.groups), err)
		return err
	}
	rep := &ruapost.Report{ID: "preview", Kind: d.kind, Domain: d.domain, Window: r.reportWindow(d, covered), Groups: d.groups}
	fmt.Fprintf(w, "=== %s report as it would be now, not sent yet\n", d.kind)
	if err := r.writeContent(ctx, w, rep); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w)
	return err
}

// copyContent writes a report's content, uncompressed, or that it is not there.
func (r *Reporter) copyContent(ctx context.Context, w io.Writer, rep *ruapost.Report) error {
	f, err := os.Open(r.contentFile(rep))
	if errors.Is(err, fs.ErrNotExist) && rep.State == ruapost.ReportSealed {
		return r.writeContent(ctx, w, rep)
	}
	if errors.Is(err, fs.ErrNotExist) {
		_, err := fmt.Fprintf(w, "    %v\n", errNoContent)
		return err
	}
	if err != nil {
		return fmt.Errorf("reporting: outbox: %w", err)
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("reporting: %s: %w", f.Name(), err)
	}
	if _, err := io.Copy(w, zr); err != nil {
		return fmt.Errorf("reporting: %s: %w", f.Name(), err)
	}
	return nil
}

// DryRun writes what Send would do, after the same lookups, and does nothing.
func (r *Reporter) DryRun(ctx context.Context, w io.Writer, everything bool) error {
	if err := r.findSendmail(); err != nil {
		return err
	}
	reports, err := r.Store.Reports(ctx)
	if err != nil {
		return err
	}
	for _, rep := range reports {
		for _, rc := range rep.Recipients {
			if rc.State == ruapost.RecipientWaiting {
				fmt.Fprintf(w, "%s %s: report %s waits for %s\n", rep.Kind, rep.Domain, rep.ID, rc.Address)
			}
		}
	}
	due, err := r.due(ctx, everything)
	if err != nil {
		return err
	}
	for _, d := range due {
		fmt.Fprintf(w, "%s %s %s: %d counted: ", d.kind, d.domain, d.window.Start.Format(time.DateOnly), total(d.groups))
		if err := r.dryRecipients(ctx, w, &d); err != nil {
			return err
		}
	}
	if len(due) == 0 {
		fmt.Fprintln(w, "Nothing is due: no day that is over has anything recorded. For the current day too: send --now --dry-run")
	}
	return nil
}

func (r *Reporter) dryRecipients(ctx context.Context, w io.Writer, d *dueReport) error {
	recipients, err := r.wanted(ctx, d)
	if why, none := errors.AsType[noReport](err); none {
		_, err := fmt.Fprintf(w, "%s, would be dropped\n", why)
		return err
	}
	if err != nil {
		fmt.Fprintf(w, "would wait: %v\n", err)
		return ctx.Err()
	}
	fmt.Fprintln(w, "would be sent")
	rep := &ruapost.Report{Kind: d.kind, Domain: d.domain, Recipients: recipients}
	for i, a := range r.ask(ctx, rep) {
		switch rc := recipients[i]; {
		case a.err != nil:
			fmt.Fprintf(w, "    not to %s: %v\n", rc.Address, a.err)
		case len(a.instead) == 0:
			fmt.Fprintf(w, "    to %s\n", rc.Address)
		}
		for _, rc := range a.instead {
			fmt.Fprintf(w, "    to %s\n", rc.Address)
		}
	}
	return ctx.Err()
}
