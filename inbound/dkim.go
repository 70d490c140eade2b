package inbound

import (
	"bytes"
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/emersion/go-msgauth/dkim"

	"ruapost"
)

// signature is what we need to know of a DKIM-Signature field; go-msgauth tells
// neither selector nor algorithm.
type signature struct {
	index     int // in the message's header
	domain    string
	selector  string
	algorithm string
	b         string // the beginning of the signature, for header.b (RFC 6008)
	result    ruapost.AuthResult
	reason    string
}

// dkimCheck verifies the signatures of one message while its body arrives.
type dkimCheck struct {
	signatures []signature
	pipe       *io.PipeWriter
	done       chan struct{} // closed when results and err are there
	results    []*dkim.Verification
	err        error

	held         []byte // line ends that nothing has followed yet
	tooManyBlank bool   // a run of blank lines was longer than MaxBlankLines
}

func isSignature(f field) bool { return strings.EqualFold(f.name, "DKIM-Signature") }

// startDKIM begins to verify the message's signatures. It returns nil if there
// are none that could be reported on.
func (m *message) startDKIM(author string) *dkimCheck {
	c := &dkimCheck{done: make(chan struct{})}
	for i, f := range m.header {
		if !isSignature(f) {
			continue
		}
		// A signature without a domain or selector that could stand in a report
		// cannot be verified either.
		if sig, ok := parseSignature(f.value); ok {
			sig.index = i
			c.signatures = append(c.signatures, sig)
		}
	}
	if len(c.signatures) > MaxSignatures {
		limits.WithLabelValues("signatures").Inc()
		c.signatures = chooseSignatures(c.signatures, author)
	}
	if len(c.signatures) == 0 {
		return nil
	}
	keep := map[int]bool{}
	for _, sig := range c.signatures {
		keep[sig.index] = true
	}

	r, w := io.Pipe()
	c.pipe = w
	ctx, cancel := context.WithTimeout(m.ctx, Budget)
	keys := m.prefetchKeys(ctx, c.signatures)
	go func() {
		defer cancel()
		defer close(c.done)
		defer r.Close() // a writer must not wait for a reader that has left
		defer func() {
			if p := recover(); p != nil {
				panics.Inc()
				c.err = io.ErrUnexpectedEOF
			}
		}()
		c.results, c.err = dkim.VerifyWithOptions(r, &dkim.VerifyOptions{LookupTXT: keys})
	}()
	if err := m.writeHeader(w, keep); err != nil {
		w.Close()
	}
	return c
}

// prefetchKeys asks for all keys at once and returns the function by which
// go-msgauth gets the answers one by one.
func (m *message) prefetchKeys(ctx context.Context, sigs []signature) func(string) ([]string, error) {
	type answer struct {
		txts []string
		err  error
	}
	var once []func() answer
	byName := map[string]int{}
	for _, sig := range sigs {
		name := sig.selector + "._domainkey." + sig.domain
		if _, ok := byName[name]; ok {
			continue
		}
		byName[name] = len(once)
		get := sync.OnceValue(func() answer {
			txts, err := m.lookupKey(ctx, name)
			return answer{txts, err}
		})
		once = append(once, get)
		go get()
	}
	return func(domain string) ([]string, error) {
		name, err := ruapost.ParseDomain(domain)
		i, ok := byName[name]
		if err != nil || !ok {
			return nil, &net.DNSError{Err: "no such name", Name: ruapost.Clean(domain, 64), IsNotFound: true}
		}
		a := once[i]()
		return a.txts, a.err
	}
}

