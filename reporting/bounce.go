package reporting

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"ruapost"
	"ruapost/bounce"
)

// Bounce takes a message that has come to the envelope sender of a report; to are the
// addresses it is known to have come to. A failure marks the report's recipient and
// suppresses the address; suppressed is nil if it did not, or if that was so before.
// Whatever it says, the message is filed in BounceMaildir. The error is that of the
// message's reader, the store or the Maildir: nothing is lost if the message comes again.
func (r *Reporter) Bounce(ctx context.Context, message io.Reader, to ...string) (suppressed *ruapost.Suppression, err error) {
	text, err := bounce.Read(message)
	if err != nil {
		return nil, err
	}
	notice := bounce.Parse(text, to...)
	outcome, suppressed, err := r.takeNotice(ctx, notice)
	if err != nil {
		return nil, err
	}
	file, err := bounce.File(r.BounceMaildir, text, r.now())
	if err != nil {
		return nil, err
	}
	slog.Info("message to the sender of reports", "kind", notice.Kind, "outcome", outcome, "file", file,
		"recipient", notice.Recipient, "status", notice.Status, "diagnostic", notice.Diagnostic)
	if err := r.Store.Count(ctx, map[string]uint64{"bounces_" + outcome: 1}); err != nil {
		slog.Warn("the message is not counted", "err", err) // it is filed: it must not come again
	}
	return suppressed, nil
}

// Outcomes of a bounce, each with a counter.
const (
	bounceForged  = "without_token" // or one that is not ours
	bounceUnknown = "unknown_report"
	bounceFailed  = "failed"
	bounceIgnored = "ignored" // a delay, an automatic reply, what somebody wrote
)

// takeNotice does what a notice calls for.
func (r *Reporter) takeNotice(ctx context.Context, n *bounce.Notice) (outcome string, suppressed *ruapost.Suppression, err error) {
	token, ok := bounce.ParseToken(r.From, r.BounceDelimiter, n.To...)
	if !ok {
		return bounceForged, nil, nil
	}
	secret, err := r.Store.Secret(ctx)
	if err != nil {
		return "", nil, err
	}
	rep, err := r.Store.Report(ctx, token.Report)
	if errors.Is(err, ruapost.ErrNoReport) {
		return bounceUnknown, nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	for _, rc := range rep.Recipients {
		if !token.Verify(secret, rc.Address) {
			continue
		}
		if n.Kind != bounce.Failed && n.Kind != bounce.Complaint {
			return bounceIgnored, nil, nil
		}
		suppressed, err = r.bounced(ctx, rep, &rc, n)
		return bounceFailed, suppressed, err
	}
	return bounceForged, nil, nil
}

// bounced marks a report's recipient and suppresses his address.
func (r *Reporter) bounced(ctx context.Context, rep *ruapost.Report, rc *ruapost.Recipient, n *bounce.Notice) (suppressed *ruapost.Suppression, err error) {
	sent := rc.Last
	if sent.IsZero() {
		sent = r.now() // the run that sent it has not noted that yet
	}
	pattern := patternOf(rc.Address)
	if !isAboutAddress(n) {
		pattern = patternAbout(rc.Address, rep.Domain)
	}
	reason := strings.Join(strings.Fields(fmt.Sprint(n.Kind, " ", n.Status, " ", n.Diagnostic)), " ")
	if suppressed, err = r.strike(ctx, pattern, reason, sent); err != nil {
		return nil, err
	}
	return suppressed, r.Store.UpdateReport(ctx, rep.ID, func(rep *ruapost.Report) error {
		for i := range rep.Recipients {
			o := &rep.Recipients[i]
			if o.Address == rc.Address && (o.State == ruapost.RecipientSent || o.State == ruapost.RecipientWaiting) {
				o.State, o.Error = ruapost.RecipientBounced, ruapost.Clean(reason, 500)
			}
		}
		r.settle(rep)
		return nil
	})
}

// isAboutAddress tells whether a notice says something of the address, not of the mail: that
// there is none, that it does not take mail, that its host cannot be reached (RFC 3463 3.2,
// 3.3, 3.5), or that who reads it complains. A service may refuse reports about domains that
// are none of its customers'; that must not cost its customers theirs.
func isAboutAddress(n *bounce.Notice) bool {
	class, detail, _ := strings.Cut(n.Status, ".")
	switch detail {
	case "1.7", "1.8", "2.3": // about the sender, and the size
		return false
	}
	subject, _, _ := strings.Cut(detail, ".")
	return n.Kind == bounce.Complaint || class != "" && (subject == "1" || subject == "2" || subject == "4")
}
