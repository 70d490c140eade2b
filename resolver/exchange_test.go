package resolver

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"ruapost/internal/dnstest"
)

func TestQuery(t *testing.T) {
	r, s := start(t, "example.com. 300 IN TXT x")
	ch := make(chan *dns.Msg, 10)
	s.Handle(func(_ dns.ResponseWriter, q *dns.Msg) bool {
		ch <- q.Copy()
		return false
	})
	if _, _, err := r.LookupTXT(t.Context(), "Example.COM."); err != nil {
		t.Fatal(err)
	}
	got := <-ch
	opt := got.IsEdns0()
	if opt == nil || opt.UDPSize() != 1232 || opt.Do() {
		t.Errorf("EDNS %v, want size 1232 without DO", opt)
	}
	if !got.RecursionDesired || !got.AuthenticatedData || got.CheckingDisabled || got.Opcode != dns.OpcodeQuery {
		t.Errorf("header %v", got.MsgHdr)
	}
	if want := (dns.Question{Name: "example.com.", Qtype: dns.TypeTXT, Qclass: dns.ClassINET}); got.Question[0] != want {
		t.Errorf("question %v", got.Question[0])
	}
}

// txtRecord returns the zone line of a TXT record of n octets and its text.
func txtRecord(n int) (line, text string) {
	var b strings.Builder
	b.WriteString("example.com. 300 IN TXT")
	text = strings.Repeat("0123456789", n/10+1)[:n]
	for rest := text; rest != ""; {
		l := min(len(rest), 255)
		fmt.Fprintf(&b, " %q", rest[:l])
		rest = rest[l:]
	}
	return b.String(), text
}

func TestTCPAfterTruncation(t *testing.T) {
	for _, tt := range []struct {
		name    string
		octets  int
		queries int
		err     string
	}{
		{name: "fits into a datagram", octets: 1000, queries: 1},
		{name: "does not", octets: 1300, queries: 2},
		{name: "most that is taken", octets: maxAnswerBytes, queries: 2},
		{name: "more", octets: maxAnswerBytes + 1, queries: 2, err: "temporary"},
		{name: "64 KB", octets: 65000, queries: 2, err: "temporary"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			line, text := txtRecord(tt.octets)
			r, s := start(t, line)
			txts, authentic, err := r.LookupTXT(t.Context(), "example.com")
			if tt.err != "" {
				checkError(t, err, tt.err)
			} else if err != nil || !authentic || !cmp.Equal(txts, []string{text}) {
				t.Errorf("authentic %v, %d texts, %v", authentic, len(txts), err)
			}
			if q := s.Queries(); len(q) != tt.queries {
				t.Errorf("%d queries, want %d", len(q), tt.queries)
			}
		})
	}
}

func TestTruncatedOverTCP(t *testing.T) {
	r, s := start(t, "")
	s.Handle(func(w dns.ResponseWriter, q *dns.Msg) bool {
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable, m.Truncated = true, true
		w.WriteMsg(m)
		return true
	})
	_, _, err := r.LookupTXT(t.Context(), "example.com")
	checkError(t, err, "temporary")
}

// RFC 5452 9.1: what does not match the query is not its answer. The right answer
// may still come after it.
func TestForgedAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*dns.Msg)
	}{
		{"id", func(m *dns.Msg) { m.Id++ }},
		{"name", func(m *dns.Msg) { m.Question[0].Name = "example.org." }},
		{"type", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeA }},
		{"class", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }},
		{"two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }},
		{"no question", func(m *dns.Msg) { m.Question = nil }},
		{"no question, NXDOMAIN", func(m *dns.Msg) { m.Question, m.Rcode = nil, dns.RcodeNameError }},
		{"not a response", func(m *dns.Msg) { m.Response = false }},
		{"opcode", func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(tt.name+" "+network, func(t *testing.T) {
				padding, _ := txtRecord(2000)
				zone := "example.com. 300 IN TXT good"
				if network == "tcp" {
					zone += "\n" + padding
				}
				r, s := start(t, zone)
				s.Handle(func(w dns.ResponseWriter, q *dns.Msg) bool {
					if w.RemoteAddr().Network() != network {
						return false
					}
					rr, _ := dns.NewRR("example.com. 300 IN TXT forged")
					m := new(dns.Msg)
					m.SetReply(q)
					m.Answer = append(m.Answer, rr)
					tt.change(m)
					w.WriteMsg(m)
					return false // the right answer follows
				})
				txts, _, err := r.LookupTXT(t.Context(), "example.com")
				if err != nil || txts[0] != "good" {
					t.Errorf("%q, %v", txts, err)
				}
			})
		}
	}
}

