package reporting

import (
	"cmp"
	"container/heap"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"ruapost"
)

const (
	// maxSources and maxFailures bound what is counted apart: sources of messages that
	// failed, and kinds of TLS failures.
	maxSources  = 10_000
	maxFailures = 2_000
	// maxWorst is how many of these the text names.
	maxWorst = 10
	// columns is the longest line of the text, so that no reader has to wrap it and no
	// encoding is needed.
	columns = 76
	// maxValue bounds a value of several words, in octets.
	maxValue = 400
	// maxName bounds names and texts that are kept, in octets: enough for a domain name.
	maxName = 253
)

// summary collects what the text part of a report's mails says, while the rows of the
// report pass by; memory does not grow with their number. Its JSON form holds no more
// than the text needs.
type summary struct {
	// Policy is what a DMARC report's domain published.
	Policy *ruapost.DMARCPolicy `json:"policy,omitempty"`
	// Total counts messages or sessions, Unlisted those messages of them that are in no
	// row.
	Total    int64 `json:"total"`
	Unlisted int64 `json:"unlisted,omitempty"`
	// Passed and Failed count the listed messages that passed DMARC or did not, Treated
	// what was done with the latter.
	Passed  int64                         `json:"passed,omitempty"`
	Failed  int64                         `json:"failed,omitempty"`
	Treated map[ruapost.Disposition]int64 `json:"treated,omitempty"`
	// Sessions has how TLS went, by kind of policy.
	Sessions map[string]sessionCount `json:"sessions,omitempty"`
	// Worst has the largest counts, the largest first; collect sets it. Unranked says
	// that others may be as large.
	Worst    []worst `json:"worst,omitempty"`
	Unranked bool    `json:"unranked,omitempty"`

	sources  tally[netip.Addr, sourceNotes]
	failures tally[failureKind, struct{}]
}

type sessionCount struct {
	Total  int64 `json:"total"`
	Failed int64 `json:"failed,omitempty"`
}

// worst is one line of the table in the text.
type worst struct {
	Count int64 `json:"count"`
	// AtLeast says that Count is a lower bound.
	AtLeast bool     `json:"at_least,omitempty"`
	Words   []string `json:"words"`
}

// sourceNotes tells what the messages of a source have in common, of those counted.
type sourceNotes struct {
	from                             string
	disposition                      ruapost.Disposition
	severalFrom, severalDispositions bool
}

// failureKind is what failures have in common that are counted together: as much of it
// as the text shows.
type failureKind struct{ result, mx, reason string }

// addGroup adds the totals of a group of the report, or of a part of it.
func (s *summary) addGroup(g *ruapost.Group) {
	s.Total += g.Total
	switch {
	case g.Kind == ruapost.KindDMARC:
		s.Policy = g.DMARC
		s.Unlisted += max(0, g.Total-g.Listed)
	case g.TLS != nil:
		if s.Sessions == nil {
			s.Sessions = map[string]sessionCount{}
		}
		kind := policyKind(g.TLS)
		n := s.Sessions[kind]
		n.Total += g.Total
		n.Failed += g.Failed
		s.Sessions[kind] = n
	}
}

// policyKind is the policy type in the words of RFC 8460 4.4, with the mode of an
// MTA-STS policy.
func policyKind(p *ruapost.TLSPolicy) string {
	switch p.Type {
	case ruapost.PolicyTLSA:
		return "tlsa (DANE)"
	case ruapost.PolicySTS:
		for _, line := range p.Strings {
			name, mode, _ := strings.Cut(line, ":")
			mode = strings.TrimSpace(mode)
			if name == "mode" && (mode == "enforce" || mode == "testing" || mode == "none") {
				return "sts (MTA-STS), mode " + mode
			}
		}
		return "sts (MTA-STS)"
	}
	return string(ruapost.PolicyNone)
}

