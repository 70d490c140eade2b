package reporting

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ruapost"
	"ruapost/dmarc"
	"ruapost/tlsrpt"
)

// dir is the folder of a report in the outbox.
func (r *Reporter) dir(rep *ruapost.Report) string { return filepath.Join(r.Outbox, rep.ID) }

// contentFile is the report itself, compressed; legacy asks for the form of RFC 7489.
func (r *Reporter) contentFile(rep *ruapost.Report, legacy bool) string {
	name := "report.xml.gz"
	switch {
	case rep.Kind == ruapost.KindTLS:
		name = "report.json.gz"
	case legacy:
		name = "report-rfc7489.xml.gz"
	}
	return filepath.Join(r.dir(rep), name)
}

// formats returns the forms that the recipients want: legacy or not.
func formats(rep *ruapost.Report) (legacy []bool) {
	for _, rc := range rep.Recipients {
		if !slices.Contains(legacy, rc.Legacy) {
			legacy = append(legacy, rc.Legacy)
		}
	}
	return legacy
}

// composing bounds how many reports are written at a time: that takes the processor,
// and memory for compression.
var composing = make(chan struct{}, runtime.GOMAXPROCS(0))

// writeParts writes the content of a sealed report into its folder, or into several if it
// is too large for one, and returns the report or its parts. It may have been done in
// part by a run that ended: nobody has got anything of that yet.
func (r *Reporter) writeParts(ctx context.Context, rep *ruapost.Report) ([]*ruapost.Report, error) {
	if rep.Kind == ruapost.KindTLS {
		composing <- struct{}{}
		defer func() { <-composing }()
		return []*ruapost.Report{rep}, r.freezeTLS(ctx, rep)
	}
	next, stop := iter.Pull2(r.Store.Rows(ctx, rep.Groups[0].ID))
	defer stop()
	rows := &rowSource{next: next}
	rows.done() // reads the first of them, before the wait: with those of other reports
	composing <- struct{}{}
	defer func() { <-composing }()
	return r.freezeDMARC(ctx, rep, rows)
}

// syncContent makes sure that the content of the reports that were written is on disk.
func (r *Reporter) syncContent(disk *os.File, batch []*preparation) error {
	var paths []string
	for _, p := range batch {
		if p.rep.State != ruapost.ReportSealed {
			continue
		}
		for _, part := range p.parts {
			paths = append(paths, r.dir(part))
			for _, legacy := range formats(part) {
				paths = append(paths, r.contentFile(part, legacy))
			}
		}
	}
	if len(paths) == 0 {
		return nil
	}
	return syncFiles(disk, append(paths, r.Outbox))
}

// freezeTLS writes a TLS report. Past MaxReportSize there are no further details of
// failures; the totals stay exact.
func (r *Reporter) freezeTLS(ctx context.Context, rep *ruapost.Report) error {
	if err := r.emptyDir(rep); err != nil {
		return err
	}
	var s summary
	size, err := writeGzip(r.contentFile(rep, false), func(w io.Writer, size func() int64) error {
		hasRoom := func() bool { return size() < r.MaxReportSize-compressorHolds }
		return r.writeTLS(w, rep, r.tlsPolicies(ctx, rep.Groups, &s, hasRoom))
	})
	if err != nil {
		return err
	}
	rep.Size = size
	rep.Summary, err = json.Marshal(&s)
	return err
}

// freezeDMARC writes a DMARC report in all forms that are wanted. The first decides how
// many rows go into a part.
func (r *Reporter) freezeDMARC(ctx context.Context, rep *ruapost.Report, source *rowSource) ([]*ruapost.Report, error) {
	forms := formats(rep)
	var parts []*ruapost.Report
	for !source.done() {
		part := partOf(rep, len(parts)+1)
		if err := r.emptyDir(part); err != nil {
			return nil, err
		}
		if err := r.writePart(part, forms[0], source); err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	if source.err != nil {
		return nil, source.err
	}
	if len(parts) == 0 {
		return nil, dmarc.ErrNoRows
	}
	for _, part := range parts {
		part.Parts = len(parts)
	}
	if len(parts) == 1 {
		parts[0].Part, parts[0].Parts = 0, 0
	}
	for _, legacy := range forms[1:] {
		if err := r.writeAgain(ctx, rep, parts, legacy); err != nil {
			return nil, err
		}
	}
	*rep = *parts[0]
	return parts, r.removeParts(rep, len(parts)+1)
}

// removeParts removes the folders of parts from a number on, which an earlier run may have
// left of a report that it did not get to the end of.
func (r *Reporter) removeParts(rep *ruapost.Report, from int) error {
	for n := from; ; n++ {
		dir := filepath.Join(r.Outbox, partID(rep.ID, n))
		if there, err := exists(dir); !there || err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("reporting: outbox: %w", err)
		}
	}
}

