package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/pack"
	"cairn/schedule"
)

// clock is a clock that a test sets.
type clock struct{ ns atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.ns.Load()).UTC() }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

// timed starts a new store without background jobs; its clock stands still but for the
// test.
func timed(t *testing.T, p schedule.Plan) (*rig, *clock) {
	r, c := newRig(t), &clock{}
	c.ns.Store(time.Now().UnixNano())
	r.change = func(cfg *Config) {
		cfg.idle, cfg.Lag, cfg.Now, cfg.Scrub, cfg.ScrubRate = true, noDeadline, c.now, p, fast.Rate
	}
	r.close()
	r.open()
	return r, c
}

func (r *rig) keeper() *keeper {
	return &keeper{s: r.st, keep: schedule.Keeper{Plan: r.st.cfg.Scrub}}
}

// looks looks twice, as the loop does a minute apart, and waits for what has begun.
func (k *keeper) looks(t *testing.T, up time.Duration) *run {
	t.Helper()
	for i := range 2 {
		if err := k.look(context.Background(), up+time.Duration(i)*time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	return k.run
}

func endOf(t *testing.T, r *run) Job {
	t.Helper()
	select {
	case <-r.over:
	case <-time.After(aWhile):
		t.Fatal("a scrub does not end")
	}
	return r.s.jobs.copyOf(r)
}

func resultOf(t *testing.T, j Job) (res ScrubResult) {
	t.Helper()
	if err := json.Unmarshal(j.Result, &res); err != nil {
		t.Fatalf("%+v: %v", j, err)
	}
	return res
}

func ages(t *testing.T, st *Store) [2]schedule.Age {
	t.Helper()
	got, err := st.ScrubAges()
	if err != nil || len(got) != 2 || got[0].Deep || !got[1].Deep {
		t.Fatalf("%+v, %v", got, err)
	}
	return [2]schedule.Age{got[0].Age, got[1].Age}
}

// TestDueScrubsRun: what is due by its age is read and mended by itself, deep for light
// as well, and then it is due no more; a restart does not forget it.
func TestDueScrubsRun(t *testing.T) {
	r, c := timed(t, schedule.Plan{})
	r.put("a", random(1, 300_000))
	k := r.keeper()
	if run := k.looks(t, 0); run != nil {
		t.Fatalf("begun at once: %+v", endOf(t, run))
	}
	for _, a := range ages(t, r.st) {
		if !a.Never || a.Age > time.Hour {
			t.Errorf("in the beginning: %+v", a)
		}
	}
	c.advance(6 * schedule.Day)
	packs := r.placesOf(pack.Data)
	for p, places := range packs {
		r.rot(p, places[0])
	}
	run := k.looks(t, time.Hour)
	if run == nil {
		t.Fatal("a light scrub is due, and does not begin")
	}
	j := endOf(t, run)
	if res := resultOf(t, j); j.State != JobDone || j.Trigger != BySchedule || j.Options.Deep || len(packs) == 0 || res.Repaired != len(packs) || res.Left != 0 {
		t.Errorf("of %d rotten shards: %s by %s, %+v", len(packs), j.State, j.Trigger, res)
	}
	if a := ages(t, r.st); a[0].Never || a[0].Age != 0 || !a[1].Never || a[0].Overdue || a[1].Overdue {
		t.Errorf("then the ages are %+v", a)
	}
	if run := k.looks(t, 20*time.Hour); run != nil {
		t.Fatalf("another begins at once: %+v", endOf(t, run))
	}
	c.advance(25 * schedule.Day)
	if run = k.looks(t, 30*time.Hour); run == nil {
		t.Fatal("a deep scrub is due, and does not begin")
	}
	if j := endOf(t, run); j.State != JobDone || !j.Options.Deep {
		t.Errorf("it ended as %s, %+v", j.State, resultOf(t, j))
	}
	r.close()
	r.open()
	if a := ages(t, r.st); a[0].Never || a[1].Never || a[0].Age != 0 || a[1].Age != 0 {
		t.Errorf("after a restart the ages are %+v", a)
	}
	if run := r.keeper().looks(t, 0); run != nil {
		t.Fatalf("after a restart one begins: %+v", endOf(t, run))
	}
}

// TestHoursByThemselves: a store that is left alone scrubs when it is due, again and
// again, and proves its index daily.
func TestHoursByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.change = func(c *Config) {
			c.Scrub, c.ScrubRate = schedule.Plan{Light: 12 * time.Hour, Deep: 24 * time.Hour}, fast.Rate
		}
		r.close()
		r.open()
		r.put("a", random(1, 300_000))
		began := time.Now()
		for time.Since(began) < 30*time.Hour {
			time.Sleep(10 * time.Minute)
			for _, a := range ages(t, r.st) {
				if a.Overdue {
					t.Fatalf("after %v: %+v", time.Since(began), a)
				}
			}
		}
		all, _, err := r.st.Jobs(t.Context(), JobFilter{Kind: JobScrub})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, j := range slices.Backward(all) {
			got = append(got, fmt.Sprintf("%v deep %v %s by %s", j.Started.Sub(began).Truncate(time.Hour), j.Options.Deep, j.State, j.Trigger))
		}
		want := []string{"9h0m0s deep false done by schedule", "18h0m0s deep true done by schedule", "27h0m0s deep false done by schedule"}
		if !slices.Equal(got, want) {
			t.Errorf("scrubs: %q, want %q", got, want)
		}
		for _, c := range r.st.JobCounts() {
			if c.Kind == JobCheckIndex && c.Done != 2 {
				t.Errorf("the index was proved %d times in 30 hours, want twice", c.Done)
			}
		}
		r.close()
	})
}

