// Package daemon is what the programs share and what no mail protocol has a part
// in: the start of a program with its flags, configuration, log and signals
// (Main, Command), sockets (Listen, ListenPacket), a loop that accepts
// connections and ends in good order (Server), and metrics (ServeMetrics).
//
// A daemon's main function is
//
//	daemon.Main("ruapost-x", func(ctx context.Context, cfg *config.Config, reloads <-chan *config.Config) error {
//		listeners, err := daemon.Listen("x", cfg.X.Listen)
//		if err != nil {
//			return err
//		}
//		daemon.Ready()
//		server := &daemon.Server{Name: "x", Handle: handle, MaxConns: 1000}
//		server.Serve(ctx, listeners...)
//		return nil
//	})
package daemon

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"

	"ruapost"
	"ruapost/config"
)

// Exit statuses of the programs.
const (
	exitOK    = 0
	exitError = 1  // what the program does failed
	exitUsage = 2  // arguments or configuration are wrong; nothing was begun
	exitRetry = 75 // any of these, for a command that is to be tried again (sysexits.h)
)

// ErrUsage is to be wrapped by errors about a program's arguments.
var ErrUsage = errors.New("usage error")

// ErrFound is to be returned by a command that looks for faults, and has found and
// printed some: the program ends with exit status 1, and logs nothing.
var ErrFound = errors.New("faults were found")

// Run is what a daemon does until ctx ends. The configuration comes once more through
// reloads whenever an administrator has changed it and sent SIGHUP; one with a mistake
// does not come, and the old one stays in force.
type Run func(ctx context.Context, cfg *config.Config, reloads <-chan *config.Config) error

// Main runs a daemon and does not return. It reads the flags and the
// configuration, logs to stderr and calls run, whose context ends on SIGTERM and
// SIGINT; a second signal kills.
//
// The exit status is 0 when run returns nil, or nothing but context.Canceled after a
// signal; 1 when it returns an error; 2 when flags or configuration are wrong, in which
// case run is not called.
func Main(name string, run Run) {
	MainOrCommand(name, "", run, func(_ context.Context, _ *config.Config, args []string) error {
		return fmt.Errorf("%w: unexpected argument %q", ErrUsage, args[0])
	})
}

// MainOrCommand is Main for a daemon that is also a tool for the terminal: if there are
// arguments behind the flags, it is Command.
func MainOrCommand(name, usage string, run Run, command func(ctx context.Context, cfg *config.Config, args []string) error) {
	p := &program{name: name, usage: usage}
	p.run = func(ctx context.Context, cfg *config.Config, args []string) error {
		if len(args) > 0 {
			return command(ctx, cfg, args)
		}
		hangups := make(chan os.Signal, 1)
		signal.Notify(hangups, syscall.SIGHUP)
		defer signal.Stop(hangups)
		reloads := make(chan *config.Config)
		go p.reload(ctx, hangups, reloads)
		return run(ctx, cfg, reloads)
	}
	p.exit()
}

// reload reads the configuration again at each hangup.
func (p *program) reload(ctx context.Context, hangups <-chan os.Signal, reloads chan<- *config.Config) {
	for {
		select {
		case <-hangups:
		case <-ctx.Done():
			return
		}
		notify(daemon.SdNotifyReloading)
		if cfg, err := loadConfig(p.file); err != nil {
			slog.Error("configuration not reloaded, the old one stays in force", "err", err)
		} else {
			select {
			case reloads <- cfg: // run says what it makes of it
			case <-ctx.Done():
				return
			}
		}
		notify(daemon.SdNotifyReady)
	}
}

// Command is Main for a program with arguments; run gets those that follow the
// flags -config and -version. What usage says of them is printed by -help. The
// exit status is also 2 when run's error wraps ErrUsage; with ErrFound it is 1. If the first
// of those arguments is retry, it is 75 in place of any of these: what Postfix runs is tried
// again later then, where others would lose the mail.
func Command(name, usage, retry string, run func(ctx context.Context, cfg *config.Config, args []string) error) {
	p := &program{name: name, usage: usage, retry: retry, run: run}
	p.exit()
}

// program is a program from its flags to its exit status.
type program struct {
	name  string
	usage string
	retry string // the command that makes 75 of all exit statuses but 0
	// retries says that it is that command.
	retries bool
	file    string // of the configuration, empty for the default
	run     func(ctx context.Context, cfg *config.Config, args []string) error
}

// exit runs the program and ends the process.
func (p *program) exit() {
	args := os.Args[1:]
	// Flags that cannot be read say nothing of what was meant.
	p.retries = p.retry != "" && slices.Contains(args, p.retry)
	defer func() {
		if r := recover(); r != nil {
			fmt.Fprintf(os.Stderr, "%s: panic: %v\n%s", p.name, r, debug.Stack())
			os.Exit(p.status(exitUsage)) // as Go does
		}
	}()
	os.Exit(p.status(p.main(args, os.Stdout, os.Stderr)))
}

