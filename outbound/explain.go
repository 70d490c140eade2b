package outbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"ruapost"
	"ruapost/dane"
	"ruapost/mtasts"
	"ruapost/tlsrpt"
)

// Explanation is all that leads to the answer about a domain, for people.
type Explanation struct {
	Domain string `json:"domain"`
	// Override is the exception in the configuration, in words, if there is one.
	Override string `json:"override,omitempty"`

	MXError  string            `json:"mx_error,omitempty"`
	MXSecure bool              `json:"mx_secure"`
	Hosts    []HostExplanation `json:"hosts"`
	// Skipped is the number of MX hosts that were not looked at.
	Skipped int `json:"skipped,omitempty"`

	STSRecord      string          `json:"sts_record,omitempty"` // its ID
	STSRecordError string          `json:"sts_record_error,omitempty"`
	STSPolicy      *STSExplanation `json:"sts_policy,omitempty"`
	STSFetchError  string          `json:"sts_fetch_error,omitempty"`

	TLSRPT      []string `json:"tlsrpt,omitempty"` // destinations of reports
	TLSRPTError string   `json:"tlsrpt_error,omitempty"`

	Level  Level  `json:"level"`
	Reason string `json:"reason"`
	// Answers are what Postfix is told, by the name of the table.
	Answers map[string]string `json:"answers"`
}

// HostExplanation is what is known of an MX host.
type HostExplanation struct {
	Name   string   `json:"name"`
	Addrs  []string `json:"addresses"`
	Secure bool     `json:"secure"`
	// TLSABase is the name that the records TLSA are for.
	TLSABase string   `json:"tlsa_base,omitempty"`
	TLSA     []string `json:"tlsa,omitempty"`
	Usable   int      `json:"tlsa_usable"`
	Error    string   `json:"error,omitempty"`
	// Outside says that the MTA-STS policy does not name the host.
	Outside bool `json:"outside_sts_policy,omitempty"`
}

// STSExplanation is the MTA-STS policy that holds.
type STSExplanation struct {
	ID      string    `json:"id"` // its record's when it was fetched
	Mode    string    `json:"mode"`
	MX      []string  `json:"mx"`
	Text    []string  `json:"text"`
	Expires time.Time `json:"expires"`
}

// Explain finds out what is answered about the domain that key names, now and without
// what answers are kept, and why. Its error wraps ruapost.ErrDomain.
func (p *Policies) Explain(ctx context.Context, key string, r tlsrpt.Resolver) (*Explanation, error) {
	domain, ok := policyDomain(key)
	if !ok {
		return nil, fmt.Errorf("%w with a dot: %q", ruapost.ErrDomain, ruapost.Clean(key, 100))
	}
	settings := p.settings.Load()
	f := p.find(ctx, domain, settings)
	v := f.verdict(settings)
	reason := f.reason(v, settings)
	override := f.override
	f.override = Override{} // what is there, though it may have no say
	p.look(ctx, f)
	e := &Explanation{
		Domain: domain, Override: override.words(),
		MXError: words(f.hostsErr), MXSecure: f.hosts.MXSecure, Skipped: f.hosts.Skipped,
		STSRecordError: words(f.sts.recordErr), STSFetchError: words(f.sts.fetchErr),
		Level: v.level, Reason: reason,
		Answers: map[string]string{TableQuery: v.plain.String(), TableQueryTLSRPT: v.tlsrpt.String()},
	}
	if f.sts.record != nil {
		e.STSRecord = f.sts.record.ID
	}
	if policy := f.sts.policy; policy != nil {
		e.STSPolicy = &STSExplanation{f.sts.id, string(policy.Mode), policy.MX, policy.Text, f.sts.expires}
	}
	for i := range f.hosts.Hosts {
		e.Hosts = append(e.Hosts, explainHost(&f.hosts.Hosts[i], f.sts.policy))
	}
	record, err := tlsrpt.LookupRecord(ctx, r, domain)
	if e.TLSRPTError = words(err); err == nil {
		for _, uri := range record.RUA {
			e.TLSRPT = append(e.TLSRPT, uri.Raw)
		}
	}
	return e, nil
}

func explainHost(h *dane.Host, policy *mtasts.Policy) HostExplanation {
	e := HostExplanation{
		Name: h.Name, Secure: h.Secure, TLSABase: h.TLSABase, TLSA: tlsaRecords(h), Usable: len(h.TLSA),
		Error: words(h.Err), Outside: policy != nil && policy.Mode != mtasts.ModeNone && !policy.Matches(h.Name),
	}
	for _, addr := range h.Addrs {
		e.Addrs = append(e.Addrs, addr.String())
	}
	return e
}

func words(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, mtasts.ErrNoRecord), errors.Is(err, tlsrpt.ErrNoRecord):
		return "no record"
	}
	return ruapost.Clean(err.Error(), 300)
}

