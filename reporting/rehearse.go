package reporting

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"ruapost"
)

// DryRun writes what Send would do, after the same lookups, and sends nothing.
func (r *Reporter) DryRun(ctx context.Context, w io.Writer, what Selection) error {
	if err := r.findSendmail(); err != nil {
		return err
	}
	suppressed, err := r.suppressions(ctx)
	if err != nil {
		return err
	}
	found, err := r.dryWaiting(ctx, w, what)
	if err != nil {
		return err
	}
	due, err := r.due(ctx, r.before(what), what.Domain)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(due, preparing) {
		texts := make([]string, len(some))
		var asking sync.WaitGroup
		for i := range some {
			asking.Go(func() { texts[i] = r.dryReport(ctx, &some[i], suppressed) })
		}
		asking.Wait()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := io.WriteString(w, strings.Join(texts, "")); err != nil {
			return err
		}
	}
	about := ""
	if what.Domain != "" {
		about = " about " + what.Domain
	}
	switch {
	case found || len(due) > 0:
		return nil
	case what.Open:
		_, err = fmt.Fprintf(w, "Nothing is due%s, and nothing is recorded.\n", about)
	default:
		_, err = fmt.Fprintf(w, "Nothing is due%s: nothing is recorded of a time that is over. For the current day, too: send --now --dry-run\n", about)
	}
	return err
}

// dryWaiting writes who waits for a report that was made.
func (r *Reporter) dryWaiting(ctx context.Context, w io.Writer, what Selection) (found bool, err error) {
	for rep, err := range r.Store.Reports(ctx) {
		if err != nil {
			return found, err
		}
		if what.Domain != "" && rep.Domain != what.Domain {
			continue
		}
		for _, rc := range rep.Recipients {
			if rc.State != ruapost.RecipientWaiting {
				continue
			}
			found = true
			state := ""
			if !r.isDue(&rc) {
				state = ", not before " + at(rc.NotBefore)
			}
			if _, err := fmt.Fprintf(w, "%s %s %s: report %s waits for %s%s\n",
				rep.Kind, rep.Domain, FormatWindow(rep.Window), rep.ID, ruapost.Clean(rc.Address, maxCell), state); err != nil {
				return found, err
			}
		}
	}
	return found, nil
}

// dryReport tells what would become of a report that could be made.
func (r *Reporter) dryReport(ctx context.Context, d *dueReport, suppressed suppressions) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s: %d counted: ", d.kind, d.domain, FormatWindow(d.window), total(d.groups))
	recipients, _, err := r.wanted(ctx, d, suppressed)
	if why, none := errors.AsType[noReport](err); none {
		fmt.Fprintf(&b, "%s, would be dropped\n", why)
		return b.String()
	}
	if err != nil {
		fmt.Fprintf(&b, "would wait: %s\n", ruapost.Clean(err.Error(), maxCell))
		return b.String()
	}
	var lines strings.Builder
	to := "would be sent to nobody"
	line := func(rc *ruapost.Recipient, err error) {
		address := ruapost.Clean(rc.Address, maxCell)
		switch {
		case err != nil:
			fmt.Fprintf(&lines, "    not to %s: %s\n", address, ruapost.Clean(err.Error(), maxCell))
		case rc.State == ruapost.RecipientSuppressed:
			fmt.Fprintf(&lines, "    not to %s: %s\n", address, rc.Error)
		default:
			to = "would be sent"
			fmt.Fprintf(&lines, "    to %s\n", address)
		}
	}
	rep := &ruapost.Report{Kind: d.kind, Domain: d.domain, Recipients: recipients}
	for i, a := range r.ask(ctx, rep) {
		if len(a.instead) == 0 {
			line(&recipients[i], a.err)
		}
		for _, rc := range a.instead {
			r.suppress(rep.Domain, &rc, suppressed)
			line(&rc, nil)
		}
	}
	return b.String() + to + "\n" + lines.String()
}
