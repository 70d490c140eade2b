// Package arctest seals messages with ARC sets (RFC 8617), rightly or not, for tests.
// It shares no code with package arc, and canonicalizes in another way: all at once, by
// the wording of RFC 6376 3.4.
package arctest

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"regexp"
	"strings"
)

// Names of the fields of a set.
const (
	aar  = "ARC-Authentication-Results"
	ams  = "ARC-Message-Signature"
	seal = "ARC-Seal"
)

var (
	sixty      = regexp.MustCompile(".{60}")
	blanks     = regexp.MustCompile(`[ \t]+`)
	blankAtEnd = regexp.MustCompile(` (\n|$)`)
	capitals   = regexp.MustCompile("[A-Z]+")
)

// Field is a header field. Its value begins behind the colon; folds are CRLF.
type Field = struct{ Name, Value string }

// Parse takes a message apart, whose line ends are CRLF. What is no field it leaves out.
func Parse(mail []byte) (header []Field, body string) {
	head, body, _ := strings.Cut(string(mail), "\r\n\r\n")
	for line := range strings.SplitSeq(head, "\r\n") {
		if n := len(header); n > 0 && strings.IndexAny(line, " \t") == 0 {
			header[n-1].Value += "\r\n" + line
		} else if name, value, ok := strings.Cut(line, ":"); ok {
			header = append(header, Field{name, value})
		}
	}
	return header, body
}

// Sealer adds sets to messages.
type Sealer struct {
	Domain, Selector string
	Key              crypto.Signer // RSA or Ed25519
	// Results are those that its AAR gives behind "i=1; list.example;".
	Results string
	C       string // c= of the message signature; empty: without
	H       string // h= of the message signature
	CV      string // cv= of the seal; empty: what is right
	// Change, if not nil, alters the value of a field before it is signed, so that
	// nothing but what it does is wrong. Values of signed fields lack "; b=" and the
	// signature.
	Change func(name string, instance int, value string) string
}

// NewSealer returns a sealer with an Ed25519 key. It panics if there is no randomness.
func NewSealer(domain string) Sealer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic("arctest: " + err.Error())
	}
	return Sealer{
		Domain: domain, Selector: "2023", Key: key,
		Results: "spf=pass smtp.mailfrom=author.example",
		C:       "relaxed/relaxed", H: "From:To:Subject:Date:Received:Received:Reply-To",
	}
}

// KeyName is the name of the key record.
func (s Sealer) KeyName() string { return s.Selector + "._domainkey." + s.Domain }

// Record is the key record. It panics if there is none for the key.
func (s Sealer) Record() string {
	if public, ok := s.Key.Public().(ed25519.PublicKey); ok {
		return "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public)
	}
	der, err := x509.MarshalPKIXPublicKey(s.Key.Public())
	if err != nil {
		panic("arctest: " + err.Error())
	}
	return "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der)
}

// Algorithm is a= of the signatures.
func (s Sealer) Algorithm() string {
	if _, ok := s.Key.Public().(ed25519.PublicKey); ok {
		return "ed25519-sha256"
	}
	return "rsa-sha256"
}

// Seal returns the message with one set more on top. Line ends are CRLF. It panics if
// the key does not sign.
func (s Sealer) Seal(mail []byte) []byte {
	header, body := Parse(mail)
	instance := 1
	for _, f := range header {
		if f.Name == seal {
			instance++
		}
	}
	var top string
	put := func(name, value string) {
		header = append([]Field{{name, value}}, header...)
		top = name + ":" + value + "\r\n" + top
	}
	put(aar, s.results(instance))
	put(ams, s.messageSignature(instance, header, body))
	put(seal, s.seal(instance, header))
	return append([]byte(top), mail...)
}

func (s Sealer) change(name string, instance int, value string) string {
	if s.Change != nil {
		return s.Change(name, instance, value)
	}
	return value
}

