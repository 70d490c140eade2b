package inbound

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-milter"
	"github.com/emersion/go-msgauth/dkim"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ruapost"
	"ruapost/bboltstore"
	"ruapost/internal/lab"
	"ruapost/resolver"
)

// packet is a milter packet, whatever is in it.
func packet(code milter.Code, data string) []byte {
	p := binary.BigEndian.AppendUint32(nil, uint32(1+len(data)))
	return append(append(p, byte(code)), data...)
}

// field is the packet of a header field.
func fieldPacket(line string) []byte {
	name, value, _ := strings.Cut(line, ":")
	return packet(milter.CodeHeader, name+"\x00"+strings.ReplaceAll(value, "\r\n", "\n")+"\x00")
}

// wire is a connection without a client that would send nothing wrong.
type wire struct {
	t testing.TB
	net.Conn
	gone chan struct{} // closed when ServeConn has returned
}

func (r *rig) wire() *wire {
	w := dial(r.t, context.Background(), r.svc)
	r.t.Cleanup(w.hangUp)
	return w
}

// dial connects through memory: whatever is written has been read.
func dial(t testing.TB, ctx context.Context, svc *Service) *wire {
	ours, theirs := net.Pipe()
	w := &wire{t: t, Conn: ours, gone: make(chan struct{})}
	go func() {
		defer close(w.gone)
		svc.ServeConn(ctx, theirs)
	}()
	return w
}

// hangUp ends the connection and waits until nobody serves it.
func (w *wire) hangUp() {
	w.Close()
	<-w.gone
}

func (w *wire) put(packets ...[]byte) {
	w.t.Helper()
	for _, p := range packets {
		if _, err := w.Write(p); err != nil {
			w.t.Fatal(err)
		}
	}
}

// answer returns the next packet from the other side.
func (w *wire) answer() (code byte, data string) {
	w.t.Helper()
	var length uint32
	if err := binary.Read(w, binary.BigEndian, &length); err != nil {
		w.t.Fatal(err)
	}
	p := make([]byte, length)
	if _, err := io.ReadFull(w, p); err != nil {
		w.t.Fatal(err)
	}
	return p[0], string(p[1:])
}

// ask puts a packet and wants Continue for it.
func (w *wire) ask(packets ...[]byte) {
	w.t.Helper()
	w.put(packets...)
	if code, _ := w.answer(); code != byte(milter.ActContinue) {
		w.t.Fatalf("answer %c", code)
	}
}

// sync returns when everything before has been dealt with: DATA is answered and
// means nothing.
func (w *wire) sync() { w.t.Helper(); w.ask(packet(milter.CodeData, "")) }

var (
	optneg    = packet(milter.CodeOptNeg, "\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff")
	connect   = packet(milter.CodeConn, "[192.0.2.1]\x004\x9c\x40192.0.2.1\x00")
	helo      = packet(milter.CodeHelo, "mail.example.com\x00")
	beginMail = packet(milter.CodeMail, "<x@y.example>\x00")
	rcpt      = packet(milter.CodeRcpt, "<bob@receiver.example>\x00")
)

// header sends everything up to the body of a message with this header.
func (w *wire) header(head string) {
	w.t.Helper()
	w.put(optneg)
	w.answer()
	w.ask(connect)
	w.put(helo)
	w.ask(beginMail)
	w.put(rcpt)
	for _, line := range unfold(head) {
		w.put(fieldPacket(line))
	}
	w.put(packet(milter.CodeEOH, ""))
	w.sync()
}

func liveHeap() uint64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// Beyond its header a connection holds at most 256 KiB, whatever its message is like:
// a thousand of them must not take the memory that the rest of the host needs. The
// chunks of a body are 320 KiB in all, so that one that is kept shows.
func TestConnectionMemory(t *testing.T) {
	const conns, most = 4, 256 << 10
	r := newRig(t)
	k := key(t, r, "example.com")
	head, _, _ := strings.Cut(string(sample("alice@example.com")), "\r\n\r\n")
	text := strings.Repeat("A line of no more and no less than seventy-eight characters and its line end.\r\n", 819)
	blanks := func(n int) string { return "Text." + strings.Repeat("\r\n", n/2) }
	canonicalizations := []dkim.Canonicalization{dkim.CanonicalizationRelaxed, dkim.CanonicalizationSimple}
	for name, tc := range map[string]struct {
		signatures int
		chunk      string
	}{
		"no signature":                {0, text},
		"one signature":               {1, text},
		"ten signatures":              {10, text},
		"one signature, blank lines":  {1, blanks(MaxBlankLines - 10)},
		"two signatures, blank lines": {2, blanks(MaxBlankCopies / 2)},
		"ten signatures, blank lines": {10, blanks(MaxBlankCopies / 10)},
		"ten, more blank lines":       {10, blanks(MaxBlankLines - 10)},
	} {
		msg := head + "\r\n\r\nHello.\r\n"
		for i := range tc.signatures {
			msg = string(signAs(t, k, msg, func(o *dkim.SignOptions) {
				o.HeaderCanonicalization, o.BodyCanonicalization = canonicalizations[i%2], canonicalizations[i/2%2]
				o.HeaderKeys = []string{"From", "To", "Subject", "Date", "Message-ID"}
			}))
		}
		signed, _, _ := strings.Cut(msg, "\r\n\r\n")
		wires := make([]*wire, conns)
		before := liveHeap()
		for i := range wires {
			wires[i] = r.wire()
			wires[i].header(signed)
			for range 5 {
				wires[i].put(packet(milter.CodeBody, tc.chunk))
			}
			wires[i].sync()
		}
		each := (int64(liveHeap()) - int64(before)) / conns
		t.Logf("%s: %d KiB", name, each>>10)
		if each > most {
			t.Errorf("%s: %d bytes for a connection", name, each)
		}
		for _, w := range wires {
			w.hangUp()
		}
	}
}

