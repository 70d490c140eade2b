package lab

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"github.com/emersion/go-msgauth/dkim"
)

// Mail is a plain sample mail.
type Mail struct {
	From, To, Subject string
	// Fields are further header fields, each a whole line without its end. They
	// stand above the others.
	Fields []string
	Body   string
}

// Bytes returns the mail with CRLF line endings, a Date and a unique Message-ID.
func (m Mail) Bytes() []byte {
	var b bytes.Buffer
	for _, field := range m.Fields {
		fmt.Fprintf(&b, "%s\r\n", field)
	}
	fmt.Fprintf(&b, "From: %s\r\nTo: %s\r\nSubject: %s\r\n", m.From, m.To, m.Subject)
	fmt.Fprintf(&b, "Date: %s\r\n", time.Now().Format(time.RFC1123Z))
	fmt.Fprintf(&b, "Message-ID: <%s@lab.example>\r\n\r\n", rand.Text())
	body := strings.ReplaceAll(m.Body, "\r\n", "\n")
	b.WriteString(strings.ReplaceAll(strings.TrimSuffix(body, "\n"), "\n", "\r\n"))
	b.WriteString("\r\n")
	return b.Bytes()
}

// Key is a DKIM key of a domain.
type Key struct {
	Domain, Selector string

	signer crypto.Signer
}

// NewRSAKey makes an RSA key of 2048 bits.
func NewRSAKey(domain, selector string) (*Key, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("lab: DKIM key for %s: %w", domain, err)
	}
	return &Key{Domain: domain, Selector: selector, signer: key}, nil
}

// NewEd25519Key makes an Ed25519 key (RFC 8463), which takes no time.
func NewEd25519Key(domain, selector string) (*Key, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("lab: DKIM key for %s: %w", domain, err)
	}
	return &Key{Domain: domain, Selector: selector, signer: key}, nil
}

// PEM returns the private key as PKCS #8.
func (k *Key) PEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	if err != nil {
		return nil, fmt.Errorf("lab: DKIM key for %s: %w", k.Domain, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// TXT returns the key record (RFC 6376 3.6.1).
func (k *Key) TXT() (string, error) {
	switch public := k.signer.Public().(type) {
	case ed25519.PublicKey:
		return "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public), nil
	case *rsa.PublicKey:
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			return "", fmt.Errorf("lab: DKIM key for %s: %w", k.Domain, err)
		}
		return "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der), nil
	default:
		return "", fmt.Errorf("lab: DKIM key for %s: type %T", k.Domain, public)
	}
}

// ZoneLine returns the key record as a line of a zone file, in as many strings
// as it takes.
func (k *Key) ZoneLine() (string, error) {
	txt, err := k.TXT()
	if err != nil {
		return "", err
	}
	const most = 255 // octets of one string of a TXT record
	var quoted []string
	for len(txt) > most {
		quoted = append(quoted, `"`+txt[:most]+`"`)
		txt = txt[most:]
	}
	quoted = append(quoted, `"`+txt+`"`)
	return fmt.Sprintf("%s._domainkey.%s. 300 IN TXT %s", k.Selector, k.Domain, strings.Join(quoted, " ")), nil
}

// Sign returns the mail with a DKIM signature on top, relaxed in header and
// body, over the fields a reader sees.
func (k *Key) Sign(mail []byte) ([]byte, error) {
	var b bytes.Buffer
	err := dkim.Sign(&b, bytes.NewReader(mail), &dkim.SignOptions{
		Domain:                 k.Domain,
		Selector:               k.Selector,
		Signer:                 k.signer,
		HeaderCanonicalization: dkim.CanonicalizationRelaxed,
		BodyCanonicalization:   dkim.CanonicalizationRelaxed,
		HeaderKeys:             []string{"From", "To", "Subject", "Date", "Message-ID"},
	})
	if err != nil {
		return nil, fmt.Errorf("lab: sign for %s: %w", k.Domain, err)
	}
	return b.Bytes(), nil
}
