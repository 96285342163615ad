package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/record"
)

// aWhile is how long a test waits for what must happen.
const aWhile = 60 * time.Second

// bareJobs is a store with nothing in it but a registry of jobs. Those of its kinds
// end when they are told an error, nil included, or are cancelled.
func bareJobs(now func() time.Time, silent bool, kinds ...string) (s *Store, end map[string]chan error) {
	s = &Store{now: now, log: slog.New(slog.DiscardHandler), events: newEvents(now), failed: make(chan struct{})}
	s.initJobs()
	s.jobs.kinds, s.jobs.counts, end = map[string]jobKind{}, map[string]*JobCounts{}, map[string]chan error{}
	for _, kind := range kinds {
		ends := make(chan error)
		end[kind], s.jobs.counts[kind] = ends, &JobCounts{Kind: kind}
		s.jobs.kinds[kind] = jobKind{silent: silent, run: func(ctx context.Context, r *run) (any, error) {
			select {
			case err := <-ends:
				return map[string]int{"n": 1}, err
			case <-ctx.Done():
				return map[string]int{"n": 0}, context.Cause(ctx)
			}
		}}
	}
	return s, end
}

// ended waits for the end of a run.
func ended(t rapid.TB, s *Store, j id.Job) Job {
	t.Helper()
	s.jobs.mu.Lock()
	r, err := s.jobs.find(j)
	s.jobs.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.over:
	case <-time.After(aWhile):
		t.Fatalf("job %v does not end", j)
	}
	return s.jobs.copyOf(r)
}

// TestJobs: whatever is started, ended and cancelled, also under a clock that leaps,
// what is told of the runs is what a plain list says.
func TestJobs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		clock := time.Unix(1_700_000_000, 0)
		now := func() time.Time { return clock }
		kinds := []string{"a", "b"}
		s, end := bareJobs(now, false, kinds...)
		defer func() {
			for _, r := range s.jobs.stop() {
				<-r.over
			}
		}()
		var all []Job // the model, from old to new
		running := map[string]int{}
		counts := map[string]JobCounts{"a": {Kind: "a"}, "b": {Kind: "b"}}
		over := func(kind, state, why string, result int) {
			i := running[kind] - 1
			got := ended(t, s, all[i].ID)
			all[i].State, all[i].Error, all[i].Ended, all[i].Result = state, why, clock, fmt.Appendf(nil, `{"n":%d}`, result)
			if !reflect.DeepEqual(got, all[i]) {
				t.Fatalf("it ended as %+v, want %+v", got, all[i])
			}
			running[kind] = 0
			c := counts[kind]
			switch state {
			case JobDone:
				c.Done++
				c.LastDone = clock
			case JobFailed:
				c.Failed++
			case JobCancelled:
				c.Cancelled++
			}
			counts[kind] = c
		}
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			clock = clock.Add(time.Duration(rapid.IntRange(-2000, 2000).Draw(t, "ms")) * time.Millisecond)
			kind := rapid.SampledFrom(kinds).Draw(t, "kind")
			switch rapid.SampledFrom([]string{"start", "start", "done", "fail", "cancel", "list"}).Draw(t, "step") {
			case "start":
				j, err := s.StartJob(context.Background(), kind, JobOptions{})
				if i := running[kind]; i > 0 {
					if !errors.Is(err, ErrJobRunning) || j.ID != all[i-1].ID {
						t.Fatalf("started beside %v: %v, %v", all[i-1].ID, j.ID, err)
					}
					continue
				}
				if err != nil || len(all) > 0 && j.ID.Compare(all[len(all)-1].ID) <= 0 {
					t.Fatalf("started: %v, %v, after %d others", j.ID, err, len(all))
				}
				want := Job{ID: j.ID, Kind: kind, Trigger: ByRequest, State: JobRunning, Started: clock}
				if !reflect.DeepEqual(j, want) {
					t.Fatalf("started %+v, want %+v", j, want)
				}
				all = append(all, j)
				running[kind] = len(all)
			case "done":
				if running[kind] > 0 {
					end[kind] <- nil
					over(kind, JobDone, "", 1)
				}
			case "fail":
				if running[kind] > 0 {
					end[kind] <- errCut
					over(kind, JobFailed, errCut.Error(), 1)
				}
			case "cancel":
				if len(all) == 0 {
					continue
				}
				j := rapid.SampledFrom(all).Draw(t, "job")
				_, err := s.CancelJob(context.Background(), j.ID)
				switch {
				case j.State == JobRunning && err == nil:
					over(j.Kind, JobCancelled, "", 0)
				case j.State == JobRunning, !errors.Is(err, ErrJobOver) && !errors.Is(err, ErrNoJob):
					t.Fatalf("cancel of %+v: %v", j, err)
				}
			case "list":
				f := JobFilter{Kind: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "of kind"), State: rapid.SampledFrom([]string{"", JobRunning, JobDone, JobFailed, JobCancelled}).Draw(t, "in state"),
					Limit: rapid.IntRange(1, 20).Draw(t, "limit")}
				var got []Job
				for {
					page, more, err := s.Jobs(context.Background(), f)
					if got = append(got, page...); err != nil || more && len(page) != f.Limit {
						t.Fatal(err)
					}
					if !more {
						break
					}
					f.Before = page[len(page)-1].ID
				}
				var want []Job
				of := map[string]int{}
				for i := len(all) - 1; i >= 0; i-- {
					if of[all[i].Kind]++; of[all[i].Kind] <= jobsKept && (f.Kind == "" || f.Kind == all[i].Kind) && (f.State == "" || f.State == all[i].State) {
						want = append(want, all[i])
					}
				}
				// A run is forgotten when another ends, so one more may be there.
				for len(got) > len(want) && len(want) >= jobsKept-1 {
					got = got[:len(want)]
				}
				if !reflect.DeepEqual(got, want) {
					t.Fatalf("%+v lists %d runs, want %d:\n%+v\n%+v", f, len(got), len(want), got, want)
				}
			}
			for _, c := range s.JobCounts() {
				if c != counts[c.Kind] {
					t.Fatalf("counted %+v, want %+v", c, counts[c.Kind])
				}
			}
		}
	})
}

