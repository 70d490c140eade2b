package reporting

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"ruapost"
	"ruapost/dmarc"
	"ruapost/internal/mailtouri"
	"ruapost/tlsrpt"
)

// ruaURI is a destination as it stands in the domain's record.
type ruaURI struct {
	raw     string
	scheme  string
	address string   // of mailto
	url     *url.URL // of https
	maxSize uint64
}

// wanted returns who is to get a report that can be made, and whether others would want it
// for whom there is no room. The error is a noReport or temporary.
func (r *Reporter) wanted(ctx context.Context, d *dueReport, suppressed suppressions) (list []ruapost.Recipient, full bool, err error) {
	if err := r.reportable(d); err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	published, err := r.published(ctx, d.kind, d.domain)
	if err != nil {
		return nil, false, err
	}
	if len(published) == 0 {
		return nil, false, errNobody
	}
	return r.recipients(d, published, suppressed)
}

// published returns the destinations in the domain's record.
func (r *Reporter) published(ctx context.Context, kind ruapost.Kind, domain string) (list []ruaURI, err error) {
	if kind == ruapost.KindDMARC {
		record, err := dmarc.LookupRecord(ctx, r.Resolver, domain)
		if errors.Is(err, dmarc.ErrNoRecord) {
			return nil, errNobody
		}
		if err != nil {
			return nil, err
		}
		for _, u := range record.RUA {
			list = append(list, ruaURI{raw: u.Raw, scheme: u.Scheme, address: u.Address, maxSize: u.MaxSize})
		}
		return list, nil
	}
	record, err := tlsrpt.LookupRecord(ctx, r.Resolver, domain)
	if errors.Is(err, tlsrpt.ErrNoRecord) || errors.Is(err, tlsrpt.ErrMultipleRecords) {
		return nil, errNobody
	}
	if err != nil {
		return nil, err
	}
	for _, u := range record.RUA {
		list = append(list, ruaURI{raw: u.Raw, scheme: u.Scheme, address: u.Address, url: u.URL})
	}
	return list, nil
}

// recipients returns those of the destinations that may get the report, at most
// MaxRecipients, in their order (RFC 9990 3.5), and whether that left any out. The error is
// a noReport.
func (r *Reporter) recipients(d *dueReport, published []ruaURI, suppressed suppressions) (list []ruapost.Recipient, full bool, err error) {
	var unusable []string
	why := error(errSuppressed) // if none is left: what the last one left out was left out for
	for _, u := range published {
		rc, err := r.recipient(d, u)
		if _, none := errors.AsType[noReport](err); none {
			why = err
			continue
		}
		if err != nil {
			unusable = append(unusable, fmt.Sprintf("%s: %v", u.raw, err))
			continue
		}
		r.suppress(d.domain, &rc, suppressed)
		var left bool
		list, left = r.addRecipient(list, rc)
		full = full || left
	}
	switch {
	case isWaiting(list):
		return list, full, nil
	case len(list) == 0 && len(unusable) > 0:
		return nil, false, noReport{errNobody.counter, ruapost.Clean("no destination can be used: "+strings.Join(unusable, ", "), 500)}
	}
	return nil, false, why
}

// recipient returns the recipient that a destination of a domain's record stands for.
// The error is a noReport if it must not get the report, or else says why it cannot.
func (r *Reporter) recipient(d *dueReport, u ruaURI) (ruapost.Recipient, error) {
	rc := ruapost.Recipient{URI: u.raw, Address: u.address, State: ruapost.RecipientWaiting, MaxSize: u.maxSize}
	switch {
	case u.url != nil && r.HTTPS != nil:
		rc.Address, rc.HTTPS = u.url.String(), true
	case u.address == "":
		return rc, fmt.Errorf("nothing is sent to %s destinations", u.scheme)
	}
	switch host := hostOf(&rc); {
	case ruapost.Labels(host) == 1:
		// Such as localhost: the network does not get to write to our own accounts.
		return rc, errors.New("the host has no dot")
	case has(r.ExcludedRecipients, rc.Address) || has(r.ExcludedRecipients, host):
		return rc, errAllExcluded
	case mailtouri.IsMailbox(rc.Address, r.From, r.BounceDelimiter), d.kind == ruapost.KindTLS && registered(d.domain) != registered(host) &&
		(registered(host) == registered(r.Domain) || registered(host) == registered(mailtouri.Domain(r.From))):
		// Without anybody's consent, TLS reports could be sent to any mailbox here.
		return rc, errOwnAddresses
	}
	rc.Legacy = r.Format == dmarc.RFC7489 || has(r.Legacy, d.domain) || has(r.Legacy, rc.Address)
	rc.Accepted = d.kind == ruapost.KindTLS // RFC 8460 7: nobody else has to agree
	return rc, nil
}

