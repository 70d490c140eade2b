package bboltstore

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	recorded = promauto.NewCounter(prometheus.CounterOpts{
		Name: "ruapost_store_records_total",
		Help: "Evaluations and sessions that are on disk.",
	})
	dropped = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_store_dropped_total",
		Help: "What was not recorded in full, by what was in the way. Nothing was kept: queue " +
			"(too much waits to be written), groups (too many domains or policies, or the file is full), closed. " +
			"Counted in the total alone: details (too many rows), row_bytes (row too large). " +
			"known counts domains that are not remembered as known; sts_policies, sts_organization, " +
			"sts_bytes and sts_policy_bytes MTA-STS policies that are not kept (too many, too many below " +
			"one name, too many octets in all, in one); positions those of logs; suppressions such that were not " +
			"stored (too many), counts such changes of counters (too many names).",
	}, []string{"limit"})
	writeErrors = promauto.NewCounter(prometheus.CounterOpts{
		Name: "ruapost_store_errors_total",
		Help: "Times the file could not be opened or written.",
	})
	damaged = promauto.NewCounter(prometheus.CounterOpts{
		Name: "ruapost_store_damaged_total",
		Help: "Times the file was found damaged and set aside.",
	})
	queueLength = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "ruapost_store_queue_rows",
		Help: "Distinct rows that wait to be written.",
	})
	lockWait = promauto.NewHistogram(prometheus.HistogramOpts{
		Name:    "ruapost_store_open_seconds",
		Help:    "Time to get hold of the shared file.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
	})
	commitTime = promauto.NewHistogram(prometheus.HistogramOpts{
		Name:    "ruapost_store_commit_seconds",
		Help:    "Time to write one batch.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
	})
)
