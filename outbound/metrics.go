package outbound

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	queries = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_policy_queries_total",
		Help: "Policy queries by answer: sts, testing, dane, dane-only, none; override (as configured); unknown " +
			"(nothing could be found out, answered as none) or error (the same, deferred); no-domain, unknown-table.",
	}, []string{"answer"})
	queriesUnknown      = queries.WithLabelValues("unknown")
	queriesNoDomain     = queries.WithLabelValues("no-domain")
	queriesUnknownTable = queries.WithLabelValues("unknown-table")
	queryTime           = promauto.NewHistogram(prometheus.HistogramOpts{
		Name:    "ruapost_policy_query_seconds",
		Help:    "Time to answer a policy query.",
		Buckets: prometheus.ExponentialBuckets(0.00001, 8, 8),
	})
	destinations = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_destinations_total",
		Help: "Domains that mail is sent to, once a day each: noted in the store, or missed until the next mail to them.",
	}, []string{"result"})
	fetches = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_sts_fetches_total",
		Help: "Fetches of MTA-STS policies by result: ok, failed, refused (too many under way).",
	}, []string{"result"})
	storeErrors = promauto.NewCounter(prometheus.CounterOpts{
		Name: "ruapost_sts_store_errors_total",
		Help: "MTA-STS policies that could not be read from the store or kept there.",
	})
	problemsTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_tls_problems_total",
		Help: "What kept a policy from being applied, by result: noted for a report, unwanted (the domain asks for none), missed.",
	}, []string{"result"})
	logEvents = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_maillog_sessions_total",
		Help: "What Postfix's log told of outbound connections: recorded, unreported (the domain asks for no report, or the " +
			"mail was routed elsewhere), datagram (counted there), plaintext.",
	}, []string{"result"})
	datagrams = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_tlsrpt_datagrams_total",
		Help: "TLSRPT datagrams from Postfix by result: ok, bad, dropped (too many waited to be recorded).",
	}, []string{"result"})
	datagramsOK      = datagrams.WithLabelValues("ok")
	datagramsBad     = datagrams.WithLabelValues("bad")
	datagramsDropped = datagrams.WithLabelValues("dropped")
	sessionsDropped  = promauto.NewCounter(prometheus.CounterOpts{
		Name: "ruapost_tlsrpt_sessions_dropped_total",
		Help: "TLS sessions that were not recorded: the store failed or cannot be used.",
	})
)
