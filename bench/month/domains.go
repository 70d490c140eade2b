package main

import (
	"fmt"
	"strings"

	"ruapost/internal/lab"
)

// fate is what becomes of mail to an address.
type fate int

const (
	live fate = iota
	// slow: it is delivered, at times hours later, of which the sender is told.
	slow
	// away: it is delivered, and a program answers it.
	away
	// unknown: there is no such user, as the server says at once.
	unknown
	// forwarded: the address has gone to another one that is unknown; the notification
	// names that.
	forwarded
	// full: it is tried for five days.
	full
	// hostless: the host has no address.
	hostless
	// refusing: the server wants nothing of us.
	refusing
	// wordy: it comes back, but in words for people only.
	wordy
)

func (f fate) dead() bool { return f >= unknown }

// deadly says in words how mail to dead addresses fails.
var deadly = map[fate]string{
	unknown:   "no such user, told at once",
	forwarded: "no such user where it is forwarded to",
	full:      "mailbox full, told after five days",
	hostless:  "no such host",
	refusing:  "refused by the server's policy",
	wordy:     "told in words that only people understand",
}

// mailbox is an address for reports.
type mailbox struct {
	address string
	fate    fate
	refused bool // the host has not agreed to get reports about the domain
}

func hostOf(address string) string { return address[strings.LastIndexByte(address, '@')+1:] }

// domain is one that mail comes from, or seems to.
type domain struct {
	name string
	// real and forged are the messages of a day.
	real, forged int
	key          *lab.Key // signs its mail, if not nil
	rua          []*mailbox
	text         string   // of rua in its record, else made from rua
	tls          bool     // it asks for TLS reports, too
	tlsRUA       *mailbox // where they go
	peer         string   // the form of the reports that it sends itself, if it does
	weWrite      int      // the day on which somebody here writes to it, 0 for never

	mendedOn  int // the day on which it names another address
	outageOn  int // the day at whose beginning the DNS of its address begins to fail
	outageFor int // hours
}

// record is the zone-file line of the DMARC record.
func (d *domain) record() string {
	text := d.text
	if text == "" {
		var uris []string
		for _, b := range d.rua {
			uris = append(uris, "mailto:"+b.address)
		}
		text = strings.Join(uris, ",")
	}
	return fmt.Sprintf("_dmarc.%s. 300 IN TXT \"v=DMARC1; p=quarantine; rua=%s\"\n", d.name, text)
}

// box returns the mailbox with the address.
func (w *world) box(address string, f fate) *mailbox {
	if b := w.boxes[address]; b != nil {
		return b
	}
	b := &mailbox{address: address, fate: f}
	w.boxes[address] = b
	return b
}

// Services that get reports for others. That of serviceB is the dead one.
const (
	serviceA = "rua@service-a.example"
	serviceB = "rua@service-b.example"
)

// deadFates are how the own addresses of domains are dead, in turns.
var deadFates = []fate{unknown, full, forwarded, hostless, refusing, unknown, wordy}

// populate makes the domains.
func (w *world) populate() error {
	for i := range w.settings.domains {
		d := &domain{name: fmt.Sprintf("d%03d.example", i)}
		w.settle(d, i)
		if err := w.add(d); err != nil {
			return err
		}
	}
	w.box(serviceA, live)
	for _, d := range []*domain{
		// Forgers use the services' names, too. Reports are mailed there every day, which
		// does not make them known.
		{name: "service-a.example", forged: 2, rua: []*mailbox{w.box(serviceA, live)}},
		{name: "service-b.example", forged: 2, rua: []*mailbox{w.box(serviceB, unknown)}},
	} {
		if err := w.add(d); err != nil {
			return err
		}
	}
	for i, form := range reportForms {
		// With the second of each kind our people keep in touch.
		for j, weWrite := range []int{0, 1} {
			name := fmt.Sprintf("peer%d%d.example", i, j)
			d := &domain{name: name, peer: form.name, weWrite: weWrite, tls: true, rua: []*mailbox{w.box("dmarc@"+name, live)}}
			if err := w.add(d); err != nil {
				return err
			}
		}
	}
	w.dns.Add("_dmarc." + us + `. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@` + us + `"`)
	return nil
}

