package daemon

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ruapost/config"
)

// opened is what both kinds of sockets have in common.
type opened interface{ Close() error }

// unixSockets are the two ways to open a unix socket.
var unixSockets = map[string]func(path string) (opened, error){
	"unix": func(path string) (opened, error) {
		l, err := Listen("x", []config.Listen{{Network: "unix", Address: path}})
		if err != nil {
			return nil, err
		}
		return l[0], nil
	},
	"unixgram": func(path string) (opened, error) {
		return ListenPacket("x", config.Listen{Network: "unix", Address: path})
	},
}

func TestUnixSocket(t *testing.T) {
	for network, open := range unixSockets {
		t.Run(network, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			s, err := open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o660 {
				t.Errorf("got %v, %v", info, err)
			}
			conn, err := net.Dial(network, path)
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()

			_, err = open(path)
			if err == nil || !strings.HasPrefix(err.Error(), "listen on unix:"+path+": another process listens there: ") {
				t.Errorf("second time: %v", err)
			}
		})
	}
}

func TestUnixSocketLeftBehind(t *testing.T) {
	for network, open := range unixSockets {
		t.Run(network, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			fd, err := syscall.Socket(syscall.AF_UNIX, map[string]int{"unix": syscall.SOCK_STREAM, "unixgram": syscall.SOCK_DGRAM}[network], 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
				t.Fatal(err)
			}
			syscall.Close(fd)
			s, err := open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			conn, err := net.Dial(network, path)
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
		})
	}
}

func TestUnixSocketErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("keep me"), 0o600); err != nil {
		t.Fatal(err)
	}
	for network, open := range unixSockets {
		for path, want := range map[string]string{
			file:                                 ": there is something that is not a socket; move it away, or listen elsewhere",
			filepath.Join(dir, "none", "s"):      ": directory " + filepath.Join(dir, "none") + " does not exist; 'systemd-tmpfiles --create' makes it if contrib/systemd/tmpfiles.d is installed",
			filepath.Join(file, "s"):             ": lstat " + filepath.Join(file, "s") + ": not a directory",
			dir + "/" + strings.Repeat("x", 200): ": bind: invalid argument",
		} {
			_, err := open(path)
			if err == nil || !strings.HasPrefix(err.Error(), "listen on unix:"+path) || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("%s: got %v, want …%s", network, err, want)
			}
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "keep me" {
		t.Errorf("file is now %q, %v", text, err)
	}
}

// A directory with the setgid bit gives its sockets Postfix's group.
func TestUnixSocketGroup(t *testing.T) {
	group := otherGroup(t)
	dir := t.TempDir()
	if err := os.Chown(dir, -1, group); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o750|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	for network, open := range unixSockets {
		path := filepath.Join(dir, network)
		s, err := open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if gid := info.Sys().(*syscall.Stat_t).Gid; int(gid) != group {
			t.Errorf("%s socket has group %d", network, gid)
		}
	}
}

// otherGroup returns a group that a directory can be given: any for root, one of their
// own for others, if possible not the one that files get anyway.
func otherGroup(t *testing.T) int {
	t.Helper()
	if os.Getuid() == 0 {
		return 12345
	}
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		if g != os.Getgid() {
			return g
		}
	}
	return os.Getgid()
}

// If one socket cannot be opened, none stays open.
func TestListenAllOrNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := taken.Addr().String()
	_, err = Listen("x", []config.Listen{{Network: "unix", Address: path}, {Network: "tcp", Address: address}})
	want := "listen on tcp:" + address + ": listen tcp " + address + ": bind: address already in use; 'ss -ltnp' shows by whom: end that, or take another port"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the other socket is open")
	}
}