// lookupKey returns the key records at name. Its errors are what go-msgauth takes
// for temporary only if they are net.Errors themselves, which the resolver's are.
func (m *message) lookupKey(ctx context.Context, name string) ([]string, error) {
	txts, _, err := m.service.Resolver.LookupTXT(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, txt := range txts {
		if len(txt) > MaxKeyRecord {
			// A key of hundreds of kilobits would take seconds per signature.
			limits.WithLabelValues("key_record").Inc()
			return nil, &net.DNSError{Err: "key record too large", Name: name}
		}
	}
	return txts, nil
}

// write takes the next part of the body. Line ends are held back until something
// follows them: at the end of a body neither canonicalization counts them
// (RFC 6376 3.4.3), and go-msgauth copies a pending run again at every write.
func (c *dkimCheck) write(chunk []byte) {
	if c.tooManyBlank {
		return
	}
	body := bytes.TrimRight(chunk, "\r\n")
	if len(body) > 0 {
		first := bytes.TrimLeft(body, "\r\n")
		c.hold(body[:len(body)-len(first)])
		if len(c.held) > MaxBlankLines {
			c.tooManyBlank = true
			limits.WithLabelValues("blank_lines").Inc()
			return
		}
		c.pipe.Write(c.held) // an error means that the verifier has seen enough
		c.pipe.Write(first)
		c.held = c.held[:0]
	}
	c.hold(chunk[len(body):])
}

// hold keeps line ends, one byte more than are allowed at the most.
func (c *dkimCheck) hold(ends []byte) {
	c.held = append(c.held, ends[:min(len(ends), MaxBlankLines+1-len(c.held))]...)
}

// finish returns the signatures with their results. What is not known when ctx ends
// is a temporary error.
func (c *dkimCheck) finish(ctx context.Context) []signature {
	if bytes.Contains(bytes.ReplaceAll(c.held, []byte("\r\n"), nil), []byte("\r")) {
		c.pipe.Write(c.held) // a lone CR is no line end
	}
	c.pipe.Close()
	select {
	case <-c.done:
	case <-ctx.Done():
		limits.WithLabelValues("budget").Inc()
		return c.all(ruapost.AuthTemperror, "")
	}
	switch {
	case c.tooManyBlank:
		return c.all(ruapost.AuthPolicy, "too many blank lines in the body")
	case len(c.results) != len(c.signatures):
		// go-msgauth gave up on the message as a whole: nothing was found out.
		return c.all(ruapost.AuthNeutral, "could not be processed")
	}
	for i, v := range c.results {
		c.signatures[i].result = resultOf(v.Err)
	}
	return c.signatures
}

func (c *dkimCheck) all(result ruapost.AuthResult, reason string) []signature {
	sigs := make([]signature, len(c.signatures))
	copy(sigs, c.signatures)
	for i := range sigs {
		sigs[i].result, sigs[i].reason = result, reason
	}
	return sigs
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

// abandon ends the verification. The pipe is closed as if the message were
// complete: an error would leave go-msgauth's goroutines waiting for ever.
func (c *dkimCheck) abandon() { c.pipe.Close() }

// chooseSignatures returns MaxSignatures of sigs in their order, those that could
// be aligned with author before others: whoever puts junk on top of a message must
// not keep the real signature from being seen.
func chooseSignatures(sigs []signature, author string) []signature {
	related := func(s signature) bool {
		return s.domain == author ||
			strings.HasSuffix(author, "."+s.domain) || strings.HasSuffix(s.domain, "."+author)
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

// parseSignature reads the tags that reports and Authentication-Results name. It
// returns false if domain or selector are no domain names.
func parseSignature(value string) (sig signature, ok bool) {
	tags := map[string]string{}
	for spec := range strings.SplitSeq(value, ";") {
		name, v, _ := strings.Cut(spec, "=")
		name = strings.TrimSpace(name)
		if _, seen := tags[name]; !seen {
			tags[name] = strings.Join(strings.Fields(v), "")
		}
	}
	domain, err := ruapost.ParseDomain(tags["d"])
	if err != nil {
		return sig, false
	}
	// A selector may end in a number, as a domain name may not.
	selector, err := ruapost.ParseDomain(tags["s"] + "._domainkey")
	if err != nil {
		return sig, false
	}
	return signature{
		domain:    domain,
		selector:  strings.TrimSuffix(selector, "._domainkey"),
		algorithm: ruapost.Clean(tags["a"], 32),
		b:         ruapost.Clean(tags["b"], 8),
		// Until it is known.
		result: ruapost.AuthTemperror,
	}, true
}
