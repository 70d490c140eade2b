package outbound

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"ruapost/internal/metric"
)

var (
	queries = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_policy_queries_total",
		Help: "Policy queries by answer: sts, testing, dane, dane-only, none; override (as configured); unknown " +
			"(nothing could be found out, answered as none) or error (the same, deferred); may (DANE is ignored, as " +
			"configured); no_domain, unknown_table.",
	}, "answer", "sts", "testing", "dane", "dane-only", "none", "override", "may", "unknown", "error", "no_domain", "unknown_table")
	queriesUnknown      = queries.WithLabelValues("unknown")
	queriesNoDomain     = queries.WithLabelValues("no_domain")
	queriesUnknownTable = queries.WithLabelValues("unknown_table")
	queryTime           = promauto.NewHistogram(prometheus.HistogramOpts{
		Name:    "ruapost_policy_query_duration_seconds",
		Help:    "Time to answer a policy query.",
		Buckets: metric.Seconds(0.0001, 5),
	})
	limits = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_policy_limit_hits_total",
		Help: "Limits of answers: time (not all could be looked up within it), hosts (of a domain with more MX hosts only " +
			"the most preferred were looked at), answers and policies (kept ones that made room for others).",
	}, "limit", "time", "hosts", "answers", "policies")
	limitAnswers  = limits.WithLabelValues("answers")
	limitPolicies = limits.WithLabelValues("policies")
	destinations  = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_policy_destinations_total",
		Help: "Domains that mail is sent to, once a day each: noted in the store, or missed until the next mail to them.",
	}, "result", "noted", "missed")
	fetches = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_sts_fetches_total",
		Help: "Fetches of MTA-STS policies by result: ok, failed, refused (too many under way).",
	}, "result", "ok", "failed", "refused")
	storeErrors = promauto.NewCounter(prometheus.CounterOpts{
		Name: "ruapost_sts_store_errors_total",
		Help: "MTA-STS policies that could not be read from the store, kept there or deleted.",
	})
	problemsTotal = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_tlsrpt_problems_total",
		Help: "What kept a policy from being applied, by result: noted for a report, unwanted (the domain asks for none), missed.",
	}, "result", "noted", "unwanted", "missed")
	logEvents = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_maillog_sessions_total",
		Help: "What Postfix's log told of outbound connections: recorded, unreported (the domain asks for no report, or the " +
			"mail was routed elsewhere), datagram (counted there), plaintext.",
	}, "result", "recorded", "unreported", "datagram", "plaintext")
	datagrams = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_tlsrpt_datagrams_total",
		Help: "TLSRPT datagrams from Postfix by result: ok, bad, dropped (too many waited to be recorded).",
	}, "result", "ok", "bad", "dropped")
	datagramsOK      = datagrams.WithLabelValues("ok")
	datagramsBad     = datagrams.WithLabelValues("bad")
	datagramsDropped = datagrams.WithLabelValues("dropped")
	sessionsDropped  = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_tlsrpt_sessions_dropped_total",
		Help: "TLS sessions that were not recorded: store (it failed or cannot be used), hosts (too many wait until it is " +
			"known whether their MX host wants a report, in which they are missing).",
	}, "reason", "store", "hosts")
	droppedByStore  = sessionsDropped.WithLabelValues("store")
	droppedForHosts = sessionsDropped.WithLabelValues("hosts")
)
