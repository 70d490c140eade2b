package check

import (
	"os"
	"os/exec"

	"ruapost/outbound"
)

// maillogMend is what to do if Postfix does not tell how TLS went.
const maillogMend = `Have its log read. In ruapost.toml, section [tlspolicy]:
    maillog = ["journal"]
It may be a file such as "/var/log/mail.log", too; see docs/outbound.md.`

// readsLog says whether the daemon reads Postfix's log.
func (c *checker) readsLog() bool { return len(c.cfg.TLSPolicy.Maillog) > 0 }

// checkMaillog looks whether there is a log. Whether the daemon may read it depends on
// groups that its unit gives it, and is in its own log.
func (c *checker) checkMaillog() {
	const mend = "If Postfix logs elsewhere, change tlspolicy.maillog. Whether the daemon may read it is in its log:\n    journalctl -u ruapost-tlspolicy"
	for _, source := range c.cfg.TLSPolicy.Maillog {
		var err error
		if source == outbound.Journal {
			_, err = exec.LookPath("journalctl")
		} else {
			_, err = os.Stat(source)
		}
		if err != nil {
			c.fault(mend, "tlspolicy.maillog: %s: %v", source, err)
			continue
		}
		c.ok("tlspolicy.maillog: %s is there", source)
	}
}
