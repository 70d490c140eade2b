// Command demo shows the three programs at work without Postfix and without root: it
// starts them on loopback, plays a day of sample mail over the milter protocol, asks
// for TLS policies, sends TLSRPT events as Postfix does, and has the reports mailed
// to a folder. DNS and the MTA-STS policy host are in this process; what they say
// about the domains of the .example top level is in world.go.
//
// It is also the sendmail of the demonstration: "demo sendmail FOLDER …" puts the
// mail on its standard input into the folder.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	var err error
	if len(os.Args) > 2 && os.Args[1] == "sendmail" {
		err = takeMail(os.Args[2], os.Args[len(os.Args)-1])
	} else {
		bin := flag.String("bin", "bin", "folder with the three programs")
		out := flag.String("out", "demo-output", "folder to leave the results in, in the place of earlier ones")
		flag.Parse()
		err = run(*bin, *out, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// takeMail is the demonstration's sendmail.
func takeMail(folder, recipient string) error {
	f, err := os.CreateTemp(folder, strings.ReplaceAll(recipient, "/", "_")+"-*.eml")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, os.Stdin)
	return errors.Join(err, f.Close())
}

// demo is one run.
type demo struct {
	bin, out string // absolute
	scratch  string // store, sockets and configuration; short, for the sockets' sake
	config   string
	log      *os.File
	say      io.Writer
}

func run(bin, out string, say io.Writer) (err error) {
	d := &demo{say: say}
	if d.bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	if d.out, err = filepath.Abs(out); err != nil {
		return err
	}
	// Of an earlier run; what else is there is not ours. The log is written anew.
	for _, dir := range []string{"mails", "decoded"} {
		dir = filepath.Join(d.out, dir)
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
			return err
		}
	}
	if d.scratch, err = os.MkdirTemp("", "ruapost"); err != nil {
		return err
	}
	defer os.RemoveAll(d.scratch)
	if d.log, err = os.Create(filepath.Join(d.out, "programs.log")); err != nil {
		return err
	}
	defer d.log.Close()
	d.config = filepath.Join(d.scratch, "ruapost.toml")

	w, err := newWorld()
	if err != nil {
		return err
	}
	defer w.close()
	if err := d.configure(w); err != nil {
		return err
	}
	return d.play(w)
}

// play is the day.
func (d *demo) play(w *world) error {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	stop, err := d.start(ctx, w)
	if err != nil {
		return err
	}
	d.printf("Three programs on loopback, one store.\n\n")
	d.printf("1. Mail comes in: a day of it, over the milter protocol.\n")
	if err := d.playMail(w); err != nil {
		return err
	}
	d.printf("2. Mail goes out: Postfix asks for TLS policies.\n")
	if err := d.askPolicies(ctx); err != nil {
		return err
	}
	d.printf("3. Postfix tells how TLS went.\n")
	if err := d.sendEvents(); err != nil {
		return err
	}
	// The daemons write what they still have when they stop.
	if err := stop(); err != nil {
		return err
	}
	d.printf("4. ruapost-reporter send --now\n")
	if err := d.command(ctx, w, "reporter", "send", "--now").Run(); err != nil {
		return fmt.Errorf("reporter: %w, see %s", err, d.log.Name())
	}
	list, err := d.command(ctx, w, "reporter", "list").Output()
	if err != nil {
		return fmt.Errorf("reporter list: %w", err)
	}
	d.printf("%s\n", indent(string(list)))
	return d.decode()
}

func (d *demo) printf(format string, args ...any) { fmt.Fprintf(d.say, format, args...) }

func indent(s string) string {
	return "   " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n   ") + "\n"
}

// configure writes the configuration file, which is all that the programs are told.
func (d *demo) configure(w *world) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, dir := range []string{"run", "outbox"} {
		if err := os.Mkdir(filepath.Join(d.scratch, dir), 0o755); err != nil {
			return err
		}
	}
	key, err := w.reporterKey.PEM()
	if err != nil {
		return err
	}
	keyFile := filepath.Join(d.scratch, "dkim.pem")
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(d.caFile(), w.ca.PEM(), 0o644); err != nil {
		return err
	}
	text := fmt.Sprintf(`org_name = "Receiver of the demonstration"
report_domain = "receiver.example"
[store]
path = %q
record_timeout = "5s"
[dns]
servers = [%q]
[milter]
listen = [%q]
authserv_id = "mx.receiver.example"
[tlspolicy]
listen = [%q]
tlsrpt = %q
[reporter]
from = "reports@receiver.example"
sendmail = [%q, "sendmail", %q]
outbox = %q
[dkim]
domain = "receiver.example"
selector = "demo"
key_file = %q
`, filepath.Join(d.scratch, "ruapost.db"), w.dns.Addr,
		"unix:"+d.socket("milter"), "unix:"+d.socket("policy"), "unix:"+d.socket("tlsrpt"),
		self, filepath.Join(d.out, "mails"), filepath.Join(d.scratch, "outbox"), keyFile)
	return os.WriteFile(d.config, []byte(text), 0o644)
}

func (d *demo) socket(name string) string { return filepath.Join(d.scratch, "run", name+".sock") }
func (d *demo) caFile() string            { return filepath.Join(d.scratch, "ca.pem") }

// command returns one of the programs, ready to start.
func (d *demo) command(ctx context.Context, w *world, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "ruapost-"+program), append([]string{"-config", d.config}, args...)...)
	cmd.Env = append(os.Environ(),
		"SSL_CERT_FILE="+d.caFile(), // the policy host's certificates are our own
		// Port 443 belongs to root; a proxy for HTTPS leads to the policy host.
		"HTTPS_PROXY=http://"+w.proxy.Addr().String(), "NO_PROXY=", "no_proxy=",
	)
	cmd.Stderr = d.log
	return cmd
}

// start starts the daemons and returns when their sockets are there, with a function
// that stops them.
func (d *demo) start(ctx context.Context, w *world) (stop func() error, err error) {
	var running []*exec.Cmd
	stop = func() error {
		var errs []error
		for _, cmd := range running {
			errs = append(errs, cmd.Process.Signal(os.Interrupt))
		}
		for _, cmd := range running {
			if err := cmd.Wait(); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w, see programs.log", filepath.Base(cmd.Path), err))
			}
		}
		running = nil
		return errors.Join(errs...)
	}
	for _, program := range []string{"milter", "tlspolicy"} {
		cmd := d.command(ctx, w, program)
		if err := cmd.Start(); err != nil {
			return nil, errors.Join(err, stop())
		}
		running = append(running, cmd)
	}
	for _, name := range []string{"milter", "policy", "tlsrpt"} {
		if err := waitForSocket(ctx, d.socket(name)); err != nil {
			return nil, errors.Join(err, stop())
		}
	}
	return stop, nil
}

// waitForSocket returns when somebody listens on the unix socket at path.
func waitForSocket(ctx context.Context, path string) error {
	for {
		for _, network := range []string{"unix", "unixgram"} {
			if conn, err := net.Dial(network, path); err == nil {
				return conn.Close()
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not appear: %w", filepath.Base(path), ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
