package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"

	"ruapost/internal/lab"
)

// destination is a domain that mail is sent to, with mail servers of its own.
type destination struct {
	name  string // the domain without .example
	mails int    // how many are sent, one by one
	// fields are header fields of the mails.
	fields []string
	// servers are the domain's mail servers, the most preferred first.
	servers []server

	// sts is the mode of the domain's MTA-STS policy, "" if it has none.
	sts string
	// stsMX are the policy's hosts, by default the servers and some more.
	stsMX []string
	// rua is where TLS reports about the domain go, by default to the sink.
	rua string
	// records are the domain's TLSRPT records, by default one with rua.
	records []string

	// deferred tells where the mails must not be delivered, retried where they must
	// be delivered when they are tried again.
	deferred, retried on
	// unreported tells where the report about it is deferred as well.
	unreported on
	// reuse tells that Postfix keeps a connection for the next mail.
	reuse bool
	// warnings are parts of the warnings that Postfix 3.10 must log about it; older
	// ones may.
	warnings []string
}

// server is a mail server of a destination.
type server struct {
	name string // by default below the domain
	ipv6 bool   // it has an IPv6 address instead of an IPv4 one
	// down tells that nothing listens there, busy that it turns clients away.
	down, busy bool

	// cert makes the certificate that STARTTLS shows; nil means no STARTTLS.
	cert func(ca *lab.CA, mx string) (tls.Certificate, error)
	// refuse makes it refuse STARTTLS although it offers it, garble send something
	// else than TLS then.
	refuse, garble bool
	// tlsa makes its TLSA records; nil means none.
	tlsa func(cert tls.Certificate) []string

	// shunned tells where Postfix must not connect to it.
	shunned on
	// want is what the report must say of each session: the policy-type, the
	// result-type or "success", and the failure-reason-code if there is one. It is ""
	// if nothing must be said.
	want string
	// but is what it must say instead for some versions.
	but map[way]string
	// found is what it must say besides, in the same form: what the policy daemon found
	// out by itself, told once and not counted as a session.
	found string
}

// on are the versions for which something holds.
type on []way

var (
	everywhere = on{log37, datagrams, log310, both}
	on37       = on{log37}
	// onTLSRPT is where Postfix knows the names of MX hosts that a policy has.
	onTLSRPT = on{datagrams, both}
)

func (o on) holds(v version) bool { return slices.Contains(o, v.way) }

// logs is a want for versions of which only the log tells.
func logs(want string) map[way]string { return map[way]string{log37: want, log310: want} }

// What the policy daemon finds out by itself.
const (
	tlsaUnusable = "tlsa tlsa-invalid TLSA-records-unusable"
	tlsaLookup   = "tlsa dnssec-invalid TLSA-lookup-error"
	mxOutside    = "sts validation-failure mx-mismatch"
)

