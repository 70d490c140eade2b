package maillog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	pollEach = time.Second
	// readBuffer is how much of the file is read, and delivered, at once.
	readBuffer = 256 << 10
	// headLength is how many octets at a file's beginning tell it from others: the
	// times of its first lines are among them.
	headLength = 512
	// enoughHead is how many are enough, even if the file has another inode: it was
	// copied (logrotate's copytruncate).
	enoughHead = 64
	// maxRotated is how many files beside the log are looked at for the rotated one.
	maxRotated = 1000
)

// Follow reads the log file of this name until ctx ends, and goes on with the next of
// this name when it was rotated by renaming, and from the beginning when it was
// truncated. It waits for one that is missing.
//
// Without a position it begins at the end of the file. With one it goes on there, and
// if the file was rotated meanwhile, with the rest of the rotated one, which stands
// beside it with a name that begins like it (mail.log.1) and is not compressed. If that
// is not there it begins with what is.
func Follow(ctx context.Context, path, position string, deliver Deliver) {
	f := &follower{
		path: path, out: outlet{name: path, deliver: deliver},
		buf: make([]byte, readBuffer),
	}
	defer f.close()
	f.resume(ctx, position)
	ticker := time.NewTicker(pollEach)
	defer ticker.Stop()
	for {
		f.poll(ctx)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// follower is a log file that is read.
type follower struct {
	path string
	out  outlet
	buf  []byte

	file   *os.File // nil if there is none
	offset int64    // of the first octet that was not read
	head   []byte   // the file's first octets, at most headLength and at most up to offset
	// skipping says that what comes until the end of the line is of one that is too long.
	skipping bool
	// complained says that the file cannot be opened, which is logged once.
	complained bool
}

// resume opens the file that the position is in.
func (f *follower) resume(ctx context.Context, position string) {
	pos, ok := parsePosition(position)
	if !ok {
		if position != "" {
			sourceFaults.WithLabelValues("lost").Inc()
			slog.Warn("position in the mail log is not one; going on at its end", "source", f.path)
		}
		if f.open() {
			f.toEnd()
			f.put(ctx, nil)
		}
		return
	}
	if !f.open() {
		if rotated := f.find(pos); rotated != nil {
			f.use(rotated, pos.offset)
		}
		return
	}
	if pos.in(f.file) {
		f.use(f.file, pos.offset)
		return
	}
	if rotated := f.find(pos); rotated != nil {
		f.close()
		f.use(rotated, pos.offset) // poll goes on to the next
		return
	}
	sourceFaults.WithLabelValues("lost").Inc()
	slog.Warn("mail log was rotated or truncated and the rest is not found; going on with what is there", "source", f.path)
}

// open opens the file of the name and begins with it.
func (f *follower) open() bool {
	file, err := os.OpenFile(f.path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO would keep us
	if err == nil {
		var info os.FileInfo
		if info, err = file.Stat(); err == nil && !info.Mode().IsRegular() {
			err = errors.New("not a regular file")
		}
		if err != nil {
			file.Close()
		}
	}
	if err != nil {
		sourceFaults.WithLabelValues("file").Inc() // each time: an alert tells a gap in rotation from a missing right
		if !f.complained {
			slog.Warn("mail log cannot be read; waiting for it", "source", f.path, "err", err)
		}
		f.complained = true
		return false
	}
	f.complained = false
	f.use(file, 0)
	return true
}

func (f *follower) use(file *os.File, offset int64) {
	f.file, f.offset, f.head, f.skipping = file, offset, nil, false
	f.readHead()
}

func (f *follower) close() {
	if f.file != nil {
		f.file.Close()
		f.file = nil
	}
}

// toEnd goes to the end of the last whole line.
func (f *follower) toEnd() {
	info, err := f.file.Stat()
	if err != nil {
		return
	}
	f.offset = info.Size()
	last := make([]byte, min(f.offset, MaxLine))
	if n, _ := f.file.ReadAt(last, f.offset-int64(len(last))); n == len(last) {
		if newline := bytes.LastIndexByte(last, '\n'); newline >= 0 {
			f.offset -= int64(len(last) - newline - 1)
		}
	}
	f.readHead()
}

// find returns the file beside the log that has the position.
func (f *follower) find(pos filePosition) *os.File {
	folder, name := filepath.Split(f.path)
	if folder == "" {
		folder = "."
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil
	}
	looked := 0
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), name) || !entry.Type().IsRegular() {
			continue
		}
		if looked++; looked > maxRotated {
			break
		}
		file, err := os.Open(filepath.Join(folder, entry.Name()))
		if err != nil {
			continue
		}
		if pos.in(file) {
			return file
		}
		file.Close()
	}
	return nil
}

