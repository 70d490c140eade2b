package inbound

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/emersion/go-msgauth/dkim"

	"ruapost"
)

// lineEnds and whitespace are the octets that canonicalization counts as such in a
// body (RFC 6376 3.4).
const (
	lineEnds   = "\r\n"
	whitespace = " \t\r\n"
)

// signature is what we need to know of a DKIM-Signature field; go-msgauth tells
// neither selector nor algorithm.
type signature struct {
	index     int // in the message's header
	domain    string
	selector  string
	algorithm string
	b         string   // the beginning of the signature, for header.b (RFC 6008)
	names     []string // of header fields in h=, in lower case
	limited   bool     // l= says how much of the body is signed
	relaxed   bool     // c= says that the header is canonicalized so
	// result is empty as long as it is not known.
	result ruapost.AuthResult
	reason string
}

func (s *signature) keyName() string { return s.selector + "._domainkey." + s.domain }

// pieceSize is the size in bytes of the pieces in which a body is given to the
// verifications: that of the buffer in which each of them reads.
const pieceSize = 4 << 10

// dkimCheck verifies the signatures of one message while its body arrives.
type dkimCheck struct {
	signatures []signature
	keys       map[string]*keyRecord // by name
	running    []*verification
	cancel     context.CancelFunc // ends the queries for keys

	// refused is why the message's signatures are not verified; such a check takes
	// no more of the body.
	refused string
	blank   int    // length of the run of whitespace that the body so far ends in
	held    []byte // line ends at the end of that run, not written yet
	loneCR  bool   // among those is a CR without LF
	lastCR  bool   // their last is a CR
}

// verification is that of one signature.
type verification struct {
	signature *signature
	in        *io.PipeWriter // of a header and the body
	done      chan struct{}  // closed when the rest is there
	result    *dkim.Verification
	err       error
}

// startDKIM begins to verify the message's signatures. It returns nil if there
// are none that could be reported on.
//
// The number of verifications at a time is not bounded in the process: what one
// message can cost is, and Postfix's number of connections bounds the messages.
func (m *message) startDKIM(signatures []signature) *dkimCheck {
	if len(signatures) == 0 {
		return nil
	}
	c := &dkimCheck{signatures: signatures, cancel: func() {}}
	if len(m.header) > MaxFields || m.folds > MaxFolds {
		c.refuse("fields", "too many header fields or folds")
		return c
	}
	for i := range c.signatures {
		if sig := &c.signatures[i]; len(sig.names) > MaxSignedFields {
			limits.WithLabelValues("signed_fields").Inc()
			sig.result, sig.reason = ruapost.AuthPolicy, "too many names in h="
		}
	}
	ctx, cancel := context.WithTimeout(m.ctx, m.config.halfBudget())
	c.cancel = cancel
	c.keys = m.fetchKeys(ctx, c.signatures)
	c.startAll(m)
	return c
}

// startAll begins to verify the signatures that have no result yet.
func (c *dkimCheck) startAll(m *message) {
	room, folds := MaxSignedHeader, MaxFolds
	for i := range c.signatures {
		sig := &c.signatures[i]
		if sig.result != "" {
			continue
		}
		header := m.signedHeader(sig)
		if room -= len(header); room < 0 {
			limits.WithLabelValues("signed_header").Inc()
			sig.result, sig.reason = ruapost.AuthPolicy, "too much signed header"
			continue
		}
		if !sig.relaxed { // else they are taken away
			folds -= m.folds
		}
		if folds < 0 {
			limits.WithLabelValues("fields").Inc()
			sig.result, sig.reason = ruapost.AuthPolicy, "too many folds"
			continue
		}
		c.start(sig, header)
	}
}

// start begins to verify a signature. Each is given to go-msgauth by itself: of several
// in a message it makes goroutines that copy the body in pieces of 32 KiB each.
func (c *dkimCheck) start(sig *signature, header []byte) {
	r, w := io.Pipe()
	v := &verification{signature: sig, in: w, done: make(chan struct{})}
	c.running = append(c.running, v)
	go v.verify(r, c.lookup)
	v.in.Write(header) // an error means that the verifier has seen enough
}

// verify hands to go-msgauth what is written to v.in.
func (v *verification) verify(r *io.PipeReader, lookup func(string) ([]string, error)) {
	defer close(v.done)
	defer r.Close() // a writer must not wait for a reader that has left
	defer caught(func() { v.err = errors.New("fault in the verifier") })
	results, err := dkim.VerifyWithOptions(r, &dkim.VerifyOptions{LookupTXT: lookup, MaxVerifications: 1})
	switch {
	case err != nil && !errors.Is(err, dkim.ErrTooManySignatures):
		v.err = err
	case len(results) != 1:
		v.err = errors.New("signature not found")
	default:
		v.result = results[0]
	}
}

