package reporting

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"

	"ruapost"
	"ruapost/dmarc"
	"ruapost/tlsrpt"
)

// dir is the folder of a report in the outbox.
func (r *Reporter) dir(rep *ruapost.Report) string { return filepath.Join(r.Outbox, rep.ID) }

// contentFile is the report itself, compressed.
func (r *Reporter) contentFile(rep *ruapost.Report) string {
	name := "report.xml.gz"
	if rep.Kind == ruapost.KindTLS {
		name = "report.json.gz"
	}
	return filepath.Join(r.dir(rep), name)
}

// freeze writes the content of a sealed report into its folder, which appears whole
// or not at all. If it is there already an earlier run was ended before it could
// note that; the rows are the same, so it is left as it is.
func (r *Reporter) freeze(ctx context.Context, rep *ruapost.Report) error {
	if there, err := exists(r.contentFile(rep)); there || err != nil {
		return err
	}
	fresh := filepath.Join(r.Outbox, ".new-"+rep.ID)
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("reporting: outbox: %w", err)
	}
	if err := mkdir(fresh); err != nil {
		return fmt.Errorf("reporting: outbox: %w", err)
	}
	err := writeFile(filepath.Join(fresh, filepath.Base(r.contentFile(rep))), func(w io.Writer) error {
		zw := gzip.NewWriter(w)
		if err := r.writeContent(ctx, zw, rep); err != nil {
			return err
		}
		return zw.Close()
	})
	if err == nil {
		err = errors.Join(syncDir(fresh), os.Rename(fresh, r.dir(rep)), syncDir(r.Outbox))
	}
	if err != nil {
		return fmt.Errorf("reporting: compose report %s about %s: %w", rep.ID, rep.Domain, errors.Join(err, os.RemoveAll(fresh)))
	}
	return nil
}

// writeContent writes the XML or JSON of a report whose groups are sealed.
func (r *Reporter) writeContent(ctx context.Context, w io.Writer, rep *ruapost.Report) error {
	if rep.Kind == ruapost.KindTLS {
		return tlsrpt.WriteReport(w, &tlsrpt.Report{
			OrganizationName: r.OrgName,
			ContactInfo:      r.From,
			ReportID:         rep.ID,
			Window:           rep.Window,
		}, r.tlsPolicies(ctx, rep.Groups))
	}
	g := rep.Groups[0]
	var notes []string
	if n := g.Total - g.Listed; n > 0 {
		notes = append(notes, fmt.Sprintf("%d messages are not listed: they differed in too many ways", n))
	}
	return dmarc.WriteReport(w, r.Format, &dmarc.Report{
		OrgName:  r.OrgName,
		Email:    r.From,
		ReportID: rep.ID,
		Window:   rep.Window,
		Policy:   *g.DMARC,
		Errors:   notes,
	}, r.Store.Rows(ctx, g.ID))
}

func (r *Reporter) tlsPolicies(ctx context.Context, groups []ruapost.Group) iter.Seq2[tlsrpt.PolicyEntry, error] {
	return func(yield func(tlsrpt.PolicyEntry, error) bool) {
		for _, g := range groups {
			entry := tlsrpt.PolicyEntry{
				Policy:     *g.TLS,
				Successful: g.Total - g.Failed,
				Failed:     g.Failed,
				Failures:   r.Store.Rows(ctx, g.ID),
			}
			if !yield(entry, nil) {
				return
			}
		}
	}
}

// What is in the outbox belongs to its group, whatever the umask: a run by root must
// not lock out those of the timer.
const (
	fileMode   = 0o660
	folderMode = 0o770
)

// mkdir makes a folder; a setgid bit that it inherits stays.
func mkdir(path string) error {
	if err := os.Mkdir(path, folderMode); err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.Chmod(path, st.Mode()&fs.ModeSetgid|folderMode)
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reporting: outbox: %w", err)
	}
	return true, nil
}

// writeFile writes a file, in the place of one that an earlier run did not finish,
// that is safely on disk when writeFile returns.
func writeFile(path string, write func(io.Writer) error) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 64<<10)
	if err := errors.Join(f.Chmod(fileMode), write(w)); err != nil {
		f.Close()
		return err
	}
	return errors.Join(w.Flush(), f.Sync(), f.Close())
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
