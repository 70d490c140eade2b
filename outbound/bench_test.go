package outbound

import (
	"fmt"
	"testing"
)

// BenchmarkAnswer is a query for a domain whose answer is kept.
func BenchmarkAnswer(b *testing.B) {
	p := NewPolicies(nil, nil, nil, Settings{})
	defer p.Close()
	const domains = 100_000
	keys := make([]string, domains)
	for i := range keys {
		keys[i] = fmt.Sprintf("domain%d.example", i)
		p.answers.Set(keys[i], &p.settings.Load().nothing)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			p.Answer(b.Context(), TableQueryTLSRPT, keys[i*7919%domains])
		}
	})
}
