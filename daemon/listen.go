package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"

	"ruapost/config"
)

// socketMode is the mode of unix sockets: Postfix must be able to write to them.
// They get the daemon's group, or that of their directory if it has the setgid
// bit; contrib/systemd makes one with Postfix's group. Sockets that systemd
// passes have the owner and mode that their unit says.
const socketMode = 0o660

// Listen opens stream sockets. If systemd passed sockets of that name
// (FileDescriptorName), those are used instead of opening any.
//
// A unix socket that was left behind is replaced; one that another process
// listens on is an error, and so is a missing directory.
func Listen(name string, at []config.Listen) ([]net.Listener, error) {
	var listeners []net.Listener
	add := func(l net.Listener, err error) error {
		if err == nil {
			listeners = append(listeners, l)
			slog.Info("listening", "socket", name, "address", l.Addr().String())
		}
		return err
	}
	var errs []error
	if files := takeSockets(name); len(files) > 0 {
		for _, f := range files {
			errs = append(errs, add(passedListener(f)))
		}
	} else {
		for _, l := range at {
			errs = append(errs, add(openListener(l)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		for _, l := range listeners {
			l.Close()
		}
		return nil, err
	}
	return listeners, nil
}

// ListenPacket opens a unix datagram socket as Listen does a stream socket.
func ListenPacket(name string, at config.Listen) (*net.UnixConn, error) {
	files := takeSockets(name)
	if len(files) > 1 {
		for _, f := range files {
			f.Close()
		}
		return nil, fmt.Errorf("%d sockets named %s passed by systemd; expected one", len(files), name)
	}
	var conn *net.UnixConn
	var err error
	if len(files) == 1 {
		conn, err = passedPacketConn(files[0])
	} else {
		conn, err = openPacketConn(at)
	}
	if err != nil {
		return nil, err
	}
	slog.Info("listening", "socket", name, "address", conn.LocalAddr().String())
	return conn, nil
}

func openListener(at config.Listen) (net.Listener, error) {
	if at.Network == "unix" {
		if err := clearSocket("unix", at.Address); err != nil {
			return nil, listenError(at, err)
		}
	}
	l, err := net.Listen(at.Network, at.Address)
	if err != nil {
		return nil, listenError(at, err)
	}
	if at.Network == "unix" {
		if err := os.Chmod(at.Address, socketMode); err != nil {
			l.Close()
			return nil, listenError(at, err)
		}
	}
	return l, nil
}

func openPacketConn(at config.Listen) (*net.UnixConn, error) {
	if err := clearSocket("unixgram", at.Address); err != nil {
		return nil, listenError(at, err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at.Address, Net: "unixgram"})
	if err != nil {
		return nil, listenError(at, err)
	}
	if err := os.Chmod(at.Address, socketMode); err != nil {
		conn.Close()
		return nil, listenError(at, err)
	}
	return conn, nil
}

// listenError tells of a socket that cannot be opened, and what to do about it.
func listenError(at config.Listen, err error) error {
	mend := ""
	switch {
	case errors.Is(err, fs.ErrPermission) && at.Network == "unix":
		mend = fmt.Sprintf("; who runs this must be able to write to %s, as the user ruapost that systemd starts it as", filepath.Dir(at.Address))
	case errors.Is(err, fs.ErrPermission):
		mend = "; take a port above 1023"
	case errors.Is(err, syscall.EADDRINUSE):
		mend = "; 'ss -ltnp' shows by whom: end that, or take another port"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		mend = "; 'ip addr' shows the addresses of this host"
	}
	return fmt.Errorf("listen on %s: %w%s", at, err, mend)
}

// clearSocket makes way for a unix socket. It removes one that is there only if
// nobody listens on it.
func clearSocket(network, path string) error {
	if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("directory %s does not exist; 'systemd-tmpfiles --create' makes it if contrib/systemd/tmpfiles.d is installed", filepath.Dir(path))
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is something that is not a socket; move it away, or listen elsewhere")
	}
	conn, err := net.DialTimeout(network, path, time.Second)
	switch {
	case err == nil:
		conn.Close()
		return errors.New("another process listens there: systemd, so that it is to be started by systemctl, or this program, started before")
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return fmt.Errorf("cannot tell whether another process listens there: %w", err)
}

// passedListener takes a listening stream socket over from systemd.
func passedListener(f *os.File) (net.Listener, error) {
	defer f.Close() // the listener has a copy
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("socket %s passed by systemd: %w", f.Name(), err)
	}
	if n := l.Addr().Network(); n != "unix" && n != "tcp" {
		l.Close()
		return nil, fmt.Errorf("socket %s passed by systemd: is a %s socket; expected ListenStream", f.Name(), n)
	}
	return l, nil
}

// passedPacketConn takes a unix datagram socket over from systemd.
func passedPacketConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close() // the connection has a copy
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("socket %s passed by systemd: %w", f.Name(), err)
	}
	conn, ok := c.(*net.UnixConn)
	if n := c.LocalAddr().Network(); !ok || n != "unixgram" {
		c.Close()
		return nil, fmt.Errorf("socket %s passed by systemd: is a %s socket; expected ListenDatagram", f.Name(), n)
	}
	return conn, nil
}

// passed are the sockets that systemd passed and nobody has taken yet.
var passed struct {
	once  sync.Once
	mu    sync.Mutex
	files map[string][]*os.File
}

func takeSockets(name string) []*os.File {
	passed.once.Do(func() { passed.files = activation.FilesWithNames() })
	passed.mu.Lock()
	defer passed.mu.Unlock()
	files := passed.files[name]
	delete(passed.files, name)
	return files
}

// unusedSockets returns the names of the sockets that nobody has taken.
func unusedSockets() []string {
	passed.mu.Lock()
	defer passed.mu.Unlock()
	return slices.Sorted(maps.Keys(passed.files))
}
