package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ruapost/internal/lab"
)

// TestSetup puts ruapost beside Postfix as Debian installs it, by "ruapost-reporter setup"
// alone, and takes it away again.
func TestSetup(t *testing.T) { eachVersion(t, versions, testSetup) }

func testSetup(t *testing.T, v version) {
	h := newHost(t, v)
	before, beforeToml := h.p.read(mainCfFile), h.p.read(tomlFile)
	h.p.start()

	// Nobody answers yet: nothing may be done that has mail wait for that.
	h.setup(1, "smtpd_milters has to wait", "smtp_tls_policy_maps has to wait", "systemctl enable --now ruapost-policy.socket")
	if h.p.read(mainCfFile) != before || h.p.read(tomlFile) != beforeToml {
		t.Error("something was changed without --apply")
	}
	for _, option := range []string{"--apply", "--undo"} { // nobody's are other rights than root's
		out, err := h.p.command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/local/sbin/ruapost-reporter", "setup", option).CombinedOutput()
		if text := string(out); err == nil || !strings.Contains(text, "run this as root") || strings.Contains(text, "not yet") {
			t.Errorf("%s as another user: %v\n%s", option, err, text)
		}
	}
	h.setup(1, "--apply", "not yet, see TO DO above", "postfix reload", "setup --apply # again, when what TO DO says is done")
	h.wants(map[string]string{
		"smtpd_milters": "", "smtp_tls_policy_maps": "", "smtp_tls_security_level": "dane", "smtp_dns_support_level": "dnssec", "smtp_tls_loglevel": "1",
	})
	h.reload()
	h.mailOut()

	milter := h.r.startMilter()
	tlspolicy := h.r.startTLSPolicy()
	h.setup(0, "--apply", "Done")
	h.wantsOurs(v, "", "")
	h.setup(0, "--apply", "Nothing is to be changed")
	h.reload()
	h.mailIn(authservID + " dmarc=pass")
	h.mailOut()
	h.recorded("dkim.example", "sts.setup.example", "dane.setup.example")
	h.checkFindsNoFault()

	// Postfix asks nobody any more, and all is as it was, to the octet.
	h.setup(0, "--undo", "put back: smtpd_milters", "postfix reload")
	h.same(mainCfFile, before)
	h.same(tomlFile, beforeToml)
	h.setup(0, "--undo", "there is nothing to put back")
	h.reload()
	milter.stop()
	tlspolicy.stop()
	h.mailIn()
	h.mailOut()

	// What somebody has changed since stays.
	h.r.startMilter()
	h.r.startTLSPolicy()
	h.setup(0, "--apply")
	h.p.run(nil, "postconf", "-e", "smtp_tls_loglevel = 2", "smtpd_banner = $myhostname")
	h.setup(1, "--undo", "smtp_tls_loglevel was changed since and stays: it is 2", "postconf -X smtp_tls_loglevel")
	h.wants(map[string]string{"smtpd_milters": "", "smtp_tls_policy_maps": "", "smtp_tls_loglevel": "2", "smtpd_banner": "$myhostname"})
	h.same(tomlFile, beforeToml)

	h.undoEdited(before)
}

