package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func tell(s *Store, n int) {
	for range n {
		s.events.publish(Event{Name: EventWrites, Taken: &Taken{}})
	}
}

// take takes what there is to take, without waiting.
func take(l *Listener) (out []string, err error) {
	done, cancel := context.WithCancel(context.Background())
	cancel()
	for {
		ev, err := l.Next(done)
		if errors.Is(err, context.Canceled) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if ev.Name == EventMissed {
			ev.ID = "missed " + ev.ID
		}
		out = append(out, ev.ID)
	}
}

// TestEventsInOrder: each listener gets each event once, in order, from where it
// begins or goes on; what it cannot get it is told of.
func TestEventsInOrder(t *testing.T) {
	s, _ := bareJobs(time.Now, false)
	e := s.events
	ids := func(from, to uint64) (out []string) {
		for n := from; n <= to; n++ {
			out = append(out, e.id(n))
		}
		return out
	}
	tell(s, 3)
	for _, c := range []struct {
		after string
		want  []string
	}{
		{"", nil},
		{e.id(0), ids(1, 3)},
		{e.id(1), ids(2, 3)},
		{e.id(3), nil},
		{e.id(4), append([]string{"missed " + e.id(0)}, ids(1, 3)...)}, // never told
		{"other-2", append([]string{"missed " + e.id(0)}, ids(1, 3)...)},
		{"nonsense", append([]string{"missed " + e.id(0)}, ids(1, 3)...)},
		{e.prefix + "-x", append([]string{"missed " + e.id(0)}, ids(1, 3)...)},
		{e.prefix + "-18446744073709551615", append([]string{"missed " + e.id(0)}, ids(1, 3)...)},
	} {
		l := s.Listen(c.after)
		got, err := take(l)
		if fmt.Sprint(got) != fmt.Sprint(c.want) || err != nil || l.Last() != e.id(3) {
			t.Errorf("after %q: %q, %v, then %s; want %q", c.after, got, err, l.Last(), c.want)
		}
	}
	at := s.Listen("")
	tell(s, eventsKept)
	if got, err := take(at); err != nil || fmt.Sprint(got) != fmt.Sprint(ids(4, 3+eventsKept)) {
		t.Errorf("a listener behind by as many as are kept: %d, %v", len(got), err)
	}
	if got, err := take(s.Listen(e.id(2))); err != nil || fmt.Sprint(got) != fmt.Sprint(append([]string{"missed " + e.id(3)}, ids(4, 3+eventsKept)...)) {
		t.Errorf("one that comes back too late: %.3q, %v", got, err)
	}
	tell(s, eventsKept+1)
	if got, err := take(at); !errors.Is(err, ErrSlow) {
		t.Errorf("a slow listener gets %d events, %v; want %v", len(got), err, ErrSlow)
	}
	last := s.Listen(e.id(e.next - 2))
	e.close()
	if got, err := take(last); !errors.Is(err, ErrClosed) || len(got) != 1 {
		t.Errorf("at the end: %q, %v; want the last event, then %v", got, err, ErrClosed)
	}
	tell(s, 1) // to nobody
}

// TestNextWaits: a listener waits for an event, its context or the end.
func TestNextWaits(t *testing.T) {
	s, _ := bareJobs(time.Now, false)
	next := func(ctx context.Context, l *Listener) <-chan error {
		got := make(chan error, 1)
		go func() { _, err := l.Next(ctx); got <- err }()
		return got
	}
	ctx, cancel := context.WithCancel(t.Context())
	told, cancelled := next(t.Context(), s.Listen("")), next(ctx, s.Listen(s.events.id(1000)))
	<-cancelled // missed, at once
	time.Sleep(time.Millisecond)
	tell(s, 1)
	if err := <-told; err != nil {
		t.Error(err)
	}
	cancelled = next(ctx, s.Listen(""))
	cancel()
	if err := <-cancelled; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	closed := next(t.Context(), s.Listen(""))
	s.events.close()
	if err := <-closed; !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// TestEventsOfTheStore: what becomes of nodes and of writes is told once.
func TestEventsOfTheStore(t *testing.T) {
	r := newRig(t)
	r.change = func(c *Config) { c.idle = true }
	r.close()
	r.open()
	l := r.st.Listen("")
	var w watched
	told := func() string {
		w.look(r.st)
		var out []string
		done, cancel := context.WithCancel(t.Context())
		cancel()
		for {
			ev, err := l.Next(done)
			switch {
			case err != nil:
				return strings.Join(out, ", ")
			case ev.Node != nil:
				out = append(out, ev.Node.Name+" "+ev.Node.State)
			case ev.Taken != nil:
				out = append(out, fmt.Sprintf("%s %v %v", ev.Name, ev.Taken.Taken, ev.Taken.Reason != ""))
			}
		}
	}
	lost := func(names ...string) {
		for _, name := range names {
			if err := r.fs[name].RemoveAll("node.json"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.st.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := told(); got != "" {
		t.Errorf("at first: %s", got)
	}
	lost("n02")
	if got := told(); got != "n02 missing" {
		t.Errorf("with n02 lost: %s", got)
	}
	lost("n01", "n03")
	if got := told() + "; " + told(); got != "n01 missing, n03 missing, writes false true; " {
		t.Errorf("with n01 and n03 lost: %s", got)
	}
	r.st.fail(errCut)
	if got := told(); got != "" {
		t.Errorf("the store stops when it takes no writes already: %s", got)
	}
}
