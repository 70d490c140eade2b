package bboltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/net/publicsuffix"
)

// Bounds of what the file holds. Half of most of them is for what a forger can make
// at will: groups that were begun by a message that did not pass DMARC, and rows of
// such messages and of TLS failures. The other half is kept for mail that is what it
// claims to be, so that a flood of forgeries costs neither it nor its domains'
// reports. In a group that is there, everything is counted.
const (
	// MaxWindowGroups is the number of groups, which is policy domains or a few
	// more, of a window and kind.
	MaxWindowGroups = 100_000
	// MaxOrganizationGroups is the number of groups of a window and kind that the
	// names below one public suffix may have: a wildcard record makes each name that
	// somebody invents a policy domain with a report of its own.
	MaxOrganizationGroups = 50
	// MaxDomainGroups is the number of groups of a window, kind and domain: each is a
	// report, and a domain could change its policy with every message.
	MaxDomainGroups = 8
	// MaxGroupRows and MaxGroupBytes are the number and size of a group's distinct
	// rows, divided by the number of groups that the registered name has in the window,
	// so that whoever invents names below it does not take the room of others: at most
	// 50, which leaves a thousand rows. They bound the report mail, too: what a forger
	// fills half of them with does not compress.
	MaxGroupRows  = 50_000
	MaxGroupBytes = 12 << 20
	// MaxRows and MaxBytes are the number and size of all rows together.
	MaxRows  = 4_000_000
	MaxBytes = 2 << 30
	// MaxKnownDomains is the number of organizational domains that are remembered as
	// known. The half is for those from which messages only passed DMARC: whoever has
	// domains to throw away can make some pass, but our users write to whom they like.
	MaxKnownDomains = 1_000_000
	// MaxKnownSubdomains is the number of names below a registered one that are
	// remembered: a wildcard record can make all of them organizational domains. The
	// half is for those from which messages only passed DMARC.
	MaxKnownSubdomains = 200
	// MaxRowBytes is the size of a row's JSON form.
	MaxRowBytes = 4 << 10
	// MaxPolicyBytes is the size of a policy's JSON form. A larger one is recorded
	// without its text.
	MaxPolicyBytes = 16 << 10
	// MaxSTSPolicies and MaxSTSBytes are the number of MTA-STS policies and the size of
	// their JSON forms in all, MaxSTSPolicyBytes that of each.
	MaxSTSPolicies    = 50_000
	MaxSTSBytes       = 128 << 20
	MaxSTSPolicyBytes = 16 << 10
	// MaxOrganizationSTSPolicies is the number of MTA-STS policies of the names below one
	// public suffix: a wildcard record and host can serve one for each that somebody
	// invents.
	MaxOrganizationSTSPolicies = 128
	// MaxPositions is the number of sources of log lines whose position is kept,
	// MaxPositionBytes the size of a source's name, and of a position.
	MaxPositions     = 64
	MaxPositionBytes = 1 << 10
	// MaxSuppressions is the number of suppressions, MaxSuppressionBytes the size of the
	// JSON form of one.
	MaxSuppressions     = 100_000
	MaxSuppressionBytes = 1 << 10
	// MaxCounts is the number of named counters, MaxCountBytes the size of a name.
	MaxCounts     = 200
	MaxCountBytes = 100
	// MaxDayDomains is the number of domains that daily totals are kept of by name, of each
	// day and kind; the others are counted as one. The half is for those of which no
	// message passed DMARC that day.
	MaxDayDomains = 5_000
	// MaxFileSize is the size up to which the file grows for records; what the
	// reporter writes is not held to it, nor are MTA-STS policies and positions. It is
	// the only bound of the file: rows of MaxBytes take up to twice as much in pages,
	// which are half full at worst.
	MaxFileSize = 4 << 30
)

// bounds are those that tests make smaller.
type bounds struct {
	windowGroups, organizationGroups, domainGroups, groupRows, groupBytes, rows, bytes uint64
}

var defaultBounds = bounds{
	MaxWindowGroups, MaxOrganizationGroups, MaxDomainGroups,
	MaxGroupRows, MaxGroupBytes, MaxRows, MaxBytes,
}

// stsBounds are those of MTA-STS policies.
type stsBounds struct {
	policies, organization, bytes uint64
}

