package maillog

import (
	"net/netip"
	"strconv"
	"strings"

	"ruapost"
)

// Bounds on what is taken from a line.
const (
	maxReason = 255 // octets of a failure reason
	// maxResult is the length of a result line from which on it may be one that
	// Postfix cut (MSG_SYSLOG_RECLEN, 2,000), so that it lacks what is looked for.
	maxResult = 1990
	// maxFields is how many name=value fields a result line may have. Postfix 3.12
	// has six.
	maxFields = 16
)

// relay is a server as Postfix writes it: "host[ip]" or "host[ip]:port".
type relay struct {
	host string // as ruapost.ParseDomain gives it, or empty
	ip   netip.Addr
	port uint16 // 0 if the line did not say it
}

// is says whether both are the same server; not all lines have the port.
func (r relay) is(other relay) bool {
	return r.ip.IsValid() && r.ip == other.ip && r.host == other.host
}

// cutRelay cuts a server from the beginning of s. The host is lower case in the lines
// about TLS and as in the DNS in the results.
func cutRelay(s string) (r relay, rest string, ok bool) {
	host, after, ok := strings.Cut(s, "[")
	if !ok {
		return relay{}, s, false
	}
	address, rest, ok := strings.Cut(after, "]")
	if !ok {
		return relay{}, s, false
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return relay{}, s, false // such as a UNIX-domain socket
	}
	r.ip = ip.Unmap().WithZone("")
	if domain, err := ruapost.ParseDomain(host); err == nil {
		r.host = strings.Clone(domain) // or a whole batch of lines would stay in memory
	}
	if digits, ok := strings.CutPrefix(rest, ":"); ok {
		end := 0
		for end < len(digits) && digits[end] >= '0' && digits[end] <= '9' {
			end++
		}
		if port, err := strconv.ParseUint(digits[:end], 10, 16); err == nil {
			r.port, rest = uint16(port), digits[end:]
		}
	}
	return r, rest, true
}

// cutQueueID cuts "QID: ". Short ones are hexadecimal; long ones have digits and
// consonants (enable_long_queue_ids), so that "warning: " and its like are none.
func cutQueueID(text string) (id, rest string, ok bool) {
	colon := strings.IndexByte(text[:min(len(text), 32)], ':')
	if colon < 6 || !strings.HasPrefix(text[colon:], ": ") {
		return "", "", false
	}
	short, long := true, colon >= 10
	for i := range colon {
		c := text[i]
		digit := c >= '0' && c <= '9'
		short = short && (digit || c >= 'A' && c <= 'F')
		long = long && (digit || strings.IndexByte("BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz", c) >= 0)
	}
	return text[:colon], text[colon+2:], short || long
}

// summary is a line about a connection with TLS:
//
//	Trusted TLS connection established to mx.example[192.0.2.1]:25: TLSv1.3 with cipher C (256/256 bits) …
//	Trusted TLS connection reused to mx.example[192.0.2.1]:25: …
type summary struct {
	relay   relay
	peer    Peer
	reused  bool // it is an older connection
	resumed bool // it is a new one of an older TLS session
}

func parseSummary(text string) (s summary, ok bool) {
	word, rest, _ := strings.Cut(text, " ")
	switch s.peer = Peer(word); s.peer {
	case PeerAnonymous, PeerUntrusted, PeerTrusted, PeerVerified:
	default:
		return s, false
	}
	if rest, ok = strings.CutPrefix(rest, "TLS connection "); !ok {
		return s, false
	}
	how, rest, _ := strings.Cut(rest, " to ")
	s.peer = Peer(strings.Clone(word))
	s.reused = how == "reused"
	if !s.reused && how != "established" {
		return s, false
	}
	if s.relay, rest, ok = cutRelay(rest); !ok {
		return s, false
	}
	// Each full handshake of TLS 1.3 has a signature. Postfix says nothing of those of
	// earlier versions, with which a resumed session cannot be told from a new one.
	s.resumed = strings.HasPrefix(rest, ": TLSv1.3 ") && !strings.Contains(rest, " server-signature ")
	return s, true
}

