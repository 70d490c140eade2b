package main

import "fmt"

// reportForm is how others write their report mails: some of them in ways that RFC 7489
// 7.2.1.1 does not have, one that fits the letter only.
type reportForm struct {
	name    string
	subject func(domain, submitter string) string
	fields  func(domain, submitter string) []string
}

// attachment is a mail that is nothing but the report.
func attachment(kind, suffix string) func(domain, submitter string) []string {
	return func(domain, submitter string) []string {
		name := fmt.Sprintf("%s!%s!1795392000!1795478399.%s", submitter, domain, suffix)
		return []string{
			"MIME-Version: 1.0",
			fmt.Sprintf("Content-Type: %s; name=%q", kind, name),
			fmt.Sprintf("Content-Disposition: attachment; filename=%q", name),
			"Content-Transfer-Encoding: base64",
		}
	}
}

func none(string, string) []string { return nil }

var reportForms = []reportForm{
	{"this program", func(d, s string) string {
		return fmt.Sprintf("Report Domain: %s Submitter: %s Report-ID: <0a1b2c>", d, s)
	}, func(string, string) []string { return []string{"Auto-Submitted: auto-generated"} }},
	{"rspamd", func(d, s string) string {
		return fmt.Sprintf("Report Domain: %s\r\n\tSubmitter: %s\r\n\tReport-ID: <%s.1795392000.1795478400>", d, s, d)
	}, none},
	{"OpenDMARC", func(d, s string) string {
		return fmt.Sprintf("Report Domain: %[1]s Submitter: %[2]s Report-ID: %[1]s-1795392000@%[2]s", d, s)
	}, none},
	{"Google", func(d, s string) string {
		return fmt.Sprintf("Report domain: %s Submitter: %s Report-ID: 1234567890123456789", d, s)
	}, attachment("application/zip", "zip")},
	{"mail.ru", func(d, s string) string {
		return fmt.Sprintf("Report Domain: %s; Submitter: %s; Report-ID: 18520205951976", d, s)
	}, none},
	{"Amazon", func(d, s string) string {
		return fmt.Sprintf("Dmarc Aggregate Report Domain: {%s}  Submitter:\r\n {%s}  Date: {2026-11-23}  Report-ID:\r\n {fd22fed8}", d, s)
	}, none},
	{"Microsoft", func(d, s string) string {
		return fmt.Sprintf("[Preview] Report Domain: %s Submitter: %s Report-ID: 9115e5ed", d, s)
	}, none},
	{"Microsoft, encoded", func(d, s string) string {
		return "=?utf-8?B?W1ByZXZpZXddIFJlcG9ydCBEb21haW46IG91ci5leGFtcGxlIFN1?=\r\n =?utf-8?B?Ym1pdHRlcjogcGVlci5leGFtcGxlIFJlcG9ydC1JRDogOTExNWU1ZWQ=?="
	}, none},
	{"TLS report", func(d, s string) string {
		return fmt.Sprintf("TLS report for %s", d)
	}, func(d, s string) []string { return []string{"TLS-Report-Domain: " + d, "TLS-Report-Submitter: " + s} }},
}
