package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ruapost/internal/lab"
	"ruapost/socketmap"
)

// guarded is a destination whose zone is signed, mostly.
type guarded struct {
	destination
	// unsigned tells that it is not, and that its parent zone proves it.
	unsigned bool
	// expired makes the time of all signatures over.
	expired bool
	// forge makes what an attacker hands out of the signed zone. The signatures in it
	// stay as they are.
	forge func(zone string, r *running) string
	// answer is what the policy daemon must say to Postfix 3.7.
	answer string
}

var guardedDestinations = []guarded{
	{
		destination: destination{
			name: "signed", mails: 1,
			servers: []server{{cert: selfSigned, tlsa: rightTLSA, want: "tlsa success"}},
		},
		answer: "OK dane-only",
	},
	{
		destination: destination{
			name: "signed-mismatch", mails: 1, deferred: everywhere,
			servers: []server{{cert: good, tlsa: wrongTLSA, want: "tlsa certificate-not-trusted"}},
		},
		answer: "OK dane-only",
	},
	{
		// The record that the attacker puts in fits the server, but not its signature.
		destination: destination{
			name: "bogus-tlsa", mails: 1, deferred: everywhere, warnings: tlsaFails("bogus-tlsa"),
			servers: []server{{cert: selfSigned, tlsa: wrongTLSA, shunned: everywhere, found: tlsaLookup}},
		},
		forge: fittingTLSA, answer: "OK dane",
	},
	{
		// An MTA-STS policy is no way around it (RFC 8461 2): the server has all that the
		// policy asks for.
		destination: destination{
			name: "bogus-tlsa-and-sts", mails: 1, sts: "enforce", deferred: everywhere, warnings: tlsaFails("bogus-tlsa-and-sts"),
			servers: []server{{cert: good, tlsa: wrongTLSA, shunned: everywhere, found: tlsaLookup}},
		},
		forge: fittingTLSA, answer: "OK dane-only",
	},
	{
		// Nor can the record be kept secret: it is signed that there is one.
		destination: destination{
			name: "stripped-tlsa", mails: 1, sts: "enforce", deferred: everywhere, warnings: tlsaFails("stripped-tlsa"),
			servers: []server{{cert: good, tlsa: wrongTLSA, shunned: everywhere, found: tlsaLookup}},
		},
		forge: withoutTLSA, answer: "OK dane-only",
	},
	{
		// The attacker says that the first server is the sink, which takes everything.
		// The second one is not worse for that (RFC 7672 2.1.2).
		destination: destination{
			name: "bogus-address", mails: 1,
			servers: []server{
				{cert: selfSigned, tlsa: rightTLSA, shunned: everywhere},
				{cert: selfSigned, tlsa: rightTLSA, want: "tlsa success"},
			},
		},
		forge: func(zone string, r *running) string {
			return strings.Replace(zone, "\tA\t"+r.servers[0].ip+"\n", "\tA\t"+sinkIP+"\n", 1)
		},
		answer: "OK dane",
	},
	{
		destination: destination{
			name: "old-signatures", mails: 1, deferred: everywhere,
			warnings: []string{"TLSRPT support: policy lookup failed for old-signatures.example"},
			servers:  []server{{cert: selfSigned, tlsa: rightTLSA, shunned: everywhere}},
		},
		expired: true, answer: "NOTFOUND ",
	},
	{
		// Anyone could have put the record there: it does not count (RFC 7672 2.2).
		destination: destination{
			name: "unsigned", mails: 1,
			servers: []server{{cert: selfSigned, tlsa: wrongTLSA, want: "no-policy-found success"}},
		},
		unsigned: true, answer: "NOTFOUND ",
	},
	{
		destination: destination{
			name: "at-unsigned-host", mails: 1,
			servers: []server{{name: "mx.unsigned-host.example", cert: selfSigned, tlsa: wrongTLSA, want: "no-policy-found success"}},
		},
		answer: "NOTFOUND ",
	},
	{
		// Here the host's record does count (RFC 7672 2.2.1).
		destination: destination{
			name: "at-signed-host", mails: 1, deferred: everywhere,
			servers: []server{{name: "mx.signed-host.example", cert: good, tlsa: wrongTLSA, want: "tlsa certificate-not-trusted"}},
		},
		unsigned: true, answer: "OK dane",
	},
	{
		// Postfix knows only one half to be safe ("half-dane"), and says so.
		destination: destination{
			name: "right-at-signed-host", mails: 1,
			servers: []server{{name: "mx2.signed-host.example", cert: selfSigned, tlsa: rightTLSA, want: "tlsa success"}},
		},
		unsigned: true, answer: "OK dane",
	},
	{
		destination: destination{
			name: "denied-tlsa", mails: 1, sts: "enforce",
			servers: []server{{cert: good, want: "sts success"}},
		},
		answer: "OK secure match=mx1.denied-tlsa.example:.backup.denied-tlsa.example servername=hostname",
	},
}

