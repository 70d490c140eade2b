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
		switch {
		case !d.required():
			state = "optional only, will not be sent"
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
	found := false
	reports, err := r.Store.Reports(ctx)
	if err != nil {
		return err
	}
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
	recording, err := r.due(ctx, true)
	if err != nil {
		return err
	}
	for _, d := range recording {
		if d.domain != domain {
			continue
		}
		found = true
		rep := &ruapost.Report{ID: "preview", Kind: d.kind, Domain: d.domain, Window: r.reportWindow(d, reports), Groups: d.groups}
		fmt.Fprintf(w, "=== %s report as it would be now, not sent yet\n", d.kind)
		if err := r.writeContent(ctx, w, rep); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	if !found {
		return fmt.Errorf("%s: %w", domain, ErrNothing)
	}
	return nil
}

// copyContent writes a report's content, uncompressed.
func (r *Reporter) copyContent(ctx context.Context, w io.Writer, rep *ruapost.Report) error {
	f, err := os.Open(r.contentFile(rep))
	if errors.Is(err, fs.ErrNotExist) && rep.State == ruapost.ReportSealed {
		return r.writeContent(ctx, w, rep)
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
		if err := r.dryRecipients(ctx, w, d); err != nil {
			return err
		}
	}
	if len(due) == 0 {
		fmt.Fprintln(w, "No window with rows is over.")
	}
	return nil
}

func (r *Reporter) dryRecipients(ctx context.Context, w io.Writer, d dueReport) error {
	if !d.required() {
		_, err := fmt.Fprintln(w, "optional only, would be dropped")
		return err
	}
	recipients, err := r.recipients(ctx, d.kind, d.domain)
	switch {
	case err != nil:
		fmt.Fprintf(w, "would wait: %v\n", err)
		return ctx.Err()
	case len(recipients) == 0:
		fmt.Fprintln(w, "nobody wants it, would be dropped")
		return nil
	}
	fmt.Fprintln(w, "would be sent")
	for _, rc := range recipients {
		instead := []ruapost.Recipient{rc}
		if !rc.Accepted {
			if instead, err = r.accept(ctx, d.domain, rc); err != nil {
				fmt.Fprintf(w, "    not to %s: %v\n", rc.Address, err)
			}
		}
		for _, rc := range instead {
			fmt.Fprintf(w, "    to %s\n", rc.Address)
		}
	}
	return ctx.Err()
}
