package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"ruapost"
)

// maxOverrides bounds the rules; each message that fails is compared with all.
const maxOverrides = 1000

// setOverrides is the setter of [[override]].
func (m *Milter) setOverrides(value any) (err error) {
	m.Overrides, err = sectionList(value, "override", "source, dkim, spf, list_id, recipient, type and comment", parseOverride)
	return err
}

// setOverrides is the setter of [[tls_override]].
func (t *TLSPolicy) setOverrides(value any) (err error) {
	t.Overrides, err = sectionList(value, "tls_override", "domain, level, ignore and report", parseTLSOverride)
	sections := map[string]int{}
	for i, o := range t.Overrides {
		for _, domain := range o.Domains {
			if first := sections[domain]; first > 0 {
				return fmt.Errorf("section %d: %s stands in section %d, too; expected each name once", i+1, domain, first)
			}
			sections[domain] = i + 1
		}
	}
	return err
}

// sectionList returns what sections that may stand several times say.
func sectionList[T any](value any, name, keys string, parse func(table map[string]any) (T, error)) ([]T, error) {
	tables, ok := value.([]map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s; expected sections [[%s]] with the keys %s", describe(value), name, keys)
	}
	if len(tables) > maxOverrides {
		return nil, fmt.Errorf("%d sections; expected at most %d", len(tables), maxOverrides)
	}
	var all []T
	for i, table := range tables {
		one, err := parse(table)
		if err != nil {
			return nil, fmt.Errorf("section %d: %w", i+1, err)
		}
		all = append(all, one)
	}
	return all, nil
}

// setTable has the setters take what a section says.
func setTable(table map[string]any, keys map[string]setter) error {
	for key, value := range table {
		set, ok := keys[key]
		if !ok {
			return fmt.Errorf("unknown key %q; expected one of %s", ruapost.Clean(key, 100), strings.Join(slices.Sorted(maps.Keys(keys)), ", "))
		}
		if err := set(value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

func parseTLSOverride(table map[string]any) (TLSOverride, error) {
	var o TLSOverride
	var ignore []string
	var report bool
	err := setTable(table, map[string]setter{
		"domain": oneOrMore(&o.Domains, domainOrBelow, parseDomainOrBelow),
		"level": one(&o.Level, `"none", "may", "encrypt", "dane", "dane-only" or "secure"`,
			word("none", "may", "encrypt", "dane", "dane-only", "secure")),
		"ignore": oneOrMore(&ignore, `"sts", "dane" or both`, word("sts", "dane")),
		"report": one(&report, `"yes" or "no"`, choice("no", "yes")),
	})
	if err != nil {
		return o, err
	}
	o.IgnoreSTS, o.IgnoreDANE = slices.Contains(ignore, "sts"), slices.Contains(ignore, "dane")
	_, set := table["report"]
	o.NoReport = set && !report
	switch {
	case len(o.Domains) == 0:
		return o, errors.New("it would be for no domain; expected domain")
	case o.Level != "" && len(ignore) > 0:
		return o, errors.New("what a domain publishes has no say beside a level; expected either level or ignore")
	case o.Level == "" && len(ignore) == 0 && !o.NoReport:
		return o, errors.New(`it would change nothing; expected level, ignore or report = "no"`)
	}
	return o, nil
}

// parseDomainOrBelow accepts a domain, or one with a dot before it for the names below.
func parseDomainOrBelow(s string) (string, error) {
	name, below := strings.CutPrefix(s, ".")
	name, err := ruapost.ParseDomain(name)
	if below {
		name = "." + name
	}
	return name, err
}

func parseOverride(table map[string]any) (Override, error) {
	const domains = `domains such as "example.org"`
	o := Override{Type: ruapost.OverrideLocalPolicy}
	keys := map[string]setter{
		"source":    oneOrMore(&o.Sources, networks, ParseNetwork),
		"dkim":      oneOrMore(&o.DKIM, domains, ruapost.ParseDomain),
		"spf":       oneOrMore(&o.SPF, domains, ruapost.ParseDomain),
		"list_id":   oneOrMore(&o.ListIDs, `list identifiers such as "list.example.org", without angle brackets`, parseListID),
		"recipient": oneOrMore(&o.Recipients, domains, ruapost.ParseDomain),
		"type":      one(&o.Type, `"local_policy", "trusted_forwarder", "mailing_list", "forwarded" or "other"`, parseOverrideType),
		"comment":   one(&o.Comment, "a text of up to 200 octets", optional(parseName)),
	}
	if err := setTable(table, keys); err != nil {
		return o, err
	}
	if len(o.Sources)+len(o.DKIM)+len(o.SPF)+len(o.ListIDs)+len(o.Recipients) == 0 {
		return o, errors.New("it would match every message; expected at least one of source, dkim, spf, list_id, recipient")
	}
	if len(o.ListIDs) > 0 && len(o.Sources)+len(o.DKIM)+len(o.SPF) == 0 {
		return o, errors.New("anybody can write a List-Id; expected source, dkim or spf beside list_id")
	}
	return o, nil
}

// oneOrMore is the setter of a key that takes a string or a list of them.
func oneOrMore[T any](to *[]T, expected string, parse func(string) (T, error)) setter {
	set := list(to, 1, expected, parse)
	return func(value any) error {
		if s, ok := value.(string); ok {
			value = []any{s}
		}
		return set(value)
	}
}

func parseListID(s string) (string, error) {
	if strings.ContainsAny(s, "<>@ \t") {
		return "", errors.New("not a list identifier")
	}
	s, err := parseName(s)
	return strings.ToLower(s), err
}

func parseOverrideType(s string) (ruapost.OverrideType, error) {
	t := ruapost.OverrideType(s)
	known := []ruapost.OverrideType{
		ruapost.OverrideLocalPolicy, ruapost.OverrideTrustedForwarder, ruapost.OverrideMailingList,
		ruapost.OverrideForwarded, ruapost.OverrideOther,
	}
	if !slices.Contains(known, t) {
		return "", errors.New("not supported")
	}
	return t, nil
}