// What a DNS server may do wrong, for one name.
var lies = map[string]func(w dns.ResponseWriter, q *dns.Msg){
	"no answer": func(dns.ResponseWriter, *dns.Msg) {},
	"another ID": func(w dns.ResponseWriter, q *dns.Msg) {
		m := reply(q, q.Question[0].Name+` 60 IN TXT "v=DMARC1; p=none"`)
		m.Id++
		w.WriteMsg(m)
	},
	"another question": func(w dns.ResponseWriter, q *dns.Msg) {
		m := reply(q, q.Question[0].Name+` 60 IN TXT "v=DMARC1; p=none"`)
		m.Question[0].Name = "other.example."
		w.WriteMsg(m)
	},
	"truncated, over TCP as well": func(w dns.ResponseWriter, q *dns.Msg) {
		m := reply(q)
		m.Truncated = true
		w.WriteMsg(m)
	},
	"64 KB of text": func(w dns.ResponseWriter, q *dns.Msg) {
		m := reply(q, q.Question[0].Name+" 60 IN TXT"+strings.Repeat(" "+strings.Repeat("x", 255), 250))
		if w.RemoteAddr().Network() == "udp" {
			m.Answer, m.Truncated = nil, true
		}
		w.WriteMsg(m)
	},
	"loop of aliases": func(w dns.ResponseWriter, q *dns.Msg) {
		w.WriteMsg(reply(q, q.Question[0].Name+" 60 IN CNAME a.example.", "a.example. 60 IN CNAME "+q.Question[0].Name))
	},
	"a hundred aliases": func(w dns.ResponseWriter, q *dns.Msg) {
		rrs := []string{q.Question[0].Name + " 60 IN CNAME 0.example.", `100.example. 60 IN TXT "v=DMARC1; p=none"`}
		for i := range 100 {
			rrs = append(rrs, fmt.Sprintf("%d.example. 60 IN CNAME %d.example.", i, i+1))
		}
		m := reply(q, rrs...)
		if w.RemoteAddr().Network() == "udp" {
			m.Answer, m.Truncated = nil, true
		}
		w.WriteMsg(m)
	},
	"257 records": func(w dns.ResponseWriter, q *dns.Msg) {
		m := reply(q, slices.Repeat([]string{q.Question[0].Name + " 60 IN TXT x"}, 257)...)
		if w.RemoteAddr().Network() == "udp" {
			m.Answer, m.Truncated = nil, true
		}
		w.WriteMsg(m)
	},
	"half a packet": func(w dns.ResponseWriter, q *dns.Msg) {
		wire, _ := reply(q, q.Question[0].Name+" 60 IN TXT x").Pack()
		w.Write(wire[:len(wire)-5])
	},
}

func reply(q *dns.Msg, rrs ...string) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	for _, line := range rrs {
		rr, err := dns.NewRR(line)
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	return m
}

// Whatever DNS does, the message goes on within its budget, and what is not known is a
// temporary error, never a failure (RFC 9989 5.3.6).
func TestLyingDNS(t *testing.T) {
	const budget = time.Second
	for lie, answer := range lies {
		for about, want := range map[string]string{
			"_dmarc.example.com.":          "spf=none",
			"2026._domainkey.example.com.": "dkim=temperror",
			"example.com.":                 "spf=temperror", // of MAIL FROM
		} {
			t.Run(lie+" for "+about, func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				r.svc.Config.Budget, r.svc.Config.Enforce = budget, ruapost.DispositionReject
				k := key(t, r, "example.com")
				r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"`)
				r.dns.Handle(func(w dns.ResponseWriter, q *dns.Msg) bool {
					if q.Question[0].Name != about || q.Question[0].Qtype != dns.TypeTXT {
						return false
					}
					answer(w, q)
					return true
				})
				msg := sample("alice@example.com")
				if strings.Contains(want, "dkim") {
					msg = sign(t, k, msg)
				}
				s := r.connect("192.0.2.1", "mail.example.com")
				began := time.Now()
				res := added(t, s.send("a@example.com", bob, msg)) // fails if the answer is not Continue
				if !strings.Contains(res, want) || !strings.Contains(res, "dmarc=temperror") {
					t.Error(res)
				}
				if d := time.Since(began); d > budget+time.Second {
					t.Errorf("took %s", d)
				}
			})
		}
	}
}

