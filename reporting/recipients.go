package reporting

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"ruapost"
	"ruapost/dmarc"
	"ruapost/tlsrpt"
)

// recipients looks the domain's record up again and returns whom it names now, at
// most MaxRecipients. No recipients and no error means that nobody wants the report.
func (r *Reporter) recipients(ctx context.Context, kind ruapost.Kind, domain string) ([]ruapost.Recipient, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var list []ruapost.Recipient
	if kind == ruapost.KindDMARC {
		record, err := dmarc.LookupRecord(ctx, r.Resolver, domain)
		if errors.Is(err, dmarc.ErrNoRecord) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		for _, u := range record.RUA {
			list = addRecipient(list, ruapost.Recipient{URI: u.Raw, Address: u.Address, State: ruapost.RecipientWaiting})
		}
		return list, nil
	}
	record, err := tlsrpt.LookupRecord(ctx, r.Resolver, domain)
	if errors.Is(err, tlsrpt.ErrNoRecord) || errors.Is(err, tlsrpt.ErrMultipleRecords) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, u := range record.RUA {
		// RFC 8460 7: nobody else has to agree.
		list = addRecipient(list, ruapost.Recipient{URI: u.Raw, Address: u.Address, Accepted: true, State: ruapost.RecipientWaiting})
	}
	return list, nil
}

// addRecipient adds rc to list unless it has no mail address, is there already or
// the list is full.
func addRecipient(list []ruapost.Recipient, rc ruapost.Recipient) []ruapost.Recipient {
	known := slices.ContainsFunc(list, func(o ruapost.Recipient) bool { return o.Address == rc.Address })
	if rc.Address == "" || known || len(list) >= MaxRecipients {
		return list
	}
	return append(list, rc)
}

// errRefused means that the destination did not agree to get reports about a
// domain.
var errRefused = errors.New("the destination has not agreed to reports about this domain")

// accept asks whether rc agrees to get reports about domain, and returns the
// recipients to serve in its place: itself, or those that it names instead
// (RFC 9990 4). The error is errRefused or temporary.
func (r *Reporter) accept(ctx context.Context, domain string, rc ruapost.Recipient) ([]ruapost.Recipient, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	uri := dmarc.URI{Raw: rc.URI, Scheme: "mailto", Address: rc.Address, Host: rc.Address[strings.LastIndexByte(rc.Address, '@')+1:]}
	accepted, override, err := dmarc.ExternalDestination(ctx, r.Resolver, domain, uri)
	if err != nil {
		return nil, fmt.Errorf("cannot ask whether the destination agrees: %w", err)
	}
	if !accepted {
		return nil, errRefused
	}
	rc.Accepted, rc.Attempts, rc.Error = true, 0, ""
	if len(override) == 0 {
		return []ruapost.Recipient{rc}, nil
	}
	var instead []ruapost.Recipient
	for _, o := range override {
		n := rc
		n.Address = o.Address
		instead = addRecipient(instead, n)
	}
	return instead, nil
}