// tlsaFails returns the warnings about TLSA records that cannot be looked up.
func tlsaFails(name string) []string {
	host := "mx1." + name + ".example"
	return []string{
		"DANE TLSA lookup problem: Host or domain name not found. Name service error for name=_25._tcp." + host,
		fmt.Sprintf("TLS policy lookup for %s.example/%s: TLSA lookup error for %[2]s:25", name, host),
	}
}

func fittingTLSA(zone string, r *running) string {
	cert := r.servers[0].certificate
	return strings.ReplaceAll(zone, strings.ToLower(wrongTLSA(cert)[0]), strings.ToLower(lab.TLSA(cert)))
}

func withoutTLSA(zone string, _ *running) string {
	var kept strings.Builder
	for line := range strings.Lines(zone) {
		if !strings.Contains(line, "\tTLSA\t") && !strings.Contains(line, "\tRRSIG\tTLSA ") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// TestValidatingResolver has unbound validate zones that were signed by ldns, between
// the DNS and both Postfix and the policy daemon, and lets an attacker change what is
// signed.
func TestValidatingResolver(t *testing.T) { eachVersion(t, versions, testValidatingResolver) }

func testValidatingResolver(t *testing.T, v version) {
	w := newWorldAt(t, unsignedServer+":53")
	w.receives("reports.example")
	p := newPostfix(t, v)
	r := install(t, w, p)

	tree := &zoneTree{postfix: p, signed: map[string]*zone{}}
	tree.signed["signed-host.example"] = &zone{name: "signed-host.example"}
	tree.unsigned = []string{"receiver.example", "reports.example", "sink.example", "unsigned-host.example"}
	var all []*running
	for _, d := range guardedDestinations {
		dest := w.startDestination(d.destination)
		all = append(all, dest)
		if d.unsigned {
			tree.unsigned = append(tree.unsigned, dest.domain())
			continue
		}
		z := &zone{name: dest.domain(), expired: d.expired}
		if d.forge != nil {
			z.forge = func(zone string) string { return d.forge(zone, dest) }
		}
		tree.signed[z.name] = z
	}
	for _, dest := range all {
		for line := range strings.Lines(dest.zone()) {
			if !tree.add(line) {
				w.dns.Add(line)
			}
		}
	}
	tree.startUnbound()
	r.startMilter()
	tlspolicy := r.startTLSPolicy()
	p.start()

	for _, d := range guardedDestinations {
		if got := r.ask(d.domain()); got != d.answer {
			t.Errorf("%s: the policy daemon says %q, not %q", d.name, got, d.answer)
		}
	}
	when := span{first: time.Now().UTC()}
	deferred := p.sendTo(all)
	when.last = time.Now().UTC()
	checkDeliveries(t, p, all, deferred)
	r.logRead()
	tlspolicy.stop() // now it has recorded everything
	r.startTLSPolicy()
	r.checkTLSReports(w, when, all, expectedTLS(t, v, all))
}

// ask asks the policy daemon as Postfix 3.7 does.
func (r *installation) ask(domain string) string {
	r.t.Helper()
	c, err := socketmap.Dial(r.t.Context(), "unix", filepath.Join(r.postfix.queue, "run/ruapost/policy.sock"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	reply, err := c.Query("QUERY", domain)
	if err != nil {
		r.t.Fatal(err)
	}
	return reply.String()
}

// unsignedServer is the name server of all zones that are not signed.
const unsignedServer = "127.0.0.2"

// zoneTree is a DNS root and the zones right below it, to be signed with the tools of
// Postfix's root and resolved by an unbound there.
type zoneTree struct {
	postfix  *postfix
	signed   map[string]*zone // by name
	unsigned []string         // those that unsignedServer has
}

// zone is a zone that is to be signed.
type zone struct {
	name    string // without the dot at the end
	records strings.Builder
	expired bool
	forge   func(signed string) string // nil for none
}

// add adds a record, given as a line, to the signed zone that it belongs to. It returns
// false if there is none.
func (t *zoneTree) add(line string) bool {
	owner, _, _ := strings.Cut(line, ". ")
	for owner != "" {
		if z := t.signed[owner]; z != nil {
			z.records.WriteString(line)
			return true
		}
		_, owner, _ = strings.Cut(owner, ".")
	}
	return false
}

// zonesDir is the folder of the zone files in Postfix's root.
const zonesDir = "var/lib/zones"

// sign signs the zone, leaves it in name.signed and returns its DS record.
func (z *zone) sign(p *postfix) (ds string) {
	p.t.Helper()
	head := fmt.Sprintf("%s. 300 IN SOA ns.test. hostmaster.test. 1 3600 600 86400 60\n%[1]s. 300 IN NS ns.test.\n", z.name)
	p.write(filepath.Join(zonesDir, z.name+".zone"), head+z.records.String())
	const script = `cd /` + zonesDir + `
		key=$(ldns-keygen -a ECDSAP256SHA256 -k "$1.")
		ldns-signzone -o "$1." -i "$2" -e "$3" -f "$1.signed" "$1.zone" "$key"
		cat "$key.ds"`
	end := 7 // days from now
	if z.expired {
		end = -7 // unbound is lenient for one day
	}
	day := func(n int) string { return time.Now().UTC().AddDate(0, 0, n).Format("20060102") }
	ds = string(p.run(nil, "sh", "-ec", script, "sign", z.name, day(-14), day(end)))
	if z.forge != nil {
		file := filepath.Join(zonesDir, z.name+".signed")
		signed := p.read(file)
		forged := z.forge(signed)
		if forged == signed {
			p.t.Fatalf("%s: nothing forged in %s", z.name, signed)
		}
		p.write(file, forged)
	}
	return ds
}

// startUnbound signs all zones and makes an unbound that trusts the root's key the name
// server of the namespace. It goes away with the test.
func (t *zoneTree) startUnbound() {
	p := t.postfix
	p.t.Helper()
	if err := os.Mkdir(filepath.Join(p.root, zonesDir), 0o755); err != nil {
		p.t.Fatal(err)
	}
	conf := new(strings.Builder)
	fmt.Fprintf(conf, unboundConf, zonesDir)
	root := &zone{}
	authority := func(z *zone) (ds string) {
		fmt.Fprintf(conf, "auth-zone:\n name: %q\n zonefile: %q\n for-downstream: no\n", z.name+".", z.name+".signed")
		return z.sign(p)
	}
	for name, z := range t.signed {
		fmt.Fprintf(&root.records, "%s. 300 IN NS ns.test.\n%s", name, authority(z))
	}
	for _, name := range t.unsigned {
		fmt.Fprintf(&root.records, "%s. 300 IN NS ns.test.\n", name)
		fmt.Fprintf(conf, "forward-zone:\n name: %q\n forward-addr: %s\n", name+".", unsignedServer)
	}
	p.write(filepath.Join(zonesDir, "anchor"), authority(root))
	p.write(filepath.Join(zonesDir, "unbound.conf"), conf.String())
	startDaemon(p.t, "unbound", &exec.Cmd{
		Path:        "/usr/sbin/unbound",
		Args:        []string{"unbound", "-d", "-c", filepath.Join("/", zonesDir, "unbound.conf")},
		Dir:         "/",
		SysProcAttr: &syscall.SysProcAttr{Chroot: p.root},
	}, "tcp:"+nameServer)
}

// unboundConf is the start of unbound's configuration: a validating resolver with the
// zones of a folder at hand.
const unboundConf = `server:
 directory: "/%s"
 chroot: ""
 username: ""
 pidfile: ""
 use-syslog: no
 interface: 127.0.0.1
 do-not-query-localhost: no
 trust-anchor-file: "anchor"
 val-log-level: 2
remote-control:
 control-enable: no
`