// addDMARC adds a row of a DMARC report.
func (s *summary) addDMARC(count int64, res *ruapost.DMARCResult) {
	if count <= 0 {
		return
	}
	if res.AlignedDKIM || res.AlignedSPF {
		s.Passed += count
		return
	}
	s.Failed += count
	treated := ruapost.DispositionNone
	if d := res.Disposition; d == ruapost.DispositionQuarantine || d == ruapost.DispositionReject {
		treated = d
	}
	if s.Treated == nil {
		s.Treated = map[ruapost.Disposition]int64{}
	}
	s.Treated[treated] += count

	from := cut(res.HeaderFrom, maxName)
	notes, known := s.sources.add(res.SourceIP.Unmap().WithZone(""), count, maxSources)
	if !known {
		*notes = sourceNotes{from: from, disposition: treated}
		return
	}
	notes.severalFrom = notes.severalFrom || notes.from != from
	notes.severalDispositions = notes.severalDispositions || notes.disposition != treated
}

// addTLS adds a row of a TLS report.
func (s *summary) addTLS(count int64, f *ruapost.TLSFailure) {
	if count <= 0 {
		return
	}
	reason := f.Reason
	if reason == "" {
		reason = f.Additional
	}
	kind := failureKind{cut(string(f.Result), maxName), cut(f.ReceivingMX, maxName), cut(reason, maxName)}
	s.failures.add(kind, count, maxFailures)
}

// collect makes Worst of what was counted so far, if anything was.
func (s *summary) collect() {
	if len(s.sources.counters) > 0 {
		s.Worst = nil
		largest, ranked := s.sources.largest(maxWorst, netip.Addr.Compare)
		for _, c := range largest {
			s.Worst = append(s.Worst, worst{c.lower(), c.over > 0, sourceWords(c)})
		}
		s.Unranked = !ranked
	}
	if len(s.failures.counters) > 0 {
		s.Worst = nil
		largest, ranked := s.failures.largest(maxWorst, failureKind.compare)
		for _, c := range largest {
			s.Worst = append(s.Worst, worst{c.lower(), c.over > 0, c.key.words()})
		}
		s.Unranked = !ranked
	}
}

// sourceWords is what the text says of a source.
func sourceWords(c *counter[netip.Addr, sourceNotes]) []string {
	return []string{
		c.key.String(),
		orMore(string(c.notes.disposition), c.notes.severalDispositions),
		"From: " + orMore(oneLine(c.notes.from, maxName), c.notes.severalFrom),
	}
}

// words is what the text says of failures.
func (k failureKind) words() []string {
	return []string{oneLine(k.result, maxName), oneLine(k.mx, maxName), oneLine(k.reason, maxName)}
}

func (k failureKind) compare(l failureKind) int {
	return slices.Compare([]string{k.result, k.mx, k.reason}, []string{l.result, l.mx, l.reason})
}

func orMore(word string, more bool) string {
	if more {
		return word + " and others"
	}
	return word
}

// MarshalJSON leaves out what was counted for Worst.
func (s *summary) MarshalJSON() ([]byte, error) {
	s.collect()
	type fields summary
	return json.Marshal((*fields)(s))
}

// text returns what a person reads who opens the mail, with LF line ends. It is ASCII, and
// no line is longer than columns: what does not fit is cut and ends in dots.
func (s *summary) text(rep *ruapost.Report, submitter string) string {
	s.collect()
	var t textWriter
	dmarc := rep.Kind == ruapost.KindDMARC
	record := "_smtp._tls."
	if dmarc {
		record = "_dmarc."
		t.lines("This is a DMARC aggregate report: what became of mail that has this domain,", "or one below it, in its From field.")
	} else {
		t.lines("This is an SMTP TLS report: how well connections to the mail servers of this", "domain were secured.")
	}
	t.lines("")
	t.field("Domain", rep.Domain)
	t.field("Submitter", submitter)
	t.field("Report-ID", rep.ID)
	if rep.Parts > 1 {
		t.field("Part", fmt.Sprintf("%d of %d; the figures are those of this part", rep.Part, rep.Parts))
	}
	t.field("Period", rep.Window.Start.UTC().Format(time.DateTime)+" to "+rep.Window.Last().UTC().Format(time.DateTime)+" UTC")
	if dmarc {
		s.dmarcFigures(&t)
	} else {
		s.tlsFigures(&t)
	}
	s.table(&t, dmarc)
	t.lines("", "The report is attached. It was made by a program; nobody reads answers.",
		"To get no more of them, change the rua tag of the DNS record (TXT) at")
	t.line("  ", oneLine(record+rep.Domain, maxValue))
	return t.b.String()
}

