package dane

// Level is a security level of Postfix (smtp_tls_policy_maps).
type Level string

const (
	// LevelNone: DANE has no say, but an MTA-STS policy may.
	LevelNone Level = ""
	// LevelDANE: Postfix is to use DANE with those servers that have it, and to
	// deliver to the others as usual, by TLS if they offer it.
	LevelDANE Level = "dane"
	// LevelDANEOnly: Postfix is to deliver only to servers authenticated by DANE.
	LevelDANEOnly Level = "dane-only"
)

// Level returns the level that fits what was found. enforce tells whether the
// domain has an MTA-STS policy to be enforced; LevelNone then means that it is to
// be, and that this overrides no DANE (RFC 8461 2).
//
// LevelDANEOnly makes Postfix defer mail if the MX answer is insecure, or where a
// host lacks usable TLSA records or their lookup fails. It is right if nothing of
// that can happen: the MX answer is secure and every host that has addresses has
// usable records; no host's lookup failed and none was skipped. It takes from an
// attacker the way out that LevelDANE has: to make the good hosts unreachable and
// the others not.
//
// LevelDANE leaves each host to Postfix, which is right if at least one has usable
// secure TLSA records. Without a policy to be enforced it is also right in these
// cases:
//
//   - There are secure records, but none that can be used. They make TLS mandatory
//     (RFC 7672 2.2), and Postfix sees to that at this level, while at
//     LevelDANEOnly it would defer. If there is a policy to be enforced, that makes
//     TLS mandatory, too, and authenticates the server besides: LevelNone.
//   - The lookup for a host's TLSA records failed. It must not be delivered to
//     (RFC 7672 2.1.2); if the lookup fails for Postfix, too, it sees to that at
//     this level. If there is a policy to be enforced, neither may be bypassed: not
//     DANE by the policy's level, nor the policy by LevelDANE, at which a denial
//     that Postfix gets a moment later means delivery without any authentication.
//     At LevelDANEOnly Postfix defers after a failure as after a denial; at the
//     next attempt the lookup may have told which of the two it is to be.
//   - The MX answer is insecure. RFC 7672 2.2.1 then leaves DANE open to choice, and
//     Postfix tries it by default (smtp_tls_dane_insecure_mx_policy). A policy to be
//     enforced also says which MX hosts are right, and protects more: LevelNone.
//
// LevelNone is for all else. A host whose addresses could not be looked up does
// not count by itself: nothing says that it has DANE, Postfix cannot deliver to it
// either, and what applies without LevelDANE may be stricter.
func (r *Result) Level(enforce bool) Level {
	all := r.MXSecure && r.Skipped == 0
	var usable, unusable, failed bool // of any host
	for _, h := range r.Hosts {
		if len(h.Addrs) == 0 && h.Err == nil {
			continue // Postfix passes over it
		}
		usable = usable || len(h.TLSA) > 0
		unusable = unusable || h.Unusable+h.Malformed > 0
		failed = failed || len(h.Addrs) > 0 && h.Err != nil // for TLSA records
		all = all && len(h.TLSA) > 0
	}
	switch {
	case enforce && !r.MXSecure:
		return LevelNone
	case usable && all:
		return LevelDANEOnly
	case usable:
		return LevelDANE
	case enforce && failed:
		return LevelDANEOnly
	case enforce:
		return LevelNone
	case unusable || failed:
		return LevelDANE
	}
	return LevelNone
}
