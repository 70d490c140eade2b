package arc

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"net"
	"strings"
	"sync"
	"testing"

	"ruapost/internal/arctest"
)

// message is a message under construction.
type message struct {
	header []Field
	body   string
}

// parseMessage takes a message apart. It keeps the folds as they are.
func parseMessage(raw string) (m message) {
	header, body := arctest.Parse([]byte(raw))
	for _, f := range header {
		m.header = append(m.header, f)
	}
	m.body = body
	return m
}

// mailText returns text with the line ends of mail.
func mailText(text string) string {
	return strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\n", "\r\n")
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
	return parseMessage(mailText("From: Alice <alice@author.example>\n" +
		"To: list@list.example,\n\tbob@receiver.example\n" +
		"Subject:  a  chain\n of   sets \n" +
		"Date: Wed, 15 Nov 2023 10:00:00 +0000\n" +
		"Received: by b.example\nReceived: by a.example\n\n" +
		"Hello,  world. \n\n \t\nBye.\n\n\n"))
}

// sealer adds sets to messages that have been taken apart.
type sealer struct{ arctest.Sealer }

var rsaKey = sync.OnceValue(func() crypto.Signer { return newRSAKey(2048) })

func newRSAKey(bits int) crypto.Signer {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err)
	}
	return key
}

var ed25519Key = sync.OnceValue(func() crypto.Signer {
	return ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
})

func newSealer(key crypto.Signer) sealer {
	s := sealer{arctest.NewSealer("sealer.example")}
	s.Key = key
	return s
}

// seal returns the message with one set more.
func (s sealer) seal(m message) message {
	var raw strings.Builder
	for _, f := range m.header {
		raw.WriteString(f.Name + ":" + f.Value + "\r\n")
	}
	return parseMessage(string(s.Seal([]byte(raw.String() + "\r\n" + m.body))))
}

// zone is the key records by name. Names that are not there do not exist.
type zone map[string][]string

func zoneOf(sealers ...sealer) zone {
	z := zone{}
	for _, s := range sealers {
		z[s.KeyName()] = []string{s.Record()}
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
