package inbound

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ruapost"
	"ruapost/dmarc"
	"ruapost/internal/lab"
)

// The example of RFC 8463 A.3, with the keys of A.2. Both signatures name From, Subject
// and Date twice in h=.
const rfc8463 = `DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
`

// The example of RFC 6376 A.2, c=simple/simple, with the key of A.3.
const rfc6376 = `DKIM-Signature: v=1; a=rsa-sha256; s=brisbane; d=example.com;
      c=simple/simple; q=dns/txt; i=joe@football.example.com;
      h=Received : From : To : Subject : Date : Message-ID;
      bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
      b=AuUoFEfDxTDkHlLXSZEpZj79LICEps6eda7W3deTVFOk4yAUoqOB
      4nujc7YopdG5dWLSdNg6xNAZpOPr+kHxt1IrE+NahM6L/LbvaHut
      KVdkLLkpVaVVQPzeRDI009SO2Il5Lu7rDNH6mZckBdrIx0orEtZV
      4bmp/YzhwvcubU4=;
Received: from client1.football.example.com  [192.0.2.1]
      by submitserver.example.com with SUBMISSION;
      Fri, 11 Jul 2003 21:01:54 -0700 (PDT)
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game. Are you hungry yet?

Joe.
`

func TestRFCExamples(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`brisbane._domainkey.football.example.com. 300 IN TXT "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
		test._domainkey.football.example.com. 300 IN TXT "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWR" "iGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYzCNb3W91y3FutAC" "DfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3" "Ip3G+2kryOTIKT+l/K4w3QIDAQAB"
		brisbane._domainkey.example.com. 300 IN TXT "v=DKIM1; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMoGeLnQg1fWn7/zYt" "IxN2SnFCjxOCKG9v3b4jYfcTNh5ijSsq631uBItLa7od+v/RtdC2UzJ1lWT947qR+Rcac2gbto/NMqJ0fzfVjH4OuKhitdY9tf6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2QIDAQAB"
		_dmarc.football.example.com. 300 IN TXT "v=DMARC1; p=reject; adkim=s; rua=mailto:dmarc@example.com"
		_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none"`)
	const (
		ed    = "football.example.com brisbane "
		rsa   = "football.example.com test "
		again = "Subject: Is dinner ready?\n"
	)
	s := r.connect("192.0.2.1", "submitserver.example.com")
	for _, tt := range []struct {
		name, msg string
		dkim      []string
		dmarc     string
	}{
		{"RFC 8463 A.3", rfc8463, []string{ed + "pass", rsa + "pass"}, "pass"},
		{"RFC 8463, relaxed folds", strings.ReplaceAll(rfc8463, "Subject: Is dinner", "SUBJECT  :\tIs\n\t  dinner"), []string{ed + "pass", rsa + "pass"}, "pass"},
		{"RFC 8463, Ed25519 broken", strings.Replace(rfc8463, "b=/gCr", "b=/gCs", 1), []string{ed + "fail", rsa + "pass"}, "pass"},
		{"RFC 8463, RSA broken", strings.Replace(rfc8463, "b=F45d", "b=F45e", 1), []string{ed + "pass", rsa + "fail"}, "pass"},
		{"RFC 8463, body changed", strings.Replace(rfc8463, "lost", "won", 1), []string{ed + "fail", rsa + "fail"}, "fail"},
		{"RFC 8463, field signed changed", strings.Replace(rfc8463, "Is dinner", "Was dinner", 1), []string{ed + "fail", rsa + "fail"}, "fail"},
		{"RFC 6376 8.15, field added that h= names once too often", again + rfc8463, []string{ed + "fail", rsa + "fail"}, "fail"},
		{"RFC 6376 A.2: simple, and relaxed is not", rfc6376, []string{"example.com brisbane pass"}, "fail"},
		{"RFC 6376 A.2, fold changed", strings.Replace(rfc6376, "      by sub", "\tby sub", 1), []string{"example.com brisbane fail"}, "fail"},
	} {
		res := added(t, s.send("", bob, []byte(strings.ReplaceAll(tt.msg, "\n", "\r\n"))))
		if !hasDMARC(res, tt.dmarc+" header.from=football.example.com policy.dmarc=reject") {
			t.Errorf("%s: %s, want %s", tt.name, res, tt.dmarc)
		}
		var got []string
		for _, e := range r.take() {
			for _, d := range e.Result.DKIM {
				got = append(got, fmt.Sprintf("%s %s %s", d.Domain, d.Selector, d.Result))
			}
		}
		if d := cmp.Diff(tt.dkim, got); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}
}

// hasDMARC says whether an Authentication-Results field has that result of DMARC and
// those properties.
func hasDMARC(field, want string) bool {
	_, got, _ := strings.Cut(field, "; dmarc=")
	result, properties, _ := strings.Cut(want, " ")
	return strings.HasPrefix(got, result+" ") && strings.Contains(got, properties)
}

// dated is sample with a body and fields of its own behind From.
func dated(from, fields, body string) string {
	return "From: " + from + "\r\nDate: Fri, 11 Jul 2003 21:00:37 -0700\r\n" + fields + "\r\n" + body
}

