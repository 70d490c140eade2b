package reporting

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"ruapost"
	"ruapost/dmarc"
	"ruapost/internal/mailtouri"
	"ruapost/tlsrpt"
)

// noReport is the error that there is to be no report, and says why.
type noReport string

func (n noReport) Error() string { return string(n) }

const nobody = noReport("nobody wants the report any more")

// recipients looks the domain's record up again and returns whom it names now, at
// most MaxRecipients. The error is a noReport if there is nobody, or temporary.
func (r *Reporter) recipients(ctx context.Context, kind ruapost.Kind, domain string) ([]ruapost.Recipient, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	published, err := r.published(ctx, kind, domain)
	if err != nil {
		return nil, err
	}
	var list []ruapost.Recipient
	var unusable []string
	for _, u := range published {
		if err := usable(u); err != nil {
			unusable = append(unusable, fmt.Sprintf("%s: %v", u.Raw, err))
			continue
		}
		list = addRecipient(list, ruapost.Recipient{
			URI: u.Raw, Address: u.Address, State: ruapost.RecipientWaiting,
			Accepted: kind == ruapost.KindTLS, // RFC 8460 7: nobody else has to agree
		})
	}
	switch {
	case len(list) > 0:
		return list, nil
	case len(unusable) > 0:
		return nil, noReport(ruapost.Clean("no destination can be used: "+strings.Join(unusable, ", "), 500))
	}
	return nil, nobody
}

// published returns the destinations in the domain's record.
func (r *Reporter) published(ctx context.Context, kind ruapost.Kind, domain string) ([]dmarc.URI, error) {
	if kind == ruapost.KindDMARC {
		record, err := dmarc.LookupRecord(ctx, r.Resolver, domain)
		if errors.Is(err, dmarc.ErrNoRecord) {
			return nil, nobody
		}
		if err != nil {
			return nil, err
		}
		return record.RUA, nil
	}
	record, err := tlsrpt.LookupRecord(ctx, r.Resolver, domain)
	if errors.Is(err, tlsrpt.ErrNoRecord) || errors.Is(err, tlsrpt.ErrMultipleRecords) {
		return nil, nobody
	}
	if err != nil {
		return nil, err
	}
	var uris []dmarc.URI
	for _, u := range record.RUA {
		uris = append(uris, dmarc.URI{Raw: u.Raw, Scheme: u.Scheme, Address: u.Address})
	}
	return uris, nil
}

// usable returns why no mail can be sent to u, or nil.
func usable(u dmarc.URI) error {
	switch {
	case u.Address == "":
		return fmt.Errorf("%s is not supported yet", u.Scheme)
	case mailtouri.NeedsSMTPUTF8(u.Address):
		return errors.New("mail addresses beyond ASCII are not supported yet")
	case ruapost.Labels(mailtouri.Domain(u.Address)) == 1:
		// Such as localhost: the network does not get to write to our own accounts.
		return errors.New("the host has no dot")
	}
	return nil
}

// addRecipient adds rc to list unless its address is there already, in whatever
// state, or the list is full.
func addRecipient(list []ruapost.Recipient, rc ruapost.Recipient) []ruapost.Recipient {
	known := slices.ContainsFunc(list, func(o ruapost.Recipient) bool { return o.Address == rc.Address })
	if known || len(list) >= MaxRecipients {
		return list
	}
	return append(list, rc)
}

// errRefused means that the destination did not agree to get reports about a
// domain.
var errRefused = errors.New("the destination has not agreed to reports about this domain")

// accept asks whether rc agrees to get reports about domain (RFC 9990 4). If instead
// is not empty, these are to be served in its place. The error wraps errRefused or
// is temporary.
func (r *Reporter) accept(ctx context.Context, domain string, rc ruapost.Recipient) (instead []ruapost.Recipient, err error) {
	uri := dmarc.URI{Raw: rc.URI, Scheme: "mailto", Address: rc.Address, Host: mailtouri.Domain(rc.Address)}
	accepted, override, err := dmarc.ExternalDestination(ctx, r.Resolver, domain, uri)
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot ask whether the destination agrees: %w", err)
	case !accepted:
		return nil, errRefused
	}
	for _, o := range override {
		if usable(o) == nil {
			instead = append(instead, ruapost.Recipient{URI: rc.URI, Address: o.Address, Accepted: true, State: ruapost.RecipientWaiting})
		}
	}
	if len(override) > 0 && len(instead) == 0 {
		return nil, fmt.Errorf("%w: what it names instead cannot be used", errRefused)
	}
	return instead, nil
}
