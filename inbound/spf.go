package inbound

import (
	"context"
	"net"
	"strings"

	"blitiri.com.ar/go/spf"

	"ruapost"
)

// checkSPF checks the message's SPF identity. It is done when the message's context
// or half the budget ends: what of the message comes after MAIL FROM may take less
// time than that.
func (m *message) checkSPF() (res ruapost.SPFResult) {
	defer caught(func() { res = m.spfResult(ruapost.AuthTemperror) })
	if m.spfDomain == "" {
		return m.spfResult(ruapost.AuthNone)
	}
	ctx, cancel := context.WithTimeout(m.ctx, m.config.halfBudget())
	defer cancel()
	local := "postmaster" // RFC 7208 2.4, 4.3
	if at := strings.LastIndexByte(m.mailFrom, '@'); at > 0 {
		// The library takes the first "@" for the one before the domain.
		local = strings.ReplaceAll(m.mailFrom[:at], "@", "_")
	}
	// Its error is not nil for every result; the result says all.
	result, _ := spf.CheckHostWithSender(net.IP(m.client.AsSlice()), m.helo, local+"@"+m.spfDomain,
		spf.WithContext(ctx), spf.WithResolver(m.service.Resolver.SPF(m.client)))
	if ctx.Err() != nil {
		// Cut off in the middle: whatever it says is about the cut.
		result = spf.TempError
	}
	return m.spfResult(ruapost.AuthResult(strings.ToLower(string(result))))
}

func (m *message) spfResult(result ruapost.AuthResult) ruapost.SPFResult {
	return ruapost.SPFResult{Domain: m.spfDomain, Helo: m.mailFrom == "", Result: result}
}
