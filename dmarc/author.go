package dmarc

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"ruapost"
)

const (
	// maxFromLength bounds the From field that is read, in octets.
	maxFromLength = 16 << 10
	// maxAuthorDomains bounds the domains taken from it: each of them costs DNS
	// queries (RFC 9989 11.5).
	maxAuthorDomains = 5
)

// AuthorDomains returns the domains, each once and as ruapost.ParseDomain gives
// them, of the addresses in a message's From fields, given as the raw values of
// all of them, folded or not (RFC 9989 5.3.1, RFC 5322 3.4). Several domains are
// evaluated each for itself.
//
// An error says why the message is outside DMARC: there is no From field, several,
// one that cannot be read or none with a domain name, or there are too many domains.
// With it those domains are returned that a receiver may look at nevertheless, if
// there are any: who adds a field or an address that nobody can read must not keep
// the others from being looked at.
//
// What stands around the address of a mailbox is read leniently, as mail clients
// do, since real mail has it wrong all the time: "@" in an unquoted display name,
// for example, commas, or closing brackets that nothing opened. What decides about
// the address is not.
func AuthorDomains(fields []string) ([]string, error) {
	var domains []string
	var unreadable error
	for _, field := range fields {
		err := addDomains(&domains, field)
		if err != nil {
			salvage(&domains, field)
		}
		if err != nil && unreadable == nil {
			unreadable = fmt.Errorf("dmarc: From field %q: %w", ruapost.Clean(field, 100), err)
		}
	}
	switch {
	case len(fields) == 0:
		return nil, errors.New("dmarc: no From field")
	case unreadable != nil:
		return domains[:min(len(domains), maxAuthorDomains)], unreadable
	case len(domains) == 0:
		return nil, fmt.Errorf("dmarc: From field %q: no address with a domain name", ruapost.Clean(fields[0], 100))
	case len(domains) > maxAuthorDomains:
		return domains[:maxAuthorDomains], fmt.Errorf("dmarc: more than %d author domains", maxAuthorDomains)
	case len(fields) > 1:
		return domains, fmt.Errorf("dmarc: %d From fields", len(fields))
	}
	return domains, nil
}

// salvage adds what stands behind each "@" of a field that cannot be read: a mail client
// may show any of them as the author.
func salvage(domains *[]string, field string) {
	inName := func(r rune) bool {
		return r == '.' || r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r)
	}
	for len(*domains) <= maxAuthorDomains {
		_, behind, found := strings.Cut(field, "@")
		if !found {
			return
		}
		field = strings.TrimLeft(behind, " \t\r\n")
		name := field
		if end := strings.IndexFunc(field, func(r rune) bool { return !inName(r) }); end >= 0 {
			name = field[:end]
		}
		domain, err := ruapost.ParseDomain(strings.Trim(name, "."))
		if err == nil && ruapost.Labels(domain) > 1 && !slices.Contains(*domains, domain) {
			*domains = append(*domains, domain)
		}
	}
}

// addDomains adds to domains what one field has, up to what cannot be read. It stops
// once there are too many.
func addDomains(domains *[]string, field string) error {
	if len(field) > maxFromLength {
		return fmt.Errorf("%d octets long", len(field))
	}
	lex := lexer{rest: field}
	var box mailbox
	inGroup := false
	for len(*domains) <= maxAuthorDomains {
		tok, err := lex.next()
		if err != nil {
			return err
		}
		switch {
		case tok.kind == endOfField || (tok.kind == ',' || tok.kind == ';') && !box.open:
			domain, err := box.domain()
			if err != nil {
				return err
			}
			if domain != "" && !slices.Contains(*domains, domain) {
				*domains = append(*domains, domain)
			}
			if tok.kind == endOfField {
				return nil
			}
			box.reset()
			inGroup = inGroup && tok.kind != ';'
		case tok.kind == ':' && !box.open: // "name: mailbox, mailbox;"
			if inGroup || box.angle || box.hasAt() {
				return errors.New("misplaced colon")
			}
			inGroup = true
			box.reset()
		default:
			if err := box.add(tok); err != nil {
				return err
			}
		}
	}
	return nil
}

// mailbox collects the tokens of one address, with or without angle brackets.
type mailbox struct {
	tokens []token // of the addr-spec, if it is one
	angle  bool    // there was a "<"
	open   bool    // and no ">" yet
}

func (b *mailbox) reset() { *b = mailbox{tokens: b.tokens[:0]} }

