package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestPolicyRestart restarts the policy daemon while mail is sent, behind sockets that
// stay open as systemd keeps them: every mail gets its policy, none is deferred, and no
// session is missing in the reports.
func TestPolicyRestart(t *testing.T) {
	v := versions[len(versions)-1]
	w := newWorld(t)
	var some []destination
	for i := range 12 {
		some = append(some, destination{
			name: fmt.Sprintf("sts-%d", i), mails: 1, sts: "enforce",
			servers: []server{{cert: good, want: "sts success"}},
		})
	}
	all := w.addDestinations(some)
	p := newPostfix(t, v)
	r := install(t, w, p)
	r.startMilter()
	sockets := r.openSockets()
	tlspolicy := r.startActivated(sockets)
	p.start()

	// The daemon is stopped while it looks for policies, and asked for others while it
	// is down.
	w.dns.SetDelay(50 * time.Millisecond)
	when := span{first: time.Now().UTC()}
	for i := 0; i < len(all); i += 4 {
		p.submitTo(all[i], all[i+1])
		looking := "_mta-sts." + all[i+1].domain() + ". TXT"
		eventually(t, "the policy daemon looks for a policy", func() bool { return slices.Contains(w.dns.Queries(), looking) })
		tlspolicy.stop()
		p.submitTo(all[i+2], all[i+3])
		tlspolicy = r.startActivated(sockets)
		p.settle()
	}
	deferred := p.settle()
	when.last = time.Now().UTC()
	w.dns.SetDelay(0)
	checkDeliveries(t, p, all, deferred)
	tlspolicy.stop()
	r.startActivated(sockets)
	r.checkTLSReports(w, when, all, expectedTLS(t, v, all))
}

// openSockets makes the policy daemon's sockets, policy and tlsrpt, as contrib's units
// have systemd make them.
func (r *installation) openSockets() []*os.File {
	r.t.Helper()
	path := func(name string) string { return filepath.Join(r.postfix.queue, "run/ruapost", name) }
	policy, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path("policy.sock")})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { policy.Close() })
	tlsrpt, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path("tlsrpt.sock")})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { tlsrpt.Close() })
	var files []*os.File
	for _, s := range []interface{ File() (*os.File, error) }{policy, tlsrpt} {
		f, err := s.File()
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	for _, name := range []string{"policy.sock", "tlsrpt.sock"} {
		if err := os.Chown(path(name), ruapostUID, r.id("group", "postfix")); err != nil {
			r.t.Fatal(err)
		}
		if err := os.Chmod(path(name), 0o660); err != nil {
			r.t.Fatal(err)
		}
	}
	return files
}

// startActivated starts the policy daemon with its sockets open (sd_listen_fds(3)).
func (r *installation) startActivated(sockets []*os.File) *daemon {
	r.t.Helper()
	cmd := r.command("ruapost-tlspolicy")
	// The sockets are for the process whose number is LISTEN_PID.
	cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", "LISTEN_PID=$$ exec " + cmd.Path}
	cmd.Env = append(cmd.Env, "LISTEN_FDS=2", "LISTEN_FDNAMES=policy:tlsrpt")
	cmd.ExtraFiles = sockets
	return startDaemon(r.t, "ruapost-tlspolicy", cmd)
}