// What RFC 6376 6.1 wants of a verifier, and what go-msgauth or its caller easily gets
// wrong. A signature that would be looked at too far ends in fail, not in permerror.
func TestDKIMTraps(t *testing.T) {
	r := newRig(t)
	k := key(t, r, "example.com")
	rsaKey, err := lab.NewRSAKey("rsa.example", "2026")
	if err != nil {
		t.Fatal(err)
	}
	line, err := rsaKey.ZoneLine()
	if err != nil {
		t.Fatal(err)
	}
	r.dns.Add(line)
	msg := dated("a@example.com", "", "Hello.\r\n")
	simple := func(msg string) []byte {
		return signAs(t, k, msg, func(o *dkim.SignOptions) {
			o.HeaderCanonicalization, o.BodyCanonicalization = dkim.CanonicalizationSimple, dkim.CanonicalizationSimple
		})
	}
	changed := func(k *lab.Key, old, with string) []byte {
		signed := sign(t, k, []byte(msg))
		if !bytes.Contains(signed, []byte(old)) {
			t.Fatalf("no %s in %s", old, signed)
		}
		return bytes.Replace(signed, []byte(old), []byte(with), 1)
	}
	expiring := func(in time.Duration) []byte {
		return signAs(t, k, msg, func(o *dkim.SignOptions) { o.Expiration = time.Now().Add(in) })
	}
	// record signs with a key of its own domain and publishes what change makes of the
	// record.
	published := 0
	record := func(change func(txt string) []string) []byte {
		published++
		own, err := lab.NewEd25519Key(fmt.Sprintf("k%d.example", published), "2026")
		if err != nil {
			t.Fatal(err)
		}
		txt, err := own.TXT()
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range change(txt) {
			r.dns.Add("2026._domainkey." + own.Domain + `. 300 IN TXT "` + text + `"`)
		}
		return sign(t, own, []byte(msg))
	}
	with := func(tags string) []byte {
		return record(func(txt string) []string { return []string{txt + "; " + tags} })
	}
	short, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 1015, 1), E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	r.dns.Add(`short._domainkey.rsa.example. 300 IN TXT "v=DKIM1; p=` + base64.StdEncoding.EncodeToString(short) + `"
		alias._domainkey.example.com. 300 IN CNAME 2026._domainkey.example.com.
		a.nodata._domainkey.example.com. 300 IN TXT "x"`)
	idn := key(t, r, "xn--bcher-kva.example")
	idn.Domain = "bücher.example" // RFC 8616 5

	s := r.connect("192.0.2.1", "mail.example.com")
	for _, tt := range []struct {
		name string
		msg  []byte
		want string
	}{
		{"RSA", sign(t, rsaKey, []byte(msg)), "pass header.d=rsa.example header.s=2026 header.a=rsa-sha256"},
		{"RFC 8301 3.1: SHA-1", changed(rsaKey, "a=rsa-sha256", "a=rsa-sha1"), "permerror header.d=rsa.example"},
		{"RFC 8301 3.2: RSA key of 1016 bits", changed(rsaKey, "s=2026", "s=short"), "permerror header.d=rsa.example header.s=short"},
		{"unknown algorithm", changed(k, "a=ed25519-sha256", "a=ed448-sha256"), "permerror header.d=example.com"},
		{"algorithm of another type of key", changed(k, "a=ed25519-sha256", "a=rsa-sha256"), "permerror header.d=example.com"},
		{"unknown canonicalization", changed(k, "c=relaxed/relaxed", "c=relaxed/nofws"), "permerror header.d=example.com"},
		{"unknown version", changed(k, "v=1", "v=2"), "permerror header.d=example.com"},
		{"unknown query method", changed(k, "v=1;", "v=1; q=http;"), "permerror header.d=example.com"},
		{"a tag twice", changed(k, "v=1;", "v=1; d=example.com;"), "permerror header.d=example.com"},
		{"From is not signed", changed(k, "h=From:", "h=X-From:"), "permerror header.d=example.com"},
		{"no body hash", changed(k, "bh=", "bx="), "permerror header.d=example.com"},
		{"i= is not below d=", changed(k, "v=1;", "v=1; i=@notexample.com;"), "permerror header.d=example.com"},
		{"expired", expiring(-time.Minute), "permerror header.d=example.com"},
		{"not expired", expiring(time.Hour), "pass header.d=example.com"},
		{"signature of one octet", []byte("DKIM-Signature: v=1; a=ed25519-sha256; d=example.com; s=2026; h=from; bh=x; b=y\r\n" + msg), "permerror header.d=example.com header.s=2026 header.a=ed25519-sha256 header.b=y;"},
		{"signature of none", []byte("DKIM-Signature: v=1; a=ed25519-sha256; d=example.com; s=2026; h=from; bh=; b=\r\n" + msg), "fail header.d=example.com header.s=2026 header.a=ed25519-sha256;"},

		{"key by an alias", signAs(t, k, msg, func(o *dkim.SignOptions) { o.Selector = "alias" }), "pass header.d=example.com header.s=alias"},
		{"no such record at the key's name", changed(k, "s=2026", "s=nodata"), "permerror header.d=example.com header.s=nodata"},
		{"two key records", record(func(txt string) []string { return []string{txt, "v=DKIM1; p="} }), "permerror"},
		{"a revoked key", record(func(string) []string { return []string{"v=DKIM1; k=ed25519; p="} }), "permerror"},
		{"a key record that is none", record(func(string) []string { return []string{"v=spf1 -all"} }), "permerror"},
		{"a key record of another version", record(func(txt string) []string { return []string{strings.Replace(txt, "DKIM1", "DKIM2", 1)} }), "permerror"},
		{"a key record in parts with blanks", record(func(txt string) []string { return []string{strings.Replace(txt, "p=", `p = " "`, 1)} }), "pass"},
		{"a key for SHA-1 only", with("h=sha1"), "permerror"},
		{"a key for SHA-256, too", with("h=sha1 : sha256"), "pass"},
		{"a key for another service", with("s=tlsrpt"), "permerror"},
		{"a key for all services", with("s=tlsrpt : *"), "pass"},
		{"a key in testing", with("t=y"), "pass"},
		{"unknown tags of a key", with("x=y; n=a note"), "pass"},

		{"RFC 8616 5: U-label in d=", sign(t, idn, []byte(msg)), "pass header.d=xn--bcher-kva.example"},
		{"d= in any case, final dot", signAs(t, k, msg, func(o *dkim.SignOptions) { o.Domain = "Example.COM." }), "pass header.d=example.com"},

		{"simple: blanks and folds as they came", simple(dated("a@example.com", "Subject:  a \r\n\tb\r\n   \r\n c \r\n", "x\r\n")), "pass header.d=example.com"},
		{"simple: no blank behind a colon, none before", simple(dated("a@example.com", "Subject:x\r\nX-Y : z\r\n", "x\r\n")), "pass header.d=example.com"},
		{"simple: empty value", simple(dated("a@example.com", "Subject:\r\nX-Y: \r\n", "x\r\n")), "pass header.d=example.com"},
		{"simple: octets beyond ASCII", simple(dated("J\xf6rg <a@example.com>", "Subject: \xc3\xb6\r\n", "\xff\x00\r\n")), "pass header.d=example.com"},
		{"simple: no body", simple(dated("a@example.com", "", "")), "pass header.d=example.com"},
		{"body without a line end", sign(t, k, []byte(dated("a@example.com", "", "Hello."))), "pass header.d=example.com"},
		{"body of several packets", sign(t, k, []byte(dated("a@example.com", "", strings.Repeat("Hello. \t \r\n", 20_000)))), "pass header.d=example.com"},
	} {
		if res := added(t, s.send("x@y.example", bob, tt.msg)); !strings.Contains(res, "; dkim="+tt.want) {
			t.Errorf("%s: %s, want %s", tt.name, res, tt.want)
		}
	}
}

