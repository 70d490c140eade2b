package ruapost

import (
	"net/netip"
	"time"
)

// Disposition is a policy a domain asks for, or what was really done with a
// message (RFC 9989 4.7, RFC 9990 Appendix A).
type Disposition string

const (
	DispositionNone       Disposition = "none"
	DispositionQuarantine Disposition = "quarantine"
	DispositionReject     Disposition = "reject"
	// DispositionPass stands only in results: the message passed DMARC under a
	// policy of quarantine or reject (RFC 9990 Appendix A). RFC 7489 has no such
	// value; its reports say none.
	DispositionPass Disposition = "pass"
)

// Alignment is the mode in which an authenticated domain is compared with the
// author domain (RFC 9989 4.4).
type Alignment string

const (
	Relaxed Alignment = "r"
	Strict  Alignment = "s"
)

// AuthResult is the outcome of SPF or DKIM in the words of RFC 8601 2.7.
type AuthResult string

const (
	AuthNone      AuthResult = "none"
	AuthPass      AuthResult = "pass"
	AuthFail      AuthResult = "fail"
	AuthSoftfail  AuthResult = "softfail" // SPF only
	AuthPolicy    AuthResult = "policy"
	AuthNeutral   AuthResult = "neutral"
	AuthTemperror AuthResult = "temperror"
	AuthPermerror AuthResult = "permerror"
)

// OverrideType says why the disposition differs from the policy
// (RFC 9990 Appendix A, PolicyOverrideType).
type OverrideType string

const (
	OverrideLocalPolicy      OverrideType = "local_policy"
	OverrideMailingList      OverrideType = "mailing_list"
	OverrideOther            OverrideType = "other"
	OverridePolicyTestMode   OverrideType = "policy_test_mode" // RFC 9990 only
	OverrideTrustedForwarder OverrideType = "trusted_forwarder"
	OverrideForwarded        OverrideType = "forwarded"   // RFC 7489 only
	OverrideSampledOut       OverrideType = "sampled_out" // RFC 7489 only
)

// Evaluation is what DMARC made of one inbound message. Evaluations of one
// Window with the same Policy make up one report; those that also agree in
// Result are one row of it, with a count.
type Evaluation struct {
	// Time is when the message was judged; it decides the Window.
	Time time.Time
	// Interval is the length of the Window, which divides 24 hours: a domain may ask
	// for reports more often than daily (RFC 7489 6.3, ri). 0 is a day.
	Interval time.Duration
	// Policy is the policy that applied, as published.
	Policy DMARCPolicy
	// Optional evaluations are reported if the report is sent anyway, but never
	// cause a report by themselves.
	Optional bool
	// OrganizationalDomain is that of the author domain, empty if the DNS did not
	// tell. A message that passed DMARC makes it a known one.
	OrganizationalDomain string
	// OptionalIfUnknown makes the evaluation Optional if OrganizationalDomain is not
	// known when it is recorded: no message from there passed here in the last 30 days,
	// and none was sent there in the last 90.
	OptionalIfUnknown bool
	// Result is all that a report says about the message.
	Result DMARCResult
}

// DMARCPolicy is a published policy and where it was found: the
// policy_published element of a report. All of it but Domain and Discovery are
// the record's values or their defaults.
type DMARCPolicy struct {
	// Domain is the policy domain: the name, without _dmarc, where the record
	// was found, which may be above the author domain (RFC 9989 3.2.5).
	Domain string `json:"domain"`
	// P, SP and NP are what the domain asks for itself, its subdomains and its
	// subdomains that do not exist. SP and NP are empty if not published.
	P  Disposition `json:"p"`
	SP Disposition `json:"sp,omitempty"`
	NP Disposition `json:"np,omitempty"`
	// ADKIM and ASPF are the alignment modes.
	ADKIM Alignment `json:"adkim"`
	ASPF  Alignment `json:"aspf"`
	// FO is the failure reporting option string, "0" if not published.
	FO string `json:"fo"`
	// Testing is the t tag: true asks that the policy not be applied as such.
	Testing bool `json:"testing,omitempty"`
	// Percent is pct as published, 0 to 100, 100 by default. RFC 9989 has
	// dropped the tag; it is kept for reports in the form of RFC 7489.
	Percent int `json:"pct"`
	// Discovery is how the record was found, "treewalk" or "psl".
	Discovery string `json:"discovery"`
	// Error tells a flaw of the record that the domain owner should know of, for
	// the report's error element; empty if there is none.
	Error string `json:"error,omitempty"`
}

// DMARCResult is the record element of a DMARC report without its count: two
// messages with equal results are one row.
type DMARCResult struct {
	// SourceIP is the address of the SMTP client; IPv4-mapped addresses are
	// unmapped.
	SourceIP netip.Addr `json:"ip"`
	// Disposition is what was really done, or DispositionPass.
	Disposition Disposition `json:"disposition"`
	// AlignedDKIM and AlignedSPF tell whether the mechanism passed and its
	// domain is aligned with HeaderFrom. Overrides do not change them.
	AlignedDKIM bool `json:"dkim_aligned"`
	AlignedSPF  bool `json:"spf_aligned"`
	// Overrides are the reasons for a disposition other than the policy's.
	Overrides []Override `json:"overrides,omitempty"`
	// HeaderFrom is the author domain (RFC 9989 3.2.2).
	HeaderFrom string `json:"from"`
	// EnvelopeFrom is the domain of MAIL FROM, empty for the null reverse-path.
	EnvelopeFrom string `json:"mail_from,omitempty"`
	// EnvelopeTo is the recipients' domain, empty if they have several.
	EnvelopeTo string `json:"rcpt_to,omitempty"`
	// DKIM has a result for each signature that was checked, in the order of
	// the header.
	DKIM []DKIMResult `json:"dkim,omitempty"`
	// SPF is the result of the SPF check.
	SPF SPFResult `json:"spf"`
}

// Override is a reason why the disposition is not the policy's.
type Override struct {
	Type    OverrideType `json:"type"`
	Comment string       `json:"comment,omitempty"`
}

// DKIMResult is the outcome of one DKIM signature.
type DKIMResult struct {
	Domain   string     `json:"d"`
	Selector string     `json:"s"`
	Result   AuthResult `json:"result"`
	// Reason is a short explanation for people, our own words; may be empty.
	Reason string `json:"reason,omitempty"`
}

// SPFResult is the outcome of the SPF check of a message.
type SPFResult struct {
	// Domain is the domain that was checked. It is empty if there was none to
	// check: a null reverse-path and a HELO that is no domain name.
	Domain string `json:"domain,omitempty"`
	// Helo is true if Domain is the HELO name because the reverse-path was null
	// (RFC 7208 2.4).
	Helo   bool       `json:"helo,omitempty"`
	Result AuthResult `json:"result"`
}
