// Package dmarc knows DMARC: RFC 9989 (policy record, discovery, alignment,
// result), RFC 9990 (aggregate reports) and what of RFC 7489 its peers still
// read. It knows neither storage nor configuration.
//
// A message is judged in three steps. AuthorDomains reads the From field. An
// Evaluator then finds the Policy of each author domain, by the DNS tree walk or
// as RFC 7489 did with a public suffix list, and says whether an SPF or DKIM pass
// is aligned with it (Verdict); of several verdicts the Strictest holds. What it
// found goes into a ruapost.Evaluation.
//
// A report is made from the rows that evaluations add up to. LookupRecord finds
// the destinations published now, ExternalDestination asks those of other
// organizations for their consent, WriteReport writes the XML and Filename and
// Subject name it. ParseReport reads a report back.
package dmarc

import (
	"context"
	"errors"
	"fmt"

	"ruapost/resolver"
)

// Resolver is what DMARC needs of the DNS. Its errors are *net.DNSError; all
// but those with IsNotFound mean that the answer is not known.
type Resolver interface {
	// LookupTXT returns the TXT records of name, the strings of each joined, and
	// whether the answer was authenticated by DNSSEC.
	LookupTXT(ctx context.Context, name string) (txts []string, authentic bool, err error)
	// Exists is false only if the DNS says that there is no such name at all.
	Exists(ctx context.Context, name string) (bool, error)
}

// ErrNoRecord is the error, possibly wrapped, of a domain without a DMARC
// record: there is none, or several, which counts as none (RFC 9989 4.10).
var ErrNoRecord = errors.New("no DMARC record")

// LookupRecord returns the DMARC record at domain itself, not one above it.
// Errors other than ErrNoRecord wrap the resolver's and are temporary.
func LookupRecord(ctx context.Context, r Resolver, domain string) (*Record, error) {
	records, err := lookupRecords(ctx, r, "_dmarc."+domain)
	switch {
	case err != nil:
		return nil, err
	case len(records) == 0:
		return nil, fmt.Errorf("dmarc: %s: %w", domain, ErrNoRecord)
	case len(records) > 1: // RFC 9989 4.10 step 2
		return nil, fmt.Errorf("dmarc: %s: %w: %d records", domain, ErrNoRecord, len(records))
	}
	return records[0], nil
}

// lookupRecords returns the DMARC records at name. Other texts are welcome to stand
// beside them. That there are none is no error.
func lookupRecords(ctx context.Context, r Resolver, name string) ([]*Record, error) {
	txts, _, err := r.LookupTXT(ctx, name)
	if err != nil {
		if resolver.IsNotFound(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("dmarc: TXT records of %s: %w", name, err)
	}
	var records []*Record
	for _, txt := range txts {
		if rec, err := ParseRecord(txt); err == nil {
			records = append(records, rec)
		}
	}
	return records, nil
}
