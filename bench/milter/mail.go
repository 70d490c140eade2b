package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
)

const (
	maxDomains = 1000 // that have a name of their own
	addresses  = 20   // that a domain's mail comes from
	minSize    = 3 << 10
	// headerSize is about what the header takes of a message's size.
	headerSize = 2700
	// distinctKeys is the number of keys that the domains share.
	distinctKeys = 4

	receiver  = "mail.receiver.example"
	recipient = "alice@receiver.example"
)

// allowed is the network that SPF allows to all domains, made for measurements
// (RFC 2544).
var allowed = netip.MustParsePrefix("198.18.0.0/15")

// world is what the senders have: names in the DNS and signed messages.
type world struct {
	dns      *dnstest.Server
	messages []*message // one of each domain
}

// message is a message as Postfix gives it to a milter.
type message struct {
	domain string
	// fields are name and value, each with a NUL behind it. Values begin behind the
	// colon; their folds are LF.
	fields [][]byte
	body   []byte
	size   int // as MAIL tells it
}

func (m *message) sender() string { return "bounce@" + m.domain }

// newWorld makes the messages that l wants, and everything that is needed for them to
// pass.
func newWorld(ctx context.Context, l load) (*world, error) {
	keys, err := signingKeys()
	if err != nil {
		return nil, err
	}
	w := &world{messages: make([]*message, l.domains)}
	if w.dns, err = dnstest.Start("127.0.0.1:0"); err != nil {
		return nil, err
	}
	text := body(l.size - headerSize)
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(distinctKeys)
	for i := range w.messages {
		key := *keys[i%distinctKeys]
		key.Domain = fmt.Sprintf("d%03d.example", i)
		work.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := w.publish(&key, l); err != nil {
				return err
			}
			mail, err := key.Sign(letter(key.Domain, text))
			if err != nil {
				return err
			}
			// The body is the same in all of them, and need not be there many times.
			w.messages[i], err = parse(key.Domain, mail, text)
			return err
		})
	}
	if err := work.Wait(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *world) close() { w.dns.Close() }

// signingKeys makes the keys once in the life of this program.
var signingKeys = sync.OnceValues(func() (keys []*lab.Key, err error) {
	for range distinctKeys {
		key, err := lab.NewRSAKey("", "s2026")
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
})

// publish adds the records of the key's domain to the DNS.
func (w *world) publish(key *lab.Key, l load) error {
	record, err := key.ZoneLine()
	if err != nil {
		return err
	}
	policy := "v=DMARC1; p=reject"
	if l.record {
		policy += "; rua=mailto:dmarc@" + key.Domain
	}
	ttl := int(l.ttl / time.Second)
	w.dns.Add(strings.Replace(record, " 300 IN ", fmt.Sprintf(" %d IN ", ttl), 1))
	w.dns.Add(fmt.Sprintf(`%[1]s. %[2]d IN TXT "v=spf1 ip4:%[3]s -all"
		_dmarc.%[1]s. %[2]d IN TXT %[4]q`, key.Domain, ttl, allowed, policy))
	return nil
}

// letter returns the mail without its signature.
func letter(domain string, text []byte) []byte {
	fields := fmt.Sprintf(strings.ReplaceAll(furtherFields, "\n", "\r\n"), domain)
	return lab.Mail{
		From:    fmt.Sprintf("The people of %[1]s <news@%[1]s>", domain),
		To:      "Alice <" + recipient + ">",
		Subject: "What happened at " + domain + " this week",
		Fields:  []string{strings.TrimSuffix(fields, "\r\n")},
		Body:    string(text),
	}.Bytes()
}

// furtherFields are what a message has besides what lab.Mail writes and its signature.
const furtherFields = `Received: from app7.%[1]s (app7.%[1]s [198.18.255.7])
	(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits))
	by out1.%[1]s (Postfix) with ESMTPS id 4kGq1T2Zb3z1xY
	for <alice@receiver.example>; Wed, 25 Nov 2026 08:00:02 +0000 (UTC)
Received: by app7.%[1]s (Postfix, from userid 33)
	id 4kGq1S6Xn4z9vW; Wed, 25 Nov 2026 08:00:01 +0000 (UTC)
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8; format=flowed
Content-Transfer-Encoding: 8bit
Content-Language: en-GB
Reply-To: The people of %[1]s <hello@%[1]s>
Sender: news@%[1]s
Organization: %[1]s
List-Id: News of %[1]s <news.%[1]s>
List-Unsubscribe: <https://www.%[1]s/unsubscribe/c3ViczoxMjM0NTY3ODkw>,
	<mailto:unsubscribe@%[1]s?subject=c3ViczoxMjM0NTY3ODkw>
List-Unsubscribe-Post: List-Unsubscribe=One-Click
List-Help: <https://www.%[1]s/help>
List-Owner: <mailto:owner@%[1]s>
Precedence: list
In-Reply-To: <20261118080000.1234@%[1]s>
References: <20261111080000.1234@%[1]s>
	<20261118080000.1234@%[1]s>
X-Mailer: newsletter 4.2
X-Campaign: week-47-2026
X-Report-Abuse: <https://www.%[1]s/abuse/c3ViczoxMjM0NTY3ODkw>
Feedback-ID: 47:news:%[1]s
X-Originating-IP: [198.18.255.33]
X-Priority: 3
Importance: Normal
`

// body returns a text of about n bytes: half of its lines are words, half base64. It is
// the same for the same n.
func body(n int) []byte {
	const width = 76
	random := rand.New(rand.NewPCG(2026, 11))
	words := strings.Fields("mail from a domain that you know comes with its signature and a policy by which the owner asks to be told")
	text := make([]byte, 0, n)
	for range max(n/(width+2), 1) {
		var line []byte
		if random.IntN(2) == 0 {
			raw := make([]byte, width/4*3)
			for i := range raw {
				raw[i] = byte(random.Uint32())
			}
			line = base64.StdEncoding.AppendEncode(line, raw)
		}
		for len(line) < width {
			line = append(append(line, words[random.IntN(len(words))]...), ' ')
		}
		text = append(append(text, line[:width]...), "\r\n"...)
	}
	return text
}

// parse takes a signed mail apart as Postfix does.
func parse(domain string, mail, text []byte) (*message, error) {
	header, body, found := bytes.Cut(mail, []byte("\r\n\r\n"))
	if !found || !bytes.Equal(body, text) {
		return nil, fmt.Errorf("mail of %s: the body has changed", domain)
	}
	m := &message{domain: domain, body: text, size: len(mail)}
	unfolded := bytes.ReplaceAll(header, []byte("\r\n\t"), []byte("\n\t"))
	unfolded = bytes.ReplaceAll(unfolded, []byte("\r\n "), []byte("\n "))
	for line := range bytes.SplitSeq(unfolded, []byte("\r\n")) {
		name, value, found := bytes.Cut(line, []byte(":"))
		if !found {
			return nil, fmt.Errorf("mail of %s: no header field: %q", domain, line)
		}
		m.fields = append(m.fields, fmt.Appendf(nil, "%s\x00%s\x00", name, value))
	}
	return m, nil
}

// address returns the n-th of the addresses that mail comes from.
func address(n int) netip.Addr {
	a := allowed.Addr().As4()
	a[2], a[3] = byte(n/250), byte(1+n%250)
	return netip.AddrFrom4(a)
}
