package reporting

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ruapost"
	"ruapost/dmarc"
)

// ErrNothing is returned, wrapped, if there is nothing about a domain.
var ErrNothing = errors.New("nothing is recorded or reported about it")

// The digits of a report identifier, and how many of them at least are taken for one.
const (
	idDigits    = 32
	fewIDDigits = 6
)

// IsReportID tells whether s can be a report identifier or the beginning of one, rather
// than a domain.
func IsReportID(s string) bool {
	return fewIDDigits <= len(s) && len(s) <= idDigits &&
		!strings.ContainsFunc(s, func(c rune) bool { return !strings.ContainsRune("0123456789abcdef", c) })
}

// FindReport returns the report with an identifier, of which the beginning is enough if
// no other one has it. The error wraps ruapost.ErrNoReport if there is none.
func (r *Reporter) FindReport(ctx context.Context, id string) (*ruapost.Report, error) {
	if !IsReportID(id) {
		return nil, fmt.Errorf("%w: %q is no report ID; expected its %d digits, or the first of them, %d at least",
			ruapost.ErrNoReport, ruapost.Clean(id, 64), idDigits, fewIDDigits)
	}
	if len(id) == idDigits {
		return r.Store.Report(ctx, id)
	}
	var found *ruapost.Report
	n := 0
	for rep, err := range r.Store.Reports(ctx) {
		switch {
		case err != nil:
			return nil, err
		case !strings.HasPrefix(rep.ID, id):
			continue
		}
		found = &rep
		n++
	}
	switch n {
	case 0:
		return nil, fmt.Errorf("%w: none begins with %s", ruapost.ErrNoReport, id)
	case 1:
		return found, nil
	}
	return nil, fmt.Errorf("%d reports begin with %s: give more of the report ID; list -json and history -json have all of it", n, id)
}

// Contents says how reports are shown.
type Contents struct {
	// Mails says that the mails that wait in the outbox are shown, too.
	Mails bool
	// JSON says that each report is a line of JSON.
	JSON bool
}

// Show writes a report, or all reports about a domain, as their receivers see them. The
// error wraps ruapost.ErrNoReport or ErrNothing if there are none.
func (r *Reporter) Show(ctx context.Context, w io.Writer, what string, how Contents) error {
	if IsReportID(what) {
		rep, err := r.FindReport(ctx, what)
		if err != nil {
			return err
		}
		return r.showReport(ctx, w, rep, how)
	}
	found := false
	for rep, err := range r.Store.Reports(ctx) {
		if err != nil {
			return err
		}
		if rep.Domain != what {
			continue
		}
		found = true
		if err := r.showReport(ctx, w, &rep, how); err != nil {
			return err
		}
	}
	if found {
		return nil
	}
	due, err := r.due(ctx, r.before(Selection{Open: true}), what)
	switch {
	case err != nil:
		return err
	case len(due) == 0:
		return fmt.Errorf("%s: %w", what, ErrNothing)
	}
	return fmt.Errorf("no report about %s was made yet: %w; what is recorded: preview %s", what, ruapost.ErrNoReport, what)
}

func (r *Reporter) showReport(ctx context.Context, w io.Writer, rep *ruapost.Report, how Contents) error {
	if how.JSON {
		return r.showJSON(ctx, w, rep, how)
	}
	e := r.reportEntry(rep)
	fmt.Fprintf(w, "=== %s report %s about %s, %s: %s\n", rep.Kind, rep.ID, rep.Domain, FormatWindow(rep.Window), ruapost.Clean(e.stateText(), maxCell))
	for _, rc := range rep.Recipients {
		fmt.Fprintf(w, "    %s: %s\n", ruapost.Clean(rc.Address, maxCell), ruapost.Clean(recipientState(&rc), maxCell))
	}
	forms, err := r.frozenForms(rep)
	if err != nil {
		return err
	}
	switch {
	case rep.State == ruapost.ReportSealed:
		err = r.writeRecorded(ctx, w, rep, isLegacy(rep))
	case len(forms) == 0:
		_, err = fmt.Fprintf(w, "    %v\n", errNoContent)
	}
	for _, file := range forms {
		fmt.Fprintf(w, "--- %s\n", filepath.Base(file))
		err = errors.Join(err, copyContent(w, file))
	}
	if how.Mails && err == nil {
		err = r.showMails(w, rep)
	}
	_, errEnd := fmt.Fprintln(w)
	return errors.Join(err, errEnd)
}

// isLegacy tells which form the first recipient of a report gets.
func isLegacy(rep *ruapost.Report) bool { return len(rep.Recipients) > 0 && rep.Recipients[0].Legacy }

// frozenForms returns the files with the content of a report, one for each form.
func (r *Reporter) frozenForms(rep *ruapost.Report) (files []string, err error) {
	if rep.State == ruapost.ReportSealed {
		return nil, nil // what is there may have been written in part only
	}
	for _, legacy := range []bool{false, true} {
		file := r.contentFile(rep, legacy)
		there, err := exists(file)
		if err != nil {
			return nil, err
		}
		if there && !slices.Contains(files, file) {
			files = append(files, file)
		}
	}
	return files, nil
}

// copyContent writes what a compressed file has.
func copyContent(w io.Writer, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("reporting: outbox: %w", err)
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("reporting: %s: %w", file, err)
	}
	if _, err := io.Copy(w, zr); err != nil {
		return fmt.Errorf("reporting: %s: %w", file, err)
	}
	return nil
}