// hostOf returns the domain that a recipient is at.
func hostOf(rc *ruapost.Recipient) string {
	if !rc.HTTPS {
		return mailtouri.Domain(rc.Address)
	}
	u, err := url.Parse(rc.Address)
	if err != nil {
		return "" // not one that recipient has made
	}
	return u.Hostname()
}

// addRecipient adds rc to list unless its address is there already, in whatever
// state, or the list is full. Those that are suppressed take nobody's place.
func (r *Reporter) addRecipient(list []ruapost.Recipient, rc ruapost.Recipient) (_ []ruapost.Recipient, full bool) {
	served := 0
	for _, o := range list {
		if o.Address == rc.Address {
			return list, false
		}
		if o.State != ruapost.RecipientSuppressed {
			served++
		}
	}
	if served >= r.MaxRecipients {
		return list, true
	}
	return append(list, rc), false
}

// answer is what accept returned for a recipient that was asked.
type answer struct {
	asked   bool
	instead []ruapost.Recipient
	err     error
}

// askRecipients asks those recipients that are due whether they accept the report,
// and notes the answers in rep. It tells whether anybody was asked, and returns those who
// are not to get it now.
func (run *run) askRecipients(ctx context.Context, rep *ruapost.Report) (asked bool, without []ruapost.Recipient) {
	answers := run.ask(ctx, rep)
	asked = slices.ContainsFunc(answers, func(a answer) bool { return a.asked })
	if !asked || ctx.Err() != nil {
		return false, nil
	}
	return true, run.noteAnswers(rep, answers)
}

// ask asks the recipients that are due, all at once, and returns an answer for each
// recipient of the report.
func (r *Reporter) ask(ctx context.Context, rep *ruapost.Report) []answer {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	answers := make([]answer, len(rep.Recipients))
	var asking sync.WaitGroup
	for i, rc := range rep.Recipients {
		if rc.Accepted || !r.isDue(&rc) {
			continue
		}
		asking.Go(func() {
			answers[i].asked = true
			answers[i].err = safely(func() (err error) {
				answers[i].instead, err = r.accept(ctx, rep.Domain, rc)
				return err
			})
		})
	}
	asking.Wait()
	return answers
}

// noteAnswers puts the answers into the report. Those who are named in the place of
// others come last: they must not displace anybody. It returns those who refused or did not
// answer.
func (run *run) noteAnswers(rep *ruapost.Report, answers []answer) (without []ruapost.Recipient) {
	var list, added []ruapost.Recipient
	for i, rc := range rep.Recipients {
		switch a := answers[i]; {
		case !a.asked:
		case errors.Is(a.err, errRefused):
			run.try(&rc)
			rc.State, rc.Error = ruapost.RecipientRefused, ruapost.Clean(a.err.Error(), 500)
			slog.Info("report not sent", "kind", rep.Kind, "domain", rep.Domain, "report_id", rep.ID, "recipient", rc.Address, "err", a.err)
		case a.err != nil:
			run.try(&rc)
			run.putOff(rep, &rc, a.err)
		case len(a.instead) > 0:
			for _, other := range a.instead {
				if rep.State == ruapost.ReportComposed {
					other.Legacy = rc.Legacy // that form is there
				}
				added = append(added, other)
			}
			continue
		default:
			rc.Accepted, rc.Attempts, rc.First, rc.Last, rc.Error = true, 0, time.Time{}, time.Time{}, ""
			rc.NotBefore = run.now() // until now it could not be offered
		}
		list = append(list, rc)
		if answers[i].asked && !rc.Accepted {
			without = append(without, rc)
		}
	}
	for _, rc := range added {
		if run.suppress(rep.Domain, &rc, run.suppressed) && rep.State == ruapost.ReportComposed {
			without = append(without, rc)
		}
		list, _ = run.addRecipient(list, rc)
	}
	if len(list) == 0 {
		slog.Warn("nobody is left to get the report", "domain", rep.Domain, "report_id", rep.ID)
	}
	rep.Recipients = list
	return without
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
	d := &dueReport{kind: ruapost.KindDMARC, domain: domain}
	for _, o := range override {
		other, err := r.recipient(d, ruaURI{raw: rc.URI, scheme: o.Scheme, address: o.Address, maxSize: o.MaxSize})
		if err == nil {
			other.Accepted = true
			instead = append(instead, other)
		}
	}
	if len(override) > 0 && len(instead) == 0 {
		return nil, fmt.Errorf("%w: what it names instead cannot be used", errRefused)
	}
	return instead, nil
}
