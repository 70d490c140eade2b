package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"blitiri.com.ar/go/spf"

	"ruapost"
	"ruapost/dmarc"
	"ruapost/resolver"
	"ruapost/tlsrpt"
)

// maxHosts bounds the mail servers and addresses that are looked at.
const maxHosts = 10

// checkMX looks whether mail to the reports' domain finds a server: receivers refuse mail
// from domains that cannot be answered, and bounces have to come back.
func (s *sender) checkMX(ctx context.Context) {
	mend := then("Publish a server that takes mail for it, such as:", s.domain+". IN MX 10 mail."+registered(s.domain)+".")
	mxs, _, err := s.host.Resolver.LookupMX(ctx, s.domain)
	var hosts []string
	for _, mx := range mxs[:min(len(mxs), maxHosts)] {
		hosts = append(hosts, mx.Host)
	}
	switch {
	case err != nil && !resolver.IsNotFound(err):
		s.unknown("the mail servers of "+s.domain, err)
	case err != nil:
		s.checkAddress(ctx, mend)
	case len(hosts) == 0:
		s.fault(mend, "the MX records of %s name no hosts: bounces cannot come back, and receivers refuse mail from there", s.domain)
	case slices.Contains(hosts, ""):
		hosts = nil
		s.fault(mend, "%s has a null MX (RFC 7505): bounces cannot come back, and receivers refuse mail from there", s.domain)
	default:
		s.checkHosts(ctx, hosts)
	}
	s.checkTLSRecords(ctx, hosts)
}

// checkAddress looks for what counts without MX records (RFC 5321 5.1).
func (s *sender) checkAddress(ctx context.Context, mend string) {
	_, _, _, err := s.host.Resolver.LookupIP(ctx, s.domain)
	switch {
	case err == nil:
		s.ok("%s has no MX records, its mail goes to its own address", s.domain)
	case resolver.IsNotFound(err):
		s.fault(mend, "%s has neither MX records nor an address: bounces cannot come back, and receivers refuse mail from there", s.domain)
	default:
		s.unknown("the address of "+s.domain, err)
	}
}

// checkHosts looks whether the domain's mail servers have addresses.
func (s *sender) checkHosts(ctx context.Context, hosts []string) {
	found := false
	for _, host := range hosts {
		_, _, _, err := s.host.Resolver.LookupIP(ctx, host)
		switch {
		case err == nil:
			found = true
		case resolver.IsNotFound(err):
			s.warn("Remove it from the MX records, or publish its address.", "%s, a mail server of %s, has no address", host, s.domain)
		default:
			found = true // perhaps
			s.unknown("the address of "+host, err)
		}
	}
	if found {
		s.ok("mail servers of %s: %s", s.domain, strings.Join(hosts, ", "))
		return
	}
	s.fault("", "none of the mail servers of %s has an address: bounces cannot come back", s.domain)
}

// checkTLSRecords tells who is asked for TLS reports about the domain that reports come
// from, and about its mail servers, which are domains of their own for DANE.
func (s *sender) checkTLSRecords(ctx context.Context, hosts []string) {
	want := s.checkTLSRecord(ctx, s.domain, "v=TLSRPTv1; rua=mailto:postmaster@"+s.domain, "asks for reports about TLS with its mail servers")
	for _, host := range hosts {
		switch {
		case host == s.domain:
		case sameOwner(host, s.domain):
			s.checkTLSRecord(ctx, host, want, "the same for this mail server, where DANE is used")
		default:
			s.ok("%s, a mail server of %s, belongs to others: what is at _smtp._tls.%s is theirs to say", host, s.domain, host)
		}
	}
}

// checkTLSRecord tells of the TLSRPT record of a domain, and returns the one to have.
func (s *sender) checkTLSRecord(ctx context.Context, domain, want, why string) string {
	r := Record{Name: "_smtp._tls." + domain, Want: want, Why: why}
	txts, err := s.texts(ctx, r.Name)
	if err != nil {
		s.unknown(r.Name, err)
		s.publish(r, nil, false)
		return want
	}
	rec, err := tlsrpt.ParseRecord(txts)
	mend := then("Publish one:", ZoneLines(r.Name, want)...)
	good := false
	switch {
	case errors.Is(err, tlsrpt.ErrNoRecord):
		s.ok("%s is not published: nobody sends reports about TLS with %s", r.Name, domain)
	case err != nil:
		s.warn(mend, "%s: several TLSRPT records count as none (RFC 8460 3)", r.Name)
	case len(rec.RUA) == 0:
		s.warn(mend, "%s has no destination that can be used", r.Name)
	default:
		good = true
		r.Want = txts[slices.IndexFunc(txts, isTLSRPT)]
		s.ok("%s: %s", r.Name, r.Want)
	}
	s.publish(r, txts, good)
	return r.Want
}

func isTLSRPT(txt string) bool {
	_, err := tlsrpt.ParseRecord([]string{txt})
	return err == nil
}