// words says what the exception does, "" if there is none.
func (o *Override) words() string {
	var all []string
	if o.Level != "" {
		all = append(all, "level "+string(o.Level))
	}
	for _, w := range []struct {
		set  bool
		text string
	}{{o.IgnoreDANE, "DANE ignored"}, {o.IgnoreSTS, "MTA-STS ignored"}, {o.NoReport, "no TLS reports"}} {
		if w.set {
			all = append(all, w.text)
		}
	}
	return strings.Join(all, ", ")
}

// reason says in a sentence why the level of v is what it is.
func (f *finding) reason(v *verdict, s *Settings) string {
	var usable, failed bool
	for _, h := range f.hosts.Hosts {
		usable = usable || len(h.TLSA) > 0
		failed = failed || h.Secure && h.Err != nil
	}
	switch {
	case f.override.Level != "":
		return "the configuration says so ([[tls_override]])"
	case v.level == LevelDANEOnly && usable && !failed:
		return "the MX answer is secure and every MX host has usable TLSA records"
	case v.level == LevelDANEOnly:
		return "a TLSA lookup fails: neither DANE nor the MTA-STS policy may be bypassed, so that mail waits"
	case v.level == LevelDANE && usable && !f.hosts.MXSecure:
		return "MX hosts have usable TLSA records, though the MX answer is not secure"
	case v.level == LevelDANE && usable:
		return "some MX hosts have usable TLSA records, but not all"
	case v.level == LevelDANE && failed:
		return "a TLSA lookup fails: Postfix defers at this level, if it fails there, too"
	case v.level == LevelDANE:
		return "there are TLSA records, none of them usable: TLS is mandatory, certificates are not checked"
	case v.level == LevelSTS && usable:
		return "the domain's MTA-STS policy is to be enforced; DANE protects less, as the MX answer is not secure"
	case v.level == LevelSTS:
		return "the domain's MTA-STS policy is to be enforced, and there is no usable DANE"
	case v.level == LevelTesting:
		return "the domain's MTA-STS policy is in mode testing, and testing_mode is \"report\""
	case v.trouble && s.DeferOnError:
		return "what the domain publishes cannot be found out, and on_error is \"defer\""
	case v.trouble:
		return "what the domain publishes cannot be found out; smtp_tls_security_level decides"
	case f.sts.policy != nil:
		return "the domain's MTA-STS policy is in mode " + string(f.sts.policy.Mode) + "; smtp_tls_security_level decides"
	}
	return "the domain has no policy; smtp_tls_security_level decides"
}

// WriteTo writes the explanation for a terminal.
func (e *Explanation) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	line("Domain", "%s", e.Domain)
	if e.Override != "" {
		line("Override", "%s", e.Override)
	}
	switch {
	case e.MXError != "":
		line("MX", "cannot be looked up: %s", e.MXError)
	case len(e.Hosts) == 0:
		line("MX", "%s; none that mail could go to", secureWord(e.MXSecure))
	default:
		line("MX", "%s", secureWord(e.MXSecure))
	}
	for _, h := range e.Hosts {
		h.write(line)
	}
	if e.Skipped > 0 {
		line("", "and %d more, not looked at", e.Skipped)
	}
	e.writeSTS(line)
	switch {
	case e.TLSRPTError != "":
		line("TLSRPT", "%s", e.TLSRPTError)
	case len(e.TLSRPT) == 0:
		line("TLSRPT", "a record without a destination that can be used")
	default:
		line("TLSRPT", "reports go to %s", strings.Join(e.TLSRPT, ", "))
	}
	line("Result", "%s, as %s", e.Level.words(), e.Reason)
	for _, table := range []string{TableQuery, TableQueryTLSRPT} {
		line(table, "%s", e.Answers[table])
	}
	if err := t.Flush(); err != nil {
		return 0, err
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

func (h *HostExplanation) write(line func(name, format string, args ...any)) {
	addrs := strings.Join(h.Addrs, " ")
	if addrs == "" {
		addrs = "no address"
	}
	line("", "%s  %s, %s", h.Name, addrs, secureWord(h.Secure))
	for _, record := range h.TLSA {
		line("", "    _25._tcp.%s TLSA %s", h.TLSABase, ruapost.Clean(record, 200))
	}
	if len(h.TLSA) > 0 {
		line("", "    %d of %d TLSA records are usable", h.Usable, len(h.TLSA))
	}
	if h.Outside {
		line("", "    not in the MTA-STS policy")
	}
	if h.Error != "" {
		line("", "    %s", h.Error)
	}
}

func (e *Explanation) writeSTS(line func(name, format string, args ...any)) {
	if e.STSRecordError != "" {
		line("MTA-STS", "%s", e.STSRecordError)
	} else {
		line("MTA-STS", "record with id %s", e.STSRecord)
	}
	if e.STSFetchError != "" {
		line("", "%s", e.STSFetchError)
	}
	if p := e.STSPolicy; p != nil {
		line("", "policy with id %s, until %s:", p.ID, p.Expires.UTC().Format(time.DateTime+" UTC"))
		for _, text := range p.Text {
			line("", "    %s", text)
		}
	}
}

func secureWord(secure bool) string {
	if secure {
		return "secure (DNSSEC)"
	}
	return "not secure (no DNSSEC)"
}
