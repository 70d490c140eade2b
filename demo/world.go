package main

import (
	"net"

	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
)

// zone is what the domains of the demonstration publish.
const zone = `
; A shop that wants forgeries rejected.
_dmarc.shop.example.  300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@shop.example"
shop.example.         300 IN TXT "v=spf1 ip4:192.0.2.10 -all"

; A club that watches; its reports go to a service that has agreed to that.
_dmarc.club.example.  300 IN TXT "v=DMARC1; p=none; rua=mailto:club@reports.example"
club.example.         300 IN TXT "v=spf1 ip4:192.0.2.20 ~all"
mail.club.example.    300 IN TXT "v=spf1 a -all"
mail.club.example.    300 IN A 192.0.2.20
club.example._report._dmarc.reports.example. 300 IN TXT "v=DMARC1"

; A bank with an IDN, strict alignment and a policy for names that do not exist.
_dmarc.xn--bcherbank-q9a.example. 300 IN TXT "v=DMARC1; p=quarantine; np=reject; adkim=s; aspf=s; rua=mailto:dmarc@xn--bcherbank-q9a.example"
xn--bcherbank-q9a.example. 300 IN TXT "v=spf1 ip6:2001:db8::30 -all"

; No DMARC at all.
plain.example.        300 IN TXT "v=spf1 -all"

; A domain whose mail servers are first held to MTA-STS, then to DANE.
partner.example.      300 IN MX 10 mx.partner.example.
mx.partner.example.   300 IN A 192.0.2.40
_mta-sts.partner.example. 300 IN TXT "v=STSv1; id=20261122"
_smtp._tls.partner.example. 300 IN TXT "v=TLSRPTv1; rua=mailto:tls@partner.example"

; DANE for all mail servers.
secure.example.       300 IN MX 10 mx.secure.example.
mx.secure.example.    300 IN A 192.0.2.50
_25._tcp.mx.secure.example. 300 IN TLSA 3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef

; Neither.
plain.example.        300 IN MX 10 mx.plain.example.
mx.plain.example.     300 IN A 192.0.2.60
`

var stsPolicy = []string{"version: STSv1", "mode: enforce", "mx: *.partner.example", "max_age: 86400"}

// world is everything outside of the programs.
type world struct {
	dns         *dnstest.Server
	ca          *lab.CA
	policyHost  *lab.PolicyHost
	proxy       net.Listener
	shop, club  *lab.Key
	reporterKey *lab.Key
}

func newWorld() (w *world, err error) {
	w = &world{}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.dns, err = dnstest.Start("127.0.0.1:0"); err != nil {
		return nil, err
	}
	w.dns.Add(zone)
	w.dns.SetInsecure("partner.example", "plain.example")
	if w.ca, err = lab.NewCA(); err != nil {
		return nil, err
	}
	if w.policyHost, err = lab.StartPolicyHost("127.0.0.1:0", w.ca); err != nil {
		return nil, err
	}
	w.policyHost.SetPolicy("partner.example", stsPolicy...)
	if w.proxy, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	go lab.ServeConnect(w.proxy, func(string) string { return w.policyHost.Addr })
	for _, k := range []struct {
		key    **lab.Key
		domain string
	}{{&w.shop, "shop.example"}, {&w.club, "club.example"}, {&w.reporterKey, "receiver.example"}} {
		if *k.key, err = lab.NewRSAKey(k.domain, "demo"); err != nil {
			return nil, err
		}
		line, err := (*k.key).ZoneLine()
		if err != nil {
			return nil, err
		}
		w.dns.Add(line)
	}
	return w, nil
}

func (w *world) close() {
	if w.proxy != nil {
		w.proxy.Close()
	}
	if w.policyHost != nil {
		w.policyHost.Close()
	}
	if w.dns != nil {
		w.dns.Close()
	}
}
