package check

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ruapost/config"
	"ruapost/internal/lab"
	"ruapost/postconf"
	"ruapost/socketmap"
)

// world is a host with Postfix 3.10 and ruapost-tlspolicy, and all as it should be.
type world struct {
	t        *testing.T
	dir      string // of everything
	queue    string // the queue directory
	sockets  string // the sockets' directory in it
	cfg      *config.Config
	host     Host
	settings map[string]string
	override map[string]string
	// overrides are those of other services, with their names.
	overrides map[string]string
	masterCf  string // the columns of other services
	chroot    string // the column of master.cf, as postconf prints it
	stderr    string // what postconf complains of
	reply     socketmap.Reply
	servers   map[string]Server
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "check") // the names of sockets must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	queue := filepath.Join(dir, "queue")
	w := &world{
		t: t, dir: dir, queue: queue, sockets: filepath.Join(queue, "run/ruapost"),
		chroot:   service + "/chroot = y\n",
		masterCf: "smtp/inet/chroot = y\nsmtp/inet/command = smtpd\nsubmission/inet/command = smtpd -o x=y\n",
		settings: map[string]string{
			"compatibility_level":              "3.9",
			"daemon_directory":                 dir,
			"default_transport":                "smtp",
			"ignore_mx_lookup_error":           "no",
			"mail_owner":                       "nobody",
			"mail_version":                     "3.10.13",
			"queue_directory":                  queue,
			"relayhost":                        "",
			"smtp_dns_resolver_options":        "",
			"smtp_dns_support_level":           "dnssec",
			"smtp_host_lookup":                 "dns",
			"smtp_tls_CAfile":                  filepath.Join(dir, "ca.pem"),
			"smtp_tls_CApath":                  "",
			"smtp_tls_dane_insecure_mx_policy": "dane",
			"smtp_tls_enforce_sts_mx_patterns": "yes",
			"smtp_tls_loglevel":                "1",
			"smtp_tls_policy_maps":             "hash:/etc/postfix/tls_policy, socketmap:unix:run/ruapost/policy.sock:QUERYwithTLSRPT",
			"smtp_tls_security_level":          "dane",
			"smtp_tlsrpt_enable":               "yes",
			"smtp_tlsrpt_socket_name":          "run/ruapost/tlsrpt.sock",
			"smtpd_milters":                    "inet:127.0.0.1:8891, { unix:run/ruapost/milter.sock, default_action=accept }",
			"tls_required_enable":              "yes",
		},
		override: map[string]string{},
		servers:  map[string]Server{"127.0.0.1:53": {Address: "127.0.0.1:53", Answered: true, Authentic: true, Trusted: true}},
	}
	for _, d := range []string{queue, filepath.Join(queue, "etc"), filepath.Join(queue, "run"), w.sockets} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		w.mode(d, 0o755) // whatever the umask
	}
	ca, err := lab.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	w.write("ca.pem", string(ca.PEM()))
	w.write("smtp", "\x7fELF...%s: Too many TLSRPT policies for %s\x00...")
	w.write("qlen", "512\n")
	w.write("resolv.conf", "nameserver 127.0.0.1\n")
	w.write("queue/etc/resolv.conf", "nameserver 127.0.0.1\n")
	w.cfg = config.Default()
	w.cfg.Store.Path = filepath.Join(dir, "ruapost.db")
	w.cfg.TLSPolicy.Listen = []config.Listen{{Network: "unix", Address: filepath.Join(w.sockets, "policy.sock")}}
	w.cfg.TLSPolicy.TLSRPT = config.Listen{Network: "unix", Address: filepath.Join(w.sockets, "tlsrpt.sock")}
	w.cfg.Milter.Listen = []config.Listen{{Network: "unix", Address: filepath.Join(w.sockets, "milter.sock")}}
	w.host = Host{
		Postconf:    filepath.Join(dir, "postconf"),
		ResolvConf:  filepath.Join(dir, "resolv.conf"),
		QueueLength: filepath.Join(dir, "qlen"),
		Roots:       func() (*x509.CertPool, error) { return ca.Pool(), nil },
		Ask: func(_ context.Context, addrs []string) []Server {
			var servers []Server
			for _, a := range addrs {
				servers = append(servers, w.servers[a])
			}
			if len(addrs) == 0 {
				servers = append(servers, w.servers["127.0.0.1:53"])
			}
			return servers
		},
	}
	w.listen("policy.sock")
	w.listenMilter("milter.sock")
	w.listenEvents("tlsrpt.sock")
	return w
}

