package bboltstore

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"ruapost/internal/metric"
)

var (
	recorded = promauto.NewCounter(prometheus.CounterOpts{
		Name: "ruapost_store_records_total",
		Help: "Evaluations and sessions that are on disk.",
	})
	dropped = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_store_dropped_total",
		Help: "What was not recorded in full, by what was in the way. Nothing was kept: queue " +
			"(too much waits to be written), groups (too many domains or policies), file_size (the file is full), closed. " +
			"Counted in the total alone: details (too many rows), row_bytes (row too large). " +
			"policy_bytes counts sessions that were recorded without the text of their policy; " +
			"known domains that are not remembered as known; sts_policies, sts_organization, " +
			"sts_bytes and sts_policy_bytes MTA-STS policies that are not kept (too many, too many below " +
			"one name, too many octets in all, in one); positions and position_bytes those of logs (too many, one " +
			"too long, with its sessions); suppressions such that were not " +
			"stored (too many), counts such changes of counters (too many names).",
	}, "limit", "queue", "groups", "file_size", "closed", "details", "row_bytes", "policy_bytes", "known", "sts_policies",
		"sts_organization", "sts_bytes", "sts_policy_bytes", "positions", "position_bytes", "suppressions", "counts")
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
	queueBytes = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "ruapost_store_queue_bytes",
		Help: "Size of the rows that wait to be written.",
	})
	lockWait = promauto.NewHistogram(prometheus.HistogramOpts{
		Name:    "ruapost_store_open_duration_seconds",
		Help:    "Time to get hold of the shared file.",
		Buckets: metric.Seconds(0.0001, 30),
	})
	commitTime = promauto.NewHistogram(prometheus.HistogramOpts{
		Name:    "ruapost_store_commit_duration_seconds",
		Help:    "Time to write one batch.",
		Buckets: metric.Seconds(0.0001, 30),
	})
)
