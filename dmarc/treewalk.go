package dmarc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"ruapost"
)

// maxShortened is the most labels that a name of the walk has, its first one
// apart: a longer first name is followed by the one of its last 7 labels, so
// that a walk has at most 8 queries (RFC 9989 4.10). Drafts had other numbers.
const maxShortened = 7

// Walk is a DNS tree walk (RFC 9989 4.10): the DMARC records at a name and above
// it. One walk from the author domain serves policy discovery and alignment.
//
// The RFC words the walk for policy discovery as starting at the parent; walking
// from the name itself asks no more, as its own record is needed first in any
// case, finds the same policy, and does not miss an organizational domain whose
// parent is a public suffix domain.
type Walk struct {
	start   string
	left    []string      // names still to ask, longest first
	records []foundRecord // longest name first
	err     error         // what ended the walk early
}

type foundRecord struct {
	domain string
	*Record
}

// Discover walks from domain. If a lookup fails before a record has ended the
// walk, the error wraps the resolver's, and nothing is known; an error that wraps
// ruapost.ErrDomain says that domain is not one.
func Discover(ctx context.Context, r Resolver, domain string) (*Walk, error) {
	w, err := newWalk(domain)
	if err != nil {
		return nil, err
	}
	if err := w.finish(ctx, r); err != nil {
		return nil, err
	}
	return w, nil
}

func newWalk(domain string) (*Walk, error) {
	name, err := ruapost.ParseDomain(domain)
	if err != nil {
		return nil, fmt.Errorf("dmarc: %w", err)
	}
	return &Walk{start: name, left: walkNames(name)}, nil
}

// walkNames returns the names to ask, without _dmarc: name itself, then each
// name above it that has at most 7 labels, down to the single label.
func walkNames(name string) []string {
	names := []string{name}
	for labels := ruapost.Labels(name) - 1; labels > 0; labels-- {
		_, name, _ = strings.Cut(name, ".")
		if labels <= maxShortened {
			names = append(names, name)
		}
	}
	return names
}

// step asks the next name. After an error the walk is over: asking again would
// only wait for the same server once more.
func (w *Walk) step(ctx context.Context, r Resolver) error {
	if w.err != nil {
		return w.err
	}
	domain := w.left[0]
	rec, err := LookupRecord(ctx, r, domain)
	if errors.Is(err, ErrNoRecord) {
		w.left = w.left[1:]
		return nil
	}
	if err != nil {
		w.err = err
		return err
	}
	w.left = w.left[1:]
	w.records = append(w.records, foundRecord{domain, rec})
	if rec.PSD != 'u' { // RFC 9989 4.10 step 2
		w.left = nil
	}
	return nil
}

// finish walks on to the end. It asks nothing if the walk is over.
func (w *Walk) finish(ctx context.Context, r Resolver) error {
	for len(w.left) > 0 {
		if err := w.step(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// OrganizationalDomain returns the organizational domain of the name the walk
// began at (RFC 9989 4.10.2). Without any record above it a name is its own.
func (w *Walk) OrganizationalDomain() string {
	if len(w.records) == 0 {
		return w.start // rule 4
	}
	// A record with psd=n or psd=y ended the walk, so only the last can have it.
	last := w.records[len(w.records)-1]
	if last.PSD == 'y' && last.domain != w.start { // rule 2: one label below
		below := strings.TrimSuffix(w.start, "."+last.domain)
		return w.start[strings.LastIndexByte(below, '.')+1:]
	}
	return last.domain // rules 1 and 3, and psd=y at the start itself
}

// policyRecord returns the record that has the policy for the name the walk
// began at, or nil: its own, else that of its organizational domain, else that
// of the public suffix domain above that (RFC 9989 4.10.1). Records at names
// between do not count. With a record at the name itself the rest of the walk
// does not matter.
func (w *Walk) policyRecord() *foundRecord {
	if len(w.records) == 0 {
		return nil
	}
	if first := &w.records[0]; first.domain == w.start {
		return first
	}
	org := w.OrganizationalDomain()
	for i := range w.records {
		if w.records[i].domain == org {
			return &w.records[i]
		}
	}
	return &w.records[len(w.records)-1] // the one with psd=y, or it would be org
}

// sameOrganization says whether domain has the same organizational domain as
// the name the walk began at. It walks on, and from domain, only as far as that
// can matter.
func (w *Walk) sameOrganization(ctx context.Context, r Resolver, domain string) (bool, error) {
	if domain == w.start {
		return true, nil
	}
	if err := w.finish(ctx, r); err != nil {
		return false, err
	}
	org := w.OrganizationalDomain()
	if domain == org {
		return true, nil // a walk from it finds no other record than w above org
	}
	if !within(domain, org) {
		return false, nil // a name's organizational domain is itself or above it
	}
	other, err := Discover(ctx, r, domain)
	if err != nil {
		return false, err
	}
	return other.OrganizationalDomain() == org, nil
}

// within says whether domain is above or a name below it.
func within(domain, above string) bool {
	return domain == above || strings.HasSuffix(domain, "."+above)
}
