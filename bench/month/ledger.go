package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"ruapost"
)

// subject is what a report is about: a domain, and a day counted from 1.
type subject struct {
	kind   ruapost.Kind
	domain string
	day    int
}

// account is what was recorded about a subject, and what its reports said.
type account struct {
	recorded [3]int64         // by sort
	reported map[string]int64 // by recipient
	at       map[string]time.Time
}

func (a *account) total() int64 {
	return a.recorded[genuine] + a.recorded[forged] + a.recorded[aboutReport]
}

// ledger are the books, kept by what happens outside of the programs.
type ledger struct {
	w *world

	mu         sync.Mutex
	accounts   map[subject]*account
	first      map[string]int  // the day on which a domain had to become known
	seen       map[string]bool // report IDs with recipients
	mails      int
	repeated   []string
	unasked    []string          // mails to those who have not agreed
	answers    map[int]int       // that came on a day
	suppressed map[int]int       // addresses, at the end of a day
	counts     map[string]uint64 // the reporter's own
	wrongly    map[string]bool
}

func newLedger(w *world) *ledger {
	return &ledger{
		w: w, accounts: map[subject]*account{}, first: map[string]int{}, seen: map[string]bool{},
		answers: map[int]int{}, suppressed: map[int]int{}, counts: map[string]uint64{}, wrongly: map[string]bool{},
	}
}

func (l *ledger) account(s subject) *account {
	a := l.accounts[s]
	if a == nil {
		a = &account{reported: map[string]int64{}, at: map[string]time.Time{}}
		l.accounts[s] = a
	}
	return a
}

func (l *ledger) recorded(kind ruapost.Kind, domain string, at time.Time, s sort, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	day := l.w.dayOf(at)
	l.account(subject{kind, domain, day}).recorded[s] += n
	if s == genuine && kind == ruapost.KindDMARC {
		l.known(domain, day)
	}
}

func (l *ledger) known(domain string, day int) {
	if first, ok := l.first[domain]; !ok || day < first {
		l.first[domain] = day
	}
}

func (l *ledger) wroteTo(domain string, day int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known(domain, day)
}

// owed says whether the report must be sent: mail of the domain is in it, or a session; or
// forged mail, if the domain was known already on the day before.
func (l *ledger) owed(s subject) bool {
	a := l.accounts[s]
	first, known := l.first[s.domain]
	return a.recorded[genuine] > 0 || a.recorded[forged] > 0 && known && first < s.day
}

// mailed notes a report that sendmail took.
func (l *ledger) mailed(m *reportMail) {
	l.mails++
	key := m.id + " to " + m.to
	if l.seen[key] {
		l.repeated = append(l.repeated, key)
		return
	}
	l.seen[key] = true
	if b := l.w.boxes[m.to]; b == nil || b.refused && m.kind == ruapost.KindDMARC {
		l.unasked = append(l.unasked, key)
	}
	a := l.account(subject{m.kind, m.domain, l.w.dayOf(m.window.Start)})
	a.reported[m.to] += m.count
	a.at[m.to] = l.w.now
}

// wanted are the addresses that a report about the subject must reach, and the dead ones
// that it would go to besides.
func (l *ledger) wanted(s subject) (living, dead []*mailbox) {
	d := l.w.byName[s.domain]
	boxes := d.rua
	if s.kind == ruapost.KindTLS {
		boxes = []*mailbox{d.tlsRUA}
	} else if d.mendedOn > 0 && s.day < d.mendedOn-1 {
		boxes = []*mailbox{l.w.boxes["old@"+d.name]}
	}
	for _, b := range boxes {
		switch {
		case b.refused && s.kind == ruapost.KindDMARC:
		case b.fate.dead():
			dead = append(dead, b)
		case s.kind == ruapost.KindDMARC && d.outageFor > 24 && d.outageOn <= s.day+1 && s.day+1 <= d.outageOn+3:
			// It cannot be asked for longer than is tried.
		default:
			living = append(living, b)
		}
	}
	return living, dead
}

// faults are what must not be.
type faults struct {
	lost, short, double []string // windows, and messages of them that are missing or told twice
	loops, strangers    []string // reports about reports, and about domains that only forgers use
}