// RFC 6376 6.1.2: no answer about the key is a temporary error, and so DMARC has no
// verdict (RFC 9989 5.3.6). go-msgauth calls it permanent if it is told in other words
// than net.DNSError.
func TestNoAnswer(t *testing.T) {
	r := newRig(t)
	r.svc.Config.Budget = time.Second
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject"`)
	k := key(t, r, "example.com")
	msg := sign(t, k, sample("a@example.com"))
	s := r.connect("192.0.2.1", "mail.example.com")

	// RFC 7208 5.5: an error in ptr is no match. That time is up is none of those.
	r.dns.Add(`ptr.example. 300 IN TXT "v=spf1 ptr -all"`)
	r.dns.SetRcode("1.2.0.192.in-addr.arpa", -1)
	if res := added(t, s.send("x@ptr.example", bob, msg)); !strings.Contains(res, "; spf=temperror smtp.mailfrom=ptr.example;") {
		t.Error(res)
	}
	for i, rcode := range []int{-1, mdns.RcodeServerFailure, mdns.RcodeRefused} {
		k.Selector = fmt.Sprintf("s%d", i) // nobody has asked for yet
		msg := sign(t, k, sample("a@example.com"))
		sender := k.Selector + ".example.com"
		for _, silent := range []string{k.Selector + "._domainkey.example.com", sender} {
			r.dns.SetRcode(silent, rcode)
		}
		want := "; spf=temperror smtp.mailfrom=" + sender + "; dkim=temperror header.d=example.com"
		if res := added(t, s.send("x@"+sender, bob, msg)); !strings.Contains(res, want) || !hasDMARC(res, "temperror header.from=example.com") {
			t.Errorf("rcode %d: %s", rcode, res)
		}
	}
}

