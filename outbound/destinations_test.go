package outbound

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ruapost/dmarc"
)

// records answer TXT queries; a name that is not there does not exist.
type records map[string]string

func (r records) LookupTXT(_ context.Context, name string) ([]string, bool, error) {
	switch txt := r[name]; txt {
	case "":
		return nil, false, nil
	case "broken":
		return nil, false, errors.New("no answer")
	default:
		return []string{txt}, false, nil
	}
}

func (r records) Exists(context.Context, string) (bool, error) { return true, nil }

// noted is what was recorded.
type noted struct {
	domains []string
	err     error
}

func (n *noted) RecordDestinations(_ context.Context, domains []string, _ time.Time) error {
	n.domains = append(n.domains, domains...)
	return n.err
}

func TestDestinations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := records{"_dmarc.example.com": "v=DMARC1; p=none", "_dmarc.lost.example": "broken"}
		d := NewDestinations(&dmarc.Evaluator{Resolver: z})
		rec := &noted{}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			d.Run(ctx, rec)
		}()
		add := func(domains ...string) []string {
			rec.domains = nil
			for _, domain := range domains {
				d.Add(domain)
				synctest.Wait()
			}
			return rec.domains
		}
		if got := add("a.example.com", "example.net", "a.example.com"); !slices.Equal(got, []string{"example.com", "example.net"}) {
			t.Errorf("noted %v", got)
		}
		if got := add("example.net", "lost.example"); got != nil {
			t.Errorf("noted %v again, or what is not known", got)
		}
		z["_dmarc.lost.example"] = "v=DMARC1; p=none"
		if got := add("lost.example"); !slices.Equal(got, []string{"lost.example"}) {
			t.Errorf("noted %v after the DNS came back", got)
		}
		rec.err = errors.New("no store")
		add("example.org")
		rec.err = nil
		if got := add("example.org"); !slices.Equal(got, []string{"example.org"}) {
			t.Errorf("noted %v after the store came back", got)
		}
		time.Sleep(24 * time.Hour) // of the test's clock
		if got := add("example.net"); !slices.Equal(got, []string{"example.net"}) {
			t.Errorf("noted %v on the next day", got)
		}
		stop()
		<-ended
		for i := range 2 * maxToNote { // nobody notes: none of it waits
			d.Add(string(rune('a'+i%26)) + time.Duration(i).String() + ".example")
		}
		if n := len(d.noted); n > maxToNote+1 {
			t.Errorf("%d domains are to be noted", n)
		}
	})
}

// The policy daemon tells of each domain that mail goes to, and of nothing else.
func TestPoliciesTellDestinations(t *testing.T) {
	r := newRig(t)
	d := NewDestinations(&dmarc.Evaluator{Resolver: records{}})
	r.Policies.Destinations = d
	for _, key := range []string{"Example.com", ".example.com", "[mx.example.net]:25", "192.0.2.1", "example.com"} {
		r.Answer(t.Context(), TableQuery, key)
	}
	if len(d.queue) != 1 || <-d.queue != "example.com" {
		t.Error("other destinations than example.com")
	}
}
