package arc

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"ruapost"
)

// The fields of a set in the order in which a seal covers them (RFC 8617 5.1.1).
const (
	aar = iota
	ams
	as
)

var fieldNames = [...]string{
	aar: "ARC-Authentication-Results",
	ams: "ARC-Message-Signature",
	as:  "ARC-Seal",
}

// set is an ARC set whose structure is right.
type set struct {
	fields [len(fieldNames)]int // indexes in the header, from 1; 0 if there is none
	aar    string               // the value behind the instance
	ams    *tagList
	as     *tagList
	seal   seal
}

// parseChain collects the sets of a header and checks them as RFC 8617 5.2 says, up to
// step 3. It returns none if the header has no ARC field.
func parseChain(fields []Field) ([]set, error) {
	chain, err := collect(fields)
	if err != nil {
		return nil, err
	}
	for i := len(chain) - 1; i >= 0; i-- { // a newest seal that says cv=fail decides
		s := &chain[i]
		for kind, index := range s.fields {
			if index == 0 { // also where instances have a gap
				return nil, fmt.Errorf("instance %d: no %s", i+1, fieldNames[kind])
			}
		}
		if s.seal, err = parseSeal(s.as); err == nil {
			err = checkStatus(s.seal.status, i+1)
		}
		if err != nil {
			return nil, fmt.Errorf("instance %d: %s: %w", i+1, fieldNames[as], err)
		}
	}
	return chain, nil
}

// collect puts the ARC fields into sets, of which some may lack fields. There are never
// more than MaxSets, and as no field may be there twice it looks at no more than three
// times as many.
func collect(fields []Field) ([]set, error) {
	var chain []set
	for i, f := range fields {
		kind := slices.IndexFunc(fieldNames[:], f.is)
		if kind < 0 {
			continue
		}
		if len(fields) > MaxFields {
			return nil, limitError("too many header fields")
		}
		if len(f.Value) > MaxField {
			return nil, limitError(fieldNames[kind] + ": too large")
		}
		var s set
		instance, err := s.parse(kind, f.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", fieldNames[kind], err)
		}
		for len(chain) < instance {
			chain = append(chain, set{})
		}
		if !chain[instance-1].add(kind, &s, i+1) {
			return nil, fmt.Errorf("instance %d: more than one %s", instance, fieldNames[kind])
		}
	}
	return chain, nil
}

// is says whether the field has that name. Blanks before the colon are no part of it
// (RFC 5322 4.5).
func (f Field) is(name string) bool { return strings.EqualFold(strings.TrimSpace(f.Name), name) }

// parse reads one field of the set and returns the instance it belongs to.
func (s *set) parse(kind int, value string) (instance int, err error) {
	if kind == aar {
		instance, s.aar, err = parseResults(value)
		return instance, err
	}
	tags, err := parseTags(value)
	if err != nil {
		return 0, err
	}
	if kind == ams {
		s.ams = tags
	} else {
		s.as = tags
	}
	return parseInstance(tags.values["i"])
}

// add takes over the one field that other has. It returns false if s has it already.
func (s *set) add(kind int, other *set, index int) bool {
	if s.fields[kind] != 0 {
		return false
	}
	s.fields[kind] = index
	switch kind {
	case aar:
		s.aar = other.aar
	case ams:
		s.ams = other.ams
	case as:
		s.as = other.as
	}
	return true
}

// parseInstance reads the position in an instance tag (RFC 8617 3.9, 4.2.1).
func parseInstance(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || len(s) > 2 || n < 1 || n > MaxSets {
		return 0, errors.New("the instance (i=) is not a number from 1 to 50")
	}
	return int(n), nil
}

// checkStatus checks the chain validation status that a seal claims (RFC 8617 5.2,
// steps 2 and 3.3).
func checkStatus(status string, instance int) error {
	want := ruapost.AuthPass
	if instance == 1 {
		want = ruapost.AuthNone
	}
	switch {
	case strings.EqualFold(status, string(want)):
		return nil
	case strings.EqualFold(status, string(ruapost.AuthFail)):
		return errors.New("it says that the chain had failed (cv=fail)")
	}
	return fmt.Errorf("cv= is not %q", want)
}

// signature is what a seal and a message signature have in common.
type signature struct {
	domain    string
	selector  string
	keyName   string
	algorithm string // of the key, as in its k=
	b         []byte
	unsigned  string // the field's value with an empty b=
}