// parseVerifyError reads what was wrong with a certificate. It is logged at any level
// of logging if the policy wants the certificate verified:
//
//	server certificate verification failed for mx.example[192.0.2.1]:25: certificate has expired
//	certificate verification failed for mx.example[192.0.2.1]:25: untrusted issuer /CN=…
//
// The result is what Postfix 3.10 reports, with the names of OpenSSL 3 as reasons.
func parseVerifyError(text string) (r relay, f ruapost.TLSFailure, ok bool) {
	text = strings.TrimPrefix(text, "server ")
	text = strings.TrimPrefix(text, "CA ")
	if text, ok = strings.CutPrefix(text, "certificate verification failed for "); !ok {
		return r, f, false
	}
	r, text, ok = cutRelay(text)
	if !ok {
		return r, f, false
	}
	text, ok = strings.CutPrefix(text, ": ")
	return r, verifyFailure(text), ok
}

func verifyFailure(text string) ruapost.TLSFailure {
	invalid := func(reason string) ruapost.TLSFailure {
		return ruapost.TLSFailure{Result: ruapost.ResultValidationFailure, Reason: reason}
	}
	switch {
	case text == "not trusted by local or TLSA policy":
		return ruapost.TLSFailure{Result: ruapost.ResultCertificateNotTrusted}
	case text == "certificate has expired":
		return ruapost.TLSFailure{Result: ruapost.ResultCertificateExpired}
	case text == "certificate not yet valid":
		return invalid("certificate_is_not_yet_valid")
	case text == "self-signed certificate":
		return invalid("self-signed_certificate")
	case strings.HasPrefix(text, "untrusted issuer "): // or a self-signed one in the chain
		return invalid("unable_to_get_local_issuer_certificate")
	case strings.HasPrefix(text, "not designated for use as a "):
		return invalid("unsuitable_certificate_purpose")
	case strings.HasPrefix(text, "certificate chain longer than limit"):
		return invalid("certificate_chain_too_long")
	case strings.HasPrefix(text, "external policy failure ("): // policy_failure of Postfix 3.10
		return policyFailure(strings.TrimSuffix(text[len("external policy failure ("):], ")"))
	case strings.HasPrefix(text, "num=62:"): // X509_V_ERR_HOSTNAME_MISMATCH
		return ruapost.TLSFailure{Result: ruapost.ResultCertificateHostMismatch}
	case strings.HasPrefix(text, "num=65:"): // X509_V_ERR_DANE_NO_MATCH
		return ruapost.TLSFailure{Result: ruapost.ResultCertificateNotTrusted}
	}
	_, text, _ = strings.Cut(text, ":")
	reason := strings.ReplaceAll(ruapost.Clean(text, maxReason), " ", "_")
	return ruapost.TLSFailure{Result: ruapost.ResultCertificateNotTrusted, Reason: reason}
}

// policyFailure takes a result type in RFC 8460's words, whether written with "-" or,
// as in the lines beginning with TLSRPT, with "_".
func policyFailure(word string) ruapost.TLSFailure {
	switch result := ruapost.TLSResultType(strings.ReplaceAll(word, "_", "-")); result {
	case ruapost.ResultStartTLSNotSupported, ruapost.ResultCertificateHostMismatch,
		ruapost.ResultCertificateExpired, ruapost.ResultCertificateNotTrusted,
		ruapost.ResultValidationFailure, ruapost.ResultTLSAInvalid,
		ruapost.ResultDNSSECInvalid, ruapost.ResultDANERequired,
		ruapost.ResultSTSPolicyFetchError, ruapost.ResultSTSPolicyInvalid,
		ruapost.ResultSTSWebPKIInvalid:
		return ruapost.TLSFailure{Result: ruapost.TLSResultType(strings.Clone(string(result)))}
	}
	return ruapost.TLSFailure{Result: ruapost.ResultValidationFailure, Reason: ruapost.Clean(word, maxReason)}
}

// told is what Postfix 3.10 logs beside each TLSRPT datagram, whether or not it could
// be sent:
//
//	TLSRPT: status=success, domain=example, receiving_mx=mx.example[192.0.2.1]
//	TLSRPT: status=failure, domain=example, receiving_mx=mx.example[192.0.2.1], failure_type=validation_failure, failure_reason=self-signed_certificate
type told struct {
	relay   relay
	failure ruapost.TLSFailure
	// unfinished says that the policy was not evaluated to the end: no verdict.
	unfinished bool
}

