package deb

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// update has TestQuickStart write what the commands say into the page.
var update = flag.Bool("update", false, "write what the commands of docs/quickstart.md say into it")

const (
	quickStart = "../../docs/quickstart.md"
	prompt     = "    root@mail:~# "
)

// bareMainCf is what Debian's package makes out of the answers "Internet Site" and the
// host's name, but for the address, as others have port 25 in this namespace, too.
const bareMainCf = `compatibility_level = 3.9
myhostname = mail.receiver.example
mydestination = $myhostname, receiver.example, localhost
alias_maps = hash:/etc/aliases
alias_database = hash:/etc/aliases
mailbox_size_limit = 0
recipient_delimiter = +
inet_interfaces = ` + postfixIP + `, 127.0.0.1
inet_protocols = ipv4
smtpd_relay_restrictions = permit_mynetworks permit_sasl_authenticated defer_unauth_destination
smtp_tls_security_level = may
smtp_tls_CApath = /etc/ssl/certs
`

// The log of docs/quickstart.md: each of its commands says in a Debian with nothing but
// Postfix what stands there, and at the end a report mail has left. "..." stands for any
// text.
func TestQuickStart(t *testing.T) {
	w := newWorld(t)
	r := bootable(t, "trixie", bareMainCf)
	r.run("useradd", "-m", "alice")
	r.run("newaliases")
	r.run("cp", "/mnt/"+older, "/root/")
	m := start(r)

	text, err := os.ReadFile(quickStart)
	if err != nil {
		t.Fatal(err)
	}
	w.dns.Add(`receiver.example. 300 IN MX 10 mail.receiver.example.
receiver.example. 300 IN TXT "v=spf1 mx -all"
mail.receiver.example. 300 IN A ` + postfixIP + `
25.2.0.192.in-addr.arpa. 300 IN PTR mail.receiver.example.`)
	// What the reader does between the commands.
	after := map[string]func(said string){
		"ruapost-reporter dkim-keygen /etc/ruapost/dkim.pem": func(said string) {
			record, section, _ := strings.Cut(said, "[dkim]\n")
			w.dns.Add(record)
			m.write("/usr/local/bin/editor", "#!/bin/sh\nsed -i '/^\\[dkim\\]/r /root/key' \"$1\"\n")
			m.run("chmod", "755", "/usr/local/bin/editor")
			m.write("/root/key", section)
		},
		"ruapost-reporter check": func(said string) {
			for line := range strings.Lines(said) {
				if strings.HasPrefix(line, "_dmarc.") {
					w.dns.Add(line)
				}
			}
			w.visit(m)
		},
		"ruapost-reporter send --now": func(string) { w.wait(1) },
	}
	began := time.Now()
	page, commands := m.replay(string(text), after)
	t.Logf("%d commands in %v", commands, time.Since(began))
	if got := w.last(); len(got.To) != 1 || got.To[0] != "dmarc@sender.example" || !strings.Contains(string(got.Data), "Report Domain: sender.example") {
		t.Errorf("the report did not leave: %v\n%s", got.To, got.Data)
	} else if !strings.Contains(string(got.Data), "DKIM-Signature: ") {
		t.Errorf("the report is not signed:\n%s", got.Data)
	}
	if others := m.run("find", "/var/lib/ruapost", "!", "-user", "ruapost"); others != "" {
		t.Errorf("root's commands have left in a folder of the user ruapost:\n%s", others)
	}
	if *update {
		if err := os.WriteFile(quickStart, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m.stop()
}

// visit has alice get two mails: one that is from whom it says, and one that is not.
func (w *world) visit(m *machine) {
	w.t.Helper()
	w.send(clientIP, 1)
	w.send(forgerIP, 2)
	eventually(w.t, "alice has two mails", func() bool {
		box, _ := os.ReadFile(m.path("/var/mail/alice"))
		return strings.Count(string(box), "\nSubject: hello\n") == 2
	})
}

// replay runs the commands of a page, and compares what they say with what stands there. It
// returns the page with what they have said. After the first run of some something else happens.
func (m *machine) replay(page string, after map[string]func(said string)) (said string, commands int) {
	m.t.Helper()
	var out strings.Builder
	lines := strings.SplitAfter(page, "\n")
	for i := 0; i < len(lines); {
		line := lines[i]
		i++
		out.WriteString(line)
		command, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), prompt)
		if !ok {
			continue
		}
		var want strings.Builder
		for ; i < len(lines) && (lines[i] == "\n" || strings.HasPrefix(lines[i], "    ")) && !strings.HasPrefix(lines[i], prompt); i++ {
			want.WriteString(strings.TrimPrefix(lines[i], "    "))
		}
		got := m.say(command)
		commands++
		if !matches(got, want.String()) {
			m.t.Errorf("%s says:\n%s\ninstead of:\n%s", command, got, &want)
			want.Reset()
			want.WriteString(got)
		}
		if then := after[command]; then != nil {
			delete(after, command) // once
			then(got)
		}
		for line := range strings.Lines(strings.TrimRight(want.String(), "\n")) {
			out.WriteString(strings.TrimRight("    "+line, "\n ") + "\n")
		}
		if i < len(lines) && !strings.HasPrefix(lines[i], prompt) {
			out.WriteString("\n")
		}
	}
	return out.String(), commands
}

// say runs a command at root's prompt and returns what it says, whatever its exit status.
func (m *machine) say(command string) string {
	m.t.Helper()
	out, _ := m.command("sh", "-c", "cd /root && "+command).CombinedOutput()
	return string(out)
}

// date is a day in what commands say: that of the test is another one each time.
var date = regexp.MustCompile(`\d{4}-\d\d-\d\d`)

// matches compares two texts line by line, without blank lines, blanks at the end of one and
// the day; apt ends lines as terminals do.
func matches(got, pattern string) bool {
	squeeze := func(s string) (all []string) {
		for line := range strings.Lines(s) {
			if line = strings.TrimRight(line, " \r\n"); line != "" {
				all = append(all, line)
			}
		}
		return all
	}
	text := regexp.QuoteMeta(strings.Join(squeeze(pattern), "\n"))
	text = date.ReplaceAllLiteralString(text, date.String())
	re := regexp.MustCompile(`(?s)^` + strings.ReplaceAll(text, `\.\.\.`, `.*`) + `$`)
	return re.MatchString(strings.Join(squeeze(got), "\n"))
}