// checkSPF looks at the SPF record of the domain that reports come from, which is also
// that of their envelope.
func (s *sender) checkSPF(ctx context.Context) {
	txts, err := s.texts(ctx, s.domain)
	if err != nil {
		s.unknown("the SPF record of "+s.domain, err)
		return
	}
	records := slices.DeleteFunc(txts, func(txt string) bool {
		version, _, _ := strings.Cut(txt, " ")
		return !strings.EqualFold(version, "v=spf1") // RFC 7208 4.5
	})
	addrs, why := s.addresses(ctx)
	mend := s.spfMend(addrs)
	switch {
	case len(records) > 1:
		s.fault("Make one of them.", "%s has %d SPF records, which is an error to all receivers (RFC 7208 4.5)", s.domain, len(records))
	case len(records) == 0:
		s.warn(mend, "%s has no SPF record", s.domain)
	case len(addrs) == 0:
		// An address that is nobody's tells whether the record can be read.
		if s.spfResult(ctx, netip.MustParseAddr("192.0.2.1")) == ruapost.AuthPermerror {
			s.fault(mend, "the SPF record of %s has mistakes: %s", s.domain, records[0])
			return
		}
		s.ok("%s has an SPF record; whether reports pass is not known: %s", s.domain, why)
	}
	if len(records) != 1 {
		return
	}
	for _, addr := range addrs {
		switch result := s.spfResult(ctx, addr); result {
		case ruapost.AuthPass:
			s.ok("SPF of %s passes for %v", s.domain, addr)
		case ruapost.AuthPermerror:
			s.fault(mend, "the SPF record of %s has mistakes: %s", s.domain, records[0])
			return
		default:
			s.warn(mend, "SPF of %s is %s for %v, %s", s.domain, result, addr, why)
		}
	}
}

// spfMend returns a record that addrs pass by.
func (s *sender) spfMend(addrs []netip.Addr) string {
	record := "v=spf1"
	for _, addr := range addrs {
		family := " ip6:"
		if addr.Is4() {
			family = " ip4:"
		}
		record += family + addr.String()
	}
	if len(addrs) == 0 {
		record += " mx"
	}
	text := "Publish, with all addresses that mail goes out from:"
	if s.signer != nil {
		text = "DMARC passes by the signature, but some receivers want both. " + text
	}
	return then(text, ZoneLines(s.domain, record+" -all")...)
}

// spfResult returns what receivers get who are sent a report from an address.
func (s *sender) spfResult(ctx context.Context, addr netip.Addr) ruapost.AuthResult {
	// Its error is not nil for every result; the result says all.
	result, _ := spf.CheckHostWithSender(net.IP(addr.AsSlice()), s.hostname(), s.cfg.Reporter.From,
		spf.WithContext(ctx), spf.WithResolver(s.host.Resolver.SPF(addr)))
	if ctx.Err() != nil {
		return ruapost.AuthTemperror
	}
	return ruapost.AuthResult(strings.ToLower(string(result)))
}

// addresses returns the public addresses that mail goes out from, and why those, or why
// they are not known.
func (s *sender) addresses(ctx context.Context) (addrs []netip.Addr, why string) {
	if len(s.host.Addresses) > 0 {
		return s.host.Addresses, "an address of this host"
	}
	if relay := s.mail()["relayhost"]; relay != "" {
		return nil, "mail goes through " + relay
	}
	name := s.hostname()
	found, _, _, err := s.host.Resolver.LookupIP(ctx, name)
	for _, addr := range found {
		if addr.IsGlobalUnicast() && !addr.IsPrivate() && len(addrs) < maxHosts {
			addrs = append(addrs, addr)
		}
	}
	if len(addrs) == 0 {
		return nil, fmt.Sprintf("the DNS has no public address of %s (%v)", name, err)
	}
	return addrs, "an address of " + name
}

// hostname returns the name that Postfix gives in HELO.
func (s *sender) hostname() string {
	if name := s.mail()["myhostname"]; name != "" {
		return name
	}
	name, _ := os.Hostname() // without it nothing is found in the DNS
	return name
}

