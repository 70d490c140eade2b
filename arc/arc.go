// Package arc validates Authenticated Received Chains (RFC 8617). Each handler on a
// message's way that takes part, such as a mailing list, adds a set of three header
// fields: what its own checks said (ARC-Authentication-Results, AAR), a signature of
// the message as it left (ARC-Message-Signature, AMS) and a seal over all sets so far
// (ARC-Seal). A chain passes if its newest message signature and all its seals verify.
//
// That says who handled the message and what they claim, not that they are honest: a
// result is worth something only with a list of sealers to trust.
//
// A Verifier takes the header at once and the body as it arrives:
//
//	v := arc.New(ctx, header, lookupTXT)
//	defer v.Abandon()
//	v.Write(chunk) // as often as need be
//	result := v.Finish(ctx)
//
// What a message can cost is bounded: a chain whose structure is broken costs neither
// DNS queries nor cryptography, the body is hashed once in constant memory, and the
// header is gone over at most MaxMessageSignatures times.
package arc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"ruapost"
)

// Bounds of a chain. One that is beyond any of them fails.
const (
	// MaxSets is the number of sets in a chain (RFC 8617 4.2.1).
	MaxSets = 50
	// MaxField is the size in bytes of the value of an ARC header field.
	MaxField = 16 << 10
	// MaxFields is the number of fields in the header of a message that has a chain.
	MaxFields = 2000
	// MaxTags is the number of tags in an ARC header field or a key record.
	MaxTags = 100
	// MaxSignedFields is the number of names in the h= of a message signature.
	MaxSignedFields = 200
	// MaxKeys is the number of different keys that a chain needs. Each is a DNS query,
	// all at once, at servers that whoever sends the message chooses.
	MaxKeys = 10
	// MaxKeyRecord is the size in bytes of a key record.
	MaxKeyRecord = 2 << 10
	// MinKeyBits and MaxKeyBits are the sizes of an RSA key that every verifier takes
	// (RFC 8301 3.2), and MaxExponent is the public exponent that all have: each of 50
	// seals may have a key of its own, and their sizes are up to whoever made them.
	MinKeyBits  = 1024
	MaxKeyBits  = 4096
	MaxExponent = 1<<16 + 1
)

const (
	// MaxMessageSignatures is the number of message signatures that are verified: the
	// newest, which decides, and those before it for Result.OldestPass.
	MaxMessageSignatures = 5
	// MaxComment is the length in bytes of Result.Comment.
	MaxComment = 1000
)

// limitError is the error of a chain that is beyond a bound.
type limitError string

func (e limitError) Error() string { return string(e) }

// temporaryError is the error of a chain that may pass at another time.
type temporaryError string

func (e temporaryError) Error() string { return string(e) }

// Field is a header field. The value begins behind the colon, blanks included, and
// ends before the line end; its folds are CRLF or LF.
type Field struct{ Name, Value string }

// Lookup returns the TXT records of a name, each with its strings joined. It is called
// by several goroutines of a Verifier at a time, must not panic, and must return soon
// after ctx ends.
type Lookup func(ctx context.Context, name string) ([]string, error)

// Result is what became of a chain.
type Result struct {
	// Status is none, pass or fail. A failed chain must be treated as if there were
	// none (RFC 8617 5.2).
	Status ruapost.AuthResult
	// Reason says in our own words why the chain failed.
	Reason string
	// Limited says that it failed because of one of the bounds above, Temporary that it
	// did because of a key that the DNS did not tell.
	Limited, Temporary bool
	// Sets are the sets from instance 1 on. They are empty if the structure of the
	// chain is broken, and no more than claims unless the chain passed.
	Sets []Set
	// OldestPass is the instance of the oldest message signature that still verifies,
	// 0 if all do (RFC 8617 5.2, step 5): what was changed in the message since was
	// changed before that set. It is also 0 if the chain did not pass.
	OldestPass int
}

// Set is an ARC set.
type Set struct {
	Instance int
	// Domain and Selector are those of the seal.
	Domain   string
	Selector string
	// AuthResults is what the sealer found when the message arrived: the AAR field's
	// value behind the instance, in the form of an Authentication-Results field,
	// unfolded and without control characters.
	AuthResults string
	// RemoteIP is the SMTP client that the sealer had the message from, if the AAR
	// field says (smtp.remote-ip, RFC 8617 10.2).
	RemoteIP netip.Addr
}

// Sets returns the sets of a chain that somebody else has validated; none if there is no
// chain or its structure is broken.
func Sets(fields []Field) []Set {
	chain, err := parseChain(fields)
	if err != nil {
		return nil
	}
	return publicSets(chain)
}

// Verifier validates the chain of one message. A nil Verifier is that of a message
// without a chain. It must be ended by Finish or Abandon.
type Verifier struct {
	fields []Field
	chain  []set // instance 1 first
	ams    *messageSignature
	err    error // why the chain fails, as far as it is known
	body   *bodyHash
	keys   map[string]*key // by name
	cancel context.CancelFunc
	byName map[string][]int // indexes of fields, from the bottom up
}

