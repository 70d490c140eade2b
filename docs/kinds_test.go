package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ruapost/config"
	"ruapost/dmarc"
	"ruapost/internal/dnstest"
	"ruapost/tlsrpt"
)

// kind says what a piece of a block is, and so how it is tested.
type kind string

const (
	commands  kind = "commands"
	settings  kind = "ruapost.toml"
	mainCf    kind = "main.cf"
	masterCf  kind = "master.cf"
	zone      kind = "zone"
	otherFile kind = "file" // added to where the page says
	shown     kind = "shown"
)

// piece is a block, or a part of one that has lines such as "# /etc/postfix/main.cf"
// before each.
type piece struct {
	page *page
	line int
	kind kind
	path string // of a file
	text string
}

// notRun are the blocks that are neither commands nor files, by their first line.
var notRun = map[string]string{
	"inbound mail                                              outbound mail":                         "the picture",
	`/^reports\+[a-z2-7]{44}@example\.org$/ ruapost-bounce:`:                                          "a table; e2e/bounce_test.go uses it",
	"judged queue_id=4cX0 client=198.51.100.7 domain=bank.example dmarc=fail policy=reject done=none": "a line of the log",
}

// runnable are the words that commands begin with.
var runnable = regexp.MustCompile(`^(ruapost-(milter|tlspolicy|reporter)|apt|chown|df|dig|grep|install|journalctl|ls|make|` +
	`openssl|podman|podman-compose|postconf|postfix|postmap|postqueue|postsuper|promtool|rm|rspamadm|sendmail|ss|sudo|sysctl|systemctl|systemd-sysusers|` +
	`systemd-tmpfiles|usermod)( |$)`)

var (
	fileHeader = regexp.MustCompile(`^# (/etc/[^ :;,]+)`)
	dropIn     = regexp.MustCompile(`^# systemctl edit ([a-z.-]+): add$`)
	section    = regexp.MustCompile(`^\[\[?(store|dns|milter|override|tlspolicy|tls_override|reporter|dkim|metrics|web)\]\]?$`)
	topLevel   = regexp.MustCompile(`^(org_name|report_domain) = `)
	parameter  = regexp.MustCompile(`^#?[a-z0-9_-]+ =`)
	service    = regexp.MustCompile(`^[a-z0-9-]+ +(unix|inet|fifo|pass) `)
	record     = regexp.MustCompile(` IN (TXT|MX|A|AAAA|TLSA) `)
)

// piecesOf returns all pieces of a page. That a block is of no kind is an error: whoever
// writes a new one says how it is tested.
func piecesOf(t *testing.T, p *page) []piece {
	t.Helper()
	var all []piece
	for _, b := range p.blocks {
		for _, part := range split(p, b) {
			if strings.HasPrefix(part.text, "root@mail:~# ") {
				part.kind = shown // e2e/deb replays quickstart.md
			}
			if part.kind == "" {
				part.kind = kindOf(part.text)
			}
			if part.kind == "" {
				t.Errorf("%s:%d: a block of no known kind: if these are commands, tell runnable of them; "+
					"if a file, begin with a line \"# /etc/...\"; else say in notRun why it is not tested", p.name, part.line)
				continue
			}
			all = append(all, part)
		}
	}
	return all
}

// split cuts a block where it names another file, or says "# and then".
func split(p *page, b block) []piece {
	parts := []piece{{page: p, line: b.line}}
	for i, line := range b.lines {
		last := &parts[len(parts)-1]
		path := headerPath(line)
		if path != "" || line == "# and then" {
			if strings.TrimSpace(last.text) == "" {
				parts = parts[:len(parts)-1]
			}
			parts = append(parts, piece{page: p, line: b.line + i})
			last = &parts[len(parts)-1]
		}
		switch {
		case path != "":
			last.path, last.kind = path, kindOfFile(path)
		case line == "# and then":
			last.kind = commands
		default:
			last.text += line + "\n"
		}
	}
	return parts
}

// headerPath returns the file that a line says the next ones belong to, empty for other lines.
func headerPath(line string) string {
	if m := fileHeader.FindStringSubmatch(line); m != nil {
		return m[1]
	}
	if m := dropIn.FindStringSubmatch(line); m != nil {
		unit := m[1]
		if filepath.Ext(unit) == "" {
			unit += ".service"
		}
		return "/etc/systemd/system/" + unit + ".d/override.conf"
	}
	return ""
}

func kindOfFile(path string) kind {
	switch filepath.Base(path) {
	case "ruapost.toml":
		return settings
	case "main.cf":
		return mainCf
	case "master.cf":
		return masterCf
	}
	return otherFile
}

func kindOf(text string) kind {
	first, _, _ := strings.Cut(text, "\n")
	switch {
	case notRun[first] != "":
		return shown
	case runnable.MatchString(first):
		return commands
	case section.MatchString(first), topLevel.MatchString(first):
		return settings
	case strings.HasPrefix(first, "; zone ") || record.MatchString(first):
		return zone
	case service.MatchString(first):
		return masterCf
	case parameter.MatchString(first):
		return mainCf
	}
	return ""
}

