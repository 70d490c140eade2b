package check

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// checkKey compares the key that is published with the one that signs.
func (s *sender) checkKey(ctx context.Context) {
	if s.signer == nil {
		return
	}
	name := s.signer.Name()
	want := Record{Name: name, Want: s.signer.Record(), Why: "the public key that reports are signed with"}
	mend := then("Publish it:", ZoneLines(name, want.Want)...)
	txts, err := s.texts(ctx, name)
	if err != nil {
		s.unknown("the DKIM key "+name, err)
		s.publish(want, txts, false)
		return
	}
	flaws, fault := s.keyFlaws(txts)
	if fault != nil {
		s.fault(mend, "DKIM key %s: receivers cannot verify reports: %v", name, fault)
	}
	for _, flaw := range flaws {
		s.warn(mend, "DKIM key %s: %s", name, flaw)
	}
	if fault == nil && len(flaws) == 0 {
		s.ok("DKIM key %s is published", name)
	}
	s.publish(want, txts, fault == nil && len(flaws) == 0)
}

// keyFlaws returns what is wrong with the key records at the signer's name: what may
// make signatures count less, and what makes them fail (RFC 6376 3.6.1).
func (s *sender) keyFlaws(txts []string) (flaws []string, fault error) {
	switch len(txts) {
	case 0:
		return nil, errors.New("there is none")
	case 1:
	default: // RFC 6376 3.6.2.2
		return nil, fmt.Errorf("there are %d records, and which of them counts is undefined", len(txts))
	}
	tags, err := parseTags(txts[0])
	if err != nil {
		return nil, err
	}
	if v, ok := tags["v"]; ok && v != "DKIM1" {
		return nil, errors.New("v= is not DKIM1")
	}
	if !lists(tags, "h", "sha256") {
		return nil, errors.New("h= does not allow sha256")
	}
	if !lists(tags, "s", "*", "email") {
		return nil, errors.New("s= does not allow email")
	}
	if err := s.samePublicKey(tags); err != nil {
		return nil, err
	}
	if !lists(tags, "s", "*", "tlsrpt") { // RFC 8460 3
		flaws = append(flaws, "s= does not name tlsrpt: receivers may ignore TLS reports")
	}
	if _, ok := tags["t"]; ok && lists(tags, "t", "y") {
		flaws = append(flaws, "t=y says that the domain only tests DKIM: receivers may take reports as not signed")
	}
	return flaws, nil
}

func (s *sender) samePublicKey(tags map[string]string) error {
	p, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(tags["p"]), ""))
	switch {
	case err != nil:
		return errors.New("p= is not base64")
	case len(p) == 0:
		return errors.New("p= is empty: the key is revoked")
	}
	algorithm := "rsa"
	if k, ok := tags["k"]; ok {
		algorithm = strings.ToLower(k)
	}
	switch key := s.signer.Key.Public().(type) {
	case *rsa.PublicKey:
		if algorithm != "rsa" {
			return fmt.Errorf("k= is not rsa, as the key in %s is", s.cfg.DKIM.KeyFile)
		}
		published, err := x509.ParsePKIXPublicKey(p)
		if err != nil { // RFC 6376 3.6.1 says RSAPublicKey
			published, err = x509.ParsePKCS1PublicKey(p)
		}
		if err != nil {
			return errors.New("p= is no RSA key")
		}
		if !key.Equal(published) {
			return fmt.Errorf("it is another key than that in %s", s.cfg.DKIM.KeyFile)
		}
	case ed25519.PublicKey: // RFC 8463 4
		if algorithm != "ed25519" {
			return fmt.Errorf("k= is not ed25519, as the key in %s is", s.cfg.DKIM.KeyFile)
		}
		if !bytes.Equal(key, p) {
			return fmt.Errorf("it is another key than that in %s", s.cfg.DKIM.KeyFile)
		}
	}
	return nil
}

// blanks are what may stand around tags (RFC 6376 2.8).
const blanks = " \t\r\n"

// parseTags reads a tag list (RFC 6376 3.2).
func parseTags(list string) (map[string]string, error) {
	tags := map[string]string{}
	for spec := range strings.SplitSeq(list, ";") {
		if strings.Trim(spec, blanks) == "" {
			continue
		}
		name, value, ok := strings.Cut(spec, "=")
		name = strings.Trim(name, blanks)
		if _, twice := tags[name]; twice || !ok || name == "" {
			return nil, errors.New("the record is not a list of tags, each there once")
		}
		tags[name] = strings.Trim(value, blanks)
	}
	return tags, nil
}

// lists says whether a tag that is a list has one of the words. A tag that is not there
// allows all.
func lists(tags map[string]string, tag string, words ...string) bool {
	value, ok := tags[tag]
	if !ok {
		return true
	}
	for word := range strings.SplitSeq(strings.ToLower(value), ":") {
		if slices.Contains(words, strings.Trim(word, blanks)) {
			return true
		}
	}
	return false
}
