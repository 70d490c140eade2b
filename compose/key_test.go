package compose

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
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

// A DNS server that reads the lines serves the record; RFC 1035 3.3 allows 255 octets in
// one string of it.
func TestZoneLines(t *testing.T) {
	for _, s := range []*Signer{
		{Domain: "example.org", Selector: "20260401", Key: rsaKey},
		{Domain: "example.org", Selector: "ed", Key: edKey},
	} {
		rr, err := dns.NewRR(s.ZoneLines())
		if err != nil {
			t.Fatalf("%v\n%s", err, s.ZoneLines())
		}
		txt := rr.(*dns.TXT)
		if txt.Hdr.Name != s.Name()+"." || strings.Join(txt.Txt, "") != s.Record() {
			t.Errorf("%s: %q, want %q", txt.Hdr.Name, txt.Txt, s.Record())
		}
		for i, part := range strings.Split(s.ZoneLines(), `"`) { // the reader above would split longer ones
			if i%2 == 1 && len(part) > 255 {
				t.Errorf("a string of %d octets", len(part))
			}
		}
		if strings.Contains(s.Record(), "s=") {
			t.Errorf("%s limits the service", s.Record())
		}
	}
	s := &Signer{Domain: "example.org", Selector: "20260401", Key: rsaKey}
	if want := "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(must(x509.MarshalPKIXPublicKey(rsaKey.Public()))); s.Record() != want {
		t.Errorf("%s, want %s", s.Record(), want)
	}
}
