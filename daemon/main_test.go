package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"

	"ruapost"
	"ruapost/config"
)

// The test binary is also the daemon that process tests start.
func TestMain(m *testing.M) {
	if os.Getenv("RUAPOST_TEST_DAEMON") != "" {
		Main("toyd", "", runToy)
	}
	os.Exit(m.Run())
}

// runToy echoes what it gets on its stream socket and logs what it gets on its
// datagram socket.
func runToy(ctx context.Context, cfg *config.Config, reloads <-chan *config.Config) error {
	listeners, err := Listen("toy", cfg.TLSPolicy.Listen)
	if err != nil {
		return err
	}
	packets, err := ListenPacket("toy-packets", cfg.TLSPolicy.TLSRPT)
	if err != nil {
		return err
	}
	defer packets.Close()
	received := make(chan struct{})
	go func() {
		defer close(received)
		buf := make([]byte, 100)
		n, _ := packets.Read(buf)
		slog.Info("packet", "text", string(buf[:n]))
	}()
	go func() {
		for cfg := range reloads {
			slog.Info("reload", "org_name", cfg.OrgName)
		}
	}()
	log.Printf("by way of the log package\nlevel=ERROR")
	Ready()
	server := &Server{Name: "toy", Handle: echo, MaxConns: 10}
	server.Serve(ctx, listeners...)
	<-received
	return ctx.Err()
}

// echo sends back what it gets until the peer closes or ctx ends.
func echo(ctx context.Context, conn net.Conn) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	io.Copy(conn, conn)
}

// notifications is the socket where systemd would get a daemon's state.
type notifications struct{ *net.UnixConn }

func newNotifications(t *testing.T, dir string) notifications {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return notifications{conn}
}

func (n notifications) expect(t *testing.T, want string) {
	t.Helper()
	buf := make([]byte, 100)
	k, err := n.Read(buf)
	if got := string(buf[:k]); err != nil || got != want {
		t.Fatalf("notified of %q, %v; want %q", got, err, want)
	}
}

func toyCommand(t *testing.T, dir string, n notifications, name string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "RUAPOST_TEST_DAEMON=1", "NOTIFY_SOCKET="+n.LocalAddr().String())
	stderr := new(bytes.Buffer)
	cmd.Stderr = stderr
	cmd.Dir = dir
	return cmd, stderr
}

func testBinary(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// useToy checks that the daemon answers on its sockets, and stops it.
func useToy(t *testing.T, cmd *exec.Cmd, n notifications, stream, packets string) {
	t.Helper()
	n.expect(t, "READY=1")
	conn, err := net.Dial("unix", stream)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "hello")
	buf := make([]byte, 5)
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "hello" {
		t.Fatalf("got %q, %v", buf, err)
	}
	packet, err := net.Dial("unixgram", packets)
	if err != nil {
		t.Fatal(err)
	}
	defer packet.Close()
	fmt.Fprint(packet, "a packet")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n.expect(t, "STOPPING=1")
}

func TestDaemonProcess(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "toy.toml")
	stream, packets := filepath.Join(dir, "s"), filepath.Join(dir, "p")
	text := fmt.Sprintf("report_domain = \"example.org\"\n[tlspolicy]\nlisten = [\"unix:%s\"]\ntlsrpt = \"unix:%s\"\n", stream, packets)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNotifications(t, dir)
	cmd, stderr := toyCommand(t, dir, n, testBinary(t), "-config", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	useToy(t, cmd, n, stream, packets)
	if err := cmd.Wait(); err != nil { // not 0 would be an error
		t.Errorf("%v\n%s", err, stderr)
	}
	for _, want := range []string{
		`level=INFO msg="by way of the log package\nlevel=ERROR"`,
		`level=INFO msg=listening socket=toy address=` + stream,
		`level=INFO msg=packet text="a packet"`,
		`level=INFO msg=ready version=dev`,
		`level=INFO msg=stopping cause="terminated signal received"`,
	} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("not logged: %s", want)
		}
	}
	if !strings.HasPrefix(stderr.String(), "time=") {
		t.Error("no time in log lines")
	}
	if t.Failed() {
		t.Logf("log:\n%s", stderr)
	}
	if _, err := os.Stat(stream); err == nil {
		t.Error("stream socket was left behind")
	}
}

// A changed configuration comes to the daemon; one with a mistake does not, and the
// daemon goes on.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "toy.toml")
	stream, packets := filepath.Join(dir, "s"), filepath.Join(dir, "p")
	write := func(first string) {
		t.Helper()
		text := fmt.Sprintf("%s\nreport_domain = \"example.org\"\n[tlspolicy]\nlisten = [\"unix:%s\"]\ntlsrpt = \"unix:%s\"\n", first, stream, packets)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	n := newNotifications(t, dir)
	cmd, stderr := toyCommand(t, dir, n, testBinary(t), "-config", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n.expect(t, "READY=1")
	for _, first := range []string{`org_name = 1`, `org_name = "New"`} {
		write(first)
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		n.expect(t, "RELOADING=1")
		if first == `org_name = 1` {
			n.expect(t, "READY=1")
		}
	}
	useToy(t, cmd, n, stream, packets)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, stderr)
	}
	log := stderr.String()
	if strings.Count(log, "msg=reload ") != 1 || !strings.Contains(log, "msg=reload org_name=New") ||
		!strings.Contains(log, `toy.toml:1: org_name: 1 is a number`) {
		t.Errorf("log:\n%s", log)
	}
}