func parseTold(text string) (t told, ok bool) {
	text, ok = strings.CutPrefix(text, "TLSRPT: status=")
	if !ok {
		return t, false
	}
	status, text, _ := strings.Cut(text, ", domain=")
	_, text, _ = strings.Cut(text, ", receiving_mx=")
	t.relay, text, ok = cutRelay(text)
	if status == "success" || !ok {
		return t, ok
	}
	kind, ok := strings.CutPrefix(text, ", failure_type=")
	kind, reason, _ := strings.Cut(kind, ", failure_reason=")
	if strings.EqualFold(kind, "unfinished_policy") { // Postfix writes "unfinished_policY"
		t.unfinished = true
		return t, ok
	}
	t.failure = policyFailure(kind)
	if reason != "" {
		t.failure.Reason = ruapost.Clean(reason, maxReason)
	}
	return t, ok && status == "failure"
}

// parseHandshakeError reads
//
//	SSL_connect error to mx.example[192.0.2.1]:25: lost connection
func parseHandshakeError(text string) (relay, bool) {
	text, ok := strings.CutPrefix(text, "SSL_connect error to ")
	if !ok {
		return relay{}, false
	}
	r, _, ok := cutRelay(text)
	return r, ok
}

// parseUnusable reads that nothing in the policy can be used to verify a certificate.
// Postfix reports that as the session's failure, whatever becomes of it:
//
//	warning: mx.example[192.0.2.1]:25: all TLSA records unusable, fallback to unauthenticated TLS
func parseUnusable(text string) (r relay, f ruapost.TLSFailure, ok bool) {
	text, ok = strings.CutPrefix(text, "warning: ")
	if !ok {
		return r, f, false
	}
	if r, text, ok = cutRelay(text); !ok {
		return r, f, false
	}
	what, _, _ := strings.Cut(strings.TrimPrefix(text, ": "), ",")
	switch what {
	case "all TLSA records unusable":
		f.Result = ruapost.ResultTLSAInvalid
	case "all trust anchors unusable", "all fingerprints unusable":
		f.Result = ruapost.ResultValidationFailure
	default:
		return r, f, false
	}
	f.Reason = strings.ReplaceAll(what, " ", "-")
	return r, f, true
}

// parseProblem reads a policy's refusal of a mail server, with the next-hop domain:
//
//	warning: MX name 'mx.example' does not match STS MX pattern for 'example'
//	warning: TLS policy lookup for example/mx.example: non DNSSEC destination
//
// Others such as "client TLS configuration problem" are the sender's own.
func parseProblem(text string) (domain string, f ruapost.TLSFailure, ok bool) {
	text, ok = strings.CutPrefix(text, "warning: ")
	if !ok {
		return "", f, false
	}
	if text, ok := strings.CutPrefix(text, "MX name '"); ok {
		mx, domain, ok := strings.Cut(text, "' does not match STS MX pattern for '")
		f.Result, f.Reason = ruapost.ResultValidationFailure, ReasonMXMismatch
		return problem(mx, strings.TrimSuffix(domain, "'"), f, ok)
	}
	text, ok = strings.CutPrefix(text, "TLS policy lookup ")
	text = strings.TrimPrefix(text, "error ") // Postfix 3.10
	text, found := strings.CutPrefix(text, "for ")
	names, reason, _ := strings.Cut(text, ": ")
	domain, mx, split := strings.Cut(names, "/")
	switch {
	case reason == "non DNSSEC destination", reason == "no TLSA records found":
		f.Result = ruapost.ResultDANERequired // RFC 8460 4.3.2.1: no authenticated TLSA records
	case reason == "TLSA records unusable":
		f.Result = ruapost.ResultTLSAInvalid
	case strings.HasPrefix(reason, "TLSA lookup error for "):
		f.Result, reason = ruapost.ResultDNSSECInvalid, "TLSA lookup error"
	default:
		return "", f, false
	}
	f.Reason = strings.ReplaceAll(ruapost.Clean(reason, maxReason), " ", "-")
	return problem(mx, domain, f, ok && found && split)
}

