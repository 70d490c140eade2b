package e2e

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
)

// world is the Internet around Postfix, made for one test.
type world struct {
	dns        *dnstest.Server
	ca         *lab.CA
	policyHost *lab.PolicyHost
	// sink is the mail server of every domain that only has to receive: the mails
	// for receiver.example's people and most reports.
	sink *lab.MX

	servers int // of destinations
	t       *testing.T
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldAt(t, nameServer)
}

// newWorldAt makes a world whose name server is at addr.
func newWorldAt(t *testing.T, addr string) *world {
	t.Helper()
	w := &world{t: t}
	var err error
	eventually(t, "the last test's name server has gone", func() bool {
		w.dns, err = dnstest.Start(addr)
		return !errors.Is(err, syscall.EADDRINUSE)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.dns.Close)
	// The DNS root: Postfix asks for it once, to see whether the resolver validates.
	w.dns.Add(". 300 IN NS ns.test.")
	if w.ca, err = lab.NewCA(); err != nil {
		t.Fatal(err)
	}
	if w.policyHost, err = lab.StartPolicyHost(policyHostIP+":443", w.ca); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.policyHost.Close)
	w.sink = w.startMX(lab.MXConfig{Name: "sink.example", Addr: sinkIP + ":25"})
	w.dns.Add("sink.example. 300 IN A " + sinkIP)
	return w
}

func (w *world) startMX(cfg lab.MXConfig) *lab.MX {
	w.t.Helper()
	mx, err := lab.StartMX(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(mx.Close)
	return mx
}

// receives makes the sink the mail server of the domains.
func (w *world) receives(domains ...string) {
	for _, d := range domains {
		w.dns.Add(fmt.Sprintf("%s. 300 IN MX 10 sink.example.", d))
	}
}
