// Package metric declares counters of Prometheus whose labels have fixed values. All are
// there from the start: a counter that comes into being with its first step seems not to
// have made one, and no alert sees it.
package metric

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// NewCounterVec registers counters that differ in one label, one for each of its values.
func NewCounterVec(opts prometheus.CounterOpts, label string, values ...string) *prometheus.CounterVec {
	vec := promauto.NewCounterVec(opts, []string{label})
	for _, v := range values {
		vec.WithLabelValues(v)
	}
	return vec
}

// NewPanics registers the counter of panics that are caught in one kind of work. Each
// package that catches some has its own.
func NewPanics(in string) prometheus.Counter {
	return promauto.NewCounter(prometheus.CounterOpts{
		Name: "ruapost_panics_total",
		Help: "Faults inside the program that were caught, by what they were in: connection (closed), query (answered " +
			"with NOTFOUND), message (went on, unjudged or without what the fault was in), lookup in the DNS or fetch of " +
			"an MTA-STS policy (counts as failed).",
		ConstLabels: prometheus.Labels{"in": in},
	})
}

// Seconds are the bounds of a histogram of times, two or three to a power of ten.
func Seconds(least, most float64) (bounds []float64) {
	for _, b := range []float64{
		0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 40,
	} {
		if least <= b && b <= most {
			bounds = append(bounds, b)
		}
	}
	return bounds
}