// An answer that comes too late for one message is there for the next.
func TestLateDNS(t *testing.T) {
	r := newRig(t)
	r.svc.Config.Budget = 100 * time.Millisecond
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@example.com"`)
	release := make(chan struct{})
	r.dns.Handle(func(dns.ResponseWriter, *dns.Msg) bool {
		<-release
		return false
	})
	s := r.connect("192.0.2.1", "mail.example.com")
	if res := added(t, s.send("x@y.example", bob, sample("alice@example.com"))); !strings.Contains(res, "spf=temperror") || !strings.Contains(res, "dmarc=temperror") {
		t.Error(res)
	}
	close(release)
	r.svc.Config.Budget = 0
	if res := added(t, s.send("x@y.example", bob, sample("alice@example.com"))); !strings.Contains(res, "spf=none") || !strings.Contains(res, "dmarc=fail") {
		t.Error(res)
	}
}

// Records are the domain owner's, and may hold any octets. None that are no text leave
// this program.
func TestHostileRecords(t *testing.T) {
	const policy, author = `_dmarc.example.com. 300 IN TXT `, `example.com. 300 IN TXT `
	const good = policy + `"v=DMARC1; p=reject; rua=mailto:dmarc@example.com"`
	many := func(owner string, n int) string { return strings.Repeat(owner+"junk\n", n) }
	for name, tc := range map[string]struct{ zone, want string }{
		"as it should be":             {good, `dmarc=fail reason="disposition none: local_policy (policy is not enforced here)" header.from=example.com policy.dmarc=reject`},
		"NUL at the end":              {policy + `"v=DMARC1; p=reject; rua=mailto:dmarc@example.com\000"`, `dmarc=fail reason="disposition none: local_policy (policy is not enforced here)" header.from=example.com policy.dmarc=reject`},
		"NUL in a tag":                {policy + `"v=DMARC1; p=rej\000ect"`, "dmarc=permerror header.from=example.com"},
		"control characters":          {policy + `"v=DMARC1; p=reject; sp=\013\010; rua=mailto:a\010b@example.com"`, "dmarc=permerror header.from=example.com"},
		"octets beyond ASCII":         {policy + `"v=DMARC1; p=reject; x=\255\192; rua=mailto:\228@example.com"`, `dmarc=fail reason="disposition none: local_policy (policy is not enforced here)" header.from=example.com policy.dmarc=reject`},
		"255 other records":           {many(policy, 255) + good, `dmarc=fail reason="disposition none: local_policy (policy is not enforced here)" header.from=example.com policy.dmarc=reject`},
		"256 other records":           {many(policy, 256) + good, "dmarc=temperror header.from=example.com"},
		"two records":                 {good + "\n" + policy + `"v=DMARC1; p=none"`, "dmarc=none header.from=example.com"},
		"empty strings around it":     {policy + `"" "v=DMARC1; p=reject; " "" "rua=mailto:dmarc@example.com" ""`, `dmarc=fail reason="disposition none: local_policy (policy is not enforced here)" header.from=example.com policy.dmarc=reject`},
		"an empty record":             {policy + `""`, "dmarc=none header.from=example.com"},
		"an empty record beside it":   {policy + `""` + "\n" + good, `dmarc=fail reason="disposition none: local_policy (policy is not enforced here)" header.from=example.com policy.dmarc=reject`},
		"SPF, NUL":                    {good + "\n" + author + `"v=spf1 ip4:192.0.2.1\000 -all"`, "spf=permerror smtp.mailfrom=example.com; dkim=none; dmarc=fail"},
		"SPF, octets beyond ASCII":    {good + "\n" + author + `"v=spf1 include:\228.example -all"`, "spf=permerror smtp.mailfrom=example.com; dkim=none; dmarc=fail"},
		"SPF, 255 other records":      {many(author, 255) + good + "\n" + author + `"v=spf1 ip4:192.0.2.1 -all"`, "spf=pass smtp.mailfrom=example.com; dkim=none; dmarc=pass"},
		"SPF, an empty record":        {good + "\n" + author + `""`, "spf=none smtp.mailfrom=example.com; dkim=none; dmarc=fail"},
		"DKIM, NUL in the key record": {good + "\n" + `2026._domainkey.example.com. 300 IN TXT "v=DKIM1; k=ed25519; p=\000"`, "dkim=permerror header.d=example.com"},
		"DKIM, two key records":       {good + "\n" + `2026._domainkey.example.com. 300 IN TXT "v=DKIM1; p="` + "\n" + `2026._domainkey.example.com. 300 IN TXT "v=DKIM1; p="`, "dkim=permerror header.d=example.com"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			k, err := lab.NewEd25519Key("example.com", "2026")
			if err != nil {
				t.Fatal(err)
			}
			r.dns.Add(tc.zone)
			s := r.connect("192.0.2.1", "mail.example.com")
			msg := sample("alice@example.com")
			if strings.Contains(tc.zone, "_domainkey") {
				msg = sign(t, k, msg)
			}
			mods := s.send("a@example.com", bob, msg)
			if res := added(t, mods); !strings.Contains(res, tc.want) {
				t.Errorf("%s; want %s", res, tc.want)
			}
			recorded, err := json.Marshal(r.take())
			if err != nil {
				t.Fatal(err)
			}
			out := mods[0].HeaderValue + string(recorded)
			if strings.ContainsFunc(out, func(c rune) bool { return c < ' ' && !strings.ContainsRune("\t\n", c) || c > '~' }) || strings.Contains(out, `\u00`) {
				t.Errorf("not all text: %q", out)
			}
		})
	}
}

