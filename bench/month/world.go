package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"

	"ruapost"
	"ruapost/bboltstore"
	"ruapost/compose"
	"ruapost/internal/dnstest"
	"ruapost/internal/lab"
	"ruapost/resolver"
)

// Our own names.
const (
	us         = "our.example"
	reportFrom = "reports@" + us
)

// settings say what is played.
type settings struct {
	domains, days, after int
	seed                 uint64
	off                  days // nothing runs here
	timerOff             days // only the reporter does not run
	busy                 int  // the day on which sendmail takes nothing from 1 to 5 o'clock
	ended                int  // the day on which a run is ended in the middle
}

// days are those from the first to the last, counted from 1.
type days struct{ first, last int }

func (d days) has(day int) bool { return d.first <= day && day <= d.last }

// failing is the share of names in the DNS that fail in an hour, in percent.
const failing = 5

// world is everything around the programs, and their files.
type world struct {
	settings
	dir   string
	start time.Time // midnight before the first day
	now   time.Time
	hour  atomic.Int64 // the number of the hour since the start, for the name server
	dns   *dnstest.Server
	res   *resolver.Resolver // of this hour
	// outages are names that fail, with all below them, from an hour to another.
	outages []outage

	store  *bboltstore.Store // the milter's
	signer *compose.Signer

	domains []*domain
	byName  map[string]*domain
	boxes   map[string]*mailbox // by address
	answers []answer            // under way to us
	ledger  *ledger
	// got are the mails that each peer got on the day before and today.
	got map[string][2]int
}

type outage struct {
	name        string
	first, last int64
}

func newWorld(s settings, dir string) (*world, error) {
	w := &world{
		settings: s, dir: dir, start: ruapost.Day(time.Now()).Start,
		byName: map[string]*domain{}, boxes: map[string]*mailbox{}, got: map[string][2]int{},
	}
	w.now = w.start
	w.ledger = newLedger(w)
	var err error
	if w.dns, err = dnstest.Start("127.0.0.1:0"); err != nil {
		return nil, err
	}
	w.dns.Handle(w.fail)
	for _, folder := range []string{"outbox", "spool"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o700); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(w.sendmail(), []byte(sendmail), 0o700); err != nil {
		return nil, err
	}
	if err := w.makeSigner(); err != nil {
		return nil, err
	}
	if w.store, err = bboltstore.Open(filepath.Join(dir, "db")); err != nil {
		return nil, err
	}
	return w, w.populate()
}

func (w *world) close() {
	w.store.Close()
	w.dns.Close()
}

func (w *world) makeSigner() error {
	key, err := lab.NewRSAKey(us, "s1")
	if err != nil {
		return err
	}
	pem, err := key.PEM()
	if err != nil {
		return err
	}
	file := filepath.Join(w.dir, "key.pem")
	if err := os.WriteFile(file, pem, 0o600); err != nil {
		return err
	}
	if w.signer, err = compose.LoadSigner(us, "s1", file); err != nil {
		return err
	}
	line, err := key.ZoneLine()
	if err != nil {
		return err
	}
	w.dns.Add(line)
	return nil
}

// draw returns a number below n that the seed and the words decide on: the same for the
// same words, whatever order things happen in.
func (w *world) draw(n int, words ...any) int {
	h := fnv.New64a()
	fmt.Fprintln(h, append([]any{w.seed}, words...)...)
	sum := h.Sum64()
	return int((sum ^ sum>>29) % uint64(n))
}

// today is the day, counted from 1.
func (w *world) today() int { return w.dayOf(w.now) }

func (w *world) dayOf(t time.Time) int { return int(t.Sub(w.start)/(24*time.Hour)) + 1 }

// fail answers SERVFAIL for those names whose turn it is. The registry's own name, which
// all domains have in common, never fails.
func (w *world) fail(conn mdns.ResponseWriter, q *mdns.Msg) bool {
	name := strings.ToLower(q.Question[0].Name)
	hour := w.hour.Load()
	fails := name != "_dmarc.example." && w.draw(100, "dns", hour, name) < failing
	for _, o := range w.outages {
		fails = fails || strings.HasSuffix(name, o.name+".") && o.first <= hour && hour <= o.last
	}
	if !fails {
		return false
	}
	reply := new(mdns.Msg)
	reply.SetRcode(q, mdns.RcodeServerFailure)
	conn.WriteMsg(reply)
	return true
}

// play plays all hours.
func (w *world) play(ctx context.Context) error {
	for hour := range (w.days + w.after) * 24 {
		w.now = w.start.Add(time.Duration(hour) * time.Hour)
		w.hour.Store(int64(hour))
		if err := w.playHour(ctx); err != nil {
			return fmt.Errorf("day %d, %s: %w", w.today(), w.now.Format("15:04"), err)
		}
	}
	return nil
}

// playHour has mail come in at the hour, answers at 20 past, and lets the reporter run at
// 40 past.
func (w *world) playHour(ctx context.Context) (err error) {
	if w.now.Hour() == 0 {
		w.newDay()
	}
	day := w.today()
	if w.off.has(day) {
		return nil
	}
	// What the resolver remembers is an hour old, or has failed.
	if w.res, err = resolver.New(resolver.Config{Servers: []string{w.dns.Addr}}); err != nil {
		return err
	}
	defer w.res.Close()
	if day <= w.days {
		if err := w.receive(ctx, w.incoming()); err != nil {
			return fmt.Errorf("mail in: %w", err)
		}
		if err := w.sendOwn(ctx); err != nil {
			return fmt.Errorf("mail out: %w", err)
		}
	}
	w.now = w.now.Add(20 * time.Minute)
	if err := w.takeAnswers(ctx); err != nil {
		return fmt.Errorf("bounces: %w", err)
	}
	if err := w.audit(ctx); err != nil {
		return err
	}
	if w.timerOff.has(day) {
		return nil
	}
	w.now = w.now.Add(20 * time.Minute)
	if err := w.report(ctx); err != nil {
		return fmt.Errorf("reporter: %w", err)
	}
	return w.post(ctx)
}

// newDay changes what is to change on this day.
func (w *world) newDay() {
	day := w.today()
	for peer, n := range w.got {
		w.got[peer] = [2]int{n[1], 0}
	}
	for _, d := range w.domains {
		if d.mendedOn == day {
			w.dns.Remove("_dmarc." + d.name)
			d.rua = []*mailbox{w.box("postmaster@"+d.name, live)}
			w.dns.Add(d.record())
		}
	}
}
