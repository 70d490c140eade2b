package tlsrpt

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"ruapost"
)

// Bounds on what a datagram may hold. Postfix sends one policy with at most one
// failure; the other numbers leave room for any policy that can work.
const (
	// MaxDatagram is the longest datagram that ParseDatagram takes, in octets.
	// Linux does not pass on longer ones with its default settings.
	MaxDatagram = 256 << 10

	maxPolicies     = 16   // more are an error
	maxFailures     = 64   // per policy; more are dropped, the session counts all the same
	maxPolicyLines  = 512  // policy strings and MX patterns per policy; more are dropped
	maxPolicyString = 8192 // octets, enough for a TLSA record with a whole certificate
	maxReason       = 255  // octets of a failure reason or EHLO name
	maxAdditional   = 1024 // octets of additional information
)

// All types of RFC 8460 4.2 and 4.3 by the codes that stand for them in datagrams
// (libtlsrpt, datagram protocol version 1).
var (
	policyTypes = map[int]ruapost.TLSPolicyType{
		1: ruapost.PolicyTLSA,
		2: ruapost.PolicySTS,
		9: ruapost.PolicyNone,
	}
	resultTypes = map[int]ruapost.TLSResultType{
		201: ruapost.ResultStartTLSNotSupported,
		202: ruapost.ResultCertificateHostMismatch,
		203: ruapost.ResultCertificateNotTrusted,
		204: ruapost.ResultCertificateExpired,
		205: ruapost.ResultValidationFailure,
		301: ruapost.ResultSTSPolicyFetchError,
		302: ruapost.ResultSTSPolicyInvalid,
		303: ruapost.ResultSTSWebPKIInvalid,
		304: ruapost.ResultTLSAInvalid,
		305: ruapost.ResultDNSSECInvalid,
		306: ruapost.ResultDANERequired,
	}
)

// codeUnfinished marks a policy whose evaluation the sender did not finish. It
// says nothing about the receiver and is not reported.
const codeUnfinished = 901

// datagram is the wire form. The keys "pr", the TLSRPT record at the time, and
// "t", the number of failures, are not read: the record is looked up when the
// report is sent, and the failures are counted here.
type datagram struct {
	Version  *string          `json:"dpv"`
	Domain   string           `json:"d"`
	Policies []datagramPolicy `json:"policies"`
}

type datagramPolicy struct {
	Type     int               `json:"policy-type"`
	Domain   string            `json:"policy-domain"`
	Strings  []string          `json:"policy-string"`
	MXHosts  []string          `json:"mx-host"`
	Failures []datagramFailure `json:"failure-details"`
	Final    *int              `json:"f"`
}

type datagramFailure struct {
	Code       int    `json:"c"`
	SendingIP  string `json:"s"`
	MX         string `json:"n"`
	EHLO       string `json:"h"`
	MXIP       string `json:"r"`
	Additional string `json:"a"`
	Reason     string `json:"f"`
}

// ParseDatagram returns the sessions, one for each policy, that a datagram of
// Postfix's TLSRPT client tells of, without their Time.
//
// Text in the sessions is clean, domain names and IP addresses are valid and
// normalised; a failure's name or address that is not valid is left out. It is
// an error if the datagram is longer than MaxDatagram, is not JSON of the right
// types, has another protocol version than 1, or if the domain, a policy's type,
// domain or final result is missing or not valid; a policy without a domain has
// that of the datagram.
func ParseDatagram(data []byte) ([]ruapost.Session, error) {
	sessions, err := parseDatagram(data)
	if err != nil {
		// The errors of encoding/json may quote the input at any length.
		return nil, fmt.Errorf("tlsrpt: datagram: %s", ruapost.Clean(err.Error(), 256))
	}
	return sessions, nil
}

func parseDatagram(data []byte) ([]ruapost.Session, error) {
	if len(data) > MaxDatagram {
		return nil, fmt.Errorf("longer than %d octets", MaxDatagram)
	}
	var d datagram
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, err
	}
	if d.Version != nil && *d.Version != "1" { // libtlsrpt before 0.5.0 sends none
		return nil, fmt.Errorf("protocol version %q", *d.Version)
	}
	domain, err := ruapost.ParseDomain(d.Domain)
	if err != nil {
		return nil, err
	}
	if len(d.Policies) == 0 {
		return nil, errors.New("no policies")
	}
	if len(d.Policies) > maxPolicies {
		return nil, fmt.Errorf("%d policies", len(d.Policies))
	}
	var sessions []ruapost.Session
	for i := range d.Policies {
		s, err := parsePolicy(domain, &d.Policies[i])
		if err != nil {
			return nil, err
		}
		sessions = append(sessions, s)
	}
	return sessions, nil
}

