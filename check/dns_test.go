package check

import (
	"crypto/x509"
	"errors"
	"os"
	"slices"
	"testing"
)

func TestResolver(t *testing.T) {
	far := Server{Address: "192.0.2.53:53", Answered: true, Authentic: true, Trusted: true}
	for name, tt := range map[string]struct {
		change func(w *world)
		want   []string
	}{
		"silent": {func(w *world) {
			w.servers["127.0.0.1:53"] = Server{Address: "127.0.0.1:53", Err: errors.New("timeout")}
		}, []string{"fault: no DNS server answers", "warning: DNS server 127.0.0.1:53 does not answer: timeout"}},
		"does not validate": {func(w *world) {
			w.servers["127.0.0.1:53"] = Server{Address: "127.0.0.1:53", Answered: true}
		}, []string{"fault: DNS server 127.0.0.1:53 does not validate"}},
		"is not believed": {func(w *world) {
			w.servers["127.0.0.1:53"] = Server{Address: "192.0.2.1:53", Answered: true, Authentic: true}
		}, []string{`warning: DNS server 192.0.2.1:53 ... servers = ["192.0.2.1:53"]`}},
		"one of two": {func(w *world) {
			w.cfg.DNS.Servers = []string{"192.0.2.53:53", "127.0.0.1:53"}
			w.servers["192.0.2.53:53"] = Server{Address: "192.0.2.53:53", Err: errors.New("timeout")}
		}, []string{"warning: DNS server 192.0.2.53:53 does not answer"}},

		// The daemon says dane-only where Postfix sees no signatures.
		"Postfix's does not validate": {func(w *world) {
			w.cfg.DNS.Servers = []string{"192.0.2.53:53"}
			w.servers["192.0.2.53:53"] = far
			w.servers["127.0.0.1:53"] = Server{Address: "127.0.0.1:53", Answered: true}
		}, []string{"fault: DNS server 127.0.0.1:53 of Postfix, in DIR/resolv.conf, does not validate DNSSEC: mail"}},
		"Postfix's validates": {func(w *world) {
			w.cfg.DNS.Servers = []string{"192.0.2.53:53"}
			w.servers["192.0.2.53:53"] = far
		}, nil},
		"Postfix's is silent": {func(w *world) {
			w.cfg.DNS.Servers = []string{"192.0.2.53:53"}
			w.servers["192.0.2.53:53"] = far
			w.servers["127.0.0.1:53"] = Server{Address: "127.0.0.1:53", Err: errors.New("refused")}
		}, []string{"warning: DNS server 127.0.0.1:53 of Postfix ... does not answer: refused"}},
		"old copy in the chroot": {func(w *world) {
			w.write("queue/etc/resolv.conf", "nameserver 192.0.2.53\n")
			w.servers["192.0.2.53:53"] = Server{Address: "192.0.2.53:53", Answered: true}
		}, []string{
			"warning: DIR/queue/etc/resolv.conf, which counts for smtp(8), names other DNS servers than DIR/resolv.conf ... systemctl restart postfix",
			"fault: DNS server 192.0.2.53:53 of Postfix, in DIR/queue/etc/resolv.conf",
		}},
		"old copy, but no chroot": {func(w *world) {
			w.write("queue/etc/resolv.conf", "nameserver 192.0.2.53\n")
			w.chroot = service + "/chroot = n\n"
		}, nil},
		"no resolv.conf": {func(w *world) { w.remove(w.path("resolv.conf")) }, []string{"warning: there is no DIR/resolv.conf: the DNS server is looked for on this host"}},
		"no resolv.conf, but dns.servers": {func(w *world) {
			w.remove(w.path("resolv.conf"))
			w.cfg.DNS.Servers = []string{"127.0.0.1:53"}
		}, nil},
		"no copy in the chroot": {func(w *world) {
			if err := os.Remove(w.path("queue/etc/resolv.conf")); err != nil {
				w.t.Fatal(err)
			}
		}, nil},

		// HISTORY of Postfix, 20200416: glibc 2.31 hides the AD bit.
		"3.5.0 does not ask for AD": {func(w *world) { w.old("3.5.0") }, []string{"warning: Postfix 3.5.0 tells how TLS went", "warning: with glibc 2.31 ... In DIR/resolv.conf:\n    options trust-ad"}},
		"3.4.10 neither":            {func(w *world) { w.old("3.4.10") }, []string{"warning: Postfix 3.4.10", "warning: with glibc 2.31"}},
		"3.4.11 does":               {func(w *world) { w.old("3.4.11") }, []string{"warning: Postfix 3.4.11"}},
		"3.5.1 does":                {func(w *world) { w.old("3.5.1") }, []string{"warning: Postfix 3.5.1"}},
		"3.5.0 is told to": {func(w *world) {
			w.old("3.5.0")
			w.write("resolv.conf", "nameserver 127.0.0.1\noptions edns0 trust-ad\n")
		}, []string{"warning: Postfix 3.5.0"}},

		"no authorities": {func(w *world) {
			w.host.Roots = func() (*x509.CertPool, error) { return x509.NewCertPool(), nil }
		}, []string{"fault: this host has no certificates of authorities"}},
		"nobody to ask": {func(w *world) { w.host.Ask = nil }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tt.change(w)
			w.expect(w.check(), tt.want...)
		})
	}
}

// old makes Postfix one of before 3.10.
func (w *world) old(version string) {
	w.settings["mail_version"] = version
	w.settings["smtp_tls_policy_maps"] = "socketmap:unix:run/ruapost/policy.sock:QUERY"
}

// resolv.conf(5)
func TestNameservers(t *testing.T) {
	for text, want := range map[string][]string{
		"": {"127.0.0.1:53"},
		"# nameserver 192.0.2.1\n;nameserver 192.0.2.1\nnameserver\nnameserver foo\n":                 {"127.0.0.1:53"},
		"nameserver 192.0.2.1\nsearch example\nnameserver\t2001:db8::1 x\n":                           {"192.0.2.1:53", "[2001:db8::1]:53"},
		"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver fe80::1%eth0\nnameserver 192.0.2.4\n": {"192.0.2.1:53", "192.0.2.2:53", "[fe80::1%eth0]:53"},
	} {
		if got := nameservers(text); !slices.Equal(got, want) {
			t.Errorf("%q: %q; want %q", text, got, want)
		}
	}
}
