package dmarc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/net/publicsuffix"

	"ruapost"
	"ruapost/internal/metric"
)

var (
	suffixLoads = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_suffix_list_loads_total",
		Help: "Times the file of a public suffix list was read, by result: ok, or failed, so that what was in force stays so.",
	}, "result", "ok", "failed")
	suffixNames = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "ruapost_suffix_list_rules",
		Help: "Names with rules in the public suffix list that was read; 0 if none was.",
	})
)

// maxSuffixFile bounds the file of a public suffix list, in octets. That of 2026
// has 330,000.
const maxSuffixFile = 4 << 20

// Suffixes is a public suffix list, by which RFC 7489 finds organizational domains.
type Suffixes interface {
	// OrganizationalDomain returns the public suffix that name ends in with one label
	// more, or name itself if it is a public suffix (RFC 7489 3.2). The name is as
	// ruapost.ParseDomain gives it.
	OrganizationalDomain(name string) string
}

// BuiltinSuffixes is the list in golang.org/x/net: some months older than the
// program.
type BuiltinSuffixes struct{}

func (BuiltinSuffixes) OrganizationalDomain(name string) string {
	suffix, _ := publicsuffix.PublicSuffix(name)
	return oneBelow(name, suffix)
}

// LoadSuffixes reads a list in the format of publicsuffix.org. Its ICANN and its
// PRIVATE rules count: who registers a name below a private suffix is no more the
// same organization as the neighbours than below a top level. An error names the
// file and, if a rule cannot be read, its line.
func LoadSuffixes(path string) (Suffixes, error) {
	list, err := readSuffixes(path)
	if err != nil {
		suffixLoads.WithLabelValues("failed").Inc()
		return nil, err
	}
	suffixLoads.WithLabelValues("ok").Inc()
	suffixNames.Set(float64(len(list)))
	return list, nil
}

func readSuffixes(path string) (suffixList, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("dmarc: public suffix list: %w", err)
	}
	defer f.Close()
	list, err := parseSuffixes(f)
	if err != nil {
		return nil, fmt.Errorf("dmarc: public suffix list %s: %w", path, err)
	}
	return list, nil
}

// suffixList has the rules by the name that they are about.
type suffixList map[string]suffixRules

type suffixRules uint8

const (
	plainRule     suffixRules = 1 << iota // "name": the name is a suffix
	wildcardRule                          // "*.name": each name one label below it is
	exceptionRule                         // "!name": the name is none, whatever other rules say
)

func parseSuffixes(r io.Reader) (suffixList, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxSuffixFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > maxSuffixFile:
		return nil, fmt.Errorf("larger than %d octets", maxSuffixFile)
	}
	list := suffixList{}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		if err := list.add(line); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
	}
	if len(list) == 0 {
		return nil, errors.New("no rules in it")
	}
	return list, nil
}

// add adds the rule of a line: what stands before the first blank.
func (l suffixList) add(line string) error {
	rule := strings.TrimLeft(line, " \t\r\n")
	if i := strings.IndexAny(rule, " \t\r\n"); i >= 0 {
		rule = rule[:i]
	}
	switch {
	case rule == "", strings.HasPrefix(rule, "//"):
		return nil
	case rule == "*": // holds anyway
		return nil
	}
	kind := plainRule
	if rest, ok := strings.CutPrefix(rule, "*."); ok {
		kind, rule = wildcardRule, rest
	} else if rest, ok := strings.CutPrefix(rule, "!"); ok {
		kind, rule = exceptionRule, rest
	}
	name, err := ruapost.ParseDomain(rule)
	if err != nil {
		return err
	}
	if kind == exceptionRule && ruapost.Labels(name) < 2 {
		return fmt.Errorf("exception with a single label: %q", name)
	}
	l[name] |= kind
	return nil
}

func (l suffixList) OrganizationalDomain(name string) string {
	return oneBelow(name, l.suffix(name))
}

// suffix returns the public suffix of name: the longest that a rule gives, else the
// last label. An exception stands over all, the suffix is the name above it.
func (l suffixList) suffix(name string) string {
	suffix := ""
	var above, rules suffixRules
	for end := len(name); end > 0; above = rules {
		start := strings.LastIndexByte(name[:end], '.') + 1
		rules = l[name[start:]]
		if rules&exceptionRule != 0 {
			return name[end+1:]
		}
		if suffix == "" || rules&plainRule != 0 || above&wildcardRule != 0 {
			suffix = name[start:]
		}
		end = start - 1
	}
	return suffix
}

// listed is discovery by a public suffix list (RFC 7489 6.6.3).
type listed struct {
	r           Resolver
	suffixes    Suffixes
	author, org string
}

func (l *listed) policyRecord(ctx context.Context) (*foundRecord, error) {
	domain := l.author
	records, err := lookupRecords(ctx, l.r, "_dmarc."+domain)
	if err == nil && len(records) == 0 && l.org != l.author { // step 3
		domain = l.org
		records, err = lookupRecords(ctx, l.r, "_dmarc."+domain)
	}
	if err != nil || len(records) != 1 { // step 5: several are none, and the search ends
		return nil, err
	}
	return &foundRecord{domain, records[0]}, nil
}

func (l *listed) organizationalDomain(context.Context) (string, error) { return l.org, nil }

func (l *listed) sameOrganization(_ context.Context, domain string) (bool, error) {
	return l.suffixes.OrganizationalDomain(domain) == l.org, nil
}
