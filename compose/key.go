package compose

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
)

// GenerateKey returns a new private key for LoadSigner, RSA with 2048 bits (RFC 8301
// 3.2): PEM, PKCS #8. Whoever can read it can sign as the domain.
func GenerateKey() ([]byte, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("compose: make a DKIM key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("compose: make a DKIM key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Name returns the domain name that the public key is to be published at.
func (s *Signer) Name() string { return s.Selector + "._domainkey." + s.Domain }

// Record returns the text of the TXT record that publishes the key (RFC 6376 3.6.1). It
// has no s= tag: RFC 8460 3 suggests s=tlsrpt, but a key with that alone is none for
// receivers who check the mail as mail. It is empty for a key that DKIM does not know.
func (s *Signer) Record() string {
	switch key := s.Key.Public().(type) {
	case *rsa.PublicKey:
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return ""
		}
		return "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der)
	case ed25519.PublicKey:
		return "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(key) // RFC 8463 4
	}
	return ""
}
