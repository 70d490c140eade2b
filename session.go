package ruapost

import "time"

// TLSPolicyType is the kind of policy a TLS session was held to
// (RFC 8460 4.2, policy-type).
type TLSPolicyType string

const (
	PolicySTS  TLSPolicyType = "sts"             // MTA-STS, RFC 8461
	PolicyTLSA TLSPolicyType = "tlsa"            // DANE, RFC 7672
	PolicyNone TLSPolicyType = "no-policy-found" // neither
)

// Session is how TLS went in one outbound SMTP connection. Sessions of one
// Window and Domain make up one report; those with the same Policy share an
// entry of its policies array, and equal Failures are one row with a count.
type Session struct {
	// Time is when the session was reported to us; it decides the Window.
	Time time.Time
	// Domain is the domain whose TLSRPT record asks for the report: the
	// recipient (next-hop) domain.
	Domain string
	// Policy is the policy the session was held to.
	Policy TLSPolicy
	// Failed is the session's final result. A failed session may have several
	// Failures, or none that are known.
	Failed   bool
	Failures []TLSFailure
	// Uncounted says that this is no TLS session of its own: its Failures are counted
	// but it is not, neither as successful nor as failed. It tells what kept a policy
	// from being applied, or a delivery from a session (RFC 8460 4.3.3).
	Uncounted bool
}

// TLSPolicy is a policy as applied: the policy object of a TLS report
// (RFC 8460 4.4, 4.5).
type TLSPolicy struct {
	Type TLSPolicyType `json:"type"`
	// Domain is the policy domain: for tlsa the TLSA base domain, which is the
	// MX host; for the others the recipient domain.
	Domain string `json:"domain"`
	// Strings are the lines of the STS policy file or the TLSA records in
	// presentation form.
	Strings []string `json:"strings,omitempty"`
	// MXHosts are the mx patterns of an STS policy.
	MXHosts []string `json:"mx,omitempty"`
}

// TLSResultType is the kind of a failure, in the words of RFC 8460 4.3.
type TLSResultType string

const (
	ResultStartTLSNotSupported    TLSResultType = "starttls-not-supported"
	ResultCertificateHostMismatch TLSResultType = "certificate-host-mismatch"
	ResultCertificateExpired      TLSResultType = "certificate-expired"
	ResultCertificateNotTrusted   TLSResultType = "certificate-not-trusted"
	ResultValidationFailure       TLSResultType = "validation-failure"
	ResultTLSAInvalid             TLSResultType = "tlsa-invalid"
	ResultDNSSECInvalid           TLSResultType = "dnssec-invalid"
	ResultDANERequired            TLSResultType = "dane-required"
	ResultSTSPolicyFetchError     TLSResultType = "sts-policy-fetch-error"
	ResultSTSPolicyInvalid        TLSResultType = "sts-policy-invalid"
	ResultSTSWebPKIInvalid        TLSResultType = "sts-webpki-invalid"
)

// TLSFailure is one entry of failure-details without its count
// (RFC 8460 4.4). Fields that are not known are empty and left out of reports.
type TLSFailure struct {
	Result        TLSResultType `json:"result"`
	SendingIP     string        `json:"sending_ip,omitempty"`
	ReceivingMX   string        `json:"mx,omitempty"`
	ReceivingIP   string        `json:"mx_ip,omitempty"`
	ReceivingHelo string        `json:"helo,omitempty"`
	Additional    string        `json:"additional,omitempty"`
	Reason        string        `json:"reason,omitempty"`
}