// removeContent removes all that is in the outbox of a report.
func (r *Reporter) removeContent(rep *ruapost.Report) error {
	if err := os.RemoveAll(r.dir(rep)); err != nil {
		return fmt.Errorf("reporting: outbox: %w", err)
	}
	if rep.State != ruapost.ReportSealed { // each part is a report of its own then
		return nil
	}
	return r.removeParts(rep, 2)
}

// partOf returns the part of rep with that number, without rows so far.
func partOf(rep *ruapost.Report, number int) *ruapost.Report {
	part := *rep
	part.Part = number
	part.Groups = slices.Clone(rep.Groups)
	part.Recipients = slices.Clone(rep.Recipients)
	g := &part.Groups[0]
	// What is counted without a row is told of in the first part.
	g.Total, g.Listed, g.Rows, g.Required = g.Total-g.Listed, 0, 0, 0
	g.Passed, g.Failed, g.Quarantined, g.Rejected = 0, 0, 0, 0 // the summary has those of its rows
	if number > 1 {
		part.ID = partID(rep.ID, number)
		g.Total = 0
	}
	return &part
}

// rowSource hands rows out to one part after the other.
type rowSource struct {
	next   func() (ruapost.Row, error, bool)
	peeked bool
	row    ruapost.Row
	ok     bool
	err    error
}

// done tells whether there are no more rows.
func (s *rowSource) done() bool {
	if !s.peeked {
		s.row, s.err, s.ok = s.next()
		s.peeked = true
	}
	return !s.ok || s.err != nil
}

// rows returns rows, at least one, for as long as hasRoom.
func (s *rowSource) rows(hasRoom func(rows int64) bool) iter.Seq2[ruapost.Row, error] {
	return func(yield func(ruapost.Row, error) bool) {
		for n := int64(0); (n == 0 || hasRoom(n)) && !s.done(); n++ {
			s.peeked = false
			if !yield(s.row, nil) {
				return
			}
		}
		if s.err != nil {
			yield(ruapost.Row{}, s.err)
		}
	}
}

// writePart writes as many rows as fit into a part and sets its totals.
func (r *Reporter) writePart(part *ruapost.Report, legacy bool, source *rowSource) error {
	var s summary
	g := &part.Groups[0]
	size, err := writeGzip(r.contentFile(part, legacy), func(w io.Writer, size func() int64) error {
		rows := source.rows(func(int64) bool { return size() < r.MaxReportSize-compressorHolds })
		return r.writeDMARC(w, part, legacy, rows, func(count int64, res *ruapost.DMARCResult) {
			g.Total += count
			g.Listed += count
			g.Rows++
			s.addDMARC(count, res)
		})
	})
	if err != nil {
		return err
	}
	part.Size = size
	s.addGroup(g)
	part.Summary, err = json.Marshal(&s)
	return err
}

