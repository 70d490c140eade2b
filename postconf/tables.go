package postconf

import (
	"net"
	"net/netip"
	"os"
	"strings"

	"ruapost/config"
)

// Words splits a list as Postfix does if none of its items can have blanks.
func Words(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(separators, r) })
}

// separators stand between the items of a list.
const separators = ", \t\r\n"

// Items splits a list of tables or milters, in which braces hold together what has blanks.
func Items(list string) []string {
	depth := 0
	return strings.FieldsFunc(list, func(r rune) bool {
		switch r {
		case '{':
			depth++
		case '}':
			depth--
		}
		return depth <= 0 && strings.ContainsRune(separators, r)
	})
}

// Socketmap is a socketmap table, such as socketmap:unix:run/ruapost/policy.sock:QUERY.
type Socketmap struct {
	Text    string
	Proxied bool   // asked by proxymap(8)
	Network string // "unix" or "inet"
	Address string // path, or host:port
	Table   string
}

// ParseSocketmap reads an item of a list of tables; ok is false if it is of another type.
func ParseSocketmap(text string) (m Socketmap, ok bool) {
	m.Text = text
	rest, proxied := strings.CutPrefix(text, "proxy:")
	m.Proxied = proxied
	rest, ok = strings.CutPrefix(rest, "socketmap:")
	last := strings.LastIndexByte(rest, ':')
	if !ok || last < 0 {
		return m, false
	}
	m.Table = rest[last+1:]
	m.Network, m.Address, _ = strings.Cut(rest[:last], ":")
	return m, true
}

// Reaches says whether a connection to an address of Postfix's, with the network "unix" or
// "inet", comes to a socket, as far as that can be told from the two.
func Reaches(network, address string, l config.Listen) bool {
	return network == "unix" && l.Network == "unix" && SameFile(address, l.Address) ||
		network == "inet" && l.Network == "tcp" && reachesTCP(address, l)
}

// reachesTCP is Reaches for TCP.
func reachesTCP(address string, l config.Listen) bool {
	host, port, err := net.SplitHostPort(address)
	listenHost, listenPort, _ := net.SplitHostPort(l.Address)
	if err != nil || port != listenPort {
		return false
	}
	if strings.EqualFold(host, "localhost") {
		host = "127.0.0.1"
	}
	if strings.EqualFold(listenHost, "localhost") {
		listenHost = "127.0.0.1"
	}
	at, err := netip.ParseAddr(listenHost)
	return err == nil && at.IsUnspecified() || strings.EqualFold(host, listenHost)
}

// SameFile says whether two names lead to the same file.
func SameFile(a, b string) bool {
	if a == b {
		return true
	}
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}
