package storetest

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"

	"ruapost"
)

// recordAt records the sessions with a position.
func recordAt(t *testing.T, s Store, source, at string, sessions ...ruapost.Session) {
	t.Helper()
	if err := s.RecordSessionsAt(t.Context(), sessions, ruapost.Position{Source: source, At: at}); err != nil {
		t.Fatalf("RecordSessionsAt: %v", err)
	}
}

func wantPosition(t *testing.T, s Store, source, want string) {
	t.Helper()
	if got, err := s.Position(t.Context(), source); err != nil || got != want {
		t.Errorf("position of %.20q: %.40q, %v, want %.40q", source, got, err, want)
	}
}

// Sessions and position are recorded together, for all to see; the last position holds,
// whether it looks larger or not.
func testPosition(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	wantPosition(t, s, "mail.log", "")
	wantPosition(t, s, "", "")
	se := session("example.com", failure(1))
	recordAt(t, s, "mail.log", "20", se, session("example.com"), se)
	wantPosition(t, other, "mail.log", "20")
	wantPosition(t, other, "mail.lo", "")
	wantPosition(t, other, "mail.log.1", "")
	wantGroups(t, groups(t, other), sessions(se, 3, 1, 2, 2))
	recordAt(t, other, "journal", "x", se)
	recordAt(t, other, "mail.log", "3", session("example.com"))
	wantPosition(t, s, "mail.log", "3")
	wantPosition(t, s, "journal", "x")
	mustClose(t, s)
	s = d.store(t)
	wantPosition(t, s, "mail.log", "3")
	wantGroups(t, groups(t, s), sessions(se, 5, 1, 3, 3))
	recordSessions(t, s, se)
	wantPosition(t, s, "mail.log", "3")
}

// Lines that tell nothing move it, too. An empty position is none.
func testPositionWithoutSessions(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	recordAt(t, s, "mail.log", "1")
	recordAt(t, s, "journal", "1")
	wantPosition(t, other, "mail.log", "1")
	recordAt(t, other, "mail.log", "2")
	recordAt(t, other, "mail.log", "2")
	wantPosition(t, s, "mail.log", "2")
	recordAt(t, other, "mail.log", "")
	recordAt(t, other, "nosuch", "")
	wantPosition(t, s, "mail.log", "")
	wantPosition(t, s, "journal", "1")
	wantGroups(t, groups(t, s))
}

// A call with very many sessions is one, too.
func testPositionOfMany(t *testing.T, d *data) {
	s := d.store(t)
	var many []ruapost.Session
	for i := range 2500 {
		many = append(many, session(fmt.Sprintf("d%d.example", i%100), failure(i)))
	}
	recordAt(t, s, "mail.log", "2500", many...)
	wantPosition(t, s, "mail.log", "2500")
	gs := groups(t, s)
	for _, g := range gs {
		if g.Total != 25 || g.Rows != 25 {
			t.Errorf("%+v", g)
		}
	}
	if len(gs) != 100 {
		t.Errorf("%d groups", len(gs))
	}
}

// Sources and positions of 1 KiB are kept, and 64 of them. What is refused because of its
// size is not recorded; who finds no room for a position has recorded all the same.
func testPositionBounds(t *testing.T, d *data) {
	s := d.store(t)
	se := session("example.com")
	const size = 1 << 10
	for i, p := range []ruapost.Position{
		{Source: "", At: "1"},
		{Source: strings.Repeat("x", size+1), At: "1"},
		{Source: "mail.log", At: strings.Repeat("x", size+1)},
		{Source: strings.Repeat("x", 1<<20), At: strings.Repeat("x", 1<<20)},
	} {
		if err := s.RecordSessionsAt(t.Context(), []ruapost.Session{se}, p); err == nil {
			t.Errorf("position %d: no error", i)
		}
		wantPosition(t, s, p.Source, "")
	}
	wantGroups(t, groups(t, s))

	source := func(i int) string { return strings.Repeat("x", size-2) + fmt.Sprintf("%02d", i) }
	long := strings.Repeat("y", size)
	for i := range 64 {
		recordAt(t, s, source(i), long, se)
	}
	if err := s.RecordSessionsAt(t.Context(), []ruapost.Session{se}, ruapost.Position{Source: "mail.log", At: "1"}); err == nil {
		t.Error("a 65th source: no error")
	}
	wantPosition(t, s, "mail.log", "")
	wantGroups(t, groups(t, s), sessions(se, 65, 0, 0, 0))
	recordAt(t, s, source(7), "2")
	recordAt(t, s, source(8), "")
	recordAt(t, s, "mail.log", "1")
	wantPosition(t, s, "mail.log", "1")
	wantPosition(t, s, source(7), "2")
	wantPosition(t, s, source(63), long)
}

