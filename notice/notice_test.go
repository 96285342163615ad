package notice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/schedule"
	"cairn/store"
)

// TestOf: which events are notices, of what kind, and that nothing is in them but what
// was meant: no name of an object, no path, no error.
func TestOf(t *testing.T) {
	const name = "holiday/photo.jpg"
	ended := func(kind, state string, result any) store.Event {
		b, err := json.Marshal(result)
		if err != nil {
			t.Fatal(err)
		}
		return store.Event{ID: "x-1", Name: store.EventJobEnded, Job: &store.Job{Kind: kind, State: state, Result: b, Error: "cannot read " + name}}
	}
	found := []string{"rotten: " + name}
	overdue := &store.ScrubAge{Deep: true, Age: schedule.Age{Age: 31*schedule.Day + 5*time.Second, Within: 30 * schedule.Day, Overdue: true}}
	unknown := &store.ScrubAge{Age: schedule.Age{Within: 7 * schedule.Day, Unknown: true, Overdue: true}}
	stopped := ended(store.JobScrub, store.JobFailed, store.ScrubResult{Damaged: 1, Repaired: 1})
	stopped.Job.Error = "the server stopped"
	for _, c := range []struct {
		name           string
		ev             store.Event
		kind, severity string // none: no notice
		text           string
	}{
		{"a sound scrub", ended(store.JobScrub, store.JobDone, store.ScrubResult{Complete: true, Packs: 3}), "", "", ""},
		{"repaired", ended(store.JobScrub, store.JobDone, store.ScrubResult{Damaged: 3, Repaired: 2, Passing: 1, Findings: found}), ScrubRepaired, Warning,
			"a light scrub found 3 shards damaged: 2 repaired, 1 right when read again, 0 left"},
		{"left", ended(store.JobScrub, store.JobFailed, store.ScrubResult{Deep: true, Damaged: 3, Repaired: 2, Left: 1, Findings: found}), DamageLeft, Critical,
			"a deep scrub found 3 shards damaged: 2 repaired, 0 right when read again, 1 left"},
		{"a dry run", ended(store.JobScrub, store.JobFailed, store.ScrubResult{DryRun: true, Damaged: 3, Left: 3, Findings: found}), "", "", ""},
		{"lost", ended(store.JobScrub, store.JobFailed, store.ScrubResult{Damaged: 3, Left: 3, LostPacks: 1, Findings: found}), DataLost, Critical,
			"a light scrub found 3 shards damaged: 0 repaired, 0 right when read again, 3 left; LOST: 1 pack, and 0 chunks in others"},
		{"a chunk lost", ended(store.JobScrub, store.JobFailed, store.ScrubResult{Broken: 1}), DataLost, Critical,
			"a light scrub found 0 shards damaged: 0 repaired, 0 right when read again, 0 left; LOST: 0 packs, and 1 chunk in others"},
		{"not asked", ended(store.JobScrub, store.JobFailed, store.ScrubResult{NotAsked: 7, Findings: found}), JobFailed, Warning, "a light scrub could not ask for 7 shards; see cairn status"},
		{"a scrub that did not run", ended(store.JobScrub, store.JobFailed, store.ScrubResult{Findings: found}), JobFailed, Warning, "a job failed: scrub 00000000-0000-0000-0000-000000000000; see cairn jobs show"},
		{"a scrub that was cancelled", ended(store.JobScrub, store.JobCancelled, store.ScrubResult{Damaged: 1, Left: 1}), "", "", ""},
		{"a scrub that was stopped", stopped, "", "", ""},
		{"a repair", ended(store.JobRepair, store.JobDone, store.RepairResult{Packs: 4, Shards: 5}), "", "", ""},
		{"a repair that leaves some", ended(store.JobRepair, store.JobFailed, store.RepairResult{Short: 2}), RepairLeft, Critical, "a repair ended before all was whole: 2 packs short of a shard still"},
		{"a repair that finds some lost", ended(store.JobRepair, store.JobFailed, store.RepairResult{Short: 2, Lost: 1, LostBytes: 5}), DataLost, Critical, "a repair found 1 pack LOST, and 2 packs short of a shard still"},
		{"a sound index", ended(store.JobCheckIndex, store.JobDone, store.CheckResult{Rows: 5}), "", "", ""},
		{"a damaged index", ended(store.JobCheckIndex, store.JobFailed, store.CheckResult{Rows: 5, Found: 2, Findings: found}), IndexDamaged, Critical,
			"the index is damaged: 2 differences; the server stops, and its next start makes the index anew"},
		{"an index that could not be proved", ended(store.JobCheckIndex, store.JobFailed, nil), JobFailed, Warning, "a job failed: check-index 00000000-0000-0000-0000-000000000000; see cairn jobs show"},
		{"a snapshot that failed", ended(store.JobSnapshot, store.JobFailed, nil), JobFailed, Warning, "a job failed: snapshot 00000000-0000-0000-0000-000000000000; see cairn jobs show"},
		{"a job that starts", store.Event{Name: store.EventJobStarted, Job: &store.Job{Kind: store.JobScrub, State: store.JobRunning}}, "", "", ""},
		{"a missing node", store.Event{Name: store.EventNode, Node: &store.NodeState{Name: "n03", State: "missing", Reason: "/data/" + name}}, NodeLost, Critical,
			"node n03 is missing; if its directory is lost: cairn nodes replace n03"},
		{"a node that is down", store.Event{Name: store.EventNode, Node: &store.NodeState{Name: "n03", State: "down", Reason: "/data/" + name}}, NodeLost, Warning, "node n03 is down; see cairn status"},
		{"a slow node", store.Event{Name: store.EventNode, Node: &store.NodeState{Name: "n03", State: "slow"}}, "", "", ""},
		{"a node that is back", store.Event{Name: store.EventNode, Node: &store.NodeState{Name: "n03", State: "up"}}, "", "", ""},
		{"writes stop", store.Event{Name: store.EventWrites, Taken: &store.Taken{Reason: name}}, WritesStopped, Critical, "no writes are taken any more; see cairn status"},
		{"writes go on", store.Event{Name: store.EventWrites, Taken: &store.Taken{Taken: true}}, "", "", ""},
		{"no room", store.Event{Name: store.EventRoom, Taken: &store.Taken{Reason: name}}, NoRoom, Critical, "no new data is taken any more: too little room; see cairn status"},
		{"overdue", store.Event{Name: store.EventOverdue, Overdue: overdue}, ScrubOverdue, Warning, "a deep scrub is overdue: the last word is 31d old, its limit 30d"},
		{"of another clock", store.Event{Name: store.EventOverdue, Overdue: unknown}, ScrubOverdue, Warning, "a light scrub is overdue: the last one is of a later time than the clock shows"},
		{"missed events", store.Event{Name: store.EventMissed}, "", "", ""},
	} {
		n, ok := of(c.ev)
		if ok != (c.kind != "") || ok && (n.Kind != c.kind || n.Severity != c.severity || n.Text != c.text || n.Count != 1 || n.ID != c.ev.ID) {
			t.Errorf("%s: %v, %+v", c.name, ok, n)
		}
		b, err := json.Marshal(newMessage("c", []waiting{{Notice: n}}, 0))
		if err != nil || strings.Contains(string(b), "holiday") || strings.Contains(string(b), "photo") {
			t.Errorf("%s: an object is named: %s, %v", c.name, b, err)
		}
	}
}

