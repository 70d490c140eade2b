package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ruapost"
	"ruapost/bboltstore"
)

// The test program is also the milter that does nothing.
func TestMain(m *testing.M) {
	if socket := os.Getenv(noopVariable); socket != "" {
		fmt.Fprintln(os.Stderr, serveNoop(socket))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// newBench returns a bench with a ruapost-milter.
func newBench(t *testing.T) *bench {
	t.Helper()
	// The sockets' names must be short.
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{scratch: dir, out: t.Output()}
	if err := b.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// small is a load that takes no time.
var small = load{messages: 300, connections: 8, perConnection: 1, size: 4 << 10, domains: 20, ttl: time.Hour, record: true}

// TestRun: each message is an evaluation in the store, and is told as many times as it
// was sent.
func TestRun(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		name     string
		change   func(*load)
		recorded int64
		rows     int64
	}{
		{"a message a connection", func(*load) {}, 320, 320},
		{"several messages", func(l *load) { l.perConnection = 7 }, 320, 0},
		{"two chunks of body", func(l *load) { l.messages, l.size = 40, 100<<10 }, 60, 60},
		{"nothing to record", func(l *load) { l.record = false }, 0, 0},
		{"a milter that does nothing", func(l *load) { l.noop = true }, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := small
			c.change(&l)
			b.out = t.Output()
			o, err := b.run(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			if o.sent != int64(l.messages+l.domains) || o.recorded != c.recorded || c.rows > 0 && o.rows != c.rows {
				t.Errorf("%d sent, %d recorded in %d rows; want %d, %d in %d",
					o.sent, o.recorded, o.rows, l.messages+l.domains, c.recorded, c.rows)
			}
			if len(o.whole) != l.messages || o.whole[0] < o.end[0] || o.end[0] <= 0 {
				t.Errorf("%d times, the least %v and %v", len(o.whole), o.whole[0], o.end[0])
			}
			if o.after.CPU == 0 || o.after.Peak < 1<<20 || (o.after.goroutines == 0) != l.noop {
				t.Errorf("used: %+v", o.after)
			}
			if err := o.print(t.Output()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestOtherVerdicts: a run ends when a message gets another verdict, so that what is
// measured is the whole work.
func TestOtherVerdicts(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		name, record string
		verdict      string
	}{
		{"no key", "s2026._domainkey.d007.example", "dkim=permerror"},
		{"no SPF record", "d007.example", "spf=none"},
		{"no policy", "_dmarc.d007.example", "dmarc=none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, err := newWorld(t.Context(), small)
			if err != nil {
				t.Fatal(err)
			}
			defer w.close()
			w.dns.Remove(c.record)
			_, err = b.runWith(t.Context(), small, w)
			if err == nil || !strings.Contains(err.Error(), "d007.example") || !strings.Contains(err.Error(), c.verdict) {
				t.Errorf("error %v, want one about d007.example and %s", err, c.verdict)
			}
		})
	}
}

// TestComparison: an evaluation that is missing, or one too many, is seen.
func TestComparison(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s, err := bboltstore.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	e := &ruapost.Evaluation{
		Time:   time.Now(),
		Policy: ruapost.DMARCPolicy{Domain: "d000.example"},
		Result: ruapost.DMARCResult{SourceIP: address(0), AlignedSPF: true},
	}
	for range 3 {
		if err := s.RecordEvaluation(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		sent   int64
		record bool
		wrong  bool
	}{{3, true, false}, {4, true, true}, {2, true, true}, {3, false, true}} {
		err := (&counts{sent: c.sent}).compare(path, c.record)
		if (err != nil) != c.wrong {
			t.Errorf("%d sent, recording %v: error %v", c.sent, c.record, err)
		}
	}
}

// TestWire: two messages in a session are, packet for packet, what Postfix 3.10 wrote to
// a milter that wanted what ours does; only the client's port and the queue IDs, which
// nobody can know, and the address of smtpd are this program's.
func TestWire(t *testing.T) {
	const message = "DM{mail_addr}\x00bounce@d000.example\x00{mail_host}\x00d000.example\x00{mail_mailer}\x00smtp\x00|" +
		"M<bounce@d000.example>\x00size=105\x00|" +
		"DR{rcpt_addr}\x00alice@receiver.example\x00{rcpt_host}\x00receiver.example\x00{rcpt_mailer}\x00local\x00|" +
		"R<alice@receiver.example>\x00|" +
		"DLi\x00409E5988824\x00|LFrom\x00 News\n\t<news@d000.example>\x00|" +
		"DLi\x00409E5988824\x00|LSubject\x00  two blanks\x00|" +
		"DLi\x00409E5988824\x00|LX-Tab\x00\tvalue\x00|" +
		"DLi\x00409E5988824\x00|LX-Empty\x00\x00|" +
		"DNi\x00409E5988824\x00|N|" +
		"DBi\x00409E5988824\x00|BOne line.\r\n\r\nAnother.\r\n|" +
		"DEi\x00409E5988824\x00|E|" +
		"A|"
	const want = "O\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff|" +
		"DCj\x00mail.receiver.example\x00{daemon_name}\x00mail.receiver.example\x00{daemon_addr}\x00192.0.2.25\x00" +
		"v\x00Postfix 3.10.13\x00_\x00unknown [198.18.0.1]\x00|" +
		"C[198.18.0.1]\x004\x9b\xf1198.18.0.1\x00|" +
		"DH|Hout1.sender.example\x00|" +
		message + message + "A|Q|"

	mail := "From: News\r\n\t<news@d000.example>\r\nSubject:  two blanks\r\nX-Tab:\tvalue\r\nX-Empty:\r\n\r\n"
	text := "One line.\r\n\r\nAnother.\r\n"
	m, err := parse("d000.example", []byte(mail+text), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	got := listen(t, func(s *session) {
		for range 2 {
			if _, _, err := s.send(m, "409E5988824"); err != nil {
				t.Error(err)
			}
		}
	})
	if packets := strings.Join(split(got), "|") + "|"; packets != want {
		t.Errorf("got\n%q\nwant\n%q", packets, want)
	}
}

// TestPieces: Postfix sends a body in packets of 65,535 octets.
func TestPieces(t *testing.T) {
	text := body(100 << 10)
	m, err := parse("d000.example", slices.Concat([]byte("From: a@d000.example\r\n\r\n"), text), text)
	if err != nil {
		t.Fatal(err)
	}
	got := listen(t, func(s *session) {
		if _, _, err := s.send(m, queueID(1)); err != nil {
			t.Error(err)
		}
	})
	var pieces []string
	for _, packet := range split(got) {
		if rest, ok := strings.CutPrefix(packet, "B"); ok {
			pieces = append(pieces, rest)
		}
	}
	if len(pieces) != 2 || len(pieces[0]) != 65535 || strings.Join(pieces, "") != string(text) {
		t.Errorf("%d pieces of the body", len(pieces))
	}
}

// listen returns what a session writes to the milter that does nothing.
func listen(t *testing.T, talk func(*session)) (said []byte) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	p, err := (&bench{}).start(load{noop: true}, dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	front := filepath.Join(dir, "front")
	l, err := net.Listen("unix", front)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var between sync.WaitGroup
	between.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		to, err := net.Dial("unix", p.socket)
		if err != nil {
			return
		}
		defer to.Close()
		go func() {
			io.Copy(conn, to)
			conn.(*net.UnixConn).CloseWrite()
		}()
		said, _ = io.ReadAll(io.TeeReader(conn, to))
	})
	s, err := openSession(t.Context(), front, netip.MustParseAddr("198.18.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	talk(s)
	if err := s.quit(); err != nil {
		t.Error(err)
	}
	between.Wait()
	return said
}

// split returns the packets without their lengths.
func split(said []byte) (packets []string) {
	for len(said) > 4 {
		n := int(binary.BigEndian.Uint32(said))
		packets = append(packets, string(said[4:4+n]))
		said = said[4+n:]
	}
	return packets
}

func TestCommand(t *testing.T) {
	dir := t.TempDir()
	var out strings.Builder
	common := " -connections 4 -domains 10 -dir " + dir + " -milter " + newBench(t).binary
	args := "-messages 100" + common
	if err := run(t.Context(), strings.Fields(args), &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "110 messages sent, 110 evaluations in the store, 110 different") {
		t.Errorf("no counts:\n%s", &out)
	}
	out.Reset()
	args = "-long 100" + common
	if err := run(t.Context(), strings.Fields(args), &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "| 100 |") || !strings.Contains(out.String(), "110 messages sent, 110 evaluations in the store, 110 different") {
		t.Errorf("no counts, or not all parts:\n%s", &out)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for _, wrong := range []string{"-messages 0", "-connections 0", "-domains 2000", "-size 100", "-ttl 1ms", "-long 5", "-suite -reps 1", "10"} {
		if err := run(t.Context(), strings.Fields(wrong), &out); err == nil {
			t.Errorf("%s: no error", wrong)
		}
	}
}