// Several readers in two processes, among others who record: each position is behind
// what was recorded with it.
func testPositionConcurrent(t *testing.T, d *data) {
	processes := []Store{d.store(t), d.store(t)}
	const each = 25
	var wg sync.WaitGroup
	for p, s := range processes {
		for w := range 3 {
			source := fmt.Sprintf("p%dw%d", p, w)
			wg.Go(func() {
				for i := range each {
					two := []ruapost.Session{session(source+".example", failure(i)), session("shared.example")}
					err := s.RecordSessionsAt(t.Context(), two, ruapost.Position{Source: source, At: fmt.Sprint(i)})
					if err != nil {
						t.Errorf("RecordSessionsAt: %v", err)
					}
				}
			})
		}
		wg.Go(func() {
			for range each {
				if err := s.RecordSessions(t.Context(), []ruapost.Session{session("shared.example")}); err != nil {
					t.Errorf("RecordSessions: %v", err)
				}
			}
		})
	}
	wg.Wait()
	s := d.store(t)
	for p := range processes {
		for w := range 3 {
			source := fmt.Sprintf("p%dw%d", p, w)
			wantPosition(t, s, source, fmt.Sprint(each-1))
			g := groupsOf(t, s, source+".example")
			wantGroups(t, g, sessions(session(source+".example", failure(0)), each, each, each, each))
		}
	}
	wantGroups(t, groupsOf(t, s, "shared.example"), sessions(session("shared.example"), 8*each, 0, 0, 0))
}

// Calls whose context ends are recorded as a whole or not at all: in the end the position
// is that of the last one whose sessions are there, and all of these are.
func testPositionEnded(t *testing.T, d *data) {
	s := d.store(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	const calls = 120
	done := map[int]bool{}
	for i := 1; i <= calls; i++ {
		ctx := ended
		if i%10 == 0 && i < calls {
			ctx = newFuse(t, i/10)
		}
		two := []ruapost.Session{session("a.example", failure(i)), session("b.example", failure(i))}
		if err := s.RecordSessionsAt(ctx, two, ruapost.Position{Source: "mail.log", At: fmt.Sprint(i)}); err == nil {
			done[i] = true
		}
	}
	mustClose(t, s)
	if s.RecordSessionsAt(t.Context(), nil, ruapost.Position{Source: "mail.log", At: "late"}) == nil {
		t.Error("RecordSessionsAt on a closed store: no error")
	}
	if _, err := s.Position(t.Context(), "mail.log"); err == nil {
		t.Error("Position on a closed store: no error")
	}
	s = d.store(t)
	rows := map[string]map[string]int64{}
	for _, g := range groups(t, s) {
		got, err := list[ruapost.TLSFailure](t.Context(), s, g.ID)
		if err != nil {
			t.Fatal(err)
		}
		rows[g.Domain] = got
	}
	if !maps.Equal(rows["a.example"], rows["b.example"]) {
		t.Errorf("a call was recorded in part: %v, %v", rows["a.example"], rows["b.example"])
	}
	last := 0
	for i := 1; i <= calls; i++ {
		n := rows["a.example"][form(failure(i))]
		if n > 1 || n == 0 && done[i] {
			t.Errorf("call %d was recorded %d times, returned nil: %t", i, n, done[i])
		}
		if n > 0 {
			last = i
		}
	}
	want := ""
	if last > 0 {
		want = fmt.Sprint(last)
	}
	wantPosition(t, s, "mail.log", want)
}

// Only their reader understands positions; they need not be text.
func testPositionHostile(t *testing.T, d *data) {
	s := d.store(t)
	want := map[string]string{"\xff\x00": "\x00\xfe", "a\xc3": "b\xc3", "\x00": "\x00"}
	for name, text := range hostile {
		want[text] = name + text
	}
	for source, at := range want {
		recordAt(t, s, source, at)
	}
	for source, at := range want {
		wantPosition(t, s, source, at)
	}
}
