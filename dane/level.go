package dane

// Level is a security level of Postfix (smtp_tls_policy_maps).
type Level string

const (
	// LevelNone: DANE has no say.
	LevelNone Level = ""
	// LevelDANE: Postfix is to use DANE with those servers that have it, and to
	// deliver to the others as usual, by TLS if they offer it.
	LevelDANE Level = "dane"
	// LevelDANEOnly: Postfix is to deliver only to servers authenticated by DANE.
	LevelDANEOnly Level = "dane-only"
)

// Level returns the level that fits what was found.
//
// LevelDANEOnly makes Postfix defer mail if the MX answer is insecure, or where a
// host lacks usable TLSA records. It is right only if nothing of that can happen:
// the MX answer is secure and every host that has addresses has usable records;
// no host's lookup failed and none was skipped. It takes from an attacker the
// way out that LevelDANE has: to make the good hosts unreachable and the others
// not.
//
// LevelDANE leaves each host to Postfix, which is right if at least one has secure
// TLSA records. Records that cannot be used count too: they make TLS mandatory
// (RFC 7672 2.2), and Postfix sees to that at this level, while at LevelDANEOnly it
// would defer. A host whose TLSA lookup failed counts as well: it must not be
// delivered to (RFC 7672 2.1.2), which Postfix also sees to at this level,
// where an MTA-STS policy would let the mail pass. All this holds under an
// insecure MX answer too, since Postfix tries DANE there by default
// (smtp_tls_dane_insecure_mx_policy); but there RFC 7672 2.2.1 leaves it open, and
// an MTA-STS policy to be enforced, which also says which MX hosts are right, may
// take precedence without overriding DANE (RFC 8461 2): see MXSecure.
//
// LevelNone is for all else. A host whose addresses could not be looked up does
// not count by itself: Postfix cannot deliver to it either, and LevelDANE would
// let whoever can suppress an answer turn off an MTA-STS policy.
func (r *Result) Level() Level {
	some, all := false, r.MXSecure && r.Skipped == 0
	for _, h := range r.Hosts {
		if len(h.Addrs) == 0 && h.Err == nil {
			continue // Postfix passes over it
		}
		if len(h.TLSA) > 0 || h.Unusable > 0 || h.Secure && h.Err != nil {
			some = true
		}
		if len(h.TLSA) == 0 {
			all = false
		}
	}
	switch {
	case some && all:
		return LevelDANEOnly
	case some:
		return LevelDANE
	}
	return LevelNone
}