const rejecting = `_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@example.com"`

// onDisk returns how many evaluations of example.com a store has on disk.
func onDisk(t *testing.T, store *bboltstore.Store) (total uint64) {
	t.Helper()
	groups, err := store.Groups(t.Context(), time.Now().Add(48*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		total += uint64(g.Total)
	}
	return total
}

func openStore(t *testing.T, path string) *bboltstore.Store {
	t.Helper()
	store, err := bboltstore.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

// lockStore keeps everybody from the store until unlock is called.
func lockStore(t *testing.T, path string) (unlock func()) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return func() { f.Close() }
}

// countLate returns how many evaluations were late since it was made.
func countLate() func() float64 {
	before := testutil.ToFloat64(recordLate)
	return func() float64 { return testutil.ToFloat64(recordLate) - before }
}

// What the store is in want of is waited for no longer than RecordTimeout, and recorded
// when it is there again.
func TestStoreFaults(t *testing.T) {
	for name, fault := range map[string]func(t *testing.T, path string) (mend func()){
		"another process has the file": func(t *testing.T, path string) func() { return lockStore(t, path) },
		"another process has the turn": func(t *testing.T, path string) func() {
			defer lockStore(t, path)() // when the store's own turn is over
			return lockStore(t, path+".lock")
		},
		"the folder is gone": func(t *testing.T, path string) func() {
			defer lockStore(t, path)()
			if err := os.Rename(filepath.Dir(path), filepath.Dir(path)+".gone"); err != nil {
				t.Fatal(err)
			}
			return func() { os.Rename(filepath.Dir(path)+".gone", filepath.Dir(path)) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.dns.Add(rejecting)
			path := filepath.Join(t.TempDir(), "store", "db")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			store := openStore(t, path)
			r.svc.Recorder = store
			s := r.connect("192.0.2.1", "mail.example.com")
			r.svc.Config.RecordTimeout = time.Minute
			s.send("x@y.example", bob, sample("alice@example.com"))
			r.svc.Config.RecordTimeout = 20 * time.Millisecond

			mend, counted := fault(t, path), countLate()
			added(t, s.send("x@y.example", bob, sample("alice@example.com"))) // while nothing is mended
			if n := counted(); n != 1 {
				t.Errorf("%v counted as late", n)
			}
			mend()
			if n := onDisk(t, store); n != 2 {
				t.Errorf("%d on disk", n)
			}
		})
	}
}

// A store whose queue is full drops at once what mail would else have to wait for.
func TestStoreQueueFull(t *testing.T) {
	r := newRig(t)
	r.dns.Add(rejecting)
	path := filepath.Join(t.TempDir(), "db")
	store := openStore(t, path)
	unlock := lockStore(t, path)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for i := 0; ; i++ {
		e := &ruapost.Evaluation{Time: time.Now(), Policy: ruapost.DMARCPolicy{Domain: fmt.Sprintf("d%d.example", i)}}
		if errors.Is(store.RecordEvaluation(ended, e), bboltstore.ErrQueueFull) {
			break
		} else if i > bboltstore.MaxQueue {
			t.Fatal("the queue has no end")
		}
	}
	r.svc.Recorder, r.svc.Config.RecordTimeout = store, time.Hour
	counted := countLate()
	added(t, r.connect("192.0.2.1", "mail.example.com").send("x@y.example", bob, sample("alice@example.com")))
	if n := counted(); n != 1 {
		t.Errorf("%v counted as late", n)
	}
	unlock()
}

// The disk is full: a limit on the size of files in a process of its own.
func TestStoreDiskFull(t *testing.T) {
	const inside = "INBOUND_TEST_DISK_FULL"
	if os.Getenv(inside) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestStoreDiskFull$")
		cmd.Env = append(os.Environ(), inside+"=yes")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(syscall.SIGXFSZ)
	r := newRig(t)
	r.dns.Add(rejecting)
	store := openStore(t, filepath.Join(t.TempDir(), "db"))
	r.svc.Recorder, r.svc.Config.RecordTimeout = store, 20*time.Millisecond
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 0, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	counted := countLate()
	added(t, r.connect("192.0.2.1", "mail.example.com").send("x@y.example", bob, sample("alice@example.com")))
	if n := counted(); n != 1 {
		t.Errorf("%v counted as late", n)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if n := onDisk(t, store); n != 1 {
		t.Errorf("%d on disk", n)
	}
}

// script returns the packets of a whole session with one message.
func script(msg []byte) [][]byte {
	head, body, _ := strings.Cut(string(msg), "\r\n\r\n")
	packets := [][]byte{optneg, connect, helo, packet(milter.CodeMacro, "M{auth_type}\x00\x00"), beginMail, rcpt}
	for _, line := range unfold(head) {
		packets = append(packets, fieldPacket(line))
	}
	packets = append(packets, packet(milter.CodeMacro, "Ni\x004Xyz\x00"), packet(milter.CodeEOH, ""))
	for chunk := range slices.Chunk([]byte(body), milter.MaxBodyChunk) {
		packets = append(packets, packet(milter.CodeBody, string(chunk)))
	}
	return append(packets, packet(milter.CodeEOB, ""))
}

// drain reads whatever the other side says, and counts the packets by their code.
func (w *wire) drain() (answers func() map[byte]int) {
	codes := map[byte]int{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := bufio.NewReader(w)
		var length uint32
		for binary.Read(r, binary.BigEndian, &length) == nil {
			code, err := r.ReadByte()
			if _, err2 := r.Discard(int(length) - 1); err != nil || err2 != nil {
				return
			}
			codes[code]++
		}
	}()
	return func() map[byte]int {
		w.hangUp()
		<-done
		return codes
	}
}

// cutAfter sends whole packets and n octets of the next.
func (r *rig) cutAfter(packets [][]byte, whole, n int) {
	w := dial(r.t, context.Background(), r.svc)
	defer w.hangUp()
	for _, p := range packets[:whole] {
		w.put(p)
		if strings.IndexByte("OCM", p[4]) >= 0 {
			w.answer()
		}
	}
	w.put(packets[whole][:n])
}

// quiet keeps the log from being flooded with what go-milter says of each cut.
func quiet(t testing.TB) {
	log.SetOutput(io.Discard)
	t.Cleanup(func() { log.SetOutput(os.Stderr) })
}

// A connection that is cut after whatever octet leaves nothing behind: no record, no
// goroutine, no memory.
func TestCutAnywhere(t *testing.T) {
	quiet(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("rig", func(t *testing.T) {
		r := newRig(t)
		r.dns.Add(rejecting)
		k := key(t, r, "example.com")
		packets := script(sign(t, k, sign(t, k, sample("alice@example.com"))))
		r.cutAfter(packets, 0, 0)
		before := liveHeap()
		for i, p := range packets {
			for n := range p {
				r.cutAfter(packets, i, n)
			}
		}
		if got := r.take(); len(got) != 0 {
			t.Errorf("recorded %+v", got)
		}
		// Of each of its ends a net.Pipe leaves the timers of its deadlines.
		if now := liveHeap(); now > before+4<<20 {
			t.Errorf("%d bytes more than before", now-before)
		}
	})
}

// A connection that is gone when it is to be answered: Postfix decides what becomes of
// the message, and will come again with it or not.
func TestCutAtTheAnswer(t *testing.T) {
	r := newRig(t)
	r.dns.Add(rejecting)
	w := r.wire()
	w.put(optneg)
	w.answer()
	w.ask(connect)
	w.put(helo)
	w.ask(beginMail)
	w.put(script(sample("alice@example.com"))[5:]...)
	w.hangUp()
	if got := r.take(); len(got) != 0 {
		t.Errorf("recorded %+v", got)
	}
}

// Told to stop between a judgement and its answer, the service still gives the answer:
// what it has recorded would else come again.
func TestStopAtTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		w := dial(t, ctx, &Service{Config: Config{AuthservID: us}, Resolver: silent{}})
		w.put(optneg)
		w.answer()
		w.ask(connect)
		w.put(helo)
		w.ask(beginMail)
		w.put(script(sample("alice@example.com"))[5:]...)
		if code, _ := w.answer(); code != byte(milter.ActInsertHeader) {
			t.Fatalf("answer %c", code)
		}
		synctest.Wait() // the answer waits to be read
		stop()
		synctest.Wait()
		if code, _ := w.answer(); code != byte(milter.ActContinue) {
			t.Fatalf("answer %c", code)
		}
		<-w.gone
	})
}