// sink takes what a way sends.
type sink struct {
	mu   sync.Mutex
	got  []message
	at   []time.Duration
	fail error
	hang bool
	from time.Time
	now  atomic.Int64 // sends under way
	most atomic.Int64
}

func (s *sink) send(ctx context.Context, body []byte) error {
	s.most.Store(max(s.most.Load(), s.now.Add(1)))
	defer s.now.Add(-1)
	s.mu.Lock()
	fail, hang := s.fail, s.hang
	var m message
	if err := json.Unmarshal(body, &m); err != nil {
		s.mu.Unlock()
		return err
	}
	s.got, s.at = append(s.got, m), append(s.at, time.Since(s.from))
	s.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return fail
}

func (s *sink) set(fail error, hang bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail, s.hang = fail, hang
}

// ways starts a way in a bubble of synctest.
func ways(t *testing.T) (w *way, s *sink, end func(grace time.Duration)) {
	s = &sink{from: time.Now()}
	w = newWay("url", s.send, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(t.Context())
	closing, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		w.run(ctx, "cluster", closing)
	}()
	return w, s, func(grace time.Duration) {
		time.AfterFunc(grace, stop)
		close(closing)
		<-over
		stop()
	}
}

func lost(node int) Notice {
	return Notice{Kind: NodeLost, Severity: Warning, Node: fmt.Sprint("n", node), Text: "gone", Count: 1}
}

// TestWaysCoalesce: what comes together is one message, with one notice of each
// subject; messages are a minute apart, and notices of a node that comes and goes a
// quarter of an hour.
func TestWaysCoalesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, end := ways(t)
		for i := range 3000 { // three a second, each of another node
			time.Sleep(time.Second / 3)
			w.add(lost(i % 3))
		}
		w.add(lost(7))
		time.Sleep(time.Second * 3)
		w.add(lost(8))
		time.Sleep(time.Hour)
		end(0)
		total := 0
		var at []string
		for i, m := range s.got {
			at = append(at, fmt.Sprintf("%d at %v", len(m.Notices), s.at[i].Round(time.Second)))
			for _, n := range m.Notices {
				total += n.Count
			}
			if m.Dropped != 0 || m.Store != "cluster" || strings.Count(m.Text, "\n") != len(m.Notices)-1 {
				t.Errorf("message %d: %+v", i, m)
			}
		}
		if got, want := strings.Join(at, ", "), "3 at 2s, 3 at 15m2s, 1 at 16m42s, 1 at 17m42s, 3 at 30m2s"; got != want || total != 3002 || s.most.Load() != 1 {
			t.Errorf("messages with %s notices, want %s; they tell of %d, %d messages at a time", got, want, total, s.most.Load())
		}
		if n := s.got[1].Notices[0]; n.Count < 10 || !strings.Contains(s.got[1].Text, fmt.Sprintf("cairn warning: gone (%d times)", n.Count)) {
			t.Errorf("the second message says %q", s.got[1].Text)
		}
		if len(w.told) > 5 {
			t.Errorf("%d subjects are remembered", len(w.told))
		}
	})
}

