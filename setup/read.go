package setup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ruapost/postconf"
)

// readLimit is how long postconf may take for all it is asked.
const readLimit = 10 * time.Second

// ErrNoPostfix says that there is no Postfix on this host.
var ErrNoPostfix = errors.New("Postfix is not here")

// parameters are the settings that are looked at.
var parameters = []string{
	"compatibility_level", "config_directory", "daemon_directory", "default_transport", "disable_dns_lookups",
	"mail_version", "maillog_file", "milter_mail_macros", "mydomain", "myhostname", "mynetworks", "non_smtpd_milters",
	"queue_directory", "receive_override_options", "relayhost",
	"smtp_dns_support_level", "smtp_enforce_tls", "smtp_tls_CAfile", "smtp_tls_CApath", "smtp_tls_loglevel",
	"smtp_tls_policy_maps", "smtp_tls_security_level", "smtp_tlsrpt_enable", "smtp_tlsrpt_socket_name",
	"smtpd_milter_maps", "smtpd_milters", "smtpd_proxy_filter",
}

// Postfix is what was read of a host that has Postfix.
type Postfix struct {
	// Dir is the directory of main.cf and master.cf if it was given, Directory in any case.
	Dir, Directory string
	Version        postconf.Version
	VersionText    string
	Queue          string // the queue directory
	// Main is what main.cf sets, as it is written there; Settings are those in force.
	Main, Settings map[string]string
	Services       []Service
	// TLSRPT says whether smtp(8) can tell how TLS went; if TLSRPTErr is not nil that is
	// not known.
	TLSRPT    bool
	TLSRPTErr error

	OpenDKIM, OpenDMARC map[string]string // their configuration, by keys in lower case
	RspamdReports       bool              // rspamd is configured to send DMARC reports
	CAFile              string            // a file of authorities that is there
	CApathWorks         bool              // smtp(8) finds authorities in smtp_tls_CApath
	Systemd             bool              // Postfix's log goes to the journal
	Syslog              string            // the file that syslog writes it to

	program string // postconf(1)
}

// Service is one of master.cf.
type Service struct {
	Name, Type string
	Program    string // such as "smtpd"
	Chroot     bool
	Override   map[string]string // of main.cf, with what names stand for
}

func (s *Service) String() string { return s.Name + "/" + s.Type }

// files are where things lie on a host, below root.
type files struct{ root string }

func (f files) path(name string) string { return filepath.Join("/", f.root, name) }

func (f files) exists(name string) bool {
	_, err := os.Stat(f.path(name))
	return err == nil
}

// Read reads what there is of the Postfix whose main.cf is in dir; if that is empty, of the
// one that postconf(1) is about by itself. If program is empty postconf(1) is looked for.
func Read(ctx context.Context, program, dir string) (*Postfix, error) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	program, err := postconf.Find(program)
	if err != nil {
		return nil, fmt.Errorf("%w: no program postconf is found (%w); run this on the host, or in the container, that has the mail server", ErrNoPostfix, err)
	}
	if dir = cmp.Or(dir, os.Getenv("MAIL_CONFIG")); dir != "" { // postconf(1)
		if dir, err = filepath.Abs(dir); err != nil {
			return nil, err
		}
	}
	p := &Postfix{Dir: dir, program: program}
	ask := func(args ...string) map[string]string {
		out, _, askErr := postconf.Run(ctx, program, postconf.Args(dir, args...)...)
		err = errors.Join(err, askErr)
		return postconf.Assignments(out)
	}
	p.Settings = ask(append([]string{"-x"}, parameters...)...)
	if err == nil {
		p.Main = ask("-n")
		p.readServices(ask("-F"), ask("-x", "-P"))
	}
	if err != nil {
		return nil, fmt.Errorf("postconf fails, %q says more: %w", postconf.Command("postfix", dir, "check"), err)
	}
	p.VersionText, p.Queue = p.Settings["mail_version"], filepath.Clean(p.Settings["queue_directory"])
	p.Directory = cmp.Or(dir, p.Settings["config_directory"]) // which is the default one even with "-c"
	var ok bool
	if p.Version, ok = postconf.ParseVersion(p.VersionText); !ok || !filepath.IsAbs(p.Queue) || !filepath.IsAbs(p.Directory) {
		return nil, fmt.Errorf("this postconf is not Postfix's: mail_version = %q, queue_directory = %q, config_directory = %q", p.VersionText, p.Queue, p.Directory)
	}
	p.readHost(files{})
	return p, nil
}

