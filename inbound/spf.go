package inbound

import (
	"context"
	"net"
	"strings"

	"blitiri.com.ar/go/spf"

	"ruapost"
)

// checkSPF checks the MAIL FROM identity, or with a null reverse-path the HELO
// name (RFC 7208 2.4). It is done when the message's context ends.
func (m *message) checkSPF() ruapost.SPFResult {
	ctx, cancel := context.WithTimeout(m.ctx, Budget)
	defer cancel()
	local, domain, hasDomain := cutLast(m.mailFrom, "@")
	res := ruapost.SPFResult{Result: ruapost.AuthNone}
	if m.mailFrom == "" {
		local, domain, hasDomain, res.Helo = "postmaster", m.helo, true, true
	}
	if local == "" {
		local = "postmaster" // RFC 7208 4.3
	}
	d, err := ruapost.ParseDomain(domain)
	// RFC 7208 4.3: no multi-label domain name, result none. An address literal as
	// HELO is one such.
	if !hasDomain || err != nil || ruapost.Labels(d) < 2 {
		return res
	}
	res.Domain = d
	// The library takes the first "@" for the one before the domain.
	sender := strings.ReplaceAll(local, "@", "_") + "@" + d
	// Its error is not nil for every result; the result says all.
	result, _ := spf.CheckHostWithSender(net.IP(m.client.AsSlice()), m.helo, sender,
		spf.WithContext(ctx), spf.WithResolver(m.service.Resolver.SPF(m.client)))
	if ctx.Err() != nil {
		// Cut off in the middle: whatever it says is about the cut.
		result = spf.TempError
	}
	res.Result = ruapost.AuthResult(strings.ToLower(string(result)))
	return res
}
