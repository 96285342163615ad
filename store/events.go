package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Names of events.
const (
	EventJobStarted  = "job-started"
	EventJobProgress = "job-progress"
	EventJobEnded    = "job-ended"
	EventNode        = "node"    // a node's state has changed
	EventWrites      = "writes"  // writes are taken, or not any more
	EventRoom        = "room"    // there is room for new data, or not any more
	EventOverdue     = "overdue" // a scrub is; told once a day
	EventMissed      = "missed"  // others came before that are not told any more
)

// eventsKept is how many events are kept for those who come back.
const eventsKept = 1024

// watchEvery is how often it is looked whether something has changed that tells
// nobody of itself.
const watchEvery = time.Second

// ErrSlow says that a listener took its events so late that some are not kept any
// more.
var ErrSlow = errors.New("too slow for the events")

// Event says that something has changed. One of Job, Node, Taken and Overdue is set,
// but for [EventMissed].
type Event struct {
	ID      string // later events have others; another process's are told apart
	Name    string
	Time    time.Time
	Job     *Job       // as it was then
	Node    *NodeState // as it became
	Taken   *Taken
	Overdue *ScrubAge
}

// Taken says whether the store takes something: writes, or new data.
type Taken struct {
	Taken  bool
	Reason string // why not
}

// events keeps the newest events for any number of listeners, which it never waits
// for: each reads at its own pace.
type events struct {
	now    func() time.Time
	prefix string // of the IDs of this process

	mu     sync.Mutex
	ring   []Event // event n is at n%eventsKept
	next   uint64  // number of the next event
	more   chan struct{}
	closed bool
}

func newEvents(now func() time.Time) *events {
	return &events{now: now, prefix: strconv.FormatInt(now().UnixNano(), 36), ring: make([]Event, eventsKept), next: 1, more: make(chan struct{})}
}

func (e *events) id(n uint64) string { return fmt.Sprintf("%s-%d", e.prefix, n) }

// publish tells all listeners. It never waits for one.
func (e *events) publish(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	ev.ID, ev.Time = e.id(e.next), e.now()
	e.ring[e.next%eventsKept] = ev
	e.next++
	close(e.more)
	e.more = make(chan struct{})
}

// close ends all listeners once they have taken what there is.
func (e *events) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.closed = true
		close(e.more)
	}
}

// oldest is the number of the oldest event that is kept; e.mu is held.
func (e *events) oldest() uint64 {
	if e.next > eventsKept {
		return e.next - eventsKept
	}
	return 1
}

// Listener takes events in their order. One goroutine uses it; nothing has to be
// done to end it. The zero Listener is one of a store that has closed, for stores
// other than this one, such as those that tests of a face put in its place.
type Listener struct {
	e      *events
	next   uint64
	missed bool
}

// Listen begins to listen. after is the ID of the last event that is known to the
// listener: those behind it come first. When some of them are not kept any more, or
// it is another process's, an [EventMissed] comes before those that are. Empty: only
// what happens from now on.
func (s *Store) Listen(after string) *Listener {
	e := s.events
	e.mu.Lock()
	defer e.mu.Unlock()
	l := &Listener{e: e, next: e.next}
	if after == "" {
		return l
	}
	prefix, number, _ := strings.Cut(after, "-")
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || prefix != e.prefix || n >= e.next || n+1 < e.oldest() {
		l.next, l.missed = e.oldest(), true
		return l
	}
	l.next = n + 1
	return l
}

// Last is the ID of the event before the next one: what to give [Store.Listen] to go
// on from here.
func (l *Listener) Last() string {
	if l.e == nil {
		return ""
	}
	return l.e.id(l.next - 1)
}

// Next waits for the next event. It is [ErrSlow] when that is not kept any more,
// [ErrClosed] behind the store's last event. What is there comes also when ctx has
// ended.
func (l *Listener) Next(ctx context.Context) (Event, error) {
	e := l.e
	if e == nil {
		return Event{}, ErrClosed
	}
	for {
		e.mu.Lock()
		more := e.more
		switch {
		case l.missed:
			l.missed = false
			ev := Event{ID: e.id(l.next - 1), Name: EventMissed, Time: e.now()}
			e.mu.Unlock()
			return ev, nil
		case l.next < e.oldest():
			e.mu.Unlock()
			return Event{}, ErrSlow
		case l.next < e.next:
			ev := e.ring[l.next%eventsKept]
			l.next++
			e.mu.Unlock()
			return ev, nil
		case e.closed:
			e.mu.Unlock()
			return Event{}, ErrClosed
		}
		e.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		}
	}
}

// watched is what the store was when it was looked at last.
type watched struct {
	nodes        map[string]string // state by name
	writes, room bool
}

// look tells what has changed since; the first time, of nothing.
func (w *watched) look(s *Store) {
	first := w.nodes == nil
	if first {
		w.nodes = map[string]string{}
	}
	for _, n := range s.NodeStates() {
		if !first && w.nodes[n.Name] != n.State {
			s.events.publish(Event{Name: EventNode, Node: new(n)})
		}
		w.nodes[n.Name] = n.State
	}
	tell := func(name string, was *bool, why error) {
		is := why == nil
		if !first && is != *was {
			t := &Taken{Taken: is}
			if why != nil {
				t.Reason = why.Error()
			}
			s.events.publish(Event{Name: name, Taken: t})
		}
		*was = is
	}
	why := s.Failure()
	if why == nil {
		why = s.writable()
	}
	tell(EventWrites, &w.writes, why)
	if why == nil { // else nothing is known of the room
		tell(EventRoom, &w.room, s.roomForData())
	} else if first {
		w.room = true
	}
}

// watchLoop tells what becomes of nodes, writes and room.
func (s *Store) watchLoop(ctx context.Context) {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	var w watched
	for {
		w.look(s)
		select {
		case <-t.C:
		case <-s.failed:
			w.look(s) // at once: the process is about to end
			return
		case <-ctx.Done():
			return
		}
	}
}
