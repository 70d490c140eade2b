package metric

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// An alert on the increase of a counter misses the first step of one that was not there
// before.
func TestCountersAreThereFromTheStart(t *testing.T) {
	vec := NewCounterVec(prometheus.CounterOpts{Name: "test_total", Help: "x"}, "result", "ok", "failed")
	if n := testutil.CollectAndCount(vec); n != 2 {
		t.Errorf("%d counters", n)
	}
	vec.WithLabelValues("ok").Inc()
	if n := testutil.CollectAndCount(vec); n != 2 {
		t.Errorf("%d counters after a step", n)
	}
}

// Several packages of one program count panics, each its own.
func TestPanics(t *testing.T) {
	a, b := NewPanics("a"), NewPanics("b")
	a.Inc()
	if testutil.ToFloat64(a) != 1 || testutil.ToFloat64(b) != 0 {
		t.Error("they are one counter")
	}
}

func TestSeconds(t *testing.T) {
	if d := cmp.Diff([]float64{0.5, 1, 2.5, 5}, Seconds(0.5, 5)); d != "" {
		t.Error(d)
	}
	if all := Seconds(0, 1000); len(all) != 19 || all[0] != 0.0001 || all[18] != 40 {
		t.Error(all)
	}
}