// TestScrubsKeepToTheirWindows: outside of its windows none begins; at the end of one a
// scrub is cut off, and in the next it goes on where it was.
func TestScrubsKeepToTheirWindows(t *testing.T) {
	w, err := schedule.ParseWindows("0 1 * * * for 5h")
	if err != nil {
		t.Fatal(err)
	}
	r, c := timed(t, schedule.Plan{Windows: w})
	for i := range 5 {
		r.put(string(rune('a'+i)), random(uint64(i), 300_000))
	}
	c.advance(6 * schedule.Day)
	for c.now().Hour() != 12 {
		c.advance(time.Hour)
	}
	k := r.keeper()
	if run := k.looks(t, 0); run != nil {
		t.Fatalf("begun outside of a window: %+v", endOf(t, run))
	}
	c.advance(14 * time.Hour) // 2:00
	r.st.cfg.ScrubRate = 1    // a pack, and then it waits for days
	run := k.looks(t, time.Hour)
	if run == nil {
		t.Fatal("not begun in a window")
	}
	for limit := time.Now().Add(aWhile); r.st.jobs.copyOf(run).Done == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("no pack is read")
		}
	}
	if err := k.look(t.Context(), 2*time.Hour); err != nil || r.st.jobs.copyOf(run).State != JobRunning {
		t.Fatalf("cut off in the window: %v", err)
	}
	c.advance(5 * time.Hour) // 7:00
	if err := k.look(t.Context(), 3*time.Hour); err != nil {
		t.Fatal(err)
	}
	j := endOf(t, run)
	first := resultOf(t, j)
	if j.State != JobCancelled || j.Error != errJobCut.Error() || first.Complete || first.Packs == 0 {
		t.Errorf("at the end of the window: %s, %q, %+v", j.State, j.Error, first)
	}
	if run := k.looks(t, 4*time.Hour); run != nil {
		t.Fatalf("begun behind a window: %+v", endOf(t, run))
	}
	c.advance(20 * time.Hour) // 3:00
	r.st.cfg.ScrubRate = fast.Rate
	if run = k.looks(t, 5*time.Hour); run == nil {
		t.Fatal("it does not go on in the next window")
	}
	j = endOf(t, run)
	res := resultOf(t, j)
	if j.State != JobDone || !res.Complete || res.Runs != 2 || res.Packs <= first.Packs {
		t.Errorf("it ended as %s, %+v", j.State, res)
	}
	if a := ages(t, r.st)[0]; a.Age != 25*time.Hour {
		t.Errorf("its word is as old as its beginning, 25 hours, not %v", a.Age)
	}

	c.advance(9 * time.Hour) // 12:00
	asked, err := r.st.StartJob(t.Context(), JobScrub, JobOptions{Rate: 1})
	if err != nil {
		t.Fatal(err)
	}
	_, k.run, _ = r.st.beginJob(t.Context(), JobScrub, BySchedule, JobOptions{})
	if err := k.look(t.Context(), 6*time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := r.st.CancelJob(t.Context(), asked.ID); err != nil {
		t.Fatal(err)
	}
	if j := endOf(t, k.run); j.ID != asked.ID || j.Error != "" {
		t.Errorf("what somebody asked for was cut off outside of the windows: %q", j.Error)
	}
}

// TestOneScrubAtATime: while somebody's scrub is under way none begins by itself; nor
// does one while no writes are taken.
func TestOneScrubAtATime(t *testing.T) {
	r, c := timed(t, schedule.Plan{Deep: schedule.Off})
	r.put("a", random(1, 300_000))
	c.advance(90 * schedule.Day)
	k := r.keeper()
	j, err := r.st.StartJob(t.Context(), JobScrub, JobOptions{Rate: 1})
	if err != nil {
		t.Fatal(err)
	}
	if run := k.looks(t, 0); run == nil || run.ID != j.ID {
		t.Error("two scrubs are under way")
	}
	if _, err := r.st.CancelJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	ended(t, r.st, j.ID)
	if run := k.looks(t, time.Hour); run != nil {
		t.Error("one begins as soon as somebody has cancelled one")
	}
	k = r.keeper()
	r.st.fail(errCut)
	if run := k.looks(t, time.Hour); run != nil {
		t.Error("one begins in a store that has failed")
	}
}

