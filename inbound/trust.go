package inbound

import (
	"cmp"
	"log/slog"
	"slices"
	"strings"
	"time"

	"ruapost"
	"ruapost/authres"
)

// upstream is what the milters before this one found out about a message. What they
// have not is to be verified here.
type upstream struct {
	spf  *ruapost.SPFResult // nil if they have no result of the message's identity
	dkim []signature        // of these they have results
	// foundDKIM says that they have a result of DKIM, and be it that there is no
	// signature.
	foundDKIM bool
	arc       ruapost.AuthResult // none, pass or fail; empty if they say nothing
}

// readUpstream takes the results of SPF, DKIM and ARC from the Authentication-Results
// fields in a message's header whose authserv-id is a trusted one. identity is what
// SPF is about in this message, whose result is ignored, and signatures are those of the
// message.
//
// Only fields above the first Received field count. Postfix shows milters the header
// without its own Received field; fields that earlier milters inserted and that
// policy services prepended come first, then what the client sent. A milter that adds
// its field at the end of the header is not heard. A client can put fields above its
// own Received field, too, or send none; so of each method only the topmost field
// that has it counts, and nothing below a field that is or may be a trusted one and
// cannot be read. The rest is up to Postfix, which must remove all such fields before a
// milter sees them (header_checks): no milter writes a result in every case.
func readUpstream(header []field, trusted []string, identity ruapost.SPFResult, signatures []signature) upstream {
	fields := trustedFields(header, trusted)
	u := upstream{arc: chainState(topmost(fields, "arc"))}
	if result, ok := spfOf(identity, topmost(fields, "spf")); ok {
		identity.Result = result
		u.spf = &identity
	}
	u.readDKIM(topmost(fields, "dkim"), signatures)
	return u
}

// complainEach is how often it is logged that upstream is silent; it is all counted.
const complainEach = time.Minute

// countUpstream counts what was taken. That nothing was is most likely a mistake in the
// configuration, which nothing else would show.
func (s *Service) countUpstream(u *upstream, queueID string) {
	nothing := true
	for method, taken := range map[string]bool{"spf": u.spf != nil, "dkim": u.foundDKIM, "arc": u.arc != ""} {
		if taken {
			upstreamResults.WithLabelValues(method).Inc()
			nothing = false
		}
	}
	if !nothing {
		return
	}
	upstreamResults.WithLabelValues("nothing").Inc()
	now, last := s.now().Unix(), s.complained.Load()
	if now-last >= int64(complainEach/time.Second) && s.complained.CompareAndSwap(last, now) {
		slog.Warn("milter: no results of the milters before this one; everything is verified here",
			"trusted_authserv_ids", s.config().TrustedAuthservIDs, "queue_id", queueID)
	}
}

// trustedFields returns the fields that may be trusted, the topmost first.
func trustedFields(header []field, trusted []string) []*authres.Field {
	var fields []*authres.Field
	for _, f := range header {
		if f.is("Received") {
			break
		}
		if !strings.EqualFold(f.name, authResField) { // milters put no blank behind it
			continue
		}
		parsed, err := authres.Parse(f.value)
		if err != nil {
			if slices.ContainsFunc(trusted, func(id string) bool { return authres.ClaimsToBe(f.value, id) }) {
				break
			}
			continue
		}
		// Not authres.SameID: a milter removes forgeries in the spellings that it knows, and
		// may leave "mx.example." where it is, as OpenDKIM does.
		if slices.ContainsFunc(trusted, func(id string) bool { return strings.EqualFold(parsed.ID, id) }) {
			fields = append(fields, parsed)
		}
	}
	return fields
}

// topmost returns the results of a method in the topmost field that has any.
func topmost(fields []*authres.Field, method string) []authres.Result {
	for _, f := range fields {
		var results []authres.Result
		for _, r := range f.Results {
			if r.Method == method {
				results = append(results, r)
			}
		}
		if results != nil {
			return results
		}
	}
	return nil
}

// spfOf returns the result about the identity: that another name passed, such as the
// HELO name of mail that has a return path, says nothing about it (CVE-2019-20790).
func spfOf(identity ruapost.SPFResult, results []authres.Result) (result ruapost.AuthResult, found bool) {
	if identity.Domain == "" {
		return ruapost.AuthNone, results != nil // RFC 7208 4.3, whatever they say
	}
	name := spfProperty(&identity)
	for _, r := range results {
		if domainIn(only(r.Values("smtp", name))) == identity.Domain {
			return resultWord(r.Value), true
		}
		if r.Value == "none" && !slices.ContainsFunc(r.Properties, func(p authres.Property) bool { return p.Type == "smtp" }) {
			return ruapost.AuthNone, true // as rspamd writes it, and no pass of another name
		}
	}
	return "", false
}

