package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"ruapost/config"
	"ruapost/internal/metric"
)

var (
	programInfo = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "ruapost_build_info",
		Help: "Always 1: which program this is, its version, and that of Go it was built with.",
	}, []string{"program", "version", "goversion"})
	configReloads = metric.NewCounterVec(prometheus.CounterOpts{
		Name: "ruapost_config_reloads_total",
		Help: "Reloads of the configuration by result: ok, or failed, so that the old one stays in force.",
	}, "result", "ok", "failed")
)

// maxMetricsConns bounds the connections of those that watch.
const maxMetricsConns = 16

// ServeMetrics serves what is registered with Prometheus' default registry at
// /metrics until ctx ends; nothing if at is the zero Listen. A daemon without
// metrics still serves mail, so that all errors are only logged.
func ServeMetrics(ctx context.Context, at config.Listen) {
	if at == (config.Listen{}) {
		return
	}
	listener, err := openListener(at)
	if err != nil {
		slog.Error("no metrics", "err", err)
		return
	}
	slog.Info("serving metrics", "address", listener.Addr().String())
	serveMetrics(ctx, listener)
}

func serveMetrics(ctx context.Context, listener net.Listener) {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.Handler())
	server := &http.Server{
		Handler:        mux,
		ReadTimeout:    10 * time.Second,
		WriteTimeout:   30 * time.Second,
		IdleTimeout:    2 * time.Minute, // longer than usual scrape intervals
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
	}
	unregister := context.AfterFunc(ctx, func() { server.Close() })
	defer unregister()
	if err := server.Serve(netutil.LimitListener(listener, maxMetricsConns)); !errors.Is(err, http.ErrServerClosed) {
		slog.Error("no more metrics", "err", err)
	}
}