// As with systemd's socket units, whose sockets outlive the daemon.
func TestDaemonWithPassedSockets(t *testing.T) {
	dir := t.TempDir()
	stream, packets := filepath.Join(dir, "s"), filepath.Join(dir, "p")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stream, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: packets, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var files []*os.File
	for _, s := range []interface{ File() (*os.File, error) }{l, p, p} {
		f, err := s.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}

	n := newNotifications(t, dir)
	// The sockets are for the process whose number is LISTEN_PID.
	cmd, stderr := toyCommand(t, dir, n, "/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, testBinary(t), "-config", "/dev/null")
	cmd.ExtraFiles = files
	cmd.Env = append(cmd.Env, "LISTEN_FDS=3", "LISTEN_FDNAMES=toy:toy-packets:other")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	useToy(t, cmd, n, stream, packets)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, stderr)
	}
	if want := "is not used; is its FileDescriptorName right?\" name=other"; !strings.Contains(stderr.String(), want) {
		t.Errorf("not logged: %s\n%s", want, stderr)
	}
	if _, err := os.Stat(stream); err != nil {
		t.Errorf("socket of systemd is gone: %v", err)
	}
}

func TestPassedSocketsOfTheWrongType(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "p"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	stream, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	packets, err := p.File()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := passedListener(packets); err == nil || !strings.HasSuffix(err.Error(), "is a unixgram socket; expected ListenStream") {
		t.Errorf("datagram socket as a listener: %v", err)
	}
	if _, err := passedPacketConn(stream); err == nil || !strings.HasSuffix(err.Error(), "is a unix socket; expected ListenDatagram") {
		t.Errorf("listener as a datagram socket: %v", err)
	}
}

func TestExitStatus(t *testing.T) {
	defer slog.SetDefault(slog.Default())
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.toml"), filepath.Join(dir, "bad.toml")
	if err := os.WriteFile(good, []byte("report_domain = \"example.org\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bad, []byte("[store]\npath = 1\nfile = 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		args   []string
		err    error // of run
		status int
		ran    bool
		stdout string
		stderr string // contained
	}{
		{name: "good", args: []string{"-config", good}, ran: true},
		{name: "run fails", args: []string{"-config", good}, err: errors.New("broken"), status: 1, ran: true, stderr: `level=ERROR msg="toy failed" err=broken`},
		{name: "faults that are printed already", args: []string{"-config", good}, err: ErrFound, status: 1, ran: true},
		{name: "usage", args: []string{"-config", good}, err: fmt.Errorf("%w: no command", ErrUsage), status: 2, ran: true, stderr: "toy: usage error: no command\nusage: toy [-config FILE] [-check] [-version] COMMAND\n\n  -config FILE "},
		{name: "usage of a command", args: []string{"-config", good, "sned"}, err: fmt.Errorf("%w: no command sned", ErrUsage), status: 2, ran: true, stderr: "toy: usage error: no command sned\n"},
		{
			name: "bad configuration", args: []string{"-config", bad}, status: 2,
			stderr: bad + ":2: store.path: 1 is a number; expected an absolute path\n" + bad + ":3: store.file: unknown key; expected one of path, record_timeout\n",
		},
		{name: "goes without the configuration", args: []string{"-config", bad, "mend"}, ran: true, status: 0},
		{name: "-check looks at it all the same", args: []string{"-config", bad, "-check", "mend"}, status: 2, stderr: bad + ":2: "},
		{name: "no configuration", args: []string{"-config", dir + "/none.toml"}, status: 2, stderr: "open " + dir + "/none.toml: no such file or directory\n"},
		{name: "unknown flag", args: []string{"-conf", good}, status: 2, stderr: "toy: usage error: flag provided but not defined: -conf; did you mean \"-config\"?\nsee: toy -help\n"},
		{name: "version", args: []string{"-version"}, stdout: "toy " + ruapost.Version + " ("},
		{name: "the word version", args: []string{"version"}, stdout: "toy " + ruapost.Version + " ("},
		{name: "help", args: []string{"-help"}, stdout: "usage: toy [-config FILE] [-check] [-version] COMMAND\n\n  -config FILE "},
		{name: "the word help", args: []string{"help"}, stdout: "usage: toy "},
		{name: "check", args: []string{"-check", "-config", good}, stdout: "No mistakes found"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ran := false
			p := &program{name: "toy", usage: "COMMAND", run: func(ctx context.Context, cfg *config.Config, args []string) error {
				ran = true
				if cfg.File == bad {
					return tt.err
				}
				if cfg.ReportDomain != "example.org" {
					t.Errorf("report_domain = %q", cfg.ReportDomain)
				}
				return tt.err
			}, without: func(args []string) bool { return slices.Contains(args, "mend") }}
			var stdout, stderr bytes.Buffer
			status := p.main(tt.args, &stdout, &stderr)
			if status != tt.status || ran != tt.ran {
				t.Errorf("status %d, ran %v; want %d, %v", status, ran, tt.status, tt.ran)
			}
			if !strings.HasPrefix(stdout.String(), tt.stdout) || tt.stdout == "" && stdout.Len() > 0 {
				t.Errorf("stdout is %q", &stdout)
			}
			if !strings.Contains(stderr.String(), tt.stderr) || tt.stderr == "" && stderr.Len() > 0 {
				t.Errorf("stderr is %q", &stderr)
			}
		})
	}
}

