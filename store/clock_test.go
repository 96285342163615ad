package store

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"time"

	"cairn/index/kv/memkv"
)

// pass lets time pass for what expires.
func (r *rig) pass(d time.Duration) {
	r.st.sure.mu.Lock()
	defer r.st.sure.mu.Unlock()
	r.st.sure.time += int64(d)
}

// TestSureClock: what is believed of the clock, and when.
func TestSureClock(t *testing.T) {
	begin := time.Unix(1_800_000_000, 0)
	type look struct {
		after time.Duration // since the look before, as the process sees it
		leap  time.Duration // of the clock, besides
		want  time.Duration // since the beginning
	}
	const day, decade = 24 * time.Hour, 87600 * time.Hour
	for _, test := range []struct {
		name  string
		away  time.Duration // how far the clock is ahead of the log at the start
		none  bool          // the log says nothing
		looks []look
	}{
		{"goes on", 0, false, []look{{0, 0, 0}, {time.Hour, 0, time.Hour}, {100 * day, 0, 100*day + time.Hour}}},
		{"first start", decade, true, []look{{0, 0, decade}, {time.Hour, 0, decade + time.Hour}}},
		{"leap ahead", 0, false, []look{{time.Hour, decade, time.Hour}, {time.Minute, 0, time.Hour + time.Minute}, {day - 2*time.Minute, 0, day + time.Hour - time.Minute}}},
		{"leap that stands", 0, false, []look{{time.Hour, decade, time.Hour}, {day - 1, 0, day + time.Hour - 1}, {1, 0, day + time.Hour + decade}, {day, 0, 2*day + time.Hour + decade}}},
		{"leap between two looks far apart", 0, false, []look{{time.Hour, time.Second, time.Hour}, {100 * day, decade, 100*day + time.Hour + time.Second}}},
		{"leap that is taken back", 0, false, []look{{time.Hour, decade, time.Hour}, {23 * time.Hour, -decade, day}, {1, decade, day + 1}, {23 * time.Hour, 0, day + 1 + 23*time.Hour}}},
		{"set back", 0, false, []look{{time.Hour, -decade, time.Hour}, {3 * day, 0, time.Hour + 3*day}, {time.Hour, decade, 2*time.Hour + 3*day}, {2 * day, 0, 2*time.Hour + 5*day}}},
		{"a month away", 30 * day, false, []look{{0, 0, 0}, {day - 1, 0, day - 1}, {1, 0, 31 * day}, {day, 0, 32 * day}}},
		{"leaps each day", 0, false, []look{{day, decade, day}, {day, decade, 2*day + decade}, {day, decade, 3*day + 2*decade}}},
	} {
		var c sureClock
		passed, now := time.Now(), begin.Add(test.away)
		logged := begin.UnixNano()
		if test.none {
			logged = 0
		}
		c.start(logged, now, passed)
		for i, l := range test.looks {
			passed, now = passed.Add(l.after), now.Add(l.after+l.leap)
			if got := time.Duration(c.look(now, passed) - begin.UnixNano()); got != l.want {
				t.Errorf("%s: look %d: %v, want %v", test.name, i, got, l.want)
			}
		}
	}
}

// TestClockIsLogged: the next process goes on where the log says that time stood, whatever
// its clock says, and also when the index is lost.
func TestClockIsLogged(t *testing.T) {
	r := newRig(t)
	var leap atomic.Int64
	r.close()
	r.change = func(c *Config) { c.Now = func() time.Time { return time.Now().Add(time.Duration(leap.Load())) } }
	r.open()
	r.put("a", []byte("a"))
	was := r.st.believed()
	leap.Store(int64(87600 * time.Hour))
	r.put("b", []byte("b")) // the log's own time goes along with the leap
	for range 2 {
		r.close()
		r.open()
		r.put("c", []byte("c"))
		if d := time.Duration(r.st.believed() - was); d.Abs() > time.Hour {
			t.Fatalf("after a start under a wrong clock it is %v later", d)
		}
	}
	r.pass(2 * time.Hour)
	r.put("d", []byte("d"))
	r.close()
	r.open()
	if d := time.Duration(r.st.believed() - was); d < time.Hour || d > 3*time.Hour {
		t.Fatalf("after two hours and a start it is %v later", d)
	}
	o, err := r.st.Put(context.Background(), "main", "e", bytes.NewReader(nil), PutOptions{Size: 0})
	if now := r.st.now(); err != nil || now.Sub(o.Modified).Abs() > time.Hour {
		t.Errorf("an object of %v is said to be of %v, %v", now, o.Modified, err)
	}
	head, err := r.st.index.Head()
	if err != nil {
		t.Fatal(err)
	}
	r.close()
	r.engine = memkv.New(memkv.Options{})
	r.open()
	if h, err := r.st.index.Head(); err != nil || h.Clock != head.Clock || h.Clock == 0 {
		t.Errorf("the clock stands at %d, before it stood at %d, %v", h.Clock, head.Clock, err)
	}
}
