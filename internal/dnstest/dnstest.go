// Package dnstest is a DNS server inside the process, for tests, the
// demonstration and the load programs. To its clients it looks like a validating
// resolver: it answers from zone-file lines and sets the AD bit on every answer
// that does not touch a name marked insecure. Names can be made to fail.
package dnstest

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Server answers queries on one UDP and one TCP port of the same address.
type Server struct {
	// Addr is the host:port it listens on.
	Addr string

	udp, tcp *dns.Server
	running  sync.WaitGroup

	mu       sync.Mutex
	zone     map[string][]dns.RR // by lower-case owner name
	below    map[string]int      // number of records at a name and below it
	wild     bool                // there are wildcards
	insecure map[string]bool
	fail     map[string]int
	delay    time.Duration
	handler  func(w dns.ResponseWriter, q *dns.Msg) bool
	queries  []string
}

// Start listens on addr, for example "127.0.0.1:0".
func Start(addr string) (*Server, error) {
	s := &Server{
		zone:     map[string][]dns.RR{},
		below:    map[string]int{},
		insecure: map[string]bool{},
		fail:     map[string]int{},
	}
	ln, pc, err := listen(addr)
	if err != nil {
		return nil, fmt.Errorf("dnstest: %w", err)
	}
	s.Addr = ln.Addr().String()
	s.udp = &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(s.serve)}
	s.tcp = &dns.Server{Listener: ln, Handler: dns.HandlerFunc(s.serve), MaxTCPQueries: -1}
	for _, srv := range []*dns.Server{s.udp, s.tcp} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		s.running.Go(func() { srv.ActivateAndServe() })
		<-started
	}
	return s, nil
}

// listen opens a TCP and a UDP port of the same number. If any will do, the one that
// was free for TCP may be somebody's for UDP.
func listen(addr string) (ln net.Listener, pc net.PacketConn, err error) {
	for range 20 {
		if ln, err = net.Listen("tcp", addr); err != nil {
			return nil, nil, err
		}
		if pc, err = net.ListenPacket("udp", ln.Addr().String()); err == nil {
			return ln, pc, nil
		}
		ln.Close()
	}
	return nil, nil, err
}

// Close stops the server.
func (s *Server) Close() {
	s.udp.Shutdown()
	s.tcp.Shutdown()
	s.running.Wait() // or the port could still be in use
}

// Add adds resource records in zone-file form, one a line, for example
//
//	example.com. 300 IN TXT "v=spf1 -all"
//
// Each names its owner; indentation does not count. An owner such as *.example.com.
// is a wildcard (RFC 4592). It panics on a line it cannot read: those are the test's
// own.
func (s *Server) Add(lines string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for line := range strings.Lines(lines) {
		b.WriteString(strings.TrimLeft(line, " \t")) // to the parser it means "the owner above"
	}
	zp := dns.NewZoneParser(strings.NewReader(b.String()), ".", "")
	for rr, ok := zp.Next(); ok; rr, ok = zp.Next() {
		name := strings.ToLower(rr.Header().Name)
		s.zone[name] = append(s.zone[name], rr)
		s.count(name, 1)
		s.wild = s.wild || strings.HasPrefix(name, "*.")
	}
	if err := zp.Err(); err != nil {
		panic("dnstest: " + err.Error())
	}
}

// Remove forgets all records of name.
func (s *Server) Remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name = strings.ToLower(dns.Fqdn(name))
	s.count(name, -len(s.zone[name]))
	delete(s.zone, name)
}

// SetInsecure makes answers that contain or deny name, or one below it, come without
// the AD bit. With "." the server is one that does not validate.
func (s *Server) SetInsecure(names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		s.insecure[strings.ToLower(dns.Fqdn(n))] = true
	}
}

// SetSecure takes SetInsecure back.
func (s *Server) SetSecure(names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		delete(s.insecure, strings.ToLower(dns.Fqdn(n)))
	}
}

// SetRcode makes every query for name fail with rcode, such as
// dns.RcodeServerFailure; dns.RcodeSuccess takes that back. A negative rcode
// makes the server not answer at all.
func (s *Server) SetRcode(name string, rcode int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name = strings.ToLower(dns.Fqdn(name))
	if rcode == dns.RcodeSuccess {
		delete(s.fail, name)
		return
	}
	s.fail[name] = rcode
}

// SetDelay makes every answer wait.
func (s *Server) SetDelay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = d
}