// ReasonMXMismatch is the Failure.Reason of a mail server that an STS policy does not
// name (RFC 8461 4.1). RFC 8460 has no result type for it.
const ReasonMXMismatch = "mx-mismatch"

func problem(mx, domain string, f ruapost.TLSFailure, ok bool) (string, ruapost.TLSFailure, bool) {
	host, err := ruapost.ParseDomain(mx)
	if err != nil || !ok {
		return "", f, false
	}
	f.ReceivingMX = strings.Clone(host)
	domain, err = ruapost.ParseDomain(domain)
	return strings.Clone(domain), f, err == nil
}

// result is what became of a recipient:
//
//	QID: to=<a@example>, orig_to=<b>, relay=mx.example[192.0.2.1]:25, conn_use=2, delay=1, delays=0.5/0/0.4/0.1, tls=may, dsn=2.0.0, status=sent (250 Ok)
type result struct {
	relay  relay  // zero if there was no connection
	domain string // empty if the address has none
	// waited is the time before the queue manager and in it, as written. It is the
	// same for all recipients of a delivery, and more for a later one.
	waited string
	tls    string // since Postfix 3.11, empty if not there
	status string
	text   string
}

// parseResult reads what follows the queue ID. Recipients and servers choose what
// stands between "<" and ">" and in the parentheses at the end, which may look like
// fields. It is read from the left, where nothing of the server's can come before
// the fields that count. A local part that Postfix does not put into quotation marks
// (3.4, and info_log_address_format=internal) can; then the true fields follow
// somewhere, and the line is not to be relied on.
func parseResult(text string) (r result, ok bool) {
	if len(text) > maxResult || !strings.HasSuffix(text, ")") {
		return r, false
	}
	address, rest, ok := cutAddress(text, "to=<")
	if !ok {
		return r, false
	}
	if _, after, ok := cutAddress(rest, ", orig_to=<"); ok {
		rest = after
	}
	if strings.Contains(rest, ">, relay=") {
		return r, false
	}
	if at := strings.LastIndexByte(address, '@'); at >= 0 {
		if domain, err := ruapost.ParseDomain(address[at+1:]); err == nil {
			r.domain = strings.Clone(domain)
		}
	}
	return r, r.fields(rest)
}

// fields reads ", name=value" until after the status.
func (r *result) fields(rest string) bool {
	for range maxFields {
		var ok bool
		if rest, ok = strings.CutPrefix(rest, ", "); !ok {
			return false
		}
		name, after, ok := strings.Cut(rest, "=")
		if !ok {
			return false
		}
		if name == "status" {
			r.status, after, ok = strings.Cut(after, " (")
			r.text = strings.TrimSuffix(after, ")")
			return ok && !strings.ContainsAny(r.status, " ,=") && r.waited != ""
		}
		end := strings.Index(after, ", ")
		if end < 0 || strings.ContainsAny(name, " ,()<>") {
			return false
		}
		value := after[:end]
		rest = after[end:]
		switch name {
		case "relay":
			r.relay, _, _ = cutRelay(value)
		case "delays":
			parts := strings.Split(value, "/")
			if len(parts) != 4 {
				return false
			}
			r.waited = parts[0] + "/" + parts[1]
		case "tls":
			r.tls = value
		}
	}
	return false
}

// cutAddress cuts prefix, an address and ">". In quotation marks ">" is no end.
func cutAddress(s, prefix string) (address, rest string, ok bool) {
	if s, ok = strings.CutPrefix(s, prefix); !ok {
		return "", "", false
	}
	end := 0
	if strings.HasPrefix(s, `"`) {
		for end = 1; end < len(s) && s[end] != '"'; end++ {
			if s[end] == '\\' {
				end++
			}
		}
	}
	if end >= len(s) {
		return "", "", false
	}
	n := strings.IndexByte(s[end:], '>')
	if n < 0 {
		return "", "", false
	}
	return s[:end+n], s[end+n+1:], true
}

// plaintext says whether the tls field, "[!]desired[:final][?][/feature…]", says that
// there was no TLS.
func plaintext(field string) bool {
	field, _, _ = strings.Cut(field, "/")
	field = strings.Trim(field, "!?()")
	return field == "none" || strings.HasSuffix(field, ":none")
}
