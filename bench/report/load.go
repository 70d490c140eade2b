package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"ruapost/bench/internal/program"
	"ruapost/internal/dnstest"
)

// load is what the reporter has to do. The fields are the flags of these names.
type load struct {
	reports, rows int
	perf          string
}

// bench is where loads are run.
type bench struct {
	scratch  string
	reporter string // the program
	sendmail string // what takes the mails
	key      string // the file with the DKIM key
	out      io.Writer
	runs     int // so far
}

// prepare makes what all runs need.
func (b *bench) prepare(ctx context.Context) (err error) {
	if b.reporter == "" {
		if b.reporter, err = program.Build(ctx, b.scratch, "cmd/reporter"); err != nil {
			return err
		}
	}
	if b.sendmail, err = program.Build(ctx, b.scratch, "bench/report/sendmail"); err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	b.key = filepath.Join(b.scratch, "key.pem")
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	return os.WriteFile(b.key, pem.EncodeToMemory(block), 0o600)
}

// configuration holds no mail back.
const configuration = `report_domain = "receiver.example"
[store]
path = %q
[dns]
servers = [%q]
[reporter]
sendmail = [%q, %q]
outbox = %q
spread = "0s"
max_reports_per_day = 0
max_per_destination_domain = 0
[dkim]
domain = "receiver.example"
selector = "s1"
key_file = %q
`

// outcome is what came of a run.
type outcome struct {
	load
	elapsed time.Duration
	used    program.Usage // of the reporter
	own     time.Duration // CPU time of this program meanwhile
	got     mails
}

// filled returns the file of a store with the rows of l.
func (b *bench) filled(ctx context.Context, l load) (string, error) {
	path := filepath.Join(b.scratch, fmt.Sprintf("%dx%d.db", l.reports, l.rows))
	return path, l.fill(ctx, path)
}

// run has a reporter send what is in a copy of the store.
func (b *bench) run(ctx context.Context, l load, store string) (o *outcome, err error) {
	b.runs++
	dir := filepath.Join(b.scratch, fmt.Sprint(b.runs))
	taken := filepath.Join(dir, "mails")
	if err := os.MkdirAll(taken, 0o700); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "ruapost.db")
	if err := copyFile(path, store); err != nil {
		return nil, err
	}
	dns, err := dnstest.Start("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer dns.Close()
	l.publish(dns)
	config := filepath.Join(dir, "ruapost.toml")
	text := fmt.Appendf(nil, configuration, path, dns.Addr, b.sendmail, taken, filepath.Join(dir, "outbox"), b.key)
	if err := os.WriteFile(config, text, 0o600); err != nil {
		return nil, err
	}
	if o, err = b.send(ctx, l, config, filepath.Join(dir, "log")); err != nil {
		return nil, err
	}
	o.got, err = readMails(taken)
	return o, errors.Join(err, o.wrong())
}

// publish lets each domain want its reports itself.
func (l load) publish(dns *dnstest.Server) {
	var zone strings.Builder
	for n := range l.reports {
		fmt.Fprintf(&zone, "_dmarc.%[1]s. 3600 IN TXT \"v=DMARC1; p=reject; rua=mailto:dmarc@%[1]s\"\n", domain(n))
	}
	dns.Add(zone.String())
}

// send measures one run of the reporter.
func (b *bench) send(ctx context.Context, l load, config, log string) (o *outcome, err error) {
	own, began := program.OwnTime(), time.Now()
	p, err := program.Start(exec.Command(b.reporter, "-config", config, "send"), log)
	if err != nil {
		return nil, err
	}
	if l.perf != "" {
		stop, err := p.Profile(ctx, l.perf, b.out)
		if err != nil {
			p.Kill()
			return nil, err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	if err := p.Wait(ctx); err != nil {
		return nil, err
	}
	o = &outcome{load: l, elapsed: time.Since(began), own: program.OwnTime() - own}
	complaints, err := p.Complaints()
	for _, line := range complaints {
		fmt.Fprintln(b.out, line)
	}
	if err != nil {
		return nil, err
	}
	o.used, err = p.Usage()
	return o, err
}

// wrong returns what is not as it should be with the mails.
func (o *outcome) wrong() error {
	want := messages(o.rows)
	for n := range o.reports {
		if got := o.got.messages[recipient(n)]; got != want {
			return fmt.Errorf("%s was reported %d messages of %d", domain(n), got, want)
		}
	}
	if rows := o.reports * o.rows; o.got.rows != rows || len(o.got.messages) != o.reports {
		return fmt.Errorf("%d recipients got %d rows, not %d %d", len(o.got.messages), o.got.rows, o.reports, rows)
	}
	return nil
}

func recipient(n int) string { return "dmarc@" + domain(n) }

func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	// Not that the disk is busy with it while the reporter works.
	return errors.Join(err, dst.Sync(), dst.Close())
}

func megabytes(n int64) float64 { return float64(n) / 1e6 }

// one runs a load and prints what came of it.
func (b *bench) one(ctx context.Context, l load) error {
	store, err := b.filled(ctx, l)
	if err != nil {
		return err
	}
	o, err := b.run(ctx, l, store)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "reports\trows\tmails\tlargest MB\ts\treporter s\tsendmail s\tthis s\tpeak MB\tanonymous MB\t")
	fmt.Fprintf(t, "%d\t%d\t%d\t%.1f\t%.2f\t%.2f\t%.2f\t%.2f\t%.0f\t%.0f\t\n", o.reports, o.rows, o.got.number, megabytes(o.got.largest),
		o.elapsed.Seconds(), o.used.CPU.Seconds(), o.used.Children.Seconds(), o.own.Seconds(), megabytes(o.used.Peak), megabytes(o.used.Anon))
	return t.Flush()
}