// TestOverdueIsTold: once when it comes to be, and once a day.
func TestOverdueIsTold(t *testing.T) {
	w, err := schedule.ParseWindows("0 1 * * * for 1m")
	if err != nil {
		t.Fatal(err)
	}
	r, c := timed(t, schedule.Plan{Deep: schedule.Off, Windows: w})
	k := r.keeper()
	l := r.st.Listen("")
	told := func() (n int) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		for {
			ev, err := l.Next(ctx)
			if err != nil {
				return n
			}
			if ev.Name != EventOverdue || ev.Overdue == nil || ev.Overdue.Deep || !ev.Overdue.Overdue || ev.Overdue.Within != 7*schedule.Day {
				t.Errorf("told of %+v", ev)
			}
			n++
		}
	}
	c.advance(7*schedule.Day - ages(t, r.st)[0].Age - time.Hour)
	k.looks(t, 0)
	if n := told(); n != 0 {
		t.Errorf("told %d times before it is", n)
	}
	c.advance(time.Hour + time.Minute)
	k.looks(t, time.Hour)
	if n := told(); n != 1 {
		t.Errorf("told %d times, want once", n)
	}
	k.looks(t, 24*time.Hour)
	if n := told(); n != 0 {
		t.Errorf("told %d times more within a day", n)
	}
	k.looks(t, 25*time.Hour)
	if n := told(); n != 1 {
		t.Errorf("told %d times a day later, want once", n)
	}
}

// TestAgesOfPasses: which passes count, when the clock was set back as well; and a light
// pass that a deep one has overtaken begins anew.
func TestAgesOfPasses(t *testing.T) {
	at := func(day int) *ScrubPass { return &ScrubPass{Began: time.Unix(int64(day)*86400, 0)} }
	for _, c := range []struct {
		name        string
		light, deep *ScrubPass
		want        [2]*ScrubPass // by their beginnings
	}{
		{"none", nil, nil, [2]*ScrubPass{}},
		{"light", at(3), nil, [2]*ScrubPass{at(3)}},
		{"deep", nil, at(3), [2]*ScrubPass{at(3), at(3)}},
		{"light, then deep", at(3), at(4), [2]*ScrubPass{at(4), at(4)}},
		{"deep, then light", at(4), at(3), [2]*ScrubPass{at(4), at(3)}},
		{"light of the future", at(90), at(3), [2]*ScrubPass{at(3), at(3)}},
		{"deep of the future", at(3), at(90), [2]*ScrubPass{at(3), at(90)}},
	} {
		s := scrubs{states: map[bool]scrubState{false: {Last: c.light}, true: {Last: c.deep}}}
		got := s.passes(time.Unix(10*86400, 0))
		for i := range got {
			if (got[i] == nil) != (c.want[i] == nil) || got[i] != nil && !got[i].Began.Equal(c.want[i].Began) {
				t.Errorf("%s: %v, want %v", c.name, got[i], c.want[i])
			}
		}
	}
	light := scrubState{Last: at(1), Began: at(3).Began, Cursor: id.Pack{1}.String(), Pass: &ScrubResult{}}
	for day, goesOn := range map[int]bool{2: true, 4: false} {
		s := scrubs{states: map[bool]scrubState{false: light, true: {Last: at(day)}}}
		if st := s.state(false); (st.Pass != nil) != goesOn || st.Last != light.Last || (st.Cursor != "") != goesOn {
			t.Errorf("with a deep pass of day %d it goes on from %+v", day, st)
		}
		if st := s.state(true); st.Last == nil {
			t.Error("the deep state is gone")
		}
	}
}

// TestOldestBucket: what was never read is as old as the store.
func TestOldestBucket(t *testing.T) {
	r, c := timed(t, schedule.Plan{})
	var made time.Time
	if err := r.st.view(func(rd index.Reader) error {
		bs, err := rd.Buckets()
		if err != nil || len(bs) == 0 {
			return errors.Join(err, errCut)
		}
		made = exposeBucket(bs[0]).Created
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if a := ages(t, r.st)[1]; !a.Never || !a.Since.Equal(made) || a.Age != c.now().Sub(made) {
		t.Errorf("%+v; the first bucket is of %v", a, made)
	}
}

// TestCheckDue: the index is proved daily, by the clock of a machine that sleeps, and
// whatever the clock does.
func TestCheckDue(t *testing.T) {
	const h = time.Hour
	for _, c := range []struct {
		clock, up time.Duration
		want      bool
	}{
		{0, 0, false}, {23 * h, 23 * h, false}, {24 * h, 24 * h, true}, {30 * h, 10 * h, true}, {30 * h, h / 2, false},
		{-900 * h, 2 * h, true}, {-900 * h, h / 2, false}, {3 * h, 24 * h, true}, {-h, 23 * h, false},
	} {
		if got := checkDue(c.clock, c.up); got != c.want {
			t.Errorf("%v later, after %v: %v", c.clock, c.up, got)
		}
	}
}