var destinations = []destination{
	// DANE.
	{
		// The report goes to the same servers, over TLS, and is nothing to report.
		name: "dane", mails: 2, rua: "tls@dane.example",
		servers: []server{{cert: selfSigned, tlsa: rightTLSA, want: "tlsa success"}},
	},
	{
		// The name in the certificate does not count (RFC 7672 3.1.1), nor does its
		// time.
		name: "dane-expired", mails: 1,
		servers: []server{{cert: expired, tlsa: rightTLSA, want: "tlsa success"}},
	},
	{
		// The report about the broken server must get past the broken server
		// (RFC 8460 5.3), which takes a Postfix that knows of TLS-Required.
		name: "dane-mismatch", mails: 1, rua: "tls@dane-mismatch.example", deferred: everywhere, unreported: on37,
		servers: []server{{cert: good, tlsa: wrongTLSA, want: "tlsa certificate-not-trusted"}},
	},
	{
		name: "dane-authority", mails: 1,
		servers: []server{{cert: chained, tlsa: authorityTLSA, want: "tlsa success"}},
	},
	{
		// With a trust anchor the name does count (RFC 7672 3.1.2).
		name: "dane-authority-wrong-name", mails: 1, deferred: everywhere,
		servers: []server{{cert: chainedWrongName, tlsa: authorityTLSA, want: "tlsa certificate-host-mismatch"}},
	},
	{
		name: "dane-no-starttls", mails: 1, deferred: everywhere,
		servers: []server{{tlsa: wrongTLSA, want: "tlsa starttls-not-supported"}},
	},
	{
		name: "dane-refused", mails: 1, deferred: everywhere,
		servers: []server{{cert: good, refuse: true, tlsa: rightTLSA, want: "tlsa starttls-not-supported"}},
	},
	{
		name: "dane-garbled", mails: 1, deferred: everywhere, warnings: []string{"TLS library problem"},
		servers: []server{{cert: good, garble: true, tlsa: rightTLSA, want: "tlsa validation-failure tls-handshake-failure"}},
	},
	{
		name: "dane-first-wrong", mails: 2,
		servers: []server{
			{cert: good, tlsa: wrongTLSA, want: "tlsa certificate-not-trusted"},
			{cert: selfSigned, tlsa: rightTLSA, want: "tlsa success"},
		},
	},
	{
		// Not all servers have records, so that those without get mail as usual.
		name: "dane-partial", mails: 1,
		servers: []server{
			{cert: good, tlsa: wrongTLSA, want: "tlsa certificate-not-trusted"},
			{cert: selfSigned, want: "no-policy-found success"},
		},
	},
	{
		// TLS is mandatory, but unauthenticated (RFC 7672 2.2).
		name: "dane-unusable", mails: 1, warnings: []string{"_25._tcp.mx1.dane-unusable.example unsupported TLSA certificate usage"},
		servers: []server{{cert: selfSigned, tlsa: pkixTLSA, want: "no-policy-found success", found: tlsaUnusable}},
	},
	{
		name: "dane-unusable-no-starttls", mails: 1, deferred: everywhere,
		warnings: []string{"_25._tcp.mx1.dane-unusable-no-starttls.example unsupported TLSA certificate usage"},
		servers:  []server{{tlsa: pkixTLSA, want: "no-policy-found starttls-not-supported", found: tlsaUnusable}},
	},
	{
		// A failure to Postfix, although it delivers the mail in that session.
		name: "dane-malformed", mails: 1,
		warnings: []string{"unusable TLSA RR: 3 1 1 ABAB", "all TLSA records unusable, fallback to unauthenticated TLS"},
		servers:  []server{{cert: selfSigned, tlsa: shortTLSA, want: "tlsa tlsa-invalid all-TLSA-records-unusable"}},
	},
	{
		name: "dane-mixed", mails: 1, warnings: []string{"_25._tcp.mx1.dane-mixed.example unsupported TLSA certificate usage"},
		servers: []server{{cert: selfSigned, tlsa: mixedTLSA, want: "tlsa success"}},
	},

	// MTA-STS.
	{
		name: "sts", mails: 3, rua: "tls@sts.example", sts: "enforce",
		servers: []server{{cert: good, want: "sts success"}},
	},
	{
		name: "sts-wildcard", mails: 1, sts: "enforce", stsMX: []string{"*.sts-wildcard.example"},
		servers: []server{{cert: good, want: "sts success"}},
	},
	{
		name: "sts-wrong-name", mails: 1, sts: "enforce", deferred: everywhere,
		servers: []server{{cert: wrongName, want: "sts certificate-host-mismatch"}},
	},
	{
		name: "sts-expired", mails: 1, sts: "enforce", deferred: everywhere,
		servers: []server{{cert: expired, ipv6: true, want: "sts certificate-expired"}},
	},
	{
		name: "sts-self-signed", mails: 2, sts: "enforce", deferred: everywhere,
		servers: []server{{cert: selfSigned, want: "sts validation-failure self-signed_certificate"}},
	},
	{
		name: "sts-future", mails: 1, sts: "enforce", deferred: everywhere,
		servers: []server{{cert: future, want: "sts validation-failure certificate_is_not_yet_valid"}},
	},
	{
		name: "sts-unknown-issuer", mails: 1, sts: "enforce", deferred: everywhere,
		servers: []server{{cert: unknownIssuer, want: "sts validation-failure unable_to_get_local_issuer_certificate"}},
	},
	{
		name: "sts-for-clients", mails: 1, sts: "enforce", deferred: everywhere,
		servers: []server{{cert: forClients, want: "sts validation-failure unsuitable_certificate_purpose"}},
	},
	{
		name: "sts-long-chain", mails: 1, sts: "enforce", deferred: everywhere,
		servers: []server{{cert: longChain, want: "sts validation-failure certificate_chain_too_long"}},
	},
	{
		name: "sts-no-starttls", mails: 1, sts: "enforce", deferred: everywhere,
		servers: []server{{want: "sts starttls-not-supported"}},
	},
	{
		name: "sts-refused", mails: 1, sts: "enforce", deferred: everywhere,
		servers: []server{{cert: good, refuse: true, want: "sts starttls-not-supported"}},
	},
	{
		name: "sts-garbled", mails: 1, sts: "enforce", deferred: everywhere, warnings: []string{"TLS library problem"},
		servers: []server{{cert: good, garble: true, want: "sts validation-failure tls-handshake-failure"}},
	},
	{
		name: "sts-first-expired", mails: 2, sts: "enforce",
		servers: []server{
			{cert: expired, want: "sts certificate-expired"},
			{cert: good, want: "sts success"},
		},
	},
	{
		// A server without a TLS session is no event.
		name: "sts-first-away", mails: 1, sts: "enforce",
		servers: []server{{down: true}, {busy: true, cert: good}, {cert: good, want: "sts success"}},
	},
	{
		// Where Postfix is not told the policy's hosts it only wants the certificate to have
		// such a name.
		name: "sts-other-host", mails: 1, sts: "enforce", stsMX: []string{"mx.elsewhere.example"}, deferred: everywhere,
		warnings: []string{"MX name 'mx1.sts-other-host.example' does not match STS MX pattern for 'sts-other-host.example'"},
		servers: []server{{
			cert: good, shunned: onTLSRPT, but: logs("sts certificate-host-mismatch"), found: mxOutside,
		}},
	},
	{
		// Nothing is enforced. If it is reported, then as if it was, but for what the
		// datagram of a session at level may does not tell: the certificate.
		name: "sts-testing", mails: 1, sts: "testing",
		servers: []server{{
			cert: selfSigned, want: "no-policy-found success",
			but: map[way]string{log37: "sts certificate-not-trusted", both: "sts success"},
		}},
	},
	{
		name: "sts-testing-good", mails: 2, sts: "testing",
		servers: []server{{
			cert: good, want: "no-policy-found success",
			but: map[way]string{log37: "sts success", both: "sts success"},
		}},
	},
	{
		// Which host it was the datagram does not tell, only that there is no other.
		name: "sts-testing-other-host", mails: 1, sts: "testing", stsMX: []string{"mx.elsewhere.example"},
		servers: []server{{
			cert: good, want: "no-policy-found success",
			but: map[way]string{log37: mxOutside, both: mxOutside},
		}},
	},
	{
		// RFC 8689: with this field the mail is more important than TLS, for versions
		// that know it.
		name: "sts-not-required", mails: 1, fields: []string{"TLS-Required: No"}, sts: "enforce", deferred: on37,
		servers: []server{{cert: selfSigned, but: map[way]string{log37: "sts validation-failure self-signed_certificate"}}},
	},
	{
		name: "dane-not-required", mails: 1, fields: []string{"TLS-Required: No"}, deferred: on37,
		servers: []server{{cert: good, tlsa: wrongTLSA, but: map[way]string{log37: "tlsa certificate-not-trusted"}}},
	},
	{
		name: "sts-no-record", mails: 1, records: []string{}, sts: "enforce",
		servers: []server{{cert: good}},
	},
	{
		// RFC 8460 3: as if there were none.
		name: "sts-two-records", mails: 1, records: []string{
			"v=TLSRPTv1; rua=mailto:one@reports.example", "v=TLSRPTv1; rua=mailto:two@reports.example",
		}, sts: "enforce", warnings: []string{"Too many TLSRPT policies for sts-two-records.example"},
		servers: []server{{cert: good}},
	},

	// Both: DANE wins (RFC 8461 2) where it can be used.
	{
		name: "dane-and-sts", mails: 1, sts: "enforce",
		servers: []server{{cert: good, tlsa: rightTLSA, want: "tlsa success"}},
	},
	{
		name: "dane-unusable-and-sts", mails: 1, sts: "enforce",
		servers: []server{{cert: good, tlsa: pkixTLSA, want: "sts success"}},
	},

	// Neither.
	{
		name: "no-policy", mails: 1,
		servers: []server{{cert: selfSigned, want: "no-policy-found success"}},
	},
	{
		// One session with TLS, however many mails. The warning is not about clients.
		name: "reused", mails: 3, reuse: true, warnings: []string{"TLS server role is disabled"},
		servers: []server{{cert: selfSigned, want: "no-policy-found success"}},
	},
	{
		// Without a policy a connection in clear text is no event for Postfix.
		name: "plain", mails: 1,
		servers: []server{{}},
	},
	{
		// The mail arrives all the same, in the same session. Postfix 3.10 does not tell.
		name: "refused", mails: 1,
		servers: []server{{cert: good, refuse: true}},
	},
	{
		// The mail arrives in clear text when it has waited for long enough.
		name: "garbled", mails: 1, retried: everywhere, warnings: []string{"TLS library problem"},
		servers: []server{{cert: good, garble: true, want: "no-policy-found validation-failure tls-handshake-failure"}},
	},
}