func (s *summary) dmarcFigures(t *textWriter) {
	if s.Policy != nil {
		t.field("Policy", policyText(s.Policy))
		t.field("Flaw", s.Policy.Error)
	}
	t.field("Messages", fmt.Sprint(s.Total))
	if s.Unlisted > 0 {
		t.more("%d of them are not listed: they differed in too many ways", s.Unlisted)
	}
	if s.Passed+s.Failed == 0 { // the rows were not seen
		return
	}
	t.field("Passed", s.listed(s.Passed))
	t.field("Failed", s.listed(s.Failed))
	for _, d := range []ruapost.Disposition{ruapost.DispositionReject, ruapost.DispositionQuarantine, ruapost.DispositionNone} {
		if n := s.Treated[d]; n > 0 {
			t.more("%s with disposition %s", s.listed(n), d)
		}
	}
}

// listed returns a number of messages that were counted by rows.
func (s *summary) listed(n int64) string {
	if s.Unlisted > 0 {
		return fmt.Sprintf("at least %d", n)
	}
	return fmt.Sprint(n)
}

// policyText returns the tags of the record that decide what becomes of mail, as
// published.
func policyText(p *ruapost.DMARCPolicy) string {
	tags := []string{"p=" + string(p.P)}
	for _, tag := range []struct {
		text      string
		published bool
	}{
		{"sp=" + string(p.SP), p.SP != ""},
		{"np=" + string(p.NP), p.NP != ""},
		{"adkim=s", p.ADKIM == ruapost.Strict},
		{"aspf=s", p.ASPF == ruapost.Strict},
		{fmt.Sprintf("pct=%d", p.Percent), p.Percent != 100},
		{"t=y", p.Testing},
	} {
		if tag.published {
			tags = append(tags, tag.text)
		}
	}
	return strings.Join(tags, " ")
}

