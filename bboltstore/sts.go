package bboltstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	bolt "go.etcd.io/bbolt"

	"ruapost"
)

// STSPolicy returns the MTA-STS policy of the domain as it was put, expired or not, or
// nil if there is none.
func (s *Store) STSPolicy(ctx context.Context, domain string) (p *ruapost.STSPolicy, err error) {
	err = s.view(ctx, func(tx *bolt.Tx) error {
		b, err := loadSTS(tx)
		if err == nil {
			p, err = b.get(domain)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("bboltstore: read MTA-STS policy: %w", err)
	}
	return p, nil
}

// STSPolicies returns the next policies behind the domain after, in the order of their
// domains' octets: most of them, or less if there are no more. Those that are put or
// deleted meanwhile may be among them or not.
func (s *Store) STSPolicies(ctx context.Context, after string, most int) ([]ruapost.STSPolicy, error) {
	var found []ruapost.STSPolicy
	for more := true; more && len(found) < most; {
		err := s.view(ctx, func(tx *bolt.Tx) (err error) {
			n := min(most-len(found), chunk)
			var next []ruapost.STSPolicy
			next, more, err = readSTS(tx, after, n)
			found = append(found, next...)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("bboltstore: read MTA-STS policies: %w", err)
		}
		if more {
			after = found[len(found)-1].Domain
		}
	}
	return found, nil
}

// readSTS returns at most n policies behind the domain after, and no more than are read
// in a moment, and whether there are more.
func readSTS(tx *bolt.Tx, after string, n int) (found []ruapost.STSPolicy, more bool, err error) {
	size := 0
	c := tx.Bucket(stsBucket).Cursor()
	for k, v := seekAfter(c, []byte(after)); k != nil; k, v = c.Next() {
		if len(found) == n || size > MaxBatchBytes {
			return found, true, nil
		}
		p, err := decodeSTS(k, v)
		if err != nil {
			return nil, false, err
		}
		found = append(found, *p)
		size += len(v)
	}
	return found, false, nil
}

// PutSTSPolicy keeps p in the place of the policy of p.Domain, and raises STSVersion by
// one. The error wraps ruapost.ErrNoRoom if p is larger than MaxSTSPolicyBytes, if all would take
// up more than MaxSTSBytes, or if its domain has no policy yet and there are
// MaxSTSPolicies, or MaxOrganizationSTSPolicies below its registered name. Nothing makes
// room by itself: policies that have expired are there until they are deleted.
func (s *Store) PutSTSPolicy(ctx context.Context, p ruapost.STSPolicy) error {
	value, err := encodeSTS(&p)
	if err != nil {
		return fmt.Errorf("bboltstore: keep MTA-STS policy: %w", err)
	}
	var limit string
	err = s.update(ctx, func(tx *bolt.Tx) error {
		b, err := loadSTS(tx)
		if err != nil {
			return err
		}
		if limit = b.exceeded(&s.stsBounds, p.Domain, len(value)); limit != "" {
			return errUnchanged
		}
		return errors.Join(b.put(p.Domain, value), b.store())
	})
	if err == nil && limit != "" {
		dropped.WithLabelValues(limit).Inc()
		err = fmt.Errorf("%w (%s)", ruapost.ErrNoRoom, limit)
	}
	if err != nil {
		return fmt.Errorf("bboltstore: keep MTA-STS policy of %s: %w", p.Domain, err)
	}
	return nil
}

// DeleteSTSPolicies deletes the policies of the domains, and returns how many there were,
// also if it is interrupted. It raises STSVersion by one for each thousand domains that
// had any.
func (s *Store) DeleteSTSPolicies(ctx context.Context, domains []string) (deleted int, err error) {
	for len(domains) > 0 {
		n := min(len(domains), chunk)
		found, err := s.deleteSTS(ctx, domains[:n])
		deleted += found
		if err != nil {
			return deleted, fmt.Errorf("bboltstore: delete MTA-STS policies: %w", err)
		}
		domains = domains[n:]
	}
	return deleted, nil
}

func (s *Store) deleteSTS(ctx context.Context, domains []string) (deleted int, err error) {
	err = s.update(ctx, func(tx *bolt.Tx) error {
		deleted = 0
		b, err := loadSTS(tx)
		if err != nil {
			return err
		}
		for _, domain := range domains {
			found, err := b.delete(domain)
			if err != nil {
				return err
			}
			if found {
				deleted++
			}
		}
		if deleted == 0 {
			return errUnchanged
		}
		return b.store()
	})
	if err != nil {
		return 0, err
	}
	return deleted, nil
}

// STSVersion returns a number that each Put and Delete which changed a policy has raised,
// whoever called it. It also differs if the file was begun anew.
func (s *Store) STSVersion(ctx context.Context) (n uint64, err error) {
	err = s.view(ctx, func(tx *bolt.Tx) error {
		n = tx.Bucket(stsBucket).Sequence()
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("bboltstore: read version of MTA-STS policies: %w", err)
	}
	return n, nil
}

// stsPolicies are the buckets of MTA-STS policies in a transaction.
type stsPolicies struct {
	tx              *bolt.Tx
	policies, names *bolt.Bucket
	usage           usage
	changed         bool
}

func loadSTS(tx *bolt.Tx) (*stsPolicies, error) {
	u, err := loadUsage(tx, stsKey)
	return &stsPolicies{tx: tx, policies: tx.Bucket(stsBucket), names: tx.Bucket(stsNamesBucket), usage: u}, err
}

// store raises the version and stores what is kept counted, if a policy was changed.
func (b *stsPolicies) store() error {
	if !b.changed {
		return nil
	}
	_, err := b.policies.NextSequence()
	return errors.Join(err, b.usage.store(b.tx, stsKey))
}

// get returns nil for a domain that has no policy.
func (b *stsPolicies) get(domain string) (*ruapost.STSPolicy, error) {
	v := b.policies.Get([]byte(domain))
	if v == nil {
		return nil, nil
	}
	return decodeSTS([]byte(domain), v)
}

// exceeded returns the bound that a policy of that size does not fit in, as the metric
// names it, "" if it fits.
func (b *stsPolicies) exceeded(bounds *stsBounds, domain string, size int) string {
	old := b.policies.Get([]byte(domain))
	switch {
	case size > MaxSTSPolicyBytes:
		return "sts_policy_bytes"
	case size > len(old) && b.usage.bytes-uint64(len(old))+uint64(size) > bounds.bytes:
		return "sts_bytes"
	case old != nil:
		return ""
	case b.usage.number >= bounds.policies:
		return "sts_policies"
	case counter(b.names, []byte(registeredName(domain))) >= bounds.organization:
		return "sts_organization"
	}
	return ""
}

func (b *stsPolicies) put(domain string, value []byte) error {
	if _, err := b.delete(domain); err != nil {
		return err
	}
	b.changed = true
	b.usage.add(1, len(value))
	return errors.Join(b.policies.Put([]byte(domain), value), count(b.names, []byte(registeredName(domain)), 1))
}

func (b *stsPolicies) delete(domain string) (found bool, err error) {
	key := []byte(domain)
	old := b.policies.Get(key)
	if old == nil {
		return false, nil
	}
	b.changed = true
	b.usage.remove(1, uint64(len(old)))
	return true, errors.Join(b.policies.Delete(key), count(b.names, []byte(registeredName(domain)), -1))
}

func encodeSTS(p *ruapost.STSPolicy) ([]byte, error) {
	if p.Domain == "" || len(p.Domain) > 253 || !utf8.ValidString(p.Domain) {
		return nil, fmt.Errorf("%.300q is no domain", p.Domain)
	}
	return json.Marshal(p)
}

func decodeSTS(key, v []byte) (*ruapost.STSPolicy, error) {
	p := &ruapost.STSPolicy{}
	if err := json.Unmarshal(v, p); err != nil {
		return nil, fmt.Errorf("MTA-STS policy at %q %w: %w", key, errUndecodable, err)
	}
	if p.Domain != string(key) {
		return nil, fmt.Errorf("MTA-STS policy at %q, of %.300q, %w", key, p.Domain, errUndecodable)
	}
	return p, nil
}

func checkSTS(tx *bolt.Tx) (faults []error) {
	b, err := loadSTS(tx)
	if err != nil {
		return []error{err}
	}
	var have usage
	names := map[string]uint64{}
	_ = b.policies.ForEach(func(k, v []byte) error {
		if _, err := decodeSTS(k, v); err != nil {
			faults = append(faults, err)
		}
		have.add(1, len(v))
		names[registeredName(string(k))]++
		return nil
	})
	if have != b.usage {
		faults = append(faults, fmt.Errorf("usage of MTA-STS policies says %+v, there are %+v", b.usage, have))
	}
	return append(faults, checkCounters(b.names, names)...)
}