// Whatever a peer sends, the connection ends or goes on, with memory that is bounded.
// After those that go on a message is judged as ever.
func TestProtocolFaults(t *testing.T) {
	quiet(t)
	r := newRig(t)
	r.dns.Add(rejecting)
	good := script(sample("alice@example.com"))
	begun := slices.Concat(good[:len(good)-2]...) // a message without body and end
	raw := func(s string) []byte { return []byte(s) }
	p := packet
	for name, tc := range map[string]struct {
		sent     []byte
		ends     bool
		recorded int
	}{
		"4 GiB":                        {sent: raw("\xff\xff\xff\xffB"), ends: true},
		"2 GiB":                        {sent: raw("\x80\x00\x00\x00B"), ends: true},
		"1 MiB and an octet":           {sent: raw("\x00\x10\x00\x01B"), ends: true},
		"4 GiB inside a message":       {sent: append(slices.Clone(begun), raw("\xff\xff\xff\xffB")...), ends: true},
		"length 0":                     {sent: raw("\x00\x00\x00\x00"), ends: true},
		"an unknown command":           {sent: p('x', "abc"), ends: true},
		"a command of no letter":       {sent: p(0, ""), ends: true},
		"quit for another connection":  {sent: p(milter.CodeQuitNewConn, ""), ends: true},
		"quit":                         {sent: p(milter.CodeQuit, ""), ends: true},
		"quit inside a message":        {sent: append(slices.Clone(begun), p(milter.CodeQuit, "")...), ends: true},
		"connect, empty":               {sent: p(milter.CodeConn, ""), ends: true},
		"connect, no family":           {sent: p(milter.CodeConn, "host\x00"), ends: true},
		"connect, no port":             {sent: p(milter.CodeConn, "host\x004")},
		"connect, no address":          {sent: p(milter.CodeConn, "host\x004\x00\x19")},
		"connect, unknown family":      {sent: p(milter.CodeConn, "host\x00?")},
		"connect, address of no form":  {sent: p(milter.CodeConn, "host\x006\x00\x19IPv6:::::1\x00")},
		"HELO, empty":                  {sent: p(milter.CodeHelo, "")},
		"HELO of 1 MiB":                {sent: p(milter.CodeHelo, strings.Repeat("\xff", 1<<20-1))},
		"body before MAIL":             {sent: p(milter.CodeBody, "Hello.")},
		"body, empty":                  {sent: append(slices.Clone(begun), p(milter.CodeBody, "")...)},
		"body of 1 MiB":                {sent: append(slices.Clone(begun), p(milter.CodeBody, strings.Repeat("\r", 1<<20-1))...)},
		"field before MAIL":            {sent: p(milter.CodeHeader, "From\x00a@example.com\x00")},
		"field, empty":                 {sent: append(slices.Concat(good[:6]...), p(milter.CodeHeader, "")...)},
		"field, no NUL":                {sent: append(slices.Concat(good[:6]...), p(milter.CodeHeader, "From")...)},
		"field, three strings":         {sent: append(slices.Concat(good[:6]...), p(milter.CodeHeader, "From\x00a\x00b\x00")...)},
		"field, no name":               {sent: append(slices.Concat(good[:6]...), p(milter.CodeHeader, "\x00a\x00")...)},
		"field after the body":         {sent: append(slices.Clone(begun), slices.Concat(p(milter.CodeBody, "x"), p(milter.CodeHeader, "From\x00a@b.example\x00"))...)},
		"end of header before MAIL":    {sent: p(milter.CodeEOH, "")},
		"end of header twice":          {sent: append(slices.Clone(begun), p(milter.CodeEOH, "")...)},
		"recipient before MAIL":        {sent: rcpt},
		"end before MAIL":              {sent: p(milter.CodeEOB, "")},
		"end without a header":         {sent: slices.Concat(connect, beginMail, p(milter.CodeEOB, ""))},
		"end twice":                    {sent: slices.Concat(begun, p(milter.CodeEOB, ""), p(milter.CodeEOB, "")), recorded: 1},
		"MAIL, empty":                  {sent: slices.Concat(connect, p(milter.CodeMail, ""))},
		"MAIL twice":                   {sent: slices.Concat(begun, beginMail)},
		"abort before all":             {sent: p(milter.CodeAbort, "")},
		"abort twice inside a message": {sent: slices.Concat(begun, p(milter.CodeAbort, ""), p(milter.CodeAbort, ""))},
		"macros for nothing":           {sent: p(milter.CodeMacro, "?{x}\x00y\x00")},
		"macros, a name alone":         {sent: p(milter.CodeMacro, "M{x}")},
		"macros, NULs alone":           {sent: p(milter.CodeMacro, "M\x00\x00\x00")},
		"macros, empty":                {sent: p(milter.CodeMacro, ""), ends: true},
		"negotiation twice":            {sent: slices.Concat(optneg, optneg)},
		"negotiation inside a message": {sent: append(slices.Clone(begun), optneg...)},
		"negotiation, empty":           {sent: p(milter.CodeOptNeg, "")},
		"negotiation of version 1":     {sent: p(milter.CodeOptNeg, "\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00")},
		"no negotiation":               {sent: connect},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		w := r.wire()
		answers := w.drain()
		// The other side may have ended before it has read all.
		w.Write(tc.sent)
		want := tc.recorded
		if tc.ends {
			<-w.gone
		} else {
			w.put(good...)
			w.put(packet(milter.CodeQuit, ""))
			want++
		}
		<-w.gone
		got := answers()
		runtime.ReadMemStats(&after)
		if recorded := len(r.take()); recorded != want || got[byte(milter.ActInsertHeader)] < want {
			t.Errorf("%s: %d recorded of %d, answers %v", name, recorded, want, got)
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 16<<20 {
			t.Errorf("%s: took %d bytes", name, grown)
		}
	}
}

// Messages of absurd sizes and forms are judged as others, or not at all, in bounded
// memory beside the header, and go on.
func TestAbsurdMessages(t *testing.T) {
	r := newRig(t)
	k := key(t, r, "example.com")
	var inside uint64
	r.svc.Now = func() time.Time {
		inside = liveHeap()
		return time.Now()
	}
	head := strings.TrimSuffix(string(sample("alice@example.com")), "\r\n\r\nHello.\r\n\r\nBye.\r\n")
	const pass, tooLarge = "dkim=pass header.d=example.com", `dkim=policy reason="header too large"`
	for name, tc := range map[string]struct{ top, body, want string }{
		"200,000 fields":             {strings.Repeat("X:\r\n", 200_000), "x", tooLarge},
		"15,000 fields":              {strings.Repeat("X:\r\n", 15_000), "x", `dkim=policy reason="too many header fields or folds"`},
		"a field of almost 1 MiB":    {"X: " + strings.Repeat("x", 1<<20-2000) + "\r\n", "x", pass},
		"a field of more":            {"X: " + strings.Repeat("x", 1<<20-10) + "\r\n", "x", tooLarge},
		"a header of 10 MB":          {strings.Repeat("X: "+strings.Repeat("x", 100_000)+"\r\n", 100), "x", tooLarge},
		"a million blank lines":      {"", strings.Repeat("\r\n", 1_000_000) + "x", `dkim=policy reason="too many blank lines in the body"`},
		"a million at the end":       {"", "x" + strings.Repeat("\r\n", 1_000_000), pass},
		"a body without line ends":   {"", strings.Repeat("x", 4<<20), pass},
		"lines that end in CR":       {"", strings.Repeat("A line.\r", 1<<16), pass},
		"lines that end in LF":       {"", strings.Repeat("A line.\n", 1<<16), pass},
		"CR alone":                   {"", strings.Repeat("\r", 1<<20), `dkim=policy reason="too many blank lines in the body"`},
		"NUL alone":                  {"", strings.Repeat("\x00", 1<<18), pass},
		"no body":                    {"", "", pass},
		"a body that is a line end":  {"", "\r\n", pass},
		"a body that is a lone CR":   {"", "\r", pass},
		"a body that is a blank, LF": {"", " \n", pass},
	} {
		// Signing line ends in numbers takes longer than all else here, and those at the end
		// do not count (RFC 6376 3.4.3).
		body := strings.TrimRight(tc.body, "\r\n")
		msg := append([]byte(tc.top), sign(t, k, []byte(head+"\r\n\r\n"+body))...)
		msg = append(msg, tc.body[len(body):]...)
		sent := slices.Concat(script(msg)[5:]...)
		before := liveHeap()
		w := r.wire()
		w.put(optneg)
		w.answer()
		w.ask(connect)
		w.put(helo)
		w.ask(beginMail)
		w.put(sent)
		if code, data := w.answer(); code != byte(milter.ActInsertHeader) || !strings.Contains(strings.Join(strings.Fields(data), " "), tc.want) {
			t.Errorf("%s: answer %c %q", name, code, data)
		}
		w.hangUp()
		if inside > before+4*MaxHeader {
			t.Errorf("%s: %d bytes", name, inside-before)
		}
		runtime.KeepAlive(sent)
	}
}

// both records in memory and in a store.
type both struct {
	*rig
	store *bboltstore.Store
}

func (b both) RecordEvaluation(ctx context.Context, e *ruapost.Evaluation) error {
	return errors.Join(b.rig.RecordEvaluation(ctx, e), b.store.RecordEvaluation(ctx, e))
}

// delivery is a message on a connection of its own, and what came of it.
type delivery struct {
	before, after func() // MAIL is answered
	begun         bool   // it was
	answers       int    // to the end of the message
	rejected      bool
}

func (d *delivery) run(conn net.Conn, packets [][]byte) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	read := func() (code byte, err error) {
		var length uint32
		if err := binary.Read(conn, binary.BigEndian, &length); err != nil {
			return 0, err
		}
		p := make([]byte, length)
		_, err = io.ReadFull(conn, p)
		return p[0], err
	}
	for _, p := range packets {
		code := milter.Code(p[4])
		if code == milter.CodeMail {
			d.before()
		}
		if _, err := conn.Write(p); err != nil {
			return
		}
		if code == milter.CodeOptNeg || code == milter.CodeConn || code == milter.CodeMail {
			if _, err := read(); err != nil {
				return
			}
		}
		if code == milter.CodeMail {
			d.begun = true
			d.after()
		}
	}
	for {
		code, err := read()
		switch {
		case err != nil: // the connection has ended
			return
		case code == byte(milter.ActContinue), code == byte(milter.ActReplyCode):
			d.answers++
			d.rejected = code == byte(milter.ActReplyCode)
			conn.Write(packet(milter.CodeQuit, ""))
		}
	}
}