func good(ca *lab.CA, mx string) (tls.Certificate, error)    { return ca.Issue(mx) }
func expired(ca *lab.CA, mx string) (tls.Certificate, error) { return ca.IssueExpired(mx) }
func future(ca *lab.CA, mx string) (tls.Certificate, error)  { return ca.IssueFuture(mx) }

func forClients(ca *lab.CA, mx string) (tls.Certificate, error) { return ca.IssueForClients(mx) }

func selfSigned(_ *lab.CA, mx string) (tls.Certificate, error) { return lab.SelfSigned(mx) }

func wrongName(ca *lab.CA, _ string) (tls.Certificate, error) {
	return ca.Issue("mx.elsewhere.example")
}

func unknownIssuer(_ *lab.CA, mx string) (tls.Certificate, error) {
	other, err := lab.NewCA()
	if err != nil {
		return tls.Certificate{}, err
	}
	return other.Issue(mx)
}

func chained(ca *lab.CA, mx string) (tls.Certificate, error) { return issueBelow(ca, 1, mx) }

func chainedWrongName(ca *lab.CA, _ string) (tls.Certificate, error) {
	return issueBelow(ca, 1, "mx.elsewhere.example")
}

// longChain goes beyond Postfix's smtp_tls_scert_verifydepth, 9, whichever of the
// certificates are counted.
func longChain(ca *lab.CA, mx string) (tls.Certificate, error) { return issueBelow(ca, 12, mx) }