// What RFC 7208 wants, and what go/spf leaves to its caller or has had wrong.
func TestSPFTraps(t *testing.T) {
	r := newRig(t)
	r.dns.Add(`
		mail.example.net. 300 IN A 192.0.2.3
		mail.example.net. 300 IN AAAA 2001:db8::cb01
		mail.example.net. 300 IN TXT "v=spf1 a -all"
		null.example. 300 IN TXT "v=spf1 exists:%{l}.%{o}.%{h}._spf.null.example -all"
		postmaster.null.example.null.example._spf.null.example. 300 IN A 127.0.0.2
		local.example. 300 IN TXT "v=spf1 exists:%{l}._spf.local.example -all"
		joe.x+list=y._spf.local.example. 300 IN A 127.0.0.2
		postmaster._spf.local.example. 300 IN A 127.0.0.2
		a_b._spf.local.example. 300 IN A 127.0.0.2
		%{d}._spf.local.example. 300 IN A 127.0.0.2
		origin.example. 300 IN TXT "v=spf1 exists:%{o}._spf.origin.example -all"
		origin.example._spf.origin.example. 300 IN A 127.0.0.2
		utf8.example. 300 IN TXT "v=spf1 exists:%{l}._spf.utf8.example ip4:192.0.2.3 -all"
		xn--bcher-kva.example. 300 IN TXT "v=spf1 ip4:192.0.2.3 -all"

		two.example. 300 IN TXT "v=spf1 -all"
		two.example. 300 IN TXT "v=spf1 +all"
		among.example. 300 IN TXT "some text"
		among.example. 300 IN TXT "v=spf10 -all"
		among.example. 300 IN TXT "V=SPF1 ip4:192.0" ".2.3 -all"
		nodata.example. 300 IN A 192.0.2.3
		neutral.example. 300 IN TXT "v=spf1"
		soft.example. 300 IN TXT "v=spf1 ~all"
		bad.example. 300 IN TXT "v=spf1 ip4:192.0.2.300 -all"
		unknown.example. 300 IN TXT "v=spf1 moo=%{d} ip4:192.0.2.3 -all"
		exp.example. 300 IN TXT "v=spf1 -all exp=why.exp.example"

		inctemp.example. 300 IN TXT "v=spf1 include:broken.example +all"
		incnone.example. 300 IN TXT "v=spf1 include:gone.example +all"
		incperm.example. 300 IN TXT "v=spf1 include:bad.example +all"
		incfail.example. 300 IN TXT "v=spf1 include:soft.example ip4:192.0.2.3 -all"
		redtemp.example. 300 IN TXT "v=spf1 redirect=broken.example"
		rednone.example. 300 IN TXT "v=spf1 redirect=gone.example"
		atemp.example. 300 IN TXT "v=spf1 a:broken.example +all"
		mxtemp.example. 300 IN TXT "v=spf1 mx +all"
		mxtemp.example. 300 IN MX 10 broken.example.
		existstemp.example. 300 IN TXT "v=spf1 exists:broken.example +all"
		early.example. 300 IN TXT "v=spf1 ip4:192.0.2.3 include:broken.example -all"
		nomx.example. 300 IN TXT "v=spf1 mx -all"
		nomx.example. 300 IN A 192.0.2.3

		void2.example. 300 IN TXT "v=spf1 a:gone1.example mx:nodata.example ip4:192.0.2.3 -all"
		void3.example. 300 IN TXT "v=spf1 a:gone1.example mx:nodata.example exists:gone2.example ip4:192.0.2.3 -all"

		ptr.example. 300 IN TXT "v=spf1 ptr -all"
		ptr2.example. 300 IN TXT "v=spf1 ptr:net -all"
		3.2.0.192.in-addr.arpa. 300 IN PTR notptr.example.
		3.2.0.192.in-addr.arpa. 300 IN PTR broken.example.
		3.2.0.192.in-addr.arpa. 300 IN PTR mail.example.net.
		notptr.example. 300 IN A 192.0.2.3
		4.2.0.192.in-addr.arpa. 300 IN PTR a.ptr.example.
		a.ptr.example. 300 IN A 192.0.2.5
		1.0.b.c.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 300 IN PTR b.ptr.example.
		b.ptr.example. 300 IN AAAA 2001:db8::cb01

		six.example. 300 IN TXT "v=spf1 ip6:2001:db8::/120 -all"
		sixa.example. 300 IN TXT "v=spf1 a:mail.example.net -all"
		sixnet.example. 300 IN TXT "v=spf1 a:mail.example.net/24//112 -all"
		sixmx.example. 300 IN TXT "v=spf1 mx -all"
		sixmx.example. 300 IN MX 10 mail.example.net.
		sixexists.example. 300 IN TXT "v=spf1 exists:only6.example exists:only4.example -all"
		only6.example. 300 IN AAAA 2001:db8::1
		only4.example. 300 IN A 127.0.0.2
		exists6.example. 300 IN TXT "v=spf1 exists:only6.example -all"
		four.example. 300 IN TXT "v=spf1 ip4:0.0.0.0/0 -all"
	`)
	r.dns.SetRcode("broken.example", mdns.RcodeServerFailure)
	r.dns.SetRcode("why.exp.example", mdns.RcodeServerFailure)
	// RFC 7208 4.6.4: what costs lookups.
	chain := func(domain string, includes int) {
		for i := range includes {
			r.dns.Add(fmt.Sprintf(`i%d.%s. 300 IN TXT "v=spf1 include:i%d.%s -all"`, i, domain, i+1, domain))
		}
		r.dns.Add(fmt.Sprintf(`i%d.%s. 300 IN TXT "v=spf1 ip4:192.0.2.3"`, includes, domain))
	}
	chain("ten.example", 10)
	chain("eleven.example", 11)
	terms := strings.Repeat(" a:only4.example", 7) + " mx:sixmx.example ptr"
	r.dns.Add(`terms10.example. 300 IN TXT "v=spf1` + terms + ` redirect=nobody.example"
		terms11.example. 300 IN TXT "v=spf1` + terms + ` exists:gone1.example redirect=nobody.example"
		nobody.example. 300 IN TXT "v=spf1 -all"
		mx10.example. 300 IN TXT "v=spf1 mx -all"
		mx11.example. 300 IN TXT "v=spf1 mx -all"
		mx11.example. 300 IN MX 99 m0.mx10.example.
		ptr10.example. 300 IN TXT "v=spf1 ptr -all"
		20.2.0.192.in-addr.arpa. 300 IN PTR m0.ptr10.example.
		m0.ptr10.example. 300 IN A 192.0.2.20
		m0.ptr10.example. 300 IN A 192.0.2.21`)
	for i := range 10 {
		r.dns.Add(fmt.Sprintf(`mx10.example. 300 IN MX %[1]d m%[1]d.mx10.example.
			mx11.example. 300 IN MX %[1]d m%[1]d.mx10.example.
			m%[1]d.mx10.example. 300 IN A 192.0.2.10%[1]d
			21.2.0.192.in-addr.arpa. 300 IN PTR other%[1]d.example.`, i))
	}
	r.dns.Add("21.2.0.192.in-addr.arpa. 300 IN PTR m0.ptr10.example.")

	const (
		v4     = "192.0.2.3"
		v6     = "2001:db8::cb01"
		mapped = "::ffff:192.0.2.3"
		helo   = "mail.example.net"
	)
	for _, tt := range []struct{ name, client, helo, from, want string }{
		{"2.4: null sender", v4, helo, "", "pass smtp.helo=mail.example.net"},
		{"2.4: null sender, another client", "192.0.2.9", helo, "", "fail smtp.helo=mail.example.net"},
		{"2.4: null sender, macros", v4, "Null.example", "", "pass smtp.helo=null.example"},
		{"2.4: null sender, HELO without a record", v4, "gone.example", "", "none smtp.helo=gone.example"},
		{"2.3: null sender, address as HELO", v4, "[192.0.2.3]", "", "none;"},
		{"2.3: null sender, address without brackets", v4, "192.0.2.3", "", "none;"},
		{"2.3: null sender, HELO of one label", v4, "broken", "", "none;"},
		{"4.3: null sender, HELO that is no name", v4, "broken..example", "", "none;"},
		{"HELO does not matter beside a sender", v4, "broken.example", "x@mail.example.net", "pass smtp.mailfrom=mail.example.net"},
		{"4.3: address as domain", v4, helo, "x@[192.0.2.3]", "none;"},
		{"4.3: domain of one label", v4, helo, "x@broken", "none;"},
		{"4.3: no domain", v4, helo, "MAILER-DAEMON", "none;"},
		{"4.3: no local part", v4, helo, "@local.example", "pass smtp.mailfrom=local.example"},

		{"local part with dots and signs", v4, helo, "Joe.x+list=y@local.example", "pass smtp.mailfrom=local.example"},
		{"local part of somebody else", v4, helo, "joe@local.example", "fail smtp.mailfrom=local.example"},
		{"local part with @", v4, helo, "a@b@local.example", "pass smtp.mailfrom=local.example"},
		{"quoted local part with @: the domain is behind the last", v4, helo, `"x@broken.example"@origin.example`, "pass smtp.mailfrom=origin.example"},
		{"local part with blanks", v4, helo, `"a b"@local.example`, "fail smtp.mailfrom=local.example"},
		{"7.3: macros in a local part are none", v4, helo, "%{d}@local.example", "pass smtp.mailfrom=local.example"},
		{"local part of 400 octets", v4, helo, strings.Repeat("a", 400) + "@local.example", "fail smtp.mailfrom=local.example"},
		{"RFC 8616 4: a term with a local part beyond ASCII does not match", v4, helo, "jörg@utf8.example", "pass smtp.mailfrom=utf8.example"},
		{"RFC 8616 4: U-label", v4, helo, "x@BÜCHER.example", "pass smtp.mailfrom=xn--bcher-kva.example"},

		{"4.3: NXDOMAIN", v4, helo, "x@gone.example", "none smtp.mailfrom=gone.example"},
		{"4.5: no record", v4, helo, "x@nodata.example", "none smtp.mailfrom=nodata.example"},
		{"4.4: SERVFAIL", v4, helo, "x@broken.example", "temperror smtp.mailfrom=broken.example"},
		{"4.5: two records", v4, helo, "x@two.example", "permerror"},
		{"4.5, 3.3: one record among others, in parts", v4, helo, "x@among.example", "pass"},
		{"4.7: nothing matches", v4, helo, "x@neutral.example", "neutral"},
		{"softfail", v4, helo, "x@soft.example", "softfail"},
		{"4.6: bad syntax", v4, helo, "x@bad.example", "permerror"},
		{"6: unknown modifier", v4, helo, "x@unknown.example", "pass"},
		{"6.2: exp is not asked for", v4, helo, "x@exp.example", "fail"},
		{"5.2: include ends in temperror", v4, helo, "x@inctemp.example", "temperror"},
		{"5.2: include of nothing", v4, helo, "x@incnone.example", "permerror"},
		{"5.2: include ends in permerror", v4, helo, "x@incperm.example", "permerror"},
		{"5.2: include that does not match", v4, helo, "x@incfail.example", "pass"},
		{"6.1: redirect ends in temperror", v4, helo, "x@redtemp.example", "temperror"},
		{"6.1: redirect to nothing", v4, helo, "x@rednone.example", "permerror"},
		{"5: SERVFAIL in a", v4, helo, "x@atemp.example", "temperror"},
		{"5: SERVFAIL in the address of mx", v4, helo, "x@mxtemp.example", "temperror"},
		{"5: SERVFAIL in exists", v4, helo, "x@existstemp.example", "temperror"},
		{"what stands behind a match is not asked for", v4, helo, "x@early.example", "pass"},
		{"5.4: mx does not fall back to a", v4, helo, "x@nomx.example", "fail"},

		{"4.6.4: two void lookups", v4, helo, "x@void2.example", "pass"},
		{"4.6.4: three void lookups", v4, helo, "x@void3.example", "permerror"},
		{"4.6.4: ten includes", v4, helo, "x@i0.ten.example", "pass"},
		{"4.6.4: eleven includes", v4, helo, "x@i0.eleven.example", "permerror"},
		{"4.6.4: ten terms", "192.0.2.9", helo, "x@terms10.example", "fail"},
		{"4.6.4: eleven terms", "192.0.2.9", helo, "x@terms11.example", "permerror"},
		{"4.6.4: mx of ten names", "192.0.2.109", helo, "x@mx10.example", "pass"},
		{"4.6.4: mx of eleven names", "192.0.2.109", helo, "x@mx11.example", "permerror"},
		{"4.6.4: the only name of ptr", "192.0.2.20", helo, "x@ptr10.example", "pass"},
		{"4.6.4: the eleventh name of ptr", "192.0.2.21", helo, "x@ptr10.example", "fail"},

		{"5.5: a ptr name of another domain, and one that SERVFAILs", v4, helo, "x@ptr.example", "fail"},
		{"5.5: ptr with a domain", v4, helo, "x@ptr2.example", "pass"},
		{"5.5: a ptr name that leads elsewhere", "192.0.2.4", helo, "x@ptr.example", "fail"},
		{"5.5: no ptr name", "192.0.2.5", helo, "x@ptr.example", "fail"},
		{"5.5: ptr of IPv6", v6, helo, "x@ptr.example", "pass"},

		{"IPv6: ip6", v6, helo, "x@six.example", "fail"},
		{"IPv6: ip6, within", "2001:db8::cb", helo, "x@six.example", "pass"},
		{"IPv6: a", v6, helo, "x@sixa.example", "pass"},
		{"IPv6: a, another", "2001:db8::cb02", helo, "x@sixa.example", "fail"},
		{"IPv6: a with a length", "2001:db8::cbff", helo, "x@sixnet.example", "pass"},
		{"IPv6: a with a length, outside", "2001:db8::1:cb01", helo, "x@sixnet.example", "fail"},
		{"IPv4: a with a length", "192.0.2.255", helo, "x@sixnet.example", "pass"},
		{"IPv6: mx", v6, helo, "x@sixmx.example", "pass"},
		{"IPv6, 5.7: exists asks for IPv4 addresses", v6, helo, "x@sixexists.example", "pass"},
		{"IPv6, 5.7: exists without IPv4 addresses", v6, helo, "x@exists6.example", "fail"},
		{"IPv6: ip4 matches none", v6, helo, "x@four.example", "fail"},
		{"IPv6: null sender", v6, helo, "", "pass smtp.helo=mail.example.net"},
		{"5: IPv4-mapped clients are IPv4", mapped, helo, "x@sixa.example", "pass"},
		{"5: IPv4-mapped clients, ip4", mapped, helo, "x@four.example", "pass"},
	} {
		r.dns.Queries()
		res := added(t, r.connect(tt.client, tt.helo).send(tt.from, bob, sample("a@author.example")))
		if !strings.HasPrefix(res, us+"; spf="+tt.want) {
			t.Errorf("%s: %s, want %s", tt.name, res, tt.want)
		}
		for _, q := range r.dns.Queries() {
			if tt.want == "none;" && !strings.Contains(q, "author.example") && q != "_dmarc.example. TXT" || strings.Contains(q, "why.exp") {
				t.Errorf("%s: asked for %s", tt.name, q)
			}
		}
	}
}