// domainIn returns the domain of a property, which is an address, "@" and a domain, or
// a domain; empty if it is none of these.
func domainIn(value string) string {
	return domainOf("@" + strings.TrimSuffix(strings.TrimPrefix(value, "<"), ">"))
}

// readDKIM takes the results of signatures. Those that lack the domain count as if
// they were not there; one whose domain is none is the result of no signature that
// anybody could be aligned with.
func (u *upstream) readDKIM(results []authres.Result, signatures []signature) {
	for _, r := range results {
		if r.Value == "none" {
			u.foundDKIM = true
			continue
		}
		domains := r.Values("header", "d")
		if domains == nil {
			domains = signersFor(only(r.Values("header", "i")), signatures)
		}
		u.foundDKIM = u.foundDKIM || domains != nil
		if domain := domainIn(only(domains)); domain != "" {
			u.dkim = append(u.dkim, upstreamSignature(domain, &r, signatures))
		}
	}
}

// signersFor returns the domain of the signature that is of an identity (i=), which is
// that of the signature or below it (RFC 6376 3.5); none if it can be several.
func signersFor(identity string, signatures []signature) (domains []string) {
	name := domainIn(identity)
	for _, s := range signatures {
		if name != "" && ruapost.Within(name, s.domain) && !slices.Contains(domains, s.domain) {
			domains = append(domains, s.domain)
		}
	}
	if len(domains) > 1 {
		return nil
	}
	return domains
}

// upstreamSignature is the result r about a signature of domain. The reason stays
// where it is: it may be anything, and in reports rows that differ in it do not add
// up.
func upstreamSignature(domain string, r *authres.Result, signatures []signature) signature {
	s := signature{
		domain:    domain,
		algorithm: ruapost.Clean(only(r.Values("header", "a")), 32),
		b:         ruapost.Clean(only(r.Values("header", "b")), 8),
		result:    resultWord(r.Value),
	}
	if s.result == ruapost.AuthSoftfail { // amavisd-new, of DKIM too
		s.result = ruapost.AuthNeutral
	}
	var err error
	if s.selector, err = ruapost.ParseSelector(only(r.Values("header", "s"))); err != nil {
		s.selector = findSelector(&s, signatures)
	}
	return s
}

// findSelector returns the selector that a result lacks and reports must have
// (RFC 9990 Appendix A): that of the message's signature that it is about. If none
// fits, or several with different selectors do, it is empty, as is the element in the
// report then.
func findSelector(s *signature, signatures []signature) string {
	selector := ""
	for _, sig := range signatures {
		if sig.domain != s.domain || !strings.HasPrefix(sig.b, s.b) {
			continue
		}
		if selector != "" && selector != sig.selector {
			return ""
		}
		selector = sig.selector
	}
	return selector
}

// chainState returns the state of the ARC chain. Everything but pass and none is a
// failure (RFC 8617 5.2).
func chainState(results []authres.Result) ruapost.AuthResult {
	var state ruapost.AuthResult
	for _, r := range results {
		result := ruapost.AuthResult(r.Value)
		if result != ruapost.AuthPass && result != ruapost.AuthNone {
			return ruapost.AuthFail
		}
		state = cmp.Or(state, result)
	}
	return state
}

// resultWord returns the result that a word stands for. Some software has other words
// than RFC 8601 2.7; those that nobody knows count as neutral.
func resultWord(word string) ruapost.AuthResult {
	switch result := ruapost.AuthResult(word); result {
	case ruapost.AuthNone, ruapost.AuthPass, ruapost.AuthFail, ruapost.AuthSoftfail, ruapost.AuthPolicy,
		ruapost.AuthNeutral, ruapost.AuthTemperror, ruapost.AuthPermerror:
		return result
	case "hardfail", "reject": // RFC 5451; rspamd
		return ruapost.AuthFail
	case "error", "tempfail":
		return ruapost.AuthTemperror
	case "unknown", "permfail", "invalid":
		return ruapost.AuthPermerror
	}
	return ruapost.AuthNeutral
}

// only returns the value that a property has, empty if it has none or several.
func only(values []string) string {
	if len(values) != 1 {
		return ""
	}
	return values[0]
}