// TestSilentJobs: a run by itself that finds nothing is not told of; unless somebody
// ran into it, or it fails.
func TestSilentJobs(t *testing.T) {
	t.Run("stopped", func(t *testing.T) {
		s, _ := bareJobs(time.Now, true, "a")
		ctx, r, err := s.beginJob(context.Background(), "a", ByStart, JobOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s.jobs.stop()
		_ = s.execute(ctx, r)
		if all, _, err := s.Jobs(context.Background(), JobFilter{}); err != nil || len(all) > 0 || r.kept {
			t.Errorf("a run by itself that a stop ended is told of: %+v, %v", all, err)
		}
		if _, err := s.StartJob(context.Background(), "a", JobOptions{}); !errors.Is(err, ErrClosed) {
			t.Errorf("started after the stop: %v", err)
		}
	})
	s, end := bareJobs(time.Now, true, "a")
	begin := func() *run {
		ctx, r, err := s.beginJob(context.Background(), "a", ByStart, JobOptions{})
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = s.execute(ctx, r) }()
		return r
	}
	listed := func() int {
		all, _, err := s.Jobs(context.Background(), JobFilter{})
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	l := s.Listen("")
	r := begin()
	if _, err := s.Job(context.Background(), r.ID); listed() != 0 || !errors.Is(err, ErrNoJob) {
		t.Errorf("a run that has found nothing yet is told of: %v", err)
	}
	end["a"] <- nil
	<-r.over
	if c := s.JobCounts()[0]; listed() != 0 || c.Done != 1 || c.LastDone.IsZero() {
		t.Errorf("%d runs are listed, want none; counted %+v, want one", listed(), c)
	}
	r = begin()
	if j, err := s.StartJob(context.Background(), "a", JobOptions{}); !errors.Is(err, ErrJobRunning) || j.ID != r.ID {
		t.Fatalf("%+v, %v", j, err)
	}
	end["a"] <- nil
	<-r.over
	if j, err := s.Job(context.Background(), r.ID); err != nil || j.State != JobDone || listed() != 1 {
		t.Errorf("a run that was named: %+v, %v, %d listed", j, err, listed())
	}
	r = begin()
	end["a"] <- errCut
	<-r.over
	if j, err := s.Job(context.Background(), r.ID); err != nil || j.State != JobFailed || listed() != 2 {
		t.Errorf("a run that failed: %+v, %v, %d listed", j, err, listed())
	}
	for _, want := range []string{EventJobStarted, EventJobEnded, EventJobStarted, EventJobEnded} {
		if ev, err := l.Next(t.Context()); err != nil || ev.Name != want {
			t.Errorf("event %s, %v; want %s", ev.Name, err, want)
		}
	}
}

// TestCancelledRepair: a repair that reads from a disk that hangs ends when it is
// cancelled; what it has done stays done, and another does the rest.
func TestCancelledRepair(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var reads atomic.Int64
	r := newRig(t)
	for i := range 6 {
		r.put(fmt.Sprint("k", i), random(uint64(i), 300_000))
	}
	r.close()
	r.wipe("n01")
	r.change = func(c *Config) { c.idle, c.Lag = true, 10*time.Minute }
	r.wrap = func(_ string, n node.Store) node.Store {
		return heldNode{n, func() {
			if reads.Add(1) > 40 {
				<-release
			}
		}}
	}
	r.open()
	r.replace("n01")
	reads.Store(0)
	j, err := r.st.StartJob(t.Context(), JobRepair, JobOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(aWhile); reads.Load() <= 40; time.Sleep(time.Millisecond) {
		if got, _ := r.st.Job(t.Context(), j.ID); time.Now().After(limit) || got.State != JobRunning {
			t.Fatalf("the repair does not come to the disk that hangs: %+v", got)
		}
	}
	if _, err := r.st.CancelJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	got := ended(t, r.st, j.ID) // while the disk hangs still
	var did RepairResult
	if err := json.Unmarshal(got.Result, &did); err != nil || got.State != JobCancelled || did.Packs == 0 || did.Short > 0 {
		t.Errorf("cancelled, it is %+v, %+v, %v; want some packs repaired", got, did, err)
	}
	if got.Unit != "bytes" || got.Done < did.Written || got.Total <= got.Done {
		t.Errorf("it was at %d of %d %s after %+v", got.Done, got.Total, got.Unit, did)
	}
	close(release)
	if j, err = r.st.StartJob(t.Context(), JobRepair, JobOptions{}); err != nil {
		t.Fatal(err)
	}
	first := did.Packs
	got = ended(t, r.st, j.ID)
	if err := json.Unmarshal(got.Result, &did); err != nil || got.State != JobDone || got.Total != did.Written || got.Done != got.Total || did.Short > 0 {
		t.Errorf("the next is %+v, %+v, %v", got, did, err)
	}
	if st, err := r.st.Status(t.Context()); err != nil || st.PacksShort > 0 {
		t.Errorf("after %d packs and %d: %d are short, %v", first, did.Packs, st.PacksShort, err)
	}
	r.sound()
}

// heldNode is a node that calls hold before each read.
type heldNode struct {
	node.Store
	hold func()
}

func (h heldNode) Read(ctx context.Context, k node.Key, off int64, dst []byte) error {
	h.hold()
	return h.Store.Read(ctx, k, off, dst)
}

// history reads the hidden bucket.
func (r *rig) history() (keys []string) {
	r.t.Helper()
	in, err := r.st.hiddenBucket(context.Background(), jobsBucket, false)
	if err == nil {
		err = r.st.eachHidden(context.Background(), in, index.ListOptions{}, func(p index.Page) error {
			for _, o := range p.Objects {
				keys = append(keys, o.Key)
			}
			return nil
		})
	}
	if err != nil && !errors.Is(err, ErrNoBucket) {
		r.t.Fatal(err)
	}
	return keys
}

func (r *rig) jobs() []Job {
	r.t.Helper()
	all, _, err := r.st.Jobs(context.Background(), JobFilter{})
	if err != nil {
		r.t.Fatal(err)
	}
	for i := range all { // as they are read back
		all[i].Started = time.Unix(0, all[i].Started.UnixNano())
		if !all[i].Ended.IsZero() {
			all[i].Ended = time.Unix(0, all[i].Ended.UnixNano())
		}
	}
	return all
}

// TestJobHistory: runs are known after a restart, the loss of the index, and a kill;
// so many of each kind, and nothing of them counts as a client's.
func TestJobHistory(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.change = func(c *Config) { c.SnapshotEvery = 1 << 40 } // none by itself
	r.close()
	r.open()
	r.put("k", []byte("content"))
	before, err := r.st.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{JobSnapshot, JobCheckIndex} {
		for {
			j, err := r.st.StartJob(t.Context(), kind, JobOptions{})
			if j.ID.IsZero() {
				t.Fatal(err)
			}
			var did struct{ Bytes uint64 }
			got := ended(t, r.st, j.ID)
			if jerr := json.Unmarshal(got.Result, &did); jerr != nil || got.State != JobDone || got.Done != did.Bytes {
				t.Fatalf("%+v, %v", got, jerr)
			}
			if err == nil {
				break // else one by itself, at the start
			}
		}
	}
	hold := make(chan struct{})
	held := func() id.Job {
		r.st.jobs.mu.Lock()
		r.st.jobs.kinds["hold"] = jobKind{run: func(ctx context.Context, _ *run) (any, error) {
			select {
			case <-hold:
			case <-ctx.Done():
			}
			return nil, context.Cause(ctx)
		}}
		r.st.jobs.counts["hold"] = &JobCounts{Kind: "hold"}
		r.st.jobs.mu.Unlock()
		j, err := r.st.StartJob(context.Background(), "hold", JobOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return j.ID
	}
	held()
	if err := r.st.saveJobs(); err != nil {
		t.Fatal(err)
	}
	after, err := r.st.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.LogicalBytes != before.LogicalBytes || after.Objects != before.Objects || after.Versions != before.Versions || after.Chunks != before.Chunks || after.DeadBytes != before.DeadBytes ||
		len(after.Buckets) != len(before.Buckets) || after.UploadBytes > 0 {
		t.Errorf("the history counts as a client's: %+v, before %+v", after, before)
	}
	killed := r.jobs()
	if killed[0].Kind != "hold" || killed[0].State != JobRunning {
		t.Fatalf("%+v", killed)
	}
	killed[0].State, killed[0].Error = JobFailed, "the server stopped"
	same := func(when string, want []Job) {
		t.Helper()
		// What the checks of starts found is not kept.
		byItself := func(j Job) bool { return j.Trigger != ByRequest }
		got, kept := slices.DeleteFunc(r.jobs(), byItself), slices.DeleteFunc(slices.Clone(want), byItself)
		if !reflect.DeepEqual(got, kept) {
			t.Errorf("%s: %d runs, want %d:\n%+v\nwant\n%+v", when, len(got), len(kept), got[:min(len(got), 3)], kept[:min(len(kept), 3)])
		}
		for _, c := range r.st.JobCounts() {
			if c.Kind == JobSnapshot && (c.Done > 0 || c.LastDone.IsZero()) {
				t.Errorf("%s: %+v; want one of the history", when, c)
			}
		}
	}
	r.st.cfg.idle = true // its end is not written down, as if it had been killed
	r.close()
	r.open()
	same("after a kill", killed)
	r.close()
	r.loseIndex()
	r.open()
	same("after the loss of the index", killed)

	// A stop is written down; of a kind as many as there may be.
	j := held()
	r.close()
	r.open()
	got, err := r.st.Job(t.Context(), j)
	if err != nil || got.State != JobFailed || got.Error != "the server stopped" || got.Ended.IsZero() {
		t.Errorf("a run that a stop ended: %+v, %v", got, err)
	}
	close(hold)
	for range jobsKept + 7 {
		j = held()
		ended(t, r.st, j)
	}
	if err := r.st.saveJobs(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, j := range r.jobs() {
		if j.Kind == "hold" {
			n++
		}
	}
	if rows := len(r.history()); n != jobsKept || rows != jobsKept+2 {
		t.Errorf("%d runs of a kind, %d in the history; want %d and two more", n, rows, jobsKept)
	}
	last := r.jobs()
	r.close()
	r.open()
	same("after many", last)
	r.sound()
}

// TestHistoryWithoutRoom: a run ends as ever while nothing can be written, and is
// written down later.
func TestHistoryWithoutRoom(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var full atomic.Bool
	r.change = func(c *Config) {
		c.Room = func(why node.Purpose) error {
			if full.Load() {
				return &node.RoomError{Why: why, Dir: "/data"}
			}
			return nil
		}
	}
	r.close()
	r.open()
	full.Store(true)
	for asked := false; !asked; {
		j, err := r.st.StartJob(t.Context(), JobCheckIndex, JobOptions{})
		if j.ID.IsZero() {
			t.Fatal(err)
		}
		if got := ended(t, r.st, j.ID); got.State != JobDone {
			t.Errorf("%+v", got)
		}
		asked = err == nil // else it was that of the start
	}
	if err := r.st.saveJobs(); !errors.Is(err, ErrFull) || len(r.history()) > 0 {
		t.Errorf("without room: %v, %q; want %v", err, r.history(), ErrFull)
	}
	full.Store(false)
	if err := r.st.saveJobs(); err != nil || len(r.history()) != 1 {
		t.Errorf("with room: %v, %q; want one run", err, r.history())
	}
}

// TestLossIsRepairedByAJob: what the store does by itself is told of, in the order in
// which it happens; a start that finds nothing short is not.
func TestLossIsRepairedByAJob(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.put("k", random(1, 300_000))
	r.close()
	r.wipe("n01")
	r.open()
	l := r.st.Listen("")
	r.replace("n01")
	var names []string
	var last Job
	limit, cancel := context.WithTimeout(t.Context(), aWhile)
	defer cancel()
	for last.State == "" || last.State == JobRunning {
		ev, err := l.Next(limit)
		if err != nil {
			t.Fatalf("after %q: %v", names, err)
		}
		if ev.Job != nil && ev.Job.Kind == JobRepair && ev.Job.Trigger == ByLoss {
			names, last = append(names, ev.Name), *ev.Job
		}
	}
	if got := strings.Join(names, " "); !strings.HasPrefix(got, EventJobStarted+" "+EventJobProgress) || !strings.HasSuffix(got, EventJobEnded) || last.State != JobDone {
		t.Errorf("told: %s, last %+v", got, last)
	}
	repairs := func() (n int) {
		for _, j := range r.jobs() {
			if j.Kind == JobRepair {
				n++
			}
		}
		return n
	}
	did := repairs()
	r.close()
	r.open()
	for counts := r.st.JobCounts(); counts[slices.IndexFunc(counts, func(c JobCounts) bool { return c.Kind == JobRepair })].Done == 0; counts = r.st.JobCounts() { // that of the start
		time.Sleep(time.Millisecond)
	}
	if n := repairs(); n != did {
		t.Errorf("%d repairs are told of after a start with nothing short, want %d", n, did)
	}
}

func someJobs() []Job {
	jid, err := id.NewJob(nil, 1_700_000_000_123)
	if err != nil {
		panic(err)
	}
	at := time.Unix(1_700_000_000, 123_000_000)
	return []Job{
		{ID: jid, Kind: JobRepair, Trigger: ByLoss, State: JobDone, Started: at, Ended: at.Add(time.Second), Done: 3, Total: 4, Unit: "packs", Result: json.RawMessage(`{"packs":3}`)},
		{ID: jid, Kind: "scrub", Trigger: BySchedule, State: JobFailed, Started: at, Error: "x\u00fcx"},
		{ID: jid, Kind: JobSnapshot, Trigger: ByRequest, State: JobCancelled, Started: at, Ended: at},
		{ID: jid, Kind: JobScrub, Trigger: ByRequest, State: JobDone, Started: at, Ended: at, Options: JobOptions{Deep: true, Rate: 1000, DryRun: true}},
		{ID: jid, Kind: JobRebalance, Trigger: ByRequest, State: JobDone, Started: at, Ended: at, Options: JobOptions{Rate: 1000, DryRun: true}},
	}
}

// TestJobFields: what version 1 wrote of a run is read, and written so.
func TestJobFields(t *testing.T) {
	want, err := os.ReadFile("testdata/job-v1.txt")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, j := range someJobs() {
		fields := jobFields(j)
		for _, f := range fields {
			fmt.Fprintf(&out, "%s=%s\n", f.Name, f.Value)
		}
		out.WriteByte('\n')
		got, err := parseJob(j.ID.String(), append(fields, record.UserField{Name: "zzz", Value: "of a later build"}))
		if err != nil || !reflect.DeepEqual(got, j) {
			t.Errorf("%+v is read as %+v, %v", j, got, err)
		}
		if err := checkAttrs(&record.Attrs{User: fields}); err != nil {
			t.Error(err)
		}
	}
	if out.String() != string(want) {
		t.Errorf("written is\n%swant\n%s", &out, want)
	}
	j := someJobs()[0]
	j.State = JobRunning
	if got, err := parseJob(j.ID.String(), jobFields(j)); err != nil || got.State != JobFailed || got.Error != "the server stopped" {
		t.Errorf("one that ran is read as %+v, %v", got, err)
	}
	j.Error, j.Result = strings.Repeat("e", maxJobError), []byte(`"`+strings.Repeat("r", maxJobResult-2)+`"`)
	if err := checkAttrs(&record.Attrs{User: jobFields(j)}); err != nil {
		t.Errorf("the longest: %v", err)
	}
	for _, f := range []record.UserField{{Name: "done", Value: "0"}, {Name: "done", Value: "+1"}, {Name: "total", Value: "01"}, {Name: "started", Value: "soon"}, {Name: "ended", Value: "007"},
		{Name: "state", Value: "sleeping"}, {Name: "result", Value: "{"}, {Name: "kind", Value: strings.Repeat("k", maxJobWord+1)}, {Name: "error", Value: strings.Repeat("e", maxJobError+1)}, {Name: "unit", Value: "\xff"}} {
		if got, err := parseJob(j.ID.String(), append(jobFields(someJobs()[0]), f)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s %.20q: %+v, %v", f.Name, f.Value, got, err)
		}
	}
}

// FuzzJob: what is read of a history is written the same way.
func FuzzJob(f *testing.F) {
	text := func(j Job) (out string) {
		for _, f := range jobFields(j) {
			out += f.Name + "=" + f.Value + "\x00"
		}
		return out
	}
	for _, j := range someJobs() {
		f.Add(j.ID.String(), text(j))
	}
	f.Fuzz(func(t *testing.T, key, s string) {
		var fields []record.UserField
		for part := range strings.SplitSeq(s, "\x00") {
			if name, value, ok := strings.Cut(part, "="); ok {
				fields = append(fields, record.UserField{Name: name, Value: value})
			}
		}
		j, err := parseJob(key, fields)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		if again, err := parseJob(j.ID.String(), jobFields(j)); err != nil || !reflect.DeepEqual(again, j) {
			t.Fatalf("%+v is read as %+v, %v", j, again, err)
		}
		if len(text(j)) > record.MaxAttrs {
			t.Fatalf("%d bytes", len(text(j)))
		}
	})
}

func TestCutText(t *testing.T) {
	for _, c := range [][2]string{{"short", "short"}, {"exactly 16 bytes", "exactly 16 bytes"}, {"more than 16 bytes", "more than 16 ..."}, {"a\xffb", "a?b"}, {"twelve bytes\u00fcx\u00fcx", "twelve bytes..."}} {
		if got := cutText(c[0], 16); got != c[1] {
			t.Errorf("%q is cut to %q, want %q", c[0], got, c[1])
		}
	}
}