// RFC 7208 7.4: the examples of macros, for strong-bad@email.example.com.
func TestSPFMacros(t *testing.T) {
	const v4 = "192.0.2.3"
	for _, tt := range []struct{ macro, client, name string }{
		{"%{s}", v4, `strong-bad\@email.example.com`},
		{"%{o}", v4, "email.example.com"},
		{"%{d}", v4, "email.example.com"},
		{"%{d4}", v4, "email.example.com"},
		{"%{d2}", v4, "example.com"},
		{"%{d1}", v4, "com"},
		{"%{dr}", v4, "com.example.email"},
		{"%{d2r}", v4, "example.email"},
		{"%{l}", v4, "strong-bad"},
		{"%{l-}", v4, "strong.bad"},
		{"%{lr}", v4, "strong-bad"},
		{"%{lr-}", v4, "bad.strong"},
		{"%{l1r-}", v4, "strong"},
		{"%{ir}.%{v}._spf.%{d2}", v4, "3.2.0.192.in-addr._spf.example.com"},
		{"%{lr-}.lp._spf.%{d2}", v4, "bad.strong.lp._spf.example.com"},
		{"%{lr-}.lp.%{ir}.%{v}._spf.%{d2}", v4, "bad.strong.lp.3.2.0.192.in-addr._spf.example.com"},
		{"%{ir}.%{v}.%{l1r-}.lp._spf.%{d2}", v4, "3.2.0.192.in-addr.strong.lp._spf.example.com"},
		{"%{d2}.trusted-domains.example.net", v4, "example.com.trusted-domains.example.net"},
		{"%{ir}.%{v}._spf.%{d2}", "2001:db8::cb01", "1.0.b.c.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6._spf.example.com"},
		{"%{ir}.%{v}._spf.%{d2}", "::ffff:192.0.2.3", "3.2.0.192.in-addr._spf.example.com"},
		{"%{h}.x", v4, "mail.example.net.x"},
		{"%{p}.x", v4, "unknown.x"}, // 7.3 discourages more
		{"%{L}%%-%{D1}.x", v4, "strong-bad%-com.x"},

		{"%{x}", v4, ""},
		{"%{c}", v4, ""}, // in exp only
		{"%{d0}", v4, ""},
		{"%{d", v4, ""},
		{"%(d)", v4, ""},
		{"x%", v4, ""},
	} {
		t.Run(tt.macro, func(t *testing.T) {
			r := newRig(t)
			r.dns.Add(`email.example.com. 300 IN TXT "v=spf1 exists:` + tt.macro + ` -all"`)
			want := "permerror"
			if tt.name != "" {
				r.dns.Add(tt.name + ". 300 IN A 127.0.0.2")
				want = "pass"
			}
			s := r.connect(tt.client, "mail.example.net")
			if res := added(t, s.send("strong-bad@email.example.com", bob, sample("a@example.org"))); !strings.HasPrefix(res, us+"; spf="+want+" smtp.mailfrom=") {
				t.Error(res)
			}
		})
	}
}

