package check

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Mail that comes in is judged only if smtpd(8) asks the milter, and that answers.
func TestMilter(t *testing.T) {
	const ours = "unix:run/ruapost/milter.sock"
	for name, tt := range map[string]struct {
		change func(w *world, socket string)
		want   []string
	}{
		"in no list": {func(w *world, _ string) { w.settings["smtpd_milters"] = "inet:127.0.0.1:8891" }, []string{
			"fault: smtpd_milters does not name ruapost-milter ... not judged => ... ruapost-reporter setup",
		}},
		"outbound only": {func(w *world, socket string) {
			w.settings["smtpd_milters"] = ""
			w.remove(socket)
		}, []string{"warning: smtpd_milters does not name ruapost-milter, which does not run ... not judged"}},
		"neither in nor out": {func(w *world, socket string) {
			w.settings["smtpd_milters"], w.settings["smtp_tls_policy_maps"] = "", ""
			w.remove(socket)
		}, []string{"fault: smtpd_milters does not name ruapost-milter", "fault: smtp_tls_policy_maps"}},
		"no smtpd":        {func(w *world, _ string) { w.masterCf, w.settings["smtpd_milters"] = "", "" }, nil},
		"submission only": {func(w *world, _ string) { w.masterCf = "submission/inet/command = smtpd\n" }, nil},
		"absolute path, which means another in the chroot": {func(w *world, socket string) { w.settings["smtpd_milters"] = "unix:" + socket }, []string{
			"fault: smtpd_milters does not name ruapost-milter as smtpd(8) reaches it",
		}},
		"absolute path without chroot": {func(w *world, socket string) {
			w.settings["smtpd_milters"] = "unix:" + socket
			w.masterCf = "smtp/inet/chroot = n\nsmtp/inet/command = smtpd\n"
		}, nil},
		"master.cf takes it out": {func(w *world, _ string) { w.overrides = map[string]string{"smtp/inet/smtpd_milters": ""} }, []string{
			"fault: smtpd_milters does not name",
		}},
		"master.cf puts it in": {func(w *world, _ string) {
			w.settings["smtpd_milters"] = ""
			w.overrides = map[string]string{"smtp/inet/smtpd_milters": ours}
		}, nil},
		"master.cf takes it out of submission": {func(w *world, _ string) {
			w.overrides = map[string]string{"submission/inet/smtpd_milters": ""}
		}, nil},
		"at one address only": {func(w *world, _ string) {
			w.masterCf += "192.0.2.1:25/inet/command = smtpd\n"
			w.overrides = map[string]string{"192.0.2.1:25/inet/smtpd_milters": ""}
		}, []string{"warning: smtpd_milters of 192.0.2.1:25/inet in master.cf ... mail that comes in there is not judged"}},
		"behind postscreen(8)": {func(w *world, _ string) {
			w.masterCf = "smtp/inet/command = postscreen\nsmtpd/pass/command = smtpd\n"
		}, nil},
		"no_milters": {func(w *world, _ string) { w.settings["receive_override_options"] = "no_milters" }, []string{"fault: smtpd_milters does not name"}},
		"behind a filter, whose way back has no milters": {func(w *world, _ string) {
			w.masterCf += "127.0.0.1:10026/inet/command = smtpd\nsubmission/inet/command = smtpd\n"
			w.overrides = map[string]string{
				"smtp/inet/smtpd_proxy_filter":                  "127.0.0.1:10025",
				"127.0.0.1:10026/inet/receive_override_options": "no_milters",
			}
		}, []string{"fault: smtpd_milters does not name"}},
		"behind a filter": {func(w *world, _ string) {
			w.masterCf += "127.0.0.1:10026/inet/command = smtpd\n"
			w.overrides = map[string]string{"smtp/inet/smtpd_proxy_filter": "127.0.0.1:10025", "smtp/inet/smtpd_milters": ""}
		}, nil},

		"no socket": {func(w *world, socket string) { w.remove(socket) }, []string{
			"fault: milter socket ... there is none: mail that comes in is not judged ... => ... enable --now ruapost-milter.socket",
		}},
		"left behind": {func(w *world, socket string) { w.leave("unix", socket) }, []string{"fault: milter socket ... nobody listens: mail"}},
		"Postfix may not write to it": {func(w *world, socket string) { w.mode(socket, 0o600) }, []string{
			"fault: milter socket ... user nobody may not write to DIR/queue/run/ruapost/milter.sock",
		}},
		"link out of the chroot of smtpd": {func(w *world, socket string) {
			w.remove(socket)
			w.listenMilter("elsewhere.sock")
			w.mode(w.dir, 0o755)
			if err := os.Rename(filepath.Join(w.sockets, "elsewhere.sock"), w.path("away.sock")); err != nil {
				w.t.Fatal(err)
			}
			if err := os.Symlink(w.path("away.sock"), socket); err != nil {
				w.t.Fatal(err)
			}
		}, []string{"fault: milter socket ... a symbolic link leads to DIR/away.sock, outside the chroot"}},
		// systemd holds the socket of a milter that does not start.
		"somebody hangs up": {func(w *world, socket string) {
			w.remove(socket)
			l, err := net.Listen("unix", socket)
			if err != nil {
				w.t.Fatal(err)
			}
			w.t.Cleanup(func() { l.Close() })
			w.mode(socket, 0o666)
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					conn.Close()
				}
			}()
		}, []string{"fault: milter socket ... the milter does not answer: ... status ruapost-milter.socket"}},
		"somebody else": {func(w *world, socket string) {
			w.remove(socket)
			w.listen(filepath.Base(socket))
		}, []string{"fault: milter socket ... the milter does not answer:"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tt.change(w, w.cfg.Milter.Listen[0].Address)
			w.expect(w.check(), tt.want...)
		})
	}
}

// A mend must not have Postfix ask somebody who does not answer: it would defer all mail.
func TestTableOnlyIfAnswered(t *testing.T) {
	w := newWorld(t)
	w.settings["smtp_tls_policy_maps"] = ""
	w.remove(w.cfg.TLSPolicy.Listen[0].Address)
	findings := w.check()
	w.expect(findings, "fault: policy socket ... there is none", "fault: smtp_tls_policy_maps ... does not ask ... => ... setup --apply")
	if all := strings.Join(troubles(findings), "\n"); strings.Contains(all, "postconf -e") {
		t.Errorf("offers the table:\n%s", all)
	}
}

// Behind a relay host there are no policies to ask for, as setup says.
func TestRelayHost(t *testing.T) {
	w := newWorld(t)
	w.settings["relayhost"] = "[relay.example]"
	for _, name := range []string{"smtp_tls_policy_maps", "smtp_dns_support_level", "smtp_tls_CAfile", "smtp_tlsrpt_enable"} {
		w.settings[name] = ""
	}
	w.remove(w.cfg.TLSPolicy.Listen[0].Address)
	w.expect(w.check(), "warning: relayhost = [relay.example] ... of no use")
	// What is there is looked at all the same, as it can defer mail.
	w.settings["smtp_tls_policy_maps"] = "socketmap:unix:run/ruapost/policy.sock:QUERYwithTLSRPT"
	w.expect(w.check(), "fault: policy socket ... there is none", "fault: smtp_dns_support_level", "fault: smtp_tls_CAfile", "fault: smtp_tlsrpt_enable", "warning: relayhost")
}