type seal struct {
	signature
	status string // cv=
}

type messageSignature struct {
	signature
	bodyHash      []byte
	names         []string // h=, in lower case
	relaxedHeader bool
	relaxedBody   bool
}

// parseSeal reads an ARC-Seal (RFC 8617 4.1.3).
func parseSeal(tags *tagList) (s seal, err error) {
	if _, ok := tags.values["h"]; ok {
		return s, errors.New("h= is not allowed")
	}
	s.status = tags.values["cv"]
	s.signature, err = parseSignature(tags)
	return s, err
}

func parseSignature(tags *tagList) (s signature, err error) {
	switch strings.ToLower(tags.values["a"]) { // RFC 8301 3.1, RFC 8463 3
	case "rsa-sha256":
		s.algorithm = "rsa"
	case "ed25519-sha256":
		s.algorithm = "ed25519"
	default:
		return s, errors.New("a= is neither rsa-sha256 nor ed25519-sha256")
	}
	if s.b, err = decodeBase64(tags.values["b"]); err != nil || len(s.b) == 0 {
		return s, errors.New("b= is not a signature")
	}
	if s.domain, err = ruapost.ParseDomain(tags.values["d"]); err != nil {
		return s, errors.New("d= is not a domain name")
	}
	// A selector may end in a number, as a domain name may not.
	s.keyName, err = ruapost.ParseDomain(tags.values["s"] + "._domainkey." + s.domain)
	if err != nil {
		return s, errors.New("s= is not a selector")
	}
	s.selector = strings.TrimSuffix(s.keyName, "._domainkey."+s.domain)
	if t, ok := tags.values["t"]; ok && (t == "" || strings.Trim(t, "0123456789") != "") {
		return s, errors.New("t= is not a time")
	}
	s.unsigned = tags.unsigned
	return s, nil
}

// parseMessageSignature reads an ARC-Message-Signature: a DKIM-Signature but for v= and
// i= (RFC 8617 4.1.2, RFC 6376 3.5).
func parseMessageSignature(tags *tagList) (*messageSignature, error) {
	s, err := parseSignature(tags)
	if err != nil {
		return nil, err
	}
	m := &messageSignature{signature: s}
	if m.bodyHash, err = decodeBase64(tags.values["bh"]); err != nil || len(m.bodyHash) != sha256.Size {
		return nil, errors.New("bh= is not a SHA-256 hash")
	}
	if err := m.parseCanonicalization(tags); err != nil {
		return nil, err
	}
	if _, ok := tags.values["l"]; ok { // RFC 6376 8.2
		return nil, errors.New("a body length limit (l=) is not accepted")
	}
	if q, ok := tags.values["q"]; ok && !strings.Contains(strings.ToLower(q), "dns/txt") {
		return nil, errors.New("q= is not dns/txt")
	}
	return m, m.parseNames(tags.values["h"])
}

// parseCanonicalization reads c=, whose default is simple/simple, and simple for a body
// that is not named (RFC 6376 3.5).
func (m *messageSignature) parseCanonicalization(tags *tagList) error {
	c, ok := tags.values["c"]
	if !ok {
		return nil
	}
	header, body, named := strings.Cut(strings.ToLower(c), "/")
	m.relaxedHeader, m.relaxedBody = header == "relaxed", body == "relaxed"
	if !m.relaxedHeader && header != "simple" || named && !m.relaxedBody && body != "simple" {
		return errors.New("c= is no canonicalization")
	}
	return nil
}

// parseNames reads h=, which must have From in it (RFC 6376 5.4).
//
// RFC 8617 4.1.2 tells signers to leave out all ARC fields and Authentication-Results,
// lest they break the signature. That is no rule of 5.2, and validators know that
// signers do cover AARs. Only a covered ARC-Seal is refused, as by other validators: the
// set's own does not exist yet when its message signature is made.
func (m *messageSignature) parseNames(h string) error {
	if strings.Count(h, ":") >= MaxSignedFields {
		return limitError("too many names in h=")
	}
	for name := range strings.SplitSeq(h, ":") {
		m.names = append(m.names, lowerName(name))
	}
	if slices.Contains(m.names, lowerName(fieldNames[as])) {
		return errors.New("it covers ARC-Seal (h=)")
	}
	if !slices.Contains(m.names, "from") {
		return errors.New("it does not cover From (h=)")
	}
	return nil
}