// path returns the file of that name below the world's directory.
func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) mode(path string, mode os.FileMode) {
	w.t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		w.t.Fatal(err)
	}
}

// socket makes one that everybody may use.
func (w *world) socket(name string) net.Listener {
	w.t.Helper()
	l, err := net.Listen("unix", filepath.Join(w.sockets, name))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	w.mode(l.Addr().String(), 0o666)
	return l
}

// listen serves policy queries at a socket that everybody may use.
func (w *world) listen(name string) {
	w.t.Helper()
	go w.serve(w.socket(name))
}

func (w *world) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go socketmap.Serve(context.Background(), conn, func(context.Context, string, string) socketmap.Reply { return w.reply })
	}
}

// listenMilter agrees to what is offered to a milter.
func (w *world) listenMilter(name string) {
	w.t.Helper()
	l := w.socket(name)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			offer := make([]byte, 17)
			if _, err := io.ReadFull(conn, offer); err == nil {
				conn.Write(offer)
			}
			conn.Close()
		}
	}()
}

func (w *world) listenEvents(name string) {
	w.t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(w.sockets, name), Net: "unixgram"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	w.mode(conn.LocalAddr().String(), 0o666)
}

// postconf makes a program that says what Postfix's would say.
func (w *world) postconf() {
	w.t.Helper()
	lines := func(values map[string]string, prefix string) string {
		var b strings.Builder
		for _, name := range slices.Sorted(maps.Keys(values)) {
			fmt.Fprintf(&b, "%s%s = %s\n", prefix, name, values[name])
		}
		return b.String()
	}
	w.write("main", lines(w.settings, ""))
	w.write("override", lines(w.override, service+"/")+lines(w.overrides, ""))
	w.write("columns", w.chroot+w.masterCf)
	w.write("stderr", w.stderr)
	w.write("postconf", "#!/bin/sh\ncase \"$*\" in\n"+
		"'-x -P') exec cat '"+w.path("override")+"' ;;\n"+
		"-F) exec cat '"+w.path("columns")+"' ;;\n"+
		"'-x compatibility_level '*) cat '"+w.path("stderr")+"' >&2; exec cat '"+w.path("main")+"' ;;\n"+
		"esac\nexit 1\n")
	w.mode(w.path("postconf"), 0o755)
}

// check runs all checks, with up to 5 seconds for what hangs.
func (w *world) check() []Finding {
	w.t.Helper()
	w.postconf()
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	return TLSPolicy(ctx, w.cfg, w.host)
}

// troubles returns the findings that are not OK, one a line.
func troubles(findings []Finding) []string {
	var lines []string
	for _, f := range findings {
		if f.Level != OK {
			lines = append(lines, string(f.Level)+": "+f.What+" => "+f.Mend)
		}
	}
	return lines
}

