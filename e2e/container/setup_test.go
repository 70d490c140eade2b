package container

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// sample is what is in contrib/container, set up for receiver.example.
type sample struct {
	dir string // of compose.yaml
	t   *testing.T
}

// newSample copies the sample and puts in our names, as its page says.
func newSample(t *testing.T, w *world) *sample {
	t.Helper()
	importDebian(t)
	const contrib = "/run/contrib"
	if err := os.CopyFS(contrib, os.DirFS(tree+"/contrib")); err != nil {
		t.Fatal(err)
	}
	s := &sample{dir: contrib + "/container", t: t}
	s.edit("postfix/main.cf", mainCf)
	s.edit("ruapost/ruapost.toml", "")
	printed := strings.Split(s.do("podman run --rm --network=none --user=0 -v ./ruapost:/etc/ruapost localhost/ruapost "+
		"ruapost-reporter dkim-keygen /etc/ruapost/dkim.pem"), "\n\n")
	if len(printed) != 4 {
		t.Fatalf("dkim-keygen: %q", printed)
	}
	w.dns.Add(printed[1])
	s.edit("ruapost/ruapost.toml", "\n"+printed[3])
	return s
}

// mainCf is what our site has: the people, a server with their mailboxes, and other
// mail servers at the same host's other addresses.
const mainCf = `
local_recipient_maps = inline:{alice=x, reports=x}
local_transport = smtp:[` + sinkIP + `]:25
inet_interfaces = 127.0.0.1, ` + postfixIP + `
smtpd_peername_lookup = no
`

// edit puts our names into a file of the sample, and text behind.
func (s *sample) edit(name, text string) {
	s.t.Helper()
	file := filepath.Join(s.dir, name)
	content, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	content = append([]byte(strings.ReplaceAll(string(content), "example.org", "receiver.example")), text...)
	if err := os.WriteFile(file, content, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// importDebian makes the image that the sample's Postfix is based on, without what need
// not be in it. The packages are installed in it already, so that no mirror is needed.
func importDebian(t *testing.T) {
	t.Helper()
	const bundle = "./etc/ssl/certs/ca-certificates.crt"
	pack := "tar -c -C " + debian() + " --exclude=./proc/* --exclude=./dev/* --exclude=./usr/lib/python3* --exclude=./var/cache/apt/*"
	for _, name := range []string{"doc", "locale", "man", "perl", "rspamd"} {
		pack += " --exclude=./usr/share/" + name
	}
	pack += fmt.Sprintf(" --exclude=%s --transform=s,^%s,%s, . -C / %[2]s", bundle, strings.TrimPrefix(authorities, "/"), bundle)
	run(t, "sh", "-c", pack+" | podman import -q - docker.io/library/debian:trixie-slim")
}

// do runs a command of docs/container.md in the sample's folder.
func (s *sample) do(command string) string {
	s.t.Helper()
	return do(s.t, s.dir, command)
}

// process returns the number of the first process of a container, 0 if there is none.
func (s *sample) process(container string) int {
	s.t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(run(s.t, "podman", "inspect", "-f", "{{.State.Pid}}", container)))
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

// answers waits until the daemon behind a socket answers.
func (s *sample) answers(socket string) {
	s.t.Helper()
	root := strings.TrimSpace(run(s.t, "podman", "volume", "inspect", "-f", "{{.Mountpoint}}", "container_sockets"))
	eventually(s.t, socket+" answers", func() bool {
		c, err := net.DialTimeout("unix", filepath.Join(root, socket), time.Second)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

// logged waits until a container has something in its log.
func (s *sample) logged(container, text string) {
	s.t.Helper()
	eventually(s.t, container+" logs "+text, func() bool {
		out, err := exec.Command("podman", "logs", container).CombinedOutput()
		return err == nil && strings.Contains(string(out), text)
	})
}

// showLogs has the logs of all containers in the test's if it fails.
func (s *sample) showLogs() {
	if !s.t.Failed() {
		return
	}
	for _, container := range containers {
		out, err := exec.Command("podman", "logs", container).CombinedOutput()
		s.t.Logf("log of %s: %v\n%s", container, err, out)
	}
}
