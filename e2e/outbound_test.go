package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"ruapost/internal/lab"
)

// TestOutbound sends mail through Postfix to destinations with good and bad TLS,
// and wants the right ones to be delivered and the TLS reports that go out to
// tell of each session.
func TestOutbound(t *testing.T) { eachVersion(t, outboundVersions, testOutbound) }

func testOutbound(t *testing.T, v version) {
	w := newWorld(t)
	all := w.addDestinations(destinations)
	p := newPostfix(t, v)
	r := install(t, w, p)
	// An administrator's own exceptions stand before the daemon.
	const maps = "\nsmtp_tls_policy_maps = "
	p.configure(strings.Replace(p.read("etc/postfix/main.cf"), maps, maps+"inline:{{reused.example=may connection_reuse=yes}}, ", 1))
	p.write("etc/postfix/master.cf", p.read("etc/postfix/master.cf")+"tlsproxy unix - - y - 0 tlsproxy\n") // for reuse
	r.startMilter()
	tlspolicy := r.startTLSPolicy()
	p.start()

	when := span{first: time.Now().UTC()}
	deferred := p.sendTo(all)
	when.last = time.Now().UTC()
	checkDeliveries(t, p, all, deferred)
	checkFetches(t, all, w.policyHost.Requests())
	want := expectedTLS(t, v, all)

	// Whatever the daemon has been told by now must survive its end.
	r.logRead()
	tlspolicy.stop()
	r.startTLSPolicy()
	reports := r.checkTLSReports(w, when, all, want)

	// Sending reports is nothing to report.
	r.logRead()
	r.report(sendNow...)
	p.settle()
	if again := w.reportMails(w.sink.Mailbox.Messages()); len(again) > len(reports) {
		t.Errorf("a second run of the reporter sent %v", recipients(again[len(reports):]))
	}
}

// checkTLSReports has the reporter send what there is, and wants it to be what is
// expected of the destinations.
func (r *installation) checkTLSReports(w *world, when span, all []*running, want map[string][]tlsPolicy) []*reportMail {
	r.t.Helper()
	r.report(sendNow...)
	when.reported = time.Now().UTC()
	for _, q := range r.postfix.settle() {
		unreported := func(d *running) bool {
			return d.unreported.holds(r.postfix.version) && d.reportsTo() == q.Recipients[0].Address
		}
		if q.Sender == reportFrom && !slices.ContainsFunc(all, unreported) {
			r.t.Errorf("report not delivered: %+v", q)
		}
	}
	reports := w.reportMails(w.sink.Mailbox.Messages())
	got := tlsContents(r.t, reports, when)
	for _, d := range all {
		if diff := gocmp.Diff(want[d.domain()], got[d.domain()]); diff != "" {
			r.t.Errorf("TLS report about %s (-want +got):\n%s", d.domain(), diff)
		}
	}
	if diff := gocmp.Diff(reportRecipients(want, all), recipients(reports)); diff != "" {
		r.t.Errorf("recipients of reports (-want +got):\n%s", diff)
	}
	return reports
}

// sendTo sends the destinations their mails and tries those again that are to be. It
// returns the ones that stay deferred.
func (p *postfix) sendTo(all []*running) []queued {
	p.t.Helper()
	p.submitTo(all...)
	sent := time.Now()
	p.settle()
	for _, d := range all {
		if !d.retried.holds(p.version) {
			continue
		}
		eventually(p.t, "minimal_backoff_time is over", func() bool { return time.Since(sent) > time.Second })
		again := p.queuedFor(d)
		if len(again) != d.mails {
			p.t.Errorf("%s: %d of %d mails deferred at first", d.name, len(again), d.mails)
		}
		for _, q := range again {
			p.retry(q.ID)
		}
	}
	return p.settle()
}

// submitTo hands Postfix the mails for the destinations.
func (p *postfix) submitTo(all ...*running) {
	p.t.Helper()
	for _, d := range all {
		p.warnings = append(p.warnings, d.warnings...)
		for i := range d.mails {
			if d.reuse && i > 0 {
				eventually(p.t, "the mail before has arrived", func() bool { return len(p.queuedFor(d)) == 0 })
			}
			p.submit("alice@receiver.example", []string{"user@" + d.domain()}, lab.Mail{
				From: "alice@receiver.example", To: "user@" + d.domain(), Subject: "to " + d.name, Fields: d.fields, Body: "Hello",
			}.Bytes())
		}
	}
}

// queuedFor returns the mails to the destination that are in the queue.
func (p *postfix) queuedFor(d *running) []queued {
	p.t.Helper()
	var mails []queued
	for _, q := range p.waiting() {
		for _, r := range q.Recipients {
			if r.Address == "user@"+d.domain() {
				mails = append(mails, q)
			}
		}
	}
	return mails
}

// checkDeliveries compares what Postfix did with the mails with what it had to do.
func checkDeliveries(t *testing.T, p *postfix, all []*running, deferred []queued) {
	t.Helper()
	left := map[string]int{} // mails in the queue by recipient
	reasons := map[string]string{}
	for _, q := range deferred {
		for _, r := range q.Recipients {
			left[r.Address]++
			reasons[r.Address] = r.Delay
		}
	}
	log := p.log()
	for _, d := range all {
		to := "user@" + d.domain()
		want := 0
		if d.deferred.holds(p.version) {
			want = d.mails
		}
		if left[to] != want {
			t.Errorf("%s: %d of %d mails deferred, not %d: %s", d.name, left[to], d.mails, want, reasons[to])
		}
		delivered := 0
		for _, s := range d.servers {
			delivered += s.check(t, p.version)
		}
		if delivered != d.mails-want {
			t.Errorf("%s: %d mails arrived, not %d", d.name, delivered, d.mails-want)
		}
		for _, warning := range d.warnings {
			if p.version.datagrams && !strings.Contains(log, warning) {
				t.Errorf("%s: Postfix does not warn of %q", d.name, warning)
			}
		}
		if n := len(d.servers[0].sessions()); d.reuse && n != 1 {
			t.Errorf("%s: %d connections, not 1", d.name, n)
		}
	}
}

