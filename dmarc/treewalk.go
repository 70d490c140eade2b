package dmarc

import (
	"context"
	"strings"

	"ruapost"
)

// maxShortened is the most labels that a name of the walk has, its first one
// apart: a longer first name is followed by the one of its last 7 labels, so
// that a walk has at most 8 queries (RFC 9989 4.10). Drafts had other numbers.
const maxShortened = 7

// walk is a DNS tree walk (RFC 9989 4.10): the DMARC records at a name and above
// it. One walk from the author domain serves policy discovery and alignment. It
// goes only as far as the question needs.
//
// The RFC words the walk for policy discovery as starting at the parent; walking
// from the name itself asks no more, as its own record is needed first in any
// case, finds the same policy, and does not miss an organizational domain whose
// parent is a public suffix domain.
type walk struct {
	r       Resolver
	start   string
	next    string // the name to ask next, "" after the top level
	over    bool
	records []foundRecord // longest name first
	err     error         // what ended the walk early

	// beside is a walk that is over and that began at another name. Where the two
	// meet, its answers are good for this one.
	beside *walk
}

// foundRecord is a record and the name, without _dmarc, where it is.
type foundRecord struct {
	domain string
	*Record
}

// newWalk returns the walk from name, which is as ruapost.ParseDomain gives it.
func newWalk(r Resolver, name string) *walk { return &walk{r: r, start: name, next: name} }

// nextName returns the name that a walk asks after name: the one above it that
// has at most 7 labels, "" after the single label (RFC 9989 4.10 steps 4 and 6).
func nextName(name string) string {
	for labels := ruapost.Labels(name) - 1; ; labels-- {
		_, name, _ = strings.Cut(name, ".")
		if labels <= maxShortened {
			return name
		}
	}
}

// step asks the next name. After an error the walk is over: asking again would
// only wait for the same server once more.
func (w *walk) step(ctx context.Context) error {
	if w.over || w.err != nil {
		return w.err
	}
	domain := w.next
	rec, err := w.lookup(ctx, domain)
	if err != nil {
		w.err = err
		return err
	}
	w.next = nextName(domain)
	w.over = w.next == ""
	if rec != nil {
		w.records = append(w.records, foundRecord{domain, rec})
		w.over = w.over || rec.PSD != 'u' // RFC 9989 4.10 step 2
	}
	return nil
}

// lookup returns the record at domain, nil if there is none, or several, which
// count as none (RFC 9989 4.10 step 2).
func (w *walk) lookup(ctx context.Context, domain string) (*Record, error) {
	if w.beside != nil && w.beside.hasAsked(domain) {
		return w.beside.recordAt(domain), nil
	}
	records, err := lookupRecords(ctx, w.r, "_dmarc."+domain)
	if err != nil || len(records) != 1 {
		return nil, err
	}
	return records[0], nil
}

// hasAsked says whether the walk came past domain.
func (w *walk) hasAsked(domain string) bool {
	onPath := domain == w.start || ruapost.Within(w.start, domain) && ruapost.Labels(domain) <= maxShortened
	return onPath && !ruapost.Within(w.next, domain)
}

// recordAt returns the record that the walk found at domain, or nil.
func (w *walk) recordAt(domain string) *Record {
	for _, rec := range w.records {
		if rec.domain == domain {
			return rec.Record
		}
	}
	return nil
}

// finish walks on to the end. It asks nothing if the walk is over.
func (w *walk) finish(ctx context.Context) error {
	for !w.over {
		if err := w.step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// policyRecord is the record at the name the walk began at, else at its
// organizational domain, else at the public suffix domain above that
// (RFC 9989 4.10.1). Records at names between do not count. With a record at the
// name itself the rest of the walk does not matter, nor whether it fails.
func (w *walk) policyRecord(ctx context.Context) (*foundRecord, error) {
	if err := w.step(ctx); err != nil {
		return nil, err
	}
	if len(w.records) > 0 {
		return &w.records[0], nil
	}
	org, err := w.organizationalDomain(ctx)
	if err != nil || len(w.records) == 0 {
		return nil, err
	}
	last := len(w.records) - 1
	if w.records[last].domain != org && last > 0 && w.records[last-1].domain == org {
		last-- // the organizational domain's, below that with psd=y
	}
	return &w.records[last], nil
}

// organizationalDomain walks to the end (RFC 9989 4.10.2). Without any record at
// or above it a name is its own organizational domain.
func (w *walk) organizationalDomain(ctx context.Context) (string, error) {
	if err := w.finish(ctx); err != nil {
		return "", err
	}
	if len(w.records) == 0 {
		return w.start, nil // rule 4
	}
	// A record with psd=n or psd=y ended the walk, so only the last can have it.
	last := w.records[len(w.records)-1]
	if last.PSD == 'y' && last.domain != w.start { // rule 2
		return oneBelow(w.start, last.domain), nil
	}
	return last.domain, nil // rules 1 and 3, and psd=y at the start itself
}

// sameOrganization walks on, and from domain, only as far as that can matter.
func (w *walk) sameOrganization(ctx context.Context, domain string) (bool, error) {
	if domain == w.start {
		return true, nil
	}
	org, err := w.organizationalDomain(ctx)
	if err != nil {
		return false, err
	}
	if domain == org {
		return true, nil // a walk from it finds no other record than w above org
	}
	if !ruapost.Within(domain, org) {
		return false, nil // a name's organizational domain is itself or above it
	}
	other := newWalk(w.r, domain)
	other.beside = w
	otherOrg, err := other.organizationalDomain(ctx)
	return err == nil && otherOrg == org, err
}

// oneBelow returns the name one label below above on the way to name, which is
// name itself if it is above.
func oneBelow(name, above string) string {
	end := len(name) - len(above) - 1 // of what stands before above
	if end < 0 {
		return name
	}
	return name[strings.LastIndexByte(name[:end], '.')+1:]
}
