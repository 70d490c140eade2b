package compose

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A generated key signs, and its record verifies that.
func TestGenerateKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dkim.key")
	if err := os.WriteFile(file, must(GenerateKey()), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := LoadSigner("example.org", "20260401", file)
	if err != nil {
		t.Fatal(err)
	}
	if key := s.Key.(*rsa.PrivateKey); key.N.BitLen() != 2048 || s.Warning() != "" {
		t.Errorf("%d bits, warning %q", key.N.BitLen(), s.Warning())
	}
	if _, err := verify(t, bytes.NewReader(write(t, tlsMessage(), s)), s); err != nil {
		t.Error(err)
	}
	if bytes.Equal(must(GenerateKey()), must(os.ReadFile(file))) {
		t.Error("two keys are the same")
	}
}

func TestRecord(t *testing.T) {
	for _, key := range []crypto.Signer{rsaKey, edKey} {
		if s := (&Signer{Domain: "example.org", Selector: "ed", Key: key}); strings.Contains(s.Record(), "; s=") {
			t.Errorf("%s limits the service", s.Record())
		}
	}
	s := &Signer{Domain: "example.org", Selector: "20260401", Key: rsaKey}
	if want := "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(must(x509.MarshalPKIXPublicKey(rsaKey.Public()))); s.Record() != want {
		t.Errorf("%s, want %s", s.Record(), want)
	}
}