// status is what the seal says of the chain so far.
func (s Sealer) status(instance int) string {
	switch {
	case s.CV != "":
		return s.CV
	case instance == 1:
		return "none"
	}
	return "pass"
}

func (s Sealer) results(instance int) string {
	return s.change(aar, instance, fmt.Sprintf(" i=%d; %s;\r\n %s;\r\n arc=%s smtp.remote-ip=192.0.2.%d",
		instance, s.Domain, s.Results, s.status(instance), instance))
}

// tags are those that both signatures have.
func (s Sealer) tags(instance int) string {
	return fmt.Sprintf(" i=%d; a=%s; d=%s; s=%s;\r\n\tt=1700000000; ", instance, s.Algorithm(), s.Domain, s.Selector)
}

func (s Sealer) messageSignature(instance int, header []Field, body string) string {
	headerC, bodyC, _ := strings.Cut(s.C, "/")
	relaxed := headerC == "relaxed"
	value := s.tags(instance)
	if s.C != "" {
		value += "c=" + s.C + "; "
	}
	sum := sha256.Sum256([]byte(Body(body, bodyC == "relaxed")))
	value = s.change(ams, instance, fmt.Sprintf("%sbh=%s;\r\n h=%s", value,
		base64.StdEncoding.EncodeToString(sum[:]), strings.ReplaceAll(s.H, ":", " :\r\n  "))) + "; b="
	return value + s.sign(choose(header, strings.Split(s.H, ":"), relaxed)+canonical(Field{ams, value}, relaxed))
}

func (s Sealer) seal(instance int, header []Field) string {
	value := s.change(seal, instance, s.tags(instance)+"cv="+s.status(instance)) + "; b="
	var sets string // as they lie upon one another
	for i := len(header) - 1; i >= 0; i-- {
		if name := header[i].Name; name == aar || name == ams || name == seal {
			sets += canonical(header[i], true) + "\r\n"
		}
	}
	return value + s.sign(sets+canonical(Field{seal, value}, true))
}

func (s Sealer) sign(data string) string {
	sum := sha256.Sum256([]byte(data))
	hash := crypto.SHA256
	if s.Algorithm() == "ed25519-sha256" {
		hash = 0 // the sum is the message (RFC 8463 3)
	}
	b, err := s.Key.Sign(rand.Reader, sum[:], hash)
	if err != nil {
		panic("arctest: " + err.Error())
	}
	return sixty.ReplaceAllString(base64.StdEncoding.EncodeToString(b), "$0\r\n ")
}

// choose returns the fields with the names, of several with a name the lowest first.
func choose(header []Field, names []string, relaxed bool) string {
	left := map[string][]Field{}
	for _, f := range header {
		left[canonicalName(f.Name)] = append(left[canonicalName(f.Name)], f)
	}
	var chosen strings.Builder
	for _, name := range names {
		if fields := left[canonicalName(name)]; len(fields) > 0 {
			last := len(fields) - 1
			left[canonicalName(name)] = fields[:last]
			chosen.WriteString(canonical(fields[last], relaxed) + "\r\n")
		}
	}
	return chosen.String()
}

// canonical returns the canonical form of a field without its line end (RFC 6376 3.4.1,
// 3.4.2).
func canonical(f Field, relaxed bool) string {
	if !relaxed {
		return f.Name + ":" + f.Value
	}
	value := blanks.ReplaceAllString(strings.ReplaceAll(f.Value, "\r\n", ""), " ")
	return canonicalName(f.Name) + ":" + strings.Trim(value, " ")
}

// canonicalName is in lower case, and only ASCII letters have one.
func canonicalName(name string) string {
	return capitals.ReplaceAllStringFunc(strings.TrimRight(name, " \t"), strings.ToLower)
}

// Body returns the canonical form of a body (RFC 6376 3.4.3, 3.4.4), whose line ends
// are CRLF or LF.
func Body(body string, relaxed bool) string {
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