// New checks the structure of the chain in a message's header and begins to fetch the
// keys. It returns nil if the header has no ARC field at all. The lookups end with ctx.
func New(ctx context.Context, fields []Field, lookup Lookup) *Verifier {
	v := &Verifier{fields: fields, cancel: func() {}}
	v.chain, v.err = parseChain(fields)
	if v.err != nil {
		return v
	}
	if len(v.chain) == 0 {
		return nil
	}
	newest := v.chain[len(v.chain)-1]
	if v.ams, v.err = parseMessageSignature(newest.ams); v.err != nil {
		v.err = fmt.Errorf("instance %d: %s: %w", len(v.chain), fieldNames[ams], v.err)
		return v
	}
	if v.countKeys() > MaxKeys {
		v.err = limitError("too many keys")
		return v
	}
	v.body = newBodyHash(v.ams.relaxedBody)
	ctx, v.cancel = context.WithCancel(ctx)
	v.fetchKeys(ctx, lookup)
	return v
}

func (v *Verifier) countKeys() int {
	names := map[string]bool{v.ams.keyName: true}
	for _, s := range v.chain {
		names[s.seal.keyName] = true
	}
	return len(names)
}

// fetchKeys asks for all the keys that the chain needs at once.
func (v *Verifier) fetchKeys(ctx context.Context, lookup Lookup) {
	v.keys = map[string]*key{}
	want := func(s *signature) {
		if v.keys[s.keyName] == nil {
			v.keys[s.keyName] = startKey(ctx, lookup, s.keyName)
		}
	}
	want(&v.ams.signature)
	for _, s := range v.chain {
		want(&s.seal.signature)
	}
}

// Write takes the next part of the body, whose line ends are CRLF or LF. It never
// returns an error.
func (v *Verifier) Write(chunk []byte) (int, error) {
	if v != nil && v.err == nil {
		v.body.write(chunk)
	}
	return len(chunk), nil
}

// Finish returns the result for the message with the body that was written. Keys that
// are not there when ctx ends fail the chain, as all DNS trouble does (RFC 8617 5.2.1).
func (v *Verifier) Finish(ctx context.Context) *Result {
	if v == nil {
		return &Result{Status: ruapost.AuthNone}
	}
	defer v.cancel()
	r := &Result{Status: ruapost.AuthPass, Sets: publicSets(v.chain)}
	if err := v.validate(ctx); err != nil {
		r.Status, r.Reason = ruapost.AuthFail, err.Error()
		r.Limited, r.Temporary = errors.As(err, new(limitError)), errors.As(err, new(temporaryError))
		return r
	}
	r.OldestPass = v.oldestPass(ctx)
	return r
}

// Abandon ends the validation of a message that will not be finished. It does nothing
// after Finish.
func (v *Verifier) Abandon() {
	if v != nil {
		v.cancel()
	}
}

// validate is RFC 8617 5.2 from step 4 on; New has done the rest.
func (v *Verifier) validate(ctx context.Context) error {
	if v.err != nil {
		return v.err
	}
	n := len(v.chain)
	if err := v.verifyMessage(ctx, n, v.ams); err != nil {
		return fmt.Errorf("instance %d: %s: %w", n, fieldNames[ams], err)
	}
	digests := v.sealDigests()
	for i := n; i >= 1; i-- {
		seal := &v.chain[i-1].seal
		if err := v.keys[seal.keyName].verify(ctx, &seal.signature, digests[i-1]); err != nil {
			return fmt.Errorf("instance %d: %s: %w", i, fieldNames[as], err)
		}
	}
	return nil
}

// oldestPass goes back through the message signatures before the newest, which is
// known to verify. Those that need a body hash or a key which the chain itself does
// not need are taken to fail: that costs at most a true statement about old sets.
func (v *Verifier) oldestPass(ctx context.Context) int {
	for i := len(v.chain) - 1; i >= 1; i-- {
		m, err := parseMessageSignature(v.chain[i-1].ams)
		if err != nil || len(v.chain)-i >= MaxMessageSignatures || v.keys[m.keyName] == nil ||
			v.verifyMessage(ctx, i, m) != nil {
			return i + 1
		}
	}
	return 0
}

func (v *Verifier) verifyMessage(ctx context.Context, instance int, m *messageSignature) error {
	if !v.body.is(m.bodyHash) { // RFC 6376 6.1.3, step 3
		return errors.New("the body has been changed")
	}
	return v.keys[m.keyName].verify(ctx, &m.signature, v.messageDigest(instance, m))
}

func publicSets(chain []set) []Set {
	sets := make([]Set, len(chain))
	for i, s := range chain {
		sets[i] = Set{
			Instance:    i + 1,
			Domain:      s.seal.domain,
			Selector:    s.seal.selector,
			AuthResults: ruapost.Clean(strings.Join(strings.Fields(s.aar), " "), MaxField),
			RemoteIP:    remoteIP(s.aar),
		}
	}
	return sets
}

// Comment returns the result as the comment of a local_policy reason in a DMARC report
// (RFC 8617 7.2.2): the newest seal first, the client of the first set last. What
// would make it longer than MaxComment is left out, older seals first.
func (r *Result) Comment() string {
	var tail string
	if len(r.Sets) > 0 && r.Sets[0].RemoteIP.IsValid() {
		tail = " remote-ip[1]=" + r.Sets[0].RemoteIP.String()
	}
	var b strings.Builder
	b.WriteString("arc=" + string(r.Status))
	for i := len(r.Sets) - 1; i >= 0; i-- {
		s := r.Sets[i]
		seal := fmt.Sprintf(" as[%d].d=%s as[%d].s=%s", s.Instance, s.Domain, s.Instance, s.Selector)
		if b.Len()+len(seal)+len(tail) > MaxComment {
			break
		}
		b.WriteString(seal)
	}
	return b.String() + tail
}