// status returns the exit status for one of main's.
func (p *program) status(status int) int {
	if p.retries && status != exitOK {
		return exitRetry
	}
	return status
}

func (p *program) main(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet(p.name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintf(stderr, "usage: %s [-config FILE] [-check] [-version] %s\n", p.name, p.usage)
		flags.PrintDefaults()
	}
	flags.StringVar(&p.file, "config", "", "configuration `FILE`; by default "+config.DefaultPath+" if there is one")
	check := flags.Bool("check", false, "check the configuration and exit: 0 if there is no mistake in it, else 2")
	version := flags.Bool("version", false, "print the version and exit")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil: // flags has printed it
		return exitUsage
	}
	p.retries = p.retry != "" && flags.Arg(0) == p.retry
	if *version {
		fmt.Fprintf(stdout, "%s %s (%s)\n", p.name, ruapost.Version, runtime.Version())
		return exitOK
	}
	slog.SetDefault(newLogger(stderr)) // takes what the log package gets, too
	if asksForHelp(flags.Args()) {     // with whatever configuration
		if p.run(context.Background(), config.Default(), flags.Args()) == nil {
			return exitOK
		}
		flags.Usage()
		return exitUsage
	}
	cfg, err := loadConfig(p.file)
	if err != nil {
		// One error a line, each beginning with the file, as editors know to read.
		fmt.Fprintln(stderr, err)
		return exitUsage
	}
	if *check {
		if err := cfg.CheckFiles(); err != nil {
			fmt.Fprintln(stderr, err)
			return exitUsage
		}
		fmt.Fprintln(stdout, "No mistakes found in the configuration.")
		return exitOK
	}
	switch err := p.runUntilSignal(cfg, flags.Args()); {
	case errors.Is(err, ErrUsage):
		fmt.Fprintf(stderr, "%s: %v\n", p.name, err)
		if flags.NArg() == 0 { // else the error says what belongs to its command
			flags.Usage()
		}
		return exitUsage
	case err == ErrFound: // not joined with or wrapped in an error that nobody has told of
		return exitError
	case err != nil:
		slog.Error(p.name+" failed", "err", err)
		return exitError
	}
	return exitOK
}

func (p *program) runUntilSignal(cfg *config.Config, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	told := make(chan struct{})
	unregister := context.AfterFunc(ctx, func() {
		defer close(told)
		slog.Info("stopping", "cause", context.Cause(ctx))
		notify(daemon.SdNotifyStopping)
		stop() // so that the next signal kills
	})
	defer func() { // before stop, which ends ctx as well
		if !unregister() {
			<-told // or the process could end before
		}
	}()
	err := p.run(ctx, cfg, args)
	if ctx.Err() != nil && IsStop(err) {
		return nil
	}
	return err
}

// asksForHelp says whether the arguments are a command and an option for help.
func asksForHelp(args []string) bool {
	return len(args) > 1 && slices.ContainsFunc(args[1:], func(arg string) bool {
		return arg == "-h" || arg == "-help" || arg == "--help"
	})
}

// IsStop says whether err is context.Canceled, wrapped or joined with nothing but
// itself: a fault beside it is a fault.
func IsStop(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return !slices.ContainsFunc(joined.Unwrap(), func(err error) bool { return !IsStop(err) })
	}
	if wrapped := errors.Unwrap(err); wrapped != nil {
		return IsStop(wrapped)
	}
	return err == context.Canceled
}

// loadConfig reads the file, or the default one if none was named. Only the
// default one may be missing.
func loadConfig(file string) (*config.Config, error) {
	cfg, err := config.Load(cmp.Or(file, config.DefaultPath))
	if file == "" && errors.Is(err, fs.ErrNotExist) {
		slog.Info("no configuration file, all keys have their defaults", "file", config.DefaultPath)
		cfg, err = config.Default(), nil
	}
	if err == nil && ruapost.Labels(cfg.ReportDomain) == 1 {
		slog.Warn("report_domain has no dot, reports will hardly be accepted; set it in the configuration file",
			"report_domain", cfg.ReportDomain)
	}
	return cfg, err
}

// Ready tells systemd and the log that the daemon's sockets are open.
func Ready() {
	for _, name := range unusedSockets() {
		slog.Warn("socket passed by systemd is not used; is its FileDescriptorName right?", "name", name)
	}
	slog.Info("ready", "version", ruapost.Version)
	notify(daemon.SdNotifyReady)
}

func notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		slog.Warn("cannot notify systemd", "state", state, "err", err)
	}
}
