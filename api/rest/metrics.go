package rest

import (
	"log/slog"
	"net/http"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"cairn/store/budget"
)

// newMetrics builds what /metrics answers, in a registry of its own: nothing that
// a library registers by itself gets in, and no label holds the name of a bucket,
// object or node.
func newMetrics(memory func() []budget.State, log *slog.Logger) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), // resident memory, open files, processor time
	)
	if memory != nil {
		reg.MustRegister(shares{memory})
	}
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorLog: quietly{log}, DisableCompression: true})
}

// quietly keeps what a collector says out of the log, but for that it said something.
type quietly struct{ log *slog.Logger }

func (q quietly) Println(...any) { q.log.Warn("metrics could not be gathered") }

func (f *face) serveMetrics(c echo.Context) error {
	f.metrics.ServeHTTP(c.Response(), c.Request())
	return nil
}

// shares collects the gauges of the memory's shares when they are asked for.
type shares struct{ states func() []budget.State }

var (
	shareLabel   = []string{"share"}
	shareLimit   = prometheus.NewDesc("cairn_memory_limit_bytes", "Bytes that a share of the memory has.", shareLabel, nil)
	shareUsed    = prometheus.NewDesc("cairn_memory_used_bytes", "Bytes of a share that are taken now.", shareLabel, nil)
	shareWaiting = prometheus.NewDesc("cairn_memory_waiting", "Who waits for a part of a share now.", shareLabel, nil)
	shareWaits   = prometheus.NewDesc("cairn_memory_waits_total", "Who has had to wait for a part of a share.", shareLabel, nil)
	shareRefused = prometheus.NewDesc("cairn_memory_refused_total", "Who got no part of a share, because the line was too long or too slow.", shareLabel, nil)
)

// Describe implements prometheus.Collector.
func (s shares) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{shareLimit, shareUsed, shareWaiting, shareWaits, shareRefused} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s shares) Collect(ch chan<- prometheus.Metric) {
	for _, st := range s.states() {
		for _, v := range []struct {
			desc *prometheus.Desc
			kind prometheus.ValueType
			n    int64
		}{
			{shareLimit, prometheus.GaugeValue, st.Limit}, {shareUsed, prometheus.GaugeValue, st.Used}, {shareWaiting, prometheus.GaugeValue, st.Waiting},
			{shareWaits, prometheus.CounterValue, st.Waits}, {shareRefused, prometheus.CounterValue, st.Refused},
		} {
			ch <- prometheus.MustNewConstMetric(v.desc, v.kind, float64(v.n), st.Name)
		}
	}
}