func TestOnlyForgedAnswers(t *testing.T) {
	r, s := start(t, "")
	r.timeout = 100 * time.Millisecond
	s.Handle(func(w dns.ResponseWriter, q *dns.Msg) bool {
		m := new(dns.Msg)
		m.SetReply(q)
		m.Id++
		w.WriteMsg(m)
		return true
	})
	_, _, err := r.LookupTXT(t.Context(), "example.com")
	checkError(t, err, "timeout")
	if q := s.Queries(); len(q) != rounds {
		t.Errorf("%d queries, want %d", len(q), rounds)
	}
}

func TestAnswerNameCase(t *testing.T) {
	r, s := start(t, "")
	s.Handle(func(w dns.ResponseWriter, q *dns.Msg) bool {
		m := new(dns.Msg)
		m.SetReply(q)
		m.Question[0].Name = "eXaMple.COM."
		rr, _ := dns.NewRR("EXAMPLE.com. 300 IN TXT x")
		m.Answer = append(m.Answer, rr)
		w.WriteMsg(m)
		return true
	})
	if txts, _, err := r.LookupTXT(t.Context(), "example.com"); len(txts) != 1 || err != nil {
		t.Error(txts, err)
	}
}

func TestGarbledAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		packet func(q *dns.Msg) []byte
	}{
		{"cut", func(q *dns.Msg) []byte {
			rr, _ := dns.NewRR("example.com. 300 IN TXT x")
			m := new(dns.Msg)
			m.SetReply(q)
			m.Answer = append(m.Answer, rr)
			wire, _ := m.Pack()
			return wire[:len(wire)-3]
		}},
		{"data too short for the type", func(q *dns.Msg) []byte {
			m := new(dns.Msg)
			m.SetReply(q)
			wire, _ := m.Pack()
			wire[7] = 1 // answer records
			return append(wire, 0xc0, 12, 0, byte(q.Question[0].Qtype), 0, dns.ClassINET, 0, 0, 0, 60, 0, 1, 99)
		}},
		{"FORMERR without the question", func(q *dns.Msg) []byte {
			m := new(dns.Msg)
			m.SetRcode(q, dns.RcodeFormatError)
			m.Question = nil
			wire, _ := m.Pack()
			return wire
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, s := start(t, "")
			s.Handle(func(w dns.ResponseWriter, q *dns.Msg) bool {
				w.Write(tt.packet(q))
				return true
			})
			_, _, err := r.LookupMX(t.Context(), "example.com")
			checkError(t, err, "temporary")
			if q := s.Queries(); len(q) != 1 {
				t.Errorf("%d queries, want one", len(q))
			}
		})
	}
}

func TestFailover(t *testing.T) {
	const zone = "example.com. 300 IN TXT x"
	refuse := func(rcode int) func(*dnstest.Server) {
		return func(s *dnstest.Server) { s.SetRcode("example.com", rcode) }
	}
	for _, tt := range []struct {
		name   string
		first  func(*dnstest.Server)
		sticks bool // the second server is asked first from now on
	}{
		{name: "SERVFAIL", first: refuse(dns.RcodeServerFailure)},
		{name: "REFUSED", first: refuse(dns.RcodeRefused)},
		{name: "silent", first: refuse(-1), sticks: true},
		{name: "not there", first: func(s *dnstest.Server) { s.Close() }, sticks: true},
		{name: "loop of aliases", first: func(s *dnstest.Server) {
			s.Handle(func(w dns.ResponseWriter, q *dns.Msg) bool {
				rr, _ := dns.NewRR("example.com. 300 IN CNAME example.com.")
				m := new(dns.Msg)
				m.SetReply(q)
				m.Answer = append(m.Answer, rr)
				w.WriteMsg(m)
				return true
			})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first, second := startServer(t, zone), startServer(t, zone)
			clock := newClock()
			r := startResolver(t, clock, first, second)
			r.timeout = 300 * time.Millisecond
			tt.first(first)

			txts, authentic, err := r.LookupTXT(t.Context(), "example.com")
			if len(txts) != 1 || !authentic || err != nil {
				t.Fatal(txts, authentic, err)
			}
			first.Queries()
			for _, step := range []struct {
				wait   time.Duration
				sticks bool
			}{{0, tt.sticks}, {preferFor - time.Second, tt.sticks}, {2 * time.Second, false}} {
				clock.Advance(step.wait)
				if got := r.order()[0] == r.servers[1]; got != step.sticks {
					t.Errorf("%v later the second server is first: %v, want %v", step.wait, got, step.sticks)
				}
				if len(r.order()) != 2 {
					t.Errorf("order %v", r.order())
				}
			}
		})
	}
}

