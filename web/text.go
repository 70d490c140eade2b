package web

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"ruapost"
	"ruapost/check"
	"ruapost/reporting"
)

// state is a state of an entry, for people.
type state struct {
	name, title, class string
	tile               bool // stands on the overview
}

// states are all, those first that need an eye most.
var states = []state{
	{reporting.StateFailed, "failed", "bad", true},
	{reporting.StateBounced, "bounced", "bad", true},
	{reporting.StateWaiting, "waiting", "warn", true},
	{reporting.StateSealed, "sealed", "warn", false},
	{reporting.StateDue, "due", "warn", true},
	{reporting.StateSent, "sent", "good", true},
	{reporting.StateSuppressed, "suppressed", "idle", true},
	{reporting.StateRefused, "not agreed", "idle", true},
	{reporting.StateRecording, "recording", "idle", true},
	{reporting.StateUnreported, "no report", "idle", false},
}

func rankOf(name string) int {
	return slices.IndexFunc(states, func(s state) bool { return s.name == name })
}

func levelRank(l check.Level) int {
	return slices.Index([]check.Level{check.Fault, check.Warning, check.OK}, l)
}

func isNothing(err error) bool { return errors.Is(err, reporting.ErrNothing) }

func contextWithTimeout(r *http.Request, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.Context(), d)
}

// functions are those that the templates have.
var functions = template.FuncMap{
	"num":        number,
	"count":      func(n uint64) string { return number(int64(min(n, 1<<62))) },
	"day":        func(t time.Time) string { return t.UTC().Format(time.DateOnly) },
	"time":       func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") },
	"clock":      func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
	"machine":    func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"unix":       func(s int64) time.Time { return time.Unix(s, 0).UTC() },
	"window":     reporting.FormatWindow,
	"class":      stateClass,
	"title":      stateTitle,
	"domainPath": domainPath,
	"query":      query,
	"share":      share,
	"inc":        func(n int) int { return n + 1 },
	"short":      func(id string) string { return id[:min(len(id), 12)] },
	"zone":       func(r check.Record) string { return strings.Join(check.ZoneLines(r.Name, r.Want), "\n") },
	"unanswered": func(r check.Record) bool { return r.Published == nil },
	"sender":     func(from string) string { return strings.TrimPrefix(from, "From: ") },
	"recipient":  func(s ruapost.RecipientState) string { return stateClass(recipientStates[s]) },
	"active":     func(s ruapost.Suppression, at time.Time) bool { return s.Active(at) },
	"sum": func(n ...int64) (sum int64) {
		for _, m := range n {
			sum += m
		}
		return sum
	},
	"num64":    func(n int) string { return number(int64(n)) },
	"plotArgs": func(id string, p *plot, note, empty string) plotArgs { return plotArgs{id, note, empty, p} },
	"isOther":  func(domain string) bool { return domain == ruapost.OtherDomains },
}

var recipientStates = map[ruapost.RecipientState]string{
	ruapost.RecipientWaiting: reporting.StateWaiting, ruapost.RecipientSent: reporting.StateSent,
	ruapost.RecipientFailed: reporting.StateFailed, ruapost.RecipientRefused: reporting.StateRefused,
	ruapost.RecipientBounced: reporting.StateBounced, ruapost.RecipientSuppressed: reporting.StateSuppressed,
}

// number writes a number with its thousands apart.
func number(n int64) string {
	digits := strconv.FormatInt(n, 10)
	var b strings.Builder
	for i, c := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 && digits[i-1] != '-' {
			b.WriteByte(',')
		}
		b.WriteRune(c)
	}
	return b.String()
}

// share writes a part of a whole in percent, never 0 or 100 for what is not.
func share(n, all int64) string {
	switch {
	case all <= 0:
		return ""
	case n == 0, n == all:
		return fmt.Sprintf("%d %%", 100*n/all)
	}
	return fmt.Sprintf("%.1f %%", min(max(100*float64(n)/float64(all), 0.1), 99.9))
}

func stateClass(name string) string {
	if i := rankOf(name); i >= 0 {
		return states[i].class
	}
	return "idle"
}

func stateTitle(name string) string {
	if i := rankOf(name); i >= 0 {
		return states[i].title
	}
	return name
}
