// Package lab holds the other side of every conversation the programs have: a
// certificate authority, destination mail servers that write down what happened
// to them, a host for MTA-STS policies and signers of sample mail. The
// end-to-end tests, the demonstration and the load programs share it; together
// with internal/dnstest it makes an Internet inside one process.
//
// Nothing in it needs root or the testing package.
package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"
)

// CA is a certificate authority that only the lab trusts.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// chain is what certificates are shown with: the authority's own certificate
	// and those above it, without the topmost.
	chain [][]byte
}

// NewCA makes a certificate authority with a fresh key.
func NewCA() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("lab: certificate authority: %w", err)
	}
	template := authority()
	cert, err := create(template, template, key, key)
	if err != nil {
		return nil, err
	}
	return &CA{cert: cert.Leaf, key: key}, nil
}

// Intermediate returns a certificate authority below ca. Its certificates are shown
// with all that leads up to the topmost authority.
func (ca *CA) Intermediate() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("lab: certificate authority: %w", err)
	}
	cert, err := create(authority(), ca.cert, key, ca.key)
	if err != nil {
		return nil, err
	}
	return &CA{cert: cert.Leaf, key: key, chain: append(cert.Certificate, ca.chain...)}, nil
}

func authority() *x509.Certificate {
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "ruapost lab CA " + rand.Text()},
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	validAround(template, time.Now())
	return template
}

// PEM returns the authority's own certificate, for smtp_tls_CAfile or
// SSL_CERT_FILE.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

// Pool returns a pool that holds the authority alone.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// Issue returns a server certificate that is valid now for the given DNS names.
func (ca *CA) Issue(names ...string) (tls.Certificate, error) {
	return ca.issue(leaf(time.Now(), names))
}

// IssueExpired returns a certificate like Issue's whose time was over a month
// ago.
func (ca *CA) IssueExpired(names ...string) (tls.Certificate, error) {
	return ca.issue(leaf(time.Now().AddDate(0, -2, 0), names))
}

// IssueFuture returns a certificate like Issue's whose time begins in a month.
func (ca *CA) IssueFuture(names ...string) (tls.Certificate, error) {
	return ca.issue(leaf(time.Now().AddDate(0, 2, 0), names))
}

// IssueForClients returns a certificate like Issue's that is good for TLS clients
// only (RFC 5280 4.2.1.12).
func (ca *CA) IssueForClients(names ...string) (tls.Certificate, error) {
	template := leaf(time.Now(), names)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return ca.issue(template)
}

func (ca *CA) issue(template *x509.Certificate) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("lab: certificate for %v: %w", template.DNSNames, err)
	}
	cert, err := create(template, ca.cert, key, ca.key)
	cert.Certificate = append(cert.Certificate, ca.chain...)
	return cert, err
}

// SelfSigned returns a server certificate for the given DNS names that is its
// own issuer.
func SelfSigned(names ...string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("lab: certificate for %v: %w", names, err)
	}
	template := leaf(time.Now(), names)
	return create(template, template, key, key)
}

// TLSA returns the TLSA record data that the certificate satisfies, as
// "3 1 1 HEX": DANE-EE, SubjectPublicKeyInfo, SHA2-256 (RFC 6698 2.1).
func TLSA(cert tls.Certificate) string {
	return fmt.Sprintf("3 1 1 %X", sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo))
}

func leaf(around time.Time, names []string) *x509.Certificate {
	template := &x509.Certificate{
		DNSNames:    names,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if len(names) > 0 {
		template.Subject.CommonName = names[0]
	}
	validAround(template, around)
	return template
}

// validAround makes the certificate valid for two weeks before and after t.
func validAround(template *x509.Certificate, t time.Time) {
	template.NotBefore = t.AddDate(0, 0, -14)
	template.NotAfter = t.AddDate(0, 0, 14)
}

func create(template, issuer *x509.Certificate, key, issuerKey *ecdsa.PrivateKey) (tls.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("lab: certificate: %w", err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, issuerKey)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("lab: certificate for %v: %w", template.DNSNames, err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("lab: certificate for %v: %w", template.DNSNames, err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: parsed}, nil
}
