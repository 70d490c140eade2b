package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"

	"ruapost/check"
	"ruapost/config"
	"ruapost/daemon"
	"ruapost/resolver"
	"ruapost/web"
)

// Bounds of the web server.
const (
	webConnections = 100
	webHeader      = 16 << 10 // octets
	webGrace       = 5 * time.Second
)

func webCommand(args []string) (action, error) {
	var user string
	_, err := parse("web", args, 0, 0, func(flags *flag.FlagSet) { flags.StringVar(&user, "hash", "", "") })
	if user != "" {
		return func(ctx context.Context, _ *tools) error { return hashPassword(ctx, user) }, err
	}
	return needStore(serveWeb), err
}

// hashPassword prints the line of a user for web.password_file. If ctx ends before there is a
// password the terminal shows again what is typed.
func hashPassword(ctx context.Context, user string) error {
	show := hideInput()
	if daemon.IsTerminal(os.Stdin) {
		fmt.Fprintf(os.Stderr, "Password of %s: ", user)
	}
	var line string
	var err error
	read := make(chan struct{})
	go func() {
		defer close(read)
		line, err = web.HashPassword(user, os.Stdin)
	}()
	select {
	case <-read:
		show()
	case <-ctx.Done(): // the read goes on until the process ends
		show()
		return errors.New("no password was given")
	}
	if err != nil {
		return fmt.Errorf("%w: %w", daemon.ErrUsage, err)
	}
	_, err = fmt.Println(line)
	return err
}

// hideInput has the terminal, if there is one, not show what is typed until the function that
// it returns is called.
func hideInput() (show func()) {
	fd := int(os.Stdin.Fd())
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {}
	}
	hidden := *was
	hidden.Lflag &^= unix.ECHO
	if unix.IoctlSetTermios(fd, unix.TCSETS, &hidden) != nil {
		return func() {}
	}
	return func() {
		fmt.Fprintln(os.Stderr)
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, was)
	}
}

// serveWeb serves the pages at web.listen until ctx ends.
func serveWeb(ctx context.Context, t *tools) error {
	w := &t.cfg.Web
	listeners, err := daemon.Listen("web", []config.Listen{w.Listen})
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	pages := web.Config{Reporter: t.reporter, Check: checker(t.cfg), Hosts: w.Hosts}
	if host, _, err := net.SplitHostPort(w.Listen.Address); err == nil {
		pages.Hosts = append([]string{host}, pages.Hosts...)
	}
	if w.PasswordFile != "" {
		pages.Passwords, err = web.LoadPasswords(w.PasswordFile)
	} else {
		pages.ReadOnly, err = isOpen(listeners)
	}
	if err != nil {
		return err
	}
	if pages.ReadOnly {
		slog.Warn("every user of this host can see the pages, and they have no buttons: set web.password_file, or let web.listen be a unix socket")
	}
	daemon.Ready()
	return servePages(ctx, web.New(pages), listeners)
}

// servePages serves until ctx ends, and then what is being answered, but not for long.
func servePages(ctx context.Context, pages http.Handler, listeners []net.Listener) error {
	server := &http.Server{
		Handler:           pages,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      90 * time.Second, // the DNS page takes half a minute
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    webHeader,
		ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	stopped := make(chan error, 1)
	defer context.AfterFunc(ctx, func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), webGrace)
		defer cancel()
		stopped <- errors.Join(server.Shutdown(ending), server.Close())
	})()
	faults := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { faults <- server.Serve(netutil.LimitListener(l, webConnections)) }()
	}
	if err := <-faults; !errors.Is(err, http.ErrServerClosed) {
		return errors.Join(err, server.Close())
	}
	<-stopped // what is cut off then was slow, which is no fault of the program
	return nil
}

// isOpen tells whether all users of this host can reach the listeners. It is an error if
// others can: systemd may have passed another socket than web.listen says.
func isOpen(listeners []net.Listener) (open bool, err error) {
	for _, l := range listeners {
		tcp, ok := l.Addr().(*net.TCPAddr)
		switch {
		case ok && !tcp.IP.IsLoopback():
			err = fmt.Errorf("%w: everybody could see the pages at %s: set web.password_file", daemon.ErrUsage, tcp)
		case ok:
			open = true
		}
	}
	return open, err
}

// checker looks at what check does.
func checker(cfg *config.Config) func(context.Context) ([]check.Finding, []check.Record) {
	return func(ctx context.Context) ([]check.Finding, []check.Record) {
		dns, err := resolver.New(resolver.Config{Servers: cfg.DNS.Servers})
		if err != nil {
			return []check.Finding{{Level: check.Fault, What: err.Error()}}, nil
		}
		defer dns.Close()
		return check.Reporter(ctx, cfg, check.Host{Resolver: dns, SMTP: "localhost:25"})
	}
}
