package maillog

import (
	"github.com/prometheus/client_golang/prometheus"

	"ruapost/internal/metric"
)

var (
	lines = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_maillog_lines_total",
		Help: "Lines of Postfix's log: used, idle (from smtp, qmgr or tlsproxy, but not about TLS or a delivery), foreign (from other programs), unreadable (a result in doubt), long (beyond the limit).",
	}, "result", "used", "idle", "foreign", "unreadable", "long")
	events = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_maillog_events_total",
		Help: "What the log told, by kind: session, plaintext, problem.",
	}, "kind", string(KindSession), string(KindPlaintext), string(KindProblem))
	dropped = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_maillog_dropped_total",
		Help: "Sessions and problems in the log that are no events: resumed (no new session), own (a report's delivery), unanswered (no result in time, or not readable), no_domain, limit.",
	}, "reason", "resumed", "own", "unanswered", "no_domain", "limit")
	sourceFaults = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_maillog_source_faults_total",
		Help: "What went wrong with reading the log: file (cannot be read, at each try), truncated (and read from its beginning), lost (the position is not found), journal (journalctl ended), undelivered (lines kept for another try).",
	}, "fault", "file", "truncated", "lost", "journal", "undelivered")
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
	droppedNoDomain   = dropped.WithLabelValues("no_domain")
	droppedLimit      = dropped.WithLabelValues("limit")
)
