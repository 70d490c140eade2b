package config

import (
	"os"
	"strings"

	"golang.org/x/net/publicsuffix"

	"ruapost"
)

// hostname returns the host's full name as far as it can be told without the
// network.
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	if !strings.Contains(name, ".") {
		hosts, _ := os.ReadFile("/etc/hosts") // without it, the short name remains
		name = fullName(name, string(hosts))
	}
	name, err = ruapost.ParseDomain(name)
	if err != nil { // such as a container whose name is a number
		return "localhost"
	}
	return name
}

// fullName looks for a short host name in hosts(5), where Debian's installer puts
// a line "127.0.1.1 mail.example.org mail", and returns the full one, or the
// short one if there is no such line.
func fullName(short, hosts string) string {
	for line := range strings.Lines(hosts) {
		line, _, _ = strings.Cut(line, "#")
		for _, name := range strings.Fields(line) {
			if strings.HasPrefix(name, short+".") {
				return name
			}
		}
	}
	return short
}

// DomainOf returns the domain that a host belongs to: its name without the first
// label, unless what remains is a top-level domain or another one that belongs
// to the public.
func DomainOf(host string) string {
	_, parent, _ := strings.Cut(host, ".")
	if parent == "" {
		return host
	}
	if suffix, _ := publicsuffix.PublicSuffix(parent); suffix == parent {
		return host
	}
	return parent
}