// Handle calls h before anything else; if h returns true the query has been
// dealt with. For answers that a well-behaved server would not give.
func (s *Server) Handle(h func(w dns.ResponseWriter, q *dns.Msg) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handler = h
}

// Queries returns the queries so far as "name. TYPE", in order, and forgets them.
func (s *Server) Queries() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queries
	s.queries = nil
	return q
}

func (s *Server) serve(w dns.ResponseWriter, q *dns.Msg) {
	if len(q.Question) != 1 {
		return
	}
	question := q.Question[0]
	name := strings.ToLower(question.Name)

	s.mu.Lock()
	if len(s.queries) < 100000 {
		s.queries = append(s.queries, name+" "+dns.TypeToString[question.Qtype])
	}
	handler, delay := s.handler, s.delay
	rcode, failing := s.fail[name]
	reply := s.answer(q, name)
	s.mu.Unlock()

	if handler != nil && handler(w, q) {
		return
	}
	if delay > 0 {
		time.Sleep(delay)
	}
	if failing {
		if rcode < 0 {
			return
		}
		reply = new(dns.Msg)
		reply.SetRcode(q, rcode)
	}
	if _, overUDP := w.RemoteAddr().(*net.UDPAddr); overUDP {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		reply.Truncate(size)
	}
	w.WriteMsg(reply)
}

// answer follows CNAMEs inside the zone as a resolver would. s.mu is held.
func (s *Server) answer(q *dns.Msg, name string) *dns.Msg {
	qtype := q.Question[0].Qtype
	reply := new(dns.Msg)
	reply.SetReply(q)
	reply.RecursionAvailable = true
	secure := true
	for range 16 {
		secure = secure && !s.insecureAt(name)
		var alias string
		found := false
		records := s.records(name)
		for _, rr := range records {
			switch {
			case rr.Header().Rrtype == qtype || qtype == dns.TypeANY:
				reply.Answer = append(reply.Answer, rr)
				found = true
			case rr.Header().Rrtype == dns.TypeCNAME:
				reply.Answer = append(reply.Answer, rr)
				alias = strings.ToLower(rr.(*dns.CNAME).Target)
			}
		}
		if found || alias == "" {
			if !found {
				s.deny(reply, len(records) > 0 || s.exists(name))
			}
			break
		}
		name = alias
	}
	if opt := q.IsEdns0(); opt != nil {
		reply.SetEdns0(1232, opt.Do())
	}
	reply.AuthenticatedData = secure && (q.AuthenticatedData || q.IsEdns0() != nil && q.IsEdns0().Do())
	return reply
}

// records returns the records at name, or those of the wildcard that stands for it.
func (s *Server) records(name string) []dns.RR {
	if !s.wild || s.exists(name) {
		return s.zone[name]
	}
	for n := name; ; {
		_, parent, ok := strings.Cut(n, ".")
		if !ok || parent == "" {
			return nil
		}
		if wild := s.zone["*."+parent]; wild != nil {
			records := make([]dns.RR, len(wild))
			for i, rr := range wild {
				records[i] = dns.Copy(rr)
				records[i].Header().Name = name
			}
			return records
		}
		if s.exists(parent) {
			return nil // RFC 4592 3.3.1: no wildcard further up
		}
		n = parent
	}
}

// exists says whether there are records at name or anything below it.
func (s *Server) exists(name string) bool { return s.below[name] > 0 }

// count notes that there are n more records at name.
func (s *Server) count(name string, n int) {
	for ok := true; ok && name != ""; _, name, ok = strings.Cut(name, ".") {
		s.below[name] += n
	}
}

// insecureAt says whether name or a name above it is marked insecure.
func (s *Server) insecureAt(name string) bool {
	for n := name; ; {
		if s.insecure[n] {
			return true
		}
		_, rest, _ := strings.Cut(n, ".")
		if rest == "" {
			return s.insecure["."]
		}
		n = rest
	}
}

// deny makes reply say that there are no such records: NODATA if the name exists, else
// NXDOMAIN.
func (s *Server) deny(reply *dns.Msg, exists bool) {
	if !exists {
		reply.Rcode = dns.RcodeNameError
	}
	reply.Ns = append(reply.Ns, soa)
}

var soa, _ = dns.NewRR(". 300 IN SOA ns.test. hostmaster.test. 1 3600 600 86400 60")
