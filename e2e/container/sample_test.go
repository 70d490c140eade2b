package container

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/emersion/go-msgauth/dkim"

	"ruapost/internal/lab"
)

// containers are those of the sample.
var containers = []string{"postfix", "ruapost-milter", "ruapost-tlspolicy", "ruapost-reporter"}

// TestSample does what docs/container.md says: mail that comes in through the sample's
// Postfix is judged, mail that goes out is sent as the policy wants it, also around a
// restart of the policy daemon, and the reports about both leave.
func TestSample(t *testing.T) {
	w := newWorld(t, makeImage(t))
	s := newSample(t, w)
	t.Cleanup(s.showLogs)
	s.do("podman-compose build")
	s.do("podman-compose up -d")
	eventually(t, "Postfix answers", func() bool {
		c, err := net.Dial("tcp", postfixIP+":25")
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	for _, container := range containers[1:] {
		s.checkConfined(container)
	}
	s.logged("ruapost-reporter", "nothing is due")

	s.checkIn(w)
	s.checkOut(w)
	s.checkReload()
	s.checkKilled("ruapost-milter", "milter.sock")
	s.checkReports(w)
	s.checkUpgrade()
	s.do("podman-compose down")
	checkPage(t)
}

// checkConfined wants a process of ruapost's to have no rights but those of its user, and
// nothing to write to but the volumes.
func (s *sample) checkConfined(container string) {
	s.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", s.process(container))
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		s.t.Fatalf("%s: %v", container, err)
	}
	const none = "0000000000000000"
	want := []string{
		"Uid:\t8460\t8460\t8460\t8460", "Gid:\t8460\t8460\t8460\t8460",
		"CapPrm:\t" + none, "CapEff:\t" + none, "CapBnd:\t" + none, "NoNewPrivs:\t1", "Seccomp:\t2",
	}
	for _, line := range want {
		if !strings.Contains(string(status), "\n"+line+"\n") {
			s.t.Errorf("%s: no %q in its status:\n%s", container, line, status)
		}
	}
	mounts, err := os.ReadFile(proc + "mounts")
	if err != nil {
		s.t.Fatal(err)
	}
	if f := strings.Fields(string(mounts)); f[1] != "/" || !strings.HasPrefix(f[3], "ro,") {
		s.t.Errorf("%s: the root can be written to:\n%s", container, mounts)
	}
}

// checkIn sends a mail to alice, who finds in it what the milter says of it.
func (s *sample) checkIn(w *world) {
	s.t.Helper()
	s.answers("milter.sock")
	send(s.t, clientIP, "bob@sender.example", "alice@receiver.example")
	mail := received(s.t, w.sink, 1)
	head, _, _ := bytes.Cut(mail.Data, []byte("\r\n\r\n"))
	if !bytes.Contains(head, []byte("Authentication-Results: mail.receiver.example;")) || !bytes.Contains(head, []byte("dmarc=pass")) {
		s.t.Errorf("mail has not been judged:\n%s", head)
	}
	if got := s.do("podman exec ruapost-milter ruapost-reporter list"); !strings.Contains(got, "sender.example") {
		s.t.Errorf("list has no sender.example:\n%s", got)
	}
	if got := s.do("podman logs ruapost-milter"); strings.Contains(got, "level=ERROR") {
		s.t.Errorf("log of the milter:\n%s", got)
	}
}

// checkOut sends mails to sts.example, of which one finds the policy daemon gone.
func (s *sample) checkOut(w *world) {
	s.t.Helper()
	s.do("podman exec postfix ruapost-tlspolicy check")
	const policy = "secure match=mx.sts.example servername=hostname"
	got := s.do("podman exec postfix postmap -q gmail.com socketmap:unix:/var/spool/postfix/run/ruapost/policy.sock:QUERY")
	if !strings.Contains(got, policy) {
		s.t.Errorf("postmap: %q, not %q", got, policy)
	}
	send(s.t, "127.0.0.1", "alice@receiver.example", "user@sts.example")
	first := received(s.t, w.sts, 1)

	run(s.t, "podman", "stop", "ruapost-tlspolicy")
	send(s.t, "127.0.0.1", "alice@receiver.example", "user@sts.example")
	eventually(s.t, "mail to sts.example is deferred", func() bool {
		return strings.Contains(run(s.t, "podman", "exec", "postfix", "postqueue", "-j"), `"queue_name": "deferred"`)
	})
	s.do("podman restart ruapost-tlspolicy")
	s.answers("policy.sock")
	s.do("podman exec postfix postqueue -f")
	if again := received(s.t, w.sts, 2); !first.TLS || !again.TLS {
		s.t.Errorf("mail to sts.example came with TLS: %v, after a restart: %v", first.TLS, again.TLS)
	}
	// What has been told by now is recorded before the daemon ends.
	s.do("podman restart ruapost-tlspolicy")
	s.answers("policy.sock")
}

// checkReload changes the configuration of the milter, in the folder that the container
// has mounted.
func (s *sample) checkReload() {
	s.t.Helper()
	s.edit("ruapost/ruapost.toml", "[[override]]\nsource = [\"192.0.2.0/24\"]\n")
	s.do("podman exec ruapost-milter ruapost-milter -check")
	s.do("podman kill --signal HUP ruapost-milter")
	s.logged("ruapost-milter", "overrides=1")
}

// checkKilled kills a daemon, which leaves its socket behind, and waits until it is there
// again.
func (s *sample) checkKilled(container, socket string) {
	s.t.Helper()
	pid := s.process(container)
	if pid == 0 {
		s.t.Fatalf("%s does not run", container)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, container+" is started again", func() bool {
		now := s.process(container)
		return now != 0 && now != pid
	})
	s.answers(socket)
}

// checkReports has the reporter mail the reports of today, and reads them.
func (s *sample) checkReports(w *world) {
	s.t.Helper()
	for _, address := range []string{"dmarc@sender.example", "tls@sts.example"} {
		if got := s.do("podman exec ruapost-reporter ruapost-reporter send --now --dry-run"); !strings.Contains(got, address) {
			s.t.Errorf("send --dry-run has no %s:\n%s", address, got)
		}
	}
	run(s.t, "podman", "exec", "ruapost-reporter", "ruapost-reporter", "send", "--now", "--domain", "sender.example")
	aggregate := s.report(received(s.t, w.sink, 2), "dmarc@sender.example")
	for _, want := range []string{"<domain>sender.example</domain>", "<source_ip>" + clientIP + "</source_ip>", "<count>1</count>"} {
		if !bytes.Contains(aggregate, []byte(want)) {
			s.t.Errorf("DMARC report has no %s:\n%s", want, aggregate)
		}
	}
	var tls struct {
		Policies []struct {
			Policy struct {
				Type string `json:"policy-type"`
			}
			Summary struct {
				Successful int `json:"total-successful-session-count"`
				Failed     int `json:"total-failure-session-count"`
			}
		}
	}
	// The other way that the page tells of.
	run(s.t, "podman", "exec", "-u", "ruapost", "postfix", "ruapost-reporter", "send", "--now")
	text := s.report(received(s.t, w.sts, 3), "tls@sts.example")
	if err := json.Unmarshal(text, &tls); err != nil {
		s.t.Fatal(err)
	}
	if p := tls.Policies; len(p) != 1 || p[0].Policy.Type != "sts" || p[0].Summary.Successful != 2 || p[0].Summary.Failed != 0 {
		s.t.Errorf("TLS report: %s", text)
	}
}

// report returns the report in a mail to the given address, which must be signed.
func (s *sample) report(mail lab.Message, to string) []byte {
	s.t.Helper()
	if len(mail.To) != 1 || mail.To[0] != to || mail.From != "reports@receiver.example" {
		s.t.Fatalf("report mail from %s to %v, not to %s", mail.From, mail.To, to)
	}
	signatures, err := dkim.Verify(bytes.NewReader(mail.Data))
	if err != nil || len(signatures) != 1 || signatures[0].Err != nil || signatures[0].Domain != "receiver.example" {
		s.t.Errorf("report to %s: signatures %+v, %v", to, signatures, err)
	}
	report, err := lab.ReadReportMail(mail.Data)
	if err != nil {
		s.t.Fatalf("report to %s: %v\n%s", to, err, mail.Data)
	}
	return report.Content
}

// checkUpgrade wants the programs to end in good order as the first processes of their
// containers, and what they know to be there when the containers are made anew.
func (s *sample) checkUpgrade() {
	s.t.Helper()
	for _, container := range containers[1:] {
		run(s.t, "podman", "stop", container)
		if status := run(s.t, "podman", "inspect", "-f", "{{.State.ExitCode}}", container); status != "0\n" {
			s.t.Errorf("%s: exit status %s", container, status)
		}
	}
	do(s.t, tree, "make container")
	s.do("podman-compose build")
	s.do("podman-compose up -d --force-recreate")
	s.answers("policy.sock")
	got := run(s.t, "podman", "exec", "ruapost-milter", "ruapost-reporter", "history")
	for _, address := range []string{"dmarc@sender.example", "tls@sts.example"} {
		if !strings.Contains(got, address) {
			s.t.Errorf("history has no %s:\n%s", address, got)
		}
	}
}
