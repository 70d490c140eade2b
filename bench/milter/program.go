package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"ruapost/bench/internal/program"
)

const metricsTime = 10 * time.Second // for the metrics to come

// daemon is a milter under test.
type daemon struct {
	*program.Process
	socket  string
	store   string // its file, empty if it has none
	metrics string // where it serves them, empty if it does not
	sent    int    // messages so far
}

// start starts a milter in the folder dir; l.noop says which. dns is the address of its
// DNS server.
func (b *bench) start(l load, dir, dns string) (p *daemon, err error) {
	p = &daemon{socket: filepath.Join(dir, "milter.sock")}
	var cmd *exec.Cmd
	if l.noop {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cmd = exec.Command(self)
		cmd.Env = append(os.Environ(), noopVariable+"="+p.socket)
	} else {
		p.store = filepath.Join(dir, "ruapost.db")
		// An address of its own on loopback, so that nobody else has the port.
		pid := os.Getpid()
		listen := fmt.Sprintf("127.84.%d.%d:9184", pid>>8&0xff, max(1, pid&0xfe))
		p.metrics = "http://" + listen + "/metrics"
		file := filepath.Join(dir, "ruapost.toml")
		if err := os.WriteFile(file, fmt.Appendf(nil, configuration, p.store, dns, p.socket, receiver, listen), 0o600); err != nil {
			return nil, err
		}
		cmd = exec.Command(b.binary, "-config", file)
	}
	if p.Process, err = program.Start(cmd, filepath.Join(dir, "log")); err != nil {
		return nil, err
	}
	return p, p.Ready(p.answers)
}

// configuration makes the answer to a message wait for the disk.
const configuration = `report_domain = "receiver.example"
[store]
path = %q
record_timeout = "30s"
[dns]
servers = [%q]
[milter]
listen = ["unix:%s"]
authserv_id = %q
[metrics]
listen = "tcp:%s"
`

// answers is whether the milter takes connections and answers for its metrics.
func (p *daemon) answers() error {
	conn, err := net.Dial("unix", p.socket)
	if err != nil {
		return err
	}
	conn.Close()
	if p.metrics != "" {
		_, err = p.measures()
	}
	return err
}

// stop ends the milter as systemd does.
func (p *daemon) stop() error {
	if p.metrics == "" {
		p.Kill() // the one that does nothing has no other end
		return nil
	}
	return p.Stop()
}

// usage is what a milter has used.
type usage struct {
	program.Usage
	goroutines      int   // 0 if it does not say
	heap            int64 // the size at which the garbage collector runs next
	queries         int   // DNS queries
	commits, waited float64
}

// usage reads what the milter has used so far.
func (p *daemon) usage() (u usage, err error) {
	if u.Usage, err = p.Usage(); err != nil || p.metrics == "" {
		return u, err
	}
	m, err := p.measures()
	u.goroutines, u.heap = int(m["go_goroutines"]), int64(m["go_memstats_next_gc_bytes"])
	u.commits, u.waited = m["ruapost_store_commit_duration_seconds_count"], m["ruapost_milter_record_duration_seconds_sum"]
	for name, value := range m {
		if strings.HasPrefix(name, "ruapost_dns_queries_total{") {
			u.queries += int(value)
		}
	}
	return u, err
}

// measures are the milter's metrics by name and labels.
func (p *daemon) measures() (map[string]float64, error) {
	client := http.Client{Timeout: metricsTime, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(p.metrics)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	m := map[string]float64{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			m[name] = n
		}
	}
	return m, lines.Err()
}

// idle waits until the milter has forgotten its connections.
func (p *daemon) idle(ctx context.Context) error {
	for p.metrics != "" {
		m, err := p.measures()
		if err != nil || m[`ruapost_connections{server="milter"}`] == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}