// readServices reads what postconf says of master.cf.
func (p *Postfix) readServices(fields, overrides map[string]string) {
	const command = "/command"
	for name, value := range fields {
		service, ok := strings.CutSuffix(name, command)
		slash := strings.LastIndexByte(service, '/')
		if !ok || slash < 0 {
			continue
		}
		program, _, _ := strings.Cut(value, " ")
		s := Service{
			Name: service[:slash], Type: service[slash+1:], Program: program,
			Chroot:   postconf.Chroot(fields[service+"/chroot"], p.Settings["compatibility_level"]),
			Override: map[string]string{},
		}
		for name, value := range overrides {
			if parameter, ok := strings.CutPrefix(name, service+"/"); ok {
				s.Override[parameter] = value
			}
		}
		p.Services = append(p.Services, s)
	}
	slices.SortFunc(p.Services, func(a, b Service) int { return strings.Compare(a.String(), b.String()) })
}

// readHost reads what is not Postfix's own.
func (p *Postfix) readHost(f files) {
	p.TLSRPT, p.TLSRPTErr = postconf.TLSRPT(p.Settings["daemon_directory"])
	p.OpenDKIM, p.OpenDMARC = readKeys(f.path("etc/opendkim.conf")), readKeys(f.path("etc/opendmarc.conf"))
	for _, name := range []string{"etc/rspamd/local.d/dmarc.conf", "etc/rspamd/override.d/dmarc.conf"} {
		text, _ := postconf.ReadFile(f.path(name)) // most have none
		p.RspamdReports = p.RspamdReports || sendsReports(string(text))
	}
	// Those of Debian, Red Hat, SUSE and Alpine.
	for _, name := range []string{"etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt", "etc/ssl/ca-bundle.pem", "etc/ssl/cert.pem"} {
		if p.CAFile == "" && f.exists(name) {
			p.CAFile = f.path(name)
		}
	}
	if dir := p.Settings["smtp_tls_CApath"]; dir != "" {
		hashed, _ := filepath.Glob(filepath.Join(postconf.Reached(p.Queue, dir, p.client().Chroot), "*.0"))
		p.CApathWorks = len(hashed) > 0
	}
	p.Systemd = f.exists("run/systemd/system")
	for _, name := range []string{"var/log/mail.log", "var/log/maillog"} {
		if p.Syslog == "" && f.exists(name) {
			p.Syslog = f.path(name)
		}
	}
}

// readKeys reads a file that has a key and its value on each line.
func readKeys(file string) map[string]string {
	text, _ := postconf.ReadFile(file) // without it there are none
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		if words := strings.Fields(line); len(words) > 1 {
			values[strings.ToLower(words[0])] = strings.Join(words[1:], " ")
		}
	}
	return values
}

// sendsReports says whether rspamd's dmarc.conf switches on reports. They are off by
// default.
func sendsReports(text string) bool {
	var bare strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		bare.WriteString(line)
	}
	_, reporting, ok := strings.Cut(bare.String(), "reporting")
	words := strings.FieldsFunc(reporting, func(r rune) bool { return strings.ContainsRune(" \t\r\n=:;{}\"", r) })
	i := slices.Index(words, "enabled")
	return ok && i >= 0 && i+1 < len(words) && slices.Contains([]string{"true", "yes", "on"}, words[i+1])
}

// client is the service that mail goes out by.
func (p *Postfix) client() *Service {
	for i := range p.Services {
		if s := &p.Services[i]; s.String() == "smtp/unix" {
			return s
		}
	}
	return &Service{Name: "smtp", Type: "unix", Program: "smtp"}
}

// clientInChroot says whether one of the services that main.cf's smtp_tls_policy_maps counts
// for, such as relay, is in a chroot: there it would defer all that it has to deliver for a
// table that it does not reach.
func (p *Postfix) clientInChroot() bool {
	return slices.ContainsFunc(p.Services, func(s Service) bool { return s.Program == "smtp" && s.Chroot })
}

// servers are the services that take mail from other hosts: at port 25, or behind
// postscreen(8).
func (p *Postfix) servers() []*Service {
	var all []*Service
	for i := range p.Services {
		s := &p.Services[i]
		port := s.Name[strings.LastIndexByte(s.Name, ':')+1:]
		if s.Program == "smtpd" && (s.Type == "pass" || s.Type == "inet" && (port == "smtp" || port == "25")) {
			all = append(all, s)
		}
	}
	return all
}

// setting returns what is in force for a service.
func (p *Postfix) setting(s *Service, name string) string {
	if value, ok := s.Override[name]; ok {
		return value
	}
	return p.Settings[name]
}
