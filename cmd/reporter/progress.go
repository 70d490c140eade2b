package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// progressInterval is how often the line is rewritten.
const progressInterval = 200 * time.Millisecond

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// progress is a line on a terminal that says how far a run has come. It makes way for the
// log.
type progress struct {
	now func() time.Time

	mu    sync.Mutex
	w     io.Writer
	line  string // what stands there now
	wrote time.Time
	log   slog.Handler // what the log was before
}

// showProgress begins a line on w, where the log goes, too.
func showProgress(w io.Writer) *progress {
	p := &progress{now: time.Now, w: w, log: slog.Default().Handler()}
	slog.SetDefault(slog.New(aside{p.log, p}))
	return p
}

func (p *progress) show(what string, done, all int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.now(); now.Sub(p.wrote) >= progressInterval {
		p.wrote = now
		p.erase()
		p.line = fmt.Sprintf("%s: %d of %d", what, done, all)
		fmt.Fprint(p.w, p.line)
	}
}

// erase is to be called with p.mu held.
func (p *progress) erase() {
	if p.line != "" {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", len(p.line)))
		p.line = ""
	}
}

// end erases the line for good.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	slog.SetDefault(slog.New(p.log))
}

// aside is a log that erases the progress line first.
type aside struct {
	slog.Handler
	p *progress
}

func (a aside) Handle(ctx context.Context, record slog.Record) error {
	a.p.mu.Lock()
	defer a.p.mu.Unlock()
	a.p.erase()
	return a.Handler.Handle(ctx, record)
}

func (a aside) WithAttrs(attrs []slog.Attr) slog.Handler {
	return aside{a.Handler.WithAttrs(attrs), a.p}
}

func (a aside) WithGroup(name string) slog.Handler { return aside{a.Handler.WithGroup(name), a.p} }
