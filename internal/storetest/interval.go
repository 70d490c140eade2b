package storetest

import (
	"slices"
	"testing"
	"time"

	"ruapost"
)

// lengths are those of windows that are recorded for one domain at one time, as when
// its record is changed (RFC 7489 6.3, ri).
var lengths = []time.Duration{time.Hour, 6 * time.Hour, 24 * time.Hour}

// recordLengths records in the windows of each length: the first result once in the
// shortest, the second twice in the next, and so on. It returns the groups.
func recordLengths(t *testing.T, s Store, at time.Time) []ruapost.Group {
	t.Helper()
	var want []ruapost.Group
	for i, length := range lengths {
		e := evaluation("example.com", i)
		e.Time, e.Interval = at, length
		n := int64(i + 1)
		for range n {
			record(t, s, e)
		}
		g := evaluations(e, n, 1, n, n)
		start := at.UTC().Truncate(length)
		g.Window = ruapost.Window{Start: start, End: start.Add(length)}
		want = append(want, g)
	}
	return want
}

// merge adds up the groups of equal windows.
func merge(groups []ruapost.Group) []ruapost.Group {
	var merged []ruapost.Group
	for _, g := range groups {
		i := slices.IndexFunc(merged, func(m ruapost.Group) bool { return m.Window == g.Window })
		if i < 0 {
			merged = append(merged, g)
			continue
		}
		m := &merged[i]
		m.Total, m.Listed, m.Required, m.Passed = m.Total+g.Total, m.Listed+g.Listed, m.Required+g.Required, m.Passed+g.Passed
	}
	return merged
}

// Windows of different lengths lie beside one another, also where they begin or end at
// the same instant, and in each is what was recorded for it.
func testIntervals(t *testing.T, d *data) {
	s := d.store(t)
	midnight := ruapost.Day(noon).Start
	var want []ruapost.Group
	for _, at := range []time.Time{
		midnight,                       // all begin
		noon.Add(-1),                   // an hour and six end
		noon,                           // and the next begin
		noon.Add(90 * time.Minute),     // another hour of the same six
		midnight.Add(24*time.Hour - 1), // all end
		midnight.Add(24 * time.Hour),
		noon.Add(24 * time.Hour).In(time.FixedZone("", 5*3600+1800)),
	} {
		want = append(want, recordLengths(t, s, at)...)
	}
	// No interval is a day, and sessions have none.
	e, se := evaluation("example.com", 2), session("example.com")
	record(t, s, e)
	recordSessions(t, s, se)
	want = merge(append(want, evaluations(e, 1, 1, 1, 1)))
	if len(want) != 7+6+2 {
		t.Fatalf("%d windows", len(want))
	}

	mustClose(t, s)
	s = d.store(t)
	wantGroups(t, groups(t, s), append(want, sessions(se, 1, 0, 0, 0))...)
	for _, g := range groups(t, s) {
		if g.Kind == ruapost.KindDMARC {
			n := slices.Index(lengths, g.Window.End.Sub(g.Window.Start))
			wantRows[ruapost.DMARCResult](t, s, g.ID, map[string]int64{form(result(n)): g.Total})
		}
	}
}

// A window is listed as soon as it is over, not when a longer one is that it lies in.
func testIntervalsBefore(t *testing.T, d *data) {
	s := d.store(t)
	minute := noon.Add(time.Minute)
	want := merge(append(recordLengths(t, s, minute), recordLengths(t, s, minute.Add(5*time.Hour))...))
	if len(want) != 4 {
		t.Fatalf("%d windows", len(want))
	}
	first, six, day, last := want[0], want[1], want[2], want[3]
	evening, midnight := noon.Add(6*time.Hour), noon.Add(12*time.Hour)
	for before, want := range map[time.Time][]ruapost.Group{
		noon.Add(time.Hour - 1):               nil,
		noon.Add(time.Hour):                   {first},
		evening.Add(-1):                       {first},
		evening:                               {first, six, last},
		midnight.Add(-1):                      {first, six, last},
		midnight:                              {first, six, day, last},
		evening.In(time.FixedZone("", -3600)): {first, six, last},
	} {
		got, err := s.Groups(t.Context(), before)
		if err != nil {
			t.Fatalf("Groups before %s: %v", before, err)
		}
		t.Log(before)
		wantGroups(t, got, want...)
	}
}

// Each window is sealed and dropped by itself, though domain, policy and start are the
// same; what comes late begins it anew.
func testIntervalsApart(t *testing.T, d *data) {
	midnight := ruapost.Day(noon).Start
	for i, length := range lengths {
		t.Run(length.String(), func(t *testing.T) {
			d := &data{open: d.open, dir: t.TempDir()}
			s, other := d.store(t), d.store(t)
			want := recordLengths(t, s, midnight)
			ofLength := func(g ruapost.Group) bool { return g.Window == want[i].Window }
			others := slices.DeleteFunc(slices.Clone(want), ofLength)
			first := groups(t, s)
			wantGroups(t, first, want...)

			r := report("r1", first[slices.IndexFunc(first, ofLength)])
			seal(t, s, r)
			wantGroups(t, r.Groups, want[i])
			wantReports(t, other, *r)
			wantGroups(t, groups(t, other), others...)
			wantRows[ruapost.DMARCResult](t, other, r.Groups[0].ID, map[string]int64{form(result(i)): int64(i + 1)})
			if err := s.DropRows(t.Context(), r.Groups); err != nil {
				t.Fatal(err)
			}

			late := merge(append(recordLengths(t, other, midnight), others...))
			second := groups(t, s)
			wantGroups(t, second, late...)
			if err := s.Drop(t.Context(), slices.DeleteFunc(slices.Clone(second), ofLength)); err != nil {
				t.Fatal(err)
			}
			left := oneGroup(t, other)
			wantGroups(t, []ruapost.Group{left}, want[i])
			wantRows[ruapost.DMARCResult](t, other, left.ID, map[string]int64{form(result(i)): int64(i + 1)})
		})
	}
}
