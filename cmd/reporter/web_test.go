package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"ruapost/config"
)

// listener returns one that is closed with the test.
func listener(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Without a password nobody beyond this host gets in, whatever socket there is, and its users
// get no buttons.
func TestIsOpen(t *testing.T) {
	unix := listener(t, "unix", filepath.Join(t.TempDir(), "web.sock"))
	loopback, everywhere := listener(t, "tcp", "127.0.0.1:0"), listener(t, "tcp", ":0")
	if open, err := isOpen([]net.Listener{unix}); open || err != nil {
		t.Errorf("a unix socket: %t, %v", open, err)
	}
	if open, err := isOpen([]net.Listener{unix, loopback}); !open || err != nil {
		t.Errorf("loopback: %t, %v", open, err)
	}
	if _, err := isOpen([]net.Listener{loopback, everywhere}); err == nil || !strings.Contains(err.Error(), "set web.password_file") {
		t.Errorf("everywhere: %v", err)
	}
}

// The server has its pages behind a unix socket, and ends with the context.
func TestServePages(t *testing.T) {
	l := listener(t, "unix", filepath.Join(t.TempDir(), "web.sock"))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	pages := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "page") })
	go func() { ended <- servePages(ctx, pages, []net.Listener{l}) }()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.Addr().String())
	}}}
	res, err := client.Get("http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != "page" {
		t.Errorf("%s, %v", body, err)
	}
	res.Body.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := client.Get("http://localhost/"); err == nil {
		t.Error("it still serves")
	}
}

// What cannot be served is told before anything is begun.
func TestServeWebRefuses(t *testing.T) {
	// The default handler must not be put back once another one was there: log would log to
	// itself.
	slog.SetDefault(slog.New(slog.DiscardHandler))
	cfg := config.Default()
	cfg.Web.Listen = config.Listen{Network: "tcp", Address: "127.0.0.1:0"}
	cfg.Web.PasswordFile = filepath.Join(t.TempDir(), "nothing")
	if err := serveWeb(t.Context(), &tools{cfg: cfg}); err == nil || !strings.Contains(err.Error(), "passwords") {
		t.Errorf("no file of passwords: %v", err)
	}
	cfg.Web.Listen, cfg.Web.PasswordFile = config.Listen{Network: "tcp", Address: "0.0.0.0:0"}, ""
	if err := serveWeb(t.Context(), &tools{cfg: cfg}); err == nil || !strings.Contains(err.Error(), "everybody") {
		t.Errorf("everywhere: %v", err)
	}
}