// A signal ends run's context; that run was interrupted is no failure then.
func TestSignal(t *testing.T) {
	defer slog.SetDefault(slog.Default())
	p := &program{name: "toy", run: func(ctx context.Context, cfg *config.Config, args []string) error {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			return err
		}
		<-ctx.Done()
		return fmt.Errorf("interrupted: %w", ctx.Err())
	}}
	var stderr bytes.Buffer
	if status := p.main([]string{"-config", "/dev/null"}, io.Discard, &stderr); status != 0 {
		t.Errorf("status %d: %s", status, &stderr)
	}
}

func TestJournalNeedsNoTime(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	var stat syscall.Stat_t
	if err := syscall.Fstat(int(w.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 200)
	for stream, want := range map[string]string{
		fmt.Sprintf("%d:%d", stat.Dev, stat.Ino):   "level=INFO msg=hello\n",
		fmt.Sprintf("%d:%d", stat.Dev, stat.Ino+1): "time=",
		"": "time=",
	} {
		t.Setenv("JOURNAL_STREAM", stream)
		newLogger(w).Info("hello")
		n, err := r.Read(buf)
		if got := string(buf[:n]); err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("JOURNAL_STREAM=%s: logged %q, %v", stream, got, err)
		}
	}
}

func TestStopIsNoFault(t *testing.T) {
	stop := fmt.Errorf("store: %w", context.Canceled)
	fault := errors.New("disk full")
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{context.Canceled, true},
		{errors.Join(stop, context.Canceled), true},
		{errors.Join(fault, stop), false},
		{fmt.Errorf("%w: %w", fault, context.Canceled), false},
		{context.DeadlineExceeded, false},
	} {
		if got := IsStop(tt.err); got != tt.want {
			t.Errorf("%q: %v", tt.err, got)
		}
	}
}

// Without a repository at the build there is no commit to tell.
func TestBuildVersion(t *testing.T) {
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123456789abcdef01234567"}
	for want, settings := range map[string][]debug.BuildSetting{
		ruapost.Version + " (" + runtime.Version() + ")":                            nil,
		ruapost.Version + " (commit 0123456789ab, " + runtime.Version() + ")":       {revision, {Key: "vcs.modified", Value: "false"}},
		ruapost.Version + " (commit 0123456789ab+dirty, " + runtime.Version() + ")": {revision, {Key: "vcs.modified", Value: "true"}},
		ruapost.Version + " (commit 0123, " + runtime.Version() + ")":               {{Key: "vcs.revision", Value: "0123"}},
	} {
		if got := buildVersion(&debug.BuildInfo{Settings: settings}); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestIsTerminal(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if IsTerminal(f) || IsTerminal(io.Discard) {
		t.Error("/dev/null, or what is no file, is a terminal")
	}
}

// Who starts for the first time learns what to do, once and not from every command.
func TestFirstStart(t *testing.T) {
	defer slog.SetDefault(slog.Default())
	defer func(path string) { defaultPath = path }(defaultPath)
	defaultPath = filepath.Join(t.TempDir(), "ruapost.toml")
	run := func(serves bool, err error, args ...string) (stdout, stderr string) {
		p := &program{name: "toy", usage: "[COMMAND]", serves: serves, run: func(context.Context, *config.Config, []string) error { return err }}
		var out, log bytes.Buffer
		p.main(args, &out, &log)
		return out.String(), log.String()
	}
	told := func(text string) bool {
		for _, step := range firstSteps {
			if !strings.Contains(text, step) {
				return false
			}
		}
		return true
	}
	if _, log := run(true, nil); !told(log) || strings.Count(log, "level=INFO") != len(firstSteps) {
		t.Errorf("a daemon says:\n%s", log)
	}
	if _, log := run(false, fmt.Errorf("%w: no command", ErrUsage)); !told(log) || !strings.Contains(log, "usage: toy") {
		t.Errorf("a tool without a command says:\n%s", log)
	}
	if _, log := run(true, nil, "query"); told(log) {
		t.Errorf("a command says:\n%s", log)
	}
	if out, log := run(true, nil, "-check"); told(log) || !strings.Contains(out, "There is no "+config.DefaultPath) {
		t.Errorf("-check says:\n%s%s", out, log)
	}
	if err := os.WriteFile(defaultPath, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, log := run(true, nil); told(log) {
		t.Errorf("with a configuration a daemon says:\n%s", log)
	}
}
