package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ruapost/bboltstore"
)

// TestLogRestart kills the policy daemon and starts it again, with sessions in the log
// that it has read, and some that come while it is down, before and after the log is
// rotated: each is reported once.
func TestLogRestart(t *testing.T) {
	v := versions[0]
	w := newWorld(t)
	var some []destination
	for i := range 4 {
		some = append(some, destination{
			name: fmt.Sprintf("logged-%d", i), mails: 2,
			servers: []server{{cert: selfSigned, want: "no-policy-found success"}},
		})
	}
	all := w.addDestinations(some)
	p := newPostfix(t, v)
	r := install(t, w, p)
	// Mail goes out although nobody answers: the administrator's own table does.
	const table = "\nsmtp_tls_policy_maps = "
	exceptions := "inline:{"
	for _, d := range all {
		exceptions += fmt.Sprintf(" { %s = may },", d.domain())
	}
	p.configure(strings.Replace(p.read("etc/postfix/main.cf"), table, table+strings.TrimSuffix(exceptions, ",")+" }, ", 1))
	r.startMilter()
	tlspolicy := r.startTLSPolicy()
	p.start()

	when := span{first: time.Now().UTC()}
	p.sendTo(all[:1])
	r.logRead()
	tlspolicy.kill()
	p.sendTo(all[1:2])
	p.rotate()
	p.sendTo(all[2:3])
	tlspolicy = r.startTLSPolicy()
	r.logRead()
	tlspolicy.kill()
	tlspolicy = r.startTLSPolicy()
	deferred := p.sendTo(all[3:])
	r.logRead()
	when.last = time.Now().UTC()
	tlspolicy.stop()
	r.startTLSPolicy()
	checkDeliveries(t, p, all, deferred)
	r.checkTLSReports(w, when, all, expectedTLS(t, v, all))
}

// rotate rotates the log as logrotate does with "create": "postfix logrotate" would have
// a file made that only root can read, and compresses the old one at once.
func (p *postfix) rotate() {
	p.t.Helper()
	file := filepath.Join(p.root, mailLog)
	if err := os.Rename(file, file+".1"); err != nil {
		p.t.Fatal(err)
	}
	p.write(mailLog, "")
	p.run(nil, "postfix", "reload")
}

// kill ends the daemon as the kernel would for want of memory.
func (d *daemon) kill() {
	d.t.Helper()
	d.cmd.Process.Kill()
	<-d.exited
	d.cmd = nil
}

// TestHostReport has two domains with the same MX hosts, which ask for reports of their
// own: these get one, with the sessions of both domains (RFC 8460 1.1).
func TestHostReport(t *testing.T) { eachVersion(t, versions, testHostReport) }

func testHostReport(t *testing.T, v version) {
	w := newWorld(t)
	one := w.addDestinations([]destination{{
		name: "one", mails: 2,
		servers: []server{
			{name: "mx1.host.example", cert: good, tlsa: wrongTLSA, want: "tlsa certificate-not-trusted"},
			{name: "mx2.host.example", cert: selfSigned, tlsa: rightTLSA, want: "tlsa success"},
		},
	}})[0]
	two := &running{destination: destination{name: "two", mails: 3}, servers: one.servers}
	all := []*running{one, two}
	w.dns.Add("two.example. 300 IN MX 10 mx1.host.example.\ntwo.example. 300 IN MX 20 mx2.host.example.")
	for _, name := range []string{"mx1.host", "mx2.host"} {
		all = append(all, &running{destination: destination{name: name}})
	}
	for _, d := range all[1:] {
		w.dns.Add(fmt.Sprintf(`_smtp._tls.%s. 300 IN TXT "v=TLSRPTv1; rua=mailto:%s"`, d.domain(), d.reportsTo()))
	}
	p := newPostfix(t, v)
	r := install(t, w, p)
	r.startMilter()
	r.startTLSPolicy()
	p.start()

	when := span{first: time.Now().UTC()}
	if deferred := p.sendTo(all[:2]); len(deferred) > 0 {
		t.Errorf("deferred: %+v", deferred)
	}
	when.last = time.Now().UTC()
	// The sessions of the hosts come after those of the domains: it takes a look at the
	// DNS to know which hosts ask for reports.
	r.recorded(map[string]int64{"one.example": 4, "two.example": 6, "mx1.host.example": 5, "mx2.host.example": 5})

	seen := expectedTLS(t, v, all[:1])[one.domain()] // by the hosts, from both domains
	if len(seen) != 2 || seen[0].Summary.Failed != one.mails+two.mails || seen[1].Summary.Successful != one.mails+two.mails {
		t.Fatalf("the hosts have seen %+v", seen)
	}
	r.checkTLSReports(w, when, all, map[string][]tlsPolicy{
		one.domain():       oncePerMail(seen, one.mails),
		two.domain():       oncePerMail(seen, two.mails),
		"mx1.host.example": seen[:1],
		"mx2.host.example": seen[1:],
	})
}