// expect fails the test unless the troubles are the wanted ones, each of which is a
// level and parts of the text, with " ... " between them.
func (w *world) expect(findings []Finding, want ...string) {
	w.t.Helper()
	got := troubles(findings)
	match := func(got, want string) bool {
		for _, part := range strings.Split(want, " ... ") {
			_, rest, ok := strings.Cut(got, strings.ReplaceAll(part, "DIR", w.dir))
			if !ok {
				return false
			}
			got = rest
		}
		return true
	}
	if !slices.EqualFunc(got, want, match) {
		w.t.Errorf("found:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestAllIsWell(t *testing.T) {
	w := newWorld(t)
	findings := w.check()
	w.expect(findings)
	if len(findings) < 15 || ExitStatus(findings) != 0 {
		t.Errorf("%d findings, exit status %d; want every check to say something, and 0", len(findings), ExitStatus(findings))
	}
	if f := (Finding{Level: Warning}); ExitStatus([]Finding{f}) != 0 {
		t.Error("a warning is a fault")
	}
	if f := (Finding{Level: Fault}); ExitStatus([]Finding{{Level: OK}, f, {Level: OK}}) != 1 {
		t.Error("a fault is none")
	}
}

func TestSettings(t *testing.T) {
	// The settings of a case are put over those of a world where all is well.
	for name, tt := range map[string]struct {
		set  string // name=value, one a line
		want []string
	}{
		"3.3: no servername": {"mail_version=3.3.2", []string{
			"fault: Postfix 3.3.2 ... servername",
			"fault: smtp_tls_policy_maps ... does not know the attributes ... policy.sock:QUERY'",
			"warning: Postfix 3.3.2 tells how TLS went",
			"warning: with glibc 2.31 ... trust-ad",
		}},
		"3.9: its answers must not have the attributes of 3.10": {"mail_version=3.9.4", []string{
			"fault: smtp_tls_policy_maps ... deferred => ... hash:/etc/postfix/tls_policy, socketmap:unix:run/ruapost/policy.sock:QUERY'\n    postfix reload",
			"warning: Postfix 3.9.4 tells how TLS went",
		}},
		"3.9": {"mail_version=3.9.4\nsmtp_tls_policy_maps=socketmap:unix:run/ruapost/policy.sock:QUERY", []string{"warning: Postfix 3.9.4 tells how TLS went"}},
		"3.10.3 counts our own reports": {"mail_version=3.10.3", []string{
			"warning: Postfix 3.10.3 ... our own reports ... => Update Postfix",
		}},
		"3.10.4 does not":       {"mail_version=3.10.4", nil},
		"a snapshot":            {"mail_version=3.12-20260821", nil},
		"not Postfix":           {"mail_version=banana", []string{"fault: this postconf is not Postfix's"}},
		"no level":              {"smtp_tls_security_level=", []string{`fault: smtp_tls_security_level is "" ... => ... postconf -e 'smtp_tls_security_level = dane'`}},
		"level none":            {"smtp_tls_security_level=none", []string{`fault: smtp_tls_security_level is "none"`}},
		"level may":             {"smtp_tls_security_level=may", nil},
		"level in capitals":     {"smtp_tls_security_level=DANE", nil},
		"level encrypt":         {"smtp_tls_security_level=encrypt", []string{"warning: smtp_tls_security_level = encrypt"}},
		"comment after a level": {"smtp_tls_security_level=dane # not a comment", []string{"fault: smtp_tls_security_level = dane # not a comment: there is no such level"}},

		"nobody asks": {"smtp_tls_policy_maps=", []string{
			"fault: smtp_tls_policy_maps is ... does not ask ... postconf -e 'smtp_tls_policy_maps = socketmap:unix:run/ruapost/policy.sock:QUERYwithTLSRPT'",
		}},
		"others ask others": {"smtp_tls_policy_maps=socketmap:inet:127.0.0.1:8461:postfix, static:{may x, y}", []string{
			"fault: smtp_tls_policy_maps is ... 'smtp_tls_policy_maps = socketmap:inet:127.0.0.1:8461:postfix, static:{may x, y}, socketmap:unix:run/ruapost/policy.sock:QUERYwithTLSRPT'",
		}},
		"no table's name":    {"smtp_tls_policy_maps=socketmap:unix:run/ruapost/policy.sock", []string{"fault: smtp_tls_policy_maps ... does not ask"}},
		"unknown table":      {"smtp_tls_policy_maps=socketmap:unix:run/ruapost/policy.sock:postfix", []string{"fault: smtp_tls_policy_maps ... knows no table postfix"}},
		"no STS in reports":  {"smtp_tls_policy_maps=socketmap:unix:run/ruapost/policy.sock:QUERY", []string{"warning: smtp_tls_policy_maps ... TLS reports say"}},
		"by way of proxymap": {"smtp_tls_policy_maps=proxy:socketmap:unix:run/ruapost/policy.sock:QUERYwithTLSRPT", []string{"warning: smtp_tls_policy_maps ... proxy: ... = socketmap:unix:run/ruapost/policy.sock:QUERYwithTLSRPT'"}},
		"absolute path in the chroot": {"smtp_tls_policy_maps=socketmap:unix:DIR/queue/run/ruapost/policy.sock:QUERYwithTLSRPT", []string{
			"fault: smtp_tls_policy_maps: DIR/queue/run/ruapost/policy.sock is an absolute path, which smtp(8) takes for DIR/queueDIR/queue/run ... = socketmap:unix:run/ruapost/policy.sock:QUERYwithTLSRPT'",
		}},
		"path as from the chroot": {"smtp_tls_policy_maps=socketmap:unix:/run/ruapost/policy.sock:QUERYwithTLSRPT", []string{"warning: smtp_tls_policy_maps ... as long as"}},
		"path that is too long":   {"smtp_tls_policy_maps=socketmap:unix:" + strings.Repeat("./", 50) + "run/ruapost/policy.sock:QUERY", []string{"fault: ... 107 octets", "fault: ... does not ask"}},

		"no DNSSEC":            {"smtp_dns_support_level=enabled", []string{`fault: smtp_dns_support_level is "enabled" ... deferred ... dnssec'`}},
		"hosts(5) only":        {"smtp_host_lookup=native", []string{`fault: smtp_host_lookup is "native"`}},
		"hosts(5) too":         {"smtp_host_lookup=native, dns", nil},
		"MX errors ignored":    {"ignore_mx_lookup_error=yes", []string{"fault: ignore_mx_lookup_error"}},
		"search domains":       {"smtp_dns_resolver_options=res_dnsrch", []string{"fault: smtp_dns_resolver_options"}},
		"unsigned MX":          {"smtp_tls_dane_insecure_mx_policy=may", []string{"warning: smtp_tls_dane_insecure_mx_policy = may"}},
		"MX outside policy":    {"smtp_tls_enforce_sts_mx_patterns=no", []string{"warning: smtp_tls_enforce_sts_mx_patterns = no"}},
		"TLS-Required ignored": {"tls_required_enable=no", []string{"warning: tls_required_enable = no"}},

		"no authorities":            {"smtp_tls_CAfile=", []string{"fault: smtp_tls_CAfile is not set"}},
		"file is missing":           {"smtp_tls_CAfile=/nonexistent/ca.pem", []string{"fault: smtp_tls_CAfile cannot be read"}},
		"file without certificates": {"smtp_tls_CAfile=DIR/resolv.conf", []string{"fault: smtp_tls_CAfile: there is no certificate"}},
		"path outside the chroot":   {"smtp_tls_CAfile=\nsmtp_tls_CApath=DIR/certs", []string{"fault: smtp_tls_CApath: ... in DIR/queueDIR/certs"}},
		"path in the chroot":        {"smtp_tls_CAfile=\nsmtp_tls_CApath=/certs", nil},

		"quiet log":     {"smtp_tls_loglevel=0", []string{"warning: smtp_tls_loglevel = 0"}},
		"verbose log":   {"smtp_tls_loglevel=2", nil},
		"words for log": {"smtp_tls_loglevel=summary, Untrusted", []string{`fault: smtp_tls_loglevel has "untrusted"`}},
		"no summary":    {"smtp_tls_loglevel=certmatch", []string{"warning: smtp_tls_loglevel = certmatch"}},

		"no TLSRPT":               {"smtp_tlsrpt_enable=no", []string{"fault: smtp_tlsrpt_enable ... postconf -e 'smtp_tlsrpt_enable = yes'"}},
		"TLSRPT to nowhere":       {"smtp_tlsrpt_socket_name=", []string{"fault: smtp_tlsrpt_socket_name is not set ... = run/ruapost/tlsrpt.sock'"}},
		"TLSRPT to others":        {"smtp_tlsrpt_socket_name=run/tlsrpt/tlsrpt.sock", []string{"fault: smtp_tlsrpt_socket_name ... takes that for DIR/queue/run/tlsrpt"}},
		"TLSRPT, absolute path":   {"smtp_tlsrpt_socket_name=DIR/queue/run/ruapost/tlsrpt.sock", []string{"fault: smtp_tlsrpt_socket_name ... takes that for DIR/queueDIR"}},
		"TLSRPT, as in chroot":    {"smtp_tlsrpt_socket_name=/run/ruapost/tlsrpt.sock", []string{"warning: smtp_tlsrpt_socket_name ... as long as"}},
		"TLSRPT, too long":        {"smtp_tlsrpt_socket_name=" + strings.Repeat("./", 50) + "run/ruapost/tlsrpt.sock", []string{"fault: smtp_tlsrpt_socket_name has 123 octets"}},
		"built without TLSRPT":    {"daemon_directory=DIR/without", []string{"fault: Postfix is built without TLSRPT"}},
		"a build that is unknown": {"daemon_directory=DIR/unknown", []string{"warning: whether Postfix is built with TLSRPT cannot be told ... DIR/unknown/smtp does not tell"}},
		"no program":              {"daemon_directory=/nonexistent", []string{"warning: whether Postfix is built with TLSRPT cannot be told ... no such file"}},

		"relay host":      {"relayhost=[relay.example]:587", []string{"warning: relayhost = [relay.example]:587"}},
		"other transport": {"default_transport=smtp:relay.example", []string{"warning: default_transport"}},
		"unknown user":    {"mail_owner=no-such-user", []string{"warning: whether Postfix may use the sockets cannot be told: user: unknown user no-such-user"}},
		"hostile value":   {"relayhost=\x1b[2J\u202efoo", []string{"warning: relayhost =  [2J foo: Postfix"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for dir, text := range map[string]string{"without": "TLSRPT is selected, but TLSRPT is not compiled in", "unknown": "ELF"} {
				if err := os.Mkdir(w.path(dir), 0o755); err != nil {
					t.Fatal(err)
				}
				w.write(dir+"/smtp", text)
			}
			for _, dir := range []string{"certs", "queue/certs"} {
				if err := os.Mkdir(w.path(dir), 0o755); err != nil {
					t.Fatal(err)
				}
				w.write(dir+"/0a775a30.0", "")
			}
			for line := range strings.SplitSeq(tt.set, "\n") {
				key, value, _ := strings.Cut(line, "=")
				w.settings[key] = strings.ReplaceAll(value, "DIR", w.dir)
			}
			w.expect(w.check(), tt.want...)
		})
	}
}

// With log lines there are TLS reports though Postfix sends no datagrams.
func TestMaillog(t *testing.T) {
	for name, tt := range map[string]struct {
		source, set string
		want        []string
	}{
		"Postfix 3.7":             {"DIR/resolv.conf", "mail_version=3.7.11\nsmtp_tls_policy_maps=socketmap:unix:run/ruapost/policy.sock:QUERY", nil},
		"TLSRPT not enabled":      {"DIR/resolv.conf", "smtp_tlsrpt_enable=no", nil},
		"built without TLSRPT":    {"DIR/resolv.conf", "daemon_directory=DIR/without", nil},
		"no such file":            {"/nonexistent/mail.log", "", []string{"fault: tlspolicy.maillog: /nonexistent/mail.log: stat"}},
		"nothing of TLS in there": {"DIR/resolv.conf", "smtp_tls_loglevel=0", []string{"fault: smtp_tls_loglevel = 0"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if err := os.Mkdir(w.path("without"), 0o755); err != nil {
				t.Fatal(err)
			}
			w.write("without/smtp", "TLSRPT is selected, but TLSRPT is not compiled in")
			w.cfg.TLSPolicy.Maillog = []string{strings.ReplaceAll(tt.source, "DIR", w.dir)}
			for line := range strings.SplitSeq(tt.set, "\n") {
				key, value, _ := strings.Cut(line, "=")
				w.settings[key] = strings.ReplaceAll(value, "DIR", w.dir)
			}
			w.expect(w.check(), tt.want...)
		})
	}
}

// The answer for mode testing is weaker than what the administrator wants for all.
func TestReportTesting(t *testing.T) {
	w := newWorld(t)
	w.cfg.TLSPolicy.ReportTesting = true
	w.expect(w.check())
	w.settings["smtp_tls_security_level"] = "encrypt"
	w.expect(w.check(), "warning: smtp_tls_security_level = encrypt", `warning: tlspolicy.testing_mode = "report"`)
}

// What Debian installs is reported with all that is missing.
func TestFreshPostfix(t *testing.T) {
	for file, want := range map[string][]string{
		"postfix-3.7.txt": {
			"fault: smtpd_milters",
			"fault: smtp_tls_policy_maps",
			"fault: smtp_dns_support_level",
			"warning: smtp_tls_dane_insecure_mx_policy = may",
			"fault: smtp_tls_CApath: ... in DIR/queue/etc/ssl/certs",
			"warning: smtp_tls_loglevel = 0",
			"warning: Postfix 3.7.11 tells how TLS went in its log only",
		},
		"postfix-3.10.txt": {
			"fault: smtpd_milters",
			`fault: smtp_tls_security_level is ""`,
			"fault: smtp_tls_policy_maps",
			"fault: smtp_dns_support_level",
			"fault: smtp_tls_CAfile is not set",
			"warning: smtp_tls_loglevel = 0",
			"fault: smtp_tlsrpt_enable is not set",
			"fault: smtp_tlsrpt_socket_name is not set",
		},
	} {
		t.Run(file, func(t *testing.T) {
			w := newWorld(t)
			text, err := os.ReadFile(filepath.Join("testdata", file))
			if err != nil {
				t.Fatal(err)
			}
			w.settings = postconf.Assignments(string(text))
			for name := range w.settings {
				if !slices.Contains(parameters, name) {
					t.Errorf("%s is not asked for", name)
				}
			}
			w.settings["queue_directory"], w.settings["daemon_directory"], w.settings["mail_owner"] = w.queue, w.dir, "nobody"
			w.expect(w.check(), want...)
		})
	}
}

// The service's line in master.cf goes before main.cf, and is what has to be mended.
func TestMasterCf(t *testing.T) {
	w := newWorld(t)
	w.override["smtp_tls_security_level"] = "none"
	w.expect(w.check(), `fault: smtp_tls_security_level is "none" ... postconf -P 'smtp/unix/smtp_tls_security_level = dane'`)

	// Without a chroot, absolute paths are right; but "-" means one if the
	// compatibility level is below 1 (postconf(5), master(5)).
	const absolute = "fault: smtp_tls_policy_maps: DIR/queue/run/ruapost/policy.sock is an absolute path"
	for _, tt := range []struct {
		chroot, compatibility string
		want                  []string
	}{
		{service + "/chroot = n\n", "3.9", nil},
		{service + "/chroot = -\n", "3.9", nil},
		{service + "/chroot = -\n", "2", nil},
		{service + "/chroot = -\n", "0", []string{absolute}},
		{service + "/chroot = y\n", "3.9", []string{absolute}},
		{"", "3.9", []string{"warning: there is no service smtp/unix"}},
	} {
		w := newWorld(t)
		w.chroot, w.settings["compatibility_level"] = tt.chroot, tt.compatibility
		w.settings["smtp_tls_policy_maps"] = "socketmap:unix:" + w.sockets + "/policy.sock:QUERYwithTLSRPT"
		w.expect(w.check(), tt.want...)
	}
}

func TestSocketOutsideChroot(t *testing.T) {
	w := newWorld(t)
	w.sockets = w.path("run")
	if err := os.Mkdir(w.sockets, 0o755); err != nil {
		t.Fatal(err)
	}
	w.mode(w.dir, 0o755)
	w.listen("policy.sock")
	w.listenEvents("tlsrpt.sock")
	w.cfg.TLSPolicy.Listen[0].Address = w.path("run/policy.sock")
	w.cfg.TLSPolicy.TLSRPT.Address = w.path("run/tlsrpt.sock")
	w.settings["smtp_tls_policy_maps"] = "socketmap:unix:" + w.path("run/policy.sock") + ":QUERYwithTLSRPT"
	w.settings["smtp_tlsrpt_socket_name"] = w.path("run/tlsrpt.sock")
	w.expect(
		w.check(),
		`fault: smtp_tls_policy_maps: DIR/run/policy.sock is an absolute path ... listen = ["unix:DIR/queue/run/ruapost/policy.sock"] ... socketmap:unix:run/ruapost/policy.sock:QUERYwithTLSRPT'`,
		`fault: smtp_tlsrpt_socket_name ... tlsrpt = "unix:DIR/queue/run/ruapost/tlsrpt.sock" ... = run/ruapost/tlsrpt.sock'`,
	)
	w.chroot = service + "/chroot = n\n"
	w.expect(w.check())

	// proxymap(8) is not in the chroot.
	w.chroot = service + "/chroot = y\n"
	w.settings["smtp_tls_policy_maps"] = "proxy:" + w.settings["smtp_tls_policy_maps"]
	w.expect(w.check(), "warning: smtp_tls_policy_maps: with proxy:", "fault: smtp_tlsrpt_socket_name")
}

func TestTCP(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go w.serve(l)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, tt := range []struct {
		listen, asked string
		ours          bool
	}{
		{"127.0.0.1", "127.0.0.1", true},
		{"localhost", "127.0.0.1", true},
		{"0.0.0.0", "localhost", true},
		{"127.0.0.1", "192.0.2.1", false},
	} {
		w.cfg.TLSPolicy.Listen = []config.Listen{{Network: "tcp", Address: tt.listen + ":" + port}}
		w.settings["smtp_tls_policy_maps"] = "socketmap:inet:" + tt.asked + ":" + port + ":QUERYwithTLSRPT"
		var want []string
		if !tt.ours {
			want = []string{"fault: smtp_tls_policy_maps ... does not ask ... , socketmap:inet:" + tt.listen + ":" + port + ":QUERYwithTLSRPT'"}
		}
		w.expect(w.check(), want...)
	}
}

func TestNoTLSRPT(t *testing.T) {
	w := newWorld(t)
	w.cfg.TLSPolicy.TLSRPT = config.Listen{}
	w.write("qlen", "10")
	w.expect(w.check(), `warning: smtp_tlsrpt_enable = yes, but ... tlsrpt = "unix:DIR/queue/run/ruapost/tlsrpt.sock"`)
	w.settings["smtp_tlsrpt_enable"] = "no"
	w.settings["smtp_tls_policy_maps"] = "socketmap:unix:run/ruapost/policy.sock:QUERY"
	w.expect(w.check())
}

// A word that is misspelt in main.cf is only seen in what postconf complains of.
func TestPostconfComplains(t *testing.T) {
	w := newWorld(t)
	w.stderr = "postconf: warning: smtp_tlsrpt_enable: unknown parameter\n" +
		strings.Repeat("postconf: warning: /etc/postfix/main.cf: unused parameter: smtp_tlsrtp_enable=yes\n", 3)
	w.expect(w.check(), "warning: postconf warns: /etc/postfix/main.cf: unused parameter: smtp_tlsrtp_enable=yes")
}

// Without Postfix the rest is looked at all the same.
func TestPostconfFails(t *testing.T) {
	for name, tt := range map[string]struct{ script, want string }{
		"is mistaken":    {"#!/bin/sh\necho postconf: warning: x >&2\necho 'postconf: fatal: main.cf, line 8' >&2\nexit 1\n", "fault: postconf fails: exit status 1: postconf: fatal: main.cf, line 8"},
		"says too much":  {"#!/bin/sh\nexec yes\n", "fault: postconf fails: ... too much output"},
		"is another one": {"#!/bin/sh\nexit 0\n", "fault: this postconf is not Postfix's"},
		"has no master.cf": {
			"#!/bin/sh\n[ \"$2\" = -P ] || exit 0\necho 'postconf: fatal: bad field count' >&2\nexit 1\n",
			"fault: master.cf cannot be read: exit status 1: postconf: fatal: bad field count",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.write("postconf", tt.script)
			w.mode(w.path("postconf"), 0o755)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			findings := TLSPolicy(ctx, w.cfg, w.host)
			w.expect(findings, tt.want)
			if len(findings) < 5 {
				t.Errorf("%d findings; want also those about sockets, DNS and store", len(findings))
			}
		})
	}
}

// Nothing that hangs holds up the checks for long.
func TestPostconfHangs(t *testing.T) {
	w := newWorld(t)
	w.write("postconf", "#!/bin/sh\nsleep 15\n") // killed, the shell leaves it behind
	w.mode(w.path("postconf"), 0o755)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	began := time.Now()
	w.expect(TLSPolicy(ctx, w.cfg, w.host), "fault: postconf fails: no answer in time", "fault: policy socket ... no answer in time")
	if took := time.Since(began); took > timeLimit/2 {
		t.Errorf("took %v", took)
	}
}

func TestNoPostfix(t *testing.T) {
	w := newWorld(t)
	w.host.Postconf = w.path("none")
	w.expect(w.check(), "fault: Postfix is not here")
	w.host.Postconf = ""
	t.Setenv("PATH", w.dir+":"+os.Getenv("PATH"))
	w.expect(w.check())
}