// commandsOf returns the commands of a piece. What stands behind two blanks, and in lines
// that are indented, tells about them.
func commandsOf(t *testing.T, p piece) []command {
	t.Helper()
	var all []command
	for i, line := range strings.Split(p.text, "\n") {
		if line == "" || line[0] == ' ' || line[0] == '#' {
			continue
		}
		text, _, _ := strings.Cut(line, "  ")
		if !runnable.MatchString(text) {
			t.Errorf("%s:%d: %q is no command that runnable knows", p.page.name, p.line+i, text)
			continue
		}
		all = append(all, command{p.page.name, p.line + i, text})
	}
	return all
}

// command is a command and where it stands.
type command struct {
	Page string
	Line int
	Text string
}

// own says whether it runs one of our programs and leaves the host as it is, as all do but
// setup.
func (c command) own() bool {
	text := strings.TrimPrefix(c.Text, "sudo -u ruapost ")
	return strings.HasPrefix(text, "ruapost-") && !strings.HasPrefix(text, "ruapost-reporter setup")
}

// TestSettings has the configuration read each piece of ruapost.toml, each by itself: its
// keys exist, and its values can be used.
func TestSettings(t *testing.T) {
	n := 0
	for _, p := range pages(t) {
		for _, part := range piecesOf(t, p) {
			if part.kind != settings {
				continue
			}
			n++
			file := filepath.Join(t.TempDir(), "ruapost.toml")
			if err := os.WriteFile(file, []byte(part.text), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := config.Load(file); err != nil {
				t.Errorf("%s:%d: %v", p.name, part.line, err)
			}
		}
	}
	if n < 5 {
		t.Errorf("%d pieces of configuration were found", n)
	}
}

// TestKeysInText looks whether keys that are named with their sections exist.
func TestKeysInText(t *testing.T) {
	sample, err := os.ReadFile("../contrib/ruapost.toml")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	in := ""
	for line := range strings.Lines(string(sample)) {
		if m := regexp.MustCompile(`^#?\[\[?([a-z_]+)\]`).FindStringSubmatch(line); m != nil {
			in = m[1]
		} else if m := regexp.MustCompile(`^#? *([a-z_]+) = `).FindStringSubmatch(line); m != nil {
			known[in+"."+m[1]] = true
		}
	}
	key := regexp.MustCompile(`^(store|dns|milter|tlspolicy|reporter|dkim|metrics|web)\.([a-z_]+)( = .*)?$`)
	for _, p := range pages(t) {
		for _, s := range p.spans {
			if m := key.FindStringSubmatch(s.text); m != nil && !known[m[1]+"."+m[2]] {
				t.Errorf("%s:%d: there is no key %s.%s", p.name, s.line, m[1], m[2])
			}
		}
	}
}

// txt is a record of ours in a zone.
var txt = regexp.MustCompile(`(?m)^(\S+) +IN TXT +"(.*)"$`)

// recordFault returns what is wrong with a record, empty if nothing is.
func recordFault(name, text string) string {
	switch {
	case strings.HasPrefix(name, "_dmarc"), strings.Contains(name, "._report._dmarc."):
		switch r, err := dmarc.ParseRecord(text); {
		case err != nil:
			return err.Error()
		case strings.HasPrefix(name, "_dmarc"):
			return strings.Join(r.Flaws, "; ")
		}
	case strings.HasPrefix(name, "_smtp._tls"):
		switch r, err := tlsrpt.ParseRecord([]string{text}); {
		case err != nil:
			return err.Error()
		case len(r.RUA) == 0:
			return "no destination"
		}
	}
	return ""
}

// TestZones has a name server read the records, and the packages that know them.
func TestZones(t *testing.T) {
	server, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	n := 0
	for _, p := range pages(t) {
		for _, part := range piecesOf(t, p) {
			if part.kind == zone {
				for _, m := range txt.FindAllStringSubmatch(part.text, -1) {
					if fault := recordFault(m[1], m[2]); fault != "" {
						t.Errorf("%s:%d: %s: %s", p.name, part.line, m[1], fault)
					}
				}
				n++
				func() {
					defer func() {
						if r := recover(); r != nil {
							t.Errorf("%s:%d: %v", p.name, part.line, r)
						}
					}()
					server.Add("$ORIGIN example.org.\n$TTL 300\n" + part.text)
				}()
			}
		}
	}
	if n < 2 {
		t.Errorf("%d pieces of zones were found", n)
	}
}

// TestEveryBlockIsKnown fails for blocks and commands that nothing tests, and for entries
// of notRun that no page has.
func TestEveryBlockIsKnown(t *testing.T) {
	var firsts []string
	for _, p := range pages(t) {
		for _, part := range piecesOf(t, p) {
			first, _, _ := strings.Cut(part.text, "\n")
			firsts = append(firsts, first)
			if part.kind == commands {
				commandsOf(t, part)
			}
		}
	}
	for first := range notRun {
		if !slices.Contains(firsts, first) {
			t.Errorf("notRun has a block that is on no page: %s", first)
		}
	}
}
