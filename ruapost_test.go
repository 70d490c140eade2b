package ruapost

import (
	"testing"
	"time"
)

// The parts are those of the UTC day, whatever zone a time is told in, and half-open:
// no instant is in two or in none.
func TestPart(t *testing.T) {
	day := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	at := func(h, m, s int) time.Time {
		return day.Add(time.Duration(h)*time.Hour + time.Duration(m)*time.Minute + time.Duration(s)*time.Second)
	}
	india, samoa := time.FixedZone("", 5*3600+1800), time.FixedZone("", -11*3600)
	for name, c := range map[string]struct {
		t      time.Time
		length time.Duration
		want   time.Time // the start
	}{
		"inside an hour":                  {at(13, 59, 59), time.Hour, at(13, 0, 0)},
		"the first instant":               {at(13, 0, 0), time.Hour, at(13, 0, 0)},
		"the last instant":                {at(13, 0, 0).Add(-1), time.Hour, at(12, 0, 0)},
		"six hours":                       {at(11, 0, 0), 6 * time.Hour, at(6, 0, 0)},
		"the last part of a day":          {at(23, 59, 59), 6 * time.Hour, at(18, 0, 0)},
		"the first part of the next day":  {at(24, 0, 0), 6 * time.Hour, at(24, 0, 0)},
		"eight hours":                     {at(15, 59, 59), 8 * time.Hour, at(8, 0, 0)},
		"a day":                           {at(23, 59, 59), 24 * time.Hour, day},
		"a zone of half an hour":          {at(13, 15, 0).In(india), time.Hour, at(13, 0, 0)},
		"another day where it is told":    {at(5, 0, 0).In(samoa), 24 * time.Hour, day},
		"another part where it is told":   {at(5, 0, 0).In(samoa), 6 * time.Hour, day},
		"a leap day":                      {time.Date(2024, 2, 29, 23, 0, 0, 0, time.UTC), 12 * time.Hour, time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)},
		"before 1970":                     {time.Date(1969, 12, 31, 23, 0, 0, 0, time.UTC), 6 * time.Hour, time.Date(1969, 12, 31, 18, 0, 0, 0, time.UTC)},
		"the night when clocks are moved": {time.Date(2026, 10, 25, 2, 30, 0, 0, time.FixedZone("", 3600)), time.Hour, time.Date(2026, 10, 25, 1, 0, 0, 0, time.UTC)},
	} {
		got := Part(c.t, c.length)
		if want := (Window{c.want, c.want.Add(c.length)}); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		if got.Last() != got.End.Add(-time.Second) {
			t.Errorf("%s: last second %v", name, got.Last())
		}
	}
	if got, want := Day(at(13, 0, 0)), (Window{day, day.AddDate(0, 0, 1)}); got != want {
		t.Errorf("Day: %v, want %v", got, want)
	}
}