// issueBelow issues a certificate with so many authorities between it and ca.
func issueBelow(ca *lab.CA, between int, name string) (tls.Certificate, error) {
	for range between {
		var err error
		if ca, err = ca.Intermediate(); err != nil {
			return tls.Certificate{}, err
		}
	}
	return ca.Issue(name)
}

// Data of TLSA records (RFC 6698 2.1).

func rightTLSA(cert tls.Certificate) []string { return []string{lab.TLSA(cert)} }

func wrongTLSA(tls.Certificate) []string {
	return []string{"3 1 1 " + strings.Repeat("AB", sha256.Size)}
}

// authorityTLSA is about the issuer (DANE-TA).
func authorityTLSA(cert tls.Certificate) []string {
	issuer, err := x509.ParseCertificate(cert.Certificate[1])
	if err != nil {
		panic(err) // it comes from the lab
	}
	return []string{fmt.Sprintf("2 1 1 %X", sha256.Sum256(issuer.RawSubjectPublicKeyInfo))}
}

// pkixTLSA has a usage that cannot be used for SMTP (RFC 7672 3.1.3).
func pkixTLSA(tls.Certificate) []string {
	return []string{"1 1 1 " + strings.Repeat("AB", sha256.Size)}
}

// shortTLSA has a hash of the wrong size.
func shortTLSA(tls.Certificate) []string { return []string{"3 1 1 ABAB"} }

func mixedTLSA(cert tls.Certificate) []string {
	return append(pkixTLSA(cert), append(wrongTLSA(cert), rightTLSA(cert)...)...)
}

func (d *destination) domain() string { return d.name + ".example" }

func (d *destination) reportsTo() string {
	if d.rua != "" {
		return d.rua
	}
	return "tls-" + d.name + "@reports.example"
}

// running is a destination that has its servers.
type running struct {
	destination
	servers []*runningServer // in place of the destination's
}

type runningServer struct {
	server
	mx          *lab.MX // nil if it is down
	ip          string
	certificate tls.Certificate
	tlsaData    []string // of its TLSA records
}

// addDestinations brings the destinations into the world. All of them put their
// mails into the sink's mailbox.
func (w *world) addDestinations(destinations []destination) []*running {
	w.t.Helper()
	w.receives("reports.example")
	var all []*running
	for _, d := range destinations {
		r := w.startDestination(d)
		w.dns.Add(r.zone())
		all = append(all, r)
	}
	return all
}

