package e2e

import (
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"ruapost/internal/lab"
)

// TestOutbound sends mail through Postfix to destinations with good and bad TLS,
// and wants the right ones to be delivered and the TLS reports that go out to
// tell of each session.
func TestOutbound(t *testing.T) { eachVersion(t, testOutbound) }

func testOutbound(t *testing.T, v version) {
	w := newWorld(t)
	all := w.addDestinations(destinations)
	p := newPostfix(t, v)
	r := install(t, w, p)
	r.startMilter()
	tlspolicy := r.startTLSPolicy()
	p.start()

	when := span{first: time.Now().UTC()}
	for _, d := range all {
		for range d.mails {
			p.submit("alice@receiver.example", []string{"user@" + d.domain()}, lab.Mail{
				From: "alice@receiver.example", To: "user@" + d.domain(), Subject: "to " + d.name, Body: "Hello",
			}.Bytes())
		}
	}
	deferred := p.settle()
	when.last = time.Now().UTC()
	checkDeliveries(t, all, deferred)
	checkFetches(t, all, w.policyHost.Requests())
	want := expectedTLS(t, v, all)

	// Whatever the daemon has been told by now must survive its end.
	tlspolicy.stop()
	r.startTLSPolicy()
	r.report(sendNow...)
	when.reported = time.Now().UTC()
	if after := p.settle(); len(after) != len(deferred) {
		t.Errorf("reports not delivered: %+v", after)
	}
	reports := w.reportMails(w.sink.Mailbox.Messages())
	if diff := gocmp.Diff(want, tlsContents(t, reports, when)); diff != "" {
		t.Errorf("TLS reports (-want +got):\n%s", diff)
	}
	if diff := gocmp.Diff(reportRecipients(v, all), recipients(reports)); diff != "" {
		t.Errorf("recipients of reports (-want +got):\n%s", diff)
	}

	// Sending reports is nothing to report.
	r.report(sendNow...)
	p.settle()
	if again := w.reportMails(w.sink.Mailbox.Messages()); len(again) > len(reports) {
		t.Errorf("a second run of the reporter sent %v", recipients(again[len(reports):]))
	}
}

// checkDeliveries compares what Postfix did with the mails with what it had to do.
func checkDeliveries(t *testing.T, all []*running, deferred []queued) {
	t.Helper()
	left := map[string]int{} // mails in the queue by recipient
	reasons := map[string]string{}
	for _, q := range deferred {
		for _, r := range q.Recipients {
			left[r.Address]++
			reasons[r.Address] = r.Delay
		}
	}
	for _, d := range all {
		to := "user@" + d.domain()
		want := 0
		if d.deferred {
			want = d.mails
		}
		if left[to] != want {
			t.Errorf("%s: %d of %d mails deferred, not %d: %s", d.name, left[to], d.mails, want, reasons[to])
		}
		delivered := 0
		for _, s := range d.server.Sessions() {
			delivered += s.Mails
			if s.Mails > 0 && s.TLS != (d.cert != nil) {
				t.Errorf("%s: TLS = %v in %+v", d.name, s.TLS, s)
			}
		}
		if delivered != d.mails-want {
			t.Errorf("%s: %d mails arrived, not %d", d.name, delivered, d.mails-want)
		}
	}
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
		applied := d.want != nil && d.want.policyType == "sts"
		if n := fetched[d.domain()]; n > 1 || applied && n == 0 {
			t.Errorf("%s: policy fetched %d times", d.name, n)
		}
	}
}

// expectedTLS makes the contents of the reports out of what the destinations saw
// of the sessions. Postfix 3.7 does not tell us of them.
func expectedTLS(t *testing.T, v version, all []*running) map[string]tlsPolicy {
	t.Helper()
	want := map[string]tlsPolicy{}
	for _, d := range all {
		if d.want == nil || !v.tlsrpt {
			continue
		}
		sessions := len(d.server.Sessions())
		if sessions == 0 {
			t.Errorf("%s: no session", d.name)
		}
		var p tlsPolicy
		p.Policy.Type, p.Policy.Domain = d.want.policyType, d.domain()
		switch d.want.policyType {
		case "tlsa":
			p.Policy.Domain = d.mx() // the TLSA base domain
			p.Policy.Strings = []string{d.tlsaData}
		case "sts":
			p.Policy.Strings = d.policy()
			p.Policy.MXHosts = []string{d.mx(), "*.backup." + d.domain()}
		}
		if d.want.result == "" {
			p.Summary.Successful = sessions
		} else {
			p.Summary.Failed = sessions
			from := postfixIPv4
			if d.ipv6 {
				from = postfixIPv6
			}
			p.Failures = []tlsFailure{{
				Result:        d.want.result,
				SendingIP:     from,
				ReceivingMX:   d.mx(),
				ReceivingHelo: d.mx(),
				ReceivingIP:   d.ip,
				Sessions:      sessions,
				Reason:        d.want.reason,
			}}
		}
		want[d.domain()] = p
	}
	return want
}

func reportRecipients(v version, all []*running) []string {
	var want []string
	for _, d := range all {
		if d.want != nil && v.tlsrpt {
			want = append(want, d.reportsTo()+" "+d.domain())
		}
	}
	slices.Sort(want)
	return want
}