func (s *summary) tlsFigures(t *textWriter) {
	var failed int64
	kinds := make([]string, 0, len(s.Sessions))
	for kind, n := range s.Sessions {
		failed += n.Failed
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	t.field("Sessions", fmt.Sprintf("%d, of which %d failed", s.Total, failed))
	for _, kind := range kinds {
		n := s.Sessions[kind]
		t.more("%s: %d, of which %d failed", kind, n.Total, n.Failed)
	}
}

func (s *summary) table(t *textWriter, dmarc bool) {
	if len(s.Worst) == 0 {
		return
	}
	heading := "Known failures"
	if dmarc {
		heading = "Sources of messages that failed"
	}
	if s.Unranked || s.Unlisted > 0 {
		heading = "Some " + strings.ToLower(heading[:1]) + heading[1:]
	} else {
		heading += ", the largest numbers first"
	}
	t.lines("", heading+":", "")
	counts, width := make([]string, len(s.Worst)), 0
	for i, w := range s.Worst {
		counts[i] = s.listed(w.Count)
		if w.AtLeast && s.Unlisted == 0 {
			counts[i] = fmt.Sprintf("at least %d", w.Count)
		}
		width = max(width, len(counts[i]))
	}
	for i, w := range s.Worst {
		t.wrap(fmt.Sprintf("  %*s  ", width, counts[i]), w.Words, "  ")
	}
}

// textWriter writes lines of at most columns characters.
type textWriter struct{ b strings.Builder }

func (t *textWriter) lines(lines ...string) {
	for _, line := range lines {
		t.line("", line)
	}
}

// line writes an indented line. What does not fit is cut, and that can be seen.
func (t *textWriter) line(indent, text string) {
	if room := columns - len(indent); len(text) > room {
		text = text[:room-len("...")] + "..."
	}
	t.b.WriteString(strings.TrimRight(indent+text, " ") + "\n")
}

// field writes a named value, if it is not empty.
func (t *textWriter) field(name, value string) {
	if words := strings.Fields(oneLine(value, maxValue)); len(words) > 0 {
		t.wrap(fmt.Sprintf("%-12s", name+":"), words, " ")
	}
}

// more writes a line that goes on with the field before.
func (t *textWriter) more(format string, values ...any) {
	t.wrap(strings.Repeat(" ", 12), strings.Fields(fmt.Sprintf(format, values...)), " ")
}

// wrap writes words behind a beginning, on further lines where there is no room.
func (t *textWriter) wrap(beginning string, words []string, separator string) {
	line := ""
	for _, word := range words {
		switch {
		case line == "":
			line = word
		case word == "":
		case len(beginning)+len(line)+len(separator)+len(word) <= columns:
			line += separator + word
		default:
			t.line(beginning, line)
			beginning = strings.Repeat(" ", len(beginning))
			line = word
		}
	}
	t.line(beginning, line)
}

// cut returns at most the first limit octets of s.
func cut(s string, limit int) string { return s[:min(len(s), limit)] }

// oneLine returns s cleaned, in ASCII and at most limit octets long.
func oneLine(s string, limit int) string {
	return strings.Map(func(r rune) rune {
		if r >= utf8.RuneSelf {
			return '?'
		}
		return r
	}, ruapost.Clean(s, limit))
}

// tally counts by keys, at most limit of them at a time: the space-saving scheme of
// Metwally, Agrawal and El Abbadi. As long as there are no more keys than that, all counts
// are exact. Then a new key takes the place of the one with the smallest count, which it
// takes over: a count may be too large by over, so that count-over is a lower bound. A key
// that has more than one limit-th of all that was counted is never without a place.
type tally[K comparable, N any] struct {
	counters []*counter[K, N] // a heap, the smallest count first
	byKey    map[K]*counter[K, N]
}

type counter[K comparable, N any] struct {
	key         K
	count, over int64
	notes       N // about what was counted, without over
	at          int
}

// lower is what the count is at least.
func (c *counter[K, N]) lower() int64 { return c.count - c.over }

// add counts for key and returns its notes, and whether they are about more than this.
func (t *tally[K, N]) add(key K, n int64, limit int) (notes *N, known bool) {
	c, known := t.byKey[key]
	switch {
	case known:
	case len(t.counters) < limit:
		if t.byKey == nil {
			t.byKey = map[K]*counter[K, N]{}
		}
		c = &counter[K, N]{key: key}
		t.byKey[key] = c
		heap.Push(t, c)
	default:
		c = t.counters[0]
		delete(t.byKey, c.key)
		*c = counter[K, N]{key: key, count: c.count, over: c.count}
		t.byKey[key] = c
	}
	c.count += n
	heap.Fix(t, c.at)
	return &c.notes, known
}

// largest returns the counters with the largest lower bounds, the largest first, equal
// ones in the order of their keys. They are ranked if no other key can have more than the
// last of them.
func (t *tally[K, N]) largest(n int, compare func(K, K) int) (largest []*counter[K, N], ranked bool) {
	sorted := slices.SortedFunc(slices.Values(t.counters), func(a, b *counter[K, N]) int {
		return cmp.Or(cmp.Compare(b.lower(), a.lower()), compare(a.key, b.key))
	})
	largest = sorted[:min(n, len(sorted))]
	// Keys without a place have no more than any count, see add.
	for i, c := range sorted {
		if i < len(largest) && c.over > 0 || i >= len(largest) && c.count > largest[len(largest)-1].lower() {
			return largest, false
		}
	}
	return largest, true
}

// The methods of heap.Interface.

func (t *tally[K, N]) Len() int           { return len(t.counters) }
func (t *tally[K, N]) Less(i, j int) bool { return t.counters[i].count < t.counters[j].count }

func (t *tally[K, N]) Swap(i, j int) {
	t.counters[i], t.counters[j] = t.counters[j], t.counters[i]
	t.counters[i].at, t.counters[j].at = i, j
}

func (t *tally[K, N]) Push(c any) {
	t.counters = append(t.counters, c.(*counter[K, N]))
	t.counters[len(t.counters)-1].at = len(t.counters) - 1
}

func (t *tally[K, N]) Pop() any { panic("no counter is ever taken out") }