// What other evaluators have had wrong, as it comes out of the whole milter.
func TestJudgements(t *testing.T) {
	const unreadable = `permerror reason="several From fields, too many author domains, or one that cannot be read"`
	r := newRig(t)
	r.svc.Config.Enforce = ruapost.DispositionReject
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"
		example.com. 300 IN TXT "v=spf1 ip4:192.0.2.1 -all"
		bad.example.com. 300 IN TXT "v=spf1 moo"
		good.example. 300 IN TXT "v=spf1 ip4:192.0.2.1 ip6:2001:db8::1 -all"
		_dmarc.flawed.example. 300 IN TXT "v=DMARC1; p=rejected"
		_dmarc.flawed2.example. 300 IN TXT "v=DMARC1; p=rejected; rua=mailto:dmarc@example.com"
		_dmarc.xn--bcher-kva.example. 300 IN TXT "v=DMARC1; p=reject; adkim=s; rua=mailto:dmarc@example.com"`)
	r.dns.SetRcode("_dmarc.broken.example", mdns.RcodeServerFailure)
	com, good, idn := key(t, r, "example.com"), key(t, r, "good.example"), key(t, r, "xn--bcher-kva.example")
	mail := func(fields string) []byte { return []byte(dated("a@example.com", fields, "Hello.\r\n")) }
	from := func(fields ...string) []byte {
		return []byte("From: " + strings.Join(fields, "\r\nFrom: ") + "\r\nTo: bob@receiver.example\r\n\r\nHello.\r\n")
	}
	for _, tt := range []struct {
		name, client, helo, sender string
		msg                        []byte
		want                       string // of DMARC, in Authentication-Results
		recorded                   string // "" if nothing may be
	}{
		{
			"null sender: the HELO name counts, envelope_from is empty", "192.0.2.1", "example.com", "", mail(""),
			"pass header.from=example.com policy.dmarc=reject", "192.0.2.1 pass from=example.com mfrom= dkim=false[] spf=true{example.com true pass}",
		},
		{
			"null sender: another HELO name does not", "192.0.2.1", "good.example", "", mail(""),
			"fail header.from=example.com", "192.0.2.1 reject from=example.com mfrom= dkim=false[] spf=false{good.example true pass}",
		},
		{
			"beside a sender no HELO name counts", "192.0.2.1", "example.com", "x@good.example", mail(""),
			"fail header.from=example.com", "192.0.2.1 reject from=example.com mfrom=good.example dkim=false[] spf=false{good.example false pass}",
		},
		{
			"SPF permerror, DKIM passes", "192.0.2.9", "h.example", "x@bad.example.com", sign(t, com, mail("")),
			"pass header.from=example.com", "192.0.2.9 pass from=example.com mfrom=bad.example.com dkim=true[{example.com 2026 pass }] spf=false{bad.example.com false permerror}",
		},
		{
			"strangers' passes are reported as they are", "192.0.2.1", "h.example", "x@good.example", sign(t, good, mail("")),
			"fail header.from=example.com", "192.0.2.1 reject from=example.com mfrom=good.example dkim=false[{good.example 2026 pass }] spf=false{good.example false pass}",
		},
		{
			"client at an IPv4-mapped address", "::ffff:192.0.2.1", "h.example", "x@example.com", mail(""),
			"pass header.from=example.com", "192.0.2.1 pass from=example.com mfrom=example.com dkim=false[] spf=true{example.com false pass}",
		},
		{
			"U-labels are A-labels", "192.0.2.1", "h.example", "x@BÜCHER.example", sign(t, idn, from("Jörg <jörg@bücher.example>")),
			"pass header.from=xn--bcher-kva.example", "192.0.2.1 pass from=xn--bcher-kva.example mfrom=xn--bcher-kva.example dkim=true[{xn--bcher-kva.example 2026 pass }] spf=false{xn--bcher-kva.example false none}",
		},
		{
			"Sender is no author", "192.0.2.1", "h.example", "x@good.example", mail("Sender: x@good.example\r\n"),
			"fail header.from=example.com", "192.0.2.1 reject from=example.com mfrom=good.example dkim=false[] spf=false{good.example false pass}",
		},
		{
			"two From fields, a signature covers the last", "192.0.2.1", "h.example", "x@good.example", append([]byte("From: a@example.com\r\n"), sign(t, good, from("x@good.example"))...),
			"fail header.from=example.com", "192.0.2.1 reject from=example.com mfrom=good.example dkim=false[{good.example 2026 pass }] spf=false{good.example false pass}",
		},
		{
			"two From fields, one that nobody can read", "192.0.2.1", "h.example", "x@good.example", from("<x@good.example", "a@example.com"),
			"fail header.from=example.com", "192.0.2.1 reject from=example.com mfrom=good.example dkim=false[] spf=false{good.example false pass}",
		},
		{
			"two From fields, one that nobody can read, the other passes", "192.0.2.1", "h.example", "x@example.com", from("a@example.com", "<x@good.example"),
			"permerror reason=", "",
		},
		{
			"an address behind another that nobody can read", "192.0.2.1", "h.example", "x@good.example", from("a@example.com, x@y@good.example"),
			"fail header.from=example.com", "192.0.2.1 reject from=example.com mfrom=good.example dkim=false[] spf=false{good.example false pass}",
		},
		{"no From field", "192.0.2.1", "h.example", "x@example.com", []byte("To: bob@receiver.example\r\n\r\nx\r\n"), `permerror reason="no author domain"`, ""},
		{"a group of nobody", "192.0.2.1", "h.example", "x@example.com", from("undisclosed:;"), `permerror reason="no author domain"`, ""},
		{"an address literal", "192.0.2.1", "h.example", "x@example.com", from("a@[192.0.2.1]"), `permerror reason="no author domain"`, ""},
		{"an endless From", "192.0.2.1", "h.example", "x@example.com", from(strings.Repeat("x ", 10_000) + "<a@example.com>"), unreadable + " header.from=example.com", ""},
		{"CVE-2020-12272: parentheses in the domain", "192.0.2.1", "h.example", "x@good.example", from("a@good.example(.example.com"), unreadable + " header.from=good.example", ""},
		{"a record without a policy", "192.0.2.1", "h.example", "x@flawed.example", from("a@flawed.example"), "permerror header.from=flawed.example", ""},
		{
			"a record with a destination alone", "192.0.2.1", "h.example", "x@flawed2.example", from("a@flawed2.example"), "fail header.from=flawed2.example policy.dmarc=none",
			"192.0.2.1 none from=flawed2.example mfrom=flawed2.example dkim=false[] spf=false{flawed2.example false none}",
		},
		{"no answer about the record", "192.0.2.1", "h.example", "x@broken.example", from("a@broken.example"), "temperror header.from=broken.example", ""},
	} {
		s := r.connect(tt.client, tt.helo)
		s.transmit(tt.sender, []string{"bob@receiver.example", "eve@receiver.example"}, tt.msg)
		mods, _, err := s.End()
		if err != nil {
			t.Fatal(err)
		}
		if res := added(t, mods); !hasDMARC(res, tt.want) {
			t.Errorf("%s: %s, want %s", tt.name, res, tt.want)
		}
		var got string
		for _, e := range r.take() {
			res := e.Result
			got += fmt.Sprintf("%s %s from=%s mfrom=%s dkim=%v%v spf=%v%v",
				res.SourceIP, res.Disposition, res.HeaderFrom, res.EnvelopeFrom, res.AlignedDKIM, res.DKIM, res.AlignedSPF, res.SPF)
		}
		if got != tt.recorded {
			t.Errorf("%s: recorded\n%s, want\n%s", tt.name, got, tt.recorded)
		}
	}
}

// RFC 7489 6.6.4: only what fails can be sampled out.
func TestNotSampledOut(t *testing.T) {
	r := newRig(t)
	r.svc.Config.Suffixes, r.svc.Config.Enforce = dmarc.BuiltinSuffixes{}, ruapost.DispositionReject
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; pct=0; rua=mailto:dmarc@example.com"
		example.com. 300 IN TXT "v=spf1 ip4:192.0.2.1 -all"`)
	s := r.connect("192.0.2.1", "mail.example.com")
	s.send("x@example.com", bob, sample("a@example.com"))
	if got := r.take(); len(got) != 1 || got[0].Result.Disposition != ruapost.DispositionPass || len(got[0].Result.Overrides) > 0 {
		t.Errorf("%+v", got)
	}
}

// late is a Recorder that gets nothing on disk in time.
type late struct{}

func (late) RecordEvaluation(ctx context.Context, _ *ruapost.Evaluation) error {
	<-ctx.Done()
	return ctx.Err()
}

// A store in trouble must not cost mail.
func TestRecordedLate(t *testing.T) {
	r := newRig(t)
	r.svc.Recorder, r.svc.Config.RecordTimeout = late{}, 10*time.Millisecond
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@example.com"`)
	before := testutil.ToFloat64(recordLate)
	s := r.connect("192.0.2.1", "mail.example.com")
	if res := added(t, s.send("x@y.example", bob, sample("a@example.com"))); !strings.Contains(res, "; dmarc=fail") {
		t.Error(res)
	}
	if n := testutil.ToFloat64(recordLate) - before; n != 1 {
		t.Errorf("counted %v times", n)
	}
}
