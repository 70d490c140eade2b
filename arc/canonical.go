package arc

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"strings"
)

// lowerName returns the name of a field as names are compared: in lower case, without
// the blanks that may stand before the colon (RFC 5322 4.5). Letters outside of ASCII
// are left alone: some have an ASCII letter as their lower case.
func lowerName(name string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, strings.Trim(name, fws))
}

// messageDigest returns what the message signature of an instance signs (RFC 6376 3.7,
// 5.4.2): the fields named in h=, of several with a name the lowest first, then its own
// without b=. A name that has no field left stands for nothing.
func (v *Verifier) messageDigest(instance int, m *messageSignature) []byte {
	own := v.chain[instance-1].fields[ams] - 1
	h := sha256.New()
	var buf []byte
	taken := map[string]int{}
	index := v.index()
	for _, name := range m.names {
		at := index[name][taken[name]:]
		if len(at) > 0 && at[0] == own {
			taken[name]++
			at = at[1:]
		}
		if len(at) == 0 {
			continue
		}
		taken[name]++
		buf = appendField(buf[:0], m.relaxedHeader, v.fields[at[0]])
		h.Write(append(buf, '\r', '\n'))
	}
	h.Write(appendField(buf[:0], m.relaxedHeader, Field{v.fields[own].Name, m.unsigned}))
	return h.Sum(nil)
}

// index returns where the fields with each name in lower case are, from the bottom up.
// With it a message signature costs one pass over the header, however it is made.
func (v *Verifier) index() map[string][]int {
	if v.byName == nil {
		v.byName = map[string][]int{}
		for i := len(v.fields) - 1; i >= 0; i-- {
			name := lowerName(v.fields[i].Name)
			v.byName[name] = append(v.byName[name], i)
		}
	}
	return v.byName
}

// sealDigests returns what each seal signs (RFC 8617 5.1.1): all sets before it, and
// its own with an empty b=.
func (v *Verifier) sealDigests() [][]byte {
	h := sha256.New()
	var buf []byte
	digests := make([][]byte, len(v.chain))
	for i, s := range v.chain {
		for _, index := range s.fields {
			f := v.fields[index-1]
			if index == s.fields[as] {
				own := clone(h)
				own.Write(appendField(nil, true, Field{f.Name, s.seal.unsigned}))
				digests[i] = own.Sum(nil)
			}
			buf = appendField(buf[:0], true, f)
			h.Write(append(buf, '\r', '\n'))
		}
	}
	return digests
}

// clone returns a copy of h, so that what all seals have in common is hashed once.
func clone(h hash.Hash) hash.Hash {
	c, err := h.(hash.Cloner).Clone()
	if err != nil {
		panic(err) // SHA-256 can be cloned
	}
	return c
}

// appendField appends the canonical form of a field without its line end
// (RFC 6376 3.4.1, 3.4.2).
func appendField(dst []byte, relaxed bool, f Field) []byte {
	if relaxed {
		return appendRelaxed(dst, f)
	}
	dst = append(append(dst, f.Name...), ':')
	for i := range len(f.Value) {
		c := f.Value[i]
		if c == '\n' && (i == 0 || f.Value[i-1] != '\r') { // what was CRLF to the signer
			dst = append(dst, '\r')
		}
		dst = append(dst, c)
	}
	return dst
}

func appendRelaxed(dst []byte, f Field) []byte {
	dst = append(append(dst, lowerName(f.Name)...), ':')
	pending, begun := false, false
	for i := range len(f.Value) {
		switch c := f.Value[i]; {
		case c == ' ', c == '\t':
			pending = true
		case c == '\n', c == '\r' && strings.HasPrefix(f.Value[i+1:], "\n"):
		default:
			if pending && begun {
				dst = append(dst, ' ')
			}
			pending, begun = false, true
			dst = append(dst, c)
		}
	}
	return dst
}

// bodyHash hashes a body in its canonical form (RFC 6376 3.4.3, 3.4.4). Of line ends
// and blanks that may turn out to be at the end it keeps no more than their number, so
// that its memory is constant and its time linear in the body.
type bodyHash struct {
	relaxed bool
	hash    hash.Hash
	sum     []byte // when the body has ended
	out     []byte // canonical octets on their way into hash
	written bool   // the canonical body is not empty
	cr      bool   // the last octet was CR, which may become a line end
	blank   bool   // blanks are pending (relaxed)
	ends    int    // the number of line ends that are pending
}

// outSize is the size in bytes of the pieces in which a body is hashed.
const outSize = 4 << 10

var (
	cr    = []byte("\r")
	lf    = []byte("\n")
	crlf  = []byte("\r\n")
	blank = []byte(" ")
)

func newBodyHash(relaxed bool) *bodyHash {
	return &bodyHash{relaxed: relaxed, hash: sha256.New(), out: make([]byte, 0, outSize)}
}

func (b *bodyHash) write(p []byte) {
	if b.cr && len(p) > 0 {
		b.cr = false
		if p[0] != '\n' {
			b.text(cr) // no line end, but an octet like others
		}
	}
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, lf)
		if ended {
			line = bytes.TrimSuffix(line, cr)
		} else if line, b.cr = bytes.CutSuffix(line, cr); len(line) == 0 {
			return
		}
		if b.relaxed {
			b.relaxedText(line)
		} else {
			b.text(line)
		}
		if ended {
			b.blank = false
			b.ends++
		}
		p = rest
	}
}

// relaxedText takes a part of a line, in which a run of blanks counts as one, or as
// none at the end of the line.
func (b *bodyHash) relaxedText(line []byte) {
	if b.blank {
		line = bytes.TrimLeft(line, " \t")
	}
	for len(line) > 0 {
		n := canonicalLength(line)
		b.text(line[:n])
		rest := bytes.TrimLeft(line[n:], " \t")
		b.blank = len(rest) < len(line)-n
		line = rest
	}
}

// canonicalLength returns how much of a line can be taken as it is: up to a tab or a
// blank with another blank or nothing behind it.
func canonicalLength(line []byte) int {
	for i, c := range line {
		if c == '\t' || c == ' ' && (i+1 == len(line) || line[i+1] == ' ' || line[i+1] == '\t') {
			return i
		}
	}
	return len(line)
}

// text takes a part of a line that is canonical, and what was pending before it.
func (b *bodyHash) text(s []byte) {
	if len(s) == 0 {
		return
	}
	for ; b.ends > 0; b.ends-- {
		b.append(crlf)
	}
	if b.blank {
		b.blank = false
		b.append(blank)
	}
	b.append(s)
}

func (b *bodyHash) append(s []byte) {
	b.written = true
	if len(b.out)+len(s) > outSize {
		b.hash.Write(b.out)
		b.out = b.out[:0]
	}
	if len(s) > outSize {
		b.hash.Write(s)
		return
	}
	b.out = append(b.out, s...)
}

// is ends the body and says whether that is its hash.
func (b *bodyHash) is(sum []byte) bool {
	if b.sum == nil {
		if b.cr {
			b.text(cr)
		}
		// All line ends at the end count as one. An empty body has that one only if
		// it is simple.
		if b.written || !b.relaxed {
			b.append(crlf)
		}
		b.hash.Write(b.out)
		b.sum = b.hash.Sum(nil)
	}
	return bytes.Equal(b.sum, sum)
}