// undoEdited has setup taken back where ruapost.toml has a mistake, and where somebody has
// changed the lists that it is in.
func (h *host) undoEdited(before string) {
	h.t.Helper()
	toml := h.p.read(tomlFile)
	h.p.configure(before)
	h.setup(0, "--apply")
	h.p.write(tomlFile, "report_domian = \"x\"\n"+h.p.read(tomlFile))
	h.setup(0, "--undo", "put back: smtp_tls_policy_maps", "postfix reload")
	h.same(mainCfFile, before)
	h.p.write(tomlFile, toml)

	h.setup(0, "--apply")
	mine := []string{"smtp_tls_policy_maps = inline:{{other.example=none}}, $smtp_tls_policy_maps", "smtpd_milters = " + atOpenDKIM + ", $smtpd_milters"}
	for i, line := range mine {
		name, _, _ := strings.Cut(line, " ")
		mine[i] = strings.ReplaceAll(line, "$"+name, strings.TrimSpace(string(h.p.run(nil, "postconf", "-h", name))))
	}
	h.p.run(nil, append([]string{"postconf", "-e"}, mine...)...)
	h.setup(0, "--undo", "smtp_tls_policy_maps was changed since: what setup put in is not there any more")
	h.wants(map[string]string{"smtpd_milters": atOpenDKIM, "smtp_tls_policy_maps": "inline:{{other.example=none}}"})

	// By a parameter of somebody's own Postfix would go on asking.
	h.p.configure(before)
	h.setup(0, "--apply")
	table := strings.TrimSpace(string(h.p.run(nil, "postconf", "-h", "smtp_tls_policy_maps")))
	h.p.run(nil, "postconf", "-e", "my_tables = inline:{{other.example=none}}, "+table, "smtp_tls_policy_maps = $my_tables")
	h.setup(1, "--undo", "Postfix still asks ruapost, and mail waits when its daemons stop: my_tables", "postconf -e 'my_tables = inline:{{other.example=none}}'")
	h.p.run(nil, "postconf", "-e", "my_tables = inline:{{other.example=none}}")
	h.setup(0, "--undo", "smtp_tls_policy_maps was changed since")
	h.setup(0, "--undo", "there is nothing to put back")
}

// The files that setup changes, in the root.
const (
	mainCfFile = "etc/postfix/main.cf"
	tomlFile   = "etc/ruapost/ruapost.toml"
)

// What setup must put into main.cf.
const (
	ourMilter = "{ unix:run/ruapost/milter.sock, default_action=accept, protocol=6, connect_timeout=10s, command_timeout=15s, content_timeout=60s }"
	ourTable  = "socketmap:unix:run/ruapost/policy.sock:"
)

// theirs is other software that setup meets.
type theirs struct {
	name   string
	mainCf []string
	start  []program // what of it runs
	args   []string  // of setup
	status int
	says   []string
	// milters are those before and behind ours, tables the policy maps before ours; noTable
	// says that ours must not be there.
	milters [2]string
	tables  string
	noTable bool
}

// program is a program of others that runs beside Postfix, at a TCP port of this host.
type program struct {
	port string
	argv []string
}