// checkDMARC looks at the policy that receivers of reports find.
func (s *sender) checkDMARC(ctx context.Context) {
	name := "_dmarc." + s.domain
	txts, err := s.texts(ctx, name)
	if err != nil {
		s.unknown(name, err)
		return
	}
	own := slices.DeleteFunc(slices.Clone(txts), func(txt string) bool {
		_, err := dmarc.ParseRecord(txt)
		return err != nil
	})
	r := Record{Name: name, Want: s.wantedDMARC(own), Why: "the DMARC policy of reports (p=none if " + s.domain + " sends other mail that may fail)"}
	mend := then("Publish:", ZoneLines(name, r.Want)...)
	evaluator := &dmarc.Evaluator{Resolver: s.host.Resolver}
	v := evaluator.Evaluate(ctx, s.domain, nil, ruapost.SPFResult{})
	p := v.Policy
	switch {
	case len(own) > 1:
		s.fault(mend, "%s has %d DMARC records, which count as none (RFC 9989 4.10)", name, len(own))
	case v.Result == dmarc.ResultPermerror:
		s.fault(mend, "the DMARC record of %s is useless: %v", s.domain, v.Err)
	case p == nil && v.Err != nil:
		s.unknown("the DMARC record of "+s.domain, v.Err)
		return
	case p == nil:
		s.warn(mend, "%s has no DMARC record, nor has a domain above it: reports must pass DMARC (RFC 9990 3.5.2), which they cannot without", s.domain)
	default:
		s.checkPolicy(p, mend)
	}
	if p == nil || p.Published.Domain == s.domain || s.loops(p) { // else what is above will do
		s.publish(r, txts, len(own) == 1 && own[0] == r.Want)
	}
	if p != nil && !s.loops(p) {
		s.checkDestinations(ctx, p)
	}
}

// wantedDMARC returns the DMARC record to have instead of those that are there: the same
// if it serves.
func (s *sender) wantedDMARC(own []string) string {
	if len(own) == 1 {
		rec, err := dmarc.ParseRecord(own[0])
		switch {
		case err != nil || rec.Policy == "":
		case len(rec.Flaws) > 0:
			return "v=DMARC1; p=" + string(rec.Policy)
		case len(rec.RUA) > 0 && s.isSubdomain():
			return withoutTag(own[0], "rua")
		default:
			return own[0]
		}
	}
	if s.isSubdomain() && s.signer != nil {
		return "v=DMARC1; p=reject"
	}
	return "v=DMARC1; p=none" // the domain may have other mail
}

func (s *sender) isSubdomain() bool { return registered(s.domain) != s.domain }

// loops says whether the policy asks for reports about reports, and need not.
func (s *sender) loops(p *dmarc.Policy) bool { return len(p.Record.RUA) > 0 && s.isSubdomain() }

// checkPolicy tells of a policy what matters to reports.
func (s *sender) checkPolicy(p *dmarc.Policy, mend string) {
	at := "_dmarc." + p.Published.Domain
	if p.Published.Error != "" {
		s.warn("Mend it.", "%s has mistakes: %s", at, p.Published.Error)
	}
	const loop = "whoever gets a report sends one about it, and gets one about that"
	switch {
	case s.loops(p) && p.Published.Domain == s.domain:
		s.warn(mend, "%s has rua, which a subdomain for reports should not: %s", at, loop)
	case s.loops(p):
		s.warn(mend, "%s, which counts for %s, has rua: %s. A record of its own without rua ends that", at, s.domain, loop)
	case len(p.Record.RUA) > 0:
		s.ok("%s has rua: %s. Reports from a subdomain would end that, see docs/identity.md", at, loop)
	}
	if p.Effective != ruapost.DispositionNone && s.cfg.DKIM.Domain == "" {
		s.warn(keygenMend, "%s asks receivers to %s what fails, and reports are not signed: they get lost wherever SPF does not pass, as behind forwarders",
			at, p.Effective)
		return
	}
	s.ok("the DMARC policy for %s is %s, by %s", s.domain, p.Effective, at)
}

// checkDestinations looks whether others agree to get the reports about the reports'
// domain that its own record sends them (RFC 9990 4).
func (s *sender) checkDestinations(ctx context.Context, p *dmarc.Policy) {
	for _, u := range p.Record.RUA {
		if u.Scheme != "mailto" || sameOwner(u.Host, p.Published.Domain) {
			continue
		}
		r := Record{Name: p.Published.Domain + "._report._dmarc." + u.Host, Want: "v=DMARC1", Why: "to be published by " + u.Host + ", which gets reports about " + p.Published.Domain}
		accepted, _, err := dmarc.ExternalDestination(ctx, s.host.Resolver, p.Published.Domain, u)
		switch {
		case err != nil:
			s.unknown("whether "+u.Host+" takes reports about "+p.Published.Domain, err)
		case accepted:
			s.ok("%s takes reports about %s", u.Host, p.Published.Domain)
		default:
			s.warn(then("Ask "+u.Host+" to publish:", ZoneLines(r.Name, r.Want)...),
				"rua of _dmarc.%s names %s, which does not agree to that: nobody sends reports there (RFC 9990 4)", p.Published.Domain, u.Host)
		}
		if txts, _ := s.texts(ctx, r.Name); len(txts) > 0 || !accepted { // its error is told above
			s.publish(r, txts, accepted)
		}
	}
}

// withoutTag returns a tag list without a tag.
func withoutTag(list, tag string) string {
	var kept []string
	for spec := range strings.SplitSeq(list, ";") {
		name, _, _ := strings.Cut(spec, "=")
		if spec = strings.Trim(spec, blanks); spec != "" && !strings.EqualFold(strings.Trim(name, blanks), tag) {
			kept = append(kept, spec)
		}
	}
	return strings.Join(kept, "; ")
}
