package maillog

import (
	"fmt"
	"strings"
	"testing"

	"ruapost"
)

// Each text that Postfix 3.5 to 3.12 logs of a certificate, and what 3.10 reports of it.
func TestParseVerifyError(t *testing.T) {
	const server = "mx.example[192.0.2.1]:25"
	for text, want := range map[string]string{
		"certificate verification failed for " + server + ": not trusted by local or TLSA policy":                  "certificate-not-trusted",
		"certificate verification failed for " + server + ": self-signed certificate":                              "validation-failure self-signed_certificate",
		"certificate verification failed for " + server + ": untrusted issuer /C=XX/CN=certificate has expired":    "validation-failure unable_to_get_local_issuer_certificate",
		"certificate verification failed for " + server + ": not designated for use as a server certificate":       "validation-failure unsuitable_certificate_purpose",
		"certificate verification failed for " + server + ": not designated for use as a CA certificate":           "validation-failure unsuitable_certificate_purpose",
		"certificate verification failed for " + server + ": certificate chain longer than limit(9)":               "validation-failure certificate_chain_too_long",
		"certificate verification failed for " + server + ": external policy failure (sts-policy-fetch-error)":     "sts-policy-fetch-error",
		"certificate verification failed for " + server + ": external policy failure (validation-failure)":         "validation-failure",
		"certificate verification failed for " + server + ": external policy failure (odd)":                        "validation-failure odd",
		"CA certificate verification failed for " + server + ": certificate not yet valid":                         "validation-failure certificate_is_not_yet_valid",
		"server certificate verification failed for " + server + ": certificate has expired":                       "certificate-expired",
		"server certificate verification failed for " + server + ": num=62:hostname mismatch":                      "certificate-host-mismatch",
		"server certificate verification failed for " + server + ": num=65:no matching DANE TLSA records":          "certificate-not-trusted",
		"CA certificate verification failed for " + server + ": num=68:CA signature digest algorithm too weak":     "certificate-not-trusted CA_signature_digest_algorithm_too_weak",
		"server certificate verification failed for MX.Example.[2001:db8::1]:25: num=23:certificate revoked\x00\n": "certificate-not-trusted certificate_revoked",
	} {
		r, f, ok := parseVerifyError(text)
		if got := strings.TrimSpace(string(f.Result) + " " + f.Reason); !ok || got != want || r.host != "mx.example" || r.port != 25 {
			t.Errorf("%s: %s, %+v, %v", text, got, r, ok)
		}
	}
}

func TestParseTold(t *testing.T) {
	const begin = "TLSRPT: status=failure, domain=example, receiving_mx=mx.example[192.0.2.1], failure_type="
	for _, word := range []string{
		"starttls_not_supported", "certificate_host_mismatch", "certificate_not_trusted", "certificate_expired",
		"validation_failure", "sts_policy_fetch_error", "sts_policy_invalid", "sts_webpki_invalid", "tlsa_invalid",
		"dnssec_invalid", "dane_required",
	} {
		got, ok := parseTold(begin + word)
		if want := ruapost.TLSResultType(strings.ReplaceAll(word, "_", "-")); !ok || got.failure != (ruapost.TLSFailure{Result: want}) {
			t.Errorf("%s: %+v, %v", word, got, ok)
		}
	}
	for _, word := range []string{"unfinished_policY", "unfinished_policy"} {
		if got, ok := parseTold(begin + word); !ok || !got.unfinished {
			t.Errorf("%s: %+v, %v", word, got, ok)
		}
	}
	got, ok := parseTold(begin + "odd, failure_reason=x\ny" + strings.Repeat("z", 300))
	if want := "x y" + strings.Repeat("z", maxReason-3); !ok || got.failure.Result != ruapost.ResultValidationFailure || got.failure.Reason != want {
		t.Errorf("%+v, %v", got, ok)
	}
}

func TestParseUnusable(t *testing.T) {
	const server = "warning: mx.example[192.0.2.1]:25: "
	for text, want := range map[string]string{
		server + "all TLSA records unusable, fallback to unauthenticated TLS": "tlsa-invalid all-TLSA-records-unusable",
		server + "all TLSA records unusable":                                  "tlsa-invalid all-TLSA-records-unusable",
		server + "all trust anchors unusable":                                 "validation-failure all-trust-anchors-unusable",
		server + "all fingerprints unusable":                                  "validation-failure all-fingerprints-unusable",
		server + "unusable TLSA RR: 3 1 1 ABAB":                               "",
		"warning: all TLSA records unusable":                                  "",
	} {
		_, f, ok := parseUnusable(text)
		if got := strings.TrimSpace(string(f.Result) + " " + f.Reason); got != want || ok != (want != "") {
			t.Errorf("%s: %s, %v", text, got, ok)
		}
	}
}

func TestCutRelay(t *testing.T) {
	for text, want := range map[string]string{
		"mx.example[192.0.2.1]:25: rest":       "mx.example[192.0.2.1]:25",
		"MX.Example[::ffff:192.0.2.1]:25 rest": "mx.example[192.0.2.1]:25",
		"mx.example[fe80::1%eth0]:587":         "mx.example[fe80::1]:587",
		"mx.example[192.0.2.1] rest":           "mx.example[192.0.2.1]:0",
		"mx.example[192.0.2.1]:70000":          "mx.example[192.0.2.1]:0",
		"192.0.2.1[192.0.2.1]:25":              "[192.0.2.1]:25",
		"../<x>[192.0.2.1]:25":                 "[192.0.2.1]:25",
		"mx.example[private/dovecot-lmtp]":     "",
		"mx.example[unknown]:25":               "",
		"mx.example[192.0.2.1":                 "",
		"none":                                 "",
	} {
		got := ""
		if r, _, ok := cutRelay(text); ok {
			got = fmt.Sprintf("%s[%s]:%d", r.host, r.ip, r.port)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestCutQueueID(t *testing.T) {
	for text, want := range map[string]string{
		"45BA69A00A4: text":                "45BA69A00A4",
		"06CD9FE: text":                    "06CD9FE",
		"4bQz1y3zTbzD1v: text":             "4bQz1y3zTbzD1v",
		"3PVV2c1zz6zz: a: b":               "3PVV2c1zz6zz",
		"warning: text":                    "",
		"TLSRPT: text":                     "",
		"fatal: text":                      "",
		"45BA69A00A4:text":                 "",
		"45BA6: text":                      "", // five digits are the time alone
		"45ba69a00a4: text":                "",
		"4bQz1yaaaazD1v: text":             "",
		"45BA69A00A4":                      "",
		"mx.example[::1]: text":            "",
		strings.Repeat("4", 40) + ": text": "",
	} {
		if got, rest, ok := cutQueueID(text); ok != (want != "") || ok && (got != want || text != got+": "+rest) {
			t.Errorf("%s: %q %q %v", text, got, rest, ok)
		}
	}
}
