package inbound

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	connections = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "ruapost_milter_connections",
		Help: "Milter connections from Postfix.",
	})
	messages = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_milter_messages_total",
		Help: "Messages that reached their end, by DMARC result: none, pass, fail, temperror, permerror; " +
			"skipped ones came from authenticated clients or from no known address. Mail from trusted " +
			"networks is not seen.",
	}, []string{"result"})
	dispositions = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_milter_dispositions_total",
		Help: "What was done with judged messages because of DMARC: pass, none, quarantine, reject, defer.",
	}, []string{"disposition"})
	overridden = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_milter_overrides_total",
		Help: "Failing messages that were kept from their domain's policy by a section [[override]], or because " +
			"a trusted sealer had seen them pass (arc).",
	}, []string{"by"})
	upstreamResults = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_milter_upstream_total",
		Help: "With mode \"trust\", messages with results of milters before this one that were taken, by method: " +
			"spf, dkim, arc; or of none: nothing.",
	}, []string{"method"})
	limits = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_milter_limit_total",
		Help: "Limits that messages hit: header, fields, forged, recipients, signatures, signed_fields, " +
			"signed_header, key_record, blank_lines, arc, budget.",
	}, []string{"limit"})
	panics = promauto.NewCounter(prometheus.CounterOpts{
		Name: "ruapost_milter_panics_total",
		Help: "Faults inside this program that were caught; the message went on, unjudged or without what the fault was in.",
	})
	recordLate = promauto.NewCounter(prometheus.CounterOpts{
		Name: "ruapost_milter_record_late_total",
		Help: "Evaluations that were not on disk when Postfix got its answer.",
	})
	recordTime = promauto.NewHistogram(prometheus.HistogramOpts{
		Name:    "ruapost_milter_record_seconds",
		Help:    "Time from the verdict until the evaluation was on disk.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 8),
	})
	judgeTime = promauto.NewHistogram(prometheus.HistogramOpts{
		Name:    "ruapost_milter_judge_seconds",
		Help:    "Time from the end of a message until its verdict.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10),
	})
)
