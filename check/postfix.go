package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxOutput is how much is read of what postconf says.
const maxOutput = 256 << 10

// service is the one of master.cf that takes mail out.
const service = "smtp/unix"

// parameters are the settings that are looked at.
var parameters = []string{
	"compatibility_level",
	"daemon_directory",
	"default_transport",
	"ignore_mx_lookup_error",
	"mail_owner",
	"mail_version",
	"queue_directory",
	"relayhost",
	"smtp_dns_resolver_options",
	"smtp_dns_support_level",
	"smtp_host_lookup",
	"smtp_tls_CAfile",
	"smtp_tls_CApath",
	"smtp_tls_dane_insecure_mx_policy",
	"smtp_tls_enforce_sts_mx_patterns",
	"smtp_tls_loglevel",
	"smtp_tls_policy_maps",
	"smtp_tls_security_level",
	"smtp_tlsrpt_enable",
	"smtp_tlsrpt_socket_name",
	"tls_required_enable",
}

// version is a version of Postfix.
type version [3]int

var versionNumbers = regexp.MustCompile(`^(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?:$|-)`)

// parseVersion reads mail_version, such as 3.10.4 or 3.12-20260821.
func parseVersion(s string) (v version, ok bool) {
	numbers := versionNumbers.FindStringSubmatch(s)
	if numbers == nil {
		return v, false
	}
	for i, n := range numbers[1:] {
		v[i], _ = strconv.Atoi(n) // digits, or nothing
	}
	return v, true
}

func (v version) before(major, minor, patch int) bool {
	return slices.Compare(v[:], []int{major, minor, patch}) < 0
}

// postfix is what is known of Postfix: the settings that are in force for smtp(8).
type postfix struct {
	version  version
	settings map[string]string // without those that this version does not have
	// override has the settings that come from the service's line in master.cf.
	override map[string]string
	queue    string // the queue directory
	chroot   bool   // smtp(8) is locked in there
	user     *account
}

// readPostfix asks postconf(1).
func (c *checker) readPostfix(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, postconfLimit)
	defer cancel()
	program, err := findPostconf(c.host.Postconf)
	if err != nil {
		c.fault("Run this where Postfix is: on the host, or in the container, that sends the mail.",
			"Postfix is not here: no program postconf is found: %v", err)
		return
	}
	main, complaints, err := postconf(ctx, program, append([]string{"-x"}, parameters...)...)
	if err != nil {
		c.fault("See what Postfix itself says:\n    postfix check", "postconf fails: %v", err)
		return
	}
	override, _, errOverride := postconf(ctx, program, "-x", "-P", service)
	columns, _, errColumns := postconf(ctx, program, "-F", service+"/chroot")
	if err := errors.Join(errOverride, errColumns); err != nil {
		c.fault("See what Postfix itself says:\n    postfix check", "master.cf cannot be read: %v", err)
		return
	}
	c.complain(complaints)
	c.postfix = c.newPostfix(assignments(main), assignments(override), assignments(columns))
}

func (c *checker) newPostfix(settings, override, columns map[string]string) *postfix {
	p := &postfix{settings: settings, override: map[string]string{}, queue: filepath.Clean(settings["queue_directory"])}
	var ok bool
	if p.version, ok = parseVersion(settings["mail_version"]); !ok || !filepath.IsAbs(p.queue) {
		c.fault("", "this postconf is not Postfix's: mail_version = %q, queue_directory = %q",
			settings["mail_version"], settings["queue_directory"])
		return nil
	}
	for name, value := range override {
		name = strings.TrimPrefix(name, service+"/")
		p.settings[name], p.override[name] = value, value
	}
	switch chroot, ok := columns[service+"/chroot"]; {
	case !ok:
		c.warn("", "there is no service %s in master.cf: what is said here of smtp(8) is what main.cf says", service)
	case chroot == "-": // postconf(5), compatibility_level
		first, _, _ := strings.Cut(settings["compatibility_level"], ".")
		level, err := strconv.Atoi(first)
		p.chroot = err == nil && level < 1
	default:
		p.chroot = chroot == "y"
	}
	var err error
	if p.user, err = lookupAccount(settings["mail_owner"]); err != nil {
		c.warn("", "whether Postfix may use the sockets cannot be told: %v", err)
	}
	return p
}

// complain tells what postconf says about main.cf and master.cf.
func (c *checker) complain(stderr string) {
	told := map[string]bool{}
	for line := range strings.Lines(stderr) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "postconf: warning: ")
		if strings.Contains(line, ".cf: ") && !told[line] && len(told) < 5 {
			told[line] = true
			c.warn("An unused parameter is misspelt, or this Postfix does not have it.", "postconf warns: %s", line)
		}
	}
}

// findPostconf looks for postconf(1), also where the PATH of users does not lead.
func findPostconf(program string) (path string, err error) {
	names := []string{"postconf", "/usr/sbin/postconf", "/usr/local/sbin/postconf"}
	if program != "" {
		names = []string{program}
	}
	for _, name := range names {
		if path, err = exec.LookPath(name); err == nil {
			break
		}
	}
	return path, err
}

// postconf runs the program. An error has the first line of what it complained of.
func postconf(ctx context.Context, program string, args ...string) (stdout, stderr string, err error) {
	var out, complaints bounded
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = &out, &complaints
	cmd.WaitDelay = time.Second // if what it started outlives it
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		err = errors.New("no answer in time")
	case out.full || complaints.full:
		err = errTooMuch
	case err != nil:
		// Warnings come first, what made it fail comes last.
		said := bytes.TrimSpace(complaints.text.Bytes())
		err = fmt.Errorf("%w: %s", err, said[bytes.LastIndexByte(said, '\n')+1:])
	}
	return out.text.String(), complaints.text.String(), err
}

var errTooMuch = errors.New("too much output")

// bounded takes only so much.
type bounded struct {
	text bytes.Buffer // not embedded: its ReadFrom takes all
	full bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.text.Len()+len(p) > maxOutput {
		b.full = true
		return 0, errTooMuch
	}
	return b.text.Write(p)
}

// assignments reads lines "name = value".
func assignments(text string) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, "="); ok {
			values[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return values
}

// is says whether a setting has a value that Postfix reads in any case.
func (p *postfix) is(name, value string) bool { return strings.EqualFold(p.settings[name], value) }

// set returns how to give a setting a value, as Finding.Mend has it.
func (p *postfix) set(text, name, value string) string {
	command := "postconf -e " + quote(name+" = "+value)
	if _, ok := p.override[name]; ok {
		command = "postconf -P " + quote(service+"/"+name+" = "+value)
	}
	return then(text, command, "postfix reload")
}

// reached returns the file that a process of Postfix reaches under a name. Its
// working directory is the queue directory.
func (p *postfix) reached(name string, chroot bool) string {
	if chroot || !filepath.IsAbs(name) {
		return filepath.Join(p.queue, name)
	}
	return filepath.Clean(name)
}

// spelling returns how main.cf should name a file, so that smtp(8) reaches it; ok is
// false if it cannot, because the file is outside its chroot.
func (p *postfix) spelling(file string) (name string, ok bool) {
	if rel, ok := below(p.queue, file); ok {
		return rel, true
	}
	return file, !p.chroot
}

// below returns the name of a file relative to a directory that it is below.
func below(dir, file string) (rel string, ok bool) {
	rel, err := filepath.Rel(dir, file)
	return rel, err == nil && rel != "." && filepath.IsLocal(rel)
}

// sameFile says whether two names lead to the same file.
func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}