var defaultSTSBounds = stsBounds{MaxSTSPolicies, MaxOrganizationSTSPolicies, MaxSTSBytes}

// usage is what all rows, or all MTA-STS policies, take up.
type usage struct {
	number, bytes uint64
}

func (u *usage) add(number, bytes int) {
	u.number += uint64(number)
	u.bytes += uint64(bytes)
}

func (u *usage) remove(number, bytes uint64) {
	u.number -= min(number, u.number)
	u.bytes -= min(bytes, u.bytes)
}

// loadUsage reads the usage at usageKey or stsKey.
func loadUsage(tx *bolt.Tx, key []byte) (u usage, err error) {
	v := tx.Bucket(metaBucket).Get(key)
	switch len(v) {
	case 0:
		return u, nil
	case 16:
		return usage{binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])}, nil
	}
	return u, fmt.Errorf("%q of %d bytes %w", key, len(v), errUndecodable)
}

func (u *usage) store(tx *bolt.Tx, key []byte) error {
	v := binary.BigEndian.AppendUint64(make([]byte, 0, 16), u.number)
	return tx.Bucket(metaBucket).Put(key, binary.BigEndian.AppendUint64(v, u.bytes))
}

// share is how much of a bound is for what is proven, or not.
func share(bound uint64, proven bool) uint64 {
	if proven {
		return bound
	}
	return bound / 2
}

// fits says whether a new row of that size may be added.
func (b *bounds) fits(g *groupValue, u *usage, size int, proven bool) bool {
	n := uint64(size)
	return g.rows < share(b.groupRows, proven) && g.bytes+n <= share(b.groupBytes, proven) &&
		u.number < share(b.rows, proven) && u.bytes+n <= share(b.bytes, proven)
}

// among returns the bounds of the group at key: those of a group's rows are for all groups
// that have begun below the registered name.
func (b bounds) among(tx *bolt.Tx, key []byte) bounds {
	n := max(counter(tx.Bucket(windowsBucket), organizationKey(key)), 1)
	b.groupRows /= n
	b.groupBytes /= n
	return b
}

// admits says whether a new group may begin at key.
func (b *bounds) admits(tx *bolt.Tx, key []byte, proven bool) bool {
	windows := tx.Bucket(windowsBucket)
	return counter(windows, windowKey(key)) < share(b.windowGroups, proven) &&
		counter(windows, organizationKey(key)) < share(b.organizationGroups, proven) &&
		b.domainHasRoom(tx.Bucket(groupsBucket), key)
}

func (b *bounds) domainHasRoom(groups *bolt.Bucket, key []byte) bool {
	prefix := key[:len(key)-hashLen]
	n := uint64(0)
	c := groups.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix) && n < b.domainGroups; k, _ = c.Next() {
		n++
	}
	return n < b.domainGroups
}

// The keys of the counters in the windows bucket that a group counts in.
func windowKey(groupKey []byte) []byte { return groupKey[:groupKeyHeader] }

func organizationKey(groupKey []byte) []byte {
	domain := string(groupKey[groupKeyHeader : len(groupKey)-hashLen-1])
	return append(bytes.Clone(windowKey(groupKey)), registeredName(domain)...)
}

// registeredName returns the name next below a public suffix that domain is or lies
// below, or domain if there is none. The public suffix list is good enough for a bound,
// and needs no DNS.
func registeredName(domain string) string {
	if name, err := publicsuffix.EffectiveTLDPlusOne(domain); err == nil {
		return name
	}
	return domain
}

// countGroup changes the counters for a group that begins (1) or is taken (-1).
func countGroup(tx *bolt.Tx, groupKey []byte, change int) error {
	windows := tx.Bucket(windowsBucket)
	return errors.Join(
		count(windows, windowKey(groupKey), change),
		count(windows, organizationKey(groupKey), change),
	)
}

// count changes the counter at key by 1 or -1. One that would be zero is not there.
func count(counters *bolt.Bucket, key []byte, change int) error {
	n := counter(counters, key)
	if change < 0 && n <= 1 {
		return counters.Delete(key)
	}
	return counters.Put(key, binary.BigEndian.AppendUint64(nil, n+uint64(change)))
}

func counter(counters *bolt.Bucket, key []byte) uint64 {
	if v := counters.Get(key); len(v) == 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}