// writeRecorded writes the report that is made of rows in the store.
func (r *Reporter) writeRecorded(ctx context.Context, w io.Writer, rep *ruapost.Report, legacy bool) error {
	if rep.Kind == ruapost.KindTLS {
		var s summary
		return r.writeTLS(w, rep, r.tlsPolicies(ctx, rep.Groups, &s, func() bool { return true }))
	}
	return r.writeDMARC(w, rep, legacy, r.Store.Rows(ctx, rep.Groups[0].ID), nil)
}

// waitingMails returns the files with mails that sendmail has not taken yet, by
// recipient.
func (r *Reporter) waitingMails(rep *ruapost.Report) (map[string]string, error) {
	files := map[string]string{}
	for _, rc := range rep.Recipients {
		file := r.mailFile(rep, &rc)
		there, err := exists(file)
		if err != nil {
			return nil, err
		}
		if there {
			files[rc.Address] = file
		}
	}
	return files, nil
}

func (r *Reporter) showMails(w io.Writer, rep *ruapost.Report) error {
	files, err := r.waitingMails(rep)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		_, err := fmt.Fprintln(w, "--- no mail waits in the outbox")
		return err
	}
	for _, rc := range rep.Recipients {
		file, ok := files[rc.Address]
		if !ok {
			continue
		}
		mail, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reporting: outbox: %w", err)
		}
		fmt.Fprintf(w, "--- mail to %s\n%s", ruapost.Clean(rc.Address, maxCell), mail)
	}
	return nil
}

// showJSON writes a report as one line: what the store knows of it, its content by file
// name, a text for XML, and its mails by recipient.
func (r *Reporter) showJSON(ctx context.Context, w io.Writer, rep *ruapost.Report, how Contents) error {
	line := struct {
		Report  *ruapost.Report   `json:"report"`
		Content map[string]any    `json:"content,omitempty"`
		Mails   map[string]string `json:"mails,omitempty"`
	}{rep, map[string]any{}, map[string]string{}}
	add := func(name string, write func(io.Writer) error) error {
		var b strings.Builder
		if err := write(&b); err != nil {
			return err
		}
		line.Content[name] = b.String()
		if rep.Kind == ruapost.KindTLS {
			line.Content[name] = json.RawMessage(b.String())
		}
		return nil
	}
	files, err := r.frozenForms(rep)
	if rep.State == ruapost.ReportSealed {
		legacy := isLegacy(rep)
		err = add(filepath.Base(r.contentFile(rep, legacy)), func(w io.Writer) error { return r.writeRecorded(ctx, w, rep, legacy) })
	}
	for _, file := range files {
		err = errors.Join(err, add(filepath.Base(file), func(w io.Writer) error { return copyContent(w, file) }))
	}
	if err != nil {
		return err
	}
	if how.Mails {
		mails, err := r.waitingMails(rep)
		if err != nil {
			return err
		}
		for address, file := range mails {
			mail, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("reporting: outbox: %w", err)
			}
			line.Mails[address] = string(mail)
		}
	}
	return writeJSON(w, line)
}

// Preview writes what is recorded about a domain as the reports that would be made of it
// now. The error wraps ErrNothing if nothing is.
func (r *Reporter) Preview(ctx context.Context, w io.Writer, domain string) error {
	due, covered, err := r.previews(ctx, domain, nil)
	if err != nil {
		return err
	}
	for _, d := range due {
		if err := r.preview(ctx, w, &d, covered); err != nil {
			return err
		}
	}
	return nil
}

// previews returns what is recorded about a domain, and what its reports cover, see
// reportsAbout. The error wraps ErrNothing if nothing is recorded.
func (r *Reporter) previews(ctx context.Context, domain string, ids []string) ([]dueReport, coverage, error) {
	due, err := r.due(ctx, r.before(Selection{Open: true}), domain)
	if err != nil {
		return nil, nil, err
	}
	covered := coverage{}
	reports := 0
	for rep, err := range r.reportsAbout(ctx, domain, ids) {
		if err != nil {
			return nil, nil, err
		}
		covered.add(&rep, r.now())
		reports++
	}
	switch {
	case len(due) > 0:
		return due, covered, nil
	case reports > 0:
		return nil, nil, fmt.Errorf("%s: %w since the last report; what was reported: show %s", domain, errNothingNew, domain)
	}
	return nil, nil, fmt.Errorf("%s: %w", domain, ErrNothing)
}

var errNothingNew = errors.New("nothing is recorded")

func (r *Reporter) preview(ctx context.Context, w io.Writer, d *dueReport, covered coverage) error {
	if err := r.reportable(d); err != nil {
		_, err = fmt.Fprintf(w, "=== no %s report of %s, %d counted: %v\n\n", d.kind, FormatWindow(d.window), total(d.groups), err)
		return err
	}
	rep, legacy := r.previewOf(d, covered)
	fmt.Fprintf(w, "=== %s report of %s as it would be now, not sent yet\n", d.kind, FormatWindow(d.window))
	if err := r.writeRecorded(ctx, w, rep, legacy); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w)
	return err
}

// previewOf returns the report that would be made, and whether in the form of RFC 7489.
func (r *Reporter) previewOf(d *dueReport, covered coverage) (rep *ruapost.Report, legacy bool) {
	rep = &ruapost.Report{ID: "preview", Kind: d.kind, Domain: d.domain, Window: r.reportWindow(d, covered), Groups: d.groups}
	return rep, r.Format == dmarc.RFC7489 || has(r.Legacy, d.domain)
}