func (b *mailbox) hasAt() bool {
	return slices.ContainsFunc(b.tokens, func(t token) bool { return t.kind == '@' })
}

func (b *mailbox) add(tok token) error {
	switch {
	case tok.kind == '<' && !b.angle:
		// All before it was the display name, whatever it looks like.
		*b = mailbox{tokens: b.tokens[:0], angle: true, open: true}
	case tok.kind == '>' && b.open:
		b.open = false
	case tok.kind == '<' || tok.kind == '>' && b.angle:
		return fmt.Errorf("misplaced %q", tok.text)
	case b.angle && !b.open:
		return errors.New(`text behind the address in "<>"`)
	default:
		b.tokens = append(b.tokens, tok)
	}
	return nil
}

// domain returns the domain of the address, or "" if there is none: an empty
// mailbox, a bare name, a local part alone or an address literal.
func (b *mailbox) domain() (string, error) {
	if b.open {
		return "", errors.New(`"<" without ">"`)
	}
	if !b.hasAt() {
		return "", nil
	}
	at := slices.IndexFunc(b.tokens, func(t token) bool { return t.kind == '@' })
	local, domain := b.tokens[:at], b.tokens[at+1:]
	if len(local) == 0 { // also a source route (RFC 5322 4.4), which nobody has reason to use
		return "", errors.New(`no local part before "@"`)
	}
	if err := checkWords(local, atom, quotedString); err != nil {
		return "", err
	}
	if len(domain) == 1 && domain[0].kind == domainLiteral {
		return "", nil
	}
	if err := checkWords(domain, atom); err != nil {
		return "", err
	}
	var name strings.Builder
	for _, tok := range domain {
		name.WriteString(tok.text)
	}
	return ruapost.ParseDomain(name.String())
}

// checkWords accepts words of these kinds with dots between them. Stray dots are
// let pass in local parts, where some providers allow them; ParseDomain does not.
func checkWords(tokens []token, kinds ...tokenKind) error {
	for i, tok := range tokens {
		if tok.kind == '.' {
			continue
		}
		if !slices.Contains(kinds, tok.kind) {
			return fmt.Errorf("misplaced %q in an address", ruapost.Clean(tok.text, 40))
		}
		if i > 0 && tokens[i-1].kind != '.' {
			return fmt.Errorf("%q in an address without a dot before it", ruapost.Clean(tok.text, 40))
		}
	}
	return nil
}

// tokenKind is one of the special characters of RFC 5322 3.2.3, or one of these.
type tokenKind rune

const (
	endOfField tokenKind = -iota
	atom
	quotedString
	domainLiteral
)

type token struct {
	kind tokenKind
	text string // as in the field
}

// lexer splits a structured header field into tokens (RFC 5322 3.2). Blanks,
// line ends and comments are dropped.
type lexer struct{ rest string }

func (l *lexer) next() (token, error) {
	for {
		l.rest = strings.TrimLeft(l.rest, " \t\r\n")
		if !strings.HasPrefix(l.rest, "(") {
			break
		}
		n := commentLength(l.rest)
		if n < 0 {
			return token{}, errors.New("comment without an end")
		}
		l.rest = l.rest[n:]
	}
	if l.rest == "" {
		return token{kind: endOfField}, nil
	}
	switch c := l.rest[0]; c {
	case '"':
		return l.delimited(quotedString, '"')
	case '[':
		return l.delimited(domainLiteral, ']')
	case '<', '>', ')', ']', '@', ',', ';', ':', '.':
		return l.take(tokenKind(c), 1), nil
	case 0: // it ends the field for some readers
		return token{}, fmt.Errorf("misplaced %q", c)
	}
	end := strings.IndexAny(l.rest, "()<>[]:;@,.\" \t\r\n\x00")
	if end < 0 {
		end = len(l.rest)
	}
	return l.take(atom, end), nil
}

func (l *lexer) take(kind tokenKind, n int) token {
	tok := token{kind, l.rest[:n]}
	l.rest = l.rest[n:]
	return tok
}

// delimited takes what ends at the next end that has no backslash before it.
func (l *lexer) delimited(kind tokenKind, end byte) (token, error) {
	for i := 1; i < len(l.rest); i++ {
		switch l.rest[i] {
		case '\\':
			i++
		case end:
			return l.take(kind, i+1), nil
		}
	}
	return token{}, fmt.Errorf("%q without %q", l.rest[0], end)
}

// commentLength returns the length of the comment that s begins with, with all
// comments inside it, or -1 if it does not end.
func commentLength(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}