// check looks at the server's sessions, and returns the number of mails that arrived
// there.
func (s *runningServer) check(t *testing.T, v version) (mails int) {
	t.Helper()
	overTLS := s.cert != nil && !s.refuse && !s.garble
	for _, session := range s.sessions() {
		mails += session.Mails
		if session.Mails > 0 && session.TLS != overTLS {
			t.Errorf("%s: TLS = %v in %+v", s.name, session.TLS, session)
		}
		// RFC 7672 8.1, RFC 8461 4.2: the server may choose its certificate by SNI.
		authenticated := strings.HasPrefix(s.want, "tlsa ") || strings.HasPrefix(s.want, "sts ")
		if session.TLS && authenticated && session.ServerName != s.name {
			t.Errorf("%s: SNI %q", s.name, session.ServerName)
		}
	}
	if n := len(s.sessions()); n > 0 && s.shunned.holds(v) {
		t.Errorf("%s: %d sessions, there must be none", s.name, n)
	}
	return mails
}

// checkFetches wants each policy that was applied to have been fetched once,
// however many mails there were, and no other one twice.
func checkFetches(t *testing.T, all []*running, requests []string) {
	t.Helper()
	fetched := map[string]int{}
	for _, domain := range requests {
		fetched[domain]++
	}
	for _, d := range all {
		applied := slices.ContainsFunc(d.servers, func(s *runningServer) bool { return strings.HasPrefix(s.want, "sts ") })
		if n := fetched[d.domain()]; n > 1 || applied && n == 0 {
			t.Errorf("%s: policy fetched %d times", d.name, n)
		}
	}
}

// expectedTLS makes the contents of the reports out of what the destinations saw
// of the sessions.
func expectedTLS(t *testing.T, v version, all []*running) map[string][]tlsPolicy {
	t.Helper()
	want := map[string][]tlsPolicy{}
	for _, d := range all {
		if d.unreported.holds(v) {
			continue
		}
		var policies []tlsPolicy
		for _, s := range d.servers {
			if outcome := strings.Fields(s.outcome(v)); len(outcome) > 0 {
				if s.events() == 0 {
					t.Errorf("%s: no session", s.name)
				}
				p := d.reported(v, s, outcome[0])
				if outcome[1] == "success" {
					p.Summary.Successful = s.events()
				} else {
					p.Summary.Failed = s.events()
					p.Failures = []tlsFailure{s.failure(v, outcome[1:])}
				}
				policies = append(policies, p)
			}
			if found := strings.Fields(s.findings(v)); len(found) > 0 {
				p := d.reported(v, s, found[0])
				if s.found == tlsaLookup {
					p.Policy.Strings = nil // which they are is not known
				}
				p.Failures = []tlsFailure{{Result: found[1], Reason: found[2], ReceivingMX: s.name, Sessions: 1}}
				policies = append(policies, p)
			}
		}
		if len(policies) > 0 {
			want[d.domain()] = merge(policies)
		}
	}
	return want
}

// reported returns how reports describe the policy, of the given type, that was
// applied to s.
func (r *running) reported(v version, s *runningServer, policyType string) tlsPolicy {
	var p tlsPolicy
	p.Policy.Type, p.Policy.Domain = policyType, r.domain()
	switch policyType {
	case "tlsa":
		p.Policy.Domain = s.name // the TLSA base domain
		p.Policy.Strings = s.tlsaData
		if v.datagrams {
			p.Policy.Strings = usable(s.tlsaData)
		}
	case "sts":
		p.Policy.Strings = r.policy()
		p.Policy.MXHosts = r.policyMX()
	}
	return p
}

// usable returns the TLSA records that Postfix tells of: those of the usages for SMTP if
// there are any.
func usable(tlsaData []string) []string {
	var forSMTP []string
	for _, data := range tlsaData {
		if strings.HasPrefix(data, "2 ") || strings.HasPrefix(data, "3 ") {
			forSMTP = append(forSMTP, data)
		}
	}
	if forSMTP == nil {
		return tlsaData
	}
	return forSMTP
}

// failure returns the failure of all sessions with s, given the result-type and the
// failure-reason-code.
func (s *runningServer) failure(v version, result []string) tlsFailure {
	if v.datagrams && strings.Join(result, " ") == strings.TrimPrefix(mxOutside, "sts ") {
		// Of mode testing: Postfix took the session for a success, of which it tells less.
		return tlsFailure{Result: result[0], Reason: result[1], Sessions: s.events()}
	}
	f := tlsFailure{
		Result:      result[0],
		ReceivingMX: s.name,
		ReceivingIP: s.ip,
		Sessions:    s.events(),
		Reason:      strings.Join(result[1:], ""),
	}
	if v.datagrams { // a log does not have these
		f.ReceivingHelo, f.SendingIP = s.name, postfixIPv4
		if s.ipv6 {
			f.SendingIP = postfixIPv6
		}
	}
	return f
}

// reportRecipients returns who must get the reports of that contents.
func reportRecipients(contents map[string][]tlsPolicy, all []*running) []string {
	var want []string
	for _, d := range all {
		if contents[d.domain()] != nil {
			want = append(want, d.reportsTo()+" "+d.domain())
		}
	}
	slices.Sort(want)
	return want
}
