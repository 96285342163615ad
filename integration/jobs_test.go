package integration

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"
)

// scrubbed is what `cairn scrub --json` says.
type scrubbed struct {
	Result struct {
		Complete  bool `json:"complete"`
		Damaged   int  `json:"damaged"`
		Left      int  `json:"left"`
		Orphans   int  `json:"orphans"`
		Stale     int  `json:"stale"`
		Undecided int  `json:"undecided"`
	} `json:"result"`
}

// scrub runs a scrub to its end.
func (r *rig) scrub(args ...string) (out scrubbed, code int) {
	r.t.Helper()
	stdout, stderr, code := r.command(append([]string{"scrub", "--json", "--rate", "10GB"}, args...)...)
	if err := json.Unmarshal([]byte(stdout), &out); err != nil {
		r.t.Errorf("cairn scrub --json: exit code %d, %v\n%s%s", code, err, stdout, stderr)
	}
	return out, code
}

// wholeWithin waits until no pack is short of a shard.
func (r *rig) wholeWithin(limit time.Duration) {
	r.t.Helper()
	for deadline := time.Now().Add(limit); *r.status().PacksShort > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%d packs are short", *r.status().PacksShort)
		}
	}
}

// TestKilledJobs kills the process in the middle of scrubs, collections, snapshots, repairs of
// lost nodes and rebuilds, beside a mixed load: after each restart everything is there, what
// was begun is begun again, and in the end nothing is short and nothing is left that is no
// part of the store (H28, H33, H37).
func TestKilledJobs(t *testing.T) {
	rng := newRand(t)
	r, j := newRig(t), newJournal()
	n := rounds(6, 25, 300)
	started := map[string]int{}
	var rebuilds, replaced int
	for round := range n {
		if round > 0 && rng.IntN(4) == 0 {
			// The index is lost, and so is the first attempt to make it anew.
			removeAll(t, r.index())
			rebuilds++
			s := r.launch()
			time.Sleep(time.Duration(rng.Int64N(int64(200 * time.Millisecond))))
			s.kill()
		}
		lost := ""
		if round > 0 && rng.IntN(5) == 0 {
			// A repair that was cut off goes on first: one node is lost, not one more.
			s := r.start()
			r.wholeWithin(time.Minute)
			s.kill()
			lost = nodeNames()[rng.IntN(6)]
			removeAll(t, r.node(lost))
		}
		s := r.start("--snapshot-every", "128KiB")
		j.check(s, true, j.all())
		report(t, j)
		if lost != "" {
			r.must("nodes", "replace", lost)
			replaced++
			started["repair"]++
		}
		l := startLoad(j, s, rng, 4, 10)
		c := s.client()
		for range 1 + rng.IntN(3) {
			time.Sleep(time.Duration(rng.Int64N(int64(150 * time.Millisecond))))
			kind := []string{"gc", "gc", "scrub", "snapshot", "repair", "check-index"}[rng.IntN(6)]
			body := map[string]any{"kind": kind}
			switch kind {
			case "gc":
				body["now"], body["rate"] = true, 1<<34
			case "scrub":
				body["deep"], body["rate"] = rng.IntN(2) == 0, 1<<30
			}
			b, err := json.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			a := c.do(http.MethodPost, "/v1/jobs", http.Header{"Content-Type": {"application/json"}}, b)
			switch {
			case a.status == http.StatusAccepted:
				started[kind]++
			case a.status != http.StatusConflict:
				t.Errorf("start %s: %v %s", kind, a, cut(string(a.body)))
			}
		}
		time.Sleep(time.Duration(rng.Int64N(int64(300 * time.Millisecond))))
		s.kill()
		c.close()
		l.end()
		report(t, j)
	}
	s := r.start()
	j.check(s, true, j.all())
	report(t, j)
	for i := 0; ; i++ {
		if _, ok := r.collect("--now"); !ok {
			t.FailNow()
		}
		out, code := r.scrub("--deep")
		if code == 0 && out.Result.Complete && out.Result.Orphans+out.Result.Stale+out.Result.Undecided == 0 {
			break
		}
		if i == 10 {
			t.Errorf("scrubs still find something, exit code %d: %+v", code, out.Result)
			break
		}
	}
	if st := r.status(); *st.PacksShort > 0 {
		t.Errorf("%d packs are short", *st.PacksShort)
	}
	s.stop()
	r.verify()
	t.Logf("%d rounds: jobs that were begun and cut off or not: %v; %d indexes lost, %d nodes; %s", n, started, rebuilds, replaced, j.counts())
	if len(started) < 4 {
		t.Errorf("too few kinds of jobs had a part in it: %v", started)
	}
}
