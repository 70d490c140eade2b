package compose

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/emersion/go-msgauth/dkim"

	"ruapost"
)

// Signer makes DKIM signatures (RFC 6376). The public key is to be published at Name.
type Signer struct {
	// Domain is d=. For DMARC it must be aligned with the domain of From.
	Domain string
	// Selector is s=.
	Selector string
	// Key is an RSA or Ed25519 key, see LoadSigner.
	Key crypto.Signer
}

// signedFields are the fields covered by signatures, where a message has them:
// all that say what the message is (RFC 6376 5.4.1), and those that RFC 8460 3
// wants covered. From is listed twice, so that a second From field that someone
// adds breaks the signature instead of being shown (RFC 6376 8.15).
var signedFields = []string{
	"From", "From", "To", "Date", "Subject", "Message-ID", "MIME-Version", "Content-Type", "Content-Transfer-Encoding",
	"Auto-Submitted", "TLS-Report-Domain", "TLS-Report-Submitter",
}

// LoadSigner returns a Signer with the private key in keyFile: PEM, PKCS #1 or
// PKCS #8, not encrypted, RSA of at least 1024 bits (RFC 8301 3.2) or Ed25519
// (RFC 8463).
func LoadSigner(domain, selector, keyFile string) (*Signer, error) {
	domain, err := ruapost.ParseDomain(domain)
	if err != nil {
		return nil, fmt.Errorf("compose: DKIM domain: %w", err)
	}
	// A selector may be a number, which is no domain name by itself.
	suffix := "._domainkey." + domain
	name, err := ruapost.ParseDomain(selector + suffix)
	if err != nil {
		return nil, fmt.Errorf("compose: DKIM selector: %w", err)
	}
	selector = strings.TrimSuffix(name, suffix)
	data, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("compose: DKIM key: %w", err)
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("compose: DKIM key %s: %w", keyFile, err)
	}
	return &Signer{Domain: domain, Selector: selector, Key: key}, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("is not in PEM form: expected a line -----BEGIN PRIVATE KEY-----")
	}
	var key any
	var err error
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		return nil, errors.New("is encrypted with a passphrase: store it without one")
	case block.Type == "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case block.Type == "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("holds %q: expected an RSA or Ed25519 private key", block.Type)
	}
	if err != nil {
		return nil, err
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if bits := key.N.BitLen(); bits < 1024 {
			return nil, fmt.Errorf("RSA key of %d bits: receivers take none below 1024, make one of 2048", bits)
		}
		return key, nil
	case ed25519.PrivateKey:
		return key, nil
	}
	return nil, errKeyType(key)
}

func errKeyType(key any) error { return fmt.Errorf("is a %T: DKIM knows only RSA and Ed25519", key) }

// Warning says why receivers may not take signatures of this key, in words for
// the operator. It is empty if there is no reason.
func (s *Signer) Warning() string {
	switch key := s.Key.Public().(type) {
	case *rsa.PublicKey:
		bits := key.N.BitLen()
		if bits < 2048 {
			return fmt.Sprintf("DKIM key has %d bits: RFC 8301 recommends at least 2048", bits)
		}
		if bits > 4096 {
			return fmt.Sprintf("DKIM key has %d bits: receivers need not support more than 4096 (RFC 8301)", bits)
		}
	case ed25519.PublicKey:
		return "DKIM key is Ed25519: many receivers cannot verify it and may ignore the reports; use RSA with 2048 bits"
	}
	return ""
}

// sign returns the DKIM-Signature field, line end included. It hashes the
// message as it is written and keeps none of it.
func (s *Signer) sign(c *composed) (string, error) {
	var keys []string
	for _, name := range signedFields {
		if c.header.field(name) != "" {
			keys = append(keys, name)
		}
	}
	signer, err := dkim.NewSigner(&dkim.SignOptions{
		Domain:                 s.Domain,
		Selector:               s.Selector,
		Signer:                 s.Key,
		HeaderCanonicalization: dkim.CanonicalizationRelaxed,
		BodyCanonicalization:   dkim.CanonicalizationRelaxed,
		HeaderKeys:             keys,
	})
	if err != nil {
		return "", err
	}
	defer signer.Close() // ends its goroutine whatever happens
	if err := c.writeTo(signer); err != nil {
		return "", err
	}
	if err := signer.Close(); err != nil {
		return "", err
	}
	return signer.Signature(), nil
}