func (l *ledger) faults() (f faults, latest time.Duration) {
	subjects := make([]subject, 0, len(l.accounts))
	for s := range l.accounts {
		subjects = append(subjects, s)
	}
	slices.SortFunc(subjects, func(a, b subject) int {
		return cmp.Or(cmp.Compare(a.day, b.day), cmp.Compare(a.domain, b.domain), cmp.Compare(a.kind, b.kind))
	})
	for _, s := range subjects {
		a := l.accounts[s]
		name := fmt.Sprintf("%s report about %s on day %d", s.kind, s.domain, s.day)
		if living, _ := l.wanted(s); l.owed(s) {
			for _, b := range living {
				switch n := a.reported[b.address]; {
				case n == 0:
					f.lost = append(f.lost, name+" to "+b.address)
				case n < a.total():
					f.short = append(f.short, fmt.Sprintf("%s to %s: %d of %d", name, b.address, n, a.total()))
				}
			}
		}
		for to, n := range a.reported {
			latest = max(latest, a.at[to].Sub(l.w.start.AddDate(0, 0, s.day)))
			if n > a.total() {
				f.double = append(f.double, fmt.Sprintf("%s to %s: %d of %d", name, to, n, a.total()))
			}
			first, known := l.first[s.domain]
			switch {
			case s.kind == ruapost.KindTLS:
			case a.recorded[genuine] == 0 && a.recorded[forged] == 0:
				f.loops = append(f.loops, name+" to "+to)
			case a.recorded[genuine] == 0 && (!known || first > s.day):
				f.strangers = append(f.strangers, name+" to "+to)
			}
		}
	}
	return f, latest
}

// print writes the table. The error tells what is not zero.
func (l *ledger) print(out io.Writer) error {
	fmt.Fprintln(out, "| Reports about days | Messages and sessions | Forged | Mails sent | To dead addresses | Without suppression | To dead ones that are not told of | Bounces and answers | Suppressed at the end |")
	fmt.Fprintln(out, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
	for first := 1; first <= l.w.days; first += 7 {
		l.printWeek(out, first, min(first+6, l.w.days))
	}
	fmt.Fprintln(out, "\n| Dead addresses | Number | Mails sent | Without suppression |\n| --- | ---: | ---: | ---: |")
	for f := unknown; f <= wordy; f++ {
		l.printFate(out, f)
	}
	f, latest := l.faults()
	fmt.Fprintln(out, "\n| What must not be | |\n| --- | ---: |")
	var wrongly []string
	for address := range l.wrongly {
		wrongly = append(wrongly, address)
	}
	var err error
	for _, c := range []struct {
		what string
		list []string
	}{
		{"Mails repeated", l.repeated},
		{"Windows lost", f.lost},
		{"Reports that lack messages", f.short},
		{"Reports that tell messages twice", f.double},
		{"Reports about nothing but reports", f.loops},
		{"Reports about domains that only forgers use", f.strangers},
		{"Mails to those who have not agreed", l.unasked},
		{"Addresses suppressed that work", wrongly},
	} {
		fmt.Fprintf(out, "| %s | %d |\n", c.what, len(c.list))
		if n := len(c.list); n > 0 {
			slices.Sort(c.list)
			err = errors.Join(err, fmt.Errorf("%s: %d, such as %q", c.what, n, c.list[:min(n, 10)]))
		}
	}
	var held uint64
	for name, n := range l.counts {
		if strings.HasPrefix(name, "held_back_") {
			held += n
		}
	}
	fmt.Fprintf(out, "\n%d mails in all; mails were held back %d times by bounds of the configuration; the latest mail came %.0f hours after its window.\n",
		l.mails, held, latest.Hours())
	return err
}

func (l *ledger) printWeek(out io.Writer, first, last int) {
	var recorded, forgeries, sent, toDead, without, untold int64
	for s, a := range l.accounts {
		if s.day < first || s.day > last {
			continue
		}
		recorded += a.total()
		forgeries += a.recorded[forged]
		if _, dead := l.wanted(s); l.owed(s) {
			for _, b := range dead {
				if b.fate != wordy {
					without++
				}
			}
		}
		for to := range a.reported {
			sent++
			switch b := l.w.boxes[to]; {
			case b == nil:
			case b.fate == wordy:
				untold++
			case b.fate.dead():
				toDead++
			}
		}
	}
	fmt.Fprintf(out, "| %d to %d | %d | %d | %d | %d | %d | %d | %d | %d |\n",
		first, last, recorded, forgeries, sent, toDead, without, untold, l.answersIn(first, last), l.suppressed[last])
}

// printFate writes what became of those addresses whose mail fails in one way.
func (l *ledger) printFate(out io.Writer, f fate) {
	boxes := map[string]bool{}
	var sent, without int
	for s, a := range l.accounts {
		if _, dead := l.wanted(s); l.owed(s) {
			for _, b := range dead {
				if b.fate == f {
					boxes[b.address] = true
					without++
				}
			}
		}
		for to := range a.reported {
			if b := l.w.boxes[to]; b != nil && b.fate == f {
				sent++
			}
		}
	}
	fmt.Fprintf(out, "| %s | %d | %d | %d |\n", deadly[f], len(boxes), sent, without)
}

func (l *ledger) answered(day int) { l.answers[day]++ }

func (l *ledger) answersIn(first, last int) (n int) {
	for day := first; day <= last; day++ {
		n += l.answers[day]
	}
	return n
}
