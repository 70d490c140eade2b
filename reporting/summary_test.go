package reporting

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"ruapost"
)

func dmarcSummaryReport() *ruapost.Report {
	return &ruapost.Report{
		ID: "0123456789abcdef", Kind: ruapost.KindDMARC, Domain: "example.com",
		Window: ruapost.Day(time.Date(2026, 4, 1, 12, 0, 0, 0, time.UTC)),
	}
}

func dmarcSummaryGroup(total, listed int64) *ruapost.Group {
	return &ruapost.Group{
		Kind: ruapost.KindDMARC, Domain: "example.com", Total: total, Listed: listed,
		DMARC: &ruapost.DMARCPolicy{Domain: "example.com", P: ruapost.DispositionReject, SP: ruapost.DispositionQuarantine, ADKIM: ruapost.Strict, ASPF: ruapost.Relaxed, Percent: 20, Testing: true},
	}
}

func failed(ip, from string, d ruapost.Disposition) *ruapost.DMARCResult {
	return &ruapost.DMARCResult{SourceIP: netip.MustParseAddr(ip), HeaderFrom: from, Disposition: d}
}

// checkText checks what must hold for any text: lines that need no encoding and cannot
// be taken for anything but text.
func checkText(t testing.TB, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		line, ok := strings.CutSuffix(line, "\n")
		if !ok || len(line) > columns || strings.HasSuffix(line, " ") || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("line %q of\n%s", line, text)
		}
	}
}