// A thousand connections, each with a message, while the configuration changes all the
// time and then the service is told to stop: each message that was begun gets one answer,
// and what was answered is recorded as it was answered.
func TestStopUnderLoad(t *testing.T) {
	const conns = 1000
	quiet(t)
	r := newRig(t)
	r.dns.Add(rejecting)
	path := filepath.Join(t.TempDir(), "db")
	store := openStore(t, path)
	r.svc.Recorder = both{r, store}
	packets := script(sign(t, key(t, r, "list.example"), sample("alice@example.com")))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	stopped := make(chan struct{})
	var ready, over sync.WaitGroup
	deliveries := make([]delivery, conns)
	for i := range deliveries {
		d := &deliveries[i]
		nothing := func() {}
		d.before, d.after = nothing, nothing
		hold := func() { ready.Done(); <-stopped }
		switch i % 3 {
		case 1:
			ready.Add(1)
			d.after = hold // inside its message
		case 2:
			ready.Add(1)
			d.before = hold
		}
		over.Go(func() {
			w := dial(t, ctx, r.svc)
			d.run(w.Conn, packets)
			<-w.gone
		})
	}
	over.Go(func() {
		cfg := r.svc.Config
		for i := 0; ; i++ {
			select {
			case <-stopped:
				return
			default:
			}
			cfg.Enforce = []ruapost.Disposition{ruapost.DispositionNone, ruapost.DispositionReject}[i%2]
			r.svc.Reload(cfg)
			runtime.Gosched()
		}
	})
	ready.Wait()
	stop()
	close(stopped)
	over.Wait()

	answered, rejected := 0, 0
	for i, d := range deliveries {
		if d.begun != (d.answers == 1) || i%3 == 1 && !d.begun {
			t.Errorf("connection %d: begun %v, %d answers", i, d.begun, d.answers)
		}
		answered += d.answers
		if d.rejected {
			rejected++
		}
	}
	t.Logf("%d answered, %d rejected", answered, rejected)
	recorded := r.take()
	asRejected := 0
	for _, e := range recorded {
		if e.Result.Disposition == ruapost.DispositionReject {
			asRejected++
		}
	}
	if len(recorded) != answered || asRejected != rejected {
		t.Errorf("%d answered, %d of them rejected; recorded %d and %d", answered, rejected, len(recorded), asRejected)
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
	if n := onDisk(t, openStore(t, path)); n != uint64(answered) {
		t.Errorf("%d answered, %d on disk", answered, n)
	}
}

// spy is a log that looks for panics, which go-milter catches.
type spy struct{ panicked atomic.Bool }

func (s *spy) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("panic")) {
		s.panicked.Store(true)
	}
	return len(p), nil
}

