package web

import (
	"fmt"
	"strings"
	"time"

	"ruapost"
	"ruapost/reporting"
)

// plot is a plot of stacked columns, a day each, and the same as a table.
type plot struct {
	Title, Description string
	Series             []series // from the bottom to the top
	Days               []plotDay
	Lines              []gridLine
	Any                bool // there is anything in it
	Gaps               bool // of some days nothing was counted
	// In SVG units.
	Width, Height, Left, Right, Top, Bottom float64
}

// Tall is the height of the columns' room.
func (p *plot) Tall() float64 { return p.Bottom - p.Top }

// plotArgs are what the template of a plot gets: what stands below it, and in its place if
// there is nothing in it.
type plotArgs struct {
	ID, Note, Empty string
	Plot            *plot
}

// series is one kind of outcome.
type series struct {
	Name, Class string
	Total       int64
	of          []ruapost.Outcome
}

type plotDay struct {
	Day     time.Time
	Counted bool
	Values  []int64 // by series
	Total   int64
	X, Wide float64
	Bars    []bar
	Label   string // below the axis
}

type bar struct {
	Class     string
	Y, Height float64
}

type gridLine struct {
	Y     float64
	Label string
}

func messagePlot(days []reporting.DayCounts) *plot {
	return newPlot("Messages by DMARC result", days, []series{
		{Name: "passed", Class: "s-pass", of: []ruapost.Outcome{ruapost.OutcomePass}},
		{Name: "no policy", Class: "s-none", of: []ruapost.Outcome{ruapost.OutcomeNoPolicy}},
		{Name: "failed, delivered", Class: "s-fail", of: []ruapost.Outcome{ruapost.OutcomeFail}},
		{Name: "failed, quarantined", Class: "s-quarantine", of: []ruapost.Outcome{ruapost.OutcomeQuarantine}},
		{Name: "failed, rejected", Class: "s-reject", of: []ruapost.Outcome{ruapost.OutcomeReject}},
		{Name: "not judged (error)", Class: "s-error", of: []ruapost.Outcome{ruapost.OutcomeTemperror, ruapost.OutcomePermerror}},
		{Name: "result not known", Class: "s-unknown", of: []ruapost.Outcome{ruapost.OutcomeUnknown}},
	})
}

func tlsPlot(days []reporting.DayCounts) *plot {
	return newPlot("TLS sessions by policy and outcome", days, []series{
		{Name: "DANE", Class: "s-tlsa", of: []ruapost.Outcome{ruapost.OutcomeTLSA}},
		{Name: "MTA-STS", Class: "s-pass", of: []ruapost.Outcome{ruapost.OutcomeSTS}},
		{Name: "no policy", Class: "s-none", of: []ruapost.Outcome{ruapost.OutcomeNoTLSPolicy}},
		{Name: "no policy, failed", Class: "s-fail", of: []ruapost.Outcome{ruapost.OutcomeNoTLSPolicyFailed}},
		{Name: "MTA-STS, failed", Class: "s-quarantine", of: []ruapost.Outcome{ruapost.OutcomeSTSFailed}},
		{Name: "DANE, failed", Class: "s-reject", of: []ruapost.Outcome{ruapost.OutcomeTLSAFailed}},
	})
}

// newPlot leaves out series that are all zero.
func newPlot(title string, days []reporting.DayCounts, all []series) *plot {
	p := &plot{Title: title, Width: 400, Height: 170, Left: 36, Right: 396, Top: 8, Bottom: 148}
	sum := func(s *series, c *ruapost.OutcomeCounts) (n int64) {
		for _, o := range s.of {
			n += c[o]
		}
		return n
	}
	for _, s := range all {
		for _, d := range days {
			if d.Counts != nil {
				s.Total += sum(&s, d.Counts)
			}
		}
		if s.Total > 0 {
			p.Series = append(p.Series, s)
		}
	}
	largest := int64(0)
	for _, d := range days {
		day := plotDay{Day: d.Day, Values: make([]int64, len(p.Series))}
		for i := range p.Series {
			if d.Counts != nil {
				day.Values[i] = sum(&p.Series[i], d.Counts)
				day.Total += day.Values[i]
			}
		}
		// Whether nobody has counted, or there was nothing to count, is not known.
		day.Counted = day.Total > 0
		p.Gaps = p.Gaps || !day.Counted
		largest = max(largest, day.Total)
		p.Days = append(p.Days, day)
	}
	p.Any = largest > 0
	p.Description = p.describe()
	p.scale(largest)
	return p
}

// describe says what there is to see for who does not.
func (p *plot) describe() string {
	if !p.Any || len(p.Days) == 0 {
		return "Nothing was counted."
	}
	var parts []string
	for _, s := range p.Series {
		parts = append(parts, fmt.Sprintf("%s %s", s.Name, number(s.Total)))
	}
	return fmt.Sprintf("Columns, one for each day from %s to %s, UTC. In all: %s.",
		p.Days[0].Day.Format(time.DateOnly), p.Days[len(p.Days)-1].Day.Format(time.DateOnly), strings.Join(parts, ", "))
}

// scale places columns and lines.
func (p *plot) scale(largest int64) {
	top, step := niceScale(largest)
	height := p.Bottom - p.Top
	y := func(n int64) float64 { return p.Bottom - height*float64(n)/float64(top) }
	for n := int64(0); n <= top; n += step {
		p.Lines = append(p.Lines, gridLine{y(n), brief(n)})
	}
	slot := (p.Right - p.Left) / float64(max(len(p.Days), 1))
	for i := range p.Days {
		d := &p.Days[i]
		d.X, d.Wide = p.Left+slot*float64(i)+slot*0.12, slot*0.76
		if (len(p.Days)-1-i)%7 == 0 {
			d.Label = d.Day.Format("2 Jan")
		}
		base := int64(0)
		for j, n := range d.Values {
			if n > 0 {
				d.Bars = append(d.Bars, bar{p.Series[j].Class, y(base + n), height * float64(n) / float64(top)})
			}
			base += n
		}
	}
}

// niceScale returns the end of an axis that has room for n, and the step of its lines.
func niceScale(n int64) (top, step int64) {
	for unit := int64(1); ; unit *= 10 {
		for _, f := range []int64{1, 2, 5} {
			if step = f * unit; step*4 >= n || step > 1<<58 {
				return max(1, (n+step-1)/step) * step, step
			}
		}
	}
}

// brief writes a round number.
func brief(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1_000_000_000_000, "T"}, {1_000_000_000, "G"}, {1_000_000, "M"}, {1_000, "k"}} {
		if n >= u.size {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(n)/float64(u.size)), ".0") + u.name
		}
	}
	return fmt.Sprint(n)
}
