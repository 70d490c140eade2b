package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"ruapost/daemon"
	"ruapost/reporting"
)

// progressInterval is how often the line is rewritten.
const progressInterval = 200 * time.Millisecond

// progressWidth is how long the line may be: one that is wrapped cannot be erased.
const progressWidth = 79

// progress is a line on a terminal that says how far a run has come, and what it waits for.
// It makes way for the log.
type progress struct {
	now    func() time.Time
	spread time.Duration // see reporting.Reporter

	mu     sync.Mutex
	w      io.Writer
	phases []phase // what the run is at: one, or mails and posts
	line   string  // what stands there now
	wrote  time.Time
	log    slog.Handler // what the log was before
}

type phase struct {
	what      string
	done, all int
	began     time.Time
}

// showProgress begins a line on w, where the log goes, too, about a run that spreads what it
// sends over a time.
func showProgress(w io.Writer, spread time.Duration) *progress {
	p := &progress{now: time.Now, spread: spread, w: w, log: slog.Default().Handler()}
	slog.SetDefault(slog.New(aside{p.log, p}))
	return p
}

// show may be called by several at a time.
func (p *progress) show(what string, done, all int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.note(what, done, all)
	text, waits := p.text()
	if now := p.now(); waits || now.Sub(p.wrote) >= progressInterval {
		p.wrote = now
		p.erase()
		p.draw(text)
	}
}

// working shows on w, if that is a terminal, what a command does and for how long, until end
// is called: it may take minutes, and there is nothing to count.
func working(w io.Writer, what string) (end func()) {
	if !daemon.IsTerminal(w) {
		return func() {}
	}
	return showWork(w, what)
}

func showWork(w io.Writer, what string) (end func()) {
	p := showProgress(w, 0)
	began := p.now()
	ticker := time.NewTicker(time.Second)
	ended := make(chan struct{})
	var showing sync.WaitGroup
	showing.Go(func() {
		for {
			select {
			case <-ticker.C:
				p.mu.Lock()
				p.erase()
				text := fmt.Sprintf("%s: %v", what, p.now().Sub(began).Truncate(time.Second))
				p.draw(text[:min(len(text), progressWidth)])
				p.mu.Unlock()
			case <-ended:
				return
			}
		}
	})
	return func() {
		ticker.Stop()
		close(ended)
		showing.Wait()
		p.end()
	}
}

func (p *progress) note(what string, done, all int) {
	p.phases = slices.DeleteFunc(p.phases, func(ph phase) bool { return ph.what != what && !(offers(ph.what) && offers(what)) })
	i := slices.IndexFunc(p.phases, func(ph phase) bool { return ph.what == what })
	if i < 0 {
		i = len(p.phases)
		p.phases = append(p.phases, phase{what: what, began: p.now()})
	}
	p.phases[i].done, p.phases[i].all = done, all
}

// text returns what the line is to say, and whether the run waits.
func (p *progress) text() (text string, waits bool) {
	var parts []string
	for _, ph := range p.phases {
		part := fmt.Sprintf("%s: %d of %d", ph.what, ph.done, ph.all)
		if next := ph.next(p.spread); next.Sub(p.now()) > time.Second {
			part += next.Format(", the next at 15:04")
			waits = true
		}
		parts = append(parts, part)
	}
	text = strings.Join(parts, "; ")
	if all := text + "; send --no-spread does not wait"; waits && len(all) <= progressWidth {
		text = all
	}
	return text[:min(len(text), progressWidth)], waits
}

// offers tells whether reports leave in a phase, which are spread over time; mails and posts
// do so side by side.
func offers(what string) bool { return what == "sending" || what == "posting" }

// next is when the next report leaves.
func (ph *phase) next(spread time.Duration) time.Time {
	if !offers(ph.what) || ph.all == 0 {
		return ph.began
	}
	return ph.began.Add(time.Duration(ph.done) * min(spread/time.Duration(ph.all), reporting.MaxGap))
}

// draw is to be called with p.mu held.
func (p *progress) draw(text string) {
	p.line = text
	fmt.Fprint(p.w, text)
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

// aside is a log that writes above the progress line.
type aside struct {
	slog.Handler
	p *progress
}

func (a aside) Handle(ctx context.Context, record slog.Record) error {
	a.p.mu.Lock()
	defer a.p.mu.Unlock()
	line := a.p.line
	a.p.erase()
	defer a.p.draw(line)
	return a.Handler.Handle(ctx, record)
}

func (a aside) WithAttrs(attrs []slog.Attr) slog.Handler {
	return aside{a.Handler.WithAttrs(attrs), a.p}
}

func (a aside) WithGroup(name string) slog.Handler { return aside{a.Handler.WithGroup(name), a.p} }
