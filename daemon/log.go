package daemon

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// newLogger returns a logger that writes lines of text, each with the time
// unless w leads to the journal, which knows it.
func newLogger(w io.Writer) *slog.Logger {
	var options slog.HandlerOptions
	if f, ok := w.(*os.File); ok && isJournal(f) {
		options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(w, &options))
}

// isJournal tells whether f is connected to the journal: systemd says which
// device and inode that is (systemd.exec(5), JOURNAL_STREAM).
func isJournal(f *os.File) bool {
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return false
	}
	return os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

// IsTerminal tells whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
