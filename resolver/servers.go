package resolver

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// confEach is how often resolv.conf is looked at for changes.
const confEach = 5 * time.Second

var errNoServers = errors.New("no address of a DNS server")

// server is a DNS server.
type server struct {
	addr    netip.AddrPort
	trusted bool // its AD bit is believed
}

func (s server) String() string { return s.addr.String() }

func parseServers(addrs []string) ([]server, error) {
	var servers []server
	for _, s := range addrs {
		addr, err := netip.ParseAddrPort(s)
		if err != nil || addr.Port() == 0 {
			return nil, fmt.Errorf("DNS server %q is not an IP address with a port, such as 127.0.0.1:53", s)
		}
		servers = append(servers, server{addr: addr, trusted: true})
	}
	return servers, nil
}

// confFile is a resolv.conf(5) file.
type confFile struct {
	path string
	port uint16 // of its servers

	mu      sync.Mutex
	read    fs.FileInfo // of the file that the servers are from, nil if there was none
	next    time.Time   // when to look for changes
	failing bool        // it was unusable at the last look
}

// first returns the servers to begin with. As resolv.conf(5) says, without any the
// server of this host is meant.
func (c *confFile) first() ([]server, error) {
	servers, err := c.changed()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoServers) {
		local := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		return []server{{addr: netip.AddrPortFrom(local, c.port), trusted: true}}, nil
	}
	return servers, err
}

// changed returns the file's servers, or none and no error if the file is the one that
// was read before. The look at its time comes before the reading: a change after it is
// noticed the next time.
func (c *confFile) changed() ([]server, error) {
	info, err := os.Stat(c.path)
	if err != nil {
		return nil, err
	}
	if c.read != nil && os.SameFile(info, c.read) && info.ModTime().Equal(c.read.ModTime()) && info.Size() == c.read.Size() {
		return nil, nil
	}
	text, err := os.ReadFile(c.path)
	if err != nil {
		return nil, err
	}
	conf, err := dns.ClientConfigFromReader(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	var servers []server
	for _, s := range conf.Servers {
		if ip, err := netip.ParseAddr(s); err == nil { // else passed over, as resolv.conf(5) says
			servers = append(servers, server{addr: netip.AddrPortFrom(ip, c.port), trusted: ip.IsLoopback()})
		}
	}
	if len(servers) == 0 {
		return nil, errNoServers
	}
	c.read = info
	return servers, nil
}

// reread has the servers asked that resolv.conf names now, such as after a network has
// come up. A file without any, perhaps because it is being written, changes nothing.
func (r *Resolver) reread() {
	c := r.conf
	if c == nil || !c.mu.TryLock() { // one lookup looks, the others need not wait for it
		return
	}
	defer c.mu.Unlock()
	now := r.now()
	if now.Before(c.next) {
		return
	}
	c.next = now.Add(confEach)
	servers, err := c.changed()
	if err != nil && !c.failing {
		slog.Warn("the DNS servers of before are asked on: the file that names them is of no use", "file", c.path, "err", err)
	}
	c.failing = err != nil
	if len(servers) > 0 {
		r.use(servers)
	}
}

// use has servers asked from now on. What those of before said is forgotten: they may
// have failed, or have known other names, or not have validated. Lookups under way end
// as they will, for those alone who wait for them.
func (r *Resolver) use(servers []server) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Equal(servers, r.servers) {
		return
	}
	slog.Info("DNS servers have changed", "servers", fmt.Sprint(servers), "before", fmt.Sprint(r.servers))
	r.servers = servers
	r.preferUntil = time.Time{}
	r.flights = map[key]*flight{}
	r.cache.InvalidateAll()
	r.probeAt, r.judged = time.Time{}, false
}