// Packets in any order, with anything in them, and what is no packet.
func FuzzServeConn(f *testing.F) {
	const codes = "OCDHMRLNBEATQK\x00x"
	steps := func(packets ...[]byte) (data []byte) {
		for _, p := range packets {
			i := strings.IndexByte(codes, p[4])
			data = append(data, byte(i), byte(len(p)-5), byte((len(p)-5)>>8))
			data = append(data, p[5:]...)
		}
		return data
	}
	msg := sample("alice@example.com")
	k, err := lab.NewEd25519Key("example.com", "2026")
	if err != nil {
		f.Fatal(err)
	}
	signed, err := k.Sign(msg)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(steps(script(msg)...))
	f.Add(steps(script(signed)...))
	f.Add(steps(script(append([]byte("ARC-Seal: i=1; cv=none\r\nAuthentication-Results: "+us+"; spf=pass\r\n"), signed...))...))
	f.Add([]byte("\x80\x04\x00\xff\xff\xff\xff"))

	quiet(f)
	seen := &spy{}
	log.SetOutput(seen)
	res, err := resolver.New(resolver.Config{Servers: []string{"127.0.0.1:1"}}) // nobody is there
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(res.Close)
	svc := &Service{Config: Config{AuthservID: us, TrustedAuthservIDs: []string{"mta.example"}, Budget: time.Second}, Resolver: res}
	faults := testutil.ToFloat64(panics)
	f.Fuzz(func(t *testing.T, data []byte) {
		w := dial(t, t.Context(), svc)
		answers := w.drain()
		for len(data) > 2 {
			op, n := data[0], min(int(data[1])|int(data[2])<<8, len(data)-3)
			p := data[3 : 3+n]
			data = data[3+n:]
			if op < 0x80 {
				p = packet(milter.Code(codes[int(op)%len(codes)]), string(p))
			}
			if _, err := w.Write(p); err != nil {
				break // it has ended the connection
			}
		}
		w.Close()
		select {
		case <-w.gone:
		case <-time.After(10 * time.Second):
			t.Fatal("hangs")
		}
		answers()
		if seen.panicked.Load() || testutil.ToFloat64(panics) != faults {
			t.Error("fault")
		}
		if n := runtime.NumGoroutine(); n > 300 {
			t.Errorf("%d goroutines", n)
		}
	})
}

