// Package check looks at a host as an administrator would who sets up ruapost beside
// Postfix. For ruapost-tlspolicy these are Postfix's settings, the sockets between the
// two and who may use them, also the milter's, and the DNS servers (TLSPolicy); for
// ruapost-reporter it is whether receivers take its reports: what the DNS says of the domain
// they come from, and the key they are signed with (Reporter). For each fault it says how to
// mend it. It changes nothing and does not open the store.
package check

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ruapost"
	"ruapost/config"
	"ruapost/resolver"
)

const (
	timeLimit     = 20 * time.Second // for all checks
	postconfLimit = 6 * time.Second  // for all that is asked of postconf
	queryLimit    = 6 * time.Second  // for an answer of the daemon, which takes 5 s at most

	maxText    = 1000      // octets of a text that comes from outside
	maxCommand = 256 << 10 // octets of a command
)

// Level is how bad a Finding is.
type Level string

// A Warning is about something that works, but could work better, or cannot be told.
// With a Fault mail is deferred, or something that the configuration asks for does not
// work.
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Fault   Level = "fault"
)

// Finding is what a check found.
type Finding struct {
	Level Level  `json:"level"`
	What  string `json:"what"`
	// Mend says what to do, if there is something to do. Lines that begin with
	// blanks are commands or settings.
	Mend string `json:"mend,omitempty"`
}

// Host is where to look. The zero Host is this one, without its DNS servers.
type Host struct {
	// Postconf is the program postconf(1); if empty it is looked for.
	Postconf string
	// Postfix is the directory of main.cf and master.cf; if empty it is the default one.
	Postfix string
	// Planned are settings that are looked at in place of those that main.cf has.
	Planned map[string]string
	// ResolvConf is the resolv.conf(5) file; /etc/resolv.conf if empty.
	ResolvConf string
	// QueueLength is the file that has net.unix.max_dgram_qlen; if empty it is the
	// kernel's.
	QueueLength string
	// Roots returns the certificates that the daemon trusts; if nil the system's.
	Roots func() (*x509.CertPool, error)
	// Ask asks each of the DNS servers for a name that is signed. The servers are
	// as in config.DNS: those of resolv.conf(5) if there are none. It returns when
	// ctx ends, if not before. If Ask is nil no server is asked.
	Ask func(ctx context.Context, servers []string) []Server
	// Resolver answers what Reporter asks the DNS.
	Resolver *resolver.Resolver
	// SMTP is the mail server of this host that is asked whether bounces find their
	// address, such as "localhost:25"; if empty none is asked.
	SMTP string
	// Addresses are those that mail goes out from to the Internet; if there are none,
	// those that the DNS has for the name of the host.
	Addresses []netip.Addr
}

// Server is a DNS server that was asked for a name that is signed.
type Server struct {
	Address   string // and port
	Answered  bool
	Authentic bool  // the answer had the AD bit
	Trusted   bool  // the daemon believes that bit
	Err       error // why there was no answer
}

// TLSPolicy returns what there is to say about the host for ruapost-tlspolicy with
// the configuration cfg. It takes 20 seconds at most.
func TLSPolicy(ctx context.Context, cfg *config.Config, host Host) []Finding {
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	c := &checker{cfg: cfg, host: host}
	if c.readPostfix(ctx); c.postfix != nil {
		c.checkVersion()
		c.checkMilter(ctx)
	}
	c.checkPolicySockets(ctx) // before what depends on it that somebody answers
	if c.postfix != nil {
		c.checkSecurityLevel()
		c.checkPolicyMaps()
		c.checkDNSSupport()
		c.checkDANE()
		c.checkAuthorities()
		c.checkLogLevel()
		c.checkTLSRPT()
		c.checkRelay()
	}
	c.checkEventSocket()
	c.checkQueueLength()
	c.checkMaillog()
	c.checkResolver(ctx)
	c.checkPostfixResolver(ctx)
	c.checkRoots()
	c.checkStore()
	return c.findings
}

// Deferrals returns what would make Postfix defer mail if it asked ruapost-tlspolicy with
// the settings that are planned. Nothing but faults is returned.
func Deferrals(ctx context.Context, cfg *config.Config, host Host) []Finding {
	return faults(ctx, cfg, host, func(ctx context.Context, c *checker) {
		if c.readPostfix(ctx); c.postfix != nil {
			c.checkVersion()
		}
		c.surely(func() { c.checkPolicySockets(ctx) })
		if c.postfix != nil {
			c.checkPolicyMaps()
			c.checkDNSSupport()
			c.checkAuthorities()
		}
		c.checkPostfixResolver(ctx)
	})
}

// Milter returns what keeps Postfix from asking ruapost-milter. Nothing but faults is
// returned.
func Milter(ctx context.Context, cfg *config.Config, host Host) []Finding {
	return faults(ctx, cfg, host, func(ctx context.Context, c *checker) {
		c.readPostfix(ctx)
		c.surely(func() { c.checkMilterSockets(ctx) })
	})
}

// Events returns what keeps Postfix from telling ruapost-tlspolicy how TLS went. Nothing
// but faults is returned.
func Events(ctx context.Context, cfg *config.Config, host Host) []Finding {
	return faults(ctx, cfg, host, func(ctx context.Context, c *checker) {
		c.readPostfix(ctx)
		c.surely(c.checkEventSocket)
	})
}

// faults returns the faults that checks find. They take 20 seconds at most.
func faults(ctx context.Context, cfg *config.Config, host Host, checks func(context.Context, *checker)) []Finding {
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	c := &checker{cfg: cfg, host: host}
	checks(ctx, c)
	return slices.DeleteFunc(c.findings, func(f Finding) bool { return f.Level != Fault })
}

// surely makes faults of the warnings of a check: what it cannot tell must not be relied on.
func (c *checker) surely(check func()) {
	before := len(c.findings)
	check()
	for i := range c.findings[before:] {
		if f := &c.findings[before+i]; f.Level == Warning {
			f.Level = Fault
		}
	}
}

// ExitStatus returns the exit status of a program that found this: 1 if there is a
// fault, else 0.
func ExitStatus(findings []Finding) int {
	for _, f := range findings {
		if f.Level == Fault {
			return 1
		}
	}
	return 0
}

// checker gathers findings.
type checker struct {
	cfg      *config.Config
	host     Host
	postfix  *postfix // nil if there is none, or nothing is known of it
	answered bool     // by ruapost-tlspolicy, at one of its sockets
	findings []Finding
}

func (c *checker) add(level Level, mend, format string, args ...any) {
	what := ruapost.Clean(fmt.Sprintf(format, args...), maxText)
	c.findings = append(c.findings, Finding{level, what, mend})
}

func (c *checker) ok(format string, args ...any) { c.add(OK, "", format, args...) }

func (c *checker) warn(mend, format string, args ...any) { c.add(Warning, mend, format, args...) }

func (c *checker) fault(mend, format string, args ...any) { c.add(Fault, mend, format, args...) }

// then returns a text that says to do something, as Finding.Mend has it.
func then(text string, commands ...string) string {
	var b strings.Builder
	b.WriteString(text)
	for _, command := range commands {
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString("    ")
		b.WriteString(ruapost.Clean(command, maxCommand)) // never half a command
	}
	return b.String()
}
