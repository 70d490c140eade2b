package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"strings"

	"ruapost/internal/lab"
)

// destination is a domain that mail is sent to, with a mail server and an address
// of its own.
type destination struct {
	name  string // the domain without .example
	mails int    // how many are sent, one by one

	// cert makes the certificate that STARTTLS shows; nil means no STARTTLS.
	cert func(ca *lab.CA, mx string) (tls.Certificate, error)
	// refuse makes the server refuse STARTTLS although it offers it.
	refuse bool
	// tlsa is what the domain's TLSA record has: "" for no record, "right" for the
	// certificate's hash, "wrong" for another.
	tlsa string
	// sts tells that the domain has an MTA-STS policy, mode enforce.
	sts bool
	// ipv6 gives the server an IPv6 address instead of an IPv4 one.
	ipv6 bool
	// rua is where TLS reports about the domain go, by default to the sink.
	rua string

	// deferred tells that the mails must not be delivered.
	deferred bool
	// want is what the TLS report about the domain must say of its sessions; nil if
	// there must be no report.
	want *wantTLS
}

// wantTLS is what a report must say.
type wantTLS struct {
	policyType string
	result     string // of every failure, "" if the sessions succeed
	reason     string // failure-reason-code
}

var destinations = []destination{
	{
		name: "dane", mails: 2, cert: selfSigned, tlsa: "right",
		want: &wantTLS{policyType: "tlsa"},
	},
	{
		// The report about the broken server must get past the broken server
		// (RFC 8460 5.3).
		name: "dane-mismatch", mails: 1, cert: good, tlsa: "wrong", rua: "tls@dane-mismatch.example", deferred: true,
		want: &wantTLS{policyType: "tlsa", result: "certificate-not-trusted"},
	},
	{
		name: "sts", mails: 3, cert: good, sts: true,
		want: &wantTLS{policyType: "sts"},
	},
	{
		name: "sts-wrong-name", mails: 1, cert: wrongName, sts: true, deferred: true,
		want: &wantTLS{policyType: "sts", result: "certificate-host-mismatch"},
	},
	{
		name: "sts-expired", mails: 1, cert: expired, ipv6: true, sts: true, deferred: true,
		want: &wantTLS{policyType: "sts", result: "certificate-expired"},
	},
	{
		name: "sts-self-signed", mails: 2, cert: selfSigned, sts: true, deferred: true,
		want: &wantTLS{policyType: "sts", result: "validation-failure", reason: "self-signed_certificate"},
	},
	{
		name: "sts-no-starttls", mails: 1, sts: true, deferred: true,
		want: &wantTLS{policyType: "sts", result: "starttls-not-supported"},
	},
	{
		name: "sts-refused", mails: 1, cert: good, refuse: true, sts: true, deferred: true,
		want: &wantTLS{policyType: "sts", result: "starttls-not-supported"},
	},
	{
		// Both policies: DANE wins (RFC 8461 2).
		name: "dane-and-sts", mails: 1, cert: good, tlsa: "right", sts: true,
		want: &wantTLS{policyType: "tlsa"},
	},
	{
		name: "no-policy", mails: 1, cert: selfSigned,
		want: &wantTLS{policyType: "no-policy-found"},
	},
	{
		// Without a policy a connection in clear text is no event for Postfix.
		name: "plain", mails: 1,
	},
}

func good(ca *lab.CA, mx string) (tls.Certificate, error)    { return ca.Issue(mx) }
func expired(ca *lab.CA, mx string) (tls.Certificate, error) { return ca.IssueExpired(mx) }
func selfSigned(_ *lab.CA, mx string) (tls.Certificate, error) {
	return lab.SelfSigned(mx)
}

func wrongName(ca *lab.CA, _ string) (tls.Certificate, error) {
	return ca.Issue("mx.elsewhere.example")
}

func (d *destination) domain() string { return d.name + ".example" }
func (d *destination) mx() string     { return "mx." + d.domain() }

func (d *destination) reportsTo() string {
	if d.rua != "" {
		return d.rua
	}
	return "tls-" + d.name + "@reports.example"
}

// policy returns the lines of the domain's MTA-STS policy.
func (d *destination) policy() []string {
	return []string{"version: STSv1", "mode: enforce", "mx: " + d.mx(), "mx: *.backup." + d.domain(), "max_age: 86400"}
}

// running is a destination that has its server.
type running struct {
	destination
	server   *lab.MX
	ip       string
	tlsaData string // of the TLSA record, "" if there is none
}

// addDestinations brings the destinations into the world. All of them put their
// mails into the sink's mailbox.
func (w *world) addDestinations(destinations []destination) []*running {
	w.t.Helper()
	w.receives("reports.example")
	var all []*running
	for i, d := range destinations {
		ip, rrtype := fmt.Sprintf("203.0.113.%d", 20+i), "A"
		if d.ipv6 {
			ip, rrtype = fmt.Sprintf("2001:db8:1::%d", 20+i), "AAAA"
		}
		cfg := lab.MXConfig{Name: d.mx(), Addr: net.JoinHostPort(ip, "25"), RefuseTLS: d.refuse, Mailbox: w.sink.Mailbox}
		r := &running{destination: d, ip: ip}
		if d.cert != nil {
			cert, err := d.cert(w.ca, d.mx())
			if err != nil {
				w.t.Fatal(err)
			}
			cfg.Certificate = &cert
			switch d.tlsa {
			case "right":
				r.tlsaData = lab.TLSA(cert)
			case "wrong":
				r.tlsaData = "3 1 1 " + strings.Repeat("AB", 32)
			}
		}
		r.server = w.startMX(cfg)
		w.dns.Add(fmt.Sprintf("%s. 300 IN MX 10 %s.", d.domain(), d.mx()))
		w.dns.Add(fmt.Sprintf("%s. 300 IN %s %s", d.mx(), rrtype, ip))
		w.dns.Add(fmt.Sprintf(`_smtp._tls.%s. 300 IN TXT "v=TLSRPTv1; rua=mailto:%s"`, d.domain(), d.reportsTo()))
		if r.tlsaData != "" {
			w.dns.Add(fmt.Sprintf("_25._tcp.%s. 300 IN TLSA %s", d.mx(), r.tlsaData))
		}
		if d.sts {
			w.dns.Add(fmt.Sprintf(`_mta-sts.%s. 300 IN TXT "v=STSv1; id=20260101T000000Z;"`, d.domain()))
			w.dns.Add(fmt.Sprintf("mta-sts.%s. 300 IN A %s", d.domain(), policyHostIP))
			w.policyHost.SetPolicy(d.domain(), d.policy()...)
		}
		all = append(all, r)
	}
	return all
}