func parsePolicy(domain string, p *datagramPolicy) (ruapost.Session, error) {
	s := ruapost.Session{Domain: domain}
	var ok bool
	if s.Policy.Type, ok = policyTypes[p.Type]; !ok {
		return s, fmt.Errorf("policy-type %d", p.Type)
	}
	s.Policy.Domain = domain // Postfix before 3.10.5 sends none for no-policy-found
	if p.Domain != "" {
		var err error
		if s.Policy.Domain, err = ruapost.ParseDomain(p.Domain); err != nil {
			return s, err
		}
	}
	switch s.Policy.Type {
	case ruapost.PolicySTS:
		s.Policy.Strings = policyStrings(p.Strings)
		s.Policy.MXHosts = mxPatterns(p.MXHosts)
	case ruapost.PolicyTLSA:
		s.Policy.Strings = policyStrings(p.Strings)
		// Servers rotate the records of an answer; another order is no other policy.
		slices.Sort(s.Policy.Strings)
	}
	if p.Final == nil || *p.Final != 0 && *p.Final != 1 {
		return s, errors.New("final result is neither 0 nor 1")
	}
	s.Failed = *p.Final == 1
	for i := range p.Failures[:min(len(p.Failures), maxFailures)] {
		f := parseFailure(&p.Failures[i])
		// One session counts once for a failure, however often it saw it.
		if f != (ruapost.TLSFailure{}) && !slices.Contains(s.Failures, f) {
			s.Failures = append(s.Failures, f)
		}
	}
	return s, nil
}

func policyStrings(lines []string) []string {
	var clean []string
	for _, line := range lines[:min(len(lines), maxPolicyLines)] {
		if line = ruapost.Clean(line, maxPolicyString); line != "" {
			clean = append(clean, line)
		}
	}
	return clean
}

func mxPatterns(patterns []string) []string {
	var valid []string
	for _, pattern := range patterns[:min(len(patterns), maxPolicyLines)] {
		host, wildcard := strings.CutPrefix(pattern, "*.")
		host = domainOrNothing(host)
		if host == "" {
			continue
		}
		if wildcard {
			host = "*." + host
		}
		valid = append(valid, host)
	}
	return valid
}

// parseFailure returns the zero TLSFailure for one that is not to be reported.
func parseFailure(d *datagramFailure) ruapost.TLSFailure {
	if d.Code == codeUnfinished {
		return ruapost.TLSFailure{}
	}
	f := ruapost.TLSFailure{
		Result:        resultTypes[d.Code],
		SendingIP:     ipOrNothing(d.SendingIP),
		ReceivingMX:   domainOrNothing(d.MX),
		ReceivingIP:   ipOrNothing(d.MXIP),
		ReceivingHelo: ehloName(d.EHLO),
		Additional:    ruapost.Clean(d.Additional, maxAdditional),
		Reason:        ruapost.Clean(d.Reason, maxReason),
	}
	if f.Result == "" {
		f.Result = ruapost.ResultValidationFailure // RFC 8460 4.3.1: anything else
		f.Reason = ruapost.Clean("unknown-code-"+strconv.Itoa(d.Code)+" "+f.Reason, maxReason)
	}
	return f
}

// ehloName returns the name the server calls itself in its reply to EHLO, of
// which Postfix passes on all lines. The rest of the reply must not tell
// failures apart: it may differ from one connection to the next.
func ehloName(reply string) string {
	if end := strings.IndexAny(reply, "\r\n"); end >= 0 {
		reply = reply[:end]
	}
	// RFC 5321 4.1.1.1: the code 250, then "-" or a blank, then the name.
	if rest, ok := strings.CutPrefix(reply, "250"); ok && (rest == "" || rest[0] == '-' || rest[0] == ' ') {
		reply = strings.TrimPrefix(rest, "-")
	}
	words := strings.Fields(ruapost.Clean(reply, 4*maxReason))
	if len(words) == 0 {
		return ""
	}
	if domain := domainOrNothing(words[0]); domain != "" {
		return domain
	}
	return ruapost.Clean(words[0], maxReason) // an address literal, or what the server made up
}

func domainOrNothing(s string) string {
	domain, err := ruapost.ParseDomain(s)
	if err != nil {
		return ""
	}
	return domain
}

func ipOrNothing(s string) string {
	ip, err := netip.ParseAddr(s)
	if err != nil {
		return ""
	}
	return ip.Unmap().WithZone("").String() // a zone means nothing to others
}
