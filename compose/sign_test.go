package compose

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func pemFile(t *testing.T, kind string, der []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "dkim.key")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestLoadSigner(t *testing.T) {
	rsa1024 := must(rsa.GenerateKey(rand.Reader, 1024))
	tests := []struct {
		name, kind string
		der        []byte
		warning    string // a part of it
	}{
		{"PKCS #1", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey), ""},
		{"PKCS #8 RSA", "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(rsaKey)), ""},
		{"PKCS #8 Ed25519", "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(edKey)), "many receivers"},
		{"RSA 1024", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsa1024), "1024 bits"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := LoadSigner("Example.ORG.", "20260401", pemFile(t, tt.kind, tt.der))
			if err != nil {
				t.Fatal(err)
			}
			if s.Domain != "example.org" || s.Selector != "20260401" {
				t.Errorf("domain %q, selector %q", s.Domain, s.Selector)
			}
			if w := s.Warning(); (w == "") != (tt.warning == "") || !strings.Contains(w, tt.warning) {
				t.Errorf("warning %q, want one about %q", w, tt.warning)
			}
			if _, err := verify(t, bytes.NewReader(write(t, tlsMessage(), s)), s); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLoadSignerErrors(t *testing.T) {
	good := pemFile(t, "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(edKey)))
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("v=DKIM1; p=abc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	encrypted := filepath.Join(t.TempDir(), "encrypted")
	block := &pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, Bytes: []byte{1}}
	if err := os.WriteFile(encrypted, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GODEBUG", "rsa1024min=0")
	rsa512 := must(rsa.GenerateKey(rand.Reader, 512))
	p256 := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))

	tests := []struct {
		name, domain, selector, file string
		want                         string // a part of the error
	}{
		{"no domain", "", "s", good, "domain"},
		{"domain", "exa mple", "s", good, "domain"},
		{"no selector", "example.org", "", good, "selector"},
		{"selector", "example.org", "a;b", good, "selector"},
		{"no file", "example.org", "s", filepath.Join(t.TempDir(), "nothing.key"), "nothing.key"},
		{"text", "example.org", "s", text, "PEM"},
		{"encrypted PKCS #1", "example.org", "s", encrypted, "passphrase"},
		{"encrypted PKCS #8", "example.org", "s", pemFile(t, "ENCRYPTED PRIVATE KEY", []byte{1}), "passphrase"},
		{"public key", "example.org", "s", pemFile(t, "PUBLIC KEY", must(x509.MarshalPKIXPublicKey(rsaKey.Public()))), "PUBLIC KEY"},
		{"broken PKCS #1", "example.org", "s", pemFile(t, "RSA PRIVATE KEY", []byte{1}), "dkim.key"},
		{"broken PKCS #8", "example.org", "s", pemFile(t, "PRIVATE KEY", []byte{1}), "dkim.key"},
		{"RSA 512", "example.org", "s", pemFile(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsa512)), "512 bits"},
		{"ECDSA", "example.org", "s", pemFile(t, "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(p256))), "RSA and Ed25519"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := LoadSigner(tt.domain, tt.selector, tt.file)
			if err == nil {
				t.Fatalf("no error: %+v", s)
			}
			if !strings.HasPrefix(err.Error(), "compose: ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q, want one about %q", err, tt.want)
			}
		})
	}
}
