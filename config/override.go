package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"ruapost"
)

// maxOverrides bounds the rules; each message that fails is compared with all.
const maxOverrides = 1000

// setOverrides is the setter of [[override]].
func (m *Milter) setOverrides(value any) error {
	const expected = `sections [[override]] with the keys source, dkim, spf, list_id, recipient, type and comment`
	tables, ok := value.([]map[string]any)
	if !ok {
		return fmt.Errorf("%s; expected %s", describe(value), expected)
	}
	if len(tables) > maxOverrides {
		return fmt.Errorf("%d sections; expected at most %d", len(tables), maxOverrides)
	}
	m.Overrides = nil
	for i, table := range tables {
		o, err := parseOverride(table)
		if err != nil {
			return fmt.Errorf("section %d: %w", i+1, err)
		}
		m.Overrides = append(m.Overrides, o)
	}
	return nil
}

func parseOverride(table map[string]any) (Override, error) {
	const domains = `domains such as "example.org"`
	o := Override{Type: ruapost.OverrideLocalPolicy}
	keys := map[string]setter{
		"source":    oneOrMore(&o.Sources, networks, parseNetwork),
		"dkim":      oneOrMore(&o.DKIM, domains, ruapost.ParseDomain),
		"spf":       oneOrMore(&o.SPF, domains, ruapost.ParseDomain),
		"list_id":   oneOrMore(&o.ListIDs, `list identifiers such as "list.example.org", without angle brackets`, parseListID),
		"recipient": oneOrMore(&o.Recipients, domains, ruapost.ParseDomain),
		"type":      one(&o.Type, `"local_policy", "trusted_forwarder", "mailing_list", "forwarded" or "other"`, parseOverrideType),
		"comment":   one(&o.Comment, "a text of up to 200 octets", optional(parseName)),
	}
	for key, value := range table {
		set, ok := keys[key]
		if !ok {
			return o, fmt.Errorf("unknown key %q; expected one of source, dkim, spf, list_id, recipient, type, comment", ruapost.Clean(key, 100))
		}
		if err := set(value); err != nil {
			return o, fmt.Errorf("%s: %w", key, err)
		}
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
