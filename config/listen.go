package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"

	"ruapost"
)

// Listen is where a daemon listens. The zero Listen is nowhere.
type Listen struct {
	Network string // "unix" or "tcp"
	Address string // absolute path, or "host:port"
}

// maxSocketPath is how long the path of a unix socket can be on Linux: sun_path
// of unix(7) without the final NUL.
const maxSocketPath = 107

// ParseListen reads "unix:/PATH" or "tcp:HOST:PORT". HOST is a name or an
// address, one of IPv6 in brackets. Port 0 is any free port.
func ParseListen(s string) (Listen, error) {
	network, address, _ := strings.Cut(s, ":")
	var err error
	switch network {
	case "unix":
		address, err = parseSocketPath(address)
	case "tcp":
		address, err = parseHostPort(address)
	default:
		err = errors.New("neither a unix nor a tcp socket")
	}
	if err != nil {
		return Listen{}, err
	}
	return Listen{network, address}, nil
}

func parseSocketPath(s string) (string, error) {
	if len(s) > maxSocketPath {
		return "", fmt.Errorf("path of %d octets is longer than the %d that a socket can have", len(s), maxSocketPath)
	}
	return parsePath(s)
}

func parseHostPort(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", errors.New("not of the form HOST:PORT")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("port %q is not a number up to 65535", port)
	}
	if host == "" {
		return "", errors.New("no host")
	}
	if _, err := netip.ParseAddr(host); err != nil {
		if _, err := ruapost.ParseDomain(host); err != nil {
			return "", fmt.Errorf("host %q is neither an address nor a name", host)
		}
	}
	return net.JoinHostPort(host, port), nil
}

// parsePath accepts the absolute path of a file or directory.
func parsePath(s string) (string, error) {
	switch {
	case !strings.HasPrefix(s, "/"):
		return "", errors.New("not an absolute path")
	case strings.ContainsRune(s, 0):
		return "", errors.New("path with a NUL")
	}
	return path.Clean(s), nil
}

// String returns l as ParseListen reads it, "none" for the zero Listen.
func (l Listen) String() string {
	if l == (Listen{}) {
		return "none"
	}
	return l.Network + ":" + l.Address
}
