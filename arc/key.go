package arc

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
)

// key is a key record under way (RFC 6376 3.6.1).
type key struct {
	done chan struct{} // closed when txts and err are there
	txts []string
	err  error

	parsed    bool
	public    crypto.PublicKey
	algorithm string // k=
}

// startKey asks for the key with that name.
func startKey(ctx context.Context, lookup Lookup, name string) *key {
	k := &key{done: make(chan struct{})}
	go func() {
		defer close(k.done)
		k.txts, k.err = lookup(ctx, name)
	}()
	return k
}

// verify verifies a signature of the digest.
func (k *key) verify(ctx context.Context, s *signature, digest []byte) error {
	select {
	case <-k.done:
	case <-ctx.Done():
	}
	select {
	case <-k.done: // perhaps both
	default:
		return temporaryError("the key did not come in time")
	}
	if !k.parsed {
		k.parsed = true
		k.parse()
	}
	if k.err != nil {
		return k.err
	}
	if k.algorithm != s.algorithm {
		return errors.New("the key is for another algorithm")
	}
	ok := false
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(public, crypto.SHA256, digest, s.b) == nil
	case ed25519.PublicKey: // of the hash, not of what it is made from (RFC 8463 3)
		ok = ed25519.Verify(public, digest, s.b)
	}
	if !ok {
		return errors.New("the signature does not verify")
	}
	return nil
}

// parse sets public or err.
func (k *key) parse() {
	switch {
	case isNotFound(k.err), k.err == nil && len(k.txts) == 0:
		k.err = errors.New("there is no key")
	case k.err != nil: // its text may hold anything
		k.err = temporaryError("the key could not be looked up")
	case len(k.txts) > 1: // RFC 6376 3.6.2.2: undefined
		k.err = errors.New("there is more than one key record")
	case len(k.txts[0]) > MaxKeyRecord:
		k.err = limitError("the key record is too large")
	default:
		k.public, k.algorithm, k.err = parseKey(k.txts[0])
	}
	k.txts = nil
}

func isNotFound(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound
}

func parseKey(record string) (public crypto.PublicKey, algorithm string, err error) {
	tags, err := parseTags(record)
	if err != nil {
		return nil, "", errors.New("the key record is malformed")
	}
	if v, ok := tags.values["v"]; ok && v != "DKIM1" {
		return nil, "", errors.New("the key record is not of DKIM1")
	}
	if !lists(tags, "h", "sha256") || !lists(tags, "s", "email", "*") {
		return nil, "", errors.New("the key is for another use")
	}
	p, err := decodeBase64(tags.values["p"])
	if err != nil {
		return nil, "", errors.New("the key is malformed")
	}
	if len(p) == 0 {
		return nil, "", errors.New("the key is revoked or missing")
	}
	algorithm = "rsa"
	if k, ok := tags.values["k"]; ok {
		algorithm = strings.ToLower(k)
	}
	switch algorithm {
	case "rsa":
		public, err = parseRSA(p)
	case "ed25519": // RFC 8463 4
		if len(p) != ed25519.PublicKeySize {
			err = errors.New("the key is malformed")
		}
		public = ed25519.PublicKey(p)
	default:
		err = errors.New("the key is of an unknown type")
	}
	return public, algorithm, err
}

// lists says whether a tag that is a list has one of the words. A tag that is not there
// allows all.
func lists(tags *tagList, tag string, words ...string) bool {
	value, ok := tags.values[tag]
	if !ok {
		return true
	}
	for word := range strings.SplitSeq(strings.ToLower(value), ":") {
		if slices.Contains(words, strings.Trim(word, fws)) {
			return true
		}
	}
	return false
}

// parseRSA reads an RSA key as all publish it (RFC 5280 4.1), or as RFC 6376 3.6.1 says.
func parseRSA(der []byte) (*rsa.PublicKey, error) {
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		public, err = x509.ParsePKCS1PublicKey(der)
	}
	key, ok := public.(*rsa.PublicKey)
	if err != nil || !ok {
		return nil, errors.New("the key is malformed")
	}
	if bits := key.N.BitLen(); bits < MinKeyBits || bits > MaxKeyBits {
		return nil, errors.New("the key has less than 1024 or more than 4096 bits")
	}
	if key.E > MaxExponent {
		return nil, errors.New("the key's exponent is larger than 65537")
	}
	return key, nil
}