// startDestination starts the destination's servers and puts its policy onto the
// policy host. It is not in the DNS yet.
func (w *world) startDestination(d destination) *running {
	w.t.Helper()
	r := &running{destination: d}
	for i, s := range d.servers {
		if s.name == "" {
			s.name = fmt.Sprintf("mx%d.%s", i+1, d.domain())
		}
		r.servers = append(r.servers, w.startServer(s))
	}
	if d.sts != "" {
		w.policyHost.SetPolicy(d.domain(), r.policy()...)
	}
	return r
}

func (w *world) startServer(s server) *runningServer {
	w.t.Helper()
	w.servers++
	r := &runningServer{server: s, ip: fmt.Sprintf("203.0.113.%d", 20+w.servers)}
	if s.ipv6 {
		r.ip = fmt.Sprintf("2001:db8:1::%d", 20+w.servers)
	}
	cfg := lab.MXConfig{
		Name: s.name, Addr: net.JoinHostPort(r.ip, "25"), RefuseTLS: s.refuse, BreakTLS: s.garble, Busy: s.busy,
		Mailbox: w.sink.Mailbox,
	}
	if s.cert != nil {
		var err error
		if r.certificate, err = s.cert(w.ca, s.name); err != nil {
			w.t.Fatal(err)
		}
		cfg.Certificate = &r.certificate
	}
	if s.tlsa != nil {
		r.tlsaData = slices.Sorted(slices.Values(s.tlsa(r.certificate)))
	}
	if !s.down {
		r.mx = w.startMX(cfg)
	}
	return r
}

// policy returns the lines of the domain's MTA-STS policy.
func (r *running) policy() []string {
	lines := []string{"version: STSv1", "mode: " + r.sts}
	for _, mx := range r.policyMX() {
		lines = append(lines, "mx: "+mx)
	}
	return append(lines, "max_age: 86400")
}

// policyMX returns the hosts of the domain's MTA-STS policy.
func (r *running) policyMX() []string {
	if r.stsMX != nil {
		return r.stsMX
	}
	var hosts []string
	for _, s := range r.servers {
		hosts = append(hosts, s.name)
	}
	return append(hosts, "*.backup."+r.domain())
}

// zone returns what DNS has of the destination, one record a line.
func (r *running) zone() string {
	var b strings.Builder
	add := func(owner, rr string) { fmt.Fprintf(&b, "%s. 300 IN %s\n", owner, rr) }
	for i, s := range r.servers {
		add(r.domain(), fmt.Sprintf("MX %d %s.", 10+i, s.name))
		rrtype := "A"
		if s.ipv6 {
			rrtype = "AAAA"
		}
		add(s.name, rrtype+" "+s.ip)
		for _, tlsa := range s.tlsaData {
			add("_25._tcp."+s.name, "TLSA "+tlsa)
		}
	}
	records := r.records
	if records == nil {
		records = []string{"v=TLSRPTv1; rua=mailto:" + r.reportsTo()}
	}
	for _, txt := range records {
		add("_smtp._tls."+r.domain(), fmt.Sprintf("TXT %q", txt))
	}
	if r.sts != "" {
		add("_mta-sts."+r.domain(), `TXT "v=STSv1; id=20260101T000000Z;"`)
		add("mta-sts."+r.domain(), "A "+policyHostIP)
	}
	return b.String()
}

// sessions returns what the server saw.
func (s *runningServer) sessions() []lab.Session {
	if s.mx == nil {
		return nil
	}
	return s.mx.Sessions()
}

// events counts the sessions that are to be reported, if any are: those in which
// TLS was tried, or could not be for want of STARTTLS.
func (s *runningServer) events() int {
	n := 0
	for _, session := range s.sessions() {
		if session.StartTLS || s.cert == nil {
			n++
		}
	}
	return n
}

// outcome returns what reports must say of each session, "" for nothing.
func (s *server) outcome(v version) string {
	if want, ok := s.but[v.way]; ok {
		return want
	}
	return s.want
}

// findings returns what reports must say of what the policy daemon found out.
func (s *server) findings(v version) string {
	if s.found == mxOutside && !s.shunned.holds(v) {
		return "" // the session tells
	}
	return s.found
}
