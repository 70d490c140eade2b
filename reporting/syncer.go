package reporting

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// manyFiles is the number of files from which one sync of the whole file system takes
// less than one of each: each waits for the disk.
const manyFiles = 12

// syncer makes sure that files are on disk, for several at a time together.
type syncer struct {
	mu      sync.Mutex
	waiting []*syncing
	busy    bool
}

// syncing are the files, or folders, of one caller.
type syncing struct {
	paths []string
	done  chan error // has room for one
}

// sync returns when the files or folders, which are in one file system, are safely on
// disk.
func (s *syncer) sync(paths ...string) error {
	own := &syncing{paths, make(chan error, 1)}
	s.mu.Lock()
	s.waiting = append(s.waiting, own)
	if !s.busy {
		s.busy = true
		go s.work()
	}
	s.mu.Unlock()
	return <-own.done
}

// work serves those who wait, all who have come meanwhile at once.
func (s *syncer) work() {
	for {
		s.mu.Lock()
		batch := s.waiting
		s.waiting, s.busy = nil, len(batch) > 0
		s.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		files := 0
		for _, b := range batch {
			files += len(b.paths)
		}
		var err error
		if files >= manyFiles {
			err = syncAll(batch[0].paths[0])
		}
		for _, b := range batch {
			errOwn := err
			for _, path := range b.paths {
				if files < manyFiles && errOwn == nil {
					errOwn = syncFile(path)
				}
			}
			b.done <- errOwn
		}
	}
}

// syncAll syncs the file system that a file is in.
func syncAll(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync the file system of %s: %w", path, err)
	}
	return nil
}

// syncFile syncs a file or folder.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
