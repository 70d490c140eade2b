package arc

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
)

var (
	fieldStart = regexp.MustCompile(`\n([^ \t])`)
	sixty      = regexp.MustCompile(".{60}")
	blanks     = regexp.MustCompile(`[ \t]+`)
	blankAtEnd = regexp.MustCompile(` (\n|$)`)
)

// message is a message under construction.
type message struct {
	header []Field
	body   string
}

// parseMessage takes a message apart. It keeps the folds as they are.
func parseMessage(raw string) (m message) {
	header, body, _ := strings.Cut(strings.ReplaceAll(raw, "\r\n", "\n"), "\n\n")
	header = fieldStart.ReplaceAllString(header, "\x00$1")
	for _, f := range strings.Split(strings.TrimSuffix(header, "\n"), "\x00") {
		if name, value, ok := strings.Cut(f, ":"); ok {
			m.header = append(m.header, Field{name, strings.ReplaceAll(value, "\n", "\r\n")})
		}
	}
	m.body = strings.ReplaceAll(body, "\n", "\r\n")
	return m
}

// lf returns the message with the folds that a milter sees.
func (m message) lf() message {
	n := message{body: m.body}
	for _, f := range m.header {
		n.header = append(n.header, Field{f.Name, strings.ReplaceAll(f.Value, "\r\n", "\n")})
	}
	return n
}

func sample() message {
	return parseMessage("From: Alice <alice@author.example>\n" +
		"To: list@list.example,\n\tbob@receiver.example\n" +
		"Subject:  a  chain\n of   sets \n" +
		"Date: Wed, 15 Nov 2023 10:00:00 +0000\n" +
		"Received: by b.example\nReceived: by a.example\n\n" +
		"Hello,  world. \n\n \t\nBye.\n\n\n")
}

// sealer adds sets. It canonicalizes in another way than the package: all at once, by
// the wording of RFC 6376 3.4.
type sealer struct {
	domain, selector string
	key              crypto.Signer
	c                string // of the message signature; empty: without
	h                string
	cv               string // empty: what is right
	// change, if not nil, alters a field before it is signed, so that nothing but what
	// it does is wrong. Values of signed fields lack "; b=" and the signature.
	change func(kind, instance int, value string) string
}

var rsaKey = sync.OnceValue(func() crypto.Signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

var ed25519Key = sync.OnceValue(func() crypto.Signer {
	return ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
})

func newSealer(key crypto.Signer) sealer {
	return sealer{
		domain: "sealer.example", selector: "2023", key: key,
		c: "relaxed/relaxed", h: "From:To:Subject:Date:Received:Received:Reply-To",
	}
}

// record is the sealer's key record.
func (s sealer) record() string {
	switch public := s.key.Public().(type) {
	case ed25519.PublicKey:
		return "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public)
	default:
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			panic(err)
		}
		return "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der)
	}
}

func (s sealer) name() string { return s.selector + "._domainkey." + s.domain }

func (s sealer) algorithm() string {
	if _, ok := s.key.(ed25519.PrivateKey); ok {
		return "ed25519-sha256"
	}
	return "rsa-sha256"
}

