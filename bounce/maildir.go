package bounce

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Bounds of what File keeps.
const (
	MaxFiles = 1000
	maxTotal = 100 << 20 // octets
)

// mark stands in the names of the files that File makes. It touches no others: the
// Maildir may be used for other mail, too.
const mark = "_ruapost"

// File puts a message, of which it takes MaxSize octets, into the Maildir at dir as one
// that has been read, and returns the path of its file. The message is on disk then. The
// oldest of those that it has filed before go if there would be more than MaxFiles, or
// more than 100 MiB. What is missing of the Maildir is made, with mode 0770; the directory
// above it must exist. After an error nothing was filed for sure.
func File(dir string, message []byte, now time.Time) (path string, err error) {
	defer func() {
		if err != nil {
			path, err = "", fmt.Errorf("bounce: file into Maildir: %w", err)
		}
	}()
	for _, sub := range []string{"", "cur", "new", "tmp"} {
		if err := makeDir(filepath.Join(dir, sub)); err != nil {
			return "", err
		}
	}
	message = message[:min(len(message), MaxSize)]
	if err := makeRoom(dir, int64(len(message)), now); err != nil {
		return "", err
	}
	name := fileName(now)
	tmp, cur := filepath.Join(dir, "tmp", name), filepath.Join(dir, "cur")
	path = filepath.Join(cur, name+":2,S")
	if err := write(tmp, message); err != nil {
		return "", errors.Join(err, removeAll(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return "", errors.Join(err, removeAll(tmp))
	}
	return path, syncDir(cur)
}

// makeDir makes a directory with mode 0770 whatever the umask, and a setgid bit that it
// inherits; one that exists stays as it is.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o770)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	return os.Chmod(dir, st.Mode()&fs.ModeSetgid|0o770)
}

// fileName returns a name by the convention of Maildirs: time, what makes it unique, and
// host. Nothing of a message is in it.
func fileName(now time.Time) string {
	host, _ := os.Hostname()
	// "/" and ":" mean something in the names of files.
	host = strings.NewReplacer("/", `\057`, ":", `\072`).Replace(cmp.Or(host, "localhost"))
	return fmt.Sprintf("%d.M%06dP%dR%s%s.%s", now.Unix(), now.Nanosecond()/1000, os.Getpid(), rand.Text()[:13], mark, host)
}

func write(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	// pipe(8) and local(8) of Postfix run programs with umask 077.
	return errors.Join(err, f.Chmod(0o640), f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// makeRoom removes what would be past the bounds with another file of a size, and what
// File could not finish long ago.
func makeRoom(dir string, size int64, now time.Time) error {
	var kept []string // paths below dir, whatever a mail reader has made of the flags
	for _, sub := range []string{"cur", "new"} {
		names, err := filed(dir, sub)
		if err != nil {
			return err
		}
		kept = append(kept, names...)
	}
	slices.SortFunc(kept, func(a, b string) int { return cmp.Compare(filedAt(b), filedAt(a)) })
	total := size
	var old []string
	for i, name := range kept {
		path := filepath.Join(dir, name)
		if info, err := os.Lstat(path); err == nil {
			total += info.Size()
		}
		if i+1 >= MaxFiles || total > maxTotal {
			old = append(old, path)
		}
	}
	unfinished, err := filed(dir, "tmp")
	if err != nil {
		return err
	}
	for _, name := range unfinished {
		if now.UnixMicro()-filedAt(name) > (36 * time.Hour).Microseconds() { // the time that the convention gives
			old = append(old, filepath.Join(dir, name))
		}
	}
	return removeAll(old...)
}

// filed returns those files in a folder of a Maildir that File has made.
func filed(dir, sub string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, sub))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if parts := strings.SplitN(e.Name(), ".", 3); len(parts) == 3 && strings.HasSuffix(parts[1], mark) && e.Type().IsRegular() {
			names = append(names, filepath.Join(sub, e.Name()))
		}
	}
	return names, nil
}

// filedAt returns when a file was made according to its name, in microseconds; 0, the
// oldest, if somebody has changed that.
func filedAt(path string) int64 {
	var seconds, micros int64
	if _, err := fmt.Sscanf(filepath.Base(path), "%d.M%06dP", &seconds, &micros); err != nil {
		return 0
	}
	return seconds*1e6 + micros
}

// removeAll removes files, those that others have removed or moved meanwhile apart.
func removeAll(paths ...string) error {
	var errs []error
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