// signatures returns the signatures that are to be verified. One without a domain
// or selector that could stand in a report cannot be verified either.
func (m *message) signatures() []signature {
	var sigs []signature
	for i, f := range m.header {
		if !f.is(signatureField) {
			continue
		}
		if sig, ok := parseSignature(f.value); ok {
			sig.index = i
			sigs = append(sigs, sig)
		}
	}
	if len(sigs) > MaxSignatures {
		limits.WithLabelValues("signatures").Inc()
		return chooseSignatures(sigs, m.authors)
	}
	return sigs
}

// keyRecord is a key record (RFC 6376 3.6.1) or why there is none.
type keyRecord struct {
	done   chan struct{} // closed when the rest is there
	txts   []string
	strict bool // flag s: not for identities in subdomains
	err    error
}

// fetchKeys asks for all keys at once.
func (m *message) fetchKeys(ctx context.Context, sigs []signature) map[string]*keyRecord {
	keys := map[string]*keyRecord{}
	for _, sig := range sigs {
		name := sig.keyName()
		if keys[name] != nil || sig.result != "" {
			continue
		}
		k := &keyRecord{done: make(chan struct{})}
		keys[name] = k
		go k.fetch(ctx, m.service.Resolver, name)
	}
	return keys
}

// fetch asks for the record. go-msgauth takes an error for temporary only if it is
// a net.Error itself, as the resolver's are.
func (k *keyRecord) fetch(ctx context.Context, r Resolver, name string) {
	defer close(k.done)
	defer caught(func() { k.err = &net.DNSError{Err: "fault in the resolver", Name: name, IsTemporary: true} })
	k.txts, _, k.err = r.LookupTXT(ctx, name)
	if len(k.txts) > 1 { // undefined (RFC 6376 3.6.2.2), and may be large
		k.txts, k.err = nil, &net.DNSError{Err: "several key records", Name: name}
	}
	for _, txt := range k.txts {
		if len(txt) > MaxKeyRecord {
			// A key of hundreds of kilobits would take seconds per signature.
			limits.WithLabelValues("key_record").Inc()
			k.txts, k.err = nil, &net.DNSError{Err: "key record too large", Name: name}
			return
		}
		flags := strings.Split(parseTags(txt)["t"], ":")
		k.strict = k.strict || slices.Contains(flags, "s")
	}
}

// lookup is how go-msgauth gets the keys.
func (c *dkimCheck) lookup(domain string) ([]string, error) {
	name, err := ruapost.ParseDomain(domain)
	k := c.keys[name]
	if err != nil || k == nil {
		return nil, &net.DNSError{Err: "no such name", Name: ruapost.Clean(domain, 64), IsNotFound: true}
	}
	<-k.done
	return k.txts, k.err
}

// write takes the next part of the body. Line ends are held back until something
// follows them: at the end of a body neither canonicalization counts them
// (RFC 6376 3.4.3), and go-msgauth copies a pending run again at every write.
func (c *dkimCheck) write(chunk []byte) {
	// A run of whitespace inside a piece is shorter than any limit.
	for piece := range slices.Chunk(chunk, pieceSize) {
		c.writePiece(piece)
	}
}

func (c *dkimCheck) writePiece(chunk []byte) {
	body := bytes.TrimRight(chunk, lineEnds)
	if len(body) > 0 {
		text := bytes.TrimLeft(body, whitespace)
		c.blank += len(body) - len(text)
		c.release()
		if c.refused != "" {
			return
		}
		c.feed(body)
		if len(text) > 0 {
			c.blank = len(text) - len(bytes.TrimRight(text, whitespace))
		}
	}
	c.hold(chunk[len(body):])
}

// maxBlank is the length of the longest run of whitespace that is taken: each
// verification keeps a copy of one.
func (c *dkimCheck) maxBlank() int {
	return min(MaxBlankLines, MaxBlankCopies/max(len(c.running), 1))
}

// hold keeps line ends. What is beyond the limit will never be written.
func (c *dkimCheck) hold(ends []byte) {
	for _, end := range ends {
		c.loneCR = c.loneCR || c.lastCR && end != '\n'
		c.lastCR = end == '\r'
	}
	c.blank += len(ends)
	c.held = append(c.held, ends[:min(len(ends), c.maxBlank()-len(c.held))]...)
}

// release writes what is held, unless the run of whitespace it belongs to is too
// long.
func (c *dkimCheck) release() {
	if c.refused != "" {
		return
	}
	if c.blank > c.maxBlank() {
		c.refuse("blank_lines", "too many blank lines in the body")
		return
	}
	c.feed(c.held)
	c.held, c.loneCR, c.lastCR = c.held[:0], false, false
}

// feed gives a part of the body to all verifications, piece by piece so that they work
// at the same time.
func (c *dkimCheck) feed(body []byte) {
	for piece := range slices.Chunk(body, pieceSize) {
		for _, v := range c.running {
			v.in.Write(piece) // an error means that the verifier has seen enough
		}
	}
}

// end tells all verifications that the message is complete.
func (c *dkimCheck) end() {
	for _, v := range c.running {
		v.in.Close()
	}
}

