package rest

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"cairn/notice"
	"cairn/store"
	"cairn/store/budget"
)

// TestMetrics: each share's figures, the runtime's and the process's are there,
// behind the token, and nothing that a client named.
func TestMetrics(t *testing.T) {
	share := budget.NewShare("readers, slow", 100, 0)
	if !share.TryAcquire(70) {
		t.Fatal("70 of 100")
	}
	if err := share.Acquire(t.Context(), 50); err == nil {
		t.Fatal("120 of 100")
	}
	r := newRig(t)
	r.store.counts = []store.JobCounts{{Kind: "repair", Done: 3, Failed: 2, Cancelled: 1, LastDone: time.Unix(1_700_000_000, 500_000_000)}, {Kind: "snapshot"}}
	h, err := New(Config{Store: r.store, Token: testToken, Memory: func() []budget.State { return []budget.State{share.State()} },
		Notices: func() []notice.Counts { return []notice.Counts{{Way: "url", Sent: 3, Failed: 2, Dropped: 1}} }})
	if err != nil {
		t.Fatal(err)
	}
	r.handler = h
	r.put("some-secret-key", "x")
	a := r.do(http.MethodGet, "/metrics", "")
	if a.status != http.StatusOK || !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
		t.Fatalf("%d %s", a.status, a.header.Get("Content-Type"))
	}
	for _, line := range []string{
		`cairn_memory_limit_bytes{share="readers, slow"} 100`,
		`cairn_memory_used_bytes{share="readers, slow"} 70`,
		`cairn_memory_waiting{share="readers, slow"} 0`,
		`cairn_memory_waits_total{share="readers, slow"} 0`,
		`cairn_memory_refused_total{share="readers, slow"} 1`,
		"# TYPE cairn_memory_refused_total counter",
		`cairn_job_runs_total{kind="repair",outcome="cancelled"} 1`,
		`cairn_job_runs_total{kind="repair",outcome="done"} 3`,
		`cairn_job_runs_total{kind="repair",outcome="failed"} 2`,
		`cairn_job_runs_total{kind="snapshot",outcome="done"} 0`,
		`cairn_job_last_success_timestamp_seconds{kind="repair"} 1.7000000005e+09`,
		`cairn_scrub_oldest_attested_timestamp_seconds 1.`, `cairn_scrub_oldest_verified_timestamp_seconds 1.`, `cairn_scrub_limit_seconds{depth="light"} 604800`,
		`cairn_scrub_limit_seconds{depth="deep"} 2.592e+06`, `cairn_scrub_overdue{depth="light"} 0`, `cairn_scrub_overdue{depth="deep"} 1`,
		`cairn_scrub_left{depth="deep"} 1`, `cairn_scrub_lost{depth="deep"} 0`,
		`cairn_notice_messages_total{outcome="sent",way="url"} 3`, `cairn_notice_messages_total{outcome="failed",way="url"} 2`, `cairn_notices_dropped_total{way="url"} 1`,
		"go_memstats_heap_inuse_bytes ", "process_open_fds ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(a.body, "\n"+line) {
			t.Errorf("no line %q", line)
		}
	}
	if strings.Contains(a.body, `timestamp_seconds{kind="snapshot"}`) {
		t.Error("a job that was never done has a time")
	}
	if strings.Contains(a.body, `left{depth="light"`) {
		t.Error("a depth that was never complete has figures")
	}
	for _, name := range []string{"some-secret-key", `"main"`, "n01"} {
		if strings.Contains(a.body, name) {
			t.Errorf("the metrics name %s", name)
		}
	}
	if a := r.do(http.MethodGet, "/metrics?name=x", ""); a.status != http.StatusBadRequest {
		t.Errorf("a parameter: %d", a.status)
	}
}
