package maillog

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	lines = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_maillog_lines_total",
		Help: "Lines of Postfix's log: used, idle (from smtp, qmgr or tlsproxy, but not about TLS or a delivery), foreign (from other programs), unreadable (a result in doubt), long (beyond the limit).",
	}, []string{"result"})
	events = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_maillog_events_total",
		Help: "What the log told, by kind: session, plaintext, problem.",
	}, []string{"kind"})
	dropped = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_maillog_dropped_total",
		Help: "Sessions and problems in the log that are no events: resumed (no new session), own (a report's delivery), unanswered (no result in time, or not readable), no-domain, limit.",
	}, []string{"reason"})
	sourceFaults = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_maillog_source_faults_total",
		Help: "What went wrong with reading the log: file (cannot be read), truncated, lost (the position is not found), journal (journalctl ended), undelivered (lines kept for another try).",
	}, []string{"fault"})
)

var (
	linesUsed       = lines.WithLabelValues("used")
	linesIdle       = lines.WithLabelValues("idle")
	linesForeign    = lines.WithLabelValues("foreign")
	linesUnreadable = lines.WithLabelValues("unreadable")
	linesLong       = lines.WithLabelValues("long")

	droppedResumed    = dropped.WithLabelValues("resumed")
	droppedOwn        = dropped.WithLabelValues("own")
	droppedUnanswered = dropped.WithLabelValues("unanswered")
	droppedNoDomain   = dropped.WithLabelValues("no-domain")
	droppedLimit      = dropped.WithLabelValues("limit")
)