// A name server that does not answer for SPF costs a signature nothing, however short the
// budget is; nor the other way round.
func TestSilentDNSOfOneMethod(t *testing.T) {
	r := newRig(t)
	r.svc.Config.Budget = 200 * time.Millisecond
	k := key(t, r, "example.com")
	r.dns.Add(`_dmarc.example.com. 300 IN TXT "v=DMARC1; p=reject"
		example.com. 300 IN TXT "v=spf1 ip4:192.0.2.1 -all"`)
	signed := sign(t, k, sample("a@example.com"))
	s := r.connect("192.0.2.1", "mail.example.com")
	for i := range 5 {
		silent := fmt.Sprintf("silent%d.example", i)
		r.dns.SetRcode(silent, -1)
		if res := added(t, s.send("x@"+silent, bob, signed)); !strings.Contains(res, "spf=temperror") || !strings.Contains(res, "dmarc=pass") {
			t.Errorf("SPF silent: %s", res)
		}
		r.dns.SetRcode("s._domainkey."+silent, -1)
		hanging := append([]byte("DKIM-Signature: v=1; a=rsa-sha256; d="+silent+"; s=s; h=from; bh=x; b=x\r\n"), sample("a@example.com")...)
		if res := added(t, s.send("x@example.com", bob, hanging)); !strings.Contains(res, "spf=pass") || !strings.Contains(res, "dmarc=pass") {
			t.Errorf("key silent: %s", res)
		}
	}
}
