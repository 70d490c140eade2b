package dmarc

import (
	"context"
	"fmt"

	"ruapost"
)

// ExternalDestination says whether the host that u points at agrees to get the
// aggregate reports about policyDomain (RFC 9990 4). A host of the same
// organization needs no asking. Any other says so in a record at
// <policy domain>._report._dmarc.<host>, and may name there, at the same host,
// where the reports shall go instead: if override is not empty, the reports go
// there and not to u.
//
// An error wraps the resolver's and is temporary: ask again later. The one
// exception wraps ruapost.ErrDomain, if policyDomain is no domain name.
func ExternalDestination(ctx context.Context, r Resolver, policyDomain string, u URI) (accepted bool, override []URI, err error) {
	domain, err := ruapost.ParseDomain(policyDomain)
	if err != nil {
		return false, nil, fmt.Errorf("dmarc: %w", err)
	}
	if u.Host == "" {
		return false, nil, nil
	}
	same, err := newWalk(r, domain).sameOrganization(ctx, u.Host)
	if same || err != nil {
		return same, nil, err
	}
	name, err := ruapost.ParseDomain(domain + "._report._dmarc." + u.Host)
	if err != nil { // too long for a name: step 4
		return false, nil, nil
	}
	records, err := lookupRecords(ctx, r, name)
	if err != nil {
		return false, nil, err
	}
	accepted, override = consent(records, u.Host)
	return accepted, override, nil
}

// consent is steps 6 to 9: one record is enough. If there are several, what they
// name at the host counts together. If they name only other hosts, neither
// those nor the original may be used.
func consent(records []*Record, host string) (accepted bool, override []URI) {
	elsewhere := false
	for _, rec := range records {
		for _, u := range rec.RUA {
			switch {
			case u.Scheme != "mailto": // must be ignored (RFC 9989 4.7)
			case u.Host == host:
				override = append(override, u)
			default:
				elsewhere = true
			}
		}
	}
	return len(records) > 0 && (len(override) > 0 || !elsewhere), override
}
