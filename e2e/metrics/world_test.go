package metrics

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/emersion/go-milter"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"ruapost/internal/dnstest"
	"ruapost/socketmap"
)

// patience is how long a program may take for what it should do at once.
const patience = 20 * time.Second

// world is the three programs at work, with a name server of their own.
type world struct {
	dir     string
	names   *dnstest.Server
	daemons map[string]*daemon // by name, which is their job
	// scrapes are what Prometheus gets, by its job.
	scrapes map[string]*scrape
}

// scrape is what one target serves.
type scrape struct {
	text     []byte
	families map[string]*family
	samples  []sample
}

// family is a metric as its target describes it.
type family struct {
	kind   string
	labels map[string]map[string]bool // values by name
}

// sample is a line: the name may have one of a histogram's suffixes.
type sample struct {
	name   string
	labels map[string]string
	value  float64
}

type daemon struct {
	cmd     *exec.Cmd
	metrics string        // URL
	log     *bytes.Buffer // to be read when it has ended
	ended   chan error
}

const configuration = `
report_domain = "receiver.example"
[store]
path = "%[1]s/ruapost.db"
[dns]
servers = ["%[2]s"]
[milter]
listen = ["unix:%[1]s/milter.sock"]
[tlspolicy]
listen = ["unix:%[1]s/policy.sock"]
tlsrpt = "unix:%[1]s/tlsrpt.sock"
maillog = ["%[1]s/mail.log"]
[reporter]
sendmail = ["/bin/true"]
outbox = "%[1]s/outbox"
textfile = "%[1]s/ruapost.prom"
[metrics]
listen = "tcp:127.0.0.1:0"
`

// newWorld builds and starts the programs, has each do something, and scrapes them.
func newWorld(ctx context.Context) (w *world, err error) {
	w = &world{daemons: map[string]*daemon{}, scrapes: map[string]*scrape{}}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	// Sockets lie in it, whose paths must be short.
	if w.dir, err = os.MkdirTemp("", "ruapost-metrics-"); err != nil {
		return w, err
	}
	if w.names, err = dnstest.Start("127.0.0.1:0"); err != nil {
		return w, err
	}
	w.names.Add(`
		. 300 IN NS a.root.test.
		_dmarc.shop.example. 300 IN TXT "v=DMARC1; p=reject; rua=mailto:dmarc@shop.example"
		shop.example. 300 IN TXT "v=spf1 ip4:192.0.2.10 -all"
		shop.example. 300 IN MX 10 mx.shop.example.
		mx.shop.example. 300 IN A 192.0.2.11
	`)
	file := filepath.Join(w.dir, "ruapost.toml")
	text := fmt.Sprintf(configuration, w.dir, w.names.Addr)
	if err := errors.Join(os.WriteFile(file, []byte(text), 0o600), os.WriteFile(filepath.Join(w.dir, "mail.log"), nil, 0o600)); err != nil {
		return w, err
	}
	if err := w.build(ctx); err != nil {
		return w, err
	}
	for _, name := range []string{"ruapost-milter", "ruapost-tlspolicy"} {
		if err := w.start(ctx, name, file); err != nil {
			return w, err
		}
	}
	if err := errors.Join(w.sendMessage(), w.ask(ctx)); err != nil {
		return w, err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(w.dir, "ruapost-reporter"), "-config", file, "send", "--now").CombinedOutput()
	if err != nil {
		return w, fmt.Errorf("ruapost-reporter: %w: %s", err, out)
	}
	return w, w.scrapeAll(ctx)
}

func (w *world) close() {
	for _, d := range w.daemons {
		d.cmd.Process.Signal(syscall.SIGTERM)
		<-d.ended
	}
	if w.names != nil {
		w.names.Close()
	}
	os.RemoveAll(w.dir)
}

func (w *world) build(ctx context.Context) error {
	for _, name := range []string{"milter", "tlspolicy", "reporter"} {
		out, err := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(w.dir, "ruapost-"+name), "ruapost/cmd/"+name).CombinedOutput()
		if err != nil {
			return fmt.Errorf("build %s: %w: %s", name, err, out)
		}
	}
	return nil
}

var servingMetrics = regexp.MustCompile(`serving metrics.* address=(\S+)`)

// start starts a daemon and returns when it serves metrics.
func (w *world) start(ctx context.Context, name, config string) error {
	d := &daemon{cmd: exec.CommandContext(ctx, filepath.Join(w.dir, name), "-config", config), log: new(bytes.Buffer), ended: make(chan error, 1)}
	stderr, err := d.cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := d.cmd.Start(); err != nil {
		return err
	}
	address, ready := make(chan string, 1), make(chan struct{}, 1)
	go func() {
		lines := bufio.NewScanner(io.TeeReader(stderr, d.log))
		for lines.Scan() {
			if m := servingMetrics.FindStringSubmatch(lines.Text()); m != nil {
				address <- m[1]
			}
			if strings.Contains(lines.Text(), "msg=ready") {
				ready <- struct{}{}
			}
		}
		d.ended <- d.cmd.Wait()
	}()
	w.daemons[name] = d
	late := time.After(patience)
	for range 2 {
		select {
		case a := <-address:
			d.metrics = "http://" + a + "/metrics"
		case <-ready:
		case err := <-d.ended:
			d.ended <- err
			return fmt.Errorf("%s ended: %w: %s", name, err, d.log)
		case <-late:
			return fmt.Errorf("%s does not serve metrics", name)
		}
	}
	return nil
}