// poll reads what there is, and changes to the next file.
func (f *follower) poll(ctx context.Context) {
	if f.file == nil && !f.open() || !f.drain(ctx) {
		return
	}
	next, err := os.Stat(f.path)
	if err != nil || next.Size() == 0 {
		return // who writes may still have the old one open, until there is something in the next
	}
	if now, err := f.file.Stat(); err == nil && os.SameFile(now, next) {
		return
	}
	// Who writes has gone on to the next file. This is what came until then.
	if !f.drain(ctx) || !f.last(ctx) {
		return
	}
	f.close()
	if f.open() {
		f.drain(ctx)
	}
}

// drain delivers all whole lines. It returns false when ctx ended before.
func (f *follower) drain(ctx context.Context) bool {
	f.checkTruncated()
	for {
		n, err := f.file.ReadAt(f.buf, f.offset) // err is io.EOF, or the next read says it again
		end := bytes.LastIndexByte(f.buf[:n], '\n') + 1
		switch {
		case end > 0:
			if !f.put(ctx, f.take(f.buf[:end])) {
				return false
			}
		case n > MaxLine:
			f.skip(n)
		}
		if err != nil || n == 0 {
			return f.put(ctx, nil)
		}
	}
}

// last delivers the line that has no end because it was the file's last.
func (f *follower) last(ctx context.Context) bool {
	n, _ := f.file.ReadAt(f.buf, f.offset)
	return f.put(ctx, f.take(f.buf[:n]))
}

// checkTruncated goes back to the beginning if the file has become another.
func (f *follower) checkTruncated() {
	head := make([]byte, len(f.head))
	if n, _ := f.file.ReadAt(head, 0); n == len(head) && bytes.Equal(head, f.head) {
		if info, err := f.file.Stat(); err != nil || info.Size() >= f.offset {
			return
		}
	}
	sourceFaults.WithLabelValues("truncated").Inc()
	f.use(f.file, 0)
}

// skip passes over a part of a line that is too long.
func (f *follower) skip(n int) {
	if !f.skipping {
		linesLong.Inc()
	}
	f.skipping = true
	f.offset += int64(n)
	f.readHead()
}

// take takes lines apart and moves behind them.
func (f *follower) take(chunk []byte) []Entry {
	text := string(chunk)
	f.offset += int64(len(chunk))
	f.readHead()
	if f.skipping {
		_, text, _ = strings.Cut(text, "\n")
		f.skipping = false
	}
	now := time.Now()
	var entries []Entry
	foreign := 0
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if len(line) > MaxLine {
			linesLong.Inc()
		} else if e, ok := ParseLine(line, now); ok {
			entries = append(entries, e)
		} else {
			foreign++
		}
	}
	linesForeign.Add(float64(foreign))
	return entries
}

func (f *follower) put(ctx context.Context, entries []Entry) bool {
	return f.out.put(ctx, entries, f.position())
}

// readHead gets what of the file's beginning is not known yet.
func (f *follower) readHead() {
	if want := min(f.offset, headLength); int64(len(f.head)) < want {
		head := make([]byte, want)
		n, _ := f.file.ReadAt(head, 0)
		f.head = head[:n]
	}
}

func (f *follower) position() string {
	pos := filePosition{offset: f.offset, head: len(f.head), hash: hashHead(f.head)}
	if info, err := f.file.Stat(); err == nil {
		pos.inode = inode(info)
	}
	return pos.String()
}

// filePosition is a place in a file, and how to know the file again.
type filePosition struct {
	inode  uint64
	offset int64
	head   int    // how many of the first octets
	hash   string // have this hash
}

func (p filePosition) String() string {
	return fmt.Sprintf("1:%d:%d:%d:%s", p.inode, p.offset, p.head, p.hash)
}

func parsePosition(s string) (p filePosition, ok bool) {
	parts := strings.Split(s, ":")
	if len(parts) != 5 || parts[0] != "1" {
		return p, false
	}
	var errs [3]error
	p.inode, errs[0] = strconv.ParseUint(parts[1], 10, 64)
	p.offset, errs[1] = strconv.ParseInt(parts[2], 10, 64)
	p.head, errs[2] = strconv.Atoi(parts[3])
	p.hash = parts[4]
	ok = errors.Join(errs[:]...) == nil && p.offset >= 0 && p.head >= 0 && int64(p.head) <= min(p.offset, headLength)
	return p, ok
}

// in says whether this is the file.
func (p filePosition) in(file *os.File) bool {
	info, err := file.Stat()
	if err != nil || info.Size() < p.offset {
		return false
	}
	head := make([]byte, p.head)
	if n, _ := file.ReadAt(head, 0); n < len(head) || hashHead(head) != p.hash {
		return false
	}
	return inode(info) == p.inode || p.head >= enoughHead
}

func hashHead(head []byte) string {
	sum := sha256.Sum256(head)
	return hex.EncodeToString(sum[:8])
}

func inode(info fs.FileInfo) uint64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Ino
	}
	return 0
}