// settle decides what kind of domain d, which is the number i, is.
func (w *world) settle(d *domain, i int) {
	switch n := w.draw(20, "mail", i); {
	case n < 12:
		d.real = 1 + w.draw(7, "real", i)
		d.forged = w.draw(5, "forged", i)
	case n < 14: // nobody writes from there, but we write to them
		d.forged, d.weWrite = 1+w.draw(5, "forged", i), 3
	default:
		d.forged = 1 + w.draw(8, "forged", i)
	}
	d.tls = i%3 == 0
	own, other := "dmarc@"+d.name, w.box("reports@mail."+d.name, live)
	one := func(address string, f fate) { d.rua = []*mailbox{w.box(address, f)} }
	switch kind := i % 20; kind {
	case 0, 1, 2: // dead
		f := deadFates[(i/20*3+kind)%len(deadFates)]
		if f == hostless {
			own = "dmarc@gone." + d.name
		}
		one(own, f)
	case 3: // dead, in turns: at a service, beside one that is live, and until it is mended
		switch i / 20 % 3 {
		case 0:
			one(serviceB, unknown)
		case 1:
			d.rua = []*mailbox{w.box(own, unknown), other}
		default:
			one("old@"+d.name, unknown)
			d.mendedOn = w.days / 2
		}
	case 4, 5: // at a service
		one(serviceA, live)
	case 6: // at a service that has not agreed
		b := &mailbox{address: fmt.Sprintf("rua%d@elsewhere.example", i), refused: true}
		w.boxes[b.address] = b
		d.rua = []*mailbox{b}
	case 7: // at a service whose DNS fails for hours, shortly after midnight
		one(fmt.Sprintf("rua@unsteady%d.example", i), live)
		d.outageOn, d.outageFor = 6, 8
	case 8: // or for longer than it is tried
		one(fmt.Sprintf("rua@unsteady%d.example", i), live)
		d.outageOn, d.outageFor = 25, 50
	case 9: // the same one twice, in two ways to write it
		one(own, live)
		d.text = fmt.Sprintf("mailto:%s,mailto:dmarc%%40%s", own, strings.ToUpper(d.name))
	case 10:
		d.rua = []*mailbox{w.box(own, live), w.box(serviceA, live)}
	case 11:
		one(own, away)
	case 12:
		one(own, slow)
	default:
		one(own, live)
	}
}

// add puts a domain into the world.
func (w *world) add(d *domain) (err error) {
	w.domains = append(w.domains, d)
	w.byName[d.name] = d
	if first := int64(d.outageOn-1) * 24; first > 0 {
		w.outages = append(w.outages, outage{hostOf(d.rua[0].address), first, first + int64(d.outageFor) - 1})
	}
	if w.draw(3, "key", d.name) > 0 {
		if d.key, err = lab.NewEd25519Key(d.name, "2026"); err != nil {
			return err
		}
		line, err := d.key.ZoneLine()
		if err != nil {
			return err
		}
		w.dns.Add(line)
	}
	w.dns.Add(d.record())
	w.dns.Add(fmt.Sprintf("%[1]s. 300 IN TXT \"v=spf1 ip4:192.0.2.0/24 -all\"\n%[1]s. 300 IN MX 10 mail.%[1]s.\nmail.%[1]s. 300 IN A 192.0.2.1", d.name))
	if d.tls {
		d.tlsRUA = d.rua[0]
		w.dns.Add(fmt.Sprintf("_smtp._tls.%s. 300 IN TXT \"v=TLSRPTv1; rua=mailto:%s\"", d.name, d.tlsRUA.address))
	}
	for _, b := range d.rua {
		if host := hostOf(b.address); !strings.HasSuffix(host, d.name) && !b.refused {
			w.dns.Add(fmt.Sprintf("%s._report._dmarc.%s. 300 IN TXT \"v=DMARC1\"", d.name, host))
		}
	}
	return nil
}