// TestWaysTryAgain: what could not be delivered is tried again, later each time, with
// what has come meanwhile; what there is no room for is counted.
func TestWaysTryAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, end := ways(t)
		s.set(errors.New("no"), false)
		w.add(lost(0))
		time.Sleep(4 * time.Hour)
		w.add(lost(0))
		for i := 1; i < maxNotices+7; i++ {
			w.add(lost(i))
		}
		var gaps []time.Duration
		for i := 1; i < len(s.at); i++ {
			gaps = append(gaps, s.at[i]-s.at[i-1])
		}
		if got, want := fmt.Sprint(gaps[:8]), "[1m0s 2m0s 4m0s 8m0s 16m0s 32m0s 1h0m0s 1h0m0s]"; got != want {
			t.Errorf("tried again after %s, want %s", got, want)
		}
		time.Sleep(2 * time.Hour)
		s.set(nil, false)
		time.Sleep(2 * time.Hour)
		end(0)
		last := s.got[len(s.got)-1]
		if len(last.Notices) != maxNotices || last.Notices[0].Count != 2 || last.Dropped != 7 {
			t.Errorf("in the end %d notices, %d dropped, the first is %+v", len(last.Notices), last.Dropped, last.Notices[0])
		}
		if c := w.counts; c.Sent != 1 || c.Failed != uint64(len(s.got)-1) || c.Dropped != 7 {
			t.Errorf("counted %+v of %d", c, len(s.got))
		}
	})
}

// TestWaysEnd: when the store closes, what waits goes out at once; a way that hangs is
// left after its grace.
func TestWaysEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, s, end := ways(t)
		w.add(lost(1))
		time.Sleep(time.Minute)
		w.add(lost(2))
		end(3 * time.Second)
		if len(s.got) != 2 || time.Since(s.from) > time.Minute+time.Second {
			t.Errorf("%d messages when it ends, after %v", len(s.got), time.Since(s.from))
		}
		w, s, end = ways(t)
		s.set(nil, true)
		w.add(lost(1))
		time.Sleep(time.Hour)
		for i := range 1000 { // nobody waits for a way that hangs
			w.add(lost(i))
		}
		if d := time.Since(s.from); d != time.Hour {
			t.Errorf("adding took %v", d-time.Hour)
		}
		end(3 * time.Second)
		if d := time.Since(s.from); d != time.Hour+3*time.Second {
			t.Errorf("it ended after %v", d)
		}
	})
}

// TestRun: of a store that has closed nothing is told but the nodes that were lost when
// it opened, and what of the log had been given up.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{from: time.Now()}
		n := &Notifier{log: slog.New(slog.DiscardHandler), ways: []*way{newWay("url", s.send, slog.New(slog.DiscardHandler))}}
		n.Run(t.Context(), "c", func(string) *store.Listener { return &store.Listener{} }, func() []store.NodeState {
			return []store.NodeState{{Name: "n01", State: "up"}, {Name: "n02", State: "missing"}}
		}, 2, time.Second)
		if len(s.got) != 1 || len(s.got[0].Notices) != 2 || s.got[0].Notices[1].Kind != LogGivenUp || s.got[0].Notices[1].ID != "-given-up" ||
			!strings.HasPrefix(s.got[0].Notices[1].Text, "2 sequences of the log cannot be read") || s.got[0].Notices[0].Node != "n02" || s.got[0].Notices[0].ID != "-n02" {
			t.Errorf("told %+v", s.got)
		}
		if c := n.Counts(); len(c) != 1 || c[0] != (Counts{Way: "url", Sent: 1}) {
			t.Errorf("counted %+v", c)
		}
		s.set(nil, true)
		began := time.Now()
		n.Run(t.Context(), "c", func(string) *store.Listener { return &store.Listener{} }, func() []store.NodeState { return []store.NodeState{{Name: "n02", State: "missing"}} }, 3, 3*time.Second)
		if d := time.Since(began); d != 3*time.Second {
			t.Errorf("with a way that hangs it ended after %v", d)
		}
	})
	n, err := New(Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	n.Run(t.Context(), "c", nil, nil, 0, 0) // nobody is to be told: it asks nothing
}
