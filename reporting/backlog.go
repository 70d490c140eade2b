package reporting

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"ruapost"
)

// Backlog is what a run has left to be done.
type Backlog struct {
	// Due are reports that could be made by now and are not, Waiting those that are made
	// and that some recipient still waits for.
	Due, Waiting map[ruapost.Kind]int
	// Oldest is when the first of those that wait was made, the zero time if there is none.
	Oldest time.Time
	// OutboxBytes is the size of the files in the outbox.
	OutboxBytes int64
}

// Backlog looks at what there is to be done.
func (r *Reporter) Backlog(ctx context.Context) (*Backlog, error) {
	b := &Backlog{Due: map[ruapost.Kind]int{}, Waiting: map[ruapost.Kind]int{}}
	due, err := r.due(ctx, r.before(Selection{}), "")
	if err != nil {
		return nil, err
	}
	for _, d := range due {
		b.Due[d.kind]++
	}
	for rep, err := range r.Store.Reports(ctx) {
		if err != nil {
			return nil, err
		}
		if rep.State == ruapost.ReportDone {
			continue
		}
		b.Waiting[rep.Kind]++
		if b.Oldest.IsZero() || rep.Sealed.Before(b.Oldest) {
			b.Oldest = rep.Sealed
		}
	}
	b.OutboxBytes, err = folderSize(r.Outbox)
	return b, err
}

// folderSize returns the size of all files below a folder, of those that are there.
func folderSize(folder string) (size int64, err error) {
	err = filepath.WalkDir(folder, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				size += info.Size()
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return size, err
}
