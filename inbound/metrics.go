package inbound

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"ruapost/internal/metric"
)

var (
	messages = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_milter_messages_total",
		Help: "Messages that reached their end, by DMARC result: none, pass, fail, temperror, permerror; " +
			"skipped ones came from authenticated clients or from no known address. Mail from trusted " +
			"networks is not seen.",
	}, "result", "none", "pass", "fail", "temperror", "permerror", "skipped")
	dispositions = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_milter_dispositions_total",
		Help: "What was done with judged messages because of DMARC: pass, none, quarantine, reject, defer.",
	}, "disposition", "pass", "none", "quarantine", "reject", "defer")
	overridden = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_milter_overrides_total",
		Help: "Failing messages that were kept from their domain's policy by a section [[override]], or because " +
			"a trusted sealer had seen them pass (arc).",
	}, "by", "override", "arc")
	upstreamResults = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_milter_upstream_results_total",
		Help: "With mode \"trust\", messages with results of milters before this one that were taken, by method: " +
			"spf, dkim, arc; or of none: nothing.",
	}, "method", "spf", "dkim", "arc", "nothing")
	limits = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_milter_limit_hits_total",
		Help: "Limits that messages hit: header, fields, forged, recipients, signatures, signed_fields, " +
			"signed_header, key_record, blank_lines, arc, budget.",
	}, "limit", "header", "fields", "forged", "recipients", "signatures", "signed_fields",
		"signed_header", "key_record", "blank_lines", "arc", "budget")
	panics     = metric.NewPanics("message")
	recordLate = promauto.NewCounter(prometheus.CounterOpts{
		Name: "ruapost_milter_records_late_total",
		Help: "Evaluations that were not on disk when Postfix got its answer.",
	})
	recordTime = promauto.NewHistogram(prometheus.HistogramOpts{
		Name:    "ruapost_milter_record_duration_seconds",
		Help:    "Time from the verdict until the evaluation was on disk, or until the answer could not wait any longer.",
		Buckets: metric.Seconds(0.0005, 30),
	})
	judgeTime = promauto.NewHistogram(prometheus.HistogramOpts{
		Name:    "ruapost_milter_judge_duration_seconds",
		Help:    "Time from the end of a message until its verdict.",
		Buckets: metric.Seconds(0.0005, 40),
	})
)
