package rest

import (
	"log/slog"
	"net/http"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"cairn/notice"
	"cairn/store"
	"cairn/store/budget"
)

// newMetrics builds what /metrics answers, in a registry of its own: nothing that
// a library registers by itself gets in, and no label holds the name of a bucket,
// object or node.
func newMetrics(cfg Config) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), // resident memory, open files, processor time
	)
	if cfg.Memory != nil {
		reg.MustRegister(shares{cfg.Memory})
	}
	if cfg.Notices != nil {
		reg.MustRegister(notices{cfg.Notices})
	}
	reg.MustRegister(jobs{cfg.Store.JobCounts}, scrubs{cfg.Store}, losses{cfg.Store})
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorLog: quietly{cfg.Log}, DisableCompression: true})
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

// jobs collects what became of jobs.
type jobs struct{ counts func() []store.JobCounts }

var (
	jobRuns = prometheus.NewDesc("cairn_job_runs_total", "Runs of jobs that have ended.", []string{"kind", "outcome"}, nil)
	jobLast = prometheus.NewDesc("cairn_job_last_success_timestamp_seconds", "When a run of that kind was done last, in seconds since 1970; none: never.", []string{"kind"}, nil)
)

// Describe implements prometheus.Collector.
func (j jobs) Describe(ch chan<- *prometheus.Desc) { ch <- jobRuns; ch <- jobLast }

// Collect implements prometheus.Collector.
func (j jobs) Collect(ch chan<- prometheus.Metric) {
	for _, c := range j.counts() {
		for outcome, n := range map[string]uint64{store.JobDone: c.Done, store.JobFailed: c.Failed, store.JobCancelled: c.Cancelled} {
			ch <- prometheus.MustNewConstMetric(jobRuns, prometheus.CounterValue, float64(n), c.Kind, outcome)
		}
		if !c.LastDone.IsZero() {
			ch <- prometheus.MustNewConstMetric(jobLast, prometheus.GaugeValue, float64(c.LastDone.UnixMilli())/1000, c.Kind)
		}
	}
}

// losses collects what was given up of the log.
type losses struct{ store Store }

var logGivenUp = prometheus.NewDesc("cairn_log_given_up_sequences", "Log packs that were given up, ever, because nobody could read them any more.", nil, nil)

// Describe implements prometheus.Collector.
func (l losses) Describe(ch chan<- *prometheus.Desc) { ch <- logGivenUp }

// Collect implements prometheus.Collector.
func (l losses) Collect(ch chan<- prometheus.Metric) {
	all, err := l.store.Losses()
	if err != nil {
		return
	}
	n := uint64(0)
	for _, x := range all {
		n += x.To - x.From + 1
	}
	ch <- prometheus.MustNewConstMetric(logGivenUp, prometheus.GaugeValue, float64(n))
}

// scrubs collects how old the last complete scrubs are, and what they left.
type scrubs struct{ store Store }

var (
	scrubDepth    = []string{"depth"}
	scrubAttested = prometheus.NewDesc("cairn_scrub_oldest_attested_timestamp_seconds", "Every shard that was stored then has been read against its digest since, in seconds since 1970; when that never was, when the store began.", nil, nil)
	scrubVerified = prometheus.NewDesc("cairn_scrub_oldest_verified_timestamp_seconds", "All that was stored then has been verified since: parity coded again, every chunk opened. In seconds since 1970; when that never was, when the store began.", nil, nil)
	scrubLimit    = prometheus.NewDesc("cairn_scrub_limit_seconds", "The age that a scrub of that depth is to be done within; 0: none begins by itself.", scrubDepth, nil)
	scrubOverdue  = prometheus.NewDesc("cairn_scrub_overdue", "1 when the age is beyond its limit, or unknown because the clock was set back; else 0.", scrubDepth, nil)
	scrubLeft     = prometheus.NewDesc("cairn_scrub_left", "Shards that the last complete scrub of that depth left damaged.", scrubDepth, nil)
	scrubLost     = prometheus.NewDesc("cairn_scrub_lost", "Packs, and chunks of whole packs, that the last complete scrub of that depth found lost.", scrubDepth, nil)
)

// Describe implements prometheus.Collector.
func (s scrubs) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{scrubAttested, scrubVerified, scrubLimit, scrubOverdue, scrubLeft, scrubLost} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s scrubs) Collect(ch chan<- prometheus.Metric) {
	ages, _ := s.store.ScrubAges() // when it fails there are none, and the others are there still
	for _, a := range ages {
		oldest, overdue := scrubAttested, 0.0
		if a.Deep {
			oldest = scrubVerified
		}
		if a.Overdue {
			overdue = 1
		}
		ch <- prometheus.MustNewConstMetric(oldest, prometheus.GaugeValue, float64(a.Since.UnixMilli())/1000)
		ch <- prometheus.MustNewConstMetric(scrubLimit, prometheus.GaugeValue, a.Within.Seconds(), depthOf(a.Deep))
		ch <- prometheus.MustNewConstMetric(scrubOverdue, prometheus.GaugeValue, overdue, depthOf(a.Deep))
	}
	for _, p := range s.store.ScrubPasses() {
		depth := depthOf(p.Deep)
		ch <- prometheus.MustNewConstMetric(scrubLeft, prometheus.GaugeValue, float64(p.Left), depth)
		ch <- prometheus.MustNewConstMetric(scrubLost, prometheus.GaugeValue, float64(p.Lost), depth)
	}
}

// notices collects what became of messages about what was found wrong.
type notices struct{ counts func() []notice.Counts }

var (
	noticeMessages = prometheus.NewDesc("cairn_notice_messages_total", "Messages about what was found wrong, by way (command, url) and outcome: sent, or failed, which is tried again.", []string{"way", "outcome"}, nil)
	noticeDropped  = prometheus.NewDesc("cairn_notices_dropped_total", "Notices that there was no room for while a way took none.", []string{"way"}, nil)
)

// Describe implements prometheus.Collector.
func (n notices) Describe(ch chan<- *prometheus.Desc) { ch <- noticeMessages; ch <- noticeDropped }

// Collect implements prometheus.Collector.
func (n notices) Collect(ch chan<- prometheus.Metric) {
	for _, c := range n.counts() {
		ch <- prometheus.MustNewConstMetric(noticeMessages, prometheus.CounterValue, float64(c.Sent), c.Way, "sent")
		ch <- prometheus.MustNewConstMetric(noticeMessages, prometheus.CounterValue, float64(c.Failed), c.Way, "failed")
		ch <- prometheus.MustNewConstMetric(noticeDropped, prometheus.CounterValue, float64(c.Dropped), c.Way)
	}
}
