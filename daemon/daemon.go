// Package daemon is what the programs share and what no mail protocol has a part
// in: the start of a program with its flags, configuration, log and signals
// (Main, Command), sockets (Listen, ListenPacket), a loop that accepts
// connections and ends in good order (Server), and metrics (ServeMetrics).
//
// A daemon's main function is
//
//	daemon.Main("ruapost-x", usage, func(ctx context.Context, cfg *config.Config, reloads <-chan *config.Config) error {
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
	"strings"
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

// Main runs a daemon and does not return. What usage says is printed by -help: its first
// line behind the flags, the rest below them. Main reads the flags and the configuration, logs to stderr and calls run, whose context ends on SIGTERM and
// SIGINT; a second signal kills.
//
// The exit status is 0 when run returns nil, or nothing but context.Canceled after a
// signal; 1 when it returns an error; 2 when flags or configuration are wrong, in which
// case run is not called.
func Main(name, usage string, run Run) {
	MainOrCommand(name, usage, run, func(_ context.Context, _ *config.Config, args []string) error {
		return fmt.Errorf("%w: unexpected argument %q", ErrUsage, args[0])
	})
}

// MainOrCommand is Main for a daemon that is also a tool for the terminal: if there are
// arguments behind the flags, it is Command.
func MainOrCommand(name, usage string, run Run, command func(ctx context.Context, cfg *config.Config, args []string) error) {
	p := &program{name: name, usage: usage, serves: true}
	p.run = func(ctx context.Context, cfg *config.Config, args []string) error {
		if len(args) > 0 {
			return command(ctx, cfg, args)
		}
		hangups := make(chan os.Signal, 1)
		programInfo.WithLabelValues(name, ruapost.Version, runtime.Version()).Set(1)
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
		if cfg, _, err := loadConfig(p.file); err != nil {
			configReloads.WithLabelValues("failed").Inc()
			slog.Error("configuration not reloaded, the old one stays in force", "err", err)
		} else {
			warn(cfg)
			select {
			case reloads <- cfg: // run says what it makes of it
				configReloads.WithLabelValues("ok").Inc()
			case <-ctx.Done():
				return
			}
		}
		notify(daemon.SdNotifyReady)
	}
}

// Command is Main for a program with arguments; run gets those that follow the
// flags. The exit status is also 2 when run's error wraps ErrUsage; with ErrFound it is 1.
// If the first of those arguments is retry, it is 75 in place of any of these: what Postfix
// runs is tried again later then, where others would lose the mail. What goes without the
// configuration file is run even if that has mistakes, with the defaults.
func Command(name, usage, retry string, without func(args []string) bool, run func(ctx context.Context, cfg *config.Config, args []string) error) {
	p := &program{name: name, usage: usage, retry: retry, without: without, run: run}
	p.exit()
}