func TestStickyServerIsAsked(t *testing.T) {
	first, second := startServer(t, ""), startServer(t, "a.example. 300 IN TXT x\nb.example. 300 IN TXT x")
	first.SetRcode("a.example", -1)
	r := startResolver(t, newClock(), first, second)
	r.timeout = 300 * time.Millisecond
	for _, name := range []string{"a.example", "b.example"} {
		if _, _, err := r.LookupTXT(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"a.example. TXT"}, first.Queries()); diff != "" {
		t.Error(diff)
	}
}

// All servers fail: each is asked once if it says so, and again if it says nothing.
// What one has said tells more than another's silence.
func TestAllServersFail(t *testing.T) {
	for _, silentFirst := range []bool{false, true} {
		servfail, silent := startServer(t, ""), startServer(t, "")
		servfail.SetRcode("example.com", dns.RcodeServerFailure)
		silent.SetRcode("example.com", -1)
		r := startResolver(t, newClock(), servfail, silent)
		if silentFirst {
			r = startResolver(t, newClock(), silent, servfail)
		}
		r.timeout = 100 * time.Millisecond
		_, _, err := r.LookupTXT(t.Context(), "example.com")
		checkError(t, err, "temporary")
		if e := err.(*net.DNSError); e.Server != servfail.Addr {
			t.Errorf("error %v, want one about %s", err, servfail.Addr)
		}
		if a, b := len(servfail.Queries()), len(silent.Queries()); a != 1 || b != rounds {
			t.Errorf("%d and %d queries, want 1 and %d", a, b, rounds)
		}
	}
}

// RFC 8460 4.3.2.2: only what a server has said is a matter of DNSSEC, not silence.
func TestIsServerFailure(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail func(*dnstest.Server)
		want bool
	}{
		{"SERVFAIL", func(s *dnstest.Server) { s.SetRcode("example.com", dns.RcodeServerFailure) }, true},
		{"REFUSED", func(s *dnstest.Server) { s.SetRcode("example.com", dns.RcodeRefused) }, false},
		{"NOTIMP", func(s *dnstest.Server) { s.SetRcode("example.com", dns.RcodeNotImplemented) }, false},
		{"NXDOMAIN", func(*dnstest.Server) {}, false},
		{"silence", func(s *dnstest.Server) { s.SetRcode("example.com", -1) }, false},
		{"nobody there", func(s *dnstest.Server) { s.Close() }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, s := start(t, "")
			r.timeout = 50 * time.Millisecond
			tt.fail(s)
			_, _, err := r.LookupTLSA(t.Context(), "example.com")
			if err == nil || IsServerFailure(err) != tt.want || IsServerFailure(fmt.Errorf("wrapped: %w", err)) != tt.want {
				t.Errorf("%v: %v, want %v", err, IsServerFailure(err), tt.want)
			}
		})
	}
	if IsServerFailure(nil) {
		t.Error("no error is one")
	}
}

func TestDenialIsFinal(t *testing.T) {
	first, second := startServer(t, ""), startServer(t, "example.com. 300 IN TXT x")
	r := startResolver(t, newClock(), first, second)
	_, _, err := r.LookupTXT(t.Context(), "example.com")
	checkError(t, err, "nxdomain")
	if q := second.Queries(); len(q) != 0 {
		t.Errorf("second server was asked %q", q)
	}
}

func TestPreferTrust(t *testing.T) {
	for _, tt := range []struct{ first, second, want bool }{
		{true, true, true},
		{true, false, false},
		{false, true, true},
		{false, false, true},
	} {
		r := startResolver(t, newClock(), startServer(t, ""), startServer(t, ""))
		r.servers[0].trusted, r.servers[1].trusted = tt.first, tt.second
		r.prefer(r.servers[1])
		if got := r.order()[0] == r.servers[1]; got != tt.want {
			t.Errorf("trusted %v and %v: second is preferred: %v, want %v", tt.first, tt.second, got, tt.want)
		}
	}
}