// refuse ends the verification of all signatures.
func (c *dkimCheck) refuse(limit, reason string) {
	limits.WithLabelValues(limit).Inc()
	c.refused = reason
	c.end()
}

// finish returns the signatures with their results. What is not known when ctx ends
// is a temporary error.
func (c *dkimCheck) finish(ctx context.Context) []signature {
	if c.loneCR || c.lastCR { // which is no line end
		c.release()
	}
	if c.refused != "" {
		return c.rest(ruapost.AuthPolicy, c.refused)
	}
	c.end()
	for _, v := range c.running {
		select {
		case <-v.done:
		case <-ctx.Done():
		}
	}
	for _, v := range c.running {
		select {
		case <-v.done:
			v.signature.result, v.signature.reason = c.outcome(v)
		default:
		}
	}
	if slices.ContainsFunc(c.signatures, func(s signature) bool { return s.result == "" }) {
		limits.WithLabelValues("budget").Inc()
	}
	return c.rest(ruapost.AuthTemperror, "")
}

// outcome is go-msgauth's verdict and what it does not look at.
func (c *dkimCheck) outcome(v *verification) (ruapost.AuthResult, string) {
	if v.err != nil {
		return ruapost.AuthNeutral, "could not be processed"
	}
	result, sig := resultOf(v.result.Err), v.signature
	switch {
	case result == ruapost.AuthFail && sig.limited:
		// It refuses such signatures without looking at them (RFC 6376 8.2).
		return ruapost.AuthPolicy, "body length limit (l=) is not accepted"
	case result == ruapost.AuthPass && c.keys[sig.keyName()].strict &&
		!strings.EqualFold(v.result.Identifier[strings.LastIndexByte(v.result.Identifier, '@')+1:], v.result.Domain):
		return ruapost.AuthPermerror, "the key is not for subdomains (t=s)" // RFC 6376 3.6.1
	}
	return result, ""
}

// rest gives all signatures that have no result yet this one.
func (c *dkimCheck) rest(result ruapost.AuthResult, reason string) []signature {
	for i := range c.signatures {
		if sig := &c.signatures[i]; sig.result == "" {
			sig.result, sig.reason = result, reason
		}
	}
	return c.signatures
}

// resultOf names go-msgauth's verdict as RFC 8601 2.7.1 does.
func resultOf(err error) ruapost.AuthResult {
	switch {
	case err == nil:
		return ruapost.AuthPass
	case dkim.IsTempFail(err):
		return ruapost.AuthTemperror
	case dkim.IsPermFail(err):
		return ruapost.AuthPermerror
	}
	return ruapost.AuthFail
}

// abandon ends the verification of a message that has come to its end or never
// will.
func (c *dkimCheck) abandon() {
	c.cancel()
	c.end()
}

// chooseSignatures returns MaxSignatures of sigs in their order, those that could
// be aligned with an author before others: whoever puts junk on top of a message must
// not keep the real signature from being seen.
func chooseSignatures(sigs []signature, authors []string) []signature {
	related := func(s signature) bool {
		return slices.ContainsFunc(authors, func(author string) bool {
			return ruapost.Within(author, s.domain) || ruapost.Within(s.domain, author)
		})
	}
	chosen := slices.Clone(sigs)
	slices.SortStableFunc(chosen, func(a, b signature) int {
		switch ra, rb := related(a), related(b); {
		case ra == rb:
			return 0
		case ra:
			return -1
		}
		return 1
	})
	chosen = chosen[:MaxSignatures]
	slices.SortFunc(chosen, func(a, b signature) int { return a.index - b.index })
	return chosen
}

// parseSignature reads the tags that reports and Authentication-Results name and
// those that go-msgauth leaves to us. It returns false if domain or selector are no
// domain names.
func parseSignature(value string) (sig signature, ok bool) {
	tags := parseTags(value)
	domain, err := ruapost.ParseDomain(tags["d"])
	if err != nil {
		return sig, false
	}
	selector, err := ruapost.ParseSelector(tags["s"])
	if err != nil {
		return sig, false
	}
	_, limited := tags["l"]
	return signature{
		domain:    domain,
		selector:  selector,
		algorithm: ruapost.Clean(tags["a"], 32),
		b:         ruapost.Clean(tags["b"], 8),
		names:     strings.Split(strings.ToLower(tags["h"]), ":"),
		limited:   limited,
		relaxed:   strings.HasPrefix(strings.ToLower(tags["c"]), "relaxed"),
	}, true
}

// parseTags reads a tag list (RFC 6376 3.2), without the blanks in its values. Of
// tags that are there twice, which go-msgauth refuses, it has the first.
func parseTags(list string) map[string]string {
	tags := map[string]string{}
	for spec := range strings.SplitSeq(list, ";") {
		name, value, _ := strings.Cut(spec, "=")
		name = strings.TrimSpace(name)
		if _, seen := tags[name]; !seen {
			tags[name] = strings.Join(strings.Fields(value), "")
		}
	}
	return tags
}
