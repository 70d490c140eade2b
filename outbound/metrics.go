package outbound

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	queries = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_policy_queries_total",
		Help: "Policy queries by answer: secure, dane, dane-only, none, no-domain, unknown-table.",
	}, []string{"answer"})
	queryTime = promauto.NewHistogram(prometheus.HistogramOpts{
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
	datagrams = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_tlsrpt_datagrams_total",
		Help: "TLSRPT datagrams from Postfix by result: ok, bad.",
	}, []string{"result"})
	sessionsDropped = promauto.NewCounter(prometheus.CounterOpts{
		Name: "ruapost_tlsrpt_sessions_dropped_total",
		Help: "TLS sessions that were not recorded: too many waited for the store, or it failed or cannot be used.",
	})
)