// sendMessage tells the milter of a message.
func (w *world) sendMessage() error {
	session, err := milter.NewClientWithOptions("unix", filepath.Join(w.dir, "milter.sock"), milter.ClientOptions{
		ActionMask: milter.OptAddHeader | milter.OptChangeHeader,
	}).Session()
	if err != nil {
		return err
	}
	defer session.Close()
	steps := []func() (*milter.Action, error){
		func() (*milter.Action, error) {
			return session.Conn("out.shop.example", milter.FamilyInet, 25, "192.0.2.10")
		},
		func() (*milter.Action, error) { return session.Helo("out.shop.example") },
		func() (*milter.Action, error) { return session.Mail("news@shop.example", nil) },
		func() (*milter.Action, error) { return session.Rcpt("bob@receiver.example", nil) },
		func() (*milter.Action, error) { return session.HeaderField("From", "news@shop.example") },
		session.HeaderEnd,
		func() (*milter.Action, error) { return session.BodyChunk([]byte("Hello.\r\n")) },
		func() (*milter.Action, error) { _, a, err := session.End(); return a, err },
	}
	for i, step := range steps {
		if _, err := step(); err != nil {
			return fmt.Errorf("milter, step %d: %w", i, err)
		}
	}
	return nil
}

// ask asks for a policy as Postfix does, and sends a datagram that cannot be read.
func (w *world) ask(ctx context.Context) error {
	policies, err := socketmap.Dial(ctx, "unix", filepath.Join(w.dir, "policy.sock"))
	if err != nil {
		return err
	}
	defer policies.Close()
	if reply, err := policies.Query("QUERY", "shop.example"); err != nil || reply.Status() != socketmap.StatusNotFound {
		return fmt.Errorf("policy of shop.example: %v, %w", reply, err)
	}
	datagrams, err := net.Dial("unixgram", filepath.Join(w.dir, "tlsrpt.sock"))
	if err != nil {
		return err
	}
	defer datagrams.Close()
	_, err = datagrams.Write([]byte("no JSON"))
	return err
}

// shows are what a scrape must have for all that was done to show there.
var shows = map[string][]string{
	"ruapost-milter":    {`ruapost_milter_messages_total{result="pass"} 1`},
	"ruapost-tlspolicy": {"ruapost_dns_validating ", `ruapost_tlsrpt_datagrams_total{result="bad"} 1`},
}

// scrapeAll scrapes all targets.
func (w *world) scrapeAll(ctx context.Context) error {
	for job, d := range w.daemons {
		text, err := d.scrape(ctx, shows[job])
		if err == nil {
			err = w.addScrape(job, text)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", job, err)
		}
	}
	text, err := os.ReadFile(filepath.Join(w.dir, "ruapost.prom"))
	if err != nil {
		return err
	}
	return w.addScrape("node", text)
}

// scrape returns what the daemon serves as soon as these lines, or beginnings, are there.
func (d *daemon) scrape(ctx context.Context, lines []string) ([]byte, error) {
	for late := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		text, err := get(ctx, d.metrics)
		if err != nil {
			return nil, err
		}
		missing := slices.IndexFunc(lines, func(line string) bool { return !bytes.Contains(text, []byte("\n"+line)) })
		if missing < 0 {
			return text, nil
		}
		if time.Now().After(late) {
			return nil, fmt.Errorf("no %q in %s", lines[missing], text)
		}
	}
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// sampleLine is a line of the text format.
var sampleLine = regexp.MustCompile(`^([a-z_]+)(?:\{(.*)\})? (\S+)$`)

func (w *world) addScrape(job string, text []byte) error {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return err
	}
	s := &scrape{text: text, families: map[string]*family{}}
	w.scrapes[job] = s
	for name, f := range families {
		labels := map[string]map[string]bool{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if labels[l.GetName()] == nil {
					labels[l.GetName()] = map[string]bool{}
				}
				labels[l.GetName()][l.GetValue()] = true
			}
		}
		s.families[name] = &family{strings.ToLower(f.GetType().String()), labels}
	}
	for line := range strings.Lines(string(text)) {
		m := sampleLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			return err
		}
		s.samples = append(s.samples, sample{m[1], labelsOf(m[2]), value})
	}
	return nil
}

var labelPair = regexp.MustCompile(`([a-zA-Z_]+)="([^"]*)"`)

func labelsOf(text string) map[string]string {
	labels := map[string]string{}
	for _, pair := range labelPair.FindAllStringSubmatch(text, -1) {
		labels[pair[1]] = pair[2]
	}
	return labels
}