func compareText(t testing.TB, want, got string) {
	t.Helper()
	checkText(t, got)
	if diff := gocmp.Diff(strings.TrimPrefix(want, "\n"), got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestSummaryDMARC(t *testing.T) {
	var s summary
	s.addGroup(dmarcSummaryGroup(1250, 1250))
	s.addDMARC(1200, &ruapost.DMARCResult{SourceIP: netip.MustParseAddr("192.0.2.1"), HeaderFrom: "example.com", AlignedSPF: true})
	s.addDMARC(8, &ruapost.DMARCResult{SourceIP: netip.MustParseAddr("192.0.2.1"), HeaderFrom: "example.com", AlignedDKIM: true})
	s.addDMARC(3, failed("192.0.2.1", "example.com", ruapost.DispositionReject))
	s.addDMARC(20, failed("2001:db8:1234:5678:9abc:def0:1234:5678", "newsletter.example.com", ruapost.DispositionQuarantine))
	s.addDMARC(9, failed("2001:db8:1234:5678:9abc:def0:1234:5678", "a.example.com", ruapost.DispositionQuarantine))
	s.addDMARC(5, failed("::ffff:198.51.100.7", "example.com", ruapost.DispositionReject))
	s.addDMARC(5, failed("198.51.100.7", "example.com", ruapost.DispositionNone))
	s.addDMARC(0, failed("203.0.113.1", "example.com", ruapost.DispositionNone)) // not in the report either
	s.addDMARC(-7, failed("203.0.113.1", "example.com", ruapost.DispositionNone))
	compareText(t, `
This is a DMARC aggregate report: what became of mail that has this domain,
or one below it, in its From field.

Domain:     example.com
Submitter:  mail.example.org
Report-ID:  0123456789abcdef
Period:     2026-04-01 00:00:00 to 2026-04-01 23:59:59 UTC
Policy:     p=reject sp=quarantine adkim=s pct=20 t=y
Messages:   1250
Passed:     1208
Failed:     42
            8 with disposition reject
            29 with disposition quarantine
            5 with disposition none

Sources of messages that failed, the largest numbers first:

  29  2001:db8:1234:5678:9abc:def0:1234:5678  quarantine
      From: newsletter.example.com and others
  10  198.51.100.7  reject and others  From: example.com
   3  192.0.2.1  reject  From: example.com

The report is attached. It was made by a program; nobody reads answers.
To get no more of them, change the rua tag of the DNS record (TXT) at
  _dmarc.example.com
`, s.text(dmarcSummaryReport(), "mail.example.org"))
}

// Where the store listed no more rows the text claims no number that it does not know.
func TestSummaryUnlisted(t *testing.T) {
	var s summary
	g := dmarcSummaryGroup(100, 60)
	g.DMARC.Error = "sp=no\x1bne: not one of " + strings.Repeat("none, quarantine, reject ", 3)
	s.addGroup(g)
	s.addDMARC(40, &ruapost.DMARCResult{SourceIP: netip.MustParseAddr("192.0.2.1"), AlignedSPF: true})
	s.addDMARC(20, failed("198.51.100.7", "example.com", ruapost.DispositionNone))
	rep := dmarcSummaryReport()
	rep.Part, rep.Parts = 2, 3
	compareText(t, `
This is a DMARC aggregate report: what became of mail that has this domain,
or one below it, in its From field.

Domain:     example.com
Submitter:  mail.example.org
Report-ID:  0123456789abcdef
Part:       2 of 3; the figures are those of this part
Period:     2026-04-01 00:00:00 to 2026-04-01 23:59:59 UTC
Policy:     p=reject sp=quarantine adkim=s pct=20 t=y
Flaw:       sp=no ne: not one of none, quarantine, reject none, quarantine,
            reject none, quarantine, reject
Messages:   100
            40 of them are not listed: they differed in too many ways
Passed:     at least 40
Failed:     at least 20
            at least 20 with disposition none

Some sources of messages that failed:

  at least 20  198.51.100.7  none  From: example.com

The report is attached. It was made by a program; nobody reads answers.
To get no more of them, change the rua tag of the DNS record (TXT) at
  _dmarc.example.com
`, s.text(rep, "mail.example.org"))
}

func TestSummaryNothingFailed(t *testing.T) {
	var s summary
	s.addGroup(dmarcSummaryGroup(2, 2))
	s.addDMARC(2, &ruapost.DMARCResult{SourceIP: netip.MustParseAddr("192.0.2.1"), AlignedSPF: true})
	text := s.text(dmarcSummaryReport(), "mail.example.org")
	checkText(t, text)
	if !strings.Contains(text, "Passed:     2\nFailed:     0\n\nThe report is attached.") {
		t.Error(text)
	}
}

// Without its rows a report has totals alone, and no others are made up.
func TestSummaryWithoutRows(t *testing.T) {
	var s summary
	s.addGroup(dmarcSummaryGroup(2, 2))
	text := s.text(dmarcSummaryReport(), "mail.example.org")
	checkText(t, text)
	if !strings.Contains(text, "Messages:   2\n\nThe report is attached.") {
		t.Error(text)
	}
}

func tlsSummary() *summary {
	var s summary
	group := func(total, failed int64, p ruapost.TLSPolicy) {
		s.addGroup(&ruapost.Group{Kind: ruapost.KindTLS, Domain: "example.com", TLS: &p, Total: total, Failed: failed})
	}
	group(100, 7, ruapost.TLSPolicy{Type: ruapost.PolicySTS, Strings: []string{"version: STSv1", "mode: enforce"}})
	group(10, 0, ruapost.TLSPolicy{Type: ruapost.PolicySTS, Strings: []string{"version: STSv1", "mode:testing"}})
	group(3, 1, ruapost.TLSPolicy{Type: ruapost.PolicySTS, Strings: []string{"mode: \r\nBcc: x"}})
	group(50, 2, ruapost.TLSPolicy{Type: ruapost.PolicyTLSA, Domain: "mx1.example.com"})
	group(60, 1, ruapost.TLSPolicy{Type: ruapost.PolicyTLSA, Domain: "mx2.example.com"})
	group(1, 0, ruapost.TLSPolicy{Type: ruapost.PolicyNone})
	s.addTLS(3, &ruapost.TLSFailure{Result: ruapost.ResultCertificateExpired, ReceivingMX: "mx1.example.com", ReceivingIP: "192.0.2.1"})
	s.addTLS(4, &ruapost.TLSFailure{Result: ruapost.ResultCertificateExpired, ReceivingMX: "mx1.example.com", ReceivingIP: "192.0.2.2"})
	s.addTLS(2, &ruapost.TLSFailure{Result: ruapost.ResultValidationFailure, ReceivingMX: "mx2.example.com", Reason: "a reason that is too long for the line with the name", Additional: "not this"})
	s.addTLS(1000, &ruapost.TLSFailure{Result: ruapost.ResultSTSPolicyFetchError, Additional: "https://mta-sts.example.com"})
	s.addTLS(0, &ruapost.TLSFailure{Result: ruapost.ResultTLSAInvalid})
	return &s
}

func tlsSummaryReport() *ruapost.Report {
	rep := dmarcSummaryReport()
	rep.Kind = ruapost.KindTLS
	return rep
}

func TestSummaryTLS(t *testing.T) {
	compareText(t, `
This is an SMTP TLS report: how well connections to the mail servers of this
domain were secured.

Domain:     example.com
Submitter:  example.org
Report-ID:  0123456789abcdef
Period:     2026-04-01 00:00:00 to 2026-04-01 23:59:59 UTC
Sessions:   224, of which 11 failed
            no-policy-found: 1, of which 0 failed
            sts (MTA-STS): 3, of which 1 failed
            sts (MTA-STS), mode enforce: 100, of which 7 failed
            sts (MTA-STS), mode testing: 10, of which 0 failed
            tlsa (DANE): 110, of which 3 failed

Known failures, the largest numbers first:

  1000  sts-policy-fetch-error  https://mta-sts.example.com
     7  certificate-expired  mx1.example.com
     2  validation-failure  mx2.example.com
        a reason that is too long for the line with the name

The report is attached. It was made by a program; nobody reads answers.
To get no more of them, change the rua tag of the DNS record (TXT) at
  _smtp._tls.example.com
`, tlsSummary().text(tlsSummaryReport(), "example.org"))
}

// A mail that is made after a restart says the same as one made at once, and what is kept
// until then is small.
func TestSummaryJSON(t *testing.T) {
	var dmarc summary
	dmarc.addGroup(dmarcSummaryGroup(50_000, 49_000))
	for i := range 2 * maxSources {
		dmarc.addDMARC(int64(1+i%7), failed(fmt.Sprintf("10.0.%d.%d", i/256, i%256), fmt.Sprintf("d%d.example.com", i), ruapost.DispositionReject))
	}
	for rep, s := range map[*ruapost.Report]*summary{dmarcSummaryReport(): &dmarc, tlsSummaryReport(): tlsSummary(), {Kind: ruapost.KindTLS}: {}} {
		data, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 4000 {
			t.Errorf("%d octets of JSON", len(data))
		}
		var again summary
		if err := json.Unmarshal(data, &again); err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(s.text(rep, "example.org"), again.text(rep, "example.org")); diff != "" {
			t.Errorf("text after JSON: -want +got:\n%s", diff)
		}
	}
}

// Nothing that comes from the network gets into the text as it is.
func TestSummaryHostile(t *testing.T) {
	for _, value := range []string{
		"\r\nBcc: x@example.com\r\n\r\n", "\x00\x1b[2J\x7f", "\u202eevil\u2028", "\xff\xfe", "ünïcode.example", " ", "",
		strings.Repeat("x", 5000), strings.Repeat("界", 300), strings.Repeat("a b ", 1000), strings.Repeat("\n", 300) + "From me",
	} {
		p := ruapost.DMARCPolicy{Domain: value, P: ruapost.Disposition(value), SP: ruapost.Disposition(value), Error: value}
		rep := &ruapost.Report{ID: value, Domain: value, Window: dmarcSummaryReport().Window}

		var dmarc summary
		dmarc.addGroup(&ruapost.Group{Kind: ruapost.KindDMARC, Total: 3, Listed: 3, DMARC: &p})
		dmarc.addDMARC(1, failed("fe80::1%eth0", value, ruapost.Disposition(value)))
		dmarc.addDMARC(2, &ruapost.DMARCResult{HeaderFrom: value})
		rep.Kind = ruapost.KindDMARC
		text := dmarc.text(rep, value)
		checkText(t, text)
		if lines := strings.Count(text, "\n"); lines > 60 {
			t.Errorf("%.20q: %d lines", value, lines)
		}
		if !strings.Contains(text, "Failed:     3\n            3 with disposition none\n") {
			t.Errorf("%q: %s", value, text)
		}

		var tls summary
		tls.addGroup(&ruapost.Group{Kind: ruapost.KindTLS, Total: 3, TLS: &ruapost.TLSPolicy{Type: ruapost.TLSPolicyType(value), Domain: value, Strings: []string{value}}})
		tls.addGroup(&ruapost.Group{Kind: ruapost.KindTLS, Total: 3, TLS: &ruapost.TLSPolicy{Type: ruapost.PolicySTS, Strings: []string{"mode: " + value}}})
		tls.addTLS(1, &ruapost.TLSFailure{Result: ruapost.TLSResultType(value), ReceivingMX: value, Reason: value})
		tls.addTLS(1, &ruapost.TLSFailure{Result: ruapost.ResultTLSAInvalid, Additional: value})
		rep.Kind = ruapost.KindTLS
		text = tls.text(rep, value)
		checkText(t, text)
		if lines := strings.Count(text, "\n"); lines > 60 {
			t.Errorf("%.20q: %d lines", value, lines)
		}
	}
}

// What the tally claims holds, whatever comes in which order: no lower bound is too high,
// no upper bound too low, no key of more than its share is missing, and a list that is
// said to be ranked is the true one.
func TestTally(t *testing.T) {
	ranked, unranked := 0, 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		limit, keys := 1+r.IntN(30), 1+r.IntN(60)
		var tl tally[int, int64]
		truth := map[int]int64{}
		var total int64
		for range 500 {
			key, n := int(float64(keys)*r.Float64()*r.Float64()*r.Float64()), 1+r.Int64N(5)
			notes, known := tl.add(key, n, limit)
			if !known && *notes != 0 {
				t.Fatalf("notes of another key: %d", *notes)
			}
			*notes += n
			truth[key] += n
			total += n
		}
		if len(tl.counters) > limit || len(tl.byKey) != len(tl.counters) {
			t.Fatalf("limit %d: %d counters, %d keys", limit, len(tl.counters), len(tl.byKey))
		}
		for key, n := range truth {
			c, ok := tl.byKey[key]
			switch {
			case !ok && n*int64(limit) > total:
				t.Errorf("limit %d: key with %d of %d has no place", limit, n, total)
			case ok && (n < c.lower() || n > c.count || c.notes != c.lower()):
				t.Errorf("key with %d: counted %d to %d, notes about %d", n, c.lower(), c.count, c.notes)
			case ok && len(truth) <= limit && c.over != 0:
				t.Errorf("inexact though there was room")
			}
		}
		byTruth := slices.SortedFunc(func(yield func(int) bool) {
			for key := range truth {
				if !yield(key) {
					return
				}
			}
		}, func(a, b int) int { return cmp.Compare(truth[b], truth[a]) })
		largest, ok := tl.largest(5, cmp.Compare[int])
		if !ok {
			unranked++
			continue
		}
		ranked++
		for i, c := range largest {
			if truth[c.key] != truth[byTruth[i]] || c.lower() != truth[c.key] {
				t.Errorf("rank %d: %d messages, want %d", i, c.lower(), truth[byTruth[i]])
			}
		}
	}
	if ranked < 50 || unranked < 50 {
		t.Errorf("%d ranked, %d not: the test tells nothing", ranked, unranked)
	}
}

// manySources is a report of n rows, each of another source, and one source between them
// that has every hundredth message.
func manySources(s *summary, n int) {
	s.addGroup(dmarcSummaryGroup(int64(n), int64(n)))
	for i := range n {
		res := failed("203.0.113.99", "bad.example.com", ruapost.DispositionReject)
		if i%100 != 0 {
			res.SourceIP = netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		}
		s.addDMARC(1, res)
	}
}

// With more sources than there is room for, memory does not grow, the one that matters is
// found, and the text does not say more than is known.
func TestSummaryManySources(t *testing.T) {
	var s summary
	const rows = 20 * maxSources
	manySources(&s, rows)
	if len(s.sources.counters) != maxSources || len(s.sources.byKey) != maxSources {
		t.Errorf("%d sources are kept", len(s.sources.byKey))
	}
	text := s.text(dmarcSummaryReport(), "mail.example.org")
	checkText(t, text)
	want := fmt.Sprintf("  %10d  203.0.113.99  reject  From: bad.example.com\n", rows/100)
	if !strings.Contains(text, "Some sources of messages that failed:\n\n"+want) || !strings.Contains(text, "Failed:     200000\n") {
		t.Error(text)
	}
	if strings.Count(text, "at least ") != maxWorst-1 {
		t.Errorf("not all lower bounds are called that:\n%s", text)
	}
}

func BenchmarkSummary(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		var s summary
		manySources(&s, 1_000_000)
	}
}
