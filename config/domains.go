package config

import (
	"strings"
)

// Domains is a list of names as an administrator gives them: a domain is that domain
// alone, one with a dot before it all names below it. Some lists take mail addresses,
// too.
type Domains []string

// Has tells whether the list has name, a domain or a mail address. An address is also
// in the list if its domain is. Whether its local part is in upper or lower case makes no
// difference.
func (d Domains) Has(name string) bool {
	domain := name[strings.LastIndexByte(name, '@')+1:]
	for _, entry := range d {
		if strings.EqualFold(entry, name) || entry == domain || strings.HasPrefix(entry, ".") && strings.HasSuffix(domain, entry) {
			return true
		}
	}
	return false
}