// writeAgain writes the parts in another form, with the same rows each.
func (r *Reporter) writeAgain(ctx context.Context, rep *ruapost.Report, parts []*ruapost.Report, legacy bool) error {
	rows, stop := iter.Pull2(r.Store.Rows(ctx, rep.Groups[0].ID))
	defer stop()
	source := &rowSource{next: rows}
	for _, part := range parts {
		_, err := writeGzip(r.contentFile(part, legacy), func(w io.Writer, _ func() int64) error {
			rows := source.rows(func(n int64) bool { return n < part.Groups[0].Rows })
			return r.writeDMARC(w, part, legacy, rows, nil)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// writeDMARC writes the XML of a report. seen, unless nil, is called for each row.
func (r *Reporter) writeDMARC(w io.Writer, rep *ruapost.Report, legacy bool, rows iter.Seq2[ruapost.Row, error],
	seen func(int64, *ruapost.DMARCResult),
) error {
	format := dmarc.RFC9990
	if legacy {
		format = dmarc.RFC7489
	}
	g := rep.Groups[0]
	var notes []string
	if rep.Part > 1 {
		notes = append(notes, "this is a further part of a report that was too large for one mail")
	} else if n := g.Total - g.Listed; n > 0 {
		notes = append(notes, fmt.Sprintf("%d messages are not listed: they differed in too many ways", n))
	}
	return dmarc.WriteReport(w, format, &dmarc.Report{
		OrgName:  r.OrgName,
		Email:    r.From,
		ReportID: rep.ID,
		Window:   rep.Window,
		Policy:   *g.DMARC,
		Errors:   notes,
		Seen:     seen,
	}, rows)
}

func (r *Reporter) writeTLS(w io.Writer, rep *ruapost.Report, policies iter.Seq2[tlsrpt.PolicyEntry, error]) error {
	return tlsrpt.WriteReport(w, &tlsrpt.Report{
		OrganizationName: r.OrgName,
		ContactInfo:      r.From,
		ReportID:         rep.ID,
		Window:           rep.Window,
	}, policies)
}

// tlsPolicies returns the policies of a TLS report with their failures for as long as
// hasRoom; all failures that are known go into s.
func (r *Reporter) tlsPolicies(ctx context.Context, groups []ruapost.Group, s *summary, hasRoom func() bool) iter.Seq2[tlsrpt.PolicyEntry, error] {
	return func(yield func(tlsrpt.PolicyEntry, error) bool) {
		for _, g := range groups {
			s.addGroup(&g)
			entry := tlsrpt.PolicyEntry{
				Policy:     *g.TLS,
				Successful: g.Total - g.Failed,
				Failed:     g.Failed,
				Failures:   observeTLS(r.Store.Rows(ctx, g.ID), s, hasRoom),
			}
			if !yield(entry, nil) {
				return
			}
		}
	}
}

func observeTLS(rows iter.Seq2[ruapost.Row, error], s *summary, hasRoom func() bool) iter.Seq2[ruapost.Row, error] {
	return func(yield func(ruapost.Row, error) bool) {
		for row, err := range rows {
			var f ruapost.TLSFailure
			if err == nil {
				err = json.Unmarshal(row.Data, &f)
			}
			if err == nil {
				s.addTLS(row.Count, &f)
				if !hasRoom() {
					continue
				}
			}
			if !yield(row, err) {
				return
			}
		}
	}
}

// emptyDir makes an empty folder for a report that is about to be written.
func (r *Reporter) emptyDir(rep *ruapost.Report) error {
	err := mkdir(r.dir(rep))
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.RemoveAll(r.dir(rep)); err != nil {
		return err
	}
	return mkdir(r.dir(rep))
}

// compressorHolds is how many octets may come out of the compressor after its last
// input, and of what is on the way to it: it works on blocks.
const compressorHolds = 96 << 10

// compressor compresses what another goroutine writes: a large report takes half the time
// by that.
type compressor struct {
	zw  *gzip.Writer
	buf [32 << 10]byte
}

// compressors are reused: each is about a megabyte.
var compressors = sync.Pool{New: func() any { return &compressor{zw: gzip.NewWriter(io.Discard)} }}

// writeGzip writes a compressed file, see writeFile, and returns its size. What write
// is given tells about how large it is so far.
func writeGzip(path string, write func(w io.Writer, size func() int64) error) (int64, error) {
	c := compressors.Get().(*compressor)
	defer compressors.Put(c)
	var size atomic.Int64
	err := writeFile(path, func(w io.Writer) error {
		c.zw.Reset(&countingWriter{w, &size})
		r, plain := io.Pipe()
		var writing sync.WaitGroup
		writing.Go(func() {
			plain.CloseWithError(safely(func() error { return write(plain, size.Load) }))
		})
		_, err := io.CopyBuffer(struct{ io.Writer }{c.zw}, r, c.buf[:])
		r.CloseWithError(err)
		writing.Wait()
		if err != nil {
			return err
		}
		return c.zw.Close()
	})
	return size.Load(), err
}

type countingWriter struct {
	w io.Writer
	n *atomic.Int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n.Add(int64(n))
	return n, err
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

// writeFile writes a file, in the place of one that an earlier run did not finish.
func writeFile(path string, write func(io.Writer) error) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 32<<10)
	if err := errors.Join(f.Chmod(fileMode), write(w)); err != nil {
		f.Close()
		return err
	}
	return errors.Join(w.Flush(), f.Close())
}

// manyFiles is the number of files from which one sync of the whole file system takes
// less than one of each: each waits for the disk.
const manyFiles = 12

// syncFiles returns when files and folders, all in one file system, are safely on disk.
// disk is any open file there, of before they were written: the kernel tells of what could
// not be written since then.
func syncFiles(disk *os.File, paths []string) error {
	if len(paths) >= manyFiles {
		if err := unix.Syncfs(int(disk.Fd())); err != nil {
			return fmt.Errorf("reporting: outbox: sync the file system of %s: %w", disk.Name(), err)
		}
		return nil
	}
	for _, path := range paths {
		f, err := os.Open(path)
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			return fmt.Errorf("reporting: outbox: sync: %w", err)
		}
	}
	return nil
}
