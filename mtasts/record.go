// Package mtasts knows SMTP MTA Strict Transport Security (RFC 8461): the TXT
// record by which a domain announces a policy, the policy file, and how it is
// fetched. How long a policy is kept, and what is done with it, is the caller's
// matter.
package mtasts

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"ruapost/resolver"
)

var (
	// ErrNoRecord: the domain has no MTA-STS record. Other TXT records at the
	// same name do not matter.
	ErrNoRecord = errors.New("no MTA-STS record")
	// ErrMultipleRecords: there are several MTA-STS records. The domain counts as
	// one without (RFC 8461 3.1).
	ErrMultipleRecords = errors.New("several MTA-STS records")
	// ErrRecordSyntax: the MTA-STS record is malformed. The domain counts as one
	// without (RFC 8461 3.1).
	ErrRecordSyntax = errors.New("malformed MTA-STS record")
)

// Record is an MTA-STS TXT record (RFC 8461 3.1).
type Record struct {
	// ID names this version of the policy, 1 to 32 letters and digits. There is
	// no order: any other ID means that the policy is to be fetched again.
	ID string
}

// Resolver finds TXT records: *resolver.Resolver.
type Resolver interface {
	LookupTXT(ctx context.Context, name string) (txts []string, authentic bool, err error)
}

// LookupRecord returns the MTA-STS record of domain. Its error wraps ErrNoRecord,
// ErrMultipleRecords or ErrRecordSyntax, or is that of the lookup, which is
// temporary. None of them ends a policy that is known from before and has not
// expired (RFC 8461 3.1).
func LookupRecord(ctx context.Context, r Resolver, domain string) (*Record, error) {
	txts, _, err := r.LookupTXT(ctx, "_mta-sts."+domain)
	if resolver.IsNotFound(err) {
		err = ErrNoRecord
	}
	var record *Record
	if err == nil {
		record, err = ParseRecord(txts)
	}
	if err != nil {
		return nil, fmt.Errorf("mtasts: record of %s: %w", domain, err)
	}
	return record, nil
}

// ParseRecord finds the one MTA-STS record among the TXT records of a name. Its
// error is, possibly wrapped, ErrNoRecord, ErrMultipleRecords or ErrRecordSyntax.
func ParseRecord(txts []string) (*Record, error) {
	found := 0
	var fields string
	for _, txt := range txts {
		if rest, ok := cutVersion(txt); ok {
			fields = rest
			found++
		}
	}
	switch found {
	case 0:
		return nil, ErrNoRecord
	case 1:
		return parseFields(fields)
	}
	return nil, ErrMultipleRecords
}

// cutVersion returns what follows the version, and whether txt is an MTA-STS
// record at all. RFC 8461 3.1 discards what does not begin with "v=STSv1;", but
// its grammar allows blanks before the semicolon (erratum 6285); so do we.
func cutVersion(txt string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(txt, "v=STSv1")
	if !ok {
		return "", false
	}
	return strings.CutPrefix(strings.TrimLeft(rest, blanks), ";")
}

// blanks are the characters of WSP (RFC 5234 B.1).
const blanks = " \t"

// parseFields reads the fields after "v=STSv1;".
func parseFields(s string) (*Record, error) {
	record := &Record{}
	for rest, more := s, true; more; {
		var field string
		field, rest, more = strings.Cut(rest, ";")
		field = strings.Trim(field, blanks)
		if field == "" && !more {
			break // the delimiter may also end the record
		}
		name, value, _ := strings.Cut(field, "=")
		switch {
		case !isFieldName(name):
			return nil, fmt.Errorf("%w: field without a valid name", ErrRecordSyntax)
		case !isExtensionValue(value):
			return nil, fmt.Errorf("%w: value of %s", ErrRecordSyntax, name)
		case name != "id" || record.ID != "":
			// Unknown, or a duplicate, of which the first counts (RFC 8461 3.1, 3.2).
		case !isID(value):
			return nil, fmt.Errorf("%w: id is not 1 to 32 letters and digits", ErrRecordSyntax)
		default:
			record.ID = value
		}
	}
	if record.ID == "" {
		return nil, fmt.Errorf("%w: no id", ErrRecordSyntax)
	}
	return record, nil
}

func isID(s string) bool {
	return len(s) <= 32 && s != "" && strings.IndexFunc(s, isNotAlnum) < 0
}

func isNotAlnum(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9')
}

// isFieldName tells whether s is an sts-ext-name or sts-policy-ext-name, of which
// the known names are instances.
func isFieldName(s string) bool {
	if s == "" || len(s) > 32 || isNotAlnum(rune(s[0])) {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool { return isNotAlnum(r) && !strings.ContainsRune("_-.", r) }) < 0
}

// isExtensionValue tells whether s is an sts-ext-value; semicolons are not in it
// any more.
func isExtensionValue(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '=' }) < 0
}