// program is a program from its flags to its exit status.
type program struct {
	name   string
	usage  string
	serves bool   // without arguments: it is a daemon
	retry  string // the command that makes 75 of all exit statuses but 0
	// retries says that it is that command.
	retries bool
	without func(args []string) bool // what goes without the configuration file; nil if nothing does
	file    string                   // of the configuration, empty for the default
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

// generalHelp is what -help says of the flags that all programs have.
const generalHelp = `  -config FILE  read FILE instead of ` + config.DefaultPath + `
  -check        look for mistakes in the configuration: exit status 0 or 2
  -version      print the version and the commit it was made of`

func (p *program) main(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet(p.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&p.file, "config", "", "")
	check := flags.Bool("check", false, "")
	version := flags.Bool("version", false, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		p.help(stdout)
		return exitOK
	case err != nil:
		return p.misused(stderr, fmt.Errorf("%w: %w%s", ErrUsage, err, p.flagAdvice(err, flags)))
	}
	args = flags.Args()
	p.retries = p.retry != "" && flags.Arg(0) == p.retry
	switch {
	case *version, flags.Arg(0) == "version" && len(args) == 1:
		fmt.Fprintf(stdout, "%s %s\n", p.name, buildVersion(buildInfo()))
		return exitOK
	case flags.Arg(0) == "help" && len(args) == 1:
		p.help(stdout)
		return exitOK
	case flags.Arg(0) == "help":
		args = []string{args[1], "-help"}
	}
	slog.SetDefault(newLogger(stderr)) // takes what the log package gets, too
	if asksForHelp(args) {             // with whatever configuration
		if err := p.run(context.Background(), config.Default(), args); err != nil {
			return p.misused(stderr, err)
		}
		return exitOK
	}
	if p.without != nil && !*check && p.without(args) {
		cfg := config.Default()
		cfg.File = cmp.Or(p.file, defaultPath)
		return p.carryOut(cfg, args, stderr)
	}
	cfg, found, err := loadConfig(p.file)
	if err != nil {
		// One error a line, each beginning with the file, as editors know to read.
		fmt.Fprintln(stderr, err)
		if errors.Is(err, fs.ErrPermission) {
			fmt.Fprintln(stderr, "Run it as root or with 'sudo -u ruapost', and let that user read the file.")
		}
		return exitUsage
	}
	if *check || len(args) == 0 || !IsTerminal(stderr) { // a person who looks at something need not read it each time
		warn(cfg)
	}
	if *check {
		return checkConfig(cfg, found, stdout, stderr)
	}
	first := !found && len(args) == 0
	if first && p.serves {
		for _, step := range firstSteps {
			slog.Info(step)
		}
	}
	status := p.carryOut(cfg, args, stderr)
	if first && !p.serves {
		fmt.Fprintf(stderr, "\n%s\n", strings.Join(firstSteps, "\n"))
	}
	return status
}

// carryOut runs the program, tells what failed, and returns the exit status.
func (p *program) carryOut(cfg *config.Config, args []string, stderr io.Writer) int {
	switch err := p.runUntilSignal(cfg, args); {
	case errors.Is(err, ErrUsage) && len(args) == 0:
		fmt.Fprintf(stderr, "%s: %v\n", p.name, err)
		p.help(stderr)
		return exitUsage
	case errors.Is(err, ErrUsage): // says what belongs to its command
		fmt.Fprintf(stderr, "%s: %v\n", p.name, err)
		return exitUsage
	case err == ErrFound: // not joined with or wrapped in an error that nobody has told of
		return exitError
	case err != nil && IsTerminal(stderr):
		fmt.Fprintf(stderr, "%s: %v\n", p.name, Advise(cfg, err))
		return exitError
	case err != nil:
		slog.Error(p.name+" failed", "err", Advise(cfg, err))
		return exitError
	}
	return exitOK
}

// checkConfig is -check.
func checkConfig(cfg *config.Config, found bool, stdout, stderr io.Writer) int {
	if err := cfg.CheckFiles(); err != nil {
		fmt.Fprintln(stderr, Advise(cfg, err))
		return exitUsage
	}
	if !found {
		fmt.Fprintf(stdout, "There is no %s; all keys have their defaults.\n", config.DefaultPath)
	}
	fmt.Fprintln(stdout, "No mistakes found in the configuration.")
	return exitOK
}

func (p *program) help(w io.Writer) {
	operands, rest, _ := strings.Cut(p.usage, "\n")
	fmt.Fprintln(w, strings.TrimSpace("usage: "+p.name+" [-config FILE] [-check] [-version] "+operands))
	fmt.Fprintf(w, "\n%s\n%s\n", generalHelp, rest)
}

// flagAdvice says what may have been meant by a flag that there is not.
func (p *program) flagAdvice(err error, flags *flag.FlagSet) string {
	if mean := didYouMeanOption(err, flags); mean != "" || !strings.HasPrefix(p.usage, "[COMMAND]") {
		return mean
	}
	return "; the options of a command stand behind it"
}

// misused tells what is wrong with the arguments.
func (p *program) misused(stderr io.Writer, err error) int {
	fmt.Fprintf(stderr, "%s: %v\n", p.name, err)
	if !strings.Contains(err.Error(), " -help") {
		fmt.Fprintf(stderr, "see: %s -help\n", p.name)
	}
	return exitUsage
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

// defaultPath is a variable so that tests find no file there.
var defaultPath = config.DefaultPath

// firstSteps are what a daemon says that starts without a configuration file.
var firstSteps = []string{
	"there is no " + config.DefaultPath + ", so all keys have their defaults; three things to do:",
	"1. configure: 'ruapost-reporter setup' shows a configuration for this host, 'man ruapost.toml' explains the keys",
	"2. tell Postfix: 'ruapost-reporter setup --apply' writes both, or take the lines of contrib/postfix into main.cf",
	"3. see that it works: 'ruapost-tlspolicy check' and 'ruapost-reporter check' say what is missing and how to mend it",
}

// loadConfig reads the file, or the default one if none was named, and tells whether there
// is one: only the default one may be missing.
func loadConfig(file string) (cfg *config.Config, found bool, err error) {
	cfg, err = config.Load(cmp.Or(file, defaultPath))
	found = file != "" || !errors.Is(err, fs.ErrNotExist)
	if !found {
		cfg, err = config.Default(), nil
	}
	return cfg, found, err
}

// warn logs what is allowed, but hardly meant.
func warn(cfg *config.Config) {
	if ruapost.Labels(cfg.ReportDomain) == 1 {
		slog.Warn("report_domain has no dot, reports will hardly be accepted; set it in the configuration file",
			"report_domain", cfg.ReportDomain)
	}
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