var (
	runOpenDKIM  = program{"8891", []string{"opendkim", "-f"}}
	runOpenDMARC = program{"8893", []string{"opendmarc", "-f"}}
	runResolver  = program{"8461", []string{"env", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt", "mta-sts-daemon", "--config", "/etc/mta-sts-daemon.yml"}}
)

const (
	atOpenDKIM  = "inet:localhost:8891"
	atOpenDMARC = "inet:localhost:8893"
	atResolver  = "socketmap:inet:127.0.0.1:8461:postfix"
	atTLSpol    = "socketmap:inet:127.0.0.1:8642:QUERY"
)

var beside = []theirs{
	{
		name:    "opendkim signs and verifies",
		mainCf:  []string{"smtpd_milters = " + atOpenDKIM, "non_smtpd_milters = $smtpd_milters", "milter_default_action = accept", "milter_protocol = 2"},
		start:   []program{runOpenDKIM},
		says:    []string{"opendkim is in smtpd_milters: " + atOpenDKIM + ", and stays", "opendkim sees what sendmail submits"},
		milters: [2]string{atOpenDKIM, ""},
	},
	{
		name:    "opendkim and opendmarc, both kept",
		mainCf:  []string{"my_milters = " + atOpenDMARC, "smtpd_milters = " + atOpenDKIM + " $my_milters"},
		start:   []program{runOpenDKIM, runOpenDMARC},
		says:    []string{"opendmarc judges mail, too", "setup --replace opendmarc"},
		milters: [2]string{atOpenDKIM + ", $my_milters", ""},
	},
	{
		name:    "opendmarc is replaced",
		mainCf:  []string{"smtpd_milters = " + atOpenDKIM + ", " + atOpenDMARC},
		start:   []program{runOpenDKIM},
		args:    []string{"--replace", "opendmarc"},
		says:    []string{"opendmarc is in smtpd_milters: " + atOpenDMARC + ", to be replaced", "systemctl disable --now opendmarc"},
		milters: [2]string{atOpenDKIM, ""},
	},
	{
		name:    "opendkim that signs is not replaced",
		mainCf:  []string{"smtpd_milters = " + atOpenDKIM},
		args:    []string{"--replace", "opendkim,opendmarc"},
		status:  1,
		says:    []string{"--replace opendkim: it signs your mail", "--replace opendmarc: there is no such thing"},
		milters: [2]string{atOpenDKIM, ""},
	},
	{
		name:    "a milter with options is replaced",
		mainCf:  []string{"smtpd_milters = " + atOpenDKIM + ", { inet:localhost:1234, default_action=accept }"},
		args:    []string{"--replace", "{ inet:localhost:1234, default_action=accept }"},
		milters: [2]string{atOpenDKIM, ""},
	},
	{
		name:    "rspamd",
		mainCf:  []string{"smtpd_milters = inet:localhost:11332", "non_smtpd_milters = inet:localhost:11332", "milter_default_action = accept"},
		says:    []string{"rspamd is in smtpd_milters", "rspamd may send DMARC reports, too"},
		milters: [2]string{"", "inet:localhost:11332"},
	},
	{
		name:    "postfix-mta-sts-resolver is kept",
		mainCf:  []string{"smtp_tls_policy_maps = " + atResolver, "smtp_tls_CAfile = /etc/ssl/certs/ca-certificates.crt"},
		start:   []program{runResolver},
		status:  1,
		says:    []string{"mta-sts-resolver says which TLS policy a domain has", "setup --replace mta-sts-resolver"},
		tables:  atResolver,
		noTable: true,
	},
	{
		name:   "postfix-mta-sts-resolver is replaced",
		mainCf: []string{"smtp_tls_policy_maps = inline:{{other.example=none}}, " + atResolver},
		start:  []program{runResolver},
		args:   []string{"--replace", "postfix-mta-sts-resolver"},
		says:   []string{"systemctl disable --now postfix-mta-sts-resolver"},
		tables: "inline:{{other.example=none}}",
	},
	{
		name:   "postfix-tlspol is replaced",
		mainCf: []string{"smtp_tls_policy_maps = " + atTLSpol, "smtp_tls_security_level = dane", "smtp_dns_support_level = dnssec"},
		args:   []string{"--replace", "postfix-tlspol"},
	},
	{
		name:   "a stricter level stays",
		mainCf: []string{"smtp_tls_security_level = encrypt", "smtp_tls_policy_maps = $my_tables", "my_tables = inline:{{other.example=none}}"},
		says:   []string{"smtp_tls_security_level = encrypt is stricter than dane, and stays"},
		tables: "$my_tables",
	},
}

// TestSetupBeside puts ruapost beside other software that does some of the same.
func TestSetupBeside(t *testing.T) { eachVersion(t, versions, testSetupBeside) }

func testSetupBeside(t *testing.T, v version) {
	h := newHost(t, v)
	h.p.warnings = append(h.p.warnings, "symlink leaves directory: /etc/postfix-out/") // of the copy
	h.configureOthers()
	// The name that milters before or behind may take for theirs.
	h.p.write(tomlFile, strings.Replace(h.p.read(tomlFile), "[milter]\n", "[milter]\nauthserv_id = \""+authservID+"\"\n", 1))
	h.r.startMilter()
	h.r.startTLSPolicy()
	fresh := h.p.read(mainCfFile)
	h.p.start()
	t.Run("another instance", func(t *testing.T) { h.on(t).meetInstance() })
	for _, other := range beside {
		t.Run(other.name, func(t *testing.T) { h.on(t).meet(v, fresh, other) })
	}
}

// meet has setup put ruapost beside other software, exchanges mail, and takes it away again.
func (h *host) meet(v version, fresh string, other theirs) {
	h.t.Helper()
	for _, p := range other.start {
		defer h.run(p)()
	}
	h.p.configure(fresh)
	h.p.run(nil, append([]string{"postconf", "-e"}, other.mainCf...)...)
	h.p.configure(h.p.read(mainCfFile)) // as if some time had passed
	before, beforeToml := h.p.read(mainCfFile), h.p.read(tomlFile)

	milters := strings.Join(slices.DeleteFunc([]string{other.milters[0], ourMilter, other.milters[1]}, func(s string) bool { return s == "" }), ", ")
	if other.start == nil { // what is proposed will do
		h.setup(other.status, slices.Concat(other.args, other.says, []string{"smtpd_milters = " + milters, "smtp_tls_policy_maps = " + tables(v, other.tables)})...)
		h.same(mainCfFile, before)
		return
	}
	h.setup(other.status, slices.Concat(other.args, []string{"--apply"}, other.says)...)
	if other.noTable {
		h.wants(map[string]string{"smtp_tls_policy_maps": other.tables, "smtpd_milters": milters})
	} else {
		h.wantsOurs(v, milters, other.tables)
	}
	h.reload()
	h.mailIn(authservID + " dmarc=pass")
	h.mailOut()
	h.setup(0, "--undo")
	h.same(mainCfFile, before)
	h.same(tomlFile, beforeToml)
}

// meetInstance has setup look at, and change, another instance of Postfix, with a queue
// directory where no socket is.
func (h *host) meetInstance() {
	h.t.Helper()
	const dir, file = "/etc/postfix-out", "etc/postfix-out/main.cf"
	h.p.run(nil, "cp", "-a", "/etc/postfix", dir)
	h.p.run(nil, "cp", "-a", "/var/spool/postfix", "/var/spool/postfix-out")
	h.p.run(nil, "postconf", "-c", dir, "-e", "queue_directory = /var/spool/postfix-out", "multi_instance_name = postfix-out")
	main, other := h.p.read(mainCfFile), h.p.read(file)
	h.setup(1, "-postfix", dir, "--apply", "Postfix "+h.p.version.number, "in "+dir+",", "none of the sockets is in there",
		"ListenStream=/var/spool/postfix-out/run/ruapost/milter.sock", "postfix -c "+dir+" reload")
	h.same(mainCfFile, main)
	if now := h.p.read(file); now == other || strings.Contains(now, "ruapost/policy.sock") {
		h.t.Errorf("%s is\n%s", file, now)
	}
	h.setup(0, "--undo", "there is nothing to put back")
	h.setup(0, "-postfix", dir, "--undo", "put back: smtp_tls_loglevel")
	h.same(file, other)
}

// host is a Postfix as Debian installs it, with the programs beside it, of which it knows
// nothing, and mail for the people of receiver.example.
type host struct {
	w    *world
	p    *postfix
	r    *installation
	keys map[string]*lab.Key
	out  []*running

	mails int
	t     *testing.T
}

// on returns the same host for a part of the test.
func (h *host) on(t *testing.T) *host {
	part, p := *h, *h.p
	p.t = t
	part.t, part.p = t, &p
	return &part
}

// setupDestinations take mail only by what Postfix learns from policies.
var setupDestinations = []destination{
	{name: "sts.setup", mails: 1, sts: "enforce", servers: []server{{cert: good}}},
	{name: "dane.setup", mails: 1, servers: []server{{cert: selfSigned, tlsa: rightTLSA}}},
}

func newHost(t *testing.T, v version) *host {
	t.Helper()
	h := &host{w: newWorld(t), p: newPostfix(t, v), t: t}
	debian := h.p.read(mainCfFile)
	h.keys = h.w.addSenders()
	h.out = h.w.addDestinations(setupDestinations)
	h.r = install(t, h.w, h.p)
	h.p.write(mailLog, "")
	// Debian 12's main.cf has smtp_tls_CApath.
	h.p.write("usr/local/share/ca-certificates/lab.crt", string(h.w.ca.PEM()))
	h.p.run(nil, "update-ca-certificates")
	h.p.configure(debian)
	lines := strings.Split(strings.TrimSpace(baseMainCf), "\n")
	h.p.run(nil, slices.Concat([]string{"postconf", "-e"}, lines, []string{"mynetworks = 127.0.0.0/8 [::1]/128 " + trustedNetwork})...)
	h.p.configure(h.p.read(mainCfFile))
	h.p.write(tomlFile, strings.NewReplacer(
		`#record_timeout = "250ms"`, `record_timeout = "20s"`, `#report_on = "known"`, `report_on = "all"`,
	).Replace(h.r.contrib("ruapost.toml")))
	return h
}

// configureOthers configures the others as Debian does, but for their sockets and where the
// names are.
func (h *host) configureOthers() {
	h.t.Helper()
	socket := func(file, line string) {
		var lines []string
		for l := range strings.Lines(h.p.read(file)) {
			if !strings.HasPrefix(l, "Socket") && !strings.HasPrefix(l, "TrustAnchorFile") {
				lines = append(lines, l)
			}
		}
		h.p.write(file, strings.Join(lines, "")+line+"\n")
	}
	socket("etc/opendkim.conf", "Socket inet:8891@localhost\nNameservers 127.0.0.1\nDomain receiver.example\nSelector mail\nKeyFile /etc/opendkim.key")
	h.p.write("etc/opendkim.key", h.p.read("etc/ruapost/dkim.pem"))
	key := filepath.Join(h.p.root, "etc/opendkim.key")
	if err := errors.Join(os.Chmod(key, 0o600), os.Chown(key, h.r.id("passwd", "opendkim"), h.r.id("group", "opendkim"))); err != nil {
		h.t.Fatal(err)
	}
	socket("etc/opendmarc.conf", "Socket inet:8893@localhost")
	h.p.write("etc/mta-sts-daemon.yml", "cache:\n  type: internal\n")
}

// run starts a program of others, and returns what ends it.
func (h *host) run(p program) (stop func()) {
	h.t.Helper()
	d := startDaemon(h.t, p.argv[0], h.p.command(p.argv...), "tcp:127.0.0.1:"+p.port)
	return func() {
		if d.cmd == nil {
			return
		}
		d.cmd.Process.Kill() // opendkim takes five seconds to hear of SIGTERM
		<-d.exited
		d.cmd = nil
		if h.t.Failed() {
			h.t.Logf("%v:\n%s", p.argv, &d.output)
		}
	}
}

// setup runs "ruapost-reporter setup" with those of args that are options and their values,
// and wants it to end with the status and to say the others.
func (h *host) setup(status int, args ...string) {
	h.t.Helper()
	command := []string{"/usr/local/sbin/ruapost-reporter", "setup"}
	var says []string
	for i, a := range args {
		if strings.HasPrefix(a, "-") && !strings.Contains(a, " ") || i > 0 && (args[i-1] == "--replace" || args[i-1] == "-postfix") {
			command = append(command, a)
		} else {
			says = append(says, a)
		}
	}
	out, err := h.p.command(command...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatal(err)
	}
	got := 0
	if exit != nil {
		got = exit.ExitCode()
	}
	text := strings.Join(strings.Fields(string(out)), " ") // whatever the lines
	for _, s := range says {
		if !strings.Contains(text, s) {
			h.t.Errorf("%v does not say %q", command[1:], s)
		}
	}
	if got != status {
		h.t.Errorf("%v: status %d, not %d", command[1:], got, status)
	}
	if h.t.Failed() {
		h.t.Fatalf("%v:\n%s", command[1:], out)
	}
}

// wants wants parameters to be so in main.cf, with "" for those that are not set.
func (h *host) wants(values map[string]string) {
	h.t.Helper()
	for name, want := range values {
		out := strings.TrimSpace(string(h.p.run(nil, "postconf", "-n", name)))
		_, got, _ := strings.Cut(out, " = ")
		if got != want {
			h.t.Errorf("%s = %q, not %q", name, got, want)
		}
	}
}

// wantsOurs wants Postfix to ask the programs, with these milters, and these tables before
// ours.
func (h *host) wantsOurs(v version, milters, before string) {
	h.t.Helper()
	if v.datagrams {
		h.wants(map[string]string{"smtp_tlsrpt_enable": "yes", "smtp_tlsrpt_socket_name": "run/ruapost/tlsrpt.sock"})
	}
	h.wants(map[string]string{"smtpd_milters": cmp.Or(milters, ourMilter), "smtp_tls_policy_maps": tables(v, before)})
}

// tables is what smtp_tls_policy_maps must be with ours behind others.
func tables(v version, before string) string {
	table := ourTable + "QUERY"
	if v.datagrams {
		table = ourTable + "QUERYwithTLSRPT"
	}
	if before == "" {
		return table
	}
	return before + ", " + table
}

// same wants a file of the root to have a content.
func (h *host) same(file, want string) {
	h.t.Helper()
	if got := h.p.read(file); got != want {
		h.t.Errorf("%s is not as it was:\n%s\nwas\n%s", file, got, want)
	}
}

// reload has Postfix read main.cf again, of which the processes that are at work know
// nothing.
func (h *host) reload() {
	h.t.Helper()
	h.p.configure(h.p.read(mainCfFile)) // as if some time had passed
	before := strings.Count(h.p.log(), "reload -- version")
	h.p.run(nil, "postfix", "reload")
	eventually(h.t, "Postfix has reloaded", func() bool { return strings.Count(h.p.log(), "reload -- version") > before })
}

// mailIn has a mail come in, and wants it to be delivered with these results.
func (h *host) mailIn(results ...string) {
	h.t.Helper()
	h.mails++
	m := alignedDKIM(fmt.Sprintf("%s %d", h.t.Name(), h.mails))
	before := len(h.w.sink.Mailbox.Messages())
	c := connect(h.t, netip.MustParseAddr(espIP), "mta.esp.example", "")
	if err := c.send(m.mailFrom, m.recipients(), nil, m.bytes(h.t, h.keys)); err != nil {
		h.t.Fatal(err)
	}
	c.quit()
	if deferred := h.p.settle(); len(deferred) > 0 {
		h.t.Fatalf("deferred: %+v", deferred)
	}
	msg := bySubject(h.t, h.w.sink.Mailbox.Messages()[before:])[m.name]
	if msg == nil {
		h.t.Fatalf("the mail has not arrived")
	}
	var got []string
	for _, f := range msg.Header["Authentication-Results"] {
		got = append(got, authservIDAnd("dmarc", f))
	}
	if !slices.Equal(got, results) {
		h.t.Errorf("Authentication-Results: %q, not %q: %q", got, results, msg.Header["Authentication-Results"])
	}
}

// mailOut sends mail to all destinations, and wants it to be delivered.
func (h *host) mailOut() {
	h.t.Helper()
	h.p.submitTo(h.out...)
	if deferred := h.p.settle(); len(deferred) > 0 {
		h.t.Fatalf("deferred: %+v", deferred)
	}
}

// recorded wants something to be recorded about the domains.
func (h *host) recorded(domains ...string) {
	h.t.Helper()
	for _, d := range domains {
		eventually(h.t, "something is recorded about "+d, func() bool {
			out, err := h.p.command("/usr/local/sbin/ruapost-reporter", "list", d).CombinedOutput()
			return err == nil && strings.Contains(string(out), d)
		})
	}
}

// checkFindsNoFault wants "ruapost-tlspolicy check" to be content.
func (h *host) checkFindsNoFault() {
	h.t.Helper()
	if out, err := h.p.command(filepath.Join("/usr/local/sbin", "ruapost-tlspolicy"), "check").CombinedOutput(); err != nil {
		h.t.Errorf("ruapost-tlspolicy check: %v\n%s", err, out)
	}
}