// oncePerMail returns policies for a part of their sessions: one for each mail.
func oncePerMail(policies []tlsPolicy, mails int) []tlsPolicy {
	var part []tlsPolicy
	for _, p := range policies {
		p.Summary.Successful = min(p.Summary.Successful, mails)
		p.Summary.Failed = min(p.Summary.Failed, mails)
		p.Failures = append([]tlsFailure(nil), p.Failures...)
		for i := range p.Failures {
			p.Failures[i].Sessions = mails
		}
		part = append(part, p)
	}
	return part
}

// recorded waits until so many sessions are recorded about each domain.
func (r *installation) recorded(want map[string]int64) {
	r.t.Helper()
	store := r.openStore()
	defer store.Close()
	eventually(r.t, "all sessions are recorded", func() bool {
		groups, err := store.Groups(r.t.Context(), time.Now().Add(48*time.Hour))
		if err != nil {
			r.t.Fatal(err)
		}
		got := map[string]int64{}
		for _, g := range groups {
			got[g.Domain] += g.Total
		}
		return maps.Equal(want, got)
	})
}

// openStore opens the programs' store.
func (r *installation) openStore() *bboltstore.Store {
	r.t.Helper()
	store, err := bboltstore.Open(filepath.Join(r.postfix.root, "var/lib/ruapost/ruapost.db"))
	if err != nil {
		r.t.Fatal(err)
	}
	return store
}

// logRead waits until the policy daemon has recorded what Postfix has logged so far, if
// it reads the log at all.
func (r *installation) logRead() {
	r.t.Helper()
	if !r.postfix.version.log {
		return
	}
	want := r.postfix.logged()
	store := r.openStore()
	defer store.Close()
	eventually(r.t, "the policy daemon has read the log", func() bool {
		position, err := store.Position(r.t.Context(), "/"+mailLog)
		if err != nil {
			r.t.Fatal(err)
		}
		var got place
		_, err = fmt.Sscanf(position, "1:%d:%d:", &got.inode, &got.offset)
		return err == nil && got.inode == want.inode && got.offset >= want.offset
	})
}

// place is one in the log.
type place struct{ inode, offset uint64 }

// logged waits until everything that Postfix has done is in the log, and returns its
// end: what programs log reaches the file by way of postlogd, in order.
func (p *postfix) logged() place {
	p.t.Helper()
	p.marks++
	mark := fmt.Sprintf("mark %d of the test", p.marks)
	p.run(nil, "postlog", "-t", "postfix/qmgr", mark) // a program whose lines matter
	var end place
	eventually(p.t, mark+" is in the log", func() bool {
		log := p.log()
		end.offset = uint64(len(log))
		return strings.Contains(log, mark+"\n")
	})
	info, err := os.Stat(filepath.Join(p.root, mailLog))
	if err != nil {
		p.t.Fatal(err)
	}
	end.inode = info.Sys().(*syscall.Stat_t).Ino
	return end
}