// seal returns the message with one set more.
func (s sealer) seal(m message) message {
	instance := 1
	for _, f := range m.header {
		if f.Name == "ARC-Seal" {
			instance++
		}
	}
	cv := s.cv
	if cv == "" {
		if cv = "pass"; instance == 1 {
			cv = "none"
		}
	}
	change := func(kind int, value string) string {
		if s.change != nil {
			return s.change(kind, instance, value)
		}
		return value
	}
	aarValue := change(aar, fmt.Sprintf(" i=%d; %s;\r\n spf=pass smtp.mailfrom=author.example;\r\n arc=%s smtp.remote-ip=192.0.2.%d",
		instance, s.domain, cv, instance))
	signed := fmt.Sprintf(" i=%d; a=%s; d=%s; s=%s;\r\n\tt=1700000000; ", instance, s.algorithm(), s.domain, s.selector)
	m = message{append([]Field{{"ARC-Authentication-Results", aarValue}}, m.header...), m.body}

	header, body, _ := strings.Cut(s.c, "/")
	sum := sha256.Sum256([]byte(naiveBody(m.body, body == "relaxed")))
	c := ""
	if s.c != "" {
		c = "c=" + s.c + "; "
	}
	value := change(ams, fmt.Sprintf("%s%sbh=%s;\r\n h=%s", signed, c,
		base64.StdEncoding.EncodeToString(sum[:]), strings.ReplaceAll(s.h, ":", " :\r\n  "))) + "; b="
	value += s.sign(naiveSelect(m.header, strings.Split(s.h, ":"), header == "relaxed") +
		naiveField(Field{"ARC-Message-Signature", value}, header == "relaxed"))
	m.header = append([]Field{{"ARC-Message-Signature", value}}, m.header...)

	value = change(as, signed+"cv="+cv) + "; b="
	var sets string // as they lie upon one another
	for i := len(m.header) - 1; i >= 0; i-- {
		if name := m.header[i].Name; name == "ARC-Authentication-Results" || name == "ARC-Message-Signature" || name == "ARC-Seal" {
			sets += naiveField(m.header[i], true) + "\r\n"
		}
	}
	value += s.sign(sets + naiveField(Field{"ARC-Seal", value}, true))
	m.header = append([]Field{{"ARC-Seal", value}}, m.header...)
	return m
}

func (s sealer) sign(data string) string {
	sum := sha256.Sum256([]byte(data))
	hash := crypto.SHA256
	if s.algorithm() == "ed25519-sha256" {
		hash = 0 // the sum is the message (RFC 8463 3)
	}
	b, err := s.key.Sign(rand.Reader, sum[:], hash)
	if err != nil {
		panic(err)
	}
	return sixty.ReplaceAllString(base64.StdEncoding.EncodeToString(b), "$0\r\n ")
}

func naiveBody(body string, relaxed bool) string {
	body = strings.ReplaceAll(body, "\r\n", "\n")
	if relaxed {
		body = blanks.ReplaceAllString(body, " ")
		body = blankAtEnd.ReplaceAllString(body, "$1")
	}
	body = strings.TrimRight(body, "\n")
	if body != "" || !relaxed {
		body += "\n"
	}
	return strings.ReplaceAll(body, "\n", "\r\n")
}

func naiveField(f Field, relaxed bool) string {
	if !relaxed {
		return f.Name + ":" + f.Value
	}
	value := blanks.ReplaceAllString(strings.ReplaceAll(f.Value, "\r\n", ""), " ")
	return strings.ToLower(f.Name) + ":" + strings.Trim(value, " ")
}

func naiveSelect(header []Field, names []string, relaxed bool) string {
	var selected string
	taken := map[int]bool{}
	for _, name := range names {
		for i := len(header) - 1; i >= 0; i-- {
			if strings.EqualFold(header[i].Name, name) && !taken[i] {
				taken[i] = true
				selected += naiveField(header[i], relaxed) + "\r\n"
				break
			}
		}
	}
	return selected
}

// zone is the key records by name. Names that are not there do not exist.
type zone map[string][]string

func zoneOf(sealers ...sealer) zone {
	z := zone{}
	for _, s := range sealers {
		z[s.name()] = []string{s.record()}
	}
	return z
}

func (z zone) lookup(_ context.Context, name string) ([]string, error) {
	if txts, ok := z[name]; ok {
		return txts, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// validate runs the message through a Verifier.
func (z zone) validate(t testing.TB, m message) *Result {
	t.Helper()
	v := New(context.Background(), m.header, z.lookup)
	if _, err := v.Write([]byte(m.body)); err != nil {
		t.Fatal(err)
	}
	return v.Finish(context.Background())
}
