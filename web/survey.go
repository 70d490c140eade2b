package web

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"ruapost/reporting"
)

const (
	// freshFor is how long a survey is shown without another one being made, shownFor how
	// long it is shown while that is done.
	freshFor = 10 * time.Second
	shownFor = 2 * time.Minute
	// surveyTimeout bounds the making of one.
	surveyTimeout = time.Minute
)

// surveys keeps the last survey. However many pages are asked for, one is made at a time.
type surveys struct {
	survey func(context.Context) (*reporting.Survey, error)

	mu     sync.Mutex
	last   *reporting.Survey
	made   time.Time
	making *making // nil if none is
}

type making struct {
	done   chan struct{}
	survey *reporting.Survey
	err    error
	old    bool // something has changed since it began
}

// get returns a survey that is not old.
func (s *surveys) get(ctx context.Context) (*reporting.Survey, error) {
	s.mu.Lock()
	age := time.Since(s.made)
	if s.last != nil && age < freshFor {
		defer s.mu.Unlock()
		return s.last, nil
	}
	m := s.making
	if m == nil {
		m = &making{done: make(chan struct{})}
		s.making = m
		go s.run(context.WithoutCancel(ctx), m)
	}
	if s.last != nil && age < shownFor {
		defer s.mu.Unlock()
		return s.last, nil
	}
	s.mu.Unlock()
	select {
	case <-m.done:
		return m.survey, m.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// reportsAbout returns the identifiers of the reports about a domain if a survey has just
// been made, else nil.
func (s *surveys) reportsAbout(domain string) []string {
	s.mu.Lock()
	last := s.last
	if time.Since(s.made) >= freshFor {
		last = nil
	}
	s.mu.Unlock()
	if last == nil {
		return nil
	}
	ids := []string{}
	for i := range last.Entries {
		if e := &last.Entries[i]; e.Domain == domain && e.ReportID != "" {
			ids = append(ids, e.ReportID)
		}
	}
	return ids
}

func (s *surveys) run(ctx context.Context, m *making) {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	began := time.Now()
	if m.survey, m.err = s.survey(ctx); m.err != nil {
		slog.Warn("the store cannot be looked through for the pages", "err", m.err) // an older look may still be shown
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.err == nil && !m.old {
		s.last, s.made = m.survey, began
	}
	if s.making == m {
		s.making = nil
	}
	close(m.done)
}

// outdate has the next get make a new one.
func (s *surveys) outdate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = nil
	if s.making != nil {
		s.making.old = true
		s.making = nil
	}
}
